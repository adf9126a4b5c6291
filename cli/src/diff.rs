//! `cqc diff`: lists the differences between two artifacts or models.

mod changes;
mod constants;
mod side;

use super::args::ModelArgs;
use super::report::Failure;
use super::term;
use super::text::{bytes, columns, grouped};
use changes::Change;
use clap::Args;
use constants::Constants;
use serde::Serialize;
use side::Side;
use std::fmt::Write;
use std::path::PathBuf;

/// Show the differences between two artifacts or models
#[derive(Args, Debug)]
#[command(
    after_help = "The exit code is 0 if nothing differs and 1 if something does; the JSON says it as `equal`.\n\n\
    A model beside an artifact is compiled in memory without caching, for the artifact's sampler and steps. Two models are \
    compared as single evaluations. Constants are compared by content, not by name.\n\n\
    Examples:\n  \
    cqc diff old.cq new.cq\n  \
    cqc diff unet.onnx unet.cq --json"
)]
pub struct DiffArgs {
    /// The first one (A), a .cq or an .onnx file
    a: PathBuf,
    /// The second one (B), a .cq or an .onnx file
    b: PathBuf,
    /// Print a JSON object on stdout instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: ModelArgs,
}

/// The JSON of `--json`.
#[derive(Debug, Serialize)]
struct Diff {
    equal: bool,
    a: File,
    b: File,
    changes: Vec<Change>,
    constants: Constants,
}

#[derive(Debug, Serialize)]
struct File {
    #[serde(serialize_with = "crate::text::lossy")]
    path: PathBuf,
    bytes: u64,
    weight_bytes: u64,
}

pub fn diff(args: &DiffArgs) -> Result<(), Failure> {
    let (a, b) = side::open_both(&args.a, &args.b, &args.reading)?;
    let (changes, constants) = (changes::between(&a, &b), constants::between(&a, &b));
    let file = |side: &Side| File {
        path: side.path.clone(),
        bytes: side.bytes,
        weight_bytes: side.weight_bytes(),
    };
    let equal = changes.is_empty() && constants.equal_sets();
    let diff = Diff { equal, a: file(&a), b: file(&b), changes, constants };
    if args.json {
        term::print_json(&diff)?
    } else {
        term::print(&text(&diff))?
    }
    if equal { Ok(()) } else { Err(Failure::silent()) }
}

/// Number of lines that a part of the text has at most.
const MOST_LINES: usize = 12;

fn text(diff: &Diff) -> String {
    let mut out = String::new();
    for (sign, file) in [("A", &diff.a), ("B", &diff.b)] {
        let _ = writeln!(
            out,
            "{sign}  {}  {}, {} of constants",
            file.path.display(),
            bytes(file.bytes),
            bytes(file.weight_bytes)
        );
    }
    if diff.equal {
        out.push_str("nothing differs\n");
    }
    for changes in diff.changes.chunk_by(|a, b| a.part == b.part) {
        let _ = writeln!(out, "{}", changes[0].part);
        let side = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        let rows = changes
            .iter()
            .take(MOST_LINES)
            .map(|c| vec![c.what.clone(), side(&c.a), "→".into(), side(&c.b)]);
        out.push_str(&columns(&rows.collect::<Vec<_>>()));
        more(&mut out, changes.len());
    }
    let constants = &diff.constants;
    let _ = writeln!(
        out,
        "constants: {} equal, {} with different values, {} only in A, {} only in B",
        grouped(constants.equal),
        grouped(constants.differing.len()),
        grouped(constants.only_a.len()),
        grouped(constants.only_b.len())
    );
    let rows = constants.differing.iter().take(MOST_LINES).map(|c| {
        let difference = c
            .max_abs
            .map_or("not comparable as numbers".into(), |d| format!("differ by at most {d:.3e}"));
        vec![c.name.clone(), c.ty.clone(), difference]
    });
    out.push_str(&columns(&rows.collect::<Vec<_>>()));
    more(&mut out, constants.differing.len());
    for (sign, names) in [("A", &constants.only_a), ("B", &constants.only_b)] {
        let rows =
            names.iter().take(MOST_LINES).map(|name| vec![format!("only in {sign}"), name.clone()]);
        out.push_str(&columns(&rows.collect::<Vec<_>>()));
        more(&mut out, names.len());
    }
    out
}

fn more(out: &mut String, count: usize) {
    if count > MOST_LINES {
        let _ = writeln!(out, "  … and {} more; --json prints all", grouped(count - MOST_LINES));
    }
}
