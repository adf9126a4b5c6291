//! `cqc inspect`: prints the content of a model or an artifact.

mod artifact_view;
mod caching_view;
mod model_view;
mod quant_view;

pub use model_view::{macs, per_sample};

use super::args::{MapArgs, ModelArgs};
use super::report::Failure;
use super::{artifact, dot, term};
use cachequant::io::{Overwrite, write_atomic};
use cachequant::model::Model;
use cachequant::model::locate;
use clap::Args;
use cqc_passes::ir::Graph;
use cqc_passes::rewrite::PIPELINE;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Show what a model or an artifact contains, and the graph that the passes make of a model
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// An .onnx file, a .cq file, or a diffusers pipeline directory as for `compile`
    model: PathBuf,
    /// Print a JSON object on stdout instead of text
    #[arg(long)]
    json: bool,
    /// Also write a Graphviz file: of the graph after the passes, or of the artifact's plan
    #[arg(long, value_name = "FILE")]
    dot: Option<PathBuf>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// .onnx: print only the graph after this pass, each time it runs
    ///
    /// `import` is the graph before the first pass.
    #[arg(long, value_name = "PASS", conflicts_with = "json")]
    dump_after: Option<String>,
    /// .onnx: run only the first N passes
    ///
    /// Without --dump-after and --json, print the graph after them.
    #[arg(long, value_name = "N")]
    stop_after: Option<usize>,
    #[command(flatten)]
    map: MapArgs,
    #[command(flatten)]
    reading: ModelArgs,
}

pub fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    if artifact::is_artifact(&args.model) { inspect_artifact(args) } else { inspect_model(args) }
}

fn inspect_model(args: &InspectArgs) -> Result<(), Failure> {
    if let Some(name) = &args.dump_after {
        check_pass(name)?;
    }
    let options = args.reading.options(args.stop_after);
    let mut dumps = String::new();
    let model = Model::load(&locate(&args.model)?.model, &options, |pass, graph| {
        if args.dump_after.as_deref() == Some(pass) {
            dumps.push_str(&format!("; after {pass}\n{graph}\n"));
        }
    })?;
    draw(args, || dot::of_graph(&model.graph))?;
    match (&args.dump_after, args.stop_after, args.json) {
        (Some(_), _, _) => term::print(&dumps),
        (None, _, true) => term::print_json(&model_view::json(&model)),
        (None, Some(_), false) => term::print(&dump(&model.graph, args.stop_after)),
        (None, None, false) => term::print(&model_view::text(&model)),
    }
}

fn check_pass(name: &str) -> Result<(), Failure> {
    let mut known: Vec<&str> =
        ["import"].into_iter().chain(PIPELINE.iter().map(|p| p.name)).collect();
    if known.contains(&name) {
        return Ok(());
    }
    let mut seen = std::collections::HashSet::new();
    known.retain(|n| seen.insert(*n));
    Err(Failure::usage(format!("there is no pass `{name}`")).fact("known", known.join(", ")))
}

fn dump(graph: &Graph, stop_after: Option<usize>) -> String {
    let count = stop_after.unwrap_or(PIPELINE.len()).min(PIPELINE.len());
    let last = count.checked_sub(1).map_or("import", |i| PIPELINE[i].name);
    format!("; after {count} of {} passes, the last one {last}\n{graph}", PIPELINE.len())
}

fn inspect_artifact(args: &InspectArgs) -> Result<(), Failure> {
    if args.dump_after.is_some() || args.stop_after.is_some() || !args.reading.is_default() {
        return Err(Failure::usage(
            "--dump-after, --stop-after and the options that say how a model is read are for models; a .cq is compiled already",
        ));
    }
    let artifact = artifact::open(&args.model, args.map)?;
    draw(args, || dot::of_plan(artifact.weights().plan()))?;
    if args.json {
        return term::print_json(&artifact_view::json(&artifact)?);
    }
    term::print(&artifact_view::text(&args.model, &artifact)?)
}

fn draw(args: &InspectArgs, picture: impl FnOnce() -> String) -> Result<(), Failure> {
    let Some(path) = &args.dot else { return Ok(()) };
    let overwrite = if args.force { Overwrite::Allow } else { Overwrite::Refuse };
    write_text(path, &picture(), overwrite)?;
    tracing::info!("wrote {}", path.display());
    Ok(())
}

fn write_text(path: &Path, text: &str, overwrite: Overwrite) -> Result<(), Failure> {
    Ok(write_atomic(path, overwrite, |out| out.write_all(text.as_bytes()))?)
}
