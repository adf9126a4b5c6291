// The sampler: moves the sample by what the network has answered, and writes what the network sees next.
//
// The same operations in the same order as on the CPU, each rounded by itself, so that a trajectory is the same wherever it is moved.
#include "operands.cuh"

enum { kX, kOut, kNoise, kTemp, kKept };
enum { kCombine, kClip, kVariance, kRange };  // what an operation is, or does to its sum
constexpr int kTerms = 8, kTemps = 12;

// An operation of a row (runtime/src/sampler/table.rs): to = (sum of factor * register / divisor) * factor / divisor.
struct Term {
  float kind, number, factor, divisor;
};
struct Op {
  float what, to_kind, to_number, terms, factor, divisor, low, high;
  Term term[kTerms];
};

struct SamplerArgs {
  const State* state;
  Operand x, output, constants, fresh, guidance, kept, input, scale, shift;  // x, kept and input in f32
  int samples, length, width, columns;  // elements of a sample, and of its output, which lie in rows of `columns`
  int ops, learned, channels, copies;   // operations of every row; whether the output has a second half
};
static_assert(sizeof(SamplerArgs) == 328, "as in args.rs");

CQ_FN float clamped(float x, float limit) { return x < -limit ? -limit : x > limit ? limit : x; }

CQ_FN float learned_std(const Op& op, float variance) {
  if (op.what == (float)kVariance) return sqrtf(variance);
  const float share = plus(variance, 1.0f) / 2.0f;
  const float log = plus(times(share, op.high), times(plus(1.0f, -share), op.low));
  return expf(times(0.5f, log));
}

CQ_KERNEL(sampler_step, 256, SamplerArgs) {
  const u32 at = (u32)block_x() * 256 + tid(), count = (u32)p.samples * p.length;
  if (at >= count) return;
  const int sample = at / p.length, j = at % p.length;
  // a row: what the network sees of the next sample, then the operations
  const float* row = (const float*)now(p.constants, p.state).data;
  const Op* ops = (const Op*)(row + 8);
  float* samples = (float*)now(p.x, p.state).data;
  float* kept = (float*)now(p.kept, p.state).data + at;
  const Values output = now(p.output, p.state), fresh = now(p.fresh, p.state);
  auto answer = [&](int row, int i) {
    const u32 element = (u32)row * p.width + i;
    return get(output, (i64)(element / p.columns) * output.ld + element % p.columns);
  };

  float x = samples[at], out = answer(sample, j);
  const bool guided = p.copies == 2;
  if (guided) {
    const float conditional = answer(p.samples + sample, j);
    out = plus(out, times(get(now(p.guidance, p.state), 0), plus(conditional, -out)));
  }
  const float noise = fresh ? get(fresh, at) : 0.0f;
  float temps[kTemps] = {};
  for (int i = 0; i < p.ops; ++i) {
    const Op& op = ops[i];
    if (op.what >= (float)kVariance) {
      const float variance = answer(guided ? p.samples + sample : sample, p.length + j);
      x = plus(x, times(learned_std(op, variance), noise));
      continue;
    }
    if (op.terms == 0.0f) continue;  // rows are filled up with empty operations
    float sum = 0.0f;
    for (int k = 0; k < (int)op.terms; ++k) {
      const Term t = op.term[k];
      const int number = (int)t.number;
      float value = x;
      switch ((int)t.kind) {
        case kOut: value = out; break;
        case kNoise: value = noise; break;
        case kTemp: value = temps[number]; break;
        case kKept: value = kept[(i64)number * count]; break;
        default: break;
      }
      value = times(t.factor, value) / t.divisor;
      sum = k == 0 ? value : plus(sum, value);
    }
    sum = times(sum, op.factor) / op.divisor;
    if (op.what == (float)kClip) sum = clamped(sum, op.high);
    const int to = (int)op.to_number;
    switch ((int)op.to_kind) {
      case kTemp: temps[to] = sum; break;
      case kKept: kept[(i64)to * count] = sum; break;
      default: x = sum;
    }
  }
  const Values scale = now(p.scale, p.state), shift = now(p.shift, p.state);
  if (scale) {
    const int channel = j / (p.length / p.channels);
    x = fmaf(get(scale, channel), x, get(shift, channel));
  }
  samples[at] = x;
  float* input = (float*)now(p.input, p.state).data;
  for (int copy = 0; copy < p.copies; ++copy) input[(i64)copy * count + at] = times(x, row[0]);
}

struct CountArgs {
  State* state;
};

// The evaluation is done.
CQ_KERNEL(count_step, 32, CountArgs) {
  if (tid() == 0) p.state->step += 1;
}
