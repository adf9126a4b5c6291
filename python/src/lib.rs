//! The native half of the Python package `cachequant`: compilation, artifacts, loops.
//!
//! Arrays come in as C-contiguous NumPy arrays and go out as new ones. Everything that computes
//! releases the interpreter's lock. The classes of the package stand in `python/cachequant`; what
//! is here takes and gives plain values, with JSON where they are structures.

mod arrays;
mod artifact;
mod compile;
mod errors;
mod looped;

use pyo3::prelude::*;

/// The native half of the package.
#[pymodule]
fn _cachequant(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add_function(wrap_pyfunction!(compile::compile, m)?)?;
    m.add_class::<artifact::Artifact>()?;
    m.add_class::<looped::Loop>()?;
    m.add_class::<looped::Trajectory>()?;
    errors::add(m)
}
