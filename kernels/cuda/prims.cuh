// Everything a kernel may ask of the hardware. The only file with `asm`, and the only `#if`.
//
// Under NVRTC these are PTX; under a host C++20 compiler they are the stand-ins of sim.hpp, which follow the same lane layouts
// (PTX ISA, "Matrix Fragments for mma.m16n8k32" and "m16n8k16"). Two paths of one kernel family cross-check each other; the
// PTX half itself is known to assemble, and has to be compared with the stand-ins once on every architecture.
#pragma once

using i8 = signed char;
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;

#if defined(__CUDACC__)

// A kernel takes one struct, `p`.
#define CQ_KERNEL(name, threads, Args) \
  extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ Args p)
#define CQ_SHARED __shared__ __align__(16)
#define CQ_FN __device__ __forceinline__

CQ_FN int tid() { return threadIdx.x; }
CQ_FN int block_x() { return blockIdx.x; }
CQ_FN int block_y() { return blockIdx.y; }
CQ_FN void block_sync() { __syncthreads(); }
CQ_FN int round_even(float x) { return __float2int_rn(x); }
CQ_FN float fast_exp(float x) { return __expf(x); }
// a / b to about 2 ulp; 0 where b is beyond 2^126.
CQ_FN float fast_div(float a, float b) { return __fdividef(a, b); }
// a · b and a + b, each rounded by itself: the compiler does not fuse them.
CQ_FN float times(float a, float b) { return __fmul_rn(a, b); }
CQ_FN float plus(float a, float b) { return __fadd_rn(a, b); }
// 1 / x rounded to nearest, for normal x with a normal reciprocal: the usual path of a division, without the call for the others.
CQ_FN float reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0,%1;" : "=f"(r) : "f"(x));
  return fmaf(r, fmaf(-x, r, 1.0f), r);
}
// 1 / sqrt(x) to about 2 ulp.
CQ_FN float inverse_sqrt(float x) { return rsqrtf(x); }
CQ_FN u32 float_bits(float x) { return __float_as_uint(x); }
CQ_FN float bits_float(u32 x) { return __uint_as_float(x); }
CQ_FN float infinity() { return __int_as_float(0x7f800000); }

// The memory that the launch asked for, 16-byte aligned.
CQ_FN u8* dynamic_shared() {
  extern __shared__ __align__(16) u8 memory[];
  return memory;
}

// d[16x8] += a[16x32] · b[32x8]: unsigned by signed bytes, sums of 32 bits.
CQ_FN void mma_u8s8(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d[16x8] += a[16x16] · b[16x8]: fp16, sums in f32.
CQ_FN void mma_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8-row by 16-byte tiles. Lane l passes the address of row l%8 of tile l/8, 16-byte aligned.
CQ_FN void ldmatrix_x4(u32 (&r)[4], const void* row) {
  u32 addr = (u32)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(addr)
               : "memory");
}

// The same with each tile of 8 by 8 halves transposed.
CQ_FN void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
  u32 addr = (u32)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(addr)
               : "memory");
}

// Starts copying 16 bytes to shared memory; writes 16 zero bytes, and reads nothing, if !valid.
CQ_FN void cp_async16(void* dst, const void* src, bool valid) {
  u32 addr = (u32)__cvta_generic_to_shared(dst);
  int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(addr), "l"(src), "r"(bytes) : "memory");
}
CQ_FN void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Returns when all but the newest `pending` groups of this thread have arrived.
template <int pending>
CQ_FN void cp_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Copies 16 aligned bytes.
CQ_FN void copy16(void* dst, const void* src) { *(uint4*)dst = *(const uint4*)src; }
// 16 aligned bytes at once, and 8.
struct Wide {
  u32 words[4];
};
CQ_FN Wide load16(const void* from) {
  const uint4 v = *(const uint4*)from;
  return {{v.x, v.y, v.z, v.w}};
}
CQ_FN void store16(void* to, const Wide& v) { *(uint4*)to = make_uint4(v.words[0], v.words[1], v.words[2], v.words[3]); }
CQ_FN void store8(void* to, u32 low, u32 high) { *(uint2*)to = make_uint2(low, high); }
// Writes a word four times to 16 aligned bytes.
CQ_FN void fill16(void* dst, u32 word) { *(uint4*)dst = make_uint4(word, word, word, word); }

// This value of the lane whose number differs in the bits of `mask`.
CQ_FN float shfl_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

CQ_FN float from_f16(u16 h) {
  float x;
  asm("cvt.f32.f16 %0,%1;" : "=f"(x) : "h"(h));
  return x;
}
CQ_FN u16 to_f16(float x) {
  u16 h;
  asm("cvt.rn.f16.f32 %0,%1;" : "=h"(h) : "f"(x));
  return h;
}
// Two fp16 numbers in a word, `low` in the low half.
CQ_FN u32 pack_f16(float low, float high) {
  u32 w;
  asm("cvt.rn.f16x2.f32 %0,%1,%2;" : "=r"(w) : "f"(high), "f"(low));
  return w;
}

#else
#include "sim.hpp"
#endif
