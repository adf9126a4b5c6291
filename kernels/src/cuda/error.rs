//! What can go wrong on the way to a GPU.

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// The CUDA driver's library is not on this machine.
    #[error("this machine has no CUDA driver (libcuda)")]
    NoCudaDriver,
    /// There is a driver and no GPU that it can use.
    #[error("the CUDA driver finds no device: {reason}")]
    NoCudaDevice {
        /// The driver's words.
        reason: String,
    },
    /// The GPU or its driver is older than what kernels are made for.
    #[error("needs {need}, this machine has {have}")]
    CudaTooOld {
        /// What is needed.
        need: String,
        /// What is there.
        have: String,
    },
    /// Kernels have to be compiled, and the compiler's library is not on this machine.
    #[error(
        "kernels for {arch} have to be compiled and {looked} has no NVRTC: pip install nvidia-cuda-nvrtc==13.0.88 and set CQC_NVRTC to \
         its folder `lib`, or compile the artifact with --target cuda:{arch}"
    )]
    NoNvrtc {
        /// The architecture.
        arch: String,
        /// Where it was looked for.
        looked: String,
    },
    /// NVRTC refused a source.
    #[error("NVRTC does not compile `{source_name}` for {arch}: {log}")]
    Compile {
        /// Name of the source.
        source_name: String,
        /// The architecture.
        arch: String,
        /// What it says.
        log: String,
    },
    /// The driver reports an error.
    #[error("CUDA: {what}: {reason}")]
    Driver {
        /// What was being done.
        what: &'static str,
        /// The driver's words.
        reason: String,
    },
    /// A primitive of the kernels gives other results than it has to: nothing that this device
    /// computes can be relied on.
    #[error("{device} computes `{primitive}` otherwise than the kernels need it")]
    Selftest {
        /// Name of the device.
        device: String,
        /// The first primitive of `cuda/prims.cuh` that differs.
        primitive: &'static str,
    },
}
