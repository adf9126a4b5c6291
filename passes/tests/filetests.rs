//! Runs `tests/filetests/**/*.cqt` of the workspace: text in, passes, text out.
//!
//! ```text
//! ; pass: fuse-silu              one or several passes, comma separated
//! graph(…) { … return %y }
//! ;= graph(…) {                  the graph afterwards, then its refusals
//! ;= refused %y: reason
//! ```
//! A file holds any number of graphs. `CQC_BLESS=1 cargo test -p cqc-passes --test filetests` rewrites the `;=` lines.

use cqc_passes::ir::{parse, verify};
use cqc_passes::rewrite::{self, PIPELINE, Pass};
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn filetests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/filetests");
    let bless = std::env::var_os("CQC_BLESS").is_some();
    let mut failures = Vec::new();
    let files = files(&root);
    assert!(!files.is_empty(), "no filetests under {}", root.display());
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        let expected = rewritten(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        if expected == text {
            continue;
        }
        if bless {
            fs::write(file, expected).unwrap();
        } else {
            failures.push(format!("{}\n--- expected by the file\n{text}\n--- found\n{expected}", file.display()));
        }
    }
    assert!(failures.is_empty(), "{}\n(CQC_BLESS=1 rewrites the files)", failures.join("\n"));
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "cqt") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The file's text with the `;=` lines that the passes give now.
fn rewritten(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut passes: Vec<Pass> = Vec::new();
    let mut graph = String::new();
    for line in text.lines().filter(|l| !l.starts_with(";=")) {
        if let Some(names) = line.strip_prefix("; pass:") {
            passes = names.split(',').map(|n| find(n.trim())).collect::<Result<_, _>>()?;
        }
        out.push_str(line);
        out.push('\n');
        if !line.starts_with(';') {
            graph.push_str(line);
            graph.push('\n');
        }
        if line == "}" {
            out.push_str(&result(&graph, &passes)?);
            graph.clear();
        }
    }
    Ok(out)
}

fn find(name: &str) -> Result<Pass, String> {
    PIPELINE.iter().find(|p| p.name == name).copied().ok_or_else(|| format!("no pass `{name}`"))
}

fn result(text: &str, passes: &[Pass]) -> Result<String, String> {
    let mut graph = parse(text).map_err(|e| e.to_string())?;
    verify(&graph).map_err(|e| e.to_string())?;
    let report = rewrite::run(&mut graph, passes, |_, _| {}).map_err(|e| e.to_string())?;
    let mut lines: Vec<String> = graph.to_string().lines().map(|l| format!(";= {l}")).collect();
    lines.extend(report.refusals.iter().map(|r| format!(";= refused %{}: {}", r.value, r.reason)));
    Ok(lines.join("\n") + "\n")
}
