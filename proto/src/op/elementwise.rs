//! Operators that work element by element.

use super::*;

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // plain mathematical functions; those with parameters say what they compute
pub enum UnaryKind {
    Neg,
    Abs,
    Sign,
    Exp,
    Log,
    Sqrt,
    Reciprocal,
    Floor,
    Ceil,
    /// Rounds half to even.
    Round,
    Sin,
    Cos,
    Tan,
    Asin,
    Acos,
    Atan,
    Sinh,
    Cosh,
    Asinh,
    Acosh,
    Atanh,
    Tanh,
    Sigmoid,
    Erf,
    Relu,
    Softplus,
    Softsign,
    /// `x · sigmoid(x)`.
    Silu,
    /// `x/2 · (1 + erf(x/√2))`.
    GeluErf,
    /// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`.
    GeluTanh,
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    Mish,
    /// `x · max(0, min(1, x/6 + 1/2))`.
    HardSwish,
    /// The logical not of bool.
    Not,
    /// The bitwise not of integers.
    BitwiseNot,
    /// The result is bool.
    IsNan,
    /// The result is bool.
    IsInf {
        negative: bool,
        positive: bool,
    },
    /// `x < 0 ? alpha x : x`.
    LeakyRelu {
        alpha: f32,
    },
    /// `x < 0 ? alpha (exp(x) - 1) : x`.
    Elu {
        alpha: f32,
    },
    /// `max(0, x) + min(0, alpha (exp(x / alpha) - 1))`.
    Celu {
        alpha: f32,
    },
    /// `gamma · elu(x; alpha)`.
    Selu {
        alpha: f32,
        gamma: f32,
    },
    /// `max(0, min(1, alpha x + beta))`.
    HardSigmoid {
        alpha: f32,
        beta: f32,
    },
    /// `x > alpha ? x : 0`.
    ThresholdedRelu {
        alpha: f32,
    },
    /// `x < -lambd ? x + bias : x > lambd ? x - bias : 0`.
    Shrink {
        bias: f32,
        lambd: f32,
    },
    /// `x · sigmoid(alpha x)`.
    Swish {
        alpha: f32,
    },
}

impl UnaryKind {
    /// The names in text form.
    pub const NAMES: &[&str] = &[
        "neg",
        "abs",
        "sign",
        "exp",
        "log",
        "sqrt",
        "reciprocal",
        "floor",
        "ceil",
        "round",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "asinh",
        "acosh",
        "atanh",
        "tanh",
        "sigmoid",
        "erf",
        "relu",
        "softplus",
        "softsign",
        "silu",
        "gelu_erf",
        "gelu_tanh",
        "quick_gelu",
        "mish",
        "hard_swish",
        "not",
        "bitwise_not",
        "is_nan",
        "is_inf",
        "leaky_relu",
        "elu",
        "celu",
        "selu",
        "hard_sigmoid",
        "thresholded_relu",
        "shrink",
        "swish",
    ];
}

/// A function of two elements of the same type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum BinaryKind {
    /// Integers wrap around, as in `Sub`, `Mul` and `Pow`.
    Add,
    Sub,
    Mul,
    /// Integers are truncated toward zero. Division of an integer by zero is an error of the
    /// evaluation, as in `Mod` and `Fmod`.
    Div,
    /// The exponent may have another number type. An integer to a negative integer power is 1/a
    /// truncated, and 0 for a = 0.
    Pow,
    /// The remainder with the sign of the divisor, as in Python.
    Mod,
    /// The remainder with the sign of the dividend, as C's `fmod`.
    Fmod,
    /// The result is NaN if either element is NaN, as in `Max`.
    Min,
    Max,
    And,
    Or,
    Xor,
    BitwiseAnd,
    BitwiseOr,
    BitwiseXor,
    /// A shift by the width of the type or more gives 0.
    ShiftLeft,
    /// Fills with the sign. A shift by the width of the type or more leaves only the sign.
    ShiftRight,
    /// The result is bool, as in the other comparisons.
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// `a < 0 ? a · b : a`.
    Prelu,
}

impl BinaryKind {
    /// The names in text form.
    pub const NAMES: &[&str] = &[
        "add",
        "sub",
        "mul",
        "div",
        "pow",
        "mod",
        "fmod",
        "min",
        "max",
        "and",
        "or",
        "xor",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "shift_left",
        "shift_right",
        "equal",
        "less",
        "less_or_equal",
        "greater",
        "greater_or_equal",
        "prelu",
    ];

    /// Whether the result is bool for all types of inputs.
    pub fn is_comparison(self) -> bool {
        use BinaryKind::*;
        matches!(self, Equal | Less | LessOrEqual | Greater | GreaterOrEqual)
    }
}

pub(super) fn infer(op: &Op, inputs: &InputTypes) -> Inferred {
    match op {
        Op::Unary { kind } => unary(*kind, single(inputs)?),
        Op::Binary { kind } => {
            at_most(inputs, 2)?;
            binary(*kind, required(inputs, 0, "a")?, required(inputs, 1, "b")?)
        }
        Op::Where => {
            at_most(inputs, 3)?;
            let (c, a, b) = (
                required(inputs, 0, "condition")?,
                required(inputs, 1, "a")?,
                required(inputs, 2, "b")?,
            );
            check(c.dtype == DType::Bool, || format!("the condition is {}, not bool", c.dtype))?;
            check(a.dtype == b.dtype, || format!("a is {} and b is {}", a.dtype, b.dtype))?;
            Ok(vec![ValueType::new(a.dtype, broadcast(&c.shape, &broadcast(&a.shape, &b.shape)?)?)])
        }
        Op::Cast { to } => Ok(vec![ValueType::new(*to, single(inputs)?.shape.clone())]),
        _ => unreachable!("dispatched by Op::infer"),
    }
}

fn unary(kind: UnaryKind, x: &ValueType) -> Inferred {
    use UnaryKind::*;
    let accepts = match kind {
        Not => x.dtype == DType::Bool,
        BitwiseNot => x.dtype.is_integer(),
        Neg | Abs | Sign | Relu | Floor | Ceil | Round => x.dtype != DType::Bool,
        _ => x.dtype.is_float() || (x.dtype.is_integer() && matches!(kind, Shrink { .. })),
    };
    check(accepts, || format!("does not take {}", x.dtype))?;
    let dtype = if matches!(kind, IsNan | IsInf { .. }) { DType::Bool } else { x.dtype };
    Ok(vec![ValueType::new(dtype, x.shape.clone())])
}

fn binary(kind: BinaryKind, a: &ValueType, b: &ValueType) -> Inferred {
    use BinaryKind::*;
    check(a.dtype == b.dtype || kind == Pow, || format!("a is {} and b is {}", a.dtype, b.dtype))?;
    let accepts = match kind {
        And | Or | Xor => a.dtype == DType::Bool,
        Equal => true,
        BitwiseAnd | BitwiseOr | BitwiseXor | ShiftLeft | ShiftRight => a.dtype.is_integer(),
        _ => a.dtype != DType::Bool,
    };
    check(accepts, || format!("does not take {}", a.dtype))?;
    check(kind != Pow || b.dtype != DType::Bool, || "the exponent is bool".into())?;
    let dtype = if kind.is_comparison() { DType::Bool } else { a.dtype };
    Ok(vec![ValueType::new(dtype, broadcast(&a.shape, &b.shape)?)])
}
