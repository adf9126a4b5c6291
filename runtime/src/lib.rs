//! The runtime of compiled diffusion loops: opens the `.cq` artifacts that `cachequant` compiles
//! and samples from them, on CPUs (AMX, AVX-512 VNNI, AVX2, portable) and NVIDIA GPUs.
//!
//! It is made to be embedded: no compiler, no ONNX, no command line; nothing is allocated in the
//! loop; results do not depend on the number of threads.
//!
//! * [`Artifact`] is a checked file, [`Denoiser`] runs its loop for a batch, [`Request`] says what
//!   to sample: [`Denoiser::sample`] is the whole loop, with an observer that may break off.
//! * [`Denoiser::begin`] and [`Denoiser::step`] go step by step, several requests side by side;
//!   [`Denoiser::predict`] is for callers with a sampler of their own.
//! * [`engine`] is the layer below: plans, packed weights, one evaluation.
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

/// Lets this process take at most so many bytes of memory, mapped files not counted: see
/// [`cqc_kernels::memory`].
pub use cqc_kernels::memory::set_limit as set_memory_limit;
