//! Attention whose two products multiply codes, with the softmax in f32 between them.
//!
//! Scores of a query begin as sums of products of codes. What a row of them has in common changes
//! no softmax, so only the part of the zero points that differs between keys is taken off. Weights
//! are codes relative to the largest of their query, which is why all its scores wait until that is
//! known.

use super::Activations;
use super::dot::{IntDot, IntKernel};
use super::pack_attention::{Packing, pack};
use super::tile::Codes;
use crate::arena::{cast, cast_mut};
use crate::attention::{AttentionShape, add_mask};
use crate::gemm::{MicroKernel, PLAIN_ROWS, Plain};
use crate::math::exp2_weight;
use crate::output::{Output, Put, Sink};
use crate::rows::row_max;
use crate::shared::{SharedMut, cut};
use crate::simd::wide::{CHAINS, Wide};
use crate::simd::{Arithmetic, Simd};
use crate::{Isa, Pool};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Queries of a task at most.
const QUERIES: usize = PLAIN_ROWS;
/// Scores of a task, about: a quarter of a megabyte.
const SCORES: usize = 64 << 10;
/// Keys at most, so that 255 · 255 · keys fits an i32.
const MAX_KEYS: usize = 32768;
/// Codes that a tile takes of a row.
const PIECE: usize = 64;
/// Width of a head at most.
const MAX_WIDTH: usize = 4096;

impl Isa {
    /// Whether [`attention_codes`] can run: widths that are whole groups, weights of at most 8
    /// bits, sums that fit.
    pub fn attends_codes(self, shape: &AttentionShape) -> bool {
        shape.d > 0
            && shape.d.is_multiple_of(super::dot::GROUP_MAX)
            && shape.d.max(shape.dv) <= MAX_WIDTH
            && shape.lk <= MAX_KEYS
            && (1..=8).contains(&shape.softmax_bits)
    }
}

/// How scratch is laid out, in words of four bytes.
#[derive(Clone, Copy)]
struct ScratchLayout {
    packing: Packing,
    /// Queries of a task at most.
    queries: usize,
    /// Between the scores of two queries: no power of two, which would crowd them into few sets of
    /// the cache.
    ld_scores: usize,
    /// Words of the weights of a query.
    weights: usize,
    /// Sums of a query: `dv` rounded up to whole panels.
    sums: usize,
    /// Words of a copied query, zeros after it; 0 where they are read from where they are.
    query: usize,
}

impl ScratchLayout {
    fn new(isa: Isa, shape: &AttentionShape) -> ScratchLayout {
        let packing = Packing::new(isa, shape);
        let instruction = isa.dot_instruction();
        let queries = (SCORES / packing.keys.max(1) / instruction.rows() * instruction.rows())
            .clamp(instruction.rows(), QUERIES);
        ScratchLayout {
            packing,
            queries,
            ld_scores: packing.keys + 16,
            weights: (packing.keys * isa.code_type().size()).div_ceil(4) + 16,
            sums: shape.dv.next_multiple_of(instruction.columns()),
            query: if isa.has_tiles() { shape.d.next_multiple_of(PIECE) / 4 } else { 0 },
        }
    }

    fn per_thread(&self) -> usize {
        self.queries * (self.ld_scores + self.weights + self.sums + self.query)
    }
}

/// Words of four bytes of scratch that [`attention_codes`] needs on a pool of `threads`.
pub fn attention_codes_scratch_len(isa: Isa, shape: &AttentionShape, threads: usize) -> usize {
    let plan = ScratchLayout::new(isa, shape);
    plan.packing.words() + threads.max(1) * plan.per_thread()
}

/// y = softmax(scale · q kᵀ + mask) · v per image and head, where q, k and v are codes with one
/// segment each and weights are rounded to `softmax_bits`: what [`attention`](crate::attention())
/// computes from the values that the codes stand for.
///
/// Distances of `shape` are in codes for `q`, `k` and `v`. A query that sees no key (all scores −∞)
/// gives zeros.
///
/// # Panics
/// When a slice is too short or [`Isa::attends_codes`] is false.
pub fn attention_codes<'a>(
    isa: Isa,
    pool: &Pool,
    shape: &AttentionShape,
    [q, k, v]: [&Activations; 3],
    mask: Option<&[f32]>,
    y: impl Into<Output<'a>>,
    scratch: &mut [f32],
) {
    assert!(isa.attends_codes(shape), "no kernel for {shape:?}");
    for (x, rows, cols) in [
        (q, shape.n * shape.lq, shape.heads * shape.d),
        (k, shape.n * shape.lk, shape.kv_heads * shape.d),
        (v, shape.n * shape.lk, shape.kv_heads * shape.dv),
    ] {
        x.check(isa, rows, cols, 1);
    }
    assert_eq!((q.ld, k.ld, v.ld), (shape.ldq, shape.ldk, shape.ldv), "distances between rows");
    shape.check_heads_and_mask(mask);
    let y = Sink::new(isa, y.into(), shape.n * shape.lq, shape.heads * shape.dv, shape.ldy);
    let need = attention_codes_scratch_len(isa, shape, pool.threads());
    assert!(scratch.len() >= need, "scratch has {} values, needs {need}", scratch.len());
    let plan = ScratchLayout::new(isa, shape);
    let (packed, work) = scratch.split_at_mut(plan.packing.words());
    let packed = pack(isa, pool, shape, &plan.packing, [q, k, v], packed);
    let blocks = shape.lq.div_ceil(plan.queries);
    let work = SharedMut::new(work);
    pool.run(shape.n * shape.heads * blocks, &|task, worker| {
        let (image, head) = (task / blocks / shape.heads, task / blocks % shape.heads);
        let queries = cut(shape.lq, blocks, isa.dot_instruction().rows(), task % blocks);
        if queries.is_empty() {
            return;
        }
        let pair = image * shape.kv_heads + head / (shape.heads / shape.kv_heads);
        // SAFETY: every worker has its own part.
        let own = unsafe { work.part(worker * plan.per_thread(), plan.per_thread()) };
        let (scores, rest) = own.split_at_mut(plan.queries * plan.ld_scores);
        let (weights, rest) = rest.split_at_mut(plan.queries * plan.weights);
        let (sums, copies) = rest.split_at_mut(plan.queries * plan.sums);
        isa.run_integer(QueryBlock {
            shape,
            plan: &plan,
            image,
            head,
            queries,
            operands: [q, k, v],
            k: packed.keys_of(pair),
            offsets: packed.offsets_of(pair),
            v: packed.values_of(pair),
            mask,
            y,
            scores,
            weights: bytemuck::cast_slice_mut(weights),
            sums,
            copies: bytemuck::cast_slice_mut(copies),
        });
    });
}

/// One task: some queries of one image and head.
struct QueryBlock<'a> {
    shape: &'a AttentionShape,
    plan: &'a ScratchLayout,
    image: usize,
    head: usize,
    queries: Range<usize>,
    /// q, k and v.
    operands: [&'a Activations<'a>; 3],
    /// Panels of keys.
    k: &'a [i8],
    /// To be taken off the sums of every key.
    offsets: &'a [i32],
    /// Panels of value channels.
    v: &'a [i8],
    mask: Option<&'a [f32]>,
    y: Sink<'a>,
    /// `[queries, ld_scores]`, of i32, then of f32.
    scores: &'a mut [f32],
    /// `[queries, 4 · weights]`: codes.
    weights: &'a mut [u8],
    /// `[queries, sums]`, of i32, then of f32.
    sums: &'a mut [f32],
    /// `[queries, 4 · query]`: codes.
    copies: &'a mut [u8],
}

impl IntKernel for QueryBlock<'_> {
    #[inline(always)]
    fn run<D: IntDot>(mut self, d: D) {
        let shape = self.shape;
        let seen = if shape.causal { shape.lk.min(self.queries.end) } else { shape.lk };
        self.scores(d, seen);
        let mut totals = [0.0; QUERIES];
        for (i, total) in totals[..self.queries.len()].iter_mut().enumerate() {
            *total = self.softmax_row(d, i, seen);
        }
        self.add_values(d, seen);
        for (i, &total) in totals[..self.queries.len()].iter().enumerate() {
            self.store(d, i, total);
        }
    }
}

impl QueryBlock<'_> {
    /// scores = q · kᵀ for the first `seen` keys, as sums of codes.
    #[inline(always)]
    fn scores<D: IntDot>(&mut self, d: D, seen: usize) {
        let (shape, width) = (self.shape, Codes::<D>::COLS);
        let row = self.image * shape.lq + self.queries.start;
        let q: &[D::Left] = cast(self.operands[0].codes);
        let q = &q[row * shape.ldq + self.head * shape.d..];
        let (left, ld) =
            if self.plan.query == 0 { (q.as_ptr(), shape.ldq) } else { self.copied::<D>(q) };
        let product = Plain {
            left,
            ld,
            rows: self.queries.len(),
            depth: shape.d,
            right: self.k.as_ptr(),
            ld_right: width * shape.d,
            cols: seen,
            acc: self.scores.as_mut_ptr().cast(),
            ld_acc: self.plan.ld_scores,
            first: true,
        };
        // SAFETY: `attention_codes` has checked `q`; `k` has whole panels with something after
        // them, and so have rows of scores.
        unsafe { d.multiply(&product) };
    }

    /// Copies the queries, zeros after each.
    #[inline(always)]
    fn copied<D: IntDot>(&mut self, q: &[D::Left]) -> (*const D::Left, usize) {
        let ld = 4 * self.plan.query / size_of::<D::Left>();
        let copies: &mut [D::Left] = cast_mut(self.copies);
        for (from, to) in
            q.chunks(self.shape.ldq).zip(copies.chunks_exact_mut(ld)).take(self.queries.len())
        {
            to[..self.shape.d].copy_from_slice(&from[..self.shape.d]);
            to[self.shape.d..].fill(D::code(0));
        }
        (copies.as_ptr(), ld)
    }

    /// Turns the sums of query `i` into codes of weights, zero beyond what it sees, and adds those
    /// up.
    #[inline(always)]
    fn softmax_row<D: IntDot>(&mut self, d: D, i: usize, seen: usize) -> f32 {
        let shape = self.shape;
        let visible = if shape.causal { seen.min(self.queries.start + i + 1) } else { seen };
        let scale = shape.scale * self.operands[0].scale[0] * self.operands[1].scale[0];
        // integers order scores as they are scaled, unless the scale is negative
        let scores = if self.mask.is_none() && scale >= 0.0 {
            Scores::Sums { offsets: self.offsets, largest: self.largest(d, i, visible), scale }
        } else {
            self.convert(d, i, visible);
            let row = &mut self.scores[i * self.plan.ld_scores..][..visible];
            let at = shape.mask_at(self.image, self.head, self.queries.start + i, 0);
            add_mask(
                row,
                scale,
                self.mask.map_or(&[0.0], |mask| &mask[at..]),
                shape.mask_strides[3],
            );
            Scores::Values { largest: row_max(d.float(), row, 1.0) }
        };
        let bytes = 4 * self.plan.weights;
        let codes: &mut [D::Left] = cast_mut(&mut self.weights[i * bytes..][..bytes]);
        let sees = visible > 0 && !matches!(scores, Scores::Values { largest: f32::NEG_INFINITY });
        let (seen, rest) = codes.split_at_mut(if sees { visible } else { 0 });
        rest.fill(D::code(0));
        let row = &self.scores[i * self.plan.ld_scores..][..seen.len()];
        weigh(d, row, scores, ((1u32 << shape.softmax_bits) - 1) as f32, seen)
    }

    /// The largest of the first `visible` sums of query `i`.
    #[inline(always)]
    fn largest<D: IntDot>(&self, d: D, i: usize, visible: usize) -> i32 {
        let lanes = <D::Float as Simd>::LANES;
        let row: &[i32] = bytemuck::cast_slice(&self.scores[i * self.plan.ld_scores..][..visible]);
        let offsets = &self.offsets[..visible];
        let mut best = i32::MIN;
        let whole = visible - visible % lanes;
        if whole > 0 {
            let mut lane = [0; 16];
            // SAFETY: all vectors end at `whole`; 16 lanes are enough for any.
            unsafe {
                let mut most = d.minus(d.load(row.as_ptr()), d.load(offsets.as_ptr()));
                for at in (lanes..whole).step_by(lanes) {
                    most = d.max(
                        most,
                        d.minus(d.load(row.as_ptr().add(at)), d.load(offsets.as_ptr().add(at))),
                    );
                }
                d.store(lane.as_mut_ptr(), most);
            }
            best = lane[..lanes].iter().fold(best, |best, &x| best.max(x));
        }
        row[whole..]
            .iter()
            .zip(&offsets[whole..])
            .fold(best, |best, (x, offset)| best.max(x - offset))
    }

    /// Turns the first `visible` sums of query `i` into f32.
    #[inline(always)]
    fn convert<D: IntDot>(&mut self, d: D, i: usize, visible: usize) {
        let lanes = <D::Float as Simd>::LANES;
        let row = &mut self.scores[i * self.plan.ld_scores..][..visible.next_multiple_of(lanes)];
        for (x, offsets) in row.chunks_exact_mut(lanes).zip(self.offsets.chunks_exact(lanes)) {
            // SAFETY: both have `lanes` values.
            unsafe {
                let v = d.minus(d.load(x.as_ptr().cast()), d.load(offsets.as_ptr()));
                d.float().store(x.as_mut_ptr(), d.floats(v));
            }
        }
    }

    /// sums = weights · v over the first `seen` keys.
    #[inline(always)]
    fn add_values<D: IntDot>(&mut self, d: D, seen: usize) {
        let (shape, width) = (self.shape, Codes::<D>::COLS);
        let weights: &[D::Left] = cast(&*self.weights);
        let product = Plain {
            left: weights.as_ptr(),
            ld: 4 * self.plan.weights / size_of::<D::Left>(),
            rows: self.queries.len(),
            depth: seen.next_multiple_of(D::GROUP),
            right: self.v.as_ptr(),
            ld_right: width * self.plan.packing.keys,
            cols: shape.dv,
            acc: self.sums.as_mut_ptr().cast(),
            ld_acc: self.plan.sums,
            first: true,
        };
        // SAFETY: rows of weights have `packing.keys` codes, as many as `v` has in every panel, and
        // zeros after them; `sums` has whole panels.
        unsafe { d.multiply(&product) };
    }

    /// y = what the sums of query `i` stand for / total.
    #[inline(always)]
    fn store<D: IntDot>(&mut self, d: D, i: usize, total: f32) {
        let (s, shape, lanes) = (d.float(), self.shape, <D::Float as Simd>::LANES);
        let (row, col) = (self.image * shape.lq + self.queries.start + i, self.head * shape.dv);
        let v = self.operands[2];
        let factor = s.splat(if total == 0.0 { 0.0 } else { v.scale[0] / total });
        // codes were packed 128 lower
        let zero_point = v.zero_point[0] as i32 - 128;
        let sums = &self.sums[i * self.plan.sums..][..self.plan.sums];
        let offset = d.all(zero_point * total as i32);
        for part in 0..self.y.parts() {
            let Some((columns, writer)) = self.y.writer(s, part, col, shape.dv) else { continue };
            let mut c = columns.start;
            while c < columns.end {
                let n = (columns.end - c).min(lanes);
                // SAFETY: `c + n ≤ dv`, and 16 values lie after that many sums of any panel; tasks
                // have disjoint queries or heads.
                unsafe {
                    let acc = self.some(d, sums, c, n);
                    let value = s.mul(d.floats(d.minus(acc, offset)), factor);
                    writer.put(s, row, col + c, value, n);
                }
                c += n;
            }
        }
    }

    /// A vector of sums from column `c` on, of which `n` count.
    ///
    /// # Safety
    /// `c + n` sums must be readable.
    #[inline(always)]
    unsafe fn some<D: IntDot>(&self, d: D, sums: &[f32], c: usize, n: usize) -> D::Acc {
        let lanes = <D::Float as Simd>::LANES;
        // SAFETY: a whole vector where the slice has one, else a copy of what it has.
        unsafe {
            if c + lanes <= sums.len() {
                return d.load(sums.as_ptr().add(c).cast());
            }
            let mut copy = [0.0f32; 16];
            copy[..n].copy_from_slice(&sums[c..c + n]);
            d.load(copy.as_ptr().cast())
        }
    }
}

/// What a row of scores holds.
#[derive(Clone, Copy)]
enum Scores<'a> {
    /// Integers, which are still to be lessened by these and scaled.
    Sums { offsets: &'a [i32], largest: i32, scale: f32 },
    /// f32.
    Values { largest: f32 },
}

/// codes = round(levels · exp(score − largest score)), and their sum.
#[inline(always)]
fn weigh<D: IntDot>(d: D, row: &[f32], scores: Scores, levels: f32, codes: &mut [D::Left]) -> f32 {
    let lanes = <D::Float as Simd>::LANES;
    assert_eq!(codes.len(), row.len());
    let whole = row.len() - row.len() % lanes;
    let many = whole - whole % (CHAINS * lanes);
    // SAFETY: all vectors end at `whole`.
    unsafe {
        for at in (0..many).step_by(CHAINS * lanes) {
            weigh_vectors::<D, CHAINS>(d, row, scores, levels, at, codes);
        }
        for at in (many..whole).step_by(lanes) {
            weigh_vectors::<D, 1>(d, row, scores, levels, at, codes);
        }
    }
    let n = row.len() - whole;
    if n > 0 {
        let (mut last, mut less) = ([0.0; 16], [0; 16]);
        last[..n].copy_from_slice(&row[whole..]);
        let scores = match scores {
            Scores::Sums { offsets, largest, scale } => {
                less[..n].copy_from_slice(&offsets[whole..][..n]);
                Scores::Sums { offsets: &less, largest, scale }
            }
            values => values,
        };
        // SAFETY: 16 values are enough for any vector; `n` codes are left.
        unsafe {
            let [v] = weights(d, &last, scores, levels, 0);
            d.float().store_codes(codes.as_mut_ptr().add(whole).cast(), v, n, size_of::<D::Left>());
        }
    }
    let mut total = 0;
    for &code in codes.iter() {
        total += u32::from(D::value(code));
    }
    // below 2²⁴
    total as f32
}

/// [`weigh`] for `M` vectors from `at` on.
///
/// # Safety
/// `row` and `codes`, and offsets where there are any, must have them.
#[inline(always)]
unsafe fn weigh_vectors<D: IntDot, const M: usize>(
    d: D,
    row: &[f32],
    scores: Scores,
    levels: f32,
    at: usize,
    codes: &mut [D::Left],
) {
    let lanes = <D::Float as Simd>::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        let v: [_; M] = weights(d, row, scores, levels, at);
        for (j, v) in v.into_iter().enumerate() {
            let place = codes.as_mut_ptr().add(at + j * lanes).cast();
            d.float().store_codes(place, v, lanes, size_of::<D::Left>());
        }
    }
}

/// The weights of `M` vectors of scores from `at` on, not yet rounded.
///
/// # Safety
/// `row`, and offsets where there are any, must have them.
#[inline(always)]
unsafe fn weights<D: IntDot, const M: usize>(
    d: D,
    row: &[f32],
    scores: Scores,
    levels: f32,
    at: usize,
) -> [<D::Float as Arithmetic>::V; M] {
    let s = d.float();
    // levels · eˣ = 2^(x / ln 2 + log₂ levels)
    let shift = s.splat(levels.log2());
    let mut x = [shift; M];
    for (j, x) in x.iter_mut().enumerate() {
        let at = at + j * <D::Float as Simd>::LANES;
        // SAFETY: the caller's promise.
        *x = unsafe {
            match scores {
                Scores::Sums { offsets, largest, scale } => {
                    let sums = d.minus(
                        d.load(row.as_ptr().add(at).cast()),
                        d.load(offsets.as_ptr().add(at)),
                    );
                    s.fma(d.floats(d.minus(sums, d.all(largest))), s.splat(scale * LOG2_E), shift)
                }
                Scores::Values { largest } => s.fma(
                    s.sub(s.load(row.as_ptr().add(at)), s.splat(largest)),
                    s.splat(LOG2_E),
                    shift,
                ),
            }
        };
    }
    exp2_weight(Wide(s), x)
}
