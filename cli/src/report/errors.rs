//! Turns the errors of the libraries into failures: it chooses the exit code, the facts and the
//! advice.

use super::{Exit, Failure};
use crate::start;
use crate::text::bytes;
use cachequant::calibrate::CalibrateError;
use cachequant::calibrate::quantize::QuantizeError;
use cachequant::compile::{CompileError, ConditionError, ProgramError};
use cachequant::io::FileError;
use cachequant::model::{ModelError, PLACES};
use cachequant::pipeline::DirectoryError;
use cachequant::reading::Misread;
use cachequant::recipe::Contradiction;
use cachequant::sizes;
use cqc_kernels::memory::{Bound, NoMemory};
use cqc_passes::bind::BindError;
use cqc_passes::cache::CutError;
use cqc_passes::onnx::{DataFile, ImportError, OpenSize};
use cqc_proto::sampler::SamplerConfigError;
use cqc_runtime::denoise::DenoiseError;
use cqc_runtime::engine::EngineError;
use cqc_runtime::retime::RetimeError;
use cqc_runtime::sampler::SamplerError;
use std::path::Path;

impl From<FileError> for Failure {
    fn from(e: FileError) -> Failure {
        let what = e.to_string();
        match e {
            FileError::Io { .. } => Failure::failed(what),
            FileError::Exists { .. } => Failure::failed(what).help("--force replaces it"),
            FileError::Format { path, format, reason } => {
                Failure::failed(format!("{} is not a valid {format} file", path.display()))
                    .fact("seen", reason)
            }
            FileError::NoArray { known, .. } if known.is_empty() => {
                Failure::failed(what).fact("seen", "no arrays")
            }
            FileError::NoArray { known, .. } => {
                Failure::failed(what).fact("seen", known.join(", "))
            }
            FileError::OtherPartial { path, differences } => {
                let failure = Failure::failed(what);
                let line = |(key, was, is): (String, String, String)| {
                    format!("{key}: {was} there, {is} here")
                };
                differences
                    .into_iter()
                    .map(line)
                    .fold(failure, |f, line| f.fact("seen", line))
                    .help(format!("--force discards it; or remove {}", path.display()))
            }
            FileError::InTheWay { .. } => {
                Failure::failed(what).help("rename or remove it, or choose another output")
            }
            FileError::InUse { .. } => Failure::failed(what).help("wait for it, or end it"),
            FileError::CannotHold { help, .. } => Failure::usage(what).help(help),
        }
    }
}

/// The failure for a network that does not predict what the sampler expects.
fn misread_model(misread: Misread) -> Failure {
    let Misread { name, score, fits, tried } = misread;
    let failure = Failure::new(
        Exit::Unsupported,
        format!("the model does not predict what the sampler expects ({name}); its samples would be noise"),
    )
    .fact("seen", score);
    match fits {
        Some((name, score, options)) => failure
            .fact("fits", format!("{name}; {score}"))
            .help(options)
            .help("--trust compiles it as it is"),
        None => failure
            .fact(
                "tried",
                format!("{tried} combinations of prediction and noise schedule; none fits"),
            )
            .help(
                "give the model's own --scheduler-config, or compile it without the test: --trust",
            ),
    }
}

impl From<DirectoryError> for Failure {
    fn from(e: DirectoryError) -> Failure {
        match e {
            DirectoryError::File(e) => e.into(),
            DirectoryError::Model(e) => (*e).into(),
            DirectoryError::Pipeline(e) => (*e).into(),
            DirectoryError::Class { .. } => Failure::new(Exit::Unsupported, e.to_string())
                .help("--component unet compiles the loop of its denoiser alone"),
            e => Failure::failed(e.to_string()),
        }
    }
}

impl From<ModelError> for Failure {
    fn from(e: ModelError) -> Failure {
        match e {
            ModelError::Import { path, source } => import(&path, source),
            ModelError::File(e) => e.into(),
            ModelError::Pass(e) => Failure::failed("a pass produced an invalid graph; this is a bug of cqc, not of the model")
                .fact("pass", e.pass)
                .fact("seen", e.cause)
                .help("please report the bug with the model; in `run` and `inspect`, --stop-after N avoids the pass"),
            ModelError::NotADenoiser { path, reason } => {
                Failure::failed(format!("{} is not a denoiser that can be sampled from", path.display()))
                    .fact("seen", reason)
                    .help("`cqc run` evaluates any model")
            }
            ModelError::UnknownRole { path, option, name, what, known } => {
                Failure::usage(format!("{option} {name}: the model has no such {what}"))
                    .fact("file", path.display())
                    .fact("known", known.join(", "))
            }
            ModelError::NoModel { path, broken } => {
                let failure =
                    Failure::failed(format!("{} holds no exported denoiser", path.display()))
                        .fact("wants", PLACES.join(", "));
                match broken {
                    Some(link) => failure
                        .fact("seen", format!("{} is a link whose target does not exist", link.display()))
                        .help("download the model again"),
                    None => failure.help(
                        "export the pipeline to ONNX first, e.g. with optimum-cli export onnx",
                    ),
                }
            }
            ModelError::Companion { path, reason } => {
                Failure::failed(format!("{} does not run beside the model", path.display()))
                    .fact("seen", reason)
            }
            ModelError::Cut(_) => Failure::failed(e.to_string()),
        }
    }
}

fn import(path: &Path, e: ImportError) -> Failure {
    let file = path.display();
    match e {
        ImportError::Io { path, source } => {
            Failure::failed(format!("cannot read {}: {source}", path.display()))
        }
        ImportError::NotOnnx { reason } => Failure::failed(format!("{file} is not an ONNX model"))
            .fact("seen", reason)
            .help("copy, download or export the file again"),
        ImportError::OtherFormat { format } => {
            Failure::failed(format!("{file} is not an ONNX model"))
                .fact("seen", format)
                .help(format.help())
        }
        ImportError::Memory(e) => no_memory(&e),
        ImportError::Data(files) => {
            let (count, s) = (files.len(), if files.len() == 1 { "" } else { "s" });
            let what = format!("{file}: {count} file{s} of its external data cannot be read");
            let line =
                |f: &DataFile| format!("{} (tensor `{}`): {}", f.location, f.tensor, f.reason);
            let failure = files
                .iter()
                .fold(Failure::failed(what), |failure, f| failure.fact("seen", line(f)));
            let mut help: Vec<&String> = files.iter().filter_map(|f| f.help.as_ref()).collect();
            help.sort();
            help.dedup();
            help.into_iter().fold(failure, |failure, help| failure.help(help))
        }
        ImportError::Opset { domain, found, supported } => Failure::new(
            Exit::Unsupported,
            format!("operator set {found} of `{domain}` is not supported"),
        )
        .fact("file", file)
        .fact("known", supported)
        .help("export the model again with a supported opset_version"),
        ImportError::Malformed { place, reason } => {
            Failure::failed(format!("{file} is not a valid model"))
                .fact("where", place)
                .fact("seen", reason)
                .help("export the model again; onnx.checker.check_model may say more")
        }
        ImportError::OpenSizes(open) => open_sizes(path, &open),
        ImportError::Option { option, reason } => {
            Failure::usage(option).fact("file", file).fact("seen", reason)
        }
        ImportError::Unsupported(nodes) => {
            let (count, s) = (nodes.len(), if nodes.len() == 1 { "" } else { "s" });
            let what = format!("{file} has {count} node{s} that cqc does not support");
            nodes.iter().fold(Failure::new(Exit::Unsupported, what), |failure, node| {
                failure.fact("node", node)
            })
        }
    }
}

/// The failure for sizes that the model leaves open. It lists every size with the values that the
/// configuration files beside the model propose, and the options that set them.
fn open_sizes(path: &Path, open: &[OpenSize]) -> Failure {
    let proposed = sizes::propose(path, open);
    let s = if open.len() == 1 { " is" } else { "s are" };
    let what =
        format!("sizes of the model's inputs are not fixed: {} option{s} needed", open.len());
    let mut failure = Failure::usage(what).fact("file", path.display());
    let mut options = Vec::new();
    for (size, proposed) in open.iter().zip(&proposed) {
        let axes: Vec<String> = size.axes.iter().map(usize::to_string).collect();
        let axes = format!("axis {} of `{}`", axes.join(", "), size.input);
        let shape = size.shape.join(", ");
        let name = size.symbol.as_ref().map_or(String::new(), |name| format!("`{name}`, "));
        let mut found: Vec<String> = proposed
            .iter()
            .flatten()
            .map(|p| format!("{} = {} in {}", p.key, p.size, p.file.display()))
            .collect();
        found.dedup();
        let found =
            if found.is_empty() { String::new() } else { format!("; {}", found.join(", ")) };
        failure = failure.fact("seen", format!("{name}{axes} [{shape}]{found}"));
        let values: Vec<Option<i64>> =
            proposed.iter().map(|p| p.as_ref().map(|p| p.size)).collect();
        options.push(size.option(&values));
    }
    failure.help(options.join(" "))
}

impl From<CutError> for Failure {
    fn from(e: CutError) -> Failure {
        let what = e.to_string();
        match e {
            CutError::NoCandidates => Failure::failed("nothing of this model can be cached")
                .fact("seen", what)
                .help("--interval 1, or --cut NAME for a tensor of your choice"),
            _ => Failure::usage(format!("--cut: {what}"))
                .help("`cqc inspect MODEL` lists the tensors to cut at"),
        }
    }
}

impl From<CalibrateError> for Failure {
    fn from(e: CalibrateError) -> Failure {
        let what = e.to_string();
        match e {
            CalibrateError::Denoise(e) => e.into(),
            CalibrateError::NoSchedule { .. } => {
                Failure::usage(what).help("another --interval or --schedule")
            }
            CalibrateError::Schedule(reason) => Failure::usage(format!("--schedule: {reason}")),
            CalibrateError::Samples(_) => Failure::usage(what).help("more --calib-samples"),
            CalibrateError::CutInvariant { .. } => Failure::failed(what),
            CalibrateError::NotFinite { .. } => Failure::failed(what).help(
                "compile with --quant none to see whether the float model fails with this sampler, too",
            ),
        }
    }
}

impl From<EngineError> for Failure {
    fn from(e: EngineError) -> Failure {
        let what = e.to_string();
        match e {
            EngineError::Batch { asked, allowed } => {
                Failure::usage(format!("the model cannot run with a batch of {asked}")).fact("allowed", allowed)
            }
            EngineError::Memory { needed, limit } => Failure::failed("the activations do not fit into memory")
                .fact("needed", format!("{needed} bytes"))
                .fact("limit", format!("{limit} bytes"))
                .help("a smaller --batch"),
            EngineError::NoMemory(e) => no_memory(&e),
            EngineError::NoArena(e) => Failure::failed("the system does not allocate a block of memory")
                .fact("needed", format!("{} bytes", e.bytes))
                .help("a smaller --batch, or a higher limit (ulimit -v)"),
            EngineError::NoValue { name } => Failure::usage(format!("the model computes no value `{name}`"))
                .help("`cqc inspect MODEL --stop-after 99` prints the names of the values that are left after the passes"),
            EngineError::MissingInput { name, expected } => {
                Failure::usage(format!("input `{name}` is missing")).fact("wants", expected)
            }
            EngineError::UnknownInput { name, known } => {
                Failure::usage(format!("the model has no input `{name}`")).fact("known", known)
            }
            EngineError::InputType { name, dtype, shape, expected } => {
                Failure::failed(format!("input `{name}` has the wrong type or shape"))
                    .fact("wants", expected)
                    .fact("seen", format!("{dtype} {shape:?}"))
            }
            EngineError::Evaluation { evaluation, evaluations } => {
                Failure::usage(format!("there is no evaluation {evaluation}"))
                    .fact("allowed", format!("0 to {}", evaluations.saturating_sub(1)))
            }
            EngineError::Step { program, step, reason } | EngineError::Execution { program, step, reason } => {
                Failure::failed(format!("`{step}` cannot be computed")).fact("program", program).fact("seen", reason)
            }
            EngineError::Isa(_) => Failure::usage(what),
            _ => Failure::failed(what),
        }
    }
}

impl From<ProgramError> for Failure {
    fn from(e: ProgramError) -> Failure {
        let what = e.to_string();
        match e {
            ProgramError::Model(e) => e.into(),
            ProgramError::Cut(e) => e.into(),
            ProgramError::Sampler(e) => e.into(),
            ProgramError::Bind(BindError::Evaluate { timestep, source }) => {
                Failure::failed(format!("the tables cannot be computed at time step {timestep}")).fact("seen", source)
            }
            ProgramError::Bind(BindError::Fractional { input, dtype, timestep }) => {
                Failure::usage(format!("input `{input}` takes {dtype} time steps, which cannot hold those of the sampler"))
                    .fact("input", format!("{input}   {dtype}"))
                    .fact("seen", timestep)
                    .help("export the model with a float time step, or use another --sampler or timestep_spacing")
            }
            ProgramError::Bind(BindError::Memory(e)) => no_memory(&e),
            ProgramError::Bind(BindError::Timestep { .. } | BindError::Work { .. } | BindError::Op(_)) | ProgramError::Lower(_) | ProgramError::Temporary(_) => Failure::failed(what),
        }
    }
}

impl From<RetimeError> for Failure {
    fn from(e: RetimeError) -> Failure {
        let what = "the artifact cannot be run with this number of steps";
        match e {
            RetimeError::Sampler(e) => e.into(),
            RetimeError::Engine(e) => e.into(),
            RetimeError::Unknown { timestep, possible } => {
                let possible: Vec<String> = possible.iter().map(usize::to_string).collect();
                Failure::usage(what)
                    .fact("seen", format!("time step {timestep}, for which it has no tables"))
                    .fact("allowed", possible.join(", "))
                    .help("compile with --steps for that number, or with --any-steps")
            }
            RetimeError::Compensated => Failure::usage(what)
                .fact("seen", &e)
                .help("compile with --steps for that number, or without --variance-compensation"),
            RetimeError::NotFinite { .. } | RetimeError::Count { .. } => {
                Failure::usage("these time steps do not form a loop").fact("seen", &e)
            }
            RetimeError::Fixed | RetimeError::Fractional { .. } => {
                Failure::usage(what).fact("seen", &e).help("compile with --steps for that number")
            }
        }
    }
}

impl From<DenoiseError> for Failure {
    fn from(e: DenoiseError) -> Failure {
        let what = e.to_string();
        match e {
            DenoiseError::Engine(e) => e.into(),
            DenoiseError::NoNull => Failure::usage("guidance needs a null condition for the unconditional half").help(
                "--null-label K or --null-cond NAME=FILE.npy, here or when compiling; --guidance 1 switches it off",
            ),
            DenoiseError::Rows { name, shape, samples, row } => {
                Failure::failed(format!("`{name}` does not fit the samples"))
                    .fact("wants", format!("1 or {samples} rows of {row:?}"))
                    .fact("seen", format!("{shape:?}"))
            }
            DenoiseError::Steps(e) => (*e).into(),
            DenoiseError::Start(ref errors) => start::failure(errors, &e),
            DenoiseError::Mask { .. } | DenoiseError::MaskValue { .. } => Failure::usage(what),
            DenoiseError::Sampler(e) => e.into(),
            DenoiseError::Device { reason } => {
                Failure::failed(format!("--device cuda: {reason}")).help("--device cpu, or auto")
            }
            DenoiseError::NotGuided { .. } => Failure::usage(what),
            DenoiseError::Guiding(_) => Failure::usage(what)
                .help("--guidance-rescale 0 and --guidance-interval 0..1 turn them off"),
            DenoiseError::Guidance { .. } => {
                Failure::usage(what).help("--guidance 1 switches it off")
            }
            DenoiseError::NotFinite { .. } | DenoiseError::Label { .. } => Failure::usage(what),
            DenoiseError::NoDenoiser { reason } => {
                Failure::failed("the model cannot be run in a loop").fact("seen", reason)
            }
            _ => Failure::failed(what),
        }
    }
}

impl From<SamplerError> for Failure {
    fn from(e: SamplerError) -> Failure {
        match e {
            SamplerError::Config(e) => e.into(),
            SamplerError::Steps { steps, min, max } => {
                Failure::usage(format!("--steps {steps} is not possible"))
                    .fact("allowed", format!("{min} to {max}"))
            }
            other => Failure::failed(other.to_string()),
        }
    }
}

impl From<SamplerConfigError> for Failure {
    fn from(e: SamplerConfigError) -> Failure {
        let what = e.to_string();
        match e {
            SamplerConfigError::UnknownClass { .. } | SamplerConfigError::Unsupported { .. } => {
                Failure::new(Exit::Unsupported, what)
            }
            SamplerConfigError::UnknownKind { .. } => Failure::usage(what),
            _ => Failure::failed(what),
        }
    }
}

impl From<QuantizeError> for Failure {
    fn from(e: QuantizeError) -> Failure {
        match e {
            QuantizeError::Calibrate(e) => e.into(),
            QuantizeError::Program(e) => e.into(),
            QuantizeError::Denoise(e) => e.into(),
            QuantizeError::Engine(e) => e.into(),
            QuantizeError::File(e) => e.into(),
        }
    }
}

impl From<CompileError> for Failure {
    fn from(e: CompileError) -> Failure {
        let what = e.to_string();
        match e {
            CompileError::Recipe(contradictions) => contradict(&contradictions),
            CompileError::SchedulerConfig { path, source } => {
                let failure = Failure::from(source);
                path.iter().fold(failure, |failure, path| failure.fact("file", path.display()))
            }
            CompileError::ScheduleFile { path, reason } => {
                Failure::failed(format!("{} does not hold a schedule", path.display()))
                    .fact("seen", reason)
            }
            CompileError::Condition(e) => e.into(),
            CompileError::UnknownNode { name } => Failure::usage(format!(
                "--keep-float: the model has no node `{name}` after the passes"
            ))
            .help("`cqc inspect MODEL --stop-after 99` prints its nodes"),
            CompileError::Weights(bad) => {
                let failure = Failure::failed("the model has weights that are not finite");
                bad.iter()
                    .fold(failure, |failure, bad| failure.fact("seen", bad))
                    .help("export the model again, from a checkpoint whose weights are finite")
            }
            CompileError::Misread(misread) => misread_model(*misread),
            CompileError::Program(e) => e.into(),
            CompileError::Sampler(e) => e.into(),
            CompileError::Calibrate(e) => e.into(),
            CompileError::Quantize(e) => e.into(),
            CompileError::Denoise(e) => e.into(),
            CompileError::Engine(e) => e.into(),
            CompileError::File(e) => e.into(),
            CompileError::Artifact(_) => Failure::failed(what),
            CompileError::Target { reason } => Failure::failed(format!("--target: {reason}")),
        }
    }
}

/// The failure for options that contradict each other or have no effect, written as on the command
/// line.
fn contradict(found: &[Contradiction]) -> Failure {
    let option = |c: &Contradiction| match &c.value {
        Some(value) => format!("--{} {value}", c.option),
        None => format!("--{}", c.option),
    };
    let because = |c: &Contradiction| -> String {
        let list: Vec<String> =
            c.because.iter().map(|(option, value)| format!("--{option} {value}")).collect();
        if list.is_empty() { String::new() } else { format!(" ({})", list.join(", ")) }
    };
    match found {
        [one] => Failure::usage(format!("{}: {}{}", option(one), one.reason, because(one)))
            .help("leave it out"),
        several => {
            let what =
                format!("{} options contradict others or have no effect with them", several.len());
            let failure = Failure::usage(what);
            let line = |c: &Contradiction| format!("{}: {}{}", option(c), c.reason, because(c));
            several
                .iter()
                .fold(failure, |failure, c| failure.fact("option", line(c)))
                .help("leave them out")
        }
    }
}

impl From<ConditionError> for Failure {
    fn from(e: ConditionError) -> Failure {
        let what = e.to_string();
        match e {
            ConditionError::NoConditioning { guidance, inputs } => Failure::usage(format!(
                "--guidance {guidance}: the model has no conditioning input"
            ))
            .fact("inputs", inputs.join(", ")),
            ConditionError::NoLabels { conditions } => crate::artifact::no_labels(&conditions)
                .help("--cond NAME=FILE.npy, --null-cond NAME=FILE.npy"),
            ConditionError::NoInput { .. } => Failure::usage(format!("--null-cond: {what}")),
            ConditionError::Type { name, expected, found } => {
                Failure::failed(format!("--null-cond: `{name}` has the wrong type"))
                    .fact("wants", expected)
                    .fact("seen", found)
            }
            ConditionError::Missing { inputs, rest } => {
                let names: Vec<String> = inputs.iter().map(|i| format!("`{}`", i.name)).collect();
                let wants: Vec<String> =
                    inputs.iter().map(|i| format!("{}: {}", i.name, i.ty)).collect();
                let labels = inputs.iter().any(|i| i.ty.dtype.is_integer());
                let labels = if labels { "--labels A,B,.. or " } else { "" };
                let files: Vec<String> =
                    inputs.iter().map(|i| format!("--cond {}=FILE.npy", i.name)).collect();
                let failure =
                    Failure::usage(format!("calibration needs input {}", names.join(", ")))
                        .fact("wants", wants.join("\n"))
                        .help(format!(
                            "{labels}{}; or --interval 1 --quant none, which needs no calibration",
                            files.join(" ")
                        ));
                match rest {
                    Some(rest) => failure.fact("seen", rest),
                    None => failure,
                }
            }
        }
    }
}

/// The failure for a lack of memory.
fn no_memory(e: &NoMemory) -> Failure {
    let help = match e.available.bound {
        Bound::Option => "raise --max-memory, or ask for less at once: --batch, -n",
        Bound::Machine | Bound::ControlGroup => {
            "ask for less at once (--batch, -n, --shard), or give the process more memory"
        }
    };
    let available = e.available;
    Failure::failed(format!("there is not enough memory: {}", e.what.trim_end_matches(',')))
        .fact("needed", bytes(e.needed as u64))
        .fact("limit", format!("{} {}", bytes(available.bytes as u64), available.bound))
        .help(help)
}
