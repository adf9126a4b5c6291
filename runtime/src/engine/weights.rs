//! A plan with its constants, and the packed copies of weights that all engines of a plan share.

use super::EngineError;
use bytes::Bytes;
use cqc_kernels::arena::{ALIGN, Arena, Span, cast};
use cqc_kernels::mapped::release;
use cqc_kernels::{Conv, ConvShape, Isa, PackedBf16, PackedCodes, PackedMatrix, ShapeError};
use cqc_proto::plan::{Constant, Plan, PlanError, validate};
use cqc_proto::{DType, Tensor};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A validated plan, its constants, and what was packed from them for this CPU. Engines of any batch share one.
pub struct Weights {
    plan: Plan,
    isa: Isa,
    bytes: Bytes,
    /// What lies behind `bytes`, from the next multiple of [`ALIGN`] on.
    more: Bytes,
    packed: Mutex<HashMap<PackKey, Arc<PackedMatrix>>>,
    packed_codes: Mutex<HashMap<PackKey, Arc<PackedCodes>>>,
    packed_bf16: Mutex<HashMap<PackKey, Arc<PackedBf16>>>,
    widened: Mutex<HashMap<usize, Bytes>>,
    /// Plans of convolutions that some engine uses: layers of one shape share theirs.
    convs: Mutex<HashMap<ConvShape, Weak<Conv>>>,
}

/// What a packed matrix was made from and for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum PackKey {
    /// Rows and columns as they lie in the constant.
    Linear { constant: usize, paired: bool },
    /// The shape without the batch.
    Conv { constant: usize, shape: ConvShape },
}

impl Weights {
    /// Checks the plan; `bytes` is the weight section (`cqc_kernels::map_file`), copied only if it is not aligned to 64 bytes.
    ///
    /// # Errors
    /// [`EngineError::Plan`].
    pub fn new(plan: Plan, bytes: Bytes) -> Result<Arc<Weights>, EngineError> {
        Weights::for_isa(plan, bytes, Isa::detect())
    }

    /// [`Weights::new`] for a given instruction set.
    ///
    /// # Errors
    /// [`EngineError::Plan`].
    pub fn for_isa(plan: Plan, bytes: Bytes, isa: Isa) -> Result<Arc<Weights>, EngineError> {
        Weights::in_two(plan, bytes, Bytes::new(), isa)
    }

    /// [`Weights::new`] of a weight section in two pieces, so that one with a few other constants can share the mapped file: `more` begins at
    /// the next multiple of 64 behind `bytes`.
    ///
    /// # Errors
    /// [`EngineError::Plan`].
    pub fn in_two(plan: Plan, bytes: Bytes, more: Bytes, isa: Isa) -> Result<Arc<Weights>, EngineError> {
        let base = if more.is_empty() { bytes.len() } else { bytes.len().next_multiple_of(ALIGN) };
        validate(&plan, (base + more.len()) as u64)?;
        let straddles = |c: &&Constant| {
            let end = c.offset + c.stored_bytes().expect("validated: the sizes of a constant are known") as u64;
            c.offset < base as u64 && end > bytes.len() as u64
        };
        if let Some(c) = plan.constants.iter().find(straddles) {
            let (name, reason) = (c.name.clone(), "it lies in neither piece of the weights".into());
            return Err(PlanError::Constant { name, reason }.into());
        }
        let (bytes, more) = (aligned(bytes), aligned(more));
        Ok(Arc::new(Weights {
            plan,
            isa,
            bytes,
            more,
            packed: Default::default(),
            packed_codes: Default::default(),
            packed_bf16: Default::default(),
            widened: Default::default(),
            convs: Default::default(),
        }))
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The instruction set the weights are packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of packed weights.
    pub fn packed_bytes(&self) -> usize {
        let floats: usize = lock(&self.packed).values().map(|p| p.bytes()).sum();
        let bf16: usize = lock(&self.packed_bf16).values().map(|p| p.bytes()).sum();
        floats + bf16 + lock(&self.packed_codes).values().map(|p| p.bytes()).sum::<usize>()
    }

    /// Bytes of constant `i` as programs see them, floats in f32, aligned to 64.
    pub(crate) fn constant(&self, i: usize) -> Bytes {
        let Constant { ty, codes, .. } = &self.plan.constants[i];
        if codes.is_none() && (!ty.dtype.is_float() || ty.dtype == DType::F32) {
            return self.stored(i);
        }
        let mut widened = lock(&self.widened);
        widened.entry(i).or_insert_with(|| self.widen(i)).clone()
    }

    /// Bytes of constant `i` as they are stored.
    pub(crate) fn stored(&self, i: usize) -> Bytes {
        let constant = &self.plan.constants[i];
        let len = constant.stored_bytes().expect("validated: the sizes of a constant are known");
        let start = constant.offset as usize;
        match start.checked_sub(self.bytes.len().next_multiple_of(ALIGN)) {
            Some(start) if !self.more.is_empty() => self.more.slice(start..start + len),
            _ => self.bytes.slice(start..start + len),
        }
    }

    /// A float or quantized constant in f32.
    fn widen(&self, i: usize) -> Bytes {
        let constant = &self.plan.constants[i];
        let shape = constant.ty.fixed_shape().expect("validated: the sizes of a constant are known");
        let values = match &constant.codes {
            Some(codes) => codes.values(&shape, &self.stored(i), cast(&self.constant(codes.scale))),
            None => {
                let tensor = Tensor::new(constant.ty.dtype, shape, self.stored(i));
                tensor.expect("validated: the bytes fit the type").to_f32_vec()
            }
        };
        let mut arena = Arena::new(values.len() * 4);
        arena.get_mut(Span::new(0, values.len() * 4)).expect("an arena holds itself").copy_from_slice(&values[..]);
        Bytes::from_owner(Owned(arena))
    }

    /// Constant `i` packed as the `[k, n]` matrix of a product, its columns `paired` where that computes a GEGLU too.
    pub(super) fn packed_linear(&self, constant: usize, k: usize, n: usize, paired: bool) -> Arc<PackedMatrix> {
        let pack = if paired { PackedMatrix::pairs_from_kn } else { PackedMatrix::from_kn };
        self.pack(PackKey::Linear { constant, paired }, constant, |w| pack(self.isa, k, n, w))
    }

    /// A convolution of that shape.
    pub(super) fn conv(&self, shape: ConvShape) -> Result<Arc<Conv>, ShapeError> {
        let mut convs = lock(&self.convs);
        if let Some(conv) = convs.get(&shape).and_then(Weak::upgrade) {
            return Ok(conv);
        }
        let conv = Arc::new(Conv::new(self.isa, shape)?);
        convs.retain(|_, conv| conv.strong_count() > 0);
        convs.insert(shape, Arc::downgrade(&conv));
        Ok(conv)
    }

    /// Constant `i` packed for a convolution.
    pub(super) fn packed_conv(&self, constant: usize, conv: &Conv) -> Arc<PackedMatrix> {
        let shape = ConvShape { n: 1, ..*conv.shape() };
        self.pack(PackKey::Conv { constant, shape }, constant, |w| conv.pack(w))
    }

    /// The codes of constant `i` packed as the matrix of a product with `n` columns, maybe `paired`; `None`: it has none.
    pub(super) fn packed_linear_codes(&self, constant: usize, n: usize, paired: bool) -> Option<Arc<PackedCodes>> {
        let pack = if paired { PackedCodes::pairs_from_kn } else { PackedCodes::from_kn };
        self.pack_codes(PackKey::Linear { constant, paired }, constant, |codes, segments, scale| {
            pack(self.isa, segments, n, codes, scale)
        })
    }

    /// The codes of constant `i` packed for a convolution of that shape; `None`: it has none.
    pub(super) fn packed_conv_codes(&self, constant: usize, shape: &ConvShape) -> Option<Arc<PackedCodes>> {
        let shape = ConvShape { n: 1, ..*shape };
        self.pack_codes(PackKey::Conv { constant, shape }, constant, |codes, segments, scale| {
            PackedCodes::from_oihw(self.isa, &shape, segments, codes, scale)
        })
    }

    /// Constant `i`, of bf16 or of codes with one scale per column, packed as the `[k, n]` matrix of a product, maybe `paired`; `None`: it is
    /// of another type.
    pub(super) fn packed_linear_bf16(
        &self,
        constant: usize,
        k: usize,
        n: usize,
        paired: bool,
    ) -> Option<Arc<PackedBf16>> {
        let pack = if paired { PackedBf16::pairs_from_kn } else { PackedBf16::from_kn };
        self.pack_bf16(PackKey::Linear { constant, paired }, constant, |w| pack(self.isa, k, n, w))
    }

    /// Constant `i`, of bf16 or of codes with one scale per output, packed for a convolution of that shape; `None`: it is of another type.
    pub(super) fn packed_conv_bf16(&self, constant: usize, shape: &ConvShape) -> Option<Arc<PackedBf16>> {
        let shape = ConvShape { n: 1, ..*shape };
        let key = PackKey::Conv { constant, shape };
        self.pack_bf16(key, constant, |w| PackedBf16::from_oihw(self.isa, &shape, w))
    }

    fn pack_bf16(
        &self,
        key: PackKey,
        constant: usize,
        pack: impl FnOnce(&[u16]) -> PackedBf16,
    ) -> Option<Arc<PackedBf16>> {
        let Constant { ty, codes, .. } = &self.plan.constants[constant];
        let suits = codes.as_ref().map_or(ty.dtype == DType::BF16, |codes| codes.segments.len() <= 1);
        if !suits {
            return None;
        }
        let mut packed = lock(&self.packed_bf16);
        let made = packed.entry(key).or_insert_with(|| {
            let made = Arc::new(match codes {
                None => pack(cast(&self.stored(constant))),
                Some(codes) => {
                    let shape = ty.fixed_shape().expect("validated: the sizes of a constant are known");
                    // whole numbers below 256 are exact
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
        constant: usize,
        pack: impl FnOnce(&[i8], &[usize], &[f32]) -> PackedCodes,
    ) -> Option<Arc<PackedCodes>> {
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
        let values = codes.unpack(&self.stored(constant), shape.iter().product());
        let made = Arc::new(pack(&values, &segments, cast(&self.constant(codes.scale))));
        packed.insert(key, Arc::clone(&made));
        // the packed copy replaces the mapped one in memory
        release(&self.stored(constant));
        Some(made)
    }

    fn pack(&self, key: PackKey, constant: usize, pack: impl FnOnce(&[f32]) -> PackedMatrix) -> Arc<PackedMatrix> {
        let mut packed = lock(&self.packed);
        match packed.entry(key) {
            Entry::Occupied(entry) => Arc::clone(entry.get()),
            Entry::Vacant(entry) => {
                // A widened copy is dropped again unless a step reads it as it is.
                let known = lock(&self.widened).get(&constant).cloned();
                let is_f32 = |c: &Constant| c.codes.is_none() && c.ty.dtype == DType::F32;
                let bytes = known.unwrap_or_else(|| match &self.plan.constants[constant] {
                    c if is_f32(c) => self.stored(constant),
                    _ => self.widen(constant),
                });
                let packed = Arc::clone(entry.insert(Arc::new(pack(cast(&bytes)))));
                // the packed copy replaces the mapped one in memory
                release(&self.stored(constant));
                packed
            }
        }
    }
}

/// A panic while one of the maps is locked leaves it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights").field("isa", &self.isa).field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// An arena as the owner of [`Bytes`].
pub(super) struct Owned(pub(super) Arena);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        self.0.get(Span::new(0, self.0.len())).expect("an arena holds itself")
    }
}

/// The same bytes at an address that is a multiple of [`ALIGN`].
fn aligned(bytes: Bytes) -> Bytes {
    if bytes.as_ptr().addr().is_multiple_of(ALIGN) {
        return bytes;
    }
    let mut arena = Arena::new(bytes.len());
    arena.get_mut(Span::new(0, bytes.len())).expect("an arena holds itself").copy_from_slice(&bytes);
    Bytes::from_owner(Owned(arena))
}
