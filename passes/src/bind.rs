//! Binding times: moves computation out of the denoising loop.
//!
//! Every node depends on some of three inputs: the time step (T), the conditions (C) and the sample
//! (S). Nodes that depend on T alone are evaluated by the compiler for every evaluation of the loop
//! and become tables. Nodes that depend on C alone form the prelude. Nodes that depend on T and C
//! form a prelude that covers all evaluations at once. Everything else is the step. Each part is a
//! graph of its own, cut where a later part reads a value of an earlier one.
//!
//! Tables are computed for a batch of one and broadcast, because all samples of a step share the
//! time step. A value whose shape does not allow that (the batch is anywhere but alone on axis 0)
//! stays in the step. Models with a fixed batch run the prelude for T and C once per evaluation
//! instead of once for all evaluations.

use crate::interpret::{self, InterpretError};
use crate::ir::{Def, Graph, Node, ValueId};
use crate::onnx::limits::Budget;
use cqc_kernels::memory::{self, NoMemory};
use cqc_kernels::reference;
use cqc_proto::op::OpError;
use cqc_proto::plan::InputRole;
use cqc_proto::types::element_count;
use cqc_proto::{Bindings, DType, Dim, Op, Tensor, ValueType};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A table of a loop: its index in [`Bound::tables`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId(pub usize);

/// The origin of an input of a part, which is neither a node of the same part nor a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputOrigin {
    /// Input `i` of the source graph.
    Input(usize),
    /// The row of a table for this evaluation.
    Table(TableId),
    /// Result `i` of the prelude.
    Prelude(usize),
    /// The rows of result `i` of the prelude over all evaluations that belong to this evaluation.
    PreludeSteps(usize),
    /// Slot `i` of the cache, which the last full evaluation stored.
    Cache(usize),
}

/// One part of the loop.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// The graph of the part.
    pub graph: Graph,
    /// The origin of each input of `graph`, in order.
    pub origins: Vec<InputOrigin>,
}

/// A graph that has been cut by binding time.
#[derive(Clone, Debug, Default)]
pub struct Bound {
    /// The tables by name, tensors `[evaluations, row…]`.
    pub tables: Vec<(String, Tensor)>,
    /// The part that depends on conditions only, which runs once per request.
    pub prelude: Part,
    /// The part that depends on conditions and time step, which runs once per request for all
    /// evaluations.
    pub prelude_steps: Part,
    /// The full step.
    pub full: Part,
    /// The part that computes a row of each of the first `tables` from one time step.
    pub times: Part,
    /// The cached step; `None` until a cut has been made.
    pub cached: Option<CachedPart>,
    /// The work that has been moved out of the loop.
    pub saved: Saved,
}

impl Bound {
    /// Adds a table `[evaluations, row…]`.
    pub fn add_table(&mut self, name: String, tensor: Tensor) -> TableId {
        self.tables.push((name, tensor));
        TableId(self.tables.len() - 1)
    }
}

/// The cached step and the slots that it reads.
#[derive(Clone, Debug, Default)]
pub struct CachedPart {
    /// The step without the nodes whose results come from the cache.
    pub part: Part,
    /// Names of the slots. The values of `full` that they store are outputs of its graph, in order,
    /// after the outputs of the model.
    pub slots: Vec<String>,
    /// Further slots, each of which holds the earlier content of the slot with this index in
    /// `slots`.
    pub previous: Vec<usize>,
    /// Evaluations that run `full`, in ascending order from 0.
    pub full_evaluations: Vec<usize>,
}

/// Work that has been moved out of the loop, per evaluation that would otherwise do it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Multiply-accumulates whose results are tables.
    pub table_macs: Dim,
    /// Multiply-accumulates in both preludes.
    pub prelude_macs: Dim,
    /// Bytes of constants that only tables needed. They are not even stored.
    pub table_weight_bytes: u64,
    /// Bytes of constants that only preludes read.
    pub prelude_weight_bytes: u64,
}

/// Why a graph cannot be bound to its time steps.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BindError {
    /// A node that depends on the time step alone cannot be evaluated.
    #[error("at time step {timestep}: {source}")]
    Evaluate {
        /// The time step.
        timestep: f64,
        /// The node and its error.
        source: InterpretError,
    },
    /// The model takes integer time steps, and the sampler has fractions or numbers out of range.
    #[error(
        "input `{input}` takes {dtype} time steps, which cannot hold {timestep} of the sampler; export the model with a float time step or use another timestep spacing"
    )]
    Fractional {
        /// Name of the time step input.
        input: String,
        /// Its element type.
        dtype: DType,
        /// The first time step that the type cannot hold.
        timestep: f64,
    },
    /// The time step input is neither one number nor one number per sample.
    #[error("input `{input}` is {ty}, expected one time step, or one per sample")]
    Timestep {
        /// Name of the time step input.
        input: String,
        /// Its type.
        ty: ValueType,
    },
    /// The tables, or the values from which they are computed, take more memory than there is.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// The tables take too long to compute.
    #[error(
        "the part of the model that depends on the time step `{input}` alone takes {bytes} bytes and {macs} multiply-accumulates per evaluation; at most {max_bytes} and {max_macs} are allowed; export the model with one time step per sample, or without large tensors made from it"
    )]
    Work {
        /// Name of the time step input.
        input: String,
        /// Bytes that the nodes write for one time step.
        bytes: u64,
        /// Multiply-accumulates of the nodes for one time step.
        macs: u64,
        /// Largest number of bytes that is allowed.
        max_bytes: u64,
        /// Largest number of multiply-accumulates that is allowed.
        max_macs: u64,
    },
    /// A cut part does not type-check, which is a bug of the compiler and not of the model.
    #[error(transparent)]
    Op(#[from] OpError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Sees {
    time: bool,
    condition: bool,
    sample: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Stage {
    Table,
    Prelude,
    PreludeSteps,
    Full,
}

/// Cuts `graph` for a loop over `timesteps`, one per evaluation, as the network gets them. `roles`
/// has the role of each input of the graph. `batch` is the batch symbol; it is `None` for a model
/// with a fixed batch.
///
/// # Errors
/// [`BindError`] if the time steps do not suit the model or the tables cannot be computed.
pub fn bind(
    graph: &Graph,
    roles: &[InputRole],
    batch: Option<&str>,
    timesteps: &[f64],
) -> Result<Bound, BindError> {
    bind_within(graph, roles, batch, timesteps, &Budget::default())
}

/// [`bind`] with another budget: `fold_bytes` and `fold_macs` limit the computation of the tables
/// per time step, beyond [`SHARE`] of the constants that it reads.
///
/// # Errors
/// [`BindError`] if the time steps do not suit the model or the tables cannot be computed.
pub fn bind_within(
    graph: &Graph,
    roles: &[InputRole],
    batch: Option<&str>,
    timesteps: &[f64],
    budget: &Budget,
) -> Result<Bound, BindError> {
    let mut graph = graph.clone();
    graph.set_own_origins();
    let graph = &graph;
    check_timestep(graph, roles, batch)?;
    let stages = stages(graph, roles, batch);
    let mut bound = Bound { saved: saved(graph, &stages), ..Bound::default() };
    let tables = boundary(graph, &stages, |from, to| from == Stage::Table && to == Stage::Full);
    bound.tables = evaluate_tables(graph, roles, batch, timesteps, &tables, budget)?;
    let prelude = boundary(graph, &stages, |from, to| from == Stage::Prelude && to == Stage::Full);
    let steps =
        boundary(graph, &stages, |from, to| from == Stage::PreludeSteps && to == Stage::Full);
    bound.times = upstream(graph, &tables)?;
    bound.prelude = upstream(graph, &prelude)?;
    bound.prelude_steps = upstream(graph, &steps)?;
    bound.full = step_part(graph, &stages, &tables, &prelude, &steps, &bound.tables)?;
    Ok(bound)
}

/// The whole graph as one step without tables, for single evaluations.
pub fn unbound(graph: &Graph) -> Bound {
    let origins = (0..graph.inputs.len()).map(InputOrigin::Input).collect();
    let mut graph = graph.clone();
    graph.set_own_origins();
    Bound { full: Part { graph, origins }, ..Bound::default() }
}

fn stages(g: &Graph, roles: &[InputRole], batch: Option<&str>) -> Vec<Stage> {
    let mut sees = vec![Sees::default(); g.values().count()];
    for (&v, role) in g.inputs.iter().zip(roles) {
        let s = &mut sees[v.0 as usize];
        match role {
            // both have another value at every evaluation, which is not known before
            InputRole::Sample | InputRole::StepCondition => s.sample = true,
            InputRole::Timestep => s.time = true,
            InputRole::Condition => s.condition = true,
        }
    }
    for (_, node) in g.nodes() {
        let mut joined = Sees::default();
        for v in node.inputs.iter().flatten() {
            let s = sees[v.0 as usize];
            joined.time |= s.time;
            joined.condition |= s.condition;
            joined.sample |= s.sample;
        }
        let broadcasts = node.outputs.iter().all(|&v| batch_leads(g.ty(v), batch));
        if joined.time && !broadcasts {
            joined.sample = true;
        }
        // A value of time and conditions that has no batch axis cannot have a row per evaluation.
        if joined.time
            && joined.condition
            && batch.is_some_and(|b| {
                node.outputs
                    .iter()
                    .any(|&v| g.shape(v).first().is_none_or(|d| d.as_symbol() != Some(b)))
            })
        {
            joined.sample = true;
        }
        node.outputs.iter().for_each(|v| sees[v.0 as usize] = joined);
    }
    sees.into_iter()
        .map(|s| match (s.sample, s.time, s.condition) {
            (true, _, _) => Stage::Full,
            (_, true, true) => Stage::PreludeSteps,
            (_, true, false) => Stage::Table,
            // Nodes that read constants only have been folded. Those that are too large to fold
            // stay where they are read.
            (_, false, true) => Stage::Prelude,
            (_, false, false) => Stage::Full,
        })
        .collect()
}

/// Refuses a time step whose size depends on the batch in another way than one number per sample,
/// because its tables would not be rows for a batch of one.
fn check_timestep(g: &Graph, roles: &[InputRole], batch: Option<&str>) -> Result<(), BindError> {
    let times = g.inputs.iter().zip(roles).filter(|(_, r)| **r == InputRole::Timestep);
    for (&v, _) in times {
        if !batch_leads(g.ty(v), batch) {
            let (input, ty) = (g.value(v).name.clone(), g.ty(v).clone());
            return Err(BindError::Timestep { input, ty });
        }
    }
    Ok(())
}

/// Whether the batch symbol does not occur, or occurs alone on axis 0 and nowhere else.
fn batch_leads(ty: &ValueType, batch: Option<&str>) -> bool {
    let Some(batch) = batch else { return true };
    ty.shape
        .iter()
        .enumerate()
        .all(|(i, d)| d.coefficient(batch) == 0 || (i == 0 && d.as_symbol() == Some(batch)))
}

/// Values that are computed in one stage and read in another, in order. Outputs count as read by
/// the step. Of the inputs, only the time step is included.
fn boundary(g: &Graph, stages: &[Stage], crosses: impl Fn(Stage, Stage) -> bool) -> Vec<ValueId> {
    let stage = |v: ValueId| stages[v.0 as usize];
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut consider = |v: ValueId, to: Stage| {
        let made = match g.value(v).def {
            Def::Constant(_) => false,
            Def::Input => stage(v) == Stage::Table,
            Def::Node(..) => true,
        };
        if made && crosses(stage(v), to) && seen.insert(v) {
            found.push(v);
        }
    };
    for (_, node) in g.nodes() {
        let to = stage(node.outputs[0]);
        node.inputs.iter().flatten().for_each(|&v| consider(v, to));
    }
    g.outputs.iter().for_each(|(_, v)| consider(*v, Stage::Full));
    found
}

/// Evaluates the tables. Only the step needs tables; other stages recompute the values from the
/// time step.
fn evaluate_tables(
    g: &Graph,
    roles: &[InputRole],
    batch: Option<&str>,
    timesteps: &[f64],
    wanted: &[ValueId],
    budget: &Budget,
) -> Result<Vec<(String, Tensor)>, BindError> {
    let Some(time) =
        g.inputs.iter().zip(roles).find(|(_, r)| **r == InputRole::Timestep).map(|(v, _)| *v)
    else {
        return Ok(vec![]);
    };
    let bindings: Bindings = batch.map(|b| (b.into(), 1)).into_iter().collect();
    check_whole(g, time, timesteps)?;
    if wanted.is_empty() {
        return Ok(vec![]);
    }
    let order = needed(g, wanted);
    check_memory(g, time, &bindings, &order, wanted, timesteps.len())?;
    check_work(g, time, &bindings, &order, budget)?;
    let mut rows: Vec<Vec<u8>> = vec![vec![]; wanted.len()];
    let mut row_types: Vec<Option<Tensor>> = vec![None; wanted.len()];
    for &t in timesteps {
        let mut known: HashMap<ValueId, Tensor> =
            HashMap::from([(time, timestep_tensor(g, time, &bindings, t))]);
        for node in &order {
            let results = interpret::run(g, node, &known, &bindings)
                .map_err(|source| BindError::Evaluate { timestep: t, source })?;
            known.extend(node.outputs.iter().copied().zip(results));
        }
        for (i, v) in wanted.iter().enumerate() {
            rows[i].extend_from_slice(known[v].bytes());
            row_types[i] = Some(known[v].clone());
        }
    }
    let named = wanted.iter().zip(rows).zip(row_types).filter_map(|((v, bytes), row)| {
        let row = row?;
        let shape = [&[timesteps.len()], row.shape()].concat();
        Some((
            g.value(*v).name.clone(),
            Tensor::new(row.dtype(), shape, bytes).expect("one row per time step"),
        ))
    });
    Ok(named.collect())
}

/// The nodes that the values need, in order.
fn needed<'a>(g: &'a Graph, wanted: &[ValueId]) -> Vec<&'a Node> {
    let mut live = HashSet::new();
    let mut stack: Vec<_> = wanted.iter().filter_map(|&v| g.producer(v)).collect();
    while let Some(id) = stack.pop() {
        if live.insert(id) {
            stack.extend(g.get(id).inputs.iter().flatten().filter_map(|&v| g.producer(v)));
        }
    }
    g.nodes().filter(|(id, _)| live.contains(id)).map(|(_, n)| n).collect()
}

/// Refuses time steps that the model's type cannot hold: fractions, or numbers out of its range.
fn check_whole(g: &Graph, input: ValueId, timesteps: &[f64]) -> Result<(), BindError> {
    let dtype = g.ty(input).dtype;
    match timesteps.iter().find(|t| !dtype.holds(**t)) {
        Some(&timestep) => {
            Err(BindError::Fractional { input: g.value(input).name.clone(), dtype, timestep })
        }
        None => Ok(()),
    }
}

/// Refuses tables for which there is not enough memory: the values that are computed for one time
/// step, and the rows of all time steps.
fn check_memory(
    g: &Graph,
    time: ValueId,
    bindings: &Bindings,
    order: &[&Node],
    wanted: &[ValueId],
    rows: usize,
) -> Result<(), BindError> {
    let bytes = |v: ValueId| bytes(g, v, bindings);
    let sum = |values: &mut dyn Iterator<Item = ValueId>| {
        values.fold(0usize, |sum, v| sum.saturating_add(bytes(v)))
    };
    let made = sum(&mut order.iter().flat_map(|node| node.outputs.iter().copied()));
    // the time step is made in f32 first
    let given = bytes(time).saturating_mul(2);
    let kept = sum(&mut wanted.iter().copied()).saturating_mul(rows);
    let needed = made.saturating_add(given).saturating_add(kept);
    Ok(memory::check("computing what depends on the time step alone", needed)?)
}

/// Bytes of a value; 0 if a size is not known.
fn bytes(g: &Graph, v: ValueId, bindings: &Bindings) -> usize {
    let elements = g.ty(v).resolve(bindings).and_then(|shape| element_count(&shape));
    elements.map_or(0, |n| n.saturating_mul(g.ty(v).dtype.size()))
}

/// Bytes and multiply-accumulates that the tables of one time step may take per byte of the
/// constants from which they are computed. Each constant may be widened, transposed and multiplied.
pub const SHARE: u64 = 16;

/// Refuses tables that take too long. They are computed by the definitions of the operators, once
/// per time step.
fn check_work(
    g: &Graph,
    time: ValueId,
    bindings: &Bindings,
    order: &[&Node],
    budget: &Budget,
) -> Result<(), BindError> {
    let (mut made, mut macs) = (0u64, 0u64);
    let mut constants = HashMap::new();
    for node in order {
        let fixed = |v: ValueId| {
            let ty = g.ty(v);
            ty.resolve(bindings).map(|shape| ValueType::fixed(ty.dtype, &shape))
        };
        let inputs: Vec<_> = node.inputs.iter().map(|v| v.and_then(fixed)).collect();
        let inputs: Vec<_> = inputs.iter().map(Option::as_ref).collect();
        let outputs: Option<Vec<_>> = node.outputs.iter().map(|&v| fixed(v)).collect();
        // a node with an unknown size fails when it is evaluated
        if let Some(outputs) = outputs {
            let cost = interpret::work(&node.op, &inputs, &outputs);
            macs = macs.saturating_add(cost.map_or(u64::MAX, |macs| macs.max(0) as u64));
        }
        for &v in &node.outputs {
            made = made.saturating_add(bytes(g, v, bindings) as u64);
        }
        let read = node.inputs.iter().flatten().filter_map(|&v| Some((v, g.tensor(v)?)));
        constants.extend(read.map(|(v, t)| (v, t.bytes().len() as u64)));
    }
    let share = constants.values().fold(0, |sum: u64, &n| sum.saturating_add(n));
    let share = share.saturating_mul(SHARE);
    let max_bytes = share.saturating_add(budget.fold_bytes.max(0) as u64);
    let max_macs = share.saturating_add(budget.fold_macs.max(0) as u64);
    if made > max_bytes || macs > max_macs {
        let input = g.value(time).name.clone();
        return Err(BindError::Work { input, bytes: made, macs, max_bytes, max_macs });
    }
    Ok(())
}

/// The time step in the form that the model takes: its type, with one element per sample of the
/// batch.
fn timestep_tensor(g: &Graph, input: ValueId, bindings: &Bindings, t: f64) -> Tensor {
    let ty = g.ty(input);
    let shape = ty.resolve(bindings).unwrap_or_default();
    let count = shape.iter().product();
    let wide = Tensor::from_f32(&shape, &vec![t as f32; count]);
    // f32 holds every time step up to 2^24 exactly, and the sampler's limit is 10^6.
    let cast = reference::eval(&Op::Cast { to: ty.dtype }, &[Some(&wide)]);
    cast.map(|mut c| c.remove(0)).unwrap_or(wide)
}

/// The part of the graph from the inputs to `wanted`.
fn upstream(g: &Graph, wanted: &[ValueId]) -> Result<Part, BindError> {
    let mut part = Part { graph: Graph::new(g.name.clone()), origins: vec![] };
    let mut map = HashMap::new();
    let nodes = needed(g, wanted);
    for &v in nodes.iter().flat_map(|node| node.inputs.iter().flatten()).chain(wanted) {
        if let Def::Input = g.value(v).def
            && !map.contains_key(&v)
        {
            map.insert(v, part.graph.input(&g.value(v).name, g.ty(v).clone()));
            part.origins
                .push(InputOrigin::Input(g.inputs.iter().position(|&i| i == v).expect("an input")));
        }
    }
    for node in nodes {
        copy_node(g, node, &mut part.graph, &mut map)?;
    }
    part.graph.outputs = wanted.iter().map(|v| (g.value(*v).name.clone(), map[v])).collect();
    Ok(part)
}

/// Copies a node. Its operands must be mapped or constant.
pub(crate) fn copy_node(
    g: &Graph,
    node: &Node,
    to: &mut Graph,
    map: &mut HashMap<ValueId, ValueId>,
) -> Result<(), OpError> {
    for v in node.inputs.iter().flatten() {
        if let (Some(t), false) = (g.tensor(*v), map.contains_key(v)) {
            map.insert(*v, to.constant(&g.value(*v).name, t.clone()));
        }
    }
    let inputs: Vec<_> = node.inputs.iter().map(|v| v.map(|v| map[&v])).collect();
    let outputs = to.repeat(g, node, node.op.clone(), &inputs)?;
    let expected: Vec<&ValueType> = node.outputs.iter().map(|&v| g.ty(v)).collect();
    if outputs.iter().map(|&v| to.ty(v)).ne(expected.iter().copied()) {
        return Err(OpError {
            op: node.op.name(),
            reason: "its result changes with a broadcast operand".into(),
        });
    }
    map.extend(node.outputs.iter().copied().zip(outputs));
    Ok(())
}

fn step_part(
    g: &Graph,
    stages: &[Stage],
    tables: &[ValueId],
    prelude: &[ValueId],
    steps: &[ValueId],
    rows: &[(String, Tensor)],
) -> Result<Part, BindError> {
    let mut part = Part { graph: Graph::new(g.name.clone()), origins: vec![] };
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    let mut add = |part: &mut Part, v: ValueId, ty: ValueType, origin: InputOrigin| {
        map.insert(v, part.graph.input(&g.value(v).name, ty));
        part.origins.push(origin);
    };
    for (i, &v) in g.inputs.iter().enumerate() {
        if stages[v.0 as usize] != Stage::Table {
            add(&mut part, v, g.ty(v).clone(), InputOrigin::Input(i));
        }
    }
    for (i, &v) in tables.iter().enumerate() {
        let row = ValueType::fixed(rows[i].1.dtype(), &rows[i].1.shape()[1..]);
        add(&mut part, v, row, InputOrigin::Table(TableId(i)));
    }
    for (i, &v) in prelude.iter().enumerate() {
        add(&mut part, v, g.ty(v).clone(), InputOrigin::Prelude(i));
    }
    for (i, &v) in steps.iter().enumerate() {
        add(&mut part, v, g.ty(v).clone(), InputOrigin::PreludeSteps(i));
    }
    for (_, node) in g.nodes().filter(|(_, n)| stages[n.outputs[0].0 as usize] == Stage::Full) {
        if copy_node(g, node, &mut part.graph, &mut map).is_err() {
            // an operand that became one row for all samples, where the operator does not broadcast
            for v in node.inputs.iter().flatten() {
                if let Some(&mapped) = map.get(v)
                    && part.graph.ty(mapped) != g.ty(*v)
                {
                    let name = format!("{}/broadcast", g.value(*v).name);
                    let shape = g.shape(*v).to_vec();
                    map.insert(*v, part.graph.op(&name, Op::Expand { shape }, &[mapped])?);
                }
            }
            copy_node(g, node, &mut part.graph, &mut map)?;
        }
    }
    for (name, v) in &g.outputs {
        if let Some(t) = g.tensor(*v) {
            let id = part.graph.constant(&g.value(*v).name, t.clone());
            map.insert(*v, id);
        }
        if part.graph.ty(map[v]) != g.ty(*v) {
            let id = part.graph.op(name, Op::Expand { shape: g.shape(*v).to_vec() }, &[map[v]])?;
            map.insert(*v, id);
        }
        part.graph.outputs.push((name.clone(), map[v]));
    }
    Ok(part)
}

fn saved(g: &Graph, stages: &[Stage]) -> Saved {
    let mut out = Saved::default();
    let mut readers: BTreeMap<ValueId, HashSet<Stage>> = BTreeMap::new();
    for (_, node) in g.nodes() {
        let stage = stages[node.outputs[0].0 as usize];
        for v in node.inputs.iter().flatten() {
            readers.entry(*v).or_default().insert(stage);
        }
        let sum = match stage {
            Stage::Table => &mut out.table_macs,
            Stage::Prelude | Stage::PreludeSteps => &mut out.prelude_macs,
            Stage::Full => continue,
        };
        *sum = sum.add(&g.cost(node).macs).unwrap_or_else(|| sum.clone());
    }
    for (v, stages) in readers {
        let Some(t) = g.tensor(v) else { continue };
        let bytes = t.bytes().len() as u64;
        if stages.contains(&Stage::Full) {
            continue;
        }
        if stages.iter().all(|&s| s == Stage::Table) {
            out.table_weight_bytes += bytes
        } else {
            out.prelude_weight_bytes += bytes
        }
    }
    out
}
