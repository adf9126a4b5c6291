//! Values and groups of options that several commands share.

use cachequant::ModelOptions;
use cachequant::model::{RoleOptions, Wire, rest_of, varies};
use cachequant::recipe::FillSpec;
use cachequant::recipe::{Array, Named};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser, ValueParserFactory};
use cqc_passes::onnx::ImportOptions;
use cqc_proto::Dim;
use cqc_proto::dim::is_symbol;
use cqc_proto::plan::{InputRole, Plan, PlanInput};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::str::FromStr;

/// A parser of names of `T`. The help lists them as possible values.
pub fn names<T: Named>() -> impl TypedValueParser<Value = T> {
    let names = T::ALL.iter().map(|(name, _)| *name);
    PossibleValuesParser::new(names).map(|name| T::named(&name).expect("it is listed"))
}

/// The value `NAME=FILE` or `NAME=NUMBER` of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// Name of an input of the model.
    pub name: String,
    /// Path of an array file, or the text of a number.
    pub file: PathBuf,
}

impl NamedFile {
    /// The array that the value stands for. A number fills an array, unless a file has that name.
    pub fn array(&self) -> Array {
        let number = self.file.to_str().and_then(|text| text.parse::<f64>().ok());
        match number.filter(|n| n.is_finite() && !self.file.exists()) {
            Some(number) => Array::Number(number),
            None => Array::File(self.file.clone()),
        }
    }

    /// Splits at the first `=`. NAME must be UTF-8; FILE may be any file name of the system.
    fn parse(text: &OsStr) -> Result<NamedFile, &'static str> {
        let wrong = "expected NAME=FILE or NAME=NUMBER";
        let (name, file) = split_at_equals(text).ok_or(wrong)?;
        if name.is_empty() || file.is_empty() {
            Err(wrong)
        } else {
            Ok(NamedFile { name, file: file.into() })
        }
    }
}

#[cfg(unix)]
fn split_at_equals(text: &OsStr) -> Option<(String, OsString)> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|&b| b == b'=')?;
    let name = std::str::from_utf8(&bytes[..at]).ok()?;
    Some((name.to_string(), OsStr::from_bytes(&bytes[at + 1..]).to_os_string()))
}

#[cfg(not(unix))]
fn split_at_equals(text: &OsStr) -> Option<(String, OsString)> {
    let (name, file) = text.to_str()?.split_once('=')?;
    Some((name.to_string(), file.into()))
}

/// Parses a [`NamedFile`] from an argument that need not be UTF-8.
#[derive(Clone)]
pub struct NamedFileParser;

impl TypedValueParser for NamedFileParser {
    type Value = NamedFile;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<NamedFile, clap::Error> {
        NamedFile::parse(value).map_err(|expected| {
            let argument = argument.map_or_else(|| "...".to_string(), ToString::to_string);
            let value = value.to_string_lossy();
            let text = format!("invalid value '{value}' for '{argument}': {expected}");
            command.clone().error(clap::error::ErrorKind::ValueValidation, text)
        })
    }
}

impl ValueParserFactory for NamedFile {
    type Parser = NamedFileParser;

    fn value_parser() -> NamedFileParser {
        NamedFileParser
    }
}

/// The value `NAME=SHAPE` of `--shape`, as in `sample=1x3x32x32` or `sample=Nx3x32x32`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedShape {
    /// Name of an input of the model.
    pub name: String,
    /// Sizes of its axes; a name stands for a size that stays open.
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

/// The value `NAME=SIZE` of `--dim`, as in `height=64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSize {
    /// Name of a symbolic size of the model.
    pub name: String,
    /// The size that it gets.
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

/// The value `OUTPUT=INPUT` of `--wire`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedWire(pub Wire);

impl FromStr for NamedWire {
    type Err = String;

    fn from_str(text: &str) -> Result<NamedWire, String> {
        let (output, input) = text.split_once('=').ok_or("expected OUTPUT=INPUT")?;
        Ok(NamedWire(Wire { output: output.to_string(), input: input.to_string() }))
    }
}

/// The value `INPUT=KIND` of `--fill`, as in `total_step=steps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFill {
    /// Name of an input of the model.
    pub name: String,
    /// The value that the loop gives to it.
    pub spec: FillSpec,
}

impl FromStr for NamedFill {
    type Err = String;

    fn from_str(text: &str) -> Result<NamedFill, String> {
        let (name, spec) = text.rsplit_once('=').ok_or("expected INPUT=KIND")?;
        let spec = spec.parse().map_err(|e: cachequant::recipe::ParseError| e.to_string())?;
        Ok(NamedFill { name: name.to_string(), spec })
    }
}

/// The value `INDEX/COUNT` of `--shard`: `0/4` is the first of four parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Index of the part, from 0.
    pub index: usize,
    /// Number of parts.
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
    /// The samples of this part among `total`. Parts are consecutive, and their sizes differ by at
    /// most one.
    pub fn range(self, total: usize) -> std::ops::Range<usize> {
        let start = |i: usize| (i as u128 * total as u128 / self.count as u128) as usize;
        start(self.index)..start(self.index + 1)
    }
}

/// How a model is read: sizes that the file leaves open, the roles of its inputs and outputs, and
/// the models that run beside it.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "How the model is read")]
pub struct ModelArgs {
    /// Shape of an input, e.g. sample=1x3x32x32 or sample=Nx3x32x32
    ///
    /// N stands for a batch size that is chosen when the artifact is used. Can be repeated.
    #[arg(long, value_name = "NAME=SHAPE")]
    pub shape: Vec<NamedShape>,
    /// Value of a size that the model leaves open, e.g. height=64
    ///
    /// Can be repeated.
    #[arg(long, value_name = "NAME=SIZE")]
    pub dim: Vec<NamedSize>,
    /// The input that is the sample [default: found by its name, else by its shape]
    #[arg(long, value_name = "NAME")]
    pub sample_input: Option<String>,
    /// The input that is the time step [default: found by its name, else by its shape]
    #[arg(long, value_name = "NAME")]
    pub time_input: Option<String>,
    /// The output that is the prediction [default: found by its name, else by its shape]
    #[arg(long, value_name = "NAME")]
    pub prediction_output: Option<String>,
    /// The first channel of the sample within an input that has more channels than the prediction
    /// [default: 0]
    ///
    /// The other channels of that input become a condition with the name NAME.rest, which --cond
    /// gives.
    #[arg(long, value_name = "FIRST")]
    pub sample_channel: Option<usize>,
    /// A condition that has another value at every evaluation [default: inputs with residual or
    /// control_block in their name]
    ///
    /// Can be repeated.
    #[arg(long, value_name = "INPUT")]
    pub per_step: Vec<String>,
    /// A condition that has one value per request although its name is that of a step condition
    ///
    /// See --per-step. Can be repeated.
    #[arg(long, value_name = "INPUT")]
    pub per_request: Vec<String>,
    /// A second model, such as a ControlNet, that runs at every evaluation and feeds inputs of the
    /// first
    ///
    /// An .onnx file, or a directory with a model.onnx. Can be repeated; what several models feed
    /// to one input is added.
    #[arg(long, value_name = "MODEL", value_parser = companion)]
    pub with: Vec<PathBuf>,
    /// The output of a model of --with that feeds an input of the first model [default: found by
    /// names, shapes and order]
    ///
    /// Can be repeated.
    #[arg(long, value_name = "OUTPUT=INPUT", requires = "with")]
    pub wire: Vec<NamedWire>,
}

/// The path as given, or that of the `model.onnx` in a directory.
fn companion(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if !path.is_dir() {
        return Ok(path);
    }
    let file = path.join("model.onnx");
    if file.is_file() { Ok(file) } else { Err("the directory holds no model.onnx".into()) }
}

impl ModelArgs {
    /// These options; or where only companions are given, the ones of [`ModelArgs::like`] for
    /// `plan`.
    pub fn or_like(&self, plan: &Plan) -> ModelArgs {
        let (with, wire) = (self.with.clone(), self.wire.clone());
        let bare = ModelArgs { with: Vec::new(), wire: Vec::new(), ..self.clone() };
        if bare.is_default() {
            ModelArgs { with, wire, ..ModelArgs::like(plan) }
        } else {
            self.clone()
        }
    }

    /// Options that read a model with the sizes and roles of `plan`, so that the two can be
    /// compared.
    pub fn like(plan: &Plan) -> ModelArgs {
        let shape = |i: &PlanInput| NamedShape { name: i.name.clone(), shape: i.ty.shape.clone() };
        // The roles that follow from the names of the inputs need no option.
        let unlike = |role: InputRole, by_name: bool| {
            let inputs =
                plan.inputs.iter().filter(|i| i.role == role && varies(&i.name) != by_name);
            inputs.map(|i| i.name.clone()).collect::<Vec<_>>()
        };
        let name = |role| plan.inputs.iter().find(|i| i.role == role).map(|i| i.name.clone());
        let mut args = ModelArgs {
            shape: plan.inputs.iter().map(shape).collect(),
            sample_input: name(InputRole::Sample),
            time_input: name(InputRole::Timestep),
            prediction_output: plan.outputs.first().map(|o| o.name.clone()),
            per_step: unlike(InputRole::StepCondition, true),
            per_request: unlike(InputRole::Condition, false),
            ..ModelArgs::default()
        };
        // Where the plan's sample is a part of the model's input, the size of that input is fixed
        // by the model.
        let sample = args.sample_input.clone().unwrap_or_default();
        let rest = rest_of(&sample);
        if args.shape.iter().any(|s| s.name == rest) {
            args.shape.retain(|s| s.name != sample && s.name != rest);
        }
        args
    }

    /// Whether no option was given.
    pub fn is_default(&self) -> bool {
        *self == ModelArgs::default()
    }

    /// The options as text, one `--option value` each, for messages that print a command.
    pub fn to_options(&self) -> Vec<String> {
        let shape = |s: &NamedShape| {
            let sizes: Vec<String> = s.shape.iter().map(Dim::to_string).collect();
            format!("--shape {}={}", s.name, sizes.join("x"))
        };
        let dims = self.dim.iter().map(|d| format!("--dim {}={}", d.name, d.size));
        let roles = [
            ("sample-input", self.sample_input.clone()),
            ("time-input", self.time_input.clone()),
            ("prediction-output", self.prediction_output.clone()),
            ("sample-channel", self.sample_channel.map(|first| first.to_string())),
        ];
        let roles =
            roles.into_iter().filter_map(|(option, name)| Some(format!("--{option} {}", name?)));
        let lists = [("per-step", &self.per_step), ("per-request", &self.per_request)];
        let lists = lists
            .into_iter()
            .flat_map(|(option, names)| names.iter().map(move |name| format!("--{option} {name}")));
        let with = self.with.iter().map(|path| format!("--with {}", path.display()));
        let wires = self.wire.iter().map(|NamedWire(w)| format!("--wire {}={}", w.output, w.input));
        self.shape
            .iter()
            .map(shape)
            .chain(dims)
            .chain(roles)
            .chain(lists)
            .chain(with)
            .chain(wires)
            .collect()
    }

    /// Options for [`cachequant::Model::load`], of which only the first `stop_after` passes run.
    pub fn options(&self, stop_after: Option<usize>) -> ModelOptions {
        ModelOptions {
            import: ImportOptions {
                dims: self.dim.iter().map(|d| (d.name.clone(), d.size)).collect(),
                shapes: self.shape.iter().map(|s| (s.name.clone(), s.shape.clone())).collect(),
                ..ImportOptions::default()
            },
            stop_after,
            roles: RoleOptions {
                sample_input: self.sample_input.clone(),
                time_input: self.time_input.clone(),
                prediction_output: self.prediction_output.clone(),
                sample_channel: self.sample_channel,
                per_step: self.per_step.clone(),
                per_request: self.per_request.clone(),
            },
            with: self.with.clone(),
            wires: self.wire.iter().map(|w| w.0.clone()).collect(),
        }
    }
}

/// The option `--threads`.
#[derive(Args, Clone, Debug, Default)]
pub struct Threads {
    /// Number of threads, 1 to 1024 [default: one per core]
    ///
    /// Results do not depend on it.
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

impl Threads {
    /// The number as given; `None` without the option.
    pub fn given(&self) -> Option<usize> {
        self.threads.map(usize::from)
    }

    /// The number as given, or the number of cores.
    pub fn count(&self) -> usize {
        self.threads.map_or_else(
            || std::thread::available_parallelism().map_or(1, usize::from),
            usize::from,
        )
    }
}

/// A number of bytes, as in `64M`, `2G` or `1.5GiB`. Units are powers of 1024.
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

/// Options for reading an artifact's file.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct MapArgs {
    /// .cq: read the whole file into memory instead of mapping it
    ///
    /// Use it for files that another program may shorten or rewrite in the meantime, for example on
    /// a network drive.
    #[arg(long)]
    pub no_mmap: bool,
}

/// Options for reading an artifact's file and keeping its packed weights.
#[derive(Args, Clone, Debug, Default)]
pub struct PackCacheArgs {
    #[command(flatten)]
    pub map: MapArgs,
    /// .cq: directory that keeps the weights as this CPU reads them [default: none]
    ///
    /// Later starts then need not rearrange the weights. The file is about as large as the
    /// artifact. It is written at the first start and may be deleted at any time.
    #[arg(long, value_name = "DIR", env = "CQC_PACK_CACHE", hide_env_values = true)]
    pub pack_cache: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_what_separates() {
        let file = NamedFile::parse(OsStr::new("x=a=b.npy")).unwrap();
        assert_eq!((file.name.as_str(), file.file), ("x", "a=b.npy".into()));
        let shape: NamedShape = "a=b:0=1x3xN".parse().unwrap();
        assert_eq!((shape.name.as_str(), shape.shape.len()), ("a=b:0", 3));
        assert_eq!("t=".parse::<NamedShape>().unwrap().shape, vec![], "a scalar");
        for bad in ["x", "x=1x", "x=-1", "x=1x3.0", "x=4294967296"] {
            assert!(bad.parse::<NamedShape>().is_err(), "{bad}");
        }
        for bad in ["x", "=f", "x="] {
            assert!(NamedFile::parse(OsStr::new(bad)).is_err(), "{bad}");
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
