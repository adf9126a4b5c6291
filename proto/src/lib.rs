//! What the compiler and the runtime of cqc share: element types, shapes, constant tensors, the operators, the [`plan::Plan`],
//! the `.cq` container and, with the feature `onnx`, the ONNX messages.

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
