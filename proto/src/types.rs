//! Tensor types, which consist of an element type and a shape.

use crate::dim::{Bindings, Dim, MAX_DIM};
use crate::dtype::DType;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// The sizes of the axes, the outermost first.
pub type Shape = Vec<Dim>;

/// The maximum number of axes of a tensor.
pub const MAX_RANK: usize = 8;

/// Element type and shape of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ValueType {
    /// Type of the elements.
    pub dtype: DType,
    /// The sizes of the axes, the outermost first. A scalar has none. Deserialization refuses more
    /// than [`MAX_RANK`].
    #[serde(deserialize_with = "read_shape")]
    pub shape: Shape,
}

/// Reads a shape. One with too many axes is refused at the first axis beyond the limit.
fn read_shape<'de, D: Deserializer<'de>>(d: D) -> Result<Shape, D::Error> {
    struct Sizes;
    impl<'de> Visitor<'de> for Sizes {
        type Value = Shape;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a shape of at most {MAX_RANK} axes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sizes: A) -> Result<Shape, A::Error> {
            let mut shape = Shape::new();
            while let Some(size) = sizes.next_element()? {
                if shape.len() == MAX_RANK {
                    return Err(A::Error::invalid_length(MAX_RANK + 1, &self));
                }
                shape.push(size);
            }
            Ok(shape)
        }
    }
    d.deserialize_seq(Sizes)
}

impl ValueType {
    /// A type with constant and symbolic sizes.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> ValueType {
        ValueType { dtype, shape: shape.into() }
    }

    /// A type whose sizes are all known.
    pub fn fixed(dtype: DType, shape: &[usize]) -> ValueType {
        ValueType { dtype, shape: shape.iter().map(|&d| Dim::constant(d as i64)).collect() }
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The sizes, if none is symbolic.
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        self.shape.iter().map(|d| d.as_const().and_then(|v| usize::try_from(v).ok())).collect()
    }

    /// The sizes for given symbols. `None` if a symbol is missing, a size is negative, or there are
    /// more than 2^40 elements.
    pub fn resolve(&self, bindings: &Bindings) -> Option<Vec<usize>> {
        let shape: Vec<usize> = self
            .shape
            .iter()
            .map(|d| d.eval(bindings).and_then(|v| usize::try_from(v).ok()))
            .collect::<Option<_>>()?;
        element_count(&shape).map(|_| shape)
    }

    /// The number of elements. `None` if it is not affine in the symbols or exceeds 2^40.
    pub fn elements(&self) -> Option<Dim> {
        self.shape.iter().try_fold(Dim::constant(1), |n, d| n.mul(d))
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i == 0 { "" } else { "," })?;
        }
        f.write_str("]")
    }
}

/// The product of the sizes, which is 1 for a scalar. `None` if it exceeds 2^40.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    // a size of 0 makes the product 0, whatever the other sizes are
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d).filter(|&n| n as u64 <= MAX_DIM as u64))
}
