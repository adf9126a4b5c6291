//! Writes `docs/reference/samplers.md`: the samplers, from the lists in the code, and their errors
//! against diffusers, from the goldens.

use cqc_proto::sampler::{Class, Refused, SamplerConfig, SamplerKind};
use cqc_runtime::sampler::Sampler;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Every scheduler class of diffusers 0.42.1: the classes of `diffusers.schedulers` whose names end
/// in `Scheduler`.
pub const DIFFUSERS: &[&str] = &[
    "AmusedScheduler",
    "BlockRefinementScheduler",
    "CMStochasticIterativeScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "ConsistencyDecoderScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DDPMWuerstchenScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "DiscreteDDIMScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EntropyBoundScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeliosDMDScheduler",
    "HeliosScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KarrasVeScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "LTXEulerAncestralRFScheduler",
    "MiniMaxH3Scheduler",
    "PNDMScheduler",
    "PiflowScheduler",
    "RFD4ProteinaScheduler",
    "RePaintScheduler",
    "SASolverScheduler",
    "SCMScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
    "UniPCMultistepScheduler",
    "VQDiffusionScheduler",
];

/// The page. `errors` holds the worst error of each class in its cases of 20 steps.
pub fn page(errors: &BTreeMap<String, f64>) -> String {
    let mut page = INTRODUCTION.to_owned();
    page +=
        "| sampler | method | evaluations of 20 steps | adds noise |\n| --- | --- | ---: | --- |\n";
    for &kind in SamplerKind::ALL {
        let config = SamplerConfig::of_kind(kind);
        // or as many as there are
        let steps = 20.min(config.num_train_timesteps as usize);
        let sampler = Sampler::new(&config, steps).unwrap();
        let evaluations = sampler.evaluations().len();
        let noise = if (0..evaluations).any(|i| sampler.adds_noise(i)) { "yes" } else { "no" };
        let about = kind.about();
        writeln!(page, "| `{kind}` | {about} | {evaluations} | {noise} |").unwrap();
    }
    page += NOISE_LEVELS;
    page += CLASSES;
    for name in DIFFUSERS {
        let Some(class) = Class::all().find(|class| class.name == *name) else { continue };
        let keys: Vec<String> = class.keys.iter().map(|key| format!("`{key}`")).collect();
        let keys = if keys.is_empty() { "none".into() } else { keys.join(", ") };
        let error = errors.get(*name).map_or("not measured".into(), |&error| bound(error));
        writeln!(page, "| `{name}` | `{}` | {error} | {keys} |", class.kind).unwrap();
    }
    page += REFUSED;
    for name in DIFFUSERS {
        let Some(refused) = Refused::all().find(|refused| refused.name == *name) else { continue };
        let nearest = refused.nearest.map_or("none".into(), |kind| format!("`{kind}`"));
        writeln!(page, "| `{name}` | {} | {nearest} |", refused.reason).unwrap();
    }
    page
}

/// The error, rounded up so that the last bits of another machine do not change the page.
fn bound(error: f64) -> String {
    let bounds = [1e-7, 3e-7, 1e-6, 3e-6, 1e-5];
    let bound = bounds.iter().find(|&&bound| error < bound).unwrap_or(&error);
    format!("< {bound:.0e}")
}

const INTRODUCTION: &str = "\
# Samplers

This page lists the samplers of cqc, the noise levels that they can visit, and the scheduler classes
of diffusers that cqc reads. It is for users of `cqc compile` who choose a sampler or have a
`scheduler_config.json`. [concepts.md](../concepts.md) defines the terms.

`cqc compile` takes the sampler and its constants from the `scheduler_config.json` of diffusers
(`--scheduler-config`). In a pipeline directory it finds the file by itself. `--sampler NAME` runs
another sampler with the same file, as `OtherScheduler.from_config(...)` does in diffusers. A key
that no scheduler is known to read is an error. A key that only other schedulers read is ignored.

This page is written by `CQC_BLESS=1 cargo test -p cqc-runtime --test sampler_goldens`. Without
`CQC_BLESS`, the test fails if the page is out of date.

## The samplers

An evaluation is one run of the network. Samplers that add noise draw it from the seed of the
request. The other samplers draw only the first sample.

";

const NOISE_LEVELS: &str = "
## Noise levels

The noise levels of a loop are chosen separately from the sampler. The choice depends on the way in
which the model was trained.

### Models trained with a schedule of β

`beta_schedule`, `beta_start` and `beta_end`, or `trained_betas`, define the schedule.
`rescale_betas_zero_snr` moves the last level to pure noise. `timestep_spacing` selects the time
steps of the training that are visited:

* `leading` counts up from 0 in whole strides and adds `steps_offset`.
* `trailing` counts down from the noisiest time step.
* `linspace` spreads the time steps from one end to the other.
* `quadratic` does not exist in diffusers. It visits squares of evenly spaced numbers, as the
  original scripts of DDPM do (`ddim` and `ddpm` only).

### Samplers over σ

These samplers can spread their levels without regard to time steps. At most one of these keys may
be set:

* `use_karras_sigmas`: evenly in σ^(1/7)
* `use_exponential_sigmas`: evenly in ln σ
* `use_beta_sigmas`: at the quantiles of a beta distribution

### Flow matching

Flow matching has levels from σ = 1 (noise) to 0 (data). They are made in this order:

1. `flow_schedule` spreads the levels. It is a key of cqc, a name or `NAME=NUMBER`:
   `trained`, the default, is the spread of diffusers between the ends of training. `even` is
   σ = 1 − i/n. `sway=S` is the sway sampling of F5-TTS (default −1). `time-shift=S` is the spread
   of ZipVoice (default 0.5). `linear-quadratic=T` is the spread of Mochi and Movie Gen (default
   0.025).
2. `shift` (in a file of DPM-Solver or UniPC: `flow_shift`) moves the levels to
   shift·σ / (1 + (shift − 1)·σ). With `use_dynamic_shifting` the shift is exp(μ) instead
   (with `time_shift_type: linear`, it is μ). μ grows linearly with the number of tokens, from
   `base_shift` at `base_image_seq_len` to `max_shift` at `max_image_seq_len`.
3. `shift_terminal` stretches the levels so that the last one has this value.
4. `use_karras_sigmas`, `use_exponential_sigmas` and `use_beta_sigmas` spread the levels anew
   between the ends.
5. `invert_sigmas` counts from 0 to 1.

### Lists of levels or time steps

Many samplers take the levels (`sigmas`) or the time steps (`timesteps`) as a list. The list begins
with the noisiest entry, leaves out the end, and has as many entries as there are steps. With flow
matching, given time steps reach the network as they are, and the levels that belong to them are
shifted. Lists of levels are shifted, too, as in diffusers.

### Distilled models

`lcm` and `tcd` visit a subset of the `original_inference_steps` that the model was distilled with,
and allow no more steps than those. `scm` with two steps has its second level at 1.3.

A file of SANA-Sprint has `prediction_type: trigflow`, which describes the output of its pipeline.
If the model is the transformer alone, write `flow_prediction`; the sampler then does the work that
the pipeline does around the transformer.

### Models that return the next sample

A model that returns the next sample itself runs with `--sampler direct` (in a file:
`\"_class_name\": \"DirectStep\"`). It is told the number of the step, from 0.
";

const CLASSES: &str = "
## Scheduler classes of diffusers 0.42.1 that are accepted

The error compares cqc with recorded trajectories of diffusers (`tests/golden/samplers`). It is the
largest error after any of 20 steps, relative to the largest element of the sample, over all
recorded options of the class. Keys that are not listed change nothing in diffusers either, or are
refused there.

| class | sampler | error | keys |
| --- | --- | --- | --- |
";

const REFUSED: &str = "
## Scheduler classes that are refused

`--sampler` with the nearest sampler draws correct images from the same model.

| class | reason | nearest |
| --- | --- | --- |
";
