//! Exceptions.

use cachequant::CompileError;
use cachequant::model::ModelError;
use cachequant::runtime::ArtifactError;
use cachequant::runtime::denoise::DenoiseError;
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;

create_exception!(cachequant, Error, PyException, "Whatever the package cannot do.");
create_exception!(cachequant, ModelFileError, Error, "A model cannot be read, or is no denoiser.");
create_exception!(cachequant, CompilationError, Error, "A model cannot be compiled so.");
create_exception!(cachequant, ArtifactFileError, Error, "An artifact cannot be opened.");
create_exception!(cachequant, RequestError, Error, "An artifact cannot do what is asked for.");
create_exception!(
    cachequant,
    BelowFloor,
    CompilationError,
    "The compiled loop is further from the float loop than it may be.\n\n\
     `psnr` and `floor` are decibels, `proposals` pairs of options and what they reach."
);
create_exception!(cachequant, Cancelled, Error, "A callback returned False.");

pub fn add(m: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = m.py();
    m.add("Error", py.get_type::<Error>())?;
    m.add("ModelError", py.get_type::<ModelFileError>())?;
    m.add("CompileError", py.get_type::<CompilationError>())?;
    m.add("ArtifactError", py.get_type::<ArtifactFileError>())?;
    m.add("RequestError", py.get_type::<RequestError>())?;
    m.add("BelowFloor", py.get_type::<BelowFloor>())?;
    m.add("Cancelled", py.get_type::<Cancelled>())
}

pub fn model(e: ModelError) -> PyErr {
    ModelFileError::new_err(e.to_string())
}

pub fn compilation(e: &CompileError) -> PyErr {
    match e {
        CompileError::Recipe(all) => {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            PyValueError::new_err(all.join("\n"))
        }
        e => CompilationError::new_err(e.to_string()),
    }
}

pub fn artifact(e: &ArtifactError) -> PyErr {
    ArtifactFileError::new_err(e.to_string())
}

pub fn request(e: &DenoiseError) -> PyErr {
    RequestError::new_err(e.to_string())
}

pub fn artifact_text(text: &str) -> PyErr {
    ArtifactFileError::new_err(text.to_string())
}
