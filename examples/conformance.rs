//! Runs the ONNX project's node tests through import and the definitions of the operators, and
//! again through import, rewrites, lowering and engine.
//!
//!     conformance DIR [TABLE.md]      one folder per test, as tests/conformance/dump.py writes them
//!     conformance --model M.onnx CHECK.npz [TOLERANCE] [DIM=SIZE ...]
//!
//! Exits 1 when a test fails: a wrong result, a panic, or an error other than a refusal.

use cachequant::compile::compile_evaluation;
use cachequant::model::{Model, ModelError, ModelOptions};
use cqc_passes::interpret::interpret;
use cqc_passes::onnx::{ImportError, ImportOptions, load, read_tensor};
use cqc_proto::onnx::ModelProto;
use cqc_proto::{DType, Tensor};
use cqc_runtime::engine::{Engine, EngineOptions, Weights};
use prost::Message;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

thread_local! {
    /// The place where this thread has panicked.
    static PANICKED: std::cell::Cell<String> = const { std::cell::Cell::new(String::new()) };
}

enum Outcome {
    /// The results are right. `given` says whether inputs had to be given at compile time.
    Passed {
        given: bool,
        /// The reason why the engine did not run it; only the definitions passed.
        alone: Option<String>,
    },
    Refused(String),
    Failed(String),
}

struct Test {
    name: String,
    op: String,
    outcome: Outcome,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--model", model, check] => check_model(model, check, 1e-4, &[]),
        ["--model", model, check, tolerance, ref dims @ ..] => {
            check_model(model, check, tolerance.parse().expect("a number"), dims)
        }
        [dir] => run_all(Path::new(dir), None),
        [dir, table] => run_all(Path::new(dir), Some(Path::new(table))),
        _ => {
            eprintln!("usage: conformance DIR [TABLE.md] | --model M.onnx CHECK.npz [TOLERANCE]");
            ExitCode::from(2)
        }
    }
}

fn run_all(dir: &Path, table: Option<&Path>) -> ExitCode {
    let entries = std::fs::read_dir(dir).expect("the folder of tests");
    let mut folders: Vec<PathBuf> = entries.map(|e| e.expect("a folder").path()).collect();
    folders.sort();
    std::panic::set_hook(Box::new(|info| {
        PANICKED.set(info.location().map_or_else(String::new, |l| format!(" at {l}")));
    }));
    let mut tests: Vec<Test> = folders.iter().map(|f| run(f)).collect();
    name_expanded(&mut tests);
    for t in &tests {
        if let Outcome::Failed(reason) = &t.outcome {
            eprintln!("FAILED {}: {reason}", t.name);
        }
    }
    if let Some(path) = table {
        std::fs::write(path, markdown(&tests)).expect("the table is written");
    }
    let [passed, refused, failed] = counts(tests.iter());
    println!(
        "{} node tests: {passed} passed ({} by the engine), {refused} refused, {failed} failed",
        tests.len(),
        passed - alone(&tests).count()
    );
    ExitCode::from((failed > 0) as u8)
}

fn run(folder: &Path) -> Test {
    let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
    let bytes = std::fs::read(folder.join("model.onnx")).expect("model.onnx");
    let model = ModelProto::decode(&bytes[..]).expect("a model");
    let graph = model.graph.as_ref().expect("a graph");
    let op = if let [node] = &graph.node[..] { node.op_type().to_string() } else { String::new() };
    let inputs: Vec<String> = graph.input.iter().map(|i| i.name().to_string()).collect();
    let outcome = std::panic::catch_unwind(|| compare(folder, &inputs));
    let outcome = outcome.unwrap_or_else(|e| {
        let text =
            e.downcast_ref::<String>().cloned().or(e.downcast_ref::<&str>().map(|s| s.to_string()));
        Outcome::Failed(format!("panic{}: {}", PANICKED.take(), text.unwrap_or_default()))
    });
    Test { name, op, outcome }
}

/// Assigns the test of an operator's function body to the operator.
fn name_expanded(tests: &mut [Test]) {
    let known: BTreeMap<String, String> =
        tests.iter().map(|t| (t.name.clone(), t.op.clone())).collect();
    for t in tests {
        let base = t.name.split("_expanded").next().and_then(|base| known.get(base));
        if let Some(op) = base.filter(|_| t.name.contains("_expanded")) {
            t.op = format!("{op}, as function");
        } else if t.op.is_empty() {
            t.op = "several nodes".into();
        }
    }
}

fn compare(folder: &Path, names: &[String]) -> Outcome {
    let data = folder.join("test_data_set_0");
    let mut inputs = BTreeMap::new();
    for (i, name) in names.iter().enumerate() {
        let Ok(bytes) = std::fs::read(data.join(format!("input_{i}.pb"))) else { continue };
        match read_tensor(bytes) {
            Ok(t) => drop(inputs.insert(name.clone(), t)),
            Err(_) => continue, // of a type that import refuses
        }
    }
    let import = ImportOptions { known_inputs: inputs.clone(), ..Default::default() };
    let path = folder.join("model.onnx");
    let imported = match load(&path, &import) {
        Ok(imported) => imported,
        Err(e @ ImportError::Unsupported(_)) => return Outcome::Refused(first_reason(e)),
        Err(e @ ImportError::Opset { .. }) => return Outcome::Refused(e.to_string()),
        Err(ImportError::Malformed { place, reason }) if place == "opset_import" => {
            return Outcome::Refused(reason);
        }
        Err(e) => return Outcome::Failed(e.to_string()),
    };
    if !data.join("output_0.pb").exists() {
        return Outcome::Failed("there is nothing to compare with".into());
    }
    let outputs = match interpret(&imported.graph, &inputs) {
        Ok(outputs) => outputs,
        Err(e) => return Outcome::Failed(e.to_string()),
    };
    if let Err(difference) = compare_outputs(&data, &outputs) {
        return Outcome::Failed(difference);
    }
    let alone = match run_engine(&path, import, &inputs) {
        Ok(Ok(outputs)) => match compare_outputs(&data, &outputs) {
            Ok(()) => None,
            Err(difference) => return Outcome::Failed(format!("engine: {difference}")),
        },
        Ok(Err(refusal)) => Some(refusal),
        Err(fault) => return Outcome::Failed(format!("engine: {fault}")),
    };
    Outcome::Passed { given: !imported.consumed_inputs.is_empty(), alone }
}

fn compare_outputs(data: &Path, outputs: &[(String, Tensor)]) -> Result<(), String> {
    for (i, (name, found)) in outputs.iter().enumerate() {
        let Ok(bytes) = std::fs::read(data.join(format!("output_{i}.pb"))) else { continue };
        let expected = read_tensor(bytes).map_err(|e| format!("output {name}: {e}"))?;
        close(found, &expected).map_err(|difference| format!("output {name}: {difference}"))?;
    }
    Ok(())
}

/// The outputs of the engine, or the reason why it refuses. An error is a fault of cqc.
#[allow(clippy::type_complexity)] // said in words above
fn run_engine(
    path: &Path,
    import: ImportOptions,
    inputs: &BTreeMap<String, Tensor>,
) -> Result<Result<Vec<(String, Tensor)>, String>, String> {
    let options = ModelOptions { import, ..Default::default() };
    let model = match Model::load(path, &options, |_, _| {}) {
        Ok(model) => model,
        Err(e @ ModelError::Pass(_)) => return Err(e.to_string()),
        Err(e) => return Ok(Err(e.to_string())),
    };
    if let Some(failure) = model.report.failures.first() {
        return Err(failure.to_string());
    }
    let lowered = compile_evaluation(&model).map_err(|e| e.to_string())?;
    let bytes = lowered.weight_bytes().map_err(|e| e.to_string())?;
    let weights = match Weights::new(lowered.plan, bytes) {
        Ok(weights) => weights,
        Err(e) => return Ok(Err(e.to_string())),
    };
    let batch = model.inputs.iter().find_map(|i| {
        let of_batch = |d: &cqc_proto::Dim| d.as_symbol() == model.batch_symbol.as_deref();
        let axis = i.ty.shape.iter().position(of_batch)?;
        inputs.get(&i.name).map(|t| t.shape()[axis])
    });
    let batch = if model.batch_symbol.is_some() { batch } else { model.fixed_batch };
    let options =
        EngineOptions { batch: batch.unwrap_or(1), threads: 2, ..EngineOptions::default() };
    let mut engine = match Engine::open(&weights, &options) {
        Ok(engine) => engine,
        Err(e) => return Ok(Err(e.to_string())),
    };
    let taken = inputs.iter().filter(|(name, _)| model.inputs.iter().any(|i| i.name == **name));
    let mut found = match engine.run(&taken.map(|(n, t)| (n.clone(), t.clone())).collect()) {
        Ok(found) => found,
        Err(e) => return Ok(Err(e.to_string())),
    };
    let named = |o: &cqc_proto::plan::PlanOutput| {
        found.remove(&o.name).map(|t| (o.name.clone(), t)).ok_or(format!("no output {}", o.name))
    };
    model.outputs.iter().map(named).collect::<Result<Vec<_>, _>>().map(Ok)
}

fn first_reason(e: ImportError) -> String {
    match e {
        ImportError::Unsupported(list) => format!("{}: {}", list[0].op, list[0].reason),
        other => other.to_string(),
    }
}

/// numpy's `assert_allclose` with the tolerances of ONNX's own runner. Integers and bools must be
/// equal.
fn close(found: &Tensor, expected: &Tensor) -> Result<(), String> {
    let (rtol, atol) = (1e-3f64, 1e-7);
    if found.value_type() != expected.value_type() {
        return Err(format!("{} instead of {}", found.value_type(), expected.value_type()));
    }
    if !found.dtype().is_float() {
        return if found == expected { Ok(()) } else { Err("other integers".into()) };
    }
    // two units in the last place of the half types, as ONNX's runner allows for bf16, because
    // decomposed operators round in between
    let rtol = match found.dtype() {
        DType::BF16 => rtol.max(1.0 / 64.0),
        DType::F16 => rtol.max(1.0 / 512.0),
        _ => rtol,
    };
    for (i, (f, e)) in found.to_f64_vec().into_iter().zip(expected.to_f64_vec()).enumerate() {
        let equal = f == e || (f.is_nan() && e.is_nan()) || (f - e).abs() <= atol + rtol * e.abs();
        if !equal {
            return Err(format!("element {i} is {f} instead of {e}"));
        }
    }
    Ok(())
}

/// The tests that the engine refused, with the reasons.
fn alone(tests: &[Test]) -> impl Iterator<Item = (&Test, &str)> {
    tests.iter().filter_map(|t| match &t.outcome {
        Outcome::Passed { alone: Some(why), .. } => Some((t, why.as_str())),
        _ => None,
    })
}

fn counts<'a>(tests: impl Iterator<Item = &'a Test>) -> [usize; 3] {
    let mut counts = [0; 3];
    for t in tests {
        counts[match t.outcome {
            Outcome::Passed { .. } => 0,
            Outcome::Refused(_) => 1,
            Outcome::Failed(_) => 2,
        }] += 1;
    }
    counts
}

const INTRODUCTION: &str = "\
# ONNX coverage

This page shows which operators of ONNX cqc supports, for users who want to know whether their model
can be compiled. It lists the results of the ONNX project's node tests. Each test runs twice:
through import and the definitions of the operators, and through import, rewrites, lowering and the
engine of the CPU. The page is written by `tests/conformance/run`.

";

const TOLERANCES: &str = "\
* The tolerances are those of ONNX's own runner (rtol 1e-3, atol 1e-7, and 2^-6 for bf16), and 2^-9
  for f16. Integers must be equal.
";

/// The page `docs/onnx-coverage.md`.
fn markdown(tests: &[Test]) -> String {
    let mut by_op: BTreeMap<&str, Vec<&Test>> = BTreeMap::new();
    tests.iter().for_each(|t| by_op.entry(&t.op).or_default().push(t));
    let [passed, refused, failed] = counts(tests.iter());
    let unrun = alone(tests).count();
    let given =
        tests.iter().filter(|t| matches!(t.outcome, Outcome::Passed { given: true, .. })).count();
    let mut text = String::from(INTRODUCTION);
    let _ = writeln!(
        text,
        "Of {} tests, **{passed} passed**, {refused} were refused with a clear error, and {failed} failed.\n",
        tests.len()
    );
    let _ = writeln!(
        text,
        "* The engine ran {} of the passed tests. The other {unrun} passed by the definitions alone; they\n  \
         are listed at the end.",
        passed - unrun
    );
    let _ = writeln!(
        text,
        "* Some operators need an input at compile time (a shape, for example, or the sizes of a split).\n  \
         The importer is then given this input. {given} of the passed tests need that."
    );
    text += TOLERANCES;
    text += "\n## Operators\n\n";
    text += "| operator | passed | refused | failed |\n| --- | ---: | ---: | ---: |\n";
    for (op, tests) in &by_op {
        let [passed, refused, failed] = counts(tests.iter().copied());
        let _ = writeln!(text, "| {op} | {passed} | {refused} | {failed} |");
    }
    text += "\n## Refused tests\n\n| test | reason |\n| --- | --- |\n";
    for t in tests {
        if let Outcome::Refused(reason) = &t.outcome {
            let _ = writeln!(
                text,
                "| {} | {} |",
                t.name,
                reason.replace('|', "\\|").replace('\n', " ")
            );
        }
    }
    if unrun > 0 {
        text += "\n## Tests passed by the definitions alone\n\n| test | reason for the refusal by the engine |\n| --- | --- |\n";
    }
    for (t, why) in alone(tests) {
        let _ = writeln!(text, "| {} | {} |", t.name, why.replace('|', "\\|").replace('\n', " "));
    }
    if failed > 0 {
        text += "\n## Failed tests\n\n";
    }
    for t in tests {
        if let Outcome::Failed(reason) = &t.outcome {
            let _ = writeln!(text, "* {}: {reason}", t.name);
        }
    }
    text
}

/// `in_NAME` and `out_NAME` arrays of a `.check.npz`.
fn check_model(model: &str, check: &str, tolerance: f64, dims: &[&str]) -> ExitCode {
    let dims = dims
        .iter()
        .filter_map(|d| d.split_once('='))
        .map(|(k, v)| (k.to_string(), v.parse().expect("a size")));
    let options = ImportOptions { dims: dims.collect(), ..Default::default() };
    let imported = match load(model, &options) {
        Ok(imported) => imported,
        Err(e) => {
            eprintln!("{model}: {e}");
            return ExitCode::FAILURE;
        }
    };
    let arrays = npz(check);
    let inputs = arrays
        .iter()
        .filter_map(|(n, t)| Some((n.strip_prefix("in_")?.to_string(), t.clone())))
        .collect();
    println!(
        "{model}: opset {}, {} nodes, {} in the graph, {} parameters, by {}",
        imported.opset,
        imported.node_count,
        imported.graph.node_count(),
        imported.parameters,
        imported.producer
    );
    let integers =
        imported.graph.nodes().filter(|(_, n)| imported.graph.ty(n.outputs[0]).dtype.is_integer());
    let integers: Vec<String> = integers.map(|(_, n)| n.op.name()).collect();
    println!("  nodes on integers: {}", integers.join(" "));
    imported.warnings.iter().for_each(|w| println!("  warning: {w}"));
    if let Err(e) = cqc_passes::ir::verify(&imported.graph) {
        eprintln!("{model}: {e}");
        return ExitCode::FAILURE;
    }
    let outputs = interpret(&imported.graph, &inputs).expect("the model runs");
    let mut ok = true;
    for (name, found) in outputs {
        let Some(expected) = arrays.get(&format!("out_{name}")) else { continue };
        let (f, e) = (found.to_f64_vec(), expected.to_f64_vec());
        let largest = e.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let worst = f.iter().zip(&e).fold(0.0f64, |m, (f, e)| m.max((f - e).abs()));
        println!(
            "  {name} {}: largest difference {worst:.3e}, relative {:.3e}",
            found.value_type(),
            worst / largest
        );
        ok &= f.len() == e.len() && worst <= tolerance * largest;
    }
    ExitCode::from(!ok as u8)
}

fn npz(path: &str) -> BTreeMap<String, Tensor> {
    let mut archive = npyz::npz::NpzArchive::open(path).expect("an .npz");
    let names: Vec<String> = archive.array_names().map(str::to_string).collect();
    names.into_iter().map(|name| (name.clone(), array(&mut archive, &name))).collect()
}

fn array(
    archive: &mut npyz::npz::NpzArchive<std::io::BufReader<std::fs::File>>,
    name: &str,
) -> Tensor {
    let npy = archive.by_name(name).expect("readable").expect("there");
    let shape: Vec<usize> = npy.shape().iter().map(|&d| d as usize).collect();
    if let Ok(v) = npy.into_vec::<f32>() {
        return Tensor::from_f32(&shape, &v);
    }
    let npy = archive.by_name(name).expect("readable").expect("there");
    if let Ok(v) = npy.into_vec::<i64>() {
        return Tensor::from_i64(&shape, &v);
    }
    let npy = archive.by_name(name).expect("readable").expect("there");
    let halves = npy.into_vec::<half::f16>().expect("f32, i64 or f16");
    let values: Vec<f32> = halves.iter().map(|v| v.to_f32()).collect();
    Tensor::from_f32(&shape, &values).to_float(DType::F16)
}
