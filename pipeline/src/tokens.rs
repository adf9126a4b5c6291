//! Tokenizers: texts to rows of tokens.

use crate::PipelineError;
use cqc_proto::Tensor;
use cqc_proto::cq::TextEncoder;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::{
    PaddingDirection, PaddingParams, PaddingStrategy, TruncationParams, TruncationStrategy,
};

/// Splits texts into tokens, as the Hugging Face library does.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

/// The tokens of texts, `[texts, length]` each.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The tokens, i64.
    pub ids: Tensor,
    /// 1 for tokens of the text, 0 for padding, i64.
    pub mask: Tensor,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Texts are cut and padded to the length of the text encoder.
    ///
    /// # Errors
    /// [`PipelineError::Tokenizer`].
    pub fn new(encoder: usize, json: &[u8], of: &TextEncoder) -> Result<Tokenizer, PipelineError> {
        let wrong = |reason: String| PipelineError::Tokenizer { encoder, reason };
        let read = guarded(|| tokenizers::Tokenizer::from_bytes(json).map_err(|e| e.to_string()));
        let mut inner = read.map_err(wrong)?;
        let pad_token = inner
            .id_to_token(of.pad)
            .ok_or_else(|| wrong(format!("it has no token {}, which pads", of.pad)))?;
        inner
            .with_truncation(Some(TruncationParams {
                max_length: of.length,
                strategy: TruncationStrategy::LongestFirst,
                ..TruncationParams::default()
            }))
            .map_err(|e| wrong(e.to_string()))?;
        inner.with_padding(Some(PaddingParams {
            strategy: PaddingStrategy::Fixed(of.length),
            direction: PaddingDirection::Right,
            pad_id: of.pad,
            pad_token,
            ..PaddingParams::default()
        }));
        Ok(Tokenizer { inner })
    }

    /// The tokens of texts, with the special tokens, cut and padded.
    ///
    /// # Errors
    /// The message of the library.
    pub fn tokens(&self, texts: &[&str]) -> Result<Tokens, String> {
        let (mut ids, mut mask, mut length) = (Vec::new(), Vec::new(), 0);
        for text in texts {
            let encoding = guarded(|| self.inner.encode(*text, true).map_err(|e| e.to_string()))?;
            length = encoding.get_ids().len();
            ids.extend(encoding.get_ids().iter().map(|&id| i64::from(id)));
            mask.extend(encoding.get_attention_mask().iter().map(|&m| i64::from(m)));
        }
        let shape = [texts.len(), length];
        Ok(Tokens { ids: Tensor::from_i64(&shape, &ids), mask: Tensor::from_i64(&shape, &mask) })
    }
}

/// Calls the library, which may panic on a damaged tokenizer: the file comes from anywhere.
fn guarded<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err("the library panicked".into()))
}
