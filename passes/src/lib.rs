//! The compiler: graph IR, ONNX import, rewrites, lowering to a Plan. Executes nothing but
//! constants.

pub mod bind;
pub mod cache;
pub mod calib;
pub mod interpret;
pub mod ir;
pub mod lower;
pub mod onnx;
pub mod quant;
pub mod rewrite;
