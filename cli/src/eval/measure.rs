//! Samples both sides and measures every pair of samples.

use super::EvalArgs;
use super::extractor::Extractor;
use super::partial::{File, Rows, Setup};
use crate::artifact;
use crate::lockstep::{Chunk, Lockstep};
use crate::report::Failure;
use crate::sampling::SamplingArgs;
use crate::source::SampleSource;
use cachequant::eval::{psnr, ssim};
use cachequant::io::file_hash;
use cachequant::io::to_byte;
use cachequant::recipe::Array;
use cqc_runtime::engine::EngineOptions;
use std::path::Path;

/// Both sides and the extractor, opened.
pub struct Measure {
    /// Describes the comparison.
    pub setup: Setup,
    lockstep: Lockstep,
    extractor: Option<Extractor>,
}

impl Measure {
    pub fn open(args: &EvalArgs, artifact: &Path, reference: &Path) -> Result<Measure, Failure> {
        let candidate =
            SampleSource::new(artifact, artifact::open(artifact, args.map)?, args.steps)?;
        let reference =
            SampleSource::open(reference, args.map, || candidate.trajectory(&args.reading))?;
        let lockstep = Lockstep::open(&reference, &candidate, &args.sampling, args.shard)?;
        let shape = candidate.sample_shape()?;
        let extractor = args.features.as_ref().map(|path| {
            let outputs = [&args.features_output, &args.logits_output].map(Option::as_deref);
            let (batch, threads) =
                (args.sampling.batch(lockstep.request.samples), args.sampling.threads.count());
            Extractor::open(
                path,
                outputs,
                &shape,
                &EngineOptions { batch, threads, ..Default::default() },
            )
        });
        let extractor = extractor.transpose()?;
        if !lockstep.in_step() {
            tracing::warn!("the two make different evaluations: there is no error per evaluation");
        }
        if args.sampling.guidance.is_none() && candidate.guidance() != reference.guidance() {
            let scales = [&candidate, &reference].map(|s| s.guidance());
            tracing::warn!(
                "the two are sampled with their own guidance, {} and {}",
                scales[0],
                scales[1]
            );
        }
        let file = |d: &SampleSource| -> Result<File, Failure> {
            Ok(File { path: d.path.clone(), blake3: d.identity()?, steps: d.steps })
        };
        let setup = Setup {
            format: super::partial::FORMAT,
            artifact: file(&candidate)?,
            reference: file(&reference)?,
            samples: lockstep.total,
            seed: args.sampling.seed,
            guidance: args.sampling.guidance.unwrap_or(candidate.guidance()),
            inputs: inputs_hash(&args.sampling)?,
            shape,
            evaluations: if lockstep.in_step() { lockstep.evaluations() } else { 0 },
            extractor: extractor.as_ref().map(|e| e.identity.clone()),
        };
        Ok(Measure { setup, lockstep, extractor })
    }

    /// Computes and measures all samples.
    pub fn run(&mut self, quiet: bool) -> Result<Rows, Failure> {
        let mut rows = Rows { first: self.lockstep.range.start, ..Rows::default() };
        let mut progress = self.lockstep.progress("sampling", quiet);
        for range in self.lockstep.chunks() {
            let chunk = self.lockstep.run(&range, &mut progress)?;
            self.add(&mut rows, &chunk)?;
        }
        Ok(rows)
    }

    fn add(&mut self, rows: &mut Rows, chunk: &Chunk) -> Result<(), Failure> {
        let len = self.setup.shape.iter().product::<usize>();
        for (found, expected) in
            chunk.candidate.chunks_exact(len).zip(chunk.reference.chunks_exact(len))
        {
            self.add_pair(rows, found, expected);
        }
        rows.trajectory.extend(&chunk.errors);
        if let Some(extractor) = &mut self.extractor {
            for (which, images) in [&chunk.candidate, &chunk.reference].into_iter().enumerate() {
                let extracted = extractor.extract(images)?;
                rows.features[which].extend(extracted.features);
                rows.logits[which].extend(extracted.logits);
            }
        }
        Ok(())
    }

    fn add_pair(&self, rows: &mut Rows, found: &[f32], expected: &[f32]) {
        let square = |x: f64| x * x;
        rows.signal.push(expected.iter().map(|&x| square(x.into())).sum());
        rows.noise.push(psnr::mse(found, expected) * found.len() as f64);
        let (low, high) = expected
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
        rows.low.push(low.into());
        rows.high.push(high.into());
        let Some(size) = self.setup.image_size() else {
            rows.mse.push(psnr::mse(found, expected));
            return;
        };
        let [found, expected] =
            [found, expected].map(|x| x.iter().map(|&v| to_byte(v)).collect::<Vec<u8>>());
        rows.mse.push(psnr::mse(&found, &expected));
        rows.ssim.extend(ssim::ssim(&found, &expected, size));
    }
}

/// A hash of everything that the samples depend on besides the models, the seed and the guidance
/// scale.
fn inputs_hash(args: &SamplingArgs) -> Result<String, Failure> {
    let mut text = format!("labels {:?}, null {:?}", args.labels, args.null_label);
    for named in args.cond.iter().chain(&args.null_cond) {
        let value = match named.array() {
            Array::Number(number) => number.to_string(),
            _ => file_hash(&named.file)?,
        };
        text += &format!(", {} {value}", named.name);
    }
    if let Some(noise) = &args.noise {
        text += &format!(", noise {}", file_hash(noise)?);
    }
    if let Some(rescale) = args.guidance_rescale {
        text += &format!(", rescale {rescale}");
    }
    if let Some(interval) = args.guidance_interval {
        text += &format!(", interval {interval}");
    }
    Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
}
