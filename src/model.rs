//! A source model: imported, its inputs' meaning found, rewritten.

use crate::identity::model_hash;
use crate::io::FileError;
use cqc_kernels::mapped;
use cqc_passes::ir::Graph;
use cqc_passes::onnx::{self, ImportError, ImportOptions};
use cqc_passes::rewrite::{self, PIPELINE, PassError, RewriteReport};
use cqc_proto::plan::{InputRole, PlanInput, PlanOutput};
use cqc_proto::{DType, Tensor, ValueType};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Sizes, known inputs and other facts for the importer.
    pub import: ImportOptions,
    /// Runs only the first so many passes.
    pub stop_after: Option<usize>,
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
    /// The model has no input that can be the sample, or none that can be the time step.
    #[error("{}: {reason}", path.display())]
    NotADenoiser {
        /// The model's file.
        path: PathBuf,
        /// What was looked for and what is there.
        reason: String,
    },
}

/// An imported and rewritten model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its file.
    pub path: PathBuf,
    /// BLAKE3 of the file and of the external data that it uses: [`model_hash`].
    pub blake3: String,
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
        let loaded = onnx::load(path, &options.import).map_err(fail)?;
        let mut graph = loaded.graph;
        release_constants(&graph);
        let blake3 = model_hash(path, &loaded.external)?;
        let batch_symbol = batch_symbol(&graph);
        let inputs: Vec<PlanInput> = roles(&graph)
            .into_iter()
            .zip(&graph.inputs)
            .map(|(role, &v)| PlanInput {
                name: graph.value(v).name.clone(),
                ty: graph.ty(v).clone(),
                role,
            })
            .collect();
        let output = |(name, v): &(String, _)| PlanOutput {
            name: name.clone(),
            ty: graph.ty(*v).clone(),
            value: 0,
        };
        let outputs = graph.outputs.iter().map(output).collect();
        let fixed_batch = match batch_symbol {
            Some(_) => None,
            None => sample_input(&inputs)
                .and_then(|i| i.ty.shape.first()?.as_const())
                .map(|b| b as usize),
        };
        let imported_ops = count_ops(&graph);
        let passes = &PIPELINE[..options.stop_after.unwrap_or(PIPELINE.len()).min(PIPELINE.len())];
        after("import", &graph);
        let report = rewrite::run(&mut graph, passes, |pass, graph| after(pass.name, graph))?;
        let mut warnings = loaded.warnings;
        let bug = |failure| format!("internal error in {failure}; please report it with the model");
        warnings.extend(report.failures.iter().map(bug));
        // what the passes have read is not needed before the weights are written
        release_constants(&graph);
        Ok(Model {
            path: path.to_path_buf(),
            blake3,
            opset: loaded.opset,
            producer: loaded.producer,
            parameters: loaded.parameters,
            source_nodes: loaded.node_count,
            imported_ops,
            inputs,
            outputs,
            batch_symbol,
            fixed_batch,
            graph,
            report,
            consumed_inputs: loaded.consumed_inputs.into_iter().collect(),
            warnings,
        })
    }

    /// The input with that role, if there is one.
    pub fn input(&self, role: InputRole) -> Option<&PlanInput> {
        self.inputs.iter().find(|i| i.role == role)
    }

    /// Checks that there are a sample, a time step and an output like the sample (or with twice its
    /// channels).
    ///
    /// # Errors
    /// [`ModelError::NotADenoiser`].
    pub fn check_denoiser(&self) -> Result<(), ModelError> {
        let fail =
            |reason: String| Err(ModelError::NotADenoiser { path: self.path.clone(), reason });
        let listed = || {
            self.inputs
                .iter()
                .map(|i| format!("{}: {}", i.name, i.ty))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let Some(sample) = self.input(InputRole::Sample) else {
            return fail(format!(
                "no input is like an image (float, three or more axes, the output's size); inputs: {}",
                listed()
            ));
        };
        if self.input(InputRole::Timestep).is_none() {
            return fail(format!(
                "no input is like a time step (one number per sample); inputs: {}",
                listed()
            ));
        }
        let Some(output) = self.outputs.first() else { return fail("it has no outputs".into()) };
        let (x, y) = (&sample.ty.shape, &output.ty.shape);
        let fits = x.len() == y.len() && x.len() >= 2 && x[0] == y[0] && x[2..] == y[2..];
        let channels = fits && (x[1] == y[1] || x[1].mul(&2.into()).as_ref() == Some(&y[1]));
        if !channels {
            return fail(format!(
                "output `{}` is {}, expected the sample's {} (or twice its channels)",
                output.name, output.ty, sample.ty
            ));
        }
        Ok(())
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

fn sample_input(inputs: &[PlanInput]) -> Option<&PlanInput> {
    inputs.iter().find(|i| i.role == InputRole::Sample)
}

/// The symbol on axis 0 of the inputs; the importer has unified them.
fn batch_symbol(graph: &Graph) -> Option<String> {
    graph
        .inputs
        .iter()
        .find_map(|&v| graph.shape(v).first().and_then(|d| d.as_symbol()).map(str::to_string))
}

/// What each input means. The sample is the first float input of three or more axes with the first
/// output's spatial sizes; the time step is the input with at most one axis whose name says time,
/// or else the first such input.
fn roles(graph: &Graph) -> Vec<InputRole> {
    let types: Vec<&ValueType> = graph.inputs.iter().map(|&v| graph.ty(v)).collect();
    let output = graph.outputs.first().map(|(_, v)| graph.ty(*v));
    let like_output = |t: &ValueType| {
        output.is_some_and(|y| y.rank() == t.rank() && y.shape[2..] == t.shape[2..])
    };
    let image = |t: &ValueType| t.dtype.is_float() && t.rank() >= 3;
    let sample = types
        .iter()
        .position(|t| image(t) && like_output(t))
        .or_else(|| types.iter().position(|t| image(t)));
    let scalar = |t: &ValueType| t.rank() <= 1 && t.dtype != DType::Bool;
    let named = |i: usize| {
        let name = graph.value(graph.inputs[i]).name.to_lowercase();
        name.contains("time") || name == "t" || name == "step" || name.contains("sigma")
    };
    let candidates: Vec<usize> =
        (0..types.len()).filter(|&i| Some(i) != sample && scalar(types[i])).collect();
    let time = candidates.iter().copied().find(|&i| named(i)).or(candidates.first().copied());
    (0..types.len())
        .map(|i| match i {
            i if Some(i) == sample => InputRole::Sample,
            i if Some(i) == time => InputRole::Timestep,
            _ => InputRole::Condition,
        })
        .collect()
}

/// Tensors for a model's inputs, by name.
pub type Inputs = BTreeMap<String, Tensor>;
