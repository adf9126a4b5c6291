//! A node while it is being imported: its operands and attributes.

use super::error::{Refusal, malformed, unsupported};
use super::item::Item;
use bytes::Bytes;
use cqc_proto::onnx::{AttributeProto, GraphProto, attribute_type};

/// A node with its operands resolved, and with the attributes that its function call gives filled
/// in.
pub(super) struct Call<'a> {
    /// Version of the operator set of the node's domain.
    pub opset: i64,
    pub inputs: Vec<Option<Item>>,
    /// Names of the results; empty for a result that is not wanted.
    pub outputs: &'a [String],
    pub attributes: Vec<(&'a str, &'a AttributeProto)>,
}

impl<'a> Call<'a> {
    /// Operand `i`, which the standard requires.
    pub fn input(&self, i: usize, what: &str) -> Result<&Item, Refusal> {
        match self.optional(i) {
            Some(item) => Ok(item),
            None => malformed(format!("operand {i} ({what}) is missing")),
        }
    }

    /// Operand `i`; `None` if it is absent.
    pub fn optional(&self, i: usize) -> Option<&Item> {
        self.inputs.get(i).and_then(Option::as_ref)
    }

    /// All operands, none of which may be absent.
    pub fn all_inputs(&self) -> Result<Vec<&Item>, Refusal> {
        if self.inputs.is_empty() {
            return malformed("it has no operands");
        }
        (0..self.inputs.len()).map(|i| self.input(i, "operand")).collect()
    }

    /// Whether result `i` has a name.
    pub fn wants(&self, i: usize) -> bool {
        self.outputs.get(i).is_some_and(|n| !n.is_empty())
    }

    pub fn attribute(&self, name: &str) -> Option<&'a AttributeProto> {
        self.attributes.iter().find(|(n, _)| *n == name).map(|(_, a)| *a)
    }

    fn typed<T>(
        &self,
        name: &str,
        kind: i32,
        what: &str,
        get: impl Fn(&'a AttributeProto) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let Some(a) = self.attribute(name) else { return Ok(None) };
        // files older than IR version 2 have no type
        let fits =
            matches!(a.r#type, None | Some(attribute_type::UNDEFINED)) || a.r#type == Some(kind);
        match get(a).filter(|_| fits) {
            Some(v) => Ok(Some(v)),
            None => malformed(format!("attribute `{name}` is not {what}")),
        }
    }

    pub fn opt_int(&self, name: &str) -> Result<Option<i64>, Refusal> {
        // the default of the standard: a scalar field that is absent holds 0
        self.typed(name, attribute_type::INT, "an integer", |a| Some(a.i.unwrap_or(0)))
    }

    pub fn int(&self, name: &str, default: i64) -> Result<i64, Refusal> {
        Ok(self.opt_int(name)?.unwrap_or(default))
    }

    pub fn required_int(&self, name: &str) -> Result<i64, Refusal> {
        match self.opt_int(name)? {
            Some(v) => Ok(v),
            None => malformed(format!("attribute `{name}` is missing")),
        }
    }

    pub fn flag(&self, name: &str, default: bool) -> Result<bool, Refusal> {
        Ok(self.int(name, default as i64)? != 0)
    }

    pub fn opt_float(&self, name: &str) -> Result<Option<f32>, Refusal> {
        self.typed(name, attribute_type::FLOAT, "a number", |a| Some(a.f.unwrap_or(0.0)))
    }

    pub fn float(&self, name: &str, default: f32) -> Result<f32, Refusal> {
        let v = self.opt_float(name)?.unwrap_or(default);
        if v.is_finite() { Ok(v) } else { malformed(format!("attribute `{name}` is {v}")) }
    }

    pub fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, Refusal> {
        self.typed(name, attribute_type::INTS, "a list of integers", |a| Some(a.ints.clone()))
    }

    pub fn floats(&self, name: &str) -> Result<Option<&'a [f32]>, Refusal> {
        self.typed(name, attribute_type::FLOATS, "a list of numbers", |a| Some(a.floats.as_slice()))
    }

    pub fn string(&self, name: &str, default: &'static str) -> Result<&'a str, Refusal> {
        let Some(bytes) =
            self.typed::<&'a Bytes>(name, attribute_type::STRING, "a string", |a| a.s.as_ref())?
        else {
            return Ok(default);
        };
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(_) => malformed(format!("attribute `{name}` is no text")),
        }
    }

    pub fn graph(&self, name: &str) -> Result<&'a GraphProto, Refusal> {
        match self.typed(name, attribute_type::GRAPH, "a graph", |a| a.g.as_deref())? {
            Some(graph) => Ok(graph),
            None => malformed(format!("attribute `{name}` is missing")),
        }
    }

    /// An axis attribute, counted from the front. Negative values count from the end.
    pub fn axis(&self, name: &str, default: i64, rank: usize) -> Result<usize, Refusal> {
        axis(self.int(name, default)?, rank)
    }

    /// Refuses the value of a string attribute.
    pub fn unknown<T>(&self, name: &str, value: &str) -> Result<T, Refusal> {
        unsupported(format!("`{name}` = `{}` is not supported", super::error::shown(value)))
    }
}

/// Counts an axis from the front.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, Refusal> {
    let from_front = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    match from_front {
        Some(a) if (0..rank as i64).contains(&a) => Ok(a as usize),
        _ => malformed(format!("axis {axis} does not exist in {rank} axes")),
    }
}

/// Counts axes from the front, sorts them, and refuses repetition.
pub(super) fn axes(list: &[i64], rank: usize) -> Result<Vec<usize>, Refusal> {
    let mut found = list.iter().map(|&a| axis(a, rank)).collect::<Result<Vec<_>, _>>()?;
    found.sort_unstable();
    if found.windows(2).any(|w| w[0] == w[1]) {
        return malformed(format!("axes {list:?} name one axis twice"));
    }
    Ok(found)
}
