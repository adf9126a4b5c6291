//! Second-order rounding of weights, with regard to the rounded inputs of each layer on the
//! accelerated trajectory, at the evaluations that run it.

use super::TunableLoop;
use crate::calibrate::{CalibrateError, EvaluationCounter};
use cqc_kernels::ConvShape;
use cqc_passes::ir::NodeId;
use cqc_passes::quant::gptq::{self, Gram};
use cqc_passes::quant::weights::WeightLayout;
use cqc_passes::quant::{Layer, QuantTables, QuantizedWeight, Survey};
use cqc_proto::plan::ProgramKind;
use cqc_proto::{Op, Tensor};
use cqc_runtime::denoise::{Request, Trajectory};
use cqc_runtime::engine::Watched;
use std::collections::HashMap;
use std::ops::Range;

/// About how many rows per input a Gram matrix is made of.
const ROWS_PER_INPUT: usize = 3;

/// Bytes of the Gram matrices that are collected in one run.
pub(super) const MEMORY: usize = 1 << 30;

/// Added to the diagonal, as a share of its mean.
const DAMPING: f64 = 0.01;

/// Rounds the weights of all layers again. The tables of `study` are still empty, and `tables` are
/// written into them.
pub(crate) fn reconstruct(
    study: &mut TunableLoop,
    survey: &mut Survey,
    tables: &QuantTables,
    request: &Request,
    fit: usize,
    progress: &mut EvaluationCounter,
) -> Result<(), CalibrateError> {
    let TunableLoop { denoiser, places } = &mut *study;
    let evaluations = denoiser.sampler().evaluations().len();
    (0..evaluations).try_for_each(|t| places.set_sites(denoiser, tables, t))?;
    let weighted: Vec<usize> =
        (0..survey.layers.len()).filter(|&i| survey.layers[i].weight.is_some()).collect();
    for chunk in chunks(survey, &weighted) {
        let grams = collect(study, survey, chunk, request, fit, progress)?;
        for (layer, gram) in grams {
            let layer = &mut survey.layers[layer];
            let weight = layer.weight.as_ref().expect("only such layers are collected");
            layer.weight = Some(rounded(weight, &gram));
        }
    }
    Ok(())
}

/// Groups of as many layers as memory allows, at least one.
fn chunks<'a>(survey: &Survey, layers: &'a [usize]) -> Vec<&'a [usize]> {
    let bytes = |i: usize| survey.layers[i].weight.as_ref().map_or(0, |w| 8 * inputs(w).pow(2));
    let (mut out, mut start, mut sum) = (vec![], 0, 0);
    for (at, &layer) in layers.iter().enumerate() {
        if at > start && sum + bytes(layer) > MEMORY {
            out.push(&layers[start..at]);
            (start, sum) = (at, 0);
        }
        sum += bytes(layer);
    }
    out.push(&layers[start..]);
    out
}

/// Number of inputs of one output: channels times taps.
pub(super) fn inputs(weight: &QuantizedWeight) -> usize {
    let layout = WeightLayout::new(weight.codes.shape(), weight.output_axis);
    layout.inputs * layout.rest
}

pub(super) fn rounded(weight: &QuantizedWeight, gram: &Gram) -> QuantizedWeight {
    let layout = WeightLayout::new(weight.codes.shape(), weight.output_axis);
    let k = layout.inputs * layout.rest;
    let values = weight.float.to_f32_vec();
    let place = |output: usize, at: usize| layout.at(output, at / layout.rest, at % layout.rest);
    let rows: Vec<f32> = (0..layout.outputs)
        .flat_map(|n| (0..k).map(move |at| (n, at)))
        .map(|(n, at)| values[place(n, at)])
        .collect();
    let segments: Vec<usize> = match &weight.segments[..] {
        [] => vec![k],
        segments => segments.iter().map(|n| n * layout.rest).collect(),
    };
    let levels = gptq::round(
        &rows,
        &weight.scale.to_f32_vec(),
        &segments,
        gram,
        u32::from(weight.bits),
        DAMPING,
    );
    let mut codes = vec![0i8; levels.len()];
    for (i, level) in levels.into_iter().enumerate() {
        codes[place(i / k, i % k)] = level;
    }
    weight.with_codes(&codes)
}

/// Runs the loop once and collects the Gram matrices of the inputs of some layers.
fn collect(
    study: &mut TunableLoop,
    survey: &Survey,
    layers: &[usize],
    request: &Request,
    fit: usize,
    progress: &mut EvaluationCounter,
) -> Result<Vec<(usize, Gram)>, CalibrateError> {
    let nodes: HashMap<NodeId, usize> =
        layers.iter().map(|&i| (survey.layers[i].node, i)).collect();
    let steps = study.places.steps_of(&[ProgramKind::Full, ProgramKind::Cached], &nodes);
    let denoiser = &mut study.denoiser;
    let plan = denoiser.engine().plan();
    let ops: HashMap<(ProgramKind, usize), Op> = steps
        .keys()
        .map(|&(kind, i)| ((kind, i), plan.program(kind).steps[i].op.clone()))
        .collect();
    let kinds: Vec<ProgramKind> = (0..plan.evaluations).map(|t| plan.program_at(t)).collect();
    let batches = fit.div_ceil(denoiser.width());
    let wanted = |layer: &Layer| {
        let runs = kinds.iter().filter(|kind| layer.is_live || **kind == ProgramKind::Full).count()
            * batches;
        (ROWS_PER_INPUT * inputs(layer.weight.as_ref().expect("it has weights")))
            .div_ceil(runs.max(1))
    };
    let wanted: HashMap<usize, usize> =
        layers.iter().map(|&i| (i, wanted(&survey.layers[i]))).collect();
    let mut grams: HashMap<usize, Gram> = layers
        .iter()
        .map(|&i| (i, Gram::new(inputs(survey.layers[i].weight.as_ref().expect("it has weights")))))
        .collect();
    let mut trajectories: Vec<Trajectory> = (0..fit)
        .step_by(denoiser.width())
        .map(|first| denoiser.begin(request, first))
        .collect::<Result<_, _>>()?;
    for (t, &kind) in kinds.iter().enumerate() {
        for (batch, trajectory) in trajectories.iter_mut().enumerate() {
            let mut watch = |step: &Watched| {
                let at = (step.kind, step.step);
                let Some(&layer) = steps.get(&at).filter(|_| !step.done) else { return };
                let weight = survey.layers[layer].weight.as_ref().expect("it has weights");
                let rows = Rows::new(&ops[&at], &step.input(0), weight);
                let picked =
                    picked(rows.count, wanted[&layer], (t * 1009 + batch * 31 + layer) as u64);
                grams.get_mut(&layer).expect("of this run").add(&rows.gather(picked));
            };
            denoiser.evaluate_watched(kind, trajectory, Some(&mut watch))?;
            progress.step()?;
            denoiser.advance(trajectory, denoiser.output());
        }
    }
    let mut grams: Vec<(usize, Gram)> = grams.into_iter().collect();
    grams.sort_by_key(|(layer, _)| *layer);
    Ok(grams)
}

/// `count` of the numbers below `all`, evenly spread from a start that depends on the seed, or all
/// of them if there are no more.
pub(super) fn picked(all: usize, count: usize, seed: u64) -> impl Iterator<Item = usize> {
    let count = count.min(all);
    let start = (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as usize % all.max(1);
    (0..count).map(move |i| (start + i * all / count) % all)
}

/// The inputs of each output of a product, one row of inputs · taps per position.
pub(super) struct Rows {
    x: Vec<f32>,
    channels: usize,
    pub(super) count: usize,
    /// `None` for a linear layer.
    conv: Option<ConvShape>,
}

impl Rows {
    pub(super) fn new(op: &Op, x: &Tensor, weight: &QuantizedWeight) -> Rows {
        let shape = x.shape();
        let channels = *shape.last().expect("a product reads channels");
        let values = x.to_f32_vec();
        let Op::Conv { strides, pads, dilations, upsample, .. } = op else {
            return Rows { count: values.len() / channels, x: values, channels, conv: None };
        };
        let kernel = &weight.codes.shape()[2..];
        // one spatial axis is treated as an image of one row
        let flat = kernel.len() == 1;
        let two = |v: &[usize], one: usize| if flat { [one, v[0]] } else { [v[0], v[1]] };
        let ([h, w], [kh, kw]) = (two(&shape[1..shape.len() - 1], 1), two(kernel, 1));
        let pads =
            if flat { [0, pads[0], 0, pads[1]] } else { [pads[0], pads[1], pads[2], pads[3]] };
        let (stride, dilation) = (two(strides, 1), two(dilations, 1));
        let (n, cin, cout) = (shape[0], channels, weight.codes.shape()[0]);
        let conv = ConvShape {
            n,
            h,
            w,
            cin,
            cout,
            kh,
            kw,
            stride,
            pads,
            dilation,
            groups: 1,
            upsample: *upsample,
        };
        Rows { count: conv.out_rows(), x: values, channels, conv: Some(conv) }
    }

    pub(super) fn gather(&self, rows: impl Iterator<Item = usize>) -> Vec<f32> {
        rows.flat_map(|row| self.row(row)).collect()
    }

    fn row(&self, row: usize) -> Vec<f32> {
        let pixel = |at: usize| -> Range<usize> { at * self.channels..(at + 1) * self.channels };
        let Some(s) = &self.conv else { return self.x[pixel(row)].to_vec() };
        let (oh, ow, taps) = (s.out_h(), s.out_w(), s.kh * s.kw);
        let (image, oy, ox) = (row / (oh * ow), row / ow % oh, row % ow);
        let mut out = vec![0.0; self.channels * taps];
        for tap in 0..taps {
            let Some(at) = s.source(oy, ox, tap / s.kw, tap % s.kw) else { continue };
            let x = &self.x[pixel(image * s.h * s.w + at)];
            x.iter().enumerate().for_each(|(c, &x)| out[c * taps + tap] = x);
        }
        out
    }
}
