//! Counts the quantized parts of a model that is quantized already, for a warning.

use std::collections::BTreeMap;

/// The numbers of quantized parts of a model.
#[derive(Clone, Debug, Default)]
pub(super) struct Quantized {
    /// Constants that were dequantized, by type.
    constants: BTreeMap<String, usize>,
    /// Values that are rounded at run time, by type.
    rounded: BTreeMap<String, usize>,
    /// Operators on codes, by name.
    operators: BTreeMap<String, usize>,
}

impl Quantized {
    /// Counts a constant of this type that was dequantized.
    pub fn constant(&mut self, element: impl Into<String>) {
        *self.constants.entry(element.into()).or_insert(0) += 1;
    }

    /// Counts a value that is rounded to this type.
    pub fn rounded(&mut self, element: impl Into<String>) {
        *self.rounded.entry(element.into()).or_insert(0) += 1;
    }

    /// Counts an operator that computes with codes.
    pub fn operator(&mut self, name: &str) {
        *self.operators.entry(name.to_string()).or_insert(0) += 1;
    }

    /// The warning for the user; `None` for a model of floats.
    pub fn warning(&self) -> Option<String> {
        let listed = |counts: &BTreeMap<String, usize>| {
            counts.iter().map(|(name, n)| format!("{n} {name}")).collect::<Vec<_>>().join(", ")
        };
        let mut parts = Vec::new();
        if !self.constants.is_empty() {
            parts.push(format!(
                "its quantized constants ({}) are taken back to float",
                listed(&self.constants)
            ));
        }
        if !self.rounded.is_empty() {
            parts.push(format!(
                "its roundings of values ({}) are computed as the model says",
                listed(&self.rounded)
            ));
        }
        if !self.operators.is_empty() {
            parts.push(format!(
                "its operators on integers ({}) are computed in float, rounding where they round",
                listed(&self.operators)
            ));
        }
        (!parts.is_empty()).then(|| {
            format!(
                "the model is already quantized: {}; a layer that is quantized on compiling is \
                 rounded a second time, so prefer to compile the float model that this one was \
                 made from, or compile this one without quantization",
                parts.join("; ")
            )
        })
    }
}
