//! Calibration: ranges of quantizers, groups of evaluations that share them, the selection of
//! samples, and the sample compensation.
//!
//! These modules compute from tensors and run nothing. The module `calibrate` of the crate
//! `cachequant` runs the loop and passes the tensors in.

pub mod compensate;
pub mod groups;
pub mod histogram;
pub mod range;
mod rounding;
mod scan;
pub mod select;
