//! Attention without the full score matrix: blocks of queries against blocks of keys, softmax on
//! the way.

use crate::epilogue::check_matrix;
use crate::gemm::{F32, Tile, Tiling};
use crate::pack::{pack_panels, panel_width, panels_len};
use crate::rows::{SoftmaxRounding, exp_row, row_max, scale_row};
use crate::shared::{SharedMut, cut};
use crate::simd::{Simd, SimdKernel};
use crate::{Isa, Pool};
use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

/// Shape of [`attention`], all distances in values.
///
/// `q` is `[n, lq, heads · d]`, `k` `[n, lk, kv_heads · d]`, `v` `[n, lk, kv_heads · dv]`, `y` `[n,
/// lq, heads · dv]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Images, or sequences of a batch.
    pub n: usize,
    /// Query heads; `q` and `y` hold them side by side.
    pub heads: usize,
    /// Key and value heads; divides `heads`. Query head `h` uses key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Queries per image.
    pub lq: usize,
    /// Keys per image.
    pub lk: usize,
    /// Width of a query and key head.
    pub d: usize,
    /// Width of a value head.
    pub dv: usize,
    /// Factor of the scores, usually 1/√d.
    pub scale: f32,
    /// Query `i` sees keys `j ≤ i` only.
    pub causal: bool,
    /// Weights are rounded to multiples of 1 / (2^bits − 1) of their query's largest; 0 = not at
    /// all, [`SOFTMAX_BF16`](cqc_proto::op::SOFTMAX_BF16) = to bf16.
    pub softmax_bits: u8,
    /// Strides of the additive mask over image, head, query and key; 0 = broadcast.
    pub mask_strides: [usize; 4],
    /// Distance between two queries of an image in `q`, in elements.
    pub ldq: usize,
    /// Distance between two keys of an image in `k`, in elements.
    pub ldk: usize,
    /// Distance between two values of an image in `v`, in elements.
    pub ldv: usize,
    /// Distance between two results of an image in `y`, in elements.
    pub ldy: usize,
}

impl AttentionShape {
    /// Where the mask for one score lies.
    pub fn mask_at(&self, image: usize, head: usize, query: usize, key: usize) -> usize {
        let [n, h, q, k] = self.mask_strides;
        image * n + head * h + query * q + key * k
    }
}

/// Queries of a task: their scores against one block of keys stay in the second-level cache.
const QUERIES: usize = 96;
/// Keys of a block at most; a multiple of every panel width.
const KEYS: usize = 256;

/// Between the scores of two queries: no power of two, which would crowd them into few sets of the
/// cache.
const SCORES_LD: usize = KEYS + 16;

/// How scratch is laid out.
#[derive(Clone, Copy)]
struct ScratchLayout {
    /// Packed kᵀ of one image and head.
    k_len: usize,
    /// Packed v of one image and head.
    v_len: usize,
    /// Pairs of image and key head.
    pairs: usize,
    /// Width of a row of sums: `dv` rounded up to whole panels.
    sums: usize,
}

impl ScratchLayout {
    fn new(isa: Isa, s: &AttentionShape) -> ScratchLayout {
        ScratchLayout {
            k_len: panels_len(isa, s.d, s.lk),
            v_len: panels_len(isa, s.lk, s.dv),
            pairs: s.n * s.kv_heads,
            sums: s.dv.next_multiple_of(panel_width(isa)),
        }
    }

    fn packed(&self) -> usize {
        self.pairs * (self.k_len + self.v_len)
    }

    /// Scores and sums of one thread.
    fn per_thread(&self) -> usize {
        QUERIES * (SCORES_LD + self.sums)
    }
}

/// Values of scratch that [`attention`] needs on a pool of `threads`.
pub fn attention_scratch_len(isa: Isa, shape: &AttentionShape, threads: usize) -> usize {
    let plan = ScratchLayout::new(isa, shape);
    plan.packed() + threads.max(1) * plan.per_thread()
}

/// y = softmax(scale · q kᵀ + mask) · v per image and head.
///
/// `scratch` holds at least [`attention_scratch_len`] values. A query that sees no key (all scores
/// −∞) gives zeros. Keys and values are packed once per image and head; scores exist for 96 queries
/// × 256 keys per thread at a time.
///
/// # Panics
/// When a slice is too short.
pub fn attention(
    isa: Isa,
    pool: &Pool,
    shape: &AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    mask: Option<&[f32]>,
    y: &mut [f32],
    scratch: &mut [f32],
) {
    shape.check(q, k, v, mask, y);
    let need = attention_scratch_len(isa, shape, pool.threads());
    assert!(scratch.len() >= need, "scratch has {} values, needs {need}", scratch.len());
    let plan = ScratchLayout::new(isa, shape);
    let (packed, work) = scratch.split_at_mut(plan.packed());
    let (k_packed, v_packed) = packed.split_at_mut(plan.pairs * plan.k_len);
    pack_all(isa, pool, shape, &plan, (k, &mut *k_packed), (v, &mut *v_packed));
    let blocks = shape.lq.div_ceil(QUERIES);
    let (work, y) = (SharedMut::new(work), SharedMut::new(y));
    pool.run(shape.n * shape.heads * blocks, &|task, worker| {
        let (image, head) = (task / blocks / shape.heads, task / blocks % shape.heads);
        let pair = image * shape.kv_heads + head / (shape.heads / shape.kv_heads);
        // SAFETY: every worker has its own part.
        let own = unsafe { work.part(worker * plan.per_thread(), plan.per_thread()) };
        let (scores, sums) = own.split_at_mut(QUERIES * SCORES_LD);
        isa.run(QueryBlock {
            shape,
            image,
            head,
            queries: cut(shape.lq, blocks, 1, task % blocks),
            q,
            k: &k_packed[pair * plan.k_len..][..plan.k_len],
            v: &v_packed[pair * plan.v_len..][..plan.v_len],
            mask,
            y,
            scores,
            sums,
            ld_sums: plan.sums,
        });
    });
}

impl AttentionShape {
    fn check(&self, q: &[f32], k: &[f32], v: &[f32], mask: Option<&[f32]>, y: &[f32]) {
        self.check_heads_and_mask(mask);
        check_matrix("q", q.len(), self.n * self.lq, self.heads * self.d, self.ldq);
        check_matrix("k", k.len(), self.n * self.lk, self.kv_heads * self.d, self.ldk);
        check_matrix("v", v.len(), self.n * self.lk, self.kv_heads * self.dv, self.ldv);
        check_matrix("y", y.len(), self.n * self.lq, self.heads * self.dv, self.ldy);
    }

    /// Panics unless heads share keys evenly and the mask has all its values.
    pub(crate) fn check_heads_and_mask(&self, mask: Option<&[f32]>) {
        assert!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "kv_heads does not divide heads"
        );
        let empty = [self.n, self.heads, self.lq, self.lk].contains(&0);
        if let (Some(mask), false) = (mask, empty) {
            let need = self.mask_at(self.n - 1, self.heads - 1, self.lq - 1, self.lk - 1) + 1;
            assert!(mask.len() >= need, "mask has {} values, needs {need}", mask.len());
        }
    }
}

/// Packs the keys (transposed) and values of all images and heads: source and target of each.
fn pack_all(
    isa: Isa,
    pool: &Pool,
    s: &AttentionShape,
    plan: &ScratchLayout,
    (k, k_packed): (&[f32], &mut [f32]),
    (v, v_packed): (&[f32], &mut [f32]),
) {
    let (k_packed, v_packed) = (SharedMut::new(k_packed), SharedMut::new(v_packed));
    pool.run(2 * plan.pairs, &|task, _| {
        let pair = task / 2;
        let (row, head) = (pair / s.kv_heads * s.lk, pair % s.kv_heads);
        // SAFETY: every task has its own part of one of the two.
        unsafe {
            if task % 2 == 0 {
                let out = k_packed.part(pair * plan.k_len, plan.k_len);
                pack_panels(isa, s.d, s.lk, part(k, row * s.ldk + head * s.d), s.ldk, true, out);
            } else {
                let out = v_packed.part(pair * plan.v_len, plan.v_len);
                pack_panels(isa, s.lk, s.dv, part(v, row * s.ldv + head * s.dv), s.ldv, false, out);
            }
        }
    });
}

/// `x[from..]`, empty where there is nothing (no keys).
fn part(x: &[f32], from: usize) -> &[f32] {
    x.get(from..).unwrap_or(&[])
}

/// One task: up to [`QUERIES`] queries of one image and head.
struct QueryBlock<'a> {
    shape: &'a AttentionShape,
    image: usize,
    head: usize,
    queries: Range<usize>,
    q: &'a [f32],
    /// kᵀ, panels of keys.
    k: &'a [f32],
    /// Panels of value channels.
    v: &'a [f32],
    mask: Option<&'a [f32]>,
    y: SharedMut<'a, f32>,
    /// `[queries, SCORES_LD]`
    scores: &'a mut [f32],
    /// `[queries, ld_sums]`
    sums: &'a mut [f32],
    ld_sums: usize,
}

/// Running softmax of one query.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    total: f32,
}

impl SimdKernel for QueryBlock<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut running = [Running { max: f32::NEG_INFINITY, total: 0.0 }; QUERIES];
        let seen =
            if self.shape.causal { self.shape.lk.min(self.queries.end) } else { self.shape.lk };
        self.sums.fill(0.0);
        if let (SoftmaxRounding::Levels(_), true) =
            (SoftmaxRounding::of(self.shape.softmax_bits), seen > KEYS)
        {
            // what weights are rounded to depends on the largest score of all keys
            self.largest(s, seen, &mut running);
        }
        for first in (0..seen).step_by(KEYS) {
            let keys = first..(first + KEYS).min(seen);
            self.scores(s, keys.clone());
            for (i, running) in running[..self.queries.len()].iter_mut().enumerate() {
                self.softmax_row(s, i, &keys, running);
            }
            self.add_values(s, keys);
        }
        for (i, running) in running[..self.queries.len()].iter().enumerate() {
            self.store(s, i, running.total);
        }
    }
}

impl QueryBlock<'_> {
    /// Pointers to the rows of a left side, as tiles want them.
    #[inline(always)]
    fn row_pointers(&self, at: impl Fn(usize) -> *const f32) -> [*const f32; QUERIES] {
        let mut rows = [std::ptr::null(); QUERIES];
        for (i, row) in rows[..self.queries.len()].iter_mut().enumerate() {
            *row = at(i);
        }
        rows
    }

    /// scores = q · kᵀ for `keys`, which begin at a panel.
    #[inline(always)]
    fn scores<S: Simd>(&mut self, s: S, keys: Range<usize>) {
        let (shape, width) = (self.shape, 2 * S::LANES);
        let row = self.image * shape.lq + self.queries.start;
        let q = self.q[row * shape.ldq + self.head * shape.d..].as_ptr();
        let left = self.row_pointers(|i| q.wrapping_add(i * shape.ldq));
        for col in (0..keys.len()).step_by(width) {
            let right = self.k[(keys.start + col) * shape.d..].as_ptr();
            let acc = self.scores[col..].as_mut_ptr();
            let tile = panel(left.as_ptr(), right, shape.d, width, acc, SCORES_LD);
            // SAFETY: `AttentionShape::check`; `scores` has `KEYS` columns, a multiple of `width`.
            unsafe { self.tiling::<S>().run(F32(s), tile) };
        }
    }

    /// sums += scores · v for `keys`.
    #[inline(always)]
    fn add_values<S: Simd>(&mut self, s: S, keys: Range<usize>) {
        let (shape, width) = (self.shape, 2 * S::LANES);
        let scores = self.scores.as_ptr();
        let left = self.row_pointers(|i| scores.wrapping_add(i * SCORES_LD));
        for col in (0..shape.dv).step_by(width) {
            let right = self.v[col * shape.lk + keys.start * width..].as_ptr();
            let acc = self.sums[col..].as_mut_ptr();
            let cols = (shape.dv - col).min(width);
            let tile = panel(left.as_ptr(), right, keys.len(), cols, acc, self.ld_sums);
            // SAFETY: as above; `sums` has whole panels of columns.
            unsafe { self.tiling::<S>().run(F32(s), Tile { first: false, ..tile }) };
        }
    }

    #[inline(always)]
    fn tiling<S: Simd>(&self) -> Tiling {
        Tiling::new(self.queries.len(), S::MR)
    }

    /// Sets the maxima of all queries.
    #[inline(always)]
    fn largest<S: Simd>(&mut self, s: S, seen: usize, running: &mut [Running; QUERIES]) {
        for first in (0..seen).step_by(KEYS) {
            let keys = first..(first + KEYS).min(seen);
            self.scores(s, keys.clone());
            for (i, running) in running[..self.queries.len()].iter_mut().enumerate() {
                let (visible, scale) = self.mask(i, &keys);
                let row = &self.scores[i * SCORES_LD..][..visible];
                running.max = running.max.max(row_max(s, row, scale));
            }
        }
    }

    /// Masks the scores of query `i`: how many of them it sees, and what they are still to be
    /// multiplied with.
    #[inline(always)]
    fn mask(&mut self, i: usize, keys: &Range<usize>) -> (usize, f32) {
        let query = self.queries.start + i;
        let visible = if self.shape.causal { keys.end.min(query + 1) } else { keys.end }
            .saturating_sub(keys.start);
        let row = &mut self.scores[i * SCORES_LD..][..keys.len()];
        row[visible..].fill(0.0);
        let Some(mask) = self.mask else { return (visible, self.shape.scale) };
        let at = self.shape.mask_at(self.image, self.head, query, keys.start);
        add_mask(&mut row[..visible], self.shape.scale, &mask[at..], self.shape.mask_strides[3]);
        (visible, 1.0)
    }

    /// Turns the scores of query `i` into weights exp(score − max), and what has been summed so far
    /// along.
    #[inline(always)]
    fn softmax_row<S: Simd>(&mut self, s: S, i: usize, keys: &Range<usize>, running: &mut Running) {
        let (visible, scale) = self.mask(i, keys);
        let row = &mut self.scores[i * SCORES_LD..][..visible];
        let mut max = row_max(s, row, scale);
        if let SoftmaxRounding::Bf16 = SoftmaxRounding::of(self.shape.softmax_bits) {
            // relative to a power of two, with which rounding commutes
            max = (max * LOG2_E).ceil() * LN_2;
        }
        let max = running.max.max(max);
        if max == f32::NEG_INFINITY {
            return row.fill(0.0);
        }
        let shrink = (running.max - max).exp();
        let sum = exp_row(s, row, scale, max, SoftmaxRounding::of(self.shape.softmax_bits));
        running.total = running.total * shrink + sum;
        if shrink != 1.0 {
            scale_row(s, &mut self.sums[i * self.ld_sums..][..self.ld_sums], shrink);
        }
        running.max = max;
    }

    /// y = sums / total for query `i`.
    #[inline(always)]
    fn store<S: Simd>(&mut self, s: S, i: usize, total: f32) {
        let shape = self.shape;
        let sums = &mut self.sums[i * self.ld_sums..][..self.ld_sums];
        scale_row(s, sums, if total == 0.0 { 0.0 } else { 1.0 / total });
        let row = self.image * shape.lq + self.queries.start + i;
        // SAFETY: tasks have disjoint queries or heads.
        let y = unsafe { self.y.part(row * shape.ldy + self.head * shape.dv, shape.dv) };
        y.copy_from_slice(&sums[..shape.dv]);
    }
}

/// One column panel of a product whose accumulators begin at zero.
#[inline(always)]
fn panel(
    left: *const *const f32,
    right: *const f32,
    depth: usize,
    cols: usize,
    acc: *mut f32,
    ld: usize,
) -> Tile<f32, f32, f32> {
    let (stride, tap, skip) = (1, 0, 0);
    let (rows, count, taps, first, next, lines) = (0, 0, 1, true, right, 0);
    Tile {
        left,
        stride,
        tap,
        skip,
        right,
        acc,
        ld,
        rows,
        count,
        cols,
        taps,
        depth,
        first,
        next,
        lines,
    }
}

/// row = scale · row + mask
pub(crate) fn add_mask(row: &mut [f32], scale: f32, mask: &[f32], stride: usize) {
    if stride == 1 {
        row.iter_mut().zip(mask).for_each(|(x, mask)| *x = *x * scale + mask);
    } else {
        row.iter_mut().enumerate().for_each(|(j, x)| *x = *x * scale + mask[j * stride]);
    }
}
