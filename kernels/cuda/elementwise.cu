// Element by element: functions of up to three operands with broadcasting, and maps of rows. A thread per result.
#include "operands.cuh"

enum { kMaxRank = 6 };

enum {
  kAdd, kSub, kMul, kDiv, kPow, kMin, kMax, kEqual, kLess, kLessOrEqual, kGreater, kGreaterOrEqual, kAnd, kOr, kXor,
  kWhere, kCopy, kNeg, kAbs, kExp, kLog, kSqrt, kReciprocal, kFloor, kCeil, kRound, kSin, kCos, kErf, kNot,
  kRoundBf16, kAct  // kAct + activation
};

struct ElementwiseArgs {
  const State* state;
  Operand a, b, c, y;
  u32 count;
  int op, rank, wide;  // wide: eight neighbours at once, the last axis counted in eights; bit 1 + i: operand i repeats one number
  i64 strides[4][kMaxRank];  // of a, b, c and y, in elements
  u32 shape[kMaxRank];
};
static_assert(sizeof(ElementwiseArgs) == 368, "as in args.rs");

// To nearest, ties to even; a NaN stays one.
CQ_FN float round_bf16(float a) {
  u32 bits = float_bits(a);
  return a != a ? a : bits_float((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
}

CQ_FN float apply(int op, float a, float b, float c) {
  switch (op) {
    case kAdd: return a + b;
    case kSub: return a - b;
    case kMul: return a * b;
    case kDiv: return a / b;
    case kPow: return powf(a, b);
    case kMin: return a != a ? a : b != b ? b : fminf(a, b);
    case kMax: return a != a ? a : b != b ? b : fmaxf(a, b);
    case kEqual: return a == b;
    case kLess: return a < b;
    case kLessOrEqual: return a <= b;
    case kGreater: return a > b;
    case kGreaterOrEqual: return a >= b;
    case kAnd: return a != 0.0f && b != 0.0f;
    case kOr: return a != 0.0f || b != 0.0f;
    case kXor: return (a != 0.0f) != (b != 0.0f);
    case kWhere: return a != 0.0f ? b : c;
    case kCopy: return a;
    case kNeg: return -a;
    case kAbs: return fabsf(a);
    case kExp: return expf(a);
    case kLog: return logf(a);
    case kSqrt: return sqrtf(a);
    case kReciprocal: return 1.0f / a;
    case kFloor: return floorf(a);
    case kCeil: return ceilf(a);
    case kRound: return rintf(a);
    case kSin: return sinf(a);
    case kCos: return cosf(a);
    case kErf: return erff(a);
    case kNot: return a == 0.0f;
    case kRoundBf16: return round_bf16(a);
    default: return activate(op - kAct, a);
  }
}

// One element of the same type, without a detour over floats.
CQ_FN void move(Values y, i64 to, Values x, i64 from) {
  switch (y.type) {
    case kF16: ((u16*)y.data)[to] = ((const u16*)x.data)[from]; break;
    case kU8: y.data[to] = x.data[from]; break;
    case kI64: ((i64*)y.data)[to] = ((const i64*)x.data)[from]; break;
    default: ((u32*)y.data)[to] = ((const u32*)x.data)[from];
  }
}

// What is done eight at a time.
CQ_FN float apply_frequent(int op, float a, float b) {
  return op == kAdd ? a + b : op == kSub ? a - b : op == kMul ? a * b : a;
}

CQ_FN void load_or_repeat(Values v, i64 i, bool repeats, float (&x)[kEight]) {
  if (!repeats) return load_eight(v, i, x);
  const float one = get(v, i);
#pragma unroll
  for (int e = 0; e < kEight; ++e) x[e] = one;
}

// Where the operands of result `at` are.
CQ_FN void find(const ElementwiseArgs& p, u32 at, i64 (&index)[4]) {
#pragma unroll
  for (int axis = kMaxRank - 1; axis >= 0; --axis) {
    if (axis >= p.rank) continue;
    const u32 i = at % p.shape[axis];
    at /= p.shape[axis];
#pragma unroll
    for (int operand = 0; operand < 4; ++operand) index[operand] += i * p.strides[operand][axis];
  }
}

CQ_KERNEL(elementwise, 256, ElementwiseArgs) {
  const u32 at = (u32)block_x() * 256 + tid();
  if (at >= p.count) return;
  i64 index[4] = {};
  find(p, at, index);
  const Values a = now(p.a, p.state), b = now(p.b, p.state), c = now(p.c, p.state), y = now(p.y, p.state);
  if (p.wide) {
    if (p.op == kCopy && a.type == y.type) return copy16((u16*)y.data + index[3], (const u16*)a.data + index[0]);
    float v[kEight], other[kEight];
    load_or_repeat(a, index[0], p.wide & 2, v);
    if (b) load_or_repeat(b, index[1], p.wide & 4, other);
#pragma unroll
    for (int e = 0; e < kEight; ++e) v[e] = apply_frequent(p.op, v[e], b ? other[e] : 0.0f);
    const Target plain = {};
    return store_eight(plain, {}, y, index[3], v);
  }
  if (p.op == kCopy && a.type == y.type) return move(y, index[3], a, index[0]);
  const float second = b ? get(b, index[1]) : 0.0f, third = c ? get(c, index[2]) : 0.0f;
  put(y, index[3], apply(p.op, get(a, index[0]), second, third));
}

// Integers of any width and truth values, in 64 bits that wrap around. A divisor of 0 is a fault, and gives 0.
CQ_FN i64 apply_integers(int op, i64 a, i64 b, i64 c, State* state) {
  typedef unsigned long long u64;
  switch (op) {
    case kAdd: return (i64)((u64)a + (u64)b);
    case kSub: return (i64)((u64)a - (u64)b);
    case kMul: return (i64)((u64)a * (u64)b);
    case kDiv:
      if (b == 0) state->fault = kDividesByZero;
      return b == 0 ? 0 : b == -1 ? (i64)(0 - (u64)a) : a / b;
    case kMin: return a < b ? a : b;
    case kMax: return a > b ? a : b;
    case kEqual: return a == b;
    case kLess: return a < b;
    case kLessOrEqual: return a <= b;
    case kGreater: return a > b;
    case kGreaterOrEqual: return a >= b;
    case kAnd: return a & b;
    case kOr: return a | b;
    case kXor: return a ^ b;
    case kWhere: return a != 0 ? b : c;
    case kNeg: return (i64)(0 - (u64)a);
    case kAbs: return a < 0 ? (i64)(0 - (u64)a) : a;
    case kNot: return a == 0;
    default: return a;  // a copy, or a rounding
  }
}

CQ_KERNEL(integers, 256, ElementwiseArgs) {
  const u32 at = (u32)block_x() * 256 + tid();
  if (at >= p.count) return;
  i64 index[4] = {};
  find(p, at, index);
  const Values a = now(p.a, p.state), b = now(p.b, p.state), c = now(p.c, p.state), y = now(p.y, p.state);
  const i64 second = b ? get_integer(b, index[1]) : 0, third = c ? get_integer(c, index[2]) : 0;
  const i64 value = apply_integers(p.op, get_integer(a, index[0]), second, third, (State*)p.state);
  put_integer(y, index[3], value);
}

struct GatherArgs {
  const State* state;
  Operand data, indices, y;
  int outer, size, inner, count;  // data [outer, size, inner], y [outer, count, inner]
};
static_assert(sizeof(GatherArgs) == 120, "as in args.rs");

// Rows by their numbers, negative ones counted from the end. A number outside is a fault, and takes the nearest row.
CQ_KERNEL(gather, 256, GatherArgs) {
  const u32 at = (u32)block_x() * 256 + tid();
  if (at >= (u32)p.outer * p.count * p.inner) return;
  const u32 row = at / p.inner, column = at % p.inner, outer = row / p.count;
  const Values data = now(p.data, p.state), y = now(p.y, p.state);
  i64 place = get_integer(now(p.indices, p.state), row % p.count);
  if (place < 0) place += p.size;
  if (place < 0 || place >= p.size) {
    ((State*)p.state)->fault = kIndexOutside;
    place = place < 0 ? 0 : p.size - 1;
  }
  const i64 from = ((i64)outer * p.size + place) * p.inner + column;
  if (data.type == y.type) return move(y, at, data, from);
  put(y, at, get(data, from));
}

struct AffineArgs {
  const State* state;
  Operand x, scale, shift, residual, previous, previous_scale, y;
  int rows, columns, wide, unused;  // wide: eight columns at once
};
static_assert(sizeof(AffineArgs) == 248, "as in args.rs");

// y = x · scale + shift (+ previous · previous_scale) (+ residual), factors per column.
CQ_KERNEL(affine, 256, AffineArgs) {
  const u32 at = (u32)block_x() * 256 + tid();
  if (p.wide) {
    const int eights = p.columns / kEight;
    if (at >= (u32)p.rows * eights) return;
    const int row = at / eights, col = at % eights * kEight;
    const Values x = now(p.x, p.state), residual = now(p.residual, p.state), previous = now(p.previous, p.state);
    const Values scale = now(p.scale, p.state), shift = now(p.shift, p.state), before = now(p.previous_scale, p.state);
    const Values y = now(p.y, p.state);
    float v[kEight], more[kEight];
    load_eight(x, (i64)row * x.ld + col, v);
#pragma unroll
    for (int e = 0; e < kEight; ++e) v[e] = v[e] * get(scale, col + e) + get(shift, col + e);
    if (previous) {
      load_eight(previous, (i64)row * previous.ld + col, more);
#pragma unroll
      for (int e = 0; e < kEight; ++e) v[e] += more[e] * get(before, col + e);
    }
    if (residual) {
      load_eight(residual, (i64)row * residual.ld + col, more);
#pragma unroll
      for (int e = 0; e < kEight; ++e) v[e] += more[e];
    }
    const Target plain = {};
    return store_eight(plain, {}, y, (i64)row * y.ld + col, v);
  }
  if (at >= (u32)p.rows * p.columns) return;
  const int row = at / p.columns, col = at % p.columns;
  const Values x = now(p.x, p.state), residual = now(p.residual, p.state), previous = now(p.previous, p.state);
  const Values y = now(p.y, p.state);
  float v = get(x, (i64)row * x.ld + col) * get(now(p.scale, p.state), col) + get(now(p.shift, p.state), col);
  if (previous) v += get(previous, (i64)row * previous.ld + col) * get(now(p.previous_scale, p.state), col);
  if (residual) v += get(residual, (i64)row * residual.ld + col);
  put(y, (i64)row * y.ld + col, v);
}

struct RowsArgs {
  const State* state;
  Operand x;
  Target y;
  int rows, columns, act, wide;  // wide: eight columns at once
};
static_assert(sizeof(RowsArgs) == 200, "as in args.rs");

// Rounds rows, or turns them into codes.
CQ_KERNEL(quantize, 256, RowsArgs) {
  const u32 at = (u32)block_x() * 256 + tid();
  if (p.wide) {
    const int eights = p.columns / kEight;
    if (at >= (u32)p.rows * eights) return;
    const int row = at / eights, col = at % eights * kEight;
    const Values x = now(p.x, p.state), y = now(p.y.y, p.state);
    float v[kEight];
    load_eight(x, (i64)row * x.ld + col, v);
    return store_eight(p.y, rounding(p.y, p.state, col), y, (i64)row * y.ld + col, v);
  }
  if (at >= (u32)p.rows * p.columns) return;
  const int row = at / p.columns, col = at % p.columns;
  const Values x = now(p.x, p.state), y = now(p.y.y, p.state);
  store(p.y, rounding(p.y, p.state, col), y, (i64)row * y.ld + col, get(x, (i64)row * x.ld + col));
}

// y = a · act(b) with rows [a, b] of x.
CQ_KERNEL(gated, 256, RowsArgs) {
  const u32 at = (u32)block_x() * 256 + tid();
  if (p.wide) {
    const int eights = p.columns / kEight;
    if (at >= (u32)p.rows * eights) return;
    const int row = at / eights, col = at % eights * kEight;
    const Values x = now(p.x, p.state), y = now(p.y.y, p.state);
    float v[kEight], gate[kEight];
    load_eight(x, (i64)row * x.ld + col, v);
    load_eight(x, (i64)row * x.ld + col + p.columns, gate);
#pragma unroll
    for (int e = 0; e < kEight; ++e) v[e] *= activate(p.act, gate[e]);
    return store_eight(p.y, rounding(p.y, p.state, col), y, (i64)row * y.ld + col, v);
  }
  if (at >= (u32)p.rows * p.columns) return;
  const int row = at / p.columns, col = at % p.columns;
  const Values x = now(p.x, p.state), y = now(p.y.y, p.state);
  const i64 from = (i64)row * x.ld + col;
  store(p.y, rounding(p.y, p.state, col), y, (i64)row * y.ld + col, get(x, from) * activate(p.act, get(x, from + p.columns)));
}

struct EmbeddingArgs {
  const State* state;
  Operand t, frequencies, y;
  int rows, half, cos_first, unused;
};
static_assert(sizeof(EmbeddingArgs) == 120, "as in args.rs");

// [sin(t · f), cos(t · f)]
CQ_KERNEL(timestep_embedding, 256, EmbeddingArgs) {
  const u32 at = (u32)block_x() * 256 + tid(), width = 2 * p.half;
  if (at >= p.rows * width) return;
  const int row = at / width, col = at % width;
  const float angle = get(now(p.t, p.state), row) * get(now(p.frequencies, p.state), col % p.half);
  const Values y = now(p.y, p.state);
  put(y, (i64)row * y.ld + col, (col < p.half) == (p.cos_first != 0) ? cosf(angle) : sinf(angle));
}
