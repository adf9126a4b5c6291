//! Inserts one graph into another.

use super::{Def, Graph, ValueId};
use cqc_proto::op::OpError;
use std::collections::HashMap;

impl Graph {
    /// Adds the nodes of `other` to this graph. `inputs` maps every input of `other` to a value of
    /// this graph. The names of the added values and nodes begin with `prefix`. Returns the values
    /// of the outputs of `other`, in order, which do not become outputs of this graph.
    ///
    /// # Errors
    /// [`OpError`] if a node does not accept the types of its new operands.
    ///
    /// # Panics
    /// If an input of `other` is missing in `inputs`, or if an operand comes after its reader (see
    /// [`Graph::compact`]).
    pub fn graft(
        &mut self,
        other: &Graph,
        prefix: &str,
        inputs: &HashMap<ValueId, ValueId>,
    ) -> Result<Vec<ValueId>, OpError> {
        let mut here = inputs.clone();
        for (v, value) in other.values() {
            if let Def::Constant(tensor) = &value.def {
                let name = format!("{prefix}{}", value.name);
                here.insert(v, self.constant(&name, tensor.clone()));
            }
        }
        for (_, node) in other.nodes() {
            let operands: Vec<Option<ValueId>> =
                node.inputs.iter().map(|v| v.map(|v| here[&v])).collect();
            let names: Vec<String> =
                node.outputs.iter().map(|&v| format!("{prefix}{}", other.value(v).name)).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let name = format!("{prefix}{}", node.name);
            let results = self.node_with_outputs(&name, node.op.clone(), &operands, &names)?;
            for (&there, &v) in node.outputs.iter().zip(&results) {
                if other.value(there).numbered {
                    self.set_numbered(v);
                }
                here.insert(there, v);
            }
        }
        Ok(other.outputs.iter().map(|(_, v)| here[v]).collect())
    }
}
