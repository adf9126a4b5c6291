//! Runs `tests/filetests/**/*.cqt` of the workspace: text in, passes, text out.
//!
//! ```text
//! ; pass: fuse-silu              one or several passes, comma separated; or
//! ; cut: shallow                 the step is cut there: candidates, full graph, cached graph; the first
//!                                input is the sample; or
//! ; bf16                         products are rounded to bf16; then which, and why others are not; or
//! ; quantize: 8 bf16=x fit=y     layers are quantized, weights to 8 bits; those that read x read bf16,
//!                                and the sums of layer y are corrected; or
//! ; lower: times=999,500 …       the graph is bound, cut, quantized and lowered as `lowering.rs` says:
//!                                the plan's text
//! graph(…) { … return %y }
//! ;= graph(…) {                  the graph afterwards, then its refusals
//! ;= refused %y: reason
//! ```
//! A file holds any number of graphs. `CQC_BLESS=1 cargo test -p cqc-passes --test filetests`
//! rewrites the `;=` lines.

mod lowering;

use cqc_passes::bind::{self, InputOrigin, Part};
use cqc_passes::cache::{self, Batch, CutSpec};
use cqc_passes::ir::{Graph, parse, verify};
use cqc_passes::quant::{self, AnnotateOptions, Layer, OutputCorrection, QuantSpec, QuantTables, round_products};
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
        // tests/wire.rs of the workspace has those of the engine
        if path.is_dir() && !path.ends_with("wire") {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "cqt") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What a file does to the graphs that follow.
enum Directive {
    Passes(Vec<Pass>),
    Cut(CutSpec),
    Bf16,
    Quantize(String),
    Lower(String),
}

/// The file's text with the `;=` lines that the passes give now.
fn rewritten(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut directive = Directive::Passes(vec![]);
    let mut graph = String::new();
    for line in text.lines().filter(|l| !l.starts_with(";=")) {
        if let Some(names) = line.strip_prefix("; pass:") {
            directive = Directive::Passes(names.split(',').map(|n| find(n.trim())).collect::<Result<_, _>>()?);
        }
        if let Some(spec) = line.strip_prefix("; cut:") {
            directive = Directive::Cut(spec.trim().parse()?);
        }
        if let Some(how) = line.strip_prefix("; quantize:") {
            directive = Directive::Quantize(how.to_string());
        }
        if let Some(how) = line.strip_prefix("; lower:") {
            directive = Directive::Lower(how.to_string());
        }
        if line == "; bf16" {
            directive = Directive::Bf16;
        }
        out.push_str(line);
        out.push('\n');
        if !line.starts_with(';') {
            graph.push_str(line);
            graph.push('\n');
        }
        if line == "}" {
            let lines = match &directive {
                Directive::Passes(passes) => rewrite_lines(&graph, passes)?,
                Directive::Cut(spec) => cut_lines(&graph, spec)?,
                Directive::Bf16 => bf16_lines(&graph)?,
                Directive::Quantize(how) => quantized_lines(&graph, how)?,
                Directive::Lower(how) => lowering::lines(&read(&graph)?, how)?,
            };
            lines.iter().for_each(|line| out.push_str(&format!(";= {line}\n")));
            graph.clear();
        }
    }
    Ok(out)
}

fn find(name: &str) -> Result<Pass, String> {
    PIPELINE.iter().find(|p| p.name == name).copied().ok_or_else(|| format!("no pass `{name}`"))
}

fn read(text: &str) -> Result<Graph, String> {
    let graph = parse(text).map_err(|e| e.to_string())?;
    verify(&graph).map_err(|e| e.to_string())?;
    Ok(graph)
}

fn rewrite_lines(text: &str, passes: &[Pass]) -> Result<Vec<String>, String> {
    let mut graph = read(text)?;
    let report = rewrite::run(&mut graph, passes, |_, _| {}).map_err(|e| e.to_string())?;
    if let Some(failure) = report.failures.first() {
        return Err(failure.to_string());
    }
    let mut lines: Vec<String> = graph.to_string().lines().map(str::to_string).collect();
    lines.extend(report.refusals.iter().map(|r| format!("refused %{}: {}", r.value, r.reason)));
    Ok(lines)
}

fn bf16_lines(text: &str) -> Result<Vec<String>, String> {
    let mut bound = bind::unbound(&read(text)?);
    let products = round_products(&mut bound, &QuantSpec::new(16)).map_err(|e| e.to_string())?;
    let graph = &mut bound.full.graph;
    verify(graph).map_err(|e| e.to_string())?;
    // weights that nothing reads any more
    graph.compact().map_err(|node| format!("{node} stands on a cycle"))?;
    let mut lines: Vec<String> = graph.to_string().lines().map(str::to_string).collect();
    lines.extend(products.layers.iter().map(|l| format!("rounded %{}: {}", l.value, l.op)));
    lines.extend(products.float_layers.iter().map(|(name, why)| format!("float {name}: {why}")));
    Ok(lines)
}

fn quantized_lines(text: &str, how: &str) -> Result<Vec<String>, String> {
    let mut words = how.split_whitespace();
    let bits = words.next().and_then(|bits| bits.parse().ok()).ok_or("quantize: no bits")?;
    let named = |key: &str| words.clone().filter_map(move |word| word.strip_prefix(key)).collect::<Vec<_>>();
    let mut bound = bind::unbound(&read(text)?);
    let all = quant::survey(&bound, &QuantSpec::new(bits), None);
    let float = named("bf16=");
    let float: Vec<usize> = (0..all.sites.len()).filter(|&i| float.contains(&&*all.sites[i].name)).collect();
    let survey = all.without(&float);
    let mut tables = QuantTables::float(&survey, 1);
    for (i, layer) in survey.layers.iter().enumerate().filter(|(_, l)| named("fit=").contains(&&*l.value)) {
        tables.corrections.insert(i, OutputCorrection::identity(layer, 1));
    }
    quant::annotate(&mut bound, &survey, &tables, AnnotateOptions::default()).map_err(|e| e.to_string())?;
    let graph = &mut bound.full.graph;
    verify(graph).map_err(|e| e.to_string())?;
    graph.compact().map_err(|node| format!("{node} stands on a cycle"))?;
    let mut lines: Vec<String> = graph.to_string().lines().map(str::to_string).collect();
    let bits = |layer: &Layer| layer.weight.as_ref().map_or(String::new(), |w| format!(", weights of {} bits", w.bits));
    lines.extend(survey.layers.iter().map(|l| format!("layer %{}: {}{}", l.value, l.op, bits(l))));
    lines.extend(survey.float_layers.iter().map(|(name, why)| format!("float {name}: {why}")));
    Ok(lines)
}

fn cut_lines(text: &str, spec: &CutSpec) -> Result<Vec<String>, String> {
    let graph = read(text)?;
    let (sample, batch) = (graph.inputs[0], Batch::Symbol("N"));
    let candidates = cache::candidates(&graph, sample, batch);
    let mut lines = Vec::new();
    for c in &candidates {
        let name = c.name(&graph);
        lines.push(format!("{} of {} MACs, {} bytes: {name}", c.macs_cached, c.macs_full, c.bytes));
    }
    let cut = match cache::choose(&candidates, spec, &graph, sample, batch) {
        Ok(cut) => cut,
        Err(e) => return Ok([lines, vec![format!("error: {e}")]].concat()),
    };
    let origins = (0..graph.inputs.len()).map(InputOrigin::Input).collect();
    let split = cache::split(&Part { graph, origins }, &cut).map_err(|e| e.to_string())?;
    for (what, part) in [("full", split.full), ("cached", split.cached)] {
        verify(&part.graph).map_err(|e| e.to_string())?;
        lines.push(format!("{what}:"));
        lines.extend(part.graph.to_string().lines().map(str::to_string));
    }
    Ok(lines)
}
