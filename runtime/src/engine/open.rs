//! Opens an engine: determines sizes, chooses kernels and assigns addresses.

use super::program::{Draft, Location, ProgramOptions};
use super::values::Value;
use super::{
    DevicePreludes, Engine, EngineError, EngineOptions, EngineSizes, InputSlot, RequestLayout,
    Weights,
};
use cqc_kernels::arena::{ALIGN, Arena, Span};
use cqc_kernels::{Pool, memory};
use cqc_proto::plan::{InputRole, Plan, PlanInput, PlanValue, ProgramKind, Source};
use cqc_proto::{Bindings, DType};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) fn open(weights: &Arc<Weights>, options: &EngineOptions) -> Result<Engine, EngineError> {
    let mut preludes =
        if options.device.is_some() { DevicePreludes::ALL } else { DevicePreludes::NONE };
    loop {
        // a prelude that the device cannot run, and the one whose results it reads, run on the CPU
        preludes = match open_with(weights, options, preludes) {
            Err(EngineError::NoDeviceKernel { program, .. }) if preludes.contains(program) => {
                match program {
                    ProgramKind::Prelude => DevicePreludes { prelude: false, ..preludes },
                    _ => DevicePreludes::NONE,
                }
            }
            done => return done,
        }
    }
}

/// The programs of an engine and the layout of a request, before memory is allocated.
struct Layout {
    /// The programs in the order of [`ProgramKind::ALL`].
    drafts: [Draft; 4],
    request: RequestLayout,
    /// The number of evaluations that `prelude_steps` computes at once.
    chunk: usize,
    /// The values of the full step and of the cached step that stay readable.
    kept: [BTreeMap<String, usize>; 2],
}

impl Layout {
    /// The size in bytes of the block that all programs share.
    fn buffers(&self) -> usize {
        self.drafts.iter().map(|draft| draft.bytes).max().unwrap_or(0)
    }
}

/// The memory that an engine needs on the CPU.
pub(super) fn sizes(
    weights: &Arc<Weights>,
    options: &EngineOptions,
) -> Result<EngineSizes, EngineError> {
    let layout = lay_out(weights, options, options.threads, DevicePreludes::NONE)?;
    let programs = [0, 1, 2, 3].map(|i| layout.drafts[i].bytes);
    Ok(EngineSizes { request: layout.request.bytes, programs })
}

/// Chooses the kernels and addresses of an engine with `threads` threads that runs `preludes` on
/// its device.
fn lay_out(
    weights: &Arc<Weights>,
    options: &EngineOptions,
    threads: usize,
    preludes: DevicePreludes,
) -> Result<Layout, EngineError> {
    let plan = weights.plan();
    check_batch(plan, options.batch)?;
    let [kept_full, kept_cached] = kept_values(plan, &options.keep)?;
    let (isa, reference) = (weights.isa(), options.reference);
    let low_precision = options.low_precision && !reference;
    let bf16 = low_precision && (isa.has_bf16() || options.emulate_bf16);
    let on_device = options.device.is_some();
    check_device(options)?;
    let draft = |kind: ProgramKind, rows: usize, keep: &BTreeMap<String, usize>| {
        let bindings = plan.batch_symbol.iter().map(|s| (s.as_str().into(), rows as i64)).collect();
        let keep: Vec<usize> = keep.values().copied().collect();
        let max_memory = options.max_memory;
        let elsewhere = if kind.is_step() { on_device } else { preludes.contains(kind) };
        let options = ProgramOptions {
            isa,
            threads,
            low_precision,
            bf16,
            reference,
            keep: &keep,
            max_memory,
            elsewhere,
        };
        Draft::new(weights, kind, &bindings, &options)
    };
    let none = BTreeMap::new();
    let prelude = draft(ProgramKind::Prelude, options.batch, &none)?;
    let full = draft(ProgramKind::Full, options.batch, &kept_full)?;
    let cached = draft(ProgramKind::Cached, options.batch, &kept_cached)?;
    let draft_chunk = |chunk: usize| {
        let mut steps = draft(ProgramKind::PreludeSteps, chunk * options.batch, &none)?;
        if let Some(device) = options.device.as_ref().filter(|_| preludes.prelude_steps) {
            let bindings = plan
                .batch_symbol
                .iter()
                .map(|s| (s.as_str().into(), (chunk * options.batch) as i64))
                .collect();
            steps.bytes = device.prelude_bytes(weights, ProgramKind::PreludeSteps, &bindings)?;
        }
        Ok(steps)
    };
    let (chunk, mut prelude_steps) = draft_steps(plan, options.prelude_memory, &draft_chunk)?;
    if preludes.prelude_steps {
        prelude_steps.bytes = 0; // on this machine
    }
    check_stacked(plan, &prelude_steps, &prelude, chunk, options.batch)?;

    let mut request = Stack::default();
    let request = RequestLayout {
        inputs: slots(plan, options.batch, &mut request)?,
        results: result_spans(&prelude, plan, 1, 1, &mut request)?,
        step_results: result_spans(&prelude_steps, plan, chunk, plan.evaluations, &mut request)?,
        cache: cache_spans(plan, &full, &mut request)?,
        bytes: request.0,
    };
    let drafts = [prelude, prelude_steps, full, cached];
    Ok(Layout { drafts, request, chunk, kept: [kept_full, kept_cached] })
}

/// Opens an engine that runs the given preludes on its device.
fn open_with(
    weights: &Arc<Weights>,
    options: &EngineOptions,
    preludes: DevicePreludes,
) -> Result<Engine, EngineError> {
    let pool = options.pool.clone().unwrap_or_else(|| Arc::new(Pool::new(options.threads)));
    weights.check_memory()?;
    let laid = lay_out(weights, options, pool.threads(), preludes)?;
    let buffers = laid.buffers();
    let Layout { drafts, request: layout, chunk, kept } = laid;
    let bytes = layout.bytes.saturating_add(buffers);
    if bytes > options.max_memory {
        return Err(EngineError::Memory { needed: bytes, limit: options.max_memory });
    }
    let batch = options.batch;
    memory::check(format_args!("an evaluation of batch {batch}"), bytes)?;
    let outside = |value: &Value| outside(value, &layout);
    let arena = Arena::try_new(buffers)?;
    let programs = drafts.map(|draft| draft.place(weights, &outside));
    let device = options
        .device
        .as_ref()
        .map(|backend| backend.open(weights, options, &layout, preludes, chunk));
    let device = device.transpose()?;
    let clock = options
        .profile
        .then(|| [0, 1, 2, 3].map(|i| vec![Default::default(); programs[i].steps.len()]));
    Ok(Engine {
        weights: Arc::clone(weights),
        pool,
        options: options.clone(),
        batch: options.batch,
        arena,
        layout: Arc::new(layout),
        chunk,
        programs,
        kept,
        clock,
        device,
    })
}

/// Refuses options that an engine on a device does not support.
fn check_device(options: &EngineOptions) -> Result<(), EngineError> {
    let asked = [
        (!options.keep.is_empty(), "values cannot be tapped"),
        (options.profile, "steps are not timed one by one"),
        (options.reference, "steps do not run through their definitions"),
    ];
    match asked.iter().find(|(asked, _)| *asked) {
        Some((_, what)) if options.device.is_some() => Err(EngineError::OnDevice { what }),
        _ => Ok(()),
    }
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

/// The named values and the outputs, of the full step and of the cached step.
fn kept_values(plan: &Plan, names: &[String]) -> Result<[BTreeMap<String, usize>; 2], EngineError> {
    let inner = || names.iter().filter(|name| plan.outputs.iter().all(|o| o.name != **name));
    let find =
        |kind, name: &String| plan.program(kind).values.iter().rposition(|v| v.name == *name);
    if let Some(name) = inner().find(|name| find(ProgramKind::Full, name).is_none()) {
        return Err(EngineError::NoValue { name: name.clone() });
    }
    let kept = |kind| {
        let has = kind == ProgramKind::Full || plan.cache.is_some();
        let outputs = plan.outputs.iter().enumerate().filter(|_| has);
        let outputs = outputs.map(|(i, o)| (o.name.clone(), plan.output_value(kind, i)));
        outputs.chain(inner().filter_map(|name| Some((name.clone(), find(kind, name)?)))).collect()
    };
    Ok([kept(ProgramKind::Full), kept(ProgramKind::Cached)])
}

/// Whether `prelude_steps` must run one evaluation at a time: it has one time step for the whole
/// batch, or its fixed batch cannot be stacked.
fn has_single_timestep(plan: &Plan) -> bool {
    let Some(symbol) = &plan.batch_symbol else { return plan.steps_one_by_one() };
    let is_single = |v: &PlanValue| match v.source {
        Source::Input(i) => {
            plan.inputs[i].role == InputRole::Timestep
                && v.ty.shape.iter().all(|d| d.coefficient(symbol) == 0)
        }
        _ => false,
    };
    plan.prelude_steps.values.iter().any(is_single)
}

/// Drafts `prelude_steps` for as many evaluations at once as memory allows, or for all if the batch
/// is fixed.
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

/// Checks that every value that `prelude_steps` reads is stacked a whole number of times.
fn check_stacked(
    plan: &Plan,
    steps: &Draft,
    prelude: &Draft,
    chunk: usize,
    batch: usize,
) -> Result<(), EngineError> {
    let bindings: Bindings =
        plan.batch_symbol.iter().map(|s| (s.as_str().into(), batch as i64)).collect();
    for (i, value) in steps.values.iter().enumerate() {
        let one = match value.source {
            Source::Input(i) => {
                plan.inputs[i].ty.resolve(&bindings).map(|s| s.iter().product::<usize>())
            }
            Source::Prelude(i) => Some(prelude.values[plan.prelude.results[i]].len()),
            Source::Table(i) => {
                plan.constants[i].ty.fixed_shape().map(|s| s[1..].iter().product::<usize>() * batch)
            }
            _ => continue,
        };
        let is_time =
            matches!(value.source, Source::Input(i) if plan.inputs[i].role == InputRole::Timestep);
        let stacked = one.is_some_and(|one| value.len() == one * chunk)
            || (is_time && value.len() == batch * chunk);
        if !stacked && (is_time || one != Some(value.len())) {
            let ty = plan.prelude_steps.values[i].ty.clone();
            return Err(EngineError::Size {
                program: ProgramKind::PreludeSteps,
                name: value.name.clone(),
                ty,
            });
        }
    }
    Ok(())
}

/// The end of the memory that has been assigned so far.
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

fn slots(plan: &Plan, batch: usize, request: &mut Stack) -> Result<Vec<InputSlot>, EngineError> {
    let bindings = plan.batch_symbol.iter().map(|s| (s.as_str().into(), batch as i64)).collect();
    let slot = |input: &PlanInput| {
        let error = || EngineError::Size {
            program: ProgramKind::Full,
            name: input.name.clone(),
            ty: input.ty.clone(),
        };
        let shape = input.ty.resolve(&bindings).filter(|s| !s.contains(&0)).ok_or_else(error)?;
        let dtype = if input.ty.dtype.is_float() { DType::F32 } else { input.ty.dtype };
        let span = request.push(shape.iter().product::<usize>() * dtype.size())?;
        Ok(InputSlot { shape, dtype, span })
    };
    plan.inputs.iter().map(slot).collect()
}

/// The places of the results of a prelude that computes `chunk` of `evaluations` at once. The span
/// of a result is that of the first evaluation.
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

/// The places of the cache slots.
fn cache_spans(plan: &Plan, full: &Draft, request: &mut Stack) -> Result<Vec<Span>, EngineError> {
    let slots = plan.cache.iter().flat_map(|cache| &cache.slots);
    slots.map(|slot| request.push(full.values[slot.value].bytes())).collect()
}

/// The location of a value that outlives its program.
fn outside(value: &Value, layout: &RequestLayout) -> Location {
    match value.source {
        Source::Input(i) => Location::Request { span: layout.inputs[i].span, step: 0 },
        Source::Prelude(i) => Location::Request { span: layout.results[i], step: 0 },
        Source::PreludeSteps(i) => {
            Location::Request { span: layout.step_results[i], step: layout.step_results[i].bytes }
        }
        Source::Cache(i) => Location::Request { span: layout.cache[i], step: 0 },
        _ => Location::Memory { span: Span::new(0, 0) },
    }
}
