//! Group normalisation over NHWC.
//!
//! Three jobs: moments of every group in every block of pixels, their union per image, the normalised pixels. Blocks do not depend on the number of
//! threads, so results do not either; whole rows of pixels go to a thread, as in the products before and behind.

use crate::arena::{cast, cast_mut};
use crate::epilogue::{Act, check_matrix};
use crate::gemm::{load_some, store_some};
use crate::math::activate;
use crate::shared::SharedMut;
use crate::simd::{Kernel, Simd};
use crate::target::{Sink, Target, Writer};
use crate::{Isa, Pool, scratch};
use std::ops::{Range, RangeInclusive};

/// Pixels of a block: about so many values.
const BLOCK: (RangeInclusive<usize>, usize) = (16..=256, 16 << 10);
/// Pixels of a block whose mean is the pivot of its sums.
const FIRST: usize = 8;
/// Channel vectors worked on side by side: two cache lines of AVX2.
const CHAINS: usize = 4;

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
/// Pixels lie `ldx` and `ldy` elements apart. Sums of differences from the mean of a few pixels, block by block, joined in f64.
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
    if shape.n * shape.hw * shape.c == 0 {
        return;
    }
    let (blocks, words) = (shape.hw.div_ceil(block(shape)), size_of::<Moments>() / 4);
    let moments = shape.n * blocks * shape.groups;
    scratch::with(moments * words + 2 * shape.n * shape.c + 1, |work| {
        // f64 begin at a multiple of 8 bytes
        let odd = usize::from(!work.as_ptr().addr().is_multiple_of(8));
        let (moments, coefficients) = work[odd..].split_at_mut(moments * words);
        let part = |task: usize| {
            let (image, block) = (task / blocks, task % blocks * block(shape));
            image * shape.hw + block..image * shape.hw + (block + self::block(shape)).min(shape.hw)
        };
        let shared = SharedMut::new(&mut *moments);
        pool.run(shape.n * blocks, &|task, _| {
            // SAFETY: every task has its own part.
            let moments = unsafe { shared.part(task * shape.groups * words, shape.groups * words) };
            scratch::with(3 * shape.c, |sums| {
                isa.run(BlockMoments {
                    shape,
                    pixels: part(task),
                    x,
                    ldx,
                    sums,
                    moments: cast_mut(bytemuck::cast_slice_mut(moments)),
                });
            });
        });
        let shared = SharedMut::new(&mut *coefficients);
        let per_image = blocks * shape.groups * words;
        pool.run(shape.n, &|image, _| {
            // SAFETY: every task has its own part.
            let coefficients = unsafe { shared.part(image * 2 * shape.c, 2 * shape.c) };
            let moments: &[f64] = cast(bytemuck::cast_slice(&moments[image * per_image..][..per_image]));
            join(shape, moments, coefficients);
        });
        let coefficients = &*coefficients;
        pool.run(shape.n * blocks, &|task, _| {
            let coefficients = &coefficients[task / blocks * 2 * shape.c..][..2 * shape.c];
            isa.run(Normalise { shape, pixels: part(task), x, ldx, y, coefficients });
        });
    });
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

    fn to_array(self) -> [f64; 3] {
        [self.count, self.mean, self.squares]
    }

    fn from_array([count, mean, squares]: [f64; 3]) -> Moments {
        Moments { count, mean, squares }
    }

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

/// The moments of all groups in a block of pixels. A vector holds channels, whichever groups they belong to.
///
/// Adds up d = x − p and d², p the mean of the block's first pixels, so that little cancels in Σ (x − mean)² = Σ d² − (Σ d)² / n.
struct BlockMoments<'a> {
    shape: &'a GroupNorm<'a>,
    pixels: Range<usize>,
    x: &'a [f32],
    ldx: usize,
    /// Three rows of `c` values: pivots, sums, sums of squares.
    sums: &'a mut [f32],
    /// [`Moments`] of every group.
    moments: &'a mut [f64],
}

impl Kernel for BlockMoments<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.shape.c / self.shape.groups;
        let (pivots, rest) = self.sums.split_at_mut(self.shape.c);
        let (sums, squares) = rest.split_at_mut(self.shape.c);
        let total =
            |sums: &[f32], group: usize| sums[group * width..][..width].iter().map(|&x| f64::from(x)).sum::<f64>();
        let (x, pixels) = (&self.x[self.pixels.start * self.ldx..], self.pixels.len());
        let first = FIRST.min(pixels);
        pivots.fill(0.0);
        sum_over(s, x, self.ldx, first, pivots, sums, squares);
        for group in 0..self.shape.groups {
            let mean = total(sums, group) / (first * width) as f64;
            pivots[group * width..][..width].fill(mean as f32);
        }
        sum_over(s, x, self.ldx, pixels, pivots, sums, squares);
        let count = (pixels * width) as f64;
        for (group, moments) in self.moments.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let (sum, squares) = (total(sums, group), total(squares, group));
            let mean = f64::from(pivots[group * width]) + sum / count;
            *moments = Moments { count, mean, squares: (squares - sum * sum / count).max(0.0) }.to_array();
        }
    }
}

/// Per channel the factor inv · gamma, then the addition beta − mean · inv · gamma, from the [`Moments`] of all blocks of an image.
fn join(shape: &GroupNorm, moments: &[f64], coefficients: &mut [f32]) {
    let (factors, additions) = coefficients.split_at_mut(shape.c);
    let width = shape.c / shape.groups;
    for group in 0..shape.groups {
        let blocks = moments.as_chunks::<3>().0.iter().skip(group).step_by(shape.groups);
        let all = blocks.fold(Moments::NONE, |all, &block| all.join(Moments::from_array(block)));
        let inv = 1.0 / (all.squares / all.count + f64::from(shape.eps)).sqrt();
        for channel in group * width..(group + 1) * width {
            let factor = inv as f32 * shape.gamma.map_or(1.0, |gamma| gamma[channel]);
            let beta = shape.beta.map_or(0.0, |beta| f64::from(beta[channel]));
            factors[channel] = factor;
            additions[channel] = (beta - all.mean * f64::from(factor)) as f32;
        }
    }
}

/// y = act(x · factor + addition) for some pixels.
struct Normalise<'a> {
    shape: &'a GroupNorm<'a>,
    pixels: Range<usize>,
    x: &'a [f32],
    ldx: usize,
    y: Sink<'a>,
    /// What [`join`] found.
    coefficients: &'a [f32],
}

impl Kernel for Normalise<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for part in 0..self.y.parts() {
            let Some((columns, writer)) = self.y.writer(s, part, 0, self.shape.c) else { continue };
            let mut c = columns.start;
            while c < columns.end {
                let n = (columns.end - c).min(S::LANES);
                if columns.end - c >= CHAINS * S::LANES {
                    self.vectors::<S, CHAINS>(s, c, n, &writer);
                    c += CHAINS * S::LANES;
                } else {
                    self.vectors::<S, 1>(s, c, n, &writer);
                    c += n;
                }
            }
        }
    }
}

impl Normalise<'_> {
    /// `M` vectors of channels from `c` on, the last of `n`.
    #[inline(always)]
    fn vectors<S: Simd, const M: usize>(&self, s: S, c: usize, n: usize, writer: &Writer<S>) {
        let (mut factor, mut addition) = ([s.splat(0.0); M], [s.splat(0.0); M]);
        let all = (M - 1) * S::LANES + n;
        let (factors, additions) = self.coefficients.split_at(self.shape.c);
        let (factors, additions) = (&factors[c..][..all], &additions[c..][..all]);
        for j in 0..M {
            // SAFETY: rows of `all` values.
            unsafe {
                factor[j] = load_some(s, factors.as_ptr().add(j * S::LANES), n);
                addition[j] = load_some(s, additions.as_ptr().add(j * S::LANES), n);
            }
        }
        for pixel in self.pixels.clone() {
            let x = self.x[pixel * self.ldx + c..][..all].as_ptr();
            for j in 0..M {
                // SAFETY: `all` values; the sink has these columns, and tasks have disjoint pixels.
                unsafe {
                    let v = s.fma(load_some(s, x.add(j * S::LANES), n), factor[j], addition[j]);
                    writer.put(s, pixel, c + j * S::LANES, activate(s, self.shape.act, v), n);
                }
            }
        }
    }
}

/// Pixels that are worked on together, whatever the number of threads.
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
