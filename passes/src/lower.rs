//! Lowering: turns a [`Bound`] graph into a [`Plan`] and the bytes of its constants.
//!
//! Nodes become steps in graph order. Reshapes of step results become aliases, which cost nothing.
//! Values that a concat along the last axis joins are written into the joined tensor directly, if
//! all steps that read or write them can do that. Constants are laid out on 64-byte boundaries in
//! the order of first use, so that the weights of a step are read from front to back.

use crate::bind::{Bound, InputOrigin, Part, TableId};
use crate::ir::{Def, Graph, Node, NodeId, NodeOrigin, ValueId};
use cqc_proto::op::OpError;
use cqc_proto::plan::{
    Alias, Cache, CacheSlot, Constant, Plan, PlanInput, PlanOutput, PlanValue, Program,
    ProgramKind, Source, Step, TimeTables, WeightCodes,
};
use cqc_proto::{DType, Dim, Op, Tensor, ValueType};
use std::collections::{BTreeMap, HashMap};

/// Alignment of every constant in the weight section, in bytes.
pub const ALIGNMENT: u64 = 64;

/// The bytes of the constants, in the order of their offsets.
#[derive(Clone, Debug, Default)]
pub struct WeightSection {
    /// Offset and data of each constant.
    pub parts: Vec<(u64, Tensor)>,
    /// Length of the whole section, in bytes.
    pub len: u64,
}

/// A plan, the bytes of its constants, and the places of the parts' tables and nodes in it.
#[derive(Clone, Debug)]
pub struct Lowering {
    /// The plan.
    pub plan: Plan,
    /// Its constants.
    pub weights: WeightSection,
    /// The places of tables and nodes in the plan.
    pub index: PlanIndex,
}

/// The places in a plan of the tables and nodes from which it was lowered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlanIndex {
    /// Name of every table, and the constant that it became if a program reads it.
    tables: Vec<(String, Option<usize>)>,
    /// Per program, the origin of each of its steps.
    steps: BTreeMap<ProgramKind, Vec<Option<NodeOrigin>>>,
}

impl PlanIndex {
    /// The constant that a table became.
    ///
    /// # Panics
    /// If no program reads the table, which is a bug of the pass that added it.
    pub fn table(&self, id: TableId) -> usize {
        let (name, constant) = &self.tables[id.0];
        constant.unwrap_or_else(|| panic!("no program reads table `{name}`"))
    }

    /// The steps of a program that have an origin, in order.
    pub fn steps(&self, kind: ProgramKind) -> impl Iterator<Item = (usize, NodeOrigin)> + '_ {
        let origins = self.steps.get(&kind).into_iter().flatten().enumerate();
        origins.filter_map(|(step, origin)| Some((step, (*origin)?)))
    }

    /// The step of a program that stands for a node of the graph that was bound; `None` if the
    /// program does not run it.
    pub fn step_of(&self, kind: ProgramKind, node: NodeId) -> Option<usize> {
        self.steps(kind)
            .find(|(_, origin)| *origin == NodeOrigin::Source(node))
            .map(|(step, _)| step)
    }

    /// The constant that a layer of `full` reads as its weights; `None` for a layer without
    /// weights, which is an attention.
    ///
    /// # Panics
    /// If `full` does not run the node.
    pub fn weight_of(&self, plan: &Plan, node: NodeId) -> Option<usize> {
        let step = self.step_of(ProgramKind::Full, node);
        let step = step
            .unwrap_or_else(|| panic!("no step of `full` stands for node {} of the graph", node.0));
        match plan.full.values[plan.full.steps[step].inputs.get(1).copied().flatten()?].source {
            Source::Constant(i) => Some(i),
            _ => None,
        }
    }
}

/// Lowers the parts. `inputs` and `outputs` describe the source model; the `value` of the outputs
/// is set here. `evaluations` is the number of evaluations of the loop. With `any_steps` the plan
/// keeps the program that computes the tables ([`Plan::times`]).
///
/// # Errors
/// [`OpError`] if a step does not type-check, which is a bug of an earlier stage.
pub fn lower(
    bound: &Bound,
    inputs: Vec<PlanInput>,
    mut outputs: Vec<PlanOutput>,
    batch_symbol: Option<&str>,
    fixed_batch: Option<usize>,
    evaluations: usize,
    any_steps: bool,
) -> Result<Lowering, OpError> {
    let mut constants =
        Constants { tables: vec![None; bound.tables.len()], ..Constants::default() };
    let mut steps = BTreeMap::new();
    let mut part = |kind: ProgramKind, part: &Part, constants: &mut Constants| {
        let (program, origins) = program(part, bound, constants)?;
        steps.insert(kind, origins);
        Ok::<Program, OpError>(program)
    };
    let mut full = part(ProgramKind::Full, &bound.full, &mut constants)?;
    let results = std::mem::take(&mut full.results);
    let (of_outputs, of_slots) = results.split_at(outputs.len().min(results.len()));
    for (output, value) in outputs.iter_mut().zip(of_outputs) {
        output.value = *value;
    }
    let cache = bound.cached.as_ref().map(|cached| {
        let first = cached.slots.iter().zip(of_slots);
        let first: Vec<_> = first
            .map(|(name, &value)| CacheSlot { name: name.clone(), value, previous_of: None })
            .collect();
        let previous = cached.previous.iter().map(|&i| CacheSlot {
            name: format!("{}/previous", first[i].name),
            value: first[i].value,
            previous_of: Some(i),
        });
        let slots = first.iter().cloned().chain(previous).collect();
        let full_evaluations = cached.full_evaluations.clone();
        let cached = part(ProgramKind::Cached, &cached.part, &mut constants)?;
        Ok::<Cache, OpError>(Cache { slots, cached, full_evaluations })
    });
    let cache = cache.transpose()?;
    let times = any_steps.then(|| {
        let (program, _) = program(&bound.times, bound, &mut constants)?;
        let of_time = (0..program.results.len()).map(|i| constants.table(bound, TableId(i)));
        Ok::<TimeTables, OpError>(TimeTables { tables: of_time.collect(), program })
    });
    let times = times.transpose()?;
    let plan = Plan {
        batch_symbol: batch_symbol.map(str::to_string),
        fixed_batch,
        inputs,
        outputs,
        evaluations,
        prelude: part(ProgramKind::Prelude, &bound.prelude, &mut constants)?,
        prelude_steps: part(ProgramKind::PreludeSteps, &bound.prelude_steps, &mut constants)?,
        full,
        cache,
        times,
        constants: constants.list,
    };
    let names = bound.tables.iter().map(|(name, _)| name.clone());
    let index = PlanIndex { tables: names.zip(constants.tables).collect(), steps };
    Ok(Lowering { plan, weights: constants.weights, index })
}

#[derive(Default)]
struct Constants {
    list: Vec<Constant>,
    weights: WeightSection,
    /// The constants of the tables that have been used.
    tables: Vec<Option<usize>>,
    known: HashMap<(String, u64, usize), usize>,
}

impl Constants {
    /// Index of the constant. The same name, address and size are stored once.
    fn add(&mut self, name: &str, tensor: &Tensor) -> usize {
        let key = (name.to_string(), tensor.bytes().as_ptr() as u64, tensor.bytes().len());
        if let Some(&i) = self.known.get(&key) {
            return i;
        }
        let i = self.push(name, tensor.value_type(), tensor.clone(), None);
        self.known.insert(key, i);
        i
    }

    /// Index of the constant that a table becomes.
    fn table(&mut self, bound: &Bound, id: TableId) -> usize {
        let (name, tensor) = &bound.tables[id.0];
        let constant = self.add(name, tensor);
        self.tables[id.0] = Some(constant);
        constant
    }

    /// Index of a quantized constant. The same name, address and size are stored once.
    fn add_codes(&mut self, name: &str, codes: &Tensor, how: WeightCodes) -> usize {
        let key = (name.to_string(), codes.bytes().as_ptr() as u64, codes.bytes().len());
        if let Some(&i) = self.known.get(&key) {
            return i;
        }
        let ty = ValueType::fixed(DType::F32, codes.shape());
        let stored = match how.bits {
            8 => codes.clone(),
            bits => {
                let bytes = WeightCodes::pack(bits, bytemuck::cast_slice(codes.bytes()));
                Tensor::new(DType::U8, vec![bytes.len()], bytes).expect("as many elements as bytes")
            }
        };
        let i = self.push(name, ty, stored, Some(how));
        self.known.insert(key, i);
        i
    }

    fn push(
        &mut self,
        name: &str,
        ty: ValueType,
        stored: Tensor,
        codes: Option<WeightCodes>,
    ) -> usize {
        let offset = self.weights.len.next_multiple_of(ALIGNMENT);
        self.list.push(Constant { name: name.to_string(), ty, offset, codes });
        self.weights.len = offset + stored.bytes().len() as u64;
        self.weights.parts.push((offset, stored));
        self.list.len() - 1
    }
}

/// The constant that a quantized weight becomes: its index.
fn quantized_weight(g: &Graph, node: &Node, constants: &mut Constants) -> Option<usize> {
    let Op::DequantizeWeight { bits, output_axis, segments } = &node.op else { return None };
    let [codes, scale] = [node.input(0)?, node.input(1)?];
    let index = constants.add(&g.value(scale).name, g.tensor(scale)?);
    let how = WeightCodes {
        bits: *bits,
        scale: index,
        output_axis: *output_axis,
        segments: segments.clone(),
    };
    Some(constants.add_codes(&g.value(node.outputs[0]).name, g.tensor(codes)?, how))
}

/// The constant that is stored in another float type than the one in which it is read: its index.
fn widened_weight(g: &Graph, node: &Node, constants: &mut Constants) -> Option<usize> {
    let (Op::Cast { to: DType::F32 }, Some(stored)) = (&node.op, node.input(0)) else {
        return None;
    };
    let tensor = g.tensor(stored).filter(|t| t.dtype().is_float())?;
    Some(constants.add(&g.value(stored).name, tensor))
}

/// A program whose results are the graph's outputs, and the origin of each of its steps.
fn program(
    part: &Part,
    bound: &Bound,
    constants: &mut Constants,
) -> Result<(Program, Vec<Option<NodeOrigin>>), OpError> {
    let g = &part.graph;
    let (mut out, mut origins) = (Program::default(), vec![]);
    let mut map: HashMap<ValueId, usize> = HashMap::new();
    for (&v, origin) in g.inputs.iter().zip(&part.origins) {
        let source = match *origin {
            InputOrigin::Input(i) => Source::Input(i),
            InputOrigin::Prelude(i) => Source::Prelude(i),
            InputOrigin::PreludeSteps(i) => Source::PreludeSteps(i),
            InputOrigin::Cache(i) => Source::Cache(i),
            InputOrigin::Table(id) => Source::Table(constants.table(bound, id)),
        };
        map.insert(v, push(&mut out, g, v, source, None));
    }
    for (_, node) in g.nodes() {
        let stored =
            quantized_weight(g, node, constants).or_else(|| widened_weight(g, node, constants));
        if let Some(constant) = stored {
            let v = node.outputs[0];
            map.insert(v, push(&mut out, g, v, Source::Constant(constant), None));
            continue;
        }
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for v in &node.inputs {
            inputs.push(v.map(|v| operand(&mut out, g, v, &mut map, constants)));
        }
        let alias = match (&node.op, &inputs[..]) {
            (Op::Reshape { .. }, [Some(x)]) => root(&out, *x),
            _ => None,
        };
        if let Some(of) = alias {
            let v = node.outputs[0];
            map.insert(v, push(&mut out, g, v, Source::Step, Some(Alias::Same { of })));
            continue;
        }
        let outputs = node.outputs.iter().map(|&v| {
            let id = push(&mut out, g, v, Source::Step, None);
            map.insert(v, id);
            id
        });
        let outputs = outputs.collect();
        out.steps.push(Step { op: node.op.clone(), inputs, outputs, name: node.name.clone() });
        origins.push(node.origin);
    }
    for (v, (joined, offset)) in in_place(g) {
        let (id, of) = (map[&v], map[&joined]);
        let is_root = |id: usize| {
            !out.values.iter().any(|v| matches!(v.alias, Some(Alias::Same { of }) if of == id))
        };
        if out.values[of].alias.is_none() && out.values[id].alias.is_none() && is_root(id) {
            out.values[id].alias = Some(Alias::Columns { of, offset });
        }
    }
    out.results =
        g.outputs.iter().map(|(_, v)| operand(&mut out, g, *v, &mut map, constants)).collect();
    Ok((out, origins))
}

/// The values that a concat along the last axis can find in place, with the joined value and their
/// first column in it. A value lies in one place only, and not inside a value that itself lies in
/// another one.
fn in_place(g: &Graph) -> Vec<(ValueId, (ValueId, Dim))> {
    let mut gapless: Vec<bool> = vec![false; g.values().count()];
    for (_, node) in g.nodes().filter(|(_, node)| !node.op.traits().rows_may_have_gaps) {
        node.inputs
            .iter()
            .flatten()
            .chain(&node.outputs)
            .for_each(|v| gapless[v.0 as usize] = true);
    }
    let mut found: Vec<(ValueId, (ValueId, Dim))> = Vec::new();
    for (_, node) in g.nodes() {
        let (Op::Concat { axis }, joined) = (&node.op, node.outputs[0]) else { continue };
        // a column is a number: sizes that depend on the batch are joined by copying
        if *axis + 1 != g.shape(joined).len() || g.shape(joined)[*axis].as_const().is_none() {
            continue;
        }
        let mut offset = Dim::constant(0);
        for &v in node.inputs.iter().flatten() {
            let place = (joined, offset.clone());
            offset = offset.add(&g.shape(v)[*axis]).expect("the joined size is their sum");
            let made = g.producer_node(v).is_some_and(|p| !matches!(p.op, Op::Concat { .. }));
            if made && !gapless[v.0 as usize] && found.iter().all(|(other, _)| *other != v) {
                found.push((v, place));
            }
        }
    }
    found
}

/// The value whose storage an alias of `x` may share: one that a step writes.
fn root(program: &Program, x: usize) -> Option<usize> {
    let value = &program.values[x];
    match (&value.source, &value.alias) {
        (Source::Step, None) => Some(x),
        (Source::Step, Some(Alias::Same { of })) => Some(*of),
        _ => None,
    }
}

fn operand(
    out: &mut Program,
    g: &Graph,
    v: ValueId,
    map: &mut HashMap<ValueId, usize>,
    constants: &mut Constants,
) -> usize {
    if let Some(&id) = map.get(&v) {
        return id;
    }
    let Def::Constant(tensor) = &g.value(v).def else {
        unreachable!("operands come first: `{}`", g.value(v).name)
    };
    let constant = constants.add(&g.value(v).name, tensor);
    let id = push(out, g, v, Source::Constant(constant), None);
    map.insert(v, id);
    id
}

fn push(out: &mut Program, g: &Graph, v: ValueId, source: Source, alias: Option<Alias>) -> usize {
    out.values.push(PlanValue {
        name: g.value(v).name.clone(),
        ty: g.ty(v).clone(),
        source,
        alias,
    });
    out.values.len() - 1
}
