//! Writes a compiled loop as a directory that needs no cqc: ONNX models, their constants, a
//! schedule, and a sampling script.
//!
//! | file | content |
//! |---|---|
//! | `full.onnx` … | the models, see [`cqc_passes::onnx::export`] |
//! | `weights.bin` | constants of all models |
//! | `schedule.json` | the loop: evaluations, sampler, guidance, and how the models connect, see [`schedule`] |
//! | `null.npz` | the null conditions, if the artifact has any |
//! | `sample.py` | the loop in numpy, for DDIM without noise |
//! | `models.py` | runs the models with ONNX Runtime; `sample.py` uses it |

pub mod schedule;

use crate::io::{FileError, Overwrite, write_directory, write_npz};
use cqc_passes::onnx::export::{ExportError, ExportOptions, Exported, Layout, Qdq, export};
use cqc_proto::Tensor;
use cqc_proto::cq::{Fill, GuidanceInterval};
use cqc_proto::plan::Plan;
use cqc_runtime::denoise::Compensation;
use cqc_runtime::sampler::Sampler;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// The file by which a directory is recognised as an export.
pub const SCHEDULE: &str = "schedule.json";
const WEIGHTS: &str = "weights.bin";
const NULL: &str = "null.npz";
/// The scripts that show how to use the models.
const SCRIPTS: [(&str, &[u8]); 2] =
    [("sample.py", include_bytes!("sample.py")), ("models.py", include_bytes!("models.py"))];

/// Constants of fewer bytes are stored in the models: the shape operands of the standard, scalars
/// and biases.
const INLINE_BELOW: usize = 1024;

/// The loop to export.
#[derive(Clone, Copy)]
pub struct ExportedLoop<'a> {
    /// The plan of the compiled loop.
    pub plan: &'a Plan,
    /// The plan's constants, in order.
    pub constants: &'a [Tensor],
    /// The sampler.
    pub sampler: &'a Sampler,
    /// Guidance scale; 1 means no guidance.
    pub guidance: f32,
    /// How far guidance is rescaled, 0 to 1.
    pub rescale: f32,
    /// Steps in which guidance applies; `None` means all of them.
    pub interval: Option<GuidanceInterval>,
    /// Conditions that the loop fills by itself.
    pub fills: &'a BTreeMap<String, Fill>,
    /// The null conditions, one row per input.
    pub null: &'a BTreeMap<String, Tensor>,
    /// The sample compensation, which is applied after every evaluation.
    pub compensation: Option<&'a Compensation>,
}

/// The form of the models.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// The number of models for full and cached evaluations.
    pub layout: Layout,
    /// The form in which rounding is written.
    pub qdq: Qdq,
}

/// Why a loop cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum LoopExportError {
    /// The plan has no form in standard ONNX.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Writes the directory `dir` and returns the names of its files.
///
/// # Errors
/// [`LoopExportError`]; `dir` is then unchanged.
pub fn write(
    exported: ExportedLoop,
    form: Form,
    dir: &Path,
    overwrite: Overwrite,
) -> Result<Vec<String>, LoopExportError> {
    let Form { layout, qdq } = form;
    let timesteps = exported.sampler.evaluations().iter().map(|e| e.timestep).collect();
    let options = ExportOptions {
        layout,
        timesteps,
        weights: WEIGHTS.into(),
        inline_below: INLINE_BELOW,
        qdq,
    };
    let models = export(exported.plan, exported.constants, &options)?;
    let mut files = Vec::new();
    write_directory(dir, overwrite, SCHEDULE, |dir| {
        files = write_files(exported, form, &models, dir)?;
        Ok::<(), LoopExportError>(())
    })?;
    Ok(files)
}

fn write_files(
    exported: ExportedLoop,
    form: Form,
    models: &Exported,
    dir: &Path,
) -> Result<Vec<String>, FileError> {
    let mut files = Vec::new();
    let mut file = |name: &str, write: &dyn Fn(&mut BufWriter<File>) -> io::Result<()>| {
        let path = dir.join(name);
        files.push(name.to_string());
        create(&path, write).map_err(FileError::writing(&path))
    };
    for model in &models.models {
        file(&schedule::file_name(model), &|out| out.write_all(&model.encode()))?;
    }
    if !models.weights.is_empty() {
        file(WEIGHTS, &|out| write_weights(out, &models.weights))?;
    }
    let text = serde_json::to_string_pretty(&schedule::json(exported, form, models))
        .expect("JSON of plain data");
    file(SCHEDULE, &|out| writeln!(out, "{text}"))?;
    for (name, text) in SCRIPTS {
        file(name, &|out| out.write_all(text))?;
    }
    if !exported.null.is_empty() {
        let arrays: Vec<(String, Tensor)> =
            exported.null.iter().map(|(n, t)| (n.clone(), t.clone())).collect();
        write_npz(&dir.join(NULL), &arrays, Overwrite::Refuse)?;
        files.push(NULL.into());
    }
    Ok(files)
}

fn create(path: &Path, write: &dyn Fn(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 18, File::create(path)?);
    write(&mut out)?;
    // The rename of the directory must not become durable before the bytes.
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn write_weights(out: &mut impl Write, parts: &[(u64, Tensor)]) -> io::Result<()> {
    let mut end = 0;
    for (offset, tensor) in parts {
        out.write_all(&vec![0; (offset - end) as usize])?;
        out.write_all(tensor.bytes())?;
        end = offset + tensor.bytes().len() as u64;
    }
    Ok(())
}
