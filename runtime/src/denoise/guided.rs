//! Guidance of a request: how the halves are mixed, and when the unconditional one is computed.

use super::{Course, DenoiseError, Denoiser, Request, Trajectory, check};
use crate::engine::EngineOptions;
use crate::sampler::{guide, rescale};
use cqc_proto::Tensor;
use cqc_proto::cq::{Fill, GuidanceInterval};
use cqc_proto::plan::ProgramKind;
use std::collections::BTreeMap;
use std::ops::Range;

/// What requests get that do not say it.
#[derive(Clone, Debug)]
pub(crate) struct Defaults {
    /// Scale of guidance.
    pub guidance: f32,
    /// How far the deviation is rescaled, 0 to 1.
    pub rescale: f32,
    /// Steps in which guidance applies.
    pub interval: GuidanceInterval,
    /// What the unconditional half gets, one row per input.
    pub null: BTreeMap<String, Tensor>,
    /// Conditions that the loop fills by itself.
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

/// Guidance of a trajectory.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Guidance {
    pub scale: f32,
    /// φ, 0 to 1.
    pub rescale: f32,
    /// Evaluations that are guided. The others are the conditional half alone.
    pub evaluations: Range<usize>,
    /// The evaluation that the unconditional half is ready for: its cache is that of the one before.
    pub ready_for: usize,
}

impl Guidance {
    /// Whether every evaluation of the loop mixes both halves, and nothing else.
    pub fn is_plain(&self, course: &Range<usize>) -> bool {
        let all = self.evaluations.start <= course.start && self.evaluations.end >= course.end;
        self.rescale == 0.0 && all
    }

    /// The program of the unconditional half, apart from the other, at evaluation `e`, where the
    /// conditional half runs `kind`: what it has cached is old after evaluations without it.
    pub fn program_of_null(&self, kind: ProgramKind, e: usize) -> ProgramKind {
        // one evaluation may be asked for several times
        if self.ready_for == e || self.ready_for == e + 1 { kind } else { ProgramKind::Full }
    }
}

/// What is wrong with the guidance that a request asks for.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GuidanceError {
    /// A share that is none.
    #[error("guidance is rescaled by {0}; expected 0 to 1")]
    Rescale(f32),
    /// An interval that is none.
    #[error(
        "guidance applies in the interval {0}; expected shares of the steps, 0 <= from < to <= 1"
    )]
    Interval(GuidanceInterval),
    /// There is nothing to rescale, or to leave out.
    #[error("{what} without guidance: {why}")]
    Unguided {
        /// `a rescale of guidance`, `an interval of guidance`.
        what: &'static str,
        /// Why there is none.
        why: &'static str,
    },
}

impl Denoiser {
    /// Scale of guidance by which a request's halves are mixed; 1 where the network takes the scale
    /// as an input.
    ///
    /// # Errors
    /// [`DenoiseError::Guidance`] if it is no finite number of 0 or more,
    /// [`DenoiseError::NotGuided`] if it needs both halves and the denoiser was opened for one.
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

    /// The scale, mixed or given to the network.
    fn scale_of(&self, request: &Request) -> f32 {
        request.guidance.unwrap_or(self.defaults.guidance)
    }

    fn takes_guidance(&self) -> bool {
        self.defaults.fills.values().any(|fill| fill.is_guidance())
    }

    /// Guidance of a request whose loop runs so.
    ///
    /// # Errors
    /// Those of [`Denoiser::guidance_of`]; [`DenoiseError::Guiding`] with everything that is wrong.
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

    /// Checks the part of the loop and the guidance that a request asks for, before anything is
    /// computed.
    ///
    /// # Errors
    /// [`DenoiseError::Start`], [`DenoiseError::Guiding`], those of [`Denoiser::guidance_of`].
    pub fn check(&self, request: &Request) -> Result<(), DenoiseError> {
        let course = self.course(request)?;
        self.guidance(request, &course).map(|_| ())
    }

    /// Lets the unconditional half begin behind the first evaluation, where it is apart: it then
    /// runs in full whatever the schedule says.
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

    /// The denoiser that serves a request: one that computes the halves apart where some evaluations
    /// need one only. `None`: this one.
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

    /// Mixes the halves of [`Denoiser::output`] at evaluation `e`.
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

    /// The request with the conditions that the loop fills by itself.
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
    /// Whether evaluation `e` reads the unconditional half.
    pub(super) fn is_guided_at(&self, e: usize) -> bool {
        self.guidance.evaluations.contains(&e)
    }
}

/// What fills an input: a number without axes, or one row of `width` floats.
///
/// # Errors
/// [`DenoiseError::Tensor`] for a width that is no size.
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

/// Sines, then cosines, of 1000 · (scale − 1) times frequencies of 1 down to 1/10000, and a zero for
/// an odd width. Rounded to f32 where the library that such models are trained with rounds.
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
