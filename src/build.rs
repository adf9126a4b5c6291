//! Which build of cqc this is, and what it computes with: what results depend on besides a model and
//! a recipe.

use cqc_kernels::Isa;
use cqc_kernels::isa::IsaError;

/// The version, and in brackets the build's own id where whoever built it gave one in the variable
/// `CQC_BUILD_ID`, such as a commit: `0.1.0 (5c1e2f0)`.
pub fn version() -> String {
    match option_env!("CQC_BUILD_ID").filter(|id| !id.is_empty()) {
        Some(id) => format!("{} ({id})", env!("CARGO_PKG_VERSION")),
        None => env!("CARGO_PKG_VERSION").to_string(),
    }
}

/// The instruction set of kernels on this CPU: `avx2`, for example.
///
/// # Errors
/// [`IsaError`] if `CQC_ISA` asks for another than this CPU has.
pub fn instruction_set() -> Result<String, IsaError> {
    Isa::detect().map(|isa| isa.to_string())
}

/// BLAKE3 of the running program, hexadecimal: two builds of one version differ in it. `None` where
/// the system does not give the file.
pub fn program_hash() -> Option<String> {
    crate::io::file_hash(&std::env::current_exe().ok()?).ok()
}
