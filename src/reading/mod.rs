//! Tests the meaning of a network's output: what it predicts, on which noise levels, and how it is
//! told the time.
//!
//! A loop with a wrong reading of the network draws noise and reports no error. A right reading has
//! a property that wrong ones lack. A denoiser is trained to give the mean of the noise (or of the
//! image, or of the velocity) in its input, and the error of a conditional mean is orthogonal to
//! the mean itself. With ε̂ the noise that the output stands for and ε the noise that was added,
//! this means ⟨ε̂, ε⟩ = ⟨ε̂, ε̂⟩. The test therefore adds noise at five levels to samples that the
//! loop itself has made, and compares the *gain* ⟨ε̂, ε⟩ / ⟨ε̂, ε̂⟩ with 1. The correlation of the
//! two does not suffice: many wrong readings end in blank samples, in which noise is easily found.
//!
//! `docs/concepts.md` has the measured gains and the bounds.

mod candidates;
mod probe;

pub use candidates::name;
pub use probe::{Score, samples, score};

use crate::compile::CompileError;
use crate::model::Model;
use crate::recipe::Recipe;
use cqc_proto::sampler::SamplerConfig;
use cqc_runtime::denoise::Request;
use serde::Serialize;

/// The reading that a compilation uses, and the result of its test.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// The reading in words, e.g. `epsilon, linear betas 0.0001 to 0.02`.
    pub name: String,
    /// The result of the test.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// The result of the test of a reading.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Verdict {
    /// The reading fits.
    Fits(Score),
    /// The reading does not fit, and the key `trust` accepts it nevertheless.
    Trusted(Score),
    /// Nothing was measured that could decide.
    Untested {
        /// The reason.
        reason: String,
    },
}

/// A reading that does not fit, and the one that does, if there is one.
#[derive(Clone, Debug, PartialEq)]
pub struct Misread {
    /// The reading that was asked for, or the default.
    pub name: String,
    /// The score of that reading.
    pub score: Score,
    /// A reading that fits: its name, its score, and the options that choose it.
    pub fits: Option<(String, Score, String)>,
    /// Number of readings that were tried.
    pub tried: usize,
}

impl std::fmt::Display for Misread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the model is not a denoiser of this kind: {} ({})", self.name, self.score)
    }
}

/// Tests the reading of `config`. If it does not fit and the recipe leaves the reading open, tries
/// others, and returns the first that fits in its place.
///
/// `request` holds the conditions for the samples of the test, which have `len` elements each.
///
/// # Errors
/// [`CompileError::Misread`] if no reading that the recipe allows fits and the recipe does not set
/// `trust`; errors that keep the loop from running.
pub fn read(
    model: &Model,
    recipe: &Recipe,
    config: SamplerConfig,
    request: &Request,
    len: usize,
) -> Result<(SamplerConfig, Reading), CompileError> {
    let Some(probed) = candidates::probe_of(&config) else {
        let reason = format!(
            "sampler {} has noise levels of its own, or the model is distilled",
            config.kind
        );
        let reading =
            Reading { name: config.kind.to_string(), verdict: Verdict::Untested { reason } };
        return Ok((config, reading));
    };
    let name = candidates::name(&config);
    let threads = recipe.threads();
    let first = score(model, &probed, request, threads)?;
    if first.fits() {
        return Ok((config, Reading { name, verdict: Verdict::Fits(first) }));
    }
    let mut scores = vec![(probed.clone(), first.clone())];
    // a reading whose time steps cannot be given to the model does not count
    let tried = |other| score(model, &other, request, threads).ok().map(|score| (other, score));
    // Clipping belongs to the solver, so the reading is right if it fits with or without clipping.
    if let Some((other, score)) = candidates::other_clipping(&probed).and_then(tried) {
        if score.fits() {
            let config = candidates::clipped_as(recipe, config, &other);
            return Ok((config, Reading { name, verdict: Verdict::Fits(score) }));
        }
        scores.push((other, score));
    }
    if recipe.trust {
        return Ok((config, Reading { name, verdict: Verdict::Trusted(first) }));
    }
    for other in candidates::all(&probed) {
        let clippings = [Some(other.clone()), candidates::other_clipping(&other)];
        let clippings = clippings.into_iter().flatten().filter_map(tried);
        let better = clippings.min_by(|a, b| a.1.gain.total_cmp(&b.1.gain));
        scores.extend(better);
        // the score of a reading that fits is far from all others
        if scores.last().is_some_and(|(_, score)| score.fits()) {
            break;
        }
    }
    let best = scores.last().filter(|(_, score)| score.fits());
    if let Some((best, score)) = best
        && let Some(config) = candidates::adopt(recipe, &config, best)
    {
        let reading =
            Reading { name: candidates::name(&config), verdict: Verdict::Fits(score.clone()) };
        return Ok((config, reading));
    }
    let most = scores.iter().map(|(_, s)| s.follows).fold(0.0, f64::max);
    // in few elements an untrained network may follow its input by chance
    if best.is_none() && (most < probe::FOLLOWS || len < probe::FEW_ELEMENTS) {
        let reason = "its output does not follow its input as that of a trained denoiser does";
        let verdict = Verdict::Untested { reason: reason.into() };
        return Ok((config, Reading { name, verdict }));
    }
    let fits = best.map(|(c, s)| (candidates::name(c), s.clone(), candidates::options(c)));
    Err(CompileError::Misread(Box::new(Misread { name, score: first, fits, tried: scores.len() })))
}
