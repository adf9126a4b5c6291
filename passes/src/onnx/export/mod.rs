//! Exports a [`Plan`] as standard ONNX models.
//!
//! Every operator becomes operators of the default domain (`ops`), with channels first where the
//! standard needs that (`layout.rs`). A plan becomes up to four models that share one file of
//! constants. [`Port`]s say how the loop connects them.
//!
//! | model | runs | inputs | outputs |
//! |---|---|---|---|
//! | `prelude` | once per request | conditions | values that depend on the conditions only |
//! | `prelude_steps` | before each evaluation | conditions, results of `prelude`, `step` | values that depend on conditions and time step |
//! | `full` | every evaluation, or those that fill the cache | sample, conditions, results of both preludes, `step` | the model's outputs, the cache |
//! | `cached` | the other evaluations | as `full`, and the cache | the model's outputs |
//! | `model` ([`Layout::If`]) | every evaluation | as `cached` | as `full`: an `If` chooses, and the cache passes through |
//!
//! `step` is the number of the evaluation, which indexes the tables. In the engine `prelude_steps`
//! runs for all evaluations at once; here it runs for one evaluation at a time, so that it has the
//! same batch as the other models.

mod cx;
mod error;
mod layout;
mod ops;
mod ports;
mod program;
mod proto;
mod quantized;
mod scales;
mod store;
mod views;

pub use error::{ExportError, UnsupportedStep};
pub use ports::{Port, Wire};
pub use proto::{IR_VERSION, OPSET};
pub use scales::{Qdq, Scales, conservative};

use cqc_proto::Tensor;
use cqc_proto::onnx::{GraphProto, ModelProto};
use cqc_proto::op::Op;
use cqc_proto::plan::{Plan, ProgramKind};
use cx::Cx;
use program::ExportSource;
use proto::{graph_attribute, value_info};
use store::{Scope, Store};

/// The number of models into which full and cached evaluations are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Two models, between which the caller chooses.
    #[default]
    Split,
    /// One model with an `If` on the number of the evaluation. Runtimes optimise less inside a
    /// branch: ONNX Runtime 1.31 takes about 1.2 times as long.
    If,
}

/// Options of an export.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// The number of models for full and cached evaluations.
    pub layout: Layout,
    /// The time step of every evaluation, as the network gets it.
    pub timesteps: Vec<f64>,
    /// Name of the file of constants, as the models refer to it.
    pub weights: String,
    /// Constants with fewer bytes than this are stored in the models.
    pub inline_below: usize,
    /// The form in which rounding is written, if the plan has any.
    pub qdq: Qdq,
}

/// The models of a plan, and their constants.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The models, in the order in which they run.
    pub models: Vec<ExportedModel>,
    /// Offset and data of the constants in the common file, in ascending order. The bytes between
    /// them are zeros.
    pub weights: Vec<(u64, Tensor)>,
}

/// One model.
#[derive(Clone, Debug)]
pub struct ExportedModel {
    /// `prelude`, `prelude_steps`, `full`, `cached` or `model`.
    pub name: &'static str,
    /// The model as a message.
    pub proto: ModelProto,
    /// Its inputs, in order.
    pub inputs: Vec<Port>,
    /// Its outputs, in order.
    pub outputs: Vec<Port>,
}

impl ExportedModel {
    /// The bytes of its file.
    pub fn encode(&self) -> Vec<u8> {
        prost::Message::encode_to_vec(&self.proto)
    }
}

/// Exports a plan. `constants` are the plan's constants, in order.
///
/// # Errors
/// [`ExportError`]. [`ExportError::Unsupported`] has all steps that cannot be written.
pub fn export(
    plan: &Plan,
    constants: &[Tensor],
    options: &ExportOptions,
) -> Result<Exported, ExportError> {
    if plan.batch_symbol.is_none()
        && !plan.prelude_steps.results.is_empty()
        && !plan.steps_one_by_one()
    {
        return Err(ExportError::Stacked);
    }
    let mut export = Export {
        origin: ExportSource { plan, constants, timesteps: &options.timesteps },
        store: Store::new(&options.weights, options.inline_below),
        qdq: options.qdq,
        models: vec![],
        unsupported: vec![],
    };
    if !plan.prelude.results.is_empty() {
        export.model(
            "prelude",
            ProgramKind::Prelude,
            results(&plan.prelude.results, Wire::Prelude),
        );
    }
    if !plan.prelude_steps.results.is_empty() {
        let results = results(&plan.prelude_steps.results, Wire::PreludeSteps);
        export.model("prelude_steps", ProgramKind::PreludeSteps, results);
    }
    let full = [outputs(plan, ProgramKind::Full), slots(plan)].concat();
    match (options.layout, &plan.cache) {
        (Layout::Split, Some(_)) => {
            export.model("full", ProgramKind::Full, full);
            export.model("cached", ProgramKind::Cached, outputs(plan, ProgramKind::Cached));
        }
        (Layout::Split, None) => export.model("full", ProgramKind::Full, full),
        (Layout::If, None) => export.model("model", ProgramKind::Full, full),
        (Layout::If, Some(cache)) => export.choice(full, &cache.full_evaluations),
    }
    match export.unsupported.is_empty() {
        true => Ok(Exported { models: export.models, weights: export.store.parts }),
        false => Err(ExportError::Unsupported(export.unsupported)),
    }
}

/// Values of a program and their roles in the loop.
type Results = Vec<(usize, Wire)>;

fn results(values: &[usize], wire: fn(usize) -> Wire) -> Results {
    values.iter().enumerate().map(|(i, &v)| (v, wire(i))).collect()
}

fn outputs(plan: &Plan, kind: ProgramKind) -> Results {
    let output = |(i, o): (usize, &cqc_proto::plan::PlanOutput)| {
        (plan.output_value(kind, i), Wire::Output(o.name.clone()))
    };
    plan.outputs.iter().enumerate().map(output).collect()
}

fn slots(plan: &Plan) -> Results {
    let slots = plan.cache.iter().flat_map(|c| &c.slots).enumerate();
    slots.filter(|(_, s)| s.previous_of.is_none()).map(|(i, s)| (s.value, Wire::Cache(i))).collect()
}

/// Slots that a full evaluation fills from another slot, each with that slot.
fn previous(plan: &Plan) -> Vec<(usize, usize)> {
    let slots = plan.cache.iter().flat_map(|c| &c.slots).enumerate();
    slots.filter_map(|(i, s)| Some((i, s.previous_of?))).collect()
}

struct Export<'a> {
    origin: ExportSource<'a>,
    store: Store,
    qdq: Qdq,
    models: Vec<ExportedModel>,
    unsupported: Vec<UnsupportedStep>,
}

impl Export<'_> {
    /// Adds the model of one program.
    fn model(&mut self, name: &'static str, kind: ProgramKind, results: Results) {
        let mut inputs = vec![];
        ports::add_inputs(&mut inputs, self.origin.plan, kind, &values(&results));
        let previous = if kind == ProgramKind::Full { previous(self.origin.plan) } else { vec![] };
        previous.iter().for_each(|&(_, of)| self.add_slot(&mut inputs, of));
        let mut outputs = self.output_ports(kind, &results, &inputs);
        let computed = outputs.len();
        outputs.extend(previous.iter().map(|&(slot, _)| self.slot_port(slot, &inputs)));
        let mut scope = Scope::default();
        inputs.iter().chain(&outputs).for_each(|p| drop(scope.unique(&p.name)));
        let mut graph = self.graph(name, kind, &inputs, &outputs[..computed], &results, &mut scope);
        pass_on(&mut graph, &previous, &inputs, &outputs[computed..], &mut scope);
        self.push_model(name, graph, scope, inputs, outputs);
    }

    /// The nodes of a program as a graph without initializers and inputs.
    fn graph(
        &mut self,
        name: &str,
        kind: ProgramKind,
        inputs: &[Port],
        outputs: &[Port],
        results: &Results,
        scope: &mut Scope,
    ) -> GraphProto {
        let named: Vec<(usize, String)> =
            results.iter().map(|r| r.0).zip(outputs.iter().map(|p| p.name.clone())).collect();
        let mut cx = Cx::new(&mut self.store, scope, self.qdq);
        if let Err(unsupported) = program::write(&mut cx, self.origin, kind, inputs, &named) {
            self.unsupported.extend(unsupported);
        }
        let output = outputs.iter().map(|p| value_info(&p.name, &p.ty)).collect();
        GraphProto {
            name: Some(name.into()),
            node: std::mem::take(&mut cx.nodes),
            output,
            ..Default::default()
        }
    }

    fn push_model(
        &mut self,
        name: &'static str,
        mut graph: GraphProto,
        scope: Scope,
        inputs: Vec<Port>,
        outputs: Vec<Port>,
    ) {
        graph.initializer = scope.initializers;
        graph.input = inputs.iter().map(|p| value_info(&p.name, &p.ty)).collect();
        self.models.push(ExportedModel { name, proto: proto::model(graph), inputs, outputs });
    }

    /// Adds the model that chooses between `full` and `cached`.
    fn choice(&mut self, full: Results, full_evaluations: &[usize]) {
        let plan = self.origin.plan;
        let cached = outputs(plan, ProgramKind::Cached);
        let mut inputs = vec![];
        ports::add_inputs(&mut inputs, plan, ProgramKind::Full, &values(&full));
        ports::add_inputs(&mut inputs, plan, ProgramKind::Cached, &values(&cached));
        self.add_cache(&mut inputs);
        let mut outputs = self.output_ports(ProgramKind::Full, &full, &inputs);
        let (computed, previous) = (outputs.len(), previous(plan));
        outputs.extend(previous.iter().map(|&(slot, _)| self.slot_port(slot, &inputs)));
        let mut scope = Scope::default();
        inputs.iter().chain(&outputs).for_each(|p| drop(scope.unique(&p.name)));

        let branch = |outputs: &[Port], scope: &mut Scope, name: &str| -> Vec<Port> {
            let rename =
                |p: &Port| Port { name: scope.unique(&format!("{name}/{}", p.name)), ..p.clone() };
            outputs.iter().map(rename).collect()
        };
        let (then_ports, else_ports) =
            (branch(&outputs, &mut scope, "full"), branch(&outputs, &mut scope, "cached"));
        let mut then = self.graph(
            "full",
            ProgramKind::Full,
            &inputs,
            &then_ports[..computed],
            &full,
            &mut scope,
        );
        pass_on(&mut then, &previous, &inputs, &then_ports[computed..], &mut scope);
        let own = &else_ports[..cached.len()];
        let mut other =
            self.graph("cached", ProgramKind::Cached, &inputs, own, &cached, &mut scope);
        for slot in &else_ports[cached.len()..] {
            let kept =
                inputs.iter().find(|p| p.value == slot.value).expect("all slots have been added");
            other.node.push(identity(&kept.name, &slot.name, &mut scope));
            other.output.push(value_info(&slot.name, &slot.ty));
        }

        let count = self.origin.timesteps.len();
        let table: Vec<bool> =
            (0..count).map(|e| full_evaluations.binary_search(&e).is_ok()).collect();
        let mut cx = Cx::new(&mut self.store, &mut scope, self.qdq);
        let step = cx.input("step", ports::step_port().ty);
        let table = cx.constant("full_evaluations", Tensor::from_bool(&[count], &table));
        cx.step = "is_full".into();
        let is_full =
            cx.emit(Op::Gather { axis: 0 }, &[table, step]).expect("Gather has a spelling");
        cx.step = "evaluation".into();
        let branches =
            vec![graph_attribute("then_branch", then), graph_attribute("else_branch", other)];
        cx.node("If", &[is_full], branches, outputs[0].ty.clone());
        let mut nodes = std::mem::take(&mut cx.nodes);
        let choice = nodes.last_mut().expect("it has just been written");
        choice.output = outputs.iter().map(|p| p.name.clone()).collect();
        let graph = GraphProto {
            name: Some("model".into()),
            node: nodes,
            output: outputs.iter().map(|p| value_info(&p.name, &p.ty)).collect(),
            ..Default::default()
        };
        self.push_model("model", graph, scope, inputs, outputs);
    }

    /// Adds the cache slots that no program reads, so that they pass through, and `step`.
    fn add_cache(&self, inputs: &mut Vec<Port>) {
        let step = inputs.pop_if(|p| p.value == Wire::Step).unwrap_or_else(ports::step_port);
        let slots = self.origin.plan.cache.as_ref().map_or(0, |c| c.slots.len());
        (0..slots).for_each(|i| self.add_slot(inputs, i));
        inputs.push(step);
    }

    /// Adds a slot to the inputs unless it is one already.
    fn add_slot(&self, inputs: &mut Vec<Port>, slot: usize) {
        if inputs.iter().all(|p| p.value != Wire::Cache(slot)) {
            inputs.push(self.slot_port(slot, &[]));
        }
    }

    /// A slot as an output of a model with these inputs.
    fn slot_port(&self, slot: usize, inputs: &[Port]) -> Port {
        let plan = self.origin.plan;
        let declared = &plan.cache.as_ref().expect("it has slots").slots[slot];
        let (value, ty) = (Wire::Cache(slot), plan.full.values[declared.value].ty.clone());
        Port {
            name: free_name(value.to_string(), inputs),
            ty,
            value,
            tensor: declared.name.clone(),
        }
    }

    /// The outputs. They have the names of the source model or of their wires. One that has the
    /// name of an input gets the prefix `next_`.
    fn output_ports(&self, kind: ProgramKind, results: &Results, inputs: &[Port]) -> Vec<Port> {
        let program = self.origin.plan.program(kind);
        let port = |(v, wire): &(usize, Wire)| {
            let value = &program.values[*v];
            let (name, tensor) = match (wire, &self.origin.plan.cache) {
                (Wire::Output(name), _) => (name.clone(), name.clone()),
                (Wire::Cache(i), Some(cache)) => (wire.to_string(), cache.slots[*i].name.clone()),
                _ => (wire.to_string(), value.name.clone()),
            };
            let name = free_name(name, inputs);
            Port { name, ty: value.ty.clone(), value: wire.clone(), tensor }
        };
        results.iter().map(port).collect()
    }
}

/// The name, with `next_` in front if an input has it.
fn free_name(name: String, inputs: &[Port]) -> String {
    if inputs.iter().any(|p| p.name == name) { format!("next_{name}") } else { name }
}

/// Adds outputs that are inputs: slots that take over the content of another slot. As long as that
/// slot is empty, no result depends on it.
fn pass_on(
    graph: &mut GraphProto,
    previous: &[(usize, usize)],
    inputs: &[Port],
    ports: &[Port],
    scope: &mut Scope,
) {
    for (&(_, of), port) in previous.iter().zip(ports) {
        let kept = inputs.iter().find(|p| p.value == Wire::Cache(of)).expect("it has been added");
        graph.node.push(identity(&kept.name, &port.name, scope));
        graph.output.push(value_info(&port.name, &port.ty));
    }
}

fn values(results: &Results) -> Vec<usize> {
    results.iter().map(|r| r.0).collect()
}

fn identity(from: &str, to: &str, scope: &mut Scope) -> cqc_proto::onnx::NodeProto {
    cqc_proto::onnx::NodeProto {
        input: vec![from.into()],
        output: vec![to.into()],
        name: Some(scope.unique(&format!("{to}/Identity"))),
        op_type: Some("Identity".into()),
        ..Default::default()
    }
}
