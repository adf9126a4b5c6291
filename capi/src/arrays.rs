//! What callers hand in.

use super::status::Failed;
use cqc_proto::{DType, Tensor};
use cqc_runtime::denoise::Request;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};

/// Types of elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CqcType {
    /// `float`
    F32 = 0,
    /// `double`
    F64 = 1,
    /// IEEE half precision
    F16 = 2,
    /// `int32_t`
    I32 = 3,
    /// `int64_t`
    I64 = 4,
    /// One byte per element, 0 or 1
    Bool = 5,
}

/// An array of the caller, row-major and without gaps. Read during the call only.
#[repr(C)]
pub struct CqcArray {
    /// Name of the input; null where the place says what it is.
    pub name: *const c_char,
    /// One of `CqcType`.
    pub dtype: u32,
    /// Sizes, `rank` of them. One row per sample, or one for all; `[evaluations, rows, ...]` for an
    /// input that has another value at every evaluation.
    pub shape: *const usize,
    /// Number of axes. None: one number, which fills the input.
    pub rank: usize,
    /// The elements.
    pub data: *const c_void,
}

/// How a loop is opened. Zeros stand for defaults.
#[repr(C)]
pub struct CqcLoopOptions {
    /// `sizeof(CqcLoopOptions)`.
    pub size: usize,
    /// Samples at once; 1 by default. A model of fixed batch decides itself.
    pub batch: usize,
    /// Threads; one per core by default. Results do not depend on it.
    pub threads: usize,
    /// Sampling steps; as compiled by default.
    pub steps: usize,
    /// Scale of guidance that requests will have, which decides whether both halves are computed;
    /// 0: that of the artifact, 1: none.
    pub guidance: f32,
    /// 0: a GPU if there is one that can, 1: the CPU, 2: a GPU or an error.
    pub device: u32,
    /// Time steps of a caller's own solver, one per evaluation, for `cqc_begin` and `cqc_predict`;
    /// null: those of the artifact's sampler.
    pub timesteps: *const f64,
    /// How many.
    pub timestep_count: usize,
}

/// What to sample. Zeros stand for defaults.
#[repr(C)]
pub struct CqcRequest {
    /// `sizeof(CqcRequest)`.
    pub size: usize,
    /// Number of samples.
    pub samples: usize,
    /// Seed of all noise.
    pub seed: u64,
    /// Number of the first sample: sample i draws its noise from stream `first` + i.
    pub first: u64,
    /// Scale of guidance; 0: that of the artifact.
    pub guidance: f32,
    /// Initial noise `[samples, ...]` of unit variance instead of the seed's; may be null.
    pub noise: *const CqcArray,
    /// Conditions, by name.
    pub conditions: *const CqcArray,
    /// How many.
    pub condition_count: usize,
    /// What guidance's unconditional half gets instead, by name; may be null.
    pub unconditional: *const CqcArray,
    /// How many.
    pub unconditional_count: usize,
    /// Image or latent `[samples, ...]` to begin with; may be null.
    pub init: *const CqcArray,
    /// Where `init` is kept: 0 keeps it, 1 repaints; may be null.
    pub mask: *const CqcArray,
    /// The share of the steps that run on `init`; 0: as by default.
    pub strength: f32,
}

/// The structure that a caller gives, if it has the size of this version.
///
/// # Safety
/// `given` is null, or points to a size and as many bytes as that says.
pub unsafe fn sized<'a, T>(given: *const T, what: &str) -> Result<&'a T, Failed> {
    if given.is_null() {
        return Err(Failed::argument(format!("{what} is null")));
    }
    // SAFETY: every such structure begins with its size, which is there by the caller's promise.
    let size = unsafe { given.cast::<usize>().read() };
    if size != size_of::<T>() {
        return Err(Failed::argument(format!(
            "{what} has the size {size}; this version of the library takes {}",
            size_of::<T>()
        )));
    }
    // SAFETY: it is as large as the type, and stays during the call by the caller's promise.
    Ok(unsafe { &*given })
}

/// # Safety
/// `text` is null or a string that ends in a zero.
pub unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, Failed> {
    if text.is_null() {
        return Err(Failed::argument(format!("{what} is null")));
    }
    // SAFETY: the caller promises that it ends.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Failed::argument(format!("{what} is not UTF-8")))
}

/// Elements at a pointer, which may be null where there are none.
///
/// # Safety
/// There are as many at the pointer.
pub unsafe fn slice<'a, T>(data: *const T, len: usize, what: &str) -> Result<&'a [T], Failed> {
    if len == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(Failed::argument(format!("{what} is null")));
    }
    // SAFETY: not null, and as many are there by the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

/// The array as a tensor, copied.
///
/// # Safety
/// Its pointers hold what its fields say.
pub unsafe fn tensor(array: &CqcArray, what: &str) -> Result<Tensor, Failed> {
    let dtype = match array.dtype {
        0 => DType::F32,
        1 => DType::F64,
        2 => DType::F16,
        3 => DType::I32,
        4 => DType::I64,
        5 => DType::Bool,
        other => return Err(Failed::argument(format!("{what}: no type {other}"))),
    };
    // SAFETY: `shape` holds `rank` sizes by the caller's promise.
    let shape = unsafe { slice(array.shape, array.rank, what) }?;
    let count = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    let bytes =
        count.and_then(|n| n.checked_mul(dtype.size())).filter(|&n| n <= isize::MAX as usize);
    let bytes = bytes.ok_or_else(|| Failed::argument(format!("{what}: {shape:?} is too large")))?;
    // SAFETY: `data` holds the elements that the shape says by the caller's promise.
    let data = unsafe { slice(array.data.cast::<u8>(), bytes, what) }?;
    Tensor::new(dtype, shape.to_vec(), data.to_vec())
        .map_err(|e| Failed::argument(format!("{what}: {e}")))
}

/// # Safety
/// As [`tensor`], for each of them.
unsafe fn tensors(
    arrays: *const CqcArray,
    count: usize,
    what: &str,
) -> Result<BTreeMap<String, Tensor>, Failed> {
    // SAFETY: as many are there by the caller's promise.
    let arrays = unsafe { slice(arrays, count, what) }?;
    let named = arrays.iter().map(|array| {
        // SAFETY: the name ends, and the array holds what it says, by the caller's promise.
        let name = unsafe { text(array.name, "the name of a condition") }?;
        // SAFETY: as above.
        let tensor = unsafe { tensor(array, name) }?;
        Ok((name.to_string(), tensor))
    });
    named.collect()
}

/// # Safety
/// `array` is null, or holds what its fields say.
unsafe fn optional(array: *const CqcArray, what: &str) -> Result<Option<Tensor>, Failed> {
    // SAFETY: null or valid by the caller's promise.
    match unsafe { array.as_ref() } {
        None => Ok(None),
        // SAFETY: as above.
        Some(array) => unsafe { tensor(array, what) }.map(Some),
    }
}

/// The request; `varies` says of a condition, by name and number of axes, whether it has values per
/// evaluation.
///
/// # Safety
/// Its pointers hold what its fields say.
pub unsafe fn request(
    given: *const CqcRequest,
    varies: impl Fn(&str, usize) -> bool,
) -> Result<Request, Failed> {
    // SAFETY: all by the caller's promise.
    let (given, noise, init, mask, conditions, unconditional) = unsafe {
        let r = sized(given, "the request")?;
        let conditions = tensors(r.conditions, r.condition_count, "conditions")?;
        let null = tensors(r.unconditional, r.unconditional_count, "unconditional")?;
        let noise = optional(r.noise, "noise")?;
        (r, noise, optional(r.init, "init")?, optional(r.mask, "mask")?, conditions, null)
    };
    let split = |all: BTreeMap<String, Tensor>| -> (BTreeMap<_, _>, BTreeMap<_, _>) {
        all.into_iter().partition(|(name, t)| varies(name, t.shape().len()))
    };
    let (step_conditions, conditions) = split(conditions);
    let (unconditional_steps, unconditional) = split(unconditional);
    Ok(Request {
        samples: given.samples,
        seed: given.seed,
        first: given.first,
        noise,
        conditions,
        step_conditions,
        unconditional,
        unconditional_steps,
        guidance: (given.guidance != 0.0).then_some(given.guidance),
        init,
        mask,
        strength: (given.strength != 0.0).then_some(given.strength),
        ..Request::default()
    })
}
