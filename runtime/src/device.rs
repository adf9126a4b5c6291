//! The device on which evaluations run.

use crate::engine::Backend;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use cqc_kernels::cuda::CudaError;

/// The device on which evaluations run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A GPU if there is one that can run the artifact, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU. If none can be used, opening fails.
    Cuda,
}

/// The number of requests that an engine on a device serves at once: the two halves of guidance.
#[cfg(feature = "cuda")]
const SLOTS: usize = 2;

/// The result of a search for a device.
pub(crate) enum Found {
    /// The device that is used.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(dead_code, reason = "only the feature `cuda` finds devices")
    )]
    Device(Arc<dyn Backend>),
    /// The CPU is used. The text says why a GPU that is there cannot be used.
    Cpu(Option<String>),
}

impl Device {
    /// Finds the device. `kernels` are the packed kernels of the artifact.
    #[cfg(feature = "cuda")]
    pub(crate) fn find(self, kernels: Option<&[u8]>) -> Result<Found, String> {
        match self {
            Device::Cpu => Ok(Found::Cpu(None)),
            _ => self.settle(open(kernels)),
        }
    }

    /// Finds the device. In a build without the feature `cuda`, only the CPU can be used.
    #[cfg(not(feature = "cuda"))]
    pub(crate) fn find(self, _: Option<&[u8]>) -> Result<Found, String> {
        match self {
            Device::Cuda => Err("this program was built without the feature `cuda`".into()),
            _ => Ok(Found::Cpu(None)),
        }
    }

    #[cfg(feature = "cuda")]
    fn settle(self, opened: Result<Arc<dyn Backend>, CudaError>) -> Result<Found, String> {
        match opened {
            Ok(device) => Ok(Found::Device(device)),
            Err(e) if self == Device::Cuda => Err(e.to_string()),
            Err(CudaError::NoCudaDriver | CudaError::NoCudaDevice { .. }) => Ok(Found::Cpu(None)),
            Err(e) => Ok(Found::Cpu(Some(e.to_string()))),
        }
    }
}

#[cfg(feature = "cuda")]
fn open(kernels: Option<&[u8]>) -> Result<Arc<dyn Backend>, CudaError> {
    use crate::cuda::CudaBackend;
    use cqc_kernels::cuda::cubin::Cubins;
    use cqc_kernels::cuda::driver::{Gpu, GpuOptions};
    let cubins = kernels.and_then(Cubins::unpack).unwrap_or_default();
    let device = Gpu::open(&GpuOptions { cubins, ..GpuOptions::default() })?;
    Ok(Arc::new(CudaBackend { device, slots: SLOTS }))
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_computes_wrongly_is_left_alone_by_auto_and_refused_by_name() {
        let opened = || Err(CudaError::Selftest { device: "a GPU".into(), primitive: "mma_f16" });
        let Ok(Found::Cpu(Some(why))) = Device::Auto.settle(opened()) else {
            panic!("the CPU is used")
        };
        assert!(why.contains("a GPU computes `mma_f16` otherwise"), "{why}");
        assert!(Device::Cuda.settle(opened()).is_err_and(|refused| refused == why));
    }
}
