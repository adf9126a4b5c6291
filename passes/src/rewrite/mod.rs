//! Passes that rewrite the graph. Each pass has a file, and [`PIPELINE`] orders them.
//!
//! A rule looks at one node and answers that it does not match, that it refuses to replace it for a
//! reason, or that some values replace others. It may append nodes for the replacement but never
//! edits existing ones. The driver substitutes the values, removes dead nodes and verifies the
//! graph.

pub(crate) mod matching;

mod attention;
mod fold_constants;
mod fold_pad;
mod fuse_epilogue;
mod geglu;
mod gelu;
mod group_norm;
mod layer_norm;
pub(crate) mod layout;
mod linear;
mod modulate;
mod no_ops;
mod silu;
mod timestep_embedding;
mod upsample_conv;
mod widen_floats;

use crate::ir::{Graph, NodeId, ValueId, VerifyError, verify};
use crate::onnx::limits::{FOLD_BUDGET, MACS_BUDGET};
use cqc_proto::op::OpError;
use std::cell::Cell;
use std::collections::HashMap;

/// The answer of a rule for one node.
#[derive(Clone, Debug, PartialEq)]
pub enum Rewrite {
    /// The node does not match the rule.
    NoMatch,
    /// The node matches, but a replacement would be wrong or a loss. The reason is reported.
    Refused(String),
    /// Every reader of the first value of a pair shall read the second one.
    Replace(Vec<(ValueId, ValueId)>),
}

impl Rewrite {
    /// A refusal with a reason.
    pub fn refused(why: impl Into<String>) -> Rewrite {
        Rewrite::Refused(why.into())
    }

    /// The replacement of one value.
    pub fn one(old: ValueId, new: ValueId) -> Rewrite {
        Rewrite::Replace(vec![(old, new)])
    }
}

/// The facts that a rule may look at besides the graph.
pub struct Context<'a> {
    readers: Vec<usize>,
    folding: &'a Cell<Folding>,
}

/// The rest of the budget for folding constants in one run of the passes.
#[derive(Clone, Copy)]
struct Folding {
    bytes: u64,
    macs: i64,
}

impl Folding {
    /// Bytes that folding may read and write per byte of the existing constants: every weight may
    /// be widened, transposed and scaled. Beyond that, the limits are those of the import.
    const SHARE: u64 = 16;

    fn of(graph: &Graph) -> Folding {
        let constants = graph.values().filter_map(|(v, _)| graph.tensor(v));
        let bytes: u64 = constants.map(|t| t.bytes().len() as u64).sum();
        let bytes = bytes.saturating_mul(Folding::SHARE).saturating_add(FOLD_BUDGET as u64);
        Folding { bytes, macs: MACS_BUDGET }
    }
}

impl Context<'_> {
    /// Takes bytes and multiply-accumulates from the budget for folding constants. Returns false if
    /// the budget does not have as many.
    pub fn spend(&self, bytes: u64, macs: i64) -> bool {
        let left = self.folding.get();
        let enough = bytes <= left.bytes && macs <= left.macs;
        if enough {
            self.folding.set(Folding { bytes: left.bytes - bytes, macs: left.macs - macs });
        }
        enough
    }

    /// Number of operands and outputs that read the value.
    pub fn readers(&self, v: ValueId) -> usize {
        self.readers.get(v.0 as usize).copied().unwrap_or(0)
    }

    /// Whether exactly one operand or output reads the value.
    pub fn single_reader(&self, v: ValueId) -> bool {
        self.readers(v) == 1
    }
}

/// A rule; see the module's documentation. It returns [`Rewrite::NoMatch`] or [`Rewrite::Refused`]
/// where a replacement would not type-check. An error of [`Graph::op`] that it returns becomes a
/// [`PassFault::Replacement`].
pub type Rule = fn(&mut Graph, NodeId, &Context) -> Result<Rewrite, OpError>;

/// A named pass.
#[derive(Clone, Copy)]
pub struct Pass {
    /// Its name for `--dump-after` and reports.
    pub name: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// A rule that is applied to every node until nothing matches.
    Rule(Rule),
    /// A function that may change the whole graph. The driver then compacts and verifies the graph.
    Whole(fn(&mut Graph)),
}

impl Pass {
    /// A pass that is made of one rule.
    pub const fn rule(name: &'static str, rule: Rule) -> Pass {
        Pass { name, kind: Kind::Rule(rule) }
    }

    /// A pass over the whole graph.
    pub const fn whole(name: &'static str, run: fn(&mut Graph)) -> Pass {
        Pass { name, kind: Kind::Whole(run) }
    }
}

/// The passes in their order. Every line says why the pass has its place.
pub const PIPELINE: &[Pass] = &[
    // first: constants below fold in f32, and casts between floats become no-ops
    widen_floats::WIDEN_FLOATS,
    fold_constants::FOLD_CONSTANTS, // rules below match literal scales, weights and epsilons
    no_ops::REMOVE_NO_OPS,          // rules below match through nothing but real operators
    timestep_embedding::TIMESTEP_EMBEDDING, // before anything else claims its sine and cosine
    silu::FUSE_SILU,                // before norms: GroupNorm + SiLU is matched as a pair
    gelu::FUSE_GELU,                // before GEGLU and epilogues, which look for one node
    group_norm::FUSE_GROUP_NORM,    // before layouts: it knows both
    layer_norm::FUSE_LAYER_NORM,    // after GroupNorm: its decomposed form reduces other axes
    linear::FUSE_LINEAR,            // before attention, which looks through reshapes to linears
    modulate::FUSE_MODULATE,        // after LayerNorm, which it extends
    attention::FUSE_ATTENTION,      // after folding: scales are literals now
    no_ops::REMOVE_NO_OPS,          // transposes around attention cancel
    geglu::FUSE_GEGLU,              // after GELU
    layout::CHANNELS_LAST,          // after fusion: fewer transposes to carry through
    no_ops::REMOVE_NO_OPS,          // removes the remains of the layout pass
    fold_constants::FOLD_CONSTANTS, // transposed constants
    fold_pad::FOLD_PAD,             // any layout; here because of its neighbour below
    upsample_conv::FUSE_UPSAMPLE,   // after layouts: resize and convolution stand side by side
    linear::FUSE_LINEAR,            // 1x1 convolutions of the channels-last form
    fuse_epilogue::FUSE_EPILOGUE,   // last: takes the rest after products and norms
    no_ops::REMOVE_NO_OPS,          // removes the remains of folding
];

/// A replacement that a rule found but did not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Name of the pass.
    pub pass: &'static str,
    /// Name of the value that would have been replaced.
    pub value: String,
    /// The reason.
    pub reason: String,
}

/// The results of the passes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RewriteReport {
    /// Number of replacements per pass, in the order of [`PIPELINE`].
    pub replaced: Vec<(&'static str, usize)>,
    /// Replacements that were refused.
    pub refusals: Vec<Refusal>,
    /// Errors of rules. The graph is valid nevertheless, because the node was left as it was.
    /// Builds with debug assertions return the first error instead.
    pub failures: Vec<PassError>,
}

/// An error of a pass, which is a bug of the pass and never of the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pass {pass}: {cause}")]
pub struct PassError {
    /// Name of the pass.
    pub pass: &'static str,
    /// The error and the node.
    pub cause: PassFault,
}

/// The kinds of errors of a pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassFault {
    /// The pass left a graph that breaks an invariant.
    #[error(transparent)]
    Invalid(#[from] VerifyError),
    /// A rule built a node that does not type-check.
    #[error("node `{node}`: its replacement does not type-check: {source}")]
    Replacement {
        /// Name of the node that the rule looked at.
        node: String,
        /// The reason why the operator does not take the operands.
        source: OpError,
    },
    /// A rule still replaced something in its last round.
    #[error("node `{node}`: the rule still replaces it after {MAX_ROUNDS} rounds")]
    Unsettled {
        /// Name of the last node that was replaced.
        node: String,
    },
}

/// Runs the passes in order. `after` is called with each pass and the graph after it.
///
/// # Errors
/// [`PassFault::Invalid`] if a pass leaves a graph that [`verify`] rejects. With debug assertions,
/// also the errors that are otherwise in [`RewriteReport::failures`].
pub fn run(
    graph: &mut Graph,
    passes: &[Pass],
    after: impl FnMut(&Pass, &Graph),
) -> Result<RewriteReport, PassError> {
    run_with(graph, passes, OnFailure::of_build(), after)
}

/// The treatment of a rule that fails.
#[derive(Clone, Copy, PartialEq)]
enum OnFailure {
    Stop,
    RewriteReport,
}

impl OnFailure {
    fn of_build() -> OnFailure {
        if cfg!(debug_assertions) { OnFailure::Stop } else { OnFailure::RewriteReport }
    }
}

fn run_with(
    graph: &mut Graph,
    passes: &[Pass],
    on_failure: OnFailure,
    mut after: impl FnMut(&Pass, &Graph),
) -> Result<RewriteReport, PassError> {
    let mut report = RewriteReport::default();
    let folding = Cell::new(Folding::of(graph));
    for pass in passes {
        let count = match pass.kind {
            Kind::Rule(rule) => apply(graph, pass, rule, &folding, &mut report)?,
            Kind::Whole(run) => {
                run(graph);
                tidy(graph, pass)?;
                0
            }
        };
        if let (OnFailure::Stop, Some(failure)) = (on_failure, report.failures.first()) {
            return Err(failure.clone());
        }
        report.replaced.push((pass.name, count));
        after(pass, graph);
    }
    Ok(report)
}

/// Largest number of rounds of one rule. Every round but the last replaces something, so only a
/// rule that undoes its own work reaches this limit.
const MAX_ROUNDS: usize = 64;

fn apply(
    graph: &mut Graph,
    pass: &Pass,
    rule: Rule,
    folding: &Cell<Folding>,
    report: &mut RewriteReport,
) -> Result<usize, PassError> {
    let (refusals, failures) = (report.refusals.len(), report.failures.len());
    let (mut total, mut last) = (0, None);
    for _ in 0..MAX_ROUNDS {
        // the refusals and failures of the last round are the ones that still hold
        report.refusals.truncate(refusals);
        report.failures.truncate(failures);
        let replaced = round(graph, pass, rule, folding, report);
        tidy(graph, pass)?;
        last = replaced.last().cloned();
        total += replaced.len();
        if replaced.is_empty() {
            break;
        }
    }
    let unsettled = |node| PassError { pass: pass.name, cause: PassFault::Unsettled { node } };
    report.failures.extend(last.map(unsettled));
    Ok(total)
}

/// Offers every live node to the rule, and returns the names of the nodes that it replaced.
fn round(
    graph: &mut Graph,
    pass: &Pass,
    rule: Rule,
    folding: &Cell<Folding>,
    report: &mut RewriteReport,
) -> Vec<String> {
    let mut replaced = Vec::new();
    let mut context = Context { readers: graph.reader_counts(), folding };
    for i in 0..graph.node_count() {
        let id = NodeId(i as u32);
        if graph.get(id).outputs.iter().all(|&v| context.readers(v) == 0) {
            continue;
        }
        let values_before = graph.values().count();
        match rule(graph, id, &context) {
            Ok(Rewrite::NoMatch) => {}
            Err(e) => {
                let cause = PassFault::Replacement { node: graph.get(id).name.clone(), source: e };
                report.failures.push(PassError { pass: pass.name, cause });
            }
            Ok(Rewrite::Refused(reason)) => {
                let value = graph.value(graph.get(id).outputs[0]).name.clone();
                report.refusals.push(Refusal { pass: pass.name, value, reason });
            }
            Ok(Rewrite::Replace(pairs)) => {
                for &(old, new) in &pairs {
                    assert_eq!(
                        graph.ty(old),
                        graph.ty(new),
                        "{}: a replacement keeps its type",
                        pass.name
                    );
                    // names of the source model outlive names that were made here
                    let numbered = |v| graph.value(v).numbered;
                    if new.0 as usize >= values_before || (numbered(new) && !numbered(old)) {
                        graph.swap_names(old, new);
                    }
                }
                graph.substitute(&HashMap::from_iter(pairs));
                context.readers = graph.live_reader_counts();
                replaced.push(graph.get(id).name.clone());
            }
        }
    }
    replaced
}

fn tidy(graph: &mut Graph, pass: &Pass) -> Result<(), PassError> {
    let fail = |e: VerifyError| PassError { pass: pass.name, cause: e.into() };
    graph.compact().map_err(|node| fail(VerifyError { node, what: "stands on a cycle".into() }))?;
    verify(graph).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::parse;
    use cqc_proto::Op;
    use cqc_proto::op::UnaryKind;

    fn graph() -> Graph {
        parse("graph(%x: f32[2,3]) {\n  %y = sigmoid(%x)\n  return %y\n}").unwrap()
    }

    /// Reshapes six elements into seven.
    fn ill_typed(g: &mut Graph, id: NodeId, _: &Context) -> Result<Rewrite, OpError> {
        let node = g.get(id).clone();
        let new =
            g.op(&node.name, Op::Reshape { shape: vec![7.into()] }, &[node.inputs[0].unwrap()])?;
        Ok(Rewrite::one(node.outputs[0], new))
    }

    /// Replaces a node by the same node, again and again.
    fn restless(g: &mut Graph, id: NodeId, _: &Context) -> Result<Rewrite, OpError> {
        let node = g.get(id).clone();
        let new = g.op(&node.name, Op::unary(UnaryKind::Sigmoid), &[node.inputs[0].unwrap()])?;
        Ok(Rewrite::one(node.outputs[0], new))
    }

    fn failure_of(rule: Rule) -> PassError {
        let passes = [Pass::rule("faulty", rule)];
        let mut left = graph();
        let report = run_with(&mut left, &passes, OnFailure::RewriteReport, |_, _| {}).unwrap();
        assert_eq!(left.to_string(), graph().to_string(), "the graph stays what it means");
        let stopped = run_with(&mut graph(), &passes, OnFailure::Stop, |_, _| {}).unwrap_err();
        let [failure] = &report.failures[..] else {
            panic!("one failure, not {:?}", report.failures)
        };
        assert_eq!(stopped, *failure);
        failure.clone()
    }

    #[test]
    fn an_error_inside_a_rule_is_reported_with_rule_and_node() {
        let failure = failure_of(ill_typed);
        let expected = "pass faulty: node `y`: its replacement does not type-check: reshape: ";
        assert!(failure.to_string().starts_with(expected), "{failure}");
    }

    #[test]
    fn a_rule_that_never_settles_is_reported_with_rule_and_node() {
        let failure = failure_of(restless);
        assert_eq!(
            failure.to_string(),
            "pass faulty: node `y`: the rule still replaces it after 64 rounds"
        );
    }

    #[test]
    fn builds_with_debug_assertions_stop_at_a_failure() {
        let result = run(&mut graph(), &[Pass::rule("faulty", ill_typed)], |_, _| {});
        assert_eq!(result.is_err(), cfg!(debug_assertions));
    }
}
