//! Trajectories whose samples stay on a device.

use super::{DeviceEngine, DeviceRequest, DeviceSampling, Engine, EngineError, InFlight};
use cqc_proto::plan::ProgramKind;

impl Engine {
    /// Sets up the device to move samples, if there is one and the plan has tables for the same
    /// evaluations. Returns whether it moves them.
    pub(crate) fn sample_on_device(
        &mut self,
        sampling: &DeviceSampling,
    ) -> Result<bool, EngineError> {
        let counts = self.plan().evaluations == sampling.table.rows.len();
        match &mut self.device {
            Some(device) if counts => device.set_sampling(sampling).map(|()| true),
            _ => Ok(false),
        }
    }

    fn on_device<'a>(
        &'a self,
        request: &'a InFlight,
    ) -> Result<(&'a dyn DeviceEngine, &'a DeviceRequest), EngineError> {
        self.device().zip(request.device.as_ref()).ok_or(EngineError::ForeignRequest)
    }

    /// Begins a trajectory on the device with samples and the network's first input.
    pub(crate) fn put_samples(
        &self,
        request: &InFlight,
        x: &[f32],
        input: &[f32],
        guidance: f32,
    ) -> Result<(), EngineError> {
        let (device, slot) = self.on_device(request)?;
        device.put_samples(slot, x, input, guidance)
    }

    /// Runs the program of evaluation `e`, which follows the previous one, and moves the samples.
    /// `noise` is called while the device works, and returns `None` if the sampler adds no noise at
    /// this evaluation. This function returns before the work is done.
    pub(crate) fn replay<'n>(
        &self,
        request: &mut InFlight,
        e: usize,
        noise: impl FnOnce() -> Option<&'n [f32]>,
    ) -> Result<(), EngineError> {
        let kind = self.plan().program_at(e);
        if kind == ProgramKind::Cached && !request.stored {
            return Err(EngineError::NothingCached { evaluation: e });
        }
        let (device, slot) = self.on_device(request)?;
        device.replay(kind, slot, e, request.stored)?;
        device.advance(kind, slot, noise())?;
        request.stored |= kind == ProgramKind::Full;
        request.last = Some((kind, e));
        Ok(())
    }

    /// Waits for the device and copies the samples from it.
    pub(crate) fn get_samples(&self, request: &InFlight, x: &mut [f32]) -> Result<(), EngineError> {
        let (device, slot) = self.on_device(request)?;
        device.get_samples(slot, x)
    }

    pub(crate) fn wait(&self) -> Result<(), EngineError> {
        self.device().map_or(Ok(()), |device| device.wait())
    }
}
