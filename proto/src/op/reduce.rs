//! Shape rules of reductions and softmax.

use super::*;

/// The function of a reduction. Without elements it gives 0 (sums), 1 (product), ±inf or the type's
/// limit (maximum, minimum), NaN (mean of floats; 0 for integers) or -inf (logarithms). Integers
/// wrap around. `Mean`, `L2` and the logarithms of integers are truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ReduceKind {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    /// Σ|x|
    L1,
    /// √Σx²
    L2,
    SumSquare,
    LogSum,
    LogSumExp,
}

pub(super) fn infer(op: &Op, inputs: &InputTypes) -> Inferred {
    let x = single(inputs)?;
    match op {
        Op::Reduce { kind, axes, keep } => {
            let ordered = matches!(kind, ReduceKind::Max | ReduceKind::Min);
            check(ordered || x.dtype != DType::Bool, || "does not take bool".into())?;
            check_axes(axes, x)?;
            Ok(vec![ValueType::new(x.dtype, without(x, axes, *keep))])
        }
        Op::ArgReduce { axis, keep, .. } => {
            check_axis(*axis, x)?;
            check(x.dtype != DType::Bool, || "does not take bool".into())?;
            check(x.shape[*axis].is_positive(), || format!("axis {axis} of {x} may be empty"))?;
            Ok(vec![ValueType::new(DType::I64, without(x, &[*axis], *keep))])
        }
        Op::Softmax { axis } | Op::LogSoftmax { axis } => {
            check_axis(*axis, x)?;
            check(x.dtype.is_float(), || format!("x is {}, expected a float type", x.dtype))?;
            Ok(vec![x.clone()])
        }
        _ => unreachable!("dispatched by Op::infer"),
    }
}

/// The shape without the listed axes, or with a size of 1 there.
fn without(x: &ValueType, axes: &[usize], keep: bool) -> Shape {
    let sizes = x.shape.iter().enumerate();
    match keep {
        true => sizes.map(|(i, d)| if axes.contains(&i) { 1.into() } else { d.clone() }).collect(),
        false => sizes.filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d.clone()).collect(),
    }
}
