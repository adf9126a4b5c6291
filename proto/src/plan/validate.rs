//! Checks a plan once, so that its execution needs no checks.

use super::{
    Alias, Cache, Constant, InputRole, Plan, PlanValue, Program, ProgramKind, Source, Step,
    TimeTables,
};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::op::{InputTypes, Op};
use crate::types::{MAX_RANK, ValueType, element_count};
use std::collections::BTreeSet;

/// The maximum number of constants in a plan, and of values and of steps in a program.
pub const MAX_ITEMS: usize = 1 << 20;

/// The maximum number of inputs and of outputs of a plan. It is small because lookups search
/// through all of them.
pub const MAX_INPUTS: usize = 1 << 12;

/// The number of operands that the steps of a program may have in addition to [`OPERANDS_PER_ITEM`]
/// for each value and step.
const FREE_OPERANDS: usize = 1 << 15;

/// The average number of operands per value and step. An operand takes two bytes of a manifest, but
/// hundreds of bytes after a step that moves it has been prepared.
const OPERANDS_PER_ITEM: usize = 2;

/// The factor by which the bytes of all constants may exceed the weights, beyond [`FREE_SHARING`].
const SHARING: u64 = 4;

/// The number of bytes of constants up to which sharing is not limited.
const FREE_SHARING: u64 = 1 << 20;

/// The maximum number of evaluations of one loop.
pub const MAX_EVALUATIONS: usize = 1 << 16;

/// The reason why a plan cannot be executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A list is too long.
    #[error("{count} {what}, at most {limit} are allowed")]
    TooMany {
        /// The kind of items in the list.
        what: &'static str,
        /// The number of items.
        count: usize,
        /// The maximum number of items.
        limit: usize,
    },
    /// Constants share too many bytes, which no compiler produces.
    #[error("its constants have {all} bytes, the weights {weights_len}: too many share theirs")]
    Shared {
        /// The number of bytes of all constants.
        all: u64,
        /// The number of bytes of the weights.
        weights_len: u64,
    },
    /// `batch_symbol` and `fixed_batch` contradict each other or are invalid.
    #[error("batch: {reason}")]
    Batch {
        /// The expected and the actual content.
        reason: String,
    },
    /// An input of the model is invalid.
    #[error("input `{name}`: {reason}")]
    Input {
        /// Name of the input.
        name: String,
        /// The expected and the actual content.
        reason: String,
    },
    /// An output of the model is invalid.
    #[error("output `{name}`: {reason}")]
    Output {
        /// Name of the output.
        name: String,
        /// The expected and the actual content.
        reason: String,
    },
    /// A constant is invalid.
    #[error("constant `{name}`: {reason}")]
    Constant {
        /// Name of the constant.
        name: String,
        /// The expected and the actual content.
        reason: String,
    },
    /// A value of a program is invalid.
    #[error("value {index} `{name}` of program {program}: {reason}")]
    Value {
        /// The program of the value.
        program: ProgramKind,
        /// Index of the value.
        index: usize,
        /// Name of the value.
        name: String,
        /// The expected and the actual content.
        reason: String,
    },
    /// A step of a program is invalid.
    #[error("step {index} `{name}` of program {program}: {reason}")]
    Step {
        /// The program of the step.
        program: ProgramKind,
        /// Index of the step.
        index: usize,
        /// Name of the step.
        name: String,
        /// The expected and the actual content.
        reason: String,
    },
    /// The cache or its schedule is invalid.
    #[error("cache: {reason}")]
    Cache {
        /// The expected and the actual content.
        reason: String,
    },
    /// The program that computes tables of the time step is invalid.
    #[error("tables of the time step: {reason}")]
    Times {
        /// The expected and the actual content.
        reason: String,
    },
    /// The results of a program are invalid.
    #[error("results of program {program}: {reason}")]
    Results {
        /// The program of the results.
        program: ProgramKind,
        /// The expected and the actual content.
        reason: String,
    },
}

type Check = Result<(), String>;

/// Checks every index, offset, shape, type and order of `plan`, whose constants lie in
/// `weights_len` bytes.
///
/// In a plan that passes, all sizes are positive and depend on nothing but the batch symbol, and
/// the shape rule of every operator gives the types that the plan declares. Time and memory grow
/// linearly with the plan.
///
/// # Errors
/// The first error that is found, with its place.
pub fn validate(plan: &Plan, weights_len: u64) -> Result<(), PlanError> {
    check_counts(plan)?;
    check_batch(plan).map_err(|reason| PlanError::Batch { reason })?;
    check_stored(plan, weights_len)?;
    for constant in &plan.constants {
        let error = |reason| PlanError::Constant { name: constant.name.clone(), reason };
        check_constant(constant, weights_len)
            .and_then(|()| check_codes(plan, constant))
            .map_err(error)?;
    }
    check_inputs(plan)?;
    let one_by_one = plan.steps_one_by_one();
    for kind in ProgramKind::ALL {
        Checker { plan, kind, program: plan.program(kind), one_by_one }.check()?;
    }
    check_outputs(plan)?;
    plan.cache.as_ref().map_or(Ok(()), |cache| check_cache(plan, cache))?;
    plan.times.as_ref().map_or(Ok(()), |times| check_times(plan, times, weights_len))
}

fn check_times(plan: &Plan, times: &TimeTables, weights_len: u64) -> Result<(), PlanError> {
    let error = |reason: String| PlanError::Times { reason };
    let alone = plan.time_plan().ok_or_else(|| error("the plan has no time step".into()))?;
    if times.tables.len() != times.program.results.len() {
        return Err(error(format!(
            "{} results for {} tables",
            times.program.results.len(),
            times.tables.len()
        )));
    }
    if !times.tables.is_empty() {
        validate(&alone, weights_len).map_err(|e| error(e.to_string()))?;
    }
    let one = plan.batch_symbol.iter().map(|symbol| (symbol.as_str().into(), 1)).collect();
    for (output, &table) in alone.outputs.iter().zip(&times.tables) {
        let constant = plan
            .constants
            .get(table)
            .ok_or_else(|| error(format!("there is no constant {table}")))?;
        let rows =
            constant.ty.shape.split_first().filter(|(rows, _)| rows.is(plan.evaluations as i64));
        let row = output.ty.resolve(&one).map(|shape| ValueType::fixed(output.ty.dtype, &shape));
        let fits = |(_, shape): (&Dim, &[Dim])| {
            row.as_ref()
                .is_some_and(|row| row.shape == shape && row.dtype == widened(&constant.ty).dtype)
        };
        if constant.codes.is_some() || !rows.is_some_and(fits) {
            return Err(error(format!(
                "`{}` is {}, its row {}",
                constant.name, constant.ty, output.ty
            )));
        }
    }
    Ok(())
}

fn check_cache(plan: &Plan, cache: &Cache) -> Result<(), PlanError> {
    let error = |reason: String| PlanError::Cache { reason };
    let full = &cache.full_evaluations;
    if full.first() != Some(&0) || full.windows(2).any(|w| w[0] >= w[1]) {
        return Err(error("its full evaluations do not ascend from 0".into()));
    }
    if full.last().is_some_and(|&last| last >= plan.evaluations) {
        return Err(error(format!(
            "full evaluation {} of {}",
            full[full.len() - 1],
            plan.evaluations
        )));
    }
    if cache.slots.is_empty() {
        return Err(error("it has no slots".into()));
    }
    for slot in &cache.slots {
        let value = plan.full.values.get(slot.value);
        let value = value.ok_or_else(|| {
            error(format!("slot `{}` stores value {}, which is missing", slot.name, slot.value))
        })?;
        if value.source != Source::Step {
            return Err(error(format!(
                "slot `{}` stores `{}`, which no step writes",
                slot.name, value.name
            )));
        }
    }
    for slot in &cache.slots {
        let Some(i) = slot.previous_of else { continue };
        let fits =
            cache.slots.get(i).is_some_and(|of| of.previous_of.is_none() && of.value == slot.value);
        if !fits {
            return Err(error(format!(
                "slot `{}` holds what slot {i} held before, which is none of its value",
                slot.name
            )));
        }
    }
    if cache.cached.results.len() != plan.outputs.len() {
        let (found, expected) = (cache.cached.results.len(), plan.outputs.len());
        return Err(error(format!("its program has {found} results for {expected} outputs")));
    }
    for (output, &result) in plan.outputs.iter().zip(&cache.cached.results) {
        // both exist: outputs and results have been checked
        let (full, cached) = (&plan.full.values[output.value].ty, &cache.cached.values[result].ty);
        if full != cached {
            return Err(error(format!(
                "output `{}` is {full}, of its program {cached}",
                output.name
            )));
        }
    }
    Ok(())
}

fn ensure(condition: bool, reason: impl FnOnce() -> String) -> Check {
    if condition { Ok(()) } else { Err(reason()) }
}

fn check_counts(plan: &Plan) -> Result<(), PlanError> {
    let mut counts = vec![
        ("inputs", plan.inputs.len(), MAX_INPUTS),
        ("outputs", plan.outputs.len(), MAX_INPUTS),
        ("constants", plan.constants.len(), MAX_ITEMS),
        ("evaluations", plan.evaluations, MAX_EVALUATIONS),
    ];
    for kind in ProgramKind::ALL {
        let program = plan.program(kind);
        let operands = program.steps.iter().map(|s| s.inputs.iter().flatten().count()).sum();
        let items = program.values.len().saturating_add(program.steps.len());
        let most = items.saturating_mul(OPERANDS_PER_ITEM).saturating_add(FREE_OPERANDS);
        counts.extend([
            ("values", program.values.len(), MAX_ITEMS),
            ("steps", program.steps.len(), MAX_ITEMS),
            ("operands of steps", operands, most),
            ("results", program.results.len(), MAX_ITEMS),
        ]);
    }
    match counts.into_iter().find(|(_, count, limit)| count > limit) {
        Some((what, count, limit)) => Err(PlanError::TooMany { what, count, limit }),
        None => Ok(()),
    }
}

fn check_batch(plan: &Plan) -> Check {
    match (&plan.batch_symbol, plan.fixed_batch) {
        (Some(symbol), None) => {
            ensure(crate::dim::is_symbol(symbol), || format!("`{symbol}` is no symbol"))
        }
        (None, Some(batch)) => {
            ensure((1..=MAX_ITEMS).contains(&batch), || format!("the fixed batch is {batch}"))
        }
        (None, None) => Ok(()),
        (Some(symbol), Some(batch)) => {
            Err(format!("both the symbol `{symbol}` and fixed to {batch}"))
        }
    }
}

fn check_constant(constant: &Constant, weights_len: u64) -> Check {
    let shape = constant
        .ty
        .fixed_shape()
        .ok_or_else(|| format!("its type {} is not fixed", constant.ty))?;
    ensure(shape.len() <= MAX_RANK, || {
        format!("{} axes, at most {MAX_RANK} are allowed", shape.len())
    })?;
    ensure(!shape.contains(&0), || format!("its type {} has no elements", constant.ty))?;
    element_count(&shape).ok_or_else(|| format!("its type {} is too large", constant.ty))?;
    ensure(constant.offset.is_multiple_of(64), || {
        format!("its offset {} is no multiple of 64", constant.offset)
    })?;
    let bytes = constant
        .stored_bytes()
        .ok_or_else(|| format!("its type {} is too large", constant.ty))? as u64;
    let end = constant.offset.checked_add(bytes);
    ensure(end.is_some_and(|end| end <= weights_len), || {
        format!("{bytes} bytes at {} do not lie in {weights_len} bytes of weights", constant.offset)
    })
}

/// Checks that the constants together are not many times as large as the weights, because data
/// derived from them, such as packed weights, would be.
fn check_stored(plan: &Plan, weights_len: u64) -> Result<(), PlanError> {
    let bytes = plan.constants.iter().filter_map(Constant::stored_bytes);
    let all = bytes.fold(0u64, |all, bytes| all.saturating_add(bytes as u64));
    if all <= weights_len.saturating_mul(SHARING).max(FREE_SHARING) {
        return Ok(());
    }
    Err(PlanError::Shared { all, weights_len })
}

fn check_codes(plan: &Plan, constant: &Constant) -> Check {
    let Some(codes) = &constant.codes else { return Ok(()) };
    let scale = plan.constants.get(codes.scale).filter(|scale| scale.codes.is_none());
    let scale = scale.ok_or_else(|| format!("its scale would be constant {}", codes.scale))?;
    let (bits, output_axis, segments) = (codes.bits, codes.output_axis, codes.segments.clone());
    let stored = ValueType { dtype: DType::I8, shape: constant.ty.shape.clone() };
    let value = Op::DequantizeWeight { bits, output_axis, segments }
        .infer(&[Some(&stored), Some(&scale.ty)]);
    let value = value.map_err(|e| e.to_string())?;
    ensure(value == [constant.ty.clone()], || {
        format!("its codes give {}, its type is {}", value[0], constant.ty)
    })
}

fn check_inputs(plan: &Plan) -> Result<(), PlanError> {
    let mut names = BTreeSet::new();
    for input in &plan.inputs {
        let error = |reason| PlanError::Input { name: input.name.clone(), reason };
        if !names.insert(&input.name) {
            return Err(error("another input has that name".into()));
        }
        check_type(plan, &input.ty).map_err(error)?;
        if input.role == InputRole::Sample && !input.ty.dtype.is_float() {
            return Err(error(format!("the sample is {}", input.ty)));
        }
    }
    for role in [InputRole::Sample, InputRole::Timestep] {
        let mut of_role = plan.inputs.iter().filter(|i| i.role == role);
        let (first, second) = (of_role.next(), of_role.next());
        if let Some(second) = second {
            return Err(PlanError::Input {
                name: second.name.clone(),
                reason: format!("a second input is the {role:?}"),
            });
        }
        if role == InputRole::Sample && first.is_none() && plan.evaluations > 0 {
            return Err(PlanError::Input {
                name: String::new(),
                reason: "a loop needs a sample".into(),
            });
        }
    }
    Ok(())
}

fn check_outputs(plan: &Plan) -> Result<(), PlanError> {
    let mut names = BTreeSet::new();
    for output in &plan.outputs {
        let error = |reason| PlanError::Output { name: output.name.clone(), reason };
        if !names.insert(&output.name) {
            return Err(error("another output has that name".into()));
        }
        check_type(plan, &output.ty).map_err(error)?;
        let Some(value) = plan.full.values.get(output.value) else {
            return Err(error(format!("there is no value {}", output.value)));
        };
        if value.ty != widened(&output.ty) && value.ty != output.ty {
            return Err(error(format!("it is {}, its value {}", output.ty, value.ty)));
        }
    }
    if plan.outputs.is_empty() {
        return Err(PlanError::Output { name: String::new(), reason: "a plan needs one".into() });
    }
    Ok(())
}

/// The type that a program reads, in which floats are f32.
fn widened(ty: &ValueType) -> ValueType {
    let dtype = if ty.dtype.is_float() { DType::F32 } else { ty.dtype };
    ValueType { dtype, shape: ty.shape.clone() }
}

fn check_type(plan: &Plan, ty: &ValueType) -> Check {
    ensure(ty.rank() <= MAX_RANK, || {
        format!("{} axes, at most {MAX_RANK} are allowed", ty.rank())
    })?;
    for dim in &ty.shape {
        ensure(dim.is_positive(), || format!("the size {dim} of {ty} may be 0 or less"))?;
        let unknown = dim.symbols().find(|s| plan.batch_symbol.as_deref() != Some(s));
        ensure(unknown.is_none(), || {
            format!("the size {dim} of {ty} depends on something else than the batch")
        })?;
    }
    match ty.fixed_shape() {
        Some(shape) => ensure(element_count(&shape).is_some(), || format!("{ty} is too large")),
        None => Ok(()),
    }
}

/// The checks on one program.
struct Checker<'a> {
    plan: &'a Plan,
    kind: ProgramKind,
    program: &'a Program,
    /// The value of [`Plan::steps_one_by_one`].
    one_by_one: bool,
}

impl<'a> Checker<'a> {
    fn check(&self) -> Result<(), PlanError> {
        for (index, value) in self.program.values.iter().enumerate() {
            self.value(index, value).map_err(|reason| PlanError::Value {
                program: self.kind,
                index,
                name: value.name.clone(),
                reason,
            })?;
        }
        self.steps()?;
        self.results().map_err(|reason| PlanError::Results { program: self.kind, reason })
    }

    fn value(&self, index: usize, value: &PlanValue) -> Check {
        check_type(self.plan, &value.ty)?;
        match value.source {
            Source::Step => {}
            Source::Input(i) => self.input(i, value)?,
            Source::Constant(i) => self.constant(i, value)?,
            Source::Table(i) => self.table(i, value)?,
            Source::Prelude(i) => self.prelude_result(i, value)?,
            Source::PreludeSteps(i) => self.prelude_steps_result(i, value)?,
            Source::Cache(i) => self.slot(i, value)?,
        }
        match &value.alias {
            Some(alias) => self.alias(index, value, alias),
            None => Ok(()),
        }
    }

    fn slot(&self, i: usize, value: &PlanValue) -> Check {
        ensure(self.kind == ProgramKind::Cached, || "only `cached` reads the cache".into())?;
        let slot = self.plan.cache.as_ref().and_then(|cache| cache.slots.get(i));
        let slot = slot.ok_or_else(|| format!("there is no cache slot {i}"))?;
        let stored = self
            .plan
            .full
            .values
            .get(slot.value)
            .ok_or_else(|| format!("slot {i} stores nothing"))?;
        ensure(stored.ty == value.ty, || format!("it is {}, the slot {}", value.ty, stored.ty))
    }

    fn input(&self, i: usize, value: &PlanValue) -> Check {
        let input = self.plan.inputs.get(i).ok_or_else(|| format!("there is no input {i}"))?;
        let ty = widened(&input.ty);
        let mut repeated =
            self.kind == ProgramKind::PreludeSteps && self.is_repeated(&ty, &value.ty);
        match (input.role, self.kind) {
            (InputRole::Sample, ProgramKind::Prelude | ProgramKind::PreludeSteps) => {
                return Err("a prelude cannot read the sample".into());
            }
            (InputRole::Timestep, ProgramKind::Prelude) => {
                return Err("the prelude cannot read the time step".into());
            }
            (InputRole::Timestep, ProgramKind::Full | ProgramKind::Cached)
                if self.plan.evaluations > 0 =>
            {
                return Err("with tables, the program cannot read the time step".into());
            }
            (InputRole::Timestep, ProgramKind::PreludeSteps) => {
                repeated |= ty.dtype == value.ty.dtype && self.is_stacked_batch(&value.ty.shape);
            }
            _ => {}
        }
        ensure(ty == value.ty || repeated, || format!("it is {}, the input {}", value.ty, input.ty))
    }

    /// Whether `value` is `ty` stacked for every evaluation, in a plan with a fixed batch. In other
    /// plans the batch symbol expresses this.
    fn is_repeated(&self, ty: &ValueType, value: &ValueType) -> bool {
        let (Some(_), Some(first)) = (self.plan.fixed_batch, ty.shape.first()) else {
            return false;
        };
        let stacked = first.mul(&Dim::constant(self.plan.evaluations as i64));
        ty.dtype == value.dtype
            && value.shape.first() == stacked.as_ref()
            && ty.shape[1..] == value.shape[1..]
    }

    /// Whether the shape is `[evaluations · batch]`.
    fn is_stacked_batch(&self, shape: &[Dim]) -> bool {
        shape.len() == 1 && self.is_stacked_batch_size(&shape[0])
    }

    fn is_stacked_batch_size(&self, size: &Dim) -> bool {
        match (&self.plan.batch_symbol, self.plan.fixed_batch) {
            (Some(symbol), _) => size.as_symbol() == Some(symbol),
            (None, batch) => size.is((batch.unwrap_or(1) * self.plan.evaluations) as i64),
        }
    }

    fn constant(&self, i: usize, value: &PlanValue) -> Check {
        let constant =
            self.plan.constants.get(i).ok_or_else(|| format!("there is no constant {i}"))?;
        let fits = value.ty == constant.ty || value.ty == widened(&constant.ty);
        ensure(fits, || format!("it is {}, the constant {}", value.ty, constant.ty))
    }

    fn table(&self, i: usize, value: &PlanValue) -> Check {
        let table =
            self.plan.constants.get(i).ok_or_else(|| format!("there is no constant {i}"))?;
        let rows = table.ty.shape.first().ok_or("a table needs an axis for the evaluation")?;
        ensure(self.plan.evaluations > 0 && rows.is(self.plan.evaluations as i64), || {
            format!("the table has {rows} rows for {} evaluations", self.plan.evaluations)
        })?;
        let row = &table.ty.shape[1..];
        let shape = match self.kind {
            ProgramKind::Prelude => return Err("the prelude runs before any evaluation".into()),
            ProgramKind::Full | ProgramKind::Cached => &value.ty.shape[..],
            ProgramKind::PreludeSteps => match value.ty.shape.split_first() {
                Some((first, rest)) if self.is_stacked_batch_size(first) => rest,
                _ => {
                    return Err(format!("it is {}, expected [evaluations · batch, ...]", value.ty));
                }
            },
        };
        let stacked = self.kind == ProgramKind::PreludeSteps
            && row.first().is_some_and(|d| d.is(1))
            && &row[1..] == shape;
        let dtype_fits =
            value.ty.dtype == widened(&table.ty).dtype || value.ty.dtype == table.ty.dtype;
        ensure(dtype_fits && (row == shape || stacked), || {
            format!("it is {}, the table {}", value.ty, table.ty)
        })
    }

    fn result_of(&self, program: &'a Program, i: usize) -> Result<&'a ValueType, String> {
        let value = program.results.get(i).and_then(|&value| program.values.get(value));
        value.map(|v| &v.ty).ok_or_else(|| format!("there is no result {i}"))
    }

    fn prelude_result(&self, i: usize, value: &PlanValue) -> Check {
        ensure(self.kind != ProgramKind::Prelude, || {
            "the prelude cannot read its own results".into()
        })?;
        let result = self.result_of(&self.plan.prelude, i)?;
        let repeated =
            self.kind == ProgramKind::PreludeSteps && self.is_repeated(result, &value.ty);
        ensure(*result == value.ty || repeated, || {
            format!("it is {}, the result {result}", value.ty)
        })
    }

    fn prelude_steps_result(&self, i: usize, value: &PlanValue) -> Check {
        ensure(self.kind.is_step(), || "no prelude reads results of `prelude_steps`".into())?;
        let result = self.result_of(&self.plan.prelude_steps, i)?;
        let fits = match &self.plan.batch_symbol {
            // the rows of one evaluation must be a whole number of batches
            Some(symbol) => {
                let first = result.shape.first();
                *result == value.ty
                    && first.is_some_and(|d| {
                        *d == Dim::symbol(symbol)
                            .mul(&d.coefficient(symbol).into())
                            .unwrap_or_default()
                    })
            }
            None if self.one_by_one => *result == value.ty,
            None => {
                let stacked = value
                    .ty
                    .shape
                    .first()
                    .and_then(|d| d.mul(&Dim::constant(self.plan.evaluations as i64)));
                stacked.is_some()
                    && result.dtype == value.ty.dtype
                    && result.shape.first() == stacked.as_ref()
                    && result.shape[1..] == value.ty.shape[1..]
            }
        };
        ensure(fits, || format!("it is {}, the result for all evaluations {result}", value.ty))
    }

    fn alias(&self, index: usize, value: &PlanValue, alias: &Alias) -> Check {
        let (Alias::Same { of } | Alias::Columns { of, .. }) = alias;
        let target = self
            .program
            .values
            .get(*of)
            .ok_or_else(|| format!("it is an alias of value {of}, which is missing"))?;
        let both_steps = value.source == Source::Step && target.source == Source::Step;
        ensure(both_steps, || "only values written by steps can share storage".into())?;
        ensure(*of != index && target.alias.is_none(), || {
            format!("it is an alias of the alias `{}`", target.name)
        })?;
        ensure(value.ty.dtype == target.ty.dtype, || {
            format!("it is {}, `{}` is {}", value.ty, target.name, target.ty)
        })?;
        let fits = match alias {
            Alias::Same { .. } => {
                value.ty.shape == target.ty.shape
                    || same(elements(&value.ty.shape), elements(&target.ty.shape))
            }
            Alias::Columns { offset, .. } => columns_fit(&value.ty.shape, &target.ty.shape, offset),
        };
        ensure(fits, || {
            format!(
                "{} does not lie in `{}` of type {} as {alias:?}",
                value.ty, target.name, target.ty
            )
        })
    }

    fn steps(&self) -> Result<(), PlanError> {
        let values = &self.program.values;
        let mut written: Vec<bool> = values.iter().map(|v| v.source != Source::Step).collect();
        for (index, step) in self.program.steps.iter().enumerate() {
            self.step(step, &mut written).map_err(|reason| PlanError::Step {
                program: self.kind,
                index,
                name: step.name.clone(),
                reason,
            })?;
        }
        let Some(index) = (0..values.len()).find(|&v| !self.is_written(v, &written)) else {
            return Ok(());
        };
        let (name, reason) = (values[index].name.clone(), "no step writes it".into());
        Err(PlanError::Value { program: self.kind, index, name, reason })
    }

    /// Whether a step has written the value, or the value whose elements it shares.
    fn is_written(&self, value: usize, written: &[bool]) -> bool {
        written[value]
            || matches!(self.program.values[value].alias, Some(Alias::Same { of }) if written[of])
    }

    fn step(&self, step: &Step, written: &mut [bool]) -> Check {
        let values = &self.program.values;
        let mut types: Vec<Option<&ValueType>> = Vec::with_capacity(step.inputs.len());
        for (position, input) in step.inputs.iter().enumerate() {
            let Some(input) = *input else {
                types.push(None);
                continue;
            };
            let value = values
                .get(input)
                .ok_or_else(|| format!("input {position} is value {input}, which is missing"))?;
            ensure(self.is_written(input, written), || {
                format!("it reads `{}` before it is written", value.name)
            })?;
            types.push(Some(&value.ty));
        }
        self.outputs_fit(step, &types)?;
        for &output in &step.outputs {
            ensure(!written[output], || {
                format!("it writes `{}`, which is written already", values[output].name)
            })?;
            written[output] = true;
        }
        Ok(())
    }

    fn outputs_fit(&self, step: &Step, types: &InputTypes) -> Check {
        let inferred = step.op.infer(types).map_err(|e| e.to_string())?;
        ensure(inferred.len() == step.outputs.len(), || {
            format!("it has {} outputs, {} are declared", inferred.len(), step.outputs.len())
        })?;
        for (ty, &output) in inferred.iter().zip(&step.outputs) {
            let value = self
                .program
                .values
                .get(output)
                .ok_or_else(|| format!("output {output} is missing"))?;
            ensure(*ty == value.ty, || {
                format!("`{}` is declared as {}, it is {ty}", value.name, value.ty)
            })?;
        }
        Ok(())
    }

    fn results(&self) -> Check {
        ensure(self.kind != ProgramKind::Full || self.program.results.is_empty(), || {
            "only preludes and `cached` have them".into()
        })?;
        let missing = self.program.results.iter().find(|&&r| r >= self.program.values.len());
        ensure(missing.is_none(), || {
            format!("there is no value {}", missing.expect("it is some"))
        })?;
        ensure(
            self.kind != ProgramKind::PreludeSteps
                || self.plan.evaluations > 0
                || self.program.steps.is_empty(),
            || "a plan without tables has none".into(),
        )
    }
}

fn elements(shape: &[Dim]) -> Option<Dim> {
    shape.iter().try_fold(Dim::constant(1), |n, d| n.mul(d))
}

/// Whether both sizes are known and equal.
fn same(a: Option<Dim>, b: Option<Dim>) -> bool {
    a.is_some() && a == b
}

fn columns_fit(value: &[Dim], target: &[Dim], offset: &Dim) -> bool {
    let (Some((columns, rows)), Some((target_columns, target_rows))) =
        (value.split_last(), target.split_last())
    else {
        return false;
    };
    let (Some(columns), Some(all), Some(offset)) =
        (columns.as_const(), target_columns.as_const(), offset.as_const())
    else {
        return false;
    };
    let rows_match = rows == target_rows || same(elements(rows), elements(target_rows));
    offset >= 0 && offset.checked_add(columns).is_some_and(|end| end <= all) && rows_match
}
