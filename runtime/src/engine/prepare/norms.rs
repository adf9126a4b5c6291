//! Kernels for normalisations, softmax, GEGLU, the affine map per channel and roundings.

use super::super::kernel::Kernel;
use super::super::values::segment_sizes;
use super::Site;
use cqc_proto::op::operand::{
    AFFINE_MAP, AFFINE_PREVIOUS, AFFINE_RESIDUAL, BETA, GAMMA, MODULATE, ROUNDING,
};
use cqc_proto::op::{Act, ConvLayout};

impl Site<'_> {
    /// Whether these per-channel operands have no gaps.
    fn are_dense(&self, operands: [usize; 2]) -> bool {
        operands.into_iter().all(|i| self.is_dense(i))
    }

    pub(super) fn group_norm(
        &self,
        groups: usize,
        eps: f32,
        layout: ConvLayout,
        act: Act,
    ) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        // without spatial axes both layouts are the same
        if !self.is_f32()
            || !self.are_dense([GAMMA, BETA])
            || (layout == ConvLayout::ChannelsFirst && x.shape.len() > 2)
        {
            return None;
        }
        let (n, c) = (x.shape[0], x.cols);
        Some(Kernel::GroupNorm { n, hw: x.rows / n, c, groups, eps, act, ldx: x.ld, ldy: y.ld })
    }

    pub(super) fn layer_norm(&self, eps: f32) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        if !self.is_f32() || !self.are_dense([GAMMA, BETA]) {
            return None;
        }
        let modulate = match MODULATE.map(|i| self.input(i)) {
            [None, None] => None,
            [Some(_), Some(_)] => {
                Some([self.per_image(MODULATE[0])?, self.per_image(MODULATE[1])?])
            }
            _ => return None,
        };
        Some(Kernel::LayerNorm { rows: x.rows, c: x.cols, eps, modulate, ldx: x.ld, ldy: y.ld })
    }

    pub(super) fn rms_norm(&self, eps: f32) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        let fast = self.is_f32() && self.is_dense(GAMMA);
        fast.then_some(Kernel::RmsNorm { rows: x.rows, c: x.cols, eps, ldx: x.ld, ldy: y.ld })
    }

    pub(super) fn softmax(&self, axis: usize) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        let fast = self.is_f32() && axis + 1 == x.shape.len() && x.is_dense() && y.is_dense();
        fast.then_some(Kernel::Softmax { rows: x.rows, cols: x.cols })
    }

    pub(super) fn geglu(&self, act: Act) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        let fast = self.is_f32() && act == Act::GeluErf;
        fast.then_some(Kernel::Geglu { rows: y.rows, c: y.cols, ldx: x.ld, ldy: y.ld })
    }

    pub(super) fn affine(&self) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        let fast = self.is_f32() && self.are_dense(AFFINE_MAP) && self.is_dense(AFFINE_PREVIOUS[1]);
        let [residual, previous] =
            [AFFINE_RESIDUAL, AFFINE_PREVIOUS[0]].map(|i| self.input(i).map(|r| r.ld));
        fast.then_some(Kernel::Affine {
            rows: x.rows,
            c: x.cols,
            ldx: x.ld,
            residual,
            previous,
            ldy: y.ld,
        })
    }

    pub(super) fn round_bf16(&self) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        let (rows, c, stored) = (x.rows, x.cols, y.stored_as.is_some());
        Some(Kernel::RoundBf16 { rows, c, stored, ldx: x.ld, ldy: y.ld })
    }

    pub(super) fn fake_quant(&self, bits: u8, segments: &[usize]) -> Option<Kernel> {
        let (x, y) = (self.input(0)?, self.output());
        let segments = segment_sizes(segments, x);
        let fast = self.are_dense(ROUNDING) && segments.iter().sum::<usize>() == x.cols;
        let (rows, ldx, ldy) = (x.rows, x.ld, y.ld);
        let stored = y.stored_as.is_some();
        fast.then_some(Kernel::FakeQuant { rows, bits, segments, stored, ldx, ldy })
    }
}
