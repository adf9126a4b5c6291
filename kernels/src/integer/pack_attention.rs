//! Codes of keys and values in the order in which the products of attention read them.

use super::Activations;
use super::dot::{GROUP_MAX, IntDot, IntKernel};
use crate::arena::cast;
use crate::attention::AttentionShape;
use crate::shared::SharedMut;
use crate::{Isa, Pool};

/// Words after the last panel, which tiles read and multiply by zeros.
const BEHIND: usize = 512;

/// Sizes of what is packed.
#[derive(Clone, Copy)]
pub(super) struct Packing {
    /// Keys, rounded up to whole panels, and so to whole groups.
    pub keys: usize,
    /// Bytes of the keys of one image and head: panels of keys, `[d / group, columns, group]`.
    key_bytes: usize,
    /// Bytes of its values: panels of channels, `[keys / group, columns, group]`.
    value_bytes: usize,
    /// Pairs of image and key head.
    pairs: usize,
    /// Columns of a panel.
    width: usize,
}

impl Packing {
    pub fn new(isa: Isa, shape: &AttentionShape) -> Packing {
        let width = isa.dot_instruction().columns();
        let keys = shape.lk.next_multiple_of(width.max(GROUP_MAX));
        let value_bytes = keys * shape.dv.next_multiple_of(width);
        Packing {
            keys,
            key_bytes: keys * shape.d,
            value_bytes,
            pairs: shape.n * shape.kv_heads,
            width,
        }
    }

    /// Words of four bytes that all of it takes, and what a tile reads too far.
    pub fn words(&self) -> usize {
        self.pairs * ((self.key_bytes + self.value_bytes) / 4 + self.keys) + BEHIND
    }
}

/// Packed keys and values. A code is 128 less than it was, so that it is signed.
pub(super) struct Packed<'a> {
    packing: Packing,
    keys: &'a [i8],
    values: &'a [i8],
    offsets: &'a [i32],
}

impl Packed<'_> {
    pub fn keys_of(&self, pair: usize) -> &[i8] {
        &self.keys[pair * self.packing.key_bytes..][..self.packing.key_bytes]
    }

    pub fn values_of(&self, pair: usize) -> &[i8] {
        &self.values[pair * self.packing.value_bytes..][..self.packing.value_bytes]
    }

    /// What the zero point of the queries adds to the score of each key: that times the sum of its
    /// packed codes.
    pub fn offsets_of(&self, pair: usize) -> &[i32] {
        &self.offsets[pair * self.packing.keys..][..self.packing.keys]
    }
}

/// Packs the keys and values of all images and heads into `out`, which has [`Packing::words`].
pub(super) fn pack<'a>(
    isa: Isa,
    pool: &Pool,
    shape: &AttentionShape,
    packing: &Packing,
    [q, k, v]: [&Activations; 3],
    out: &'a mut [f32],
) -> Packed<'a> {
    let (keys, rest) = out.split_at_mut(packing.pairs * packing.key_bytes / 4);
    let (values, offsets) = rest.split_at_mut(packing.pairs * packing.value_bytes / 4);
    let keys: &mut [i8] = bytemuck::cast_slice_mut(keys);
    let values: &mut [i8] = bytemuck::cast_slice_mut(values);
    let offsets: &mut [i32] = bytemuck::cast_slice_mut(offsets);
    let shared =
        (SharedMut::new(&mut *keys), SharedMut::new(&mut *values), SharedMut::new(&mut *offsets));
    let zero_point = q.zero_point[0] as i32;
    pool.run(2 * packing.pairs, &|task, _| {
        let (pair, kind) = (task / 2, task % 2);
        let (row, head) = (pair / shape.kv_heads * shape.lk, pair % shape.kv_heads);
        // SAFETY: every task has its own parts.
        unsafe {
            if kind == 0 {
                let out = shared.0.part(pair * packing.key_bytes, packing.key_bytes);
                let offsets = shared.2.part(pair * packing.keys, packing.keys);
                let (first, ld, keys) = (row * shape.ldk + head * shape.d, shape.ldk, shape.lk);
                let (codes, d, width) = (k.codes, shape.d, packing.width);
                isa.run_integer(Keys {
                    codes,
                    first,
                    ld,
                    keys,
                    d,
                    width,
                    zero_point,
                    out,
                    offsets,
                });
            } else {
                let out = shared.1.part(pair * packing.value_bytes, packing.value_bytes);
                let (first, ld, keys) = (row * shape.ldv + head * shape.dv, shape.ldv, shape.lk);
                isa.run_integer(Values {
                    codes: v.codes,
                    first,
                    ld,
                    keys,
                    dv: shape.dv,
                    packing,
                    out,
                });
            }
        }
    });
    Packed { packing: *packing, keys, values, offsets }
}

/// The keys of one image and head.
struct Keys<'a> {
    codes: &'a [u8],
    /// The first code.
    first: usize,
    /// Between two keys.
    ld: usize,
    keys: usize,
    d: usize,
    width: usize,
    /// Of the queries.
    zero_point: i32,
    out: &'a mut [i8],
    offsets: &'a mut [i32],
}

impl IntKernel for Keys<'_> {
    #[inline(always)]
    fn run<D: IntDot>(self, _: D) {
        let codes: &[D::Left] = cast(self.codes);
        for (key, offset) in self.offsets.iter_mut().enumerate() {
            let (panel, col) = (key / self.width, key % self.width);
            let out = &mut self.out[panel * self.width * self.d..][..self.width * self.d];
            let places = out
                .chunks_exact_mut(self.width * D::GROUP)
                .map(|all| &mut all[col * D::GROUP..][..D::GROUP]);
            if key >= self.keys {
                places.for_each(|place| place.fill(0));
                *offset = 0;
                continue;
            }
            let row = &codes[self.first + key * self.ld..][..self.d];
            if D::GROUP == 4 {
                let sum: i32 = row.iter().map(|&code| i32::from(signed::<D>(code))).sum();
                for (place, group) in places.zip(row.as_chunks::<4>().0) {
                    place.copy_from_slice(&group.map(signed::<D>));
                }
                *offset = self.zero_point * sum;
                continue;
            }
            let mut sum = 0;
            for (place, group) in places.zip(row.chunks_exact(D::GROUP)) {
                for (place, &code) in place.iter_mut().zip(group) {
                    *place = signed::<D>(code);
                    sum += i32::from(*place);
                }
            }
            *offset = self.zero_point * sum;
        }
    }
}

/// The values of one image and head.
struct Values<'a> {
    codes: &'a [u8],
    /// The first code.
    first: usize,
    /// Between the values of two keys.
    ld: usize,
    keys: usize,
    dv: usize,
    packing: &'a Packing,
    out: &'a mut [i8],
}

impl IntKernel for Values<'_> {
    #[inline(always)]
    fn run<D: IntDot>(self, _: D) {
        let codes: &[D::Left] = cast(self.codes);
        let (width, keys) = (self.packing.width, self.packing.keys);
        for (panel, out) in self.out.chunks_exact_mut((width * keys).max(1)).enumerate() {
            let first = panel * width;
            let cols = (self.dv - first).min(width);
            for (group, out) in out.chunks_exact_mut(width * D::GROUP).enumerate() {
                if cols < width || (group + 1) * D::GROUP > self.keys {
                    out.fill(0);
                }
                let many = self.keys.saturating_sub(group * D::GROUP).min(D::GROUP);
                if many == 4 {
                    let row =
                        |j: usize| &codes[self.first + (group * 4 + j) * self.ld + first..][..cols];
                    let rows = row(0).iter().zip(row(1)).zip(row(2).iter().zip(row(3)));
                    for (place, ((&a, &b), (&c, &e))) in
                        out.as_chunks_mut::<4>().0.iter_mut().zip(rows)
                    {
                        *place = [a, b, c, e].map(signed::<D>);
                    }
                    continue;
                }
                for j in 0..many {
                    let row =
                        &codes[self.first + (group * D::GROUP + j) * self.ld + first..][..cols];
                    for (place, &code) in out.chunks_exact_mut(D::GROUP).zip(row) {
                        place[j] = signed::<D>(code);
                    }
                }
            }
        }
    }
}

/// A code, 128 lower.
#[inline(always)]
fn signed<D: IntDot>(code: D::Left) -> i8 {
    (D::value(code) ^ 0x80) as i8
}
