//! Arithmetic of integers, and rows chosen by number.

use crate::bench::{Bench, SLOT, STEP, benches, halves, tensor};
use crate::common::Rng;
use cqc_kernels::cuda::{ElementOp, ElementType, Fault, Operand, elementwise, gather};
use cqc_kernels::reference;
use cqc_proto::op::{BinaryKind, UnaryKind};
use cqc_proto::{DType, Op, Tensor};

/// Integers as a tensor and on the device, in rows of `cols`, `ld` apart.
fn both(
    b: &Bench,
    values: &[i64],
    shape: &[usize],
    ld: usize,
    element: ElementType,
) -> (Tensor, Operand) {
    let dtype = if element == ElementType::I32 { DType::I32 } else { DType::I64 };
    let bytes = values.iter().flat_map(|v| v.to_le_bytes().into_iter().take(element.size()));
    let tensor = Tensor::new(dtype, shape.to_vec(), bytes.collect::<Vec<u8>>()).unwrap();
    let cols = *shape.last().unwrap();
    let numbers: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    (tensor, b.put(&numbers, cols, ld, element))
}

fn numbers(op: &Op, inputs: &[Option<&Tensor>]) -> Vec<f32> {
    reference::eval(op, inputs).unwrap()[0].to_i64_vec().into_iter().map(|v| v as f32).collect()
}

#[test]
fn functions_of_integers_equal_the_definitions() {
    use BinaryKind as K;
    let arithmetic = [
        (K::Add, ElementOp::Add),
        (K::Sub, ElementOp::Sub),
        (K::Mul, ElementOp::Mul),
        (K::Div, ElementOp::Div),
        (K::Min, ElementOp::Min),
        (K::Max, ElementOp::Max),
    ];
    let comparisons = [
        (K::Equal, ElementOp::Equal),
        (K::Less, ElementOp::Less),
        (K::LessOrEqual, ElementOp::LessOrEqual),
        (K::Greater, ElementOp::Greater),
        (K::GreaterOrEqual, ElementOp::GreaterOrEqual),
    ];
    for b in benches() {
        let mut rng = Rng::new(1);
        for element in [ElementType::I32, ElementType::I64] {
            let x: Vec<i64> = (0..3 * 4 * 5).map(|_| rng.size(0, 20) as i64 - 10).collect();
            let z: Vec<i64> =
                (0..3 * 5).map(|i| if i % 2 == 0 { -3 } else { rng.size(1, 6) as i64 }).collect();
            let (tx, a) = both(&b, &x, &[3, 4, 5], 7, element);
            let (tz, c) = both(&b, &z, &[3, 1, 5], 5, element);
            let reads = [(&a, &[28, 7, 1][..]), (&c, &[5, 0, 1][..])];
            for (kind, op) in arithmetic.into_iter().chain(comparisons) {
                let compares = comparisons.iter().any(|(k, _)| *k == kind);
                let y = b.room(12, 6, if compares { ElementType::U8 } else { element });
                b.run(&[elementwise(&b.state, op, &[3, 4, 5], &reads, (&y, &[24, 6, 1]))]);
                let wanted = numbers(&Op::binary(kind), &[Some(&tx), Some(&tz)]);
                assert_eq!(b.get(&y, 12, 5), wanted, "{op:?} of {element:?}");
            }
            for (kind, op) in [(UnaryKind::Neg, ElementOp::Neg), (UnaryKind::Abs, ElementOp::Abs)] {
                let y = b.room(12, 5, element);
                b.run(&[elementwise(&b.state, op, &[3, 4, 5], &reads[..1], (&y, &[20, 5, 1]))]);
                assert_eq!(
                    b.get(&y, 12, 5),
                    numbers(&Op::unary(kind), &[Some(&tx)]),
                    "{op:?} of {element:?}"
                );
            }
            let (smaller, y) = (b.room(12, 5, ElementType::U8), b.room(12, 5, element));
            let dense = &[20, 5, 1][..];
            let choose = [(&smaller, dense), reads[0], reads[1]];
            b.run(&[
                elementwise(&b.state, ElementOp::Less, &[3, 4, 5], &reads, (&smaller, dense)),
                elementwise(&b.state, ElementOp::Where, &[3, 4, 5], &choose, (&y, dense)),
            ]);
            let wanted = numbers(&Op::binary(K::Min), &[Some(&tx), Some(&tz)]);
            assert_eq!(b.get(&y, 12, 5), wanted, "a < b ? a : b of {element:?}");
        }
        assert_eq!(b.state.take_fault(&*b.device).unwrap(), None);
    }
}

#[test]
fn integers_wrap_around_and_become_truth_values() {
    for b in benches() {
        let (_, x) = both(&b, &[65537, -1, 0], &[3], 3, ElementType::I32);
        let (product, truth) = (b.room(1, 3, ElementType::I32), b.room(1, 3, ElementType::U8));
        let all = &[1][..];
        b.run(&[
            elementwise(&b.state, ElementOp::Mul, &[3], &[(&x, all), (&x, all)], (&product, all)),
            elementwise(&b.state, ElementOp::Copy, &[3], &[(&x, all)], (&truth, all)),
        ]);
        assert_eq!(b.get(&product, 1, 3), [131_073.0, 1.0, 0.0]);
        assert_eq!(b.get(&truth, 1, 3), [1.0, 1.0, 0.0]);
        let tiny = b.put(&[0.25, -0.0, f32::NAN], 3, 3, ElementType::F16);
        b.run(&[elementwise(&b.state, ElementOp::Copy, &[3], &[(&tiny, all)], (&truth, all))]);
        assert_eq!(b.get(&truth, 1, 3), [1.0, 0.0, 1.0]);
        let (_, zero) = both(&b, &[0, 2, 0], &[3], 3, ElementType::I32);
        b.run(&[elementwise(
            &b.state,
            ElementOp::Div,
            &[3],
            &[(&x, all), (&zero, all)],
            (&product, all),
        )]);
        assert_eq!(b.get(&product, 1, 3), [0.0, 0.0, 0.0]);
        assert_eq!(b.state.take_fault(&*b.device).unwrap(), Some(Fault::DividesByZero));
    }
}

#[test]
fn rows_are_gathered_by_number() {
    for b in benches() {
        let mut rng = Rng::new(2);
        for (outer, size, inner) in [(1, 9, 5), (3, 4, 7), (2, 6, 1)] {
            let data = halves(&mut rng, outer * size * inner);
            let places: Vec<i64> =
                (0..8).map(|_| rng.size(0, 2 * size - 1) as i64 - size as i64).collect();
            let wanted = reference::eval(
                &Op::Gather { axis: 1 },
                &[
                    Some(&tensor(&data, &[outer, size, inner])),
                    Some(&Tensor::from_i64(&[2, 4], &places)),
                ],
            );
            let wanted = wanted.unwrap()[0].to_f32_vec();
            for (from, to, kind) in [
                (ElementType::F32, ElementType::F16, ElementType::I64),
                (ElementType::F16, ElementType::F16, ElementType::I32),
            ] {
                let there = b.put(&data, data.len(), data.len(), from);
                let (_, indices) = both(&b, &places, &[8], 8, kind);
                let y = b.room(1, outer * 8 * inner, to);
                b.run(&[gather(&b.state, [outer, size, inner, 8], &there, &indices, &y)]);
                assert_eq!(
                    b.get(&y, 1, outer * 8 * inner),
                    wanted,
                    "{outer} {size} {inner} {from:?}"
                );
            }
        }
        assert_eq!(b.state.take_fault(&*b.device).unwrap(), None);
    }
}

#[test]
fn a_row_that_is_not_there_leaves_a_fault_and_takes_the_nearest() {
    for b in benches() {
        let there = b.halves(&[1.0, 2.0, 3.0], 3);
        let (_, indices) = both(&b, &[3, -4, 1], &[3], 3, ElementType::I64);
        let y = b.room(1, 3, ElementType::F16);
        b.run(&[gather(&b.state, [1, 3, 1, 3], &there, &indices, &y)]);
        assert_eq!(b.get(&y, 1, 3), [3.0, 1.0, 2.0]);
        assert_eq!(b.state.take_fault(&*b.device).unwrap(), Some(Fault::IndexOutside));
        assert_eq!(b.state.take_fault(&*b.device).unwrap(), None, "it has been taken");
        b.state.set(&*b.device, STEP, SLOT).unwrap();
    }
}
