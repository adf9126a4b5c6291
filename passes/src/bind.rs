//! Binding times: what of the graph leaves the denoising loop.
//!
//! Every node depends on some of three things: the time step (T), the conditioning (C), the sample
//! (S). Nodes that see only T are evaluated now, for every evaluation of the loop, and become
//! tables; C alone is the prelude; T and C together are a prelude over all evaluations at once;
//! everything else is the step. The three parts come out as graphs of their own, cut where a later
//! part reads an earlier one.
//!
//! Tables are computed for a batch of one and broadcast: all samples of a step share the time step.
//! A value whose shape does not allow that (the batch anywhere but alone on axis 0) stays in the
//! step. Models of fixed batch run the T-and-C prelude once per evaluation instead of once for all.

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

/// Where a value of a part comes from, if not from a node of the same part or a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputOrigin {
    /// Input `i` of the source graph.
    Input(usize),
    /// This evaluation's row of a table.
    Table(TableId),
    /// Result `i` of the prelude.
    Prelude(usize),
    /// This evaluation's rows of result `i` of the prelude over all evaluations.
    PreludeSteps(usize),
    /// Slot `i` of the cache: what the last full evaluation stored.
    Cache(usize),
}

/// One part: a graph whose inputs are described by `origins`, in order.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// The nodes.
    pub graph: Graph,
    /// What each input of `graph` is.
    pub origins: Vec<InputOrigin>,
}

/// A graph cut by binding time.
#[derive(Clone, Debug, Default)]
pub struct Bound {
    /// Tensors `[evaluations, row…]` with a name.
    pub tables: Vec<(String, Tensor)>,
    /// Depends on conditioning only.
    pub prelude: Part,
    /// Depends on conditioning and time step.
    pub prelude_steps: Part,
    /// The step.
    pub full: Part,
    /// Makes a row of each of the first `tables`, for one time step.
    pub times: Part,
    /// The step that reads what an earlier one stored; none until a cut is made.
    pub cached: Option<CachedPart>,
    /// What left the loop.
    pub saved: Saved,
}

impl Bound {
    /// Adds a table `[evaluations, row…]`.
    pub fn add_table(&mut self, name: String, tensor: Tensor) -> TableId {
        self.tables.push((name, tensor));
        TableId(self.tables.len() - 1)
    }
}

/// The step without what it reads from the cache instead.
#[derive(Clone, Debug, Default)]
pub struct CachedPart {
    /// Its nodes.
    pub part: Part,
    /// Names of the slots; the values of `full` they store are the outputs of its graph behind
    /// those of the model, in order.
    pub slots: Vec<String>,
    /// Further slots: each holds what one of `slots` held before.
    pub previous: Vec<usize>,
    /// Evaluations that run `full`, ascending from 0.
    pub full_evaluations: Vec<usize>,
}

/// Work that is not done in the loop, per evaluation it would otherwise be done in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Multiply-accumulates in tables.
    pub table_macs: Dim,
    /// Multiply-accumulates in both preludes.
    pub prelude_macs: Dim,
    /// Bytes of constants that only tables needed: they are not even stored.
    pub table_weight_bytes: u64,
    /// Bytes of constants that only preludes read.
    pub prelude_weight_bytes: u64,
}

/// Why tables could not be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BindError {
    /// A node that sees only the time step could not be evaluated.
    #[error("at time step {timestep}: {source}")]
    Evaluate {
        /// The time step.
        timestep: f64,
        /// The node and what is wrong with it.
        source: InterpretError,
    },
    /// The model takes integers and the sampler gives others, or fractions.
    #[error(
        "input `{input}` takes {dtype} time steps and the sampler's are others ({timestep}); export the model with a float time step or use another timestep spacing"
    )]
    Fractional {
        /// The time step input.
        input: String,
        /// Its element type.
        dtype: DType,
        /// The first that the type does not have.
        timestep: f64,
    },
    /// The time step has other sizes than one number, or one per sample.
    #[error("input `{input}` is {ty}, expected one time step, or one per sample")]
    Timestep {
        /// The time step input.
        input: String,
        /// Its type.
        ty: ValueType,
    },
    /// The tables, or what they are computed from, take more memory than there is.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// What depends on the time step alone takes too long to compute.
    #[error(
        "what depends on the time step `{input}` alone takes {bytes} bytes and {macs} multiply-accumulates per evaluation, at most {max_bytes} and {max_macs} are computed; export the model with one time step per sample, or without large tensors made from it"
    )]
    Work {
        /// The time step input.
        input: String,
        /// Bytes that the nodes make for one time step.
        bytes: u64,
        /// Their multiply-accumulates.
        macs: u64,
        /// Most bytes.
        max_bytes: u64,
        /// Most multiply-accumulates.
        max_macs: u64,
    },
    /// A cut part does not type-check: a bug here, not in the model.
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

/// Cuts `graph` for a loop over `timesteps` (one per evaluation, as fed to the network). `roles`
/// says what each input is.
///
/// `batch` is the batch symbol, `None` for a model of fixed batch.
///
/// # Errors
/// [`BindError`].
pub fn bind(
    graph: &Graph,
    roles: &[InputRole],
    batch: Option<&str>,
    timesteps: &[f64],
) -> Result<Bound, BindError> {
    bind_within(graph, roles, batch, timesteps, &Budget::default())
}

/// [`bind`] with another budget: `fold_bytes` and `fold_macs` are what computing the tables may take
/// per time step, beyond [`SHARE`] of the constants that it reads.
///
/// # Errors
/// [`BindError`].
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

/// The whole graph as one step, without tables: for single evaluations.
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
            // both have a value per evaluation that is not known before it
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
        // a time-and-condition value without a batch axis cannot carry one row per evaluation
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
            // constants-only nodes are folded; those too large to fold stay where they are read
            (_, false, true) => Stage::Prelude,
            (_, false, false) => Stage::Full,
        })
        .collect()
}

/// Refuses a time step whose sizes depend on the batch in another way than one number per sample:
/// its tables would not be rows for a batch of one.
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

/// Whether the batch symbol occurs nowhere, or alone on axis 0 and nowhere else.
fn batch_leads(ty: &ValueType, batch: Option<&str>) -> bool {
    let Some(batch) = batch else { return true };
    ty.shape
        .iter()
        .enumerate()
        .all(|(i, d)| d.coefficient(batch) == 0 || (i == 0 && d.as_symbol() == Some(batch)))
}

/// Values made in one stage and read in another, in order; outputs count as read by the step.
/// Inputs are not among them, except the time step.
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

/// Tables are needed by the step only; other stages recompute from the time step.
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

/// Nodes that the values need, in order.
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

/// Refuses time steps that the model's type does not have: fractions, or numbers outside of its
/// range.
fn check_whole(g: &Graph, input: ValueId, timesteps: &[f64]) -> Result<(), BindError> {
    let dtype = g.ty(input).dtype;
    match timesteps.iter().find(|t| !dtype.holds(**t)) {
        Some(&timestep) => {
            Err(BindError::Fractional { input: g.value(input).name.clone(), dtype, timestep })
        }
        None => Ok(()),
    }
}

/// Refuses tables that there is no memory for: all that is computed for one time step, and the rows
/// of all of them.
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

/// Bytes of a value; 0 where a size is not known.
fn bytes(g: &Graph, v: ValueId, bindings: &Bindings) -> usize {
    let elements = g.ty(v).resolve(bindings).and_then(|shape| element_count(&shape));
    elements.map_or(0, |n| n.saturating_mul(g.ty(v).dtype.size()))
}

/// What the tables of one time step may take per byte of the constants that they are computed from,
/// in bytes and in multiply-accumulates: each may be widened, transposed and multiplied.
pub const SHARE: u64 = 16;

/// Refuses tables that take too long: the definitions of the operators compute them, once per time
/// step.
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
        // what has a size that is not known fails when it is evaluated
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

/// The time step as the model wants it: its type, one element per sample of the batch.
fn timestep_tensor(g: &Graph, input: ValueId, bindings: &Bindings, t: f64) -> Tensor {
    let ty = g.ty(input);
    let shape = ty.resolve(bindings).unwrap_or_default();
    let count = shape.iter().product();
    let wide = Tensor::from_f32(&shape, &vec![t as f32; count]);
    // f32 holds every time step up to 2^24 exactly; the sampler's limit is 10^6
    let cast = reference::eval(&Op::Cast { to: ty.dtype }, &[Some(&wide)]);
    cast.map(|mut c| c.remove(0)).unwrap_or(wide)
}

/// The part of the graph that makes `wanted`, from the inputs on.
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

/// Copies a node; operands must be mapped or constant.
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
