//! One graph inside another.

use super::{Def, Graph, ValueId};
use cqc_proto::op::OpError;
use std::collections::HashMap;

impl Graph {
    /// Adds the nodes of `other` here. Its inputs are the values of this graph that `inputs` maps
    /// them to, all of them; its values and nodes are called `prefix` and their names. The results
    /// are its outputs, in order, which are no outputs here.
    ///
    /// # Errors
    /// [`OpError`] where a node does not accept the types of its new operands.
    ///
    /// # Panics
    /// When an input of `other` is missing in `inputs`, or operands do not come before their
    /// readers ([`Graph::compact`]).
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
