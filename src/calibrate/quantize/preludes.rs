//! Second-order rounding of prelude weights with few bits, with regard to the inputs of their
//! products on the calibration samples: rows of time embeddings and conditions. There are few such
//! rows, and they are alike, which is where the error of one rounded weight is best compensated by
//! another.

use super::TunableLoop;
use super::reconstruct::{MEMORY, Rows, inputs, picked, rounded};
use crate::calibrate::CalibrateError;
use cqc_passes::ir::NodeId;
use cqc_passes::quant::Survey;
use cqc_passes::quant::gptq::Gram;
use cqc_proto::Op;
use cqc_proto::plan::ProgramKind;
use cqc_runtime::denoise::{Denoiser, Request};
use cqc_runtime::engine::Watched;
use std::collections::HashMap;

/// Largest number of rows per input that one batch of samples adds to a Gram matrix.
const ROWS_PER_INPUT: usize = 4;

/// Products that read the same input in the same way.
struct Group {
    /// The first of them.
    kind: ProgramKind,
    step: usize,
    op: Op,
    /// All of them, as indices in the survey.
    weights: Vec<usize>,
    inputs: usize,
}

/// Rounds the weights of fewer than 8 bits again, on the quantized loop. Returns whether there are
/// any.
pub(crate) fn reconstruct_preludes(
    study: &mut TunableLoop,
    survey: &mut Survey,
    request: &Request,
    fit: usize,
) -> Result<bool, CalibrateError> {
    let mut left = groups(study, survey);
    let denoiser = &mut study.denoiser;
    let found = !left.is_empty();
    while !left.is_empty() {
        let mut bytes = 0;
        let fits = left.iter().take_while(|group| {
            bytes += 8 * group.inputs.pow(2);
            bytes <= MEMORY
        });
        let later = left.split_off(fits.count().max(1));
        let grams = collect(denoiser, survey, &left, request, fit)?;
        for (group, gram) in left.iter().zip(&grams) {
            for &i in &group.weights {
                survey.preludes[i].weight = rounded(&survey.preludes[i].weight, gram);
            }
        }
        left = later;
    }
    Ok(found)
}

fn groups(study: &TunableLoop, survey: &Survey) -> Vec<Group> {
    let few = survey.preludes.iter().enumerate().filter(|(_, p)| p.weight.bits < 8);
    let few: HashMap<NodeId, usize> = few.map(|(i, p)| (p.node, i)).collect();
    let steps = study.places.steps_of(&[ProgramKind::Prelude, ProgramKind::PreludeSteps], &few);
    let mut out: Vec<(Option<usize>, Group)> = vec![];
    for ((kind, step), weight) in steps {
        let product = &study.denoiser.engine().plan().program(kind).steps[step];
        let x = product.inputs[0];
        let same = |(of, group): &&mut (Option<usize>, Group)| {
            *of == x
                && group.kind == kind
                && matches!((&group.op, &product.op), (Op::Linear { .. }, Op::Linear { .. }))
        };
        match out.iter_mut().find(same) {
            Some((_, group)) => group.weights.push(weight),
            None => {
                let inputs = inputs(&survey.preludes[weight].weight);
                out.push((
                    x,
                    Group { kind, step, op: product.op.clone(), weights: vec![weight], inputs },
                ));
            }
        }
    }
    out.into_iter().map(|(_, group)| group).collect()
}

/// Runs the preludes for all samples and collects the Gram matrix of the input of each group.
fn collect(
    denoiser: &mut Denoiser,
    survey: &Survey,
    groups: &[Group],
    request: &Request,
    fit: usize,
) -> Result<Vec<Gram>, CalibrateError> {
    let mut grams: Vec<Gram> = groups.iter().map(|group| Gram::new(group.inputs)).collect();
    for first in (0..fit).step_by(denoiser.width()) {
        let mut watch = |step: &Watched| {
            let mut at = groups
                .iter()
                .zip(&mut grams)
                .filter(|(group, _)| (group.kind, group.step) == (step.kind, step.step));
            let Some((group, gram)) = at.next().filter(|_| !step.done) else { return };
            let rows =
                Rows::new(&group.op, &step.input(0), &survey.preludes[group.weights[0]].weight);
            let wanted = ROWS_PER_INPUT * group.inputs;
            gram.add(&rows.gather(picked(rows.count, wanted, (first + step.step) as u64)));
        };
        denoiser.begin_watched(request, first, Some(&mut watch))?;
    }
    Ok(grams)
}
