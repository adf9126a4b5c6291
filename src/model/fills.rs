//! Decides which conditions the loop fills by itself: by their names, or as the caller says.

use super::roles::plain;
use crate::recipe::FillSpec;
use cqc_proto::cq::Fill;
use cqc_proto::plan::PlanInput;
use std::collections::BTreeMap;

/// Names of conditions that the loop fills, in the order of preference.
#[rustfmt::skip]
const NAMES: &[(Fill, &[&str])] = &[
    (Fill::Guidance, &[
        "guidance", "guidance_scale", "distilled_guidance", "embedded_guidance", "guidance_in",
        "cfg_scale", "cfg_strength", "cfg",
    ]),
    (Fill::GuidanceEmbedding, &[
        "timestep_cond", "guidance_embedding", "guidance_emb", "guidance_scale_embedding",
        "w_embedding", "w_emb",
    ]),
    (Fill::Steps, &[
        "total_step", "total_steps", "num_steps", "num_step", "n_steps", "step_count", "num_inference_steps",
        "number_of_steps", "nfe", "nfe_step", "nfe_steps",
    ]),
];

/// Whether the loop fills an input of that plain name, which is therefore no time step.
pub(super) fn is_filled_by_name(name: &str) -> bool {
    NAMES.iter().any(|(_, names)| names.contains(&name))
}

/// Why an input cannot be filled as the caller says.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FillError {
    /// The model has no such condition.
    #[error("the model has no conditioning input `{name}`; it has {}", listed(known))]
    NoInput {
        /// The name that was given.
        name: String,
        /// Names of the model's conditions.
        known: Vec<String>,
    },
    /// The input has a type that cannot hold the value.
    #[error("`{name}` is {found}, expected {}", fill.expects())]
    Type {
        /// Name of the input.
        name: String,
        /// Its type.
        found: String,
        /// The kind of value that was to fill it.
        fill: Fill,
    },
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// The conditions that the loop fills, and the kind of value of each.
///
/// `told` decides for the inputs that it names; names decide for the others. Whole names come
/// first, then the end of a name, if only one input ends so. With `halves`, guidance mixes two
/// predictions by its scale, so inputs that could take the scale are filled only if `told` names
/// them.
///
/// # Errors
/// Every entry of `told` that the model does not allow.
pub fn fills(
    inputs: &[PlanInput],
    told: &BTreeMap<String, FillSpec>,
    halves: bool,
) -> Result<BTreeMap<String, Fill>, Vec<FillError>> {
    let mut found = BTreeMap::new();
    let mut wrong = Vec::new();
    for (name, spec) in told {
        let input = inputs.iter().find(|i| i.name == *name && i.role.is_condition());
        match (input, spec.fill()) {
            (None, _) => {
                let conditions = inputs.iter().filter(|i| i.role.is_condition());
                let known = conditions.map(|i| i.name.clone()).collect();
                wrong.push(FillError::NoInput { name: name.clone(), known });
            }
            (Some(_), None) => {}
            (Some(input), Some(fill)) if fill.fits(input) => {
                found.insert(name.clone(), fill);
            }
            (Some(input), Some(fill)) => {
                let (name, found) = (name.clone(), input.ty.to_string());
                wrong.push(FillError::Type { name, found, fill });
            }
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    for (fill, names) in NAMES {
        let is_told =
            found.values().any(|f: &Fill| f == fill || (f.is_guidance() && fill.is_guidance()));
        if is_told || (halves && fill.is_guidance()) {
            continue;
        }
        let open = || inputs.iter().filter(|i| fill.fits(i) && !told.contains_key(&i.name));
        let whole = names.iter().find_map(|name| open().find(|i| plain(&i.name) == **name));
        let ends = |i: &&PlanInput| {
            let name = plain(&i.name);
            let before = |n: &&str| name.strip_suffix(*n).is_some_and(|b| b.ends_with(['_', '.']));
            names.iter().any(before)
        };
        let mut ending = open().filter(ends);
        let only = ending.next().filter(|_| ending.next().is_none());
        if let Some(input) = whole.or(only) {
            found.insert(input.name.clone(), *fill);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cqc_proto::plan::InputRole;
    use cqc_proto::{DType, Dim, ValueType};

    fn input(name: &str, dtype: DType, shape: &[&str]) -> PlanInput {
        let shape: Vec<Dim> = shape.iter().map(|d| Dim::parse(d).unwrap()).collect();
        let role = InputRole::Condition;
        PlanInput { name: name.into(), ty: ValueType::new(dtype, shape), role }
    }

    fn found(inputs: &[PlanInput], told: &[(&str, FillSpec)], halves: bool) -> Vec<String> {
        let told = told.iter().map(|(name, spec)| (name.to_string(), *spec)).collect();
        match fills(inputs, &told, halves) {
            Ok(fills) => fills.iter().map(|(name, fill)| format!("{name}={fill}")).collect(),
            Err(wrong) => wrong.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn names_say_what_is_filled_where_the_type_fits() {
        use DType::{F32, I64};
        let flux = [input("guidance", F32, &["N"]), input("txt", F32, &["N", "8", "16"])];
        assert_eq!(found(&flux, &[], false), ["guidance=guidance"]);
        assert!(found(&flux, &[], true).is_empty(), "halves are mixed by it");
        assert!(found(&flux, &[("guidance", FillSpec::None)], false).is_empty());
        let lcm = [input("timestep_cond", F32, &["N", "256"])];
        assert_eq!(found(&lcm, &[], false), ["timestep_cond=guidance-embedding"]);
        let tts = [input("style", F32, &["N", "4"]), input("Total_Step", F32, &["N"])];
        assert_eq!(found(&tts, &[], true), ["Total_Step=steps"]);
        assert_eq!(found(&[input("n_steps", I64, &[])], &[], false), ["n_steps=steps"]);
        assert_eq!(found(&[input("model.total_steps", I64, &["N", "1"])], &[], false).len(), 1);
        for other in [input("guidance", I64, &["N"]), input("guidance", F32, &["N", "8"])] {
            assert!(found(&[other], &[], false).is_empty());
        }
        // of two inputs whose names end so, none is taken
        let two = [input("a_num_steps", F32, &["N"]), input("b_num_steps", F32, &["N"])];
        assert!(found(&two, &[], false).is_empty());
        assert_eq!(found(&two, &[("b_num_steps", FillSpec::Steps)], false), ["b_num_steps=steps"]);
    }

    #[test]
    fn everything_that_cannot_be_filled_is_said() {
        let inputs = [input("style", DType::F32, &["N", "4"])];
        let said =
            found(&inputs, &[("style", FillSpec::Steps), ("styl", FillSpec::Guidance)], false);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("no conditioning input `styl`; it has style"), "{said:?}");
        assert!(said[1].contains("`style` is") && said[1].contains("a number"), "{said:?}");
    }
}
