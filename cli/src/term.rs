//! Output of the process: results on stdout, logs and progress on stderr.

use super::report::{Exit, Failure};
use indicatif::ProgressStyle;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};
use tracing_subscriber::EnvFilter;

/// Sends logs to stderr. The environment variable `CQC_LOG` takes precedence over `-q` and `-v`.
pub fn start_logging(quiet: bool, verbose: u8) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_env("CQC_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let plain = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time();
    plain.with_target(verbose > 0).with_ansi(std::io::stderr().is_terminal()).init();
}

/// On Ctrl-C and on a request to terminate, removes unfinished files and ends the process.
pub fn end_cleanly_when_interrupted() {
    let installed = ctrlc::set_handler(|| {
        cachequant::io::remove_unfinished();
        let interrupted = match cachequant::io::kept_partial() {
            None => Failure::new(Exit::Interrupted, "interrupted; nothing was written")
                .help("run the same command again"),
            Some(partial) => {
                Failure::new(Exit::Interrupted, "interrupted; the output is incomplete")
                    .fact("seen", format!("the finished samples are in {}", partial.display()))
                    .help("run the same command again to continue")
            }
        };
        interrupted.print();
        std::process::exit(Exit::Interrupted as i32);
    });
    if let Err(e) = installed {
        tracing::debug!("no handler for interrupts: {e}");
    }
}

/// Writes results to stdout. It is no failure if the reader has closed the pipe.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to stdout: {e}")))
        }
        _ => Ok(()),
    }
}

/// Prints one JSON object on one line.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|e| Failure::failed(format!("cannot write JSON: {e}")))?;
    print(&(text + "\n"))
}

/// A progress bar on a terminal, a line every few seconds elsewhere, and nothing with `--quiet`.
pub struct ProgressBar {
    what: &'static str,
    total: u64,
    done: u64,
    started: Instant,
    last_line: Instant,
    shown: Shown,
}

enum Shown {
    Nothing,
    Bar(indicatif::ProgressBar),
    Lines,
}

const LINE_EVERY: Duration = Duration::from_secs(5);

impl ProgressBar {
    /// `total` is the number of units of work.
    pub fn new(what: &'static str, total: u64, quiet: bool) -> ProgressBar {
        let shown = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Shown::Nothing,
            (false, true) => Shown::Bar(bar(what, total)),
            (false, false) => Shown::Lines,
        };
        ProgressBar {
            what,
            total,
            done: 0,
            started: Instant::now(),
            last_line: Instant::now(),
            shown,
        }
    }

    /// Corrects the number of units of work.
    pub fn set_total(&mut self, total: u64) {
        self.total = total;
        if let Shown::Bar(bar) = &self.shown {
            bar.set_length(total);
        }
    }

    /// Marks one unit of work as done.
    pub fn step(&mut self) {
        self.done += 1;
        match &self.shown {
            Shown::Bar(bar) => bar.set_position(self.done),
            Shown::Lines if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = Instant::now();
                tracing::info!(
                    "{} {}/{}, {:.0} s left",
                    self.what,
                    self.done,
                    self.total,
                    self.seconds_left()
                );
            }
            _ => {}
        }
    }

    fn seconds_left(&self) -> f64 {
        let per_unit = self.started.elapsed().as_secs_f64() / self.done.max(1) as f64;
        per_unit * self.total.saturating_sub(self.done) as f64
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &'static str, total: u64) -> indicatif::ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}, {eta} left");
    let bar = indicatif::ProgressBar::new(total).with_message(what);
    bar.with_style(style.expect("the template is valid"))
}
