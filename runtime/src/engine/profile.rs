//! How long each step takes.

use cqc_proto::plan::ProgramKind;
use std::time::Duration;

/// What one step of one program has cost since the engine was opened or [`reset`](super::Engine::reset_profile).
#[derive(Clone, Debug, PartialEq)]
pub struct StepProfile {
    /// The program it belongs to.
    pub program: ProgramKind,
    /// The step's name.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// Whether it runs through the slow definition, for want of a kernel.
    pub reference: bool,
    /// Whether it multiplies integers.
    pub integers: bool,
    /// Whether there is nothing to do: its result lies where it belongs, or whoever makes its operand rounds at once.
    pub idle: bool,
    /// Whether it multiplies bf16.
    pub bf16: bool,
    /// Time in all calls. Zero unless the engine was opened with `profile`.
    pub total: Duration,
    /// Number of calls. Zero unless the engine was opened with `profile`.
    pub calls: u64,
    /// Evaluations that a call computes: more than one in [`ProgramKind::PreludeSteps`], where the last call may have fewer.
    pub evaluations: usize,
}
