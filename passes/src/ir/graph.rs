//! Values, nodes and the graph that holds them.

use cqc_proto::op::{Cost, OpError};
use cqc_proto::{Dim, Op, Tensor, ValueType};
use std::collections::HashMap;

/// Id of a value within its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// Id of a node within its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// The definition of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Def {
    /// An input of the graph.
    Input,
    /// A constant with this tensor.
    Constant(Tensor),
    /// An output of a node, by its index.
    Node(NodeId, usize),
}

/// A tensor that layers read rounded: its index in [`Survey::sites`](crate::quant::Survey::sites).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(pub usize);

/// A quantized layer: its index in [`Survey::layers`](crate::quant::Survey::layers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(pub usize);

/// The purpose of a node in a part of the loop. All parts that repeat a node give it the same
/// origin, and lowering passes it on to the step, so that nothing has to be found by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeOrigin {
    /// It is this node of the graph that was bound, in whatever form.
    Source(NodeId),
    /// It rounds a site.
    Rounds(SiteId),
    /// It is a layer's sum of products of float operands, to which corrections are fitted.
    FloatSum(LayerId),
    /// It is a layer's sum of products of rounded operands, on which corrections are fitted.
    RoundedSum(LayerId),
}

/// A value: an edge of the graph that carries a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Its name, which is unique within the graph. It is that of the source model if the value
    /// exists there.
    pub name: String,
    /// Whether the name ends in a number that was added here because another value has the name
    /// without it (`name#2`). Such a name says less than a name of the source model.
    pub numbered: bool,
    /// Element type and shape.
    pub ty: ValueType,
    /// Its definition.
    pub def: Def,
}

/// One application of an operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name for people; that of the source model's node if there is one.
    pub name: String,
    /// Operator and attributes.
    pub op: Op,
    /// Operands; `None` for an optional operand that is absent.
    pub inputs: Vec<Option<ValueId>>,
    /// Results.
    pub outputs: Vec<ValueId>,
    /// Its purpose in a part of the loop. It is `None` in the model's graph, and for nodes that
    /// only one part needs.
    pub origin: Option<NodeOrigin>,
}

impl Node {
    /// Operand `i`; `None` if it is absent.
    pub fn input(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }
}

/// A dataflow graph. Nodes and values are only ever added. [`Graph::compact`] removes those that
/// nothing reads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// Name of the source model's graph.
    pub name: String,
    values: Vec<Value>,
    nodes: Vec<Node>,
    /// Inputs, in the order of the source model.
    pub inputs: Vec<ValueId>,
    /// Outputs with their names, in the order of the source model.
    pub outputs: Vec<(String, ValueId)>,
    names: HashMap<String, u32>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Graph {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// Adds an input.
    pub fn input(&mut self, name: &str, ty: ValueType) -> ValueId {
        let id = self.push_value(name, ty, Def::Input);
        self.inputs.push(id);
        id
    }

    /// Adds a constant.
    pub fn constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        self.push_value(name, tensor.value_type(), Def::Constant(tensor))
    }

    /// Adds a node and returns its outputs, which get the name of the node, made unique.
    ///
    /// # Errors
    /// [`OpError`] if the operator does not accept the operands.
    pub fn node(
        &mut self,
        name: &str,
        op: Op,
        inputs: &[Option<ValueId>],
    ) -> Result<Vec<ValueId>, OpError> {
        self.node_with_outputs(name, op, inputs, &[])
    }

    /// Adds a node whose outputs have the names `output_names`. Outputs without a name get the name
    /// of the node.
    ///
    /// # Errors
    /// As [`Graph::node`].
    pub fn node_with_outputs(
        &mut self,
        name: &str,
        op: Op,
        inputs: &[Option<ValueId>],
        output_names: &[&str],
    ) -> Result<Vec<ValueId>, OpError> {
        let types: Vec<Option<&ValueType>> =
            inputs.iter().map(|v| v.map(|v| &self.value(v).ty)).collect();
        let inferred = op.infer(&types)?;
        let id = NodeId(self.nodes.len() as u32);
        let outputs = inferred
            .into_iter()
            .enumerate()
            .map(|(i, ty)| {
                let output = output_names.get(i).copied().filter(|n| !n.is_empty()).unwrap_or(name);
                self.push_value(output, ty, Def::Node(id, i))
            })
            .collect::<Vec<_>>();
        let (name, inputs) = (name.to_string(), inputs.to_vec());
        self.nodes.push(Node { name, op, inputs, outputs: outputs.clone(), origin: None });
        Ok(outputs)
    }

    /// Adds a node of the graph `of` to this graph, with this operator and these operands. The new
    /// node has the origin of the old one and the names of its outputs.
    ///
    /// # Errors
    /// As [`Graph::node`].
    pub fn repeat(
        &mut self,
        of: &Graph,
        node: &Node,
        op: Op,
        inputs: &[Option<ValueId>],
    ) -> Result<Vec<ValueId>, OpError> {
        let names: Vec<&str> = node.outputs.iter().map(|&v| of.value(v).name.as_str()).collect();
        let outputs = self.node_with_outputs(&node.name, op, inputs, &names)?;
        for (&v, &from) in outputs.iter().zip(&node.outputs) {
            self.values[v.0 as usize].numbered |= of.value(from).numbered;
        }
        self.nodes.last_mut().expect("it was added above").origin = node.origin;
        Ok(outputs)
    }

    /// Sets the origin of the node that computes `v`.
    ///
    /// # Panics
    /// If no node computes it.
    pub fn set_origin(&mut self, v: ValueId, origin: NodeOrigin) {
        let node = self.producer(v).expect("a node makes it");
        self.nodes[node.0 as usize].origin = Some(origin);
    }

    /// Sets the origin of every node to the node itself.
    pub(crate) fn set_own_origins(&mut self) {
        for (i, node) in self.nodes.iter_mut().enumerate() {
            node.origin = Some(NodeOrigin::Source(NodeId(i as u32)));
        }
    }

    /// Marks the name of `v` as one with an added number.
    pub(crate) fn set_numbered(&mut self, v: ValueId) {
        self.values[v.0 as usize].numbered = true;
    }

    /// [`Graph::node`] for an operator with one output and no absent operand.
    ///
    /// # Errors
    /// As [`Graph::node`].
    pub fn op(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId, OpError> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        Ok(self.node(name, op, &inputs)?[0])
    }

    fn push_value(&mut self, name: &str, ty: ValueType, def: Def) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        let wanted = if name.is_empty() { "v" } else { name };
        let name = self.unique(wanted);
        self.values.push(Value { numbered: name != wanted, name, ty, def });
        id
    }

    /// Gives a value another name, made unique.
    pub fn rename(&mut self, id: ValueId, name: &str) {
        if self.value(id).name != name {
            let unique = self.unique(name);
            let value = &mut self.values[id.0 as usize];
            value.numbered = unique != name;
            value.name = unique;
        }
    }

    /// `name`, or `name#2`, `name#3` … if it is taken.
    fn unique(&mut self, name: &str) -> String {
        let count = self.names.entry(name.to_string()).or_insert(0);
        *count += 1;
        if *count == 1 {
            return name.to_string();
        }
        let numbered = format!("{name}#{count}");
        self.unique(&numbered)
    }

    /// The value with this id.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// All values with their ids.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values.iter().enumerate().map(|(i, v)| (ValueId(i as u32), v))
    }

    /// Type of a value.
    pub fn ty(&self, id: ValueId) -> &ValueType {
        &self.value(id).ty
    }

    /// Shape of a value.
    pub fn shape(&self, id: ValueId) -> &[Dim] {
        &self.value(id).ty.shape
    }

    /// The tensor of a constant; `None` for other values.
    pub fn tensor(&self, id: ValueId) -> Option<&Tensor> {
        match &self.value(id).def {
            Def::Constant(t) => Some(t),
            _ => None,
        }
    }

    /// The number of a constant with one element; `None` for other values.
    pub fn scalar(&self, id: ValueId) -> Option<f64> {
        self.tensor(id).filter(|t| t.len() == 1).map(|t| t.to_f64_vec()[0])
    }

    /// The node that computes the value; `None` for inputs and constants.
    pub fn producer(&self, id: ValueId) -> Option<NodeId> {
        match self.value(id).def {
            Def::Node(node, _) => Some(node),
            _ => None,
        }
    }

    /// The same as [`Graph::producer`], as a reference.
    pub fn producer_node(&self, id: ValueId) -> Option<&Node> {
        self.producer(id).map(|n| self.get(n))
    }

    /// The node with this id.
    pub fn get(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// All nodes in the order in which they were added, including dead ones until
    /// [`Graph::compact`].
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, n)| (NodeId(i as u32), n))
    }

    /// Number of nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Number of operands and outputs that read each value, by value id.
    pub fn reader_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.values.len()];
        for v in self.nodes.iter().flat_map(|n| n.inputs.iter().flatten()) {
            counts[v.0 as usize] += 1;
        }
        self.outputs.iter().for_each(|(_, v)| counts[v.0 as usize] += 1);
        counts
    }

    /// The same as [`Graph::reader_counts`] without nodes that no output needs.
    pub fn live_reader_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.values.len()];
        let mut seen = vec![false; self.nodes.len()];
        let mut stack: Vec<ValueId> = self.outputs.iter().map(|(_, v)| *v).collect();
        while let Some(v) = stack.pop() {
            counts[v.0 as usize] += 1;
            if let Some(node) = self.producer(v)
                && !std::mem::replace(&mut seen[node.0 as usize], true)
            {
                stack.extend(self.get(node).inputs.iter().flatten());
            }
        }
        counts
    }

    /// Exchanges the names of two values.
    pub fn swap_names(&mut self, a: ValueId, b: ValueId) {
        let take = |value: &mut Value| (std::mem::take(&mut value.name), value.numbered);
        let (of_a, of_b) =
            (take(&mut self.values[a.0 as usize]), take(&mut self.values[b.0 as usize]));
        for (v, (name, numbered)) in [(a, of_b), (b, of_a)] {
            let value = &mut self.values[v.0 as usize];
            (value.name, value.numbered) = (name, numbered);
        }
    }

    /// Types of a node's operands.
    pub fn input_types(&self, node: &Node) -> Vec<Option<&ValueType>> {
        node.inputs.iter().map(|v| v.map(|v| self.ty(v))).collect()
    }

    /// Cost of a node.
    pub fn cost(&self, node: &Node) -> Cost {
        let outputs: Vec<ValueType> = node.outputs.iter().map(|&v| self.ty(v).clone()).collect();
        node.op.cost(&self.input_types(node), &outputs)
    }

    /// Lets every reader of each key, outputs included, read the mapped value instead. Chains are
    /// followed. The name of the key is passed on if the new value has no name of the source model.
    pub fn substitute(&mut self, map: &HashMap<ValueId, ValueId>) {
        let resolve = |mut v: ValueId| {
            while let Some(&next) = map.get(&v) {
                v = next;
            }
            v
        };
        for node in &mut self.nodes {
            node.inputs.iter_mut().flatten().for_each(|v| *v = resolve(*v));
        }
        self.outputs.iter_mut().for_each(|(_, v)| *v = resolve(*v));
    }

    /// Removes nodes and values that no output needs, but no inputs, and sorts the nodes so that
    /// operands come first: in the order of addition as far as dependencies allow. Ids change.
    ///
    /// # Errors
    /// The name of a node on a cycle, if there is a cycle. The graph is then unchanged.
    pub fn compact(&mut self) -> Result<(), String> {
        let order = self.live_order()?;
        let mut kept = Graph::new(self.name.clone());
        let mut map: HashMap<ValueId, ValueId> = HashMap::new();
        for &v in &self.inputs {
            let value = self.value(v);
            let id = kept.input(&value.name, value.ty.clone());
            kept.values[id.0 as usize].numbered |= value.numbered;
            map.insert(v, id);
        }
        for id in order {
            let node = self.get(id);
            for v in node.inputs.iter().flatten() {
                self.keep_constant(*v, &mut kept, &mut map);
            }
            let new = NodeId(kept.nodes.len() as u32);
            let outputs = node.outputs.iter().enumerate().map(|(i, v)| {
                let value = self.value(*v);
                let id = kept.push_value(&value.name, value.ty.clone(), Def::Node(new, i));
                kept.values[id.0 as usize].numbered |= value.numbered;
                map.insert(*v, id);
                id
            });
            let outputs = outputs.collect();
            let inputs = node.inputs.iter().map(|v| v.map(|v| map[&v])).collect();
            let (name, op) = (node.name.clone(), node.op.clone());
            kept.nodes.push(Node { name, op, inputs, outputs, origin: node.origin });
        }
        for (name, v) in &self.outputs {
            self.keep_constant(*v, &mut kept, &mut map);
            kept.outputs.push((name.clone(), map[v]));
        }
        *self = kept;
        Ok(())
    }

    fn keep_constant(&self, v: ValueId, kept: &mut Graph, map: &mut HashMap<ValueId, ValueId>) {
        if let (Def::Constant(t), false) = (&self.value(v).def, map.contains_key(&v)) {
            let id = kept.constant(&self.value(v).name, t.clone());
            kept.values[id.0 as usize].numbered |= self.value(v).numbered;
            map.insert(v, id);
        }
    }

    /// The live nodes, operands first. It goes depth-first without recursion, because models may be
    /// deep.
    fn live_order(&self) -> Result<Vec<NodeId>, String> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut live = vec![false; self.nodes.len()];
        let mut stack: Vec<NodeId> =
            self.outputs.iter().filter_map(|(_, v)| self.producer(*v)).collect();
        while let Some(id) = stack.pop() {
            if !std::mem::replace(&mut live[id.0 as usize], true) {
                stack
                    .extend(self.get(id).inputs.iter().flatten().filter_map(|v| self.producer(*v)));
            }
        }
        let mut marks = vec![Mark::New; self.nodes.len()];
        let mut order = Vec::new();
        for root in (0..self.nodes.len()).filter(|&i| live[i]) {
            let mut stack = vec![NodeId(root as u32)];
            while let Some(&id) = stack.last() {
                let i = id.0 as usize;
                match marks[i] {
                    Mark::New => {
                        marks[i] = Mark::Open;
                        for before in self
                            .get(id)
                            .inputs
                            .iter()
                            .rev()
                            .flatten()
                            .filter_map(|v| self.producer(*v))
                        {
                            match marks[before.0 as usize] {
                                Mark::New => stack.push(before),
                                Mark::Open => return Err(self.get(before).name.clone()),
                                Mark::Done => {}
                            }
                        }
                    }
                    Mark::Open => {
                        marks[i] = Mark::Done;
                        order.push(id);
                        stack.pop();
                    }
                    Mark::Done => {
                        stack.pop();
                    }
                }
            }
        }
        Ok(order)
    }
}
