//! The beginning and the end of a request's loop, and the samples with which it begins.

use super::request::gather;
use super::{DenoiseError, Denoiser, Request};
use crate::noise::Noise;
use crate::sampler::{Level, Repaint, Sampler, SamplerError};
use cqc_proto::Tensor;
use std::ops::Range;

/// The part of a loop that a request runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    /// The evaluations of that part.
    pub evaluations: Range<usize>,
    /// The samples before the first of these evaluations.
    pub beginning: Beginning,
}

/// The kind of samples with which a request begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Beginning {
    /// Noise in the scale of the sampler.
    Noise,
    /// The image [`Request::init`], mixed with noise to this noise level.
    Image(Level),
    /// The samples [`Request::noise`] as they are, from the middle of a loop.
    Given,
}

/// An error in the beginning or the end that a request asks for.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StartError {
    /// A mask was given without an image.
    #[error("a mask without an image, whose parts it would keep")]
    MaskAlone,
    /// A strength was given without an image.
    #[error("a strength without an image to begin with")]
    StrengthAlone,
    /// The strength is not in the range.
    #[error("a strength of {strength}; expected more than 0, at most 1")]
    Strength {
        /// The strength of the request.
        strength: f32,
    },
    /// The strength leaves less than one step.
    #[error("a strength of {strength} leaves none of {steps} steps")]
    NothingLeft {
        /// The strength of the request.
        strength: f32,
        /// Number of steps of the whole loop.
        steps: usize,
    },
    /// The sampler cannot begin with an image.
    #[error("{sampler} cannot begin with an image: {reason}")]
    NoImages {
        /// Name of the sampler.
        sampler: &'static str,
        /// The reason why it cannot.
        reason: &'static str,
    },
    /// The sampler always begins with an image, and none was given.
    #[error("{sampler} begins with an image, and none is given")]
    NeedsImage {
        /// Name of the sampler.
        sampler: &'static str,
    },
    /// The sampler transforms a whole image, so the option does not apply.
    #[error("{sampler} makes another image of the whole one: it has no {what}")]
    Whole {
        /// Name of the sampler.
        sampler: &'static str,
        /// The option that does not apply: `strength` below 1, or `mask`.
        what: &'static str,
    },
    /// Two options set the beginning of the loop.
    #[error("`from` continues samples, and {other} begins with an image")]
    Twice {
        /// The other option: `strength`, or `init` without a mask.
        other: &'static str,
    },
    /// `from` was given without samples to continue.
    #[error("`from` continues samples, and none are given as `noise`")]
    NothingToContinue,
    /// `from` is not a step after the first.
    #[error("`from` is step {from}; expected 1 to {}: the loop has {steps}", steps.saturating_sub(1))]
    From {
        /// The sampler step that the request names.
        from: usize,
        /// Number of steps of the whole loop.
        steps: usize,
    },
    /// `to` is not a possible end.
    #[error("`to` is step {to}; expected 1 to {steps}, the number of steps")]
    To {
        /// The sampler step that the request names.
        to: usize,
        /// Number of steps of the whole loop.
        steps: usize,
    },
    /// The loop would end before it begins.
    #[error("`to` is step {to}, and the loop begins with step {from}")]
    Nothing {
        /// The step with which the loop begins.
        from: usize,
        /// The sampler step that the request names as the end.
        to: usize,
    },
    /// The sampler cannot begin with that evaluation. The text is its error.
    #[error("{0}")]
    Sampler(String),
}

impl Course {
    /// The part of the loop of `sampler` that `request` asks for.
    ///
    /// # Errors
    /// [`DenoiseError::Start`] with everything that is wrong.
    pub fn of(sampler: &Sampler, request: &Request) -> Result<Course, DenoiseError> {
        let Request { init, mask, strength, from, to, noise, .. } = request;
        let steps = sampler.steps();
        let mut wrong = Vec::new();
        let mut check = |is_wrong: bool, error: StartError| is_wrong.then(|| wrong.push(error));
        check(mask.is_some() && init.is_none(), StartError::MaskAlone);
        check(strength.is_some() && init.is_none(), StartError::StrengthAlone);
        // the defaults are those of diffusers' pipelines
        let (needs_image, name) = (sampler.needs_image(), sampler.config().kind.name());
        let is_whole = mask.is_some() || needs_image;
        let share = strength.unwrap_or(if is_whole { 1.0 } else { 0.8 });
        let missing = needs_image && init.is_none() && from.is_none();
        check(missing, StartError::NeedsImage { sampler: name });
        let less = needs_image && share < 1.0;
        check(less, StartError::Whole { sampler: name, what: "`strength` below 1" });
        let masked = needs_image && mask.is_some();
        check(masked, StartError::Whole { sampler: name, what: "`mask`" });
        let is_share = share > 0.0 && share <= 1.0;
        check(!is_share, StartError::Strength { strength: share });
        if let (Some(_), Some(reason)) = (init, sampler.refuses_images()) {
            check(true, StartError::NoImages { sampler: sampler.config().kind.name(), reason });
        }
        check(from.is_some() && strength.is_some(), StartError::Twice { other: "`strength`" });
        let unmasked = init.is_some() && mask.is_none() && strength.is_none();
        check(from.is_some() && unmasked, StartError::Twice { other: "`init`" });
        check(from.is_some() && noise.is_none(), StartError::NothingToContinue);
        if let Some(from) = *from {
            check(from == 0 || from >= steps, StartError::From { from, steps });
        }
        if let Some(to) = *to {
            check(to == 0 || to > steps, StartError::To { to, steps });
        }
        let begin = match from {
            Some(from) => sampler.evaluation_of_step(*from),
            None if init.is_some() && is_share => sampler.evaluation_of_strength(share),
            None => 0,
        };
        let end = sampler.evaluation_of_step(to.unwrap_or(steps));
        if begin == sampler.evaluations().len() && from.is_none() {
            check(true, StartError::NothingLeft { strength: share, steps });
        } else if begin >= end && to.is_none_or(|to| (1..=steps).contains(&to)) {
            let first = sampler.evaluations().get(begin).map_or(steps, |e| e.step);
            check(
                from.is_none_or(|from| (1..steps).contains(&from)),
                StartError::Nothing { from: first, to: to.unwrap_or(steps) },
            );
        }
        if !wrong.is_empty() {
            return Err(DenoiseError::Start(wrong));
        }
        let beginning = match init {
            _ if from.is_some() => Beginning::Given,
            // diffusers' inpainting pipelines begin with pure noise at a strength of 1
            Some(_) if mask.is_some() && share == 1.0 => Beginning::Noise,
            Some(_) => Beginning::Image(sampler.evaluations()[begin].level.ok_or_else(|| {
                let reason = "its noise levels are not known";
                let sampler = sampler.config().kind.name();
                DenoiseError::Start(vec![StartError::NoImages { sampler, reason }])
            })?),
            None => Beginning::Noise,
        };
        Ok(Course { evaluations: begin..end, beginning })
    }
}

/// The samples of a trajectory at its beginning, and the state that it needs.
pub(super) struct Started {
    pub x: Vec<f32>,
    pub repaint: Option<Repaint>,
    /// The sampler of a loop that does not begin with evaluation 0.
    pub sampler: Option<Sampler>,
}

impl Denoiser {
    /// The part of the loop that a request runs.
    ///
    /// # Errors
    /// [`DenoiseError::Start`].
    pub fn course(&self, request: &Request) -> Result<Course, DenoiseError> {
        Course::of(&self.sampler, request)
    }

    /// Makes the samples `first ..` of a request as they are before its first evaluation. `noise`
    /// is the noise of these samples, from which nothing has been drawn yet. Later steps draw from
    /// it after this call.
    ///
    /// # Errors
    /// Errors of tensors that do not fit the samples, and of a sampler that cannot begin there.
    pub(super) fn start(
        &self,
        request: &Request,
        course: &Course,
        first: usize,
        noise: &mut Noise,
    ) -> Result<Started, DenoiseError> {
        let len: usize = self.shape.iter().product();
        let begin = course.evaluations.start;
        let mut drawn = vec![0.0; self.width * len];
        noise.fill(&mut drawn);
        let mut x = drawn.clone();
        if let Some(given) = &request.noise {
            self.take_noise(given, request.samples, first, &mut x)?;
        }
        if course.beginning != Beginning::Given {
            drawn.copy_from_slice(&x);
        }
        let init = request.init.as_ref();
        let image = init.map(|image| self.image(image, request.samples, first)).transpose()?;
        match (course.beginning, &image) {
            (Beginning::Image(level), Some(image)) => level.mix(image, &drawn, &mut x),
            (Beginning::Given, _) => {
                // draws the noise that the whole loop would have drawn before
                let mut unused = vec![0.0; x.len()];
                let draws = (0..begin).filter(|&i| self.sampler.adds_noise(i));
                draws.for_each(|_| noise.fill(&mut unused));
            }
            _ => {
                let scale = self.sampler.initial_scale();
                x.iter_mut().for_each(|x| *x *= scale);
            }
        }
        let mask = request.mask.as_ref();
        let mask = mask.map(|mask| self.mask(mask, request.samples, first)).transpose()?;
        let repaint = mask.zip(image).map(|(mask, image)| Repaint { mask, image, noise: drawn });
        let sampler = match begin {
            0 => None,
            _ => Some(self.sampler.beginning_at(begin).map_err(|e| match e {
                SamplerError::Middle { .. } => {
                    DenoiseError::Start(vec![StartError::Sampler(e.to_string())])
                }
                e => e.into(),
            })?),
        };
        Ok(Started { x, repaint, sampler })
    }

    /// The images with which the samples `first ..` begin, `[width, ...]`.
    fn image(
        &self,
        given: &Tensor,
        samples: usize,
        first: usize,
    ) -> Result<Vec<f32>, DenoiseError> {
        let shape = given.shape();
        let rows = shape.first().copied().unwrap_or(0);
        if shape.get(1..) != Some(&self.shape[..])
            || !(rows == samples || rows == 1)
            || !given.dtype().is_float()
        {
            let (name, shape, row) = ("init".into(), shape.to_vec(), self.shape.clone());
            return Err(DenoiseError::Rows { name, shape, samples, row });
        }
        Ok(gather("init", given, &self.indices(samples, first), samples)?.to_f32_vec())
    }

    /// The masks of the samples `first ..`, with as many elements as the samples.
    fn mask(&self, given: &Tensor, samples: usize, first: usize) -> Result<Vec<f32>, DenoiseError> {
        let shape = given.shape();
        let wrong =
            || DenoiseError::Mask { shape: shape.to_vec(), samples, row: self.shape.clone() };
        let [rows, channels, space @ ..] = shape else { return Err(wrong()) };
        let fits = (*rows == 1 || *rows == samples)
            && (*channels == 1 || *channels == self.channels())
            && space == self.shape.get(1..).unwrap_or_default();
        if !fits {
            return Err(wrong());
        }
        let given = gather("mask", given, &self.indices(samples, first), samples)?;
        let values: Vec<f32> = given.to_f64_vec().into_iter().map(|v| v as f32).collect();
        let area: usize = space.iter().product();
        let times = self.channels() / channels;
        let planes = values.chunks_exact(area.max(1));
        Ok(planes.flat_map(|plane| std::iter::repeat_n(plane, times)).flatten().copied().collect())
    }

    /// The rows of a request that belong to the samples `first ..`. If fewer are left than are
    /// computed at once, the last row is repeated.
    pub(super) fn indices(&self, samples: usize, first: usize) -> Vec<usize> {
        (first..first + self.width).map(|i| i.min(samples.saturating_sub(1))).collect()
    }
}
