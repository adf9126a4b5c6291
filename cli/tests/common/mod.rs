//! Shared by the tests of the command line: the built `cqc`, and models.
#![allow(dead_code)] // every test file compiles its own copy and uses a part of it

use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The output of a command, and its exit code.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The JSON object that a successful command printed.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self.object()
    }

    /// The JSON object that the command printed and nothing else, whatever its exit code.
    pub fn object(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "one object and nothing else: {}", self.stdout);
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}{}", self.stdout, self.stderr))
    }
}

/// Runs the built `cqc` with these arguments.
pub fn cqc<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cqc"));
    let Output { status, stdout, stderr } =
        command.args(arguments).env_remove("CQC_LOG").output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("output is text");
    Ran {
        code: status.code().expect("it was not killed"),
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

/// Runs a command line whose words are separated by spaces.
pub fn line(text: &str) -> Ran {
    cqc(text.split_whitespace())
}

/// Runs a command line that must succeed.
pub fn done(text: &str) -> Ran {
    let ran = line(text);
    assert_eq!(ran.code, 0, "{text}: {}", ran.stderr);
    ran
}

/// The file of a model of `tests/models`, by its name without `.onnx`.
pub fn model(name: &str) -> PathBuf {
    tests().join("models").join(format!("{name}.onnx"))
}

/// The directory of models and artifacts.
pub fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests")
}
