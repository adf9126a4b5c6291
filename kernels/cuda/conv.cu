// Convolution over channels-last images, and linear layers as the convolution of one row of pixels.
//
//   sum[m, n] = Σ over taps and channels  x[pixel of m at the tap, channel] · w[n, tap, channel]
//
// Implicit GEMM with tensor cores: rows are output pixels, depth runs over segments of the channels, then taps, then channels, in
// steps of 64 bytes. Where tiles are few and the depth is long, blocks share it: their sums go to memory, and `conv_sum` adds them in
// their order. Four cp.async stages; 16-byte chunks of a row lie in an order that spreads eight rows over all banks.
// A lane of m16n8k32 on bytes and of m16n8k16 on halves holds the same bytes, so both types share all but one instruction.
//
// Codes stand for (code − zero point) · scale, so padding reads the zero point, and per segment
//   sum = (Σ code · weight code − zero point · Σ weight codes) · activation scale · weight scale.
#include "operands.cuh"

struct ConvArgs {
  const State* state;
  Operand x;
  const u8* w;  // [cout, segments: taps, channels]
  Operand x_scale, x_zero_point;
  const float* w_scale;  // [segments, cout]
  const int* w_sums;     // likewise: sums of the codes of a column
  Epilogue epilogue;
  Target y;
  int height, width, cin, cout;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int upsample, out_h, out_w, rows, groups, segments;
  int ends[kMaxSegments];  // of the segments of the channels
  float* partial;  // [splits, rows, cout]: sums of parts of the depth, where there are several
  int splits, wide;  // wide: eight neighbours of a row are finished and stored at once
};
static_assert(sizeof(ConvArgs) == 576, "as in args.rs");

struct Codes {
  using Acc = int;
  static constexpr int kSize = 1;
  static constexpr bool kPads = true;
  CQ_FN static void mma(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_u8s8(d, a, b); }
};
struct Halves {
  using Acc = float;
  static constexpr int kSize = 2;
  static constexpr bool kPads = false;
  CQ_FN static void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_f16(d, a, b); }
};

// What is done to the sums of a column before they are stored, and where.
struct Finish {
  const ConvArgs& p;
  int n;
  Values row, gate, residual, y;
  float scale, bias;
  Rounding how;

  CQ_FN Finish(const ConvArgs& p, int n)
      : p(p),
        n(n),
        row(now(p.epilogue.row.values, p.state)),
        gate(now(p.epilogue.gate.values, p.state)),
        residual(now(p.epilogue.residual, p.state)),
        y(now(p.y.y, p.state)),
        scale(1.0f),
        bias(0.0f),
        how(rounding(p.y, p.state, n)) {
    const Values scales = now(p.epilogue.scale, p.state), biases = now(p.epilogue.bias, p.state);
    if (scales) scale = get(scales, n);
    if (biases) bias = get(biases, n);
  }

  CQ_FN float of_image(const PerImage& spec, Values v, int m) const {
    return get(v, (i64)(spec.stride == 0 ? 0 : m / spec.rows * spec.stride) + n);
  }

  CQ_FN void operator()(int m, float sum) const {
    float v = sum * scale + bias;
    if (row) v += of_image(p.epilogue.row, row, m);
    v = activate(p.epilogue.act, v);
    if (gate) v *= of_image(p.epilogue.gate, gate, m);
    if (residual) v += get(residual, (i64)m * residual.ld + n);
    store(p.y, how, y, (i64)m * y.ld + n, v);
  }
};

// The same for eight columns.
struct FinishEight {
  const ConvArgs& p;
  int n;
  Values row, gate, residual, y;
  float scale[kEight], bias[kEight];
  Rounding how;

  CQ_FN FinishEight(const ConvArgs& p, int n)
      : p(p),
        n(n),
        row(now(p.epilogue.row.values, p.state)),
        gate(now(p.epilogue.gate.values, p.state)),
        residual(now(p.epilogue.residual, p.state)),
        y(now(p.y.y, p.state)),
        how(rounding(p.y, p.state, n)) {
    const Values scales = now(p.epilogue.scale, p.state), biases = now(p.epilogue.bias, p.state);
#pragma unroll
    for (int e = 0; e < kEight; ++e) {
      scale[e] = scales ? get(scales, n + e) : 1.0f;
      bias[e] = biases ? get(biases, n + e) : 0.0f;
    }
  }

  CQ_FN i64 of_image(const PerImage& spec, int m) const {
    return (i64)(spec.stride == 0 ? 0 : m / spec.rows * spec.stride) + n;
  }

  CQ_FN void operator()(int m, float (&v)[kEight]) const {
    const i64 at_row = row ? of_image(p.epilogue.row, m) : 0, at_gate = gate ? of_image(p.epilogue.gate, m) : 0;
    float add[kEight] = {};
    if (residual) load_eight(residual, (i64)m * residual.ld + n, add);
#pragma unroll
    for (int e = 0; e < kEight; ++e) {
      v[e] = v[e] * scale[e] + bias[e];
      if (row) v[e] += get(row, at_row + e);
    }
    switch (p.epilogue.act) {  // the frequent ones, each for all eight
      case kNone: break;
      case kSilu:
#pragma unroll
        for (int e = 0; e < kEight; ++e) v[e] = activate(kSilu, v[e]);
        break;
      default:
#pragma unroll
        for (int e = 0; e < kEight; ++e) v[e] = activate(p.epilogue.act, v[e]);
    }
#pragma unroll
    for (int e = 0; e < kEight; ++e) {
      if (gate) v[e] *= get(gate, at_gate + e);
      v[e] += add[e];
    }
    store_eight(p.y, how, y, (i64)m * y.ld + n, v);
  }
};

constexpr int kRow = 64, kStages = 4;  // bytes of a row of a tile

// Where chunk `chunk` of row `row` lies: rows 2i and 2i+1 fill the banks once, and their chunks move with i.
CQ_FN int swizzled(int row, int chunk) { return row * kRow + ((chunk ^ (row / 2 % 4)) * 16); }

// Where the loads of a thread are in the depth.
struct Depth {
  int segment, k, begin, channels, depth;
  CQ_FN void enter(const ConvArgs& p, int s) {
    segment = s, k = 0;
    begin = s == 0 ? 0 : p.ends[s - 1];
    channels = p.ends[s] - begin;
    depth = channels * p.kernel_h * p.kernel_w;
  }
};

template <class T, int BM, int BN, int WM, int WN, bool kSegmented>
CQ_FN void conv_tile(const ConvArgs& p) {
  constexpr int kThreads = BM / WM * (BN / WN) * 32, kChunk = 16 / T::kSize, kDepth = kRow / T::kSize;
  constexpr int kRowsAtOnce = kThreads / 4, kLoadsA = BM / kRowsAtOnce, kLoadsB = BN / kRowsAtOnce;
  constexpr int kTilesM = WM / 16, kTilesN = WN / 8, kStage = (BM + BN) * kRow;
  u8* memory = dynamic_shared();

  const int t = tid(), lane = t % 32, warp = t / 32;
  const int tiles_n = (p.cout + BN - 1) / BN, split = block_y() / tiles_n;
  const int m0 = block_x() * BM, n0 = (block_y() - split * tiles_n) * BN;
  const int warp_m = warp % (BM / WM) * WM, warp_n = warp / (BM / WM) * WN;
  const int taps = p.kernel_h * p.kernel_w, high = p.height * p.upsample, wide = p.width * p.upsample;
  const Values x = now(p.x, p.state), x_zero = now(p.x_zero_point, p.state);
  const int row_bytes = p.cin * taps * T::kSize;

  // the pixels whose rows this thread loads
  const int chunk = t % 4, first = t / 4;
  int at_y[kLoadsA], at_x[kLoadsA];
  i64 image[kLoadsA];
#pragma unroll
  for (int i = 0; i < kLoadsA; ++i) {
    const int m = m0 + first + i * kRowsAtOnce, n = m / (p.out_h * p.out_w), pixel = m - n * (p.out_h * p.out_w);
    const int oy = pixel / p.out_w, ox = pixel - oy * p.out_w;
    at_y[i] = m < p.rows ? oy * p.stride_h - p.pad_h : -(1 << 24);  // rows beyond the last lie outside of any image
    at_x[i] = ox * p.stride_w - p.pad_w;
    image[i] = (i64)n * p.height * p.width;
  }

  Depth load;
  load.enter(p, 0);
  u32 zero = T::kPads ? (u32)get(x_zero, 0) * 0x01010101u : 0;
  auto fetch = [&](int stage) {
    u8* tile = memory + stage * kStage;
    const int k = load.k + chunk * kChunk, tap = k / load.channels, c = k - tap * load.channels;
    const int ky = tap / p.kernel_w, kx = tap - ky * p.kernel_w;
    const bool in_depth = k < load.depth;
#pragma unroll
    for (int i = 0; i < kLoadsA; ++i) {
      const int iy = at_y[i] + ky * p.dilation_h, ix = at_x[i] + kx * p.dilation_w;
      const bool inside = in_depth && iy >= 0 && iy < high && ix >= 0 && ix < wide;
      u8* to = tile + swizzled(first + i * kRowsAtOnce, chunk);
      if (T::kPads && in_depth && !inside) {
        fill16(to, zero);
      } else {
        const i64 pixel = inside ? image[i] + (i64)(iy / p.upsample) * p.width + ix / p.upsample : 0;
        cp_async16(to, x.data + (inside ? (pixel * x.ld + load.begin + c) * T::kSize : 0), inside);
      }
    }
#pragma unroll
    for (int i = 0; i < kLoadsB; ++i) {
      const int row = first + i * kRowsAtOnce, n = n0 + row;
      const bool inside = in_depth && n < p.cout;
      const i64 from = (i64)n * row_bytes + (load.begin * taps + k) * T::kSize;
      cp_async16(tile + BM * kRow + swizzled(row, chunk), p.w + (inside ? from : 0), inside);
    }
    load.k += kDepth;
    if (load.k >= load.depth && load.segment + 1 < p.segments) {
      load.enter(p, load.segment + 1);
      if (T::kPads) zero = (u32)get(x_zero, load.segment) * 0x01010101u;
    }
  };

  int steps = 0;
  for (int s = 0; s < p.segments; ++s) {
    const int channels = p.ends[s] - (s == 0 ? 0 : p.ends[s - 1]);
    steps += (channels * taps + kDepth - 1) / kDepth;
  }
  if (!kSegmented && p.splits > 1) {
    const int begin = steps * split / p.splits;
    load.k = begin * kDepth;
    steps = steps * (split + 1) / p.splits - begin;
  }

  typename T::Acc acc[kTilesM][kTilesN][4] = {};
  float sum[kTilesM][kTilesN][4] = {};
  // Turns the sums of a segment into floats.
  auto fold = [&](int segment) {
    const float scale = T::kPads ? get(now(p.x_scale, p.state), segment) : 1.0f;
    const int zero_point = T::kPads ? (int)get(x_zero, segment) : 0;
#pragma unroll
    for (int j = 0; j < kTilesN; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int n = n0 + warp_n + j * 8 + lane % 4 * 2 + e;
        const bool inside = T::kPads && n < p.cout;
        const float factor = inside ? scale * p.w_scale[segment * p.cout + n] : 1.0f;
        const int less = inside && split == 0 ? zero_point * p.w_sums[segment * p.cout + n] : 0;
#pragma unroll
        for (int i = 0; i < kTilesM; ++i)
#pragma unroll
          for (int half = 0; half < 4; half += 2) {
            const float part = (float)(acc[i][j][half + e] - less) * factor;
            sum[i][j][half + e] = kSegmented ? sum[i][j][half + e] + part : part;
            acc[i][j][half + e] = 0;
          }
      }
  };

#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) fetch(s);
    cp_commit();
  }
  Depth compute;
  compute.enter(p, 0);
  for (int step = 0; step < steps; ++step) {
    cp_wait<kStages - 2>();
    block_sync();  // this step's tiles are there for all, and the tiles of the step before are read by all
    if (step + kStages - 1 < steps) fetch((step + kStages - 1) % kStages);
    cp_commit();
    const u8* left = memory + step % kStages * kStage;
    const u8* right = left + BM * kRow;
#pragma unroll
    for (int k = 0; k < kRow / 16; k += 2) {
      u32 a[kTilesM][4], b[kTilesN][2];
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) ldmatrix_x4(a[i], left + swizzled(warp_m + i * 16 + lane % 16, k + lane / 16));
#pragma unroll
      for (int j = 0; j < kTilesN; j += 2) {
        u32 r[4];
        ldmatrix_x4(r, right + swizzled(warp_n + j * 8 + lane % 8 + lane / 16 * 8, k + lane / 8 % 2));
        b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
      }
#pragma unroll
      for (int i = 0; i < kTilesM; ++i)
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) T::mma(acc[i][j], a[i], b[j]);
    }
    if (kSegmented) {
      compute.k += kDepth;
      if (compute.k >= compute.depth) {
        fold(compute.segment);
        if (compute.segment + 1 < p.segments) compute.enter(p, compute.segment + 1);
      }
    }
  }
  if (!kSegmented) fold(0);
  cp_wait<0>();
  block_sync();  // the tiles give way to sums

  constexpr int kPitch = BN + 4;
  float* sums = (float*)memory;
#pragma unroll
  for (int i = 0; i < kTilesM; ++i)
#pragma unroll
    for (int j = 0; j < kTilesN; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = warp_m + i * 16 + lane / 4 + e / 2 * 8, col = warp_n + j * 8 + lane % 4 * 2 + e % 2;
        sums[row * kPitch + col] = sum[i][j][e];
      }
  block_sync();
  // some columns per thread: what belongs to a column is read once
  if (p.wide) {
    constexpr int kGroups = BN / kEight;
    const int col = t % kGroups * kEight, n = n0 + col;
    if (n >= p.cout) return;
    const Values all = {(u8*)sums, kF32, kPitch};
    if (!kSegmented && p.splits > 1) {
      float* part = p.partial + ((i64)split * p.rows + m0) * p.cout + n;
      for (int row = t / kGroups; row < BM && m0 + row < p.rows; row += kThreads / kGroups) {
        copy16(part + (i64)row * p.cout, sums + row * kPitch + col);
        copy16(part + (i64)row * p.cout + 4, sums + row * kPitch + col + 4);
      }
      return;
    }
    const FinishEight finish(p, n);
    for (int row = t / kGroups; row < BM && m0 + row < p.rows; row += kThreads / kGroups) {
      float v[kEight];
      load_eight(all, row * kPitch + col, v);
      finish(m0 + row, v);
    }
    return;
  }
  const int n = n0 + t % BN;
  if (n >= p.cout) return;
  const Finish finish(p, n);
  for (int row = t / BN; row < BM && m0 + row < p.rows; row += kThreads / BN) finish(m0 + row, sums[row * kPitch + t % BN]);
}

// Adds the sums of the parts of the depth in their order, and finishes them, eight columns per thread.
CQ_KERNEL(conv_sum, 256, ConvArgs) {
  const int groups = p.cout / kEight;
  const u32 at = (u32)block_x() * 256 + tid();
  if (at >= (u32)p.rows * groups) return;
  const int m = at / groups, n = at % groups * kEight;
  float v[kEight] = {};
  for (int split = 0; split < p.splits; ++split) {
    float part[kEight];
    load_eight({(u8*)p.partial, kF32, p.cout}, ((i64)split * p.rows + m) * p.cout + n, part);
#pragma unroll
    for (int e = 0; e < kEight; ++e) v[e] += part[e];
  }
  FinishEight(p, n)(m, v);
}

CQ_KERNEL(conv_codes_128, 256, ConvArgs) { conv_tile<Codes, 128, 128, 64, 32, false>(p); }
CQ_KERNEL(conv_codes_64, 128, ConvArgs) { conv_tile<Codes, 64, 64, 32, 32, false>(p); }
CQ_KERNEL(conv_segments_128, 256, ConvArgs) { conv_tile<Codes, 128, 128, 64, 32, true>(p); }
CQ_KERNEL(conv_segments_64, 128, ConvArgs) { conv_tile<Codes, 64, 64, 32, 32, true>(p); }
CQ_KERNEL(conv_f16_128, 256, ConvArgs) { conv_tile<Halves, 128, 128, 64, 32, false>(p); }
CQ_KERNEL(conv_f16_64, 128, ConvArgs) { conv_tile<Halves, 64, 64, 32, 32, false>(p); }

// A thread per result, weights in f32 `[cout, taps, cin / groups]`: for groups, and for channels that fill no 16 bytes.
CQ_KERNEL(conv_direct, 256, ConvArgs) {
  const u32 at = (u32)block_x() * 256 + tid();
  if (at >= (u32)p.rows * p.cout) return;
  const int m = at / p.cout, n = at % p.cout;
  const Values x = now(p.x, p.state);
  const int image = m / (p.out_h * p.out_w), pixel = m % (p.out_h * p.out_w);
  const int oy = pixel / p.out_w, ox = pixel % p.out_w;
  const int depth = p.cin / p.groups, begin = n / (p.cout / p.groups) * depth;
  const float* w = (const float*)p.w + (i64)n * p.kernel_h * p.kernel_w * depth;
  float sum = 0.0f;
  for (int ky = 0; ky < p.kernel_h; ++ky)
    for (int kx = 0; kx < p.kernel_w; ++kx, w += depth) {
      const int iy = oy * p.stride_h - p.pad_h + ky * p.dilation_h, ix = ox * p.stride_w - p.pad_w + kx * p.dilation_w;
      if (iy < 0 || iy >= p.height * p.upsample || ix < 0 || ix >= p.width * p.upsample) continue;
      const i64 from = ((i64)image * p.height + iy / p.upsample) * p.width + ix / p.upsample;
      for (int c = 0; c < depth; ++c) sum += get(x, from * x.ld + begin + c) * w[c];
    }
  Finish(p, n)(m, sum);
}

struct MatmulArgs {
  const State* state;
  Operand a, b, y;
  i64 stride_a, stride_b, stride_y;  // between the matrices of a batch
  int batch, m, k, n;
};
static_assert(sizeof(MatmulArgs) == 144, "as in args.rs");

// y = a · b for computed matrices, a thread per result.
CQ_KERNEL(matmul, 256, MatmulArgs) {
  const u32 at = (u32)block_x() * 256 + tid();
  if (at >= (u32)p.batch * p.m * p.n) return;
  const int n = at % p.n, m = at / p.n % p.m, i = at / p.n / p.m;
  const Values a = now(p.a, p.state), b = now(p.b, p.state), y = now(p.y, p.state);
  float sum = 0.0f;
  for (int k = 0; k < p.k; ++k) sum += get(a, i * p.stride_a + (i64)m * a.ld + k) * get(b, i * p.stride_b + (i64)k * b.ld + n);
  put(y, i * p.stride_y + (i64)m * y.ld + n, sum);
}
