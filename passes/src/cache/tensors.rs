//! Finds cuts at tensors, where the main path enters a decoder level.
//!
//! A skip connection ends in a node that reads two values that depend on the sample: one that is
//! computed from nearly everything (the main path), and a fresh one. Such a node offers a cut. The
//! node, all nodes after it and all nodes that its fresh operands need must run. Of the rest, a
//! minimum cut between arithmetic and bytes decides which nodes run and which tensors are cached.

use super::chain::{self, Backbone};
use super::cut::{Cached, Cut};
use super::flow::{Flow, Set, live};
use crate::ir::{NodeId, ValueId};
use cqc_proto::Op;
use petgraph::Direction::{Incoming, Outgoing};
use petgraph::algo::dinics;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

/// Multiply-accumulates that one cached byte is worth: about what a core does while a byte comes
/// from memory.
const MACS_PER_BYTE: u64 = 8;

/// Largest number of tensors in a cut. More tensors are not a boundary but the inside of a block.
const MOST_TENSORS: usize = 4;

/// More than any sum of costs, and small enough to be added.
const NEVER: u64 = u64::MAX / 4;

/// A cut at a merge.
struct Level {
    cut: Cut,
    /// The nodes that the cached step does not run.
    skipped: Set,
    /// Whether the merge adds a branch to the value from which the branch is computed.
    residual: bool,
}

/// The nested cuts at skip connections, without those inside an element of the backbone.
pub fn cuts(flow: &Flow, backbone: Option<&Backbone>) -> Vec<Cut> {
    let mut found: Vec<Level> = Vec::new();
    for (id, node) in flow.g.nodes().filter(|(id, _)| flow.sampled[id.0 as usize]) {
        let mut operands: Vec<ValueId> =
            node.inputs.iter().flatten().copied().filter(|&v| flow.depends(v)).collect();
        operands.sort_unstable();
        operands.dedup();
        for (main, fresh) in sides(&operands) {
            let Some(cut) = cut_before(flow, id, &main, &fresh) else { continue };
            let skipped: Set = live(flow.g, &cut.tensors).nodes.iter().map(|n| !n).collect();
            let inside =
                backbone.is_some_and(|b| b.elements.iter().any(|e| is_subset(flow, &skipped, e)));
            if !inside && !found.iter().any(|other| other.cut == cut) {
                found.push(Level { cut, skipped, residual: chain::residual(flow, id).is_some() });
            }
        }
    }
    // where skips are no additions, additions are the inside of blocks
    let most = |residual: bool| {
        found.iter().filter(|l| l.residual == residual).map(|l| l.cut.saved()).max()
    };
    if most(false) >= most(true) {
        found.retain(|l| !l.residual);
    }
    nested(flow, found)
}

/// Divides operands into main path and fresh: one of them against the others, in both ways.
fn sides(operands: &[ValueId]) -> Vec<(Vec<ValueId>, Vec<ValueId>)> {
    let mut found = Vec::new();
    for &one in operands.iter().filter(|_| operands.len() > 1) {
        let others: Vec<ValueId> = operands.iter().copied().filter(|&v| v != one).collect();
        if others.len() > 1 {
            found.push((others.clone(), vec![one]));
        }
        found.push((vec![one], others));
    }
    found
}

/// The cheapest cut for which a cached step computes `merge` and its `fresh` operands but not
/// `main`.
fn cut_before(flow: &Flow, merge: NodeId, main: &[ValueId], fresh: &[ValueId]) -> Option<Cut> {
    let mut forced = flow.upstream(fresh.iter().copied());
    let depends = |v: &ValueId| flow.g.producer(*v).is_none_or(|p| forced[p.0 as usize]);
    if main.iter().any(depends) {
        return None; // fresh values that need the main path
    }
    flow.add_downstream(merge, &mut forced);
    let bound = Cut {
        tensors: vec![],
        macs_full: flow.macs_full,
        macs_cached: flow.sum(&forced),
        bytes: 0,
    };
    if !bound.pays() {
        return None;
    }
    let cut = Cut::price(flow, boundary(flow, &forced));
    (cut.pays() && (1..=MOST_TENSORS).contains(&cut.tensors.len())).then_some(cut)
}

/// The tensors to cache when the nodes `forced` run: a minimum cut between *skipped* and *run*. A
/// node that runs costs its arithmetic. A skipped node whose value is read costs the bytes of that
/// value, once.
fn boundary(flow: &Flow, forced: &Set) -> Vec<Cached> {
    let g = flow.g;
    let mut net: DiGraph<(), u64> = DiGraph::new();
    let (skipped, run) = (net.add_node(()), net.add_node(()));
    let at: Vec<NodeIndex> =
        forced.iter().map(|&f| if f { run } else { net.add_node(()) }).collect();
    let open = |id: NodeId| flow.sampled[id.0 as usize] && !forced[id.0 as usize];
    for (id, node) in g.nodes().filter(|(id, _)| open(*id)) {
        net.add_edge(skipped, at[id.0 as usize], cost(flow, id));
        for &v in &node.outputs {
            let read = net.add_node(());
            let price = if flow.storable(v) { flow.bytes(v) as u64 * MACS_PER_BYTE } else { NEVER };
            net.add_edge(at[id.0 as usize], read, price);
            for reader in &flow.readers[v.0 as usize] {
                net.add_edge(read, at[reader.0 as usize], NEVER);
            }
            if g.outputs.iter().any(|(_, o)| *o == v) {
                net.add_edge(read, run, NEVER);
            }
        }
    }
    let (_, flows) = dinics(&net, skipped, run);
    let runs = reaches(&net, &flows, run);
    let keep = |id: NodeId| open(id) && !runs[at[id.0 as usize].index()];
    let read = |v: ValueId| {
        let by_node = flow.readers[v.0 as usize].iter().any(|r| runs[at[r.0 as usize].index()]);
        by_node || g.outputs.iter().any(|(_, o)| *o == v)
    };
    let kept = g.nodes().filter(|(id, _)| keep(*id)).flat_map(|(_, n)| n.outputs.iter().copied());
    let all: Vec<Cached> = kept.filter(|&v| read(v)).map(Cached::Value).collect();
    // values that only dead nodes read are left out
    let needed = live(g, &all).values;
    all.into_iter().filter(|c| needed.contains(&c.replaces())).collect()
}

/// The cost of running the node: its products, and one per element that it writes. Reshapes are
/// free.
fn cost(flow: &Flow, id: NodeId) -> u64 {
    let node = flow.g.get(id);
    if matches!(node.op, Op::Reshape { .. }) {
        return 0;
    }
    let written: i64 = node.outputs.iter().map(|&v| flow.elements(v)).sum();
    (flow.macs[id.0 as usize] + written) as u64
}

/// The vertices that reach `end` in the residual network. This is the smaller of the possible sides
/// if several cuts cost the same.
fn reaches(net: &DiGraph<(), u64>, flows: &[u64], end: NodeIndex) -> Vec<bool> {
    let mut found = vec![false; net.node_count()];
    let mut stack = vec![end];
    while let Some(v) = stack.pop() {
        if std::mem::replace(&mut found[v.index()], true) {
            continue;
        }
        let forward =
            net.edges_directed(v, Incoming).filter(|e| flows[e.id().index()] < *e.weight());
        stack.extend(forward.map(|e| e.source()));
        let back = net.edges_directed(v, Outgoing).filter(|e| flows[e.id().index()] > 0);
        stack.extend(back.map(|e| e.target()));
    }
    found
}

/// The nested cuts that save most in sum, where each skips all nodes that the one before it skips.
/// In a U-Net these are its levels. The inside of a single block skips other nodes and is dropped.
fn nested(flow: &Flow, mut found: Vec<Level>) -> Vec<Cut> {
    found.sort_by_key(|l| (l.cut.saved(), std::cmp::Reverse(l.cut.bytes)));
    let mut best: Vec<(i64, Option<usize>)> = Vec::new();
    for (i, level) in found.iter().enumerate() {
        let inside = |j: &usize| is_subset(flow, &found[*j].skipped, &level.skipped);
        let inner = (0..i).filter(inside).max_by_key(|&j| best[j].0);
        best.push((level.cut.saved() + inner.map_or(0, |j| best[j].0), inner));
    }
    let mut at = (0..found.len()).max_by_key(|&i| best[i].0);
    let mut kept = Vec::new();
    while let Some(i) = at {
        kept.push(found[i].cut.clone());
        at = best[i].1;
    }
    kept
}

/// Whether every node of `a` that depends on the sample and multiplies is in `b`.
fn is_subset(flow: &Flow, a: &Set, b: &Set) -> bool {
    (0..a.len()).all(|i| !a[i] || b[i] || !flow.sampled[i] || flow.macs[i] == 0)
}
