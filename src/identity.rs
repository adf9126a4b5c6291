//! What computes: this build, with the instructions of this CPU.

use cqc_kernels::{Isa, IsaError};
use cqc_proto::cq::Computed;

/// What results of floating point depend on beside their inputs: what artifacts keep of how they
/// were calibrated, and what intermediate results must agree in to be used again.
///
/// # Errors
/// Where `CQC_ISA` cannot be followed.
pub fn identity() -> Result<Computed, IsaError> {
    let build = concat!(env!("CARGO_PKG_VERSION"), "+", env!("CQC_SOURCES"));
    Ok(Computed { build: build.into(), isa: Isa::detect()?.to_string() })
}
