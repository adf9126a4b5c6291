//! Executes the rows of a [`Table`].

use super::table::{LearnedStd, Limit, Op, Register, Row, Table};

/// The number of elements that go through all operations of a row together. Their registers fit
/// into the first-level cache.
const BLOCK: usize = 512;

/// The values that a trajectory keeps between evaluations, and the buffers that a row needs.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) samples: usize,
    pub(super) len: usize,
    pub(super) next: usize,
    /// The registers [`Register::Kept`], each with the length of all samples.
    kept: Vec<Vec<f32>>,
    /// Unit normal noise with the length of all samples, or empty if no row draws noise.
    pub(super) noise: Vec<f32>,
    /// The registers [`Register::Temp`], each with the length of a block.
    temps: Vec<Vec<f32>>,
    /// The sum under computation, with the length of a block.
    sum: Vec<f32>,
}

impl State {
    /// The state for `samples` samples of `len` elements each.
    pub(super) fn of_table(table: &Table, samples: usize, len: usize) -> Self {
        let noise = if table.is_stochastic() { samples * len } else { 0 };
        // a threshold needs a whole sample at once
        let block = if table.has_thresholds() { len } else { BLOCK.min(len) };
        Self {
            samples,
            len,
            next: 0,
            kept: vec![vec![0.0; samples * len]; table.kept()],
            noise: vec![0.0; noise],
            temps: vec![vec![0.0; block]; table.temps()],
            sum: vec![0.0; block],
        }
    }

    /// Draws noise for an evaluation, one value per element.
    pub(crate) fn draw(&mut self, mut noise: impl FnMut(&mut [f32])) -> &[f32] {
        noise(&mut self.noise);
        &self.noise
    }

    /// Moves the samples `x` by the network's `output`, which has `width` elements per sample: the
    /// prediction and, if it has twice the length of a sample, the variance.
    pub(super) fn execute(&mut self, row: &Row, x: &mut [f32], output: &[f32], width: usize) {
        let (len, block) = (self.len, self.sum.len().max(1));
        for sample in 0..self.samples {
            for first in (0..len).step_by(block) {
                let count = block.min(len - first);
                let mut registers = Registers {
                    x: &mut x[sample * len + first..][..count],
                    out: &output[sample * width + first..][..count],
                    variance: output
                        .get(sample * width + len + first..)
                        .filter(|_| width == 2 * len)
                        .map_or(&[], |rest| &rest[..count]),
                    noise: self.noise.get(sample * len + first..).unwrap_or_default(),
                    kept: &mut self.kept,
                    at: sample * len + first,
                    temps: &mut self.temps,
                    sum: &mut self.sum[..count],
                };
                row.ops.iter().for_each(|op| registers.execute(op));
            }
        }
    }
}

struct Registers<'a> {
    x: &'a mut [f32],
    out: &'a [f32],
    variance: &'a [f32],
    noise: &'a [f32],
    kept: &'a mut [Vec<f32>],
    /// The first element of the block in the kept registers.
    at: usize,
    temps: &'a mut [Vec<f32>],
    sum: &'a mut [f32],
}

impl Registers<'_> {
    fn execute(&mut self, op: &Op) {
        match op {
            Op::Combine { to, terms, factor, divisor, limit } => {
                let count = self.x.len();
                for (i, term) in terms.iter().enumerate() {
                    let from = match term.register {
                        Register::X => &*self.x,
                        Register::Out => self.out,
                        Register::Noise => self.noise,
                        Register::Temp(n) => &self.temps[usize::from(n)],
                        Register::Kept(n) => &self.kept[usize::from(n)][self.at..],
                    };
                    let from = &from[..count];
                    let (f, d) = (term.factor, term.divisor);
                    match (i == 0, f == 1.0, d == 1.0) {
                        (true, true, true) => self.sum.copy_from_slice(from),
                        (true, _, true) => each(self.sum, from, |_, r| f * r),
                        (true, _, false) => each(self.sum, from, |_, r| f * r / d),
                        (false, true, true) => each(self.sum, from, |s, r| s + r),
                        (false, _, true) => each(self.sum, from, |s, r| s + f * r),
                        (false, _, false) => each(self.sum, from, |s, r| s + f * r / d),
                    }
                }
                if *factor != 1.0 {
                    self.sum.iter_mut().for_each(|s| *s *= factor);
                }
                if *divisor != 1.0 {
                    self.sum.iter_mut().for_each(|s| *s /= divisor);
                }
                limit.apply(self.sum);
                let to = match *to {
                    Register::X => &mut *self.x,
                    Register::Temp(n) => &mut self.temps[usize::from(n)][..count],
                    Register::Kept(n) => &mut self.kept[usize::from(n)][self.at..self.at + count],
                    Register::Out | Register::Noise => unreachable!("checked by `Sampler::new`"),
                };
                to.copy_from_slice(self.sum);
            }
            Op::LearnedNoise(std) => {
                let pairs = self.variance.iter().zip(self.noise);
                for (x, (variance, noise)) in self.x.iter_mut().zip(pairs) {
                    *x += std.of(*variance) * noise;
                }
            }
        }
    }
}

fn each(sum: &mut [f32], from: &[f32], f: impl Fn(f32, f32) -> f32) {
    sum.iter_mut().zip(from).for_each(|(sum, &from)| *sum = f(*sum, from));
}

impl LearnedStd {
    fn of(self, variance: f32) -> f32 {
        match self {
            LearnedStd::Variance => variance.sqrt(),
            LearnedStd::Range { low, high } => {
                let share = (variance + 1.0) / 2.0;
                (0.5 * (share * high + (1.0 - share) * low)).exp()
            }
        }
    }
}

impl Limit {
    fn apply(self, values: &mut [f32]) {
        match self {
            Limit::None => {}
            Limit::Clip(limit) => values.iter_mut().for_each(|v| *v = v.clamp(-limit, limit)),
            Limit::Threshold { ratio, max } => {
                let s = quantile_of_magnitudes(values, ratio).clamp(1.0, max);
                values.iter_mut().for_each(|v| *v = v.clamp(-s, s) / s);
            }
        }
    }
}

/// `torch.quantile` of the magnitudes, interpolated linearly between the two nearest values.
fn quantile_of_magnitudes(values: &[f32], ratio: f64) -> f32 {
    // this is the only allocation in the loop; few models use thresholding
    let mut sorted: Vec<f32> = values.iter().map(|v| v.abs()).collect();
    let rank = ratio * (sorted.len() - 1) as f64;
    let low = rank.floor() as usize;
    let (_, &mut at, above) = sorted.select_nth_unstable_by(low, f32::total_cmp);
    let next = above.iter().copied().min_by(f32::total_cmp).unwrap_or(at);
    at + (next - at) * (rank - low as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_scales_what_it_clips() {
        let mut values = [0.5, -4.0, 2.0, 1.0, -3.0];
        assert_eq!(quantile_of_magnitudes(&values, 0.5), 2.0);
        assert_eq!(quantile_of_magnitudes(&values, 0.625), 2.5);
        Limit::Threshold { ratio: 0.5, max: 10.0 }.apply(&mut values);
        assert_eq!(values, [0.25, -1.0, 1.0, 0.5, -1.0]);
        let mut small = [0.5, -0.25];
        Limit::Threshold { ratio: 1.0, max: 10.0 }.apply(&mut small);
        assert_eq!(small, [0.5, -0.25]);
    }
}
