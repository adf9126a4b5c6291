// y = softmax(scale · q kᵀ + mask) · v per image and head, without the matrix of scores.
//
// A block has 64 queries, a warp 16 of them; keys and values come in tiles through two cp.async stages. The running maximum and sum
// of the softmax are kept per query (Flash Attention). Where weights are rounded to multiples of a fraction of the largest weight of
// their query, that must be known before: a first pass finds it.
#include "operands.cuh"

struct AttentionArgs {
  const State* state;
  Operand q, k, v, mask, y;
  i64 mask_strides[4];  // over image, head, query, key
  int images, heads, kv_heads, queries, keys, depth, value_depth, causal, bits;
  float scale;
};
static_assert(sizeof(AttentionArgs) == 240, "as in args.rs");

// A score as the softmax sees it; -infinity where the query does not see the key.
CQ_FN float seen(const AttentionArgs& p, Values mask, int image, int head, int query, int key, float product) {
  if (key >= p.keys || query >= p.queries || (p.causal && key > query + p.keys - p.queries)) return -infinity();
  float score = product * p.scale;
  if (mask) {
    const i64* s = p.mask_strides;
    score += get(mask, image * s[0] + head * s[1] + query * s[2] + key * s[3]);
  }
  return score;
}

template <int D, int KEYS, bool kRounds>
CQ_FN void attention_tile(const AttentionArgs& p) {
  constexpr int kThreads = 128, kQueries = 64, kChunks = D / 8, kPitch = D * 2 + 16;  // padded: eight rows meet all banks
  u8* queries = dynamic_shared();
  u8* tiles = queries + kQueries * kPitch;  // two stages of keys, then values
  const int t = tid(), lane = t % 32, warp = t / 32;
  const int q0 = block_x() * kQueries, image = block_y() / p.heads, head = block_y() % p.heads;
  const int kv_head = head / (p.heads / p.kv_heads);
  const Values q = now(p.q, p.state), k = now(p.k, p.state), v = now(p.v, p.state), mask = now(p.mask, p.state);
  const Values y = now(p.y, p.state);

  auto fetch = [&](u8* to, Values from, int rows, int first, int count, int begin, int depth, int at) {
    for (int i = t; i < rows * kChunks; i += kThreads) {
      const int row = i / kChunks, c = i % kChunks * 8;
      const bool inside = first + row < count && c < depth;
      const i64 at_row = ((i64)at * count + first + row) * from.ld + begin + c;
      cp_async16(to + row * kPitch + c * 2, from.data + (inside ? at_row * 2 : 0), inside);
    }
  };
  int count = (p.keys + KEYS - 1) / KEYS;
  if (p.causal) {
    const int last = (q0 + kQueries - 1 + p.keys - p.queries) / KEYS + 1;  // tiles behind it are seen by no query of the block
    count = last < 1 ? 1 : last < count ? last : count;
  }
  const int total = kRounds ? 2 * count : count;
  auto fetch_tile = [&](int i) {
    u8* to = tiles + i % 2 * 2 * KEYS * kPitch;
    const int first = i % count * KEYS;
    fetch(to, k, KEYS, first, p.keys, kv_head * p.depth, p.depth, image);
    if (!kRounds || i >= count) fetch(to + KEYS * kPitch, v, KEYS, first, p.keys, kv_head * p.value_depth, p.value_depth, image);
  };

  float out[D / 8][4] = {}, most[2] = {-infinity(), -infinity()}, sum[2] = {};
  const float levels = (float)((1 << p.bits) - 1);
  fetch(queries, q, kQueries, q0, p.queries, head * p.depth, p.depth, image);
  fetch_tile(0);
  cp_commit();
  for (int i = 0; i < total; ++i) {
    if (i + 1 < total) fetch_tile(i + 1);
    cp_commit();
    cp_wait<1>();
    block_sync();
    const u8* keys = tiles + i % 2 * 2 * KEYS * kPitch;
    const u8* values = keys + KEYS * kPitch;

    float scores[KEYS / 8][4] = {};
#pragma unroll
    for (int d = 0; d < kChunks; d += 2) {
      u32 a[4];
      ldmatrix_x4(a, queries + (warp * 16 + lane % 16) * kPitch + (d + lane / 16) * 16);
#pragma unroll
      for (int j = 0; j < KEYS / 8; j += 2) {
        u32 r[4];
        ldmatrix_x4(r, keys + (j * 8 + lane % 8 + lane / 16 * 8) * kPitch + (d + lane / 8 % 2) * 16);
        const u32 b[2][2] = {{r[0], r[1]}, {r[2], r[3]}};
        mma_f16(scores[j], a, b[0]);
        mma_f16(scores[j + 1], a, b[1]);
      }
    }

    // of the lane's two queries, each shared by four lanes
    float tile_most[2] = {most[0], most[1]};
#pragma unroll
    for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int query = q0 + warp * 16 + lane / 4 + e / 2 * 8, key = i % count * KEYS + j * 8 + lane % 4 * 2 + e % 2;
        scores[j][e] = seen(p, mask, image, head, query, key, scores[j][e]);
        tile_most[e / 2] = fmaxf(tile_most[e / 2], scores[j][e]);
      }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      tile_most[half] = fmaxf(tile_most[half], shfl_xor(tile_most[half], 1));
      tile_most[half] = fmaxf(tile_most[half], shfl_xor(tile_most[half], 2));
      // what is there so far, in terms of the new maximum; nothing has been seen below -infinity
      const float correction = most[half] == tile_most[half] ? 1.0f : fast_exp(most[half] - tile_most[half]);
      most[half] = tile_most[half];
      sum[half] *= correction;
#pragma unroll
      for (int d = 0; d < D / 8; ++d) out[d][2 * half] *= correction, out[d][2 * half + 1] *= correction;
    }
    if (!kRounds || i >= count) {
#pragma unroll
      for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float m = most[e / 2], weight = m == -infinity() ? 0.0f : fast_exp(scores[j][e] - m);
          scores[j][e] = kRounds ? (float)round_even(weight * levels) : weight;
          sum[e / 2] += scores[j][e];
        }
#pragma unroll
      for (int j = 0; j < KEYS / 8; j += 2) {
        const u32 a[4] = {pack_f16(scores[j][0], scores[j][1]), pack_f16(scores[j][2], scores[j][3]),
                          pack_f16(scores[j + 1][0], scores[j + 1][1]), pack_f16(scores[j + 1][2], scores[j + 1][3])};
#pragma unroll
        for (int d = 0; d < kChunks; d += 2) {
          u32 r[4];
          ldmatrix_x4_trans(r, values + (j * 8 + lane % 16) * kPitch + (d + lane / 16) * 16);
          const u32 b[2][2] = {{r[0], r[1]}, {r[2], r[3]}};
          mma_f16(out[d], a, b[0]);
          mma_f16(out[d + 1], a, b[1]);
        }
      }
    }
    block_sync();  // the tile just read is the one that is fetched next
  }
  cp_wait<0>();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] += shfl_xor(sum[half], 1);
    sum[half] += shfl_xor(sum[half], 2);
    const int query = q0 + warp * 16 + lane / 4 + half * 8;
    const float inverse = sum[half] > 0.0f ? fast_div(1.0f, sum[half]) : 0.0f;  // a query that sees no key gives zeros
#pragma unroll
    for (int d = 0; d < D / 8; ++d)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = d * 8 + lane % 4 * 2 + e;
        if (query >= p.queries || c >= p.value_depth) continue;
        put(y, ((i64)image * p.queries + query) * y.ld + head * p.value_depth + c, out[d][2 * half + e] * inverse);
      }
  }
}

CQ_KERNEL(attention_32, 128, AttentionArgs) { attention_tile<32, 64, false>(p); }
CQ_KERNEL(attention_64, 128, AttentionArgs) { attention_tile<64, 64, false>(p); }
CQ_KERNEL(attention_96, 128, AttentionArgs) { attention_tile<96, 64, false>(p); }
CQ_KERNEL(attention_160, 128, AttentionArgs) { attention_tile<160, 32, false>(p); }
CQ_KERNEL(attention_rounded_32, 128, AttentionArgs) { attention_tile<32, 64, true>(p); }
CQ_KERNEL(attention_rounded_64, 128, AttentionArgs) { attention_tile<64, 64, true>(p); }
CQ_KERNEL(attention_rounded_96, 128, AttentionArgs) { attention_tile<96, 64, true>(p); }
CQ_KERNEL(attention_rounded_160, 128, AttentionArgs) { attention_tile<160, 32, true>(p); }

// A warp per query, for heads whose rows are not made of 16 bytes. Scores are computed anew for every 32 columns of the result.
CQ_KERNEL(attention_direct, 128, AttentionArgs) {
  const u32 at = (u32)block_x() * 4 + tid() / 32;
  const int lane = tid() % 32;
  if (at >= (u32)p.images * p.heads * p.queries) return;
  const int query = at % p.queries, head = at / p.queries % p.heads, image = at / p.queries / p.heads;
  const int kv_head = head / (p.heads / p.kv_heads);
  const Values q = now(p.q, p.state), k = now(p.k, p.state), v = now(p.v, p.state), mask = now(p.mask, p.state);
  const Values y = now(p.y, p.state);
  const i64 at_q = ((i64)image * p.queries + query) * q.ld + head * p.depth;
  auto score = [&](int key) {
    const i64 at_k = ((i64)image * p.keys + key) * k.ld + kv_head * p.depth;
    float sum = 0.0f;
    for (int d = lane; d < p.depth; d += 32) sum += get(q, at_q + d) * get(k, at_k + d);
    return seen(p, mask, image, head, query, key, warp_sum(sum));
  };
  float most = -infinity();
  for (int key = 0; key < p.keys; ++key) most = fmaxf(most, score(key));
  const float levels = (float)((1 << p.bits) - 1);
  for (int c0 = 0; c0 < p.value_depth; c0 += 32) {
    const int c = c0 + lane;
    float sum = 0.0f, out = 0.0f;
    for (int key = 0; key < p.keys; ++key) {
      const float s = score(key);
      float weight = most == -infinity() ? 0.0f : fast_exp(s - most);
      if (p.bits > 0) weight = (float)round_even(weight * levels);
      sum += weight;
      if (c < p.value_depth) out += weight * get(v, ((i64)image * p.keys + key) * v.ld + kv_head * p.value_depth + c);
    }
    if (c < p.value_depth) {
      put(y, ((i64)image * p.queries + query) * y.ld + head * p.value_depth + c, sum > 0.0f ? fast_div(out, sum) : 0.0f);
    }
  }
}
