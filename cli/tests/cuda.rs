//! CUDA from the command line, and the whole U-Net on the simulator.

#[path = "common/mod.rs"]
mod command;

use command::{line, tests};
use std::path::{Path, PathBuf};

fn artifact() -> PathBuf {
    tests().join("artifacts/v4.cq")
}

/// Whether this machine has no GPU that could be used.
fn has_no_gpu() -> bool {
    !line("doctor --json").stdout.contains("driver for CUDA")
}

#[test]
fn a_machine_without_a_gpu_says_so_and_auto_works() {
    if !has_no_gpu() {
        return println!("skipped: this machine has a GPU");
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.npy");
    let sample = |device: &str| {
        let files = format!("{} -o {}", artifact().display(), out.display());
        line(&format!("sample {files} -n 1 --labels 1 --device {device}"))
    };
    let refused = sample("cuda");
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    let said = refused.stderr;
    let lines: Vec<&str> = said.lines().collect();
    let expected = lines.len() == 2 && lines[0].starts_with("error: --device cuda: ");
    assert!(expected && lines[1] == "  help    --device cpu, or auto", "{said}");
    assert!(!out.exists());
    let done = sample("auto");
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(out.exists());
}

#[test]
fn doctor_without_a_model_tells_what_there_is_for_cuda() {
    let ran = line("doctor");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let said = ran.stdout.lines().filter(|l| l.contains(" cuda "));
    assert_eq!(said.count(), 2, "{}", ran.stdout);
}

#[cfg(feature = "cuda")]
#[test]
fn kernels_travel_in_the_artifact() {
    use cqc_kernels::cuda::cubin::Cubins;
    let dir = tempfile::tempdir().unwrap();
    let [plain, with] = ["a.cq", "b.cq"].map(|name| dir.path().join(name));
    let model = command::model("dit-ts14-static");
    let compile = |out: &Path, more: &str| {
        let files = format!("{} -o {}", model.display(), out.display());
        line(&format!("compile {files} --steps 3 --interval 1 --quant none {more}"))
    };
    let done = compile(&with, "--target cuda:sm_80 --target cuda:sm_90a");
    if done.code != 0 && done.stderr.contains("has no NVRTC") {
        return println!("skipped: no NVRTC");
    }
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(compile(&plain, "").code, 0);
    let read =
        |path: &Path| cqc_proto::cq::Artifact::read(std::fs::read(path).unwrap().into()).unwrap();
    assert_eq!(read(&plain).kernels, None);
    let cubins = Cubins::unpack(&read(&with).kernels.unwrap()).unwrap();
    assert_eq!(cubins.iter().map(|c| c.arch.as_str()).collect::<Vec<_>>(), ["sm_80", "sm_90a"]);
    assert!(cubins[0].serves((8, 9)) && cubins[1].serves((9, 0)));
    let refused = compile(&dir.path().join("c.cq"), "--target cuda:sm_1");
    assert_eq!(refused.code, 1, "{}", refused.stderr);
}

#[cfg(feature = "cuda-sim")]
#[allow(dead_code)] // other tests use the rest of it
#[path = "../../tests/common/quantized.rs"]
mod quantized;

#[cfg(feature = "cuda-sim")]
#[path = "../../tests/common/mod.rs"]
mod common;

#[cfg(feature = "cuda-sim")]
mod simulator {
    use crate::{common, quantized};
    use cachequant::recipe::{Quant, Recipe};
    use cachequant::runtime::Artifact;
    use common::sqnr;
    use cqc_kernels::cuda::simulator::Simulator;
    use cqc_proto::Tensor;
    use cqc_proto::plan::{InputRole, ProgramKind};
    use cqc_runtime::cuda::CudaBackend;
    use cqc_runtime::engine::{Backend, Engine, EngineOptions};
    use cqc_runtime::noise::Noise;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    type Conditions = BTreeMap<String, Tensor>;

    /// The distances of the first full and the first cached evaluation of one sample, in decibels.
    struct Apart {
        kind: ProgramKind,
        /// Between CPU and simulator.
        device: f64,
        /// Between two evaluations on the CPU, one of which has a sample that is off by the
        /// rounding of fp16: the effect of such an error.
        nudged: f64,
    }

    fn decibels(artifact: &Artifact, conditions: &Conditions) -> Vec<Apart> {
        let weights = artifact.weights();
        let options = EngineOptions { batch: 1, threads: 2, ..Default::default() };
        let device: Arc<dyn Backend> =
            Arc::new(CudaBackend { device: Arc::new(Simulator), slots: 1 });
        let device = Some(device);
        let all = [options.clone(), EngineOptions { device, ..options.clone() }, options];
        let mut engines = all.map(|o| Engine::open(weights, &o).unwrap());
        let plan = weights.plan();
        let sample = plan.inputs.iter().position(|i| i.role == InputRole::Sample).unwrap();
        let sizes = [engines[0].input_shape(sample), engines[0].output_shape(0)];
        let [count, results] = sizes.map(|shape| shape.iter().product());
        let conditions: Conditions =
            conditions.iter().map(|(name, t)| (name.clone(), first(t))).collect();
        let sampler = artifact.sampler().unwrap();
        let timesteps: Vec<f64> = sampler.evaluations().iter().map(|e| e.timestep).collect();
        let mut requests =
            engines.each_mut().map(|engine| engine.begin(&conditions, &timesteps).unwrap());
        let first_cached =
            (0..plan.evaluations).find(|&e| plan.program_at(e) == ProgramKind::Cached);
        let mut found = Vec::new();
        for e in [Some(0), first_cached].into_iter().flatten() {
            let mut x = vec![0.0; count];
            Noise::new(e as u64, 0, 1).fill(&mut x);
            let mut outputs = [(); 3].map(|()| vec![0.0f32; results]);
            let off = |(i, v): (usize, &f32)| v * (1.0 + [-1.0, 0.0, 1.0][i % 3] / 2048.0);
            let near: Vec<f32> = x.iter().enumerate().map(off).collect();
            let samples = [&x, &x, &near];
            for (((engine, request), out), x) in
                engines.iter_mut().zip(&mut requests).zip(&mut outputs).zip(samples)
            {
                engine.evaluate(request, e, x, out).unwrap();
            }
            let [cpu, device, nudged] = &outputs;
            let (device, nudged) = (sqnr(device, cpu), sqnr(nudged, cpu));
            found.push(Apart { kind: plan.program_at(e), device, nudged });
        }
        found
    }

    /// The first row.
    fn first(t: &Tensor) -> Tensor {
        let row = t.bytes().len() / t.shape()[0];
        let shape = [&[1], &t.shape()[1..]].concat();
        Tensor::new(t.dtype(), shape, t.bytes()[..row].to_vec()).unwrap()
    }

    /// The conditions with which a model was recorded.
    fn conditions(model: &str) -> Conditions {
        let recorded = common::models()
            .into_iter()
            .find(|c| c.model.ends_with(format!("{model}.onnx")))
            .unwrap();
        let inputs = recorded.inputs.into_iter();
        inputs.filter(|(name, _)| !["sample", "timestep"].contains(&name.as_str())).collect()
    }

    fn in_fp16(model: &str, conditions: &Conditions) -> Vec<Apart> {
        let recipe = Recipe {
            steps: Some(6),
            interval: Some(1),
            quant: Some(Quant::None),
            ..Recipe::default()
        };
        let source = common::load(model);
        let artifact = common::compiled(&source, &recipe).artifact().unwrap();
        shown(&format!("{model}, fp16"), decibels(&artifact, conditions))
    }

    fn quantized_and_cached(model: &str, conditions: Conditions) -> Vec<Apart> {
        let case = quantized::case(model, conditions.clone(), 8, 3, false);
        let found = shown(&format!("{model}, w8a8, cached"), decibels(&case.artifact, &conditions));
        assert_eq!(found.len(), 2);
        found
    }

    fn shown(what: &str, found: Vec<Apart>) -> Vec<Apart> {
        for Apart { kind, device, nudged } in &found {
            println!(
                "{what}: {kind} {device:.1} dB, the CPU from a sample moved by fp16's rounding {nudged:.1} dB"
            );
        }
        found
    }

    #[test]
    fn the_unet_in_fp16_equals_the_cpu() {
        // fp16 rounds to a part in 2048, 66 dB, at every layer; the errors of many layers average
        // out
        assert!(
            in_fp16("ddpm-shapes32", &Conditions::new()).iter().all(|found| found.device > 60.0)
        );
    }

    #[test]
    fn the_quantized_and_cached_unet_equals_the_cpu() {
        // activations between two levels may take the other one: two executions are 45 dB apart
        // (docs/quantization.md)
        let found = quantized_and_cached("ddpm-shapes32", Conditions::new());
        assert!(found.iter().all(|found| found.device > 38.0));
    }

    #[test]
    fn conditional_models_in_fp16_equal_the_cpu() {
        for model in ["dit-dy23", "sdxl-ts17"] {
            assert!(
                in_fp16(model, &conditions(model)).iter().all(|found| found.device > 56.0),
                "{model}"
            );
        }
    }

    #[test]
    fn conditional_models_quantized_and_cached_equal_the_cpu() {
        let found = quantized_and_cached("dit-dy23", conditions("dit-dy23"));
        assert!(found.iter().all(|found| found.device > 38.0));
        // With these random weights, activations that take another level have a larger effect: the
        // rounding of the sample alone to fp16 makes 31 dB on the CPU.
        let found = quantized_and_cached("sdxl-ts17", conditions("sdxl-ts17"));
        assert!(found.iter().all(|found| found.device > found.nudged - 3.0));
    }
}
