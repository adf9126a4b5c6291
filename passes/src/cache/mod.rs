//! Reuse between evaluations: the step becomes two graphs, one that computes everything and stores
//! a few tensors, and one that reads them and computes the rest (DeepCache, arXiv:2312.00858;
//! CacheQuant, arXiv:2503.01323).
//!
//! [`candidates`] finds where a step can be cut, [`choose`] takes one, [`split`] makes the two
//! graphs, [`correct`] puts CacheQuant's per-channel correction behind what the cached one reads.
//! All of it looks at data flow alone: no operator, module or tensor name means anything here.
//!
//! Which evaluations run which graph is [`schedule`]'s business, on the costs of a [`band`]; the
//! correction's numbers are fitted in [`affine`]. All three are told what a loop has done and run
//! nothing themselves.

pub mod affine;
pub mod band;
pub mod schedule;

mod assemble;
mod chain;
mod correct;
mod cut;
mod flow;
mod spec;
mod split;
mod tensors;

pub use assemble::assemble;
pub use correct::{Correction, correct};
pub use cut::{Cached, Cut, candidates, sample_value};
pub use flow::Batch;
pub use spec::{AUTO_SHARE, CutError, CutSpec, choose};
pub use split::{Slot, Split, split};
