//! The parts of a pipeline around its denoiser, compiled.

use super::class::{Class, Facts};
use super::directory::config_of;
use super::{Directory, DirectoryError, PROMPTS, tokenizer};
use crate::compile::{compile_evaluation, compile_evaluation_bf16};
use crate::model::{Model, ModelError, ModelOptions};
use crate::recipe::{Array, Recipe};
use crate::sizes;
use bytes::Bytes;
use cqc_passes::onnx::{BATCH, ImportError};
use cqc_pipeline::Texts;
use cqc_proto::Dim;
use cqc_proto::cq::{self, Manifest, SourceModel};
use cqc_proto::plan::InputRole;
use cqc_proto::sampler::SamplerConfig;
use serde_json::Value;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// How the parts are compiled.
#[derive(Clone, Debug, Default)]
pub struct PartOptions {
    /// Round the products of the text encoders and of the autoencoder to bf16.
    pub bf16: bool,
    /// Sizes of the denoiser that the user fixed.
    pub model: ModelOptions,
    /// Threads that encode the prompts of calibration.
    pub threads: usize,
}

/// The parts of a pipeline around its denoiser: what [`Compiled::write_with`] puts beside the loop.
///
/// [`Compiled::write_with`]: crate::compile::Compiled::write_with
#[derive(Debug)]
pub struct Parts {
    pub(crate) about: cq::Pipeline,
    pub(crate) attachments: Vec<Bytes>,
    texts: Texts,
    guidance: f32,
    threads: usize,
}

impl Parts {
    /// Compiles the parts of a pipeline; the denoiser is `model`, loaded by [`load_denoiser`].
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn compile(
        directory: &Directory,
        model: &Model,
        options: &PartOptions,
    ) -> Result<Parts, DirectoryError> {
        let mut attachments = Vec::new();
        let mut attach = |bytes: Bytes| {
            attachments.push(bytes);
            attachments.len() - 1
        };
        let latents = latent_sizes(model)?;
        let auto = directory.decoder.as_deref().or(directory.encoder.as_deref());
        let auto = auto.map(config_of).transpose()?.unwrap_or_default();
        let blocks = auto["block_out_channels"].as_array().map_or(4, Vec::len);
        // every block but the last one halves the picture; a wild configuration is refused later
        let factor = 1 << blocks.clamp(1, 16).saturating_sub(1);
        let pixels = (latents[1] * factor, latents[2] * factor);
        let configs =
            directory.text.iter().map(|(net, _)| config_of(net)).collect::<Result<Vec<_>, _>>()?;
        let layers = |c: &Value| {
            let found = c["num_hidden_layers"].as_u64().or(c["num_layers"].as_u64());
            found.unwrap_or(12) as usize
        };
        let facts = Facts { layers: configs.iter().map(layers).collect(), pixels };
        let class = match Class::of(&directory.class, &facts) {
            Some(class) => class,
            None => {
                let path = directory.path.join("model_index.json");
                return Err(DirectoryError::Class { path, class: directory.class.clone() });
            }
        };
        let mut text = Vec::new();
        for ((net, tokens), config) in directory.text.iter().zip(&configs) {
            let read = tokenizer::read(tokens)?;
            let longest = config["max_position_embeddings"].as_u64().map(|n| n as usize);
            let length = read.longest.or(longest).unwrap_or(class.tokens);
            let path = net.join("model.onnx");
            let known = [("input_ids", vec![length]), ("attention_mask", vec![length])];
            let (network, bytes) = part(&path, &known, options)?;
            let has = |name: &str| network.inputs.iter().any(|i| i.name == name);
            let tokens = network.inputs.first().map_or("input_ids".into(), |i| i.name.clone());
            text.push(cq::TextEncoder {
                tokenizer: attach(read.json.into_bytes().into()),
                network: attach(bytes),
                length,
                pad: read.pad,
                tokens: if has("input_ids") { "input_ids".into() } else { tokens },
                mask: has("attention_mask").then(|| "attention_mask".into()),
            });
        }
        let autoencoder = match &directory.decoder {
            None => None,
            Some(decoder) => {
                let sizes = [("latent_sample", latents.to_vec())];
                let (_, decoder) = part(&decoder.join("model.onnx"), &sizes, options)?;
                let encoder = directory.encoder.as_ref().map(|encoder| {
                    let sizes = [("sample", vec![3, pixels.0, pixels.1])];
                    part(&encoder.join("model.onnx"), &sizes, options).map(|(_, bytes)| bytes)
                });
                let number = |key: &str| auto[key].as_f64().map(|x| x as f32);
                Some(cq::Autoencoder {
                    decoder: attach(decoder),
                    encoder: encoder.transpose()?.map(attach),
                    scale: number("scaling_factor").unwrap_or(0.18215),
                    shift: number("shift_factor").unwrap_or(0.0),
                })
            }
        };
        let inputs = |name: &String| model.inputs.iter().any(|i| i.name == *name);
        let conditions = if text.is_empty() {
            Default::default()
        } else {
            class.conditions.into_iter().filter(|(name, _)| inputs(name)).collect()
        };
        let about = cq::Pipeline {
            class: directory.class.clone(),
            text,
            conditions,
            zeros_without_negative: directory.index["force_zeros_for_empty_prompt"]
                .as_bool()
                .unwrap_or(class.zeros_without_negative),
            autoencoder,
        };
        let texts = Texts::open(&about, &attachments)?;
        let (guidance, threads) = (class.guidance, options.threads.max(1));
        Ok(Parts { about, attachments, texts, guidance, threads })
    }

    /// Puts what the pipeline knows into the recipe of the denoiser, where the recipe does not say
    /// it: guidance, the states of calibration prompts, and the null condition.
    ///
    /// # Errors
    /// [`DirectoryError::Pipeline`] if a text encoder cannot be run.
    pub fn prepare(&self, recipe: &mut Recipe, prompts: &[String]) -> Result<(), DirectoryError> {
        if !self.texts.takes_prompts() {
            return Ok(());
        }
        let guidance = *recipe.guidance.get_or_insert(self.guidance);
        let samples = recipe.calib_samples();
        let own: Vec<&str> = match prompts {
            [] => PROMPTS.lines().collect(),
            given => given.iter().map(String::as_str).collect(),
        };
        let taken: Vec<&str> = (0..samples).map(|i| own[i % own.len()]).collect();
        for (name, states) in self.texts.conditions(&taken, self.threads)? {
            recipe.cond.entry(name).or_insert(Array::Tensor(states));
        }
        if guidance != 1.0 {
            for (name, states) in self.texts.unconditional(&[], self.threads)? {
                recipe.null_cond.entry(name).or_insert(Array::Tensor(states));
            }
        }
        Ok(())
    }

    /// The text encoders, to encode prompts with.
    pub fn texts(&self) -> &Texts {
        &self.texts
    }
}

/// Loads the denoiser of a pipeline. Sizes that the model leaves open and the options do not fix
/// are taken from the configurations beside it.
///
/// # Errors
/// [`ModelError`].
pub fn load_denoiser(directory: &Directory, options: &ModelOptions) -> Result<Model, ModelError> {
    load_sized(&directory.denoiser.model, options, &[])
}

/// Loads a model. Sizes that it leaves open and the options do not fix are those of `known`, by
/// input and after the batch, or else those of the configurations beside it.
fn load_sized(
    path: &Path,
    options: &ModelOptions,
    known: &[(&str, Vec<usize>)],
) -> Result<Model, ModelError> {
    let open = match Model::load(path, options, |_, _| {}) {
        Err(ModelError::Import { source: ImportError::OpenSizes(open), .. }) => open,
        other => return other,
    };
    let mut options = options.clone();
    for (size, proposed) in open.iter().zip(sizes::propose(path, &open)) {
        let of_input = known.iter().find(|(input, _)| *input == size.input).map(|(_, sizes)| sizes);
        let told = |axis: &usize| of_input?.get(axis.checked_sub(1)?).map(|&size| size as i64);
        let found = size.axes.iter().zip(proposed);
        let found = found.map(|(axis, p)| told(axis).or(p.map(|p| p.size)));
        let found: Vec<Option<i64>> = found.collect();
        match (&size.symbol, of_input) {
            (Some(name), _) => {
                let first = found.into_iter().flatten().next();
                options.import.dims.extend(first.map(|first| (name.clone(), first)));
            }
            (None, Some(sizes)) => {
                let sizes = sizes.iter().map(|&size| Dim::constant(size as i64));
                let shape = [Dim::symbol(BATCH)].into_iter().chain(sizes).collect();
                options.import.shapes.insert(size.input.clone(), shape);
            }
            (None, None) => {}
        }
    }
    Model::load(path, &options, |_, _| {})
}

/// Channels, height and width of the samples.
fn latent_sizes(model: &Model) -> Result<[usize; 3], DirectoryError> {
    let network = model.network()?;
    let sample = network.inputs.iter().find(|i| i.role == InputRole::Sample);
    let sizes: Option<Vec<usize>> = sample.and_then(|sample| {
        let sizes = sample.ty.shape.iter().skip(1);
        sizes.map(|d| d.as_const().and_then(|d| usize::try_from(d).ok())).collect()
    });
    match sizes.as_deref() {
        Some(&[c, h, w]) => Ok([c, h, w]),
        _ => Err(DirectoryError::Config {
            path: model.path.clone(),
            reason: "its samples are no images [N, C, H, W]".into(),
        }),
    }
}

/// A network of the pipeline, compiled as an artifact of its own. `known` gives the sizes of its
/// inputs after the batch.
fn part(
    path: &Path,
    known: &[(&str, Vec<usize>)],
    options: &PartOptions,
) -> Result<(Model, Bytes), DirectoryError> {
    let mut import = ModelOptions::default();
    import.import.budget = options.model.import.budget;
    let model = load_sized(path, &import, known)?;
    let lowered =
        if options.bf16 { compile_evaluation_bf16(&model) } else { compile_evaluation(&model) };
    let program =
        |source| DirectoryError::Program { path: PathBuf::from(path), source: Box::new(source) };
    let lowered = lowered.map_err(program)?;
    let source = SourceModel {
        blake3: model.blake3.clone(),
        opset: model.opset,
        producer: model.producer.clone(),
        parameters: model.parameters,
    };
    // a network without a loop: the sampler is never looked at
    let mut manifest = Manifest::new(source, lowered.plan.clone(), SamplerConfig::default(), 1);
    manifest.plan.evaluations = 0;
    let mut out = Cursor::new(Vec::new());
    let parts = &lowered.weights.parts;
    let constant = |i: usize| Ok(parts[i].1.bytes().clone());
    cq::encode(&mut out, &manifest, constant)
        .map_err(|e| DirectoryError::Encode { path: path.into(), reason: e.to_string() })?;
    Ok((model, out.into_inner().into()))
}
