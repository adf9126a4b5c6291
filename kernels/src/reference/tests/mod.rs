//! Known values per family, and that every accepted operator has a value of the inferred type.

mod composite;
mod elementwise;
mod index;
mod linear;
mod movement;
mod random;
mod reduce;

use super::{EvalError, eval};
use cqc_proto::dtype::DType;
use cqc_proto::op::Op;
use cqc_proto::tensor::Tensor;
use serde_json::Value;

/// The operator with that name and attributes in text form.
fn op(name: &str, attributes: Value) -> Op {
    let Value::Object(attributes) = attributes else { panic!("attributes are an object") };
    Op::from_parts(name, attributes).unwrap()
}

fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_f32(shape, values)
}

fn i64s(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::from_i64(shape, values)
}

/// Values converted to any type by `Cast`.
fn of(dtype: DType, t: &Tensor) -> Tensor {
    one(&Op::Cast { to: dtype }, &[t])
}

/// 0, 1, 2 … as f32.
fn count(shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    f32s(shape, &(0..n).map(|v| v as f32).collect::<Vec<_>>())
}

fn try_eval(op: &Op, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EvalError> {
    eval(op, &inputs.iter().map(|&t| Some(t)).collect::<Vec<_>>())
}

/// The only result.
fn one(op: &Op, inputs: &[&Tensor]) -> Tensor {
    let [y] = try_eval(op, inputs).unwrap().try_into().unwrap();
    y
}

#[track_caller]
fn close(y: &Tensor, expected: &[f64], tolerance: f64) {
    let y = y.to_f64_vec();
    assert_eq!(y.len(), expected.len(), "{y:?}");
    for (a, b) in y.iter().zip(expected) {
        assert!(
            (a - b).abs() <= tolerance || a == b || (a.is_nan() && b.is_nan()),
            "{y:?}, expected {expected:?}"
        );
    }
}

#[test]
fn symbols_and_huge_results_are_errors() {
    let expand = op("expand", serde_json::json!({"shape": ["N"]}));
    assert_eq!(
        try_eval(&expand, &[&f32s(&[1], &[1.0])]).unwrap_err().to_string(),
        "expand: `N` has no value yet"
    );
    let tile = op("tile", serde_json::json!({"repeats": [1i64 << 33]}));
    assert!(
        matches!(try_eval(&tile, &[&f32s(&[1], &[1.0])]), Err(EvalError::TooLarge { bytes, .. }) if bytes == 1 << 35)
    );
    let start = op(
        "slice",
        serde_json::json!({"axes": [0], "starts": ["N-1"], "ends": ["N"], "steps": [1]}),
    );
    assert!(matches!(
        try_eval(&start, &[&count(&[4])]),
        Err(EvalError::Op(_) | EvalError::Symbolic { .. })
    ));
}
