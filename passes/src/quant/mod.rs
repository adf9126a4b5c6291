//! Quantization: the layers of a loop, their rounded weights, and the rewritten graph.

pub mod annotate;
pub mod bf16;
mod cholesky;
pub mod gptq;
mod gram;
mod grid;
pub mod migrate;
pub mod survey;
pub mod weights;

pub use annotate::{
    AnnotateOptions, Annotation, CorrectionTables, OutputCorrection, QuantTables, SiteTable,
    SiteTables, annotate, narrow_tables,
};
pub use bf16::{Bf16Layer, Bf16Products, round_products};
pub use migrate::Migrate;
pub use survey::{ActivationSite, Layer, PreludeWeight, QuantSpec, Survey, survey};
pub use weights::QuantizedWeight;
