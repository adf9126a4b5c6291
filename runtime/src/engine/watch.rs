//! Access to steps while they run, and changes of tables between evaluations. Both serve
//! calibration.

use super::execute::read_tensor;
use super::program::{Location, PreparedProgram};
use super::{Engine, EngineError, codes};
use bytes::Bytes;
use cqc_kernels::arena::{Arena, bytes_of, cast};
use cqc_proto::plan::{ProgramKind, Source};
use cqc_proto::{DType, Tensor};

/// A function that is called before and after every step of an evaluation.
pub type Watch<'a> = dyn FnMut(&Watched) + 'a;

/// A step of a running evaluation.
pub struct Watched<'a> {
    pub(super) program: &'a PreparedProgram,
    pub(super) arena: &'a Arena,
    pub(super) request: &'a Arena,
    pub(super) evaluation: usize,
    /// The program that runs.
    pub kind: ProgramKind,
    /// Index of the step in the plan's program.
    pub step: usize,
    /// Whether the step has run.
    pub done: bool,
}

impl Watched<'_> {
    /// Operand `i` of the step. Its elements are valid only before the step has run.
    ///
    /// # Panics
    /// If the step has no such operand.
    pub fn input(&self, i: usize) -> Tensor {
        self.value(self.program.steps[self.step].inputs[i].expect("the operand is present"))
    }

    /// The first result of the step. It is valid only after the step has run.
    pub fn result(&self) -> Tensor {
        self.value(self.program.steps[self.step].outputs[0])
    }

    fn value(&self, v: usize) -> Tensor {
        read_tensor(
            &self.program.values[v],
            &self.program.locations[v],
            self.arena,
            self.request,
            self.evaluation,
        )
    }
}

impl Engine {
    /// Refuses to run a program at an evaluation at which the schedule runs the other, if its row
    /// of a table scales codes by 0. When the engine is opened, tables are only checked at the
    /// evaluations of the schedule.
    pub(super) fn check_scales(&self, kind: ProgramKind, e: usize) -> Result<(), EngineError> {
        let program = &self.programs[kind as usize];
        for (value, location) in program.values.iter().zip(&program.locations) {
            let (Source::Table(constant), Location::Table { bytes, row }) =
                (value.source, location)
            else {
                continue;
            };
            let is_passed = value.dtype == DType::F32
                && cast::<f32>(&bytes[e * *row..][..*row]).iter().any(|&s| !codes::is_scale(s));
            if is_passed && codes::scales_codes(program, constant) {
                let constant = self.plan().constants[constant].name.clone();
                return Err(EngineError::Codes { constant });
            }
        }
        Ok(())
    }

    /// Overwrites one row of a table in this engine, which steps read at evaluation `e`. The
    /// weights from which the engine was opened do not change, nor do the results of preludes.
    ///
    /// # Errors
    /// [`EngineError::Length`] if the row has another length than the table's rows,
    /// [`EngineError::Codes`] for a scale of 0 if activations are stored as codes, and
    /// [`EngineError::OnDevice`] on a device.
    ///
    /// # Panics
    /// If the table has no such row.
    pub fn set_table_row(
        &mut self,
        constant: usize,
        e: usize,
        row: &[f32],
    ) -> Result<(), EngineError> {
        if self.device.is_some() {
            return Err(EngineError::OnDevice { what: "tables cannot be overwritten" });
        }
        let is_passed = row.iter().any(|&scale| !codes::is_scale(scale));
        if is_passed && self.programs.iter().any(|program| codes::scales_codes(program, constant)) {
            return Err(EngineError::Codes {
                constant: self.plan().constants[constant].name.clone(),
            });
        }
        for program in &mut self.programs {
            for (value, location) in program.values.iter().zip(&mut program.locations) {
                let Location::Table { bytes, row: size } = location else { continue };
                if value.source != Source::Table(constant) {
                    continue;
                }
                if *size != size_of_val(row) {
                    let (found, expected) = (row.len(), *size / size_of::<f32>());
                    return Err(EngineError::Length { what: "a row of a table", found, expected });
                }
                let mut arena = Arena::new(bytes.len());
                let all: &mut [u8] = arena
                    .get_mut(cqc_kernels::arena::Span::new(0, bytes.len()))
                    .expect("an arena holds itself");
                all.copy_from_slice(bytes);
                all[e * *size..][..*size].copy_from_slice(bytes_of(row));
                *bytes = Bytes::from_owner(arena);
            }
        }
        Ok(())
    }
}
