//! The option `--cut`: chooses one of the possible cuts.

use super::cut::{Cached, Cut};
use super::flow::{Batch, Flow, live, root};
use crate::ir::{Graph, ValueId};
use std::fmt;
use std::str::FromStr;

/// The share of a full step's multiply-accumulates that `auto` wants of a cached one. On the
/// trained models, at interval 5, cuts at 13 to 14 % end within 1 dB of those at 25 % or better,
/// and the loop costs a fifth less (`docs/quality.md`); below that, quality falls.
pub const AUTO_SHARE: f64 = 0.15;

/// The factor by which a cut at tensors may be farther from [`AUTO_SHARE`] than one at deltas and
/// still be taken, because it adds no operator.
const TENSORS_PREFERRED: f64 = 1.5;

/// Number of similar names that an error lists.
const NEAR: usize = 3;

/// The cut that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum CutSpec {
    /// The cut whose cached step's share of the work is nearest to [`AUTO_SHARE`].
    Auto,
    /// The cut with the cheapest cached step.
    Shallow,
    /// The cut with the most expensive cached step.
    Deep,
    /// The cut whose cached step's share of the work is nearest to this one as a ratio, between 0
    /// and 1.
    Cost(f64),
    /// The cut at exactly these tensors. A delta is written as `BEFORE..AFTER`.
    Names(Vec<String>),
}

impl FromStr for CutSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<CutSpec, String> {
        if let Some(share) = text.strip_prefix("cost=") {
            let share = share.parse().ok().filter(|s| (0.0..1.0).contains(s) && *s > 0.0);
            return share.map(CutSpec::Cost).ok_or_else(|| {
                format!("`{text}`: a cached step's share of the work lies between 0 and 1, as in cost=0.3")
            });
        }
        Ok(match text {
            "auto" => CutSpec::Auto,
            "shallow" => CutSpec::Shallow,
            "deep" => CutSpec::Deep,
            _ => {
                let names: Vec<String> = text.split(',').map(|n| n.trim().to_string()).collect();
                if names.iter().any(String::is_empty) {
                    return Err(format!(
                        "`{text}`: expected auto, shallow, deep, cost=SHARE or names of tensors"
                    ));
                }
                CutSpec::Names(names)
            }
        })
    }
}

impl fmt::Display for CutSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CutSpec::Auto => f.write_str("auto"),
            CutSpec::Shallow => f.write_str("shallow"),
            CutSpec::Deep => f.write_str("deep"),
            CutSpec::Cost(share) => write!(f, "cost={share}"),
            CutSpec::Names(names) => f.write_str(&names.join(",")),
        }
    }
}

/// Why a step cannot be cut as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// The model has no cut to offer.
    #[error(
        "the model has no skip connection or residual chain to cache across: every tensor either saves less than a tenth of a step or hides the sample from the output"
    )]
    NoCandidates,
    /// The step has no tensor of that name.
    #[error("the step has no tensor `{name}`{}", near_text(near))]
    Unknown {
        /// The name that was given.
        name: String,
        /// Names of candidates that are similar.
        near: Vec<String>,
    },
    /// The tensor is an input, a constant, or not of floats.
    #[error("`{name}` cannot be cached: it is not a floating-point result of the step")]
    NotStorable {
        /// The name that was given.
        name: String,
    },
    /// A delta needs two values of one type, the second of which is computed from the first.
    #[error(
        "`{name}` is not a range: the second tensor must be computed from the first and have its type"
    )]
    NotARange {
        /// The name that was given.
        name: String,
    },
    /// No cached step reads the tensor, because the other tensors suffice.
    #[error("a cached step would not read `{name}`")]
    Unused {
        /// The name that was given.
        name: String,
    },
    /// The cached step would be a full one.
    #[error("caching `{name}` saves nothing: a cached step would still compute everything")]
    SavesNothing {
        /// The name that was given.
        name: String,
    },
    /// The cached step would give the same output for every sample.
    #[error("with `{name}` cached the output would no longer depend on the sample")]
    HidesSample {
        /// The name that was given.
        name: String,
    },
}

fn near_text(near: &[String]) -> String {
    if near.is_empty() {
        String::new()
    } else {
        format!("; candidates with similar names: {}", near.join(", "))
    }
}

/// The cut that `spec` asks for. `candidates` are those of [`super::candidates`] for the same
/// graph, sample and batch.
///
/// # Errors
/// [`CutError`]. Without candidates, every `spec` but names is an error.
pub fn choose(
    candidates: &[Cut],
    spec: &CutSpec,
    step: &Graph,
    sample: ValueId,
    batch: Batch,
) -> Result<Cut, CutError> {
    let chosen = match spec {
        CutSpec::Names(names) => return named(candidates, names, &Flow::new(step, sample, batch)),
        CutSpec::Shallow => candidates.last(),
        CutSpec::Deep => candidates.first(),
        CutSpec::Cost(share) => nearest(candidates.iter(), *share).map(|(_, cut)| cut),
        CutSpec::Auto => auto(candidates),
    };
    chosen.cloned().ok_or(CutError::NoCandidates)
}

fn auto(candidates: &[Cut]) -> Option<&Cut> {
    let tensors = nearest(candidates.iter().filter(|c| !c.has_delta()), AUTO_SHARE);
    let deltas = nearest(candidates.iter().filter(|c| c.has_delta()), AUTO_SHARE);
    match (tensors, deltas) {
        (Some((t, cut)), Some((d, _))) if t <= d + TENSORS_PREFERRED.ln() => Some(cut),
        (tensors, deltas) => deltas.or(tensors).map(|(_, cut)| cut),
    }
}

/// The cut whose share is nearest to `share`, with the logarithm of the ratio. Of equally near
/// ones, the deeper is taken.
fn nearest<'a>(cuts: impl Iterator<Item = &'a Cut>, share: f64) -> Option<(f64, &'a Cut)> {
    let distance = |c: &Cut| (c.share().max(f64::MIN_POSITIVE) / share).ln().abs();
    cuts.map(|c| (distance(c), c)).min_by(|a, b| a.0.total_cmp(&b.0))
}

fn named(candidates: &[Cut], names: &[String], flow: &Flow) -> Result<Cut, CutError> {
    let mut tensors =
        names.iter().map(|n| tensor(candidates, n, flow)).collect::<Result<Vec<_>, _>>()?;
    tensors.sort();
    tensors.dedup();
    let live = live(flow.g, &tensors);
    if let Some(unused) = tensors.iter().find(|c| !live.values.contains(&c.replaces())) {
        return Err(CutError::Unused { name: unused.name(flow.g) });
    }
    if !flow.sees_sample(&live) {
        return Err(CutError::HidesSample { name: names.join(",") });
    }
    let cut = Cut::price(flow, tensors);
    if cut.saved() <= 0 { Err(CutError::SavesNothing { name: names.join(",") }) } else { Ok(cut) }
}

fn tensor(candidates: &[Cut], name: &str, flow: &Flow) -> Result<Cached, CutError> {
    let g = flow.g;
    let value = |name: &str| g.values().find(|(_, v)| v.name == name).map(|(id, _)| root(g, id));
    if let Some(v) = value(name) {
        let storable = flow.storable(v) && flow.depends(v);
        return if storable {
            Ok(Cached::Value(v))
        } else {
            Err(CutError::NotStorable { name: name.into() })
        };
    }
    let unknown = || CutError::Unknown { name: name.into(), near: near(candidates, name, g) };
    let (before, after) = name.split_once("..").ok_or_else(unknown)?;
    let (Some(before), Some(after)) = (value(before), value(after)) else { return Err(unknown()) };
    let from = g
        .producer(before)
        .filter(|_| flow.storable(after) && flow.depends(before) && before != after);
    let range =
        from.is_some_and(|p| g.ty(before) == g.ty(after) && flow.upstream([after])[p.0 as usize]);
    if range {
        Ok(Cached::Delta { before, after })
    } else {
        Err(CutError::NotARange { name: name.into() })
    }
}

/// Names of the candidates' tensors, the most similar first.
fn near(candidates: &[Cut], name: &str, g: &Graph) -> Vec<String> {
    let mut names: Vec<String> =
        candidates.iter().flat_map(|c| &c.tensors).map(|c| c.name(g)).collect();
    names.sort_by_cached_key(|n| (edits(n, name), n.clone()));
    names.dedup();
    names.truncate(NEAR);
    names
}

/// Number of insertions, deletions and replacements between two texts.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
