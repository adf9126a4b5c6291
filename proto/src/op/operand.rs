//! Positions of operands that more than one crate counts on, as the operators' docs list them.

/// What an operator works on.
pub const X: usize = 0;
/// Weights of [`Op::Linear`](super::Op::Linear) and [`Op::Conv`](super::Op::Conv).
pub const WEIGHTS: usize = 1;
/// Bias of a product, one number per output.
pub const BIAS: usize = 2;
/// Row per image that a product adds before its activation.
pub const ROW: usize = 3;
/// Row per image that a product multiplies after its activation.
pub const GATE: usize = 4;
/// Residual that a product adds last.
pub const RESIDUAL: usize = 5;
/// Factor per output of a product's sums.
pub const SCALE: usize = 6;

/// Factor per channel of a normalisation.
pub const GAMMA: usize = 1;
/// Summand per channel of a normalisation.
pub const BETA: usize = 2;
/// `scale` and `shift` of [`Op::LayerNorm`](super::Op::LayerNorm), rows per image.
pub const MODULATE: [usize; 2] = [3, 4];

/// Queries, keys and values of [`Op::Attention`](super::Op::Attention).
pub const QKV: [usize; 3] = [0, 1, 2];
/// Mask of [`Op::Attention`](super::Op::Attention).
pub const MASK: usize = 3;

/// Scale and zero point of [`Op::FakeQuant`](super::Op::FakeQuant).
pub const ROUNDING: [usize; 2] = [1, 2];

/// Scale and shift of [`Op::Affine`](super::Op::Affine), a number per channel.
pub const AFFINE_MAP: [usize; 2] = [1, 2];
/// Residual of [`Op::Affine`](super::Op::Affine).
pub const AFFINE_RESIDUAL: usize = 3;
/// `previous` of [`Op::Affine`](super::Op::Affine) and its factor per channel.
pub const AFFINE_PREVIOUS: [usize; 2] = [4, 5];

/// Where an executor puts the scale and the zero point of operands 0, 1 and 2 that are stored as
/// codes: after all operands that the operator has itself. No plan has operands there.
pub const CODES: [[usize; 2]; 3] = [[7, 8], [11, 12], [13, 14]];
/// The same of a result that is rounded to codes.
pub const RESULT_CODES: [usize; 2] = [9, 10];
