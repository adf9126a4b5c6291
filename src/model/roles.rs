//! Finds the sample and the time step among a model's inputs, and the prediction among its outputs.
//!
//! Names that exporters and papers use come first, then shapes and types. Where that leaves more
//! than one candidate, nothing is guessed, and the caller has to decide with [`RoleOptions`].

use super::fills::is_filled_by_name;
use cqc_proto::{DType, Dim, ValueType};

/// The roles that the caller decides. A role that is `None` is found by name, shape and type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleOptions {
    /// Name of the input that is the sample, or of which the sample is a part.
    pub sample_input: Option<String>,
    /// Name of the input that is the time step.
    pub time_input: Option<String>,
    /// Name of the output that is the prediction.
    pub prediction_output: Option<String>,
    /// The first channel of the sample within its input, where the input has more channels than the
    /// prediction. The default is 0.
    pub sample_channel: Option<usize>,
    /// Names of conditions that have another value at every evaluation, in addition to those that
    /// [`varies`] recognises.
    pub per_step: Vec<String>,
    /// Names of conditions that have one value per request although [`varies`] recognises them.
    pub per_request: Vec<String>,
}

/// Whether the name of a condition says that it has another value at every evaluation. It is true
/// for names that contain `residual`, `control_block` or `controlnet_block`, which ControlNets and
/// adapters use for the values that they add to a network.
pub fn varies(name: &str) -> bool {
    let name = plain(name);
    ["residual", "control_block", "controlnet_block"].iter().any(|part| name.contains(part))
}

/// Name and type of an input or output of the source model.
pub(super) type Named<'a> = (&'a str, &'a ValueType);

/// The relation of a prediction to a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// The prediction has the sample's shape, or twice its channels, in which case a variance
    /// follows the prediction.
    Whole,
    /// The prediction is smaller along one axis, so only a part of the input is the sample.
    Part {
        /// The axis of the channels.
        axis: usize,
    },
}

/// The roles that were found, and the reason for each that was not.
pub(super) struct Roles {
    pub sample: Result<usize, String>,
    pub time: Result<usize, String>,
    /// Index of the output, and its relation to the sample.
    pub prediction: Result<(usize, Fit), String>,
}

/// Names of the sample, in the order of preference. Names of the second list are also used for
/// conditions, so they count only for an input with the shape of the prediction.
#[rustfmt::skip]
const SAMPLE: [&[&str]; 2] = [
    &[
        "sample", "noisy_sample", "latent_sample", "noisy_latents", "noisy_latent", "latents",
        "latent", "x_t", "xt", "x", "z_t", "zt", "noisy_images", "noisy_image", "noisy_actions",
        "noisy_action", "noisy_x", "noisy", "noised", "noised_sample", "noised_input",
        "noisy_input", "noise_input", "latent_model_input", "sample_noisy", "noisy_mel",
        "noised_mel", "noisy_trajectory",
    ],
    &[
        "hidden_states", "y_t", "yt", "noise", "input", "inputs", "input_tensor",
    ],
];

/// Names of the time step, in the order of preference.
#[rustfmt::skip]
const TIME: &[&str] = &[
    "timestep", "timesteps", "time_step", "time_steps", "t", "ts", "time", "times",
    "diffusion_step", "diffusion_steps", "diffusion_timestep", "diffusion_timesteps",
    "diffusion_t", "current_step", "step", "steps", "sigma", "sigmas", "noise_level", "noise_levels",
    "noise_labels", "noise_label", "c_noise", "log_snr", "logsnr", "gamma", "gammas", "noise_cond",
    "lambda", "tau",
];

/// Names of inputs with one number per sample that are conditions and no time step.
#[rustfmt::skip]
const CONDITIONS: &[&str] = &[
    "label", "labels", "class", "classes", "class_id", "y", "c", "cond", "fps", "guidance",
    "guidance_scale", "cfg", "cfg_scale", "scale", "strength", "motion_bucket_id", "augmentation",
    "speaker", "spk", "sid", "speaker_id", "seed", "length", "lengths", "x_lengths", "num_frames",
    "time_ids", "frame_times", "lifetime", "duration", "domain", "task", "style", "age",
];

/// Names of the prediction, in the order of preference.
#[rustfmt::skip]
const PREDICTION: &[&str] = &[
    "out_sample", "prediction", "pred", "noise_pred", "pred_noise", "predicted_noise",
    "noise_prediction", "noise_residual", "model_output", "model_pred", "eps", "eps_pred",
    "pred_eps", "epsilon", "epsilon_pred", "predicted_epsilon", "velocity", "velocity_pred",
    "pred_velocity", "v_pred", "pred_v", "v", "flow", "score", "denoised", "denoised_sample",
    "pred_original_sample", "pred_x0", "x0_pred", "x0", "x_0", "sample", "output", "out",
    "outputs", "output_sample", "predicted", "predicted_sample", "y",
];

/// A name without the parts that exporters add: in lower case, without `:0`, and without the scope
/// before a slash or colons.
pub(super) fn plain(name: &str) -> String {
    let name = name.to_lowercase();
    let name = match name.rsplit_once(':') {
        Some((before, number)) if number.parse::<u32>().is_ok() => before.to_string(),
        _ => name,
    };
    name.rsplit(['/', ':']).next().unwrap_or_default().to_string()
}

/// The candidate whose name comes first in the list.
fn by_name(candidates: &[usize], all: &[Named], names: &[&str]) -> Option<usize> {
    let rank = |&i: &usize| names.iter().position(|name| plain(all[i].0) == *name);
    candidates.iter().copied().filter(|i| rank(i).is_some()).min_by_key(|i| rank(i))
}

/// The only candidate whose name ends in a word of the list, as in `input_timestep`.
fn by_last_word(candidates: &[usize], all: &[Named], names: &[&str]) -> Option<usize> {
    let ends = |&i: &usize| {
        let name = plain(all[i].0);
        let word =
            |n: &&&str| name.strip_suffix(**n).is_some_and(|rest| rest.ends_with(['_', '.']));
        names.iter().any(|n| word(&n))
    };
    only(&candidates.iter().copied().filter(ends).collect::<Vec<_>>())
}

fn only(candidates: &[usize]) -> Option<usize> {
    if let [one] = candidates { Some(*one) } else { None }
}

fn listed(indices: &[usize], all: &[Named]) -> String {
    let list: Vec<String> =
        indices.iter().map(|&i| format!("`{}` {}", all[i].0, all[i].1)).collect();
    list.join(", ")
}

fn every(all: &[Named]) -> String {
    if all.is_empty() {
        return "none".into();
    }
    listed(&(0..all.len()).collect::<Vec<_>>(), all)
}

/// The relation of `prediction` to `sample`; `None` if it cannot be its prediction.
pub(super) fn fit(sample: &ValueType, prediction: &ValueType) -> Option<Fit> {
    let (x, y) = (&sample.shape, &prediction.shape);
    let float = sample.dtype.is_float() && prediction.dtype.is_float();
    if !float || x.len() != y.len() || x.len() < 2 || x[0] != y[0] {
        return None;
    }
    let differing: Vec<usize> = (1..x.len()).filter(|&i| x[i] != y[i]).collect();
    match differing[..] {
        [] => Some(Fit::Whole),
        [1] if x[1].mul(&2.into()).as_ref() == Some(&y[1]) => Some(Fit::Whole),
        [axis] => {
            let (whole, part) = (x[axis].as_const()?, y[axis].as_const()?);
            (0 < part && part < whole).then_some(Fit::Part { axis })
        }
        _ => None,
    }
}

/// Whether the type can hold one number per sample, or one for all.
fn is_number(ty: &ValueType, batch: Option<&Dim>) -> bool {
    let first = |d: &Dim| d.is(1) || d.as_symbol().is_some() || Some(d) == batch;
    ty.dtype != DType::Bool
        && ty.shape.iter().enumerate().all(|(i, d)| d.is(1) || (i == 0 && first(d)))
}

/// Finds the roles. The caller has checked that the model has every name in `options`.
pub(super) fn find(inputs: &[Named], outputs: &[Named], options: &RoleOptions) -> Roles {
    let at = |all: &[Named], name: &String| all.iter().position(|(n, _)| n == name);
    let given = |all: &[Named], name: &Option<String>| name.as_ref().and_then(|n| at(all, n));
    let given_sample = given(inputs, &options.sample_input);
    let given_output = given(outputs, &options.prediction_output);
    let given_time = given(inputs, &options.time_input);
    let chosen = |given: Option<usize>, len: usize| match given {
        Some(i) => vec![i],
        None => (0..len).collect::<Vec<_>>(),
    };
    let eligible_outputs = chosen(given_output, outputs.len());
    let eligible: Vec<usize> = chosen(given_sample, inputs.len())
        .into_iter()
        .filter(|&i| given_time != Some(i) || given_sample.is_some())
        .collect();
    let fits_of = |i: usize| {
        let fits = |&o: &usize| Some((o, fit(inputs[i].1, outputs[o].1)?));
        eligible_outputs.iter().filter_map(fits).collect::<Vec<_>>()
    };
    let is_whole = |i: &usize| fits_of(*i).iter().any(|(_, fit)| *fit == Fit::Whole);
    let fitting: Vec<usize> =
        eligible.iter().copied().filter(|&i| !fits_of(i).is_empty()).collect();
    let whole: Vec<usize> = fitting.iter().copied().filter(is_whole).collect();

    let sample = by_name(&fitting, inputs, SAMPLE[0])
        .or_else(|| by_name(&whole, inputs, SAMPLE[1]))
        .or_else(|| only(&whole))
        .or_else(|| if whole.is_empty() { by_name(&fitting, inputs, SAMPLE[1]) } else { None })
        .or_else(|| if whole.is_empty() { only(&fitting) } else { None });
    let sample = sample.ok_or_else(|| match (&fitting[..], given_sample) {
        ([], Some(i)) => misfit(inputs[i], &eligible_outputs, outputs),
        ([], None) => no_sample(inputs, outputs, &eligible_outputs),
        (many, _) => {
            let tied = if whole.is_empty() { many } else { &whole };
            let list = listed(tied, inputs);
            format!("more than one input may be the sample: {list}; --sample-input NAME says which")
        }
    });
    let prediction = match &sample {
        Ok(i) => prediction(&fits_of(*i), outputs),
        Err(reason) => Err(reason.clone()),
    };
    let time = given_time.map_or_else(|| time(inputs, sample.as_ref().ok().copied()), Ok);
    Roles { sample, time, prediction }
}

fn prediction(fits: &[(usize, Fit)], outputs: &[Named]) -> Result<(usize, Fit), String> {
    let all: Vec<usize> = fits.iter().map(|(o, _)| *o).collect();
    let whole: Vec<usize> =
        fits.iter().filter(|(_, fit)| *fit == Fit::Whole).map(|(o, _)| *o).collect();
    let rest = if whole.is_empty() { &all } else { &whole };
    let output = by_name(&whole, outputs, PREDICTION)
        .or_else(|| by_name(&all, outputs, PREDICTION))
        .or_else(|| only(rest))
        .or_else(|| by_last_word(rest, outputs, PREDICTION));
    let output = output.ok_or_else(|| {
        let list = listed(rest, outputs);
        format!(
            "more than one output may be the prediction: {list}; --prediction-output NAME says which"
        )
    })?;
    let fit = fits.iter().find(|(o, _)| *o == output).expect("it was chosen among them");
    Ok(*fit)
}

/// The input that is the time step: one number per sample.
fn time(inputs: &[Named], sample: Option<usize>) -> Result<usize, String> {
    let batch = sample.and_then(|i| inputs[i].1.shape.first());
    let candidates: Vec<usize> =
        (0..inputs.len()).filter(|&i| Some(i) != sample && is_number(inputs[i].1, batch)).collect();
    let is_condition = |&i: &usize| {
        let name = plain(inputs[i].0);
        CONDITIONS.contains(&name.as_str())
            || is_filled_by_name(&name)
            || name.contains("label")
            || name.contains("class")
    };
    let unnamed: Vec<usize> = candidates.iter().copied().filter(|i| !is_condition(i)).collect();
    let found = by_name(&candidates, inputs, TIME)
        .or_else(|| by_last_word(&unnamed, inputs, TIME))
        .or_else(|| only(&unnamed));
    found.ok_or_else(|| {
        if unnamed.is_empty() {
            let inputs = every(inputs);
            return format!(
                "no input is like a time step (one number per sample); inputs: {inputs}; --time-input NAME says which is"
            );
        }
        let list = listed(&unnamed, inputs);
        format!("more than one input may be the time step: {list}; --time-input NAME says which")
    })
}

fn misfit(sample: Named, eligible: &[usize], outputs: &[Named]) -> String {
    match *eligible {
        [] => "it has no outputs".into(),
        [output] => {
            let ((name, ty), sample) = (outputs[output], sample.1);
            format!(
                "output `{name}` is {ty}, expected the sample's {sample} (or twice its channels, or fewer)"
            )
        }
        _ => {
            let (name, ty) = sample;
            let outputs = every(outputs);
            format!("no output is like the sample `{name}` {ty}; outputs: {outputs}")
        }
    }
}

fn no_sample(inputs: &[Named], outputs: &[Named], eligible: &[usize]) -> String {
    if outputs.is_empty() {
        return "it has no outputs".into();
    }
    let floats = |&i: &usize| inputs[i].1.dtype.is_float() && inputs[i].1.rank() >= 2;
    let floats: Vec<usize> = (0..inputs.len()).filter(floats).collect();
    let by_name =
        by_name(&floats, inputs, SAMPLE[0]).or_else(|| by_name(&floats, inputs, SAMPLE[1]));
    match by_name.or_else(|| only(&floats)) {
        Some(i) => misfit(inputs[i], eligible, outputs),
        None => format!(
            "no input is like a sample (float, two or more axes, the shape of an output); inputs: {}; outputs: {}",
            every(inputs),
            every(outputs)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ty(dtype: DType, shape: &[&str]) -> ValueType {
        let dim = |s: &&str| s.parse::<i64>().map_or_else(|_| Dim::symbol(s), Dim::constant);
        ValueType::new(dtype, shape.iter().map(dim).collect::<Vec<_>>())
    }

    /// Names with their types: `"x:f32[N,3,8,8]"`.
    fn values(list: &[&str]) -> Vec<(String, ValueType)> {
        let one = |text: &&str| {
            let (name, ty_) = text.rsplit_once(' ').unwrap();
            let (dtype, shape) = ty_.strip_suffix(']').unwrap().split_once('[').unwrap();
            let dtype = match dtype {
                "i" => DType::I64,
                "b" => DType::Bool,
                _ => DType::F32,
            };
            let shape: Vec<&str> = shape.split(',').filter(|s| !s.is_empty()).collect();
            (name.to_string(), ty(dtype, &shape))
        };
        list.iter().map(one).collect()
    }

    fn found(
        inputs: &[&str],
        outputs: &[&str],
        options: &RoleOptions,
    ) -> [Result<String, String>; 3] {
        let (inputs, outputs) = (values(inputs), values(outputs));
        fn named(list: &[(String, ValueType)]) -> Vec<Named<'_>> {
            list.iter().map(|(n, t)| (n.as_str(), t)).collect()
        }
        let roles = find(&named(&inputs), &named(&outputs), options);
        [
            roles.sample.map(|i| inputs[i].0.clone()),
            roles.time.map(|i| inputs[i].0.clone()),
            roles.prediction.map(|(o, _)| outputs[o].0.clone()),
        ]
    }

    fn check(inputs: &[&str], outputs: &[&str], expected: [&str; 3]) {
        let found = found(inputs, outputs, &RoleOptions::default());
        let found = found.map(|f| f.unwrap_or_else(|e| e));
        assert_eq!(found, expected, "{inputs:?} {outputs:?}");
    }

    #[test]
    fn names_decide_before_order() {
        let x = "[N,3,8,8]";
        let y = [&*format!("y f{x}")];
        let image = |name: &str| format!("{name} f{x}");
        check(
            &[&image("low_res"), &image("sample"), "timestep i[N]"],
            &y,
            ["sample", "timestep", "y"],
        );
        check(&[&image("mu"), &image("x"), "t f[]"], &y, ["x", "t", "y"]);
        check(&[&image("cond"), &image("x_t"), "input.7 i[N]"], &y, ["x_t", "input.7", "y"]);
        check(
            &["sample f[N,3,8,8]", "time_ids f[N]", "lifetime f[N]", "t f[N]"],
            &y,
            ["sample", "t", "y"],
        );
        check(
            &["x f[N,3,8,8]", "class_labels i[N]", "noise_level f[N]"],
            &y,
            ["x", "noise_level", "y"],
        );
        check(&["x f[N,3,8,8]", "labels i[N]", "input.3 i[N,1]"], &y, ["x", "input.3", "y"]);
        check(&["x f[N,3,8,8]", "unet/step:0 i[1,1]"], &y, ["x", "unet/step:0", "y"]);
        check(
            &["x f[N,3,8,8]", "frame_times f[N]", "model_timestep f[N]"],
            &y,
            ["x", "model_timestep", "y"],
        );
    }

    #[test]
    fn the_prediction_is_not_the_first_output_of_its_shape() {
        let inputs = ["sample f[N,4,8,8]", "t i[N]"];
        check(
            &inputs,
            &["features f[N,4,8,8]", "out_sample f[N,4,8,8]"],
            ["sample", "t", "out_sample"],
        );
        check(&inputs, &["features f[N,64,8,8]", "a f[N,4,8,8]"], ["sample", "t", "a"]);
        check(&inputs, &["mid f[N,4,8,8]", "noise_pred f[N,8,8,8]"], ["sample", "t", "noise_pred"]);
        let [_, _, tie] =
            found(&inputs, &["a f[N,4,8,8]", "b f[N,4,8,8]"], &RoleOptions::default());
        assert!(tie.unwrap_err().contains("`a` f32[N,4,8,8], `b`"));
        let options = RoleOptions { prediction_output: Some("b".into()), ..Default::default() };
        assert_eq!(found(&inputs, &["a f[N,4,8,8]", "b f[N,4,8,8]"], &options)[2], Ok("b".into()));
    }

    #[test]
    fn ties_are_refused_and_options_decide() {
        let inputs = ["a f[N,3,8,8]", "b f[N,3,8,8]", "p i[N]", "q i[N]"];
        let outputs = ["y f[N,3,8,8]"];
        let [sample, time, _] = found(&inputs, &outputs, &RoleOptions::default());
        assert!(sample.unwrap_err().contains("`a` f32[N,3,8,8], `b` f32[N,3,8,8]; --sample-input"));
        assert!(time.unwrap_err().contains("`p` i64[N], `q` i64[N]; --time-input"));
        let options = RoleOptions {
            sample_input: Some("b".into()),
            time_input: Some("q".into()),
            ..Default::default()
        };
        assert_eq!(found(&inputs, &outputs, &options).map(Result::unwrap), ["b", "q", "y"]);
    }

    #[test]
    fn shapes_decide_where_names_say_nothing() {
        let outputs = ["y f[N,32]"];
        check(&["a f[N,32]", "b f[N,77]", "q f[N,1]"], &outputs, ["a", "q", "y"]);
        check(
            &["hidden_states f[N,32]", "proj f[N,32]", "timestep i[N]"],
            &outputs,
            ["hidden_states", "timestep", "y"],
        );
        check(&["a f[N,4,9,9,9]", "b f[N,1,1,1]"], &["y f[N,4,9,9,9]"], ["a", "b", "y"]);
        check(&["a f[2,4,9]", "b f[2]"], &["y f[2,4,9]"], ["a", "b", "y"]);
    }

    #[test]
    fn the_sample_may_be_a_part_of_its_input() {
        for (x, y, axis) in [
            ("f[N,9,8,8]", "f[N,4,8,8]", 1),
            ("f[N,5,8,8,8]", "f[N,5,4,8,8]", 2),
            ("f[N,7]", "f[N,3]", 1),
        ] {
            let (x, y) = (values(&[&format!("x {x}")]), values(&[&format!("y {y}")]));
            assert_eq!(fit(&x[0].1, &y[0].1), Some(Fit::Part { axis }));
        }
        for (x, y) in [
            ("f[N,3,8,8]", "f[N,4,8,8]"),
            ("f[N,9,8,8]", "f[N,4,4,8]"),
            ("i[N,9,8,8]", "f[N,9,8,8]"),
            ("f[N,9,8]", "f[N,9,8,8]"),
        ] {
            let (x, y) = (values(&[&format!("x {x}")]), values(&[&format!("y {y}")]));
            assert_eq!(fit(&x[0].1, &y[0].1), None, "{x:?} {y:?}");
        }
        // an input with the prediction's shape comes before one with more channels
        check(&["a f[N,9,8,8]", "b f[N,4,8,8]", "t f[N]"], &["y f[N,4,8,8]"], ["b", "t", "y"]);
        check(
            &["sample f[N,9,8,8]", "b f[N,4,8,8]", "t f[N]"],
            &["y f[N,4,8,8]"],
            ["sample", "t", "y"],
        );
    }
}
