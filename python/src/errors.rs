//! The exceptions of the package, each under the name that Python shows in a traceback.

use cachequant::runtime::denoise::DenoiseError;
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;

create_exception!(
    cachequant,
    Error,
    PyException,
    "The base class of the exceptions of this package."
);
create_exception!(
    cachequant,
    ModelError,
    Error,
    "The model cannot be read, or it is not a denoiser."
);
create_exception!(
    cachequant,
    CompileError,
    Error,
    "The model cannot be compiled with these options."
);
create_exception!(cachequant, ArtifactError, Error, "The artifact cannot be opened.");
create_exception!(
    cachequant,
    RequestError,
    Error,
    "The artifact cannot do what the request asks for."
);
create_exception!(
    cachequant,
    BelowFloor,
    CompileError,
    "The quality of the compiled loop is below the required PSNR to the float loop.\n\n\
     `psnr` and `floor` are in decibels. `proposals` is a list of pairs: options, and the PSNR that \
     they reach."
);
create_exception!(cachequant, Cancelled, Error, "A progress callback returned False.");

pub fn add(m: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = m.py();
    m.add("Error", py.get_type::<Error>())?;
    m.add("ModelError", py.get_type::<ModelError>())?;
    m.add("CompileError", py.get_type::<CompileError>())?;
    m.add("ArtifactError", py.get_type::<ArtifactError>())?;
    m.add("RequestError", py.get_type::<RequestError>())?;
    m.add("BelowFloor", py.get_type::<BelowFloor>())?;
    m.add("Cancelled", py.get_type::<Cancelled>())
}

pub fn model(e: cachequant::model::ModelError) -> PyErr {
    ModelError::new_err(e.to_string())
}

pub fn compilation(e: &cachequant::CompileError) -> PyErr {
    match e {
        cachequant::CompileError::Recipe(all) => {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            PyValueError::new_err(all.join("\n"))
        }
        e => CompileError::new_err(e.to_string()),
    }
}

pub fn artifact(e: &cachequant::runtime::ArtifactError) -> PyErr {
    ArtifactError::new_err(e.to_string())
}

pub fn request(e: &DenoiseError) -> PyErr {
    RequestError::new_err(e.to_string())
}

pub fn artifact_text(text: &str) -> PyErr {
    ArtifactError::new_err(text.to_string())
}
