//! Packed copies of weights. They are made when an engine first needs them, shared by all engines,
//! and kept in a file if there is a pack cache.

use super::weights::{Weights, lock};
use bytes::Bytes;
use cqc_kernels::arena::cast;
use cqc_kernels::mapped::release;
use cqc_kernels::memory::{self, NoMemory};
use cqc_kernels::{Conv, ConvShape, PackedBf16, PackedCodes, PackedMatrix};
use cqc_proto::DType;
use cqc_proto::plan::Constant;
use cqc_proto::types::element_count;
use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;

/// The identity of a packed matrix: the constant from which it was made, and its form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum PackKey {
    /// A matrix of `k` rows and `n` columns, as in the constant.
    Linear { constant: usize, k: usize, n: usize, paired: bool },
    /// The weights of a convolution. Their shape does not include the size of the images, so they
    /// are packed once for all sizes.
    Conv { constant: usize, shape: ConvShape },
}

/// The part of a convolution's shape on which packing depends.
fn weights_shape(shape: &ConvShape) -> ConvShape {
    let &ConvShape { cin, cout, kh, kw, groups, .. } = shape;
    ConvShape {
        n: 1,
        h: kh,
        w: kw,
        cin,
        cout,
        kh,
        kw,
        stride: [1; 2],
        pads: [0; 4],
        dilation: [1; 2],
        groups,
        upsample: 1,
    }
}

impl PackKey {
    fn constant(&self) -> usize {
        match self {
            PackKey::Linear { constant, .. } | PackKey::Conv { constant, .. } => *constant,
        }
    }

    /// The number of taps, input channels and columns of a product, and whether its columns are
    /// paired.
    fn product(&self) -> (usize, usize, usize, bool) {
        match *self {
            PackKey::Linear { k, n, paired, .. } => (1, k, n, paired),
            PackKey::Conv { shape, .. } => (shape.kh * shape.kw, shape.cin, shape.cout, false),
        }
    }

    /// The name of the packed matrix in a file of packed weights.
    fn name(&self, of: &str) -> String {
        match self {
            PackKey::Linear { constant, k, n, paired } => {
                format!("{of} {constant} linear {k} {n} {paired}")
            }
            PackKey::Conv { constant, shape } => format!("{of} {constant} {shape:?}"),
        }
    }
}

impl Weights {
    /// The number of bytes of packed weights.
    pub fn packed_bytes(&self) -> usize {
        let floats: usize = lock(&self.packed).values().map(|p| p.bytes()).sum();
        let bf16: usize = lock(&self.packed_bf16).values().map(|p| p.bytes()).sum();
        floats + bf16 + lock(&self.packed_codes).values().map(|p| p.bytes()).sum::<usize>()
    }

    /// Checks that there is memory to pack all weights. Padding is not counted.
    pub(super) fn check_memory(&self) -> Result<(), NoMemory> {
        if self.packed_bytes() > 0 {
            return Ok(());
        }
        let packed = |constant: &Constant| {
            let elements = element_count(&constant.ty.fixed_shape()?)?;
            let size = match (&constant.codes, constant.ty.dtype) {
                (Some(_), _) => 1,
                (None, DType::BF16) => 2,
                (None, _) => size_of::<f32>(),
            };
            Some(elements.saturating_mul(size))
        };
        let all = self.plan.constants.iter().filter_map(packed).fold(0, usize::saturating_add);
        memory::check("laying the weights out for this CPU", all)
    }

    /// Writes the weights that have been packed so far into the cache with which these weights were
    /// opened, unless the file already has them. Call it after the engines have been opened. The
    /// file is as large as the packed weights. Returns whether it was written.
    ///
    /// # Errors
    /// The operating system's error. The file does not change then.
    pub fn keep_packed(&self) -> io::Result<bool> {
        let Some(kept) = &self.kept else { return Ok(false) };
        let (floats, codes, bf16) =
            (lock(&self.packed), lock(&self.packed_codes), lock(&self.packed_bf16));
        let mut packed: BTreeMap<String, Vec<&[u8]>> = BTreeMap::new();
        packed.extend(floats.iter().map(|(key, p)| (key.name("f32"), vec![p.part()])));
        packed.extend(codes.iter().map(|(key, p)| (key.name("codes"), p.parts().to_vec())));
        packed.extend(bf16.iter().map(|(key, p)| (key.name("bf16"), p.parts().to_vec())));
        if kept.has(packed.keys()) {
            return Ok(false);
        }
        kept.write(&packed).map(|()| true)
    }

    /// The packed matrix of an earlier process, made from its parts.
    fn kept<const N: usize, T>(
        &self,
        of: &str,
        key: &PackKey,
        from_parts: impl FnOnce([Bytes; N]) -> Option<T>,
    ) -> Option<T> {
        let kept = self.kept.as_ref()?;
        let made = from_parts(kept.find(&key.name(of))?);
        if made.is_none() {
            kept.reject();
        }
        made
    }

    /// Constant `constant`, packed as the `[k, n]` matrix of a product. The columns are `paired` if
    /// the product also computes a GEGLU.
    pub(super) fn packed_linear(
        &self,
        constant: usize,
        k: usize,
        n: usize,
        paired: bool,
    ) -> Arc<PackedMatrix> {
        let pack = if paired { PackedMatrix::pairs_from_kn } else { PackedMatrix::from_kn };
        self.pack(PackKey::Linear { constant, k, n, paired }, |w| pack(self.isa, k, n, w))
    }

    /// Constant `constant`, packed for a convolution.
    pub(super) fn packed_conv(&self, constant: usize, conv: &Conv) -> Arc<PackedMatrix> {
        let shape = weights_shape(conv.shape());
        self.pack(PackKey::Conv { constant, shape }, |w| conv.pack(w))
    }

    /// The codes of constant `constant`, packed as the matrix of a product with `n` columns. `None`
    /// if the constant has no codes.
    pub(super) fn packed_linear_codes(
        &self,
        constant: usize,
        k: usize,
        n: usize,
        paired: bool,
    ) -> Option<Arc<PackedCodes>> {
        let pack = if paired { PackedCodes::pairs_from_kn } else { PackedCodes::from_kn };
        self.pack_codes(PackKey::Linear { constant, k, n, paired }, |codes, segments, scale| {
            pack(self.isa, segments, n, codes, scale)
        })
    }

    /// The codes of constant `constant`, packed for a convolution of that shape. `None` if it has
    /// none.
    pub(super) fn packed_conv_codes(
        &self,
        constant: usize,
        shape: &ConvShape,
    ) -> Option<Arc<PackedCodes>> {
        let shape = weights_shape(shape);
        self.pack_codes(PackKey::Conv { constant, shape }, |codes, segments, scale| {
            PackedCodes::from_oihw(self.isa, &shape, segments, codes, scale)
        })
    }

    /// Constant `constant` of bf16, or of codes with one scale per column, packed as the `[k, n]`
    /// matrix of a product. `None` if it is of another type.
    pub(super) fn packed_linear_bf16(
        &self,
        constant: usize,
        k: usize,
        n: usize,
        paired: bool,
    ) -> Option<Arc<PackedBf16>> {
        let pack = if paired { PackedBf16::pairs_from_kn } else { PackedBf16::from_kn };
        self.pack_bf16(PackKey::Linear { constant, k, n, paired }, |w| pack(self.isa, k, n, w))
    }

    /// Constant `constant` of bf16, or of codes with one scale per output, packed for a convolution
    /// of that shape. `None` if it is of another type.
    pub(super) fn packed_conv_bf16(
        &self,
        constant: usize,
        shape: &ConvShape,
    ) -> Option<Arc<PackedBf16>> {
        let shape = weights_shape(shape);
        self.pack_bf16(PackKey::Conv { constant, shape }, |w| {
            PackedBf16::from_oihw(self.isa, &shape, w)
        })
    }

    fn pack_bf16(
        &self,
        key: PackKey,
        pack: impl FnOnce(&[u16]) -> PackedBf16,
    ) -> Option<Arc<PackedBf16>> {
        let constant = key.constant();
        let Constant { ty, codes, .. } = &self.plan.constants[constant];
        let suits =
            codes.as_ref().map_or(ty.dtype == DType::BF16, |codes| codes.segments.len() <= 1);
        if !suits {
            return None;
        }
        let mut packed = lock(&self.packed_bf16);
        let made = packed.entry(key).or_insert_with(|| {
            let (taps, depth, n, paired) = key.product();
            let kept = self.kept("bf16", &key, |parts| {
                PackedBf16::from_parts(self.isa, taps, depth, n, paired, parts)
            });
            let made = Arc::new(match (kept, codes) {
                (Some(kept), _) => kept,
                (None, None) => pack(cast(&self.stored(constant))),
                (None, Some(codes)) => {
                    let shape =
                        ty.fixed_shape().expect("validated: the sizes of a constant are known");
                    // integers below 256 are exact in bf16
                    let bits = |code: &i8| (f32::from(*code).to_bits() >> 16) as u16;
                    let codes_of = codes.unpack(&self.stored(constant), shape.iter().product());
                    let values: Vec<u16> = codes_of.iter().map(bits).collect();
                    pack(&values).scaled(cast(&self.constant(codes.scale)))
                }
            });
            // the packed copy replaces the mapped one in memory
            release(&self.stored(constant));
            made
        });
        Some(Arc::clone(made))
    }

    fn pack_codes(
        &self,
        key: PackKey,
        pack: impl FnOnce(&[i8], &[usize], &[f32]) -> PackedCodes,
    ) -> Option<Arc<PackedCodes>> {
        let constant = key.constant();
        let Constant { ty, codes, .. } = &self.plan.constants[constant];
        let codes = codes.as_ref()?;
        let mut packed = lock(&self.packed_codes);
        if let Some(known) = packed.get(&key) {
            return Some(Arc::clone(known));
        }
        let shape = ty.fixed_shape().expect("validated: the sizes of a constant are known");
        let segments = match &codes.segments[..] {
            [] => vec![shape[1 - codes.output_axis]],
            segments => segments.to_vec(),
        };
        let (taps, _, n, paired) = key.product();
        let kept = self.kept("codes", &key, |parts| {
            PackedCodes::from_parts(self.isa, taps, &segments, n, paired, parts)
        });
        let made = Arc::new(kept.unwrap_or_else(|| {
            let values = codes.unpack(&self.stored(constant), shape.iter().product());
            pack(&values, &segments, cast(&self.constant(codes.scale)))
        }));
        packed.insert(key, Arc::clone(&made));
        // the packed copy replaces the mapped one in memory
        release(&self.stored(constant));
        Some(made)
    }

    fn pack(&self, key: PackKey, pack: impl FnOnce(&[f32]) -> PackedMatrix) -> Arc<PackedMatrix> {
        let constant = key.constant();
        let mut packed = lock(&self.packed);
        match packed.entry(key) {
            Entry::Occupied(entry) => Arc::clone(entry.get()),
            Entry::Vacant(entry) => {
                let kept = self.kept("f32", &key, |[part]| match key {
                    PackKey::Linear { k, n, paired, .. } => {
                        PackedMatrix::kn_from_part(self.isa, k, n, paired, part)
                    }
                    PackKey::Conv { shape, .. } => {
                        PackedMatrix::oihw_from_part(self.isa, &shape, part)
                    }
                });
                let made = kept.unwrap_or_else(|| {
                    // a widened copy is dropped again unless a step reads it unpacked
                    let known = lock(&self.widened).get(&constant).cloned();
                    let is_f32 = |c: &Constant| c.codes.is_none() && c.ty.dtype == DType::F32;
                    let bytes = known.unwrap_or_else(|| match &self.plan.constants[constant] {
                        c if is_f32(c) => self.stored(constant),
                        _ => self.widen(constant),
                    });
                    pack(cast(&bytes))
                });
                let packed = Arc::clone(entry.insert(Arc::new(made)));
                // the packed copy replaces the mapped one in memory
                release(&self.stored(constant));
                packed
            }
        }
    }
}
