//! The data structures that the compiler and the runtime of cqc share. They are element types,
//! shapes with affine sizes ([`Dim`]), constant tensors, the operators ([`Op`]) with their shape
//! rules and costs, the plan of a compiled loop ([`plan::Plan`]), the configuration of the sampler,
//! the `.cq` container ([`cq`]) and, with the feature `onnx`, the ONNX messages. This crate
//! executes nothing.
//!
//! It serves tools that inspect artifacts without running them. To sample from an artifact, use
//! `cqc-runtime`; to make one, use `cachequant`.
//!
//! ```no_run
//! let bytes = std::fs::read("unet.cq")?;
//! let artifact = cqc_proto::cq::Artifact::read(bytes.into())?;
//! let plan = &artifact.manifest.plan;
//! println!("{} evaluations, {} steps each", plan.evaluations, plan.full.steps.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cq;
pub mod dim;
pub mod dtype;
#[cfg(feature = "onnx")]
pub mod onnx;
pub mod op;
pub mod plan;
pub mod sampler;
pub mod tensor;
pub mod text;
pub mod types;

pub use dim::{Bindings, Dim};
pub use dtype::DType;
pub use op::Op;
pub use tensor::Tensor;
pub use types::{Shape, ValueType};
