//! Compares constants by content.

use super::side::Side;
use cqc_proto::Tensor;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// The relation of two sets of constants.
#[derive(Debug, Serialize)]
pub struct Constants {
    /// Number of pairs of the same type and bytes.
    pub equal: usize,
    /// Pairs of the same name and type with different bytes.
    pub differing: Vec<Differing>,
    /// Names of the constants without a partner.
    pub only_a: Vec<String>,
    pub only_b: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Differing {
    pub name: String,
    pub ty: String,
    /// Largest absolute difference of two elements; `None` if it is not a number.
    pub max_abs: Option<f64>,
}

impl Constants {
    /// Whether every constant has an equal one.
    pub fn equal_sets(&self) -> bool {
        self.differing.is_empty() && self.only_a.is_empty() && self.only_b.is_empty()
    }
}

/// A hash of the bytes, and the type.
type Content = ([u8; 32], String);

fn content(t: &Tensor) -> Content {
    (blake3::hash(t.bytes()).into(), t.value_type().to_string())
}

pub fn between(a: &Side, b: &Side) -> Constants {
    let mut of_b: HashMap<Content, Vec<usize>> = HashMap::new();
    b.constants
        .iter()
        .enumerate()
        .rev()
        .for_each(|(i, t)| of_b.entry(content(t)).or_default().push(i));
    let unequal =
        |(_, t): &(usize, &Tensor)| of_b.get_mut(&content(t)).and_then(Vec::pop).is_none();
    let only_a: Vec<(usize, &Tensor)> = a.constants.iter().enumerate().filter(unequal).collect();
    let equal = a.constants.len() - only_a.len();

    let name = |side: &Side, i: usize| side.plan.constants[i].name.clone();
    let left = of_b.into_values().flatten().map(|i| (i, &b.constants[i]));
    let mut only_b: BTreeMap<(String, String), (usize, &Tensor)> =
        left.map(|(i, t)| ((name(b, i), format!("{} {i:09}", t.value_type())), (i, t))).collect();
    let mut result = Constants { equal, differing: vec![], only_a: vec![], only_b: vec![] };
    for (i, t) in only_a {
        let (name, ty) = (name(a, i), t.value_type());
        let partner = only_b
            .iter()
            .find(|((n, _), (_, u))| *n == name && u.value_type() == ty)
            .map(|(key, _)| key.clone());
        match partner.and_then(|key| only_b.remove(&key)) {
            Some((_, u)) => result.differing.push(Differing {
                name,
                ty: ty.to_string(),
                max_abs: max_abs(t, u),
            }),
            None => result.only_a.push(name),
        }
    }
    result.only_b = only_b.into_keys().map(|(name, _)| name).collect();
    result
}

fn max_abs(a: &Tensor, b: &Tensor) -> Option<f64> {
    a.to_f64_vec().iter().zip(b.to_f64_vec()).try_fold(0.0f64, |most, (a, b)| {
        let difference = (a - b).abs();
        (!difference.is_nan()).then_some(most.max(difference))
    })
}
