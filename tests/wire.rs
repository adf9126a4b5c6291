//! Runs `tests/filetests/wire/*.cqt`: a graph is lowered and opened in an engine. The result says
//! how every step is executed, the values that it reads and writes, and the roundings and GEGLUs
//! that are fused into it.
//!
//! ```text
//! ; wire                         options of the engine may follow: f32 (no low precision), keep=NAME
//! graph(…) { … return %y }
//! ;= name: op execution, what it reads → what it writes, how that is rounded
//! ```
//! The engine is that of the portable instruction set at a batch of 2, so that every machine gives
//! the same text. A file holds any number of graphs. `CQC_BLESS=1 cargo test --test wire` rewrites
//! the `;=` lines.

use cqc_kernels::Isa;
use cqc_passes::bind;
use cqc_passes::ir::{parse, verify};
use cqc_passes::lower::lower;
use cqc_proto::plan::{InputRole, PlanInput, PlanOutput, ProgramKind};
use cqc_runtime::engine::{Engine, EngineOptions, StepExecution, Weights};
use std::fs;
use std::path::Path;

#[test]
fn filetests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests/wire");
    let bless = std::env::var_os("CQC_BLESS").is_some();
    let mut files: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "cqt"));
    files.sort();
    assert!(!files.is_empty(), "no filetests under {}", folder.display());
    let mut failures = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        let expected = rewritten(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        if expected != text && bless {
            fs::write(file, expected).unwrap();
        } else if expected != text {
            failures.push(format!(
                "{}\n--- expected by the file\n{text}\n--- found\n{expected}",
                file.display()
            ));
        }
    }
    assert!(failures.is_empty(), "{}\n(CQC_BLESS=1 rewrites the files)", failures.join("\n"));
}

/// The file's text with the `;=` lines that the engine gives now.
fn rewritten(text: &str) -> Result<String, String> {
    let (mut out, mut graph, mut options) = (String::new(), String::new(), options("")?);
    for line in text.lines().filter(|l| !l.starts_with(";=")) {
        if let Some(given) = line.strip_prefix("; wire") {
            options = self::options(given)?;
        }
        out += &format!("{line}\n");
        if !line.starts_with(';') {
            graph += &format!("{line}\n");
        }
        if line == "}" {
            steps(&graph, &options)?
                .iter()
                .for_each(|step| out += &format!(";= {}\n", described(step)));
            graph.clear();
        }
    }
    Ok(out)
}

fn options(given: &str) -> Result<EngineOptions, String> {
    let mut options =
        EngineOptions { batch: 2, threads: 1, emulate_bf16: true, ..EngineOptions::default() };
    for word in given.split_whitespace() {
        match word.split_once('=') {
            Some(("keep", name)) => options.keep.push(name.into()),
            None if word == "f32" => options.low_precision = false,
            _ => return Err(format!("no option `{word}`")),
        }
    }
    Ok(options)
}

fn steps(text: &str, options: &EngineOptions) -> Result<Vec<StepExecution>, String> {
    let graph = parse(text).map_err(|e| e.to_string())?;
    verify(&graph).map_err(|e| e.to_string())?;
    let input = |&v| PlanInput {
        name: graph.value(v).name.clone(),
        ty: graph.ty(v).clone(),
        role: InputRole::Condition,
    };
    let output = |(name, v): &(String, _)| PlanOutput {
        name: name.clone(),
        ty: graph.ty(*v).clone(),
        value: 0,
    };
    let (inputs, outputs) =
        (graph.inputs.iter().map(input).collect(), graph.outputs.iter().map(output).collect());
    let bound = bind::unbound(&graph);
    let lowered =
        lower(&bound, inputs, outputs, Some("N"), None, 0, false).map_err(|e| e.to_string())?;
    let (plan, weights) = (lowered.plan, lowered.weights);
    let mut bytes = vec![0; weights.len as usize];
    for (offset, tensor) in &weights.parts {
        bytes[*offset as usize..][..tensor.bytes().len()].copy_from_slice(tensor.bytes());
    }
    let weights = Weights::for_isa(plan, bytes.into(), Isa::Portable).map_err(|e| e.to_string())?;
    let engine = Engine::open(&weights, options).map_err(|e| e.to_string())?;
    Ok(engine.steps().into_iter().filter(|step| step.program == ProgramKind::Full).collect())
}

fn described(step: &StepExecution) -> String {
    let wiring = if step.wiring.is_empty() { String::new() } else { format!(", {}", step.wiring) };
    format!("{}: {} {}{wiring}", step.name, step.op, step.execution)
}
