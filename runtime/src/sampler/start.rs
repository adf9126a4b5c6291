//! Loops that begin or end in the middle: with an image instead of noise, or as a part of a longer
//! loop.
//!
//! A solver that uses earlier evaluations begins with its rule of first order at the evaluation
//! that really runs first, as diffusers' schedulers do after `set_begin_index`.

use super::{Level, Sampler, SamplerError};
use cqc_proto::sampler::{FlowTime, SamplerKind, TimestepType};

/// The evaluation with which a loop begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begin(pub usize);

impl Begin {
    /// The number of evaluations that have run before `i`. Rows before the beginning are never
    /// executed; they are those of a loop that begins with evaluation 0.
    pub fn since(self, i: usize) -> usize {
        i.checked_sub(self.0).unwrap_or(i)
    }
}

impl Sampler {
    /// The evaluation with which trajectories begin: 0, or the one given to
    /// [`Sampler::beginning_at`].
    pub fn begin(&self) -> usize {
        self.begin
    }

    /// The same sampler, but with trajectories that begin with `evaluation`. Evaluations keep their
    /// numbers.
    ///
    /// # Errors
    /// [`SamplerError::Middle`] if there is no such evaluation, if it is the second one of a step,
    /// for `pndm`, and for a caller with a solver of its own; [`SamplerError::NotFinite`].
    pub fn beginning_at(&self, evaluation: usize) -> Result<Sampler, SamplerError> {
        let kind = self.config.kind;
        let middle = |reason| Err(SamplerError::Middle { kind, evaluation, reason });
        let Some(row) = self.evaluations.get(evaluation) else {
            return middle("the loop has fewer evaluations");
        };
        if evaluation > 0 {
            let before = self.evaluations[evaluation - 1].step;
            if kind == SamplerKind::Pndm {
                return middle("its Runge-Kutta start is made for the first three steps");
            }
            if kind != SamplerKind::Plms && before == row.step {
                return middle("it belongs to a step that an earlier one begins");
            }
        }
        let begun = Self::with_begin(&self.config, self.steps, evaluation)?;
        if begun.evaluations != self.evaluations {
            return middle("its time steps are those of a caller with a solver of its own");
        }
        Ok(begun)
    }

    /// Number of sampler steps of the whole loop.
    pub fn steps(&self) -> usize {
        self.evaluations.last().map_or(0, |last| last.step + 1)
    }

    /// The first evaluation of a sampler step, or the number of evaluations for [`Sampler::steps`].
    pub fn evaluation_of_step(&self, step: usize) -> usize {
        self.evaluations.partition_point(|e| e.step < step)
    }

    /// The evaluation with which diffusers' image-to-image pipelines begin for a strength from 0 to
    /// 1, the share of the steps that run. The number of steps that run is rounded down; for flow
    /// matching it is rounded up, because those pipelines round down the steps that are left out.
    /// If no step runs, the result is the number of evaluations.
    pub fn evaluation_of_strength(&self, strength: f32) -> usize {
        // 0.7 of 10 steps are 7, but fewer in f32; so the decimal number is parsed as f64
        let strength: f64 = strength.to_string().parse().unwrap_or(strength.into());
        let steps = self.steps as f64;
        let run = (steps * strength).min(steps);
        let start = match self.config.kind.is_flow() {
            true => (steps - run).max(0.0) as usize,
            false => self.steps - run.max(0.0) as usize,
        };
        // for samplers of second order, diffusers counts evaluations instead of steps
        let order = if self.evaluates_twice() { 2 } else { 1 };
        (start * order).min(self.evaluations.len())
    }

    /// The sampler step at a share of the loop, from 0 (noise) to 1 (image). As many steps come
    /// before it as diffusers runs with `denoising_end` and skips with `denoising_start`: those
    /// whose time step is at least (1 − share) · training steps. If the network is not told numbers
    /// of training steps, it is that share of the steps, rounded.
    pub fn step_of_share(&self, share: f64) -> usize {
        let first = |step| &self.evaluations[self.evaluation_of_step(step)];
        if !self.tells_training_steps() {
            return (share * self.steps() as f64).round_ties_even() as usize;
        }
        let train = f64::from(self.config.num_train_timesteps);
        let cutoff = (train - share * train).round_ties_even();
        (0..self.steps()).filter(|&step| first(step).timestep >= cutoff).count()
    }

    /// The noise level to which a kept image is brought after evaluation `i`. It is the level of
    /// the next evaluation, or with DPM-Solver-2 and `dpm-sde` that at the end of the step, as in
    /// diffusers. `None` after the last evaluation, and if the sampler defines no [`Level`].
    pub fn level_after(&self, i: usize) -> Option<Level> {
        use SamplerKind::{DpmSde, Kdpm2, Kdpm2Ancestral};
        let (now, mut next) = (self.evaluations[i], i + 1);
        let has_middles = matches!(self.config.kind, Kdpm2 | Kdpm2Ancestral | DpmSde);
        if has_middles && self.evaluations.get(next).is_some_and(|e| e.step == now.step) {
            next += 1;
        }
        self.evaluations.get(next)?.level
    }

    /// The reason why the sampler cannot begin with an image, or `None` if it can.
    pub fn refuses_images(&self) -> Option<&'static str> {
        use SamplerKind::{DdimInverse, Direct, DpmMultistepInverse, Ipndm, Pndm, Scm};
        match self.config.kind {
            Pndm => Some("its Runge-Kutta start cannot begin in the middle; compile with plms"),
            Direct => Some("the model moves the sample itself, through levels that only it knows"),
            DdimInverse | DpmMultistepInverse => {
                Some("it leads from an image to its noise: the image is what --noise gives it")
            }
            Ipndm | Scm => Some("diffusers does not define what a noisy image is for it"),
            _ => None,
        }
    }

    /// Whether the sampler always begins with an image. It then transforms the whole image, without
    /// a strength or a mask.
    pub fn needs_image(&self) -> bool {
        self.config.kind == SamplerKind::ResShift
    }

    fn evaluates_twice(&self) -> bool {
        use SamplerKind::{DpmSde, FlowHeun, Heun, Kdpm2, Kdpm2Ancestral};
        matches!(self.config.kind, Heun | Kdpm2 | Kdpm2Ancestral | DpmSde | FlowHeun)
    }

    /// Whether the time steps are numbers of training steps, the noisiest first.
    fn tells_training_steps(&self) -> bool {
        use SamplerKind::{
            Consistency, CosineDpm, DdimInverse, Direct, DpmMultistepInverse, EdmDpm, EdmEuler,
            Ipndm, Scm, Wuerstchen,
        };
        let others = [
            Consistency,
            CosineDpm,
            DdimInverse,
            Direct,
            DpmMultistepInverse,
            EdmDpm,
            EdmEuler,
            Ipndm,
            Scm,
            Wuerstchen,
        ];
        !others.contains(&self.config.kind)
            && self.config.flow_time == FlowTime::Scaled
            && self.config.timestep_type != TimestepType::Continuous
    }
}

impl Level {
    /// Computes `out` = `signal` · image + `noise` · ε, element by element.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn mix(self, image: &[f32], noise: &[f32], out: &mut [f32]) {
        assert!(image.len() == out.len() && noise.len() == out.len(), "all are of one length");
        for (out, (image, noise)) in out.iter_mut().zip(image.iter().zip(noise)) {
            *out = self.signal * image + self.noise * noise;
        }
    }
}

/// An image of which a part is kept while the loop repaints the rest. All three vectors have the
/// length of the samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Repaint {
    /// 1 where the samples are repainted, 0 where the image is kept, or a value in between.
    pub mask: Vec<f32>,
    /// The image, in the scale of the samples.
    pub image: Vec<f32>,
    /// Unit normal noise that is added to the image to make it as noisy as the samples.
    pub noise: Vec<f32>,
}

impl Repaint {
    /// Replaces the kept part of the samples by the image at the given noise level, or by the image
    /// itself if there is no level.
    ///
    /// # Panics
    /// If the samples have another length.
    pub fn put_back(&self, level: Option<Level>, x: &mut [f32]) {
        assert_eq!(x.len(), self.mask.len(), "the mask is as long as the samples");
        let level = level.unwrap_or(Level { signal: 1.0, noise: 0.0 });
        let kept = self.image.iter().zip(&self.noise);
        for ((x, mask), (image, noise)) in x.iter_mut().zip(&self.mask).zip(kept) {
            let kept = level.signal * image + level.noise * noise;
            *x = (1.0 - mask) * kept + mask * *x;
        }
    }
}
