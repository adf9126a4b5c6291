//! The errors of an export.

use cqc_proto::plan::ProgramKind;
use std::fmt;

/// Why a plan cannot be written as ONNX.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// All steps that have no form in standard ONNX.
    #[error("{}", list(.0))]
    Unsupported(Vec<UnsupportedStep>),
    /// The plan's `prelude_steps` runs for all evaluations at once, with a fixed batch.
    #[error(
        "the conditions are processed for all evaluations at once in a fixed batch, which the export cannot divide"
    )]
    Stacked,
}

/// A step that has no form in standard ONNX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedStep {
    /// The program to which it belongs.
    pub program: ProgramKind,
    /// Name of the step.
    pub step: String,
    /// The operator.
    pub op: String,
    /// The reason.
    pub reason: String,
}

impl fmt::Display for UnsupportedStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ({}, in {}): {}", self.step, self.op, self.program, self.reason)
    }
}

fn list(steps: &[UnsupportedStep]) -> String {
    let mut text = format!("{} steps have no spelling in standard ONNX:", steps.len());
    steps.iter().for_each(|s| text.push_str(&format!("\n  {s}")));
    text
}
