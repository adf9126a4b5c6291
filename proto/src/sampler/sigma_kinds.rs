//! Checks on the samplers that step over noise levels σ.

use super::SamplerKind::{
    Consistency, CosineDpm, DpmSde, EdmDpm, EdmEuler, Euler, EulerAncestral, Heun, Ipndm, Kdpm2,
    Kdpm2Ancestral, Lms,
};
use super::{
    Algorithm, Interpolation, Prediction, SamplerConfig, SamplerConfigError, SamplerKind,
    SigmaSchedule, TimestepType, in_range,
};

impl SamplerKind {
    /// Whether a list of noise levels ends with the level after the last step.
    pub fn lists_end(self) -> bool {
        matches!(
            self,
            Euler | EulerAncestral | Heun | Kdpm2 | Kdpm2Ancestral | Lms | DpmSde | Ipndm
        )
    }
}

impl SamplerConfig {
    /// Refuses schedules, predictions and lists that these kinds do not support.
    pub(super) fn validate_sigma_kinds(&self) -> Result<(), SamplerConfigError> {
        match self.kind {
            Euler | EulerAncestral | Heun | Kdpm2 | Kdpm2Ancestral | Lms | DpmSde => {
                self.validate_trained_levels()
            }
            EdmEuler | EdmDpm | CosineDpm => self.validate_edm(),
            Consistency => {
                self.validate_ends()?;
                self.validate_consistency_timesteps()
            }
            Ipndm => self.refuse_list("timesteps"),
            _ => Ok(()),
        }
    }

    /// Checks the kinds whose levels are those of training, or lie between them.
    fn validate_trained_levels(&self) -> Result<(), SamplerConfigError> {
        let schedule = self.sigma_schedule;
        if matches!(self.kind, EulerAncestral | Kdpm2 | Kdpm2Ancestral | DpmSde) {
            self.validate_noise_or_v()?;
        }
        let is_plain = schedule == SigmaSchedule::Plain;
        if self.timesteps.is_some() && !is_plain {
            let wanted = "plain, where time steps are given";
            return Err(self.unsupported("sigma_schedule", &name_of(schedule), wanted));
        }
        if self.sigmas.as_ref().is_some_and(|sigmas| sigmas.len() < 2) {
            return Err(self.unsupported("sigmas", "one value", "one per step and the last level"));
        }
        let continuous = self.timestep_type == TimestepType::Continuous
            && self.prediction_type == Prediction::VPrediction;
        if continuous && is_plain && self.interpolation_type == Interpolation::LogLinear {
            // there is one level more than there are steps, and each level would be evaluated
            let wanted = "discrete, where interpolation_type is log_linear";
            return Err(self.unsupported("timestep_type", "continuous", wanted));
        }
        Ok(())
    }

    /// Checks the kinds with the preconditioning of EDM.
    fn validate_edm(&self) -> Result<(), SamplerConfigError> {
        self.validate_ends()?;
        self.validate_noise_or_v()?;
        let schedule = self.sigma_schedule;
        if !matches!(schedule, SigmaSchedule::Karras | SigmaSchedule::Exponential) {
            let all = "karras, exponential";
            return Err(self.unsupported("sigma_schedule", &name_of(schedule), all));
        }
        self.refuse_list("timesteps")?;
        self.refuse_list("sigmas")?;
        if self.kind == EdmEuler {
            return Ok(());
        }
        let algorithm = self.algorithm_type;
        let stochastic = algorithm == Algorithm::SdeDpmSolverPp;
        if !stochastic && (self.kind == CosineDpm || algorithm != Algorithm::DpmSolverPp) {
            let all = if self.kind == EdmDpm {
                "dpmsolver++, sde-dpmsolver++"
            } else {
                "sde-dpmsolver++"
            };
            return Err(self.unsupported("algorithm_type", &name_of(algorithm), all));
        }
        let most = if stochastic { 2 } else { 3 };
        if self.solver_order > most {
            let all = if stochastic { "1, 2" } else { "1, 2, 3" };
            return Err(self.unsupported("solver_order", &self.solver_order.to_string(), all));
        }
        Ok(())
    }

    fn validate_noise_or_v(&self) -> Result<(), SamplerConfigError> {
        match self.prediction_type {
            Prediction::Epsilon | Prediction::VPrediction => Ok(()),
            other => {
                Err(self.unsupported("prediction_type", &name_of(other), "epsilon, v_prediction"))
            }
        }
    }

    /// Checks the two ends of levels that no training schedule determines.
    fn validate_ends(&self) -> Result<(), SamplerConfigError> {
        for (key, end) in [("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)] {
            if end.is_none() {
                return Err(self.unsupported(key, "null", "a number"));
            }
        }
        let (low, high) = (self.sigma_min.unwrap_or(0.0), self.sigma_max.unwrap_or(0.0));
        in_range("sigma_min", low, low < high, "below sigma_max")
    }

    /// Checks the time steps of consistency models, which are indices of training levels.
    fn validate_consistency_timesteps(&self) -> Result<(), SamplerConfigError> {
        self.refuse_list("sigmas")?;
        let train = f64::from(self.num_train_timesteps);
        let bad = self.timesteps.iter().flatten().find(|&&t| t.fract() != 0.0 || t >= train);
        bad.map_or(Ok(()), |t| {
            in_range("timesteps", t, false, "whole numbers below num_train_timesteps")
        })
    }

    fn refuse_list(&self, key: &'static str) -> Result<(), SamplerConfigError> {
        let list = if key == "sigmas" { &self.sigmas } else { &self.timesteps };
        match list {
            Some(_) => {
                Err(self.unsupported(key, "a list", "none: the levels follow from the ends"))
            }
            None => Ok(()),
        }
    }
}

/// The JSON name of a value.
fn name_of(choice: impl serde::Serialize) -> String {
    let name = serde_json::to_value(choice).unwrap_or_default();
    name.as_str().unwrap_or_default().to_owned()
}
