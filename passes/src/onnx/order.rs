//! The order in which nodes are imported: operands first, and only nodes that an output needs.

use super::error::{ImportError, shown};
use super::limits::MAX_NAME;
use cqc_proto::onnx::{GraphProto, NodeProto};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// The name of a node in messages and in the graph: its own, or that of its first output.
pub(super) fn name_of(node: &NodeProto) -> &str {
    match node.name() {
        "" => node.output.iter().map(String::as_str).find(|n| !n.is_empty()).unwrap_or(""),
        name => name,
    }
}

/// The place of a node in messages: `node `x` (Conv)`.
pub(super) fn place(node: &NodeProto) -> String {
    format!("node `{}` ({})", shown(name_of(node)), shown(node.op_type()))
}

/// Indices of the nodes that `outputs` need, operands first, in the order of the file as far as
/// possible. `own(name)` says whether the graph has an input or initializer of that name,
/// `outer(name)` whether a value exists before the first node.
///
/// # Errors
/// [`ImportError::Malformed`] for a value that is defined twice or never, and for a cycle.
pub(super) fn live(
    nodes: &[NodeProto],
    outputs: &[&str],
    own: &dyn Fn(&str) -> bool,
    outer: &dyn Fn(&str) -> bool,
) -> Result<Vec<usize>, ImportError> {
    let producers = producers(nodes, own)?;
    let operands = nodes.iter().map(operands).collect::<Vec<_>>();
    let mut needed = vec![false; nodes.len()];
    let mut stack: Vec<usize> = outputs.iter().filter_map(|o| producers.get(o).copied()).collect();
    while let Some(i) = stack.pop() {
        if std::mem::replace(&mut needed[i], true) {
            continue;
        }
        for name in &operands[i] {
            match producers.get(name) {
                Some(&p) => stack.push(p),
                None if outer(name) => {}
                None => {
                    let reason = format!("it reads `{}`, which nothing defines", shown(name));
                    return Err(ImportError::malformed(place(&nodes[i]), reason));
                }
            }
        }
    }
    sort(nodes, &needed, &operands, &producers)
}

/// Kahn's algorithm, which takes the earliest ready node first.
fn sort(
    nodes: &[NodeProto],
    needed: &[bool],
    operands: &[Vec<&str>],
    producers: &HashMap<&str, usize>,
) -> Result<Vec<usize>, ImportError> {
    let mut waiting = vec![0usize; nodes.len()];
    let mut readers: HashMap<usize, Vec<usize>> = HashMap::new();
    for i in (0..nodes.len()).filter(|&i| needed[i]) {
        for p in operands[i].iter().filter_map(|n| producers.get(n)) {
            waiting[i] += 1;
            readers.entry(*p).or_default().push(i);
        }
    }
    let mut ready: BinaryHeap<_> =
        (0..nodes.len()).filter(|&i| needed[i] && waiting[i] == 0).map(Reverse).collect();
    let mut order = Vec::new();
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for &r in readers.get(&i).into_iter().flatten() {
            waiting[r] -= 1;
            if waiting[r] == 0 {
                ready.push(Reverse(r));
            }
        }
    }
    match (0..nodes.len()).find(|&i| needed[i] && waiting[i] > 0) {
        Some(i) => Err(ImportError::malformed(place(&nodes[i]), "it stands on or behind a cycle")),
        None => Ok(order),
    }
}

fn producers<'a>(
    nodes: &'a [NodeProto],
    own: &dyn Fn(&str) -> bool,
) -> Result<HashMap<&'a str, usize>, ImportError> {
    let mut producers = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        let names = node
            .input
            .iter()
            .chain(&node.output)
            .chain([&node.name, &node.op_type, &node.domain].into_iter().flatten());
        for name in names {
            check_name(name).map_err(|reason| ImportError::malformed(place(node), reason))?;
        }
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            if own(output) || producers.insert(output.as_str(), i).is_some() {
                return Err(ImportError::malformed(
                    place(node),
                    format!("its output `{}` is already defined", shown(output)),
                ));
            }
        }
    }
    Ok(producers)
}

/// Checks a name, because names appear in messages, reports and files.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name.len() > MAX_NAME {
        return Err(format!(
            "the name `{}` has {} bytes, at most {MAX_NAME} are supported",
            shown(name),
            name.len()
        ));
    }
    if name.contains('\0') {
        return Err(format!("the name `{}` holds a NUL", shown(name)));
    }
    Ok(())
}

/// Names that a node reads, including those that its graphs read.
fn operands(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> =
        node.input.iter().map(String::as_str).filter(|n| !n.is_empty()).collect();
    for graph in node.attribute.iter().flat_map(|a| a.g.as_deref().into_iter().chain(&a.graphs)) {
        names.extend(captured(graph));
    }
    names
}

/// Names that a graph reads and does not define. The recursion is as deep as decoding allowed.
fn captured(graph: &GraphProto) -> Vec<&str> {
    let own: HashSet<&str> = (graph.node.iter().flat_map(|n| &n.output).map(String::as_str))
        .chain(graph.initializer.iter().map(|t| t.name()))
        .chain(graph.input.iter().map(|i| i.name()))
        .collect();
    let outputs = graph.output.iter().map(|o| o.name());
    let read = graph.node.iter().flat_map(operands).chain(outputs);
    read.filter(|n| !own.contains(n)).collect()
}
