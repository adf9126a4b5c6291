//! A sampler as a table: per evaluation of the network a row of linear combinations.
//!
//! Nearly every solver is linear in the sample, in what it keeps of past evaluations and in noise;
//! what differs are the coefficients. A file in `solvers` makes them; [`super::State`] and a device
//! execute them, in the same order and with every operation rounded by itself, so that a trajectory
//! has the same bits wherever it is moved.

use super::Evaluation;

/// Most terms of an [`Op`].
pub const MAX_TERMS: usize = 8;

/// Most registers of each of the two kinds, [`Register::Temp`] and [`Register::Kept`].
pub const MAX_REGISTERS: usize = 12;

/// Something as long as the sample that an [`Op`] reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// The sample.
    X,
    /// The network's output (its first half, if it also predicts a variance). Read only.
    Out,
    /// Unit normal noise that was drawn for this evaluation. Read only.
    Noise,
    /// Lives for one row.
    Temp(u8),
    /// Lives for the whole trajectory.
    Kept(u8),
}

/// `factor` · `register` / `divisor`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // named in the formula
pub struct Term {
    pub register: Register,
    pub factor: f32,
    pub divisor: f32,
}

/// What is done to a combination before it is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// Nothing.
    None,
    /// Clipped to ± this.
    Clip(f32),
    /// Dynamic thresholding: with s the `ratio`-quantile of the magnitudes of a sample, at least 1
    /// and at most `max`, clipped to ± s and divided by s.
    Threshold {
        /// 0 to 1.
        ratio: f64,
        /// At least 1.
        max: f32,
    },
}

/// Standard deviation of noise that the network's second half, the variance, decides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LearnedStd {
    /// The root of it.
    Variance,
    /// exp(½ · log), log between two logarithms of variances at a share of (second half + 1) / 2.
    Range {
        /// The logarithm at −1.
        low: f32,
        /// The logarithm at 1.
        high: f32,
    },
}

/// One operation of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `to` = limit((Σ terms) · `factor` / `divisor`), summed in order.
    Combine {
        /// Where it goes.
        to: Register,
        /// At least one, at most [`MAX_TERMS`].
        terms: Vec<Term>,
        /// After the sum.
        factor: f32,
        /// After the factor.
        divisor: f32,
        /// After the divisor.
        limit: Limit,
    },
    /// x = x + std · noise.
    LearnedNoise(LearnedStd),
}

impl Op {
    /// `to` = Σ factor · register.
    pub fn sum(to: Register, terms: &[(Register, f32)]) -> Op {
        let term = |&(register, factor)| Term { register, factor, divisor: 1.0 };
        let terms = terms.iter().map(term).collect();
        Op::Combine { to, terms, factor: 1.0, divisor: 1.0, limit: Limit::None }
    }

    /// One more term: + `factor` · `register` / `divisor`.
    pub fn plus_quotient(mut self, register: Register, factor: f32, divisor: f32) -> Op {
        if let Op::Combine { terms, .. } = &mut self {
            terms.push(Term { register, factor, divisor });
        }
        self
    }

    /// More terms: + Σ factor · register.
    pub fn plus(self, terms: &[(Register, f32)]) -> Op {
        let add = |op: Op, &(register, factor)| op.plus_quotient(register, factor, 1.0);
        terms.iter().fold(self, add)
    }

    /// The whole sum times `by`.
    pub fn times(mut self, by: f32) -> Op {
        if let Op::Combine { factor, .. } = &mut self {
            *factor = by;
        }
        self
    }

    /// The whole sum over `by`.
    pub fn over(mut self, by: f32) -> Op {
        if let Op::Combine { divisor, .. } = &mut self {
            *divisor = by;
        }
        self
    }

    /// The whole sum, limited.
    pub fn limited(mut self, by: Limit) -> Op {
        if let Op::Combine { limit, .. } = &mut self {
            *limit = by;
        }
        self
    }

    /// Every constant, to check that all are finite.
    fn numbers(&self) -> Vec<f32> {
        match self {
            Op::Combine { terms, factor, divisor, .. } => {
                let each = terms.iter().flat_map(|t| [t.factor, t.divisor, t.divisor.recip()]);
                each.chain([*factor, *divisor, divisor.recip()]).collect()
            }
            Op::LearnedNoise(LearnedStd::Range { low, high }) => vec![*low, *high],
            Op::LearnedNoise(LearnedStd::Variance) => vec![],
        }
    }
}

/// What happens at one evaluation of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What the network is given.
    pub evaluation: Evaluation,
    /// How the sample and what is kept move, in order.
    pub ops: Vec<Op>,
}

impl Row {
    /// A row without operations.
    pub fn new(evaluation: Evaluation) -> Row {
        Row { evaluation, ops: Vec::new() }
    }

    /// Adds an operation.
    pub fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// Whether noise is drawn for it.
    pub fn draws_noise(&self) -> bool {
        self.ops.iter().any(|op| match op {
            Op::Combine { terms, .. } => terms.iter().any(|t| t.register == Register::Noise),
            Op::LearnedNoise(_) => true,
        })
    }

    /// Whether all constants are finite, and no divisor is 0.
    pub(super) fn is_finite(&self) -> bool {
        let numbers = self.ops.iter().flat_map(Op::numbers);
        numbers.chain([self.evaluation.input_scale]).all(f32::is_finite)
            && self.evaluation.timestep.is_finite()
    }
}

/// A whole trajectory.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// One per evaluation of the network.
    pub rows: Vec<Row>,
    /// Standard deviation of the sample before the first row.
    pub initial_scale: f32,
}

impl Table {
    /// Registers of a kind that are used: the highest number plus one.
    fn count(&self, number: fn(Register) -> Option<u8>) -> usize {
        let ops = self.rows.iter().flat_map(|row| &row.ops);
        let registers = ops.flat_map(|op| match op {
            Op::Combine { to, terms, .. } => {
                let mut all: Vec<Register> = terms.iter().map(|t| t.register).collect();
                all.push(*to);
                all
            }
            Op::LearnedNoise(_) => vec![],
        });
        registers.filter_map(number).max().map_or(0, |n| usize::from(n) + 1)
    }

    /// Arrays as long as the sample that live for the trajectory.
    pub fn kept(&self) -> usize {
        self.count(|r| if let Register::Kept(n) = r { Some(n) } else { None })
    }

    /// Arrays that live for a row.
    pub fn temps(&self) -> usize {
        self.count(|r| if let Register::Temp(n) = r { Some(n) } else { None })
    }

    /// Whether some row draws noise.
    pub fn is_stochastic(&self) -> bool {
        self.rows.iter().any(Row::draws_noise)
    }

    /// Whether some row looks at a whole sample at once.
    pub fn has_thresholds(&self) -> bool {
        self.rows
            .iter()
            .flat_map(|row| &row.ops)
            .any(|op| matches!(op, Op::Combine { limit: Limit::Threshold { .. }, .. }))
    }

    /// The same without limits and learned noise: what is left is linear.
    pub(super) fn linear(&self) -> Table {
        let mut table = self.clone();
        for row in &mut table.rows {
            row.ops.retain(|op| !matches!(op, Op::LearnedNoise(_)));
            for op in &mut row.ops {
                if let Op::Combine { limit, .. } = op {
                    *limit = Limit::None;
                }
            }
        }
        table
    }
}
