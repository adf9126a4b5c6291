use super::*;
use serde_json::json;

#[test]
fn transpose_slice_and_expand_read_by_strides() {
    let x = count(&[2, 3, 2]);
    close(
        &one(&op("transpose", json!({"perm": [2, 0, 1]})), &[&x]),
        &[0., 2., 4., 6., 8., 10., 1., 3., 5., 7., 9., 11.],
        0.0,
    );
    let backwards = json!({"axes": [1, 2], "starts": [2, 1], "ends": [-1, 2], "steps": [-2, 1]});
    close(&one(&op("slice", backwards), &[&x]), &[5., 1., 11., 7.], 0.0);
    let far = json!({"axes": [1], "starts": [0], "ends": [3], "steps": [i64::MAX]});
    close(&one(&op("slice", far), &[&x]), &[0., 1., 6., 7.], 0.0);
    close(
        &one(&op("expand", json!({"shape": [2, 2]})), &[&count(&[2, 1])]),
        &[0., 0., 1., 1.],
        0.0,
    );
    close(
        &one(&op("tile", json!({"repeats": [2, 2]})), &[&count(&[1, 2])]),
        &[0., 1., 0., 1., 0., 1., 0., 1.],
        0.0,
    );
}

#[test]
fn concat_and_trilu() {
    let (a, b) = (count(&[2, 1]), count(&[2, 2]));
    close(&one(&op("concat", json!({"axis": 1})), &[&a, &b]), &[0., 0., 1., 1., 2., 3.], 0.0);
    let x = f32s(&[2, 3], &[1., 2., 3., 4., 5., 6.]);
    let tri = |upper: bool, k: i64| one(&op("trilu", json!({"upper": upper, "k": k})), &[&x]);
    close(&tri(true, 0), &[1., 2., 3., 0., 5., 6.], 0.0);
    close(&tri(true, 1), &[0., 2., 3., 0., 0., 6.], 0.0);
    close(&tri(false, 0), &[1., 0., 0., 4., 5., 0.], 0.0);
    close(&tri(false, i64::MAX), &[1., 2., 3., 4., 5., 6.], 0.0);
    close(&tri(true, i64::MAX), &[0.; 6], 0.0);
}

#[test]
fn pads_of_every_mode() {
    let x = f32s(&[3], &[1., 2., 3.]);
    let pad = |before: i64, after: i64, mode: &str| {
        one(&op("pad", json!({"before": [before], "after": [after], "mode": mode})), &[&x])
    };
    close(&pad(2, 1, "constant"), &[0., 0., 1., 2., 3., 0.], 0.0);
    close(&pad(2, 1, "edge"), &[1., 1., 1., 2., 3., 3.], 0.0);
    close(&pad(5, 2, "reflect"), &[2., 1., 2., 3., 2., 1., 2., 3., 2., 1.], 0.0);
    close(&pad(2, 4, "wrap"), &[2., 3., 1., 2., 3., 1., 2., 3., 1.], 0.0);
    close(&pad(-1, -1, "constant"), &[2.], 0.0);
    let fill = op("pad", json!({"before": [1, 0], "after": [0, 1]}));
    close(&one(&fill, &[&count(&[1, 2]), &f32s(&[], &[7.])]), &[7., 7., 7., 0., 1., 7.], 0.0);
}

fn resized(x: &Tensor, attributes: serde_json::Value) -> Tensor {
    one(&op("resize", attributes), &[x])
}

/// Expected values of ONNX's node tests and reference evaluator.
#[test]
fn resize_agrees_with_onnx() {
    let square = f32s(&[2, 2], &[1., 2., 3., 4.]);
    let up = json!({"sizes": [4, 6], "scales": [2.0, 3.0], "mode": "nearest", "coordinates": "half_pixel"});
    let row = |a: f64, b: f64| [a, a, a, b, b, b];
    close(
        &resized(&square, up),
        &[row(1., 2.), row(1., 2.), row(3., 4.), row(3., 4.)].concat(),
        0.0,
    );
    let linear = json!({"sizes": [4, 4], "scales": [2.0, 2.0], "mode": "linear", "coordinates": "half_pixel"});
    let expected =
        [1., 1.25, 1.75, 2., 1.5, 1.75, 2.25, 2.5, 2.5, 2.75, 3.25, 3.5, 3., 3.25, 3.75, 4.];
    close(&resized(&square, linear), &expected, 1e-6);
    let line = f32s(&[4], &[1., 2., 3., 4.]);
    let align =
        json!({"sizes": [2], "scales": [0.6], "mode": "linear", "coordinates": "align_corners"});
    close(&resized(&line, align), &[1., 3.142857], 1e-6);
    let cubic =
        json!({"sizes": [8], "scales": [2.0], "mode": "cubic", "coordinates": "asymmetric"});
    close(&resized(&line, cubic), &[1., 1.40625, 2., 2.5, 3., 3.59375, 4., 4.09375], 1e-6);
    let blurred =
        json!({"sizes": [2], "mode": "linear", "coordinates": "half_pixel", "antialias": true});
    close(&resized(&line, blurred), &[1.625, 3.375], 1e-6);
}

#[test]
fn nearest_rounds_as_asked() {
    let x = count(&[4]);
    let by = |nearest: &str| json!({"sizes": [3], "mode": "nearest", "coordinates": "asymmetric", "nearest": nearest});
    close(&resized(&x, by("floor")), &[0., 1., 2.], 0.0);
    close(&resized(&x, by("ceil")), &[0., 2., 3.], 0.0);
    let tie = |nearest: &str| json!({"sizes": [2], "mode": "nearest", "coordinates": "half_pixel", "nearest": nearest});
    close(&resized(&x, tie("round_prefer_floor")), &[0., 2.], 0.0);
    close(&resized(&x, tie("round_prefer_ceil")), &[1., 3.], 0.0);
}
