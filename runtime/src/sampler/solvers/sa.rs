//! SA-Solver (arXiv:2309.05019, algorithm 1): stochastic Adams methods with a predictor, and a
//! corrector that takes the step once more, with the same noise, after the network has been
//! evaluated at its end.
//!
//! The share τ of noise is 1 for time steps from 200 to 800 and otherwise 0. Noise is drawn in
//! every step, even if τ is 0, because diffusers draws it.

use super::super::levels::dpm::DpmLevels;
use super::super::levels::schedule::{Level, alphas_cumprod, in_training};
use super::super::table::{Op, Register, Row, Table};
use super::super::{Begin, Evaluation, SamplerError};
use super::dpm::predict;
use cqc_proto::sampler::SamplerConfig;

const GRADIENT: Register = Register::Temp(0);

pub fn table(config: &SamplerConfig, steps: usize, begin: Begin) -> Result<Table, SamplerError> {
    let DpmLevels { levels, timesteps } = DpmLevels::new(config, steps)?;
    let (count, alphas) = (timesteps.len(), alphas_cumprod(config));
    let memory = config.predictor_order.max(config.corrector_order - 1) as usize + 1;
    // the registers of the prediction of evaluation `i`, of the sample at the start of the step,
    // and of the noise of the step
    let predicted = |i: usize| Register::Kept((i % memory) as u8);
    let [start, noise] = [memory, memory + 1].map(|n| Register::Kept(n as u8));
    let tau = |i: usize| if (200.0..=800.0).contains(&timesteps[i]) { 1.0 } else { 0.0 };
    let left = |i: usize| if config.lower_order_final { count - i } else { usize::MAX - 1 };
    let mut rows = Vec::with_capacity(count);
    for (i, &t) in timesteps.iter().enumerate() {
        // diffusers adds noise to images at the training levels, even if the steps visit other
        // levels
        let level = match config.sigma_schedule.is_flow() {
            true => levels[i],
            false => Level::of_alpha(alphas[in_training(t, config.num_train_timesteps)?]),
        };
        let mut row = Row::new(Evaluation::unscaled(t, i).of(level));
        predict(config, levels[i], predicted(i), &mut row);
        if begin.since(i) > 0 {
            let order =
                (left(i - 1) + 1).min(begin.since(i) + 1).min(config.corrector_order as usize);
            let step = Step::new(config, &levels, i - 1, tau(i - 1));
            step.take(start, noise, i, order, &predicted, &mut row);
        }
        if i + 1 < count {
            row.push(Op::sum(start, &[(Register::X, 1.0)]));
            row.push(Op::sum(noise, &[(Register::Noise, 1.0)]));
        }
        let order = left(i).min(begin.since(i) + 1).min(config.predictor_order as usize);
        let step = Step::new(config, &levels, i, tau(i));
        step.take(Register::X, Register::Noise, i, order, &predicted, &mut row);
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: 1.0 })
}

/// Step `i`, from level `i` to level `i + 1`.
struct Step<'a> {
    levels: &'a [Level],
    i: usize,
    /// 1 + τ².
    speed: f32,
    image: bool,
    width: f32,
    tau: f32,
}

impl<'a> Step<'a> {
    fn new(config: &SamplerConfig, levels: &'a [Level], i: usize, tau: f32) -> Self {
        let width = levels[i + 1].lambda() - levels[i].lambda();
        let image = config.integrates_image();
        Self { levels, i, speed: 1.0 + tau * tau, image, width, tau }
    }

    /// x = the end of the step from `start`, with the predictions of `order` evaluations. `newest`
    /// is the last of these: the evaluation at the step's start (predictor) or end (corrector).
    fn take(
        &self,
        start: Register,
        noise: Register,
        newest: usize,
        order: usize,
        predicted: &impl Fn(usize) -> Register,
        row: &mut Row,
    ) {
        let (from, to, h) = (self.levels[self.i], self.levels[self.i + 1], self.width);
        let square = self.tau * self.tau;
        let of = match self.image {
            true => self.speed * to.noise * (-square * to.lambda()).exp(),
            false => -self.speed * to.signal,
        };
        let weights = self.weights(newest, order);
        let terms: Vec<(Register, f32)> =
            (0..order).map(|back| (predicted(newest - back), of * weights[back])).collect();
        row.push(Op::sum(GRADIENT, &terms));
        let (x, std) = match self.image {
            true => (
                (-square * h).exp() * (to.noise / from.noise),
                to.noise * (1.0 - (-2.0 * square * h).exp()).sqrt(),
            ),
            false => {
                (to.signal / from.signal, self.tau * to.noise * ((2.0 * h).exp() - 1.0).sqrt())
            }
        };
        row.push(Op::sum(Register::X, &[(start, x), (GRADIENT, 1.0), (noise, std)]));
    }

    /// The weight of each prediction, the newest first: the integral of its Lagrange polynomial in
    /// λ times the exponential.
    fn weights(&self, newest: usize, order: usize) -> Vec<f32> {
        let places: Vec<f32> = (0..order).map(|back| self.levels[newest - back].lambda()).collect();
        let moments: Vec<f32> = (0..order).map(|power| self.moment(power)).collect();
        let mut weights: Vec<f32> = (0..order)
            .map(|one| {
                let polynomial = lagrange(one, &places);
                (0..order).map(|j| polynomial[j] * moments[order - 1 - j]).sum()
            })
            .collect();
        if self.image && order == 2 {
            // a term of third order in the width, as in UniPC; the paper's code uses it for few
            // steps
            let (speed, h) = (self.speed, self.width);
            let rest = h * speed - 1.0 + (speed * -h).exp();
            let grown = (speed * self.levels[self.i + 1].lambda()).exp();
            let more = match newest == self.i {
                true => {
                    let distance = places[0] - places[1];
                    grown * (h * h / 2.0 - rest / (speed * speed)) / distance
                }
                false => grown * (h / 2.0 - rest / (speed * speed * h)),
            };
            weights[0] += more;
            weights[1] -= more;
        }
        weights
    }

    /// The integral over the step of λ^`power` times exp((1 + τ²)λ) (image) or exp(−λ) (noise).
    fn moment(&self, power: usize) -> f32 {
        let (start, end) = (self.levels[self.i].lambda(), self.levels[self.i + 1].lambda());
        if self.image {
            let (start, end) = (self.speed * start, self.speed * end);
            let fall = (-(end - start)).exp();
            let difference = tail(power, end, -1.0) - tail(power, start, -1.0) * fall;
            end.exp() * difference / self.speed.powi(power as i32 + 1)
        } else {
            let rise = (end - start).exp();
            (-end).exp() * (tail(power, start, 1.0) * rise - tail(power, end, 1.0))
        }
    }
}

/// The polynomial factor in the antiderivative of x^`power`·exp(∓x): the sum of all derivatives of
/// x^`power`, each multiplied by `sign` to the power of its order.
fn tail(power: usize, x: f32, sign: f32) -> f32 {
    match power {
        0 => 1.0,
        1 => x + sign,
        2 => x * x + sign * 2.0 * x + 2.0,
        _ => x * x * x + sign * 3.0 * (x * x) + 6.0 * x + sign * 6.0,
    }
}

/// Coefficients, the highest power first, of the polynomial that is 1 at node `one` and 0 at the
/// other nodes. There are at most four nodes.
fn lagrange(one: usize, places: &[f32]) -> Vec<f32> {
    let others: Vec<f32> =
        places.iter().enumerate().filter(|(i, _)| *i != one).map(|(_, &place)| place).collect();
    let divisor: f32 = others.iter().map(|other| places[one] - other).product();
    let numerators = match *others {
        [] => vec![1.0],
        [a] => vec![1.0, -a],
        [a, b] => vec![1.0, -a - b, a * b],
        [a, b, c] => vec![1.0, -a - b - c, a * b + a * c + b * c, -a * b * c],
        _ => unreachable!("orders are at most 4"),
    };
    numerators.into_iter().map(|numerator| numerator / divisor).collect()
}
