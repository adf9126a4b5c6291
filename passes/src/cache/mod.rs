//! Caching between evaluations. The step becomes two graphs: one computes everything and stores a
//! few tensors, the other reads these tensors and computes the rest (DeepCache, arXiv:2312.00858;
//! CacheQuant, arXiv:2503.01323).
//!
//! [`candidates`] finds the possible cuts of a step, [`choose`] takes one, [`split`] makes the two
//! graphs, and [`correct`] inserts CacheQuant's correction per channel into the cached graph. All
//! of them look at the data flow alone: no name of an operator, module or tensor has a meaning
//! here.
//!
//! [`schedule`] decides which evaluations run which graph, on the costs of a [`band`]. [`affine`]
//! fits the numbers of the correction. The crate `cachequant` runs the loop and gives its results
//! to these three modules, which run nothing themselves.

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
