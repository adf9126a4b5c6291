//! Sampler tables: one row of linear combinations per evaluation of the network.
//!
//! Nearly every solver is linear in the sample, in the values that it keeps of past evaluations,
//! and in noise. Solvers differ only in the coefficients, which the files in `solvers` compute.
//! [`super::State`] or a device executes the rows. Both execute the operations in the same order
//! and round every operation by itself, so a trajectory has the same bits on both.

use super::Evaluation;

/// The maximum number of terms of an [`Op`].
pub const MAX_TERMS: usize = 8;

/// The maximum number of registers of each of the kinds [`Register::Temp`] and [`Register::Kept`].
pub const MAX_REGISTERS: usize = 12;

/// An array of the sample's length that an [`Op`] reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// The sample, which the rows move.
    X,
    /// The network's output, without the variance if it predicts one. It is read only.
    Out,
    /// Unit normal noise that was drawn for this evaluation. It is read only.
    Noise,
    /// A register that lives for one row.
    Temp(u8),
    /// A register that lives for the whole trajectory.
    Kept(u8),
}

/// One term of a sum: `factor` · `register` / `divisor`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // named in the formula
pub struct Term {
    pub register: Register,
    pub factor: f32,
    pub divisor: f32,
}

/// The limit that is applied to a combination before it is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// The combination is stored as it is.
    None,
    /// Clips to the range from −x to x, where x is this number.
    Clip(f32),
    /// Dynamic thresholding: clips to ± s and divides by s, where s is the `ratio`-quantile of the
    /// magnitudes of one sample, but at least 1 and at most `max`.
    Threshold {
        /// The quantile, from 0 to 1.
        ratio: f64,
        /// The largest threshold, at least 1.
        max: f32,
    },
}

/// The standard deviation of noise that is computed from the variance in the network's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LearnedStd {
    /// The square root of the variance.
    Variance,
    /// exp(½ · log), where log lies between two logarithms of variances, at the share (v + 1) / 2
    /// for an output of v.
    Range {
        /// The logarithm for an output of −1.
        low: f32,
        /// The logarithm for an output of 1.
        high: f32,
    },
}

/// One operation of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `to` = limit((Σ terms) · `factor` / `divisor`), summed in order.
    Combine {
        /// The register that is written.
        to: Register,
        /// The terms: at least one, at most [`MAX_TERMS`].
        terms: Vec<Term>,
        /// The factor of the whole sum.
        factor: f32,
        /// The divisor, which is applied after the factor.
        divisor: f32,
        /// The limit, which is applied last.
        limit: Limit,
    },
    /// Adds noise to the sample: x = x + std · noise.
    LearnedNoise(LearnedStd),
}

impl Op {
    /// A sum: `to` = Σ factor · register.
    pub fn sum(to: Register, terms: &[(Register, f32)]) -> Op {
        let term = |&(register, factor)| Term { register, factor, divisor: 1.0 };
        let terms = terms.iter().map(term).collect();
        Op::Combine { to, terms, factor: 1.0, divisor: 1.0, limit: Limit::None }
    }

    /// Adds a term to the sum: `factor` · `register` / `divisor`.
    pub fn plus_quotient(mut self, register: Register, factor: f32, divisor: f32) -> Op {
        if let Op::Combine { terms, .. } = &mut self {
            terms.push(Term { register, factor, divisor });
        }
        self
    }

    /// Adds terms to the sum: Σ factor · register.
    pub fn plus(self, terms: &[(Register, f32)]) -> Op {
        let add = |op: Op, &(register, factor)| op.plus_quotient(register, factor, 1.0);
        terms.iter().fold(self, add)
    }

    /// Sets the factor of the whole sum.
    pub fn times(mut self, by: f32) -> Op {
        if let Op::Combine { factor, .. } = &mut self {
            *factor = by;
        }
        self
    }

    /// Sets the divisor of the whole sum.
    pub fn over(mut self, by: f32) -> Op {
        if let Op::Combine { divisor, .. } = &mut self {
            *divisor = by;
        }
        self
    }

    /// Sets the limit of the whole sum.
    pub fn limited(mut self, by: Limit) -> Op {
        if let Op::Combine { limit, .. } = &mut self {
            *limit = by;
        }
        self
    }

    /// All constants of the operation and the reciprocals of its divisors.
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

/// The row of one evaluation of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The evaluation, which determines the network's input.
    pub evaluation: Evaluation,
    /// The operations that move the sample and update the registers, in order.
    pub ops: Vec<Op>,
}

impl Row {
    /// A row without operations.
    pub fn new(evaluation: Evaluation) -> Row {
        Row { evaluation, ops: Vec::new() }
    }

    /// Appends an operation to the row.
    pub fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// Whether the row reads noise.
    pub fn draws_noise(&self) -> bool {
        self.ops.iter().any(|op| match op {
            Op::Combine { terms, .. } => terms.iter().any(|t| t.register == Register::Noise),
            Op::LearnedNoise(_) => true,
        })
    }

    /// Whether all constants are finite and no divisor is 0.
    pub(super) fn is_finite(&self) -> bool {
        let numbers = self.ops.iter().flat_map(Op::numbers);
        numbers.chain([self.evaluation.input_scale]).all(f32::is_finite)
            && self.evaluation.timestep.is_finite()
    }
}

/// A sampler written out, as one row per evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The rows, one per evaluation of the network.
    pub rows: Vec<Row>,
    /// Standard deviation of the sample before the first row.
    pub initial_scale: f32,
}

impl Table {
    /// The number of registers of a kind: the highest used number plus one.
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

    /// The number of registers of the kind [`Register::Kept`].
    pub fn kept(&self) -> usize {
        self.count(|r| if let Register::Kept(n) = r { Some(n) } else { None })
    }

    /// The number of registers of the kind [`Register::Temp`].
    pub fn temps(&self) -> usize {
        self.count(|r| if let Register::Temp(n) = r { Some(n) } else { None })
    }

    /// Whether any row draws noise.
    pub fn is_stochastic(&self) -> bool {
        self.rows.iter().any(Row::draws_noise)
    }

    /// Whether any row uses dynamic thresholding, which reads a whole sample at once.
    pub fn has_thresholds(&self) -> bool {
        self.rows
            .iter()
            .flat_map(|row| &row.ops)
            .any(|op| matches!(op, Op::Combine { limit: Limit::Threshold { .. }, .. }))
    }

    /// The table without limits and learned noise, which is linear.
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
