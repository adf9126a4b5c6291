//! Loops with another number of steps than the compiled one.
//!
//! Everything that an artifact stores per evaluation belongs to a time step. Rows for other time
//! steps are therefore derived from the compiled ones:
//!
//! | table | at time steps that were not compiled |
//! |---|---|
//! | functions of the time step alone | computed, if the artifact keeps the program for it ([`Plan::times`]); otherwise the loop is not possible |
//! | quantization ranges | interpolated linearly in the time step between the nearest evaluations that have one |
//! | corrections for quantization | interpolated in the same way |
//! | corrections of the cache | interpolated among the evaluations that reuse the same full step, beginning with "as stored" at that step |
//! | full evaluations | those nearest in time to the compiled ones |
//!
//! The cache is therefore as old, in time steps, as it was when the corrections were fitted. But
//! the corrections were fitted to errors of earlier steps, and these are different in a longer or
//! shorter loop. Measure the result with `cqc eval`, or compile again. The sample compensation of
//! Q&C belongs to steps, not to time steps, so it has no meaning in another loop.

use crate::engine::{Engine, EngineError, EngineOptions, Weights};
use crate::sampler::{Sampler, SamplerError};
use bytes::Bytes;
use cqc_kernels::arena::ALIGN;
use cqc_proto::cq::{Manifest, QuantizedLayer, Schedule};
use cqc_proto::plan::{InputRole, Plan, ProgramKind, Source};
use cqc_proto::{DType, Dim, Tensor, ValueType};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// The reason why a loop cannot be run with another number of steps or at other time steps.
#[derive(Debug, thiserror::Error)]
pub enum RetimeError {
    /// The sampler cannot make the trajectory.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The artifact has no rows for a time step, and not the program to compute them.
    #[error("the artifact knows nothing of time step {timestep}")]
    Unknown {
        /// The first such time step.
        timestep: f64,
        /// Numbers of steps that visit compiled time steps only.
        possible: Vec<usize>,
    },
    /// The model takes integers, and a time step is a fraction or outside of the type's range.
    #[error("the model takes {dtype} time steps, and these include {timestep}")]
    Fractional {
        /// Element type of the model's time step.
        dtype: DType,
        /// The first time step that the type cannot hold.
        timestep: f64,
    },
    /// A time step is not finite.
    #[error("a time step of {timestep}; expected a finite number")]
    NotFinite {
        /// The given time step.
        timestep: f64,
    },
    /// There are no time steps, or too many.
    #[error("{found} time steps; expected 1 to {}", cqc_proto::sampler::MAX_STEPS)]
    Count {
        /// The number of given time steps.
        found: usize,
    },
    /// The artifact has a sample compensation, which belongs to the compiled steps.
    #[error("its samples are corrected behind each of the compiled steps (variance compensation)")]
    Compensated,
    /// The plan has a fixed batch, and its prelude computes a fixed number of evaluations.
    #[error("its fixed batch ties it to the compiled number of evaluations")]
    Fixed,
    /// The engine that computes the tables reported an error.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The numbers of steps with which a loop can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Possible {
    /// Every number that the sampler accepts.
    Any,
    /// These numbers, in ascending order.
    These(Vec<usize>),
}

/// The numbers of steps with which the artifact can be run.
///
/// # Errors
/// [`RetimeError::Sampler`] if the sampler cannot be made even for the compiled steps.
pub fn possible(manifest: &Manifest) -> Result<Possible, RetimeError> {
    let plan = &manifest.plan;
    if check(manifest).is_err() {
        return Ok(Possible::These(vec![manifest.steps]));
    }
    if plan.times.is_some() || time_tables(manifest).is_empty() {
        return Ok(Possible::Any);
    }
    let known = timesteps(&Sampler::new(&manifest.sampler, manifest.steps)?);
    let known: HashSet<u64> = known.iter().map(|t| t.to_bits()).collect();
    let is_known = |steps: &usize| {
        let sampler = Sampler::new(&manifest.sampler, *steps);
        let is_known = |t: &f64| known.contains(&t.to_bits());
        sampler.is_ok_and(|sampler| timesteps(&sampler).iter().all(is_known))
    };
    let work = manifest.steps.saturating_mul(manifest.sampler.num_train_timesteps as usize);
    let tried = (1..=manifest.steps)
        .filter(|steps| work <= MAX_TRIED || manifest.steps.is_multiple_of(*steps));
    Ok(Possible::These(tried.filter(is_known).collect()))
}

/// The limit on the training steps that are looked at to find the possible numbers of steps. Above
/// it only divisors of the compiled number are tried, and possible numbers are normally among them.
const MAX_TRIED: usize = 1 << 24;

/// The loop with `steps` sampler steps: its manifest, and its plan with the constants. These are
/// `bytes` and new rows of tables.
///
/// # Errors
/// A [`RetimeError`] if the artifact cannot be run with that number of steps.
pub fn retime(
    manifest: &Manifest,
    bytes: &Bytes,
    steps: usize,
) -> Result<(Manifest, Arc<Weights>), RetimeError> {
    if steps == manifest.steps {
        return Ok((manifest.clone(), Weights::new(manifest.plan.clone(), bytes.clone())?));
    }
    let to = timesteps(&Sampler::new(&manifest.sampler, steps)?);
    let (mut to_manifest, weights) = retime_to(manifest, bytes, &to)?;
    to_manifest.steps = steps;
    Ok((to_manifest, weights))
}

/// The loop at the given time steps, one per evaluation, for a caller with a solver of its own: see
/// [`retime`]. The manifest keeps the compiled sampler and its number of steps.
///
/// # Errors
/// A [`RetimeError`] if the artifact cannot be run at these time steps.
pub fn retime_to(
    manifest: &Manifest,
    bytes: &Bytes,
    to: &[f64],
) -> Result<(Manifest, Arc<Weights>), RetimeError> {
    let weights = Weights::new(manifest.plan.clone(), bytes.clone())?;
    let from = timesteps(&Sampler::new(&manifest.sampler, manifest.steps)?);
    if from == to {
        return Ok((manifest.clone(), weights));
    }
    check(manifest)?;
    if let Some(&timestep) = to.iter().find(|t| !t.is_finite()) {
        return Err(RetimeError::NotFinite { timestep });
    }
    if to.is_empty() || to.len() > cqc_proto::sampler::MAX_STEPS {
        return Err(RetimeError::Count { found: to.len() });
    }
    let expected = manifest.plan.evaluations;
    if expected != 0 && expected != from.len() {
        return Err(EngineError::Timesteps { found: from.len(), expected }.into());
    }
    for input in manifest.plan.inputs.iter().filter(|i| i.role == InputRole::Timestep) {
        let dtype = input.ty.dtype;
        if let Some(&timestep) = to.iter().find(|t| !dtype.holds(**t)) {
            return Err(RetimeError::Fractional { dtype, timestep });
        }
    }
    let mut made = Tables { weights: &weights, from: &from, to, rows: BTreeMap::new() };
    made.of_time(manifest, bytes)?;
    made.of_layers(layers_of(manifest));
    let full =
        manifest.plan.cache.as_ref().map(|cache| made.of_cache(manifest, &cache.full_evaluations));

    let mut to_manifest = manifest.clone();
    if let Schedule::Cached(schedule) = &mut to_manifest.schedule {
        (schedule.cost, schedule.uniform_cost) = (None, None);
    }
    let plan = &mut to_manifest.plan;
    plan.evaluations = to.len();
    // this program was made for the compiled rows
    plan.times = None;
    if let (Some(cache), Some(full)) = (&mut plan.cache, full) {
        cache.full_evaluations = full;
    }
    let more = replace(plan, bytes, &made.rows);
    let weights = Weights::in_two(plan.clone(), bytes.clone(), more, weights.isa())?;
    Ok((to_manifest, weights))
}

/// Replaces tables of the plan by these rows. Returns the bytes that follow `bytes`.
fn replace(plan: &mut Plan, bytes: &Bytes, tables: &BTreeMap<usize, Vec<Bytes>>) -> Bytes {
    let base = bytes.len().next_multiple_of(ALIGN);
    let mut more: Vec<u8> = Vec::new();
    for (table, rows) in tables {
        more.resize(more.len().next_multiple_of(ALIGN), 0);
        let constant = &mut plan.constants[*table];
        let dtype = if constant.ty.dtype.is_float() { DType::F32 } else { constant.ty.dtype };
        constant.ty = ValueType { dtype, shape: constant.ty.shape.clone() };
        constant.ty.shape[0] = Dim::constant(rows.len() as i64);
        constant.offset = (base + more.len()) as u64;
        rows.iter().for_each(|row| more.extend_from_slice(row));
    }
    more.into()
}

/// The rows that layers need to run the full step at evaluation `e`, which was compiled as a cached
/// step. They are the rows that a loop with other steps would get at that time step. The result
/// holds tables with one row each, and is empty if `e` is a full step.
///
/// `weights` belong to the manifest or to a loop derived from it; `timesteps` has one entry per
/// evaluation.
pub(crate) fn rows_of_full(
    manifest: &Manifest,
    weights: &Weights,
    timesteps: &[f64],
    e: usize,
) -> Vec<(usize, Vec<f32>)> {
    let (to, rows) = (&timesteps[e..=e], BTreeMap::new());
    let mut made = Tables { weights, from: timesteps, to, rows };
    made.of_layers(layers_of(manifest));
    let is_open = |scale: usize| made.compiled(scale)[e].contains(&0.0);
    let mut open = BTreeSet::new();
    for layer in layers_of(manifest) {
        for (i, input) in layer.inputs.iter().enumerate().filter(|(_, t)| is_open(t.scale)) {
            open.extend([input.scale, input.zero_point]);
            let correction = layer.correction.filter(|_| i == 0);
            open.extend(correction.iter().flat_map(|c| [c.a, c.bias]));
        }
    }
    let floats = |row: &Bytes| -> Vec<f32> {
        row.chunks_exact(4).map(|f| f32::from_ne_bytes([f[0], f[1], f[2], f[3]])).collect()
    };
    open.into_iter().map(|table| (table, floats(&made.rows[&table][0]))).collect()
}

/// The manifest's weights with the rows of [`rows_of_full`] at all evaluations, for devices, which
/// cannot complete their tables later. `None` if there is nothing to complete.
///
/// # Errors
/// [`RetimeError::Sampler`], [`RetimeError::Engine`].
pub(crate) fn completed(
    manifest: &Manifest,
    bytes: &Bytes,
    weights: &Arc<Weights>,
) -> Result<Option<Arc<Weights>>, RetimeError> {
    if manifest.plan.cache.is_none() || layers_of(manifest).is_empty() {
        return Ok(None);
    }
    let timesteps = timesteps(&Sampler::new(&manifest.sampler, manifest.steps)?);
    let cached = |e: &usize| manifest.plan.program_at(*e) == ProgramKind::Cached;
    let of = Tables { weights, from: &timesteps, to: &timesteps, rows: BTreeMap::new() };
    let mut tables: BTreeMap<usize, Vec<Vec<f32>>> = BTreeMap::new();
    for e in (0..timesteps.len()).filter(cached) {
        for (table, row) in rows_of_full(manifest, weights, &timesteps, e) {
            tables.entry(table).or_insert_with(|| of.compiled(table))[e] = row;
        }
    }
    if tables.is_empty() {
        return Ok(None);
    }
    let as_bytes = |row: Vec<f32>| Bytes::copy_from_slice(bytemuck::cast_slice(&row));
    let tables = tables
        .into_iter()
        .map(|(table, rows)| (table, rows.into_iter().map(as_bytes).collect()))
        .collect();
    let mut plan = manifest.plan.clone();
    let more = replace(&mut plan, bytes, &tables);
    Ok(Some(Weights::in_two(plan, bytes.clone(), more, weights.isa())?))
}

fn layers_of(manifest: &Manifest) -> &[QuantizedLayer] {
    manifest.quant.quantized().map_or(&[], |quantized| &quantized.layers)
}

fn check(manifest: &Manifest) -> Result<(), RetimeError> {
    let plan = &manifest.plan;
    if manifest.quant.quantized().is_some_and(|q| q.compensation.is_some()) {
        return Err(RetimeError::Compensated);
    }
    if plan.batch_symbol.is_none()
        && !plan.prelude_steps.steps.is_empty()
        && !plan.steps_one_by_one()
    {
        return Err(RetimeError::Fixed);
    }
    Ok(())
}

fn timesteps(sampler: &Sampler) -> Vec<f64> {
    sampler.evaluations().iter().map(|e| e.timestep).collect()
}

/// The tables that the programs read.
fn tables(plan: &Plan) -> BTreeSet<usize> {
    let values = ProgramKind::ALL.into_iter().flat_map(|kind| &plan.program(kind).values);
    let table = |source: &Source| match source {
        Source::Table(i) => Some(*i),
        _ => None,
    };
    values.filter_map(|v| table(&v.source)).collect()
}

/// The tables that depend on the time step alone: all except those that calibration fits.
fn time_tables(manifest: &Manifest) -> BTreeSet<usize> {
    let mut fitted = BTreeSet::new();
    for layer in layers_of(manifest) {
        fitted.extend(layer.inputs.iter().flat_map(|t| [t.scale, t.zero_point]));
        fitted.extend(layer.correction.iter().flat_map(|c| [c.a, c.bias]));
    }
    if let Schedule::Cached(schedule) = &manifest.schedule {
        let of = schedule
            .corrections
            .iter()
            .flat_map(|c| [Some(c.scale), Some(c.shift), c.previous_scale]);
        fitted.extend(of.flatten());
    }
    tables(&manifest.plan).difference(&fitted).copied().collect()
}

/// The new rows of tables while they are made. `from` and `to` are the compiled and the new time
/// steps.
struct Tables<'a> {
    weights: &'a Weights,
    from: &'a [f64],
    to: &'a [f64],
    /// The rows by table, one per new evaluation.
    rows: BTreeMap<usize, Vec<Bytes>>,
}

/// A row at another time step, `(1 − part) · first + part · second`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Between {
    first: usize,
    second: usize,
    part: f64,
}

/// The position of `t` among knots, which are pairs of a time step and a row. Beyond the last knot,
/// the nearest one counts. `None` if there are no knots.
fn between(knots: &[(f64, usize)], t: f64) -> Option<Between> {
    let nearest = |above: bool| {
        let side = knots.iter().filter(|(knot, _)| if above { *knot >= t } else { *knot <= t });
        side.min_by(|a, b| (a.0 - t).abs().total_cmp(&(b.0 - t).abs()))
    };
    match (nearest(false), nearest(true)) {
        (Some(&(low, first)), Some(&(high, second))) => {
            let part = if high > low { (t - low) / (high - low) } else { 0.0 };
            Some(Between { first, second, part })
        }
        (Some(&(_, only)), None) | (None, Some(&(_, only))) => {
            Some(Between { first: only, second: only, part: 0.0 })
        }
        (None, None) => None,
    }
}

impl Between {
    fn of(&self, rows: &[Vec<f32>]) -> Vec<f32> {
        let pairs = rows[self.first].iter().zip(&rows[self.second]);
        pairs
            .map(|(&a, &b)| (f64::from(a) + (f64::from(b) - f64::from(a)) * self.part) as f32)
            .collect()
    }
}

impl Tables<'_> {
    /// The compiled rows of a float table.
    fn compiled(&self, table: usize) -> Vec<Vec<f32>> {
        let bytes = self.weights.constant(table);
        let values: &[f32] = bytemuck::cast_slice(&bytes);
        values.chunks_exact(values.len() / self.from.len()).map(<[f32]>::to_vec).collect()
    }

    fn put(&mut self, table: usize, rows: impl Iterator<Item = Vec<f32>>) {
        let bytes = rows.map(|row| Bytes::copy_from_slice(bytemuck::cast_slice(&row)));
        self.rows.insert(table, bytes.collect());
    }

    /// Makes the rows of the tables that depend on the time step alone.
    fn of_time(&mut self, manifest: &Manifest, bytes: &Bytes) -> Result<(), RetimeError> {
        let plan = &manifest.plan;
        let tables = time_tables(manifest);
        if tables.is_empty() {
            return Ok(());
        }
        let mut program = plan.time_plan().map(|plan| open(plan, bytes)).transpose()?;
        for &t in self.to {
            let known = self.from.iter().position(|&from| from == t);
            let computed = match (&mut program, known) {
                (_, Some(_)) => vec![],
                (Some(engine), None) => evaluate(engine, t)?,
                (None, None) => {
                    let possible = match possible(manifest)? {
                        Possible::Any => vec![],
                        Possible::These(these) => these,
                    };
                    return Err(RetimeError::Unknown { timestep: t, possible });
                }
            };
            for &table in &tables {
                let row = match known {
                    Some(e) => {
                        let all = self.weights.constant(table);
                        let size = all.len() / self.from.len();
                        all.slice(e * size..(e + 1) * size)
                    }
                    None => {
                        let at = plan
                            .times
                            .iter()
                            .flat_map(|times| &times.tables)
                            .position(|&of| of == table);
                        let row = at
                            .and_then(|at| computed.get(at))
                            .ok_or(RetimeError::Unknown { timestep: t, possible: vec![] })?;
                        row.bytes().clone()
                    }
                };
                self.rows.entry(table).or_default().push(row);
            }
        }
        Ok(())
    }

    /// Makes the rows of the quantization ranges and of the corrections of layers' sums.
    fn of_layers(&mut self, layers: &[QuantizedLayer]) {
        for layer in layers {
            for input in &layer.inputs {
                if self.rows.contains_key(&input.scale) {
                    continue;
                }
                let (scales, zeros) = (self.compiled(input.scale), self.compiled(input.zero_point));
                let ranges: Vec<Vec<f32>> =
                    scales.iter().zip(&zeros).map(|(s, z)| range_of(s, z)).collect();
                let knots = self.knots(&scales);
                let (mut new_scales, mut new_zeros) = (Vec::new(), Vec::new());
                for &t in self.to {
                    let (scale, zero) = match between(&knots, t) {
                        // the range of a compiled evaluation is taken unchanged
                        Some(at) if at.first == at.second => {
                            (scales[at.first].clone(), zeros[at.first].clone())
                        }
                        Some(at) => scale_of(&at.of(&ranges)),
                        None => (scales[0].clone(), zeros[0].clone()),
                    };
                    new_scales.push(scale);
                    new_zeros.push(zero);
                }
                self.put(input.scale, new_scales.into_iter());
                self.put(input.zero_point, new_zeros.into_iter());
            }
            if let (Some(correction), Some(input)) = (layer.correction, layer.inputs.first()) {
                let knots = self.knots(&self.compiled(input.scale));
                for table in [correction.a, correction.bias] {
                    if self.rows.contains_key(&table) {
                        continue;
                    }
                    let rows = self.compiled(table);
                    let at = |t: &f64| {
                        between(&knots, *t).map_or_else(|| rows[0].clone(), |at| at.of(&rows))
                    };
                    let new: Vec<Vec<f32>> = self.to.iter().map(at).collect();
                    self.put(table, new.into_iter());
                }
            }
        }
    }

    /// The time steps and indices of the evaluations whose scale is not 0, that is, which read the
    /// layer.
    fn knots(&self, scales: &[Vec<f32>]) -> Vec<(f64, usize)> {
        let is_read = |row: &[f32]| row.iter().any(|&scale| scale != 0.0);
        self.from
            .iter()
            .zip(scales)
            .enumerate()
            .filter(|(_, (_, row))| is_read(row))
            .map(|(e, (&t, _))| (t, e))
            .collect()
    }

    /// Makes the rows of the corrections of the cache, and returns the full evaluations, ascending.
    fn of_cache(&mut self, manifest: &Manifest, full: &[usize]) -> Vec<usize> {
        // Each new full evaluation stands for one or more compiled ones, namely those to which it
        // is nearest. The nearest of these is its anchor.
        let mut anchors: BTreeMap<usize, usize> = BTreeMap::from([(0, 0)]);
        let distance = |new: usize, old: usize| (self.to[new] - self.from[old]).abs();
        for &old in full {
            let order = |a: &usize, b: &usize| distance(*a, old).total_cmp(&distance(*b, old));
            let Some(new) = (0..self.to.len()).min_by(order) else { continue };
            let stands_for = anchors.entry(new).or_insert(old);
            if distance(new, old) < distance(new, *stands_for) {
                *stands_for = old;
            }
        }
        let corrections = match &manifest.schedule {
            Schedule::Cached(schedule) => schedule.corrections.clone(),
            Schedule::None => vec![],
        };
        for c in corrections {
            for (table, as_stored) in
                [(Some(c.scale), 1.0), (Some(c.shift), 0.0), (c.previous_scale, 0.0)]
            {
                let Some(table) = table else { continue };
                let mut rows = self.compiled(table);
                for &old in full {
                    rows[old].fill(as_stored);
                }
                let new = (0..self.to.len()).map(|e| {
                    let (_, &old) =
                        anchors.range(..=e).next_back().expect("the first evaluation is full");
                    let until =
                        full.iter().copied().find(|&next| next > old).unwrap_or(self.from.len());
                    let knots: Vec<(f64, usize)> =
                        (old..until).map(|i| (self.from[i], i)).collect();
                    between(&knots, self.to[e]).expect("it has the full evaluation").of(&rows)
                });
                let new: Vec<Vec<f32>> = new.collect();
                self.put(table, new.into_iter());
            }
        }
        anchors.into_keys().collect()
    }
}

/// The smallest and the greatest value that u8 codes cover, alternating, per segment.
fn range_of(scale: &[f32], zero_point: &[f32]) -> Vec<f32> {
    scale.iter().zip(zero_point).flat_map(|(s, z)| [-z * s, (255.0 - z) * s]).collect()
}

/// Scales and zero points of the ranges of [`range_of`].
fn scale_of(ranges: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let of = |range: &[f32]| {
        let scale = (range[1] - range[0]) / 255.0;
        let zero =
            if scale > 0.0 { (-range[0] / scale).round_ties_even().clamp(0.0, 255.0) } else { 0.0 };
        (scale, zero)
    };
    ranges.chunks_exact(2).map(of).unzip()
}

fn open(plan: Plan, bytes: &Bytes) -> Result<Engine, RetimeError> {
    let weights = Weights::new(plan, bytes.clone())?;
    Ok(Engine::open(&weights, &EngineOptions { batch: 1, threads: 1, ..Default::default() })?)
}

/// Computes one row of every table.
fn evaluate(engine: &mut Engine, timestep: f64) -> Result<Vec<Tensor>, RetimeError> {
    let input = &engine.plan().inputs[0];
    let (name, ty, shape) = (input.name.clone(), input.ty.dtype, engine.input_shape(0).to_vec());
    let count = shape.iter().product();
    let value = if ty.is_float() {
        Tensor::from_f32(&shape, &vec![timestep as f32; count])
    } else {
        Tensor::from_i64(&shape, &vec![timestep as i64; count])
    };
    let mut outputs = engine.run(&BTreeMap::from([(name, value)]))?;
    let order: Vec<String> = engine.plan().outputs.iter().map(|o| o.name.clone()).collect();
    Ok(order.iter().filter_map(|name| outputs.remove(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_lie_between_the_nearest_ones() {
        let knots = [(30.0, 0), (20.0, 1), (10.0, 4)];
        assert_eq!(between(&knots, 20.0), Some(Between { first: 1, second: 1, part: 0.0 }));
        assert_eq!(between(&knots, 12.5), Some(Between { first: 4, second: 1, part: 0.25 }));
        assert_eq!(between(&knots, 35.0), Some(Between { first: 0, second: 0, part: 0.0 }));
        assert_eq!(between(&knots, 0.0), Some(Between { first: 4, second: 4, part: 0.0 }));
        assert_eq!(between(&[], 0.0), None);
        let rows = [vec![0.0], vec![1.0], vec![], vec![], vec![5.0]];
        assert_eq!(between(&knots, 12.5).unwrap().of(&rows), [4.0]);
    }

    #[test]
    fn ranges_survive_the_way_there_and_back() {
        let (scale, zero) = (vec![0.5, 0.25], vec![10.0, 0.0]);
        assert_eq!(scale_of(&range_of(&scale, &zero)), (scale, zero));
    }
}
