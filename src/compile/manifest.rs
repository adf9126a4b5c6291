//! What an artifact says of itself: schedule, calibration, quantization.

use super::conditions::add_constant;
use super::{CompileError, Lowered, Session};
use crate::calibrate::Choice;
use crate::calibrate::quantize::{Fitted, Quantized};
use crate::recipe::{Named, Quant, Recipe, Selection};
use cqc_passes::quant::annotate::table_name;
use cqc_passes::quant::{Bf16Layer, Bf16Products};
use cqc_proto::Tensor;
use cqc_proto::cq::{
    self, ActivationTable, CacheCorrection, CachedSchedule, Calibration, FloatLayer, Manifest, QuantizedLayer,
    QuantizedLoop, SampleCompensation, Schedule, SourceModel, SumCorrection,
};
use cqc_proto::plan::{Plan, Source};

/// The manifest. Tables that only it names become constants of the plan.
pub(super) fn manifest(
    session: &Session,
    choice: Option<&Choice>,
    quantized: Option<&Quantized>,
    corrections: Vec<CacheCorrection>,
    lowered: &mut Lowered,
) -> Result<Manifest, CompileError> {
    let (model, recipe, options) = (session.model, &session.recipe, &session.options);
    let null = session.null.manifest(&mut lowered.plan, &mut lowered.weights);
    let source = SourceModel {
        blake3: model.blake3.clone(),
        opset: model.opset,
        producer: model.producer.clone(),
        parameters: model.parameters,
    };
    let mut manifest = Manifest::new(source, lowered.plan.clone(), options.sampler.clone(), options.steps);
    manifest.guidance = recipe.guidance();
    manifest.null = null;
    if let Some(choice) = choice {
        manifest.schedule = Schedule::Cached(schedule(recipe, choice, corrections));
        manifest.calibration = calibration(session, Selection::All);
    }
    if let Some(quantized) = quantized {
        manifest.quant = quant(recipe, quantized, lowered);
        manifest.plan = lowered.plan.clone();
        manifest.calibration = calibration(session, recipe.calib_select.unwrap_or(Selection::All));
    }
    if let Some(products) = &lowered.bf16 {
        manifest.quant = bf16(products, &lowered.plan);
    }
    Ok(manifest)
}

fn schedule(recipe: &Recipe, choice: &Choice, corrections: Vec<CacheCorrection>) -> CachedSchedule {
    CachedSchedule {
        method: choice.method.clone(),
        interval: recipe.interval(),
        cost: choice.cost.map(|(cost, _)| cost),
        uniform_cost: choice.cost.and_then(|(_, uniform)| uniform),
        correction_method: choice.tables.as_ref().map(|(fit, _)| fit.to_string()),
        corrections,
    }
}

fn calibration(session: &Session, select: Selection) -> Option<Calibration> {
    let request = session.calibration_set()?;
    let seed = request.noise.is_none().then_some(request.seed);
    Some(Calibration { samples: request.samples, seed, select: select.to_string() })
}

/// The quantized layers; the compensation's tables become constants of the plan.
fn quant(recipe: &Recipe, quantized: &Quantized, lowered: &mut Lowered) -> cq::Quant {
    let Quantized { survey, fitted } = quantized;
    let compensation = compensation(recipe, fitted, lowered);
    let constants = &lowered.plan.constants;
    let find = |name: String| constants.iter().position(|c| c.name == name);
    let site = |&i: &usize| {
        let of = format!("{}#{i}", survey.sites[i].name);
        let (scale, zero_point) = (find(table_name(&of, "scale"))?, find(table_name(&of, "zero_point"))?);
        Some(ActivationTable { scale, zero_point })
    };
    let layers = survey.layers.iter().map(|layer| QuantizedLayer {
        name: layer.name.clone(),
        op: layer.op.clone(),
        weight_bits: layer.weight.as_ref().map(|w| w.bits),
        weight: layer.weight.as_ref().and_then(|_| weight_constant(&lowered.plan, &layer.key)),
        inputs: layer.sites.iter().filter_map(site).collect(),
        correction: find(table_name(&layer.key, "a"))
            .zip(find(table_name(&layer.key, "bias")))
            .map(|(a, bias)| SumCorrection { a, bias }),
    });
    let layers = layers.collect();
    let float = |(name, why): &(String, String)| FloatLayer { name: name.clone(), why: why.clone() };
    let float_layers = survey.float_layers.iter().map(float).collect();
    let rounding = if recipe.reconstruct { "second-order" } else { "nearest" }.into();
    let of = QuantizedLoop { layers, float_layers, rounding, compensation };
    if recipe.quant() == Quant::W4a8 { cq::Quant::W4a8(of) } else { cq::Quant::W8a8(of) }
}

/// The layers of a loop that is rounded to bf16.
fn bf16(products: &Bf16Products, plan: &Plan) -> cq::Quant {
    let layer = |layer: &Bf16Layer| QuantizedLayer {
        name: layer.name.clone(),
        op: layer.op.clone(),
        weight_bits: Some(16),
        weight: weight_constant(plan, &layer.key),
        inputs: vec![],
        correction: None,
    };
    let float = |(name, why): &(String, String)| FloatLayer { name: name.clone(), why: why.clone() };
    cq::Quant::Bf16(QuantizedLoop {
        layers: products.layers.iter().map(layer).collect(),
        float_layers: products.float_layers.iter().map(float).collect(),
        rounding: "nearest".into(),
        compensation: None,
    })
}

/// The constant that the step which makes the value reads as its weights.
fn weight_constant(plan: &Plan, key: &str) -> Option<usize> {
    let program = &plan.full;
    let step = program.steps.iter().find(|s| program.values[s.outputs[0]].name == key)?;
    match program.values[step.inputs.get(1).copied().flatten()?].source {
        Source::Constant(i) => Some(i),
        _ => None,
    }
}

fn compensation(recipe: &Recipe, fitted: &Fitted, lowered: &mut Lowered) -> Option<SampleCompensation> {
    let tables = fitted.compensation.as_ref()?;
    let evaluations = lowered.plan.evaluations;
    let mut add = |what: &str, values: &[f32]| {
        let tensor = Tensor::from_f32(&[evaluations, values.len() / evaluations], values);
        add_constant(&mut lowered.plan, &mut lowered.weights, format!("compensation/{what}"), tensor)
    };
    let (scale, shift) = (add("scale", &tables.scale), add("shift", &tables.shift));
    let mode = recipe.variance_compensation.map_or_else(String::new, |mode| mode.name().to_string());
    Some(SampleCompensation { scale, shift, mode })
}
