//! Normalisations, softmax, GEGLU, the affine map per channel.

use super::super::kernel::Kernel;
use super::Site;
use cqc_proto::op::{Act, ConvLayout};

impl Site<'_> {
    /// Whether per-channel operands `from..to` have no gaps.
    fn are_dense(&self, mut operands: std::ops::Range<usize>) -> bool {
        operands.all(|i| self.is_dense(i))
    }

    pub(super) fn group_norm(&self, groups: usize, eps: f32, layout: ConvLayout, function: Act) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        // Without spatial axes both layouts are the same.
        if !self.is_f32() || !self.are_dense(1..3) || (layout == ConvLayout::ChannelsFirst && x.shape.len() > 2) {
            return None;
        }
        let (n, c) = (x.shape[0], x.cols);
        Some(Kernel::GroupNorm { n, hw: x.rows / n, c, groups, eps, act: function, ldx: x.ld, ldy: y.ld })
    }

    pub(super) fn layer_norm(&self, eps: f32) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        if !self.is_f32() || !self.are_dense(1..3) {
            return None;
        }
        let modulate = match (self.input(3), self.input(4)) {
            (None, None) => None,
            (Some(_), Some(_)) => Some([self.per_image(3)?, self.per_image(4)?]),
            _ => return None,
        };
        Some(Kernel::LayerNorm { rows: x.rows, c: x.cols, eps, modulate, ldx: x.ld, ldy: y.ld })
    }

    pub(super) fn rms_norm(&self, eps: f32) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        let fast = self.is_f32() && self.is_dense(1);
        fast.then_some(Kernel::RmsNorm { rows: x.rows, c: x.cols, eps, ldx: x.ld, ldy: y.ld })
    }

    pub(super) fn softmax(&self, axis: usize) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        let fast = self.is_f32() && axis + 1 == x.shape.len() && x.is_dense() && y.is_dense();
        fast.then_some(Kernel::Softmax { rows: x.rows, cols: x.cols })
    }

    pub(super) fn geglu(&self, function: Act) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        let fast = self.is_f32() && function == Act::GeluErf;
        fast.then_some(Kernel::Geglu { rows: y.rows, c: y.cols, ldx: x.ld, ldy: y.ld })
    }

    pub(super) fn affine(&self) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        let fast = self.is_f32() && self.are_dense(1..3) && self.is_dense(5);
        let [residual, previous] = [3, 4].map(|i| self.input(i).map(|r| r.ld));
        fast.then_some(Kernel::Affine { rows: x.rows, c: x.cols, ldx: x.ld, residual, previous, ldy: y.ld })
    }

    pub(super) fn round_bf16(&self) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        let (rows, c, stored) = (x.rows, x.cols, y.codes.is_some());
        Some(Kernel::RoundBf16 { rows, c, stored, ldx: x.ld, ldy: y.ld })
    }

    pub(super) fn fake_quant(&self, bits: u8, segments: &[usize]) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        let segments = if segments.is_empty() { vec![x.cols] } else { segments.to_vec() };
        let fast = self.are_dense(1..3) && segments.iter().sum::<usize>() == x.cols;
        let (rows, ldx, ldy) = (x.rows, x.ld, y.ld);
        fast.then(|| match y.codes {
            Some(_) => Kernel::Quantize { rows, bits, segments, ldx, ldy },
            None => Kernel::FakeQuant { rows, bits, segments, ldx, ldy },
        })
    }
}
