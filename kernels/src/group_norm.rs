//! Group normalisation over NHWC.
//!
//! Moments of every group in every block of pixels, their union per image, the normalised pixels:
//! all of an image by one thread where there are images enough, so that it is read from the cache
//! the second time, else three jobs over the blocks of all. Blocks do not depend on the number of
//! threads, so results do not either; whole rows of pixels go to a thread, as in the products
//! before and after.

use crate::arena::{cast, cast_mut};
use crate::epilogue::{Act, check_matrix};
use crate::gemm::{load_some, store_some};
use crate::math::{ActivationFunction, Identity, Silu};
use crate::output::{Output, Put, Sink, Writer};
use crate::shared::SharedMut;
use crate::simd::wide::{CHAINS, Wide, load_many};
use crate::simd::{Arithmetic, Simd, SimdKernel};
use crate::{Isa, Pool, scratch};
use std::ops::{Range, RangeInclusive};

/// Pixels of a block: about so many values.
const BLOCK: (RangeInclusive<usize>, usize) = (16..=256, 16 << 10);
/// Images per thread from which on a rest of images that not all threads share does not matter.
const IMAGES: usize = 4;
/// Pixels of a block whose mean is the pivot of its sums.
const FIRST: usize = 8;

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

/// y = act((x − mean) / √(var + eps) · gamma + beta), mean and variance per image and group of
/// c/groups channels.
///
/// Pixels lie `ldx` and `ldy` elements apart. Sums of differences from the mean of a few pixels,
/// block by block, joined in f64.
///
/// # Panics
/// When a slice is too short or `groups` does not divide `c`.
pub fn group_norm<'a>(
    isa: Isa,
    pool: &Pool,
    shape: &GroupNorm,
    x: &[f32],
    ldx: usize,
    y: impl Into<Output<'a>>,
    ldy: usize,
) {
    check_matrix("x", x.len(), shape.n * shape.hw, shape.c, ldx);
    let y = Sink::new(isa, y.into(), shape.n * shape.hw, shape.c, ldy);
    assert!(
        shape.groups > 0 && shape.c.is_multiple_of(shape.groups),
        "{} groups of {}",
        shape.groups,
        shape.c
    );
    for (name, weights) in [("gamma", shape.gamma), ("beta", shape.beta)] {
        let len = weights.map_or(shape.c, <[f32]>::len);
        assert!(len >= shape.c, "{name} has {len} values, needs {}", shape.c);
    }
    if shape.n * shape.hw * shape.c == 0 {
        return;
    }
    let work = GroupNormTasks { isa, shape, x, ldx, y, blocks: shape.hw.div_ceil(block(shape)) };
    let moments = shape.n * work.moments_per_image();
    scratch::with(moments + 2 * shape.n * shape.c + 1, |memory| {
        // f64 begin at a multiple of 8 bytes
        let odd = usize::from(!memory.as_ptr().addr().is_multiple_of(8));
        let (moments, coefficients) = memory[odd..].split_at_mut(moments);
        if shape.n >= IMAGES * pool.threads() || shape.n.is_multiple_of(pool.threads()) {
            let (moments, coefficients) = (SharedMut::new(moments), SharedMut::new(coefficients));
            return pool.run(shape.n, &|image, _| {
                // SAFETY: every image has its own parts.
                let (moments, coefficients) = unsafe {
                    (
                        moments.part(image * work.moments_per_image(), work.moments_per_image()),
                        coefficients.part(image * 2 * shape.c, 2 * shape.c),
                    )
                };
                let of_block = moments.len() / work.blocks;
                (0..work.blocks).for_each(|block| {
                    work.moments(image, block, &mut moments[block * of_block..][..of_block])
                });
                join(shape, cast(bytemuck::cast_slice(moments)), coefficients);
                (0..work.blocks).for_each(|block| work.normalise(image, block, coefficients));
            });
        }
        let shared = SharedMut::new(&mut *moments);
        let of_block = work.moments_per_image() / work.blocks;
        pool.run(shape.n * work.blocks, &|task, _| {
            // SAFETY: every task has its own part.
            let moments = unsafe { shared.part(task * of_block, of_block) };
            work.moments(task / work.blocks, task % work.blocks, moments);
        });
        let shared = SharedMut::new(&mut *coefficients);
        pool.run(shape.n, &|image, _| {
            // SAFETY: every task has its own part.
            let coefficients = unsafe { shared.part(image * 2 * shape.c, 2 * shape.c) };
            let moments = &moments[image * work.moments_per_image()..][..work.moments_per_image()];
            join(shape, cast(bytemuck::cast_slice(moments)), coefficients);
        });
        let coefficients = &*coefficients;
        pool.run(shape.n * work.blocks, &|task, _| {
            let coefficients = &coefficients[task / work.blocks * 2 * shape.c..][..2 * shape.c];
            work.normalise(task / work.blocks, task % work.blocks, coefficients);
        });
    });
}

/// The parts of [`group_norm`].
#[derive(Clone, Copy)]
struct GroupNormTasks<'a> {
    isa: Isa,
    shape: &'a GroupNorm<'a>,
    x: &'a [f32],
    ldx: usize,
    y: Sink<'a>,
    /// Blocks of pixels of an image.
    blocks: usize,
}

impl GroupNormTasks<'_> {
    /// [`Moments`] of all blocks and groups of an image, in f32.
    fn moments_per_image(&self) -> usize {
        self.blocks * self.shape.groups * (size_of::<Moments>() / size_of::<f32>())
    }

    fn pixels(&self, image: usize, block: usize) -> Range<usize> {
        let (first, many) = (block * self::block(self.shape), self::block(self.shape));
        image * self.shape.hw + first..image * self.shape.hw + (first + many).min(self.shape.hw)
    }

    /// The moments of the groups of a block.
    fn moments(&self, image: usize, block: usize, moments: &mut [f32]) {
        let GroupNormTasks { isa, shape, x, ldx, .. } = *self;
        scratch::with(3 * shape.c, |sums| {
            let moments = cast_mut(bytemuck::cast_slice_mut(moments));
            isa.run(BlockMoments {
                shape,
                pixels: self.pixels(image, block),
                x,
                ldx,
                sums,
                moments,
            });
        });
    }

    /// Writes a block.
    fn normalise(&self, image: usize, block: usize, coefficients: &[f32]) {
        let GroupNormTasks { isa, shape, x, ldx, y, .. } = *self;
        isa.run(Normalise { shape, pixels: self.pixels(image, block), x, ldx, y, coefficients });
    }
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

/// The moments of all groups in a block of pixels. A vector holds channels, whichever groups they
/// belong to.
///
/// Adds up d = x − p and d², p the mean of the block's first pixels, so that little cancels in Σ (x
/// − mean)² = Σ d² − (Σ d)² / n.
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

impl SimdKernel for BlockMoments<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.shape.c / self.shape.groups;
        let (pivots, rest) = self.sums.split_at_mut(self.shape.c);
        let (sums, squares) = rest.split_at_mut(self.shape.c);
        let total = |sums: &[f32], group: usize| {
            sums[group * width..][..width].iter().map(|&x| f64::from(x)).sum::<f64>()
        };
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
            *moments =
                Moments { count, mean, squares: (squares - sum * sum / count).max(0.0) }.to_array();
        }
    }
}

/// Per channel the factor inv · gamma, then the addition beta − mean · inv · gamma, from the
/// [`Moments`] of all blocks of an image.
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

impl SimdKernel for Normalise<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for part in 0..self.y.parts() {
            let Some((columns, writer)) = self.y.writer(s, part, 0, self.shape.c) else { continue };
            // nothing is decided per vector in the two forms that quantized models are full of
            match (&writer, self.shape.act) {
                (Writer::Bytes(codes), Act::Silu) => self.columns(s, columns, codes, Silu),
                (Writer::Bytes(codes), Act::None) => self.columns(s, columns, codes, Identity),
                (writer, act) => self.columns(s, columns, writer, act),
            }
        }
    }
}

impl Normalise<'_> {
    #[inline(always)]
    fn columns<S: Simd>(
        &self,
        s: S,
        columns: Range<usize>,
        writer: &impl Put<S>,
        act: impl ActivationFunction,
    ) {
        let mut c = columns.start;
        while c < columns.end {
            if columns.end - c >= CHAINS * S::LANES {
                self.vectors::<S, CHAINS>(s, c, S::LANES, writer, act);
                c += CHAINS * S::LANES;
            } else {
                let n = (columns.end - c).min(S::LANES);
                self.vectors::<S, 1>(s, c, n, writer, act);
                c += n;
            }
        }
    }

    /// `M` vectors of channels from `c` on, the last of `n`.
    #[inline(always)]
    fn vectors<S: Simd, const M: usize>(
        &self,
        s: S,
        c: usize,
        n: usize,
        writer: &impl Put<S>,
        act: impl ActivationFunction,
    ) {
        let w = Wide::<S, M>(s);
        let all = (M - 1) * S::LANES + n;
        let (factors, additions) = self.coefficients.split_at(self.shape.c);
        // SAFETY: rows of `all` values.
        let (factor, addition) = unsafe {
            (
                load_many(s, factors[c..][..all].as_ptr(), n),
                load_many(s, additions[c..][..all].as_ptr(), n),
            )
        };
        for pixel in self.pixels.clone() {
            let x = self.x[pixel * self.ldx + c..][..all].as_ptr();
            // SAFETY: `all` values.
            let v = unsafe { load_many(s, x, n) };
            let v = act.apply(w, w.fma(v, factor, addition));
            for (j, v) in v.into_iter().enumerate() {
                let n = if j + 1 == M { n } else { S::LANES };
                // SAFETY: the sink has these columns, and tasks have disjoint pixels.
                unsafe { writer.put(s, pixel, c + j * S::LANES, v, n) };
            }
        }
    }
}

/// Pixels that are worked on together, whatever the number of threads.
fn block(shape: &GroupNorm) -> usize {
    let (range, values) = BLOCK;
    (values / shape.c.max(1)).clamp(*range.start(), *range.end())
}

/// Per channel Σ d and Σ d², d = x − pivot, over `pixels` rows, `ld` apart, of as many channels as
/// `sums` has.
#[inline(always)]
fn sum_over<S: Simd>(
    s: S,
    x: &[f32],
    ld: usize,
    pixels: usize,
    pivots: &[f32],
    sums: &mut [f32],
    squares: &mut [f32],
) {
    let width = sums.len();
    assert!(
        x.len() >= (pixels - 1) * ld + width && pivots.len() == width && squares.len() == width
    );
    let mut c = 0;
    while c < width {
        let many = if width - c >= CHAINS * S::LANES { CHAINS } else { 1 };
        let n = (width - c).min(S::LANES);
        // SAFETY: `c + many · LANES ≤ width`, or `c + n ≤ width` and `many` is 1; rows by the
        // assertion above.
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
    let (mut sum, mut square, mut pivot) =
        ([s.splat(0.0); M], [s.splat(0.0); M], [s.splat(0.0); M]);
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
