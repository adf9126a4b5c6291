//! Attention whose two products multiply bf16, with the softmax in f32 between them.
//!
//! A weight is e^score rounded to bf16. That rounding commutes with powers of two, so weights are
//! kept relative to one that is no less than the largest seen so far, and keys pass by block after
//! block: what was summed before shrinks by a power of two, exactly, when a larger score comes.

use super::dot::{Bf16Dot, Bf16Kernel};
use crate::attention::{AttentionShape, add_mask};
use crate::epilogue::check_matrix;
use crate::gemm::Plain;
use crate::math::exp2_weight;
use crate::output::{Output, Put, Sink};
use crate::rows::{row_max, scale_row};
use crate::shared::{SharedMut, cut};
use crate::simd::wide::{CHAINS, Wide};
use crate::simd::{Arithmetic, Simd};
use crate::{Isa, Pool};
use cqc_proto::op::SOFTMAX_BF16;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Keys of a block: a multiple of every panel width and of [`PIECE`].
const KEYS: usize = 256;
/// Between the scores of two queries: no power of two, which would crowd them into few sets of the
/// cache.
const SCORES_LD: usize = KEYS + 16;
/// Queries of a task at most: with their scores against a block of keys they fit a first-level
/// cache.
const QUERIES: usize = 36;
/// Elements that a tile takes of a row.
const PIECE: usize = 32;
/// Width of a head at most.
const MAX_WIDTH: usize = 4096;

impl Isa {
    /// Whether [`attention_bf16`] can run: its weights are rounded to bf16, and heads are at most
    /// 4096 wide.
    pub fn attends_bf16(self, shape: &AttentionShape) -> bool {
        shape.softmax_bits == SOFTMAX_BF16 && shape.d > 0 && shape.d.max(shape.dv) <= MAX_WIDTH
    }
}

/// How scratch is laid out, in elements of two bytes but for scores and sums.
#[derive(Clone, Copy)]
struct ScratchLayout {
    /// Columns of a panel.
    width: usize,
    /// Queries of a task at most.
    queries: usize,
    /// Elements of a query or key, zeros after it.
    depth: usize,
    /// Keys, rounded up to whole panels and pieces.
    keys: usize,
    /// Values of a key, rounded up to whole panels.
    sums: usize,
    /// Pairs of image and key head.
    pairs: usize,
}

impl ScratchLayout {
    fn new(isa: Isa, s: &AttentionShape) -> ScratchLayout {
        let (width, rows) = (isa.bf16_instruction().panel_width(), isa.bf16_instruction().rows());
        ScratchLayout {
            width,
            queries: QUERIES / rows * rows,
            depth: s.d.next_multiple_of(PIECE),
            keys: s.lk.next_multiple_of(width.max(PIECE)),
            sums: s.dv.next_multiple_of(width),
            pairs: s.n * s.kv_heads,
        }
    }

    /// Packed keys of one pair, then its packed values.
    fn pair(&self) -> usize {
        self.keys * (self.depth + self.sums)
    }

    /// Words of four bytes of one thread: scores, sums, weights, queries.
    fn per_thread(&self) -> usize {
        self.queries * (SCORES_LD + self.sums + KEYS / 2 + self.depth / 2)
    }
}

/// Words of four bytes of scratch that [`attention_bf16`] needs on a pool of `threads`.
pub fn attention_bf16_scratch_len(isa: Isa, shape: &AttentionShape, threads: usize) -> usize {
    let plan = ScratchLayout::new(isa, shape);
    plan.pairs * plan.pair() / 2 + threads.max(1) * plan.per_thread()
}

/// y = softmax(scale · q kᵀ + mask) · v per image and head, where q, k and v are the bits of bf16
/// and so are weights: what [`attention`](crate::attention()) computes from the same numbers.
///
/// A query that sees no key (all scores −∞) gives zeros.
///
/// # Panics
/// When a slice is too short or [`Isa::attends_bf16`] is false.
pub fn attention_bf16<'a>(
    isa: Isa,
    pool: &Pool,
    shape: &AttentionShape,
    [q, k, v]: [&[u16]; 3],
    mask: Option<&[f32]>,
    y: impl Into<Output<'a>>,
    scratch: &mut [f32],
) {
    let s = shape;
    assert!(isa.attends_bf16(s), "no kernel for {s:?}");
    check_matrix("q", q.len(), s.n * s.lq, s.heads * s.d, s.ldq);
    check_matrix("k", k.len(), s.n * s.lk, s.kv_heads * s.d, s.ldk);
    check_matrix("v", v.len(), s.n * s.lk, s.kv_heads * s.dv, s.ldv);
    s.check_heads_and_mask(mask);
    let y = Sink::new(isa, y.into(), s.n * s.lq, s.heads * s.dv, s.ldy);
    let need = attention_bf16_scratch_len(isa, s, pool.threads());
    assert!(scratch.len() >= need, "scratch has {} values, needs {need}", scratch.len());
    let plan = ScratchLayout::new(isa, s);
    let (packed, work) = scratch.split_at_mut(plan.pairs * plan.pair() / 2);
    let packed: &mut [u16] = bytemuck::cast_slice_mut(packed);
    pack(pool, s, &plan, k, v, packed);
    let packed = &*packed;
    let blocks = s.lq.div_ceil(plan.queries);
    let work = SharedMut::new(work);
    pool.run(s.n * s.heads * blocks, &|task, worker| {
        let (image, head) = (task / blocks / s.heads, task / blocks % s.heads);
        let queries = cut(s.lq, blocks, isa.bf16_instruction().rows(), task % blocks);
        if queries.is_empty() {
            return;
        }
        let pair = image * s.kv_heads + head / (s.heads / s.kv_heads);
        let (k, v) = packed[pair * plan.pair()..][..plan.pair()].split_at(plan.keys * plan.depth);
        // SAFETY: every worker has its own part.
        let own = unsafe { work.part(worker * plan.per_thread(), plan.per_thread()) };
        let (scores, rest) = own.split_at_mut(plan.queries * SCORES_LD);
        let (sums, rest) = rest.split_at_mut(plan.queries * plan.sums);
        let (weights, copies) = bytemuck::cast_slice_mut(rest).split_at_mut(plan.queries * KEYS);
        isa.run_bf16(QueryBlock {
            shape: s,
            plan: &plan,
            image,
            head,
            queries,
            q,
            k,
            v,
            mask,
            y,
            scores,
            sums,
            weights,
            copies,
        });
    });
}

/// Packs the keys and values of all images and heads.
fn pack(
    pool: &Pool,
    s: &AttentionShape,
    plan: &ScratchLayout,
    k: &[u16],
    v: &[u16],
    out: &mut [u16],
) {
    let out = SharedMut::new(out);
    let tasks = if s.lk == 0 { 0 } else { 2 * plan.pairs };
    pool.run(tasks, &|task, _| {
        let pair = task / 2;
        let (row, head) = (pair / s.kv_heads * s.lk, pair % s.kv_heads);
        let (begin, keys) = (pair * plan.pair(), plan.keys * plan.depth);
        // SAFETY: every task has its own part.
        unsafe {
            if task % 2 == 0 {
                pack_keys(s, plan, &k[row * s.ldk + head * s.d..], out.part(begin, keys));
            } else {
                pack_values(
                    s,
                    plan,
                    &v[row * s.ldv + head * s.dv..],
                    out.part(begin + keys, plan.pair() - keys),
                );
            }
        }
    });
}

/// Panels of keys: `[depth / 2, width, 2]`, zeros beyond keys and depth.
fn pack_keys(s: &AttentionShape, plan: &ScratchLayout, k: &[u16], out: &mut [u16]) {
    let (whole, width) = (s.d / 2, plan.width);
    for (panel, out) in out.chunks_exact_mut(width * plan.depth).enumerate() {
        let (pairs, _) = out.as_chunks_mut::<2>();
        if s.d < plan.depth || (panel + 1) * width > s.lk {
            pairs.fill([0, 0]);
        }
        for col in 0..width.min(s.lk.saturating_sub(panel * width)) {
            let row = &k[(panel * width + col) * s.ldk..][..s.d];
            let (from, last) = row.as_chunks::<2>();
            for (place, pair) in pairs[col..].iter_mut().step_by(width).zip(from) {
                *place = *pair;
            }
            if let [last] = last {
                pairs[whole * width + col] = [*last, 0];
            }
        }
    }
}

/// Panels of channels: `[keys / 2, width, 2]`, zeros beyond keys and channels.
fn pack_values(s: &AttentionShape, plan: &ScratchLayout, v: &[u16], out: &mut [u16]) {
    for (panel, out) in out.chunks_exact_mut((plan.width * plan.keys).max(1)).enumerate() {
        let first = panel * plan.width;
        let cols = (s.dv - first).min(plan.width);
        let row = |key: usize| &v[key * s.ldv + first..][..cols];
        for (group, out) in out.chunks_exact_mut(2 * plan.width).enumerate() {
            let (pairs, _) = out.as_chunks_mut::<2>();
            pairs[cols..].fill([0, 0]);
            match s.lk.saturating_sub(2 * group) {
                0 => pairs.fill([0, 0]),
                1 => pairs.iter_mut().zip(row(2 * group)).for_each(|(place, &a)| *place = [a, 0]),
                _ => {
                    let rows = row(2 * group).iter().zip(row(2 * group + 1));
                    pairs.iter_mut().zip(rows).for_each(|(place, (&a, &b))| *place = [a, b]);
                }
            }
        }
    }
}

/// One task: some queries of one image and head.
struct QueryBlock<'a> {
    shape: &'a AttentionShape,
    plan: &'a ScratchLayout,
    image: usize,
    head: usize,
    queries: Range<usize>,
    q: &'a [u16],
    /// Panels of keys.
    k: &'a [u16],
    /// Panels of value channels.
    v: &'a [u16],
    mask: Option<&'a [f32]>,
    y: Sink<'a>,
    /// `[queries, SCORES_LD]`
    scores: &'a mut [f32],
    /// `[queries, plan.sums]`
    sums: &'a mut [f32],
    /// `[queries, KEYS]`
    weights: &'a mut [u16],
    /// `[queries, plan.depth]`
    copies: &'a mut [u16],
}

/// Running softmax of one query.
#[derive(Clone, Copy)]
struct Running {
    /// Weights are 2^(score / ln 2 − this), a whole number.
    exponent: f32,
    total: f32,
}

impl Bf16Kernel for QueryBlock<'_> {
    #[inline(always)]
    fn run<D: Bf16Dot>(mut self, d: D) {
        let mut running = [Running { exponent: f32::NEG_INFINITY, total: 0.0 }; QUERIES];
        let seen =
            if self.shape.causal { self.shape.lk.min(self.queries.end) } else { self.shape.lk };
        self.copy_queries();
        if seen == 0 {
            self.sums.fill(0.0);
        }
        for first in (0..seen).step_by(KEYS) {
            let keys = first..(first + KEYS).min(seen);
            self.scores(d, keys.clone());
            for (i, running) in running[..self.queries.len()].iter_mut().enumerate() {
                self.softmax_row(d, i, &keys, running);
            }
            self.add_values(d, keys);
        }
        for (i, running) in running[..self.queries.len()].iter().enumerate() {
            self.store(d, i, running.total);
        }
    }
}

impl QueryBlock<'_> {
    /// Copies the queries, zeros after each.
    #[inline(always)]
    fn copy_queries(&mut self) {
        let s = self.shape;
        let row = self.image * s.lq + self.queries.start;
        let from = self.q[row * s.ldq + self.head * s.d..].chunks(s.ldq);
        for (from, to) in
            from.zip(self.copies.chunks_exact_mut(self.plan.depth)).take(self.queries.len())
        {
            to[..s.d].copy_from_slice(&from[..s.d]);
            to[s.d..].fill(0);
        }
    }

    /// scores = q · kᵀ for `keys`, which begin at a panel.
    #[inline(always)]
    fn scores<D: Bf16Dot>(&mut self, d: D, keys: Range<usize>) {
        let product = Plain {
            left: self.copies.as_ptr(),
            ld: self.plan.depth,
            rows: self.queries.len(),
            depth: self.plan.depth,
            right: self.k[keys.start * self.plan.depth..].as_ptr(),
            ld_right: self.plan.width * self.plan.depth,
            cols: keys.len(),
            acc: self.scores.as_mut_ptr(),
            ld_acc: SCORES_LD,
            first: true,
        };
        // SAFETY: copies and panels are `plan.depth` deep, panels of keys whole; `scores` has room
        // for a block of keys in whole panels.
        unsafe { d.multiply(&product) };
    }

    /// Turns the scores of query `i` into weights, zeros after what it sees, and what has been
    /// summed so far along.
    #[inline(always)]
    fn softmax_row<D: Bf16Dot>(
        &mut self,
        d: D,
        i: usize,
        keys: &Range<usize>,
        running: &mut Running,
    ) {
        let (shape, query, s) = (self.shape, self.queries.start + i, d.float());
        let visible = if shape.causal { keys.end.min(query + 1) } else { keys.end }
            .saturating_sub(keys.start);
        let row = &mut self.scores[i * SCORES_LD..][..visible];
        let mut scale = shape.scale;
        if let Some(mask) = self.mask {
            let at = shape.mask_at(self.image, self.head, query, keys.start);
            add_mask(row, scale, &mask[at..], shape.mask_strides[3]);
            scale = 1.0;
        }
        let weights = &mut self.weights[i * KEYS..][..keys.len().next_multiple_of(PIECE)];
        let exponent = running.exponent.max((row_max(s, row, scale) * LOG2_E).ceil());
        if exponent == f32::NEG_INFINITY {
            return weights.fill(0);
        }
        let (weights, rest) = weights.split_at_mut(visible);
        rest.fill(0);
        let total = weigh(s, row, scale * LOG2_E, exponent, weights);
        let shrink = (running.exponent - exponent).exp2();
        running.total = running.total * shrink + total;
        if keys.start > 0 && shrink != 1.0 {
            scale_row(s, &mut self.sums[i * self.plan.sums..][..self.plan.sums], shrink);
        }
        running.exponent = exponent;
    }

    /// sums (+)= weights · v for `keys`.
    #[inline(always)]
    fn add_values<D: Bf16Dot>(&mut self, d: D, keys: Range<usize>) {
        let product = Plain {
            left: self.weights.as_ptr(),
            ld: KEYS,
            rows: self.queries.len(),
            depth: keys.len().next_multiple_of(PIECE),
            right: self.v[keys.start * self.plan.width..].as_ptr(),
            ld_right: self.plan.width * self.plan.keys,
            cols: self.shape.dv,
            acc: self.sums.as_mut_ptr(),
            ld_acc: self.plan.sums,
            first: keys.start == 0,
        };
        // SAFETY: weights and values have whole pieces of keys, zeros after them; `sums` has whole
        // panels.
        unsafe { d.multiply(&product) };
    }

    /// y = sums / total for query `i`.
    #[inline(always)]
    fn store<D: Bf16Dot>(&mut self, d: D, i: usize, total: f32) {
        let (s, shape, lanes) = (d.float(), self.shape, <D::Float as Simd>::LANES);
        let (row, col) = (self.image * shape.lq + self.queries.start + i, self.head * shape.dv);
        let factor = s.splat(if total == 0.0 { 0.0 } else { 1.0 / total });
        let sums = &self.sums[i * self.plan.sums..][..self.plan.sums];
        for part in 0..self.y.parts() {
            let Some((columns, writer)) = self.y.writer(s, part, col, shape.dv) else { continue };
            let mut c = columns.start;
            while c < columns.end {
                let n = (columns.end - c).min(lanes);
                // SAFETY: `c + n ≤ dv`; tasks have disjoint queries or heads.
                unsafe {
                    writer.put(
                        s,
                        row,
                        col + c,
                        s.mul(s.load_n(sums[c..c + n].as_ptr(), n), factor),
                        n,
                    )
                };
                c += n;
            }
        }
    }
}

/// weights = 2^(factor · score − exponent) rounded to bf16, and their sum.
#[inline(always)]
fn weigh<S: Simd>(s: S, scores: &[f32], factor: f32, exponent: f32, weights: &mut [u16]) -> f32 {
    assert_eq!(scores.len(), weights.len());
    let (factor, minus) = (s.splat(factor), s.splat(-exponent));
    let mut totals = [s.splat(0.0); CHAINS];
    let whole = scores.len() - scores.len() % S::LANES;
    let many = whole - whole % (CHAINS * S::LANES);
    // SAFETY: all vectors end at `whole`; fewer than `LANES` values are left then.
    unsafe {
        for at in (0..many).step_by(CHAINS * S::LANES) {
            weigh_vectors::<S, CHAINS>(
                s,
                &scores[at..],
                [factor, minus],
                &mut weights[at..],
                &mut totals,
            );
        }
        for at in (many..whole).step_by(S::LANES) {
            let [first, ..] = &mut totals;
            weigh_vectors::<S, 1>(
                s,
                &scores[at..],
                [factor, minus],
                &mut weights[at..],
                std::array::from_mut(first),
            );
        }
    }
    let mut last = [0.0; 16];
    let n = scores.len() - whole;
    if n > 0 {
        last[..n].copy_from_slice(&scores[whole..]);
        // SAFETY: no vector has more than 16 lanes; `n` weights are left.
        unsafe {
            let v = s.round_bf16(exp2_weight(s, s.fma(s.load(last.as_ptr()), factor, minus)));
            s.store_bf16(weights.as_mut_ptr().add(whole), v, n);
            s.store(last.as_mut_ptr(), v);
        }
    }
    let total = s.add(s.add(totals[0], totals[1]), s.add(totals[2], totals[3]));
    last[..n].iter().fold(s.sum(total), |total, x| total + x)
}

/// [`weigh`] for `M` vectors.
///
/// # Safety
/// Both slices must have them.
#[inline(always)]
unsafe fn weigh_vectors<S: Simd, const M: usize>(
    s: S,
    scores: &[f32],
    [factor, minus]: [S::V; 2],
    weights: &mut [u16],
    totals: &mut [S::V; M],
) {
    let mut x = [factor; M];
    // SAFETY: the caller's promise.
    unsafe {
        for (j, x) in x.iter_mut().enumerate() {
            *x = s.fma(s.load(scores.as_ptr().add(j * S::LANES)), factor, minus);
        }
        let v = exp2_weight(Wide(s), x);
        for j in 0..M {
            let v = s.round_bf16(v[j]);
            totals[j] = s.add(totals[j], v);
            s.store_bf16(weights.as_mut_ptr().add(j * S::LANES), v, S::LANES);
        }
    }
}
