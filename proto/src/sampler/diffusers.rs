//! Reads diffusers' `scheduler_config.json`.
//!
//! Three things are taken over from `from_config` of diffusers 0.42: a missing key has the default
//! of the class that runs (not of the class that wrote the file), a key that only other classes
//! read is ignored, and `null` switches an option off. One is not: a key that no class is known to
//! read is an error, since it may change the result.

use super::{
    Betas, FinalSigma, Prediction, SamplerConfig, SamplerConfigError, SamplerKind, SolverType,
    Spacing, Variance,
};
use serde_json::{Map, Value};
use std::borrow::Cow;

type Result<T> = std::result::Result<T, SamplerConfigError>;

impl SamplerConfig {
    /// Reads a diffusers `scheduler_config.json`. `kind`, if given, wins over the file's
    /// `_class_name`, as `OtherScheduler.from_config(...)` does; with [`SamplerKind::Plms`] it also
    /// implies `skip_prk_steps`.
    ///
    /// Two extensions: `timestep_spacing` may be `quadratic`, and the bare `Infinity` that Python
    /// writes is read.
    ///
    /// # Errors
    /// Names the key that is unknown, of the wrong type, out of range, or asks for something cqc
    /// does not do.
    pub fn from_diffusers_json(json: &str, kind: Option<SamplerKind>) -> Result<Self> {
        let Value::Object(mut keys) = serde_json::from_str(&quote_infinities(json))? else {
            return Err(SamplerConfigError::NotAnObject);
        };
        forget_used_defaults(&mut keys);
        let class = keys.get("_class_name").and_then(Value::as_str).unwrap_or_default();
        let kind_given = kind.is_some();
        let kind = kind.or_else(|| kind_of_class(class));
        let kind = kind.ok_or_else(|| SamplerConfigError::UnknownClass { class: class.into() })?;
        if let Some(key) =
            keys.keys().find(|key| !key.starts_with('_') && !KNOWN.contains(&key.as_str()))
        {
            return Err(SamplerConfigError::UnknownKey { key: key.clone() });
        }
        let reader = Reader { keys: &keys, kind };
        reader.refuse_what_we_lack(kind_given)?;
        let config = reader.config()?;
        config.validate()?;
        Ok(config)
    }
}

fn kind_of_class(class: &str) -> Option<SamplerKind> {
    Some(match class {
        "DDIMScheduler" => SamplerKind::Ddim,
        "DDPMScheduler" => SamplerKind::Ddpm,
        "PNDMScheduler" => SamplerKind::Plms,
        "EulerDiscreteScheduler" => SamplerKind::Euler,
        "DPMSolverMultistepScheduler" => SamplerKind::DpmPp2m,
        _ => return None,
    })
}

/// Every key that some epsilon-, v- or sample-predicting scheduler of diffusers reads. Flow
/// matching is not among them.
#[rustfmt::skip]
const KNOWN: &[&str] = &[
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "timestep_spacing", "steps_offset", "rescale_betas_zero_snr",
    "clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value", // DDIM, DDPM
    "set_alpha_to_one", "variance_type", "skip_prk_steps", // DDIM and PNDM, DDPM, PNDM
    "interpolation_type", "timestep_type", "final_sigmas_type", "sigma_min", "sigma_max", // Euler
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "algorithm_type", "solver_order", "solver_type", "lower_order_final", "euler_at_final", // DPM-Solver++
    "lambda_min_clipped", "use_lu_lambdas", "use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type",
    "predict_x0", "disable_corrector", "solver_p", "original_inference_steps", "timestep_scaling", // UniPC, LCM
];

/// Options that are supported only while they are off.
const MUST_BE_OFF: &[(&str, &[SamplerKind])] = {
    use SamplerKind::{Ddim, Ddpm, DpmPp2m, Euler};
    &[
        ("thresholding", &[Ddim, Ddpm, DpmPp2m]),
        ("use_exponential_sigmas", &[Euler, DpmPp2m]),
        ("use_beta_sigmas", &[Euler, DpmPp2m]),
        ("use_lu_lambdas", &[DpmPp2m]),
        ("use_flow_sigmas", &[DpmPp2m]),
        ("use_dynamic_shifting", &[DpmPp2m]),
    ]
};

/// The file's keys, read for one kind.
struct Reader<'a> {
    keys: &'a Map<String, Value>,
    kind: SamplerKind,
}

impl Reader<'_> {
    fn refuse_what_we_lack(&self, kind_given: bool) -> Result<()> {
        for &(key, kinds) in MUST_BE_OFF {
            if kinds.contains(&self.kind) && self.flag(key, false)? {
                return Err(self.unsupported(key, "true", "false"));
            }
        }
        match self.kind {
            // without it the first three steps would be Runge-Kutta steps; --sampler plms says that
            // they are not wanted
            SamplerKind::Plms if !self.flag("skip_prk_steps", false)? && !kind_given => {
                Err(self.unsupported("skip_prk_steps", "false", "true"))
            }
            SamplerKind::Euler => {
                self.choice("interpolation_type", (), &[("linear", ())])?;
                self.choice("timestep_type", (), &[("discrete", ())])
            }
            SamplerKind::DpmPp2m => {
                // `deis` is what a DEIS file says, and diffusers reads it as dpmsolver++
                self.choice("algorithm_type", (), &[("dpmsolver++", ()), ("deis", ())])?;
                let order = self.number("solver_order", 2.0)?;
                if order == 2.0 {
                    Ok(())
                } else {
                    Err(self.unsupported("solver_order", &order.to_string(), "2"))
                }
            }
            _ => Ok(()),
        }
    }

    fn config(&self) -> Result<SamplerConfig> {
        let mut config = SamplerConfig::of_kind(self.kind);
        self.schedule(&mut config)?;
        match self.kind {
            SamplerKind::Ddim => {
                self.clipping(&mut config)?;
                config.set_alpha_to_one = self.flag("set_alpha_to_one", config.set_alpha_to_one)?;
            }
            SamplerKind::Ddpm => {
                self.clipping(&mut config)?;
                config.variance_type =
                    self.choice("variance_type", config.variance_type, VARIANCES)?;
            }
            SamplerKind::Plms => {
                config.set_alpha_to_one = self.flag("set_alpha_to_one", config.set_alpha_to_one)?;
            }
            SamplerKind::Euler => self.sigmas(&mut config)?,
            SamplerKind::DpmPp2m => {
                self.sigmas(&mut config)?;
                config.solver_type = self.choice("solver_type", config.solver_type, SOLVERS)?;
                config.lower_order_final =
                    self.flag("lower_order_final", config.lower_order_final)?;
                config.euler_at_final = self.flag("euler_at_final", config.euler_at_final)?;
                let lambda = self.optional("lambda_min_clipped")?;
                config.lambda_min_clipped = lambda.filter(|&lambda| lambda != f64::NEG_INFINITY);
            }
        }
        Ok(config)
    }

    fn schedule(&self, config: &mut SamplerConfig) -> Result<()> {
        config.num_train_timesteps =
            self.integer("num_train_timesteps", config.num_train_timesteps)?;
        config.steps_offset = self.integer("steps_offset", config.steps_offset)?;
        config.betas = self.betas()?;
        config.timestep_spacing =
            self.choice("timestep_spacing", config.timestep_spacing, SPACINGS)?;
        config.prediction_type =
            self.choice("prediction_type", config.prediction_type, PREDICTIONS)?;
        if self.kind != SamplerKind::Plms {
            config.rescale_betas_zero_snr =
                self.flag("rescale_betas_zero_snr", config.rescale_betas_zero_snr)?;
        }
        Ok(())
    }

    fn clipping(&self, config: &mut SamplerConfig) -> Result<()> {
        config.clip_sample = self.flag("clip_sample", config.clip_sample)?;
        config.clip_sample_range =
            self.number("clip_sample_range", config.clip_sample_range.into())? as f32;
        Ok(())
    }

    fn sigmas(&self, config: &mut SamplerConfig) -> Result<()> {
        config.use_karras_sigmas = self.flag("use_karras_sigmas", config.use_karras_sigmas)?;
        config.sigma_min = self.optional("sigma_min")?;
        config.sigma_max = self.optional("sigma_max")?;
        config.final_sigmas_type =
            self.choice("final_sigmas_type", config.final_sigmas_type, FINAL_SIGMAS)?;
        Ok(())
    }

    fn betas(&self) -> Result<Betas> {
        if let Some(list) = self.present("trained_betas") {
            let betas = list
                .as_array()
                .and_then(|list| list.iter().map(|beta| Some(beta.as_f64()? as f32)).collect());
            return betas
                .map(Betas::Trained)
                .ok_or_else(|| wrong_type("trained_betas", "a list of numbers", list));
        }
        let (start, end) = (self.number("beta_start", 1e-4)?, self.number("beta_end", 0.02)?);
        let linear = Betas::Linear { start, end };
        let scaled = Betas::ScaledLinear { start, end };
        let known = [
            ("linear", linear.clone()),
            ("scaled_linear", scaled),
            ("squaredcos_cap_v2", Betas::SquaredcosCapV2),
        ];
        self.choice("beta_schedule", linear, &known)
    }

    /// The value of `key`, unless it is absent or `null`.
    fn present(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    fn flag(&self, key: &'static str, default: bool) -> Result<bool> {
        match self.keys.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(false), // Python's None is false
            Some(Value::Bool(on)) => Ok(*on),
            Some(other) => Err(wrong_type(key, "true or false", other)),
        }
    }

    fn optional(&self, key: &'static str) -> Result<Option<f64>> {
        let Some(value) = self.present(key) else { return Ok(None) };
        let number = value.as_f64().or_else(|| match value.as_str()? {
            "-inf" => Some(f64::NEG_INFINITY),
            "inf" => Some(f64::INFINITY),
            _ => None,
        });
        number.map(Some).ok_or_else(|| wrong_type(key, "a number", value))
    }

    fn number(&self, key: &'static str, default: f64) -> Result<f64> {
        Ok(self.optional(key)?.unwrap_or(default))
    }

    fn integer(&self, key: &'static str, default: u32) -> Result<u32> {
        let Some(value) = self.present(key) else { return Ok(default) };
        let integer = value.as_u64().and_then(|n| u32::try_from(n).ok());
        integer.ok_or_else(|| wrong_type(key, "a whole number from 0 to 4294967295", value))
    }

    fn choice<T: Clone>(
        &self,
        key: &'static str,
        default: T,
        known: &[(&'static str, T)],
    ) -> Result<T> {
        let Some(value) = self.present(key) else { return Ok(default) };
        let name = value.as_str().ok_or_else(|| wrong_type(key, "a name", value))?;
        let found = known.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
        let names: Vec<_> = known.iter().map(|(known, _)| *known).collect();
        found.ok_or_else(|| self.unsupported(key, name, &names.join(", ")))
    }

    fn unsupported(&self, key: &'static str, value: &str, supported: &str) -> SamplerConfigError {
        SamplerConfigError::Unsupported {
            kind: self.kind,
            key,
            value: value.into(),
            supported: supported.into(),
        }
    }
}

const SPACINGS: &[(&str, Spacing)] = &[
    ("leading", Spacing::Leading),
    ("trailing", Spacing::Trailing),
    ("linspace", Spacing::Linspace),
    ("quadratic", Spacing::Quadratic),
];

const PREDICTIONS: &[(&str, Prediction)] = &[
    ("epsilon", Prediction::Epsilon),
    ("v_prediction", Prediction::VPrediction),
    ("sample", Prediction::Sample),
];

/// Without `fixed_large_log`: diffusers takes the square root of a logarithm there, which is no
/// number.
const VARIANCES: &[(&str, Variance)] = &[
    ("fixed_small", Variance::FixedSmall),
    ("fixed_small_log", Variance::FixedSmallLog),
    ("fixed_large", Variance::FixedLarge),
    ("learned", Variance::Learned),
    ("learned_range", Variance::LearnedRange),
];

const FINAL_SIGMAS: &[(&str, FinalSigma)] =
    &[("zero", FinalSigma::Zero), ("sigma_min", FinalSigma::SigmaMin)];

/// Files of DEIS and UniPC name their own rules here; diffusers reads those as midpoint.
const SOLVERS: &[(&str, SolverType)] = &[
    ("midpoint", SolverType::Midpoint),
    ("heun", SolverType::Heun),
    ("logrho", SolverType::Midpoint),
    ("bh1", SolverType::Midpoint),
    ("bh2", SolverType::Midpoint),
];

fn wrong_type(key: &'static str, wanted: &'static str, value: &Value) -> SamplerConfigError {
    let seen = value.to_string().chars().take(40).collect();
    SamplerConfigError::WrongType { key, wanted, seen }
}

/// Keys listed in `_use_default_values` were never chosen by anyone: the class that runs uses its
/// own default.
fn forget_used_defaults(keys: &mut Map<String, Value>) {
    let Some(Value::Array(defaults)) = keys.remove("_use_default_values") else { return };
    for key in defaults.iter().filter_map(Value::as_str) {
        keys.remove(key);
    }
}

/// Python writes `-Infinity` as a bare word, which JSON does not have: put it in quotes.
fn quote_infinities(json: &str) -> Cow<'_, str> {
    if !json.contains("Infinity") {
        return Cow::Borrowed(json);
    }
    // every odd piece between quotes is a string; an escaped quote would only move a word that no
    // key contains
    let pieces = json.split('"').enumerate().map(|(i, piece)| {
        if i % 2 == 1 {
            piece.to_owned()
        } else {
            piece.replace("-Infinity", "\"-inf\"").replace("Infinity", "\"inf\"")
        }
    });
    Cow::Owned(pieces.collect::<Vec<_>>().join("\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STABLE_DIFFUSION: &str = r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false, "num_train_timesteps": 1000,
        "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null}"#;

    fn read(json: &str, kind: Option<SamplerKind>) -> String {
        SamplerConfig::from_diffusers_json(json, kind)
            .map_or_else(|error| error.to_string(), |config| format!("{config:?}"))
    }

    fn message(json: &str) -> String {
        SamplerConfig::from_diffusers_json(json, None).unwrap_err().to_string()
    }

    #[test]
    fn stable_diffusion_file_selects_plms() {
        let config = SamplerConfig::from_diffusers_json(STABLE_DIFFUSION, None).unwrap();
        let betas = Betas::ScaledLinear { start: 0.00085, end: 0.012 };
        let expected =
            SamplerConfig { betas, steps_offset: 1, ..SamplerConfig::of_kind(SamplerKind::Plms) };
        assert_eq!(config, expected);
    }

    #[test]
    fn another_kind_brings_its_own_defaults() {
        let euler =
            SamplerConfig::from_diffusers_json(STABLE_DIFFUSION, Some(SamplerKind::Euler)).unwrap();
        assert_eq!((euler.kind, euler.timestep_spacing), (SamplerKind::Euler, Spacing::Linspace));
        let ddim =
            SamplerConfig::from_diffusers_json(STABLE_DIFFUSION, Some(SamplerKind::Ddim)).unwrap();
        assert!(!ddim.clip_sample && !ddim.set_alpha_to_one);
    }

    #[test]
    fn plms_by_name_needs_no_skip_prk_steps() {
        assert!(message(r#"{"_class_name": "PNDMScheduler"}"#).contains("skip_prk_steps = false"));
        assert!(read("{}", Some(SamplerKind::Plms)).contains("kind: Plms"));
    }

    #[test]
    fn minus_infinity_is_read() {
        let json =
            r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity}"#;
        assert_eq!(
            SamplerConfig::from_diffusers_json(json, None).unwrap().lambda_min_clipped,
            None
        );
        let clipped = json.replace("-Infinity", "-5.1");
        assert_eq!(
            SamplerConfig::from_diffusers_json(&clipped, None).unwrap().lambda_min_clipped,
            Some(-5.1)
        );
    }

    #[test]
    fn refusals_name_the_key() {
        let cases = [
            (
                r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3}"#,
                "`FlowMatchEulerDiscreteScheduler`",
            ),
            (r#"{"_class_name": "DDIMScheduler", "beta_strat": 0.1}"#, "unknown key `beta_strat`"),
            (r#"{"_class_name": "DDIMScheduler", "thresholding": true}"#, "thresholding = true"),
            (
                r#"{"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}"#,
                "linear, scaled_linear, squaredcos_cap_v2",
            ),
            (
                r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": 2000000}"#,
                "num_train_timesteps = 2000000",
            ),
            (r#"{"_class_name": "DDIMScheduler", "beta_end": 1.0}"#, "beta_end = 1"),
            (
                r#"{"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2]}"#,
                "trained_betas = 2 values",
            ),
            (r#"{"_class_name": "DDIMScheduler", "clip_sample": "yes"}"#, "`clip_sample`"),
            (
                r#"{"_class_name": "DDPMScheduler", "variance_type": "fixed_large_log"}"#,
                "variance_type = fixed_large_log",
            ),
            (
                r#"{"_class_name": "PNDMScheduler", "skip_prk_steps": true, "prediction_type": "sample"}"#,
                "epsilon, v_pred",
            ),
            (
                r#"{"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}"#,
                "supports linear",
            ),
            (
                r#"{"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}"#,
                "supports discrete",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}"#,
                "solver_order = 3",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}"#,
                "sde-dpmsolver++",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "quadratic"}"#,
                "quadratic",
            ),
            ("[]", "not a JSON object"),
            ("{", "not valid JSON"),
        ];
        for (json, expected) in cases {
            let seen = message(json);
            assert!(seen.contains(expected), "{json}\n{seen}");
        }
    }

    #[test]
    fn a_configuration_survives_its_own_json() {
        for kind in SamplerKind::ALL {
            let config = SamplerConfig::of_kind(kind);
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<SamplerConfig>(&json).unwrap(), config);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
