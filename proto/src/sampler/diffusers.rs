//! Reads diffusers' `scheduler_config.json`.
//!
//! Three rules are those of `from_config` of diffusers 0.42: a missing key has the default of the
//! class that runs, not of the class that wrote the file; a key that only other classes read is
//! ignored; and `null` switches an option off. One rule differs: a key that no class is known to
//! read is an error, because it may change the result.

use super::classes::{Class, KEYS, OF_REFUSED, Refused};
use super::{Betas, SamplerConfig, SamplerConfigError, SamplerKind};
use serde_json::{Map, Value};
use std::borrow::Cow;

pub(super) type Result<T> = std::result::Result<T, SamplerConfigError>;

impl SamplerConfig {
    /// Reads a diffusers `scheduler_config.json`. If `kind` is given, it overrides the file's
    /// `_class_name`, as `OtherScheduler.from_config(...)` does. [`SamplerKind::Plms`] then also
    /// implies `skip_prk_steps`.
    ///
    /// There are two extensions: `timestep_spacing` may be `quadratic`, and the bare `Infinity`
    /// that Python writes is accepted.
    ///
    /// # Errors
    /// A [`SamplerConfigError`] with the name of a key that is unknown, of the wrong type, out of
    /// range or set to an unsupported value.
    pub fn from_diffusers_json(json: &str, kind: Option<SamplerKind>) -> Result<Self> {
        let Value::Object(mut keys) = serde_json::from_str(&quote_infinities(json))? else {
            return Err(SamplerConfigError::NotAnObject);
        };
        forget_used_defaults(&mut keys);
        let class = match kind {
            Some(kind) => Class::of_kind(kind),
            None => Class::named(keys.get("_class_name").and_then(Value::as_str).unwrap_or(""))?,
        };
        let reader = Reader { keys: &keys, kind: class.kind, kind_given: kind.is_some() };
        let mut config = SamplerConfig::of_kind(class.kind);
        (class.defaults)(&mut config);
        for name in keys.keys().filter(|name| !name.starts_with('_')) {
            if OF_REFUSED.contains(&name.as_str()) {
                continue;
            }
            let Some((key, read)) = KEYS.iter().find(|(key, _)| key == name) else {
                return Err(SamplerConfigError::UnknownKey { key: name.clone() });
            };
            if class.keys.contains(key) {
                read(&reader, key, &mut config)?;
            }
        }
        (class.check)(&reader, &mut config)?;
        config.validate()?;
        Ok(config)
    }
}

impl Class {
    /// The class whose defaults a sampler has, which is the first in the list.
    pub(super) fn of_kind(kind: SamplerKind) -> &'static Class {
        Self::all().find(|class| class.kind == kind).expect("every sampler has a class")
    }

    fn named(name: &str) -> Result<&'static Class> {
        if let Some(class) = Self::all().find(|class| class.name == name) {
            return Ok(class);
        }
        Err(match Refused::all().find(|refused| refused.name == name) {
            Some(r) => SamplerConfigError::RefusedClass {
                class: r.name,
                reason: r.reason,
                nearest: r.nearest,
            },
            None => SamplerConfigError::UnknownClass { class: name.into() },
        })
    }
}

/// The keys of a file, read for one kind of sampler.
pub(super) struct Reader<'a> {
    pub keys: &'a Map<String, Value>,
    pub kind: SamplerKind,
    /// Whether `--sampler` selected the kind.
    pub kind_given: bool,
}

impl Reader<'_> {
    /// The schedule of β. Its form and its ends are those of the file, or else of `default`.
    pub fn betas(&self, default: &Betas) -> Result<Betas> {
        if let Some(list) = self.present("trained_betas") {
            let betas = list
                .as_array()
                .and_then(|list| list.iter().map(|beta| Some(beta.as_f64()? as f32)).collect());
            return betas
                .map(Betas::Trained)
                .ok_or_else(|| wrong_type("trained_betas", "a list of numbers", list));
        }
        let (start, end) = match default {
            Betas::Linear { start, end }
            | Betas::ScaledLinear { start, end }
            | Betas::Sigmoid { start, end } => (*start, *end),
            Betas::SquaredcosCapV2 | Betas::Exp | Betas::Laplace | Betas::Trained(_) => {
                (1e-4, 0.02)
            }
        };
        let (start, end) = (self.number("beta_start", start)?, self.number("beta_end", end)?);
        let linear = Betas::Linear { start, end };
        let scaled = Betas::ScaledLinear { start, end };
        let known = [
            ("linear", linear.clone()),
            ("scaled_linear", scaled.clone()),
            ("squaredcos_cap_v2", Betas::SquaredcosCapV2),
            // only Heun's class has `exp`, and only DDPM's classes have the other two
            ("exp", Betas::Exp),
            ("sigmoid", Betas::Sigmoid { start, end }),
            ("laplace", Betas::Laplace),
        ];
        let extra = match self.kind {
            SamplerKind::Heun => &known[3..4],
            SamplerKind::Ddpm => &known[4..],
            _ => &[],
        };
        let known = [&known[..3], extra].concat();
        let default = match default {
            Betas::ScaledLinear { .. } => known[1].1.clone(),
            Betas::SquaredcosCapV2 | Betas::Exp | Betas::Sigmoid { .. } | Betas::Laplace => {
                default.clone()
            }
            Betas::Linear { .. } | Betas::Trained(_) => linear,
        };
        self.choice("beta_schedule", default, &known)
    }

    /// The value of `key`, unless it is absent or `null`.
    pub fn present(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    pub fn flag(&self, key: &'static str, default: bool) -> Result<bool> {
        match self.keys.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(false), // Python's None is false
            Some(Value::Bool(on)) => Ok(*on),
            Some(other) => Err(wrong_type(key, "true or false", other)),
        }
    }

    pub fn optional(&self, key: &'static str) -> Result<Option<f64>> {
        let Some(value) = self.present(key) else { return Ok(None) };
        let number = value.as_f64().or_else(|| match value.as_str()? {
            "-inf" => Some(f64::NEG_INFINITY),
            "inf" => Some(f64::INFINITY),
            _ => None,
        });
        number.map(Some).ok_or_else(|| wrong_type(key, "a number", value))
    }

    pub fn number(&self, key: &'static str, default: f64) -> Result<f64> {
        Ok(self.optional(key)?.unwrap_or(default))
    }

    pub fn integer(&self, key: &'static str, default: u32) -> Result<u32> {
        let Some(value) = self.present(key) else { return Ok(default) };
        let integer = value.as_u64().and_then(|n| u32::try_from(n).ok());
        integer.ok_or_else(|| wrong_type(key, "a whole number from 0 to 4294967295", value))
    }

    /// A list of integers, which is empty if the key is absent or `null`.
    pub fn integers(&self, key: &'static str) -> Result<Vec<u32>> {
        let Some(value) = self.present(key) else { return Ok(Vec::new()) };
        let integer = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let list = value.as_array().and_then(|list| list.iter().map(integer).collect());
        list.ok_or_else(|| wrong_type(key, "a list of whole numbers", value))
    }

    /// Refuses any value but `null`.
    pub fn absent(&self, key: &'static str, supported: &str) -> Result<()> {
        let Some(value) = self.present(key) else { return Ok(()) };
        let value: String = value.to_string().chars().take(40).collect();
        Err(self.unsupported(key, &value, supported))
    }

    pub fn choice<T: Clone>(
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

    pub fn unsupported(
        &self,
        key: &'static str,
        value: &str,
        supported: &str,
    ) -> SamplerConfigError {
        SamplerConfigError::Unsupported {
            kind: self.kind,
            key,
            value: value.into(),
            supported: supported.into(),
        }
    }
}

fn wrong_type(key: &'static str, wanted: &'static str, value: &Value) -> SamplerConfigError {
    let seen = value.to_string().chars().take(40).collect();
    SamplerConfigError::WrongType { key, wanted, seen }
}

/// Removes the keys listed in `_use_default_values`. Nobody has chosen their values, so the class
/// that runs uses its own defaults.
fn forget_used_defaults(keys: &mut Map<String, Value>) {
    let Some(Value::Array(defaults)) = keys.remove("_use_default_values") else { return };
    for key in defaults.iter().filter_map(Value::as_str) {
        keys.remove(key);
    }
}

/// Puts the bare word `Infinity`, which Python writes and JSON does not have, in quotes.
fn quote_infinities(json: &str) -> Cow<'_, str> {
    if !json.contains("Infinity") {
        return Cow::Borrowed(json);
    }
    // every odd piece between quotes is a string; an escaped quote would only misplace a word that
    // no key contains
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
    use super::super::{SigmaSchedule, Spacing};
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
    fn skip_prk_steps_decides_between_pndm_and_plms_unless_the_name_does() {
        let (whole, skipped) =
            (r#"{"_class_name": "PNDMScheduler"}"#, r#"{"skip_prk_steps": true}"#);
        assert!(read(whole, None).contains("kind: Pndm"));
        assert!(read(whole, Some(SamplerKind::Plms)).contains("kind: Plms"));
        assert!(read(STABLE_DIFFUSION, None).contains("kind: Plms"));
        assert!(read(skipped, Some(SamplerKind::Pndm)).contains("kind: Pndm"));
    }

    #[test]
    fn a_file_of_another_class_names_rules_that_a_solver_replaces_by_its_own() {
        let rules = |json: &str, kind| {
            let config = SamplerConfig::from_diffusers_json(json, Some(kind)).unwrap();
            (config.algorithm_type, config.solver_type)
        };
        let deis = r#"{"algorithm_type": "deis", "solver_type": "logrho"}"#;
        let plus = r#"{"algorithm_type": "dpmsolver++", "solver_type": "heun"}"#;
        use super::super::{Algorithm::*, SolverType::*};
        assert_eq!(rules(deis, SamplerKind::DpmMultistep), (DpmSolverPp, Midpoint));
        assert_eq!(rules(deis, SamplerKind::Unipc), (DpmSolverPp, Bh2));
        assert_eq!(rules(plus, SamplerKind::Deis), (DpmSolver, Logrho));
        assert_eq!(rules(plus, SamplerKind::DpmMultistep), (DpmSolverPp, Heun));
    }

    #[test]
    fn levels_of_karras_and_of_flow_matching_go_together_in_unipc_only() {
        let json = r#"{"use_karras_sigmas": true, "use_flow_sigmas": true,
            "prediction_type": "flow_prediction"}"#;
        let unipc = SamplerConfig::from_diffusers_json(json, Some(SamplerKind::Unipc)).unwrap();
        assert_eq!(unipc.sigma_schedule, SigmaSchedule::KarrasFlow);
        assert!(read(json, Some(SamplerKind::DpmMultistep)).contains("beside another schedule"));
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
                r#"{"_class_name": "AmusedScheduler", "masking_schedule": "cosine"}"#,
                "`AmusedScheduler`",
            ),
            (r#"{"_class_name": "DDIMScheduler", "beta_strat": 0.1}"#, "unknown key `beta_strat`"),
            (
                r#"{"_class_name": "DDIMScheduler", "thresholding": true, "sample_max_value": 0.5}"#,
                "sample_max_value = 0.5",
            ),
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
                r#"{"_class_name": "EulerDiscreteScheduler", "interpolation_type": "cubic"}"#,
                "supports linear, log_linear",
            ),
            (
                r#"{"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous",
                    "interpolation_type": "log_linear", "prediction_type": "v_prediction"}"#,
                "supports discrete",
            ),
            (
                r#"{"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}"#,
                "supports epsilon, v_prediction",
            ),
            (
                r#"{"_class_name": "EDMDPMSolverMultistepScheduler", "solver_order": 3,
                    "algorithm_type": "sde-dpmsolver++"}"#,
                "solver_order = 3",
            ),
            (r#"{"_class_name": "EDMEulerScheduler", "sigma_min": null}"#, "sigma_min = null"),
            (r#"{"_class_name": "ScoreSdeVpScheduler"}"#, "--sampler ddpm"),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}"#,
                "solver_order = 4",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}"#,
                "final_sigmas_type = zero",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver",
                    "solver_order": 3, "final_sigmas_type": "sigma_min"}"#,
                "algorithm_type = sde-dpmsolver",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "data_prediction"}"#,
                "algorithm_type = data_prediction",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "use_dynamic_shifting": true}"#,
                "true with use_flow_sigmas",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": true,
                    "use_dynamic_shifting": true, "time_shift_type": "linear"}"#,
                "time_shift_type = linear",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}"#,
                "prediction_type = flow",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "v_prediction",
                    "use_flow_sigmas": true}"#,
                "prediction_type = v_prediction",
            ),
            (
                r#"{"_class_name": "DPMSolverSinglestepScheduler", "algorithm_type": "sde-dpmsolver"}"#,
                "algorithm_type = sde-dpmsolver",
            ),
            (
                r#"{"_class_name": "UniPCMultistepScheduler", "solver_p": {"_class_name": "DDIMScheduler"}}"#,
                "unipc does not support solver_p",
            ),
            (
                r#"{"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0, -1]}"#,
                "a list of whole numbers",
            ),
            (
                r#"{"_class_name": "UniPCMultistepScheduler", "predict_x0": false}"#,
                "final_sigmas_type = zero",
            ),
            (
                r#"{"_class_name": "UniPCMultistepScheduler", "predict_x0": false,
                    "final_sigmas_type": "sigma_min", "thresholding": true}"#,
                "thresholding = true",
            ),
            (
                r#"{"_class_name": "UniPCMultistepScheduler", "shift_terminal": 0.1}"#,
                "shift_terminal = 0.1",
            ),
            (
                r#"{"_class_name": "DEISMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}"#,
                "algorithm_type = sde-dpmsolver++",
            ),
            (r#"{"_class_name": "SASolverScheduler", "tau_func": "lambda t: 1"}"#, "tau_func"),
            (
                r#"{"_class_name": "SASolverScheduler", "predictor_order": 5}"#,
                "predictor_order = 5",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepInverseScheduler", "use_flow_sigmas": true,
                    "prediction_type": "flow_prediction"}"#,
                "sigma_schedule = flow",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepInverseScheduler", "algorithm_type": "sde-dpmsolver++"}"#,
                "algorithm_type = sde-dpmsolver++",
            ),
            (
                r#"{"_class_name": "DDIMInverseScheduler", "timestep_spacing": "linspace"}"#,
                "timestep_spacing = linspace",
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
        for &kind in SamplerKind::ALL {
            let config = SamplerConfig::of_kind(kind);
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<SamplerConfig>(&json).unwrap(), config);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
