//! Opens an engine: sizes, kernels, addresses.

use super::program::{Draft, Options, Place};
use super::values::Value;
use super::{Engine, EngineError, EngineOptions, Slot, Weights};
use cqc_kernels::Pool;
use cqc_kernels::arena::{ALIGN, Arena, Span};
use cqc_proto::plan::{InputRole, Plan, PlanInput, PlanValue, ProgramKind, Source};
use cqc_proto::{Bindings, DType};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) fn open(weights: &Arc<Weights>, options: &EngineOptions) -> Result<Engine, EngineError> {
    let plan = weights.plan();
    check_batch(plan, options.batch)?;
    let pool = options.pool.clone().unwrap_or_else(|| Arc::new(Pool::new(options.threads)));
    let kept = kept_values(plan, &options.keep)?;
    let keep: Vec<usize> = kept.values().copied().collect();
    let (isa, threads, reference) = (weights.isa(), pool.threads(), options.reference);
    let draft = |kind, rows: usize, keep: &[usize]| {
        let bindings = plan.batch_symbol.iter().map(|s| (s.as_str().into(), rows as i64)).collect();
        Draft::new(weights, kind, &bindings, &Options { isa, threads, reference, keep, max_memory: options.max_memory })
    };
    let prelude = draft(ProgramKind::Prelude, options.batch, &[])?;
    let full = draft(ProgramKind::Full, options.batch, &keep)?;
    let draft_chunk = |chunk: usize| draft(ProgramKind::PreludeSteps, chunk * options.batch, &[]);
    let (chunk, prelude_steps) = draft_steps(plan, options.prelude_memory, &draft_chunk)?;
    check_stacked(plan, &prelude_steps, &prelude, chunk, options.batch)?;

    let mut request = Stack::default();
    let inputs = slots(plan, options.batch, &mut request)?;
    let results = result_spans(&prelude, plan, 1, 1, &mut request)?;
    let step_results = result_spans(&prelude_steps, plan, chunk, plan.evaluations, &mut request)?;
    let base = request.0;
    let buffers = prelude.bytes.max(prelude_steps.bytes).max(full.bytes);
    let bytes = base.saturating_add(buffers);
    if bytes > options.max_memory {
        return Err(EngineError::Memory { needed: bytes, limit: options.max_memory });
    }
    let outside = |value: &Value| outside(value, &inputs, &results, &step_results);
    let programs = [prelude, prelude_steps, full].map(|draft| draft.finish(weights, base, &outside));
    let clock = options.profile.then(|| [0, 1, 2].map(|i| vec![Default::default(); programs[i].steps.len()]));
    Ok(Engine {
        weights: Arc::clone(weights),
        pool,
        batch: options.batch,
        arena: Arena::new(bytes),
        inputs,
        results,
        step_results,
        chunk,
        programs,
        kept,
        timesteps: Vec::new(),
        begun: false,
        last: 0,
        clock,
    })
}

fn check_batch(plan: &Plan, asked: usize) -> Result<(), EngineError> {
    let allowed = match (&plan.batch_symbol, plan.fixed_batch) {
        (Some(_), _) if (1..=1 << 20).contains(&asked) => return Ok(()),
        (Some(_), _) => "1 to 2^20".into(),
        (None, fixed) if asked == fixed.unwrap_or(1) => return Ok(()),
        (None, fixed) => fixed.unwrap_or(1).to_string(),
    };
    Err(EngineError::Batch { asked, allowed })
}

fn kept_values(plan: &Plan, names: &[String]) -> Result<BTreeMap<String, usize>, EngineError> {
    let outputs = plan.outputs.iter().map(|o| Ok((o.name.clone(), o.value)));
    let kept = names.iter().filter(|name| plan.outputs.iter().all(|o| o.name != **name)).map(|name| {
        let found = plan.full.values.iter().rposition(|v| v.name == *name);
        found.map(|v| (name.clone(), v)).ok_or_else(|| EngineError::NoValue { name: name.clone() })
    });
    outputs.chain(kept).collect()
}

/// Whether `prelude_steps` runs evaluation by evaluation: its time step is one for the whole batch, or its fixed batch is not stacked.
fn has_single_timestep(plan: &Plan) -> bool {
    let Some(symbol) = &plan.batch_symbol else { return plan.steps_one_by_one() };
    let is_single = |v: &PlanValue| match v.source {
        Source::Input(i) => {
            plan.inputs[i].role == InputRole::Timestep && v.ty.shape.iter().all(|d| d.coefficient(symbol) == 0)
        }
        _ => false,
    };
    plan.prelude_steps.values.iter().any(is_single)
}

/// As many evaluations at once as memory allows; all of them if the batch is fixed.
fn draft_steps(
    plan: &Plan,
    memory: usize,
    draft: &dyn Fn(usize) -> Result<Draft, EngineError>,
) -> Result<(usize, Draft), EngineError> {
    let mut chunk = if has_single_timestep(plan) { 1 } else { plan.evaluations.max(1) };
    loop {
        let draft = draft(chunk)?;
        if plan.batch_symbol.is_none() || chunk == 1 || draft.bytes <= memory {
            return Ok((chunk, draft));
        }
        chunk = chunk.div_ceil(2);
    }
}

/// Checks that what `prelude_steps` reads is a whole number of what is stacked.
fn check_stacked(plan: &Plan, steps: &Draft, prelude: &Draft, chunk: usize, batch: usize) -> Result<(), EngineError> {
    let bindings: Bindings = plan.batch_symbol.iter().map(|s| (s.as_str().into(), batch as i64)).collect();
    for (i, value) in steps.values.iter().enumerate() {
        let one = match value.source {
            Source::Input(i) => plan.inputs[i].ty.resolve(&bindings).map(|s| s.iter().product::<usize>()),
            Source::Prelude(i) => Some(prelude.values[plan.prelude.results[i]].len()),
            Source::Table(i) => plan.constants[i].ty.fixed_shape().map(|s| s[1..].iter().product::<usize>() * batch),
            _ => continue,
        };
        let is_time = matches!(value.source, Source::Input(i) if plan.inputs[i].role == InputRole::Timestep);
        let stacked = one.is_some_and(|one| value.len() == one * chunk) || (is_time && value.len() == batch * chunk);
        if !stacked && (is_time || one != Some(value.len())) {
            let ty = plan.prelude_steps.values[i].ty.clone();
            return Err(EngineError::Size { program: ProgramKind::PreludeSteps, name: value.name.clone(), ty });
        }
    }
    Ok(())
}

/// The end of what has been given out so far.
#[derive(Default)]
struct Stack(usize);

impl Stack {
    fn push(&mut self, bytes: usize) -> Result<Span, EngineError> {
        let span = Span::new(self.0, bytes);
        let end = self.0.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(ALIGN));
        self.0 = end.ok_or(EngineError::Memory { needed: usize::MAX, limit: usize::MAX })?;
        Ok(span)
    }
}

fn slots(plan: &Plan, batch: usize, request: &mut Stack) -> Result<Vec<Slot>, EngineError> {
    let bindings = plan.batch_symbol.iter().map(|s| (s.as_str().into(), batch as i64)).collect();
    let slot = |input: &PlanInput| {
        let error = || EngineError::Size { program: ProgramKind::Full, name: input.name.clone(), ty: input.ty.clone() };
        let shape = input.ty.resolve(&bindings).filter(|s| !s.contains(&0)).ok_or_else(error)?;
        let dtype = if input.ty.dtype.is_float() { DType::F32 } else { input.ty.dtype };
        let span = request.push(shape.iter().product::<usize>() * dtype.size())?;
        Ok(Slot { shape, dtype, span })
    };
    plan.inputs.iter().map(slot).collect()
}

/// Where the results of a prelude are kept, which computes `chunk` of `evaluations` at once: the span of the first.
fn result_spans(
    draft: &Draft,
    plan: &Plan,
    chunk: usize,
    evaluations: usize,
    request: &mut Stack,
) -> Result<Vec<Span>, EngineError> {
    let results = plan.program(draft.kind).results.iter();
    let span = |&value: &usize| {
        let one = draft.values[value].bytes() / chunk;
        let all = one.saturating_mul(evaluations.max(1));
        Ok(Span::new(request.push(all)?.offset, one))
    };
    results.map(span).collect()
}

/// Where a value lies that outlives its program.
fn outside(value: &Value, inputs: &[Slot], results: &[Span], step_results: &[Span]) -> Place {
    match value.source {
        Source::Input(i) => Place::Memory { span: inputs[i].span, step: 0 },
        Source::Prelude(i) => Place::Memory { span: results[i], step: 0 },
        Source::PreludeSteps(i) => Place::Memory { span: step_results[i], step: step_results[i].bytes },
        _ => Place::Memory { span: Span::new(0, 0), step: 0 },
    }
}
