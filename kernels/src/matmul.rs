//! Matrix products: with packed weights ([`linear`]) and between two activations
//! ([`matmul_batched`]).

use crate::epilogue::check_matrix;
use crate::gemm::{Groups, Lhs, Product, WriteBack};
use crate::output::{Output, Sink};
use crate::pack::{PackedLayout, pack_panels, panels_len};
use crate::shared::SharedMut;
use crate::{Epilogue, Isa, PackedMatrix, Pool, dot};

/// y = epilogue(x · w): `x` `[m, k]` with rows `ldx` apart, `w` packed from `[k, n]`, `y` `[m, n]`
/// with rows `ldy` apart; `[m, n / 2]` where columns are packed in pairs.
///
/// # Panics
/// When `packed` was made for another `isa`, `k` or `n`, a slice is too short, or `k` is 0; for
/// pairs as [`linear_codes`](crate::linear_codes).
pub fn linear<'a>(
    isa: Isa,
    pool: &Pool,
    m: usize,
    k: usize,
    n: usize,
    x: &[f32],
    ldx: usize,
    packed: &PackedMatrix,
    epilogue: &Epilogue,
    y: impl Into<Output<'a>>,
    ldy: usize,
) {
    packed.check(isa, 1, k, n);
    check_matrix("x", x.len(), m, k, ldx);
    let lhs = Lhs { x, ld: ldx, taps: 1, depth: k, gather: None };
    let write_back = WriteBack::new(isa, *epilogue, m, n, packed.is_paired(), y.into(), ldy);
    match packed.layout() {
        PackedLayout::Dot { .. } => dot::run(isa, pool, &lhs, m, n, packed.values(), &write_back),
        _ => Product { isa, lhs, rows: m, right: packed.values(), n, groups: Groups::ONE, write_back }.run(pool),
    }
}

/// Shape of [`matmul_batched`]: y\[b\] = a\[b\] · b\[b\], all distances in values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatmulShape {
    /// Number of products, each with operands of its own.
    pub batch: usize,
    /// Rows of `a` and `y`.
    pub m: usize,
    /// Columns of `a`, rows of `b`.
    pub k: usize,
    /// Columns of `b` and `y`.
    pub n: usize,
    /// Distance between rows of `a`, at least `k`.
    pub lda: usize,
    /// Distance between rows of `b` as it lies in memory: at least `n`, or `k` when transposed.
    pub ldb: usize,
    /// Distance between rows of `y`, at least `n`.
    pub ldy: usize,
    /// Distance between two `a`; 0 = the same for all.
    pub stride_a: usize,
    /// Distance between two `b`; 0 = the same for all.
    pub stride_b: usize,
    /// Distance between two `y`, at least one `y`.
    pub stride_y: usize,
    /// `b` lies as `[n, k]`.
    pub transpose_b: bool,
}

impl MatmulShape {
    /// Different `b`, each to be packed.
    fn packs(&self) -> usize {
        if self.stride_b == 0 { self.batch.min(1) } else { self.batch }
    }

    fn check(&self, a: &[f32], b: &[f32], y: &[f32]) {
        let (b_rows, b_cols) = if self.transpose_b { (self.n, self.k) } else { (self.k, self.n) };
        let Some(last) = self.batch.checked_sub(1) else { return };
        let from = |len: usize, stride: usize| len.saturating_sub(last * stride);
        check_matrix("a", from(a.len(), self.stride_a), self.m, self.k, self.lda);
        check_matrix("b", from(b.len(), self.stride_b), b_rows, b_cols, self.ldb);
        check_matrix("y", from(y.len(), self.stride_y), self.m, self.n, self.ldy);
        let size = if self.m == 0 { 0 } else { (self.m - 1) * self.ldy + self.n };
        assert!(last == 0 || self.stride_y >= size, "results of {size} values lie {} apart", self.stride_y);
    }
}

/// Length of the scratch that [`matmul_batched`] needs, in f32 values.
pub fn matmul_scratch_len(isa: Isa, shape: &MatmulShape) -> usize {
    shape.packs() * panels_len(isa, shape.k, shape.n)
}

/// y\[b\] = a\[b\] · b\[b\] for unpacked operands; `scratch` holds at least [`matmul_scratch_len`]
/// values.
///
/// # Panics
/// When a slice is too short, a stride lets two `y` overlap, or `k` is 0.
pub fn matmul_batched(
    isa: Isa,
    pool: &Pool,
    shape: &MatmulShape,
    a: &[f32],
    b: &[f32],
    y: &mut [f32],
    scratch: &mut [f32],
) {
    shape.check(a, b, y);
    if shape.batch * shape.m * shape.n == 0 {
        return;
    }
    let (s, size) = (shape, panels_len(isa, shape.k, shape.n));
    let need = matmul_scratch_len(isa, shape);
    assert!(scratch.len() >= need, "scratch has {} values, needs {need}", scratch.len());
    let packed = SharedMut::new(&mut scratch[..need]);
    pool.run(s.packs(), &|index, _| {
        // SAFETY: every task has its own part.
        let out = unsafe { packed.part(index * size, size) };
        pack_panels(isa, s.k, s.n, &b[index * s.stride_b..], s.ldb, s.transpose_b, out);
    });
    let lhs = Lhs { x: a, ld: s.lda, taps: 1, depth: s.k, gather: None };
    let right = if s.stride_b == 0 { 0 } else { size };
    let groups = Groups { count: s.batch, left: s.stride_a, right, col: s.stride_y };
    let write_back = WriteBack { epilogue: Epilogue::default(), y: Sink::values(y, s.ldy), half: None };
    Product { isa, lhs, rows: s.m, right: &scratch[..need], n: s.n, groups, write_back }.run(pool);
}
