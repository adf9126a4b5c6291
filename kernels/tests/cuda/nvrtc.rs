//! Every kernel compiles for every architecture, without spills, and those that multiply matrices
//! use tensor cores.

use cqc_kernels::cuda::nvrtc::Nvrtc;
use cqc_kernels::cuda::{KERNELS, SOURCES};
use std::collections::BTreeMap;

const ARCHITECTURES: [&str; 5] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_120"];

/// Kernels that store eight fp16 numbers at once, and but for products read as many.
const STORES_16_BYTES: [&str; 13] = [
    "conv_codes_128",
    "conv_codes_64",
    "conv_segments_128",
    "conv_segments_64",
    "conv_f16_128",
    "conv_f16_64",
    "conv_sum",
    "group_norm_apply",
    "layer_norm",
    "elementwise",
    "affine",
    "quantize",
    "gated",
];

/// Spilled bytes by kernel, as the assembler reports them.
fn spills(log: &str) -> BTreeMap<String, String> {
    let (mut spills, mut kernel) = (BTreeMap::new(), String::new());
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("entry function '") {
            kernel = rest.split('\'').next().unwrap_or_default().to_string();
        }
        if line.contains("spill stores") {
            spills.insert(kernel.clone(), line.trim().to_string());
        }
    }
    spills
}

/// The text of each kernel.
fn bodies(ptx: &str) -> BTreeMap<&str, &str> {
    let parts = ptx.split(".visible .entry ").skip(1);
    parts.map(|part| (part.split('(').next().unwrap_or_default().trim(), part)).collect()
}

#[test]
fn nvrtc_compiles_every_kernel_for_every_architecture() {
    let nvrtc = match Nvrtc::find(None, "sm_90") {
        Ok(nvrtc) => nvrtc,
        Err(e) => return println!("skipped: {e}"),
    };
    println!("NVRTC {:?}", nvrtc.version());
    for arch in ARCHITECTURES {
        for name in SOURCES {
            let compiled = nvrtc.compile(name, arch).unwrap_or_else(|e| panic!("{e}"));
            assert!(compiled.cubin.starts_with(b"\x7fELF"), "{name} for {arch}");
            let (spills, bodies) = (spills(&compiled.log), bodies(&compiled.ptx));
            for kernel in KERNELS.iter().filter(|k| k.source == *name) {
                let spilled = &spills[kernel.name];
                let none = spilled.contains(" 0 bytes spill stores, 0 bytes spill loads");
                assert!(none, "{} for {arch}: {spilled}", kernel.name);
                let multiplies = bodies[kernel.name].contains("mma.sync.aligned");
                assert_eq!(
                    multiplies, kernel.tensor_cores,
                    "{} for {arch}: tensor cores",
                    kernel.name
                );
                if STORES_16_BYTES.contains(&kernel.name) {
                    let body = bodies[kernel.name];
                    assert!(
                        body.contains("st.global.v4"),
                        "{} for {arch}: stores of 16 bytes",
                        kernel.name
                    );
                    assert!(
                        body.contains("ld.global.v4") || kernel.tensor_cores,
                        "{} for {arch}: loads",
                        kernel.name
                    );
                }
            }
        }
    }
}

#[test]
fn nvrtc_refuses_what_is_no_architecture() {
    let Ok(nvrtc) = Nvrtc::find(None, "sm_90") else { return println!("skipped: no NVRTC") };
    for arch in ["sm_1", "sm_90 --help", ""] {
        nvrtc.compile("norm", arch).unwrap_err();
    }
}
