//! Kernels for convolutions, linear layers, matrix products and attention.

use super::super::kernel::{AttentionInputs, Kernel, ProductWeights, Tail};
use super::super::values::Value;
use super::Site;
use cqc_kernels::{AttentionShape, ConvShape, MatmulShape};
use cqc_proto::Op;
use cqc_proto::op::operand::{BIAS, GATE, MASK, QKV, RESIDUAL, ROW, SCALE, WEIGHTS, X};
use cqc_proto::op::{Act, ConvLayout};

/// The maximum number of entries in a convolution's table of pixels, and of pixels in its images.
const MAX_TABLE: usize = 1 << 28;

/// Whether the table of a convolution has an acceptable size.
fn fits_table(shape: &ConvShape) -> bool {
    let entries =
        || shape.out_h().checked_mul(shape.out_w())?.checked_mul(shape.kh)?.checked_mul(shape.kw);
    let pixels = shape.h.checked_mul(shape.w);
    shape.check().is_ok() && [entries(), pixels].iter().all(|n| n.is_some_and(|n| n <= MAX_TABLE))
}

/// The shape of a batched matrix product. Each side has one matrix for every product, or one for
/// all. `None` if a side repeats in part.
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

/// The shape of a convolution over channels-last values, or `None` for another layout or rank.
pub(crate) fn conv_shape(op: &Op, x: &Value, w: &Value, y: &Value) -> Option<ConvShape> {
    let Op::Conv { strides, pads, dilations, groups, layout, upsample, .. } = op else {
        return None;
    };
    let rank = x.shape.len();
    if *layout != ConvLayout::ChannelsLast || !(3..=4).contains(&rank) {
        return None;
    }
    // with one spatial axis the image has one row, which enlarging would double
    if rank == 3 && *upsample != 1 {
        return None;
    }
    let two = |v: &[usize], one: usize| if rank == 4 { [v[0], v[1]] } else { [one, v[0]] };
    let [h, width] = two(&x.shape[1..rank - 1], 1);
    let [kh, kw] = two(&w.shape[2..], 1);
    let pads =
        if rank == 4 { [pads[0], pads[1], pads[2], pads[3]] } else { [0, pads[0], 0, pads[1]] };
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
    /// The epilogue of a product.
    fn tail(&self, act: Act) -> Option<Tail> {
        let per_image = |i| match self.input(i) {
            Some(_) => Some(self.per_image(i)),
            None => Some(None),
        };
        Some(Tail {
            act,
            row: per_image(ROW)?,
            gate: per_image(GATE)?,
            residual: self.input(RESIDUAL).map(|r| r.ld),
        })
    }

    /// Whether bias and scale have no gaps.
    fn has_dense_rows(&self) -> bool {
        self.is_dense(BIAS) && self.is_dense(SCALE)
    }

    pub(super) fn conv(&self, op: &Op) -> Option<Kernel> {
        let Op::Conv { act, .. } = op else { return None };
        let (x, w, y) = (self.input(X)?, self.input(WEIGHTS)?, self.output());
        if !self.is_f32() || !self.has_dense_rows() {
            return None;
        }
        let constant = self.constant(WEIGHTS)?;
        let shape = conv_shape(op, x, w, y)?;
        fits_table(&shape).then_some(())?;
        let conv = self.preparer.weights.conv(shape).ok()?;
        let (tail, ldx, ldy) = (self.tail(*act)?, x.ld, y.ld);
        let all = self.preparer.weights;
        let weights = if let Some(rounding) = self.rounding_of_codes(X) {
            ProductWeights::Codes { packed: all.packed_conv_codes(constant, &shape)?, rounding }
        } else if self.reads_bf16(X) {
            ProductWeights::Bf16(all.packed_conv_bf16(constant, &shape)?)
        } else {
            ProductWeights::F32(all.packed_conv(constant, &conv))
        };
        Some(Kernel::Conv { conv, weights, tail, ldx, ldy })
    }

    pub(super) fn linear(&self, act: Act) -> Option<Kernel> {
        let (x, w, y) = (self.input(X)?, self.input(WEIGHTS)?, self.output());
        if !self.is_f32() || !self.has_dense_rows() {
            return None;
        }
        let (m, k, n) = (y.rows, w.shape[0], w.shape[1]);
        if let Some(constant) = self.constant(WEIGHTS) {
            let pair =
                self.preparer.pairs.get(&self.step.outputs[0]).map(|&y| &self.preparer.values[y]);
            let (tail, ldx, ldy, paired) =
                (self.tail(act)?, x.ld, pair.unwrap_or(y).ld, pair.is_some());
            let all = self.preparer.weights;
            let weights = if let Some(rounding) = self.rounding_of_codes(X) {
                ProductWeights::Codes {
                    packed: all.packed_linear_codes(constant, k, n, paired)?,
                    rounding,
                }
            } else if self.reads_bf16(X) {
                ProductWeights::Bf16(all.packed_linear_bf16(constant, k, n, paired)?)
            } else {
                ProductWeights::F32(all.packed_linear(constant, k, n, paired))
            };
            return Some(Kernel::Linear { m, k, n, weights, tail, ldx, ldy });
        }
        // with a computed right side, only the plain product is fast
        let plain = act == Act::None && (BIAS..=SCALE).all(|i| self.input(i).is_none());
        plain.then(|| {
            let (lda, ldb, ldy) = (x.ld, w.ld, y.ld);
            let (stride_a, stride_b, stride_y) = (0, 0, m * ldy);
            let transpose_b = false;
            Kernel::MatMul(MatmulShape {
                batch: 1,
                m,
                k,
                n,
                lda,
                ldb,
                ldy,
                stride_a,
                stride_b,
                stride_y,
                transpose_b,
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
            // with one right side for all products, the batch joins the rows
            let rows = y.rows;
            if let (Some(constant), 2) = (self.constant(1), rb) {
                let weights =
                    ProductWeights::F32(self.preparer.weights.packed_linear(constant, k, n, false));
                let tail = Tail { act: Act::None, row: None, gate: None, residual: None };
                let (m, ldx, ldy) = (rows, a.ld, y.ld);
                return (a.rows == rows).then_some(Kernel::Linear {
                    m,
                    k,
                    n,
                    weights,
                    tail,
                    ldx,
                    ldy,
                });
            }
        }
        Some(Kernel::MatMul(matmul_shape(a, b, y)?))
    }

    pub(super) fn attention(&self, op: &Op) -> Option<Kernel> {
        let Op::Attention { heads, kv_heads, scale, causal, softcap, softmax_bits } = *op else {
            return None;
        };
        let (q, k, v, y) = (self.input(0)?, self.input(1)?, self.input(2)?, self.output());
        let (lq, lk) = (q.shape[1], k.shape[1]);
        if !self.is_f32() || softcap != 0.0 || (causal && lq != lk) || !self.is_dense(MASK) {
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
        let isa = self.preparer.weights.isa();
        let rounding = QKV.map(|i| self.rounding_of_codes(i));
        let inputs = match rounding {
            [Some(q), Some(k), Some(v)] if isa.attends_codes(&shape) => {
                AttentionInputs::Codes([q, k, v])
            }
            _ if QKV.into_iter().all(|i| self.reads_bf16(i)) && isa.attends_bf16(&shape) => {
                AttentionInputs::Bf16
            }
            _ => AttentionInputs::F32,
        };
        Some(Kernel::Attention { shape, inputs })
    }

    /// The strides of the mask along image, head, query and key; 0 where it repeats.
    fn mask_strides(&self) -> [usize; 4] {
        let mut strides = [0; 4];
        if let Some(mask) = self.input(MASK) {
            let front = 4 - mask.shape.len();
            for (axis, stride) in mask.strides().into_iter().enumerate() {
                strides[front + axis] = if mask.shape[axis] == 1 { 0 } else { stride };
            }
        }
        strides
    }
}
