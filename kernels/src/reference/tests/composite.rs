use super::*;
use serde_json::json;

#[test]
fn group_norm_in_both_layouts() {
    let x = f32s(&[1, 2, 2], &[1., 3., 5., 7.]); // [N, C, L]
    let norm = |attributes, inputs: &[&Tensor]| one(&op("group_norm", attributes), inputs);
    close(&norm(json!({"groups": 2, "eps": 0.0}), &[&x]), &[-1., 1., -1., 1.], 1e-6);
    let r = 5f64.sqrt();
    let (gamma, beta) = (f32s(&[2], &[1., 2.]), f32s(&[2], &[0., 1.]));
    let expected = [-3. / r, -1. / r, 2. / r + 1., 6. / r + 1.];
    close(&norm(json!({"groups": 1, "eps": 0.0}), &[&x, &gamma, &beta]), &expected, 1e-6);
    let last = f32s(&[1, 2, 2], &[1., 5., 3., 7.]);
    let y = norm(
        json!({"groups": 1, "eps": 0.0, "layout": "channels_last", "act": "relu"}),
        &[&last, &gamma, &beta],
    );
    close(&y, &[0., expected[2], 0., expected[3]], 1e-6);
}

#[test]
fn layer_norm_modulates_per_image() {
    let x = f32s(&[2, 1, 2], &[1., 3., 10., 20.]);
    let (scale, shift) = (f32s(&[2, 1, 2], &[0., 1., 2., 3.]), f32s(&[1, 1, 2], &[0.5, -0.5]));
    let y = eval(
        &op("layer_norm", json!({"eps": 0.0})),
        &[Some(&x), None, None, Some(&scale), Some(&shift)],
    )
    .unwrap();
    close(&y[0], &[-0.5, 1.5, -2.5, 3.5], 1e-6);
    let gamma = f32s(&[2], &[1., 2.]);
    close(
        &one(&op("rms_norm", json!({"eps": 0.0})), &[&f32s(&[2], &[3., 4.]), &gamma]),
        &[0.8485281374, 2.2627416998],
        1e-6,
    );
}

fn attention(extra: serde_json::Value, inputs: &[&Tensor]) -> Tensor {
    let mut attributes = json!({"heads": 1, "kv_heads": 1, "scale": 1.0});
    attributes.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    one(&op("attention", attributes), inputs)
}

#[test]
fn attention_weighs_values_by_softmax() {
    let (q, k) = (f32s(&[1, 1, 1], &[1.]), f32s(&[1, 2, 1], &[0., 1.]));
    let v = f32s(&[1, 2, 2], &[1., 10., 2., 20.]);
    let p = 1.0 / (1.0 + (-1f64).exp());
    close(&attention(json!({}), &[&q, &k, &v]), &[1. + p, 10. + 10. * p], 1e-5);
    let capped = 1.0 / (1.0 + (-0.5 * 2f64.tanh()).exp());
    close(
        &attention(json!({"softcap": 0.5}), &[&q, &k, &v]),
        &[1. + capped, 10. + 10. * capped],
        1e-5,
    );
    let first_only = Tensor::from_bool(&[1, 2], &[true, false]);
    close(&attention(json!({}), &[&q, &k, &v, &first_only]), &[1., 10.], 0.0);
    let none = Tensor::from_bool(&[1, 2], &[false, false]);
    close(&attention(json!({}), &[&q, &k, &v, &none]), &[0., 0.], 0.0);
    let added = f32s(&[2], &[1., 0.]);
    close(&attention(json!({}), &[&q, &k, &v, &added]), &[1.5, 15.], 1e-5);
}

#[test]
fn causal_attention_and_grouped_heads() {
    let zero = f32s(&[1, 2, 2], &[0.; 4]);
    let v = f32s(&[1, 2, 1], &[1., 3.]);
    let grouped = json!({"heads": 2, "kv_heads": 1, "causal": true});
    close(&attention(grouped, &[&zero, &f32s(&[1, 2, 1], &[0.; 2]), &v]), &[1., 1., 2., 2.], 1e-6);
    let v = f32s(&[1, 1, 4], &[1., 2., 3., 4.]);
    let k = f32s(&[1, 1, 2], &[0.; 2]);
    let q = f32s(&[1, 1, 4], &[0.; 4]);
    let y = attention(json!({"heads": 4, "kv_heads": 2}), &[&q, &k, &v]);
    close(&y, &[1., 2., 1., 2., 3., 4., 3., 4.], 0.0);
    let early = json!({"causal": true}); // three queries, one key: only the last query sees it
    let y = attention(
        early,
        &[&f32s(&[1, 3, 1], &[0.; 3]), &f32s(&[1, 1, 1], &[0.]), &f32s(&[1, 1, 1], &[7.])],
    );
    close(&y, &[0., 0., 7.], 0.0);
}

#[test]
fn timestep_embedding_and_geglu() {
    let (t, f) = (i64s(&[2], &[0, 2]), f32s(&[2], &[1., 0.5]));
    let embed = |cos_first: bool| one(&Op::TimestepEmbedding { cos_first }, &[&t, &f]);
    let (s2, c2, s1, c1) = (2f64.sin(), 2f64.cos(), 1f64.sin(), 1f64.cos());
    close(&embed(false), &[0., 0., 1., 1., s2, s1, c2, c1], 1e-7);
    close(&embed(true), &[1., 1., 0., 0., c2, c1, s2, s1], 1e-7);
    let x = f32s(&[2, 2], &[3., 2., 1., -1.]);
    close(
        &one(&op("geglu", json!({"act": "gelu_erf"})), &[&x]),
        &[5.8634992084, -0.1586552539],
        1e-6,
    );
}

#[test]
fn quantize_rounds_to_even_and_saturates() {
    let x = f32s(&[6], &[0.5, 1.5, -2.5, 300., f32::NAN, f32::NEG_INFINITY]);
    let quantize = op("quantize", json!({"axis": null, "to": "u8"}));
    let zero = of(DType::U8, &i64s(&[], &[10]));
    assert_eq!(
        one(&quantize, &[&x, &f32s(&[], &[1.]), &zero]).to_i64_vec(),
        [10, 12, 8, 255, 10, 0]
    );
    let per_axis = op("quantize", json!({"axis": 1, "to": "i8"}));
    assert_eq!(
        one(&per_axis, &[&f32s(&[2, 2], &[4., 4., 8., 8.]), &f32s(&[2], &[2., 4.])]).to_i64_vec(),
        [2, 1, 4, 2]
    );
    let blocked = op("dequantize", json!({"axis": 1, "block": 2, "to": "f32"}));
    let codes = of(DType::I8, &i64s(&[2, 3], &[1, 2, 3, 4, 5, 6]));
    let zeros = of(DType::I8, &i64s(&[2, 2], &[0, 1, 0, -1]));
    let y = one(&blocked, &[&codes, &f32s(&[2, 2], &[1., 10., 2., 100.]), &zeros]);
    close(&y, &[1., 2., 20., 8., 10., 700.], 0.0);
}
