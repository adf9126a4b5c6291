//! The operators of the compiler's graph and of plans: attributes, shape rule and cost, each
//! declared once.
//!
//! `list.rs` contains the attributes with their documentation, and one table with the properties of
//! every operator on which the compiler and executors rely ([`Op::traits`]). The file of an
//! operator's family contains its shape rule ([`Op::infer`]) and its cost ([`Op::cost`]). Its
//! meaning is defined by `cqc_kernels::reference::eval`, and its conversion from ONNX by
//! `cqc_passes::onnx`. All attributes are static: the shape operands of ONNX (`Reshape`, `Slice`,
//! `Expand` …) are resolved at import, to sizes that may contain symbols.
//!
//! Inputs are positional, and optional ones may be absent. Axes are counted from the front and are
//! never negative. Unless an operator says otherwise, inputs and outputs are dense row-major
//! tensors of any type that the operator accepts.

mod attention;
mod elementwise;
mod index;
mod linear;
mod list;
mod movement;
mod norm;
pub mod operand;
mod quant;
mod reduce;
mod rule;
mod traits;

#[cfg(test)]
mod arbitrary;
#[cfg(test)]
mod tests;

pub use elementwise::{BinaryKind, UnaryKind};
pub use index::ScatterReduction;
pub use linear::{Act, ConvLayout, PoolKind};
pub use list::Op;
pub use movement::{CoordinateMode, NearestMode, PadMode, ResizeMode};
pub use quant::WEIGHT_BITS;
pub use reduce::ReduceKind;
pub use rule::broadcast;
pub use traits::{Family, OpTraits, Quantization};

use crate::dim::{Dim, MAX_DIM};
use crate::dtype::DType;
use crate::types::{Shape, ValueType};
use rule::*;
use serde::{Deserialize, Serialize};

/// The value of `softmax_bits` in [`Op::Attention`] that stands for bf16.
pub const SOFTMAX_BF16: u8 = 16;

/// The cost of one run of an operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// The MACs of products (convolution, linear, matmul, attention). Other arithmetic is not
    /// counted.
    pub macs: Dim,
    /// The size of all inputs in bytes. Each input counts once.
    pub read: Dim,
    /// The size of all outputs in bytes.
    pub written: Dim,
}

/// The reason why an operator does not accept its inputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {reason}")]
pub struct OpError {
    /// Name of the operator.
    pub op: String,
    /// The expected and the actual types or attributes.
    pub reason: String,
}

/// The types of an operator's inputs. `None` stands for an optional input that is absent.
pub type InputTypes<'a> = [Option<&'a ValueType>];

/// The result of a shape rule.
type Inferred = Result<Vec<ValueType>, String>;

impl Op {
    /// The operator that applies a function to every element.
    pub fn unary(kind: UnaryKind) -> Op {
        Op::Unary { kind }
    }

    /// The operator that applies a function to two elements.
    pub fn binary(kind: BinaryKind) -> Op {
        Op::Binary { kind }
    }

    /// The types of the outputs.
    ///
    /// # Errors
    /// An [`OpError`] if the number, a type or a shape of the inputs, or an attribute, breaks the
    /// operator's rule, or if an input or output has more than [`MAX_RANK`](crate::types::MAX_RANK)
    /// axes, a negative size, or more than 2^40 elements.
    pub fn infer(&self, inputs: &InputTypes) -> Result<Vec<ValueType>, OpError> {
        self.infer_bounded(inputs).map_err(|reason| OpError { op: self.name(), reason })
    }

    fn infer_bounded(&self, inputs: &InputTypes) -> Inferred {
        inputs.iter().flatten().try_for_each(|t| check_bounds("an input", t))?;
        let outputs = self.infer_family(inputs)?;
        outputs.iter().try_for_each(|t| check_bounds("the result", t))?;
        Ok(outputs)
    }

    fn infer_family(&self, inputs: &InputTypes) -> Inferred {
        match self.traits().family {
            Family::Elementwise => elementwise::infer(self, inputs),
            Family::Movement => movement::infer(self, inputs),
            Family::Index => index::infer(self, inputs),
            Family::Reduce => reduce::infer(self, inputs),
            Family::Linear => linear::infer(self, inputs),
            Family::Norm => norm::infer(self, inputs),
            Family::Attention => attention::infer(self, inputs),
            Family::Quant => quant::infer(self, inputs),
        }
    }

    /// The MACs and bytes for inputs that [`Op::infer`] accepts. Sizes that are not affine count as
    /// 0.
    pub fn cost(&self, inputs: &InputTypes, outputs: &[ValueType]) -> Cost {
        let bytes = |t: &ValueType| {
            t.elements()
                .and_then(|n| n.mul(&Dim::constant(t.dtype.size() as i64)))
                .unwrap_or_default()
        };
        let sum = |dims: &mut dyn Iterator<Item = Dim>| {
            dims.fold(Dim::constant(0), |a, b| a.add(&b).unwrap_or(a))
        };
        Cost {
            macs: self.macs(inputs, outputs).unwrap_or_default(),
            read: sum(&mut inputs.iter().flatten().map(|t| bytes(t))),
            written: sum(&mut outputs.iter().map(bytes)),
        }
    }

    fn macs(&self, inputs: &InputTypes, outputs: &[ValueType]) -> Option<Dim> {
        match self.traits().quantization {
            Quantization::Product { .. } | Quantization::FloatProduct => {
                linear::macs(self, inputs, outputs)
            }
            Quantization::Attention => attention::macs(inputs, outputs),
            Quantization::KeepsChannels | Quantization::MixesChannels => None,
        }
    }

    /// The name in text form. It is the kind of unary, binary and reduce operators, and otherwise
    /// the variant in snake case.
    pub fn name(&self) -> String {
        match self {
            Op::Unary { kind } => json_name(kind),
            Op::Binary { kind } => json_name(kind),
            Op::Reduce { kind, .. } => format!("reduce_{}", json_name(kind)),
            _ => json_name(self),
        }
    }

    /// The attributes as a JSON object, without those that are part of [`Op::name`].
    pub fn attributes(&self) -> serde_json::Map<String, serde_json::Value> {
        let serde_json::Value::Object(outer) = to_json(self) else { return Default::default() };
        let Some((_, serde_json::Value::Object(mut attributes))) = outer.into_iter().next() else {
            return Default::default();
        };
        if matches!(self, Op::Unary { .. } | Op::Binary { .. } | Op::Reduce { .. }) {
            attributes.remove("kind");
            if let Op::Unary { kind } = self
                && let serde_json::Value::Object(inner) = to_json(kind)
                && let Some((_, serde_json::Value::Object(inner))) = inner.into_iter().next()
            {
                return inner;
            }
        }
        attributes
    }

    /// The operator with this name and these attributes, as [`Op::name`] and [`Op::attributes`]
    /// return them.
    ///
    /// # Errors
    /// A sentence that names the unknown operator, or the attribute that is missing or wrong.
    pub fn from_parts(
        name: &str,
        attributes: serde_json::Map<String, serde_json::Value>,
    ) -> Result<Op, String> {
        use serde_json::{Value, json};
        let parse = |v: Value| serde_json::from_value::<Op>(v).map_err(|e| format!("{name}: {e}"));
        let empty = attributes.is_empty();
        let kind = |attributes| {
            if empty { json!(name) } else { json!({ name: Value::Object(attributes) }) }
        };
        if UnaryKind::NAMES.contains(&name) {
            return parse(json!({ "unary": { "kind": kind(attributes) } }));
        }
        if BinaryKind::NAMES.contains(&name) {
            return parse(json!({ "binary": { "kind": name } }));
        }
        if let Some(reduce) = name.strip_prefix("reduce_") {
            let mut attributes = attributes;
            attributes.insert("kind".into(), json!(reduce));
            return parse(json!({ "reduce": attributes }));
        }
        if empty && let Ok(op) = parse(json!(name)) {
            return Ok(op);
        }
        parse(json!({ name: attributes }))
    }
}

fn to_json(v: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(v).expect(
        "operators hold nothing that JSON lacks, but for non-finite floats, which become null",
    )
}

/// The name of an enum value in serde's form.
fn json_name(v: &impl Serialize) -> String {
    match to_json(v) {
        serde_json::Value::String(s) => s,
        serde_json::Value::Object(o) => o.into_iter().next().map(|(k, _)| k).unwrap_or_default(),
        _ => String::new(),
    }
}
