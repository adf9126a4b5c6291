//! The parts of a pipeline around its sampling loop: text encoders, tokenizers, autoencoder.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most attachments of an artifact.
pub const MAX_ATTACHMENTS: usize = 32;

/// Longest pipeline section that is read, in bytes.
pub const MAX_PIPELINE: u64 = 1 << 20;

/// What surrounds the loop of an artifact that holds a whole pipeline: the JSON of the section
/// `pipeline`.
///
/// Networks and tokenizers are attachments of the artifact, named by their index. A network is an
/// artifact of its own, whose plan has no time steps ([`Plan::evaluations`] is 0); a tokenizer is
/// the `tokenizer.json` of the Hugging Face library.
///
/// [`Plan::evaluations`]: crate::plan::Plan::evaluations
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pipeline {
    /// The class of the pipeline in diffusers, e.g. `StableDiffusionPipeline`.
    pub class: String,
    /// The text encoders, in the order of diffusers.
    pub text: Vec<TextEncoder>,
    /// How the inputs of the denoiser follow from the texts, by input.
    pub conditions: BTreeMap<String, Condition>,
    /// Without a negative prompt, the unconditional half of guidance gets zeros instead of the
    /// states of the empty text (`force_zeros_for_empty_prompt` of Stable Diffusion XL).
    #[serde(default)]
    pub zeros_without_negative: bool,
    /// The autoencoder; `None` if the denoiser computes on pixels.
    pub autoencoder: Option<Autoencoder>,
}

/// A text encoder with its tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextEncoder {
    /// The attachment that is the tokenizer.
    pub tokenizer: usize,
    /// The attachment that is the network.
    pub network: usize,
    /// Number of tokens, with the special ones: shorter texts are padded, longer ones cut.
    pub length: usize,
    /// The token that pads.
    pub pad: u32,
    /// The input that takes the tokens, `[rows, length]`.
    pub tokens: String,
    /// The input that takes the attention mask, `[rows, length]`, if the network has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
}

/// How an input of the denoiser follows from the texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// An output of a text encoder.
    Output {
        /// Index of the text encoder.
        encoder: usize,
        /// Name of its output.
        output: String,
    },
    /// The attention mask of a text encoder's tokens, `[rows, length]`.
    Mask {
        /// Index of the text encoder.
        encoder: usize,
    },
    /// Parts joined along an axis.
    Concat {
        /// The axis.
        axis: usize,
        /// The parts.
        parts: Vec<Condition>,
    },
    /// A part with zeros appended to an axis.
    Pad {
        /// The axis.
        axis: usize,
        /// Its size with the zeros.
        size: usize,
        /// The part.
        part: Box<Condition>,
    },
    /// The same numbers for every text.
    Row {
        /// One row.
        values: Vec<f32>,
    },
}

/// An autoencoder between pixels and latents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Autoencoder {
    /// The attachment that is the decoder: latents `[N, C, h, w]` to pixels `[N, 3, H, W]` in -1 to
    /// 1.
    pub decoder: usize,
    /// The attachment that is the encoder: pixels to the mean of the latents, followed along the
    /// channels by the logarithm of their variance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<usize>,
    /// The samples of the loop are `(latents - shift) * scale`.
    pub scale: f32,
    /// See `scale`.
    #[serde(default)]
    pub shift: f32,
}

impl Pipeline {
    /// Checks the indices against the number of attachments.
    ///
    /// # Errors
    /// The first entry that names nothing, in words.
    pub fn check(&self, attachments: usize) -> Result<(), String> {
        let attached = |what: &str, i: usize| match i < attachments {
            true => Ok(()),
            false => Err(format!("{what} is attachment {i} of {attachments}")),
        };
        for text in &self.text {
            attached("a tokenizer", text.tokenizer)?;
            attached("a text encoder", text.network)?;
            if !(1..=1 << 16).contains(&text.length) {
                return Err(format!("a text encoder takes {} tokens", text.length));
            }
        }
        for (name, condition) in &self.conditions {
            condition.check(self.text.len(), 0).map_err(|e| format!("condition `{name}`: {e}"))?;
        }
        let Some(auto) = &self.autoencoder else { return Ok(()) };
        attached("the decoder", auto.decoder)?;
        auto.encoder.map_or(Ok(()), |i| attached("the encoder", i))?;
        match auto.scale.is_finite() && auto.scale != 0.0 && auto.shift.is_finite() {
            true => Ok(()),
            false => Err(format!("the latents are scaled by {} and {}", auto.scale, auto.shift)),
        }
    }
}

impl Condition {
    fn check(&self, encoders: usize, depth: usize) -> Result<(), String> {
        if depth > 8 {
            return Err("it is nested too deeply".into());
        }
        match self {
            Condition::Output { encoder, .. } | Condition::Mask { encoder } => {
                match *encoder < encoders {
                    true => Ok(()),
                    false => Err(format!("there is no text encoder {encoder}")),
                }
            }
            Condition::Concat { parts, axis } if parts.is_empty() || *axis > 8 => {
                Err("it joins nothing".into())
            }
            Condition::Concat { parts, .. } => {
                parts.iter().try_for_each(|part| part.check(encoders, depth + 1))
            }
            Condition::Pad { axis, size, part } => match *axis <= 8 && *size <= 1 << 20 {
                true => part.check(encoders, depth + 1),
                false => Err(format!("it is padded to {size} along axis {axis}")),
            },
            Condition::Row { values } if values.len() > 1 << 16 => {
                Err("its row is too long".into())
            }
            Condition::Row { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline() -> Pipeline {
        let output = Condition::Output { encoder: 0, output: "last_hidden_state".into() };
        Pipeline {
            class: "StableDiffusionPipeline".into(),
            text: vec![TextEncoder {
                tokenizer: 0,
                network: 1,
                length: 77,
                pad: 1,
                tokens: "input_ids".into(),
                mask: None,
            }],
            conditions: [("text".to_string(), output)].into(),
            zeros_without_negative: false,
            autoencoder: Some(Autoencoder { decoder: 2, encoder: Some(3), scale: 0.5, shift: 0.0 }),
        }
    }

    #[test]
    fn everything_that_a_pipeline_names_must_be_there() {
        assert_eq!(pipeline().check(4), Ok(()));
        for attachments in 0..4 {
            assert!(pipeline().check(attachments).is_err(), "{attachments}");
        }
        let mut nested = Condition::Mask { encoder: 0 };
        for _ in 0..9 {
            nested = Condition::Pad { axis: 1, size: 8, part: Box::new(nested) };
        }
        let wrong = [
            Condition::Output { encoder: 1, output: "x".into() },
            Condition::Mask { encoder: 7 },
            Condition::Concat { axis: 0, parts: vec![] },
            Condition::Pad { axis: 9, size: 8, part: Box::new(Condition::Mask { encoder: 0 }) },
            Condition::Pad {
                axis: 0,
                size: 1 << 30,
                part: Box::new(Condition::Mask { encoder: 0 }),
            },
            nested,
        ];
        for condition in wrong {
            let mut pipeline = pipeline();
            pipeline.conditions.insert("text".into(), condition.clone());
            assert!(pipeline.check(4).is_err(), "{condition:?}");
        }
        for scale in [0.0, f32::NAN, f32::INFINITY] {
            let mut pipeline = pipeline();
            pipeline.autoencoder.as_mut().unwrap().scale = scale;
            assert!(pipeline.check(4).is_err(), "{scale}");
        }
        let mut pipeline = pipeline();
        pipeline.text[0].length = 0;
        assert!(pipeline.check(4).is_err());
    }
}
