//! The C interface of the runtime: about a dozen functions over opaque handles.
//!
//! cbindgen makes the header `include/cqc.h` from this crate, and a test checks that the header is
//! current. Every function catches panics and checks its pointers for null. The memory behind a
//! pointer is the promise of the caller. Structures begin with their size, so that later versions
//! can append fields.

mod arrays;
mod calls;
mod status;

pub use arrays::{CqcArray, CqcLoopOptions, CqcRequest, CqcType};
pub use calls::{CqcArtifact, CqcLoop, CqcProgress, CqcSamples};
pub use status::CqcStatus;
