//! Target `cq`: bytes of an artifact → checks → denoiser or engine → one evaluation.

use crate::container::Container;
use crate::{Random, json, plan};
use bytes::Bytes;
use cqc_passes::bind;
use cqc_passes::cache::{self, Batch, CutSpec};
use cqc_passes::ir::{Graph, parse};
use cqc_passes::lower::{WeightSection, lower};
use cqc_passes::quant::{self, AnnotateOptions, QuantSpec, QuantTables, round_products};
use cqc_proto::cq::{self, Manifest, Quant, SourceModel};
use cqc_proto::plan::{InputRole, Plan, PlanInput, PlanOutput};
use cqc_proto::sampler::{SamplerConfig, SamplerKind};
use cqc_proto::{Tensor, ValueType};
use cqc_runtime::{Artifact, Denoiser, DenoiserOptions, Device, Request};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Cursor;

/// Opens an artifact, looks at all of it, and runs what it holds.
pub fn run(data: &[u8]) -> bool {
    let Ok(artifact) = Artifact::from_bytes(Bytes::copy_from_slice(data)) else { return false };
    crate::depth::read();
    let manifest = artifact.manifest();
    let seed = crate::hash(data);
    let _ = manifest.plan.to_string();
    let _ = (artifact.null_conditions(), artifact.compensation(), artifact.sample_shape());
    if !plan::is_small(&manifest.plan, 2) || manifest.steps > 64 {
        return true;
    }
    let batch = manifest.plan.fixed_batch.unwrap_or(1);
    if plan::evaluate(artifact.weights(), batch, seed).is_none() {
        return true;
    }
    crate::depth::evaluated();
    let _ = artifact.layer_executions();
    let options = DenoiserOptions {
        device: Device::Cpu,
        engine: plan::options(1),
        steps: seed.is_multiple_of(4).then_some(2),
        ..DenoiserOptions::default()
    };
    if let Ok(denoiser) = artifact.denoiser(&options) {
        let _ = sample(denoiser, seed);
    }
    true
}

/// The first evaluations of a request.
fn sample(mut denoiser: Denoiser, seed: u8) -> Option<()> {
    let inputs = &denoiser.engine().plan().inputs;
    let mut conditions = BTreeMap::new();
    for (i, input) in inputs.iter().enumerate().filter(|(_, i)| i.role.is_condition()) {
        let value = plan::value(input.ty.dtype, denoiser.engine().input_shape(i), seed)?;
        conditions.insert(input.name.clone(), value);
    }
    let request = Request { conditions, ..Request::default() };
    let mut trajectory = denoiser.begin(&request, 0).ok()?;
    for _ in 0..denoiser.evaluations().min(3) {
        denoiser.step(&mut trajectory).ok()?;
    }
    Some(())
}

/// Changes the manifest, the constants or the container; hashes mostly fit again.
pub fn mutate(data: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let mut container = Container::read(data)?;
    match random.below(24) {
        0 => container.mutate(random),
        1 | 2 => mutate_weights(&mut container, random),
        3 => {
            let manifest = container.section_mut("manifest")?;
            let mut json = crate::container::unpack(manifest)?;
            let at = random.below(json.len());
            *json.get_mut(at)? = *random.pick(b"0123456789-e.[]{},:\"N");
            *manifest = crate::container::pack(&json);
        }
        _ => {
            let manifest = container.section_mut("manifest")?;
            let mut json: Value =
                serde_json::from_slice(&crate::container::unpack(manifest)?).ok()?;
            for _ in 0..=random.few() {
                mutate_manifest(&mut json, random);
            }
            *manifest = crate::container::pack(&serde_json::to_vec(&json).ok()?);
        }
    }
    Some(container.write())
}

/// Texts that mean something in a manifest.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "N", "step", "f32", "i8", "channels_first", "relu", "pow", "sample", "same", "columns", "input", "constant",
    "table", "cache", "none", "cached", "w8a8", "ddim", "x", "t", "y", "null", "label", "times", "codes", "alias",
    "previous_of", "fixed_batch", "batch_symbol", "of", "offset", "bits", "prelude", "prelude_steps",
];

/// Texts that can stand for each other.
#[rustfmt::skip]
const ALIKE: &[&[&str]] = &[
    &["f32", "f64", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "u16", "u32", "u64", "bool"],
    &["N", "2*N", "N+1", "4*N", "M"],
    &["channels_first", "channels_last"],
    &["none", "silu", "relu", "gelu_tanh", "gelu_erf", "quick_gelu", "sigmoid", "tanh"],
    &["add", "sub", "mul", "div", "pow", "max", "min", "mod", "and", "or", "xor", "equal", "less", "greater"],
    &["neg", "abs", "exp", "log", "sqrt", "reciprocal", "round", "sin", "erf", "not", "is_nan", "silu", "sigmoid"],
    &["mean", "sum", "max", "min", "prod", "l1", "l2", "sum_square", "log_sum", "log_sum_exp"],
    &["sample", "timestep", "condition"],
    &["constant", "reflect", "edge", "wrap"],
    &["nearest", "linear", "cubic"],
    &["ddim", "ddpm", "plms", "euler", "dpm-multistep"],
    &["epsilon", "sample", "v_prediction"],
    &["leading", "trailing", "linspace", "quadratic"],
];

/// Changes one place; mostly the plan's types then follow from its operators again.
fn mutate_manifest(json: &mut Value, random: &mut Random) {
    let place = match random.below(8) {
        0 => "",
        5 | 6 => *random.pick(&["/plan/full/steps", "/plan/prelude/steps", "/plan/prelude_steps"]),
        _ => "/plan",
    };
    if let Some(place) = json.pointer_mut(place) {
        match random.below(8) {
            0 => json::mutate(place, WORDS, random),
            _ => json::mutate_alike(place, ALIKE, random),
        }
    }
    if let Some(plan) = json.pointer_mut("/plan")
        && random.below(4) > 0
    {
        infer_types(plan);
    }
}

/// Types of results as the operators infer them, as far as that goes.
fn infer_types(json: &mut Value) {
    let Ok(mut plan) = serde_json::from_value::<Plan>(json.clone()) else { return };
    let programs = [&mut plan.prelude, &mut plan.prelude_steps, &mut plan.full];
    let cached = plan.cache.as_mut().map(|cache| &mut cache.cached);
    for program in programs.into_iter().chain(cached) {
        for step in &program.steps {
            let types: Option<Vec<Option<&ValueType>>> = step
                .inputs
                .iter()
                .map(|v| match v {
                    Some(v) => program.values.get(*v).map(|value| Some(&value.ty)),
                    None => Some(None),
                })
                .collect();
            let Some(Ok(inferred)) = types.map(|types| step.op.infer(&types)) else { break };
            for (v, ty) in step.outputs.iter().zip(inferred) {
                if let Some(value) = program.values.get_mut(*v) {
                    value.ty = ty;
                }
            }
        }
    }
    for output in &mut plan.outputs {
        if let Some(value) = plan.full.values.get(output.value) {
            output.ty = value.ty.clone();
        }
    }
    if let Ok(new) = serde_json::to_value(&plan) {
        *json = new;
    }
}

fn mutate_weights(container: &mut Container, random: &mut Random) {
    let Some(weights) = container.section_mut("weights") else { return };
    match random.below(4) {
        0 => weights.truncate(weights.len().saturating_sub(1 + random.below(64))),
        1 => weights.resize(weights.len() + random.below(64), 0),
        _ => {
            // whole numbers and floats of 32 bits
            let edge = *random.pick(&[0u32, 1, 0x7f80_0000, 0x7fc0_0000, 0xff7f_ffff, u32::MAX]);
            let at = random.below(weights.len() / 4) * 4;
            if let Some(place) = weights.get_mut(at..at + 4) {
                place.copy_from_slice(&edge.to_le_bytes());
            }
        }
    }
}

/// Graphs to start from; the first input is the sample, `%t` the time step.
const GRAPHS: &[&str] = &[
    "graph(%x: f32[N,4,8]) {
      %w = const f32[8,8] 0.5
      %h = linear(%x, %w)
      %y = silu(%h)
      return %y
    }",
    "graph(%x: f32[N,4,16], %t: i64[N]) {
      %f = const f32[8] 0.5
      %w = const f32[16,16] 0.5
      %v = const f32[32,16] 0.5
      %e = timestep_embedding(%t, %f)
      %r = reshape(%e) shape=[\"N\",1,16]
      %a = linear(%x, %w, _, %r)
      %b = linear(%a, %w) act=\"silu\"
      %d = linear(%b, %w)
      %c = concat(%a, %d) axis=2
      %y = linear(%c, %v)
      return %y
    }",
    "graph(%x: f32[N,4,4,16], %t: i64[N], %l: i64[N]) {
      %f = const f32[8] 0.5
      %table = const f32[10,16] 0.25
      %e = timestep_embedding(%t, %f)
      %g = gather(%table, %l) axis=0
      %s = add(%e, %g)
      %r = reshape(%s) shape=[\"N\",1,1,16]
      %k = const f32[16,16,3,3] 0.01
      %b = const f32[16] 0.5
      %h = conv(%x, %k, %b) strides=[1,1] pads=[1,1,1,1] dilations=[1,1] groups=1 layout=\"channels_last\" upsample=1
      %a = add(%h, %r)
      %n = group_norm(%a, %b, %b) groups=4 eps=1e-5 layout=\"channels_last\" act=\"silu\"
      %q = reshape(%n) shape=[\"N\",16,16]
      %o = attention(%q, %q, %q) heads=2 kv_heads=2 scale=0.5
      %m = softmax(%o) axis=2
      %u = reshape(%m) shape=[\"N\",4,4,16]
      %y = add(%u, %x)
      return %y
    }",
    "graph(%x: f32[2,3,8]) {
      %w = const f32[8,8] 0.5
      %p = transpose(%x) perm=[0,2,1]
      %m = matmul(%x, %p)
      %s = softmax(%m) axis=2
      %y = matmul(%s, %x)
      return %y
    }",
];

/// Artifacts of small graphs, plain ones, loops, cached loops, quantized ones, and of the models
/// that the target `onnx` starts from.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for text in GRAPHS {
        let Ok(graph) = parse(text) else { panic!("{:?}", parse(text).err()) };
        let is_loop = graph.inputs.iter().any(|&v| graph.value(v).name == "t");
        for quantized in [None, Some(8), Some(4), Some(16)] {
            for cached in [false, true] {
                if is_loop || !cached {
                    out.push(seed(&graph, is_loop, cached, quantized));
                }
            }
        }
    }
    for model in crate::onnx::seeds() {
        if let Some((plan, weights)) = crate::onnx::lowered(&model) {
            out.push(artifact(plan, &weights, None));
        }
    }
    out
}

fn seed(graph: &Graph, is_loop: bool, cached: bool, quantized: Option<u8>) -> Vec<u8> {
    let role = |(i, name): (usize, &str)| match (i, name) {
        (_, "t") => InputRole::Timestep,
        (0, _) => InputRole::Sample,
        _ => InputRole::Condition,
    };
    let input = |(i, &v)| {
        let name = graph.value(v).name.clone();
        PlanInput { ty: graph.ty(v).clone(), role: role((i, &name)), name }
    };
    let inputs: Vec<PlanInput> = graph.inputs.iter().enumerate().map(input).collect();
    let roles: Vec<InputRole> = inputs.iter().map(|i| i.role).collect();
    let outputs = graph.outputs.iter().map(|(name, v)| PlanOutput {
        name: name.clone(),
        ty: graph.ty(*v).clone(),
        value: 0,
    });
    let symbol = graph.shape(graph.inputs[0])[0].as_symbol().map(|_| "N");
    let times = [666.0, 333.0, 0.0];
    let evaluations = if is_loop { times.len() } else { 0 };
    let mut bound = match is_loop {
        true => bind::bind(graph, &roles, symbol, &times).expect("the graph is a loop"),
        false => bind::unbound(graph),
    };
    if cached {
        let (step, batch) = (&bound.full.graph, Batch::Symbol("N"));
        let sample = cache::sample_value(&bound.full, &roles).expect("it has a sample");
        let candidates = cache::candidates(step, sample, batch);
        let cut = cache::choose(&candidates, &CutSpec::Auto, step, sample, batch);
        if let Ok(cut) = cut {
            let split = cache::split(&bound.full, &cut).expect("the cut was chosen");
            bound = cache::assemble(&bound, &split, &[0, 2], None).expect("it was split").0;
        }
    }
    match quantized {
        Some(16) => drop(round_products(&mut bound, &QuantSpec::new(16)).expect("bf16")),
        Some(bits) => {
            let survey = quant::survey(&bound, &QuantSpec::new(bits), symbol);
            let tables = QuantTables::float(&survey, evaluations.max(1));
            let options = AnnotateOptions::default();
            quant::annotate(&mut bound, &survey, &tables, options).expect("integers");
        }
        None => {}
    }
    let fixed = symbol.is_none().then_some(2);
    let lowered = lower(&bound, inputs, outputs.collect(), symbol, fixed, evaluations, is_loop)
        .expect("valid");
    artifact(lowered.plan, &lowered.weights, quantized)
}

fn artifact(plan: Plan, weights: &WeightSection, quantized: Option<u8>) -> Vec<u8> {
    let sampler = SamplerConfig::from_diffusers_json("{}", Some(SamplerKind::Ddim));
    let sampler = sampler.expect("an empty file is a sampler's");
    let mut manifest = Manifest::new(SourceModel::default(), plan, sampler, 3);
    if manifest.plan.cache.is_some() {
        manifest.schedule = cq::Schedule::Cached(cq::CachedSchedule {
            method: "uniform".into(),
            interval: 2,
            cost: None,
            uniform_cost: None,
            corrections: vec![],
            correction_method: None,
        });
    }
    if quantized.is_some() {
        manifest.quant = Quant::W8a8(Default::default());
    }
    let parts: BTreeMap<u64, &Tensor> =
        weights.parts.iter().map(|(offset, t)| (*offset, t)).collect();
    let offsets: Vec<u64> = manifest.plan.constants.iter().map(|c| c.offset).collect();
    let mut out = Cursor::new(Vec::new());
    cq::encode(&mut out, &manifest, |i| Ok(parts[&offsets[i]].bytes().clone())).expect("valid");
    out.into_inner()
}
