//! `widen-floats`:  every f16, bf16 and f64 value becomes f32
//!
//! The engine computes in f32. Half types gain accuracy; doubles (in the time embeddings of some
//! exports) lose digits that have no effect. Casts between float types disappear. Callers still
//! give and get the types of the source model, which the inputs and outputs of the plan keep.
//! Constants are converted here, once. Tests: tests/filetests/passes/widen_floats.cqt

use super::Pass;
use crate::ir::{Def, Graph, ValueId};
use cqc_proto::{DType, Op, ValueType};
use std::collections::HashMap;

pub const WIDEN_FLOATS: Pass = Pass::whole("widen-floats", widen_floats);

fn widen_floats(g: &mut Graph) {
    if g.values().all(|(_, v)| widened(v.ty.dtype) == v.ty.dtype) {
        return;
    }
    let mut out = Graph::new(g.name.clone());
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for &v in &g.inputs {
        let value = g.value(v);
        let ty = ValueType::new(widened(value.ty.dtype), value.ty.shape.clone());
        map.insert(v, out.input(&value.name, ty));
    }
    for (v, value) in g.values() {
        if let Def::Constant(t) = &value.def {
            let tensor = if t.dtype().is_float() { t.to_float(DType::F32) } else { t.clone() };
            map.insert(v, out.constant(&value.name, tensor));
        }
    }
    for (&from, &to) in &map {
        if g.value(from).numbered {
            out.set_numbered(to);
        }
    }
    for (_, node) in g.nodes() {
        let inputs: Vec<_> = node.inputs.iter().map(|v| v.map(|v| map[&v])).collect();
        let made = out.repeat(g, node, widened_op(&node.op), &inputs);
        let made = made.expect("an operator that takes a float type takes f32");
        map.extend(node.outputs.iter().copied().zip(made));
    }
    out.outputs = g.outputs.iter().map(|(name, v)| (name.clone(), map[v])).collect();
    *g = out;
}

fn widened(dtype: DType) -> DType {
    if dtype.is_float() { DType::F32 } else { dtype }
}

/// The operator with its type attributes widened.
fn widened_op(op: &Op) -> Op {
    let mut op = op.clone();
    if let Op::Cast { to } | Op::Dequantize { to, .. } = &mut op {
        *to = widened(*to);
    }
    op
}
