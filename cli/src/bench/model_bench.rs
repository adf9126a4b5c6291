//! Measures single evaluations of a model.

use super::{BenchArgs, Measured, profiled};
use crate::inspect::{macs, per_sample};
use crate::measure::{backend, median, ms_since, peak_rss_mb};
use crate::report::Failure;
use crate::request::shape_at;
use cachequant::compile::compile_evaluation;
use cachequant::io::{Overwrite, read_raw, write_raw};
use cachequant::model::Model;
use cachequant::model::locate;
use cqc_proto::plan::{InputRole, PlanInput};
use cqc_proto::{DType, Tensor};
use cqc_runtime::engine::{Engine, EngineOptions, Weights};
use cqc_runtime::noise::Noise;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Without --repeat, evaluations run until this much time has passed, within the bounds below.
const BUDGET: Duration = Duration::from_secs(2);
const REPEATS: std::ops::RangeInclusive<usize> = 5..=200;

/// The time step of synthetic inputs.
const TIMESTEP: i64 = 500;

pub fn measure(args: &BenchArgs, overwrite: Overwrite) -> Result<Measured, Failure> {
    let begun = Instant::now();
    let options = args.reading.options(None);
    let model = Model::load(&locate(&args.model)?.model, &options, |_, _| {})?;
    let batch = args.batch.map_or(model.fixed_batch.unwrap_or(1), |b| b as usize);
    let inputs = model.inputs.iter().map(|i| Ok((i.name.clone(), input(args, &model, i, batch)?)));
    let inputs = inputs.collect::<Result<BTreeMap<_, _>, Failure>>()?;
    let lowered = compile_evaluation(&model)?;
    let macs_full = per_sample(&macs(&model.graph), model.batch_symbol.as_deref())
        / model.fixed_batch.unwrap_or(1) as i64;
    drop(model);

    let bytes = lowered.weight_bytes()?;
    let weight_bytes = bytes.len();
    let weights = Weights::new(lowered.plan, bytes)?;
    drop(lowered.weights);
    let options = EngineOptions {
        batch,
        threads: args.threads.count(),
        profile: args.profile,
        ..Default::default()
    };
    let mut engine = Engine::open(&weights, &options)?;
    let open_ms = begun.elapsed().as_secs_f64() * 1e3;
    let outputs = engine.run(&inputs)?;
    if let (Some(path), Some(first)) = (&args.output, engine.plan().outputs.first()) {
        write_raw(path, &outputs[&first.name], overwrite)?;
    }
    drop(outputs);
    engine.reset_profile();
    let ms = time(&mut engine, &inputs, args.repeat.map(|n| n as usize))?;
    Ok(Measured {
        threads: options.threads,
        batch,
        backend: backend(weights.isa()),
        dtype: "f32",
        full_step_ms: median(&ms),
        cached_step_ms: None,
        loop_ms: median(&ms),
        open_ms,
        steps: 1,
        full_steps: 1,
        ms,
        macs_full,
        macs_cached: None,
        macs_prelude: 0,
        peak_memory_bytes: (engine.memory_bytes() + weight_bytes.max(weights.packed_bytes()))
            as u64,
        device_memory_bytes: None,
        peak_rss_mb: peak_rss_mb(),
        output: args.output.clone(),
        profile: if args.profile { profiled(engine.plan(), engine.profile()) } else { vec![] },
        rows: batch,
        isa: Some(weights.isa()),
    })
}

fn time(
    engine: &mut Engine,
    inputs: &BTreeMap<String, Tensor>,
    repeat: Option<usize>,
) -> Result<Vec<f64>, Failure> {
    let (least, most) = repeat.map_or((*REPEATS.start(), *REPEATS.end()), |n| (n, n));
    let begun = Instant::now();
    let mut ms = Vec::new();
    while ms.len() < least || (ms.len() < most && begun.elapsed() < BUDGET) {
        let start = Instant::now();
        engine.run(inputs)?;
        ms.push(ms_since(start));
    }
    Ok(ms)
}

fn input(
    args: &BenchArgs,
    model: &Model,
    input: &PlanInput,
    batch: usize,
) -> Result<Tensor, Failure> {
    let shape = shape_at(&input.ty, model.batch_symbol.as_deref(), batch).ok_or_else(|| {
        Failure::usage(format!("input `{}` has no size at a batch of {batch}", input.name))
    })?;
    let Some(prefix) = &args.inputs else { return Ok(synthetic(input, &shape)) };
    let path = PathBuf::from(format!("{prefix}.in.{}.bin", input.name));
    let wide = if input.ty.dtype.is_float() { DType::F32 } else { input.ty.dtype };
    let count: usize = shape.iter().product();
    // Most tools give half-precision models their inputs in f32.
    let is_wide = path.metadata().is_ok_and(|m| m.len() == (count * wide.size()) as u64);
    Ok(read_raw(&path, if is_wide { wide } else { input.ty.dtype }, &shape)?)
}

/// A synthetic input: noise for floats, 500 for the time step, zeros for everything else.
pub fn synthetic(input: &PlanInput, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let dtype = input.ty.dtype;
    if input.role == InputRole::Timestep {
        let number = if dtype.is_float() {
            Tensor::from_f32(shape, &vec![TIMESTEP as f32; count])
        } else {
            Tensor::from_i64(shape, &vec![TIMESTEP; count])
        };
        return number;
    }
    if dtype.is_float() {
        let mut values = vec![0.0; count];
        Noise::new(1, 0, 1).fill(&mut values);
        return Tensor::from_f32(shape, &values);
    }
    Tensor::zeros(dtype, shape).expect("`shape_at` bounds the number of elements")
}
