//! Elementwise operations and strided copies equal their definitions.

mod common;
use common::*;
use cqc_kernels::*;

const OPS: [Binary; 7] =
    [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Max, Binary::Min, Binary::Pow];

#[test]
fn binary_equals_the_definition_for_every_operand() {
    let mut rng = Rng::new(1);
    for (rows, c) in [(1, 1), (3, 7), (5, 8), (4, 33), (70, 300)] {
        let (lda, ldy) = (c + rng.size(0, 2), c + rng.size(0, 2));
        let data: Vec<f32> = rng.noise(rows * (c + 2)).iter().map(|x| x + 1.5).collect();
        let image = PerImage { data: &data, stride: 1, rows_per_image: 2 };
        let operands = [
            BroadcastOperand::Full(&data, lda),
            BroadcastOperand::Full(&data, c),
            BroadcastOperand::Scalar(0.75),
            BroadcastOperand::Row(&data),
            BroadcastOperand::Column(&data),
            BroadcastOperand::Image(image),
        ];
        for (i, a) in operands.into_iter().enumerate() {
            for (j, b) in operands.into_iter().enumerate() {
                let (op, ldy) = (OPS[(i + 2 * j) % 7], if i == j { c } else { ldy });
                check_binary(op, [rows, c, ldy], a, b);
            }
        }
    }
}

fn check_binary(op: Binary, [rows, c, ldy]: [usize; 3], a: BroadcastOperand, b: BroadcastOperand) {
    let value = |operand: BroadcastOperand, row: usize, col: usize| match operand {
        BroadcastOperand::Full(data, ld) => data[row * ld + col],
        BroadcastOperand::Scalar(x) => x,
        BroadcastOperand::Row(data) => data[col],
        BroadcastOperand::Column(data) => data[row],
        BroadcastOperand::Image(image) => image.of(row, c)[col],
    };
    let all = |operand| (0..rows * c).map(|i| value(operand, i / c, i % c)).collect::<Vec<f32>>();
    let mut want = vec![7.0; rows * ldy];
    for (row, values) in definition::binary(op, &all(a), &all(b)).chunks(c).enumerate() {
        want[row * ldy..][..c].copy_from_slice(values);
    }
    for isa in isas() {
        let mut y = vec![7.0; rows * ldy];
        binary(isa, &Pool::new(2), op, rows, c, a, b, &mut y, ldy);
        assert_close(&y, &want, 2e-7, &format!("{isa} {op:?} {rows} {c}")); // powf
    }
}

#[test]
fn unary_equals_the_definition_at_every_tail_length() {
    let mut rng = Rng::new(2);
    use Unary::*;
    for op in [
        Exp,
        Log,
        Neg,
        Abs,
        Sqrt,
        Reciprocal,
        Erf,
        Sin,
        Cos,
        Floor,
        Ceil,
        Round,
        Act(cqc_kernels::Act::Silu),
    ] {
        for len in (0..40).chain([20_001]) {
            let x: Vec<f32> = rng.noise(len).iter().map(|x| x * 5.0).collect();
            let want = definition::unary(op, &x);
            for isa in isas() {
                let mut y = vec![7.0; len];
                unary(isa, &Pool::new(2), op, &x, &mut y);
                assert_close(&y, &want, 1e-6, &format!("{isa} {op:?} {len}"));
            }
        }
    }
}

#[test]
fn geglu_equals_the_definition() {
    let mut rng = Rng::new(3);
    for (rows, c) in [(1, 1), (3, 13), (50, 170)] {
        let (ldx, ldy) = (2 * c + rng.size(0, 3), c + rng.size(0, 3));
        let x = rng.noise(rows * ldx);
        let mut want = vec![7.0; rows * ldy];
        definition::geglu(rows, c, &x, ldx, &mut want, ldy);
        for isa in isas() {
            let mut y = vec![7.0; rows * ldy];
            geglu(isa, &Pool::new(2), rows, c, &x, ldx, &mut y, ldy);
            assert_close(&y, &want, 1e-6, "geglu");
        }
    }
}

#[test]
fn affine_equals_the_definition() {
    let mut rng = Rng::new(5);
    for (rows, c) in [(1, 1), (3, 13), (50, 170)] {
        let [ldx, ldr, ldp, ldy] = [0; 4].map(|_| c + rng.size(0, 3));
        let (x, residual, previous) =
            (rng.noise(rows * ldx), rng.noise(rows * ldr), rng.noise(rows * ldp));
        let [scale, shift, factor] = [0; 3].map(|_| rng.noise(c));
        for with in 0..4 {
            let residual = (with & 1 != 0).then_some((&residual[..], ldr));
            let previous = (with & 2 != 0).then_some((&previous[..], ldp, &factor[..]));
            let map = Affine { scale: &scale, shift: &shift, residual, previous };
            let mut want = vec![7.0; rows * ldy];
            definition::affine(rows, c, &x, ldx, &map, &mut want, ldy);
            for isa in isas() {
                let mut y = vec![7.0; rows * ldy];
                affine(isa, &Pool::new(2), rows, c, &x, ldx, &map, &mut y, ldy);
                assert_close(&y, &want, 1e-6, "affine");
            }
        }
    }
}

#[test]
fn fake_quant_equals_the_definition() {
    let mut rng = Rng::new(6);
    for segments in [vec![1], vec![13], vec![16, 33, 1], vec![128, 64]] {
        let (rows, c): (usize, usize) = (rng.size(1, 90), segments.iter().sum());
        let [ldx, ldy] = [0; 2].map(|_| c + rng.size(0, 3));
        let mut x = rng.noise(rows * ldx);
        x[0] = f32::NAN;
        x[(rows - 1) * ldx] = f32::INFINITY;
        for bits in [2, 4, 8] {
            let levels = ((1u32 << bits) - 1) as f32;
            let mut scale: Vec<f32> =
                segments.iter().map(|_| 2.0 / levels * rng.size(1, 4) as f32 / 3.0).collect();
            if segments.len() > 1 {
                scale[1] = 0.0; // passes
            }
            let zero_point: Vec<f32> =
                segments.iter().map(|_| rng.size(0, levels as usize) as f32).collect();
            let how =
                FakeQuant { bits, segments: &segments, scale: &scale, zero_point: &zero_point };
            let mut want = vec![7.0; rows * ldy];
            definition::fake_quant(rows, &x, ldx, &how, &mut want, ldy);
            for isa in isas() {
                let mut y = vec![7.0; rows * ldy];
                fake_quant(isa, &Pool::new(2), rows, &x, ldx, &how, &mut y, ldy);
                // the same bits, NaN that passed included
                let bits_of = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits_of(&y), bits_of(&want), "{isa} {bits} bits {segments:?}");
            }
        }
    }
}

/// A random order of `0..n`.
fn shuffled(rng: &mut Rng, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    (1..n).for_each(|i| order.swap(i, rng.size(0, i)));
    order
}

#[test]
fn copies_of_random_strides_equal_the_definition() {
    let mut rng = Rng::new(4);
    for _ in 0..300 {
        let rank = rng.size(0, 6);
        let shape: Vec<usize> =
            (0..rank).map(|_| rng.size(1, if rank < 3 { 40 } else { 6 })).collect();
        let (mut x_strides, mut y_strides) = (vec![0isize; rank], vec![0; rank]);
        let (mut x_size, mut y_size, mut x_offset) = (1, 1, 0);
        for i in shuffled(&mut rng, rank) {
            y_strides[i] = y_size;
            y_size *= shape[i] + rng.size(0, 1);
        }
        for i in shuffled(&mut rng, rank) {
            match rng.size(0, 5) {
                0 => continue, // expand
                1 => {
                    x_strides[i] = -(x_size as isize);
                    x_offset += x_size * (shape[i] - 1);
                }
                _ => x_strides[i] = x_size as isize,
            }
            x_size *= shape[i] + rng.size(0, 1);
        }
        let x: Vec<u16> = (0..x_size as u16).collect();
        let (mut want, mut y) = (vec![u16::MAX; y_size], vec![u16::MAX; y_size]);
        definition::copy_strided(&shape, &x, x_offset, &x_strides, &mut want, &y_strides);
        copy_strided(&Pool::new(2), &shape, &x, x_offset, &x_strides, &mut y, &y_strides);
        assert_eq!(y, want, "{shape:?} {x_strides:?} {y_strides:?}");
    }
}

#[test]
fn copies_work_for_every_element_size() {
    fn check<T: arena::Pod + PartialEq + std::fmt::Debug>(value: impl Fn(usize) -> T) {
        let x: Vec<T> = (0..600).map(value).collect();
        let (mut want, mut y) = (vec![T::default(); 600], vec![T::default(); 600]);
        definition::copy_strided(&[30, 20], &x, 0, &[1, 30], &mut want, &[20, 1]);
        copy_strided(&Pool::new(1), &[30, 20], &x, 0, &[1, 30], &mut y, &[20, 1]);
        assert_eq!(y, want);
    }
    check(|i| i as u8);
    check(|i| i as u16);
    check(|i| i as f32);
    check(|i| i as i64);
}

#[test]
#[should_panic(expected = "copy reads 0..=4 of 4 values")]
fn copies_out_of_the_source_are_refused() {
    copy_strided(&Pool::new(1), &[5], &[0u8; 4], 0, &[1], &mut [0; 5], &[1]);
}

#[test]
#[should_panic(expected = "copy would write a place twice")]
fn copies_that_collide_are_refused() {
    copy_strided(&Pool::new(1), &[3, 3], &[0u8; 9], 0, &[3, 1], &mut [0; 9], &[2, 1]);
}
