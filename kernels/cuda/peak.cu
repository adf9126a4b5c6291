// What tensor cores do at most: products of registers, so that nothing else is in the way.
#include "operands.cuh"

struct PeakArgs {
  const State* state;
  Operand in;   // words: 16 per lane
  Operand out;  // a word per thread
  int rounds, unused;
};
static_assert(sizeof(PeakArgs) == 80, "as in args.rs");

struct Bytes {
  using Acc = int;
  CQ_FN static void mma(Acc (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_u8s8(d, a, b); }
};
struct Halves {
  using Acc = float;
  CQ_FN static void mma(Acc (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_f16(d, a, b); }
};

// Eight sums that do not wait for each other, of two tiles of a and four of b; what is stored keeps them from being left out.
template <class T>
CQ_FN void peak(const PeakArgs& p) {
  constexpr int kA = 2, kB = 4;
  const u32* in = (const u32*)now(p.in, p.state).data + tid() % 32 * 16;
  u32 a[kA][4], b[kB][2];
#pragma unroll
  for (int i = 0; i < 8; ++i) a[i / 4][i % 4] = in[i], b[i / 2][i % 2] = in[8 + i];
  typename T::Acc sums[kA][kB][4] = {};
#pragma unroll 4
  for (int round = 0; round < p.rounds; ++round)
#pragma unroll
    for (int i = 0; i < kA; ++i)
#pragma unroll
      for (int j = 0; j < kB; ++j) T::mma(sums[i][j], a[i], b[j]);
  typename T::Acc sum = 0;
#pragma unroll
  for (int i = 0; i < kA * kB * 4; ++i) sum += sums[i / (kB * 4)][i / 4 % kB][i % 4];
  ((typename T::Acc*)now(p.out, p.state).data)[block_x() * 256 + tid()] = sum;
}

CQ_KERNEL(mma_peak_s8, 256, PeakArgs) { peak<Bytes>(p); }
CQ_KERNEL(mma_peak_f16, 256, PeakArgs) { peak<Halves>(p); }
