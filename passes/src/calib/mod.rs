//! to look at, corrections of the sample. Arithmetic only; `calibrate` runs the loop and hands over what it saw.

pub mod histogram;
pub mod range;
mod rounding;
mod scan;
