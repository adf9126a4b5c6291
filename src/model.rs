//! A source model: imported, rewritten, and the roles of its inputs and outputs found.

mod companion;
mod fills;
mod hash;
mod locate;
mod network;
mod roles;

use companion::Joiner;
use hash::model_hash;

pub use companion::{Companion, Wire};
pub use fills::{FillError, fills};
pub use locate::{Located, PLACES, locate};
pub use network::{Network, Rest, rest_of};
pub use roles::{RoleOptions, varies};

use crate::io::FileError;
use cqc_kernels::mapped;
use cqc_passes::ir::{Graph, ValueId};
use cqc_passes::onnx::{self, ImportError, ImportOptions};
use cqc_passes::rewrite::{self, PIPELINE, PassError, RewriteReport};
use cqc_proto::Tensor;
use cqc_proto::op::OpError;
use cqc_proto::plan::{InputRole, PlanInput, PlanOutput};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Sizes, known inputs and other facts for the importer.
    pub import: ImportOptions,
    /// Runs only the first so many passes.
    pub stop_after: Option<usize>,
    /// Which input is the sample and so on, where the caller says it.
    pub roles: RoleOptions,
    /// Models that run beside this one at every evaluation and feed its inputs, such as
    /// ControlNets. Sizes and roles of the options are for all of them.
    pub with: Vec<PathBuf>,
    /// Which output of those feeds which input, where names and shapes do not say it.
    pub wires: Vec<Wire>,
}

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// From the importer.
    #[error("{}: {source}", path.display())]
    Import {
        /// The model's file.
        path: PathBuf,
        /// What is wrong.
        source: ImportError,
    },
    /// The file cannot be read a second time.
    #[error(transparent)]
    File(#[from] FileError),
    /// A pass broke an invariant.
    #[error("internal error in {0}; please report it with the model")]
    Pass(#[from] PassError),
    /// A directory without a denoiser.
    #[error("{} holds no exported denoiser: expected one of {}{}", path.display(), PLACES.join(", "), broken.as_ref().map_or(String::new(), |link| format!("; {} is a link to no file", link.display())))]
    NoModel {
        /// The directory.
        path: PathBuf,
        /// A link to a model that is not there.
        broken: Option<PathBuf>,
    },
    /// A sample, a time step or a prediction is missing, or there is more than one candidate.
    #[error("{}: {reason}", path.display())]
    NotADenoiser {
        /// The model's file.
        path: PathBuf,
        /// What was looked for and what is there, one line for each that is missing.
        reason: String,
    },
    /// [`RoleOptions`] name something that the model does not have.
    #[error("{}: {option} {name}: the model has no such {what}; it has {}", path.display(), known.join(", "))]
    UnknownRole {
        /// The model's file.
        path: PathBuf,
        /// The option of the command line.
        option: &'static str,
        /// The name that was given.
        name: String,
        /// `input` or `output`.
        what: &'static str,
        /// Names of all inputs or outputs.
        known: Vec<String>,
    },
    /// A model that should run beside the denoiser does not fit it.
    #[error("{}: {reason}", path.display())]
    Companion {
        /// The file of that model.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// An input cannot be cut, or another model joined: a bug here, not in the model.
    #[error("internal error in the roles of inputs: {0}; please report it with the model")]
    Cut(#[from] OpError),
}

/// An imported and rewritten model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its file.
    pub path: PathBuf,
    /// BLAKE3 of the file, hexadecimal; with external data, of that hash and of the data that the
    /// model uses, in its order; with companions, of the hashes of all models.
    pub blake3: String,
    /// The models that feed inputs of this one, in the order of [`ModelOptions::with`].
    pub companions: Vec<Companion>,
    /// Version of the standard operator set.
    pub opset: i64,
    /// Exporter and its version.
    pub producer: String,
    /// Elements of all float initializers.
    pub parameters: u64,
    /// Nodes of the source model, functions inlined.
    pub source_nodes: usize,
    /// Operators right after import.
    pub imported_ops: BTreeMap<String, usize>,
    /// Inputs in the source model's types.
    pub inputs: Vec<PlanInput>,
    /// Outputs in the source model's types; `value` is meaningless here.
    pub outputs: Vec<PlanOutput>,
    /// The batch symbol; `None` for a fixed batch.
    pub batch_symbol: Option<String>,
    /// The fixed batch.
    pub fixed_batch: Option<usize>,
    /// The graph after the passes.
    pub graph: Graph,
    /// What the passes did.
    pub report: RewriteReport,
    /// Inputs whose given value was needed at import and is now part of the model.
    pub consumed_inputs: Vec<String>,
    /// What the importer found odd, and what rules got wrong ([`RewriteReport::failures`]).
    pub warnings: Vec<String>,
    network: Result<Network, String>,
}

/// Lets go of the pages of mapped weights: reading the file around them brought them into memory.
fn release_constants(graph: &Graph) {
    graph.values().filter_map(|(v, _)| graph.tensor(v)).for_each(|t| mapped::release(t.bytes()));
}

impl Model {
    /// Imports the `.onnx` file and runs the passes; `after` sees the graph behind each of them.
    ///
    /// # Errors
    /// [`ModelError::Import`] for everything that is wrong with the file or the options.
    pub fn load(
        path: &Path,
        options: &ModelOptions,
        mut after: impl FnMut(&str, &Graph),
    ) -> Result<Model, ModelError> {
        let fail = |source| ModelError::Import { path: path.to_path_buf(), source };
        let several = !options.with.is_empty() || !options.wires.is_empty();
        let import = ImportOptions { for_several: several, ..options.import.clone() };
        let loaded = onnx::load(path, &import).map_err(fail)?;
        let mut graph = loaded.graph;
        release_constants(&graph);
        let mut blake3 = model_hash(path, &loaded.external)?;
        let (mut companions, mut warnings) = (Vec::new(), loaded.warnings);
        let (mut parameters, mut source_nodes) = (loaded.parameters, loaded.node_count);
        if several {
            let mut joiner = Joiner::new(graph, blake3, loaded.skipped, options);
            for companion in &options.with {
                let joined = joiner.join(companion)?;
                warnings.extend(joined.warnings);
                parameters += joined.parameters;
                source_nodes += joined.node_count;
            }
            (graph, companions, blake3) = joiner.finish()?;
        }
        let batch_symbol = batch_symbol(&graph);
        let input = |&v: &ValueId| PlanInput {
            name: graph.value(v).name.clone(),
            ty: graph.ty(v).clone(),
            role: InputRole::Condition,
        };
        let mut inputs: Vec<PlanInput> = graph.inputs.iter().map(input).collect();
        let output = |(name, v): &(String, _)| PlanOutput {
            name: name.clone(),
            ty: graph.ty(*v).clone(),
            value: 0,
        };
        let outputs: Vec<PlanOutput> = graph.outputs.iter().map(output).collect();
        check_names(path, &options.roles, &inputs, &outputs)?;
        let imported_ops = count_ops(&graph);
        let passes = &PIPELINE[..options.stop_after.unwrap_or(PIPELINE.len()).min(PIPELINE.len())];
        after("import", &graph);
        let report = rewrite::run(&mut graph, passes, |pass, graph| after(pass.name, graph))?;
        let bug = |failure| format!("internal error in {failure}; please report it with the model");
        warnings.extend(report.failures.iter().map(bug));
        // what the passes have read is not needed before the weights are written
        release_constants(&graph);
        let found = network::find(&graph, &inputs, &outputs, &options.roles)?;
        inputs.iter_mut().zip(found.roles).for_each(|(input, role)| input.role = role);
        let fixed_batch = if batch_symbol.is_some() { None } else { fixed_batch(&inputs) };
        if let (Ok(Network { rest: Some(rest), .. }), None) =
            (&found.network, options.roles.sample_channel)
        {
            warnings.push(format!("{rest}; --sample-channel FIRST says where the sample begins"));
        }
        Ok(Model {
            path: path.to_path_buf(),
            blake3,
            companions,
            opset: loaded.opset,
            producer: loaded.producer,
            parameters,
            source_nodes,
            imported_ops,
            inputs,
            outputs,
            batch_symbol,
            fixed_batch,
            graph,
            report,
            consumed_inputs: loaded.consumed_inputs.into_iter().collect(),
            warnings,
            network: found.network,
        })
    }

    /// The model as a denoising loop calls it.
    ///
    /// # Errors
    /// [`ModelError::NotADenoiser`] where a sample, a time step or a prediction like the sample is
    /// missing, or where there is more than one candidate.
    pub fn network(&self) -> Result<&Network, ModelError> {
        let fail = |reason: &String| ModelError::NotADenoiser {
            path: self.path.clone(),
            reason: reason.clone(),
        };
        self.network.as_ref().map_err(fail)
    }

    /// Names of operators that [`PIPELINE`] is meant to fuse away but that are left, with their
    /// number.
    pub fn left_over(&self) -> BTreeMap<String, usize> {
        let mut left = BTreeMap::new();
        for (_, node) in self.graph.nodes() {
            if node.op.traits().is_decomposed {
                *left.entry(node.op.name()).or_insert(0) += 1;
            }
        }
        left
    }
}

/// Nodes per operator.
pub fn count_ops(graph: &Graph) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    graph.nodes().for_each(|(_, n)| *counts.entry(n.op.name()).or_insert(0) += 1);
    counts
}

/// The batch of a model that has no symbol for it: the sample's first size, or that of the first
/// float input with two or more axes where no input is known to be the sample.
fn fixed_batch(inputs: &[PlanInput]) -> Option<usize> {
    let sample = inputs.iter().find(|i| i.role == InputRole::Sample);
    let like = |i: &&PlanInput| i.ty.dtype.is_float() && i.ty.rank() >= 2;
    let input = sample.or_else(|| inputs.iter().find(like))?;
    Some(input.ty.shape.first()?.as_const()? as usize)
}

/// Checks that the model has what the options name.
fn check_names(
    path: &Path,
    roles: &RoleOptions,
    inputs: &[PlanInput],
    outputs: &[PlanOutput],
) -> Result<(), ModelError> {
    let inputs: Vec<String> = inputs.iter().map(|i| i.name.clone()).collect();
    let outputs: Vec<String> = outputs.iter().map(|o| o.name.clone()).collect();
    let given = [
        ("--sample-input", "input", &roles.sample_input, &inputs),
        ("--time-input", "input", &roles.time_input, &inputs),
        ("--prediction-output", "output", &roles.prediction_output, &outputs),
    ];
    for (option, what, name, known) in given {
        let Some(name) = name.as_ref().filter(|name| !known.contains(name)) else { continue };
        let (path, name, known) = (path.to_path_buf(), name.clone(), known.clone());
        return Err(ModelError::UnknownRole { path, option, name, what, known });
    }
    let lists = [("--per-step", &roles.per_step), ("--per-request", &roles.per_request)];
    for (option, names) in lists {
        let Some(name) = names.iter().find(|name| !inputs.contains(name)) else { continue };
        let (path, name, known) = (path.to_path_buf(), name.clone(), inputs);
        return Err(ModelError::UnknownRole { path, option, name, what: "input", known });
    }
    Ok(())
}

/// The symbol on axis 0 of the inputs; the importer has unified them.
fn batch_symbol(graph: &Graph) -> Option<String> {
    graph
        .inputs
        .iter()
        .find_map(|&v| graph.shape(v).first().and_then(|d| d.as_symbol()).map(str::to_string))
}

/// Tensors for a model's inputs, by name.
pub type Inputs = BTreeMap<String, Tensor>;
