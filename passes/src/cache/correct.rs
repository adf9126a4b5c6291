//! Inserts CacheQuant's correction of the cached tensors into a cached step: `x · scale + shift`
//! per channel, with one row of two tables per evaluation (decoupled error correction).

use crate::bind::{InputOrigin, Part, TableId, copy_node};
use crate::ir::{Graph, Node, ValueId};
use cqc_proto::op::{BinaryKind, OpError};
use cqc_proto::{Op, ValueType};
use std::collections::HashMap;

/// The tables that correct one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Correction {
    /// Index of the slot.
    pub slot: usize,
    /// Table of factors, `[evaluations, C]`, where C is the size of the slot's last axis.
    pub scale: TableId,
    /// Table of summands, `[evaluations, C]`.
    pub shift: TableId,
    /// For a forecast: the slot with the earlier content of this slot, and the table of its
    /// factors.
    pub previous: Option<(usize, TableId)>,
}

/// Inserts the corrections between the slots and their readers. Slots that the step does not read
/// are left alone.
///
/// If an addition is the only reader of a slot, as after a delta, its other operand becomes the
/// residual of the correction.
///
/// # Errors
/// [`OpError`] if a slot is not a float tensor with channels.
pub fn correct(cached: &mut Part, corrections: &[Correction]) -> Result<(), OpError> {
    let g = &cached.graph;
    let mut to = Graph::new(g.name.clone());
    let mut origins = cached.origins.clone();
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for &v in &g.inputs {
        map.insert(v, to.input(&g.value(v).name, g.ty(v).clone()));
    }
    let mut open: Vec<(ValueId, Operands)> = Vec::new();
    for c in corrections {
        let Some(at) = cached.origins.iter().position(|o| *o == InputOrigin::Cache(c.slot)) else {
            continue;
        };
        let x = g.inputs[at];
        let channels = g.shape(x).last().into_iter().cloned().collect::<Vec<_>>();
        let row = ValueType::new(g.ty(x).dtype, channels);
        let scale = to.input(&format!("{}/scale", g.value(x).name), row.clone());
        let shift = to.input(&format!("{}/shift", g.value(x).name), row);
        origins.extend([InputOrigin::Table(c.scale), InputOrigin::Table(c.shift)]);
        let previous = c.previous.map(|(before, factors)| {
            let name = &g.value(x).name;
            let v = to.input(&format!("{name}/previous"), g.ty(x).clone());
            let factor = to.input(&format!("{name}/previous_scale"), to.ty(scale).clone());
            origins.extend([InputOrigin::Cache(before), InputOrigin::Table(factors)]);
            [v, factor]
        });
        open.push((x, Operands { x: map[&x], scale, shift, previous }));
    }
    let readers = g.reader_counts();
    for (x, operands) in &open {
        if readers[x.0 as usize] != 1 || !g.nodes().any(|(_, n)| added_to(g, n, *x).is_some()) {
            let name = format!("{}/corrected", g.value(*x).name);
            map.insert(*x, to.node(&name, Op::Affine, &operands.list(None))?[0]);
        }
    }
    for (_, node) in g.nodes() {
        let folded = open.iter().find_map(|(x, operands)| {
            let other = added_to(g, node, *x).filter(|_| readers[x.0 as usize] == 1)?;
            Some((operands, map[&other]))
        });
        let Some((operands, residual)) = folded else {
            copy_node(g, node, &mut to, &mut map)?;
            continue;
        };
        let y = node.outputs[0];
        let inputs = operands.list(Some(residual));
        map.insert(y, to.repeat(g, node, Op::Affine, &inputs)?[0]);
    }
    to.outputs =
        g.outputs.iter().map(|(name, v)| (name.clone(), output(g, &mut to, &map, *v))).collect();
    *cached = Part { graph: to, origins };
    Ok(())
}

/// Operands of an [`Op::Affine`].
struct Operands {
    x: ValueId,
    scale: ValueId,
    shift: ValueId,
    /// The earlier content of the slot, and its factors.
    previous: Option<[ValueId; 2]>,
}

impl Operands {
    fn list(&self, residual: Option<ValueId>) -> Vec<Option<ValueId>> {
        let mut list = vec![Some(self.x), Some(self.scale), Some(self.shift)];
        list.extend((residual.is_some() || self.previous.is_some()).then_some(residual));
        list.extend(self.previous.iter().flatten().copied().map(Some));
        list
    }
}

/// The other operand if the node adds `x` to a computed value of its type.
fn added_to(g: &Graph, node: &Node, x: ValueId) -> Option<ValueId> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    let other = if a == x { b } else { a };
    let adds = node.op == Op::binary(BinaryKind::Add) && (a == x || b == x) && a != b;
    (adds && g.ty(other) == g.ty(x) && g.tensor(other).is_none()).then_some(other)
}

fn output(g: &Graph, to: &mut Graph, map: &HashMap<ValueId, ValueId>, v: ValueId) -> ValueId {
    match g.tensor(v) {
        Some(t) if !map.contains_key(&v) => to.constant(&g.value(v).name, t.clone()),
        _ => map[&v],
    }
}
