//! Element types of tensors.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The type of a tensor's elements, as in ONNX `TensorProto.DataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names say it
pub enum DType {
    F32,
    F64,
    F16,
    BF16,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    /// One byte per element, with the value 0 or 1.
    Bool,
}

impl DType {
    /// All types, in the order of their declaration.
    pub const ALL: [DType; 13] = [
        DType::F32,
        DType::F64,
        DType::F16,
        DType::BF16,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::Bool,
    ];

    /// The size of one element in bytes.
    pub const fn size(self) -> usize {
        match self {
            DType::I8 | DType::U8 | DType::Bool => 1,
            DType::F16 | DType::BF16 | DType::I16 | DType::U16 => 2,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F64 | DType::I64 | DType::U64 => 8,
        }
    }

    /// Whether the type is F16, BF16, F32 or F64.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
    }

    /// Whether the type is a signed or unsigned integer. `Bool` is not.
    pub const fn is_integer(self) -> bool {
        !self.is_float() && !matches!(self, DType::Bool)
    }

    /// Whether the type can hold the number. Integer types hold integers in their range; float
    /// types hold every number, rounded.
    pub fn holds(self, number: f64) -> bool {
        let bits = 8 * self.size() as i32;
        let (low, high) = match self {
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 => return true,
            DType::I8 | DType::I16 | DType::I32 | DType::I64 => {
                (-2f64.powi(bits - 1), 2f64.powi(bits - 1))
            }
            DType::U8 | DType::U16 | DType::U32 | DType::U64 => (0.0, 2f64.powi(bits)),
            DType::Bool => (0.0, 2.0),
        };
        number.fract() == 0.0 && (low..high).contains(&number)
    }

    /// The name in text form, such as `f32`, `i64` or `bool`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I8 => "i8",
            DType::I16 => "i16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::Bool => "bool",
        }
    }

    /// The type with this name, or `None` if there is none.
    pub fn parse(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::DType;

    #[test]
    fn integers_hold_whole_numbers_of_their_range() {
        assert!(DType::F16.holds(-1.25) && DType::F32.holds(1e9));
        assert!([999.0, -1.0, 0.0].into_iter().all(|t| DType::I64.holds(t)));
        assert!(
            ![0.5, -0.25, f64::NAN, f64::INFINITY, 1e19].into_iter().any(|t| DType::I64.holds(t))
        );
        assert!(DType::U8.holds(255.0) && !DType::U8.holds(256.0) && !DType::U8.holds(-1.0));
        assert!(DType::I8.holds(-128.0) && !DType::I8.holds(128.0));
    }
}
