//! Guidance of a request: how the two halves are mixed, and at which evaluations the unconditional
//! half is computed.

use super::{Course, DenoiseError, Denoiser, Request, Trajectory, check};
use crate::engine::EngineOptions;
use crate::sampler::{guide, rescale};
use cqc_proto::Tensor;
use cqc_proto::cq::{Fill, GuidanceInterval};
use cqc_proto::plan::ProgramKind;
use std::collections::BTreeMap;
use std::ops::Range;

/// Values for requests that do not set their own.
#[derive(Clone, Debug)]
pub(crate) struct Defaults {
    /// The guidance scale, where 1 means no guidance.
    pub guidance: f32,
    /// Degree of guidance rescaling, 0 to 1.
    pub rescale: f32,
    /// The steps in which guidance applies.
    pub interval: GuidanceInterval,
    /// The null conditions by input name, one row each.
    pub null: BTreeMap<String, Tensor>,
    /// The inputs that the loop fills by itself.
    pub fills: BTreeMap<String, Fill>,
}

impl Default for Defaults {
    fn default() -> Defaults {
        Defaults {
            guidance: 1.0,
            rescale: 0.0,
            interval: GuidanceInterval::ALL,
            null: BTreeMap::new(),
            fills: BTreeMap::new(),
        }
    }
}

/// The guidance of a trajectory.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Guidance {
    pub scale: f32,
    /// φ, the degree of rescaling, 0 to 1.
    pub rescale: f32,
    /// The evaluations at which guidance applies. The others compute the conditional half alone.
    pub evaluations: Range<usize>,
    /// The evaluation that the cache of the unconditional half is ready for. The half must have
    /// been computed at the evaluation before it.
    pub ready_for: usize,
}

impl Guidance {
    /// Whether every evaluation of the course mixes both halves and none rescales the result.
    pub fn is_plain(&self, course: &Range<usize>) -> bool {
        let all = self.evaluations.start <= course.start && self.evaluations.end >= course.end;
        self.rescale == 0.0 && all
    }

    /// The program of the unconditional half at evaluation `e`, if the halves are computed apart
    /// and the conditional half runs `kind`. After evaluations without guidance the half's cache is
    /// outdated, so it runs the full step.
    pub fn program_of_null(&self, kind: ProgramKind, e: usize) -> ProgramKind {
        // `e` may be evaluated several times
        if self.ready_for == e || self.ready_for == e + 1 { kind } else { ProgramKind::Full }
    }
}

/// An error in the guidance that a request asks for.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GuidanceError {
    /// The degree of rescaling is outside of 0 to 1.
    #[error("guidance is rescaled by {0}; expected 0 to 1")]
    Rescale(f32),
    /// The interval is not valid.
    #[error(
        "guidance applies in the interval {0}; expected shares of the steps, 0 <= from < to <= 1"
    )]
    Interval(GuidanceInterval),
    /// An option of guidance was given although no guidance applies.
    #[error("{what} without guidance: {why}")]
    Unguided {
        /// The option: `a rescale of guidance` or `an interval of guidance`.
        what: &'static str,
        /// The reason why no guidance applies.
        why: &'static str,
    },
}

impl Denoiser {
    /// The guidance scale by which the two halves of a request are mixed. It is 1 if the network
    /// takes the scale as an input.
    ///
    /// # Errors
    /// [`DenoiseError::Guidance`] if the scale is negative or not finite,
    /// [`DenoiseError::NotGuided`] if the scale needs both halves and the denoiser was opened
    /// without guidance.
    pub fn guidance_of(&self, request: &Request) -> Result<f32, DenoiseError> {
        let scale = self.scale_of(request);
        check::check_guidance(scale)?;
        if self.takes_guidance() {
            Ok(1.0)
        } else if scale != 1.0 && !self.guided {
            Err(DenoiseError::NotGuided { scale })
        } else {
            Ok(scale)
        }
    }

    /// The scale of a request, whether it mixes the halves or is an input of the network.
    fn scale_of(&self, request: &Request) -> f32 {
        request.guidance.unwrap_or(self.defaults.guidance)
    }

    fn takes_guidance(&self) -> bool {
        self.defaults.fills.values().any(|fill| fill.is_guidance())
    }

    /// The guidance of a request that runs the given course.
    ///
    /// # Errors
    /// Those of [`Denoiser::guidance_of`], and [`DenoiseError::Guiding`] with everything that is
    /// wrong.
    pub(super) fn guidance(
        &self,
        request: &Request,
        course: &Course,
    ) -> Result<Guidance, DenoiseError> {
        let scale = self.guidance_of(request)?;
        let mut wrong = Vec::new();
        let why = match self.takes_guidance() {
            true => "the network takes its scale as an input, and has no halves to mix",
            false => "its scale is 1",
        };
        if let Some(phi) = request.guidance_rescale {
            if !(0.0..=1.0).contains(&phi) {
                wrong.push(GuidanceError::Rescale(phi));
            } else if phi > 0.0 && scale == 1.0 {
                wrong.push(GuidanceError::Unguided { what: "a rescale of guidance", why });
            }
        }
        if let Some(interval) = request.guidance_interval {
            if !interval.is_valid() {
                wrong.push(GuidanceError::Interval(interval));
            } else if interval != GuidanceInterval::ALL && scale == 1.0 {
                wrong.push(GuidanceError::Unguided { what: "an interval of guidance", why });
            }
        }
        if !wrong.is_empty() {
            return Err(DenoiseError::Guiding(wrong));
        }
        let interval = request.guidance_interval.unwrap_or(self.defaults.interval);
        let steps = match scale == 1.0 {
            true => 0..0,
            false => interval.steps(self.sampler.steps()),
        };
        let at = |step| self.sampler.evaluation_of_step(step);
        Ok(Guidance {
            scale,
            rescale: request.guidance_rescale.unwrap_or(self.defaults.rescale),
            evaluations: at(steps.start)..at(steps.end),
            ready_for: course.evaluations.start,
        })
    }

    /// Checks the course and the guidance of a request. Nothing is computed.
    ///
    /// # Errors
    /// [`DenoiseError::Start`], [`DenoiseError::Guiding`] and the errors of
    /// [`Denoiser::guidance_of`].
    pub fn check(&self, request: &Request) -> Result<(), DenoiseError> {
        let course = self.course(request)?;
        self.guidance(request, &course).map(|_| ())
    }

    /// Completes the tables for the case that the halves are computed apart and guidance begins
    /// after the first evaluation: the unconditional half then begins with a full step, whatever
    /// the schedule says.
    pub(super) fn prepare_outage(
        &mut self,
        guidance: &Guidance,
        course: &Range<usize>,
    ) -> Result<(), DenoiseError> {
        let begin = guidance.evaluations.start.max(course.start);
        let late = begin > course.start && begin < guidance.evaluations.end.min(course.end);
        if self.guided && self.halves == 2 && late {
            self.full_until(begin)?;
        }
        Ok(())
    }

    /// The denoiser that computes the halves apart, if the request has evaluations that need only
    /// one of them. With `None`, this denoiser serves the request.
    pub(super) fn apart(
        &mut self,
        request: &Request,
    ) -> Result<Option<&mut Denoiser>, DenoiseError> {
        if !self.guided || self.halves == 2 || self.overwritten {
            return Ok(None);
        }
        let course = self.course(request)?;
        let Guidance { evaluations, .. } = self.guidance(request, &course)?;
        let all = course.evaluations;
        if evaluations.start <= all.start && evaluations.end >= all.end {
            return Ok(None);
        }
        if self.apart.is_none() {
            let (weights, options) = self.engine.recipe();
            let options = EngineOptions { batch: self.width, ..options };
            let mut apart = Denoiser::open_apart(&weights, self.sampler.clone(), &options)?;
            apart.defaults = self.defaults.clone();
            apart.set_compensation(self.compensation.clone())?;
            apart.off_schedule = self.off_schedule.of_other_engine();
            self.apart = Some(Box::new(apart));
        }
        Ok(self.apart.as_deref_mut())
    }

    /// Mixes the two halves of the output at evaluation `e`. Without guidance at `e`, the result is
    /// the conditional half.
    pub(super) fn mix(&mut self, guidance: &Guidance, e: usize, len: usize) {
        let guided = len / self.width;
        if guidance.evaluations.contains(&e) {
            guide(&mut self.output, self.width, guided, guidance.scale);
            if guidance.rescale > 0.0 {
                rescale(&mut self.output, self.width, guided, guidance.rescale);
            }
        } else {
            let half = self.output.len() / 2;
            self.output.copy_within(half.., 0);
        }
    }

    /// A copy of the request in which the inputs that the loop fills by itself have values.
    pub(super) fn filled(&self, request: &Request) -> Result<Request, DenoiseError> {
        let mut request = request.clone();
        let scale = self.scale_of(&request);
        for (name, fill) in &self.defaults.fills {
            let given = request.conditions.contains_key(name);
            let input = self.engine.plan().inputs.iter().find(|i| i.name == *name);
            if let Some(input) = input.filter(|_| !given) {
                let width = input.ty.shape.last().and_then(|d| d.as_const());
                let value = fill_value(*fill, scale, self.sampler.steps(), width)?;
                request.conditions.insert(name.clone(), value);
            }
        }
        Ok(request)
    }
}

impl Trajectory {
    /// Whether evaluation `e` needs the unconditional half.
    pub(super) fn is_guided_at(&self, e: usize) -> bool {
        self.guidance.evaluations.contains(&e)
    }
}

/// The value of a filled input: a number without axes, or one row of `width` floats.
///
/// # Errors
/// [`DenoiseError::Tensor`] if the value cannot be made.
pub fn fill_value(
    fill: Fill,
    guidance: f32,
    steps: usize,
    width: Option<i64>,
) -> Result<Tensor, DenoiseError> {
    Ok(match fill {
        Fill::Guidance => Tensor::full(cqc_proto::DType::F32, &[], guidance.into())?,
        Fill::Steps => Tensor::full(cqc_proto::DType::I64, &[], steps as f64)?,
        Fill::GuidanceEmbedding => {
            let width = width.and_then(|w| usize::try_from(w).ok()).unwrap_or(0);
            Tensor::from_f32(&[1, width], &guidance_embedding(guidance, width))
        }
    })
}

/// The embedding of the guidance scale that latent consistency models take: the sines, then the
/// cosines, of 1000 · (scale − 1) times frequencies from 1 down to 1/10000. An odd width ends with
/// a zero. Values are rounded to f32 at the places where diffusers rounds them.
fn guidance_embedding(scale: f32, width: usize) -> Vec<f32> {
    let half = width / 2;
    let w = (scale - 1.0) * 1000.0;
    let fall = (10000f64.ln() / (half as f64 - 1.0)) as f32;
    let angle = |i: usize| f64::from(w * f64::from(i as f32 * -fall).exp() as f32);
    let sines = (0..half).map(|i| angle(i).sin() as f32);
    let cosines = (0..half).map(|i| angle(i).cos() as f32);
    let mut values: Vec<f32> = sines.chain(cosines).collect();
    values.resize(width, 0.0);
    values
}
