//! `Einsum`, as a transpose, a reduction or a matrix product.

use super::movement::product;
use super::*;
use cqc_proto::op::{BinaryKind, ReduceKind};
use cqc_proto::{Dim, Op};
use std::collections::BTreeMap;

pub(super) const TABLE: Table = &[("Einsum", einsum)];

/// An equation without ellipses: letters per operand and of the result.
struct Equation {
    terms: Vec<Vec<char>>,
    result: Vec<char>,
}

fn einsum(cx: &mut Cx, c: &Call) -> Done {
    let inputs = c.all_inputs()?;
    let ranks = inputs.iter().map(|i| Ok(cx.ty(i)?.rank())).collect::<Result<Vec<_>, Refusal>>()?;
    let equation = parse(c.string("equation", "")?, &ranks)?;
    let sizes = sizes(cx, &equation, &inputs)?;
    let plain =
        sizes.is_some() && equation.terms.iter().all(|t| distinct(t)) && distinct(&equation.result);
    let done = match (&inputs[..], sizes) {
        ([x], Some(_)) if plain => Some(single(cx, x, &equation)?),
        ([a, b], Some(sizes)) if plain => matmul(cx, a, b, &equation, &sizes)?,
        _ => None,
    };
    if let Some(y) = done {
        return Ok(vec![y]);
    }
    let letters: String =
        equation.terms.iter().map(|t| t.iter().collect::<String>()).collect::<Vec<_>>().join(",");
    let equation = format!("{letters}->{}", equation.result.iter().collect::<String>());
    Ok(vec![cx.emit(Op::Einsum { equation }, &inputs)?])
}

fn distinct(letters: &[char]) -> bool {
    letters.iter().enumerate().all(|(i, l)| !letters[..i].contains(l))
}

/// Parses, and renames letters to `a`, `b` … in order of appearance.
fn parse(text: &str, ranks: &[usize]) -> Result<Equation, Refusal> {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let bad = || {
        Refusal::Malformed(format!(
            "the equation `{}` does not fit its {} operands",
            crate::onnx::error::shown(&text),
            ranks.len()
        ))
    };
    let (left, right) = match text.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (text.as_str(), None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != ranks.len() {
        return Err(bad());
    }
    let named = |t: &str| t.chars().filter(|c| *c != '.').count();
    let hidden = |(t, &rank): (&&str, &usize)| {
        if t.contains("...") { rank.checked_sub(named(t)) } else { Some(0) }
    };
    let widest = terms
        .iter()
        .zip(ranks)
        .map(hidden)
        .collect::<Option<Vec<_>>>()
        .ok_or_else(bad)?
        .into_iter()
        .max()
        .unwrap_or(0);
    // axes of an ellipsis get letters outside the alphabet, counted from the last
    let expand = |t: &str, count: usize| -> Option<Vec<char>> {
        let dots: String = (widest - count..widest).map(|i| char::from(b'0' + i as u8)).collect();
        let letters: Vec<char> = t.replacen("...", &dots, 1).chars().collect();
        letters.iter().all(|c| c.is_ascii_alphanumeric()).then_some(letters)
    };
    let mut expanded = Vec::new();
    for (t, &rank) in terms.iter().zip(ranks) {
        let letters = expand(t, if t.contains("...") { rank - named(t) } else { 0 })
            .filter(|l| l.len() == rank);
        expanded.push(letters.ok_or_else(bad)?);
    }
    let result = match right {
        Some(right) => expand(right, widest).ok_or_else(bad)?,
        None => implicit(&expanded),
    };
    rename(expanded, result).ok_or_else(bad)
}

/// The result of an equation without `->`: the ellipsis, then the letters that occur once, in
/// alphabetical order.
fn implicit(terms: &[Vec<char>]) -> Vec<char> {
    let mut counts = BTreeMap::new();
    terms.iter().flatten().for_each(|&l| *counts.entry(l).or_insert(0) += 1);
    counts.into_iter().filter(|(l, n)| l.is_ascii_digit() || *n == 1).map(|(l, _)| l).collect()
}

fn rename(terms: Vec<Vec<char>>, result: Vec<char>) -> Option<Equation> {
    let mut names: Vec<char> = Vec::new();
    let mut short = |l: char| {
        let i = names.iter().position(|n| *n == l).unwrap_or_else(|| {
            names.push(l);
            names.len() - 1
        });
        (i < 26).then(|| char::from(b'a' + i as u8))
    };
    let terms = terms
        .iter()
        .map(|t| t.iter().map(|&l| short(l)).collect())
        .collect::<Option<Vec<Vec<char>>>>()?;
    let result = result.iter().map(|&l| short(l)).collect::<Option<Vec<char>>>()?;
    result
        .iter()
        .all(|l| terms.iter().flatten().any(|t| t == l))
        .then_some(Equation { terms, result })
}

/// Size of every letter; `None` if sizes of 1 broadcast.
fn sizes(cx: &Cx, e: &Equation, inputs: &[&Item]) -> Result<Option<BTreeMap<char, Dim>>, Refusal> {
    let mut sizes: BTreeMap<char, Dim> = BTreeMap::new();
    for (term, item) in e.terms.iter().zip(inputs) {
        for (&l, d) in term.iter().zip(cx.ty(item)?.shape) {
            if sizes.entry(l).or_insert_with(|| d.clone()) != &d {
                return Ok(None);
            }
        }
    }
    Ok(Some(sizes))
}

/// Sums over the letters that are not kept, and returns the remaining letters.
fn summed(
    cx: &mut Cx,
    x: &Item,
    term: &[char],
    kept: impl Fn(char) -> bool,
) -> Result<(Item, Vec<char>), Refusal> {
    let axes: Vec<usize> = (0..term.len()).filter(|&i| !kept(term[i])).collect();
    let left = term.iter().copied().filter(|&l| kept(l)).collect();
    if axes.is_empty() {
        Ok((x.clone(), left))
    } else {
        Ok((cx.reduce(ReduceKind::Sum, axes, false, x)?, left))
    }
}

fn permuted(cx: &mut Cx, x: &Item, from: &[char], to: &[char]) -> Result<Item, Refusal> {
    let perm = to.iter().filter_map(|l| from.iter().position(|f| f == l)).collect();
    cx.transpose(x, perm)
}

fn single(cx: &mut Cx, x: &Item, e: &Equation) -> Result<Item, Refusal> {
    let (x, left) = summed(cx, x, &e.terms[0], |l| e.result.contains(&l))?;
    permuted(cx, &x, &left, &e.result)
}

/// Two operands as a batched matrix product; `None` if a size of it could not be expressed.
fn matmul(
    cx: &mut Cx,
    a: &Item,
    b: &Item,
    e: &Equation,
    sizes: &BTreeMap<char, Dim>,
) -> Result<Option<Item>, Refusal> {
    let (ta, tb) = (&e.terms[0], &e.terms[1]);
    let in_result = |l: &char| e.result.contains(l);
    let batch: Vec<char> =
        e.result.iter().copied().filter(|l| ta.contains(l) && tb.contains(l)).collect();
    let rows: Vec<char> =
        e.result.iter().copied().filter(|l| ta.contains(l) && !tb.contains(l)).collect();
    let columns: Vec<char> =
        e.result.iter().copied().filter(|l| tb.contains(l) && !ta.contains(l)).collect();
    let inner: Vec<char> = ta.iter().copied().filter(|l| tb.contains(l) && !in_result(l)).collect();
    let of = |letters: &[char]| letters.iter().map(|l| sizes[l].clone()).collect::<Vec<Dim>>();
    let flat = |letters: &[char]| product(&of(letters));
    let (Ok(m), Ok(n), Ok(k)) = (flat(&rows), flat(&columns), flat(&inner)) else {
        return Ok(None);
    };
    let (a, left_a) = summed(cx, a, ta, |l| in_result(&l) || tb.contains(&l))?;
    let (b, left_b) = summed(cx, b, tb, |l| in_result(&l) || ta.contains(&l))?;
    let a = permuted(cx, &a, &left_a, &[&batch[..], &rows, &inner].concat())?;
    let b = permuted(cx, &b, &left_b, &[&batch[..], &inner, &columns].concat())?;
    let a = cx.reshape(&a, [of(&batch), vec![m, k.clone()]].concat())?;
    let b = cx.reshape(&b, [of(&batch), vec![k, n]].concat())?;
    let y = match inner.is_empty() {
        true => cx.binary(BinaryKind::Mul, &a, &b)?,
        false => cx.emit(Op::MatMul, &[&a, &b])?,
    };
    let letters = [&batch[..], &rows, &columns].concat();
    let y = cx.reshape(&y, of(&letters))?;
    permuted(cx, &y, &letters, &e.result).map(Some)
}
