//! Target `onnx`: bytes of a model → import → rewrites → binding times → plan → one evaluation.

mod mutate;
mod names;
mod seeds;

pub use mutate::mutate;
pub use seeds::seeds;

use crate::plan::evaluate;
use bytes::Bytes;
use cqc_passes::bind::{self, Bound};
use cqc_passes::cache::{self, Batch, CutSpec};
use cqc_passes::ir::{Graph, ValueId, verify};
use cqc_passes::lower::{Lowering, WeightSection, lower};
use cqc_passes::onnx::limits::Budget;
use cqc_passes::onnx::{ImportOptions, import_bytes};
use cqc_passes::rewrite;
use cqc_proto::plan::{InputRole, Plan, PlanInput, PlanOutput, validate};
use cqc_runtime::engine::Weights;

/// Most bytes of weights that are evaluated.
const MAX_WEIGHTS: u64 = 8 << 20;

/// What import and tables may take.
const BUDGET: Budget = Budget { fold_bytes: 4 << 20, fold_macs: 1 << 20, unrolled: 64 };

/// Runs the compiler on a model and one evaluation of what comes out. Whatever the model is, the
/// graph is valid after import and after every pass, and lowers to a valid plan.
pub fn run(data: &[u8]) -> bool {
    let options = ImportOptions { budget: BUDGET, ..ImportOptions::default() };
    let Ok(imported) = import_bytes(Bytes::copy_from_slice(data), &options) else { return false };
    crate::depth::read();
    let mut graph = imported.graph;
    verify(&graph).expect("an imported graph is valid");
    let inputs = inputs(&graph);
    let outputs = outputs(&graph);
    rewrite::run(&mut graph, rewrite::PIPELINE, |_, _| {}).expect("passes keep graphs valid");

    let seed = crate::hash(data);
    let program = Program::new(&graph, inputs, outputs);
    if program.run(bind::unbound(&graph), 0, seed).is_some() {
        crate::depth::evaluated();
    }
    // the loop takes twice the time of all the rest
    if seed.is_multiple_of(4)
        && let Some((bound, evaluations)) = program.bind_loop(&graph)
    {
        if let Some(cached) = program.cut(&bound, evaluations) {
            program.run(cached, evaluations, seed);
        }
        program.run(bound, evaluations, seed);
    }
    true
}

/// The plan of one evaluation of a model, and its constants.
pub fn lowered(model: &[u8]) -> Option<(Plan, WeightSection)> {
    let imported = import_bytes(Bytes::copy_from_slice(model), &ImportOptions::default()).ok()?;
    let mut graph = imported.graph;
    let (inputs, outputs) = (inputs(&graph), outputs(&graph));
    rewrite::run(&mut graph, rewrite::PIPELINE, |_, _| {}).ok()?;
    let program = Program::new(&graph, inputs, outputs);
    let lowered = program.lower(&bind::unbound(&graph), 0, false)?;
    Some((lowered.plan, lowered.weights))
}

fn outputs(graph: &Graph) -> Vec<PlanOutput> {
    let output = |(name, v): &(String, ValueId)| PlanOutput {
        name: name.clone(),
        ty: graph.ty(*v).clone(),
        value: 0,
    };
    graph.outputs.iter().map(output).collect()
}

/// What an input means: the first float of two or more axes is the sample, the first other of at
/// most one axis is the time step.
fn inputs(graph: &Graph) -> Vec<PlanInput> {
    let mut sample = false;
    let mut time = false;
    let input = |&v: &ValueId| {
        let ty = graph.ty(v).clone();
        let role = if !sample && ty.dtype.is_float() && ty.rank() >= 2 {
            sample = true;
            InputRole::Sample
        } else if !time && ty.rank() <= 1 {
            time = true;
            InputRole::Timestep
        } else {
            InputRole::Condition
        };
        PlanInput { name: graph.value(v).name.clone(), ty, role }
    };
    graph.inputs.iter().map(input).collect()
}

/// A graph's surroundings.
struct Program {
    inputs: Vec<PlanInput>,
    outputs: Vec<PlanOutput>,
    batch_symbol: Option<String>,
    fixed_batch: Option<usize>,
}

impl Program {
    fn new(graph: &Graph, inputs: Vec<PlanInput>, outputs: Vec<PlanOutput>) -> Program {
        let first = |&v: &ValueId| graph.shape(v).first()?.as_symbol().map(str::to_string);
        let batch_symbol = graph.inputs.iter().find_map(first);
        let sample = inputs.iter().find(|i| i.role == InputRole::Sample);
        let fixed_batch = match batch_symbol {
            Some(_) => None,
            None => sample.and_then(|i| i.ty.shape.first()?.as_const()).map(|b| b as usize),
        };
        Program { inputs, outputs, batch_symbol, fixed_batch }
    }

    fn roles(&self) -> Vec<InputRole> {
        self.inputs.iter().map(|i| i.role).collect()
    }

    /// A loop of three evaluations, if there are a sample and a time step.
    fn bind_loop(&self, graph: &Graph) -> Option<(Bound, usize)> {
        let roles = self.roles();
        let is_loop = [InputRole::Sample, InputRole::Timestep].iter().all(|r| roles.contains(r));
        // a table of a huge time step takes the memory that it takes
        let small = self.inputs.iter().filter(|i| i.role == InputRole::Timestep).all(|i| {
            let known = i.ty.shape.iter().map(|d| d.as_const().unwrap_or(1));
            known.fold(1i64, i64::saturating_mul) <= 1 << 16
        });
        if !is_loop || !small {
            return None;
        }
        let times = [999.0, 500.0, 0.0];
        match bind::bind_within(graph, &roles, self.batch_symbol.as_deref(), &times, &BUDGET) {
            Ok(bound) => Some((bound, times.len())),
            Err(bind::BindError::Op(e)) => panic!("a cut part does not type-check: {e}"),
            Err(_) => None,
        }
    }

    /// The loop with a cache, if there is something to cache.
    fn cut(&self, bound: &Bound, evaluations: usize) -> Option<Bound> {
        let batch = match &self.batch_symbol {
            Some(symbol) => Batch::Symbol(symbol),
            None => Batch::Fixed(self.fixed_batch.unwrap_or(1)),
        };
        let step = &bound.full.graph;
        let sample = cache::sample_value(&bound.full, &self.roles())?;
        let candidates = cache::candidates(step, sample, batch);
        let cut = cache::choose(&candidates, &CutSpec::Auto, step, sample, batch).ok()?;
        let split = cache::split(&bound.full, &cut).expect("a cut splits the step");
        let full: Vec<usize> = (0..evaluations).step_by(2).collect();
        Some(cache::assemble(bound, &split, &full, None).expect("a split step assembles").0)
    }

    /// A valid plan of little weight.
    fn lower(&self, bound: &Bound, evaluations: usize, any_steps: bool) -> Option<Lowering> {
        for part in [&bound.full, &bound.prelude, &bound.prelude_steps, &bound.times] {
            verify(&part.graph).expect("a part is valid");
        }
        let lowered = lower(
            bound,
            self.inputs.clone(),
            self.outputs.clone(),
            self.batch_symbol.as_deref(),
            self.fixed_batch,
            evaluations,
            any_steps,
        );
        let lowered = lowered.expect("a valid graph lowers");
        let small = lowered.weights.len <= MAX_WEIGHTS;
        (small && validate(&lowered.plan, lowered.weights.len).is_ok()).then_some(lowered)
    }

    /// Lowers to a plan and runs it once.
    fn run(&self, bound: Bound, evaluations: usize, seed: u8) -> Option<()> {
        let Lowering { plan, weights, .. } =
            self.lower(&bound, evaluations, (seed / 4).is_multiple_of(2))?;
        let mut bytes = vec![0; weights.len as usize];
        for (offset, tensor) in &weights.parts {
            bytes[*offset as usize..][..tensor.bytes().len()].copy_from_slice(tensor.bytes());
        }
        let batch = self.fixed_batch.unwrap_or(1 + usize::from(seed % 3 == 0));
        let weights = Weights::new(plan, bytes.into()).expect("validated above");
        evaluate(&weights, batch, seed)
    }
}
