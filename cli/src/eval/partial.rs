//! The measurements, one row per sample, and the files that hold them.
//!
//! Figures are computed from these rows alone and in their order, so merged parts give exactly the
//! figures of one run. A part is an `.npz` of the columns of [`Rows`]; `setup` is the JSON of
//! [`Setup`] as bytes, and `first` the index of its first sample.

use super::extractor;
use crate::report::Failure;
use cachequant::io::{Overwrite, read_npz, write_npz};
use cqc_proto::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Version of the format of these files.
pub const FORMAT: u32 = 1;

/// Describes the comparison.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// [`FORMAT`] of the program that wrote the part.
    pub format: u32,
    /// The artifact.
    pub artifact: File,
    /// The reference.
    pub reference: File,
    /// Number of samples of all shards.
    pub samples: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Guidance scale of the artifact.
    pub guidance: f32,
    /// Hash of the labels, the conditions and the given noise.
    pub inputs: String,
    /// Shape of a sample, without the axis of the batch.
    pub shape: Vec<usize>,
    /// Number of evaluations; 0 if the two make different ones.
    pub evaluations: usize,
    /// The model that computed the features.
    pub extractor: Option<extractor::Identity>,
}

/// The file of one side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct File {
    /// Its path.
    #[serde(serialize_with = "crate::text::lossy")]
    pub path: PathBuf,
    /// Its hash, in hexadecimal.
    pub blake3: String,
    /// Number of sampler steps.
    pub steps: usize,
}

impl Setup {
    /// Channels, height and width, if the samples are images.
    pub fn image_size(&self) -> Option<[usize; 3]> {
        match self.shape[..] {
            [c @ (1 | 3), h, w] => Some([c, h, w]),
            _ => None,
        }
    }

    /// Whether the samples have an SSIM: they are images and at least as large as its window.
    pub fn has_ssim(&self) -> bool {
        self.image_size().is_some_and(|[_, h, w]| h >= 11 && w >= 11)
    }

    /// The facts in which the parts of one comparison agree: everything but the names of files.
    fn key(&self) -> String {
        let extractor = self.extractor.as_ref().map(|e| (&e.blake3, &e.output, &e.logits_output));
        let files = [&self.artifact, &self.reference].map(|f| (&f.blake3, f.steps));
        let counts = (self.format, self.samples, self.seed, self.guidance, self.evaluations);
        format!("{files:?} {counts:?} {} {:?} {extractor:?}", self.inputs, self.shape)
    }
}

/// The measurements: one row per sample in every column that is used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// Index of the first sample.
    pub first: usize,
    /// Mean square error: of bytes if the samples are images, else of floats.
    pub mse: Vec<f64>,
    /// SSIM of images that are large enough.
    pub ssim: Vec<f64>,
    /// Σx² of the reference.
    pub signal: Vec<f64>,
    /// Σ(x−y)².
    pub noise: Vec<f64>,
    /// Smallest element of the reference.
    pub low: Vec<f64>,
    /// Largest element of the reference.
    pub high: Vec<f64>,
    /// Relative error after every evaluation.
    pub trajectory: Vec<f64>,
    /// Features of the artifact's samples and of the reference's.
    pub features: [Vec<f32>; 2],
    /// Logits of the artifact's samples and of the reference's.
    pub logits: [Vec<f32>; 2],
}

impl Rows {
    /// Number of samples.
    pub fn count(&self) -> usize {
        self.mse.len()
    }

    /// The columns by name.
    fn columns(&mut self) -> [(&'static str, Column<'_>); 11] {
        use Column::{F32, F64};
        let [features_a, features_r] = &mut self.features;
        let [logits_a, logits_r] = &mut self.logits;
        [
            ("mse", F64(&mut self.mse)),
            ("ssim", F64(&mut self.ssim)),
            ("signal", F64(&mut self.signal)),
            ("noise", F64(&mut self.noise)),
            ("low", F64(&mut self.low)),
            ("high", F64(&mut self.high)),
            ("trajectory", F64(&mut self.trajectory)),
            ("features", F32(features_a)),
            ("reference_features", F32(features_r)),
            ("logits", F32(logits_a)),
            ("reference_logits", F32(logits_r)),
        ]
    }

    /// Elements per sample of each column.
    fn widths(setup: &Setup) -> [usize; 11] {
        let (d, classes) = setup.extractor.as_ref().map_or((0, 0), |e| (e.dimensions, e.classes));
        let ssim = usize::from(setup.has_ssim());
        [1, ssim, 1, 1, 1, 1, setup.evaluations, d, d, classes, classes]
    }

    fn append(&mut self, mut other: Rows) {
        for ((_, to), (_, from)) in self.columns().into_iter().zip(other.columns()) {
            match (to, from) {
                (Column::F64(to), Column::F64(from)) => to.append(from),
                (Column::F32(to), Column::F32(from)) => to.append(from),
                _ => unreachable!("the columns of all rows have the same types"),
            }
        }
    }
}

enum Column<'a> {
    F32(&'a mut Vec<f32>),
    F64(&'a mut Vec<f64>),
}

/// Writes a part.
pub fn write(path: &Path, setup: &Setup, rows: &Rows, overwrite: Overwrite) -> Result<(), Failure> {
    let json = serde_json::to_vec(setup)
        .map_err(|e| Failure::failed(format!("cannot write JSON: {e}")))?;
    let tensor = |dtype, shape: Vec<usize>, bytes: Vec<u8>| {
        Tensor::new(dtype, shape, bytes).map_err(|e| Failure::failed(e.to_string()))
    };
    let mut arrays = vec![
        ("setup".to_string(), tensor(DType::U8, vec![json.len()], json)?),
        ("first".to_string(), Tensor::from_i64(&[], &[rows.first as i64])),
    ];
    let (mut rows, count) = (rows.clone(), rows.count());
    for ((name, column), width) in rows.columns().into_iter().zip(Rows::widths(setup)) {
        let array = match column {
            Column::F32(v) => Tensor::from_f32(&[count, width], v),
            Column::F64(v) => tensor(
                DType::F64,
                vec![count, width],
                v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            )?,
        };
        arrays.push((name.to_string(), array));
    }
    Ok(write_npz(path, &arrays, overwrite)?)
}

fn read(path: &Path) -> Result<(Setup, Rows), Failure> {
    let arrays = read_npz(path)?;
    let invalid = |reason: String| {
        Failure::failed(format!("{} is not a part of an evaluation", path.display()))
            .fact("seen", reason)
            .help("cqc eval … --shard I/COUNT --partial P.npz writes parts")
    };
    let find = |name: &str| {
        let found = arrays.iter().find(|(n, _)| n == name).map(|(_, t)| t);
        found.ok_or_else(|| invalid(format!("it has no array `{name}`")))
    };
    let setup: Setup =
        serde_json::from_slice(find("setup")?.bytes()).map_err(|e| invalid(e.to_string()))?;
    if setup.format != FORMAT {
        return Err(invalid(format!("its format is {}, expected {FORMAT}", setup.format)));
    }
    let first = find("first")?.to_i64_vec().first().and_then(|&i| usize::try_from(i).ok());
    let first = first.ok_or_else(|| invalid("`first` is no number of a sample".into()))?;
    let count = find("mse")?.len();
    let mut rows = Rows { first, ..Rows::default() };
    for ((name, column), width) in rows.columns().into_iter().zip(Rows::widths(&setup)) {
        let array = find(name)?;
        if array.shape() != [count, width] {
            return Err(invalid(format!(
                "`{name}` is {:?}, expected {:?}",
                array.shape(),
                [count, width]
            )));
        }
        match column {
            Column::F32(v) => *v = array.to_f32_vec(),
            Column::F64(v) => *v = array.to_f64_vec(),
        }
    }
    Ok((setup, rows))
}

/// Merges all parts of a comparison, given in any order.
pub fn merge(paths: &[PathBuf]) -> Result<(Setup, Rows), Failure> {
    let mut parts = paths.iter().map(|p| Ok((p, read(p)?))).collect::<Result<Vec<_>, Failure>>()?;
    parts.sort_by_key(|(_, (_, rows))| rows.first);
    let mut parts = parts.into_iter();
    let Some((first_path, (setup, mut all))) = parts.next() else {
        return Err(Failure::usage("there are no parts to merge").help("--merge P.npz …"));
    };
    let missing = |from: usize, to: usize| {
        Failure::usage(format!("samples {from} to {} are in no part", to - 1))
            .help("give the parts of all shards")
    };
    if all.first > 0 {
        return Err(missing(0, all.first));
    }
    for (path, (other, rows)) in parts {
        if other.key() != setup.key() {
            let both = format!("{}\n{}", first_path.display(), path.display());
            return Err(Failure::usage("the parts are of different evaluations").fact("seen", both));
        }
        match rows.first.checked_sub(all.count()) {
            Some(0) => all.append(rows),
            Some(_) => return Err(missing(all.count(), rows.first)),
            None => {
                return Err(Failure::usage(format!("sample {} is in two parts", rows.first))
                    .fact("seen", path.display()));
            }
        }
    }
    if all.count() < setup.samples {
        return Err(missing(all.count(), setup.samples));
    }
    Ok((setup, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> Setup {
        let file = |name: &str| File { path: name.into(), blake3: name.into(), steps: 3 };
        Setup {
            format: FORMAT,
            artifact: file("a"),
            reference: file("r"),
            samples: 5,
            seed: 1,
            guidance: 1.0,
            inputs: String::new(),
            shape: vec![4, 2, 2],
            evaluations: 3,
            extractor: None,
        }
    }

    fn rows(range: std::ops::Range<usize>) -> Rows {
        let column = |scale: f64| range.clone().map(|i| i as f64 * scale).collect::<Vec<f64>>();
        let trajectory = range.clone().flat_map(|i| [i as f64, 0.5, 0.25]).collect();
        let (mse, signal, noise, low, high) =
            (column(1.0), column(2.0), column(0.1), column(-1.0), column(3.0));
        Rows { first: range.start, mse, signal, noise, low, high, trajectory, ..Rows::default() }
    }

    #[test]
    fn parts_make_the_whole_in_any_order_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let part = |name: &str, setup: &Setup, range| {
            let path = dir.path().join(name);
            write(&path, setup, &rows(range), Overwrite::Refuse).unwrap();
            path
        };
        let (a, b, c) =
            (part("a", &setup(), 0..2), part("b", &setup(), 2..3), part("c", &setup(), 3..5));
        let (_, whole) = merge(&[c.clone(), a.clone(), b.clone()]).unwrap();
        assert_eq!(whole, rows(0..5));
        let said = |paths: &[PathBuf]| merge(paths).unwrap_err().to_string();
        assert!(said(&[b.clone(), c.clone()]).contains("samples 0 to 1 are in no part"));
        assert!(said(&[a.clone(), c.clone()]).contains("samples 2 to 2 are in no part"));
        assert!(said(&[a.clone(), b.clone()]).contains("samples 3 to 4 are in no part"));
        assert!(said(&[a.clone(), b.clone(), b.clone(), c.clone()]).contains("in two parts"));
        let other = part("d", &Setup { seed: 2, ..setup() }, 2..3);
        assert!(said(&[a, other, c]).contains("different evaluations"));
    }
}
