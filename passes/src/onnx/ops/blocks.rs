//! Blocked weights of ONNX Runtime, domain `com.microsoft`: packed codes with a scale per block.
//! They are dequantized here. Codes that are not constant are refused.

use super::quant::{Granularity, to_float};
use super::*;
use crate::onnx::narrow::codes;
use crate::onnx::tensors::from_floats;
use cqc_proto::op::BinaryKind;
use cqc_proto::{DType, Op, Tensor};

pub(super) const TABLE: Table =
    &[("MatMulNBits", matmul_nbits), ("MatMulBnb4", matmul_bnb4), ("GatherBlockQuantized", gather)];

/// An attribute that is a size ≥ 1.
fn size(c: &Call, name: &str) -> Result<usize, Refusal> {
    match usize::try_from(c.required_int(name)?) {
        Ok(n) if (1..1 << 31).contains(&n) => Ok(n),
        _ => malformed(format!("`{name}` is {}", c.required_int(name)?)),
    }
}

/// An operand that must be a constant with this number of elements.
fn constant(cx: &mut Cx, c: &Call, i: usize, what: &str, count: usize) -> Result<Tensor, Refusal> {
    let t = cx.static_tensor(c.input(i, what)?, what)?;
    if t.len() != count {
        return malformed(format!("`{what}` is {}, expected {count} elements", t.value_type()));
    }
    Ok(t)
}

/// Bits of a code: 2, 4 or 8.
fn bits(c: &Call) -> Result<usize, Refusal> {
    match c.int("bits", 4)? {
        bits @ (2 | 4 | 8) => Ok(bits as usize),
        bits => unsupported(format!("`bits` = {bits} is not supported, only 2, 4 and 8 are")),
    }
}

/// `A · Bᵀ + bias`. B is `[N, blocks, block_size · bits / 8]`, with a scale per row and block.
fn matmul_nbits(cx: &mut Cx, c: &Call) -> Done {
    let (k, n, block) = (size(c, "K")?, size(c, "N")?, size(c, "block_size")?);
    let bits = bits(c)?;
    if !block.is_multiple_of(8 / bits) {
        return malformed(format!("`block_size` is {block} of {bits} bits"));
    }
    let blocks = k.div_ceil(block);
    let too_large = || Refusal::Malformed(format!("{n}x{k} codes are too many"));
    let row = blocks.checked_mul(block).ok_or_else(too_large)?;
    let count = n.checked_mul(row).and_then(|n| n.checked_mul(bits)).ok_or_else(too_large)? / 8;
    let packed = constant(cx, c, 1, "B", count)?;
    let scales = constant(cx, c, 2, "scales", n * blocks)?.to_f64_vec();
    let zeros = match c.optional(3) {
        Some(item) => zero_points(cx, c, item, n, blocks, bits)?,
        None => vec![(1u32 << (bits - 1)) as f64; n * blocks],
    };
    let groups = match c.optional(4) {
        Some(_) => constant(cx, c, 4, "g_idx", k.max(row))
            .or_else(|_| constant(cx, c, 4, "g_idx", k))?
            .to_i64_vec(),
        None => (0..k).map(|i| (i / block) as i64).collect(),
    };
    if groups.iter().take(k).any(|g| usize::try_from(*g).is_ok_and(|g| g >= blocks) || *g < 0) {
        return malformed(format!("`g_idx` names a block beyond the {blocks} that there are"));
    }
    cx.spend(12 * (k * n) as i64)?;
    let mut w = vec![0f64; k * n];
    for (i, code) in codes(packed.bytes(), bits).enumerate() {
        let (at, of) = (i % row, i / row);
        if at < k {
            let scale = of * blocks + groups[at] as usize;
            w[at * n + of] = (code as f64 - zeros[scale]) * scales[scale];
        }
    }
    cx.quantized.constant(format!("u{bits}"));
    product(cx, c, w, [k, n], c.optional(5))
}

/// A zero point per row and block: packed row by row as the codes are, or given as numbers.
fn zero_points(
    cx: &mut Cx,
    c: &Call,
    item: &Item,
    n: usize,
    blocks: usize,
    bits: usize,
) -> Result<Vec<f64>, Refusal> {
    if cx.ty(item)?.dtype.is_float() {
        return Ok(constant(cx, c, 3, "zero_points", n * blocks)?.to_f64_vec());
    }
    let row = (blocks * bits).div_ceil(8);
    let packed = constant(cx, c, 3, "zero_points", n * row)?;
    let of_row = |bytes| codes(bytes, bits).take(blocks).map(f64::from);
    Ok(packed.bytes().chunks(row).flat_map(of_row).collect())
}

/// `A · w + bias`, with `w` in the type of A.
fn product(cx: &mut Cx, c: &Call, w: Vec<f64>, shape: [usize; 2], bias: Option<&Item>) -> Done {
    let a = c.input(0, "A")?;
    let dtype = cx.ty(a)?.dtype;
    if !dtype.is_float() {
        return malformed(format!("A is {dtype}, expected a float type"));
    }
    let w = cx.constant(from_floats(dtype, shape.to_vec(), &w));
    let y = cx.emit(Op::MatMul, &[a, &w])?;
    Ok(vec![match bias {
        Some(bias) => cx.binary(BinaryKind::Add, &y, bias)?,
        None => y,
    }])
}

/// The numbers of the FP4 codes of bitsandbytes.
const FP4: [f64; 16] = [
    0.0,
    5.208_333_333e-3,
    0.666_666_67,
    1.0,
    0.333_333_33,
    0.5,
    0.166_666_67,
    0.25,
    -0.0,
    -5.208_333_333e-3,
    -0.666_666_67,
    -1.0,
    -0.333_333_33,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// The numbers of the NF4 codes: quantiles of the normal distribution.
const NF4: [f64; 16] = [
    -1.0,
    -0.696_192_800_998_687_7,
    -0.525_073_051_452_636_7,
    -0.394_917_488_098_144_53,
    -0.284_441_381_692_886_35,
    -0.184_773_430_228_233_34,
    -0.091_050_036_251_544_95,
    0.0,
    0.079_580_299_556_255_34,
    0.160_930_201_411_247_25,
    0.246_112_301_945_686_34,
    0.337_915_241_718_292_24,
    0.440_709_829_330_444_34,
    0.562_617_003_917_694_1,
    0.722_956_836_223_602_3,
    1.0,
];

/// `A · Bᵀ` with B as codes of NF4 or FP4, row by row. The first code of a byte is in its high
/// half.
fn matmul_bnb4(cx: &mut Cx, c: &Call) -> Done {
    let (k, n, block) = (size(c, "K")?, size(c, "N")?, size(c, "block_size")?);
    if let Some(0) = c.opt_int("transB")? {
        return unsupported("`transB` = 0 is not supported");
    }
    let Some(count) = k.checked_mul(n) else {
        return malformed(format!("{n}x{k} codes are too many"));
    };
    let (table, name) = match c.required_int("quant_type")? {
        0 => (FP4, "fp4"),
        1 => (NF4, "nf4"),
        other => return malformed(format!("`quant_type` is {other}, expected 0 or 1")),
    };
    let packed = constant(cx, c, 1, "B", count.div_ceil(2))?;
    let largest = constant(cx, c, 2, "absmax", count.div_ceil(block))?.to_f64_vec();
    cx.spend(12 * count as i64)?;
    let mut w = vec![0f64; count];
    let halves = packed.bytes().iter().flat_map(|byte| [byte >> 4, byte & 15]);
    for (i, code) in halves.take(count).enumerate() {
        w[i % k * n + i / k] = table[code as usize] * largest[i / block];
    }
    cx.quantized.constant(name);
    product(cx, c, w, [k, n], None)
}

/// Rows of a table of codes, as floats.
fn gather(cx: &mut Cx, c: &Call) -> Done {
    let (mut data, scales) = (c.input(0, "data")?.clone(), c.input(2, "scales")?);
    let rank = cx.ty(&data)?.rank();
    let axis = c.axis("gather_axis", 0, rank)?;
    let along = c.axis("quantize_axis", 1, rank)?;
    let block = match usize::try_from(c.int("block_size", 128)?) {
        Ok(block) if block > 0 => block,
        _ => return malformed("`block_size` is out of range"),
    };
    let mut zeros = c.optional(3).cloned();
    if cx.narrow(&data).is_none() {
        // Codes are in bytes, several codes of less than 8 bits in one byte along the last axis.
        let bits = bits(c)?;
        let size = cx.ty(scales)?.shape.get(along).cloned();
        data = unpacked(cx, &data, "data", bits, None)?;
        zeros = Some(match zeros {
            Some(zeros) => {
                let last = size.filter(|_| along + 1 == rank).and_then(|d| d.as_const());
                unpacked(cx, &zeros, "zero_points", bits, last)?
            }
            None => {
                let shape = cx.ty(scales)?.shape;
                let middle = Tensor::new(DType::U8, vec![], vec![1u8 << (bits - 1)]);
                let middle = cx.constant(middle.expect("one byte"));
                cx.emit(Op::Expand { shape }, &[&middle])?
            }
        });
    }
    let to = cx.ty(scales)?.dtype;
    let how = Granularity { axis: Some(along), block };
    let table = to_float(cx, &data, scales, zeros.as_ref(), how, to)?;
    Ok(vec![cx.emit(Op::Gather { axis }, &[&table, c.input(1, "indices")?])?])
}

/// A constant of bytes as one of codes. `last` is the size of the last axis if it is not the number
/// of codes in the bytes.
fn unpacked(
    cx: &mut Cx,
    item: &Item,
    what: &str,
    bits: usize,
    last: Option<i64>,
) -> Result<Item, Refusal> {
    let t = cx.static_tensor(item, what)?;
    let (Some(&columns), DType::U8) = (t.shape().last(), t.dtype()) else {
        return malformed(format!("`{what}` is {}, expected u8 in rows", t.value_type()));
    };
    let whole = columns * 8 / bits;
    let kept = last.and_then(|n| usize::try_from(n).ok()).unwrap_or(whole).min(whole);
    cx.spend((t.len() * 8 / bits) as i64)?;
    let rows = t.bytes().chunks(columns.max(1));
    let bytes: Vec<u8> = rows.flat_map(|row| codes(row, bits).take(kept)).collect();
    let mut shape = t.shape().to_vec();
    shape.pop();
    shape.push(kept);
    match Tensor::new(DType::U8, shape, bytes) {
        Ok(t) => Ok(cx.constant(t)),
        Err(e) => malformed(e.to_string()),
    }
}
