//! The options that `sample`, `eval` and `bisect` share, and the request that they describe.

use super::args::{NamedFile, Shard, Threads};
use super::artifact::expect_label_input;
use super::prompt::Pictures;
use super::report::Failure;
use super::request;
use super::source::SampleSource;
use cachequant::io::read_array;
use clap::Args;
use cqc_proto::Tensor;
use cqc_proto::cq::{GuidanceInterval, Manifest};
use cqc_proto::plan::{InputRole, Plan};
use cqc_runtime::artifact::labels as labels_of;
use cqc_runtime::denoise::{Request, check_request, rows_at};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

const DEFAULT_BATCH: usize = 8;

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Samples and conditions")]
pub struct SamplingArgs {
    /// Number of samples, at least 1 [default: as many as --noise has, else 1]
    #[arg(short = 'n', long, value_name = "N")]
    pub samples: Option<usize>,
    /// Seed of the initial noise and of the noise that steps add
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Initial noise of unit variance, instead of noise from --seed
    ///
    /// A .npy file, or a .npz file with an array `noise`, of shape [N,C,H,W] or [N, ...] as the
    /// model's sample.
    #[arg(long, value_name = "FILE")]
    pub noise: Option<PathBuf>,
    /// Class labels, repeated over the samples in turn
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', allow_negative_numbers = true)]
    pub labels: Vec<i64>,
    /// Value of a conditioning input
    ///
    /// FILE is a .npy or .npz array with one row per sample, or one row for all samples, or a .png
    /// with one image, whose pixels become -1 to 1. A number fills the whole input. An input that
    /// has another value at every evaluation takes [evaluations, rows, ...]. Can be repeated.
    #[arg(long, value_name = "NAME=FILE|NUMBER")]
    pub cond: Vec<NamedFile>,
    /// Guidance scale, 0 or more; 1 means no guidance [default: the artifact's]
    ///
    /// With a scale of 1 only the conditional half is computed, and null conditions are not used.
    /// Where the network takes the scale as an input, the scale goes to that input.
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub guidance: Option<f32>,
    /// How far guidance rescales its prediction to the standard deviation of the conditional one, 0
    /// to 1 [default: the artifact's]
    #[arg(long, value_name = "PHI", allow_negative_numbers = true)]
    pub guidance_rescale: Option<f32>,
    /// The part of the steps in which guidance applies, as shares of their number, e.g. 0.2..0.8
    /// [default: the artifact's]
    ///
    /// The other steps compute the conditional half alone.
    #[arg(long, value_name = "FROM..TO", allow_hyphen_values = true)]
    pub guidance_interval: Option<GuidanceInterval>,
    /// Class label for the unconditional half of guidance [default: the artifact's]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub null_label: Option<i64>,
    /// Value of an input for the unconditional half of guidance [default: the artifact's]
    ///
    /// FILE is a .npy or .npz array of one row. Can be repeated.
    #[arg(long, value_name = "NAME=FILE|NUMBER")]
    pub null_cond: Vec<NamedFile>,
    /// Number of samples that are computed at once, at least 1 [default: 8, or all if there are
    /// fewer]
    ///
    /// A smaller batch needs less memory. Results do not depend on it.
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: Option<u32>,
    #[command(flatten)]
    pub threads: Threads,
}

/// The samples to compute.
pub struct Selected {
    /// The request for these samples.
    pub request: Request,
    /// Their indices among all samples.
    pub range: Range<usize>,
    /// Number of samples of all shards together.
    pub total: usize,
}

impl SamplingArgs {
    /// Number of samples that are computed at once, where `samples` are to be computed.
    pub fn batch(&self, samples: usize) -> usize {
        self.batch.map_or(DEFAULT_BATCH.min(samples), |b| b as usize)
    }

    /// The request to a denoiser for the samples of `shard`, or for all samples.
    pub fn request(
        &self,
        denoiser: &SampleSource,
        shard: Option<Shard>,
        pictures: &Pictures,
    ) -> Result<Selected, Failure> {
        let noise = self.noise.as_ref().map(|path| read_array(path, "noise")).transpose()?;
        let rows = noise.as_ref().map(|t| t.shape().first().copied().unwrap_or(0));
        let total = self.samples.or(rows).unwrap_or(1);
        if total == 0 {
            return Err(Failure::usage("the number of samples is 0").help("-n 1 or more"));
        }
        if let Some(rows) = rows.filter(|&rows| rows < total) {
            return Err(Failure::usage(format!("--noise has {rows} samples, -n asks for {total}")));
        }
        let noise = noise.map(|t| rows_at(&t, 0, &(0..total)));
        let range = shard.map_or(0..total, |shard| shard.range(total));
        if range.is_empty() {
            return Err(Failure::usage(format!("the shard has none of the {total} samples"))
                .help("fewer shards"));
        }
        let plan = denoiser.plan();
        let [mut conditions, negative] = pictures.conditions(total)?;
        conditions.extend(request::read_named(&self.cond)?);
        if !self.labels.is_empty() {
            let input = expect_label_input(&plan.inputs)?;
            let labels: Vec<i64> = (0..total).map(|i| self.labels[i % self.labels.len()]).collect();
            conditions.insert(input.name.clone(), labels_of(input, &labels));
        }
        let manifest = denoiser.artifact.manifest();
        check_conditions(manifest, &conditions)?;
        let guidance = self.guidance.unwrap_or(denoiser.guidance());
        if guidance != 1.0 && !manifest.takes_guidance() && conditions.is_empty() {
            return Err(Failure::usage(format!(
                "--guidance {guidance}: the model has no condition that could guide it"
            )));
        }
        let (step_conditions, conditions) = per_step(plan, conditions);
        let (unconditional_steps, unconditional) =
            per_step(plan, self.unconditional(denoiser, negative)?);
        let request = Request {
            samples: total,
            seed: self.seed,
            first: 0,
            noise,
            conditions,
            step_conditions,
            unconditional_steps,
            unconditional,
            guidance: Some(guidance),
            guidance_rescale: self.guidance_rescale,
            guidance_interval: self.guidance_interval,
            ..Request::default()
        };
        let request = request.part(range.clone());
        check_request(plan, &request)?;
        Ok(Selected { request, range, total })
    }

    /// The null conditions: those of the artifact, replaced by those of the command line.
    fn unconditional(
        &self,
        denoiser: &SampleSource,
        negative: BTreeMap<String, Tensor>,
    ) -> Result<BTreeMap<String, Tensor>, Failure> {
        let mut values = denoiser.null.clone();
        values.extend(negative);
        if let Some(label) = self.null_label {
            let input = expect_label_input(&denoiser.plan().inputs)?;
            values.insert(input.name.clone(), labels_of(input, &[label]));
        }
        values.extend(request::read_named(&self.null_cond)?);
        Ok(values)
    }
}

/// Divides values by input into those with an axis of evaluations and those that hold for the
/// request.
fn per_step(
    plan: &Plan,
    values: BTreeMap<String, Tensor>,
) -> (BTreeMap<String, Tensor>, BTreeMap<String, Tensor>) {
    let varies = |name: &String, t: &Tensor| {
        let input = plan.inputs.iter().find(|i| i.name == *name);
        input.is_some_and(|i| {
            i.role == InputRole::StepCondition && t.shape().len() == i.ty.rank() + 1
        })
    };
    values.into_iter().partition(|(name, t)| varies(name, t))
}

fn check_conditions(manifest: &Manifest, given: &BTreeMap<String, Tensor>) -> Result<(), Failure> {
    let mut conditions = manifest.plan.inputs.iter().filter(|i| i.role.is_condition());
    let filled = |name| given.contains_key(name) || manifest.fills.contains_key(name);
    let Some(missing) = conditions.find(|i| !filled(&i.name)) else { return Ok(()) };
    let labels = if missing.ty.dtype.is_integer() { "--labels A,B,.. or " } else { "" };
    Err(Failure::usage(format!("input `{}` is missing", missing.name))
        .fact("wants", &missing.ty)
        .help(format!("{labels}--cond {}=FILE.npy", missing.name)))
}
