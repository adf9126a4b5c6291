//! Group normalisation over NHWC.
//!
//! A task is an image and a range of whole groups. Vectors run over channels, so every channel is summed in the same
//! order wherever a range begins, and results do not depend on how channels were cut into tasks.

use crate::epilogue::{Act, check_matrix};
use crate::gemm::{load_some, store_some};
use crate::math::activate;
use crate::shared::cut;
use crate::simd::{Kernel, Simd};
use crate::target::{Sink, Target};
use crate::{Isa, Pool, scratch};

/// Channels of a task at least: what one pixel contributes to it should fill cache lines.
const MIN_CHANNELS: usize = 32;
/// Pixels whose two passes find them in the first-level cache.
const BLOCK: usize = 64;
/// Channel vectors summed side by side.
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
/// Pixels lie `ldx` and `ldy` elements apart. Variance by blocks of two passes, joined in f64.
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
    /// Three rows of `count` values: sums, then means; factors; additions.
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
    /// Fills `work` with per-channel means, factors inv · gamma and additions beta.
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
                    self.work[c] = moments.mean as f32;
                    self.work[self.count + c] = inv as f32 * shape.gamma.map_or(1.0, |gamma| gamma[channel]);
                    self.work[2 * self.count + c] = shape.beta.map_or(0.0, |beta| beta[channel]);
                }
            }
        }
    }

    /// Moments of `many` groups of `width` channels from group `first` on, block by block of pixels, each in two passes. A vector holds channels,
    /// whichever groups they belong to.
    #[inline(always)]
    fn moments<S: Simd>(&mut self, s: S, first: usize, many: usize, width: usize) -> [Moments; TOGETHER] {
        let mut moments = [Moments::NONE; TOGETHER];
        let channels = first * width..(first + many) * width;
        // not yet needed for what they will hold
        let (pivots, sums) = self.work[self.count..].split_at_mut(self.count);
        let (pivots, sums) = (&mut pivots[channels.clone()], &mut sums[channels.clone()]);
        for pixel in (0..self.shape.hw).step_by(BLOCK) {
            let pixels = BLOCK.min(self.shape.hw - pixel);
            let x = &self.x[(self.start + pixel) * self.ldx + self.first + channels.start..];
            let count = (pixels * width) as f64;
            let total = |sums: &[f32]| sums.iter().map(|&x| f64::from(x)).sum::<f64>();
            let mut means = [0.0; TOGETHER];
            sum_over(s, x, self.ldx, pixels, None, sums);
            for (group, mean) in means[..many].iter_mut().enumerate() {
                *mean = total(&sums[group * width..][..width]) / count;
                pivots[group * width..][..width].fill(*mean as f32);
            }
            sum_over(s, x, self.ldx, pixels, Some(pivots), sums);
            for (group, &mean) in means[..many].iter().enumerate() {
                let squares = total(&sums[group * width..][..width]);
                // Σ (x − m)² about the rounded mean m is too large by count · (mean − m)².
                let off = mean - f64::from(mean as f32);
                let squares = (squares - count * off * off).max(0.0);
                moments[group] = moments[group].join(Moments { count, mean, squares });
            }
        }
        moments
    }

    /// y = act((x − mean) · factor + addition)
    #[inline(always)]
    fn normalise<S: Simd>(&self, s: S) {
        let (mean, rest) = self.work.split_at(self.count);
        let (factor, addition) = rest.split_at(self.count);
        for part in 0..self.y.parts() {
            let Some((columns, writer)) = self.y.writer(s, part, self.first, self.count) else { continue };
            for pixel in self.start..self.start + self.shape.hw {
                let x = &self.x[pixel * self.ldx + self.first..][..self.count];
                let mut c = columns.start;
                while c < columns.end {
                    let n = (columns.end - c).min(S::LANES);
                    // SAFETY: `c + n ≤ count`, the length of all these; tasks have disjoint channels or images.
                    unsafe {
                        let v = s.sub(load_some(s, x.as_ptr().add(c), n), load_some(s, mean.as_ptr().add(c), n));
                        let (factor, addition) = (factor.as_ptr().add(c), addition.as_ptr().add(c));
                        let v = s.fma(v, load_some(s, factor, n), load_some(s, addition, n));
                        writer.put(s, pixel, self.first + c, activate(s, self.shape.act, v), n);
                    }
                    c += n;
                }
            }
        }
    }
}

/// Per channel Σ x, or Σ (x − pivot)², over `pixels` rows, `ld` apart, of as many channels as `sums` has.
#[inline(always)]
fn sum_over<S: Simd>(s: S, x: &[f32], ld: usize, pixels: usize, pivots: Option<&[f32]>, sums: &mut [f32]) {
    let width = sums.len();
    assert!(x.len() >= (pixels - 1) * ld + width && pivots.is_none_or(|p| p.len() == width));
    let mut c = 0;
    while c < width {
        let n = (width - c).min(S::LANES);
        let mut chains = [s.splat(0.0); CHAINS];
        #[allow(clippy::manual_map)] // a closure would not be compiled for the instruction set
        let pivot = match pivots {
            // SAFETY: `c + n ≤ width`.
            Some(pivots) => Some(unsafe { load_some(s, pivots.as_ptr().add(c), n) }),
            None => None,
        };
        let mut pixel = 0;
        while pixel < pixels {
            let many = CHAINS.min(pixels - pixel);
            for j in 0..many {
                // SAFETY: the assertion above.
                let v = unsafe { load_some(s, x.as_ptr().add((pixel + j) * ld + c), n) };
                chains[j] = match pivot {
                    None => s.add(chains[j], v),
                    Some(pivot) => {
                        let v = s.sub(v, pivot);
                        s.fma(v, v, chains[j])
                    }
                };
            }
            pixel += many;
        }
        let total = s.add(s.add(chains[0], chains[1]), s.add(chains[2], chains[3]));
        // SAFETY: `c + n ≤ width`.
        unsafe { store_some(s, sums.as_mut_ptr().add(c), total, n) };
        c += n;
    }
}
