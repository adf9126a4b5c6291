//! Checks on combinations of options for the solvers of DPM's family and similar ones.

use super::{
    Algorithm, FinalSigma, MAX_STEPS, Prediction, SamplerConfig, SamplerConfigError, SamplerKind,
    SigmaSchedule, SolverType, Spacing,
};

type Checked = Result<(), SamplerConfigError>;

impl SamplerKind {
    /// Whether the sampler integrates over the half log-SNR, as DPM-Solver and its descendants do.
    pub fn is_of_dpm(self) -> bool {
        use SamplerKind::{Deis, DpmMultistep, DpmMultistepInverse, DpmSinglestep, Sa, Unipc};
        matches!(self, DpmMultistep | DpmSinglestep | Unipc | Deis | Sa | DpmMultistepInverse)
    }
}

impl SamplerConfig {
    /// Whether the predicted image is integrated, instead of the predicted noise.
    pub fn integrates_image(&self) -> bool {
        match self.kind {
            SamplerKind::Unipc => self.predict_x0,
            SamplerKind::Deis => false,
            _ => matches!(self.algorithm_type, Algorithm::DpmSolverPp | Algorithm::SdeDpmSolverPp),
        }
    }

    pub(super) fn validate_dpm(&self) -> Checked {
        use SamplerKind::{DdimInverse, DpmMultistep, Pndm, Unipc};
        let schedule = self.sigma_schedule;
        let (fits, supported) = match schedule {
            SigmaSchedule::LuLambdas => {
                (self.kind == DpmMultistep, "plain, karras, exponential, beta")
            }
            SigmaSchedule::Flow => {
                let fits = self.kind.is_of_dpm() && self.kind != SamplerKind::DpmMultistepInverse;
                (fits, "plain, karras, exponential, beta")
            }
            SigmaSchedule::KarrasFlow => (self.kind == Unipc, "plain, karras, exponential, beta"),
            _ => (true, ""),
        };
        self.require(fits, "sigma_schedule", schedule, supported)?;
        if self.kind == DdimInverse {
            let spacing = self.timestep_spacing;
            let fits = matches!(spacing, Spacing::Leading | Spacing::Trailing);
            self.require(fits, "timestep_spacing", spacing, "leading, trailing")?;
        }
        if self.kind.is_of_dpm() || matches!(self.kind, Pndm | DdimInverse) {
            self.validate_what_is_visited()?;
        }
        if !self.kind.is_of_dpm() {
            return Ok(());
        }
        self.validate_solver()?;
        self.validate_shift()
    }

    /// Checks lists of levels or time steps, which few classes accept.
    fn validate_what_is_visited(&self) -> Checked {
        use SamplerKind::{DpmMultistep, DpmSinglestep, Unipc};
        let takes_sigmas = self.kind == Unipc && self.sigma_schedule == SigmaSchedule::Flow;
        let fits = self.sigmas.is_none() || takes_sigmas;
        self.require(fits, "sigmas", "a list", "none; unipc with use_flow_sigmas: a list")?;
        let takes_timesteps = matches!(self.kind, DpmMultistep | DpmSinglestep)
            && self.sigma_schedule == SigmaSchedule::Plain;
        let fits = self.timesteps.is_none() || takes_timesteps;
        let supported =
            "none; dpm-multistep and dpm-singlestep without another schedule of sigmas: a list";
        self.require(fits, "timesteps", "a list", supported)
    }

    fn validate_solver(&self) -> Checked {
        use SamplerKind::{Deis, DpmMultistepInverse, DpmSinglestep, Sa, Unipc};
        let (algorithm, order) = (self.algorithm_type, self.solver_order);
        let count = self.disable_corrector.len();
        self.require(count <= MAX_STEPS, "disable_corrector", count, "as many as there are steps")?;
        let is_sde = matches!(algorithm, Algorithm::SdeDpmSolver | Algorithm::SdeDpmSolverPp);
        let (fits, supported) = match self.kind {
            Unipc | Deis => (true, ""),
            Sa | DpmMultistepInverse => (!is_sde, "dpmsolver++, dpmsolver"),
            DpmSinglestep => {
                let fits = algorithm != Algorithm::SdeDpmSolver;
                (fits, "dpmsolver++, dpmsolver, sde-dpmsolver++")
            }
            // a third order of this form has not been derived
            _ => {
                let fits = algorithm != Algorithm::SdeDpmSolver || order < 3;
                (fits, "with solver_order 3: dpmsolver++, dpmsolver, sde-dpmsolver++")
            }
        };
        self.require(fits, "algorithm_type", algorithm, supported)?;
        if !matches!(self.kind, Unipc | Sa) {
            self.require(order <= 3, "solver_order", order, "1, 2, 3")?;
        }
        let solver = self.solver_type;
        let (fits, supported) = match self.kind {
            Unipc => (matches!(solver, SolverType::Bh1 | SolverType::Bh2), "bh1, bh2"),
            Deis => (solver == SolverType::Logrho, "logrho"),
            Sa => (true, ""),
            _ => (matches!(solver, SolverType::Midpoint | SolverType::Heun), "midpoint, heun"),
        };
        self.require(fits, "solver_type", solver, supported)?;
        let image = self.integrates_image();
        // the integral of the noise diverges at a noise level of zero
        let has_zero = !matches!(self.kind, Deis | Sa | DpmMultistepInverse)
            && self.final_sigmas_type == FinalSigma::Zero;
        let supported = "sigma_min, where the predicted noise is integrated";
        self.require(image || !has_zero, "final_sigmas_type", "zero", supported)?;
        let is_straight = matches!(self.prediction_type, Prediction::Flow | Prediction::FlowToData);
        // DEIS computes the noise from the image
        let fits = image || !is_straight || self.kind == Deis;
        let supported = "epsilon, v_prediction, sample, where the predicted noise is integrated";
        self.require(fits, "prediction_type", self.prediction_type, supported)?;
        let fits = image || self.kind != Unipc || self.thresholding.is_none();
        self.require(fits, "thresholding", "true", "false, where predict_x0 is false")
    }

    fn validate_shift(&self) -> Checked {
        let is_moved = self.sigma_schedule == SigmaSchedule::Flow;
        if let Some(dynamic) = &self.dynamic_shift {
            let supported = "false, or true with use_flow_sigmas";
            self.require(is_moved, "use_dynamic_shifting", "true", supported)?;
            let fits = self.kind == SamplerKind::Unipc || !dynamic.linear;
            self.require(fits, "time_shift_type", "linear", "exponential")?;
        }
        let fits = self.kind == SamplerKind::Unipc && is_moved;
        let supported = "null; unipc with use_flow_sigmas: a number";
        let terminal = self.shift_terminal.unwrap_or(0.0);
        self.require(fits || self.shift_terminal.is_none(), "shift_terminal", terminal, supported)
    }

    /// Returns an error unless `fits`, with the value as it is written in a file.
    fn require(
        &self,
        fits: bool,
        key: &'static str,
        value: impl serde::Serialize,
        supported: &str,
    ) -> Checked {
        if fits {
            return Ok(());
        }
        let value = serde_json::to_value(value).unwrap_or_default();
        let value = value.as_str().map_or_else(|| value.to_string(), Into::into);
        Err(self.unsupported(key, &value, supported))
    }
}
