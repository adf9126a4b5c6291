//! Classes whose steps cannot be written as a table.

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
