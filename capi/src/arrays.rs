//! The structures that callers pass, checked and copied.

use super::status::Failed;
use cqc_proto::cq::GuidanceInterval;
use cqc_proto::{DType, Tensor};
use cqc_runtime::denoise::Request;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;

/// The largest structure of any version, in bytes; a larger size is a mistake of the caller.
const MAX_STRUCTURE: usize = 1 << 12;

/// Element types of arrays.
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

/// An array of the caller, row-major and without gaps. The library reads it during the call only.
#[repr(C)]
pub struct CqcArray {
    /// Name of the input; null where the field that holds the array names it.
    pub name: *const c_char,
    /// One of `CqcType`.
    pub dtype: u32,
    /// The `rank` sizes. The first one is the number of samples, or 1 for a value that all samples
    /// share. An input with a value per evaluation has `[evaluations, rows, ...]`.
    pub shape: *const usize,
    /// Number of axes. An array without axes is one number, which fills the input.
    pub rank: usize,
    /// The elements.
    pub data: *const c_void,
}

/// Options of `cqc_loop_open`. A field that is zero has its default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CqcLoopOptions {
    /// `sizeof(CqcLoopOptions)`.
    pub size: usize,
    /// Number of samples that are computed at once; 0: 1. A model with a fixed batch ignores it.
    pub batch: usize,
    /// Number of threads; 0: one per core. The results do not depend on it.
    pub threads: usize,
    /// Number of sampling steps; 0: the number that was compiled.
    pub steps: usize,
    /// Scale of guidance of the requests, which decides whether both halves are computed; 0: the
    /// scale of the artifact, 1: no guidance.
    pub guidance: f32,
    /// 0: a GPU if there is a suitable one, 1: the CPU, 2: a GPU, or an error if there is none.
    pub device: u32,
    /// The time steps of a solver of the caller, one per evaluation, for `cqc_begin` and
    /// `cqc_predict`; null: the time steps of the artifact's sampler.
    pub timesteps: *const f64,
    /// Number of `timesteps`.
    pub timestep_count: usize,
}

/// A request for samples. A field that is zero has its default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CqcRequest {
    /// `sizeof(CqcRequest)`.
    pub size: usize,
    /// Number of samples.
    pub samples: usize,
    /// Seed of all noise.
    pub seed: u64,
    /// Number of the first sample: sample i draws its noise from stream `first + i` of the seed.
    pub first: u64,
    /// Scale of guidance; 0: the scale of the artifact.
    pub guidance: f32,
    /// Initial noise `[samples, ...]` of unit variance; null: the noise of the seed.
    pub noise: *const CqcArray,
    /// The conditions, by name.
    pub conditions: *const CqcArray,
    /// Number of `conditions`.
    pub condition_count: usize,
    /// The conditions of the unconditional half of guidance, by name; null: those of the artifact.
    pub unconditional: *const CqcArray,
    /// Number of `unconditional`.
    pub unconditional_count: usize,
    /// Image or latent `[samples, ...]` that the loop begins with; null: noise alone.
    pub init: *const CqcArray,
    /// Mask of `init`: 0 keeps the image, 1 repaints it; null: all of it is repainted.
    pub mask: *const CqcArray,
    /// The share of the steps that run on `init`, more than 0 and at most 1; 0: 0.8, and 1 with a
    /// mask.
    pub strength: f32,
    /// How far the standard deviation of the guided prediction is moved to the one of the
    /// conditional prediction, 0 to 1; 0: the value of the artifact, negative: not at all.
    pub guidance_rescale: f32,
    /// The part of the loop in which guidance applies, in shares of the steps: from
    /// `guidance_from` to `guidance_to`. Both 0: the interval of the artifact.
    pub guidance_from: f32,
    /// See `guidance_from`.
    pub guidance_to: f32,
    /// The first step that runs. From 1 on, `noise` holds the samples before that step.
    pub start: usize,
    /// The number of the step before which the loop ends; 0: the end of the loop.
    pub end: usize,
}

/// A structure that a caller passes, as this version of the library knows it.
///
/// Callers that were built with an older header pass a smaller one: its missing fields are zero.
/// Callers that were built with a newer header pass a larger one, whose further bytes must be zero.
///
/// # Safety
/// `given` is null, or points to a size and as many bytes as that says. All-zero bytes are a `T`.
pub unsafe fn sized<T: Copy>(given: *const T, what: &str) -> Result<T, Failed> {
    if given.is_null() {
        return Err(Failed::argument(format!("{what} is null")));
    }
    // SAFETY: every such structure begins with its size, which is there by the caller's promise.
    let size = unsafe { given.cast::<usize>().read() };
    if size < size_of::<usize>() || size > MAX_STRUCTURE {
        return Err(Failed::argument(format!(
            "the member `size` of {what} is {size}; it must be sizeof of its type, here {}",
            size_of::<T>()
        )));
    }
    // SAFETY: so many bytes are there by the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(given.cast::<u8>(), size) };
    let known = size.min(size_of::<T>());
    if bytes[known..].iter().any(|&b| b != 0) {
        return Err(Failed::argument(format!(
            "{what} has fields that version {} of the library does not know",
            env!("CARGO_PKG_VERSION")
        )));
    }
    let mut own = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes fit into a `T` and are there in `bytes`; the rest of `own` is zero,
    // which is a valid `T` by the caller's promise.
    unsafe {
        own.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), known);
        Ok(own.assume_init())
    }
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
        guidance_rescale: match given.guidance_rescale {
            0.0 => None,
            rescale => Some(rescale.max(0.0)),
        },
        guidance_interval: interval(given.guidance_from, given.guidance_to)?,
        from: (given.start != 0).then_some(given.start),
        to: (given.end != 0).then_some(given.end),
    })
}

/// The interval of guidance; `None` if both ends are 0.
fn interval(from: f32, to: f32) -> Result<Option<GuidanceInterval>, Failed> {
    if from == 0.0 && to == 0.0 {
        return Ok(None);
    }
    // through decimal digits: 0.7f32 is meant to be 0.7
    let interval: Result<GuidanceInterval, String> = format!("{from}..{to}").parse();
    interval.map(Some).map_err(|e| Failed::argument(format!("the interval of guidance: {e}")))
}
