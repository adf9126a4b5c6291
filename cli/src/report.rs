//! Failures: what failed, the facts, what to do, and the exit code.
//!
//! ```text
//! error: input `timestep` is missing
//!   wants   i64[N]
//!   help    --input timestep=FILE.npy
//! ```
//!
//! The libraries return enums with these facts. `errors` turns them into a [`Failure`], and only
//! this file lays them out.

mod errors;

use std::fmt;
use std::io::{IsTerminal, Write};

/// The exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The file, the system or cqc itself is at fault.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The model uses something that cqc does not support.
    Unsupported = 3,
    /// A quality or speed target was missed.
    Missed = 4,
    /// The user interrupted the command.
    Interrupted = 5,
}

/// A failure with its facts.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The exit code of the process.
    pub exit: Exit,
    what: String,
    facts: Vec<(&'static str, String)>,
}

impl Failure {
    /// A failure with the sentence `what`, which has no full stop.
    pub fn new(exit: Exit, what: impl Into<String>) -> Failure {
        Failure { exit, what: what.into(), facts: vec![] }
    }

    /// A failure of the command line.
    pub fn usage(what: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, what)
    }

    /// A failure of a file or of the system.
    pub fn failed(what: impl Into<String>) -> Failure {
        Failure::new(Exit::Failed, what)
    }

    /// Ends the process with exit code 1 and prints nothing, because the results say everything.
    pub fn silent() -> Failure {
        Failure::failed("")
    }

    /// Adds a line, e.g. `seen    steps 0–16`. Keys are one short word.
    pub fn fact(mut self, key: &'static str, value: impl fmt::Display) -> Failure {
        self.facts.push((key, value.to_string()));
        self
    }

    /// Adds a line that says what to do.
    pub fn help(self, what: impl fmt::Display) -> Failure {
        self.fact("help", what)
    }

    /// What to do, as one text; `None` if no line says it.
    pub fn advice(&self) -> Option<String> {
        let help = self.facts.iter().filter(|(key, _)| *key == "help");
        let help: Vec<&str> = help.map(|(_, value)| value.as_str()).collect();
        (!help.is_empty()).then(|| help.join("; "))
    }

    /// What failed and why, on one line.
    pub fn summary(&self) -> String {
        let facts = self.facts.iter().filter(|(key, _)| *key != "help");
        let facts: Vec<String> = facts.map(|(key, value)| format!("{key}: {value}")).collect();
        if facts.is_empty() {
            return self.what.clone();
        }
        format!("{}; {}", self.what, facts.join("; "))
    }

    /// Writes the failure to stderr.
    pub fn print(&self) {
        if self.what.is_empty() {
            return;
        }
        let mut stderr = std::io::stderr().lock();
        let colored =
            stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let error = if colored { "\x1b[1;31merror\x1b[0m" } else { "error" };
        // If stderr is closed, there is nobody to tell.
        let _ = writeln!(stderr, "{error}: {self}");
    }
}

/// Width of the column of keys, unless a key is longer.
const KEY_WIDTH: usize = 8;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        let longest = self.facts.iter().map(|(key, _)| key.len() + 1).max().unwrap_or(0);
        let width = longest.max(KEY_WIDTH);
        for (key, value) in &self.facts {
            // further lines of a value stand below its first
            let value = value.replace('\n', &format!("\n{:1$}", "", width + 2));
            write!(f, "\n  {key:width$}{value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_stand_in_columns_under_the_error() {
        let failure = Failure::failed("no activation range for `conv1` at step 17 of 50")
            .fact("input", "/mul_0   f16[2,320,32,32]")
            .fact("seen", "steps 0–16")
            .help("cqc calibrate unet.onnx\nor another one");
        let expected = "no activation range for `conv1` at step 17 of 50\n  \
            input   /mul_0   f16[2,320,32,32]\n  \
            seen    steps 0–16\n  \
            help    cqc calibrate unet.onnx\n          or another one";
        assert_eq!(failure.to_string(), expected);
    }
}
