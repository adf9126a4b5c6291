//! Cuts of real exports, and the agreement of their cached steps with the full ones.

mod common;

use cachequant::model::{Model, ModelOptions};
use common::{repository, shared_dir};
use cqc_passes::bind::{self, InputOrigin, Part};
use cqc_passes::cache::{self, Batch, Cut, CutSpec};
use cqc_passes::interpret::interpret;
use cqc_passes::ir::{ValueId, verify};
use cqc_proto::{Bindings, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A model's step and its candidates for cuts.
struct Step {
    model: Model,
    part: Part,
    sample: ValueId,
    cuts: Vec<Cut>,
}

impl Step {
    fn load(path: &Path) -> Step {
        let model = Model::load(path, &ModelOptions::default(), |_, _| {}).unwrap();
        let roles: Vec<_> = model.inputs.iter().map(|i| i.role).collect();
        let part =
            bind::bind(&model.graph, &roles, model.batch_symbol.as_deref(), &[1.0]).unwrap().full;
        let sample = cache::sample_value(&part, &roles).unwrap();
        let cuts = cache::candidates(&part.graph, sample, batch(&model));
        Step { cuts, sample, part, model }
    }

    fn choose(&self, spec: &CutSpec) -> Cut {
        cache::choose(&self.cuts, spec, &self.part.graph, self.sample, batch(&self.model)).unwrap()
    }

    /// The shares in thousandths and the stored tensors without names, which are the same for every
    /// exporter.
    fn list(&self) -> Vec<String> {
        self.cuts.iter().map(|cut| self.line(cut)).collect()
    }

    fn line(&self, cut: &Cut) -> String {
        let g = &self.part.graph;
        let types: Vec<String> = cut.tensors.iter().map(|c| c.ty(g).to_string()).collect();
        let kind = if cut.has_delta() { "delta " } else { "" };
        format!("{:.3} {kind}{}", cut.share(), types.join(" "))
    }
}

fn batch(model: &Model) -> Batch<'_> {
    match &model.batch_symbol {
        Some(symbol) => Batch::Symbol(symbol),
        None => Batch::Fixed(model.fixed_batch.unwrap()),
    }
}

fn in_repository(name: &str) -> PathBuf {
    repository().join("tests/models").join(name)
}

/// The U-Net of DDPM with three levels: one cut before each concatenation, except for the innermost
/// one, which saves too little.
const DDPM: [&str; 8] = [
    "0.840 f32[N,8,8,128]",
    "0.762 f32[N,8,8,128]",
    "0.649 f32[N,16,16,128]",
    "0.502 f32[N,256,64]",
    "0.380 f32[N,256,64]",
    "0.245 f32[N,32,32,64]",
    "0.141 f32[N,32,32,32]",
    "0.056 f32[N,32,32,32]",
];

#[test]
fn a_unet_is_cut_before_each_concatenation() {
    let step = Step::load(&in_repository("ddpm-shapes32.onnx"));
    assert_eq!(step.list(), DDPM);
    let g = &step.part.graph;
    assert_eq!(step.choose(&CutSpec::Shallow).name(g), "/m/up_blocks.2/resnets.1/Add_1_output_0");
    assert_eq!(step.choose(&CutSpec::Deep).name(g), "/m/up_blocks.0/resnets.0/Add_1_output_0");
    assert_eq!(step.line(&step.choose(&CutSpec::Auto)), DDPM[6]);
    assert_eq!(step.line(&step.choose(&CutSpec::Cost(0.5))), DDPM[3]);
    for cut in &step.cuts {
        assert_eq!(step.choose(&cut.name(g).parse().unwrap()), *cut, "its name chooses it");
    }
}

#[test]
fn the_inside_of_a_transformer_is_no_level_of_a_unet() {
    let step = Step::load(&in_repository("sdxl-ts17.onnx"));
    let expected = [
        "0.804 f32[N,8,8,64]",
        "0.483 f32[N,64,64]",
        "0.221 f32[N,16,16,64]",
        "0.078 f32[N,16,16,32]",
    ];
    assert_eq!(step.list(), expected);
}

#[test]
fn a_transformer_is_cut_between_its_blocks_whatever_exported_it() {
    let [dynamo, fixed] =
        ["dit-dy23.onnx", "dit-ts14-static.onnx"].map(|name| Step::load(&in_repository(name)));
    assert_eq!(dynamo.list(), ["0.521 delta f32[N,16,32]"]);
    assert_eq!(fixed.list(), ["0.521 delta f32[2,16,32]"], "costs are per sample");
    assert_eq!(dynamo.cuts[0].macs_cached, fixed.cuts[0].macs_cached);
    assert_eq!(dynamo.cuts[0].bytes, 16 * 32 * 4);
}

#[test]
fn models_of_shared_are_cut_at_their_levels() {
    let Some(shared) = shared_dir() else { return };
    let step = |name: &str| Step::load(&shared.join("models").join(name));
    for name in
        ["ddpm-shapes32/model.onnx", "ddpm-shapes32/model.dynamo.onnx", "topology/ddpm-fp16.onnx"]
    {
        assert_eq!(step(name).list(), DDPM, "{name}");
    }
    let shares = |name: &str| {
        step(name).cuts.iter().map(|c| (c.share() * 1000.0).round() as i64).collect::<Vec<_>>()
    };
    assert_eq!(
        shares("dit-shapes32/model.onnx"),
        [876, 751, 627, 503, 379, 254, 130],
        "eight blocks"
    );
    assert_eq!(
        shares("topology/sd-tiny.onnx"),
        [891, 805, 728, 615, 364, 131],
        "six concatenations"
    );
}

/// Numbers for an input of the step: small and distinct for floats, zero for indices.
fn noise(step: &Step, v: ValueId) -> Tensor {
    let value = step.part.graph.value(v);
    let one: Bindings = step.model.batch_symbol.iter().map(|s| (s.as_str().into(), 1)).collect();
    let shape = value.ty.resolve(&one).unwrap();
    let count: usize = shape.iter().product();
    let numbers = (0..count).map(|i| {
        if value.ty.dtype.is_float() { ((i * 7919 + 13) % 1009) as f32 / 504.0 - 1.0 } else { 0.0 }
    });
    let wide = Tensor::from_f32(&shape, &numbers.collect::<Vec<_>>());
    if value.ty.dtype.is_float() {
        return wide.to_float(value.ty.dtype);
    }
    Tensor::new(value.ty.dtype, shape, vec![0; count * value.ty.dtype.size()]).unwrap()
}

#[test]
fn cached_steps_equal_full_ones_bit_for_bit() {
    for name in ["dit-dy23.onnx", "dit-ts14-static.onnx", "sdxl-ts17.onnx"] {
        let step = Step::load(&in_repository(name));
        let cut = step.choose(&CutSpec::Shallow);
        let split = cache::split(&step.part, &cut).unwrap();
        verify(&split.full.graph).unwrap();
        verify(&split.cached.graph).unwrap();
        let name_of = |v: ValueId| step.part.graph.value(v).name.clone();
        let inputs: BTreeMap<String, Tensor> =
            step.part.graph.inputs.iter().map(|&v| (name_of(v), noise(&step, v))).collect();
        let mut full = interpret(&split.full.graph, &inputs).unwrap();
        let stored = full.split_off(step.part.graph.outputs.len());
        let g = &split.cached.graph;
        let given = g.inputs.iter().zip(&split.cached.origins).map(|(&v, origin)| {
            let name = g.value(v).name.clone();
            let tensor = match *origin {
                InputOrigin::Cache(slot) => stored[slot].1.clone(),
                _ => inputs[&name].clone(),
            };
            (name, tensor)
        });
        let cached = interpret(g, &given.collect()).unwrap();
        assert!(full == cached, "{name}: outputs differ");
    }
}
