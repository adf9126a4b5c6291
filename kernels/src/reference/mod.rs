//! What every operator means: the straightforward definition, for every element type that the
//! operator accepts.
//!
//! Used for folding constants, as the oracle of the fast kernels, and at run time for operators
//! that have no fast kernel. One file per family, named as in `cqc_proto::op`. Transcendental
//! functions are evaluated in f64 by `libm`, so that results are the same on every machine; sums of
//! normalisations and reductions are kept in f64, products of matrices in the type itself (f32 for
//! f16 and bf16), summed in ascending order of the inner index.

mod attention;
mod conv;
mod elementwise;
mod index;
mod lane;
mod linear;
mod movement;
mod norm;
mod pool;
mod quant;
mod reduce;
mod resize;
mod walk;

#[cfg(test)]
mod tests;

use cqc_proto::dtype::DType;
use cqc_proto::op::{Family, Op, OpError};
use cqc_proto::tensor::Tensor;
use cqc_proto::types::ValueType;
use lane::{Lane, store};
pub(crate) use quant::nearest_bf16;
use walk::volume;

/// Largest result that is computed: 2^34 bytes.
pub const MAX_BYTES: u64 = 1 << 34;

/// Why an operator has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The inputs break the operator's shape rule.
    #[error(transparent)]
    Op(#[from] OpError),
    /// A size in an attribute still holds a symbol.
    #[error("{op}: `{size}` has no value yet")]
    Symbolic {
        /// Name of the operator.
        op: String,
        /// The size.
        size: String,
    },
    /// An index points outside.
    #[error("{op}: index {index} is outside an axis of size {size}")]
    Index {
        /// Name of the operator.
        op: String,
        /// The index as given, so negative ones count from the end.
        index: i64,
        /// Size of the indexed axis.
        size: usize,
    },
    /// An integer divided by zero.
    #[error("{op}: integer division by zero")]
    DivisionByZero {
        /// Name of the operator.
        op: String,
    },
    /// The result exceeds [`MAX_BYTES`].
    #[error("{op}: the result {result} takes {bytes} bytes, more than {MAX_BYTES}")]
    TooLarge {
        /// Name of the operator.
        op: String,
        /// Its type.
        result: ValueType,
        /// Its bytes.
        bytes: u64,
    },
}

/// The operator's results. Optional inputs may be `None` or, at the end, left out.
///
/// # Errors
/// See [`EvalError`]; whatever [`Op::infer`] accepts either has a value or fails with one of the
/// others, never panics. Where the result has no elements, indices are not looked at.
pub fn eval(op: &Op, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, EvalError> {
    let types: Vec<Option<ValueType>> = inputs.iter().map(|t| t.map(Tensor::value_type)).collect();
    let types: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
    let outputs = op.infer(&types)?.iter().map(|t| Output::new(op, t)).collect::<Result<Vec<_>, _>>()?;
    if outputs.iter().all(|o| o.len() == 0) {
        return Ok(outputs.iter().map(|o| o.of_bytes(Vec::new())).collect());
    }
    let call = Call { op, inputs, outputs };
    dispatch(&call)
}

fn dispatch(call: &Call) -> Result<Vec<Tensor>, EvalError> {
    let one = |t: Tensor| Ok(vec![t]);
    match (call.op.traits().family, call.op) {
        (Family::Elementwise, _) => elementwise::eval(call).map(|t| vec![t]),
        (Family::Movement, Op::Resize { .. }) => one(resize::eval(call)),
        (Family::Movement, _) => movement::eval(call).map(|t| vec![t]),
        (Family::Index, _) => index::eval(call),
        (Family::Reduce, _) => one(reduce::eval(call)),
        (Family::Linear, Op::Conv { .. } | Op::ConvTranspose { .. }) => one(conv::eval(call)),
        (Family::Linear, Op::Pool { .. }) => one(pool::eval(call)),
        (Family::Linear, _) => linear::eval(call).map(|t| vec![t]),
        (Family::Norm, _) => one(norm::eval(call)),
        (Family::Attention, _) => one(attention::eval(call)),
        (Family::Quant, Op::Quantize { .. } | Op::Dequantize { .. }) => one(quant::eval(call)),
        (Family::Quant, _) => one(quant::eval_fake(call)),
    }
}

/// One evaluation whose inputs [`Op::infer`] has accepted.
struct Call<'a> {
    op: &'a Op,
    inputs: &'a [Option<&'a Tensor>],
    outputs: Vec<Output>,
}

impl<'a> Call<'a> {
    fn optional(&self, i: usize) -> Option<&'a Tensor> {
        self.inputs.get(i).copied().flatten()
    }

    fn input(&self, i: usize) -> &'a Tensor {
        self.optional(i).expect("the shape rule refuses absent inputs")
    }

    /// The first output.
    fn out(&self) -> &Output {
        &self.outputs[0]
    }

    /// The place that an index, which may count from the end, means on an axis.
    fn place(&self, index: i64, size: usize) -> Result<usize, EvalError> {
        let from_front = if index < 0 { index.saturating_add(size as i64) } else { index };
        match usize::try_from(from_front) {
            Ok(place) if place < size => Ok(place),
            _ => Err(EvalError::Index { op: self.op.name(), index, size }),
        }
    }
}

/// Type of a result, with known sizes.
struct Output {
    dtype: DType,
    shape: Vec<usize>,
}

impl Output {
    fn new(op: &Op, t: &ValueType) -> Result<Output, EvalError> {
        let symbolic = t.shape.iter().find(|d| d.as_const().is_none());
        if let Some(size) = symbolic {
            return Err(EvalError::Symbolic { op: op.name(), size: size.to_string() });
        }
        let shape = t.fixed_shape().expect("no size is symbolic, and the shape rule refuses negative ones");
        let bytes = (volume(&shape) as u64).saturating_mul(t.dtype.size() as u64);
        if bytes > MAX_BYTES {
            return Err(EvalError::TooLarge { op: op.name(), result: t.clone(), bytes });
        }
        Ok(Output { dtype: t.dtype, shape })
    }

    fn len(&self) -> usize {
        volume(&self.shape)
    }

    fn of_bytes(&self, bytes: Vec<u8>) -> Tensor {
        Tensor::new(self.dtype, self.shape.clone(), bytes).expect("as many elements as the shape has")
    }

    /// Elements as unsigned integers of their width.
    fn of_words<W: bytemuck::NoUninit>(&self, words: &[W]) -> Tensor {
        self.of_bytes(bytemuck::cast_slice(words).to_vec())
    }

    /// Values converted to the element type.
    fn of<T: Lane>(&self, values: &[T]) -> Tensor {
        self.of_bytes(store(values, self.dtype))
    }
}
