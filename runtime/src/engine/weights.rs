//! A plan with its constants, and the packed copies of weights that all engines of the plan share.

use super::EngineError;
use super::packed_file::{PackCache, PackedFile};
use super::packing::PackKey;
use bytes::Bytes;
use cqc_kernels::arena::{ALIGN, Arena, Span, cast};
use cqc_kernels::{Conv, ConvShape, Isa, PackedBf16, PackedCodes, PackedMatrix, ShapeError};
use cqc_proto::cq::Manifest;
use cqc_proto::plan::{Constant, Plan, PlanError, validate};
use cqc_proto::{DType, Tensor};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A validated plan, its constants, and the weights that were packed from them for this CPU.
/// Engines of any batch size can share it.
pub struct Weights {
    pub(super) plan: SharedPlan,
    pub(super) isa: Isa,
    bytes: Bytes,
    /// The constants that follow `bytes`, from the next multiple of [`ALIGN`] on.
    more: Bytes,
    pub(super) packed: Mutex<HashMap<PackKey, Arc<PackedMatrix>>>,
    pub(super) packed_codes: Mutex<HashMap<PackKey, Arc<PackedCodes>>>,
    pub(super) packed_bf16: Mutex<HashMap<PackKey, Arc<PackedBf16>>>,
    /// The packed weights of an earlier process.
    pub(super) kept: Option<PackedFile>,
    pub(super) widened: Mutex<HashMap<usize, Bytes>>,
    /// The prepared convolutions that engines use. Layers of the same shape share one.
    convs: Mutex<HashMap<ConvShape, Weak<Conv>>>,
}

/// A plan, or the manifest that contains it, so that a long plan is not copied.
pub(crate) enum SharedPlan {
    Alone(Box<Plan>),
    Of(Arc<Manifest>),
}

impl std::ops::Deref for SharedPlan {
    type Target = Plan;

    fn deref(&self) -> &Plan {
        match self {
            SharedPlan::Alone(plan) => plan,
            SharedPlan::Of(manifest) => &manifest.plan,
        }
    }
}

impl Weights {
    /// Checks the plan. `bytes` is the weight section (`cqc_kernels::map_file`), which is copied
    /// only if it is not aligned to 64 bytes.
    ///
    /// # Errors
    /// [`EngineError::Plan`], or [`EngineError::Isa`] if `CQC_ISA` names no instruction set of this
    /// CPU.
    pub fn new(plan: Plan, bytes: Bytes) -> Result<Arc<Weights>, EngineError> {
        Weights::for_isa(plan, bytes, Isa::detect()?)
    }

    /// Like [`Weights::new`], for a given instruction set.
    ///
    /// # Errors
    /// [`EngineError::Plan`].
    pub fn for_isa(plan: Plan, bytes: Bytes, isa: Isa) -> Result<Arc<Weights>, EngineError> {
        Weights::in_two(plan, bytes, Bytes::new(), isa)
    }

    /// Like [`Weights::for_isa`], for a weight section in two pieces. `more` begins at the next
    /// multiple of 64 after `bytes`. With it, weights that differ in a few constants can share the
    /// mapped file.
    ///
    /// # Errors
    /// [`EngineError::Plan`].
    pub fn in_two(
        plan: Plan,
        bytes: Bytes,
        more: Bytes,
        isa: Isa,
    ) -> Result<Arc<Weights>, EngineError> {
        Weights::open(SharedPlan::Alone(plan.into()), bytes, more, isa, None)
    }

    /// Like [`Weights::new`], and uses the weights that an earlier process has packed: see
    /// [`Weights::keep_packed`].
    ///
    /// # Errors
    /// Those of [`Weights::new`]. A cache that cannot be used is ignored.
    pub fn with_cache(
        plan: Plan,
        bytes: Bytes,
        cache: &PackCache,
    ) -> Result<Arc<Weights>, EngineError> {
        let plan = SharedPlan::Alone(plan.into());
        Weights::open(plan, bytes, Bytes::new(), Isa::detect()?, Some(cache))
    }

    /// Like [`Weights::new`] or [`Weights::with_cache`], for the plan of a manifest.
    pub(crate) fn of_manifest(
        manifest: Arc<Manifest>,
        bytes: Bytes,
        cache: Option<&PackCache>,
    ) -> Result<Arc<Weights>, EngineError> {
        Weights::open(SharedPlan::Of(manifest), bytes, Bytes::new(), Isa::detect()?, cache)
    }

    fn open(
        plan: SharedPlan,
        bytes: Bytes,
        more: Bytes,
        isa: Isa,
        cache: Option<&PackCache>,
    ) -> Result<Arc<Weights>, EngineError> {
        let base = if more.is_empty() { bytes.len() } else { bytes.len().next_multiple_of(ALIGN) };
        validate(&plan, (base + more.len()) as u64)?;
        let straddles = |c: &&Constant| {
            let end = c.offset
                + c.stored_bytes().expect("validated: the sizes of a constant are known") as u64;
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
            kept: cache.map(|cache| PackedFile::open(cache, isa)),
            widened: Default::default(),
            convs: Default::default(),
        }))
    }

    /// The validated plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The instruction set for which the weights are packed.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The bytes of constant `i` as programs read them: floats in f32, aligned to 64 bytes.
    pub(crate) fn constant(&self, i: usize) -> Bytes {
        let Constant { ty, codes, .. } = &self.plan.constants[i];
        if codes.is_none() && (!ty.dtype.is_float() || ty.dtype == DType::F32) {
            return self.stored(i);
        }
        let mut widened = lock(&self.widened);
        widened.entry(i).or_insert_with(|| self.widen(i)).clone()
    }

    /// The bytes of constant `i` as they are stored.
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
    pub(super) fn widen(&self, i: usize) -> Bytes {
        let constant = &self.plan.constants[i];
        let shape =
            constant.ty.fixed_shape().expect("validated: the sizes of a constant are known");
        let values = match &constant.codes {
            Some(codes) => codes.values(&shape, &self.stored(i), cast(&self.constant(codes.scale))),
            None => {
                let tensor = Tensor::new(constant.ty.dtype, shape, self.stored(i));
                tensor.expect("validated: the bytes fit the type").to_f32_vec()
            }
        };
        let mut arena = Arena::new(values.len() * 4);
        arena
            .get_mut(Span::new(0, values.len() * 4))
            .expect("an arena holds itself")
            .copy_from_slice(&values[..]);
        Bytes::from_owner(arena)
    }

    /// A prepared convolution of that shape.
    pub(super) fn conv(&self, shape: ConvShape) -> Result<Arc<Conv>, ShapeError> {
        let mut convs = lock(&self.convs);
        if let Some(conv) = convs.get(&shape).and_then(Weak::upgrade) {
            return Ok(conv);
        }
        let conv = Arc::new(Conv::new(self.isa, shape)?);
        // at doubling sizes only, so that the cost does not grow with the square of the number of
        // shapes
        if convs.len().is_power_of_two() {
            convs.retain(|_, conv| conv.strong_count() > 0);
        }
        convs.insert(shape, Arc::downgrade(&conv));
        Ok(conv)
    }
}

/// Locks the mutex. A panic while one of the maps is locked leaves the map consistent.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights")
            .field("isa", &self.isa)
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// The same bytes at an address that is a multiple of [`ALIGN`].
fn aligned(bytes: Bytes) -> Bytes {
    if bytes.as_ptr().addr().is_multiple_of(ALIGN) {
        return bytes;
    }
    let mut arena = Arena::new(bytes.len());
    arena
        .get_mut(Span::new(0, bytes.len()))
        .expect("an arena holds itself")
        .copy_from_slice(&bytes);
    Bytes::from_owner(arena)
}
