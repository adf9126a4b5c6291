//! What calibration decides from the tensors it has seen: ranges of quantizers, groups of
//! evaluations that share them, the samples to look at, corrections of the sample. Arithmetic only;
//! `calibrate` runs the loop and hands over what it saw.

pub mod compensate;
pub mod groups;
pub mod histogram;
pub mod range;
mod rounding;
mod scan;
pub mod select;
