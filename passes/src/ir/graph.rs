//! Values and nodes.

use cqc_proto::op::{Cost, OpError};
use cqc_proto::{Dim, Op, Tensor, ValueType};
use std::collections::HashMap;

/// A value of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// A node of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Def {
    /// Input of the graph.
    Input,
    /// A known tensor.
    Constant(Tensor),
    /// Output number `.1` of a node.
    Node(NodeId, usize),
}

/// A tensor that layers read rounded: its index in [`Survey::sites`](crate::quant::Survey::sites).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(pub usize);

/// A quantized layer: its index in [`Survey::layers`](crate::quant::Survey::layers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(pub usize);

/// What a node of a part of the loop stands for. All parts that repeat a node give it the same
/// origin, and lowering hands it on to the step, so nothing has to be found by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeOrigin {
    /// This node of the graph that was bound, in whatever form.
    Source(NodeId),
    /// The rounding of a site.
    Rounds(SiteId),
    /// A layer's sum of products of float operands, which corrections are fitted to.
    FloatSum(LayerId),
    /// A layer's sum of products of rounded operands, which corrections are fitted on.
    RoundedSum(LayerId),
}

/// A tensor-valued edge of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Unique within the graph; that of the source model where the value exists there.
    pub name: String,
    /// Whether the name ends in a number that was added here because another value has the name
    /// without it (`name#2`): it says less than a name of the source model.
    pub numbered: bool,
    /// Element type and shape.
    pub ty: ValueType,
    /// Where it comes from.
    pub def: Def,
}

/// One operator application.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name for people; that of the source model's node where there is one.
    pub name: String,
    /// Operator and attributes.
    pub op: Op,
    /// Operands; `None` where an optional one is absent.
    pub inputs: Vec<Option<ValueId>>,
    /// Results.
    pub outputs: Vec<ValueId>,
    /// What it stands for in a part of the loop; `None` in the model's graph, and for nodes that
    /// only a part needs.
    pub origin: Option<NodeOrigin>,
}

impl Node {
    /// Operand `i`, if present.
    pub fn input(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }
}

/// A dataflow graph. Nodes and values are only ever added; what nothing reads disappears in
/// [`Graph::compact`].
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

    /// Adds a node; its outputs get the node's name, made unique.
    ///
    /// # Errors
    /// [`OpError`] when the operator does not accept the operands.
    pub fn node(
        &mut self,
        name: &str,
        op: Op,
        inputs: &[Option<ValueId>],
    ) -> Result<Vec<ValueId>, OpError> {
        self.node_with_outputs(name, op, inputs, &[])
    }

    /// Adds a node whose outputs are called `output_names` (missing ones get the node's name).
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

    /// Adds a node of the graph `of` again, here with this operator and these operands: it has the
    /// node's origin and the names of its outputs.
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

    /// Says what the node that makes `v` stands for.
    ///
    /// # Panics
    /// When no node makes it.
    pub fn set_origin(&mut self, v: ValueId, origin: NodeOrigin) {
        let node = self.producer(v).expect("a node makes it");
        self.nodes[node.0 as usize].origin = Some(origin);
    }

    /// Every node stands for itself.
    pub(crate) fn set_own_origins(&mut self) {
        for (i, node) in self.nodes.iter_mut().enumerate() {
            node.origin = Some(NodeOrigin::Source(NodeId(i as u32)));
        }
    }

    /// Says that the name of `v` carries a number that was added to it.
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

    /// `name`, or `name#2`, `name#3` … when taken.
    fn unique(&mut self, name: &str) -> String {
        let count = self.names.entry(name.to_string()).or_insert(0);
        *count += 1;
        if *count == 1 {
            return name.to_string();
        }
        let numbered = format!("{name}#{count}");
        self.unique(&numbered)
    }

    /// The value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// All values, by id.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values.iter().enumerate().map(|(i, v)| (ValueId(i as u32), v))
    }

    /// Its type.
    pub fn ty(&self, id: ValueId) -> &ValueType {
        &self.value(id).ty
    }

    /// Its shape.
    pub fn shape(&self, id: ValueId) -> &[Dim] {
        &self.value(id).ty.shape
    }

    /// The tensor if the value is constant.
    pub fn tensor(&self, id: ValueId) -> Option<&Tensor> {
        match &self.value(id).def {
            Def::Constant(t) => Some(t),
            _ => None,
        }
    }

    /// The one number of a constant with one element.
    pub fn scalar(&self, id: ValueId) -> Option<f64> {
        self.tensor(id).filter(|t| t.len() == 1).map(|t| t.to_f64_vec()[0])
    }

    /// The node that makes the value, if one does.
    pub fn producer(&self, id: ValueId) -> Option<NodeId> {
        match self.value(id).def {
            Def::Node(node, _) => Some(node),
            _ => None,
        }
    }

    /// The node that makes the value, if one does.
    pub fn producer_node(&self, id: ValueId) -> Option<&Node> {
        self.producer(id).map(|n| self.get(n))
    }

    /// The node.
    pub fn get(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// All nodes in order of addition, dead ones included until [`Graph::compact`].
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, n)| (NodeId(i as u32), n))
    }

    /// Number of nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// How often each value is read by nodes or is an output, by value id.
    pub fn reader_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.values.len()];
        for v in self.nodes.iter().flat_map(|n| n.inputs.iter().flatten()) {
            counts[v.0 as usize] += 1;
        }
        self.outputs.iter().for_each(|(_, v)| counts[v.0 as usize] += 1);
        counts
    }

    /// As [`Graph::reader_counts`], not counting nodes that no output needs.
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

    /// Lets every reader of each key read the mapped value instead (followed through chains),
    /// outputs included, and hands the key's name on when the new value has none of the source
    /// model's.
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

    /// Drops nodes and values that no output needs (inputs stay), and puts nodes in an order where
    /// operands come first: the order of addition as far as dependencies allow. Ids change.
    ///
    /// # Errors
    /// The name of a node on a cycle, if there is one; the graph is then unchanged.
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

    /// Live nodes, operands first. Depth-first without recursion: models may be deep.
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
