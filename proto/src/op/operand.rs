//! The positions of operands that more than one crate uses, as in the documentation of the
//! operators.

/// The main input of an operator.
pub const X: usize = 0;
/// The weights of [`Op::Linear`](super::Op::Linear) and [`Op::Conv`](super::Op::Conv).
pub const WEIGHTS: usize = 1;
/// The bias of a product, one number per output.
pub const BIAS: usize = 2;
/// The row per image that a product adds before its activation.
pub const ROW: usize = 3;
/// The row per image by which a product multiplies after its activation.
pub const GATE: usize = 4;
/// The residual that a product adds last.
pub const RESIDUAL: usize = 5;
/// The factor per output of a product's sums.
pub const SCALE: usize = 6;

/// The factor per channel of a normalisation.
pub const GAMMA: usize = 1;
/// The summand per channel of a normalisation.
pub const BETA: usize = 2;
/// The `scale` and `shift` of [`Op::LayerNorm`](super::Op::LayerNorm), which are rows per image.
pub const MODULATE: [usize; 2] = [3, 4];

/// The queries, keys and values of [`Op::Attention`](super::Op::Attention).
pub const QKV: [usize; 3] = [0, 1, 2];
/// The mask of [`Op::Attention`](super::Op::Attention).
pub const MASK: usize = 3;

/// The scale and zero point of [`Op::FakeQuant`](super::Op::FakeQuant).
pub const ROUNDING: [usize; 2] = [1, 2];

/// The scale and shift of [`Op::Affine`](super::Op::Affine), one number per channel.
pub const AFFINE_MAP: [usize; 2] = [1, 2];
/// The residual of [`Op::Affine`](super::Op::Affine).
pub const AFFINE_RESIDUAL: usize = 3;
/// The `previous` operand of [`Op::Affine`](super::Op::Affine) and its factor per channel.
pub const AFFINE_PREVIOUS: [usize; 2] = [4, 5];

/// The positions at which an executor puts the scale and the zero point of the operands 0, 1 and 2
/// that are stored as codes. They come after all operands of the operator itself, and no plan has
/// operands there.
pub const CODES: [[usize; 2]; 3] = [[7, 8], [11, 12], [13, 14]];
/// The positions of the scale and the zero point of a result that is rounded to codes.
pub const RESULT_CODES: [usize; 2] = [9, 10];
