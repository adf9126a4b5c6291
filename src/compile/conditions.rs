//! Null conditions, and the conditions of the calibration set.

use crate::compile::CompileError;
use crate::model::{Network, Rest};
use crate::recipe::{Array, Recipe};
use cqc_passes::lower::WeightSection;
use cqc_proto::cq::NullCondition;
use cqc_proto::plan::{Constant, InputRole, Plan, PlanInput};
use cqc_proto::{Tensor, ValueType};
use cqc_runtime::artifact::{label_input, labels};
use cqc_runtime::denoise::Request;
use cqc_runtime::engine::EngineError;
use std::collections::BTreeMap;

/// Why the conditions of the recipe do not suit the model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConditionError {
    /// Guidance needs a conditioning input, and the model has none.
    #[error("guidance {guidance}: the model has no conditioning input; inputs: {}", inputs.join(", "))]
    NoConditioning {
        /// The guidance scale.
        guidance: f32,
        /// Names of the model's inputs.
        inputs: Vec<String>,
    },
    /// Labels are given, and the model has no input for labels.
    #[error("the model has no input for labels; conditioning inputs: {}", conditions.join(", "))]
    NoLabels {
        /// The conditioning inputs with their types.
        conditions: Vec<String>,
    },
    /// A null condition is given for an input that the model does not have.
    #[error("the model has no conditioning input `{name}`")]
    NoInput {
        /// The name that was given.
        name: String,
    },
    /// A null condition has another type than its input.
    #[error("the null condition of `{name}` is {found}, expected {expected}")]
    Type {
        /// Name of the input.
        name: String,
        /// Type of one row of the input.
        expected: ValueType,
        /// Type of the given array.
        found: ValueType,
    },
    /// The loop is to be calibrated, and some conditions are not given.
    #[error("calibration needs {}{}", listed(inputs), rest.as_ref().map_or(String::new(), |r| format!(": {r}")))]
    Missing {
        /// The inputs without a value.
        inputs: Vec<PlanInput>,
        /// Describes the input among them that is a part of an input of the model, if there is one.
        rest: Option<Rest>,
    },
}

fn listed(inputs: &[PlanInput]) -> String {
    let list: Vec<String> = inputs.iter().map(|i| format!("input `{}` {}", i.name, i.ty)).collect();
    list.join(", ")
}

/// Checks that the model has a condition if guidance is asked for.
pub(super) fn check_guidance(recipe: &Recipe, network: &Network) -> Result<(), ConditionError> {
    let guidance = recipe.guidance();
    if guidance == 1.0 || network.conditions().next().is_some() {
        return Ok(());
    }
    let inputs = network.inputs.iter().map(|i| i.name.clone()).collect();
    Err(ConditionError::NoConditioning { guidance, inputs })
}

/// The input that takes labels.
fn labels_of(network: &Network) -> Result<&PlanInput, ConditionError> {
    let no_labels = || ConditionError::NoLabels {
        conditions: network.conditions().map(|i| format!("{}: {}", i.name, i.ty)).collect(),
    };
    label_input(&network.inputs).ok_or_else(no_labels)
}

/// A null condition for one input.
enum NullRow {
    Label(i64),
    Row(Tensor),
}

/// The null conditions, by input.
pub(super) struct NullRows(BTreeMap<String, NullRow>);

impl NullRows {
    pub(super) fn new(recipe: &Recipe, network: &Network) -> Result<NullRows, CompileError> {
        let mut null = BTreeMap::new();
        if let Some(label) = recipe.null_label {
            null.insert(labels_of(network)?.name.clone(), NullRow::Label(label));
        }
        for (name, array) in &recipe.null_cond {
            let input = network.conditions().find(|i| i.name == *name);
            let input = input.ok_or_else(|| ConditionError::NoInput { name: name.clone() })?;
            null.insert(name.clone(), NullRow::Row(null_row(input, &array.read(name)?)?));
        }
        Ok(NullRows(null))
    }

    /// The null conditions as tensors of one row.
    pub(super) fn tensors(&self, network: &Network) -> BTreeMap<String, Tensor> {
        let tensor = |(name, row): (&String, &NullRow)| {
            let input =
                network.inputs.iter().find(|i| i.name == *name).expect("it was looked up there");
            let tensor = match row {
                NullRow::Label(label) => labels(input, &[*label]),
                NullRow::Row(row) => row.clone(),
            };
            (name.clone(), tensor)
        };
        self.0.iter().map(tensor).collect()
    }

    /// The null conditions in the form of the manifest. Arrays become constants of the plan.
    pub(super) fn manifest(
        &self,
        plan: &mut Plan,
        weights: &mut WeightSection,
    ) -> BTreeMap<String, NullCondition> {
        let mut condition = |(name, row): (&String, &NullRow)| {
            let condition = match row {
                NullRow::Label(label) => NullCondition::Label(*label),
                NullRow::Row(row) => NullCondition::Constant(add_constant(
                    plan,
                    weights,
                    format!("null of {name}"),
                    row.clone(),
                )),
            };
            (name.clone(), condition)
        };
        self.0.iter().map(&mut condition).collect()
    }
}

/// Adds a constant after those of the plan and returns its index.
pub(super) fn add_constant(
    plan: &mut Plan,
    weights: &mut WeightSection,
    name: String,
    tensor: Tensor,
) -> usize {
    let offset = weights.len.next_multiple_of(cqc_passes::lower::ALIGNMENT);
    plan.constants.push(Constant { name, ty: tensor.value_type(), offset, codes: None });
    weights.len = offset + tensor.bytes().len() as u64;
    weights.parts.push((offset, tensor));
    plan.constants.len() - 1
}

/// One row in the input's type. The axis of rows may be left out of `given`.
fn null_row(input: &PlanInput, given: &Tensor) -> Result<Tensor, CompileError> {
    let mut shape = given.shape().to_vec();
    if shape.len() + 1 == input.ty.rank() && !shape.is_empty() {
        shape.insert(0, 1);
    }
    let expected: Vec<_> =
        [1.into()].into_iter().chain(input.ty.shape.iter().skip(1).cloned()).collect();
    let expected = ValueType::new(input.ty.dtype, expected);
    if given.shape().is_empty()
        && let Some(shape) = expected.fixed_shape()
    {
        let number = given.to_f64_vec()[0];
        return Ok(Tensor::full(expected.dtype, &shape, number).map_err(EngineError::from)?);
    }
    let both_float = given.dtype().is_float() && expected.dtype.is_float();
    if (given.dtype() != expected.dtype && !both_float)
        || expected.fixed_shape().as_ref() != Some(&shape)
    {
        let (name, found) = (input.name.clone(), given.value_type());
        return Err(ConditionError::Type { name, expected, found }.into());
    }
    let row = if both_float { given.to_float(expected.dtype) } else { given.clone() };
    Ok(row.reshaped(shape).expect("it has as many elements as the type"))
}

/// The calibration set as a request. Its last samples are the holdout.
pub(super) fn calibration_set(
    recipe: &Recipe,
    network: &Network,
    null: &NullRows,
    filled: &BTreeMap<String, Tensor>,
    samples: usize,
) -> Result<Request, CompileError> {
    let noise = recipe.calib_noise.as_ref().map(|array| array.read("noise")).transpose()?;
    let rows = noise.as_ref().map(|t| t.shape().first().copied().unwrap_or(0));
    let samples = rows.unwrap_or(samples);
    let read = |(name, array): (&String, &Array)| Ok((name.clone(), array.read(name)?));
    let mut conditions =
        recipe.cond.iter().map(read).collect::<Result<BTreeMap<_, _>, CompileError>>()?;
    let given: Vec<i64> = match (&recipe.labels[..], recipe.null_label) {
        ([], Some(null)) if conditions.is_empty() && null > 0 => (0..null).collect(),
        (given, _) => given.to_vec(),
    };
    if !given.is_empty() {
        let input = labels_of(network)?;
        let given: Vec<i64> = (0..samples).map(|i| given[i % given.len()]).collect();
        conditions.insert(input.name.clone(), labels(input, &given));
    }
    conditions.extend(filled.clone());
    let varies = |name: &String, t: &Tensor| {
        let input = network.inputs.iter().find(|i| i.name == *name);
        input.is_some_and(|i| {
            i.role == InputRole::StepCondition && t.shape().len() == i.ty.rank() + 1
        })
    };
    let missing = network.conditions().filter(|i| !conditions.contains_key(&i.name));
    let missing: Vec<PlanInput> = missing.cloned().collect();
    if !missing.is_empty() {
        let rest = network.rest.clone().filter(|r| missing.iter().any(|i| i.name == r.name));
        return Err(ConditionError::Missing { inputs: missing, rest }.into());
    }
    let (step_conditions, conditions) =
        conditions.into_iter().partition(|(name, t)| varies(name, t));
    Ok(Request {
        samples,
        seed: recipe.seed(),
        noise,
        conditions,
        step_conditions,
        unconditional: null.tensors(network),
        guidance: Some(recipe.guidance()),
        guidance_rescale: recipe.guidance_rescale,
        guidance_interval: recipe.guidance_interval,
        ..Request::default()
    })
}
