//! Loads a source model: imports the ONNX file, runs the rewriting passes, and finds the roles of
//! the inputs and outputs.
//!
//! A [`Model`] is the input of [`compile()`](crate::compile()).

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

/// Options of [`Model::load`]. The defaults suit a model whose inputs and outputs have conventional
/// names and whose only open size is the batch.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Options of the importer: open sizes, shapes of inputs, inputs with known values.
    pub import: ImportOptions,
    /// Runs only this many passes of [`PIPELINE`]; `None` runs all of them.
    pub stop_after: Option<usize>,
    /// The roles of inputs and outputs that the caller decides.
    pub roles: RoleOptions,
    /// Files of models that run beside this one at every evaluation and feed some of its inputs,
    /// such as ControlNets. The sizes and roles of these options hold for all models.
    pub with: Vec<PathBuf>,
    /// Pairs of an output of such a model and the input that it feeds, where names and shapes do
    /// not decide it.
    pub wires: Vec<Wire>,
}

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The importer refuses the file or the options.
    #[error("{}: {source}", path.display())]
    Import {
        /// The model's file.
        path: PathBuf,
        /// The importer's error.
        source: ImportError,
    },
    /// The file, or a file with its weights, cannot be read to compute its hash.
    #[error(transparent)]
    File(#[from] FileError),
    /// A pass broke an invariant of the graph, which is a bug of this crate.
    #[error("internal error in {0}; please report it with the model")]
    Pass(#[from] PassError),
    /// The directory holds no exported denoiser.
    #[error("{} holds no exported denoiser: expected one of {}{}", path.display(), PLACES.join(", "), broken.as_ref().map_or(String::new(), |link| format!("; {} is a link whose target does not exist", link.display())))]
    NoModel {
        /// The directory.
        path: PathBuf,
        /// A symbolic link to a model, if there is one whose target does not exist.
        broken: Option<PathBuf>,
    },
    /// A sample, a time step or a prediction is missing, or there is more than one candidate.
    #[error("{}: {reason}", path.display())]
    NotADenoiser {
        /// The model's file.
        path: PathBuf,
        /// What was looked for and what the model has, one line for each missing role.
        reason: String,
    },
    /// [`RoleOptions`] name an input or output that the model does not have.
    #[error("{}: {option} {name}: the model has no such {what}; it has {}", path.display(), known.join(", "))]
    UnknownRole {
        /// The model's file.
        path: PathBuf,
        /// The corresponding option of the command line, such as `--sample-input`.
        option: &'static str,
        /// The name that was given.
        name: String,
        /// Either `input` or `output`.
        what: &'static str,
        /// Names of all inputs or outputs.
        known: Vec<String>,
    },
    /// A companion model does not fit the denoiser.
    #[error("{}: {reason}", path.display())]
    Companion {
        /// The companion's file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// An input cannot be split into sample and condition, or a companion cannot be joined. This is
    /// a bug of this crate, not of the model.
    #[error("internal error in the roles of inputs: {0}; please report it with the model")]
    Cut(#[from] OpError),
}

/// An imported and rewritten model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Path of its file.
    pub path: PathBuf,
    /// BLAKE3 of the file, in hexadecimal. With external data it is the hash of that hash and of
    /// the data that the model uses, in its order. With companions it is the hash of the hashes of
    /// all models.
    pub blake3: String,
    /// The companions, in the order of [`ModelOptions::with`].
    pub companions: Vec<Companion>,
    /// Version of the standard ONNX operator set.
    pub opset: i64,
    /// Name of the exporter and its version.
    pub producer: String,
    /// Number of elements of all float initializers.
    pub parameters: u64,
    /// Number of nodes of the source model after its functions have been inlined.
    pub source_nodes: usize,
    /// Number of nodes per operator after import and before the passes.
    pub imported_ops: BTreeMap<String, usize>,
    /// The inputs with their types in the source model and their roles in a loop.
    pub inputs: Vec<PlanInput>,
    /// The outputs with their types in the source model. `value` has no meaning here.
    pub outputs: Vec<PlanOutput>,
    /// Name of the symbolic size of the batch; `None` if the batch size is fixed.
    pub batch_symbol: Option<String>,
    /// The fixed batch size; `None` if the batch size is symbolic or if no input has a batch.
    pub fixed_batch: Option<usize>,
    /// The graph after the passes.
    pub graph: Graph,
    /// What every pass replaced and refused.
    pub report: RewriteReport,
    /// Names of the inputs whose given values were needed at import and are now constants of the
    /// model.
    pub consumed_inputs: Vec<String>,
    /// Warnings of the importer, and internal errors of rewriting rules
    /// ([`RewriteReport::failures`]).
    pub warnings: Vec<String>,
    network: Result<Network, String>,
}

/// Releases the pages of mapped weights, which reading the file has brought into memory.
fn release_constants(graph: &Graph) {
    graph.values().filter_map(|(v, _)| graph.tensor(v)).for_each(|t| mapped::release(t.bytes()));
}

impl Model {
    /// Imports an ONNX file and runs the passes. `after` is called with `import` after the import
    /// and with the name of each pass after it has run, and gets the graph at that point.
    ///
    /// # Errors
    /// [`ModelError::Import`] if the importer refuses the file or the options,
    /// [`ModelError::UnknownRole`] for a name that the model does not have,
    /// [`ModelError::Companion`] for a companion that does not fit.
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
        // The pages that the passes have read are not needed before the weights are written.
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
    /// [`ModelError::NotADenoiser`] if a sample, a time step or a prediction that fits the sample
    /// is missing, or if there is more than one candidate.
    pub fn network(&self) -> Result<&Network, ModelError> {
        let fail = |reason: &String| ModelError::NotADenoiser {
            path: self.path.clone(),
            reason: reason.clone(),
        };
        self.network.as_ref().map_err(fail)
    }

    /// Number of nodes per operator that [`PIPELINE`] should have fused away but that are left.
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

/// Number of nodes per operator.
pub fn count_ops(graph: &Graph) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    graph.nodes().for_each(|(_, n)| *counts.entry(n.op.name()).or_insert(0) += 1);
    counts
}

/// The batch size of a model without a symbol for it: the first size of the sample, or of the first
/// float input with two or more axes where no input is known to be the sample.
fn fixed_batch(inputs: &[PlanInput]) -> Option<usize> {
    let sample = inputs.iter().find(|i| i.role == InputRole::Sample);
    let like = |i: &&PlanInput| i.ty.dtype.is_float() && i.ty.rank() >= 2;
    let input = sample.or_else(|| inputs.iter().find(like))?;
    Some(input.ty.shape.first()?.as_const()? as usize)
}

/// Checks that the model has the inputs and outputs that the options name.
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

/// The symbol on axis 0 of the inputs. The importer has unified them.
fn batch_symbol(graph: &Graph) -> Option<String> {
    graph
        .inputs
        .iter()
        .find_map(|&v| graph.shape(v).first().and_then(|d| d.as_symbol()).map(str::to_string))
}

/// Tensors for a model's inputs, by name.
pub type Inputs = BTreeMap<String, Tensor>;
