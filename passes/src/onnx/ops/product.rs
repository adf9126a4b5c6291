//! Matrix products.

use super::conv::centred;
use super::*;
use cqc_proto::op::{Act, BinaryKind};
use cqc_proto::{DType, Op};

pub(super) const TABLE: Table = &[
    ("MatMul", matmul),
    ("Gemm", gemm),
    ("MatMulInteger", matmul_integer),
    ("QLinearMatMul", qlinear_matmul),
];

fn matmul(cx: &mut Cx, c: &Call) -> Done {
    let (a, b) = (c.input(0, "A")?, c.input(1, "B")?);
    Ok(vec![cx.emit(Op::MatMul, &[a, b])?])
}

/// `alpha · A' · B' + beta · C`. A constant B makes it a linear layer into which constant factors
/// are folded.
pub(super) fn gemm(cx: &mut Cx, c: &Call) -> Done {
    let (a, b) = (c.input(0, "A")?, c.input(1, "B")?);
    let (alpha, beta) = (c.float("alpha", 1.0)?, c.float("beta", 1.0)?);
    let transposed = |cx: &mut Cx, x: &Item, flag: &str| match c.flag(flag, false)? {
        true => cx.transpose(x, vec![1, 0]),
        false => Ok(x.clone()),
    };
    for (item, what) in [(a, "A"), (b, "B")] {
        let ty = cx.ty(item)?;
        if ty.rank() != 2 {
            return malformed(format!("{what} is {ty}, expected two axes"));
        }
    }
    let (a, b) = (transposed(cx, a, "transA")?, transposed(cx, b, "transB")?);
    let addend = c.optional(2).filter(|_| beta != 0.0).map(|x| scaled(cx, x, beta)).transpose()?;
    if cx.ty(&a)?.dtype.is_float() && b.tensor().is_some() {
        let w = scaled(cx, &b, alpha)?;
        let columns = cx.ty(&w)?.shape[1].clone();
        let (bias, rest) = match addend {
            Some(x)
                if cx.ty(&x)?.elements() == Some(columns.clone())
                    && cx.ty(&x)?.shape.last() == Some(&columns) =>
            {
                (Some(cx.reshape(&x, vec![columns])?), None)
            }
            other => (None, other),
        };
        let mut operands = vec![Some(a), Some(w)];
        operands.extend(bias.map(Some));
        let y = cx.emit_all(Op::Linear { act: Act::None }, &operands)?.swap_remove(0);
        return plus(cx, y, rest);
    }
    let product = cx.emit(Op::MatMul, &[&a, &b])?;
    let product = scaled(cx, &product, alpha)?;
    plus(cx, product, addend)
}

fn plus(cx: &mut Cx, y: Item, addend: Option<Item>) -> Done {
    match addend {
        Some(x) => Ok(vec![cx.binary(BinaryKind::Add, &y, &x)?]),
        None => Ok(vec![y]),
    }
}

pub(super) fn scaled(cx: &mut Cx, x: &Item, factor: f32) -> Result<Item, Refusal> {
    if factor == 1.0 {
        return Ok(x.clone());
    }
    let factor = cx.scalar(factor as f64, cx.ty(x)?.dtype);
    cx.binary(BinaryKind::Mul, x, &factor)
}

/// Zero points are per row (a) and per column (b).
fn matmul_integer(cx: &mut Cx, c: &Call) -> Done {
    cx.quantized.operator("MatMulInteger");
    // sums of integers as for convolutions
    let (a, b) = integer_operands(cx, c, [0, 2], [1, 3], DType::F64)?;
    let y = cx.emit(Op::MatMul, &[&a, &b])?;
    Ok(vec![cx.cast(&y, DType::I32)?])
}

fn integer_operands(
    cx: &mut Cx,
    c: &Call,
    a: [usize; 2],
    b: [usize; 2],
    to: DType,
) -> Result<(Item, Item), Refusal> {
    let (x, y) = (c.input(a[0], "a")?, c.input(b[0], "b")?);
    let row = cx.ty(x)?.rank().checked_sub(2);
    let column = cx.ty(y)?.rank().checked_sub(1);
    let x = centred(cx, x, c.optional(a[1]), row, to)?;
    Ok((x, centred(cx, y, c.optional(b[1]), column, to)?))
}

fn qlinear_matmul(cx: &mut Cx, c: &Call) -> Done {
    cx.quantized.operator("QLinearMatMul");
    let (a, b) = integer_operands(cx, c, [0, 2], [3, 5], DType::F64)?;
    let (ra, rb) = (cx.ty(&a)?.rank(), cx.ty(&b)?.rank());
    let sums = cx.emit(Op::MatMul, &[&a, &b])?;
    let scale = |cx: &mut Cx, i: usize, axis: Option<usize>, rank: usize| {
        let s = conv::along(cx, c.input(i, "scale")?, axis, rank)?;
        cx.cast(&s, DType::F64)
    };
    let (sa, sb) = (scale(cx, 1, ra.checked_sub(2), ra)?, scale(cx, 4, rb.checked_sub(1), rb)?);
    let sy = scale(cx, 6, ra.checked_sub(2), ra)?;
    quant::requantize(cx, &sums, [&sa, &sb, &sy], c.input(7, "y_zero_point")?)
}
