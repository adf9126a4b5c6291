//! UniPC (arXiv:2302.04867, algorithms 1 and 2): a multistep predictor, and a corrector that takes
//! the step once more after the network has been evaluated at its end.

use super::super::levels::dpm::DpmLevels;
use super::super::levels::schedule::Level;
use super::super::table::{Op, Register, Row, Table};
use super::super::{Begin, Evaluation, SamplerError};
use super::dpm::predict;
use cqc_proto::sampler::{FinalSigma, SamplerConfig, SolverType};

const MIXED: Register = Register::Temp(4);
const NEWEST: Register = Register::Temp(5);

pub fn table(config: &SamplerConfig, steps: usize, begin: Begin) -> Result<Table, SamplerError> {
    let DpmLevels { levels, timesteps } = DpmLevels::new(config, steps)?;
    let count = timesteps.len();
    let memory = config.solver_order as usize + 1;
    // the registers of the prediction of evaluation `i`, and of the sample at the start of its step
    let predicted = |i: usize| Register::Kept((i % memory) as u8);
    let start = Register::Kept(memory as u8);
    let corrects = |i: usize| {
        i + 1 < count && !config.disable_corrector.iter().any(|&step| step as usize == i)
    };
    let mut rows = Vec::with_capacity(count);
    for (i, &t) in timesteps.iter().enumerate() {
        let mut row = Row::new(Evaluation::unscaled(t, i).of(levels[i]));
        predict(config, levels[i], predicted(i), &mut row);
        if begin.since(i) > 0 && corrects(i - 1) {
            let order = order_of(config, i - 1, count, begin);
            let step = Step::new(config, &levels, i - 1, order);
            step.take(start, &predicted, Some(predicted(i)), &mut row);
        }
        if corrects(i) {
            row.push(Op::sum(start, &[(Register::X, 1.0)]));
        }
        // a step between two equal levels, which may be the last one, does not move the sample
        if !(i + 1 == count && levels[i] == levels[i + 1]) {
            let order = order_of(config, i, count, begin);
            let step = Step::new(config, &levels, i, order);
            step.take(Register::X, &predicted, None, &mut row);
        }
        rows.push(row);
    }
    Ok(Table { rows, initial_scale: 1.0 })
}

/// The order of the predictor of step `i`, and of the corrector that repeats the step.
fn order_of(config: &SamplerConfig, i: usize, count: usize, begin: Begin) -> usize {
    let left = match config.final_sigmas_type {
        _ if config.lower_order_final => count - i,
        // the last step goes to σ = 0, where λ is infinite
        FinalSigma::Zero if i + 1 == count => 1,
        _ => usize::MAX,
    };
    left.min(begin.since(i) + 1).min(config.solver_order as usize)
}

/// A step with the constants of both rules, in float32 as in diffusers.
struct Step {
    /// Index of the step.
    i: usize,
    order: usize,
    /// Factor of the sample.
    x: f32,
    /// Factor of the newest prediction.
    value: f32,
    /// Factor of the weighted sum of the differences of predictions.
    differences: f32,
    /// (λ of an older evaluation − λ of the start) / the width of the step, for each; the last
    /// entry is 1, which is the end of the step.
    places: Vec<f32>,
    /// The right side of the equations for the weights of the differences.
    moments: Vec<f32>,
}

impl Step {
    fn new(config: &SamplerConfig, levels: &[Level], i: usize, order: usize) -> Self {
        let (from, to) = (levels[i], levels[i + 1]);
        let h = to.lambda() - from.lambda();
        let places = (1..order).map(|back| (levels[i - back].lambda() - from.lambda()) / h);
        let image = config.integrates_image();
        let width = if image { -h } else { h };
        let rise = width.exp_m1();
        let scale = if config.solver_type == SolverType::Bh1 { width } else { rise };
        let (mut phi, mut factorial) = (rise / width - 1.0, 1.0);
        let mut moments = Vec::with_capacity(order);
        for k in 1..=order {
            moments.push(phi * factorial / scale);
            factorial *= (k + 1) as f32;
            phi = phi / width - 1.0 / factorial;
        }
        let (x, of) = match image {
            true => (to.noise / from.noise, to.signal),
            false => (to.signal / from.signal, to.noise),
        };
        let places = places.chain([1.0]).collect();
        Self { i, order, x, value: -(of * rise), differences: -(of * scale), places, moments }
    }

    /// x = the end of the step from `start`. With `end`, the prediction at the end of the step,
    /// this is the corrector.
    fn take(
        &self,
        start: Register,
        predicted: &impl Fn(usize) -> Register,
        end: Option<Register>,
        row: &mut Row,
    ) {
        let newest = predicted(self.i);
        let difference = |n: usize| Register::Temp(n as u8);
        for n in 0..self.order - 1 {
            let older = predicted(self.i - 1 - n);
            let op = Op::sum(difference(n), &[(older, 1.0), (newest, -1.0)]);
            row.push(op.over(self.places[n]));
        }
        let weights = self.weights(end.is_some());
        let mut terms: Vec<(Register, f32)> =
            (0..self.order - 1).map(|n| (difference(n), weights[n])).collect();
        if let Some(end) = end {
            row.push(Op::sum(NEWEST, &[(end, 1.0), (newest, -1.0)]));
            terms.push((NEWEST, weights[self.order - 1]));
        }
        let mut moved = vec![(start, self.x), (newest, self.value)];
        if !terms.is_empty() {
            row.push(Op::sum(MIXED, &terms));
            moved.push((MIXED, self.differences));
        }
        row.push(Op::sum(Register::X, &moved));
    }

    /// The weights of the differences. They make the rule exact for polynomials up to the order;
    /// the lowest order of each rule uses ½ instead.
    fn weights(&self, corrects: bool) -> Vec<f32> {
        let unknowns = if corrects { self.order } else { self.order - 1 };
        let simplest = if corrects { 1 } else { 2 };
        if self.order <= simplest {
            return vec![0.5; unknowns];
        }
        let row = |power: usize| {
            let powers = self.places[..unknowns].iter().map(|r| r.powi(power as i32));
            powers.chain([self.moments[power]]).collect()
        };
        solve((0..unknowns).map(row).collect())
    }
}

/// Solves a linear system, given as rows with the right side last, by elimination with row pivots.
///
/// It rounds as the LAPACK that diffusers calls, with fused multiply-adds and reciprocals of
/// pivots, and gives the same bits for two equations.
fn solve(mut rows: Vec<Vec<f32>>) -> Vec<f32> {
    let n = rows.len();
    for column in 0..n {
        let pivot = (column..n)
            .max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))
            .expect("the range is not empty");
        rows.swap(column, pivot);
        let (above, below) = rows.split_at_mut(column + 1);
        let above = &above[column];
        for row in below {
            let factor = row[column] * above[column].recip();
            row.iter_mut().zip(above).for_each(|(value, above)| {
                *value = (-factor).mul_add(*above, *value);
            });
        }
    }
    let mut solution = vec![0.0; n];
    for i in (0..n).rev() {
        let known = |sum: f32, j: usize| (-rows[i][j]).mul_add(solution[j], sum);
        solution[i] = (i + 1..n).rev().fold(rows[i][n], known) * rows[i][i].recip();
    }
    solution
}

#[cfg(test)]
mod tests {
    use super::solve;

    #[test]
    fn a_system_is_solved_whatever_its_first_pivot() {
        let rows =
            vec![vec![0.0, 2.0, 1.0, 5.0], vec![1.0, 1.0, 1.0, 5.0], vec![4.0, 0.0, 1.0, 7.0]];
        assert_eq!(solve(rows), [1.0, 1.0, 3.0]);
    }
}
