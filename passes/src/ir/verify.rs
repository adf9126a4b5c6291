//! Verifies the invariants that every graph has between passes.

use super::{Def, Graph};

/// A broken invariant, which is a bug of a pass and not of the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node `{node}`: {what}")]
pub struct VerifyError {
    /// Name of the node.
    pub node: String,
    /// The invariant, and how it is broken.
    pub what: String,
}

/// Checks that operands exist and come first, that the output types of every node are those that
/// its operator infers, and that definitions and outputs refer to each other.
///
/// # Errors
/// The first violation.
pub fn verify(graph: &Graph) -> Result<(), VerifyError> {
    let count = graph.values().count();
    for (id, node) in graph.nodes() {
        let fail = |what: String| Err(VerifyError { node: node.name.clone(), what });
        for v in node.inputs.iter().flatten() {
            if v.0 as usize >= count {
                return fail(format!("operand {} does not exist", v.0));
            }
            if let Def::Node(producer, _) = graph.value(*v).def
                && producer >= id
            {
                return fail(format!("reads `{}`, which is made later", graph.value(*v).name));
            }
        }
        let inferred = match node.op.infer(&graph.input_types(node)) {
            Ok(types) => types,
            Err(e) => return fail(e.to_string()),
        };
        if inferred.len() != node.outputs.len() {
            return fail(format!(
                "has {} outputs, its operator {}",
                node.outputs.len(),
                inferred.len()
            ));
        }
        for (i, (ty, &v)) in inferred.iter().zip(&node.outputs).enumerate() {
            let value = graph.value(v);
            if value.def != Def::Node(id, i) {
                return fail(format!("output {i} `{}` is not defined by it", value.name));
            }
            if value.ty != *ty {
                return fail(format!(
                    "output `{}` is {}, its operator makes {ty}",
                    value.name, value.ty
                ));
            }
        }
    }
    Ok(())
}
