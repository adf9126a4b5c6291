//! The functions of the interface.

use super::arrays::{CqcArray, CqcLoopOptions, CqcRequest, request, sized, slice, tensor, text};
use super::status::{CqcStatus, Failed, guarded};
use cqc_proto::plan::InputRole;
use cqc_runtime::denoise::{DenoiseError, Denoiser, Trajectory};
use cqc_runtime::engine::EngineOptions;
use cqc_runtime::{Artifact, DenoiserOptions, Device};
use std::ffi::{c_char, c_int, c_void};
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard};

/// An opened artifact. Several threads may use it at once.
pub struct CqcArtifact(Artifact);

/// A sampling loop with its memory. One thread at a time may use it.
pub struct CqcLoop(Mutex<Denoiser>);

/// The state of the samples of a batch between two evaluations. It belongs to the loop that began
/// it, and one thread at a time may use it.
pub struct CqcSamples(Mutex<Trajectory>);

/// A progress callback. It is called after every evaluation with the index of the evaluation, the
/// number of evaluations, and the range of the samples that are being computed, `first` to
/// `end - 1`. A result other than 0 cancels the call.
pub type CqcProgress = Option<
    extern "C" fn(
        user: *mut c_void,
        evaluation: usize,
        evaluations: usize,
        first: usize,
        end: usize,
    ) -> c_int,
>;

/// Returns the version of the library, e.g. `0.2.0`.
#[unsafe(no_mangle)]
pub extern "C" fn cqc_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Writes a new handle to the place that the caller passed.
///
/// # Safety
/// `out` is null or may be written.
unsafe fn hand_out<T>(out: *mut *mut T, value: T) -> Result<(), Failed> {
    if out.is_null() {
        return Err(Failed::argument("the pointer for the result is null"));
    }
    // SAFETY: not null, and writable by the caller's promise.
    unsafe { out.write(Box::into_raw(Box::new(value))) };
    Ok(())
}

/// # Safety
/// `handle` is null or one of this library that has not been freed.
unsafe fn handle<'a, T>(handle: *const T, what: &str) -> Result<&'a T, Failed> {
    // SAFETY: by the caller's promise.
    unsafe { handle.as_ref() }.ok_or_else(|| Failed::argument(format!("{what} is null")))
}

fn lock<'a, T>(mutex: &'a Mutex<T>, what: &str) -> Result<MutexGuard<'a, T>, Failed> {
    mutex.try_lock().map_err(|_| Failed::argument(format!("another thread uses {what}")))
}

fn refused(e: DenoiseError) -> Failed {
    let status = match e {
        DenoiseError::Interrupted => CqcStatus::Cancelled,
        _ => CqcStatus::Request,
    };
    Failed(status, e.to_string())
}

/// Opens the artifact in a file, which is mapped into memory. The file must not change while it is
/// open.
///
/// # Safety
/// `path` is a zero-terminated string in UTF-8, and `out` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cqc_open(path: *const c_char, out: *mut *mut CqcArtifact) -> CqcStatus {
    guarded(|| {
        // SAFETY: by the caller's promise.
        let path = unsafe { text(path, "the path") }?;
        let opened = Artifact::open(path.as_ref());
        let artifact = opened.map_err(|e| Failed(CqcStatus::Artifact, e.to_string()))?;
        // SAFETY: by the caller's promise.
        unsafe { hand_out(out, CqcArtifact(artifact)) }
    })
}

/// Opens an artifact in memory. The bytes are copied.
///
/// # Safety
/// `data` holds `len` bytes, and `out` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cqc_open_memory(
    data: *const c_void,
    len: usize,
    out: *mut *mut CqcArtifact,
) -> CqcStatus {
    guarded(|| {
        // SAFETY: by the caller's promise.
        let data = unsafe { slice(data.cast::<u8>(), len, "the artifact") }?;
        let opened = Artifact::from_bytes(data.to_vec());
        let artifact = opened.map_err(|e| Failed(CqcStatus::Artifact, e.to_string()))?;
        // SAFETY: by the caller's promise.
        unsafe { hand_out(out, CqcArtifact(artifact)) }
    })
}

/// Describes the artifact as a zero-terminated JSON object: steps, sampler, time steps, inputs with
/// their types, and the sizes of a sample.
///
/// `needed` receives the length with the zero; it may be null. If `capacity` is smaller, nothing is
/// written to `buffer` and the result is `CQC_STATUS_ARGUMENT`.
///
/// # Safety
/// `buffer` has room for `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cqc_info(
    artifact: *const CqcArtifact,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> CqcStatus {
    guarded(|| {
        // SAFETY: by the caller's promise.
        let artifact = unsafe { handle(artifact, "the artifact") }?;
        let wrong = |e: String| Failed(CqcStatus::Artifact, e);
        let info = artifact.0.info().map_err(|e| wrong(e.to_string()))?;
        let mut json = serde_json::to_string(&info).map_err(|e| wrong(e.to_string()))?;
        json.push('\0');
        if !needed.is_null() {
            // SAFETY: not null, and writable by the caller's promise.
            unsafe { needed.write(json.len()) };
        }
        if buffer.is_null() || capacity < json.len() {
            return Err(Failed::argument(format!("the buffer needs {} bytes", json.len())));
        }
        // SAFETY: it has room for `capacity` bytes, which are not fewer.
        unsafe { buffer.copy_from_nonoverlapping(json.as_ptr().cast(), json.len()) };
        Ok(())
    })
}

/// Opens a loop of an artifact. The artifact may be freed before the loop.
///
/// # Safety
/// The pointers are valid for their types, and `out` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cqc_loop_open(
    artifact: *const CqcArtifact,
    options: *const CqcLoopOptions,
    out: *mut *mut CqcLoop,
) -> CqcStatus {
    guarded(|| {
        // SAFETY: by the caller's promise.
        let (artifact, given) = unsafe {
            (handle(artifact, "the artifact")?, sized(options, "the options of the loop")?)
        };
        // SAFETY: by the caller's promise.
        let timesteps = unsafe { slice(given.timesteps, given.timestep_count, "timesteps") }?;
        let device = match given.device {
            0 => Device::Auto,
            1 => Device::Cpu,
            2 => Device::Cuda,
            other => return Err(Failed::argument(format!("no device {other}"))),
        };
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let engine = EngineOptions {
            batch: given.batch.max(1),
            threads: if given.threads == 0 { cores() } else { given.threads },
            ..EngineOptions::default()
        };
        let options = DenoiserOptions {
            steps: (given.steps != 0).then_some(given.steps),
            timesteps: (!given.timesteps.is_null()).then(|| timesteps.to_vec()),
            guidance: (given.guidance != 0.0).then_some(given.guidance),
            device,
            engine,
            ..DenoiserOptions::default()
        };
        let denoiser = artifact.0.denoiser(&options).map_err(refused)?;
        // SAFETY: by the caller's promise.
        unsafe { hand_out(out, CqcLoop(Mutex::new(denoiser))) }
    })
}

/// Returns the sizes of a loop: the number of samples that are computed at once, the number of
/// elements of one sample, and the number of evaluations. Each of the three pointers may be null.
///
/// # Safety
/// `of` is a loop, and the pointers that are not null are writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cqc_loop_sizes(
    of: *const CqcLoop,
    batch: *mut usize,
    elements: *mut usize,
    evaluations: *mut usize,
) -> CqcStatus {
    guarded(|| {
        // SAFETY: by the caller's promise.
        let guard = lock(&unsafe { handle(of, "the loop") }?.0, "the loop")?;
        let len: usize = guard.sample_shape().iter().product();
        let places = [(batch, guard.width()), (elements, len), (evaluations, guard.evaluations())];
        for (place, value) in places.into_iter().filter(|(place, _)| !place.is_null()) {
            // SAFETY: not null, and writable by the caller's promise.
            unsafe { place.write(value) };
        }
        Ok(())
    })
}

/// Whether a condition has values per evaluation, by its name and number of axes.
fn varies(denoiser: &Denoiser) -> impl Fn(&str, usize) -> bool {
    let inputs = denoiser.engine().plan().inputs.clone();
    move |name, rank| {
        let input = inputs.iter().find(|i| i.name == name);
        input.is_some_and(|i| i.role == InputRole::StepCondition && rank == i.ty.rank() + 1)
    }
}

/// Runs the whole loop and writes the samples `[samples, ...]` to `out`. `len` is their number of
/// floats: samples times elements. `progress` may be null; it receives `user`.
///
/// # Safety
/// The pointers are valid for their types, and `out` has room for `len` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cqc_sample(
    of: *const CqcLoop,
    what: *const CqcRequest,
    out: *mut f32,
    len: usize,
    progress: CqcProgress,
    user: *mut c_void,
) -> CqcStatus {
    guarded(|| {
        // SAFETY: by the caller's promise.
        let mut denoiser = lock(&unsafe { handle(of, "the loop") }?.0, "the loop")?;
        // SAFETY: by the caller's promise.
        let request = unsafe { request(what, varies(&denoiser)) }?;
        let elements: usize = denoiser.sample_shape().iter().product();
        let needed = request.samples.saturating_mul(elements);
        if out.is_null() || len != needed {
            return Err(Failed::argument(format!("the samples are {needed} floats, not {len}")));
        }
        let samples = denoiser.sample(&request, &mut |moment| {
            let Some(progress) = progress else { return ControlFlow::Continue(()) };
            let (e, n, at) = (moment.evaluation, moment.evaluations, &moment.samples);
            match progress(user, e, n, at.start, at.end) {
                0 => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        });
        let values = samples.map_err(refused)?.to_f32_vec();
        // SAFETY: not null, with room for `len` floats, which is how many there are.
        unsafe { out.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        Ok(())
    })
}

/// Begins one batch of a request: the samples from `first` on. `evaluation` is the first
/// evaluation, usually 0; callers with a solver of their own, who use `cqc_predict`, may begin with
/// another one.
///
/// # Safety
/// The pointers are valid for their types, and `out` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cqc_begin(
    of: *const CqcLoop,
    what: *const CqcRequest,
    first: usize,
    evaluation: usize,
    out: *mut *mut CqcSamples,
) -> CqcStatus {
    guarded(|| {
        // SAFETY: by the caller's promise.
        let mut denoiser = lock(&unsafe { handle(of, "the loop") }?.0, "the loop")?;
        // SAFETY: by the caller's promise.
        let request = unsafe { request(what, varies(&denoiser)) }?;
        let begun = match evaluation {
            0 => denoiser.begin(&request, first),
            e => denoiser.begin_at(&request, first, e),
        };
        // SAFETY: by the caller's promise.
        unsafe { hand_out(out, CqcSamples(Mutex::new(begun.map_err(refused)?))) }
    })
}

/// Runs one evaluation and the update of the artifact's sampler. `left` receives the number of
/// evaluations that remain; it may be null.
///
/// # Safety
/// The handles are valid, and `left` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cqc_step(
    of: *const CqcLoop,
    samples: *const CqcSamples,
    left: *mut usize,
) -> CqcStatus {
    guarded(|| {
        // SAFETY: by the caller's promise.
        let (of, samples) = unsafe { (handle(of, "the loop")?, handle(samples, "the samples")?) };
        let (mut denoiser, mut trajectory) =
            (lock(&of.0, "the loop")?, lock(&samples.0, "the samples")?);
        let evaluations = denoiser.evaluations();
        if trajectory.next() >= evaluations {
            return Err(refused(DenoiseError::Finished { evaluations }));
        }
        denoiser.step(&mut trajectory).map_err(refused)?;
        if !left.is_null() {
            // SAFETY: not null, and writable by the caller's promise.
            unsafe { left.write(evaluations - trajectory.next()) };
        }
        Ok(())
    })
}

/// Copies the current samples of a batch to `out`. `len` is batch times elements.
///
/// # Safety
/// `samples` is valid, and `out` has room for `len` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cqc_get(
    samples: *const CqcSamples,
    out: *mut f32,
    len: usize,
) -> CqcStatus {
    guarded(|| {
        // SAFETY: by the caller's promise.
        let samples = unsafe { handle(samples, "the samples") }?;
        let trajectory = lock(&samples.0, "the samples")?;
        put(trajectory.x(), out, len)
    })
}

/// Copies values to a buffer of the caller.
fn put(values: &[f32], out: *mut f32, len: usize) -> Result<(), Failed> {
    if out.is_null() || len != values.len() {
        return Err(Failed::argument(format!("there are {} floats, not {len}", values.len())));
    }
    // SAFETY: not null, with room for `len` floats by the caller's promise.
    unsafe { out.copy_from_nonoverlapping(values.as_ptr(), len) };
    Ok(())
}

/// Evaluates the network at the next evaluation, for callers with a solver of their own. `input`
/// holds batch times elements floats, already scaled for the network. `out` receives the prediction
/// with guidance applied: as many floats, or twice as many if the network also predicts a variance.
///
/// # Safety
/// The handles are valid, `input` holds `len` floats, and `out` has room for `out_len` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cqc_predict(
    of: *const CqcLoop,
    samples: *const CqcSamples,
    input: *const f32,
    len: usize,
    out: *mut f32,
    out_len: usize,
) -> CqcStatus {
    guarded(|| {
        // SAFETY: by the caller's promise.
        let (of, samples) = unsafe { (handle(of, "the loop")?, handle(samples, "the samples")?) };
        // SAFETY: by the caller's promise.
        let input = unsafe { slice(input, len, "the input") }?;
        let (mut denoiser, mut trajectory) =
            (lock(&of.0, "the loop")?, lock(&samples.0, "the samples")?);
        if out.is_null() || out_len != denoiser.output().len() {
            let expected = denoiser.output().len();
            return Err(Failed::argument(format!(
                "the output is {expected} floats, not {out_len}"
            )));
        }
        put(denoiser.predict(&mut trajectory, input).map_err(refused)?, out, out_len)
    })
}

/// Sets the value of a condition per step for the following evaluations. `value` has a row per
/// sample of the batch, or a row per sample of both halves of guidance with the unconditional half
/// first.
///
/// # Safety
/// The handles are valid, and `value` is valid for its fields.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cqc_set_condition(
    of: *const CqcLoop,
    samples: *const CqcSamples,
    value: *const CqcArray,
) -> CqcStatus {
    guarded(|| {
        // SAFETY: by the caller's promise.
        let (of, samples, value) = unsafe {
            (handle(of, "the loop")?, handle(samples, "the samples")?, handle(value, "the value")?)
        };
        // SAFETY: by the caller's promise.
        let name = unsafe { text(value.name, "the name of the condition") }?;
        // SAFETY: by the caller's promise.
        let tensor = unsafe { tensor(value, name) }?;
        let (mut denoiser, mut trajectory) =
            (lock(&of.0, "the loop")?, lock(&samples.0, "the samples")?);
        denoiser.set_condition(&mut trajectory, name, &tensor).map_err(refused)
    })
}

/// Frees a handle. Null is allowed.
///
/// # Safety
/// `handle` is null, or one of this library that has not been freed.
unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: it was made by `Box::into_raw`, by the caller's promise.
        let handle = unsafe { Box::from_raw(handle) };
        // what a destructor does cannot be reported
        let _ = guarded(|| {
            drop(handle);
            Ok(())
        });
    }
}

/// Frees samples. Null is allowed.
///
/// # Safety
/// The handle is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cqc_samples_free(samples: *mut CqcSamples) {
    // SAFETY: by the caller's promise.
    unsafe { free(samples) }
}

/// Frees a loop. Null is allowed.
///
/// # Safety
/// The handle is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cqc_loop_free(of: *mut CqcLoop) {
    // SAFETY: by the caller's promise.
    unsafe { free(of) }
}

/// Frees an artifact. Null is allowed.
///
/// # Safety
/// The handle is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cqc_artifact_free(artifact: *mut CqcArtifact) {
    // SAFETY: by the caller's promise.
    unsafe { free(artifact) }
}
