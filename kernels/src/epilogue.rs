//! What happens to an accumulator before it is stored: bias, time embedding, activation, gate,
//! residual.

pub use cqc_proto::op::Act;

/// One row of values per image, shared by all rows (pixels, tokens) of that image: a time
/// embedding, a gate.
///
/// Row `r` of the result uses `data[(r / rows_per_image) * stride ..][.. n]`.
#[derive(Clone, Copy, Debug)]
pub struct PerImage<'a> {
    /// `images` rows of at least `n` values, `stride` apart.
    pub data: &'a [f32],
    /// Distance between the rows of two images, in values; 0 = the same row for all images.
    pub stride: usize,
    /// Result rows that belong to one image, at least 1.
    pub rows_per_image: usize,
}

impl<'a> PerImage<'a> {
    /// The `n` values for result row `row`.
    #[inline(always)]
    pub fn of(&self, row: usize, n: usize) -> &'a [f32] {
        &self.data[self.start(row)..][..n]
    }

    /// Where the values for result row `row` begin in `data`.
    #[inline(always)]
    pub(crate) fn start(&self, row: usize) -> usize {
        if self.stride == 0 { 0 } else { row / self.rows_per_image * self.stride }
    }

    /// Panics unless `rows` result rows of `n` values can be served.
    pub(crate) fn check(&self, what: &str, rows: usize, n: usize) {
        assert!(self.rows_per_image > 0, "{what}: rows_per_image is 0");
        if rows > 0 {
            let need = self.start(rows - 1) + n;
            assert!(need <= self.data.len(), "{what}: {} values, needs {need}", self.data.len());
        }
    }
}

/// y = residual + gate · act(scale · acc + bias + row), each part optional.
///
/// `acc` is the convolution or product, `[rows, n]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// `[n]`, a factor of every row: the correction of quantized products.
    pub scale: Option<&'a [f32]>,
    /// `[n]`, added to every row.
    pub bias: Option<&'a [f32]>,
    /// Added per image: the time embedding of a residual block.
    pub row: Option<PerImage<'a>>,
    /// Applied after the additions.
    pub act: Act,
    /// Multiplied per image: adaLN's gate.
    pub gate: Option<PerImage<'a>>,
    /// Added last: values, and the distance between its rows (at least `n`).
    pub residual: Option<(&'a [f32], usize)>,
}

impl<'a> Epilogue<'a> {
    /// An epilogue that only adds a bias, one value per column.
    pub fn bias(bias: &'a [f32]) -> Self {
        Epilogue { bias: Some(bias), ..Epilogue::default() }
    }

    /// The end of the result rows, `row` among them, for which parts that are given per image are
    /// the same.
    pub(crate) fn image_end(&self, row: usize) -> usize {
        let end = |part: Option<PerImage>| match part {
            Some(part) if part.stride != 0 => (row / part.rows_per_image + 1).saturating_mul(part.rows_per_image),
            _ => usize::MAX,
        };
        end(self.row).min(end(self.gate))
    }

    /// Panics unless every part has the values that `rows × n` results need.
    pub(crate) fn check(&self, rows: usize, n: usize) {
        for (what, part) in [("bias", self.bias), ("scale", self.scale)] {
            if let Some(part) = part {
                assert!(part.len() >= n, "{what} has {} values, needs {n}", part.len());
            }
        }
        if let Some(row) = self.row {
            row.check("row", rows, n);
        }
        if let Some(gate) = self.gate {
            gate.check("gate", rows, n);
        }
        if let Some((data, ld)) = self.residual {
            check_matrix("residual", data.len(), rows, n, ld);
        }
    }
}

/// Panics unless a slice of `len` values holds `rows` rows of `cols` values, `ld` apart.
pub(crate) fn check_matrix(what: &str, len: usize, rows: usize, cols: usize, ld: usize) {
    assert!(ld >= cols, "{what}: rows of {cols} values cannot be {ld} apart");
    if rows > 0 && cols > 0 {
        let need = (rows - 1) * ld + cols;
        assert!(len >= need, "{what}: {len} values, needs {need} for {rows} rows of {cols}, {ld} apart");
    }
}
