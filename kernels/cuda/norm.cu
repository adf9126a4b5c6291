// Normalisations and softmax. Sums have a fixed order, so results are the same every time.
#include "operands.cuh"

struct GroupNormArgs {
  const State* state;
  Operand x, gamma, beta;
  Target y;
  float* partial;  // [images, chunks, groups, 2]: mean and sum of squared distances from it
  int images, pixels, channels, groups;
  int chunk, chunks, act;  // pixels of a block, blocks of an image
  float eps;
  int wide, unused;  // wide: eight channels at once
};
static_assert(sizeof(GroupNormArgs) == 296, "as in args.rs");

// Moments of one chunk of pixels, by two passes over it; a warp per group at a time.
CQ_KERNEL(group_norm_moments, 256, GroupNormArgs) {
  const int first = block_x() * p.chunk, image = block_y(), lane = tid() % 32;
  const int pixels = p.pixels - first < p.chunk ? p.pixels - first : p.chunk;
  const int width = p.channels / p.groups, count = pixels * width;
  const Values x = now(p.x, p.state);
  const i64 begin = ((i64)image * p.pixels + first) * x.ld;
  for (int group = tid() / 32; group < p.groups; group += 8) {
    float sum = 0.0f, squares = 0.0f;
    if (p.wide && width % kEight == 0) {
      const int eights = width / kEight;
      auto load = [&](int i, float(&v)[kEight]) {
        load_eight(x, begin + (i64)(i / eights) * x.ld + group * width + i % eights * kEight, v);
      };
      float v[kEight];
      for (int i = lane; i < pixels * eights; i += 32) {
        load(i, v);
#pragma unroll
        for (int e = 0; e < kEight; ++e) sum += v[e];
      }
      const float mean = fast_div(warp_sum(sum), (float)count);
      for (int i = lane; i < pixels * eights; i += 32) {
        load(i, v);
#pragma unroll
        for (int e = 0; e < kEight; ++e) squares += (v[e] - mean) * (v[e] - mean);
      }
      squares = warp_sum(squares);
      if (lane == 0) {
        float* out = p.partial + (((i64)image * p.chunks + block_x()) * p.groups + group) * 2;
        out[0] = mean, out[1] = squares;
      }
      continue;
    }
    for (int i = lane; i < count; i += 32) sum += get(x, begin + (i64)(i / width) * x.ld + group * width + i % width);
    const float mean = fast_div(warp_sum(sum), (float)count);
    for (int i = lane; i < count; i += 32) {
      const float d = get(x, begin + (i64)(i / width) * x.ld + group * width + i % width) - mean;
      squares += d * d;
    }
    squares = warp_sum(squares);
    if (lane == 0) {
      float* out = p.partial + (((i64)image * p.chunks + block_x()) * p.groups + group) * 2;
      out[0] = mean, out[1] = squares;
    }
  }
}

// Joins the moments of an image's chunks, in their order, then normalises one chunk.
CQ_KERNEL(group_norm_apply, 256, GroupNormArgs) {
  float* moments = (float*)dynamic_shared();  // [groups, 2]: mean, 1 / deviation
  const int first = block_x() * p.chunk, image = block_y(), width = p.channels / p.groups;
  for (int group = tid(); group < p.groups; group += 256) {
    const float* part = p.partial + ((i64)image * p.chunks * p.groups + group) * 2;
    float mean = 0.0f, squares = 0.0f, count = 0.0f;
    for (int chunk = 0; chunk < p.chunks; ++chunk, part += p.groups * 2) {
      const int begin = chunk * p.chunk, pixels = p.pixels - begin < p.chunk ? p.pixels - begin : p.chunk;
      const float n = (float)pixels * width, all = count + n, d = part[0] - mean, share = fast_div(n, all);
      mean += d * share;
      squares += part[1] + d * d * (count * share);
      count = all;
    }
    moments[2 * group] = mean;
    moments[2 * group + 1] = inverse_sqrt(fast_div(squares, count) + p.eps);
  }
  block_sync();

  const Values x = now(p.x, p.state), y = now(p.y.y, p.state), gamma = now(p.gamma, p.state), beta = now(p.beta, p.state);
  const int pixels = p.pixels - first < p.chunk ? p.pixels - first : p.chunk;
  if (p.wide) {
    const int eights = p.channels / kEight, columns = eights < 256 ? eights : 256, rows = 256 / columns;
    if (tid() >= columns * rows) return;
    for (int c = tid() % columns * kEight; c < p.channels; c += columns * kEight) {
      float mean[kEight], factor[kEight], shift[kEight];
#pragma unroll
      for (int e = 0; e < kEight; ++e) {
        const float* of = moments + (c + e) / width * 2;
        mean[e] = of[0];
        factor[e] = of[1] * (gamma ? get(gamma, c + e) : 1.0f);
        shift[e] = beta ? get(beta, c + e) : 0.0f;
      }
      const Rounding how = rounding(p.y, p.state, c);
      for (int r = tid() / columns; r < pixels; r += rows) {
        const i64 row = (i64)image * p.pixels + first + r;
        float v[kEight];
        load_eight(x, row * x.ld + c, v);
#pragma unroll
        for (int e = 0; e < kEight; ++e) v[e] = (v[e] - mean[e]) * factor[e] + shift[e];
        if (p.act == kSilu) {
#pragma unroll
          for (int e = 0; e < kEight; ++e) v[e] = activate(kSilu, v[e]);
        } else if (p.act != kNone) {
#pragma unroll
          for (int e = 0; e < kEight; ++e) v[e] = activate(p.act, v[e]);
        }
        store_eight(p.y, how, y, row * y.ld + c, v);
      }
    }
    return;
  }
  const int columns = p.channels < 256 ? p.channels : 256, rows = 256 / columns;
  if (tid() >= columns * rows) return;
  for (int c = tid() % columns; c < p.channels; c += columns) {
    const float mean = moments[c / width * 2], inverse = moments[c / width * 2 + 1];
    const float factor = gamma ? get(gamma, c) : 1.0f, shift = beta ? get(beta, c) : 0.0f;
    const Rounding how = rounding(p.y, p.state, c);
    for (int r = tid() / columns; r < pixels; r += rows) {
      const i64 row = (i64)image * p.pixels + first + r;
      const float v = (get(x, row * x.ld + c) - mean) * inverse * factor + shift;
      store(p.y, how, y, row * y.ld + c, activate(p.act, v));
    }
  }
}

struct LayerNormArgs {
  const State* state;
  Operand x, gamma, beta;
  PerImage scale, shift;
  Target y;
  int rows, channels, centred;
  float eps;
  int wide, unused;  // wide: eight channels at once
};
static_assert(sizeof(LayerNormArgs) == 352, "as in args.rs");

// y = ((x - mean) / sqrt(variance + eps) · gamma + beta) · (1 + scale) + shift; a warp per row. Not centred: the mean counts as 0.
CQ_KERNEL(layer_norm, 128, LayerNormArgs) {
  const int row = block_x() * 4 + tid() / 32, lane = tid() % 32;
  if (row >= p.rows) return;
  const Values x = now(p.x, p.state), y = now(p.y.y, p.state), gamma = now(p.gamma, p.state), beta = now(p.beta, p.state);
  const Values scale = now(p.scale.values, p.state), shift = now(p.shift.values, p.state);
  const i64 begin = (i64)row * x.ld;
  const i64 at_scale = scale && p.scale.stride ? (i64)(row / p.scale.rows) * p.scale.stride : 0;
  const i64 at_shift = shift && p.shift.stride ? (i64)(row / p.shift.rows) * p.shift.stride : 0;
  float sum = 0.0f, squares = 0.0f;
  if (p.wide) {
    float v[kEight];
    for (int c = lane * kEight; p.centred && c < p.channels; c += 32 * kEight) {
      load_eight(x, begin + c, v);
#pragma unroll
      for (int e = 0; e < kEight; ++e) sum += v[e];
    }
    const float mean = fast_div(warp_sum(sum), (float)p.channels);
    for (int c = lane * kEight; c < p.channels; c += 32 * kEight) {
      load_eight(x, begin + c, v);
#pragma unroll
      for (int e = 0; e < kEight; ++e) squares += (v[e] - mean) * (v[e] - mean);
    }
    const float inverse = inverse_sqrt(fast_div(warp_sum(squares), (float)p.channels) + p.eps);
    for (int c = lane * kEight; c < p.channels; c += 32 * kEight) {
      load_eight(x, begin + c, v);
#pragma unroll
      for (int e = 0; e < kEight; ++e) {
        v[e] = (v[e] - mean) * inverse;
        if (gamma) v[e] *= get(gamma, c + e);
        if (beta) v[e] += get(beta, c + e);
        if (scale) v[e] *= 1.0f + get(scale, at_scale + c + e);
        if (shift) v[e] += get(shift, at_shift + c + e);
      }
      store_eight(p.y, rounding(p.y, p.state, c), y, (i64)row * y.ld + c, v);
    }
    return;
  }
  if (p.centred) {
    for (int c = lane; c < p.channels; c += 32) sum += get(x, begin + c);
  }
  const float mean = fast_div(warp_sum(sum), (float)p.channels);
  for (int c = lane; c < p.channels; c += 32) {
    const float d = get(x, begin + c) - mean;
    squares += d * d;
  }
  const float inverse = inverse_sqrt(fast_div(warp_sum(squares), (float)p.channels) + p.eps);
  for (int c = lane; c < p.channels; c += 32) {
    float v = (get(x, begin + c) - mean) * inverse;
    if (gamma) v *= get(gamma, c);
    if (beta) v += get(beta, c);
    if (scale) v *= 1.0f + get(scale, at_scale + c);
    if (shift) v += get(shift, at_shift + c);
    store(p.y, rounding(p.y, p.state, c), y, (i64)row * y.ld + c, v);
  }
}

struct SoftmaxArgs {
  const State* state;
  Operand x, y;
  int rows, columns;
};
static_assert(sizeof(SoftmaxArgs) == 80, "as in args.rs");

CQ_KERNEL(softmax, 128, SoftmaxArgs) {
  const int row = block_x() * 4 + tid() / 32, lane = tid() % 32;
  if (row >= p.rows) return;
  const Values x = now(p.x, p.state), y = now(p.y, p.state);
  const i64 begin = (i64)row * x.ld;
  float most = -infinity(), sum = 0.0f;
  for (int c = lane; c < p.columns; c += 32) most = fmaxf(most, get(x, begin + c));
  most = warp_max(most);
  for (int c = lane; c < p.columns; c += 32) sum += fast_exp(get(x, begin + c) - most);
  sum = warp_sum(sum);
  for (int c = lane; c < p.columns; c += 32) put(y, (i64)row * y.ld + c, fast_div(fast_exp(get(x, begin + c) - most), sum));
}
