//! `fold-constants`:  f(constants)  →  constant
//!
//! Constants are evaluated by the scalar definitions of the operators. A result much larger than
//! its operands (a broadcast) stays a node, because storing it would cost megabytes to save a copy.
//! Tests: tests/filetests/passes/fold_constants.cqt

use super::{Context, Pass, Rewrite};
use crate::interpret::work;
use crate::ir::{Graph, NodeId, ValueId};
use cqc_kernels::mapped::release;
use cqc_kernels::reference;
use cqc_proto::op::OpError;

pub const FOLD_CONSTANTS: Pass = Pass::rule("fold-constants", fold_constants);

/// A product stays a node if its definition, which is slow, would take more multiply-accumulates
/// than this: about 0.1 s.
const MAX_MACS: i64 = 1 << 26;

/// A result of more bytes than this must not exceed its operands.
const FREE_GROWTH: usize = 1 << 20;

fn fold_constants(g: &mut Graph, id: NodeId, context: &Context) -> Result<Rewrite, OpError> {
    let node = g.get(id);
    let tensors: Option<Vec<_>> =
        node.inputs.iter().map(|v| v.map_or(Some(None), |v| g.tensor(v).map(Some))).collect();
    let Some(tensors) = tensors.filter(|t| t.iter().any(Option::is_some)) else {
        return Ok(Rewrite::NoMatch);
    };
    let read: usize = tensors.iter().flatten().map(|t| t.bytes().len()).sum();
    let bytes = |v: &ValueId| {
        let ty = g.ty(*v);
        Some(ty.elements()?.as_const()? as usize * ty.dtype.size())
    };
    // a result whose size is known only at run time stays a node
    let Some(written) = node.outputs.iter().map(bytes).sum::<Option<usize>>() else {
        return Ok(Rewrite::NoMatch);
    };
    if written > FREE_GROWTH && written > read {
        return Ok(Rewrite::refused(format!(
            "the constant would grow from {read} to {written} bytes"
        )));
    }
    let types: Vec<_> = tensors.iter().map(|t| t.map(|t| t.value_type())).collect();
    let types: Vec<_> = types.iter().map(Option::as_ref).collect();
    let outputs: Vec<_> = node.outputs.iter().map(|&v| g.ty(v).clone()).collect();
    let macs = match work(&node.op, &types, &outputs) {
        Some(macs) if macs <= MAX_MACS => macs,
        _ => return Ok(Rewrite::refused("it takes too long to evaluate")),
    };
    // each node may be small, but there may be many
    if !context.spend((read as u64).saturating_add(written as u64), macs) {
        return Ok(Rewrite::refused(
            "the model's constants take too much memory or time to compute",
        ));
    }
    let results = match reference::eval(&node.op, &tensors) {
        Ok(results) => results,
        Err(e) => return Ok(Rewrite::refused(format!("cannot be evaluated: {e}"))),
    };
    // The result replaces the operands: most models fold each weight once.
    tensors.iter().flatten().for_each(|t| release(t.bytes()));
    let (name, outputs) = (node.name.clone(), node.outputs.clone());
    Ok(Rewrite::Replace(
        outputs.into_iter().zip(results).map(|(old, t)| (old, g.constant(&name, t))).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewrite::run;
    use cqc_proto::{Op, Tensor};

    #[test]
    fn large_products_stay_nodes() {
        for (size, folds) in [(8, true), (512, false)] {
            let mut g = Graph::default();
            let matrix = g.constant("m", Tensor::from_f32(&[size, size], &vec![1.0; size * size]));
            let y = g.node("y", Op::MatMul, &[Some(matrix), Some(matrix)]).unwrap()[0];
            g.outputs.push(("y".into(), y));
            let report = run(&mut g, &[FOLD_CONSTANTS], |_, _| {}).unwrap();
            assert_eq!(
                (report.replaced[0].1, report.refusals.len()),
                if folds { (1, 0) } else { (0, 1) }
            );
        }
    }
}
