//! Finds options that contradict each other, and options that have no effect with the others.
//!
//! One table has a row for every option that matters only in some recipes, and says when it
//! matters. An option that is not given is never wrong.

use super::{Correct, Migrate, Named, Quant, Recipe, ScheduleSpec, Selection};
use std::fmt;

/// An option that contradicts others, that has no effect with them, or whose value is out of range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The option, which is a key of the recipe.
    pub option: &'static str,
    /// Its value, where the option alone would say too little.
    pub value: Option<String>,
    /// The reason, e.g. `nothing is cached`.
    pub reason: String,
    /// The options that are the reason, with their values.
    pub because: Vec<(&'static str, String)>,
}

impl Contradiction {
    /// A contradiction that is found while a model is compiled, without further options as its
    /// reason.
    pub fn new(
        option: &'static str,
        value: Option<String>,
        reason: impl Into<String>,
    ) -> Contradiction {
        Contradiction { option, value, reason: reason.into(), because: vec![] }
    }
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.option)?;
        if let Some(value) = &self.value {
            write!(f, " {value}")?;
        }
        write!(f, ": {}", self.reason)?;
        let because: Vec<String> =
            self.because.iter().map(|(option, value)| format!("{option} {value}")).collect();
        if because.is_empty() { Ok(()) } else { write!(f, " ({})", because.join(", ")) }
    }
}

/// A condition without which an option has no effect.
#[derive(Clone, Copy)]
enum Needs {
    /// Something is cached.
    Caching,
    /// The cache may be corrected.
    CacheCorrection,
    /// The loop is run in order to fit something.
    Calibration,
    /// Something is quantized, to integers or to bf16.
    Quantization,
    /// Something is quantized to integers, for which ranges are fitted.
    Integers,
    /// Something is cached, and integer layers read the cache.
    CachedIntegers,
    /// Layers are quantized to integers, and `keep-float` does not have `none`.
    SensitiveInputs,
    /// The samples of the calibration set are drawn, not given.
    DrawnSamples,
    /// Guidance mixes two predictions by a scale.
    Guidance,
    /// The sampler reads `eta`, as far as the recipe says.
    Eta,
    /// The artifact can be run with other numbers of steps.
    OtherSteps,
}

impl Needs {
    /// The reason why the condition is not met, and the options that cause it. `None` if it is met.
    fn unmet(self, r: &Recipe) -> Option<(&'static str, Vec<(&'static str, String)>)> {
        let interval = || match r.schedule() {
            ScheduleSpec::None => ("schedule", "none".to_string()),
            _ => ("interval", r.interval().to_string()),
        };
        let quant = || ("quant", r.quant().name().to_string());
        let correct = || {
            let list = r.correct.iter().flatten().map(Correct::to_string);
            ("correct", list.collect::<Vec<_>>().join(","))
        };
        let integers = r.quant().weight_bits().is_some();
        let no_integers = match r.quant() {
            Quant::Bf16 => "with bf16 nothing is fitted",
            _ => "no layer is quantized",
        };
        let unmet = match self {
            Needs::Caching | Needs::CacheCorrection | Needs::CachedIntegers if !r.caches() => {
                ("nothing is cached", vec![interval()])
            }
            Needs::CacheCorrection if !r.corrects(Correct::Cache) => {
                ("the cache is not corrected", vec![correct()])
            }
            Needs::Guidance if r.guidance() == 1.0 => {
                ("there is no guidance", vec![("guidance", "1".into())])
            }
            Needs::Calibration if !r.calibrates() => {
                ("nothing is calibrated", vec![interval(), quant()])
            }
            Needs::Quantization if r.quant() == Quant::None => {
                ("no layer is quantized", vec![quant()])
            }
            Needs::Integers | Needs::CachedIntegers | Needs::SensitiveInputs if !integers => {
                (no_integers, vec![quant()])
            }
            Needs::SensitiveInputs if r.quantizes_all() => {
                ("all inputs are quantized", vec![("keep-float", "none".into())])
            }
            Needs::DrawnSamples if r.calib_noise.is_some() => (
                "the given noise decides how many samples there are",
                vec![("calib-noise", "…".into())],
            ),
            Needs::Eta if r.sampler.is_some_and(|kind| !kind.reads_eta()) => {
                let kind = r.sampler.map_or_else(String::new, |kind| kind.to_string());
                ("it is an option of ddim, tcd and flow-euler-ancestral", vec![("sampler", kind)])
            }
            Needs::OtherSteps => match r.variance_compensation {
                Some(mode) if integers => (
                    "samples are corrected after each of the compiled steps, so that there are no others",
                    vec![("variance-compensation", mode.name().into())],
                ),
                _ => return None,
            },
            _ => return None,
        };
        Some(unmet)
    }
}

/// An option and its conditions.
struct Row {
    option: &'static str,
    /// Whether the option is given. `value` is the value, where only that value has the conditions.
    given: fn(&Recipe) -> bool,
    value: Option<&'static str>,
    needs: &'static [Needs],
}

const fn row(option: &'static str, given: fn(&Recipe) -> bool, needs: &'static [Needs]) -> Row {
    Row { option, given, value: None, needs }
}

const fn value(
    option: &'static str,
    value: &'static str,
    given: fn(&Recipe) -> bool,
    needs: &'static [Needs],
) -> Row {
    Row { option, given, value: Some(value), needs }
}

/// Whether `correct` lists `what`.
fn corrects(r: &Recipe, what: Correct) -> bool {
    r.correct.iter().flatten().any(|given| *given == what)
}

/// Every option that matters only in some recipes. These options always matter: `steps`, `sampler`,
/// `scheduler-config`, `prediction`, `flow-time`, `flow-shift`, `flow-mu`, `trust`, `guidance`,
/// `fill`, `null-label`, `null-cond`, `labels`, `cond`, `quant`, `target` and `threads`.
const TABLE: &[Row] = &[
    row(
        "guidance-rescale",
        |r| r.guidance_rescale.is_some_and(|phi| phi != 0.0),
        &[Needs::Guidance],
    ),
    row("guidance-interval", |r| r.guidance_interval.is_some(), &[Needs::Guidance]),
    row("eta", |r| r.eta.is_some(), &[Needs::Eta]),
    row("any-steps", |r| r.any_steps, &[Needs::OtherSteps]),
    row(
        "schedule",
        |r| r.schedule.as_ref().is_some_and(|s| *s != ScheduleSpec::None),
        &[Needs::Caching],
    ),
    row("interval", |r| r.interval.is_some_and(|n| n > 1), &[Needs::Caching]),
    row("cut", |r| r.cut.is_some(), &[Needs::Caching]),
    row("cache-fit", |r| r.cache_fit.is_some(), &[Needs::CacheCorrection]),
    value("correct", "cache", |r| corrects(r, Correct::Cache), &[Needs::Caching]),
    value("correct", "quant", |r| corrects(r, Correct::Quant), &[Needs::CachedIntegers]),
    value("correct", "quant=all", |r| corrects(r, Correct::QuantAll), &[Needs::Integers]),
    row(
        "refit-cache",
        |r| r.refit_cache.is_some(),
        &[Needs::CacheCorrection, Needs::CachedIntegers],
    ),
    row("calib-samples", |r| r.calib_samples.is_some(), &[Needs::Calibration, Needs::DrawnSamples]),
    row("calib-batch", |r| r.calib_batch.is_some(), &[Needs::Calibration]),
    row("calib-noise", |r| r.calib_noise.is_some(), &[Needs::Calibration]),
    row("seed", |r| r.seed.is_some(), &[Needs::Calibration]),
    row("budget", |r| r.budget.is_some(), &[Needs::Calibration, Needs::DrawnSamples]),
    row("work-dir", |r| r.work_dir.is_some(), &[Needs::Calibration]),
    value("keep-float", "auto", Recipe::keeps_float_by_error, &[Needs::Integers]),
    row(
        "keep-float",
        |r| !r.keep_float.is_empty() && !r.keeps_float_by_error(),
        &[Needs::Quantization],
    ),
    row("target-psnr", |r| r.target_psnr.is_some(), &[Needs::Calibration]),
    row("float-work", |r| r.float_work.is_some(), &[Needs::SensitiveInputs]),
    row("migrate", |r| r.migrate.is_some(), &[Needs::Integers]),
    row("share-ranges", |r| r.share_ranges.is_some(), &[Needs::Integers]),
    row("variance-compensation", |r| r.variance_compensation.is_some(), &[Needs::Integers]),
    row("calib-select", |r| r.calib_select.is_some(), &[Needs::Integers]),
    row("reconstruct", |r| r.reconstruct, &[Needs::Integers]),
    row("split-inputs", |r| r.split_inputs.is_some(), &[Needs::Integers]),
];

impl Recipe {
    /// Everything that is wrong with the recipe for any model: options that contradict each other,
    /// options that have no effect with the others, and values out of range. The list is empty if
    /// nothing is wrong.
    pub fn check(&self) -> Vec<Contradiction> {
        let unmet = |row: &Row| {
            let (reason, because) = row.needs.iter().find_map(|needs| needs.unmet(self))?;
            let (value, reason) = (row.value.map(str::to_string), reason.to_string());
            // an interval is not given as the reason against itself
            let because = because.into_iter().filter(|(option, _)| *option != row.option).collect();
            Some(Contradiction { option: row.option, value, reason, because })
        };
        let mut found: Vec<Contradiction> =
            TABLE.iter().filter(|row| (row.given)(self)).filter_map(unmet).collect();
        found.extend(self.check_values());
        found
    }

    /// Values that are wrong whatever the other options are.
    fn check_values(&self) -> Vec<Contradiction> {
        let mut found = Vec::new();
        let mut refuse = |option, value: String, reason: &str| {
            found.push(Contradiction::new(option, Some(value), reason));
        };
        if let Some(list) =
            self.correct.as_ref().filter(|list| list.len() > 1 && list.contains(&Correct::None))
        {
            let list: Vec<String> = list.iter().map(Correct::to_string).collect();
            refuse("correct", list.join(","), "none excludes everything else");
        }
        if let Some(list) =
            Some(&self.keep_float).filter(|list| list.len() > 1 && self.quantizes_all())
        {
            refuse("keep-float", list.join(","), "none excludes everything else");
        }
        let lists = [("sigmas", &self.sigmas), ("timesteps", &self.timesteps)];
        for (option, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            if let Some(steps) = self.steps.filter(|&steps| steps != list.len()) {
                let reason = format!("there are {} of them, and --steps is {steps}", list.len());
                refuse(option, "…".into(), &reason);
            }
        }
        if !self.sigmas.is_empty() && !self.timesteps.is_empty() {
            refuse("timesteps", "…".into(), "sigmas are given as well: one of the two decides");
        }
        for (option, shift) in [("flow-shift", self.flow_shift), ("flow-mu", self.flow_mu)] {
            let least = if option == "flow-shift" { f64::MIN_POSITIVE } else { f64::MIN };
            if let Some(shift) = shift.filter(|s| !(s.is_finite() && *s >= least)) {
                refuse(option, shift.to_string(), "expected a finite number, of a shift above 0");
            }
        }
        let counts = [
            ("steps", self.steps, 1),
            ("interval", self.interval, 1),
            ("calib-samples", self.calib_samples, 2),
            ("calib-batch", self.calib_batch, 1),
            ("threads", self.threads, 1),
        ];
        for (option, count, least) in counts {
            if let Some(count) = count.filter(|&count| count < least) {
                refuse(option, count.to_string(), &format!("expected at least {least}"));
            }
        }
        if let Some(Selection::First(0) | Selection::Tap(Some(0)) | Selection::Tdac(Some(0))) =
            self.calib_select
        {
            refuse("calib-select", "0".into(), "expected at least one sample");
        }
        if let Some(guidance) = self.guidance.filter(|g| !(g.is_finite() && *g >= 0.0)) {
            refuse("guidance", guidance.to_string(), "expected a finite number, 0 or more");
        }
        if let Some(phi) = self.guidance_rescale.filter(|phi| !(0.0..=1.0).contains(phi)) {
            refuse("guidance-rescale", phi.to_string(), "expected a number from 0 to 1");
        }
        if let Some(interval) = self.guidance_interval {
            let reason = match interval.is_valid() {
                false => "expected shares of the steps, 0 <= FROM < TO <= 1".to_string(),
                true => {
                    format!("it holds none of {} steps; --guidance 1 switches it off", self.steps())
                }
            };
            if !interval.is_valid() || interval.steps(self.steps()).is_empty() {
                refuse("guidance-interval", interval.to_string(), &reason);
            }
        }
        if let Some(interval) = self.interval.filter(|&n| n > self.steps().max(1)) {
            let reason = format!("expected at most the number of steps, {}", self.steps());
            refuse("interval", interval.to_string(), &reason);
        }
        if let Some(eta) = self.eta.filter(|eta| !(0.0..=1.0).contains(eta)) {
            refuse("eta", eta.to_string(), "expected a number from 0 to 1");
        }
        let null = self.null_label.map(|label| ("null-label", label));
        let labels = self.labels.iter().map(|&label| ("labels", label));
        if let Some((option, label)) = null.into_iter().chain(labels).find(|(_, l)| *l < 0) {
            refuse(option, label.to_string(), "expected labels of 0 and more");
        }
        if let Some(Migrate::Alpha(a)) =
            self.migrate.filter(|m| matches!(m, Migrate::Alpha(a) if !(0.0..=1.0).contains(a)))
        {
            refuse("migrate", a.to_string(), "expected a number from 0 to 1");
        }
        if let Some(share) = self.float_work.filter(|s| !(0.0..=1.0).contains(s)) {
            refuse("float-work", share.to_string(), "expected a number from 0 to 1");
        }
        if let Some(psnr) = self.target_psnr.filter(|p| !p.is_finite()) {
            refuse("target-psnr", psnr.to_string(), "expected a number of decibels");
        }
        if let Some(seconds) = self.budget.filter(|s| !(s.is_finite() && *s >= 0.0)) {
            refuse("budget", seconds.to_string(), "expected a number of seconds");
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(toml_like: serde_json::Value) -> Recipe {
        serde_json::from_value(toml_like).unwrap()
    }

    #[test]
    fn every_option_without_effect_is_refused_and_all_of_them_at_once() {
        let given = serde_json::json!({
            "quant": "none", "interval": 1, "reconstruct": true, "variance-compensation": "mse",
            "calib-select": "tap", "keep-float": ["a"], "target-psnr": 40.0, "float-work": 0.1,
            "share-ranges": "all", "migrate": "none", "correct": ["quant=all"], "cut": "shallow", "schedule": "dps",
            "cache-fit": "forecast", "calib-samples": 4, "work-dir": "w", "seed": 3,
            "calib-batch": 2, "budget": 60.0, "split-inputs": false,
            "refit-cache": false,
        });
        let found = recipe(given.clone()).check();
        let mut refused: Vec<&str> = found.iter().map(|c| c.option).collect();
        refused.sort_unstable();
        let mut expected: Vec<&str> =
            given.as_object().unwrap().keys().map(String::as_str).collect();
        expected.retain(|option| !["quant", "interval"].contains(option));
        expected.sort_unstable();
        assert_eq!(refused, expected);
        // alone, each of them is refused as well; with the defaults, none is
        for option in expected {
            let mut one = serde_json::json!({"quant": "none", "interval": 1});
            one[option] = given[option].clone();
            assert_eq!(recipe(one).check().len(), 1, "{option}");
            let mut with_defaults = serde_json::json!({option: given[option].clone()});
            if option == "target-psnr" {
                with_defaults["keep-float"] = serde_json::json!(["auto"]);
            }
            assert_eq!(recipe(with_defaults).check(), [], "{option}");
        }
    }

    #[test]
    fn what_contradicts_is_named_with_its_reason() {
        let said = |given| {
            recipe(given)
                .check()
                .iter()
                .map(Contradiction::to_string)
                .collect::<Vec<_>>()
                .join("; ")
        };
        for (given, expected) in [
            (
                serde_json::json!({"quant": "bf16", "reconstruct": true}),
                "with bf16 nothing is fitted (quant bf16)",
            ),
            (
                serde_json::json!({"quant": "bf16", "keep-float": ["auto"]}),
                "keep-float auto: with bf16",
            ),
            (
                serde_json::json!({"correct": "none,cache"}),
                "correct none,cache: none excludes everything else",
            ),
            (
                serde_json::json!({"schedule": "none", "interval": 5}),
                "interval: nothing is cached (schedule none)",
            ),
            (
                serde_json::json!({"interval": 1, "correct": ["cache"]}),
                "correct cache: nothing is cached",
            ),
            (
                serde_json::json!({"keep-float": ["none"], "float-work": 0.1}),
                "float-work: all inputs are quantized",
            ),
            (
                serde_json::json!({"eta": 0.5, "sampler": "euler"}),
                "eta: it is an option of ddim, tcd and flow-euler-ancestral (sampler euler)",
            ),
            (
                serde_json::json!({"any-steps": true, "variance-compensation": "mse"}),
                "any-steps: samples are corrected",
            ),
            (
                serde_json::json!({"calib-noise": "x.npy", "calib-samples": 4}),
                "calib-samples: the given noise",
            ),
            (serde_json::json!({"interval": 0}), "interval 0: expected at least 1"),
            (serde_json::json!({"steps": 4, "interval": 5}), "interval 5: expected at most"),
            (serde_json::json!({"guidance": -2.0}), "guidance -2: expected a finite number"),
            (
                serde_json::json!({"guidance-rescale": 0.5, "guidance-interval": "0.2..0.8"}),
                "guidance-rescale: there is no guidance (guidance 1); guidance-interval: there is no guidance",
            ),
            (
                serde_json::json!({"guidance": 2.0, "guidance-rescale": 1.5}),
                "guidance-rescale 1.5: expected a number from 0 to 1",
            ),
            (
                serde_json::json!({"guidance": 2.0, "steps": 10, "guidance-interval": "0..0.05"}),
                "guidance-interval 0..0.05: it holds none of 10 steps",
            ),
            (serde_json::json!({"eta": 1.5}), "eta 1.5: expected a number from 0 to 1"),
            (serde_json::json!({"null-label": -1}), "null-label -1: expected labels"),
            (serde_json::json!({"labels": [1, -3]}), "labels -3: expected labels"),
            (
                serde_json::json!({"guidance": f32::MAX, "float-work": 2.0}),
                "float-work 2: expected a number",
            ),
        ] {
            let said = said(given);
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn options_that_turn_something_off_are_never_refused() {
        for given in [
            serde_json::json!({"interval": 1, "schedule": "none", "quant": "none", "correct": ["none"]}),
            serde_json::json!({"interval": 1, "quant": "none", "threads": 2, "any-steps": true}),
            serde_json::json!({"keep-float": ["auto"], "target-psnr": 40.0}),
            serde_json::json!({"quant": "bf16", "keep-float": ["a"]}),
        ] {
            assert_eq!(recipe(given.clone()).check(), [], "{given}");
        }
    }

    #[test]
    fn a_recipe_is_read_as_it_is_written() {
        let given = serde_json::json!({
            "steps": 20, "sampler": "dpm-multistep", "guidance": 2.0, "guidance-rescale": 0.5, "guidance-interval": "0.2..0.8",
            "fill": {"n": "steps", "g": "none"}, "prediction": "v", "flow-time": "sigma", "flow-shift": 3.0, "flow-schedule": "sway=-1", "flow-mu": 1.5,
            "sigmas": [1.0, 0.5], "timesteps": [10.0], "trust": true, "null-label": 8, "interval": 4,
            "schedule": "quadratic=15,1.4", "cut": "cost=0.3", "cache-fit": "forecast",
            "correct": ["cache", "quant=all"], "labels": [0, 1], "quant": "w4a8", "share-ranges": "3",
            "calib-select": "tap=40", "variance-compensation": "regression", "target": ["cuda:sm_90"],
            "null-cond": {"y": {"dtype": "f32", "shape": [1, 2], "values": [0.5, 1.0]}}, "cond": {"y": "y.npy"},
        });
        assert_eq!(serde_json::to_value(recipe(given.clone())).unwrap(), given);
        assert!(serde_json::from_value::<Recipe>(serde_json::json!({"stepz": 3})).is_err());
    }
}
