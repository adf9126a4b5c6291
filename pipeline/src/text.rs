//! Prompts to the conditions of the denoiser.

use crate::network::{Network, concat, floats};
use crate::{PipelineError, Tokenizer, Tokens};
use bytes::Bytes;
use cqc_proto::cq::{self, Condition};
use cqc_proto::{DType, Tensor};
use std::collections::BTreeMap;

/// Conditions by input of the denoiser, one row per text.
pub type Conditions = BTreeMap<String, Tensor>;

/// The text encoders of a pipeline with their tokenizers.
#[derive(Debug)]
pub struct Texts {
    about: cq::Pipeline,
    encoders: Vec<(Tokenizer, Network)>,
}

impl Texts {
    /// Opens the text encoders that `about` names among the attachments.
    ///
    /// # Errors
    /// [`PipelineError`] if a tokenizer or a network is damaged.
    pub fn open(about: &cq::Pipeline, attachments: &[Bytes]) -> Result<Texts, PipelineError> {
        let open = |(i, of): (usize, &cq::TextEncoder)| {
            let tokenizer = Tokenizer::new(i, &attachments[of.tokenizer], of)?;
            let network = Network::open(&format!("text encoder {i}"), &attachments[of.network])?;
            Ok((tokenizer, network))
        };
        let encoders =
            about.text.iter().enumerate().map(open).collect::<Result<_, PipelineError>>()?;
        Ok(Texts { about: about.clone(), encoders })
    }

    /// Whether the pipeline takes prompts.
    pub fn takes_prompts(&self) -> bool {
        !self.encoders.is_empty()
    }

    /// The tokens that a text encoder gets for these texts.
    ///
    /// # Errors
    /// [`PipelineError::Tokenizer`].
    pub fn tokens(&self, encoder: usize, texts: &[&str]) -> Result<Tokens, PipelineError> {
        let tokenizer = &self.encoders[encoder].0;
        tokenizer.tokens(texts).map_err(|reason| PipelineError::Tokenizer { encoder, reason })
    }

    /// The conditions of the denoiser for prompts, a row per prompt.
    ///
    /// # Errors
    /// [`PipelineError`].
    pub fn conditions(
        &self,
        prompts: &[&str],
        threads: usize,
    ) -> Result<Conditions, PipelineError> {
        let mut read = Vec::new();
        for (i, (of, (_, network))) in self.about.text.iter().zip(&self.encoders).enumerate() {
            let tokens = self.tokens(i, prompts)?;
            let mut inputs = BTreeMap::from([(of.tokens.clone(), tokens.ids.clone())]);
            inputs.extend(of.mask.iter().map(|name| (name.clone(), tokens.mask.clone())));
            read.push(Read { tokens, outputs: network.run(&inputs, threads)? });
        }
        let rows = prompts.len();
        let mut all = Conditions::new();
        for (name, how) in &self.about.conditions {
            all.insert(name.clone(), value(how, &read, rows)?);
        }
        Ok(all)
    }

    /// The conditions of the unconditional half of guidance, a row per negative prompt; without
    /// negative prompts one row, of the empty text or of zeros as the pipeline has it.
    ///
    /// # Errors
    /// [`PipelineError`].
    pub fn unconditional(
        &self,
        negatives: &[&str],
        threads: usize,
    ) -> Result<Conditions, PipelineError> {
        let of = if negatives.is_empty() { &[""][..] } else { negatives };
        let mut conditions = self.conditions(of, threads)?;
        if negatives.is_empty() && self.about.zeros_without_negative {
            for (name, tensor) in &mut conditions {
                if !matches!(self.about.conditions[name], Condition::Row { .. }) {
                    let zeros = Tensor::zeros(tensor.dtype(), tensor.shape());
                    *tensor = zeros.expect("as large as before");
                }
            }
        }
        Ok(conditions)
    }
}

/// What a text encoder read and answered.
struct Read {
    tokens: Tokens,
    outputs: BTreeMap<String, Tensor>,
}

fn value(how: &Condition, read: &[Read], rows: usize) -> Result<Tensor, PipelineError> {
    match how {
        Condition::Output { encoder, output } => {
            let outputs = &read[*encoder].outputs;
            let found = outputs.get(output).map(floats);
            found.ok_or_else(|| {
                let known: Vec<&str> = outputs.keys().map(String::as_str).collect();
                let known = known.join(", ");
                mismatch(format!("text encoder {encoder} has no output `{output}`, but {known}"))
            })
        }
        Condition::Mask { encoder } => Ok(read[*encoder].tokens.mask.clone()),
        Condition::Concat { axis, parts } => {
            let parts: Vec<Tensor> =
                parts.iter().map(|part| value(part, read, rows)).collect::<Result<_, _>>()?;
            let first = &parts[0];
            let fits = |part: &&Tensor| {
                let axes = part.shape().iter().zip(first.shape()).enumerate();
                part.dtype() == first.dtype()
                    && part.shape().len() == first.shape().len()
                    && *axis < first.shape().len()
                    && axes.into_iter().all(|(i, (a, b))| i == *axis || a == b)
            };
            match parts.iter().find(|part| !fits(part)) {
                None => Ok(concat(*axis, &parts)),
                Some(part) => Err(mismatch(format!(
                    "{} and {} cannot be joined along axis {axis}",
                    first.value_type(),
                    part.value_type()
                ))),
            }
        }
        Condition::Pad { axis, size, part } => {
            let part = value(part, read, rows)?;
            let Some(missing) = part.shape().get(*axis).and_then(|&have| size.checked_sub(have))
            else {
                let ty = part.value_type();
                return Err(mismatch(format!("{ty} cannot be padded to {size} along axis {axis}")));
            };
            let mut shape = part.shape().to_vec();
            shape[*axis] = missing;
            let zeros = Tensor::zeros(part.dtype(), &shape).map_err(|e| mismatch(e.to_string()))?;
            Ok(concat(*axis, &[part, zeros]))
        }
        Condition::Row { values } => {
            let all: Vec<f32> = (0..rows).flat_map(|_| values.iter().copied()).collect();
            debug_assert_eq!(DType::F32.size() * all.len(), 4 * rows * values.len());
            Ok(Tensor::from_f32(&[rows, values.len()], &all))
        }
    }
}

fn mismatch(what: String) -> PipelineError {
    PipelineError::Mismatch(what)
}
