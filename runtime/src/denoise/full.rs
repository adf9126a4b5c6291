//! Full evaluations that the schedule does not run: those with which a loop begins in the middle.

use super::{DenoiseError, Denoiser, Trajectory};
use crate::retime::rows_of_full;
use cqc_proto::cq::Manifest;
use cqc_proto::plan::ProgramKind;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What is needed to run `full` where the schedule runs `cached`.
#[derive(Default)]
pub(super) struct OffSchedule {
    /// Whose plan it is: says which tables belong to which layer.
    manifest: Option<Arc<Manifest>>,
    /// Evaluations whose rows have been completed.
    completed: BTreeSet<usize>,
}

impl OffSchedule {
    /// The same for another engine on the same plan.
    pub fn of_other_engine(&self) -> OffSchedule {
        OffSchedule { manifest: self.manifest.clone(), completed: BTreeSet::new() }
    }
}

impl Denoiser {
    /// Lets loops begin at evaluations that the schedule does not run in full, if layers of the
    /// manifest are quantized. The plan is the manifest's, or one for other steps.
    pub(crate) fn set_manifest(&mut self, manifest: Arc<Manifest>) {
        self.off_schedule = OffSchedule { manifest: Some(manifest), completed: BTreeSet::new() };
    }

    /// The program of a trajectory's evaluation to come: that of the schedule, but nothing is cached
    /// yet where a loop begins.
    pub(super) fn program_of(&self, trajectory: &Trajectory) -> ProgramKind {
        if trajectory.next < trajectory.full_until {
            ProgramKind::Full
        } else {
            self.engine.plan().program_at(trajectory.next)
        }
    }

    /// The evaluation before which a loop that begins with evaluation `begin` runs `full` whatever
    /// the schedule says. Completes the rows of those evaluations.
    pub(super) fn full_until(&mut self, begin: usize) -> Result<usize, DenoiseError> {
        if self.engine.plan().program_at(begin) == ProgramKind::Full {
            return Ok(begin);
        }
        self.complete_rows(begin)?;
        Ok(begin + 1)
    }

    /// Gives layers that only `full` has the ranges and corrections that they lack at an evaluation
    /// that was compiled as cached. Nothing that the schedule runs reads these rows.
    fn complete_rows(&mut self, e: usize) -> Result<(), DenoiseError> {
        let Some(manifest) = self.off_schedule.manifest.clone() else { return Ok(()) };
        // a device has them from the beginning
        if self.engine.device().is_some() || !self.off_schedule.completed.insert(e) {
            return Ok(());
        }
        let (weights, _) = self.engine.recipe();
        for (table, row) in rows_of_full(&manifest, &weights, &self.timesteps, e) {
            self.engine.set_table_row(table, e, &row)?;
        }
        Ok(())
    }
}
