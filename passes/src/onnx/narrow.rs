//! Element types without a counterpart in [`DType`]: integers of 2 and 4 bits, floats of 4 and 8
//! bits. Their numbers are held in i8, u8 or f32, which can represent all of them. A conversion to
//! such a type rounds to its numbers.

use super::cx::Cx;
use super::error::Refusal;
use super::item::Item;
use cqc_proto::op::{BinaryKind, UnaryKind};
use cqc_proto::{DType, Op, Tensor};

/// An element type of ONNX that is narrower than the type that holds its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Narrow {
    /// Two's complement of this number of bits.
    Int(u8),
    Uint(u8),
    Float(Minifloat),
    /// Powers of two: `2^(byte − 127)`.
    E8M0,
}

/// The result of a conversion that does not saturate for a number beyond the largest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beyond {
    Infinity,
    Nan,
    Largest,
}

/// A float of a sign, some bits of exponent and the rest as mantissa.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Minifloat {
    bits: u8,
    mantissa: u8,
    bias: i32,
    /// The largest finite number.
    largest: u32,
    beyond: Beyond,
    /// Whether it has neither a signed zero nor infinities: the byte of −0 is NaN.
    unsigned_zero: bool,
}

const E4M3FN: Minifloat = Minifloat {
    bits: 8,
    mantissa: 3,
    bias: 7,
    largest: 448,
    beyond: Beyond::Nan,
    unsigned_zero: false,
};
const E4M3FNUZ: Minifloat = Minifloat { bias: 8, largest: 240, unsigned_zero: true, ..E4M3FN };
const E5M2: Minifloat = Minifloat {
    bits: 8,
    mantissa: 2,
    bias: 15,
    largest: 57344,
    beyond: Beyond::Infinity,
    unsigned_zero: false,
};
const E5M2FNUZ: Minifloat =
    Minifloat { bias: 16, beyond: Beyond::Nan, unsigned_zero: true, ..E5M2 };
const E2M1: Minifloat = Minifloat {
    bits: 4,
    mantissa: 1,
    bias: 1,
    largest: 6,
    beyond: Beyond::Largest,
    unsigned_zero: false,
};

impl Narrow {
    /// The type of that ONNX number, if it is one of these.
    pub fn of(number: i32) -> Option<Narrow> {
        Some(match number {
            17 => Narrow::Float(E4M3FN),
            18 => Narrow::Float(E4M3FNUZ),
            19 => Narrow::Float(E5M2),
            20 => Narrow::Float(E5M2FNUZ),
            21 => Narrow::Uint(4),
            22 => Narrow::Int(4),
            23 => Narrow::Float(E2M1),
            24 => Narrow::E8M0,
            25 => Narrow::Uint(2),
            26 => Narrow::Int(2),
            _ => return None,
        })
    }

    /// The type that holds its numbers.
    pub fn carrier(self) -> DType {
        match self {
            Narrow::Int(_) => DType::I8,
            Narrow::Uint(_) => DType::U8,
            Narrow::Float(_) | Narrow::E8M0 => DType::F32,
        }
    }

    fn bits(self) -> usize {
        match self {
            Narrow::Int(bits) | Narrow::Uint(bits) => bits.into(),
            Narrow::Float(f) => f.bits.into(),
            Narrow::E8M0 => 8,
        }
    }

    /// Smallest and largest number of an integer type.
    pub fn limits(self) -> Option<(i64, i64)> {
        match self {
            Narrow::Int(bits) => Some((-(1 << (bits - 1)), (1 << (bits - 1)) - 1)),
            Narrow::Uint(bits) => Some((0, (1 << bits) - 1)),
            Narrow::Float(_) | Narrow::E8M0 => None,
        }
    }

    /// Converts the bytes of `count` elements to bytes of the type that holds them. The first
    /// element is in the lowest bits of a byte.
    ///
    /// # Errors
    /// If there are more or fewer bytes than the elements take.
    pub fn unpack(self, bytes: &[u8], count: usize) -> Result<Vec<u8>, String> {
        let bits = self.bits();
        let expected = count.checked_mul(bits).map(|n| n.div_ceil(8));
        if expected != Some(bytes.len()) {
            return Err(format!(
                "{count} elements of {bits} bits do not lie in {} bytes",
                bytes.len()
            ));
        }
        let codes = codes(bytes, bits).take(count);
        Ok(match self {
            Narrow::Uint(_) => codes.collect(),
            Narrow::Int(bits) => {
                codes.map(|code| (((code << (8 - bits)) as i8) >> (8 - bits)) as u8).collect()
            }
            Narrow::Float(f) => codes.flat_map(|code| f.value(code).to_le_bytes()).collect(),
            Narrow::E8M0 => codes.flat_map(|code| power(code).to_le_bytes()).collect(),
        })
    }
}

/// Unsigned codes of 2, 4 or 8 bits, those in the low bits first.
pub(super) fn codes(bytes: &[u8], bits: usize) -> impl Iterator<Item = u8> + '_ {
    let mask = u8::MAX >> (8 - bits);
    bytes.iter().flat_map(move |byte| (0..8 / bits).map(move |i| (byte >> (i * bits)) & mask))
}

fn power(code: u8) -> f32 {
    if code == 255 { f32::NAN } else { 2f64.powi(code as i32 - 127) as f32 }
}

impl Minifloat {
    fn value(self, code: u8) -> f32 {
        let sign = (code >> (self.bits - 1)) & 1;
        let magnitude = code & ((1 << (self.bits - 1)) - 1);
        if self.unsigned_zero && sign == 1 && magnitude == 0 {
            return f32::NAN;
        }
        let exponent = (magnitude >> self.mantissa) as i32;
        let fraction = (magnitude & ((1 << self.mantissa) - 1)) as f64;
        let unit = 2f64.powi(-(self.mantissa as i32));
        let value = match exponent {
            0 => fraction * unit * 2f64.powi(1 - self.bias),
            _ => (1.0 + fraction * unit) * 2f64.powi(exponent - self.bias),
        };
        let value = if value <= self.largest as f64 {
            value
        } else if self.beyond == Beyond::Infinity && fraction == 0.0 {
            f64::INFINITY
        } else {
            f64::NAN
        };
        if sign == 1 { -value as f32 } else { value as f32 }
    }

    /// Exponents of the smallest and of the largest normal number.
    fn exponents(self) -> (i64, i64) {
        ((1 - self.bias).into(), self.largest.ilog2().into())
    }
}

impl Cx<'_> {
    /// Rounds `x` to the numbers of a narrow type. The result is held in the type's carrier.
    ///
    /// # Errors
    /// [`Refusal`] for an item that is not a tensor of numbers.
    pub fn cast_narrow(&mut self, x: &Item, to: Narrow, saturate: bool) -> Result<Item, Refusal> {
        if self.narrow(x) == Some(to) {
            return Ok(x.clone());
        }
        let y = match to {
            Narrow::Float(f) => self.round_minifloat(x, f, saturate)?,
            Narrow::Int(bits) | Narrow::Uint(bits) => self.wrap(x, to, bits)?,
            Narrow::E8M0 => {
                return super::error::unsupported("rounding to float8e8m0 is not supported");
            }
        };
        Ok(self.mark(y, to))
    }

    /// The whole part modulo `2^bits`, as in conversions between wider integers.
    fn wrap(&mut self, x: &Item, to: Narrow, bits: u8) -> Result<Item, Refusal> {
        let whole = self.cast(x, DType::I32)?;
        let number = |v: i64| self.integer(v, DType::I32);
        let (half, mask) = (number(1 << (bits - 1)), number((1 << bits) - 1));
        let wrapped = if matches!(to, Narrow::Uint(_)) {
            self.binary(BinaryKind::BitwiseAnd, &whole, &mask)?
        } else {
            let moved = self.binary(BinaryKind::Add, &whole, &half)?;
            let low = self.binary(BinaryKind::BitwiseAnd, &moved, &mask)?;
            self.binary(BinaryKind::Sub, &low, &half)?
        };
        self.cast(&wrapped, to.carrier())
    }

    fn integer(&self, v: i64, dtype: DType) -> Item {
        self.constant(super::tensors::from_integers(dtype, vec![], &[v]))
    }

    /// Rounds to the nearest number of the type, ties to even: `round(x / u) · u`, where `u` is the
    /// distance of neighbours, `2^(⌊log2 |x|⌋ − mantissa)`. An inexact logarithm does no harm: it
    /// is wrong only next to powers of two, which are multiples of both distances that meet there.
    fn round_minifloat(&mut self, x: &Item, f: Minifloat, saturate: bool) -> Result<Item, Refusal> {
        let wide = if self.ty(x)?.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let x = self.cast(x, wide)?;
        let (first, last) = f.exponents();
        let units: Vec<f64> =
            (first..=last).map(|e| 2f64.powi(e as i32 - f.mantissa as i32)).collect();
        let units = self.constant(super::tensors::from_floats(wide, vec![units.len()], &units));
        let magnitude = self.unary(UnaryKind::Abs, &x)?;
        // Neither zero nor infinity has an exponent. The upper bound must not be a power of two,
        // because all larger numbers take its distance.
        let least = self.scalar(2f64.powi(first as i32), wide);
        let most = self.scalar(f.largest.into(), wide);
        let bounded = self.binary(BinaryKind::Max, &magnitude, &least)?;
        let bounded = self.binary(BinaryKind::Min, &bounded, &most)?;
        let log = self.unary(UnaryKind::Log, &bounded)?;
        let per_two = self.scalar(std::f64::consts::LOG2_E, wide);
        let log = self.binary(BinaryKind::Mul, &log, &per_two)?;
        let exponent = self.unary(UnaryKind::Floor, &log)?;
        let exponent = self.cast(&exponent, DType::I64)?;
        let mut at = exponent;
        for (kind, v) in
            [(BinaryKind::Sub, first), (BinaryKind::Max, 0), (BinaryKind::Min, last - first)]
        {
            let v = self.integer(v, DType::I64);
            at = self.binary(kind, &at, &v)?;
        }
        let unit = self.emit(Op::Gather { axis: 0 }, &[&units, &at])?;
        let steps = self.binary(BinaryKind::Div, &x, &unit)?;
        let steps = self.unary(UnaryKind::Round, &steps)?;
        let mut y = self.binary(BinaryKind::Mul, &steps, &unit)?;
        y = self.beyond(&x, y, f, saturate, wide)?;
        if f.unsigned_zero {
            // −0 + 0 = 0
            let zero = self.scalar(0.0, wide);
            y = self.binary(BinaryKind::Add, &y, &zero)?;
        }
        self.cast(&y, DType::F32)
    }

    /// Replaces numbers beyond the largest one.
    fn beyond(
        &mut self,
        x: &Item,
        y: Item,
        f: Minifloat,
        saturate: bool,
        wide: DType,
    ) -> Result<Item, Refusal> {
        let largest = self.scalar(f.largest as f64, wide);
        let lowest = self.scalar(-(f.largest as f64), wide);
        let nan = self.scalar(f64::NAN, wide);
        if saturate || f.beyond == Beyond::Largest {
            let y = self.binary(BinaryKind::Min, &y, &largest)?;
            let y = self.binary(BinaryKind::Max, &y, &lowest)?;
            // Kernels may return a bound for NaN. The float of four bits has no NaN and takes 0.
            let no_number = self.unary(UnaryKind::IsNan, x)?;
            let instead = match f.beyond {
                Beyond::Largest => self.scalar(0.0, wide),
                Beyond::Nan | Beyond::Infinity => nan,
            };
            return self.emit(Op::Where, &[&no_number, &instead, &y]);
        }
        let magnitude = self.unary(UnaryKind::Abs, &y)?;
        let too_large = self.binary(BinaryKind::Greater, &magnitude, &largest)?;
        let instead = match f.beyond {
            Beyond::Infinity => {
                let infinity = self.scalar(f64::INFINITY, wide);
                self.binary(BinaryKind::Mul, &y, &infinity)?
            }
            Beyond::Nan | Beyond::Largest => nan,
        };
        self.emit(Op::Where, &[&too_large, &instead, &y])
    }
}

/// The numbers of a constant tensor of codes or of small floats: `(x − zero) · scale`, in f32.
pub(super) fn dequantized(
    x: &Tensor,
    scale: &Tensor,
    zero: Option<&Tensor>,
    place: impl Fn(usize) -> usize,
) -> Vec<f64> {
    let (scale, zero) = (scale.to_f64_vec(), zero.map(Tensor::to_f64_vec));
    let value = |(i, v): (usize, f64)| {
        let at = place(i);
        (v - zero.as_ref().map_or(0.0, |z| z[at])) * scale[at]
    };
    x.to_f64_vec().into_iter().enumerate().map(value).collect()
}

impl std::fmt::Display for Narrow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Narrow::Int(bits) => write!(f, "i{bits}"),
            Narrow::Uint(bits) => write!(f, "u{bits}"),
            Narrow::Float(m) => {
                write!(f, "f{}e{}m{}", m.bits, m.bits - 1 - m.mantissa, m.mantissa)
            }
            Narrow::E8M0 => f.write_str("f8e8m0"),
        }
    }
}
