//! Which device evaluations run on.

use crate::cuda::OnDevice;
use cqc_kernels::cuda::CudaError;

/// Where evaluations run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// On a GPU if there is one that can run the artifact, else on the CPU.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On an NVIDIA GPU; an error where there is none that can.
    Cuda,
}

/// Requests that an engine on a device serves at once: both halves of guidance.
#[cfg(feature = "cuda")]
const SLOTS: usize = 2;

/// What became of the search for a device.
pub(crate) enum Found {
    /// This one is used.
    Device(OnDevice),
    /// The CPU is; and if there is a GPU that cannot be used, why.
    Cpu(Option<String>),
}

impl Device {
    /// Looks for the device. `kernels` are those that the artifact brings along, packed.
    pub(crate) fn find(self, kernels: Option<&[u8]>) -> Result<Found, String> {
        match self {
            Device::Cpu => Ok(Found::Cpu(None)),
            _ => self.settle(open(kernels)),
        }
    }

    fn settle(self, opened: Result<OnDevice, CudaError>) -> Result<Found, String> {
        match opened {
            Ok(device) => Ok(Found::Device(device)),
            Err(e) if self == Device::Cuda => Err(e.to_string()),
            Err(CudaError::NoCudaDriver | CudaError::NoCudaDevice { .. } | CudaError::NotBuilt { .. }) => {
                Ok(Found::Cpu(None))
            }
            Err(e) => Ok(Found::Cpu(Some(e.to_string()))),
        }
    }
}

#[cfg(feature = "cuda")]
fn open(kernels: Option<&[u8]>) -> Result<OnDevice, CudaError> {
    use cqc_kernels::cuda::cubin::Cubins;
    use cqc_kernels::cuda::driver::{Gpu, GpuOptions};
    let cubins = kernels.and_then(Cubins::unpack).unwrap_or_default();
    let device = Gpu::open(&GpuOptions { cubins, ..GpuOptions::default() })?;
    Ok(OnDevice { device, slots: SLOTS })
}

#[cfg(not(feature = "cuda"))]
fn open(_: Option<&[u8]>) -> Result<OnDevice, CudaError> {
    Err(CudaError::NotBuilt { feature: "the feature `cuda`" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_computes_wrongly_is_left_alone_by_auto_and_refused_by_name() {
        let opened = || Err(CudaError::Selftest { device: "a GPU".into(), primitive: "mma_f16" });
        let Ok(Found::Cpu(Some(why))) = Device::Auto.settle(opened()) else { panic!("the CPU is used") };
        assert!(why.contains("a GPU computes `mma_f16` otherwise"), "{why}");
        assert!(Device::Cuda.settle(opened()).is_err_and(|refused| refused == why));
    }
}
