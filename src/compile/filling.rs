//! The conditions that the loop fills by itself, and the guidance scale that belongs to them.

use super::CompileError;
use crate::model::{FillError, Network, fills};
use crate::recipe::{Contradiction, Recipe};
use cqc_proto::Tensor;
use cqc_proto::cq::Fill;
use cqc_runtime::denoise::fill_value;
use std::collections::BTreeMap;

/// The conditions that the loop fills by itself.
pub(super) struct Filling {
    /// The kind of value, by input.
    pub fills: BTreeMap<String, Fill>,
    /// The guidance scale: an input of the network, or the factor by which two predictions are
    /// mixed.
    pub scale: f32,
    /// Values of the filled inputs during calibration, where the recipe does not give them.
    pub values: BTreeMap<String, Tensor>,
}

/// The filled conditions, and the recipe. Where the network takes the guidance scale as an input,
/// the recipe gets a scale of 1, so that no predictions are mixed.
pub(super) fn filling(
    recipe: &Recipe,
    network: &Network,
) -> Result<(Filling, Recipe), CompileError> {
    let conditions = network.inputs.iter();
    let null =
        [("null-label", recipe.null_label.is_some()), ("null-cond", !recipe.null_cond.is_empty())];
    let halves = null.iter().any(|(_, given)| *given);
    let fills = fills(&network.inputs, &recipe.fill, halves).map_err(|wrong| {
        let one = |e: &FillError| {
            let (FillError::NoInput { name, .. } | FillError::Type { name, .. }) = e;
            let value = recipe.fill.get(name).map(|spec| format!("{name}={spec}"));
            Contradiction::new("fill", value, e.to_string())
        };
        CompileError::Recipe(wrong.iter().map(one).collect())
    })?;
    let guidance = fills.iter().find(|(_, fill)| fill.is_guidance());
    let mut recipe = recipe.clone();
    let mut scale = recipe.guidance();
    if let Some((name, fill)) = guidance {
        let given = null.into_iter().chain([
            ("guidance-rescale", recipe.guidance_rescale.is_some_and(|phi| phi > 0.0)),
            ("guidance-interval", recipe.guidance_interval.is_some()),
        ]);
        let reason = format!(
            "the network takes the scale of guidance as input `{name}`, and no unconditional half is computed; \
             --fill {name}=none mixes halves"
        );
        let wrong = given.filter(|(_, given)| *given);
        let wrong: Vec<Contradiction> =
            wrong.map(|(option, _)| Contradiction::new(option, None, reason.clone())).collect();
        if !wrong.is_empty() {
            return Err(CompileError::Recipe(wrong));
        }
        // the defaults of diffusers' pipelines
        let usual = if *fill == Fill::Guidance { 3.5 } else { 8.5 };
        scale = recipe.guidance.unwrap_or(usual);
        recipe.guidance = Some(1.0);
    }
    let mut values = BTreeMap::new();
    for input in conditions.filter(|i| !recipe.cond.contains_key(&i.name)) {
        if let Some(fill) = fills.get(&input.name) {
            let width = input.ty.shape.last().and_then(|d| d.as_const());
            let value = fill_value(*fill, scale, recipe.steps(), width)?;
            values.insert(input.name.clone(), value);
        }
    }
    Ok((Filling { fills, scale, values }, recipe))
}
