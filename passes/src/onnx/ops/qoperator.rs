//! Operators on codes of ONNX Runtime, domain `com.microsoft`. Each becomes the float operator
//! between the dequantization of its operands and the rounding of its result.

use super::quant::{Granularity, by_its_range, rounded, to_float};
use super::*;
use cqc_proto::op::{BinaryKind, UnaryKind};
use cqc_proto::{DType, Op};

pub(super) const TABLE: Table = &[
    ("QuantizeLinear", |cx, c| standard(cx, c, "QuantizeLinear")),
    ("DequantizeLinear", |cx, c| standard(cx, c, "DequantizeLinear")),
    ("QLinearAdd", |cx, c| pairwise(cx, c, "QLinearAdd", BinaryKind::Add)),
    ("QLinearMul", |cx, c| pairwise(cx, c, "QLinearMul", BinaryKind::Mul)),
    ("QLinearSigmoid", |cx, c| {
        of_one(cx, c, "QLinearSigmoid", |cx, x| cx.unary(UnaryKind::Sigmoid, x))
    }),
    ("QLinearLeakyRelu", |cx, c| {
        let alpha = c.float("alpha", 0.01)?;
        of_one(cx, c, "QLinearLeakyRelu", |cx, x| cx.unary(UnaryKind::LeakyRelu { alpha }, x))
    }),
    ("QLinearSoftmax", |cx, c| {
        let opset = c.int("opset", 13)?;
        of_one(cx, c, "QLinearSoftmax", |cx, x| as_standard(cx, c, "Softmax", opset, x))
    }),
    ("QLinearReduceMean", |cx, c| {
        // the axes are an attribute, as before version 18
        of_one(cx, c, "QLinearReduceMean", |cx, x| as_standard(cx, c, "ReduceMean", 13, x))
    }),
    ("QLinearAveragePool", |cx, c| {
        of_one(cx, c, "QLinearAveragePool", |cx, x| pool(cx, c, "AveragePool", x))
    }),
    ("QLinearGlobalAveragePool", |cx, c| {
        of_one(cx, c, "QLinearGlobalAveragePool", |cx, x| pool(cx, c, "GlobalAveragePool", x))
    }),
    ("QLinearConcat", concat),
    ("QLinearWhere", select),
    ("QGemm", gemm),
    ("MatMulIntegerToFloat", matmul_to_float),
    ("DynamicQuantizeMatMul", dynamic_matmul),
];

/// Operators that ONNX Runtime had before the standard did, or that it has for more types.
fn standard(cx: &mut Cx, c: &Call, op: &str) -> Done {
    match find("ai.onnx", op) {
        Some(handler) => handler(cx, c),
        None => unsupported(missing("ai.onnx", op)),
    }
}

/// Applies the standard operator of this version, with the attributes of the node, to `x`.
fn as_standard(cx: &mut Cx, c: &Call, op: &str, opset: i64, x: &Item) -> Result<Item, Refusal> {
    let (inputs, attributes) = (vec![Some(x.clone())], c.attributes.clone());
    let call = Call { opset, inputs, outputs: &c.outputs[..c.outputs.len().min(1)], attributes };
    Ok(standard(cx, &call, op)?.swap_remove(0))
}

/// Codes as f32, with one scale.
fn float(cx: &mut Cx, x: &Item, scale: &Item, zero: Option<&Item>) -> Result<Item, Refusal> {
    let scale = cx.cast(scale, DType::F32)?;
    to_float(cx, x, &scale, zero, Granularity::TENSOR, DType::F32)
}

/// Operand `i`, followed by its scale and zero point.
fn operand(cx: &mut Cx, c: &Call, i: usize) -> Result<Item, Refusal> {
    let (x, scale) = (c.input(i, "codes")?, c.input(i + 1, "scale")?);
    float(cx, x, scale, c.optional(i + 2))
}

/// The result as codes of the operands' type. Its scale and zero point are operands `i` and `i +
/// 1`.
fn result(cx: &mut Cx, c: &Call, y: &Item, i: usize, to: DType) -> Done {
    let (scale, zero) = (c.input(i, "scale")?, c.optional(i + 1));
    Ok(vec![rounded(cx, y, scale, zero, Granularity::TENSOR, to)?])
}

fn of_one(
    cx: &mut Cx,
    c: &Call,
    name: &str,
    f: impl Fn(&mut Cx, &Item) -> Result<Item, Refusal>,
) -> Done {
    cx.quantized.operator(name);
    let to = cx.ty(c.input(0, "X")?)?.dtype;
    let x = operand(cx, c, 0)?;
    let y = f(cx, &x)?;
    result(cx, c, &y, 3, to)
}

fn pairwise(cx: &mut Cx, c: &Call, name: &str, kind: BinaryKind) -> Done {
    cx.quantized.operator(name);
    let to = cx.ty(c.input(0, "A")?)?.dtype;
    let (a, b) = (operand(cx, c, 0)?, operand(cx, c, 3)?);
    let y = cx.binary(kind, &a, &b)?;
    result(cx, c, &y, 6, to)
}

/// Pools with channels first, or last with `channels_last`.
fn pool(cx: &mut Cx, c: &Call, op: &str, x: &Item) -> Result<Item, Refusal> {
    let rank = cx.ty(x)?.rank();
    if !c.flag("channels_last", false)? || rank < 3 {
        return as_standard(cx, c, op, 18, x);
    }
    let to_front: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    let to_back: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    let x = cx.transpose(x, to_front)?;
    let y = as_standard(cx, c, op, 18, &x)?;
    cx.transpose(&y, to_back)
}

/// The operands are scale and zero point of the result, and then codes, scale and zero point of
/// each part.
fn concat(cx: &mut Cx, c: &Call) -> Done {
    cx.quantized.operator("QLinearConcat");
    if c.inputs.len() < 5 || !(c.inputs.len() - 2).is_multiple_of(3) {
        return malformed(format!("it has {} operands", c.inputs.len()));
    }
    let to = cx.ty(c.input(2, "codes")?)?.dtype;
    let mut parts = Vec::new();
    for i in (2..c.inputs.len()).step_by(3) {
        parts.push(operand(cx, c, i)?);
    }
    let axis = axis(c.required_int("axis")?, cx.ty(&parts[0])?.rank())?;
    let y = cx.emit(Op::Concat { axis }, &parts.iter().collect::<Vec<_>>())?;
    result(cx, c, &y, 0, to)
}

fn select(cx: &mut Cx, c: &Call) -> Done {
    cx.quantized.operator("QLinearWhere");
    let to = cx.ty(c.input(1, "X")?)?.dtype;
    let (x, y) = (operand(cx, c, 1)?, operand(cx, c, 4)?);
    let z = cx.emit(Op::Where, &[c.input(0, "condition")?, &x, &y])?;
    result(cx, c, &z, 7, to)
}

/// `alpha · A' · B' + C`, where C is in steps of `alpha · a · b`. The result is codes if it has a
/// scale.
fn gemm(cx: &mut Cx, c: &Call) -> Done {
    cx.quantized.operator("QGemm");
    let to = cx.ty(c.input(0, "A")?)?.dtype;
    let transposed = |cx: &mut Cx, x: &Item, flag: &str| match c.flag(flag, false)? {
        true => cx.transpose(x, vec![1, 0]),
        false => Ok(x.clone()),
    };
    let (a, b) = (c.input(0, "A")?, c.input(3, "B")?);
    for (item, what) in [(a, "A"), (b, "B")] {
        let ty = cx.ty(item)?;
        if ty.rank() != 2 {
            return malformed(format!("{what} is {ty}, expected two axes"));
        }
    }
    let (a, b) = (transposed(cx, a, "transA")?, transposed(cx, b, "transB")?);
    let a = float(cx, &a, c.input(1, "a_scale")?, c.optional(2))?;
    let scale = c.input(4, "b_scale")?;
    let b = columns(cx, &b, scale, c.optional(5))?;
    let alpha = cx.scalar(c.float("alpha", 1.0)?.into(), DType::F32);
    let b = cx.binary(BinaryKind::Mul, &b, &alpha)?;
    let mut y = cx.emit(Op::MatMul, &[&a, &b])?;
    if let Some(bias) = c.optional(6) {
        let step = cx.binary(BinaryKind::Mul, c.input(1, "a_scale")?, scale)?;
        let step = cx.binary(BinaryKind::Mul, &step, &alpha)?;
        let bias = cx.cast(bias, DType::F32)?;
        let bias = cx.binary(BinaryKind::Mul, &bias, &step)?;
        y = cx.binary(BinaryKind::Add, &y, &bias)?;
    }
    match c.optional(7) {
        Some(_) => result(cx, c, &y, 7, to),
        None => Ok(vec![y]),
    }
}

/// Codes of a matrix with one scale, or one scale per column.
fn columns(cx: &mut Cx, b: &Item, scale: &Item, zero: Option<&Item>) -> Result<Item, Refusal> {
    let rank = cx.ty(b)?.rank();
    let scales = cx.ty(scale)?;
    if scales.elements().is_some_and(|n| n.is(1)) || rank == 0 {
        return float(cx, b, scale, zero);
    }
    if scales.rank() != 1 {
        return unsupported(format!("the scales of B are {scales}, expected one axis"));
    }
    let how = Granularity { axis: Some(rank - 1), block: 0 };
    to_float(cx, b, scale, zero, how, DType::F32)
}

fn plus_bias(cx: &mut Cx, y: Item, bias: Option<&Item>) -> Done {
    match bias {
        Some(bias) => Ok(vec![cx.binary(BinaryKind::Add, &y, bias)?]),
        None => Ok(vec![y]),
    }
}

fn matmul_to_float(cx: &mut Cx, c: &Call) -> Done {
    cx.quantized.operator("MatMulIntegerToFloat");
    let a = float(cx, c.input(0, "A")?, c.input(2, "a_scale")?, c.optional(4))?;
    let b = columns(cx, c.input(1, "B")?, c.input(3, "b_scale")?, c.optional(5))?;
    let y = cx.emit(Op::MatMul, &[&a, &b])?;
    plus_bias(cx, y, c.optional(6))
}

fn dynamic_matmul(cx: &mut Cx, c: &Call) -> Done {
    cx.quantized.operator("DynamicQuantizeMatMul");
    let [a, scale, zero] = by_its_range(cx, c.input(0, "A")?)?;
    let a = float(cx, &a, &scale, Some(&zero))?;
    let b = columns(cx, c.input(1, "B")?, c.input(2, "b_scale")?, c.optional(3))?;
    let y = cx.emit(Op::MatMul, &[&a, &b])?;
    plus_bias(cx, y, c.optional(4))
}
