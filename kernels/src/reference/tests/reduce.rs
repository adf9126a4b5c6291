use super::*;
use serde_json::json;

fn reduced(kind: &str, axes: &[usize], x: &Tensor) -> Tensor {
    one(&op(&format!("reduce_{kind}"), json!({"axes": axes, "keep": false})), &[x])
}

#[test]
fn reductions_over_any_axes() {
    let x = count(&[2, 2, 2]);
    close(&reduced("sum", &[0, 2], &x), &[10., 18.], 0.0);
    close(&reduced("mean", &[1], &x), &[1., 2., 5., 6.], 0.0);
    close(&reduced("max", &[0, 1, 2], &x), &[7.], 0.0);
    close(&reduced("min", &[0], &x), &[0., 1., 2., 3.], 0.0);
    close(&reduced("prod", &[2], &x), &[0., 6., 20., 42.], 0.0);
    close(&reduced("sum_square", &[], &x), &[0., 1., 4., 9., 16., 25., 36., 49.], 0.0);
    let y = f32s(&[2], &[-3., 4.]);
    close(&reduced("l1", &[0], &y), &[7.], 0.0);
    close(&reduced("l2", &[0], &y), &[5.], 0.0);
    close(&reduced("log_sum", &[0], &y), &[0.], 0.0);
    close(&reduced("log_sum_exp", &[0], &f32s(&[2], &[1000., 1000.])), &[1000.6931], 1e-4);
    close(
        &reduced("log_sum_exp", &[0], &f32s(&[2], &[f32::NEG_INFINITY; 2])),
        &[f64::NEG_INFINITY],
        0.0,
    );
}

#[test]
fn reductions_of_nothing() {
    let none = f32s(&[0], &[]);
    let value = |kind: &str| reduced(kind, &[0], &none).to_f64_vec()[0];
    assert_eq!(
        ["sum", "prod", "max", "min", "l2"].map(value),
        [0., 1., f64::NEG_INFINITY, f64::INFINITY, 0.]
    );
    assert_eq!(["log_sum", "log_sum_exp"].map(value), [f64::NEG_INFINITY; 2]);
    assert!(value("mean").is_nan());
    let bytes = of(DType::I8, &none);
    assert_eq!(
        ["max", "min", "mean"].map(|k| reduced(k, &[0], &bytes).to_i64_vec()[0]),
        [-128, 127, 0]
    );
}

#[test]
fn reductions_of_integers_and_nan() {
    let x = of(DType::I8, &i64s(&[3], &[100, 100, -100]));
    assert_eq!(reduced("sum", &[0], &x).to_i64_vec(), [100]);
    assert_eq!(reduced("l1", &[0], &x).to_i64_vec(), [300 - 256]);
    assert_eq!(reduced("mean", &[0], &i64s(&[2], &[-3, 0])).to_i64_vec(), [-1]);
    assert_eq!(reduced("max", &[0], &Tensor::from_bool(&[2], &[false, true])).to_i64_vec(), [1]);
    close(&reduced("max", &[0], &f32s(&[3], &[1., f32::NAN, 2.])), &[f64::NAN], 0.0);
}

#[test]
fn arg_reduce_picks_first_last_or_nan() {
    let at = |largest: bool, last: bool, x: &[f32]| {
        let attributes = json!({"largest": largest, "axis": 0, "keep": true, "last": last});
        one(&op("arg_reduce", attributes), &[&f32s(&[x.len()], x)]).to_i64_vec()[0]
    };
    let x = [1., 3., 3., 1.];
    assert_eq!(
        [at(true, false, &x), at(true, true, &x), at(false, false, &x), at(false, true, &x)],
        [1, 2, 0, 3]
    );
    assert_eq!([at(true, false, &[1., f32::NAN, 2.]), at(false, false, &[f32::NAN, 0.])], [1, 0]);
}

#[test]
fn softmax_survives_large_values() {
    let x = f32s(&[2, 2], &[1000., 1001., -5., -5.]);
    close(
        &one(&op("softmax", json!({"axis": 1})), &[&x]),
        &[0.2689414214, 0.7310585786, 0.5, 0.5],
        1e-7,
    );
    close(
        &one(&op("log_softmax", json!({"axis": 1})), &[&x]),
        &[-1.3132616875, -0.3132616875, -std::f64::consts::LN_2, -std::f64::consts::LN_2],
        1e-6,
    );
    close(&one(&op("softmax", json!({"axis": 0})), &[&x]), &[1., 1., 0., 0.], 0.0);
}
