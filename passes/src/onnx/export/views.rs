//! Transposed and reshaped values.

use super::cx::{Cx, Def, Val};
use super::proto::{int, ints};
use crate::rewrite::layout::to_last;
use crate::rewrite::matching::inverse;
use cqc_proto::{Dim, Tensor, ValueType};

/// Larger constants are transposed when the model runs, and not stored twice.
const MAX_FOLD: usize = 1 << 20;

impl Cx<'_> {
    /// The transposed value: axis `k` of the result is axis `perm[k]` of `v`.
    pub fn transpose(&mut self, v: Val, perm: &[usize]) -> Val {
        if perm.iter().copied().eq(0..perm.len()) {
            return v;
        }
        if let Some(&known) = self.transposed.get(&(v, perm.to_vec())) {
            return known;
        }
        let ty = self.ty(v).clone();
        let shape: Vec<Dim> = perm.iter().map(|&p| ty.shape[p].clone()).collect();
        let view = match self.def(v).clone() {
            Def::Transposed { of, perm: inner } => {
                let joined: Vec<usize> = perm.iter().map(|&p| inner[p]).collect();
                self.transpose(of, &joined)
            }
            Def::Constant(t) if t.bytes().len() <= MAX_FOLD => {
                let t = self.store.transposed(&t, perm);
                self.constant(&format!("{}/Transpose", self.label(v)), t)
            }
            _ if moves_only_ones(&ty.shape, perm) => self.reshape(v, shape),
            _ => match self.channels_first_behind(v, perm) {
                Some(first) => self.reshape(first, shape),
                None => {
                    let def = Def::Transposed { of: v, perm: perm.to_vec() };
                    self.add(ValueType::new(ty.dtype, shape), def, None, "")
                }
            },
        };
        self.transposed.insert((v, perm.to_vec()), view);
        view
    }

    pub fn reshape(&mut self, v: Val, shape: Vec<Dim>) -> Val {
        if shape == self.shape(v) {
            return v;
        }
        if let Some(&known) = self.reshaped.get(&(v, shape.clone())) {
            return known;
        }
        let fixed: Option<Vec<usize>> =
            shape.iter().map(|d| d.as_const().map(|v| v as usize)).collect();
        let view = match (self.def(v).clone(), fixed) {
            (Def::Reshaped { of }, _) => self.reshape(of, shape.clone()),
            (Def::Constant(t), Some(fixed)) => {
                let label = self.label(v).to_string();
                let t: Tensor = t.reshaped(fixed).expect("a reshape keeps the number of elements");
                self.constant(&label, t)
            }
            _ => {
                let ty = ValueType::new(self.dtype(v), shape.clone());
                self.add(ty, Def::Reshaped { of: v }, None, "")
            }
        };
        self.reshaped.insert((v, shape), view);
        view
    }

    /// The value with channels first, even if something must be computed for it.
    pub fn first(&mut self, v: Val) -> Val {
        self.transpose(v, &inverse(&to_last(self.rank(v))))
    }

    /// The value with channels last.
    pub fn last(&mut self, v: Val) -> Val {
        self.transpose(v, &to_last(self.rank(v)))
    }

    /// Whether the value is available with channels first, and only so.
    pub fn is_first(&self, v: Val) -> bool {
        match self.def(v) {
            Def::Transposed { perm, .. } => perm.len() >= 3 && *perm == to_last(perm.len()),
            Def::Reshaped { of } => self.is_first(*of) && self.keeps_channels(*of, v),
            _ => false,
        }
    }

    /// The channels-first value of which `v`, a reshape of its channels-last view, is a reshape
    /// under `perm`.
    fn channels_first_behind(&self, v: Val, perm: &[usize]) -> Option<Val> {
        let Def::Reshaped { of } = self.def(v) else { return None };
        let Def::Transposed { of: first, perm: inner } = self.def(*of) else { return None };
        let undoes = *inner == to_last(inner.len()) && perm == inverse(&to_last(perm.len()));
        (undoes && self.keeps_channels(*of, v)).then_some(*first)
    }

    /// Whether a reshape leaves the batch and the last axis unchanged.
    fn keeps_channels(&self, from: Val, to: Val) -> bool {
        let (a, b) = (self.shape(from), self.shape(to));
        a.len() >= 3 && b.len() >= 3 && a.first() == b.first() && a.last() == b.last()
    }

    pub(super) fn transpose_node(&mut self, of: Val, perm: &[usize]) -> String {
        let shape: Vec<Dim> = perm.iter().map(|&p| self.shape(of)[p].clone()).collect();
        let ty = ValueType::new(self.dtype(of), shape);
        let y = self.node("Transpose", &[of], vec![ints("perm", perm)], ty);
        self.name(y)
    }

    /// Writes a reshape. One unknown size is written as -1, and one that the operand has on the
    /// same axis as 0.
    pub(super) fn reshape_node(&mut self, of: Val, shape: &[Dim]) -> String {
        let from = self.shape(of).to_vec();
        let entry = |(i, d): (usize, &Dim)| match d.as_const() {
            Some(v) => v,
            None if from.get(i) == Some(d) => 0,
            None => -1,
        };
        let entries: Vec<i64> = shape.iter().enumerate().map(entry).collect();
        let (empty, open) =
            (shape.iter().any(|d| d.is(0)), entries.iter().filter(|&&e| e == -1).count());
        let symbolic = shape.iter().any(|d| d.as_const().is_none());
        let target = if open <= 1 && !(empty && symbolic) {
            self.ints(&entries)
        } else {
            self.sizes(shape)
                .expect("a plan's shapes hold no symbol but the batch, which an input tells")
        };
        let attributes = if empty { vec![int("allowzero", 1)] } else { vec![] };
        let y =
            self.node("Reshape", &[of, target], attributes, ValueType::new(self.dtype(of), shape));
        self.name(y)
    }
}

/// Whether the axes that are not 1 keep their order.
fn moves_only_ones(shape: &[Dim], perm: &[usize]) -> bool {
    let kept: Vec<usize> = perm.iter().copied().filter(|&p| !shape[p].is(1)).collect();
    kept.is_sorted()
}
