//! The knowledge about an ONNX value during import.

use super::narrow::Narrow;
use crate::ir::ValueId;
use cqc_proto::{DType, Dim, Tensor, ValueType};
use std::cell::Cell;
use std::rc::Rc;

/// A value of the model.
#[derive(Clone, Debug)]
pub(super) enum Item {
    /// It is known only at run time.
    Value(ValueId),
    /// It is known at import.
    Const(Rc<Constant>),
    /// It is made of sizes, at least one of which is symbolic.
    Sizes(Sizes),
    /// It is a list of values: an ONNX sequence whose length is known.
    List(Vec<Item>),
    /// It is an optional input that a function's call leaves out.
    Omitted,
    /// Its producer was refused and reported.
    Poison,
    /// It is an output that cqc does not compute. Reading it is refused for this reason.
    Absent(Rc<str>),
}

/// A constant, which enters the graph when a node first reads it.
#[derive(Debug)]
pub(super) struct Constant {
    pub name: String,
    pub tensor: Tensor,
    /// The ONNX type if the tensor's own type can only hold its numbers.
    pub narrow: Option<Narrow>,
    pub id: Cell<Option<ValueId>>,
}

/// A small tensor of numbers that may depend on the batch. Floats occur with whole values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sizes {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub elements: Vec<Dim>,
}

impl Item {
    pub fn constant(name: impl Into<String>, tensor: Tensor) -> Item {
        Item::narrow_constant(name, tensor, None)
    }

    pub fn narrow_constant(
        name: impl Into<String>,
        tensor: Tensor,
        narrow: Option<Narrow>,
    ) -> Item {
        Item::Const(Rc::new(Constant { name: name.into(), tensor, narrow, id: Cell::new(None) }))
    }

    /// The tensor if the value is known.
    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Item::Const(c) => Some(&c.tensor),
            _ => None,
        }
    }
}

impl Sizes {
    /// A shape as the vector that the ONNX operator `Shape` gives.
    pub fn vector(elements: Vec<Dim>) -> Sizes {
        Sizes { dtype: DType::I64, shape: vec![elements.len()], elements }
    }

    /// The numbers of a small constant if they are whole.
    pub fn of_tensor(t: &Tensor) -> Option<Sizes> {
        if t.len() > super::limits::MAX_SIZES {
            return None;
        }
        let elements = match t.dtype().is_float() {
            true => t.to_f64_vec().into_iter().map(whole).collect::<Option<Vec<_>>>()?,
            false => t.to_i64_vec().into_iter().map(within).collect::<Option<Vec<_>>>()?,
        };
        Some(Sizes { dtype: t.dtype(), shape: t.shape().to_vec(), elements })
    }

    /// The tensor if no element is symbolic.
    pub fn to_tensor(&self) -> Option<Tensor> {
        let values: Vec<i64> = self.elements.iter().map(Dim::as_const).collect::<Option<_>>()?;
        Some(super::tensors::from_integers(self.dtype, self.shape.clone(), &values))
    }

    pub fn value_type(&self) -> ValueType {
        ValueType::fixed(self.dtype, &self.shape)
    }
}

fn whole(v: f64) -> Option<Dim> {
    (v.fract() == 0.0 && v.abs() <= cqc_proto::dim::MAX_DIM as f64).then(|| Dim::constant(v as i64))
}

fn within(v: i64) -> Option<Dim> {
    // Slice ends at "infinity" are constants and never sizes; they stay tensors.
    (v.unsigned_abs() <= cqc_proto::dim::MAX_DIM as u64).then(|| Dim::constant(v))
}
