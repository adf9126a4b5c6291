//! Prompts, and the pictures that pipelines make of them.

use super::report::Failure;
use super::source::SampleSource;
use super::text;
use clap::Args;
use cqc_pipeline::{Pipeline, PipelineError};
use cqc_proto::Tensor;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Options of `sample` for artifacts of whole pipelines.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Pipelines")]
pub struct PromptArgs {
    /// Text that describes the picture. Repeatable
    ///
    /// The samples take several prompts in turn.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// File with prompts, one per line
    ///
    /// `-` reads standard input. By default there is one sample per prompt.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompts: Option<PathBuf>,
    /// Text that describes what the picture should not show [default: the empty text]. Repeatable
    ///
    /// The unconditional half of guidance gets it. The samples take several texts in turn.
    #[arg(long, value_name = "TEXT")]
    pub negative: Vec<String>,
    /// Write the latents of the loop instead of decoded pictures
    #[arg(long)]
    pub latents: bool,
}

/// A pipeline and what is asked of it.
pub struct Pictures {
    pipeline: Option<Pipeline>,
    prompts: Vec<String>,
    negative: Vec<String>,
    latents: bool,
    threads: usize,
}

impl PromptArgs {
    /// Opens the parts of the pipeline, and reads the prompts.
    pub fn open(&self, source: &SampleSource, threads: usize) -> Result<Pictures, Failure> {
        let pipeline = Pipeline::of(&source.artifact)?;
        let prompts = match &self.prompts {
            Some(path) => text::lines(path)?,
            None => self.prompt.clone(),
        };
        let takes = pipeline.as_ref().is_some_and(|p| p.texts.takes_prompts());
        let asked = [
            ("--prompt", !self.prompt.is_empty()),
            ("--prompts", self.prompts.is_some()),
            ("--negative", !self.negative.is_empty()),
        ];
        if let Some((option, _)) = asked.iter().find(|(_, given)| *given && !takes) {
            let what = format!("{option}: the artifact has no text encoder");
            return Err(Failure::usage(what).fact("file", source.path.display()).help(
                "compile the directory of a whole pipeline; --cond gives the states of a text",
            ));
        }
        if self.prompts.is_some() && prompts.is_empty() {
            return Err(Failure::usage("--prompts: there is no prompt in it"));
        }
        let (negative, latents) = (self.negative.clone(), self.latents);
        Ok(Pictures { pipeline, prompts, negative, latents, threads })
    }
}

impl Pictures {
    /// Of a loop alone.
    pub fn none() -> Pictures {
        Pictures { pipeline: None, prompts: vec![], negative: vec![], latents: false, threads: 1 }
    }

    /// How many samples there are by default: one per prompt.
    pub fn samples(&self) -> Option<usize> {
        (self.prompts.len() > 1).then_some(self.prompts.len())
    }

    /// The conditions that prompts make, one row per sample, and those of the unconditional half.
    pub fn conditions(&self, samples: usize) -> Result<[BTreeMap<String, Tensor>; 2], Failure> {
        let none = || [BTreeMap::new(), BTreeMap::new()];
        let Some(Pipeline { texts, .. }) = &self.pipeline else { return Ok(none()) };
        let in_turn = |all: &'_ [String]| -> Vec<String> {
            (0..samples).filter_map(|i| all.get(i % all.len().max(1)).cloned()).collect()
        };
        let (prompts, negative) = (in_turn(&self.prompts), in_turn(&self.negative));
        let mut made = none();
        if !prompts.is_empty() {
            let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
            made[0] = texts.conditions(&prompts, self.threads)?;
        }
        if !negative.is_empty() {
            let negative: Vec<&str> = negative.iter().map(String::as_str).collect();
            made[1] = texts.unconditional(&negative, self.threads)?;
        }
        Ok(made)
    }

    /// The samples of the loop that stand for these images: pixels of the size of the pictures are
    /// encoded, and anything else stays as it is.
    pub fn encoded(&self, images: Tensor) -> Result<Tensor, Failure> {
        let Some(Pipeline { images: Some(auto), .. }) = &self.pipeline else { return Ok(images) };
        match auto.encodes() && images.shape().get(1..) == Some(&auto.picture_shape()?[..]) {
            true => Ok(auto.encode(&images, self.threads)?),
            false => Ok(images),
        }
    }

    /// The sizes of one row of the output, for samples of these sizes.
    pub fn shape(&self, sample: Vec<usize>) -> Result<Vec<usize>, Failure> {
        match self.decoder() {
            Some(images) => Ok(images.picture_shape()?),
            None => Ok(sample),
        }
    }

    /// The rows of the output that samples of the loop become.
    pub fn of(&self, samples: Tensor) -> Result<Tensor, Failure> {
        match self.decoder() {
            Some(images) => Ok(images.decode(&samples, self.threads)?),
            None => Ok(samples),
        }
    }

    /// Everything that the output depends on beside the request.
    pub fn facts(&self) -> impl Iterator<Item = (String, String)> {
        let output = if self.latents { "latents" } else { "pictures" };
        self.pipeline.iter().map(move |_| ("output".to_string(), output.to_string()))
    }

    fn decoder(&self) -> Option<&cqc_pipeline::Images> {
        self.pipeline.as_ref().and_then(|p| p.images.as_ref()).filter(|_| !self.latents)
    }
}

impl From<PipelineError> for Failure {
    fn from(e: PipelineError) -> Failure {
        match e {
            PipelineError::Engine(e) => e.into(),
            other => Failure::failed(other.to_string()),
        }
    }
}
