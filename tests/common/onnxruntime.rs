//! ONNX Runtime as the reference of test files, where it is installed.
#![allow(dead_code)] // every test file compiles its own copy and uses a part of it

use cqc_proto::{DType, Tensor};
use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::DynValue;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// `CQC_ORT_LIBRARY`, or the library of the `onnxruntime` wheel of the Python in
/// `CQC_ORACLE_PYTHON`.
fn library() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("CQC_ORT_LIBRARY") {
        return Some(path.into());
    }
    let python = std::env::var_os("CQC_ORACLE_PYTHON")?;
    let find = "import onnxruntime, glob, os; print(glob.glob(os.path.dirname(onnxruntime.__file__) + '/capi/libonnxruntime.so*')[0])";
    let output = Command::new(python).args(["-c", find]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().into())
}

/// ONNX Runtime, loaded once. Prints a skip if it is not set.
pub fn environment() -> Option<&'static Environment> {
    static LOADED: OnceLock<Option<Environment>> = OnceLock::new();
    let load = || {
        let library = library()?;
        let builder =
            ort::init_from(&library).unwrap_or_else(|e| panic!("{}: {e}", library.display()));
        Some(builder.build().unwrap())
    };
    let loaded = LOADED.get_or_init(load).as_ref();
    if loaded.is_none() {
        println!("skipped: neither CQC_ORT_LIBRARY nor CQC_ORACLE_PYTHON is set");
    }
    loaded
}

fn to_ort(t: &Tensor) -> Option<DynValue> {
    let shape: Vec<i64> = t.shape().iter().map(|&d| d as i64).collect();
    match t.dtype() {
        DType::F32 => {
            Some(ort::value::Tensor::from_array((shape, t.to_f32_vec())).ok()?.into_dyn())
        }
        DType::I64 => {
            Some(ort::value::Tensor::from_array((shape, t.to_i64_vec())).ok()?.into_dyn())
        }
        _ => None,
    }
}

/// A session. Without `optimize`, every node runs as it is in the file.
pub fn session(environment: &Environment, model: &Path, optimize: bool) -> Session {
    let level =
        if optimize { GraphOptimizationLevel::All } else { GraphOptimizationLevel::Disable };
    let builder = Session::builder(environment).unwrap().with_intra_threads(2).unwrap();
    let builder = builder.with_optimization_level(level).unwrap();
    // otherwise sums of u8 times s8 overflow on x86 without VNNI
    let mut builder = builder.with_config_entry("session.x64quantprecision", "1").unwrap();
    builder.commit_from_file(model).unwrap()
}

/// The outputs of a model by name; `None` if an input has a type that cannot be passed on.
pub fn run(
    environment: &Environment,
    model: &Path,
    inputs: &BTreeMap<String, Tensor>,
) -> Option<BTreeMap<String, Tensor>> {
    run_session(&mut session(environment, model, true), inputs)
}

/// The same as [`run`] with an open session.
pub fn run_session(
    session: &mut Session,
    inputs: &BTreeMap<String, Tensor>,
) -> Option<BTreeMap<String, Tensor>> {
    let feeds =
        inputs.iter().map(|(n, t)| Some((n.clone(), to_ort(t)?))).collect::<Option<Vec<_>>>()?;
    let outputs = session.run(feeds).unwrap();
    let read = |(name, value): (&str, ort::value::ValueRef<'_>)| {
        let (shape, data) = value.try_extract_tensor::<f32>().unwrap();
        let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
        (name.to_string(), Tensor::from_f32(&shape, data))
    };
    Some(outputs.iter().map(read).collect())
}
