// Every primitive on given registers: what a GPU makes of them must be what the stand-ins make of them.
#include "operands.cuh"

struct SelftestArgs {
  const State* state;
  Operand in;   // words: 16 per lane, then 32 rows of 4
  Operand out;  // words: 32 per lane
};
static_assert(sizeof(SelftestArgs) == 72, "as in args.rs");

// Of the words of a lane: 0 to 5 are operands of bytes, 6 to 11 of halves, 12 and 13 floats, 14 a half, 15 a sum of 32 bits.
CQ_KERNEL(selftest, 32, SelftestArgs) {
  const int lane = tid();
  const u32* all = (const u32*)now(p.in, p.state).data;
  const u32* in = all + lane * 16;
  const float* floats = (const float*)in;
  u32* out = (u32*)now(p.out, p.state).data + lane * 32;
  float* results = (float*)out;

  const u32 a[4] = {in[0], in[1], in[2], in[3]}, b[2] = {in[4], in[5]};
  int sums[4] = {(int)in[15], 1, -2, 3};
  mma_u8s8(sums, a, b);
  const u32 c[4] = {in[6], in[7], in[8], in[9]}, d[2] = {in[10], in[11]};
  float products[4] = {1.0f, 0.0f, -3.0f, 2.0f};
  mma_f16(products, c, d);
  for (int i = 0; i < 4; ++i) out[i] = (u32)sums[i], results[4 + i] = products[i];

  u8* rows = dynamic_shared();
  cp_async16(rows + lane * 16, all + 512 + lane * 4, lane != 5);
  cp_commit();
  cp_wait<0>();
  block_sync();
  u32 r[4];
  ldmatrix_x4(r, rows + lane * 7 % 32 * 16);
  for (int i = 0; i < 4; ++i) out[8 + i] = r[i];
  ldmatrix_x4_trans(r, rows + lane * 11 % 32 * 16);
  for (int i = 0; i < 4; ++i) out[12 + i] = r[i];

  for (int i = 0; i < 3; ++i) results[16 + i] = shfl_xor(floats[12], i == 0 ? 1 : i == 1 ? 2 : 16);
  out[19] = to_f16(floats[12]);
  out[20] = pack_f16(floats[12], floats[13]);
  results[21] = from_f16((u16)in[14]);
  out[22] = (u32)round_even(floats[13]);
  results[23] = reciprocal(floats[13]);
  results[24] = fast_exp(-floats[13]);
  results[25] = fast_div(floats[12], floats[13]);
  results[26] = inverse_sqrt(floats[13]);
  out[27] = 0;
  copy16(out + 28, in);
  block_sync();
  fill16(rows + lane * 16, in[3]);
  out[31] += ((const u32*)rows)[lane * 4 + 3];
}
