//! ONNX operators, with one function each and one file per family.

mod activation;
mod attention;
mod blocks;
mod contrib;
mod conv;
mod einsum;
mod elementwise;
mod index;
mod loss;
mod movement;
mod norm;
mod pool;
mod product;
mod qoperator;
mod quant;
mod reduce;
mod resize;
mod sequence;
mod shape;
mod slice;
mod window;

pub(super) use super::call::{Call, axes, axis};
pub(super) use super::cx::{Cx, Done};
pub(super) use super::error::{Refusal, malformed, unsupported};
pub(super) use super::item::Item;

/// Imports one node: emits operators and returns the items of its outputs. Trailing outputs that
/// cqc does not compute may be left out.
pub(super) type Handler = fn(&mut Cx, &Call) -> Done;

/// Operators of one family.
type Table = &'static [(&'static str, Handler)];

const STANDARD: &[Table] = &[
    activation::TABLE,
    attention::TABLE,
    conv::TABLE,
    einsum::TABLE,
    elementwise::TABLE,
    index::TABLE,
    loss::TABLE,
    movement::TABLE,
    norm::TABLE,
    pool::TABLE,
    product::TABLE,
    quant::TABLE,
    reduce::TABLE,
    resize::TABLE,
    sequence::TABLE,
    shape::TABLE,
    slice::TABLE,
    window::TABLE,
];

/// The function that imports an operator.
pub(super) fn find(domain: &str, op: &str) -> Option<Handler> {
    let tables = match domain {
        "ai.onnx" => STANDARD,
        "com.microsoft" => contrib::TABLES,
        _ => return None,
    };
    tables.iter().flat_map(|t| t.iter()).find(|(name, _)| *name == op).map(|(_, handler)| *handler)
}

/// Domain and name of every operator that has a function.
pub(super) fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    let standard = STANDARD.iter().map(|table| ("ai.onnx", *table));
    let contrib = contrib::TABLES.iter().map(|table| ("com.microsoft", *table));
    let all = standard.chain(contrib);
    all.flat_map(|(domain, table)| table.iter().map(move |(name, _)| (domain, *name)))
}

/// The reason why an operator has no function.
pub(super) fn missing(domain: &str, op: &str) -> String {
    match (domain, op) {
        ("com.microsoft.nchwc" | "com.ms.internal.nhwc", _) => {
            "blocked layouts fit the machine that wrote the file; save the \
             model with graph optimizations up to the level `extended`"
                .into()
        }
        (
            "ai.onnx",
            "RandomNormal" | "RandomNormalLike" | "RandomUniform" | "RandomUniformLike"
            | "Bernoulli" | "Multinomial",
        ) => "random numbers inside the model are not supported; pass the noise as an input".into(),
        ("ai.onnx" | "com.microsoft", _) => "the operator is not supported".into(),
        _ => format!("the domain `{}` is not supported", super::error::shown(domain)),
    }
}
