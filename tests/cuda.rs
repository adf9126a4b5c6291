//! CUDA from the command line, and the whole U-Net on the simulator.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn cqc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cqc")).args(args).output().expect("cqc starts")
}

fn artifact() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/artifacts/v4.cq")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether this machine has no GPU that could be used.
fn has_no_gpu() -> bool {
    !text(&cqc(&["doctor", "--json"]).stdout).contains("driver for CUDA")
}

#[test]
fn a_machine_without_a_gpu_says_so_in_one_line_and_auto_works() {
    if !has_no_gpu() {
        return println!("skipped: this machine has a GPU");
    }
    let dir = tempfile::tempdir().unwrap();
    let (artifact, out) = (artifact(), dir.path().join("x.npy"));
    let sample = |device: &str| {
        cqc(&[
            "sample",
            artifact.to_str().unwrap(),
            "-n",
            "1",
            "--labels",
            "1",
            "--device",
            device,
            "-o",
            out.to_str().unwrap(),
        ])
    };
    let refused = sample("cuda");
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
    let line = text(&refused.stderr);
    assert!(line.starts_with("error: --device cuda: ") && line.lines().count() == 1, "{line}");
    assert!(!out.exists());
    let done = sample("auto");
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(out.exists());
}

#[test]
fn doctor_without_a_model_tells_what_there_is_for_cuda() {
    let out = cqc(&["doctor"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout).lines().filter(|l| l.contains(" cuda ")).count(), 2, "{}", text(&out.stdout));
}

#[cfg(feature = "cuda")]
#[test]
fn kernels_travel_in_the_artifact() {
    use cqc_kernels::cuda::cubin::Cubins;
    let dir = tempfile::tempdir().unwrap();
    let [plain, with] = ["a.cq", "b.cq"].map(|name| dir.path().join(name));
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/dit-ts14-static.onnx");
    let compile = |out: &Path, more: &[&str]| {
        let fixed = [
            "compile",
            model.to_str().unwrap(),
            "--steps",
            "3",
            "--interval",
            "1",
            "--quant",
            "none",
            "-o",
            out.to_str().unwrap(),
        ];
        cqc(&[&fixed[..], more].concat())
    };
    let done = compile(&with, &["--target", "cuda:sm_80", "--target", "cuda:sm_90a"]);
    if !done.status.success() && text(&done.stderr).contains("has no NVRTC") {
        return println!("skipped: no NVRTC");
    }
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(compile(&plain, &[]).status.success());
    let read = |path: &Path| cqc_proto::cq::Artifact::read(std::fs::read(path).unwrap().into()).unwrap();
    assert_eq!(read(&plain).kernels, None);
    let cubins = Cubins::unpack(&read(&with).kernels.unwrap()).unwrap();
    assert_eq!(cubins.iter().map(|c| c.arch.as_str()).collect::<Vec<_>>(), ["sm_80", "sm_90a"]);
    assert!(cubins[0].serves((8, 9)) && cubins[1].serves((9, 0)));
    let refused = compile(&dir.path().join("c.cq"), &["--target", "cuda:sm_1"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
}

#[cfg(feature = "cuda-sim")]
#[allow(dead_code)] // other tests use the rest of it
#[path = "common/quantized.rs"]
mod quantized;

#[cfg(feature = "cuda-sim")]
mod simulator {
    use crate::quantized;
    use cqc::compile::{LoopOptions, Lowered, compile_loop};
    use cqc::model::{Model, ModelOptions};
    use cqc_kernels::cuda::simulator::Simulator;
    use cqc_proto::plan::ProgramKind;
    use cqc_proto::sampler::SamplerConfig;
    use cqc_runtime::cuda::OnDevice;
    use cqc_runtime::engine::{Engine, EngineOptions, Weights};
    use cqc_runtime::noise::Noise;
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Arc;

    /// Decibels between CPU and simulator for the first full and the first cached evaluation of one sample.
    fn decibels(lowered: &Lowered) -> Vec<(ProgramKind, f64)> {
        let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes().unwrap()).unwrap();
        let options = EngineOptions { batch: 1, threads: 2, ..Default::default() };
        let device = Some(OnDevice { device: Arc::new(Simulator), slots: 1 });
        let mut engines =
            [options.clone(), EngineOptions { device, ..options }].map(|o| Engine::open(&weights, &o).unwrap());
        let plan = weights.plan();
        let timesteps: Vec<f64> = quantized::sampler().evaluations().iter().map(|e| e.timestep).collect();
        let mut requests = engines.each_mut().map(|engine| engine.begin(&BTreeMap::new(), &timesteps).unwrap());
        let first_cached = (0..plan.evaluations).find(|&e| plan.program_at(e) == ProgramKind::Cached);
        let mut found = Vec::new();
        for e in [Some(0), first_cached].into_iter().flatten() {
            let mut x = vec![0.0; 3 * 32 * 32];
            Noise::new(e as u64, 0, 1).fill(&mut x);
            let mut outputs = [vec![0.0f32; x.len()], vec![0.0f32; x.len()]];
            for ((engine, request), out) in engines.iter_mut().zip(&mut requests).zip(&mut outputs) {
                engine.evaluate(request, e, &x, out).unwrap();
            }
            let [cpu, gpu] = &outputs;
            let square = |v: f32| f64::from(v) * f64::from(v);
            let noise: f64 = gpu.iter().zip(cpu).map(|(a, b)| square(a - b)).sum();
            found.push((plan.program_at(e), 10.0 * (cpu.iter().map(|&v| square(v)).sum::<f64>() / noise).log10()));
        }
        found
    }

    #[test]
    fn the_unet_in_fp16_equals_the_cpu() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/ddpm-shapes32.onnx");
        let model = Model::load(&path, &ModelOptions::default(), |_, _| {}).unwrap();
        let options = LoopOptions { sampler: SamplerConfig::default(), steps: 6, any_steps: false, bf16: None };
        let found = decibels(&compile_loop(&model, &options).unwrap());
        println!("fp16: {found:.1?}");
        // fp16 rounds to a part in 2048, 66 dB, at every layer; errors of many layers average out
        assert!(found.iter().all(|(_, db)| *db > 60.0), "{found:?}");
    }

    #[test]
    fn the_quantized_and_cached_unet_equals_the_cpu() {
        let case = quantized::case("ddpm-shapes32", BTreeMap::new(), 8, 3, false);
        let found = decibels(&case.lowered);
        println!("w8a8, cached: {found:.1?}");
        assert_eq!(found.len(), 2);
        // activations between two levels may take the other one: two executions are 45 dB apart (docs/quantization.md)
        assert!(found.iter().all(|(_, db)| *db > 38.0), "{found:?}");
    }
}
