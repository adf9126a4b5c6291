//! `--device`: where evaluations run, and what GPUs there are.

use super::report::Failure;
use clap::{Args, ValueEnum};
use cqc_runtime::engine::Backend;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use cqc_kernels::cuda::CudaError;

/// Where to evaluate.
#[derive(Args, Clone, Copy, Debug)]
pub struct DeviceArgs {
    /// Where evaluations run: cuda, cpu, or auto, which takes a GPU if there is one that can. Kernels for a GPU come from the artifact
    /// (`compile --target`), else they are compiled with NVRTC and kept in the user's cache
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: Device,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    Auto,
    Cpu,
    Cuda,
}

/// Requests that an engine on a device serves at once: both halves of guidance.
#[cfg(feature = "cuda")]
const SLOTS: usize = 2;

impl DeviceArgs {
    /// The device; none is the CPU. `kernels`: those of the artifact. With `auto` a GPU that cannot be used is a line on stderr.
    pub fn choose(self, kernels: Option<&[u8]>) -> Result<Option<Arc<dyn Backend>>, Failure> {
        if self.device == Device::Cpu {
            return Ok(None);
        }
        #[cfg(feature = "cuda")]
        return self.settle(open(kernels));
        #[cfg(not(feature = "cuda"))]
        match (self.device, kernels) {
            (Device::Cuda, _) => {
                Err(Failure::failed("--device cuda: this program was built without the feature `cuda`"))
            }
            _ => Ok(None),
        }
    }

    /// What becomes of a GPU that was looked for.
    #[cfg(feature = "cuda")]
    fn settle(self, opened: Result<Arc<dyn Backend>, CudaError>) -> Result<Option<Arc<dyn Backend>>, Failure> {
        match opened {
            Ok(device) => Ok(Some(device)),
            Err(e) if self.device == Device::Cuda => Err(Failure::failed(format!("--device cuda: {e}"))),
            Err(CudaError::NoCudaDriver | CudaError::NoCudaDevice { .. }) => Ok(None),
            Err(e) => {
                tracing::warn!("the GPU is not used: {e}");
                Ok(None)
            }
        }
    }

    /// Whether another device may do what this one cannot.
    pub fn is_auto(self) -> bool {
        self.device == Device::Auto
    }
}

#[cfg(feature = "cuda")]
fn open(kernels: Option<&[u8]>) -> Result<Arc<dyn Backend>, CudaError> {
    use cqc_kernels::cuda::cubin::Cubins;
    use cqc_kernels::cuda::driver::{Gpu, GpuOptions};
    use cqc_runtime::cuda::CudaBackend;
    let cubins = kernels.and_then(Cubins::unpack).unwrap_or_default();
    let device = Gpu::open(&GpuOptions { cubins, ..GpuOptions::default() })?;
    Ok(Arc::new(CudaBackend { device, slots: SLOTS }))
}

/// `cuda:sm_90`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target(pub String);

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let arch = text.strip_prefix("cuda:").filter(|arch| {
            arch.strip_prefix("sm_").is_some_and(|n| {
                n.starts_with(|c: char| c.is_ascii_digit()) && n.bytes().all(|b| b.is_ascii_alphanumeric())
            })
        });
        arch.map(|arch| Target(arch.into())).ok_or_else(|| "expected cuda:sm_NN, as in cuda:sm_90".into())
    }
}

/// Kernels compiled for targets, as an artifact holds them; none without targets.
#[cfg(feature = "cuda")]
pub fn compile_kernels(targets: &[Target]) -> Result<Option<Vec<u8>>, Failure> {
    use cqc_kernels::cuda::cubin::Cubins;
    use cqc_kernels::cuda::nvrtc::Nvrtc;
    let compile = |target: &Target| {
        let compiled = Nvrtc::find(None, &target.0).and_then(|nvrtc| Cubins::compile(&target.0, nvrtc));
        compiled.map_err(|e| Failure::failed(e.to_string()))
    };
    let all = targets.iter().map(compile).collect::<Result<Vec<_>, _>>()?;
    Ok((!all.is_empty()).then(|| Cubins::pack(&all)))
}

#[cfg(not(feature = "cuda"))]
pub fn compile_kernels(targets: &[Target]) -> Result<Option<Vec<u8>>, Failure> {
    match targets {
        [] => Ok(None),
        _ => Err(Failure::failed("--target: this program was built without the feature `cuda`")),
    }
}

/// What `doctor` says of GPUs: whether all is well, and a line.
#[cfg(feature = "cuda")]
pub fn findings() -> Vec<(bool, String)> {
    use cqc_kernels::cuda::driver;
    use cqc_kernels::cuda::nvrtc::Nvrtc;
    let (gpu, arch) = match driver::find() {
        Ok(info) => {
            let version = format!("CUDA {}.{}", info.driver / 1000, info.driver % 1000 / 10);
            let text = format!("{}, {}, {} GiB, driver for {version}", info.name, info.arch(), info.memory >> 30);
            ((true, text), info.arch())
        }
        Err(e) => ((false, format!("{e}: --device auto runs on the CPU")), "sm_90".into()),
    };
    let nvrtc = match Nvrtc::find(None, &arch) {
        Ok(nvrtc) => (true, format!("NVRTC {}.{} compiles kernels", nvrtc.version().0, nvrtc.version().1)),
        Err(_) => (false, "no NVRTC: kernels come from artifacts made with --target, or from the cache".into()),
    };
    vec![gpu, nvrtc]
}

#[cfg(not(feature = "cuda"))]
pub fn findings() -> Vec<(bool, String)> {
    vec![(false, "this program was built without the feature `cuda`".into())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_that_computes_wrongly_is_left_alone_by_auto_and_refused_by_name() {
        let opened = || Err(CudaError::Selftest { device: "a GPU".into(), primitive: "mma_f16" });
        assert!(DeviceArgs { device: Device::Auto }.settle(opened()).unwrap().is_none());
        let refused = DeviceArgs { device: Device::Cuda }.settle(opened()).unwrap_err();
        assert!(refused.what().contains("a GPU computes `mma_f16` otherwise"), "{}", refused.what());
    }

    #[test]
    fn targets_name_an_architecture() {
        assert_eq!("cuda:sm_90a".parse(), Ok(Target("sm_90a".into())));
        for bad in ["", "cuda", "cuda:", "cuda:90", "cuda:sm_", "cuda:sm_x", "cuda:sm_90 -v", "cpu"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
