//! Step conditions, which have another value at every evaluation.

use super::request::{is_batched, joined_at, rows_at};
use super::{DenoiseError, Denoiser, Request, Trajectory};
use crate::engine::{EngineError, InFlight};
use cqc_proto::Tensor;
use cqc_proto::plan::InputRole;
use std::collections::BTreeMap;

/// Values `[evaluations, batch, ...]` by input name, for one request to the engine.
pub(super) type Steps = BTreeMap<String, Tensor>;

impl Denoiser {
    /// Sets the value of an input of the role [`InputRole::StepCondition`] for the evaluations to
    /// come. The shape is `[width, ...]` for both halves of guidance, or `[2 · width, ...]` with
    /// the unconditional half first. The value replaces that of the request.
    ///
    /// # Errors
    /// [`DenoiseError::Rows`] for another number of rows, and the errors of
    /// [`Engine::set_condition`](crate::engine::Engine::set_condition).
    pub fn set_condition(
        &mut self,
        trajectory: &mut Trajectory,
        name: &str,
        value: &Tensor,
    ) -> Result<(), DenoiseError> {
        let halves = if self.guided { 2 } else { 1 };
        let rows = value.shape().first().copied().unwrap_or(0);
        let both = match rows {
            _ if !is_batched(self.engine.plan(), name) || value.shape().is_empty() => {
                vec![value.clone(); halves]
            }
            n if n == self.width => vec![value.clone(); halves],
            n if n == self.width * halves => (0..halves)
                .map(|h| rows_at(value, 0, &(h * self.width..(h + 1) * self.width)))
                .collect(),
            _ => {
                let (shape, row) = (value.shape().to_vec(), value.shape()[1..].to_vec());
                let name = name.to_string();
                return Err(DenoiseError::Rows { name, shape, samples: self.width, row });
            }
        };
        let values = match &both[..] {
            [u, c] if self.halves == 1 && is_batched(self.engine.plan(), name) && rows > 0 => {
                vec![joined_at(0, u, c)?]
            }
            [first, ..] if self.halves == 1 => vec![first.clone()],
            _ => both,
        };
        for (request, value) in trajectory.requests.iter_mut().zip(&values) {
            self.engine.set_condition(request, name, value)?;
        }
        trajectory.steps.iter_mut().for_each(|steps| {
            steps.remove(name);
        });
        Ok(())
    }

    /// The values of the step conditions for the samples `indices`, for each request to the engine.
    pub(super) fn steps_of(
        &self,
        request: &Request,
        indices: &[usize],
    ) -> Result<Vec<Steps>, DenoiseError> {
        let conditional = self.steps_of_half(request, indices, false)?;
        if !self.guided {
            return Ok(vec![conditional]);
        }
        let unconditional = self.steps_of_half(request, indices, true)?;
        if self.halves == 2 {
            return Ok(vec![unconditional, conditional]);
        }
        let both = conditional.into_iter().map(|(name, c)| {
            let batched = is_batched(self.engine.plan(), &name);
            let t = if batched { joined_at(1, &unconditional[&name], &c)? } else { c };
            Ok((name, t))
        });
        Ok(vec![both.collect::<Result<Steps, DenoiseError>>()?])
    }

    fn steps_of_half(
        &self,
        request: &Request,
        indices: &[usize],
        null: bool,
    ) -> Result<Steps, DenoiseError> {
        let plan = self.engine.plan();
        let of_input = |(name, given): (&String, &Tensor)| {
            let input = plan.inputs.iter().find(|i| i.name == *name);
            let varies = input.filter(|i| i.role == InputRole::StepCondition);
            let Some(input) = varies else {
                let names = plan.inputs.iter().filter(|i| i.role == InputRole::StepCondition);
                let known: Vec<&str> = names.map(|i| i.name.as_str()).collect();
                let (name, known) = (name.clone(), known.join(", "));
                return Err(EngineError::NoStepCondition { name, known }.into());
            };
            let instead = request.unconditional_steps.get(name).filter(|_| null);
            let given = instead.unwrap_or(given);
            let shape = given.shape();
            let batched = is_batched(plan, name);
            let rows = |n: &usize| !batched || *n == 1 || *n == request.samples;
            let fits = shape.len() == input.ty.rank() + 1
                && shape[0] == self.timesteps.len()
                && shape.get(1).is_none_or(rows);
            if !fits {
                return Err(DenoiseError::StepValues {
                    name: name.clone(),
                    shape: shape.to_vec(),
                    evaluations: self.timesteps.len(),
                    expected: input.ty.clone(),
                });
            }
            let all = match batched {
                false => given.clone(),
                true => {
                    let parts = indices.iter().map(|&i| {
                        let row = if shape[1] == 1 { 0 } else { i };
                        rows_at(given, 1, &(row..row + 1))
                    });
                    let parts: Vec<Tensor> = parts.collect();
                    let mut parts = parts.iter();
                    let first = parts.next().expect("a batch has a sample").clone();
                    parts.try_fold(first, |all, part| joined_at(1, &all, part))?
                }
            };
            Ok((name.clone(), all))
        };
        request.step_conditions.iter().map(of_input).collect()
    }

    /// Sets the step conditions of the engine's requests to their values at evaluation `e`.
    pub(super) fn put_steps(
        &self,
        requests: &mut [InFlight],
        steps: &[Steps],
        e: usize,
    ) -> Result<(), EngineError> {
        for (request, steps) in requests.iter_mut().zip(steps) {
            for (name, values) in steps {
                let row = rows_at(values, 0, &(e..e + 1));
                let row = row.reshaped(values.shape()[1..].to_vec()).expect("one row has its size");
                self.engine.set_condition(request, name, &row)?;
            }
        }
        Ok(())
    }
}
