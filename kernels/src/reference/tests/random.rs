//! Random operators: whatever the shape rule accepts has a value of the inferred type or one of the
//! expected errors.

use super::*;
use cqc_proto::dim::Dim;
use cqc_proto::op::*;
use cqc_proto::types::ValueType;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use std::collections::BTreeMap;

#[path = "../../../../proto/src/op/arbitrary.rs"]
mod arbitrary;

/// Values of both signs and extremes, small enough to be indices now and then.
fn values(t: &ValueType, seed: usize) -> Tensor {
    let shape = t.fixed_shape().expect("sizes of random tensors are known");
    let pool = [0.0, 1.0, -1.0, 0.5, 1.0, 0.0, f64::NAN, f64::INFINITY, -3e38, 1.0, 0.0, 7.0];
    let all: Vec<f32> = (0..shape.iter().product())
        .map(|i: usize| pool[(i * 7 + seed) % (pool.len() - seed % 6)] as f32)
        .collect();
    of(t.dtype, &f32s(&shape, &all))
}

#[test]
fn results_have_the_inferred_types() {
    let strategy = arbitrary::operation(false);
    let mut runner = TestRunner::deterministic();
    let mut accepted: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..200_000 {
        let (op, types) = strategy.new_tree(&mut runner).unwrap().current();
        let refs: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
        let Ok(inferred) = op.infer(&refs) else { continue };
        let inputs: Vec<Option<Tensor>> =
            types.iter().map(|t| t.as_ref().map(|t| values(t, seed))).collect();
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        match eval(&op, &inputs) {
            Ok(outputs) => {
                let types: Vec<ValueType> = outputs.iter().map(Tensor::value_type).collect();
                assert_eq!(types, inferred, "{op:?} {inputs:?}");
                *accepted
                    .entry(format!("{op:?}").split([' ', '(']).next().unwrap().into())
                    .or_default() += 1;
            }
            Err(EvalError::Index { .. } | EvalError::DivisionByZero { .. }) => {}
            Err(e) => panic!("{e} of {op:?} {inputs:?}"),
        }
    }
    assert_eq!(accepted.len(), 43, "some operator was never accepted: {accepted:?}");
}
