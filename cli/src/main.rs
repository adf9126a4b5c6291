//! The command line: arguments in, results on stdout, logs on stderr, an exit code.
//!
//! One file per command. What every command shares: `args` (values of options), `report` (how
//! failures look), `term` (output, logs, progress).

mod args;
mod artifact;
mod bench;
mod bisect;
mod compile;
mod device;
mod diff;
mod doctor;
mod dot;
mod eval;
mod export;
mod generate;
mod inspect;
mod lockstep;
mod measure;
mod prompt;
mod recipe;
#[cfg(test)]
mod reference;
mod report;
mod request;
mod run;
mod sample;
mod sampling;
mod source;
mod start;
mod term;
mod text;
mod trace;

use clap::{Args, Parser, Subcommand};
use report::Failure;
use std::ffi::OsString;
use std::process::ExitCode;

/// Compiles exported diffusion models into files that run the whole denoising loop
#[derive(Debug, Parser)]
#[command(name = "cqc", version, max_term_width = 100, propagate_version = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    verbosity: Verbosity,
    /// Take at most so much memory, files that are mapped not counted, e.g. 4G [default: what the
    /// machine and its control groups have left]. What needs more is refused
    #[arg(long, value_name = "SIZE", global = true)]
    max_memory: Option<args::ByteSize>,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 failed, 2 usage, 3 the model uses something unsupported, 4 a quality or speed \
    target was missed, 5 interrupted.\nCQC_LOG sets what is logged to stderr (error, warn, info, debug, trace, or a filter \
    such as cqc_runtime=debug).";

/// How much is said on stderr.
#[derive(Args, Clone, Copy, Debug)]
pub struct Verbosity {
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compile(Box<compile::CompileArgs>),
    Sample(sample::SampleArgs),
    Run(run::RunArgs),
    Inspect(inspect::InspectArgs),
    Bench(bench::BenchArgs),
    Export(export::ExportArgs),
    Eval(Box<eval::EvalArgs>),
    Diff(diff::DiffArgs),
    Bisect(bisect::BisectArgs),
    Doctor(doctor::DoctorArgs),
    Completions(generate::CompletionsArgs),
    Man(generate::ManArgs),
}

fn main() -> ExitCode {
    match parse_and_run(std::env::args_os().collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn parse_and_run(arguments: Vec<OsString>) -> Result<(), Failure> {
    let cli = recipe::parse(arguments)?;
    let Verbosity { quiet, verbose } = cli.verbosity;
    if let Some(args::ByteSize(bytes)) = cli.max_memory {
        cqc_kernels::memory::set_limit(bytes);
    }
    term::start_logging(quiet, verbose);
    term::end_cleanly_when_interrupted();
    match cli.command {
        Command::Compile(args) => compile::compile(&args, quiet),
        Command::Sample(args) => sample::sample(&args, quiet),
        Command::Run(args) => run::run(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Bench(args) => bench::bench(&args, quiet),
        Command::Export(args) => export::export(&args),
        Command::Eval(args) => eval::eval(&args, quiet),
        Command::Diff(args) => diff::diff(&args),
        Command::Bisect(args) => bisect::bisect(&args, quiet),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
    }
}

/// What clap has to say: help and versions go to stdout, errors to stderr.
fn say(error: clap::Error) -> ! {
    error.exit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
