use super::*;
use serde_json::json;

/// As count, but small and of both signs.
fn noise(shape: &[usize], seed: u32) -> Tensor {
    let n = shape.iter().product::<usize>() as u32;
    let value = |i: u32| ((i + seed).wrapping_mul(2_654_435_761) >> 20) as f32 / 2048.0 - 1.0;
    f32s(shape, &(0..n).map(value).collect::<Vec<_>>())
}

#[test]
fn matmul_broadcasts_and_takes_vectors() {
    let matmul = |a: &Tensor, b: &Tensor| one(&Op::MatMul, &[a, b]);
    close(&matmul(&count(&[2, 3]), &count(&[3])), &[5., 14.], 0.0);
    close(&matmul(&count(&[2]), &count(&[2, 2])), &[2., 3.], 0.0);
    close(&matmul(&count(&[2]), &count(&[2])), &[1.], 0.0);
    let y = matmul(&count(&[2, 1, 1, 2]), &count(&[2, 2, 1]));
    assert_eq!(y.shape(), [2, 2, 1, 1]);
    close(&y, &[1., 3., 3., 13.], 0.0);
    close(&matmul(&f32s(&[2, 0], &[]), &f32s(&[0, 1], &[])), &[0., 0.], 0.0);
    let bytes = of(DType::I8, &i64s(&[1, 2], &[100, 100]));
    assert_eq!(matmul(&bytes, &of(DType::I8, &i64s(&[2, 1], &[1, 1]))).to_i64_vec(), [-56]);
}

#[test]
fn matmul_equals_the_sum_at_every_row_count() {
    for m in 1..10 {
        let (a, b) = (noise(&[m, 5], 1), noise(&[5, 7], 2));
        let (x, w) = (a.to_f32_vec(), b.to_f32_vec());
        let sum =
            |i: usize, j: usize| (0..5).fold(0f32, |s, k| s + x[i * 5 + k] * w[k * 7 + j]) as f64;
        let expected: Vec<f64> = (0..m * 7).map(|at| sum(at / 7, at % 7)).collect();
        close(&one(&Op::MatMul, &[&a, &b]), &expected, 0.0);
    }
}

#[test]
fn linear_applies_its_epilogue_in_order() {
    let x = f32s(&[2, 1, 1], &[1., -2.]);
    let w = f32s(&[1, 2], &[1., 2.]);
    let (bias, row) = (f32s(&[2], &[0.5, -0.5]), f32s(&[2, 1, 2], &[0., 1., 2., 3.]));
    let (gate, residual) = (f32s(&[1, 1, 2], &[10., 100.]), f32s(&[2, 1, 2], &[1., 2., 3., 4.]));
    let y = one(&op("linear", json!({"act": "relu"})), &[&x, &w, &bias, &row, &gate, &residual]);
    close(&y, &[16., 252., 8., 4.], 0.0);
    let vector =
        one(&op("linear", json!({})), &[&f32s(&[1], &[3.]), &w, &bias, &f32s(&[2], &[1., 1.])]);
    close(&vector, &[4.5, 6.5], 0.0);
}

#[test]
fn einsum_sums_what_the_result_does_not_name() {
    let sum = |equation: &str, inputs: &[&Tensor]| {
        one(&op("einsum", json!({"equation": equation})), inputs)
    };
    close(&sum("ab,bc->ac", &[&count(&[2, 2]), &count(&[2, 2])]), &[2., 3., 6., 11.], 0.0);
    close(&sum("aa->a", &[&count(&[2, 2])]), &[0., 3.], 0.0);
    close(&sum("aa->", &[&count(&[2, 2])]), &[3.], 0.0);
    close(&sum("ab->ba", &[&count(&[1, 2])]), &[0., 1.], 0.0);
    close(
        &sum("a,b,ab,->b", &[&count(&[2]), &count(&[2]), &count(&[2, 2]), &f32s(&[], &[2.])]),
        &[0., 6.],
        0.0,
    );
    close(&sum("a,a->a", &[&count(&[3]), &f32s(&[1], &[2.])]), &[0., 2., 4.], 0.0);
}

fn conv(attributes: serde_json::Value, inputs: &[&Tensor]) -> Tensor {
    one(&op("conv", attributes), inputs)
}

#[test]
fn conv_pads_strides_dilates_and_groups() {
    let x = count(&[1, 1, 3, 3]);
    let box_filter = f32s(&[1, 1, 2, 2], &[1.; 4]);
    let plain = json!({"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1]});
    close(&conv(plain, &[&x, &box_filter]), &[8., 12., 20., 24.], 0.0);
    let padded = json!({"strides": [2, 2], "pads": [1, 1, 0, 0], "dilations": [1, 1]});
    close(&conv(padded, &[&x, &box_filter, &f32s(&[1], &[1.])]), &[1., 4., 10., 25.], 0.0);
    let wide = json!({"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [2, 2]});
    close(&conv(wide, &[&x, &box_filter]), &[16.], 0.0);
    let grouped = json!({"strides": [1], "pads": [0, 0], "dilations": [1], "groups": 2});
    close(
        &conv(grouped, &[&count(&[1, 2, 2]), &f32s(&[2, 1, 1], &[1., 10.])]),
        &[0., 1., 20., 30.],
        0.0,
    );
    let doubled = json!({"strides": [1], "pads": [1, 1], "dilations": [1], "upsample": 2});
    close(
        &conv(doubled, &[&f32s(&[1, 1, 2], &[1., 2.]), &f32s(&[1, 1, 3], &[1.; 3])]),
        &[2., 4., 5., 4.],
        0.0,
    );
}

#[test]
fn conv_channels_last_is_the_transposed_conv() {
    let (x, w) = (noise(&[2, 4, 5, 3], 1), noise(&[6, 2, 3, 2], 2));
    let (bias, row, gate, residual) =
        (noise(&[6], 3), noise(&[2, 6, 1, 1], 4), noise(&[1, 6, 1, 1], 5), noise(&[2, 6, 6, 4], 6));
    let attributes = |layout: &str| json!({"strides": [2, 2], "pads": [1, 2, 3, 1], "dilations": [1, 2], "groups": 2, "layout": layout, "upsample": 2, "act": "silu"});
    let last = |t: &Tensor| one(&op("transpose", json!({"perm": [0, 2, 3, 1]})), &[t]);
    let first = conv(attributes("channels_first"), &[&x, &w, &bias, &row, &gate, &residual]);
    let inputs = [&last(&x), &w, &bias, &last(&row), &last(&gate), &last(&residual)];
    assert_eq!(conv(attributes("channels_last"), &inputs), last(&first));
}

#[test]
fn transposed_conv_spreads_its_input() {
    let spread = |attributes, inputs: &[&Tensor]| one(&op("conv_transpose", attributes), inputs);
    let line = json!({"strides": [2], "pads": [0, 0], "dilations": [1], "output_padding": [1]});
    let (x, w) = (f32s(&[1, 1, 2], &[1., 2.]), f32s(&[1, 1, 3], &[1., 10., 100.]));
    close(
        &spread(line, &[&x, &w, &f32s(&[1], &[0.5])]),
        &[1.5, 10.5, 102.5, 20.5, 200.5, 0.5],
        0.0,
    );
    let cut = json!({"strides": [2], "pads": [1, 1], "dilations": [1], "output_padding": [0]});
    close(&spread(cut, &[&x, &w]), &[10., 102., 20.], 0.0);
    let grouped = json!({"strides": [1], "pads": [0, 0], "dilations": [1], "output_padding": [0], "groups": 2});
    let y = spread(grouped, &[&f32s(&[1, 2, 1], &[2., 3.]), &f32s(&[2, 2, 1], &[1., 2., 3., 4.])]);
    close(&y, &[2., 4., 9., 12.], 0.0);
}

#[test]
fn pools_count_padding_when_asked() {
    let x = count(&[1, 1, 4]);
    let pool = |kind: &str, pads: [usize; 2], ceil: bool, count_pad: bool| {
        let attributes = json!({"kind": kind, "kernel": [3], "strides": [2], "pads": pads, "dilations": [1], "ceil": ceil, "count_pad": count_pad});
        one(&op("pool", attributes), &[&x])
    };
    close(&pool("max", [1, 1], false, false), &[1., 3.], 0.0);
    close(&pool("average", [1, 1], false, false), &[0.5, 2.], 1e-6);
    close(&pool("average", [1, 1], false, true), &[1. / 3., 2.], 1e-6);
    close(&pool("average", [0, 0], true, true), &[1., 2.5], 1e-6);
    close(&pool("average", [0, 1], true, true), &[1., 5. / 3.], 1e-6);
}
