//! The model of `--features`, which computes features of images.

use crate::args::ModelArgs;
use crate::report::Failure;
use cachequant::compile::compile_evaluation;
use cachequant::model::{Model, ModelError};
use cqc_passes::onnx::ImportError;
use cqc_proto::plan::PlanOutput;
use cqc_proto::{Dim, Tensor};
use cqc_runtime::engine::{Engine, EngineOptions, Weights};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Identifies an extractor, in reports and in parts that are to be merged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// Path of the model.
    #[serde(serialize_with = "crate::text::lossy")]
    path: PathBuf,
    /// Hash of the file, in hexadecimal.
    pub blake3: String,
    /// Name of the output that holds the features.
    pub output: String,
    /// Number of features per image.
    pub dimensions: usize,
    /// Name of the output that holds the logits.
    pub logits_output: Option<String>,
    /// Number of logits per image; 0 without them.
    pub classes: usize,
    /// The preprocessing of images.
    preprocessing: String,
}

/// The extractor, ready to run.
pub struct Extractor {
    pub identity: Identity,
    engine: Engine,
    input: String,
    shape: Vec<usize>,
}

/// Rows of features and of logits, each without gaps.
#[derive(Default)]
pub struct Extracted {
    pub features: Vec<f32>,
    pub logits: Vec<f32>,
}

impl Extractor {
    /// Opens the model for images of `shape` `[C, H, W]`.
    pub fn open(
        path: &Path,
        [features, logits]: [Option<&str>; 2],
        shape: &[usize],
        options: &EngineOptions,
    ) -> Result<Extractor, Failure> {
        let model = load(path, shape)?;
        let fits = |ty: &cqc_proto::ValueType| {
            ty.dtype.is_float()
                && ty.rank() == shape.len() + 1
                && ty.shape.iter().skip(1).zip(shape).all(|(d, &s)| d.is(s as i64))
        };
        let [input] = &model.inputs[..] else {
            let inputs =
                model.inputs.iter().map(|i| format!("{}: {}", i.name, i.ty)).collect::<Vec<_>>();
            return Err(no_extractor(path, "an input").fact("seen", inputs.join(", ")));
        };
        if !fits(&input.ty) {
            let wants = format!(
                "images [N,{}]",
                shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
            );
            return Err(
                no_extractor(path, &wants).fact("seen", format!("{}: {}", input.name, input.ty))
            );
        }
        let first = model.outputs.first().map(|o| o.name.as_str()).unwrap_or_default();
        let has = |name: &str| model.outputs.iter().any(|o| o.name == name);
        let output = features.unwrap_or(if has("features") { "features" } else { first });
        let (output, dimensions) = rows_of(path, &model.outputs, output)?;
        let logits_output = logits.or(has("logits").then_some("logits"));
        let logits = logits_output.map(|name| rows_of(path, &model.outputs, name)).transpose()?;
        let identity = Identity {
            path: path.to_path_buf(),
            blake3: model.blake3.clone(),
            output,
            dimensions,
            classes: logits.as_ref().map_or(0, |(_, classes)| *classes),
            logits_output: logits.map(|(name, _)| name),
            preprocessing: "NCHW f32, clipped to [-1,1], not rounded, not resized".into(),
        };
        let lowered = compile_evaluation(&model)?;
        let options =
            EngineOptions { batch: model.fixed_batch.unwrap_or(options.batch), ..options.clone() };
        let weights = Weights::new(lowered.plan.clone(), lowered.weight_bytes()?)?;
        let (engine, input) = (Engine::open(&weights, &options)?, input.name.clone());
        Ok(Extractor { identity, engine, input, shape: shape.to_vec() })
    }

    /// Features and logits of images `[n, ...]`, which are clipped first.
    pub fn extract(&mut self, images: &[f32]) -> Result<Extracted, Failure> {
        let (len, batch) = (self.shape.iter().product::<usize>(), self.engine.batch());
        let mut all = Extracted::default();
        for images in images.chunks(batch * len) {
            let mut input: Vec<f32> = images.iter().map(|v| v.clamp(-1.0, 1.0)).collect();
            input.resize(batch * len, 0.0);
            let shape = [&[batch], &self.shape[..]].concat();
            let inputs = BTreeMap::from([(self.input.clone(), Tensor::from_f32(&shape, &input))]);
            let outputs = self.engine.run(&inputs)?;
            let count = images.len() / len;
            all.features.extend(
                &outputs[&self.identity.output].to_f32_vec()[..count * self.identity.dimensions],
            );
            if let Some(name) = &self.identity.logits_output {
                all.logits.extend(&outputs[name].to_f32_vec()[..count * self.identity.classes]);
            }
        }
        Ok(all)
    }
}

/// Loads the model. An input whose size is open gets that of the images.
fn load(path: &Path, shape: &[usize]) -> Result<Model, Failure> {
    let load = |reading: &ModelArgs| Model::load(path, &reading.options(None), |_, _| {});
    match load(&ModelArgs::default()) {
        Err(ModelError::Import { source: ImportError::OpenSizes(open), .. })
            if open.iter().all(|size| size.input == open[0].input) =>
        {
            let input = open[0].input.clone();
            let sizes = shape.iter().map(|&s| Dim::constant(s as i64));
            let shape = [Dim::symbol("N")].into_iter().chain(sizes).collect();
            Ok(load(&ModelArgs {
                shape: vec![crate::args::NamedShape { name: input, shape }],
                ..ModelArgs::default()
            })?)
        }
        other => Ok(other?),
    }
}

/// The name of an output and its number of elements per image.
fn rows_of(path: &Path, outputs: &[PlanOutput], name: &str) -> Result<(String, usize), Failure> {
    let known =
        || outputs.iter().map(|o| format!("{}: {}", o.name, o.ty)).collect::<Vec<_>>().join(", ");
    let output = outputs.iter().find(|o| o.name == name);
    let output = output.ok_or_else(|| {
        Failure::usage(format!("{} has no output `{name}`", path.display())).fact("known", known())
    })?;
    let sizes =
        output.ty.shape.iter().skip(1).map(|d| d.as_const().and_then(|d| usize::try_from(d).ok()));
    let elements = sizes
        .product::<Option<usize>>()
        .filter(|&n| n > 0 && output.ty.rank() > 0 && output.ty.dtype.is_float());
    let wrong = || {
        no_extractor(path, "a row of numbers per image")
            .fact("seen", format!("{name}: {}", output.ty))
    };
    Ok((name.to_string(), elements.ok_or_else(wrong)?))
}

fn no_extractor(path: &Path, wants: &str) -> Failure {
    Failure::failed(format!("{} makes no features of these samples", path.display()))
        .fact("wants", wants)
}
