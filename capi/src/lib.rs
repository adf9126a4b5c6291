//! The C interface of the runtime: a dozen functions over opaque handles.
//!
//! The header `include/cqc.h` is made of this crate by cbindgen, and a test says when it is out of
//! date. Every function catches panics and checks its pointers for null; what lies at a pointer is
//! the caller's promise. Structures begin with their size, so that later versions may add fields at
//! their end.

mod arrays;
mod calls;
mod status;

pub use arrays::{CqcArray, CqcLoopOptions, CqcRequest, CqcType};
pub use calls::{CqcArtifact, CqcLoop, CqcProgress, CqcSamples};
pub use status::CqcStatus;
