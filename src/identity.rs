//! Identifies the build and the instruction set that compute.

use cqc_kernels::{Isa, IsaError};
use cqc_proto::cq::Computed;

/// The build and the instruction set, on which floating-point results depend besides their inputs.
/// Artifacts record the ones that calibrated them, and intermediate results are used again only if
/// both agree.
///
/// # Errors
/// [`IsaError`] if the environment variable `CQC_ISA` asks for an instruction set that this CPU
/// does not have.
pub fn identity() -> Result<Computed, IsaError> {
    let build = concat!(env!("CARGO_PKG_VERSION"), "+", env!("CQC_SOURCES"));
    Ok(Computed { build: build.into(), isa: Isa::detect()?.to_string() })
}
