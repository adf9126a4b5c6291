//! Full evaluations that are not in the schedule. A loop that begins in the middle needs one,
//! because its cache is still empty.

use super::{DenoiseError, Denoiser, Trajectory};
use crate::retime::rows_of_full;
use cqc_proto::cq::Manifest;
use cqc_proto::plan::ProgramKind;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The state that is needed to run the full step where the schedule has a cached step.
#[derive(Default)]
pub(super) struct OffSchedule {
    /// The manifest of the plan, which tells which tables belong to which layer.
    manifest: Option<Arc<Manifest>>,
    /// The evaluations whose table rows have been completed.
    completed: BTreeSet<usize>,
}

impl OffSchedule {
    /// The initial state for another engine that runs the same plan.
    pub fn of_other_engine(&self) -> OffSchedule {
        OffSchedule { manifest: self.manifest.clone(), completed: BTreeSet::new() }
    }
}

impl Denoiser {
    /// Sets the manifest, so that loops can begin at evaluations that the schedule does not run in
    /// full, even if layers are quantized. The plan of the engine is the manifest's, or one that
    /// was made from it for other time steps.
    pub(crate) fn set_manifest(&mut self, manifest: Arc<Manifest>) {
        self.off_schedule = OffSchedule { manifest: Some(manifest), completed: BTreeSet::new() };
    }

    /// The program for the next evaluation of a trajectory. It is the schedule's, except at the
    /// beginning of a loop, where nothing is cached yet.
    pub(super) fn program_of(&self, trajectory: &Trajectory) -> ProgramKind {
        if trajectory.next < trajectory.full_until {
            ProgramKind::Full
        } else {
            self.engine.plan().program_at(trajectory.next)
        }
    }

    /// Returns the evaluation up to which a loop that begins with `begin` runs the full step,
    /// whatever the schedule says, and completes the table rows of evaluation `begin`.
    pub(super) fn full_until(&mut self, begin: usize) -> Result<usize, DenoiseError> {
        if self.engine.plan().program_at(begin) == ProgramKind::Full {
            return Ok(begin);
        }
        self.complete_rows(begin)?;
        Ok(begin + 1)
    }

    /// Fills in the quantization ranges and corrections of evaluation `e`, which was compiled as a
    /// cached step, for the layers that only the full step has. The schedule never reads these
    /// rows.
    fn complete_rows(&mut self, e: usize) -> Result<(), DenoiseError> {
        let Some(manifest) = self.off_schedule.manifest.clone() else { return Ok(()) };
        // a device reads its tables when it is opened, and they are complete by then
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
