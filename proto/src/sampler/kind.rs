//! The samplers and their names.

use super::SamplerConfigError;
use std::fmt;
use std::str::FromStr;

/// Declares the samplers: variant, name, other accepted names, and documentation.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal $(| $alias:literal)*,)+) => {
        /// A sampler: the rule that moves the sample. The text form is what `--sampler` takes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum SamplerKind {
            $($(#[doc = $doc])+ #[serde(rename = $name $(, alias = $alias)*)] $variant,)+
        }

        impl SamplerKind {
            /// Every sampler, in the order in which `--help` lists them.
            pub const ALL: &[SamplerKind] = &[$(Self::$variant),+];

            /// The text form, e.g. `dpm-multistep`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// One sentence on the sampler.
            pub fn about(self) -> &'static str {
                match self {
                    $(Self::$variant => [$($doc),+][0].trim_ascii(),)+
                }
            }
        }

        impl FromStr for SamplerKind {
            type Err = SamplerConfigError;

            fn from_str(name: &str) -> Result<Self, SamplerConfigError> {
                match name {
                    $($name $(| $alias)* => Ok(Self::$variant),)+
                    _ => Err(SamplerConfigError::UnknownKind { name: name.into() }),
                }
            }
        }
    };
}

kinds! {
    /// Denoising diffusion implicit models: deterministic at `eta` 0.
    Ddim = "ddim",
    /// Ancestral sampling: new noise in every step.
    Ddpm = "ddpm",
    /// Linear multistep on the predicted noise, without a Runge-Kutta start.
    Plms = "plms",
    /// One Euler step of the probability-flow ODE per noise level.
    Euler = "euler",
    /// DPM-Solver and DPM-Solver++, multistep, of order 1 to 3.
    DpmMultistep = "dpm-multistep" | "dpmpp-2m",
    /// Euler steps down to a lower level than the next one, and new noise up to it.
    EulerAncestral = "euler-ancestral",
    /// Heun's method: each step looks at where an Euler step led; 2·steps − 1 evaluations.
    Heun = "heun",
    /// DPM-Solver-2: each step looks at its middle in log σ; 2·steps − 1 evaluations.
    Kdpm2 = "kdpm2",
    /// DPM-Solver-2 with new noise in every step; 2·steps − 1 evaluations.
    Kdpm2Ancestral = "kdpm2-ancestral",
    /// Linear multistep of order 4 over σ.
    Lms = "lms",
    /// DPM-Solver++ of second order as a stochastic one-step rule; 2·steps − 1 evaluations.
    DpmSde = "dpm-sde",
    /// Linear multistep of order 4 over the angle of a cosine schedule (Dance Diffusion).
    Ipndm = "ipndm",
    /// Euler steps of a model with the preconditioning of EDM.
    EdmEuler = "edm-euler",
    /// DPM-Solver++ multistep of a model with the preconditioning of EDM.
    EdmDpm = "edm-dpm",
    /// Stochastic DPM-Solver++ multistep over an exponential schedule (Stable Audio).
    CosineDpm = "cosine-dpm",
    /// Consistency models: straight to the image, and new noise up to the next level.
    Consistency = "consistency",
    /// DPM-Solver and DPM-Solver++, singlestep: every group of up to 3 steps begins anew.
    DpmSinglestep = "dpm-singlestep",
    /// UniPC: multistep, each step corrected by the next evaluation.
    Unipc = "unipc",
    /// DEIS: multistep, polynomials in the logarithm of the noise level.
    Deis = "deis",
    /// PLMS with a Runge-Kutta start of three steps, four evaluations each.
    Pndm = "pndm",
    /// SA-Solver: stochastic Adams methods, predictor and corrector.
    Sa = "sa",
    /// DPM-Solver++ from an image to its noise.
    DpmMultistepInverse = "dpm-multistep-inverse",
    /// DDIM from an image to its noise.
    DdimInverse = "ddim-inverse",
    /// Euler steps of a flow-matching model.
    FlowEuler = "flow-euler",
    /// Heun steps of a flow-matching model: two evaluations per step.
    FlowHeun = "flow-heun",
    /// Of flow-matching models distilled to consistency: predict the image, add new noise.
    FlowLcm = "flow-lcm",
    /// Euler steps of a flow-matching model that overshoot, and new noise.
    FlowEulerAncestral = "flow-euler-ancestral",
    /// Consistency sampling on a circle (TrigFlow), e.g. Sana Sprint.
    Scm = "scm",
    /// Latent consistency models: predict the image, add new noise.
    Lcm = "lcm",
    /// Trajectory consistency distillation: `eta` (there called gamma) decides how much noise.
    Tcd = "tcd",
    /// Ancestral sampling in continuous time, of Würstchen and Stable Cascade.
    Wuerstchen = "wuerstchen",
    /// DDIM on the shifted noise levels of CogVideoX.
    CogVideoXDdim = "cogvideox-ddim",
    /// Stochastic DPM-Solver++ of second order on the shifted noise levels of CogVideoX.
    CogVideoXDpm = "cogvideox-dpm",
    /// Ancestral sampling of unCLIP (DALL-E 2, Karlo, Kandinsky priors).
    UnClip = "unclip",
    /// Residual shifting from a low-resolution image (ResShift): begins with that image.
    ResShift = "res-shift",
    /// The model returns the next sample itself.
    Direct = "direct",
}

impl SamplerKind {
    /// Whether the sampler follows the straight path of flow matching.
    pub fn is_flow(self) -> bool {
        use SamplerKind::{FlowEuler, FlowEulerAncestral, FlowHeun, FlowLcm};
        matches!(self, FlowEuler | FlowHeun | FlowLcm | FlowEulerAncestral)
    }

    /// Whether `eta` determines the noise that its steps add.
    pub fn reads_eta(self) -> bool {
        matches!(self, Self::Ddim | Self::Tcd | Self::FlowEulerAncestral)
    }

    /// Whether the sampler accepts a list of noise levels, and a list of time steps, instead of a
    /// schedule.
    pub fn lists(self) -> (bool, bool) {
        use SamplerKind::{CogVideoXDdim, CogVideoXDpm, Ddim, Ddpm, Direct, Lcm, Plms, Scm, Tcd};
        use SamplerKind::{ResShift, UnClip, Wuerstchen};
        match self {
            Ddim | Ddpm | Lcm | Tcd | Wuerstchen | Scm => (false, true),
            CogVideoXDdim | CogVideoXDpm | UnClip | Direct | Plms | ResShift => (false, false),
            _ => (true, true),
        }
    }

    /// All names, separated by commas.
    pub fn names() -> String {
        Self::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
