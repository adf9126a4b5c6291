//! The four number types in which the definitions compute, and their way from and to every element
//! type.
//!
//! f16 and bf16 compute in f32; signed and narrow unsigned integers in i64, where wrapping
//! arithmetic has the same low bits; u64 and bool in u64.

use cqc_proto::dtype::DType;
use cqc_proto::tensor::Tensor;
use half::{bf16, f16};
use std::borrow::Cow;

/// A number type the definitions compute in. Integer arithmetic wraps around.
pub(super) trait Lane: Copy + PartialOrd + 'static {
    const ZERO: Self;
    const ONE: Self;
    /// The smallest value: -inf for floats.
    const LOWEST: Self;
    /// The largest value: inf for floats.
    const HIGHEST: Self;
    const IS_INTEGER: bool;

    /// Every element, converted as by `as`; exact for the element types that compute in this lane.
    fn load(t: &Tensor) -> Cow<'_, [Self]>;
    fn from_f64(v: f64) -> Self;
    fn to_f64(self) -> f64;
    fn to_i64(self) -> i64;
    fn to_u64(self) -> u64;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// Integers truncate; the divisor is not an integer zero.
    fn div(self, other: Self) -> Self;
    /// Remainder with the sign of the dividend; the divisor is not an integer zero.
    fn rem(self, other: Self) -> Self;

    /// Remainder with the sign of the divisor.
    fn modulo(self, other: Self) -> Self {
        let r = self.rem(other);
        let other_side =
            (r < Self::ZERO && other > Self::ZERO) || (r > Self::ZERO && other < Self::ZERO);
        if other_side { r.add(other) } else { r }
    }

    /// The larger one, or NaN if there is one.
    fn max(self, other: Self) -> Self {
        if self > other || self.is_nan() { self } else { other }
    }

    /// The smaller one, or NaN if there is one.
    fn min(self, other: Self) -> Self {
        if self < other || self.is_nan() { self } else { other }
    }

    #[allow(clippy::eq_op)] // only NaN differs from itself
    fn is_nan(self) -> bool {
        self != self
    }

    fn abs(self) -> Self {
        if self < Self::ZERO { Self::ZERO.sub(self) } else { self }
    }
}

macro_rules! conversions {
    ($t:ty) => {
        fn from_f64(v: f64) -> $t {
            v as $t
        }
        fn to_f64(self) -> f64 {
            self as f64
        }
        fn to_i64(self) -> i64 {
            self as i64
        }
        fn to_u64(self) -> u64 {
            self as u64
        }
    };
}

macro_rules! float_lane {
    ($t:ty, $tensor:ident => $load:expr) => {
        impl Lane for $t {
            const ZERO: $t = 0.0;
            const ONE: $t = 1.0;
            const LOWEST: $t = <$t>::NEG_INFINITY;
            const HIGHEST: $t = <$t>::INFINITY;
            const IS_INTEGER: bool = false;

            fn load($tensor: &Tensor) -> Cow<'_, [$t]> {
                $load
            }
            conversions!($t);
            fn add(self, other: $t) -> $t {
                self + other
            }
            fn sub(self, other: $t) -> $t {
                self - other
            }
            fn mul(self, other: $t) -> $t {
                self * other
            }
            fn div(self, other: $t) -> $t {
                self / other
            }
            fn rem(self, other: $t) -> $t {
                self % other
            }
            fn abs(self) -> $t {
                <$t>::abs(self)
            }
        }
    };
}

macro_rules! integer_lane {
    ($t:ty, $tensor:ident => $load:expr) => {
        impl Lane for $t {
            const ZERO: $t = 0;
            const ONE: $t = 1;
            const LOWEST: $t = <$t>::MIN;
            const HIGHEST: $t = <$t>::MAX;
            const IS_INTEGER: bool = true;

            fn load($tensor: &Tensor) -> Cow<'_, [$t]> {
                $load
            }
            conversions!($t);
            fn add(self, other: $t) -> $t {
                self.wrapping_add(other)
            }
            fn sub(self, other: $t) -> $t {
                self.wrapping_sub(other)
            }
            fn mul(self, other: $t) -> $t {
                self.wrapping_mul(other)
            }
            fn div(self, other: $t) -> $t {
                self.wrapping_div(other)
            }
            fn rem(self, other: $t) -> $t {
                self.wrapping_rem(other)
            }
        }
    };
}

float_lane!(f32, t => t.as_f32().unwrap_or_else(|| Cow::Owned(t.to_f32_vec())));
float_lane!(f64, t => Cow::Owned(t.to_f64_vec()));
integer_lane!(i64, t => t.as_i64().unwrap_or_else(|| Cow::Owned(t.to_i64_vec())));
integer_lane!(u64, t => Cow::Owned(match t.dtype().is_float() {
    true => t.to_f64_vec().into_iter().map(|v| v as u64).collect(),
    false => t.to_i64_vec().into_iter().map(|v| v as u64).collect(),
}));

/// Evaluates `$body` with `$T` standing for the lane of an element type.
macro_rules! by_lane {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            cqc_proto::dtype::DType::F32
            | cqc_proto::dtype::DType::F16
            | cqc_proto::dtype::DType::BF16 => {
                type $T = f32;
                $body
            }
            cqc_proto::dtype::DType::F64 => {
                type $T = f64;
                $body
            }
            cqc_proto::dtype::DType::U64 | cqc_proto::dtype::DType::Bool => {
                type $T = u64;
                $body
            }
            _ => {
                type $T = i64;
                $body
            }
        }
    };
}

/// As [`by_lane`] for operators that take only floats.
macro_rules! by_float {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            cqc_proto::dtype::DType::F64 => {
                type $T = f64;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}

/// Evaluates `$body` with `$W` standing for an unsigned integer as wide as the elements, to move
/// them unseen.
macro_rules! by_width {
    ($dtype:expr, $W:ident => $body:expr) => {
        match $dtype.size() {
            1 => {
                type $W = u8;
                $body
            }
            2 => {
                type $W = u16;
                $body
            }
            4 => {
                type $W = u32;
                $body
            }
            _ => {
                type $W = u64;
                $body
            }
        }
    };
}

pub(super) use {by_float, by_lane, by_width};

/// The elements as unsigned integers of their width.
pub(super) fn words<W: bytemuck::AnyBitPattern>(t: &Tensor) -> Cow<'_, [W]> {
    match bytemuck::try_cast_slice(t.bytes()) {
        Ok(words) => Cow::Borrowed(words),
        Err(_) => Cow::Owned(
            t.bytes().chunks_exact(size_of::<W>()).map(bytemuck::pod_read_unaligned).collect(),
        ),
    }
}

/// Values as bytes of an element type. Floats round to nearest even; floats become integers by
/// truncation and saturation; integers wrap around; anything ≠ 0 is true.
pub(super) fn store<T: Lane>(values: &[T], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => bytes(values, |v| (v.to_f64() as f32).to_le_bytes()),
        DType::F64 => bytes(values, |v| v.to_f64().to_le_bytes()),
        DType::F16 => bytes(values, |v| f16::from_f32(to_odd(v.to_f64())).to_le_bytes()),
        DType::BF16 => bytes(values, |v| bf16::from_f32(to_odd(v.to_f64())).to_le_bytes()),
        DType::Bool => bytes(values, |v| [(v != T::ZERO) as u8]),
        DType::U64 => bytes(values, |v| v.to_u64().to_le_bytes()),
        DType::I64 => bytes(values, |v| v.to_i64().to_le_bytes()),
        DType::I32 => bytes(values, |v| {
            narrow(v, i32::MIN as i64, i32::MAX as i64, |v| (v as i32).to_le_bytes())
        }),
        DType::U32 => {
            bytes(values, |v| narrow(v, 0, u32::MAX as i64, |v| (v as u32).to_le_bytes()))
        }
        DType::I16 => bytes(values, |v| {
            narrow(v, i16::MIN as i64, i16::MAX as i64, |v| (v as i16).to_le_bytes())
        }),
        DType::U16 => {
            bytes(values, |v| narrow(v, 0, u16::MAX as i64, |v| (v as u16).to_le_bytes()))
        }
        DType::I8 => bytes(values, |v| {
            narrow(v, i8::MIN as i64, i8::MAX as i64, |v| (v as i8).to_le_bytes())
        }),
        DType::U8 => bytes(values, |v| narrow(v, 0, u8::MAX as i64, |v| (v as u8).to_le_bytes())),
    }
}

fn bytes<T: Copy, const N: usize>(values: &[T], f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    let mut out = vec![0; values.len() * N];
    for (to, &v) in out.chunks_exact_mut(N).zip(values) {
        to.copy_from_slice(&f(v));
    }
    out
}

/// Saturates floats to `low..=high`; the caller's `as` wraps integers around.
fn narrow<T: Lane, R>(v: T, low: i64, high: i64, f: impl Fn(i64) -> R) -> R {
    let wide = v.to_i64();
    f(if T::IS_INTEGER { wide } else { wide.clamp(low, high) })
}

/// To f32 by rounding to odd, so that the rounding to a narrower type that follows sees whether
/// anything was cut off.
fn to_odd(v: f64) -> f32 {
    let near = v as f32;
    if near as f64 == v || v.is_nan() {
        return near;
    }
    let toward_zero =
        if (near as f64).abs() > v.abs() { near.to_bits() - 1 } else { near.to_bits() };
    f32::from_bits(toward_zero | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_once() {
        // f32 alone would lose the last bit and round to even
        let above_a_tie = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(
            store(&[above_a_tie], DType::F16),
            f16::from_f32(1.0 + 2f32.powi(-10)).to_le_bytes()
        );
        assert_eq!(store(&[1.0 + 2f64.powi(-11)], DType::F16), f16::ONE.to_le_bytes());
        assert_eq!(store(&[-1e300], DType::BF16), bf16::NEG_INFINITY.to_le_bytes());
        assert!(f16::from_le_bytes(store(&[f64::NAN], DType::F16).try_into().unwrap()).is_nan());
        assert_eq!(store(&[5e-324], DType::F16), [0, 0]);
    }

    #[test]
    fn floats_saturate_and_integers_wrap() {
        assert_eq!(store(&[300.7f32, -300.0, f32::NAN, -1.9], DType::I8), [127, 128, 0, 255]);
        assert_eq!(store(&[300.7f32, -3.0], DType::U8), [255, 0]);
        assert_eq!(store(&[300i64, -1], DType::U8), [44, 255]);
        assert_eq!(store(&[1e30f64], DType::U64), u64::MAX.to_le_bytes());
        assert_eq!(store(&[f32::NAN, 0.0, -0.0, 2.0], DType::Bool), [1, 0, 0, 1]);
    }

    #[test]
    fn remainders_take_the_right_sign() {
        assert_eq!([7i64, -7, 7, -7].map(|a| a.modulo(3)), [1, 2, 1, 2]);
        assert_eq!([(-4i64).modulo(-3), 4i64.modulo(-3), (-4i64).rem(3)], [-1, -2, -1]);
        assert_eq!(i64::MIN.rem(-1), 0);
        assert_eq!((-4.25f32).modulo(2.0), 1.75);
    }
}
