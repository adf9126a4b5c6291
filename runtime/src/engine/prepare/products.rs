//! Convolution, linear layers, matrix products, attention.

use super::super::kernel::{Kernel, Tail};
use super::super::values::Value;
use super::Site;
use cqc_kernels::{AttentionShape, ConvShape, MatmulShape};
use cqc_proto::op::{Act, ConvLayout};
use cqc_proto::{DType, Op};

/// Most entries of a convolution's table of pixels, and pixels of its images.
const MAX_TABLE: usize = 1 << 28;

/// Whether the table that a convolution plans with has a sane size.
fn fits_table(shape: &ConvShape) -> bool {
    let entries = || shape.out_h().checked_mul(shape.out_w())?.checked_mul(shape.kh)?.checked_mul(shape.kw);
    let pixels = shape.h.checked_mul(shape.w);
    shape.check().is_ok() && [entries(), pixels].iter().all(|n| n.is_some_and(|n| n <= MAX_TABLE))
}

/// The shape of a batched product of matrices. Each side has one for every product, or one for all; `None` where it repeats in part.
pub(crate) fn matmul_shape(a: &Value, b: &Value, y: &Value) -> Option<MatmulShape> {
    let (m, k, n) = (a.shape[a.shape.len().checked_sub(2)?], a.cols, b.cols);
    let batch = y.rows / m;
    let stride = |rows: usize, per: usize, ld: usize| match rows / per {
        1 => Some(0),
        count if count == batch => Some(per * ld),
        _ => None,
    };
    Some(MatmulShape {
        batch,
        m,
        k,
        n,
        lda: a.ld,
        ldb: b.ld,
        ldy: y.ld,
        stride_a: stride(a.rows, m, a.ld)?,
        stride_b: stride(b.rows, k, b.ld)?,
        stride_y: m * y.ld,
        transpose_b: false,
    })
}

/// The shape of a convolution over channels-last values; `None` for any other.
pub(crate) fn conv_shape(op: &Op, x: &Value, w: &Value, y: &Value) -> Option<ConvShape> {
    let Op::Conv { strides, pads, dilations, groups, layout, upsample, .. } = op else { return None };
    let rank = x.shape.len();
    if *layout != ConvLayout::ChannelsLast || !(3..=4).contains(&rank) {
        return None;
    }
    // One spatial axis: an image of one row, which enlarging would double.
    if rank == 3 && *upsample != 1 {
        return None;
    }
    let two = |v: &[usize], one: usize| if rank == 4 { [v[0], v[1]] } else { [one, v[0]] };
    let [h, width] = two(&x.shape[1..rank - 1], 1);
    let [kh, kw] = two(&w.shape[2..], 1);
    let pads = if rank == 4 { [pads[0], pads[1], pads[2], pads[3]] } else { [0, pads[0], 0, pads[1]] };
    Some(ConvShape {
        n: x.shape[0],
        h,
        w: width,
        cin: x.cols,
        cout: y.cols,
        kh,
        kw,
        stride: two(strides, 1),
        pads,
        dilation: two(dilations, 1),
        groups: *groups,
        upsample: *upsample,
    })
}

impl Site<'_> {
    /// Inputs 2 to 6 behind a product.
    fn tail(&self, function: Act) -> Option<Tail> {
        let per_image = |i| match self.input(i) {
            Some(_) => Some(self.per_image(i)),
            None => Some(None),
        };
        Some(Tail { act: function, row: per_image(3)?, gate: per_image(4)?, residual: self.input(5).map(|r| r.ld) })
    }

    /// Whether bias and scale have no gaps.
    fn has_dense_rows(&self) -> bool {
        self.is_dense(2) && self.is_dense(6)
    }

    pub(super) fn conv(&self, op: &Op) -> Option<Kernel> {
        let Op::Conv { act, .. } = op else { return None };
        let (x, w, y) = (self.input(0)?, self.input(1)?, self.output());
        if !self.is_f32() || !self.has_dense_rows() {
            return None;
        }
        let constant = self.constant(1)?;
        let shape = conv_shape(op, x, w, y)?;
        fits_table(&shape).then_some(())?;
        let conv = self.preparer.weights.conv(shape).ok()?;
        let (tail, ldx, ldy) = (self.tail(*act)?, x.ld, y.ld);
        if let Some(rounding) = self.rounding_of_codes(0) {
            let packed = self.preparer.weights.packed_conv_codes(constant, &shape)?;
            return Some(Kernel::ConvCodes { conv, packed, rounding, tail, ldx, ldy });
        }
        if self.reads_bf16() {
            let packed = self.preparer.weights.packed_conv_bf16(constant, &shape)?;
            return Some(Kernel::ConvBf16 { conv, packed, tail, ldx, ldy });
        }
        let packed = self.preparer.weights.packed_conv(constant, &conv);
        Some(Kernel::Conv { conv, packed, tail, ldx, ldy })
    }

    pub(super) fn linear(&self, act: Act) -> Option<Kernel> {
        let (x, w, y) = (self.input(0)?, self.input(1)?, self.output());
        if !self.is_f32() || !self.has_dense_rows() {
            return None;
        }
        let (m, k, n) = (y.rows, w.shape[0], w.shape[1]);
        if let Some(constant) = self.constant(1) {
            let pair = self.preparer.pairs.get(&self.step.outputs[0]).map(|&y| &self.preparer.values[y]);
            let (tail, ldx, ldy, paired) = (self.tail(act)?, x.ld, pair.unwrap_or(y).ld, pair.is_some());
            if let Some(rounding) = self.rounding_of_codes(0) {
                let packed = self.preparer.weights.packed_linear_codes(constant, k, n, paired)?;
                return Some(Kernel::LinearCodes { m, k, n, packed, rounding, tail, ldx, ldy });
            }
            if self.reads_bf16() {
                let packed = self.preparer.weights.packed_linear_bf16(constant, k, n, paired)?;
                return Some(Kernel::LinearBf16 { m, k, n, packed, tail, ldx, ldy });
            }
            let packed = self.preparer.weights.packed_linear(constant, k, n, paired);
            return Some(Kernel::Linear { m, k, n, packed, tail, ldx, ldy });
        }
        // A computed matrix: only the plain product is fast.
        let plain = act == Act::None && (2..7).all(|i| self.input(i).is_none());
        plain.then(|| {
            let (lda, ldb, ldy) = (x.ld, w.ld, y.ld);
            let strides = (0, 0, m * ldy);
            Kernel::MatMul(MatmulShape {
                batch: 1,
                m,
                k,
                n,
                lda,
                ldb,
                ldy,
                stride_a: strides.0,
                stride_b: strides.1,
                stride_y: strides.2,
                transpose_b: false,
            })
        })
    }

    pub(super) fn matmul(&self) -> Option<Kernel> {
        let (a, b, y) = (self.input(0)?, self.input(1)?, self.output());
        let (ra, rb) = (a.shape.len(), b.shape.len());
        if !self.is_f32() || ra < 2 || rb < 2 {
            return None;
        }
        let (k, n) = (a.cols, b.cols);
        if b.rows == k {
            // One right side for all: the batch joins the rows.
            let rows = y.rows;
            if let (Some(constant), 2) = (self.constant(1), rb) {
                let packed = self.preparer.weights.packed_linear(constant, k, n, false);
                let tail = Tail { act: cqc_kernels::Act::None, row: None, gate: None, residual: None };
                return (a.rows == rows).then_some(Kernel::Linear {
                    m: rows,
                    k,
                    n,
                    packed,
                    tail,
                    ldx: a.ld,
                    ldy: y.ld,
                });
            }
        }
        Some(Kernel::MatMul(matmul_shape(a, b, y)?))
    }

    pub(super) fn attention(&self, op: &Op) -> Option<Kernel> {
        let Op::Attention { heads, kv_heads, scale, causal, softcap, softmax_bits } = *op else { return None };
        let (q, k, v, y) = (self.input(0)?, self.input(1)?, self.input(2)?, self.output());
        let (lq, lk) = (q.shape[1], k.shape[1]);
        if !self.is_f32() || softcap != 0.0 || (causal && lq != lk) || !self.is_dense(3) {
            return None;
        }
        let shape = AttentionShape {
            n: q.shape[0],
            heads,
            kv_heads,
            lq,
            lk,
            d: q.cols / heads,
            dv: v.cols / kv_heads,
            scale,
            causal,
            softmax_bits,
            mask_strides: self.mask_strides(),
            ldq: q.ld,
            ldk: k.ld,
            ldv: v.ld,
            ldy: y.ld,
        };
        if let (Some(q), Some(k), Some(v)) =
            (self.rounding_of_codes(0), self.rounding_of_codes(1), self.rounding_of_codes(2))
            && self.preparer.weights.isa().attends_codes(&shape)
        {
            return Some(Kernel::AttentionCodes { shape, rounding: [q, k, v] });
        }
        let reads_bf16 = |i| self.input(i).is_some_and(|x: &Value| x.codes == Some(DType::BF16));
        if (0..3).all(reads_bf16) && self.preparer.weights.isa().attends_bf16(&shape) {
            return Some(Kernel::AttentionBf16(shape));
        }
        Some(Kernel::Attention(shape))
    }

    /// Distances in the mask along image, head, query and key; 0 where it is the same for all.
    fn mask_strides(&self) -> [usize; 4] {
        let mut strides = [0; 4];
        if let Some(mask) = self.input(3) {
            let front = 4 - mask.shape.len();
            for (axis, stride) in mask.strides().into_iter().enumerate() {
                strides[front + axis] = if mask.shape[axis] == 1 { 0 } else { stride };
            }
        }
        strides
    }
}
