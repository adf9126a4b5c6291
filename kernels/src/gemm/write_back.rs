//! From accumulators to results: the epilogue, applied while they are still in the first-level
//! cache.

use crate::Isa;
use crate::epilogue::{Act, Epilogue, PerImage};
use crate::math::activate;
use crate::output::{Output, Put, Sink, Writer};
use crate::simd::wide::{CHAINS, Wide};
use crate::simd::{Arithmetic, Simd};
use std::ops::Range;

/// Where results go and what is done to them on the way.
#[derive(Clone, Copy)]
pub(crate) struct WriteBack<'a> {
    pub(crate) epilogue: Epilogue<'a>,
    pub(crate) y: Sink<'a>,
    /// Columns are pairs `a`, `b`, this many of each, packed as [`pair_of`] says: results are a ·
    /// gelu_erf(b).
    pub(crate) half: Option<usize>,
}

/// Products whose columns are pairs have a multiple of this many columns: whole panels of every
/// instruction set.
pub const PAIRED_COLUMNS: usize = 32;

/// Which column of `[a, b]`, `half` of each, is packed as column `col` where panels are `width`
/// wide: a vector of `a` beside its vector of `b`.
pub(crate) fn pair_of(half: usize, width: usize, col: usize) -> usize {
    let (panel, lanes) = (col / width, width / 2);
    let lane = col % width;
    panel * lanes + if lane < lanes { lane } else { half + lane - lanes }
}

impl<'a> WriteBack<'a> {
    /// Where results of `rows × n` sums go; `paired` columns give half as many. Panics unless
    /// everything has those rows and columns.
    pub(crate) fn new(
        isa: Isa,
        epilogue: Epilogue<'a>,
        rows: usize,
        n: usize,
        paired: bool,
        y: Output<'a>,
        ldy: usize,
    ) -> WriteBack<'a> {
        epilogue.check(rows, n);
        if !paired {
            return WriteBack { epilogue, y: Sink::new(isa, y, rows, n, ldy), half: None };
        }
        let plain =
            epilogue.act == Act::None && epilogue.gate.is_none() && epilogue.residual.is_none();
        assert!(plain, "pairs of columns with an activation, a gate or a residual");
        let y = Sink::new(isa, y, rows, n / 2, ldy);
        assert_eq!(y.parts(), 1, "segments of results of pairs");
        WriteBack { epilogue, y, half: Some(n / 2) }
    }
}

/// `n ≤ LANES` values.
///
/// # Safety
/// They must be readable.
#[inline(always)]
pub(crate) unsafe fn load_some<S: Simd>(s: S, p: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if n == S::LANES { s.load(p) } else { s.load_n(p, n) } }
}

/// Stores `n ≤ LANES` values.
///
/// # Safety
/// They must be writable.
#[inline(always)]
pub(crate) unsafe fn store_some<S: Simd>(s: S, p: *mut f32, v: S::V, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { if n == S::LANES { s.store(p, v) } else { s.store_n(p, v, n) } }
}

/// Finishes `rows` rows from `row` and `cols` columns from `col`; `acc` is `[rows, 2 · LANES]`.
///
/// # Safety
/// `acc` must hold that many, the epilogue and `y` must have been checked for those rows and
/// columns, and no other task may write them.
#[inline(always)]
pub(crate) unsafe fn write_back<S: Simd>(
    s: S,
    how: &WriteBack,
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
    acc: *const f32,
) {
    if let Some(half) = how.half {
        // SAFETY: the caller's promise; panels of pairs are whole.
        return unsafe { pairs(s, how, half, row, rows, col / 2, acc) };
    }
    for part in 0..how.y.parts() {
        let Some((columns, writer)) = how.y.writer(s, part, col, cols) else { continue };
        let mut i = 0;
        while i < rows {
            // rows that share what an epilogue has per image
            let end = rows.min(how.epilogue.image_end(row + i) - row);
            // SAFETY: the caller's promise.
            unsafe {
                if columns == (0..2 * S::LANES) {
                    whole_rows(
                        s,
                        &how.epilogue,
                        &writer,
                        row + i,
                        end - i,
                        col,
                        acc.add(i * 2 * S::LANES),
                    );
                } else {
                    let at = (row + i, col);
                    some_columns(
                        s,
                        &how.epilogue,
                        &writer,
                        at,
                        end - i,
                        columns.clone(),
                        acc.add(i * 2 * S::LANES),
                    );
                }
            }
            i = end;
        }
    }
}

/// [`write_back`] of a panel of pairs; `col` is that of the results.
///
/// # Safety
/// As for [`write_back`].
#[inline(always)]
unsafe fn pairs<S: Simd>(
    s: S,
    how: &WriteBack,
    half: usize,
    row: usize,
    rows: usize,
    col: usize,
    mut acc: *const f32,
) {
    let Some((_, writer)) = how.y.writer(s, 0, col, S::LANES) else { return };
    let (mut at, last) = (row, row + rows);
    while at < last {
        // rows that share what an epilogue has per image
        let end = last.min(how.epilogue.image_end(at));
        let parts = [col, half + col].map(|col| RowParts::new(&how.epilogue, at, col));
        while at < end {
            let count = if end - at >= CHAINS { CHAINS } else { 1 };
            // SAFETY: the caller's promise.
            unsafe {
                match count {
                    CHAINS => paired_rows::<S, CHAINS>(s, &parts, &writer, at, col, acc),
                    _ => paired_rows::<S, 1>(s, &parts, &writer, at, col, acc),
                }
                acc = acc.add(count * 2 * S::LANES);
            }
            at += count;
        }
    }
}

/// `M` rows of [`pairs`].
///
/// # Safety
/// As for [`write_back`].
#[inline(always)]
unsafe fn paired_rows<S: Simd, const M: usize>(
    s: S,
    parts: &[RowParts; 2],
    writer: &Writer<S>,
    row: usize,
    col: usize,
    acc: *const f32,
) {
    let w = Wide::<S, M>(s);
    let (mut a, mut b) = ([s.splat(0.0); M], [s.splat(0.0); M]);
    // SAFETY: the caller's promise.
    unsafe {
        for i in 0..M {
            a[i] = s.load(acc.add(2 * i * S::LANES));
            b[i] = s.load(acc.add((2 * i + 1) * S::LANES));
        }
        let (a, b) = (parts[0].affine(w, a), parts[1].affine(w, b));
        let y = w.mul(a, activate(w, Act::GeluErf, b));
        for (i, y) in y.into_iter().enumerate() {
            writer.put(s, row + i, col, y, S::LANES);
        }
    }
}

/// [`write_back`] for rows of one image and both vectors of a panel.
///
/// # Safety
/// As for [`write_back`].
#[inline(always)]
unsafe fn whole_rows<S: Simd>(
    s: S,
    epilogue: &Epilogue,
    writer: &Writer<S>,
    row: usize,
    rows: usize,
    col: usize,
    mut acc: *const f32,
) {
    let (mut parts, ld) =
        (RowParts::new(epilogue, row, col), epilogue.residual.map_or(0, |(_, ld)| ld));
    for row in row..row + rows {
        // SAFETY: the caller's promise; a null residual is not moved.
        unsafe {
            let [a, b] =
                parts.apply_whole(s, epilogue.act, [s.load(acc), s.load(acc.add(S::LANES))]);
            writer.put(s, row, col, a, S::LANES);
            writer.put(s, row, col + S::LANES, b, S::LANES);
            acc = acc.add(2 * S::LANES);
        }
        parts.residual = parts.residual.wrapping_add(ld);
    }
}

/// [`write_back`] for rows of one image and `columns` of a panel that begins at column `at.1`.
///
/// # Safety
/// As for [`write_back`].
#[inline(always)]
unsafe fn some_columns<S: Simd>(
    s: S,
    epilogue: &Epilogue,
    writer: &Writer<S>,
    at: (usize, usize),
    rows: usize,
    columns: Range<usize>,
    acc: *const f32,
) {
    let (row, col) = at;
    for i in 0..rows {
        let parts = RowParts::new(epilogue, row + i, col);
        let mut done = columns.start;
        while done < columns.end {
            let n = (columns.end - done).min(S::LANES);
            // SAFETY: the caller's promise.
            unsafe {
                let v = load_some(s, acc.add(i * 2 * S::LANES + done), n);
                writer.put(s, row + i, col + done, parts.apply(s, epilogue.act, v, done, n), n);
            }
            done += n;
        }
    }
}

/// Where the parts of an epilogue begin for one row; null = absent.
#[derive(Clone, Copy)]
pub(crate) struct RowParts {
    scale: *const f32,
    bias: *const f32,
    row: *const f32,
    gate: *const f32,
    residual: *const f32,
}

impl RowParts {
    #[inline(always)]
    pub(crate) fn new(e: &Epilogue, row: usize, col: usize) -> RowParts {
        let null = std::ptr::null();
        let image = |rows: Option<PerImage>| match rows {
            Some(rows) => rows.data.as_ptr().wrapping_add(rows.start(row) + col),
            None => null,
        };
        RowParts {
            scale: e.scale.map_or(null, |scale| scale.as_ptr().wrapping_add(col)),
            bias: e.bias.map_or(null, |bias| bias.as_ptr().wrapping_add(col)),
            row: image(e.row),
            gate: image(e.gate),
            residual: e
                .residual
                .map_or(null, |(data, ld)| data.as_ptr().wrapping_add(row * ld + col)),
        }
    }

    /// scale · v + bias + row for a vector of several rows.
    ///
    /// # Safety
    /// The parts must have a vector.
    #[inline(always)]
    unsafe fn affine<S: Simd, const M: usize>(&self, w: Wide<S, M>, mut v: [S::V; M]) -> [S::V; M] {
        // SAFETY: the caller's promise.
        unsafe {
            if !self.scale.is_null() {
                v = w.mul(v, [w.0.load(self.scale); M]);
            }
            for part in [self.bias, self.row] {
                if !part.is_null() {
                    v = w.add(v, [w.0.load(part); M]);
                }
            }
        }
        v
    }

    /// residual + gate · act(scale · v + bias + row) for a whole panel: two vectors.
    ///
    /// # Safety
    /// The parts must have `2 · LANES` values.
    #[inline(always)]
    unsafe fn apply_whole<S: Simd>(&self, s: S, act: Act, [mut a, mut b]: [S::V; 2]) -> [S::V; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            if !self.scale.is_null() {
                a = s.mul(a, s.load(self.scale));
                b = s.mul(b, s.load(self.scale.add(S::LANES)));
            }
            for part in [self.bias, self.row] {
                if !part.is_null() {
                    a = s.add(a, s.load(part));
                    b = s.add(b, s.load(part.add(S::LANES)));
                }
            }
            if act != Act::None {
                [a, b] = activate(Wide(s), act, [a, b]);
            }
            if !self.gate.is_null() {
                a = s.mul(a, s.load(self.gate));
                b = s.mul(b, s.load(self.gate.add(S::LANES)));
            }
            if !self.residual.is_null() {
                a = s.add(a, s.load(self.residual));
                b = s.add(b, s.load(self.residual.add(S::LANES)));
            }
        }
        [a, b]
    }

    /// residual + gate · act(scale · v + bias + row) for `n ≤ LANES` columns, `done` columns in.
    ///
    /// # Safety
    /// The parts must have `n` values there.
    #[inline(always)]
    pub(crate) unsafe fn apply<S: Simd>(
        &self,
        s: S,
        act: Act,
        mut v: S::V,
        done: usize,
        n: usize,
    ) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            if !self.scale.is_null() {
                v = s.mul(v, load_some(s, self.scale.add(done), n));
            }
            if !self.bias.is_null() {
                v = s.add(v, load_some(s, self.bias.add(done), n));
            }
            if !self.row.is_null() {
                v = s.add(v, load_some(s, self.row.add(done), n));
            }
            v = activate(s, act, v);
            if !self.gate.is_null() {
                v = s.mul(v, load_some(s, self.gate.add(done), n));
            }
            if !self.residual.is_null() {
                v = s.add(v, load_some(s, self.residual.add(done), n));
            }
        }
        v
    }
}
