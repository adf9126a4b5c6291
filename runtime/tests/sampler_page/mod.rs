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
    page += "| sampler | what it does | evaluations of 20 steps | noise |\n| --- | --- | ---: | --- |\n";
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

Written by `CQC_BLESS=1 cargo test -p cqc-runtime --test sampler_goldens`, which fails where this page
is not what it writes.

`cqc compile` takes the sampler and its constants from diffusers' `scheduler_config.json`
(`--scheduler-config`; in a pipeline directory it is found by itself). `--sampler NAME` runs another
one with the same file, as `OtherScheduler.from_config(...)` does in diffusers. A key that no
scheduler is known to read is an error. A key that only other schedulers read is ignored.

## The samplers

An evaluation is one run of the network. Samplers that add noise draw it from the seed of the
request; the others draw only the first sample.

";

const NOISE_LEVELS: &str = "
## Noise levels

Which noise levels are visited is a choice of its own, beside the sampler.

**Models trained with a schedule of β** (`beta_schedule`, `beta_start`, `beta_end` or
`trained_betas`; `rescale_betas_zero_snr` moves the last level to pure noise). `timestep_spacing`
says which of the training's time steps are visited: `leading` counts up from 0 in whole strides and
adds `steps_offset`, `trailing` counts down from the noisiest, `linspace` spreads from one end to the
other. `quadratic` is not of diffusers: it visits squares of evenly spaced numbers, as DDPM's
original scripts do (`ddim` and `ddpm` only).

**Samplers over σ** can spread their levels without regard to time steps: `use_karras_sigmas`
(evenly in σ^(1/7)), `use_exponential_sigmas` (evenly in ln σ), `use_beta_sigmas` (at the quantiles
of a beta distribution). At most one of them may be set.

**Flow matching** has levels from σ = 1 (noise) to 0 (data). They are made in this order:

1. `flow_schedule` spreads them. It is a key of cqc: a name, or `NAME=NUMBER`.
   `trained`, the default, is diffusers' spread between the ends of training. `even` is
   σ = 1 − i/n. `sway=S` is the sway sampling of F5-TTS (default −1). `time-shift=S` is ZipVoice's
   (default 0.5). `linear-quadratic=T` is Mochi's and Movie Gen's (default 0.025).
2. `shift` (in a file of DPM-Solver or UniPC: `flow_shift`) moves them to
   shift·σ / (1 + (shift − 1)·σ). With `use_dynamic_shifting` the shift is exp(μ) instead
   (`time_shift_type: linear`: μ), and μ grows linearly with the number of tokens, from `base_shift`
   at `base_image_seq_len` to `max_shift` at `max_image_seq_len`.
3. `shift_terminal` stretches them so that the last one is this value.
4. `use_karras_sigmas`, `use_exponential_sigmas` and `use_beta_sigmas` spread anew between the ends.
5. `invert_sigmas` counts from 0 to 1.

**Lists.** Many samplers take the levels (`sigmas`) or time steps (`timesteps`) themselves, noisiest
first and without the end, as many as there are steps. Given time steps of flow matching reach the
network as they are; the levels that belong to them are shifted. Lists of levels are shifted, too,
as in diffusers.

**Distilled models.** `lcm` and `tcd` visit a subset of the `original_inference_steps` that the model
was distilled with, and allow no more steps than those. `scm` with two steps has its second level at
1.3. A file of SANA-Sprint says `prediction_type: trigflow`, which is what its pipeline makes of the
network's output; where the model is the transformer alone, write `flow_prediction`, and the sampler
does what the pipeline does around it.

A model that returns the next sample itself runs with `--sampler direct` (in a file:
`\"_class_name\": \"DirectStep\"`). It is told the number of the step, from 0.
";

const CLASSES: &str = "
## Scheduler classes of diffusers 0.42.1 that are taken

The error is the largest one after any of 20 steps, relative to the largest element of the sample,
against recorded trajectories of diffusers, over all recorded options of the class
(`tests/golden/samplers`). Keys that are not listed change nothing in diffusers either, or are
refused there.

| class | sampler | error | keys |
| --- | --- | --- | --- |
";

const REFUSED: &str = "
## Scheduler classes that are refused

`--sampler` with the nearest sampler draws right images from the same model.

| class | reason | nearest |
| --- | --- | --- |
";
