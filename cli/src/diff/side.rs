//! Brings artifacts and models into one form.

use crate::args::ModelArgs;
use crate::artifact;
use crate::report::Failure;
use cachequant::compile::{LoopOptions, Lowered, compile_evaluation, compile_loop};
use cachequant::io::FileError;
use cachequant::model::Model;
use cachequant::model::locate;
use cqc_proto::Tensor;
use cqc_proto::cq::{Manifest, SourceModel};
use cqc_proto::plan::Plan;
use std::path::{Path, PathBuf};

/// One of the two sides.
pub struct Side {
    /// Path of the file.
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// The source model.
    pub source: SourceModel,
    /// The plan that it executes.
    pub plan: Plan,
    /// The constants of the plan, in order.
    pub constants: Vec<Tensor>,
    /// The rest of the artifact; `None` when two models are compared.
    pub manifest: Option<Manifest>,
}

impl Side {
    /// Bytes of all constants.
    pub fn weight_bytes(&self) -> u64 {
        self.constants.iter().map(|t| t.bytes().len() as u64).sum()
    }
}

/// Opens both. A model beside an artifact is compiled for the artifact's trajectory.
pub fn open_both(a: &Path, b: &Path, reading: &ModelArgs) -> Result<(Side, Side), Failure> {
    match [a, b].map(artifact::is_artifact) {
        [true, true] => Ok((of_artifact(a)?, of_artifact(b)?)),
        [false, false] => Ok((of_model(a, reading, None)?, of_model(b, reading, None)?)),
        [true, false] => {
            let first = of_artifact(a)?;
            let second = of_model(b, reading, first.manifest.as_ref())?;
            Ok((first, second))
        }
        [false, true] => {
            let second = of_artifact(b)?;
            Ok((of_model(a, reading, second.manifest.as_ref())?, second))
        }
    }
}

fn of_artifact(path: &Path) -> Result<Side, Failure> {
    let artifact = artifact::open(path, Default::default())?;
    let constants = 0..artifact.manifest().plan.constants.len();
    Ok(Side {
        path: path.to_path_buf(),
        bytes: file_size(path)?,
        source: artifact.manifest().source.clone(),
        plan: artifact.manifest().plan.clone(),
        constants: constants.map(|i| artifact.constant(i)).collect(),
        manifest: Some(artifact.manifest().clone()),
    })
}

fn of_model(path: &Path, reading: &ModelArgs, like: Option<&Manifest>) -> Result<Side, Failure> {
    let reading = match like {
        Some(like) if reading.is_default() => ModelArgs::like(&like.plan),
        _ => reading.clone(),
    };
    let model = Model::load(&locate(path)?.model, &reading.options(None), |_, _| {})?;
    let Lowered { plan, weights, .. } = match like {
        None => compile_evaluation(&model)?,
        Some(like) => compile_loop(
            &model,
            &LoopOptions {
                sampler: like.sampler.clone(),
                steps: like.steps,
                any_steps: false,
                bf16: None,
            },
        )?,
    };
    let source = SourceModel {
        blake3: model.blake3,
        opset: model.opset,
        producer: model.producer,
        parameters: model.parameters,
    };
    let manifest = like.map(|like| {
        let mut manifest =
            Manifest::new(source.clone(), plan.clone(), like.sampler.clone(), like.steps);
        manifest.guidance = like.guidance;
        manifest.guidance_rescale = like.guidance_rescale;
        manifest.guidance_interval = like.guidance_interval;
        let fits = |(name, fill): &(&String, &cqc_proto::cq::Fill)| {
            plan.inputs.iter().any(|i| i.name == **name && fill.fits(i))
        };
        let fills = like.fills.iter().filter(fits);
        manifest.fills = fills.map(|(name, fill)| (name.clone(), *fill)).collect();
        manifest
    });
    let constants = weights.parts.into_iter().map(|(_, t)| t).collect();
    Ok(Side {
        path: path.to_path_buf(),
        bytes: file_size(path)?,
        source,
        plan,
        constants,
        manifest,
    })
}

fn file_size(path: &Path) -> Result<u64, Failure> {
    Ok(path.metadata().map_err(FileError::reading(path))?.len())
}
