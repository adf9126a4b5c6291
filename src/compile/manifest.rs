//! Writes the manifest: the artifact's description of its schedule, calibration and quantization.

use super::conditions::add_constant;
use super::{CompileError, Lowered, Session};
use crate::calibrate::CachingChoice;
use crate::calibrate::quantize::{Fitted, Quantized};
use crate::identity::identity;
use crate::recipe::{Named, Quant, Recipe, Selection};
use cqc_passes::ir::LayerId;
use cqc_passes::quant::{Bf16Layer, Bf16Products, CorrectionTables, SiteTables};
use cqc_proto::Tensor;
use cqc_proto::cq::{
    self, ActivationTable, CacheCorrection, CachedSchedule, Calibration, FloatLayer, Manifest,
    QuantizedLayer, QuantizedLoop, SampleCompensation, Schedule, SourceModel, SumCorrection,
};

/// The manifest. Tables that only the manifest names become constants of the plan.
pub(super) fn manifest(
    session: &Session,
    choice: Option<&CachingChoice>,
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
    let mut manifest =
        Manifest::new(source, lowered.plan.clone(), options.sampler.clone(), options.steps);
    manifest.guidance = session.filling.scale;
    manifest.guidance_rescale = recipe.guidance_rescale.unwrap_or(0.0);
    manifest.guidance_interval = recipe.guidance_interval;
    manifest.fills = session.filling.fills.clone();
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
        manifest.quant = bf16(products, lowered);
    }
    Ok(manifest)
}

fn schedule(
    recipe: &Recipe,
    choice: &CachingChoice,
    corrections: Vec<CacheCorrection>,
) -> CachedSchedule {
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
    // an instruction set that cannot be used has been refused before anything was computed
    let made_by = identity().ok();
    Some(Calibration { samples: request.samples, seed, select: select.to_string(), made_by })
}

/// The quantized layers. The tables of the sample compensation become constants of the plan.
fn quant(recipe: &Recipe, quantized: &Quantized, lowered: &mut Lowered) -> cq::Quant {
    let Quantized { survey, fitted } = quantized;
    let compensation = compensation(recipe, fitted, lowered);
    let (plan, index) = (&lowered.plan, &lowered.index);
    let tables =
        lowered.annotation.as_ref().expect("the loop was lowered with the layers of the survey");
    let input = |&site: &usize| {
        let SiteTables { scale, zero_point } = tables.sites[site];
        ActivationTable { scale: index.table(scale), zero_point: index.table(zero_point) }
    };
    let correction = |t: &CorrectionTables| SumCorrection {
        a: index.table(t.factor),
        bias: index.table(t.bias),
    };
    let layers = survey.layers.iter().enumerate().map(|(i, layer)| QuantizedLayer {
        name: layer.name.clone(),
        op: layer.op.clone(),
        weight_bits: layer.weight.as_ref().map(|w| w.bits),
        weight: layer.weight.as_ref().and_then(|_| index.weight_of(plan, layer.node)),
        inputs: layer.sites.iter().map(input).collect(),
        correction: tables.corrections.get(&LayerId(i)).map(correction),
    });
    let layers = layers.collect();
    let float =
        |(name, why): &(String, String)| FloatLayer { name: name.clone(), why: why.clone() };
    let float_layers = survey.float_layers.iter().map(float).collect();
    let rounding = if recipe.reconstruct { "second-order" } else { "nearest" }.into();
    recipe.quant().with_layers(QuantizedLoop { layers, float_layers, rounding, compensation })
}

/// The layers of a loop that is rounded to bf16.
fn bf16(products: &Bf16Products, lowered: &Lowered) -> cq::Quant {
    let layer = |layer: &Bf16Layer| QuantizedLayer {
        name: layer.name.clone(),
        op: layer.op.clone(),
        weight_bits: Some(16),
        weight: lowered.index.weight_of(&lowered.plan, layer.node),
        inputs: vec![],
        correction: None,
    };
    let float =
        |(name, why): &(String, String)| FloatLayer { name: name.clone(), why: why.clone() };
    Quant::Bf16.with_layers(QuantizedLoop {
        layers: products.layers.iter().map(layer).collect(),
        float_layers: products.float_layers.iter().map(float).collect(),
        rounding: "nearest".into(),
        compensation: None,
    })
}

fn compensation(
    recipe: &Recipe,
    fitted: &Fitted,
    lowered: &mut Lowered,
) -> Option<SampleCompensation> {
    let tables = fitted.compensation.as_ref()?;
    let evaluations = lowered.plan.evaluations;
    let mut add = |what: &str, values: &[f32]| {
        let tensor = Tensor::from_f32(&[evaluations, values.len() / evaluations], values);
        add_constant(
            &mut lowered.plan,
            &mut lowered.weights,
            format!("compensation/{what}"),
            tensor,
        )
    };
    let (scale, shift) = (add("scale", &tables.scale), add("shift", &tables.shift));
    let mode =
        recipe.variance_compensation.map_or_else(String::new, |mode| mode.name().to_string());
    Some(SampleCompensation { scale, shift, mode })
}
