//! Statistics and features of real images.

use crate::report::Failure;
use cachequant::eval::frechet::Gaussian;
use cachequant::io::file_hash;
use cachequant::io::{FileError, read_array, read_npz};
use cqc_proto::Tensor;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What is given about real images; both may be absent.
pub struct Real {
    /// Mean and covariance, for Frechet distances.
    pub statistics: Option<(Source, Gaussian)>,
    /// Rows of features and their number, for precision and recall.
    pub features: Option<(Source, Vec<f32>, usize)>,
}

/// A file of statistics or features.
#[derive(Clone, Debug, Serialize)]
pub struct Source {
    /// Its path.
    #[serde(serialize_with = "crate::text::lossy")]
    path: PathBuf,
    /// Its hash, in hexadecimal.
    blake3: String,
    /// Number of images from which it was computed, if the file tells.
    pub count: Option<u64>,
}

impl Real {
    /// Reads the files that are given.
    pub fn read(statistics: Option<&Path>, features: Option<&Path>) -> Result<Real, Failure> {
        Ok(Real {
            statistics: statistics.map(read_statistics).transpose()?,
            features: features.map(read_features).transpose()?,
        })
    }

    /// Refuses files of an extractor with another number of features than `wanted`.
    pub fn check_dimensions(&self, wanted: usize) -> Result<(), Failure> {
        let statistics = self.statistics.iter().map(|(source, g)| (source, g.dimensions()));
        let features =
            self.features.iter().map(|(source, rows, count)| (source, rows.len() / count));
        match statistics.chain(features).find(|(_, found)| *found != wanted) {
            Some((source, found)) => {
                Err(Failure::failed(format!("{} is of another extractor", source.path.display()))
                    .fact("wants", format!("{wanted} features"))
                    .fact("seen", format!("{found} features")))
            }
            None => Ok(()),
        }
    }
}

fn read_statistics(path: &Path) -> Result<(Source, Gaussian), Failure> {
    let arrays = read_npz(path)?;
    let find = |names: [&str; 2]| {
        let found = arrays.iter().find(|(name, _)| names.contains(&name.as_str())).map(|(_, t)| t);
        found.ok_or_else(|| FileError::NoArray {
            path: path.to_path_buf(),
            name: names[0].into(),
            known: arrays.iter().map(|(name, _)| name.clone()).collect(),
        })
    };
    let (mean, covariance) = (find(["mean", "mu"])?, find(["cov", "sigma"])?);
    let count = arrays
        .iter()
        .find(|(name, _)| name == "count")
        .and_then(|(_, t)| t.to_i64_vec().first().copied());
    let invalid = |reason| {
        Failure::failed(format!("{} holds no statistics of features", path.display()))
            .fact("seen", reason)
    };
    let gaussian = Gaussian::new(mean.to_f64_vec(), covariance.to_f64_vec()).map_err(invalid)?;
    Ok((source(path, count.and_then(|c| u64::try_from(c).ok()))?, gaussian))
}

fn read_features(path: &Path) -> Result<(Source, Vec<f32>, usize), Failure> {
    let features: Tensor = read_array(path, "features")?;
    let &[count, dimensions] = features.shape() else {
        return Err(Failure::failed(format!("{} holds no features [N,D]", path.display()))
            .fact("seen", features.value_type()));
    };
    if count == 0 || dimensions == 0 {
        return Err(Failure::failed(format!("{} holds no features", path.display()))
            .fact("seen", features.value_type()));
    }
    Ok((source(path, Some(count as u64))?, features.to_f32_vec(), count))
}

fn source(path: &Path, count: Option<u64>) -> Result<Source, Failure> {
    Ok(Source { path: path.to_path_buf(), blake3: file_hash(path)?, count })
}
