//! `--device`: where evaluations run, and what GPUs there are.

use super::report::Failure;
use clap::{Args, ValueEnum};
use cqc_runtime::{Artifact, Denoiser, DenoiserOptions};

/// Where to evaluate.
#[derive(Args, Clone, Copy, Debug)]
pub struct DeviceArgs {
    /// Where evaluations run: cuda, cpu, or auto, which takes a GPU if there is one that can.
    /// Kernels for a GPU are compiled with NVRTC and kept in the user's cache, or come from the
    /// artifact with --artifact-kernels
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: Device,
    /// Run machine code for a GPU that the artifact brings along (`compile --target`); only for
    /// artifacts whose maker may run programs on this machine
    #[arg(long)]
    pub artifact_kernels: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    Auto,
    Cpu,
    Cuda,
}

impl From<Device> for cqc_runtime::Device {
    fn from(device: Device) -> cqc_runtime::Device {
        match device {
            Device::Auto => cqc_runtime::Device::Auto,
            Device::Cpu => cqc_runtime::Device::Cpu,
            Device::Cuda => cqc_runtime::Device::Cuda,
        }
    }
}

impl DeviceArgs {
    /// Opens a denoiser there. A GPU that is there and cannot be used is a line on stderr.
    pub fn open(self, artifact: &Artifact, options: DenoiserOptions) -> Result<Denoiser, Failure> {
        let artifact_kernels = self.artifact_kernels;
        let options = DenoiserOptions { device: self.device.into(), artifact_kernels, ..options };
        if artifact.kernels().is_some() && !artifact_kernels && self.device != Device::Cpu {
            tracing::debug!("the artifact's own GPU kernels are not used: --artifact-kernels");
        }
        let denoiser = artifact.denoiser_with(&options, &mut say_unused)?;
        if let Some(device) = denoiser.engine().device() {
            tracing::info!("evaluating on {}", device.name());
        }
        Ok(denoiser)
    }
}

/// Says why a GPU that is there is not used.
pub fn say_unused(why: &str) {
    tracing::warn!("the GPU is not used: {why}");
}

/// What `doctor` says of GPUs: whether all is well, and a line.
#[cfg(feature = "cuda")]
pub fn findings() -> Vec<(bool, String)> {
    use cqc_kernels::cuda::driver;
    use cqc_kernels::cuda::nvrtc::Nvrtc;
    let (gpu, arch) = match driver::find() {
        Ok(info) => {
            let version = format!("CUDA {}.{}", info.driver / 1000, info.driver % 1000 / 10);
            let text = format!(
                "{}, {}, {} GiB, driver for {version}",
                info.name,
                info.arch(),
                info.memory >> 30
            );
            ((true, text), info.arch())
        }
        Err(e) => ((false, format!("{e}: --device auto runs on the CPU")), "sm_90".into()),
    };
    let nvrtc = match Nvrtc::find(None, &arch) {
        Ok(nvrtc) => {
            (true, format!("NVRTC {}.{} compiles kernels", nvrtc.version().0, nvrtc.version().1))
        }
        Err(_) => (
            false,
            "no NVRTC: kernels come from artifacts made with --target (--artifact-kernels), or from the cache"
                .into(),
        ),
    };
    vec![gpu, nvrtc]
}

#[cfg(not(feature = "cuda"))]
pub fn findings() -> Vec<(bool, String)> {
    vec![(false, "this program was built without the feature `cuda`".into())]
}
