//! What the classes of pipelines of diffusers do with their texts.

use cqc_proto::cq::Condition;
use std::collections::BTreeMap;

/// The classes that are known, by their beginnings.
pub(super) const KNOWN: &[&str] = &[
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLPipeline",
    "LatentConsistencyModelPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
];

/// What a class does beyond what the configurations say.
#[derive(Debug)]
pub(super) struct Class {
    /// How the inputs of the denoiser follow from the texts.
    pub conditions: BTreeMap<String, Condition>,
    /// The default scale of guidance of the class.
    pub guidance: f32,
    /// The default number of tokens where the tokenizer has no limit.
    pub tokens: usize,
    /// Whether the unconditional half gets zeros without a negative prompt, if the configuration
    /// does not say it.
    pub zeros_without_negative: bool,
}

/// What is known of an exported pipeline.
pub(super) struct Facts {
    /// Hidden layers of each text encoder.
    pub layers: Vec<usize>,
    /// Height and width of the pictures, in pixels.
    pub pixels: (usize, usize),
}

impl Class {
    /// The class of that name; `None` if it is not known.
    pub(super) fn of(name: &str, facts: &Facts) -> Option<Class> {
        let states = |encoder| output(encoder, "last_hidden_state");
        let text = "encoder_hidden_states".to_string();
        let plain = Class {
            conditions: BTreeMap::new(),
            guidance: 7.5,
            tokens: 77,
            zeros_without_negative: false,
        };
        match name {
            "StableDiffusionPipeline" | "StableDiffusionImg2ImgPipeline" => {
                Some(Class { conditions: [(text, states(0))].into(), ..plain })
            }
            "LatentConsistencyModelPipeline" => {
                Some(Class { conditions: [(text, states(0))].into(), guidance: 8.5, ..plain })
            }
            "StableDiffusionXLPipeline" => {
                // the states before the last layer, of both encoders side by side
                let before = |encoder: usize| {
                    output(encoder, &format!("hidden_states.{}", facts.layers[encoder] - 1))
                };
                let encoders = 0..facts.layers.len();
                let pooled = output(facts.layers.len() - 1, "text_embeds");
                let (height, width) = (facts.pixels.0 as f32, facts.pixels.1 as f32);
                let ids = vec![height, width, 0.0, 0.0, height, width];
                let states = Condition::Concat { axis: 2, parts: encoders.map(before).collect() };
                Some(Class {
                    conditions: [
                        (text, states),
                        ("text_embeds".into(), pooled),
                        ("time_ids".into(), Condition::Row { values: ids }),
                    ]
                    .into(),
                    guidance: 5.0,
                    zeros_without_negative: true,
                    ..plain
                })
            }
            "PixArtAlphaPipeline" | "PixArtSigmaPipeline" => Some(Class {
                conditions: [
                    (text, states(0)),
                    ("encoder_attention_mask".into(), Condition::Mask { encoder: 0 }),
                ]
                .into(),
                guidance: 4.5,
                tokens: if name == "PixArtAlphaPipeline" { 120 } else { 300 },
                ..plain
            }),
            _ => None,
        }
    }
}

fn output(encoder: usize, name: &str) -> Condition {
    Condition::Output { encoder, output: name.to_string() }
}
