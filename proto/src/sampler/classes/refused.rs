//! The classes whose steps cannot be written as a table.

use super::super::SamplerKind;
use super::Refused;

const TOKENS: &str = "it samples discrete tokens from probabilities";

pub(super) const REFUSED: &[Refused] = &[
    Refused { name: "AmusedScheduler", reason: TOKENS, nearest: None },
    Refused { name: "BlockRefinementScheduler", reason: TOKENS, nearest: None },
    Refused {
        name: "ConsistencyDecoderScheduler",
        reason: "it decodes latents in two steps at fixed time steps and has no other numbers of \
                 steps",
        nearest: None,
    },
    Refused { name: "DiscreteDDIMScheduler", reason: TOKENS, nearest: None },
    Refused { name: "EntropyBoundScheduler", reason: TOKENS, nearest: None },
    Refused {
        name: "HeliosScheduler",
        reason: "it works in stages, and enlarges the sample between them",
        nearest: None,
    },
    Refused {
        name: "HeliosDMDScheduler",
        reason: "it works in stages, and enlarges the sample between them",
        nearest: None,
    },
    Refused {
        name: "PiflowScheduler",
        reason: "the network returns a grid of velocities, along which one step takes many \
                 substeps that depend on the sample",
        nearest: None,
    },
    Refused {
        name: "RFD4ProteinaScheduler",
        reason: "its steps need a mask of the atoms that are placed",
        nearest: None,
    },
    Refused {
        name: "RePaintScheduler",
        reason: "its steps mix in an image under a mask, and go back to noisier levels",
        nearest: Some(SamplerKind::Ddim),
    },
    Refused { name: "VQDiffusionScheduler", reason: TOKENS, nearest: None },
];

/// The keys that only these classes read.
#[rustfmt::skip]
pub(in super::super) const KEYS: &[&str] = &[
    "mask_token_id", "masking_schedule",
    "block_length", "num_inference_steps", "threshold", "editing_threshold", "minimal_topk",
    "corrector_steps", "corrector_k", "corrector_selection", "corrector_selection_tau",
    "entropy_bound", "t_max", "t_min",
    "stages", "stage_range", "gamma", "scheduler_type",
    "n_grid", "eps", "final_step_size_scale", "num_policy_substeps",
    "s_churn", "s_min", "s_max", "snr", "sampling_eps", "correct_steps", "beta_min", "beta_max",
    "schedule_mode", "noise_mode", "tsr_k", "tsr_sigma", "tail_steps", "tail_step_multiplier", "t_lim_ode",
    "t_lim_ode_below",
    "num_vec_classes", "alpha_cum_start", "alpha_cum_end", "gamma_cum_start", "gamma_cum_end",
];
