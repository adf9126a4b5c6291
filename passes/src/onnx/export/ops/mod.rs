//! Writes operators in standard ONNX, with one file per family as in `onnx/ops`.

mod attention;
mod conv;
mod elementwise;
mod index;
mod movement;
mod norm;
mod product;
pub(super) mod quant;
mod reduce;
mod resize;

pub(super) use super::cx::{Cx, ExportResult, Val};
pub(super) use super::layout;
pub(super) use super::proto::{float, int, ints, number, string};
use cqc_proto::op::{Act, BinaryKind, UnaryKind};
use cqc_proto::{Op, ValueType};

/// An operator to export, with the types of its results.
pub(super) struct Call<'a> {
    pub inputs: &'a [Option<Val>],
    pub outputs: &'a [ValueType],
}

impl Call<'_> {
    pub fn input(&self, i: usize) -> Val {
        self.optional(i).expect("the shape rule refuses absent operands")
    }

    pub fn optional(&self, i: usize) -> Option<Val> {
        self.inputs.get(i).copied().flatten()
    }

    /// Type of the first result.
    pub fn ty(&self) -> ValueType {
        self.outputs[0].clone()
    }

    /// Writes the node whose operands and result are those of the operator.
    pub fn as_node(
        &self,
        cx: &mut Cx,
        name: &str,
        attributes: Vec<cqc_proto::onnx::AttributeProto>,
    ) -> Val {
        cx.nodes(name, self.inputs, attributes, self.outputs)[0]
    }
}

/// Writes an operator and returns its results.
///
/// # Errors
/// A sentence about what the standard lacks.
pub(super) fn export_op(cx: &mut Cx, op: &Op, inputs: &[Option<Val>]) -> ExportResult<Vec<Val>> {
    let types: Vec<Option<&ValueType>> = inputs.iter().map(|v| v.map(|v| cx.ty(v))).collect();
    let outputs = op.infer(&types).map_err(|e| e.reason)?;
    match layout::export_op(cx, op, inputs, &outputs) {
        Some(exported) => exported,
        None => as_it_is(cx, op, inputs, &outputs),
    }
}

/// The same as [`export_op`] without moving channels.
pub(super) fn as_it_is(
    cx: &mut Cx,
    op: &Op,
    inputs: &[Option<Val>],
    outputs: &[ValueType],
) -> ExportResult<Vec<Val>> {
    let c = Call { inputs, outputs };
    if let Op::TopK { axis, k, largest } = op {
        return index::top_k(cx, &c, *axis, *k, *largest);
    }
    one(cx, op, &c).map(|v| vec![v])
}

fn one(cx: &mut Cx, op: &Op, c: &Call) -> ExportResult {
    match op {
        Op::Unary { kind } => elementwise::unary(cx, c, *kind),
        Op::Binary { kind } => elementwise::binary(cx, c, *kind),
        Op::Where => Ok(c.as_node(cx, "Where", vec![])),
        Op::Cast { to } => Ok(cx.cast(c.input(0), *to)),
        Op::Reshape { shape } => Ok(cx.reshape(c.input(0), shape.clone())),
        Op::Transpose { perm } => Ok(cx.transpose(c.input(0), perm)),
        Op::Expand { shape } => movement::expand(cx, c, shape),
        Op::Concat { axis } => Ok(movement::concat(cx, c, *axis)),
        Op::Slice { axes, starts, ends, steps } => {
            movement::slice(cx, c, axes, starts, ends, steps)
        }
        Op::Pad { before, after, mode } => movement::pad(cx, c, before, after, *mode),
        Op::Tile { repeats } => movement::tile(cx, c, repeats),
        Op::Resize { .. } => resize::resize(cx, c, op),
        Op::Trilu { upper, k } => movement::trilu(cx, c, *upper, *k),
        Op::Gather { axis } => index::gather(cx, c, "Gather", vec![int("axis", *axis as i64)]),
        Op::GatherElements { axis } => {
            index::gather(cx, c, "GatherElements", vec![int("axis", *axis as i64)])
        }
        Op::GatherNd { batch_dims } => {
            index::gather(cx, c, "GatherND", vec![int("batch_dims", *batch_dims as i64)])
        }
        Op::ScatterNd { reduction } => index::scatter_nd(cx, c, *reduction),
        Op::ScatterElements { axis, reduction } => {
            index::scatter_elements(cx, c, *axis, *reduction)
        }
        Op::OneHot { axis, depth } => index::one_hot(cx, c, *axis, *depth),
        Op::TopK { .. } => unreachable!("it has two results"),
        Op::CumSum { axis, exclusive, reverse } => {
            index::cum_sum(cx, c, *axis, *exclusive, *reverse)
        }
        Op::Reduce { kind, axes, keep } => reduce::reduce(cx, c, *kind, axes, *keep),
        Op::ArgReduce { largest, axis, keep, last } => {
            reduce::arg_reduce(cx, c, *largest, *axis, *keep, *last)
        }
        Op::Softmax { axis } => Ok(c.as_node(cx, "Softmax", vec![int("axis", *axis as i64)])),
        Op::LogSoftmax { axis } => Ok(c.as_node(cx, "LogSoftmax", vec![int("axis", *axis as i64)])),
        Op::MatMul => product::matmul(cx, c),
        Op::Linear { act } => product::linear(cx, c, *act),
        Op::Einsum { equation } => product::einsum(cx, c, equation),
        Op::Conv { .. } => conv::conv(cx, c, op),
        Op::ConvTranspose { .. } => conv::conv_transpose(cx, c, op),
        Op::Pool { .. } => conv::pool(cx, c, op),
        Op::GroupNorm { groups, eps, act, .. } => norm::group_norm(cx, c, *groups, *eps, *act),
        Op::LayerNorm { eps } => norm::layer_norm(cx, c, *eps),
        Op::RmsNorm { eps } => norm::rms_norm(cx, c, *eps),
        Op::Affine => norm::affine(cx, c),
        Op::Attention { .. } => attention::attention(cx, c, op),
        Op::TimestepEmbedding { cos_first } => attention::timestep_embedding(cx, c, *cos_first),
        Op::Geglu { act } => attention::geglu(cx, c, *act),
        Op::FakeQuant { bits, segments } => quant::fake_quant(cx, c, *bits, segments),
        Op::DequantizeWeight { output_axis, segments, .. } => {
            quant::dequantize_weight(cx, c, *output_axis, segments)
        }
        Op::RoundBf16 => quant::round_bf16(cx, c),
        Op::Quantize { axis, block, to } => quant::quantize(cx, c, *axis, *block, *to),
        Op::Dequantize { axis, block, to } => quant::dequantize(cx, c, *axis, *block, *to),
    }
}

/// An activation after a sum or a normalisation.
fn activate(cx: &mut Cx, act: Act, x: Val) -> ExportResult {
    let kind = match act {
        Act::None => return Ok(x),
        Act::Silu => UnaryKind::Silu,
        Act::GeluErf => UnaryKind::GeluErf,
        Act::GeluTanh => UnaryKind::GeluTanh,
        Act::QuickGelu => UnaryKind::QuickGelu,
        Act::Relu => UnaryKind::Relu,
        Act::Sigmoid => UnaryKind::Sigmoid,
        Act::Tanh => UnaryKind::Tanh,
    };
    cx.unary(kind, x)
}

/// `residual + gate · act(y + row)`, operands 3 to 5 of a product.
fn epilogue(cx: &mut Cx, c: &Call, mut y: Val, act: Act) -> ExportResult {
    if let Some(row) = c.optional(3) {
        y = cx.binary(BinaryKind::Add, y, row)?;
    }
    y = activate(cx, act, y)?;
    if let Some(gate) = c.optional(4) {
        y = cx.binary(BinaryKind::Mul, gate, y)?;
    }
    match c.optional(5) {
        Some(residual) => cx.binary(BinaryKind::Add, residual, y),
        None => Ok(y),
    }
}
