//! Runs a graph node by node with the reference kernels. It is slow, and it defines the meaning of
//! a graph.

use crate::ir::{Def, Graph, Node, ValueId};
use cqc_kernels::reference::{self, EvalError};
use cqc_proto::{Bindings, Dim, Op, Tensor, ValueType};
use std::collections::{BTreeMap, HashMap};

/// Why a graph cannot be run on these inputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterpretError {
    /// An input has no value.
    #[error("input `{0}` has no value")]
    Missing(String),
    /// A value does not have the type of its input, or two inputs disagree about a symbolic size.
    #[error("input `{name}` is {found}, expected {expected}")]
    Input {
        /// Name of the input.
        name: String,
        /// Type of the value.
        found: ValueType,
        /// Type of the input.
        expected: ValueType,
    },
    /// A node cannot be evaluated.
    #[error("node `{node}`: {source}")]
    Node {
        /// Name of the node.
        node: String,
        /// The reason.
        source: EvalError,
    },
    /// A symbolic size in the attributes of a node has no value, or a negative one.
    #[error("node `{node}`: the size {size} has no value")]
    Size {
        /// Name of the node.
        node: String,
        /// The size.
        size: Dim,
    },
}

/// Runs `graph` and returns its outputs by name. Inputs of another float type are not converted.
///
/// # Errors
/// The first [`InterpretError`] that occurs.
pub fn interpret(
    graph: &Graph,
    inputs: &BTreeMap<String, Tensor>,
) -> Result<Vec<(String, Tensor)>, InterpretError> {
    let mut values: HashMap<ValueId, Tensor> = HashMap::new();
    let mut bindings = Bindings::new();
    for &id in &graph.inputs {
        let value = graph.value(id);
        let tensor =
            inputs.get(&value.name).ok_or_else(|| InterpretError::Missing(value.name.clone()))?;
        bind(&value.ty, tensor, &mut bindings).ok_or_else(|| InterpretError::Input {
            name: value.name.clone(),
            found: tensor.value_type(),
            expected: value.ty.clone(),
        })?;
        values.insert(id, tensor.clone());
    }
    let mut readers = graph.reader_counts();
    for (_, node) in graph.nodes() {
        let results = run(graph, node, &values, &bindings)?;
        values.extend(node.outputs.iter().copied().zip(results));
        for v in node.inputs.iter().flatten() {
            readers[v.0 as usize] -= 1;
            if readers[v.0 as usize] == 0 {
                values.remove(v);
            }
        }
    }
    let outputs =
        graph.outputs.iter().map(|(name, id)| (name.clone(), get(graph, &values, *id).clone()));
    Ok(outputs.collect())
}

fn get<'a>(graph: &'a Graph, values: &'a HashMap<ValueId, Tensor>, id: ValueId) -> &'a Tensor {
    match &graph.value(id).def {
        Def::Constant(tensor) => tensor,
        _ => values.get(&id).expect("operands come first, and stay until their last reader"),
    }
}

/// The results of one node whose operands are constants or in `values`.
pub(crate) fn run(
    graph: &Graph,
    node: &Node,
    values: &HashMap<ValueId, Tensor>,
    bindings: &Bindings,
) -> Result<Vec<Tensor>, InterpretError> {
    let operands: Vec<Option<&Tensor>> =
        node.inputs.iter().map(|v| v.map(|v| get(graph, values, v))).collect();
    let op = bind_op(&node.op, bindings)
        .map_err(|size| InterpretError::Size { node: node.name.clone(), size })?;
    reference::eval(&op, &operands)
        .map_err(|source| InterpretError::Node { node: node.name.clone(), source })
}

/// Finds the symbols in an input's type from the sizes of its tensor; `None` if the tensor does not
/// have that type.
fn bind(ty: &ValueType, tensor: &Tensor, bindings: &mut Bindings) -> Option<()> {
    if ty.dtype != tensor.dtype() || ty.rank() != tensor.shape().len() {
        return None;
    }
    for (d, &size) in ty.shape.iter().zip(tensor.shape()) {
        if let Some(symbol) = d.as_symbol()
            && !bindings.contains_key(symbol)
        {
            bindings.insert(symbol.into(), size as i64);
        }
    }
    (ty.resolve(bindings)? == tensor.shape()).then_some(())
}

/// The operator with its symbolic sizes replaced. An error is the first size that has no value.
pub fn bind_op(op: &Op, bindings: &Bindings) -> Result<Op, Dim> {
    let bind = |sizes: &mut Vec<Dim>| -> Result<(), Dim> {
        for d in sizes {
            *d = d.eval(bindings).map(Dim::constant).ok_or_else(|| d.clone())?;
        }
        Ok(())
    };
    let mut op = op.clone();
    match &mut op {
        Op::Reshape { shape } | Op::Expand { shape } => bind(shape)?,
        Op::Slice { starts, ends, .. } => {
            bind(starts)?;
            bind(ends)?;
        }
        Op::Resize { sizes, .. } => bind(sizes)?,
        _ => {}
    }
    Ok(op)
}

/// Multiply-accumulates that the definition of an operator takes, or elements that pooling looks
/// at; `None` if sizes are not known or too large.
pub(crate) fn work(op: &Op, inputs: &[Option<&ValueType>], outputs: &[ValueType]) -> Option<i64> {
    let macs = op.cost(inputs, outputs).macs.as_const()?;
    let Op::Pool { kernel, .. } = op else { return Some(macs) };
    let written = outputs.iter().map(|t| t.elements()?.as_const()).sum::<Option<i64>>()?;
    kernel.iter().try_fold(written, |n, &k| n.checked_mul(k as i64))
}
