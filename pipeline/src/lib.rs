//! From a prompt to a picture: the parts of a pipeline around a compiled sampling loop.
//!
//! An artifact of a whole pipeline holds the loop of its denoiser, its text encoders with their
//! tokenizers, and its autoencoder ([`cqc_proto::cq::Pipeline`]). [`Pipeline`] opens all of them:
//! [`Texts`] turns prompts into the conditions of the denoiser, the runtime samples the latents,
//! and [`Images`] decodes them. The compiler uses [`Texts`] as well, to calibrate on prompts.

mod error;
mod images;
mod network;
mod text;
mod tokens;

pub use error::PipelineError;
pub use images::Images;
pub use text::{Conditions, Texts};
pub use tokens::{Tokenizer, Tokens};

use cqc_runtime::Artifact;

/// The parts of a pipeline around the loop of its artifact.
#[derive(Debug)]
pub struct Pipeline {
    /// The text encoders; none for a pipeline without prompts.
    pub texts: Texts,
    /// The autoencoder; `None` if the samples of the loop are pixels.
    pub images: Option<Images>,
}

impl Pipeline {
    /// Opens the parts in an artifact; `None` if it holds a loop alone.
    ///
    /// # Errors
    /// [`PipelineError`] if a part is damaged.
    pub fn of(artifact: &Artifact) -> Result<Option<Pipeline>, PipelineError> {
        let Some(about) = artifact.pipeline() else { return Ok(None) };
        let texts = Texts::open(about, artifact.attachments())?;
        let images = Images::open(about, artifact.attachments())?;
        Ok(Some(Pipeline { texts, images }))
    }
}
