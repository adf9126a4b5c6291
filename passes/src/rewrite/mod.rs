//! Passes over the graph: one file per pass, one list that orders them.
//!
//! A rule looks at one node and answers *no match*, *refused, because …* or *replace these values by those*. It may append
//! nodes for the replacement but never edits existing ones; the driver substitutes, drops what became dead and verifies.

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
use std::collections::HashMap;

/// What a rule says about one node.
#[derive(Clone, Debug, PartialEq)]
pub enum Rewrite {
    /// The node is not what the rule looks for.
    NoMatch,
    /// It is, but replacing it would be wrong or a loss; the reason is reported.
    Refused(String),
    /// Every reader of `.0` shall read `.1`.
    Replace(Vec<(ValueId, ValueId)>),
}

impl Rewrite {
    /// Refusal with a reason.
    pub fn refused(why: impl Into<String>) -> Rewrite {
        Rewrite::Refused(why.into())
    }

    /// Replaces one value.
    pub fn one(old: ValueId, new: ValueId) -> Rewrite {
        Rewrite::Replace(vec![(old, new)])
    }
}

/// What a rule may look at besides the graph.
pub struct Context {
    readers: Vec<usize>,
}

impl Context {
    /// How many operands and outputs read the value.
    pub fn readers(&self, v: ValueId) -> usize {
        self.readers.get(v.0 as usize).copied().unwrap_or(0)
    }

    /// Whether one operand, and nothing else, reads the value.
    pub fn single_reader(&self, v: ValueId) -> bool {
        self.readers(v) == 1
    }
}

/// A rule: see the module. Errors of [`Graph::op`] inside it mean that the replacement does not type-check, hence no match.
pub type Rule = fn(&mut Graph, NodeId, &Context) -> Result<Rewrite, cqc_proto::op::OpError>;

/// A named rewrite.
#[derive(Clone, Copy)]
pub struct Pass {
    /// Name for `--dump-after` and reports.
    pub name: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Applied to every node, again and again until nothing matches.
    Rule(Rule),
    /// Does as it likes; the driver compacts and verifies.
    Whole(fn(&mut Graph)),
}

impl Pass {
    /// A pass made of one rule.
    pub const fn rule(name: &'static str, rule: Rule) -> Pass {
        Pass { name, kind: Kind::Rule(rule) }
    }

    /// A pass over the whole graph.
    pub const fn whole(name: &'static str, run: fn(&mut Graph)) -> Pass {
        Pass { name, kind: Kind::Whole(run) }
    }
}

/// The order of passes. Every line says why it stands there.
pub const PIPELINE: &[Pass] = &[
    widen_floats::WIDEN_FLOATS, // first: constants below fold in f32, and casts between floats become no-ops
    fold_constants::FOLD_CONSTANTS, // rules below match literal scales, weights and epsilons
    no_ops::REMOVE_NO_OPS,      // rules below match through nothing but real operators
    timestep_embedding::TIMESTEP_EMBEDDING, // before anything else claims its sine and cosine
    silu::FUSE_SILU,            // before norms: GroupNorm + SiLU is matched as a pair
    gelu::FUSE_GELU,            // before GEGLU and epilogues, which look for one node
    group_norm::FUSE_GROUP_NORM, // before layouts: it knows both
    layer_norm::FUSE_LAYER_NORM, // after GroupNorm: its decomposed form reduces other axes
    linear::FUSE_LINEAR,        // before attention, which looks through reshapes to linears
    modulate::FUSE_MODULATE,    // after LayerNorm, which it extends
    attention::FUSE_ATTENTION,  // after folding: scales are literals now
    no_ops::REMOVE_NO_OPS,      // transposes around attention cancel
    geglu::FUSE_GEGLU,          // after GELU
    layout::CHANNELS_LAST,      // after fusion: fewer transposes to carry through
    no_ops::REMOVE_NO_OPS,      // what the layout pass leaves behind
    fold_constants::FOLD_CONSTANTS, // transposed constants
    fold_pad::FOLD_PAD,         // any layout; here because of its neighbour below
    upsample_conv::FUSE_UPSAMPLE, // after layouts: resize and convolution stand side by side
    linear::FUSE_LINEAR,        // 1x1 convolutions of the channels-last form
    fuse_epilogue::FUSE_EPILOGUE, // last: takes what still stands behind products and norms
    no_ops::REMOVE_NO_OPS,      // what folding left behind
];

/// A replacement that a rule found but did not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Name of the pass.
    pub pass: &'static str,
    /// The value it would have replaced.
    pub value: String,
    /// Why not.
    pub reason: String,
}

/// What the passes did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Replacements per pass, in order of [`PIPELINE`].
    pub replaced: Vec<(&'static str, usize)>,
    /// What was refused.
    pub refusals: Vec<Refusal>,
}

/// Why a pass failed: a bug of the pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pass {pass}: {cause}")]
pub struct PassError {
    /// Name of the pass.
    pub pass: &'static str,
    /// The broken invariant.
    pub cause: VerifyError,
}

/// Runs passes in order; `after` sees the graph behind each of them.
///
/// # Errors
/// [`PassError`] when a pass leaves a graph that [`verify`] rejects.
pub fn run(graph: &mut Graph, passes: &[Pass], mut after: impl FnMut(&Pass, &Graph)) -> Result<Report, PassError> {
    let mut report = Report::default();
    for pass in passes {
        let count = match pass.kind {
            Kind::Rule(rule) => apply(graph, pass, rule, &mut report.refusals)?,
            Kind::Whole(run) => {
                run(graph);
                tidy(graph, pass)?;
                0
            }
        };
        report.replaced.push((pass.name, count));
        after(pass, graph);
    }
    Ok(report)
}

/// Most rounds of one rule; every round but the last replaces something, so only a rule that undoes itself gets here.
const MAX_ROUNDS: usize = 64;

fn apply(graph: &mut Graph, pass: &Pass, rule: Rule, refusals: &mut Vec<Refusal>) -> Result<usize, PassError> {
    let mut total = 0;
    for _ in 0..MAX_ROUNDS {
        let first_refusal = refusals.len();
        let replaced = round(graph, pass, rule, refusals);
        tidy(graph, pass)?;
        if replaced == 0 {
            break;
        }
        refusals.truncate(first_refusal); // the last round's are the ones that still hold
        total += replaced;
    }
    Ok(total)
}

fn round(graph: &mut Graph, pass: &Pass, rule: Rule, refusals: &mut Vec<Refusal>) -> usize {
    let mut replaced = 0;
    let mut context = Context { readers: graph.reader_counts() };
    for i in 0..graph.node_count() {
        let id = NodeId(i as u32);
        if graph.get(id).outputs.iter().all(|&v| context.readers(v) == 0) {
            continue;
        }
        let values_before = graph.values().count();
        match rule(graph, id, &context) {
            Err(_) | Ok(Rewrite::NoMatch) => {}
            Ok(Rewrite::Refused(reason)) => {
                let value = graph.value(graph.get(id).outputs[0]).name.clone();
                refusals.push(Refusal { pass: pass.name, value, reason });
            }
            Ok(Rewrite::Replace(pairs)) => {
                for &(old, new) in &pairs {
                    assert_eq!(graph.ty(old), graph.ty(new), "{}: a replacement keeps its type", pass.name);
                    // names of the source model outlive those made up here
                    let made_up = |v| graph.value(v).name.contains('#');
                    if new.0 as usize >= values_before || (made_up(new) && !made_up(old)) {
                        graph.swap_names(old, new);
                    }
                }
                graph.substitute(&HashMap::from_iter(pairs));
                context.readers = graph.live_reader_counts();
                replaced += 1;
            }
        }
    }
    replaced
}

fn tidy(graph: &mut Graph, pass: &Pass) -> Result<(), PassError> {
    let fail = |cause| PassError { pass: pass.name, cause };
    graph.compact().map_err(|node| fail(VerifyError { node, what: "stands on a cycle".into() }))?;
    verify(graph).map_err(fail)
}
