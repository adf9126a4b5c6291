use super::*;
use serde_json::json;

#[test]
fn gathers_count_negative_indices_from_the_end() {
    let x = count(&[2, 3]);
    close(
        &one(&op("gather", json!({"axis": 1})), &[&x, &i64s(&[2], &[-1, 0])]),
        &[2., 0., 5., 3.],
        0.0,
    );
    close(
        &one(&op("gather_elements", json!({"axis": 0})), &[&x, &i64s(&[1, 2], &[1, -2])]),
        &[3., 1.],
        0.0,
    );
    close(
        &one(&op("gather_nd", json!({"batch_dims": 0})), &[&x, &i64s(&[2, 2], &[0, 1, -1, -1])]),
        &[1., 5.],
        0.0,
    );
    let per_batch = one(
        &op("gather_nd", json!({"batch_dims": 1})),
        &[&count(&[2, 2, 2]), &i64s(&[2, 1], &[1, 0])],
    );
    close(&per_batch, &[2., 3., 4., 5.], 0.0);
}

#[test]
fn an_index_outside_is_an_error_that_names_it() {
    let x = count(&[2, 3]);
    let outside = |index, size| Err(EvalError::Index { op: "gather".into(), index, size });
    assert_eq!(
        try_eval(&op("gather", json!({"axis": 1})), &[&x, &i64s(&[1], &[3])]),
        outside(3, 3)
    );
    assert_eq!(
        try_eval(&op("gather", json!({"axis": 0})), &[&x, &i64s(&[], &[-3])]),
        outside(-3, 2)
    );
    let huge = of(DType::U64, &i64s(&[1], &[-1]));
    assert_eq!(try_eval(&op("gather", json!({"axis": 0})), &[&x, &huge]), outside(i64::MAX, 2));
    let nd =
        try_eval(&op("scatter_nd", json!({})), &[&x, &i64s(&[1, 2], &[0, 9]), &f32s(&[1], &[0.])]);
    assert!(matches!(nd, Err(EvalError::Index { index: 9, size: 3, .. })));
    let elements =
        try_eval(&op("gather_elements", json!({"axis": 0})), &[&x, &i64s(&[1, 1], &[i64::MIN])]);
    assert!(matches!(elements, Err(EvalError::Index { index: i64::MIN, size: 2, .. })));
}

#[test]
fn scatters_write_in_order() {
    let x = count(&[4]);
    let (places, updates) = (i64s(&[3, 1], &[1, -1, 1]), f32s(&[3], &[10., 20., 30.]));
    let nd = |reduction: &str| {
        one(&op("scatter_nd", json!({"reduction": reduction})), &[&x, &places, &updates])
    };
    close(&nd("none"), &[0., 30., 2., 20.], 0.0);
    close(&nd("add"), &[0., 41., 2., 23.], 0.0);
    close(&nd("mul"), &[0., 300., 2., 60.], 0.0);
    close(&nd("min"), &[0., 1., 2., 3.], 0.0);
    close(&nd("max"), &[0., 30., 2., 20.], 0.0);
    let grid = count(&[2, 3]);
    let elements = op("scatter_elements", json!({"axis": 1}));
    let y = one(&elements, &[&grid, &i64s(&[2, 1], &[2, 0]), &f32s(&[2, 1], &[8., 9.])]);
    close(&y, &[0., 1., 8., 9., 4., 5.], 0.0);
}

#[test]
fn one_hot_leaves_rows_of_foreign_indices_off() {
    let y = one(
        &op("one_hot", json!({"axis": 0, "depth": 2})),
        &[&i64s(&[4], &[0, -1, 2, -3]), &f32s(&[2], &[5., 7.])],
    );
    assert_eq!(y.shape(), [2, 4]);
    close(&y, &[7., 5., 5., 5., 5., 7., 5., 5.], 0.0);
}

#[test]
fn top_k_orders_nan_highest_and_keeps_the_first_of_equals() {
    let x = f32s(&[5], &[1., 3., f32::NAN, 3., -1.]);
    let top = |largest: bool| {
        try_eval(&op("top_k", json!({"axis": 0, "k": 3, "largest": largest})), &[&x]).unwrap()
    };
    let [values, places] = top(true).try_into().unwrap();
    close(&values, &[f64::NAN, 3., 3.], 0.0);
    assert_eq!(places.to_i64_vec(), [2, 1, 3]);
    assert_eq!(top(false)[1].to_i64_vec(), [4, 0, 1]);
}

#[test]
fn running_sums() {
    let x = count(&[2, 3]);
    let sum = |axis: usize, exclusive: bool, reverse: bool| {
        one(
            &op("cum_sum", json!({"axis": axis, "exclusive": exclusive, "reverse": reverse})),
            &[&x],
        )
    };
    close(&sum(1, false, false), &[0., 1., 3., 3., 7., 12.], 0.0);
    close(&sum(1, true, true), &[3., 2., 0., 9., 5., 0.], 0.0);
    close(&sum(0, true, false), &[0., 0., 0., 0., 1., 2.], 0.0);
}
