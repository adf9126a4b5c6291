//! The runtime of compiled diffusion loops. It opens the `.cq` artifacts that `cachequant`
//! compiles, and samples from them on CPUs (AMX, AVX-512 VNNI, AVX2, portable) and NVIDIA GPUs.
//!
//! The crate is made for embedding. It contains no compiler, no ONNX reader and no command line.
//! The loop allocates no memory, and results do not depend on the number of threads.
//!
//! * [`Artifact`] is a checked file. [`Denoiser`] runs its loop for a batch, and [`Request`]
//!   describes the samples that are wanted. [`Denoiser::sample`] runs the whole loop, with an
//!   observer that may cancel it.
//! * [`Denoiser::begin`] and [`Denoiser::step`] run one evaluation at a time, so that several
//!   requests can run side by side. [`Denoiser::predict`] is for callers with a sampler of their
//!   own.
//! * [`engine`] is the layer below, which executes plans: it packs weights and runs single
//!   evaluations.
//!
//! ```no_run
//! use cqc_runtime::{Artifact, DenoiserOptions, Request};
//!
//! let artifact = Artifact::open("unet.cq".as_ref())?;
//! let mut denoiser = artifact.denoiser(&DenoiserOptions::with_batch(4))?;
//! let request = Request { samples: 16, seed: 1, ..Request::default() };
//! let samples = denoiser.sample(&request, &mut |_| std::ops::ControlFlow::Continue(()))?;
//! assert_eq!(samples.shape()[0], 16);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod artifact;
#[cfg(any(feature = "cuda", feature = "cuda-sim"))]
pub mod cuda;
pub mod denoise;
mod device;
pub mod engine;
mod info;
pub mod noise;
pub mod retime;
pub mod sampler;

pub use artifact::{Artifact, ArtifactError, ArtifactOptions, DenoiserOptions};
pub use denoise::{DenoiseError, Denoiser, Request};
pub use device::Device;
pub use info::{ArtifactInfo, InputInfo};

/// Sets the limit, in bytes, of the memory that this process may allocate. Mapped files do not
/// count. See [`cqc_kernels::memory`].
pub use cqc_kernels::memory::set_limit as set_memory_limit;
