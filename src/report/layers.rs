//! The quantized layers of a loop, one by one.

use super::cost::work_of_step;
use crate::calibrate::quantize::Quantized;
use crate::compile::Lowered;
use cqc_passes::quant::{Bf16Layer, Bf16Products, Layer, QuantizedWeight};
use cqc_proto::plan::{ProgramKind, WeightCodes};
use cqc_runtime::engine::Execution;
use serde::Serialize;

/// The quantized layers of a loop and the form of their quantization.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizationFacts {
    /// The kind, as on the command line: `w8a8`, `w4a8` or `bf16`.
    pub kind: String,
    /// The rounding of weights: `nearest` or `second-order`.
    pub rounding: String,
    /// The mode of the sample compensation; `None` without one.
    pub compensation: Option<String>,
    /// The quantized layers, in the order of execution.
    pub layers: Vec<LayerFacts>,
    /// The layers that stay float, each with the reason.
    pub float_layers: Vec<(String, String)>,
}

/// A quantized layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerFacts {
    /// Name of its node in the source model.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// Multiply-accumulates per sample and evaluation.
    pub macs: i64,
    /// Bits of its weights; `None` without weights.
    pub weight_bits: Option<u8>,
    /// Signal-to-noise ratio of its weights, in dB. It is `None` without weights and for bf16, and
    /// infinite if rounding changes nothing.
    pub weight_sqnr: Option<f64>,
    /// The ranges of its inputs, or of the segments of its only input.
    pub inputs: Vec<InputRanges>,
    /// Whether its sums are corrected.
    pub is_corrected: bool,
    /// Whether cached evaluations run it.
    pub is_live: bool,
    /// How this CPU executes it: `int8`, `bf16`, or `f32` with rounded operands.
    pub execution: &'static str,
}

/// The ranges of an input, or of a segment of one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InputRanges {
    /// Name of the input or segment; `None` if there is only one.
    pub name: Option<String>,
    /// Smallest and largest value that the codes cover, per evaluation; `None` if the evaluation
    /// does not read the input.
    pub ranges: Vec<Option<[f32; 2]>>,
}

/// The smallest and the largest value that codes of 8 bits stand for; `None` where nothing is
/// rounded (scale 0).
pub fn represented(scale: f32, zero_point: f32) -> Option<[f32; 2]> {
    (scale != 0.0).then(|| [-zero_point * scale, (255.0 - zero_point) * scale])
}

/// The layers of a loop quantized to integers. `executions` is the result of
/// [`cqc_runtime::Artifact::layer_executions`].
pub fn layers(quantized: &Quantized, executions: &[Execution]) -> Vec<LayerFacts> {
    let facts = |(i, (layer, execution)): (usize, (&Layer, &Execution))| LayerFacts {
        name: layer.name.clone(),
        op: layer.op.clone(),
        macs: layer.macs,
        weight_bits: layer.weight.as_ref().map(|weight| weight.bits),
        weight_sqnr: layer.weight.as_ref().map(sqnr),
        inputs: inputs(quantized, layer),
        is_corrected: quantized.fitted.tables.corrections.contains_key(&i),
        is_live: layer.is_live,
        execution: execution.name(),
    };
    quantized.survey.layers.iter().zip(executions).enumerate().map(facts).collect()
}

/// The layers of a loop that is rounded to bf16, which has no ranges.
pub fn bf16_layers(
    products: &Bf16Products,
    lowered: &Lowered,
    executions: &[Execution],
) -> Vec<LayerFacts> {
    let (plan, index) = (&lowered.plan, &lowered.index);
    let macs = |layer: &Bf16Layer| {
        let step = index.step_of(ProgramKind::Full, layer.node);
        work_of_step(plan, &plan.full, &plan.full.steps[step.expect("`full` runs every layer")])
            .macs
    };
    let facts = |(layer, execution): (&Bf16Layer, &Execution)| LayerFacts {
        name: layer.name.clone(),
        op: layer.op.clone(),
        macs: macs(layer),
        weight_bits: Some(16),
        weight_sqnr: None,
        inputs: vec![],
        is_corrected: false,
        is_live: plan.cache.is_none() || index.step_of(ProgramKind::Cached, layer.node).is_some(),
        execution: execution.name(),
    };
    products.layers.iter().zip(executions).map(facts).collect()
}

fn inputs(quantized: &Quantized, layer: &Layer) -> Vec<InputRanges> {
    let (survey, tables) = (&quantized.survey, &quantized.fitted.tables);
    let mut out = Vec::new();
    for (input, &site) in layer.sites.iter().enumerate() {
        let (table, segments) = (&tables.sites[site], survey.sites[site].segments.len());
        for segment in 0..segments {
            let at = |t: usize| t * segments + segment;
            let range = |t: usize| represented(table.scale[at(t)], table.zero_point[at(t)]);
            let name = match (layer.sites.len(), segments) {
                (1, 1) => None,
                (1, _) => Some(format!("part {}", segment + 1)),
                _ => Some(
                    ["q", "k", "v"]
                        .get(input)
                        .map_or(format!("{}", input + 1), |name| name.to_string()),
                ),
            };
            out.push(InputRanges { name, ranges: (0..tables.evaluations).map(range).collect() });
        }
    }
    out
}

/// 10 log10(Σ w² / Σ (w − rounded)²).
fn sqnr(weight: &QuantizedWeight) -> f64 {
    // here every code is a byte, whatever its bits
    let how = WeightCodes {
        bits: 8,
        scale: 0,
        output_axis: weight.output_axis,
        segments: weight.segments.clone(),
    };
    let rounded =
        how.values(weight.codes.shape(), weight.codes.bytes(), &weight.scale.to_f32_vec());
    let float = weight.float.to_f32_vec();
    let square = |x: f32| f64::from(x) * f64::from(x);
    let signal = float.iter().map(|&w| square(w)).sum();
    let noise = float.iter().zip(&rounded).map(|(a, b)| square(a - b)).sum();
    crate::eval::psnr::sqnr(signal, noise)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cqc_proto::Tensor;

    #[test]
    fn codes_stand_for_what_lies_between_their_ends() {
        assert_eq!(represented(0.5, 55.0), Some([-27.5, 100.0]));
        assert_eq!(represented(0.0, 0.0), None);
    }

    /// About 6 dB per bit, and more for 8 bits than for 4.
    #[test]
    fn weights_of_more_bits_have_less_noise() {
        let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
        let weight = Tensor::from_f32(&[4, 16], &values);
        let [eight, four] =
            [8, 4].map(|bits| sqnr(&QuantizedWeight::nearest(&weight, 0, &[10, 6], bits)));
        assert!(eight > 40.0 && (15.0..30.0).contains(&four), "{eight} {four}");
        let exact = Tensor::from_f32(&[1, 2], &[127.0, -1.0]);
        assert!(sqnr(&QuantizedWeight::nearest(&exact, 0, &[], 8)) > 90.0);
    }
}
