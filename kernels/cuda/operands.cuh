// What kernels are given: operands that may change with the evaluation, and how a result is finished and stored.
//
// One captured graph serves all evaluations and all requests, so an address depends on numbers in device memory: the evaluation
// (row of a table) and the slot of the request. `args.rs` mirrors these structs.
#pragma once
#include "prims.cuh"

struct State {
  int step, slot;
  int fault;  // what has gone wrong since the host last looked; any thread may set it
  int unused;
};

enum { kIndexOutside = 1, kDividesByZero };

enum { kF16, kF32, kU8, kI32, kI64 };

// Values somewhere in memory; data = 0: there are none. Rows are `ld` elements apart.
struct Operand {
  u8* data;
  i64 per_step, per_slot;  // bytes
  int type, ld;
};

// One row per image, `stride` elements apart (0 = the same for all), for `rows` rows of the result.
struct PerImage {
  Operand values;
  int stride, rows;
};

// y = residual + gate · act(scale · sum + bias + row), each part optional.
struct Epilogue {
  Operand scale, bias, residual;
  PerImage row, gate;
  int act, unused;
};

enum { kMaxSegments = 8 };

enum { kValues, kCodes, kRounded };

// Where results go: as they are, as codes, or rounded to what codes stand for; per segment of the columns.
struct Target {
  Operand y, scale, zero_point;
  int mode, bits, segments, unused;
  int ends[kMaxSegments];
};

// An operand at this evaluation.
struct Values {
  u8* data;
  int type, ld;
  CQ_FN explicit operator bool() const { return data != 0; }
};

CQ_FN Values now(const Operand& o, const State* state) {
  u8* data = o.data ? o.data + o.per_step * state->step + o.per_slot * state->slot : 0;
  return {data, o.type, o.ld};
}

CQ_FN float get(Values v, i64 i) {
  switch (v.type) {
    case kF16: return from_f16(((const u16*)v.data)[i]);
    case kF32: return ((const float*)v.data)[i];
    case kU8: return (float)v.data[i];
    case kI32: return (float)((const int*)v.data)[i];
    default: return (float)((const i64*)v.data)[i];
  }
}

// Floats become integers by truncation and saturation, NaN gives 0.
template <class I>
CQ_FN I truncated(float x, float low, float high, I most) {
  if (!(x == x)) return 0;
  return x >= high ? most : x <= low ? (I)low : (I)x;
}

CQ_FN void put(Values v, i64 i, float x) {
  switch (v.type) {
    case kF16: ((u16*)v.data)[i] = to_f16(x); break;
    case kF32: ((float*)v.data)[i] = x; break;
    case kU8: v.data[i] = x != 0.0f; break;  // only truth values are computed as bytes
    case kI32: ((int*)v.data)[i] = truncated<int>(x, -2147483648.0f, 2147483648.0f, 2147483647); break;
    default: ((i64*)v.data)[i] = truncated<i64>(x, -9223372036854775808.0f, 9223372036854775808.0f, 0x7fffffffffffffff);
  }
}

CQ_FN i64 get_integer(Values v, i64 i) {
  switch (v.type) {
    case kU8: return v.data[i];
    case kI32: return ((const int*)v.data)[i];
    default: return ((const i64*)v.data)[i];
  }
}

// The low bits; as bytes, truth values.
CQ_FN void put_integer(Values v, i64 i, i64 x) {
  switch (v.type) {
    case kU8: v.data[i] = x != 0; break;
    case kI32: ((int*)v.data)[i] = (int)(u32)x; break;
    default: ((i64*)v.data)[i] = x;
  }
}

enum { kNone, kSilu, kGeluErf, kGeluTanh, kQuickGelu, kRelu, kSigmoid, kTanh };

CQ_FN float sigmoid(float x) { return fast_div(1.0f, 1.0f + fast_exp(-x)); }

CQ_FN float activate(int act, float x) {
  switch (act) {
    case kSilu: return x * sigmoid(x);
    case kGeluErf: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case kGeluTanh: return x * sigmoid(1.5957691f * (x + 0.044715f * x * x * x));
    case kQuickGelu: return x * sigmoid(1.702f * x);
    case kRelu: return x < 0.0f ? 0.0f : x;
    case kSigmoid: return sigmoid(x);
    case kTanh: return tanhf(x);
    default: return x;
  }
}

// How one segment is rounded: q = clamp(round(x / scale) + zero, 0, 2^bits - 1); NaN gives q = 0, a scale of 0 lets x pass.
struct Rounding {
  float scale, inverse, zero, low, high;
  CQ_FN float level(float x) const { return (float)round_even(fminf(fmaxf(x * inverse, low), high)); }
  CQ_FN u8 code(float x) const { return (u8)(level(x) + zero); }
  CQ_FN float round(float x) const { return scale == 0.0f ? x : level(x) * scale; }
};

CQ_FN int segment_of(const Target& t, int col) {
  int s = 0;
  while (s + 1 < t.segments && col >= t.ends[s]) ++s;
  return s;
}

CQ_FN Rounding rounding(const Target& t, const State* state, int col) {
  if (t.mode == kValues) return {};
  const int s = segment_of(t, col);
  const float scale = get(now(t.scale, state), s), zero = get(now(t.zero_point, state), s);
  const float levels = (float)((1 << t.bits) - 1);
  return {scale, reciprocal(scale), zero, -zero, levels - zero};
}

// Stores a result at element `i` of `y`.
CQ_FN void store(const Target& t, const Rounding& how, Values y, i64 i, float x) {
  if (t.mode == kCodes) {
    y.data[i] = how.code(x);
  } else {
    put(y, i, t.mode == kRounded ? how.round(x) : x);
  }
}

// Eight neighbours at a time, where the host has found them aligned (`wide`): fp16 or f32 to read, fp16 or codes of one segment to store.
enum { kEight = 8 };

CQ_FN void load_eight(Values v, i64 i, float (&x)[kEight]) {
  if (v.type == kF16) {
    const Wide w = load16((const u16*)v.data + i);
#pragma unroll
    for (int e = 0; e < kEight; ++e) x[e] = from_f16((u16)(w.words[e / 2] >> e % 2 * 16));
  } else {
    const Wide low = load16((const float*)v.data + i), high = load16((const float*)v.data + i + 4);
#pragma unroll
    for (int e = 0; e < 4; ++e) x[e] = bits_float(low.words[e]), x[e + 4] = bits_float(high.words[e]);
  }
}

CQ_FN void store_eight(const Target& t, const Rounding& how, Values y, i64 i, float (&x)[kEight]) {
  if (t.mode == kCodes) {
    u32 words[2] = {};
#pragma unroll
    for (int e = 0; e < kEight; ++e) words[e / 4] |= (u32)how.code(x[e]) << e % 4 * 8;
    return store8(y.data + i, words[0], words[1]);
  }
  Wide w;
#pragma unroll
  for (int e = 0; e < kEight; e += 2) {
    const bool rounds = t.mode == kRounded;
    w.words[e / 2] = pack_f16(rounds ? how.round(x[e]) : x[e], rounds ? how.round(x[e + 1]) : x[e + 1]);
  }
  store16((u16*)y.data + i, w);
}

// Sums over the warp, the same in every lane.
CQ_FN float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += shfl_xor(x, mask);
  return x;
}
CQ_FN float warp_max(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, shfl_xor(x, mask));
  return x;
}
