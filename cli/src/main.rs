//! The command line `cqc`: arguments in, results on stdout, logs on stderr, an exit code.
//!
//! There is one file per command. The commands share `args` (values of options), `report` (the form
//! of failures) and `term` (output, logs, progress).

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
    /// Most memory to use, e.g. 4G [default: what the machine and its control groups have left]
    ///
    /// Units are powers of 1024. Files that are mapped do not count. A command that needs more is
    /// refused.
    #[arg(long, value_name = "SIZE", global = true, help_heading = GLOBAL)]
    max_memory: Option<args::ByteSize>,
    #[command(subcommand)]
    command: Command,
}

/// Help heading of the options that every command takes.
const GLOBAL: &str = "Global options";

const EXIT_CODES: &str = "Exit codes:\n  \
    0  The command succeeded; for diff, nothing differs.\n  \
    1  The command failed; for diff, something differs.\n  \
    2  The command line is wrong.\n  \
    3  The model uses something that cqc does not support.\n  \
    4  A quality or speed target was missed.\n  \
    5  The command was interrupted.\n\n\
    The environment variable CQC_LOG sets what is logged to stderr: error, warn, info, debug, trace, \
    or a filter such as cqc_runtime=debug. It takes precedence over --quiet and --verbose.";

/// How much is logged to stderr.
#[derive(Args, Clone, Copy, Debug)]
pub struct Verbosity {
    /// Log errors only
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = GLOBAL)]
    quiet: bool,
    /// Log more details; given twice, log everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = GLOBAL)]
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

/// Ends the process with the message of clap: help and version go to stdout, errors to stderr.
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
