//! Exported loops in ONNX Runtime, evaluation by evaluation.

use crate::onnxruntime;
use crate::quantized::Case;
use cachequant::export::{self, ExportedLoop, Form};
use cachequant::io::Overwrite;
use cqc_passes::onnx::export::{ExportOptions, Exported, ExportedModel, Wire, export};
use cqc_proto::plan::ProgramKind;
use cqc_proto::{DType, Tensor};
use cqc_runtime::denoise::{Denoiser, Trajectory};
use ort::session::Session;
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the loop into a directory, and returns its models.
pub fn exported(case: &Case, form: Form, dir: &Path) -> Exported {
    let (constants, null, sampler) = (case.constants(), BTreeMap::new(), case.sampler());
    let (plan, compensation) = (case.plan(), case.artifact.compensation());
    let exported = ExportedLoop {
        plan,
        constants: &constants,
        sampler: &sampler,
        guidance: 1.0,
        rescale: 0.0,
        interval: None,
        fills: &BTreeMap::new(),
        null: &null,
        compensation: compensation.as_ref(),
    };
    export::write(exported, form, dir, Overwrite::Refuse).unwrap();
    let timesteps = sampler.evaluations().iter().map(|e| e.timestep).collect();
    let Form { layout, qdq } = form;
    let options =
        ExportOptions { layout, timesteps, weights: "weights.bin".into(), inline_below: 1024, qdq };
    export(plan, &constants, &options).unwrap()
}

pub type Values = BTreeMap<String, Tensor>;

/// The exported models in ONNX Runtime, in a loop whose arithmetic is this engine's.
pub struct Runtime<'a> {
    exported: &'a Exported,
    sessions: BTreeMap<&'static str, Session>,
    pub values: Values,
}

impl<'a> Runtime<'a> {
    pub fn new(
        exported: &'a Exported,
        dir: &Path,
        case: &Case,
        optimize: bool,
    ) -> Option<Runtime<'a>> {
        let environment = onnxruntime::environment()?;
        let open = |m: &ExportedModel| {
            (
                m.name,
                onnxruntime::session(environment, &dir.join(format!("{}.onnx", m.name)), optimize),
            )
        };
        let sessions = exported.models.iter().map(open).collect();
        let mut values: Values = case
            .request
            .conditions
            .iter()
            .map(|(n, t)| (Wire::Condition(n.clone()).to_string(), t.clone()))
            .collect();
        // a cache that has not been filled
        let ports = exported.models.iter().flat_map(|m| &m.inputs);
        for port in ports.filter(|p| matches!(p.value, Wire::Cache(_))) {
            let batch = [("N".into(), 2)].into();
            let shape: Vec<usize> = port.ty.resolve(&batch).unwrap();
            values.insert(port.value.to_string(), Tensor::zeros(DType::F32, &shape).unwrap());
        }
        let mut runtime = Runtime { exported, sessions, values };
        runtime.run("prelude");
        Some(runtime)
    }

    fn run(&mut self, name: &str) {
        let Some(model) = self.exported.models.iter().find(|m| m.name == name) else { return };
        let feeds = model
            .inputs
            .iter()
            .map(|p| (p.name.clone(), self.values[&p.value.to_string()].clone()))
            .collect();
        let outputs =
            onnxruntime::run_session(self.sessions.get_mut(name).unwrap(), &feeds).unwrap();
        self.values
            .extend(model.outputs.iter().map(|p| (p.value.to_string(), outputs[&p.name].clone())));
    }

    /// Sets the inputs of an evaluation.
    pub fn prepare(&mut self, case: &Case, e: usize, x: &[f32]) {
        let input = case.plan().inputs.iter().find(|i| i.name == "sample").unwrap();
        let shape: Vec<usize> = input.ty.resolve(&[("N".into(), 2)].into()).unwrap();
        assert_eq!(case.sampler().evaluations()[e].input_scale, 1.0);
        self.values.insert("sample".into(), Tensor::from_f32(&shape, x));
        self.values.insert("step".into(), Tensor::from_i64(&[], &[e as i64]));
        self.run("prelude_steps");
    }

    /// The output of an evaluation.
    pub fn evaluate(&mut self, case: &Case, e: usize, x: &[f32]) -> Vec<f32> {
        self.prepare(case, e, x);
        let split = if case.plan().program_at(e) == ProgramKind::Full { "full" } else { "cached" };
        self.run(if self.sessions.contains_key("model") { "model" } else { split });
        self.values[&Wire::Output(case.plan().outputs[0].name.clone()).to_string()].to_f32_vec()
    }

    /// The samples at the end of a free loop.
    pub fn sample(&mut self, case: &Case, ours: &mut Denoiser) -> Vec<f32> {
        let mut trajectory = ours.begin(&case.request, 0).unwrap();
        for e in 0..case.sampler().evaluations().len() {
            let output = self.evaluate(case, e, trajectory.x());
            ours.advance(&mut trajectory, &output);
        }
        trajectory.x().to_vec()
    }

    /// Replaces the cache by this engine's.
    pub fn take_cache(&mut self, trajectory: &Trajectory) {
        let request = &trajectory.requests[0];
        for i in 0..request.slots() {
            if let Some(slot) = self.values.get_mut(&Wire::Cache(i).to_string()) {
                *slot = Tensor::from_f32(slot.shape(), request.slot(i));
            }
        }
    }
}
