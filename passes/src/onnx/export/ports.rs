//! The inputs and outputs of exported models, and their roles in the loop.

use cqc_proto::ValueType;
use cqc_proto::plan::{InputRole, Plan, Program, ProgramKind, Source};
use std::collections::HashSet;

/// An input or output of an exported model.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Its name in the model.
    pub name: String,
    /// Its type. Floats are f32, whatever the source model has.
    pub ty: ValueType,
    /// The value of the loop that it carries.
    pub value: Wire,
    /// Name of the tensor in the source model.
    pub tensor: String,
}

/// A value of the loop, which one model computes and another one reads. Its text form is the
/// `value` of a port in `schedule.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wire {
    /// The noisy sample.
    Sample,
    /// The time step, where it is an ordinary input.
    Timestep,
    /// A condition, by its name in the source model.
    Condition(String),
    /// The number of the evaluation, an i64 from 0.
    Step,
    /// A result of the prelude, by its index.
    Prelude(usize),
    /// A result of the prelude for one evaluation, by its index.
    PreludeSteps(usize),
    /// A slot of the cache, by its index.
    Cache(usize),
    /// An output of the source model, by its name.
    Output(String),
}

impl std::fmt::Display for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wire::Sample => f.write_str("sample"),
            Wire::Timestep => f.write_str("timestep"),
            Wire::Condition(name) => write!(f, "condition.{name}"),
            Wire::Step => f.write_str("step"),
            Wire::Prelude(i) => write!(f, "prelude.{i}"),
            Wire::PreludeSteps(i) => write!(f, "prelude_steps.{i}"),
            Wire::Cache(i) => write!(f, "cache.{i}"),
            Wire::Output(name) => write!(f, "output.{name}"),
        }
    }
}

/// The values of a program that a step reads or that are a result. For a reshape it is the value
/// that is reshaped.
pub(super) fn used(program: &Program, results: &[usize]) -> HashSet<usize> {
    use cqc_proto::plan::Alias;
    let mut used: HashSet<usize> = results.iter().copied().collect();
    used.extend(program.steps.iter().flat_map(|s| s.inputs.iter().copied().flatten()));
    let roots = used.iter().filter_map(|&v| match program.values[v].alias {
        Some(Alias::Same { of }) => Some(of),
        _ => None,
    });
    let roots: Vec<usize> = roots.collect();
    used.extend(roots);
    used
}

/// The wire that carries a source; `None` for a source that the model computes itself.
pub(super) fn wire(plan: &Plan, kind: ProgramKind, source: Source) -> Option<Wire> {
    match source {
        Source::Input(i) => match plan.inputs[i].role {
            InputRole::Sample => Some(Wire::Sample),
            InputRole::Timestep if kind == ProgramKind::PreludeSteps => None,
            InputRole::Timestep => Some(Wire::Timestep),
            InputRole::Condition | InputRole::StepCondition => {
                Some(Wire::Condition(plan.inputs[i].name.clone()))
            }
        },
        Source::Prelude(i) => Some(Wire::Prelude(i)),
        Source::PreludeSteps(i) => Some(Wire::PreludeSteps(i)),
        Source::Cache(i) => Some(Wire::Cache(i)),
        Source::Step | Source::Constant(_) | Source::Table(_) => None,
    }
}

/// Whether a program needs the number of the evaluation.
fn wants_step(plan: &Plan, kind: ProgramKind, source: Source) -> bool {
    let timestep = |i: usize| plan.inputs[i].role == InputRole::Timestep;
    matches!(source, Source::Table(_))
        || matches!(source, Source::Input(i) if kind == ProgramKind::PreludeSteps && timestep(i))
}

/// Adds the inputs of the program that are missing: the sample, the conditions and the rest in the
/// order of the program, and `step` at the end.
pub(super) fn add_inputs(ports: &mut Vec<Port>, plan: &Plan, kind: ProgramKind, results: &[usize]) {
    let program = plan.program(kind);
    let used = used(program, results);
    let mut step = ports.pop_if(|p| p.value == Wire::Step);
    for (_, value) in program.values.iter().enumerate().filter(|(v, _)| used.contains(v)) {
        if wants_step(plan, kind, value.source) {
            step.get_or_insert_with(step_port);
        }
        let Some(wire) = wire(plan, kind, value.source) else { continue };
        if ports.iter().any(|p| p.value == wire) {
            continue;
        }
        let tensor = match (&value.source, &plan.cache) {
            (Source::Input(i), _) => plan.inputs[*i].name.clone(),
            (Source::Cache(i), Some(cache)) => cache.slots[*i].name.clone(),
            _ => value.name.clone(),
        };
        let name = match value.source {
            Source::Input(_) => tensor.clone(),
            _ => wire.to_string(),
        };
        ports.push(Port { name, ty: value.ty.clone(), value: wire, tensor });
    }
    ports.sort_by_key(|p| match p.value {
        Wire::Sample => 0,
        Wire::Timestep => 1,
        Wire::Condition(_) => 2,
        Wire::Prelude(_) => 3,
        Wire::PreludeSteps(_) => 4,
        _ => 5,
    });
    ports.extend(step);
}

pub(super) fn step_port() -> Port {
    let ty = ValueType::fixed(cqc_proto::DType::I64, &[]);
    Port { name: "step".into(), ty, value: Wire::Step, tensor: String::new() }
}
