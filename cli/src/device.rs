//! `--device`: the choice between CPU and GPU, and what `doctor` says about GPUs.

use super::report::Failure;
use clap::{Args, ValueEnum};
use cqc_runtime::{Artifact, Denoiser, DenoiserOptions};

/// The options that choose a device.
#[derive(Args, Clone, Copy, Debug)]
pub struct DeviceArgs {
    /// Where evaluations run
    ///
    /// Kernels for a GPU are compiled with the library NVRTC and kept in the user's cache
    /// directory. With --artifact-kernels they come from the artifact.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: Device,
    /// Run the GPU machine code that the artifact brings along (`compile --target`)
    ///
    /// Use it only for artifacts whose maker may run programs on this machine.
    #[arg(long)]
    pub artifact_kernels: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// A GPU if there is one that can run the artifact, else the CPU
    Auto,
    /// The CPU
    Cpu,
    /// An NVIDIA GPU; the command fails if there is none that can run the artifact
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
    /// Opens a denoiser on that device. If there is a GPU that cannot be used, a warning says why.
    pub fn open(self, artifact: &Artifact, options: DenoiserOptions) -> Result<Denoiser, Failure> {
        let artifact_kernels = self.artifact_kernels;
        let options = DenoiserOptions { device: self.device.into(), artifact_kernels, ..options };
        if artifact.kernels().is_some() && !artifact_kernels && self.device != Device::Cpu {
            tracing::debug!(
                "the artifact's own GPU kernels are not used; --artifact-kernels allows it"
            );
        }
        let denoiser = artifact.denoiser_with(&options, &mut say_unused)?;
        if let Some(device) = denoiser.engine().device() {
            tracing::info!("evaluating on {}", device.name());
        }
        Ok(denoiser)
    }
}

/// Warns that a GPU is not used, and why.
pub fn say_unused(why: &str) {
    tracing::warn!("the GPU is not used: {why}");
}

/// Lines about GPUs for `doctor`, each with whether all is well.
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
