//! Splits a step into two: the full one, which also outputs the tensors to store, and the cached
//! one, which reads them. With a cache of the same evaluation, both give the same outputs, bit for
//! bit.

use super::cut::{Cached, Cut};
use super::flow::live;
use crate::bind::{InputOrigin, Part, copy_node};
use crate::ir::{Graph, ValueId};
use cqc_proto::Op;
use cqc_proto::op::{BinaryKind, OpError};
use std::collections::HashMap;

/// A step in its two forms.
#[derive(Clone, Debug)]
pub struct Split {
    /// The full step. After its outputs follow the stored values, one per slot, in order.
    pub full: Part,
    /// The cached step: only what the outputs need, with the slots as inputs
    /// ([`InputOrigin::Cache`]).
    pub cached: Part,
    /// The stored tensors.
    pub slots: Vec<Slot>,
}

/// One stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name for people; see [`Cached::name`].
    pub name: String,
    /// The value of `full.graph` that is stored.
    pub stored: ValueId,
}

/// Splits the step at the cut.
///
/// # Errors
/// [`OpError`] if a copied node does not type-check, which is a bug of the compiler, or if a delta
/// is between two types.
pub fn split(part: &Part, cut: &Cut) -> Result<Split, OpError> {
    let (full, slots) = full(part, &cut.tensors)?;
    let cached = cached(part, &cut.tensors)?;
    Ok(Split { full, cached, slots })
}

fn full(part: &Part, tensors: &[Cached]) -> Result<(Part, Vec<Slot>), OpError> {
    let g = &part.graph;
    let mut to = Graph::new(g.name.clone());
    let mut map = HashMap::new();
    for &v in &g.inputs {
        map.insert(v, to.input(&g.value(v).name, g.ty(v).clone()));
    }
    let mut deltas: HashMap<usize, ValueId> = HashMap::new();
    for (_, node) in g.nodes() {
        copy_node(g, node, &mut to, &mut map)?;
        for (slot, before, after) in deltas_ending(tensors, &node.outputs) {
            let delta = to.op(
                &delta_name(g, after),
                Op::binary(BinaryKind::Sub),
                &[map[&after], map[&before]],
            )?;
            deltas.insert(slot, delta);
            // `before + (after - before)` differs from `after` in the last bits. All readers get
            // the sum, so that a cached step with a cache of the same evaluation agrees with the
            // full one.
            map.insert(after, restore(g, &mut to, map[&before], delta, after)?);
        }
    }
    copy_outputs(g, &mut to, &mut map);
    let mut slots = Vec::new();
    for (slot, tensor) in tensors.iter().enumerate() {
        let name = tensor.name(g);
        let stored = deltas.get(&slot).copied().unwrap_or_else(|| map[&tensor.replaces()]);
        // an output, so that no pass takes it for dead
        to.outputs.push((format!("cache:{name}"), stored));
        slots.push(Slot { name, stored });
    }
    Ok((Part { graph: to, origins: part.origins.clone() }, slots))
}

fn cached(part: &Part, tensors: &[Cached]) -> Result<Part, OpError> {
    let g = &part.graph;
    let live = live(g, tensors);
    let mut out = Part { graph: Graph::new(g.name.clone()), origins: vec![] };
    let mut map = HashMap::new();
    for (&v, &origin) in g.inputs.iter().zip(&part.origins).filter(|(v, _)| live.values.contains(v))
    {
        map.insert(v, out.graph.input(&g.value(v).name, g.ty(v).clone()));
        out.origins.push(origin);
    }
    let mut slots = Vec::new();
    for (slot, tensor) in tensors.iter().enumerate() {
        let name = match *tensor {
            Cached::Value(v) => g.value(v).name.clone(),
            Cached::Delta { after, .. } => delta_name(g, after),
        };
        slots.push(out.graph.input(&name, tensor.ty(g).clone()));
        out.origins.push(InputOrigin::Cache(slot));
    }
    let values = tensors.iter().zip(&slots).filter(|(c, _)| matches!(c, Cached::Value(_)));
    let values: Vec<_> = values.map(|(c, &slot)| (c.replaces(), slot)).collect();
    map.extend(values.iter().copied());
    for (id, node) in g.nodes() {
        if live.nodes[id.0 as usize] {
            copy_node(g, node, &mut out.graph, &mut map)?;
            map.extend(values.iter().copied()); // the node may run for another of its results
        }
        for (slot, before, after) in deltas_ending(tensors, &node.outputs) {
            if live.values.contains(&after) {
                map.insert(after, restore(g, &mut out.graph, map[&before], slots[slot], after)?);
            }
        }
    }
    copy_outputs(g, &mut out.graph, &mut map);
    Ok(out)
}

/// `(slot, before, after)` of the deltas whose range ends in one of these values.
fn deltas_ending(
    tensors: &[Cached],
    values: &[ValueId],
) -> impl Iterator<Item = (usize, ValueId, ValueId)> {
    tensors.iter().enumerate().filter_map(|(slot, tensor)| match *tensor {
        Cached::Delta { before, after } if values.contains(&after) => Some((slot, before, after)),
        _ => None,
    })
}

fn delta_name(g: &Graph, after: ValueId) -> String {
    format!("{}/delta", g.value(after).name)
}

fn restore(
    g: &Graph,
    to: &mut Graph,
    before: ValueId,
    delta: ValueId,
    after: ValueId,
) -> Result<ValueId, OpError> {
    to.op(
        &format!("{}/restored", g.value(after).name),
        Op::binary(BinaryKind::Add),
        &[before, delta],
    )
}

fn copy_outputs(g: &Graph, to: &mut Graph, map: &mut HashMap<ValueId, ValueId>) {
    for (name, v) in &g.outputs {
        if let Some(t) = g.tensor(*v) {
            map.entry(*v).or_insert_with(|| to.constant(&g.value(*v).name, t.clone()));
        }
        to.outputs.push((name.clone(), map[v]));
    }
}
