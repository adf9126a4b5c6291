//! `compile`: which layers are quantized, and what is fitted for them.

use super::caching::{self, CachingArgs, Trajectory};
use super::{Correct, Quant};
use crate::report::Failure;
use crate::term::Progress;
use clap::Args;
use cachequant::calibrate::quantize::{Fitted, Grouping, Outputs, Select};
use cachequant::calibrate::{Choice, held_out};
use cachequant::compile::{Assembled, Lowered};
use cachequant::model::Model;
use cachequant::quantize::{QuantizeError, QuantizeOptions, Quantized, quantize};
use cachequant::report::cost::StepCost;
use cachequant::stages::Stages;
use cqc_passes::calib::compensate::Mode;
use cqc_passes::calib::select::Tap;
use cqc_passes::quant::annotate::table_name;
use cqc_passes::quant::{Bf16Layer, Bf16Products, Extra, QuantSpec};
use cqc_proto::Tensor;
use cqc_proto::cq::{
    ActivationTable, Calibration, FloatLayer, QuantizedLayer, QuantizedLoop, SampleCompensation, SumCorrection,
};
use cqc_proto::plan::{Constant, Plan, Source};
use serde_json::json;
use std::ops::ControlFlow;

#[derive(Args, Debug)]
#[command(next_help_heading = "Quantization")]
pub struct QuantizingArgs {
    /// Layers that stay float: names of nodes; auto, which adds those that hurt most until --target-psnr is reached (not with bf16); or none,
    /// which quantizes even layers of fewer than 16 channels, that stay float otherwise, and all inputs
    #[arg(long, value_name = "NODE,..", value_delimiter = ',')]
    pub keep_float: Vec<String>,
    /// With --keep-float auto: mean PSNR to the float model on held-out calibration samples, dB
    #[arg(long, value_name = "DB", default_value_t = 35.0)]
    pub target_psnr: f64,
    /// Layers read bf16 instead of integers of 8 bits where those would hurt most for their work: up to this share of the loop's multiplications
    #[arg(long, value_name = "SHARE", default_value_t = 0.03, value_parser = parse_share)]
    pub float_work: f64,
    /// Evaluations that share ranges of activations: none, a number of groups, or all
    #[arg(long, value_name = "HOW", default_value = "none", value_parser = parse_grouping)]
    pub share_ranges: Grouping,
    /// Correct the samples behind every step (Q&C): mse, regression or variance
    #[arg(long, value_name = "MODE", num_args = 0..=1, default_missing_value = "mse", value_parser = ["mse", "regression", "variance", "paper"])]
    pub variance_compensation: Option<String>,
    /// Which samples ranges are found on: random (all calibration samples, at every step), tap (Q&C's clustering) or tdac (EDA-DM's density
    /// and diversity), 800 of them
    #[arg(long, value_name = "HOW", default_value = "random", value_parser = ["random", "tap", "tdac"])]
    pub calib_select: String,
    /// Round weights by what layers read (second order) instead of to nearest, which 4 bits need
    #[arg(long)]
    pub reconstruct: bool,
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

fn parse_grouping(text: &str) -> Result<Grouping, String> {
    match text {
        "none" => Ok(Grouping::PerEvaluation),
        "all" => Ok(Grouping::Pooled),
        _ => match text.parse() {
            Ok(n) if n > 0 => Ok(Grouping::Groups(n)),
            _ => Err("expected none, all, or a number of groups".into()),
        },
    }
}

impl QuantizingArgs {
    /// Refuses what only makes sense where something is fitted.
    pub fn check_bf16(&self) -> Result<(), Failure> {
        let asked = [
            ("--keep-float auto", self.keep_float.iter().any(|n| n == "auto")),
            ("--reconstruct", self.reconstruct),
            ("--variance-compensation", self.variance_compensation.is_some()),
            ("--calib-select", self.calib_select != "random"),
            ("--share-ranges", self.share_ranges != Grouping::PerEvaluation),
        ];
        match asked.iter().find(|(_, asked)| *asked) {
            Some((option, _)) => Err(Failure::usage(format!("{option}: with --quant bf16 nothing is fitted"))
                .help("leave it out, or --quant w8a8")),
            None => Ok(()),
        }
    }

    fn mode(&self) -> Option<Mode> {
        Some(match self.variance_compensation.as_deref()? {
            "regression" => Mode::Regression,
            "variance" => Mode::Variance,
            "paper" => Mode::PaperExact,
            _ => Mode::Mse,
        })
    }

    pub fn select(&self, seed: u64) -> Select {
        match &self.calib_select[..] {
            "tap" => Select::Tap(Tap { seed, ..Tap::default() }),
            "tdac" => Select::Tdac(Tap::default().total),
            _ => Select::All,
        }
    }

    fn rounds_all(&self) -> bool {
        self.keep_float.iter().any(|n| n == "none")
    }

    fn float_work(&self) -> f64 {
        if self.rounds_all() { 0.0 } else { self.float_work }
    }

    /// Which layers, weights of `bits`, 16 for bf16.
    pub fn spec(&self, bits: u8, model: &Model) -> Result<QuantSpec, Failure> {
        let names: Vec<String> = self.keep_float.iter().filter(|n| *n != "none" && *n != "auto").cloned().collect();
        let known = |name: &String| model.graph.nodes().any(|(_, node)| node.name == *name);
        if let Some(name) = names.iter().find(|name| !known(name)) {
            return Err(Failure::usage(format!("--keep-float: the model has no node `{name}` behind the passes"))
                .help("`cqc inspect MODEL --stop-after 99` prints its nodes"));
        }
        Ok(QuantSpec { keep_float: names, narrow_float: !self.rounds_all(), ..QuantSpec::new(bits) })
    }
}

/// What was fitted, on what.
pub struct QuantDecision {
    pub quantized: Quantized,
    pub calibration: Calibration,
}

/// Calibrates. `float` is the loop that computes everything.
pub fn decide(
    args: (&CachingArgs, &QuantizingArgs, Quant, &[Correct]),
    model: &Model,
    assembled: &Assembled,
    choice: Option<&Choice>,
    float: &Lowered,
    trajectory: &Trajectory,
    stages: &Stages,
    quiet: bool,
) -> Result<QuantDecision, Failure> {
    let (caching, quantizing, quant, correct) = args;
    let cache = choice.and_then(|choice| choice.tables.as_ref()).map(|(_, tables)| tables);
    let request = caching::calibration_request(caching, model, trajectory)?;
    let full = float.plan.cache.as_ref().map(|_| assembled.full_evaluations());
    let stages = stages.depending_on(&caching::calibration_key(caching, &request));
    let stages = &stages.depending_on(format!("{full:?} {cache:?} {quantizing:?} {quant:?} {correct:?}").as_bytes());
    let (samples, seed) = (request.samples, request.noise.is_none().then_some(caching.seed));
    let mut float = caching::open_loop(caching, float, trajectory, samples)?;
    let mut shown: Option<Progress> = None;
    let quantized = quantize(
        assembled,
        cache,
        &mut float,
        QuantizeOptions {
            spec: quantizing.spec(quant.weight_bits().unwrap_or(8), model)?,
            target_psnr: quantizing.keep_float.iter().any(|n| n == "auto").then_some(quantizing.target_psnr),
            float_work: quantizing.float_work(),
            grouping: quantizing.share_ranges,
            outputs: outputs(correct),
            refit_cache: correct.contains(&Correct::Cache),
            compensation: quantizing.mode(),
            reconstruct: quantizing.reconstruct,
            select: quantizing.select(caching.seed),
            request,
            held: choice.and_then(|choice| choice.held.clone()),
            stages,
            fit: samples - held_out(samples),
            engine: caching::engine_options(caching, samples),
            progress: &mut |_, all| {
                let shown = shown.get_or_insert_with(|| Progress::new("quantizing", all, quiet));
                shown.set_total(all);
                shown.step();
                ControlFlow::Continue(())
            },
        },
    );
    drop(shown);
    let calibration = Calibration { samples, seed, select: quantizing.calib_select.clone() };
    Ok(QuantDecision { quantized: quantized?, calibration })
}

fn outputs(correct: &[Correct]) -> Outputs {
    match correct {
        _ if correct.contains(&Correct::QuantAll) => Outputs::All,
        _ if correct.contains(&Correct::Quant) => Outputs::Cut,
        _ => Outputs::None,
    }
}

/// Lowers the quantized loop.
pub fn lower(
    assembled: &Assembled,
    quantized: &Quantized,
) -> Result<(Lowered, Vec<cqc_proto::cq::CacheCorrection>), Failure> {
    Ok(assembled.lower(Some((&quantized.survey, &quantized.fitted.tables, Extra::default())))?)
}

/// What the artifact says about it; the compensation's tables become constants of the plan.
pub fn manifest_quant(
    args: &QuantizingArgs,
    kind: Quant,
    quantized: &Quantized,
    lowered: &mut Lowered,
) -> cqc_proto::cq::Quant {
    let Quantized { survey, fitted } = quantized;
    let compensation = compensation(args, fitted, lowered);
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
    let rounding = if args.reconstruct { "second-order" } else { "nearest" }.into();
    let of = QuantizedLoop { layers, float_layers, rounding, compensation };
    if kind == Quant::W4a8 { cqc_proto::cq::Quant::W4a8(of) } else { cqc_proto::cq::Quant::W8a8(of) }
}

/// What the artifact says of a loop rounded to bf16.
pub fn manifest_bf16(products: &Bf16Products, plan: &Plan) -> cqc_proto::cq::Quant {
    let layer = |layer: &Bf16Layer| QuantizedLayer {
        name: layer.name.clone(),
        op: layer.op.clone(),
        weight_bits: Some(16),
        weight: weight_constant(plan, &layer.key),
        inputs: vec![],
        correction: None,
    };
    let float = |(name, why): &(String, String)| FloatLayer { name: name.clone(), why: why.clone() };
    cqc_proto::cq::Quant::Bf16(QuantizedLoop {
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

fn compensation(args: &QuantizingArgs, fitted: &Fitted, lowered: &mut Lowered) -> Option<SampleCompensation> {
    let tables = fitted.compensation.as_ref()?;
    let evaluations = lowered.plan.evaluations;
    let mut add = |what: &str, values: &[f32]| {
        let tensor = Tensor::from_f32(&[evaluations, values.len() / evaluations], values);
        let offset = lowered.weights.len.next_multiple_of(64);
        let name = format!("compensation/{what}");
        lowered.plan.constants.push(Constant { name, ty: tensor.value_type(), offset, codes: None });
        lowered.weights.len = offset + tensor.bytes().len() as u64;
        lowered.weights.parts.push((offset, tensor));
        lowered.plan.constants.len() - 1
    };
    let (scale, shift) = (add("scale", &tables.scale), add("shift", &tables.shift));
    Some(SampleCompensation { scale, shift, mode: args.variance_compensation.clone().unwrap_or_default() })
}

/// Says what was decided; the same as JSON.
pub fn report(decision: &QuantDecision, kind: Quant) -> serde_json::Value {
    let survey = &decision.quantized.survey;
    let sum = |of: &dyn Fn(&cqc_passes::quant::Layer) -> i64| survey.layers.iter().map(of).sum::<i64>();
    let bf16: Vec<&str> =
        survey.layers.iter().filter(|layer| layer.reads_bf16()).map(|layer| layer.name.as_str()).collect();
    tracing::info!(
        "quantized: {} layers{}, {} of them with inputs in bf16; float: {}",
        survey.layers.len(),
        if kind == Quant::W4a8 { ", weights of 4 bits" } else { "" },
        bf16.len(),
        survey.float_layers.len()
    );
    for name in &bf16 {
        tracing::debug!("input in bf16: {name}: 8 bits would cost more than integers gain");
    }
    for (name, why) in &survey.float_layers {
        tracing::debug!("float: {name}: {why}");
    }
    json!({
        "layers": survey.layers.len(), "macs": sum(&|layer| layer.macs),
        "float_layers": survey.float_layers.iter().map(|(name, why)| json!({"name": name, "why": why})).collect::<Vec<_>>(),
        "inputs_bf16": bf16,
        "corrected_layers": decision.quantized.fitted.tables.corrections.len(),
    })
}

/// Says what was rounded to bf16; the same as JSON, with the keys of [`report`].
pub fn report_bf16(products: &Bf16Products, plan: &Plan) -> serde_json::Value {
    tracing::info!("bf16: {} layers; float: {}", products.layers.len(), products.float_layers.len());
    for (name, why) in &products.float_layers {
        tracing::debug!("float: {name}: {why}");
    }
    json!({
        "layers": products.layers.len(), "macs": StepCost::of(plan, &plan.full).quantized_macs,
        "float_layers": products.float_layers.iter().map(|(name, why)| json!({"name": name, "why": why})).collect::<Vec<_>>(),
        "inputs_bf16": products.layers.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>(), "corrected_layers": 0,
    })
}

impl From<QuantizeError> for Failure {
    fn from(e: QuantizeError) -> Failure {
        match e {
            QuantizeError::Calibrate(e) => e.into(),
            QuantizeError::Compile(e) => e.into(),
            QuantizeError::Denoise(e) => e.into(),
            QuantizeError::Engine(e) => e.into(),
            QuantizeError::File(e) => e.into(),
        }
    }
}
