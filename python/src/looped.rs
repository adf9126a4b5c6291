//! Loops over an artifact's network.

use super::arrays::{floats, new_array, tensor, tensors};
use super::errors::{self, Cancelled, RequestError};
use cachequant::runtime::denoise::{self, DenoiseError, Denoiser, Request};
use cqc_proto::cq::GuidanceInterval;
use cqc_proto::plan::InputRole;
use numpy::{PyArrayDyn, PyReadonlyArrayDyn};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard};

/// A loop with its memory, for one thread at a time.
#[pyclass(frozen, module = "cachequant._cachequant")]
pub struct Loop {
    inner: Mutex<Denoiser>,
}

/// Samples on their way.
#[pyclass(frozen, module = "cachequant._cachequant")]
pub struct Trajectory {
    inner: Mutex<denoise::Trajectory>,
}

impl Loop {
    pub fn new(denoiser: Denoiser) -> Loop {
        Loop { inner: Mutex::new(denoiser) }
    }
}

/// Refuses to wait: another thread is in the middle of something.
fn lock<T>(mutex: &Mutex<T>) -> PyResult<MutexGuard<'_, T>> {
    mutex.try_lock().map_err(|_| {
        RequestError::new_err("another thread uses this loop; open one for each thread")
    })
}

/// The request that keyword arguments of [`Loop::sample`] describe.
fn request(denoiser: &Denoiser, given: &Bound<'_, PyDict>) -> PyResult<Request> {
    let mut request = Request::default();
    let plan = denoiser.engine().plan();
    let varies = |name: &String, rank: usize| {
        let input = plan.inputs.iter().find(|i| i.name == *name);
        input.is_some_and(|i| i.role == InputRole::StepCondition && rank == i.ty.rank() + 1)
    };
    for (key, value) in given {
        let key: String = key.extract()?;
        match key.as_str() {
            "samples" => request.samples = value.extract()?,
            "seed" => request.seed = value.extract()?,
            "first" => request.first = value.extract()?,
            "guidance" => request.guidance = Some(value.extract()?),
            "noise" => request.noise = Some(tensor(&value)?),
            "init" => request.init = Some(tensor(&value)?),
            "mask" => request.mask = Some(tensor(&value)?),
            "guidance_rescale" => request.guidance_rescale = Some(value.extract()?),
            "guidance_interval" => {
                let (from, to): (f32, f32) = value.extract()?;
                let interval = format!("{from}..{to}").parse::<GuidanceInterval>();
                request.guidance_interval = Some(interval.map_err(RequestError::new_err)?);
            }
            "strength" => request.strength = Some(value.extract()?),
            "from" => request.from = Some(value.extract()?),
            "to" => request.to = Some(value.extract()?),
            "conditions" | "unconditional" => {
                let all = tensors(value.cast()?)?;
                let (steps, constant) =
                    all.into_iter().partition(|(name, t)| varies(name, t.shape().len()));
                match key.as_str() {
                    "conditions" => {
                        (request.step_conditions, request.conditions) = (steps, constant);
                    }
                    _ => (request.unconditional_steps, request.unconditional) = (steps, constant),
                }
            }
            other => return Err(RequestError::new_err(format!("no such option: {other}"))),
        }
    }
    Ok(request)
}

#[pymethods]
impl Loop {
    /// Evaluations of the network in one loop.
    #[getter]
    fn evaluations(&self) -> PyResult<usize> {
        Ok(lock(&self.inner)?.evaluations())
    }

    /// The whole loop. `progress(evaluation, evaluations, first, end)` is called after every
    /// evaluation, with the samples at work, and cancels by returning `False`.
    fn sample<'py>(
        &self,
        py: Python<'py>,
        given: &Bound<'py, PyDict>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let mut guard = lock(&self.inner)?;
        let denoiser: &mut Denoiser = &mut guard;
        let request = request(denoiser, given)?;
        let mut stopped = None;
        let sampled = py.detach(|| {
            denoiser.sample(&request, &mut |moment| {
                let going = Python::attach(|py| -> PyResult<bool> {
                    py.check_signals()?;
                    let Some(progress) = &progress else { return Ok(true) };
                    let samples = &moment.samples;
                    let of = (moment.evaluation, moment.evaluations, samples.start, samples.end);
                    Ok(!progress.bind(py).call1(of)?.is(pyo3::types::PyBool::new(py, false)))
                });
                match going {
                    Ok(true) => ControlFlow::Continue(()),
                    Ok(false) => ControlFlow::Break(()),
                    Err(e) => {
                        stopped = Some(e);
                        ControlFlow::Break(())
                    }
                }
            })
        });
        match (sampled, stopped) {
            (_, Some(e)) => Err(e),
            (Err(DenoiseError::Interrupted), None) => Err(Cancelled::new_err("cancelled")),
            (Err(e), None) => Err(errors::request(&e)),
            (Ok(samples), None) => new_array(py, samples.shape(), &samples.to_f32_vec()),
        }
    }

    /// Begins with any evaluation, for a caller with a solver of its own.
    fn begin(
        &self,
        py: Python<'_>,
        conditions: &Bound<'_, PyDict>,
        evaluation: usize,
    ) -> PyResult<Trajectory> {
        let mut guard = lock(&self.inner)?;
        let denoiser: &mut Denoiser = &mut guard;
        let conditions = tensors(conditions)?;
        let samples = denoiser.width();
        let request = Request { samples, conditions, guidance: Some(1.0), ..Request::default() };
        let begun = py.detach(|| denoiser.begin_at(&request, 0, evaluation));
        Ok(Trajectory { inner: Mutex::new(begun.map_err(|e| errors::request(&e))?) })
    }

    /// Gives an input with a value per evaluation that of the evaluations to come.
    fn set_condition(
        &self,
        trajectory: &Trajectory,
        name: &str,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (mut denoiser, mut trajectory) = (lock(&self.inner)?, lock(&trajectory.inner)?);
        let value = tensor(value)?;
        denoiser.set_condition(&mut trajectory, name, &value).map_err(|e| errors::request(&e))
    }

    /// What the network answers to a C-contiguous `[batch, ...]` of float32 at the trajectory's
    /// next evaluation.
    fn predict<'py>(
        &self,
        py: Python<'py>,
        trajectory: &Trajectory,
        input: PyReadonlyArrayDyn<'py, f32>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let (mut of_loop, mut of_samples) = (lock(&self.inner)?, lock(&trajectory.inner)?);
        let denoiser: &mut Denoiser = &mut of_loop;
        let trajectory: &mut denoise::Trajectory = &mut of_samples;
        let values = floats(&input)?;
        let done = py.detach(|| denoiser.predict(trajectory, values).map(|_| ()));
        done.map_err(|e| errors::request(&e))?;
        let predicted = denoiser.output();
        let mut shape = vec![denoiser.width()];
        shape.extend(denoiser.sample_shape());
        // a variance follows the prediction along the channels
        if predicted.len() > values.len() {
            shape[1] *= predicted.len() / values.len().max(1);
        }
        new_array(py, &shape, predicted)
    }
}
