//! Chooses the kernel of each step.
//!
//! If no fast kernel supports the operands of a step (element type, layout, an attribute), the step
//! runs through the definition of its operator, `cqc_kernels::reference`, which is slow but
//! general.

pub(crate) mod elementwise;
mod movement;
mod norms;
pub(crate) mod products;

use super::kernel::{Kernel, PerImage};
use super::uses::Uses;
use super::values::{Value, bind};
use super::{EngineError, Weights};
use cqc_proto::op::operand::ROUNDING;
use cqc_proto::plan::{ProgramKind, Source, Step};
use cqc_proto::{Bindings, DType, Op, ValueType};
use std::collections::HashMap;

/// The context in which the steps of a program are prepared.
pub(crate) struct Preparer<'a> {
    pub weights: &'a Weights,
    pub kind: ProgramKind,
    pub values: &'a [Value],
    pub uses: &'a Uses,
    /// Results of linear layers that may also compute the GEGLU after them, with the results of
    /// those.
    pub pairs: &'a HashMap<usize, usize>,
    pub bindings: &'a Bindings,
    /// Runs everything through the definitions.
    pub reference: bool,
}

/// A step with the context in which its kernel is chosen.
struct Site<'a> {
    preparer: &'a Preparer<'a>,
    step: &'a Step,
}

impl Preparer<'_> {
    pub fn prepare(&self, step: &Step) -> Result<Kernel, EngineError> {
        let error = |reason: String| EngineError::Step {
            program: self.kind,
            step: step.name.clone(),
            reason,
        };
        let op = bind(&step.op, self.bindings)
            .ok_or_else(|| error("a size of it is not known".into()))?;
        self.check(step, &op).map_err(error)?;
        let site = Site { preparer: self, step };
        let kernel = match site.choose(&op) {
            Some(kernel) if !self.reference || matches!(kernel, Kernel::Nothing) => kernel,
            _ => Kernel::Reference(Box::new(op)),
        };
        if !matches!(kernel, Kernel::Nothing | Kernel::Reference(_)) && site.reads_what_it_writes()
        {
            let op = bind(&step.op, self.bindings).expect("bound above");
            return Ok(Kernel::Reference(Box::new(op)));
        }
        Ok(kernel)
    }

    /// Checks the operator's rule at the actual sizes, on which the kernels rely.
    fn check(&self, step: &Step, op: &Op) -> Result<(), String> {
        let ty = |&v: &usize| ValueType::fixed(self.values[v].dtype, &self.values[v].shape);
        let inputs: Vec<Option<ValueType>> =
            step.inputs.iter().map(|v| v.as_ref().map(ty)).collect();
        let inputs: Vec<Option<&ValueType>> = inputs.iter().map(Option::as_ref).collect();
        let inferred = op.infer(&inputs).map_err(|e| e.to_string())?;
        let declared: Vec<ValueType> = step.outputs.iter().map(ty).collect();
        if inferred == declared {
            return Ok(());
        }
        Err(format!("at this batch it gives {}, declared is {}", list(&inferred), list(&declared)))
    }
}

fn list(types: &[ValueType]) -> String {
    types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl<'a> Site<'a> {
    fn choose(&self, op: &Op) -> Option<Kernel> {
        match op {
            Op::Unary { kind } => self.unary(*kind),
            Op::Binary { kind } => self.binary(*kind),
            Op::Where => self.select(),
            Op::Cast { to } => self.cast(*to),
            Op::Reshape { .. } => self.reshape(),
            Op::Transpose { perm } => self.transpose(perm),
            Op::Expand { .. } => self.expand(),
            Op::Concat { axis } => self.concat(*axis),
            Op::Slice { axes, starts, steps, .. } => self.slice(axes, starts, steps),
            Op::Pad { .. } => self.pad(op),
            Op::Tile { repeats } => self.tile(repeats),
            Op::Resize { .. } => self.resize(op),
            Op::Gather { axis } => self.gather(*axis),
            Op::Softmax { axis } => self.softmax(*axis),
            Op::MatMul => self.matmul(),
            Op::Linear { act } => self.linear(*act),
            Op::Conv { .. } => self.conv(op),
            Op::GroupNorm { groups, eps, layout, act } => {
                self.group_norm(*groups, *eps, *layout, *act)
            }
            Op::LayerNorm { eps } => self.layer_norm(*eps),
            Op::RmsNorm { eps } => self.rms_norm(*eps),
            Op::Attention { .. } => self.attention(op),
            Op::Geglu { act } => self.geglu(*act),
            Op::Affine => self.affine(),
            Op::FakeQuant { bits, segments } => self.fake_quant(*bits, segments),
            Op::RoundBf16 => self.round_bf16(),
            _ => None,
        }
    }

    /// Input `i`, if it is present.
    fn input(&self, i: usize) -> Option<&'a Value> {
        self.step.inputs.get(i).copied().flatten().map(|v| &self.preparer.values[v])
    }

    /// The only output.
    fn output(&self) -> &'a Value {
        &self.preparer.values[self.step.outputs[0]]
    }

    /// Whether all operands and the result are f32.
    fn is_f32(&self) -> bool {
        let all = self.step.inputs.iter().flatten().chain(&self.step.outputs);
        all.into_iter().all(|&v| self.preparer.values[v].dtype == DType::F32)
    }

    /// The values with the scale and the zero point of operand `i`, if it is stored as codes.
    fn rounding_of_codes(&self, i: usize) -> Option<[usize; 2]> {
        let is_coded = |v: &usize| {
            self.preparer.values[*v].stored_as.is_some_and(|dtype| dtype != DType::BF16)
        };
        let v = self.step.inputs.get(i).copied().flatten().filter(is_coded)?;
        let program = self.preparer.weights.plan().program(self.preparer.kind);
        let maker = &program.steps[self.preparer.uses.maker(v)?];
        let [scale, zero_point] = ROUNDING.map(|i| maker.inputs[i]);
        Some([scale?, zero_point?])
    }

    /// Whether operand `i` is stored as bf16.
    fn reads_bf16(&self, i: usize) -> bool {
        self.input(i).is_some_and(|x| x.stored_as == Some(DType::BF16))
    }

    /// Whether input `i` is absent or has no gaps between its rows.
    fn is_dense(&self, i: usize) -> bool {
        self.input(i).is_none_or(Value::is_dense)
    }

    /// The constant that input `i` is, as a whole.
    fn constant(&self, i: usize) -> Option<usize> {
        let value = self.input(i)?;
        match self.preparer.values[value.home].source {
            Source::Constant(c) if value.column == 0 => Some(c),
            _ => None,
        }
    }

    /// Input `i` as one row per image of the result.
    fn per_image(&self, i: usize) -> Option<PerImage> {
        let (row, y) = (self.input(i)?, self.output());
        if y.shape.len() < 2 {
            return Some(PerImage { stride: 0, rows: y.rows });
        }
        let stride = if row.shape[0] == 1 { 0 } else { row.ld };
        Some(PerImage { stride, rows: y.rows / y.shape[0] })
    }

    /// Whether the result shares bytes with an operand. The kernels cannot be used then, because
    /// they need separate slices.
    fn reads_what_it_writes(&self) -> bool {
        let values = self.preparer.values;
        let meets = |x: &Value, y: &Value| {
            let ((x0, xn), (y0, yn)) = (x.range(), y.range());
            x.home == y.home && x0 < y0 + yn && y0 < x0 + xn
        };
        // inputs of a concat that already lie in its result are not read
        let in_place = match self.step.op {
            Op::Concat { axis } => self.in_place(axis),
            _ => vec![false; self.step.inputs.len()],
        };
        let inputs = self.step.inputs.iter().zip(&in_place).filter(|(_, in_place)| !**in_place);
        let inputs: Vec<usize> = inputs.filter_map(|(v, _)| *v).collect();
        self.step.outputs.iter().any(|&y| inputs.iter().any(|&x| meets(&values[x], &values[y])))
    }
}
