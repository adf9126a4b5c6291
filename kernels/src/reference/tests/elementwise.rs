use super::*;
use serde_json::json;

fn unary(name: &str, x: &[f32]) -> Tensor {
    one(&op(name, json!({})), &[&f32s(&[x.len()], x)])
}

#[test]
fn functions_have_their_known_values() {
    close(&unary("erf", &[-1.0, 0.5, 3.0]), &[-0.8427007929, 0.5204998778, 0.9999779095], 1e-7);
    close(&unary("gelu_erf", &[-1.0, 2.0, -10.0]), &[-0.1586552539, 1.9544997361, -7.62e-23], 1e-7);
    close(&unary("gelu_tanh", &[-1.0, 2.0]), &[-0.1588080094, 1.9545976940], 1e-7);
    close(&unary("silu", &[-1.0, 3.0]), &[-0.2689414214, 2.8577223804], 3e-7);
    close(&unary("quick_gelu", &[1.0]), &[0.8457957659], 1e-7);
    close(&unary("mish", &[1.0]), &[0.8650983883], 1e-7);
    close(&unary("hard_swish", &[-4.0, 1.0, 4.0]), &[0.0, 2.0 / 3.0, 4.0], 1e-7);
    close(
        &unary("softplus", &[-100.0, 0.0, 100.0]),
        &[3.78e-44, std::f64::consts::LN_2, 100.0],
        1e-7,
    );
    close(&unary("round", &[0.5, 1.5, -2.5, 2.6]), &[0.0, 2.0, -2.0, 3.0], 0.0);
    close(&unary("sign", &[-3.0, 0.0, f32::NAN]), &[-1.0, 0.0, f64::NAN], 0.0);
    close(&unary("relu", &[-3.0, 2.0, f32::NAN]), &[0.0, 2.0, f64::NAN], 0.0);
    close(&unary("sqrt", &[-1.0, 4.0]), &[f64::NAN, 2.0], 0.0);
    close(&unary("is_nan", &[f32::NAN, 1.0]), &[1.0, 0.0], 0.0);
}

#[test]
fn erf_of_f64_equals_published_values() {
    // Abramowitz & Stegun, Handbook of Mathematical Functions, table 7.1.
    let x = of(DType::F64, &f32s(&[5], &[0.5, 1.0, 2.0, 3.0, -1.0]));
    let expected =
        [0.520_499_877_8, 0.842_700_792_9, 0.995_322_265_0, 0.999_977_909_5, -0.842_700_792_9];
    close(&one(&op("erf", json!({})), &[&x]), &expected, 1e-10);
}

#[test]
fn functions_with_parameters() {
    let at = |name, attributes, x: &[f32]| one(&op(name, attributes), &[&f32s(&[x.len()], x)]);
    let inf = [f32::INFINITY, f32::NEG_INFINITY, 0.0];
    close(&at("is_inf", json!({"negative": false, "positive": true}), &inf), &[1.0, 0.0, 0.0], 0.0);
    close(&at("elu", json!({"alpha": 2.0}), &[-1.0, 1.0]), &[-1.2642411177, 1.0], 1e-6);
    close(&at("celu", json!({"alpha": 2.0}), &[-1.0, 1.0]), &[-0.7869386806, 1.0], 1e-6);
    close(
        &at("selu", json!({"alpha": 2.0, "gamma": 3.0}), &[-1.0, 1.0]),
        &[-3.7927233530, 3.0],
        1e-6,
    );
    close(
        &at("hard_sigmoid", json!({"alpha": 0.5, "beta": 0.6}), &[-9.0, 0.2, 9.0]),
        &[0.0, 0.7, 1.0],
        1e-6,
    );
    close(
        &at("shrink", json!({"bias": 1.0, "lambd": 1.5}), &[-2.0, 1.0, 2.0]),
        &[-1.0, 0.0, 1.0],
        0.0,
    );
    close(&at("leaky_relu", json!({"alpha": 0.5}), &[-2.0, 2.0]), &[-1.0, 2.0], 0.0);
    close(&at("thresholded_relu", json!({"alpha": 2.0}), &[2.0, 2.5]), &[0.0, 2.5], 0.0);
}

#[test]
fn integers_keep_their_width() {
    let i8s = |v: &[i64]| of(DType::I8, &i64s(&[v.len()], v));
    assert_eq!(one(&op("neg", json!({})), &[&i8s(&[-128, 5])]).to_i64_vec(), [-128, -5]);
    assert_eq!(one(&op("add", json!({})), &[&i8s(&[127]), &i8s(&[1])]).to_i64_vec(), [-128]);
    assert_eq!(
        one(&op("div", json!({})), &[&i8s(&[-128, -7]), &i8s(&[-1, 2])]).to_i64_vec(),
        [-128, -3]
    );
    assert_eq!(
        one(&op("shift_left", json!({})), &[&i8s(&[3, 1]), &i8s(&[6, 8])]).to_i64_vec(),
        [-64, 0]
    );
    assert_eq!(
        one(&op("shift_right", json!({})), &[&i8s(&[-3, -1]), &i8s(&[1, 100])]).to_i64_vec(),
        [-2, -1]
    );
    let u64s = |v: &[i64]| of(DType::U64, &i64s(&[v.len()], v)); // -1 becomes 2^64 - 1
    assert_eq!(one(&op("div", json!({})), &[&u64s(&[-1]), &u64s(&[2])]).to_i64_vec(), [i64::MAX]);
    assert_eq!(one(&op("greater", json!({})), &[&u64s(&[-1]), &u64s(&[2])]).to_i64_vec(), [1]);
    assert_eq!(one(&op("shift_right", json!({})), &[&u64s(&[-1]), &u64s(&[63])]).to_i64_vec(), [1]);
    assert_eq!(
        one(&op("bitwise_not", json!({})), &[&of(DType::U8, &i64s(&[1], &[1]))]).to_i64_vec(),
        [254]
    );
}

#[test]
fn division_by_an_integer_zero_is_an_error() {
    for name in ["div", "mod", "fmod"] {
        let result = try_eval(&op(name, json!({})), &[&i64s(&[1], &[1]), &i64s(&[2], &[1, 0])]);
        assert_eq!(result, Err(EvalError::DivisionByZero { op: name.into() }));
        close(
            &one(&op("div", json!({})), &[&f32s(&[1], &[1.0]), &f32s(&[1], &[0.0])]),
            &[f64::INFINITY],
            0.0,
        );
    }
}

#[test]
fn binary_operators_broadcast_and_keep_nan() {
    let (a, b) = (count(&[2, 1, 3]), f32s(&[2, 1], &[10.0, 20.0]));
    let expected = [10.0, 11.0, 12.0, 20.0, 21.0, 22.0, 13.0, 14.0, 15.0, 23.0, 24.0, 25.0];
    let y = one(&op("add", json!({})), &[&a, &b]);
    assert_eq!(y.shape(), [2, 2, 3]);
    close(&y, &expected, 0.0);
    let nan = [f32s(&[2], &[f32::NAN, 1.0]), f32s(&[2], &[1.0, f32::NAN])];
    close(&one(&op("max", json!({})), &[&nan[0], &nan[1]]), &[f64::NAN; 2], 0.0);
    close(&one(&op("min", json!({})), &[&nan[0], &nan[1]]), &[f64::NAN; 2], 0.0);
    close(
        &one(&op("mod", json!({})), &[&f32s(&[2], &[-4.5, 4.5]), &f32s(&[1], &[2.0])]),
        &[1.5, 0.5],
        0.0,
    );
    close(
        &one(&op("fmod", json!({})), &[&f32s(&[2], &[-4.5, 4.5]), &f32s(&[1], &[2.0])]),
        &[-0.5, 0.5],
        0.0,
    );
    close(
        &one(&op("prelu", json!({})), &[&f32s(&[2], &[-4.0, 4.0]), &f32s(&[1], &[0.5])]),
        &[-2.0, 4.0],
        0.0,
    );
}

#[test]
fn powers_of_mixed_types() {
    let pow = |a: &Tensor, b: &Tensor| one(&op("pow", json!({})), &[a, b]);
    close(&pow(&f32s(&[2], &[2.0, 9.0]), &i64s(&[2], &[-1, 2])), &[0.5, 81.0], 0.0);
    assert_eq!(pow(&i64s(&[2], &[4, -2]), &f32s(&[2], &[0.5, 3.0])).to_i64_vec(), [2, -8]);
    assert_eq!(
        pow(&i64s(&[5], &[3, 0, -1, 2, 3]), &i64s(&[5], &[40, 0, -3, -1, 41])).to_i64_vec(),
        [12157665459056928801u64 as i64, 1, -1, 0, 3i64.wrapping_pow(41)]
    );
}

#[test]
fn halves_compute_in_f32_and_round_once() {
    let h = |v: &[f32]| of(DType::F16, &f32s(&[v.len()], v));
    let y = one(&op("add", json!({})), &[&h(&[2048.0, 60000.0]), &h(&[1.0, 60000.0])]);
    assert_eq!(y.dtype(), DType::F16);
    close(&y, &[2048.0, f64::INFINITY], 0.0);
    close(&one(&op("exp", json!({})), &[&of(DType::BF16, &f32s(&[1], &[1.0]))]), &[2.71875], 0.0);
}

#[test]
fn where_and_cast() {
    let c = Tensor::from_bool(&[2, 1], &[true, false]);
    let y = one(&Op::Where, &[&c, &count(&[2]), &f32s(&[], &[9.0])]);
    assert_eq!(y.shape(), [2, 2]);
    close(&y, &[0.0, 1.0, 9.0, 9.0], 0.0);
    assert_eq!(of(DType::U8, &f32s(&[3], &[-1.0, 3.9, 300.0])).to_i64_vec(), [0, 3, 255]);
    assert_eq!(of(DType::Bool, &f32s(&[3], &[0.0, -0.5, f32::NAN])).bytes().as_ref(), [0, 1, 1]);
    close(&of(DType::F64, &i64s(&[1], &[(1 << 53) - 1])), &[9007199254740991.0], 0.0);
}
