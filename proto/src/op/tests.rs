//! The types that shape rules accept and refuse, and random types that must not make them panic.

use super::arbitrary;
use super::*;
use crate::types::{MAX_RANK, element_count};
use proptest::prelude::*;
use serde_json::{Value, json};

/// `f32[2,N]`.
fn parse(text: &str) -> ValueType {
    let (dtype, shape) = text.trim_end_matches(']').split_once('[').unwrap();
    let sizes = shape.split(',').filter(|d| !d.is_empty());
    ValueType::new(
        DType::parse(dtype).unwrap(),
        sizes.map(|d| Dim::parse(d).unwrap()).collect::<Vec<_>>(),
    )
}

fn infer(name: &str, attributes: Value, inputs: &str) -> Result<String, OpError> {
    let Value::Object(attributes) = attributes else { panic!("attributes are an object") };
    let op = Op::from_parts(name, attributes).unwrap();
    let types: Vec<Option<ValueType>> =
        inputs.split_whitespace().map(|t| (t != "-").then(|| parse(t))).collect();
    let types: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
    let outputs = op.infer(&types)?;
    Ok(outputs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
}

#[track_caller]
fn accepts(name: &str, attributes: Value, inputs: &str, result: &str) {
    assert_eq!(infer(name, attributes, inputs).map_err(|e| e.to_string()), Ok(result.to_string()));
}

#[track_caller]
fn refuses(name: &str, attributes: Value, inputs: &str, because: &str) {
    let error = infer(name, attributes, inputs).expect_err("refused").to_string();
    assert!(error.contains(because), "{error}");
}

#[test]
fn reshape_compares_products_with_symbols() {
    let to = |shape: Value| json!({ "shape": shape });
    accepts("reshape", to(json!(["N", 6])), "f32[N,2,3]", "f32[N,6]");
    accepts("reshape", to(json!(["6*N"])), "f32[N,2,3]", "f32[6*N]");
    accepts("reshape", to(json!(["8*N", "M"])), "f32[2*N,4*M]", "f32[8*N,M]");
    accepts("reshape", to(json!(["N", "2*N+2"])), "f32[2,N+1,N]", "f32[N,2*N+2]");
    accepts("reshape", to(json!([0, "N"])), "f32[M,0]", "f32[0,N]");
    accepts("reshape", to(json!([1, 1])), "f32[]", "f32[1,1]");
    refuses("reshape", to(json!(["N", 5])), "f32[N,6]", "not provably the same number");
    refuses("reshape", to(json!(["N", "N"])), "f32[N,M]", "not provably the same number");
    refuses("reshape", to(json!([-2, -3])), "f32[6]", "which no tensor can be");
    refuses("reshape", to(json!([1, 1, 1, 1, 1, 1, 1, 1, 1])), "f32[1]", "9 axes");
}

#[test]
fn transpose_expand_and_concat() {
    accepts("transpose", json!({"perm": [1, 2, 0]}), "f16[N,2,3]", "f16[2,3,N]");
    refuses("transpose", json!({"perm": [1, 1, 0]}), "f16[N,2,3]", "no permutation");
    refuses("transpose", json!({"perm": [1, 0]}), "f16[N,2,3]", "no permutation");
    accepts("expand", json!({"shape": ["N", 2, 3]}), "bool[2,1]", "bool[N,2,3]");
    refuses("expand", json!({"shape": [2, 1]}), "f32[2,3]", "does not expand");
    refuses("expand", json!({"shape": ["N"]}), "f32[M]", "does not expand");
    accepts("concat", json!({"axis": 1}), "f32[N,2] f32[N,M] f32[N,0]", "f32[N,M+2]");
    refuses("concat", json!({"axis": 1}), "f32[N,2] f32[M,2]", "part 1 is f32[M,2]");
    refuses("concat", json!({"axis": 1}), "f32[N,2] f16[N,2]", "part 1 is f16");
    refuses("concat", json!({"axis": 2}), "f32[N,2]", "`axis` is 2");
    refuses("concat", json!({"axis": 0}), "", "input 0");
}

#[test]
fn slices_lie_provably_inside() {
    let cut = |start: Value, end: Value, step: i64| json!({"axes": [0], "starts": [start], "ends": [end], "steps": [step]});
    accepts("slice", cut(json!(1), json!(6), 2), "f32[7,N]", "f32[3,N]");
    accepts("slice", cut(json!(6), json!(-1), -3), "f32[7]", "f32[3]");
    accepts("slice", cut(json!(5), json!(2), 1), "f32[7]", "f32[0]");
    accepts("slice", cut(json!("N"), json!("2*N"), 1), "f32[2*N]", "f32[N]");
    accepts("slice", cut(json!(0), json!("4*N"), 4), "f32[4*N]", "f32[N]");
    accepts("slice", cut(json!("N-1"), json!(-1), -1), "f32[N]", "f32[N]");
    accepts("slice", cut(json!("N-1"), json!("N"), 1), "f32[N]", "f32[1]");
    refuses("slice", cut(json!(0), json!(8), 1), "f32[7]", "0..8 in steps of 1");
    refuses("slice", cut(json!(0), json!(2), 1), "f32[N]", "0..2");
    refuses("slice", cut(json!(0), json!("N"), 2), "f32[N]", "steps of 2");
    refuses("slice", cut(json!(0), json!(1), 0), "f32[7]", "steps of 0");
    refuses("slice", cut(json!(-1), json!(1), 1), "f32[7]", "-1..1");
    refuses(
        "slice",
        json!({"axes": [1, 0], "starts": [0, 0], "ends": [1, 1], "steps": [1, 1]}),
        "f32[7,7]",
        "ascending",
    );
    refuses(
        "slice",
        json!({"axes": [0], "starts": [], "ends": [1], "steps": [1]}),
        "f32[7]",
        "0 starts",
    );
}

#[test]
fn pad_and_tile() {
    let by = |before: i64, after: i64, mode: &str| json!({"before": [before], "after": [after], "mode": mode});
    accepts("pad", by(1, 2, "constant"), "f32[N]", "f32[N+3]");
    accepts("pad", by(-1, 0, "constant"), "f32[N] f32[]", "f32[N-1]");
    accepts("pad", by(5, 5, "reflect"), "i8[2]", "i8[12]");
    refuses("pad", by(-2, 0, "constant"), "f32[N]", "no valid size");
    refuses("pad", by(1, 0, "edge"), "f32[0]", "nothing to repeat");
    refuses("pad", by(1, 0, "constant"), "f32[1] f16[]", "the fill value is f16");
    refuses("pad", by(i64::MAX, 1, "constant"), "f32[1]", "no valid size");
    refuses("pad", by(i64::MAX, i64::MIN + 1, "constant"), "f32[1]", "too large");
    accepts("tile", json!({"repeats": [2, 0]}), "f32[N,M]", "f32[2*N,0]");
    refuses("tile", json!({"repeats": [-1]}), "f32[3]", "no valid size");
    refuses(
        "tile",
        json!({"repeats": [1i64 << 39, 1i64 << 39]}),
        "f32[2,2]",
        "which no tensor can be",
    );
}

#[test]
fn resize_and_trilu() {
    let to = |sizes: Value, scales: Value, mode: &str| json!({"sizes": sizes, "scales": scales, "mode": mode, "coordinates": "half_pixel"});
    accepts("resize", to(json!(["N", 8]), json!([1.0, 2.0]), "nearest"), "i8[N,4]", "i8[N,8]");
    accepts("resize", to(json!([3, 2]), json!([]), "cubic"), "f32[4,4]", "f32[3,2]");
    accepts("resize", to(json!([2]), json!([0.6]), "linear"), "f32[4]", "f32[2]");
    refuses("resize", to(json!([3]), json!([0.5]), "linear"), "f32[4]", "4 · 0.5 is not 3");
    refuses("resize", to(json!([3]), json!([-1.0]), "linear"), "f32[4]", "`scales`");
    refuses("resize", to(json!([3]), json!([]), "linear"), "i8[4]", "interpolates floats");
    refuses("resize", to(json!([3]), json!([]), "nearest"), "i8[0]", "nothing to interpolate");
    accepts("trilu", json!({"upper": true, "k": -9}), "bool[N,2,M]", "bool[N,2,M]");
    refuses("trilu", json!({"upper": true}), "bool[2]", "at least 2 axes");
}

#[test]
fn gathers() {
    accepts("gather", json!({"axis": 1}), "f32[N,9,2] i64[3,M]", "f32[N,3,M,2]");
    accepts("gather", json!({"axis": 0}), "f32[9] u8[]", "f32[]");
    refuses("gather", json!({"axis": 0}), "f32[9] f32[2]", "the indices are f32");
    refuses("gather", json!({"axis": 1}), "f32[9] i64[2]", "`axis` is 1");
    accepts("gather_elements", json!({"axis": 1}), "f32[N,2] i32[N,5]", "f32[N,5]");
    refuses("gather_elements", json!({"axis": 1}), "f32[2,2] i32[3,5]", "exceeds data");
    accepts("gather_nd", json!({"batch_dims": 1}), "f32[N,4,5,6] i64[N,3,2]", "f32[N,3,6]");
    refuses("gather_nd", json!({"batch_dims": 1}), "f32[N,4] i64[M,1]", "do not share");
    refuses("gather_nd", json!({"batch_dims": 0}), "f32[N,4] i64[2,3]", "last axis of 1 to 2");
    refuses("gather_nd", json!({"batch_dims": 7}), "f32[N,4] i64[2,3]", "last axis of 1 to 0");
    refuses("gather_nd", json!({"batch_dims": 0}), "f32[4] i64[N]", "last axis of 1 to 1");
}

#[test]
fn scatters_one_hot_top_k_cum_sum() {
    accepts("scatter_nd", json!({}), "f32[N,4,5] i64[3,2] f32[3,5]", "f32[N,4,5]");
    refuses("scatter_nd", json!({}), "f32[N,4,5] i64[3,2] f32[3,4]", "expected f32[3,5]");
    refuses(
        "scatter_nd",
        json!({"reduction": "add"}),
        "bool[4] i64[3,1] bool[3]",
        "does not take bool",
    );
    accepts(
        "scatter_elements",
        json!({"axis": 0, "reduction": "max"}),
        "f32[4] i64[9] f32[9]",
        "f32[4]",
    );
    refuses("scatter_elements", json!({"axis": 0}), "f32[4] i64[9] f32[8]", "expected f32[9]");
    accepts("one_hot", json!({"axis": 1, "depth": 5}), "f32[2,N] i8[2]", "i8[2,5,N]");
    refuses("one_hot", json!({"axis": 3, "depth": 5}), "f32[2,N] i8[2]", "`axis` is 3");
    refuses("one_hot", json!({"axis": 0, "depth": -1}), "f32[2,N] i8[2]", "`depth` is -1");
    refuses("one_hot", json!({"axis": 0, "depth": 1}), "f32[1,1,1,1,1,1,1,1] i8[2]", "9 axes");
    accepts("top_k", json!({"axis": 1, "k": 2, "largest": true}), "f16[N,2]", "f16[N,2] i64[N,2]");
    refuses("top_k", json!({"axis": 0, "k": 2, "largest": true}), "f16[N,2]", "axis 0 has N");
    accepts("cum_sum", json!({"axis": 0}), "i32[N]", "i32[N]");
    refuses("cum_sum", json!({"axis": 0}), "bool[N]", "does not take bool");
}

#[test]
fn reductions() {
    accepts("reduce_sum", json!({"axes": [0, 2], "keep": true}), "i32[N,2,3]", "i32[1,2,1]");
    accepts("reduce_mean", json!({"axes": [0, 2], "keep": false}), "f32[N,2,3]", "f32[2]");
    accepts("reduce_max", json!({"axes": [], "keep": false}), "bool[N]", "bool[N]");
    refuses("reduce_sum", json!({"axes": [0], "keep": false}), "bool[N]", "does not take bool");
    refuses("reduce_sum", json!({"axes": [2, 0], "keep": false}), "f32[1,1,1]", "ascending");
    refuses("reduce_sum", json!({"axes": [1], "keep": false}), "f32[1]", "`axes`");
    accepts("arg_reduce", json!({"largest": true, "axis": 1, "keep": false}), "f32[2,N]", "i64[2]");
    refuses(
        "arg_reduce",
        json!({"largest": true, "axis": 0, "keep": false}),
        "f32[0]",
        "may be empty",
    );
    accepts("softmax", json!({"axis": 1}), "bf16[2,N]", "bf16[2,N]");
    refuses("log_softmax", json!({"axis": 0}), "i32[2]", "expected a float type");
}

#[test]
fn quantization() {
    accepts("quantize", json!({"axis": null, "to": "u8"}), "f32[N,4] f32[] u8[]", "u8[N,4]");
    accepts("quantize", json!({"axis": 1, "to": "i8"}), "f16[N,4] f16[4]", "i8[N,4]");
    accepts(
        "quantize",
        json!({"axis": 1, "block": 3, "to": "i16"}),
        "i32[N,4] f32[N,2]",
        "i16[N,4]",
    );
    refuses("quantize", json!({"axis": 1, "to": "i8"}), "f32[N,4] f32[3]", "expected f32[4]");
    refuses("quantize", json!({"axis": 1, "to": "i8"}), "f32[N,4] f32[4] u8[4]", "expected i8[4]");
    refuses(
        "quantize",
        json!({"axis": null, "block": 2, "to": "i8"}),
        "f32[4] f32[]",
        "`block` needs",
    );
    refuses(
        "quantize",
        json!({"axis": 0, "block": 2, "to": "i8"}),
        "f32[N] f32[N]",
        "blocks of 2 do not divide N",
    );
    refuses(
        "quantize",
        json!({"axis": null, "to": "i64"}),
        "f32[4] f32[]",
        "does not quantize to i64",
    );
    accepts("round_bf16", json!({}), "f32[N,4]", "f32[N,4]");
    refuses("round_bf16", json!({}), "f16[N,4]", "expected f32");
    accepts("dequantize", json!({"axis": null, "to": "f16"}), "i32[4] f32[1]", "f16[4]");
    refuses(
        "dequantize",
        json!({"axis": null, "to": "f16"}),
        "i64[4] f32[1]",
        "expected a quantized type",
    );
}

#[test]
fn products_norms_and_attention_refuse_what_they_cannot_compute() {
    refuses("geglu", json!({"act": "gelu_erf"}), "i32[2]", "expected a float type");
    refuses(
        "attention",
        json!({"heads": 1, "kv_heads": 1, "scale": 1.0}),
        "i8[1,1,1] i8[1,1,1] i8[1,1,1]",
        "float type",
    );
    refuses("einsum", json!({"equation": "ab->aa"}), "f32[2,2]", "twice in the result");
    refuses("einsum", json!({"equation": "a,a->a"}), "f32[2] f64[2]", "one number type");
    let pool =
        json!({"kind": "average", "kernel": [1], "strides": [1], "pads": [0, 0], "dilations": [1]});
    refuses("pool", pool, "i8[1,1,1]", "does not take i8");
    let conv = json!({"strides": [1], "pads": [0, 0], "dilations": [1], "groups": usize::MAX});
    refuses("conv", conv, "f32[1,0,1] f32[0,0,1]", "groups");
    refuses("pow", json!({}), "f32[2] bool[2]", "exponent is bool");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

    #[test]
    fn junk_never_panics((op, types) in arbitrary::operation(true)) {
        let types: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
        if let Ok(outputs) = op.infer(&types) {
            let _ = op.cost(&types, &outputs);
            for t in &outputs {
                prop_assert!(t.rank() <= MAX_RANK);
                prop_assert!(t.fixed_shape().is_none_or(|s| element_count(&s).is_some()), "{op:?} gives {t}");
            }
        }
    }
}
