//! Group normalisation over NHWC.
//!
//! A task is an image and a range of whole groups. Vectors run over channels, so every channel is summed in the same
//! order wherever a range begins, and results do not depend on how channels were cut into tasks.

use crate::epilogue::{Act, check_matrix};
use crate::gemm::{load_some, store_some};
use crate::math::activate;
use crate::shared::cut;
use crate::simd::{Kernel, Simd};
use crate::target::{Sink, Target, Writer};
use crate::{Isa, Pool, scratch};
use std::ops::{Range, RangeInclusive};

/// Channels of a task at least: what one pixel contributes to it should fill cache lines.
const MIN_CHANNELS: usize = 32;
/// Pixels whose moments are taken about one pivot: about so many values.
const BLOCK: (RangeInclusive<usize>, usize) = (64..=256, 16 << 10);
/// Pixels whose mean is the first pivot.
const FIRST: usize = 32;
/// Channel vectors worked on side by side: two cache lines of AVX2.
const CHAINS: usize = 4;
/// Groups whose moments are found side by side.
const TOGETHER: usize = 64;

/// Shape and weights of [`group_norm`] over NHWC.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm<'a> {
    /// Images.
    pub n: usize,
    /// Pixels of an image.
    pub hw: usize,
    /// Channels.
    pub c: usize,
    /// Groups; divides `c`.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// `[c]`; none = 1.
    pub gamma: Option<&'a [f32]>,
    /// `[c]`; none = 0.
    pub beta: Option<&'a [f32]>,
    /// Applied last.
    pub act: Act,
}

/// y = act((x − mean) / √(var + eps) · gamma + beta), mean and variance per image and group of c/groups channels.
///
/// Pixels lie `ldx` and `ldy` elements apart. Sums of differences from the mean of the pixels before, block by block, joined in f64.
///
/// # Panics
/// When a slice is too short or `groups` does not divide `c`.
pub fn group_norm<'a>(
    isa: Isa,
    pool: &Pool,
    shape: &GroupNorm,
    x: &[f32],
    ldx: usize,
    y: impl Into<Target<'a>>,
    ldy: usize,
) {
    check_matrix("x", x.len(), shape.n * shape.hw, shape.c, ldx);
    let y = Sink::new(isa, y.into(), shape.n * shape.hw, shape.c, ldy);
    assert!(shape.groups > 0 && shape.c.is_multiple_of(shape.groups), "{} groups of {}", shape.groups, shape.c);
    for (name, weights) in [("gamma", shape.gamma), ("beta", shape.beta)] {
        let len = weights.map_or(shape.c, <[f32]>::len);
        assert!(len >= shape.c, "{name} has {len} values, needs {}", shape.c);
    }
    let width = shape.c / shape.groups;
    let most = (shape.c / MIN_CHANNELS).clamp(1, shape.groups);
    let ranges = (4 * pool.threads()).div_ceil(shape.n.max(1)).min(most);
    pool.run(shape.n * ranges, &|task, _| {
        let groups = cut(shape.groups, ranges, 1, task % ranges);
        if groups.is_empty() {
            return;
        }
        let (image, first, count) = (task / ranges, groups.start * width, groups.len() * width);
        let start = image * shape.hw;
        scratch::with(3 * count, |work| {
            isa.run(GroupTask { shape, start, first, count, x, ldx, y, work });
        });
    });
}

struct GroupTask<'a> {
    shape: &'a GroupNorm<'a>,
    /// First pixel.
    start: usize,
    /// First channel.
    first: usize,
    /// Channels.
    count: usize,
    x: &'a [f32],
    ldx: usize,
    y: Sink<'a>,
    /// Three rows of `count` values: pivots; sums, then factors; sums of squares, then additions.
    work: &'a mut [f32],
}

/// Mean and Σ (x − mean)² of what has been seen of a group.
#[derive(Clone, Copy)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    const NONE: Moments = Moments { count: 0.0, mean: 0.0, squares: 0.0 };

    /// Both together (Chan, Golub, LeVeque 1979).
    fn join(self, other: Moments) -> Moments {
        let count = self.count + other.count;
        let step = other.mean - self.mean;
        Moments {
            count,
            mean: self.mean + step * other.count / count,
            squares: self.squares + other.squares + step * step * self.count * other.count / count,
        }
    }
}

impl Kernel for GroupTask<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.coefficients(s);
        self.normalise(s);
    }
}

impl GroupTask<'_> {
    /// Fills `work` with per-channel factors inv · gamma and additions beta − mean · inv · gamma.
    #[inline(always)]
    fn coefficients<S: Simd>(&mut self, s: S) {
        let shape = self.shape;
        let width = shape.c / shape.groups;
        let groups = self.count / width;
        for first in (0..groups).step_by(TOGETHER) {
            let many = TOGETHER.min(groups - first);
            let moments = self.moments(s, first, many, width);
            for (group, moments) in (first..).zip(&moments[..many]) {
                let inv = 1.0 / (moments.squares / moments.count + f64::from(shape.eps)).sqrt();
                for c in group * width..(group + 1) * width {
                    let channel = self.first + c;
                    let factor = inv as f32 * shape.gamma.map_or(1.0, |gamma| gamma[channel]);
                    let beta = shape.beta.map_or(0.0, |beta| f64::from(beta[channel]));
                    self.work[self.count + c] = factor;
                    self.work[2 * self.count + c] = (beta - moments.mean * f64::from(factor)) as f32;
                }
            }
        }
    }

    /// Moments of `many` groups of `width` channels from group `first` on. A vector holds channels, whichever groups they belong to.
    ///
    /// A block of pixels adds up d = x − p and d², p the mean of the block before (of the first block itself, found in a pass of its own), so that
    /// little cancels in Σ (x − mean)² = Σ d² − (Σ d)² / n.
    #[inline(always)]
    fn moments<S: Simd>(&mut self, s: S, first: usize, many: usize, width: usize) -> [Moments; TOGETHER] {
        let mut moments = [Moments::NONE; TOGETHER];
        let channels = first * width..(first + many) * width;
        // not yet needed for what they will hold
        let [pivots, sums, squares] = self
            .work
            .get_disjoint_mut([0, 1, 2].map(|row| row * self.count + channels.start..row * self.count + channels.end))
            .expect("three rows");
        let total =
            |sums: &[f32], group: usize| sums[group * width..][..width].iter().map(|&x| f64::from(x)).sum::<f64>();
        let x = |pixel: usize| &self.x[(self.start + pixel) * self.ldx + self.first + channels.start..];
        let pixels = FIRST.min(self.shape.hw);
        pivots.fill(0.0);
        sum_over(s, x(0), self.ldx, pixels, pivots, sums, squares);
        for group in 0..many {
            let mean = total(sums, group) / (pixels * width) as f64;
            pivots[group * width..][..width].fill(mean as f32);
        }
        for pixel in (0..self.shape.hw).step_by(block(self.shape)) {
            let pixels = block(self.shape).min(self.shape.hw - pixel);
            let count = (pixels * width) as f64;
            sum_over(s, x(pixel), self.ldx, pixels, pivots, sums, squares);
            for (group, moments) in moments[..many].iter_mut().enumerate() {
                let pivots = &mut pivots[group * width..][..width];
                let (sum, squares) = (total(sums, group), total(squares, group));
                let mean = f64::from(pivots[0]) + sum / count;
                pivots.fill(mean as f32);
                *moments = moments.join(Moments { count, mean, squares: (squares - sum * sum / count).max(0.0) });
            }
        }
        moments
    }

    /// y = act(x · factor + addition)
    #[inline(always)]
    fn normalise<S: Simd>(&self, s: S) {
        for part in 0..self.y.parts() {
            let Some((columns, writer)) = self.y.writer(s, part, self.first, self.count) else { continue };
            for pixel in (0..self.shape.hw).step_by(block(self.shape)) {
                let pixels = pixel..(pixel + block(self.shape)).min(self.shape.hw);
                let mut c = columns.start;
                while c < columns.end {
                    let n = (columns.end - c).min(S::LANES);
                    if columns.end - c >= CHAINS * S::LANES {
                        self.normalise_vectors::<S, CHAINS>(s, pixels.clone(), c, n, &writer);
                        c += CHAINS * S::LANES;
                    } else {
                        self.normalise_vectors::<S, 1>(s, pixels.clone(), c, n, &writer);
                        c += n;
                    }
                }
            }
        }
    }

    /// [`Self::normalise`] of some pixels of `M` vectors of channels from `c` on, the last of `n`.
    #[inline(always)]
    fn normalise_vectors<S: Simd, const M: usize>(
        &self,
        s: S,
        pixels: Range<usize>,
        c: usize,
        n: usize,
        writer: &Writer<S>,
    ) {
        let (mut factor, mut addition) = ([s.splat(0.0); M], [s.splat(0.0); M]);
        let all = (M - 1) * S::LANES + n;
        let row = |row: usize| &self.work[row * self.count + c..][..all];
        for j in 0..M {
            // SAFETY: rows of `all` values.
            unsafe {
                factor[j] = load_some(s, row(1).as_ptr().add(j * S::LANES), n);
                addition[j] = load_some(s, row(2).as_ptr().add(j * S::LANES), n);
            }
        }
        for pixel in self.start + pixels.start..self.start + pixels.end {
            let x = self.x[pixel * self.ldx + self.first + c..][..all].as_ptr();
            for j in 0..M {
                // SAFETY: `all` values; the sink has these columns, and tasks have disjoint channels or images.
                unsafe {
                    let v = s.fma(load_some(s, x.add(j * S::LANES), n), factor[j], addition[j]);
                    writer.put(s, pixel, self.first + c + j * S::LANES, activate(s, self.shape.act, v), n);
                }
            }
        }
    }
}

/// Pixels that are worked on together; the same however channels are cut into tasks.
fn block(shape: &GroupNorm) -> usize {
    let (range, values) = BLOCK;
    (values / shape.c.max(1)).clamp(*range.start(), *range.end())
}

/// Per channel Σ d and Σ d², d = x − pivot, over `pixels` rows, `ld` apart, of as many channels as `sums` has.
#[inline(always)]
fn sum_over<S: Simd>(s: S, x: &[f32], ld: usize, pixels: usize, pivots: &[f32], sums: &mut [f32], squares: &mut [f32]) {
    let width = sums.len();
    assert!(x.len() >= (pixels - 1) * ld + width && pivots.len() == width && squares.len() == width);
    let mut c = 0;
    while c < width {
        let many = if width - c >= CHAINS * S::LANES { CHAINS } else { 1 };
        let n = (width - c).min(S::LANES);
        // SAFETY: `c + many · LANES ≤ width`, or `c + n ≤ width` and `many` is 1; rows by the assertion above.
        unsafe {
            let (x, pivots) = (x.as_ptr().add(c), pivots.as_ptr().add(c));
            let (sums, squares) = (sums.as_mut_ptr().add(c), squares.as_mut_ptr().add(c));
            if many == CHAINS {
                sum_vectors::<S, CHAINS>(s, x, ld, pixels, S::LANES, pivots, sums, squares);
            } else {
                sum_vectors::<S, 1>(s, x, ld, pixels, n, pivots, sums, squares);
            }
        }
        c += many * S::LANES;
    }
}

/// [`sum_over`] of `M` vectors, the last of `n` channels.
///
/// # Safety
/// `x` must have `pixels` rows, and the others one, of that many channels.
#[inline(always)]
unsafe fn sum_vectors<S: Simd, const M: usize>(
    s: S,
    x: *const f32,
    ld: usize,
    pixels: usize,
    n: usize,
    pivots: *const f32,
    sums: *mut f32,
    squares: *mut f32,
) {
    let (mut sum, mut square, mut pivot) = ([s.splat(0.0); M], [s.splat(0.0); M], [s.splat(0.0); M]);
    // SAFETY: the caller's promise.
    unsafe {
        for j in 0..M {
            pivot[j] = load_some(s, pivots.add(j * S::LANES), n);
        }
        for pixel in 0..pixels {
            for j in 0..M {
                let d = s.sub(load_some(s, x.add(pixel * ld + j * S::LANES), n), pivot[j]);
                sum[j] = s.add(sum[j], d);
                square[j] = s.fma(d, d, square[j]);
            }
        }
        for j in 0..M {
            store_some(s, sums.add(j * S::LANES), sum[j], n);
            store_some(s, squares.add(j * S::LANES), square[j], n);
        }
    }
}
