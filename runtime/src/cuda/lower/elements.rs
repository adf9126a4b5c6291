//! Operators that work element by element.

use super::{Outcome, StepLowering, missing};
use crate::engine::prepare::elementwise::broadcast_strides;
use cqc_kernels::Act;
use cqc_kernels::cuda::{self, ElementOp, ElementType};
use cqc_proto::op::{BinaryKind, UnaryKind};

impl StepLowering<'_, '_, '_, '_> {
    pub(super) fn unary(&mut self, kind: UnaryKind) -> Outcome {
        let op = unary(kind).ok_or_else(|| missing("this function"))?;
        self.broadcast(op, 1)
    }

    pub(super) fn binary(&mut self, kind: BinaryKind) -> Outcome {
        let op = binary(kind).ok_or_else(|| missing("this function"))?;
        self.broadcast(op, 2)
    }

    /// A function of the first `count` inputs, each broadcast to the result.
    pub(super) fn broadcast(&mut self, op: ElementOp, count: usize) -> Outcome {
        let y = self.value(self.output);
        if y.shape.len() > 6 {
            return Err(missing(format!("{} axes", y.shape.len())));
        }
        let mut reads = Vec::new();
        for i in 0..count {
            let v = self.need(i)?;
            let strides = broadcast_strides(self.value(v), y);
            reads.push((self.operand(v)?, strides));
        }
        let is_integer =
            |element: ElementType| matches!(element, ElementType::I64 | ElementType::I32);
        if reads.iter().any(|(o, _)| is_integer(o.element)) {
            let mixed = reads.iter().any(|(o, _)| o.element.is_float());
            if mixed || !op.takes_integers() {
                return Err(missing("this function of integers"));
            }
        }
        let target = self.operand(self.output)?;
        let reads: Vec<_> =
            reads.iter().map(|(operand, strides)| (operand, &strides[..])).collect();
        let launch =
            cuda::elementwise(self.lowered.state, op, &y.shape, &reads, (&target, &y.strides()));
        self.launch(launch);
        Ok(())
    }
}

fn unary(kind: UnaryKind) -> Option<ElementOp> {
    use UnaryKind as K;
    Some(match kind {
        K::Silu => ElementOp::Act(Act::Silu),
        K::GeluErf => ElementOp::Act(Act::GeluErf),
        K::GeluTanh => ElementOp::Act(Act::GeluTanh),
        K::QuickGelu => ElementOp::Act(Act::QuickGelu),
        K::Relu => ElementOp::Act(Act::Relu),
        K::Sigmoid => ElementOp::Act(Act::Sigmoid),
        K::Tanh => ElementOp::Act(Act::Tanh),
        K::Exp => ElementOp::Exp,
        K::Log => ElementOp::Log,
        K::Neg => ElementOp::Neg,
        K::Abs => ElementOp::Abs,
        K::Sqrt => ElementOp::Sqrt,
        K::Reciprocal => ElementOp::Reciprocal,
        K::Erf => ElementOp::Erf,
        K::Sin => ElementOp::Sin,
        K::Cos => ElementOp::Cos,
        K::Floor => ElementOp::Floor,
        K::Ceil => ElementOp::Ceil,
        K::Round => ElementOp::Round,
        K::Not => ElementOp::Not,
        _ => return None,
    })
}

fn binary(kind: BinaryKind) -> Option<ElementOp> {
    use BinaryKind as K;
    Some(match kind {
        K::Add => ElementOp::Add,
        K::Sub => ElementOp::Sub,
        K::Mul => ElementOp::Mul,
        K::Div => ElementOp::Div,
        K::Pow => ElementOp::Pow,
        K::Min => ElementOp::Min,
        K::Max => ElementOp::Max,
        K::And => ElementOp::And,
        K::Or => ElementOp::Or,
        K::Xor => ElementOp::Xor,
        K::Equal => ElementOp::Equal,
        K::Less => ElementOp::Less,
        K::LessOrEqual => ElementOp::LessOrEqual,
        K::Greater => ElementOp::Greater,
        K::GreaterOrEqual => ElementOp::GreaterOrEqual,
        _ => return None,
    })
}
