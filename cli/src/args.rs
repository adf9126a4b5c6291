//! Values that options share.

use cachequant::recipe::Named;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use cqc_proto::Dim;
use cqc_proto::dim::is_symbol;
use std::path::PathBuf;
use std::str::FromStr;

/// Parses a choice by its name; help lists the names.
pub fn names<T: Named>() -> impl TypedValueParser<Value = T> {
    let names = T::ALL.iter().map(|(name, _)| *name);
    PossibleValuesParser::new(names).map(|name| T::named(&name).expect("it is listed"))
}

/// `NAME=FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// Name of an input.
    pub name: String,
    /// An array.
    pub file: PathBuf,
}

impl FromStr for NamedFile {
    type Err = String;

    fn from_str(text: &str) -> Result<NamedFile, String> {
        match text.split_once('=') {
            Some((name, file)) if !name.is_empty() && !file.is_empty() => {
                Ok(NamedFile { name: name.to_string(), file: file.into() })
            }
            _ => Err("expected NAME=FILE".into()),
        }
    }
}

/// `sample=1x3x32x32`, `sample=Nx3x32x32`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedShape {
    /// Name of an input.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<Dim>,
}

impl FromStr for NamedShape {
    type Err = String;

    fn from_str(text: &str) -> Result<NamedShape, String> {
        let wrong =
            || "expected NAME=SIZExSIZEx…, a SIZE being a number or N for the batch".to_string();
        let (name, sizes) = text.rsplit_once('=').ok_or_else(wrong)?;
        let size = |s: &str| {
            s.parse::<u32>()
                .map(|n| Dim::constant(n.into()))
                .ok()
                .or_else(|| is_symbol(s).then(|| Dim::symbol(s)))
        };
        let shape = sizes
            .split('x')
            .filter(|_| !sizes.is_empty())
            .map(size)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(wrong)?;
        Ok(NamedShape { name: name.to_string(), shape })
    }
}

/// `height=64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSize {
    /// Name of a symbolic size.
    pub name: String,
    /// Its value.
    pub size: i64,
}

impl FromStr for NamedSize {
    type Err = String;

    fn from_str(text: &str) -> Result<NamedSize, String> {
        let (name, size) = text.rsplit_once('=').ok_or("expected NAME=SIZE")?;
        let size = size.parse::<u32>().map_err(|_| format!("`{size}` is no size"))?;
        Ok(NamedSize { name: name.to_string(), size: size.into() })
    }
}

/// `0/4`: the first of four parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Shard, String> {
        let parts =
            text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        let (index, count) = parts.ok_or("expected INDEX/COUNT, as in 0/4")?;
        if index >= count {
            return Err(format!(
                "indices of {count} shards are 0 to {}",
                usize::saturating_sub(count, 1)
            ));
        }
        Ok(Shard { index, count })
    }
}

impl Shard {
    /// Which of `total` samples belong to it: consecutive, and as many as in any other shard, or
    /// one more.
    pub fn range(self, total: usize) -> std::ops::Range<usize> {
        let start = |i: usize| (i as u128 * total as u128 / self.count as u128) as usize;
        start(self.index)..start(self.index + 1)
    }
}

/// Sizes that the model leaves open.
#[derive(Args, Clone, Debug, Default)]
pub struct Sizes {
    /// Shape of an input, e.g. sample=1x3x32x32; N stands for a batch chosen later. Repeatable
    #[arg(long, value_name = "NAME=SHAPE")]
    pub shape: Vec<NamedShape>,
    /// Value of a symbolic size, e.g. height=64. Repeatable
    #[arg(long, value_name = "NAME=SIZE")]
    pub dim: Vec<NamedSize>,
}

impl Sizes {
    /// Those of another model's inputs.
    pub fn of(inputs: &[cqc_proto::plan::PlanInput]) -> Sizes {
        let shape = |i: &cqc_proto::plan::PlanInput| NamedShape {
            name: i.name.clone(),
            shape: i.ty.shape.clone(),
        };
        Sizes { shape: inputs.iter().map(shape).collect(), dim: vec![] }
    }

    /// For the importer.
    pub fn import_options(&self) -> cqc_passes::onnx::ImportOptions {
        cqc_passes::onnx::ImportOptions {
            dims: self.dim.iter().map(|d| (d.name.clone(), d.size)).collect(),
            shapes: self.shape.iter().map(|s| (s.name.clone(), s.shape.clone())).collect(),
            ..Default::default()
        }
    }
}

/// How many threads.
#[derive(Args, Clone, Debug, Default)]
pub struct Threads {
    /// Threads [default: one per core]. Results do not depend on it
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

impl Threads {
    /// As given on the command line.
    pub fn given(&self) -> Option<usize> {
        self.threads.map(usize::from)
    }

    /// As given, or the number of cores.
    pub fn count(&self) -> usize {
        self.threads.map_or_else(
            || std::thread::available_parallelism().map_or(1, usize::from),
            usize::from,
        )
    }
}

/// `64M`, `2G`, `1.5GiB`: bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub usize);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteSize, String> {
        let wrong = || "expected a size such as 512M, 2G or 1.5GiB (powers of 1024)".to_string();
        let lower = text.trim().to_ascii_lowercase();
        let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match lower[number.len()..].trim_end_matches("ib").trim_end_matches('b') {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err(wrong()),
        };
        let number: f64 = number.trim().parse().map_err(|_| wrong())?;
        let bytes = number * (1u64 << shift) as f64;
        if !(1.0..=(1u64 << 60) as f64).contains(&bytes) {
            return Err(wrong());
        }
        Ok(ByteSize(bytes as usize))
    }
}

/// How the file of an artifact is read.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct MapArgs {
    /// .cq: read the whole file into memory instead of mapping it: for files that somebody may
    /// shorten or rewrite meanwhile, such as on a network drive
    #[arg(long)]
    pub no_mmap: bool,
}

/// Where packed weights are kept, and how files are read.
#[derive(Args, Clone, Debug, Default)]
pub struct PackCacheArgs {
    #[command(flatten)]
    pub map: MapArgs,
    /// .cq: folder that keeps the weights as this CPU reads them, so that the next start need not
    /// lay them out again: as large as the artifact, written at the first start, and may be deleted
    /// at any time [default: none]
    #[arg(long, value_name = "DIR", env = "CQC_PACK_CACHE", hide_env_values = true)]
    pub pack_cache: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_what_separates() {
        let file: NamedFile = "x=a=b.npy".parse().unwrap();
        assert_eq!((file.name.as_str(), file.file), ("x", "a=b.npy".into()));
        let shape: NamedShape = "a=b:0=1x3xN".parse().unwrap();
        assert_eq!((shape.name.as_str(), shape.shape.len()), ("a=b:0", 3));
        assert_eq!("t=".parse::<NamedShape>().unwrap().shape, vec![], "a scalar");
        for bad in ["x", "x=1x", "x=-1", "x=1x3.0", "x=4294967296"] {
            assert!(bad.parse::<NamedShape>().is_err(), "{bad}");
        }
        for bad in ["x", "=f", "x="] {
            assert!(bad.parse::<NamedFile>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        let sizes = [
            ("1", 1),
            ("512M", 512 << 20),
            ("2g", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("64 kb", 64 << 10),
            ("3KiB", 3 << 10),
        ];
        for (text, bytes) in sizes {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in ["", "0", "-1G", "G", "1X", "nan", "inf", "1e30", "1 MG"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shards_are_a_partition() {
        for (total, count) in [(0, 1), (1, 3), (10, 3), (7, 7), (16, 5)] {
            let ranges: Vec<_> =
                (0..count).map(|index| Shard { index, count }.range(total)).collect();
            assert_eq!((ranges[0].start, ranges[count - 1].end), (0, total));
            assert!(ranges.windows(2).all(|w| w[0].end == w[1].start));
            assert!(ranges.iter().all(|r| r.len().abs_diff(total / count) <= 1));
        }
        for bad in ["", "1", "1/1", "3/2", "-1/2", "0/0", "a/b"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }
}
