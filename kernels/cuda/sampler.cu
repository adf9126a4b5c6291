// The sampler: moves the sample by what the network has answered, and writes what the network sees next.
//
// The same operations in the same order as on the CPU, each rounded by itself, so that a trajectory is the same wherever it is moved.
#include "operands.cuh"

enum { kDdim, kDdpm, kPlms, kEuler, kDpmPp };
enum { kEpsilon, kVelocity, kImage };
// What a step of DDPM adds: nothing, noise times a constant, times the root of the network's second half, or times what that chooses.
enum { kNoNoise, kFixed, kVariance, kRange };

// Row of the table of an evaluation; what a, b, c and d are differs from rule to rule, as does `kind`.
struct Constants {
  float next_scale;  // what the network sees of the new sample
  float signal, noise, a, b, c, d, kind;
};

struct SamplerArgs {
  const State* state;
  Operand x, output, constants, fresh, guidance, kept, input, scale, shift;  // x, kept and input in f32
  int samples, length, width, columns;  // elements of a sample, and of its output, which lie in rows of `columns`
  int rule, prediction, channels, copies;
  float clip;
  int unused;
};
static_assert(sizeof(SamplerArgs) == 336, "as in args.rs");

CQ_FN float clamped(float x, float limit) { return x < -limit ? -limit : x > limit ? limit : x; }

// The image that the network's output at x stands for, and the noise.
CQ_FN float image_of(const Constants& s, int prediction, float x, float out) {
  switch (prediction) {
    case kEpsilon: return plus(x, -times(s.noise, out)) / s.signal;
    case kVelocity: return plus(times(s.signal, x), -times(s.noise, out));
    default: return out;
  }
}
CQ_FN float epsilon_of(const Constants& s, int prediction, float x, float out) {
  switch (prediction) {
    case kEpsilon: return out;
    case kVelocity: return plus(times(s.signal, out), times(s.noise, x));
    default: return plus(x, -times(s.signal, out)) / s.noise;
  }
}

// PLMS: outputs of four evaluations and the sample before the first step are kept; evaluation 1 is not.
CQ_FN float plms(const Constants& s, int prediction, int step, float* kept, i64 rows, float x, float out) {
  const int entry = step > 0 ? step - 1 : 0;
  if (step != 1) kept[entry % 4 * rows] = out;
  if (step == 0) kept[4 * rows] = x;
  auto old = [&](int back) { return kept[(entry - back) % 4 * rows]; };
  if (step == 1) {
    x = kept[4 * rows];
    out = plus(out, old(0)) / 2.0f;
  } else if (step == 2) {
    out = plus(times(3.0f, out), -old(1)) / 2.0f;
  } else if (step == 3) {
    out = plus(plus(times(23.0f, out), -times(16.0f, old(1))), times(5.0f, old(2))) / 12.0f;
  } else if (step > 3) {
    const float sum = plus(plus(plus(times(55.0f, out), -times(59.0f, old(1))), times(37.0f, old(2))), -times(9.0f, old(3)));
    out = times(sum, 1.0f / 24.0f);
  }
  const float epsilon = epsilon_of(s, prediction, x, out);
  return plus(times(s.a, x), -(times(s.b, epsilon) / s.c));
}

CQ_FN float euler(const Constants& s, int prediction, float x, float out) {
  // signal: σ, a: the step to the next, b: σ² + 1, c: of a velocity
  float image = out;
  if (prediction == kEpsilon) image = plus(x, -times(s.signal, out));
  if (prediction == kVelocity) image = plus(times(out, s.c), x / s.b);
  return plus(x, times(plus(x, -image) / s.signal, s.a));
}

CQ_FN float dpmpp(const Constants& s, int prediction, int step, float* kept, i64 rows, float x, float out) {
  const float image = image_of(s, prediction, x, out), before = kept[(step + 1) % 2 * rows];
  kept[step % 2 * rows] = image;
  const float moved = plus(times(s.a, x), times(s.b, image));
  return s.kind == 0.0f ? moved : plus(moved, times(s.c, times(s.d, plus(image, -before))));
}

CQ_FN float with_noise(const Constants& s, float x, float variance, float noise) {
  switch ((int)s.kind) {
    case kFixed: return plus(x, times(s.c, noise));
    case kVariance: return plus(x, times(sqrtf(variance), noise));
    case kRange: {
      const float share = plus(variance, 1.0f) / 2.0f;
      const float log = plus(times(share, s.d), times(plus(1.0f, -share), s.c));
      return plus(x, times(expf(times(0.5f, log)), noise));
    }
    default: return x;
  }
}

CQ_KERNEL(sampler_step, 256, SamplerArgs) {
  const u32 at = (u32)block_x() * 256 + tid(), count = (u32)p.samples * p.length;
  if (at >= count) return;
  const int sample = at / p.length, j = at % p.length, step = p.state->step;
  const Constants s = *(const Constants*)now(p.constants, p.state).data;
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
  switch (p.rule) {
    case kDdim: {
      const float image = clamped(image_of(s, p.prediction, x, out), p.clip);
      x = plus(times(s.a, image), times(s.b, epsilon_of(s, p.prediction, x, out)));
      if (s.kind != 0.0f) x = plus(x, times(s.c, noise));
      break;
    }
    case kDdpm: {
      const float image = clamped(image_of(s, p.prediction, x, out), p.clip);
      x = plus(times(s.a, image), times(s.b, x));
      const bool learned = s.kind > (float)kFixed;
      x = with_noise(s, x, learned ? answer(guided ? p.samples + sample : sample, p.length + j) : 0.0f, noise);
      break;
    }
    case kPlms: x = plms(s, p.prediction, step, kept, count, x, out); break;
    case kEuler: x = euler(s, p.prediction, x, out); break;
    default: x = dpmpp(s, p.prediction, step, kept, count, x, out);
  }
  const Values scale = now(p.scale, p.state), shift = now(p.shift, p.state);
  if (scale) {
    const int channel = j / (p.length / p.channels);
    x = fmaf(get(scale, channel), x, get(shift, channel));
  }
  samples[at] = x;
  float* input = (float*)now(p.input, p.state).data;
  for (int copy = 0; copy < p.copies; ++copy) input[(i64)copy * count + at] = times(x, s.next_scale);
}

struct CountArgs {
  State* state;
};

// The evaluation is done.
CQ_KERNEL(count_step, 32, CountArgs) {
  if (tid() == 0) p.state->step += 1;
}
