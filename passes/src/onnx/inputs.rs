//! Determines the types of the model's inputs from the options, symbols and the batch.

use super::error::{ImportError, OpenSize, Unsupported, shown};
use super::narrow::Narrow;
use super::{BATCH, ImportOptions, tensors};
use cqc_proto::dim::{MAX_DIM, is_symbol};
use cqc_proto::onnx::{DimensionProto, ValueInfoProto};
use cqc_proto::types::MAX_RANK;
use cqc_proto::{Bindings, DType, Dim, ValueType};
use std::collections::{BTreeMap, BTreeSet};

/// One size of an input as the model declares it.
enum Axis {
    Known(Dim),
    Named(String),
    Unnamed,
}

struct Declared<'a> {
    name: &'a str,
    dtype: DType,
    axes: Vec<Axis>,
}

/// Types of `inputs`, in order.
///
/// # Errors
/// [`ImportError::OpenSizes`] for all sizes that nothing fixes, [`ImportError::Option`] for an
/// option that does not fit, [`ImportError::Unsupported`] for inputs that are not tensors of a
/// known type.
pub(super) fn types(
    inputs: &[&ValueInfoProto],
    options: &ImportOptions,
) -> Result<Vec<ValueType>, ImportError> {
    let mut declared = inputs.iter().map(|i| declare(i, options)).collect::<Result<Vec<_>, _>>()?;
    check_option_names(&declared, options)?;
    let mut bound = bind_dims(&declared, options)?;
    for input in &mut declared {
        bind_shape(input, options, &mut bound)?;
    }
    bind_batch(&mut declared, options, &mut bound);
    let open = open_sizes(&declared, &bound);
    if !open.is_empty() {
        return Err(ImportError::OpenSizes(open));
    }
    Ok(declared.iter().map(|input| resolve(input, &bound)).collect())
}

/// The options that name inputs and sizes among `inputs`, and the other options, as on the command
/// line.
pub(super) fn known_options(
    inputs: &[ValueInfoProto],
    options: &ImportOptions,
) -> (ImportOptions, BTreeSet<String>) {
    let names: BTreeSet<&str> = inputs.iter().map(ValueInfoProto::name).collect();
    let mut symbols = BTreeSet::from([BATCH.to_string()]);
    for d in inputs.iter().filter_map(|i| i.r#type.as_ref()?.tensor_type.as_ref()?.shape.as_ref()) {
        for name in d.dim.iter().filter_map(|d| d.dim_param.clone()) {
            symbols.extend(Dim::parse(&name).iter().flat_map(Dim::symbols).map(|s| s.to_string()));
            symbols.insert(name);
        }
    }
    let (mut known, mut skipped) = (options.clone(), BTreeSet::new());
    let mut has = |is_known: bool, option: String| {
        if !is_known {
            skipped.insert(option);
        }
        is_known
    };
    known.dims.retain(|n, size| has(symbols.contains(n), format!("--dim {}={size}", shown(n))));
    known.shapes.retain(|n, _| has(names.contains(n.as_str()), format!("--shape {}", shown(n))));
    known
        .known_inputs
        .retain(|n, _| has(names.contains(n.as_str()), format!("input {}", shown(n))));
    (known, skipped)
}

/// The ONNX type of an input's elements if they are held in another type.
pub(super) fn narrow(info: &ValueInfoProto) -> Option<Narrow> {
    Narrow::of(info.r#type.as_ref()?.tensor_type.as_ref()?.elem_type())
}

fn declare<'a>(
    info: &'a ValueInfoProto,
    options: &ImportOptions,
) -> Result<Declared<'a>, ImportError> {
    let name = info.name();
    let place = || format!("input `{}`", shown(name));
    let refuse = |reason: String| {
        let node =
            Unsupported { node: shown(name), op: "input".into(), domain: "ai.onnx".into(), reason };
        Err(ImportError::Unsupported(vec![node]))
    };
    let Some(ty) = &info.r#type else {
        return Err(ImportError::malformed(place(), "it has no type"));
    };
    let Some(tensor) = &ty.tensor_type else { return refuse("it is no dense tensor".into()) };
    let dtype = match tensors::element(tensor.elem_type()) {
        Ok((dtype, _)) => dtype,
        Err(_) if tensor.elem_type() == 0 => {
            return Err(ImportError::malformed(place(), "it has no element type"));
        }
        Err(name) => return refuse(format!("its element type {name} is not supported")),
    };
    let axes = match (&tensor.shape, options.shapes.get(name)) {
        (Some(shape), _) => shape.dim.iter().map(axis).collect(),
        (None, Some(given)) => given.iter().map(|_| Axis::Unnamed).collect(),
        (None, None) => {
            return Err(ImportError::Option {
                option: format!("--shape {}=…", shown(name)),
                reason: "needed: the model does not say how many axes this input has".into(),
            });
        }
    };
    let axes: Vec<Axis> = axes;
    if axes.len() > MAX_RANK {
        return Err(ImportError::malformed(
            place(),
            format!("it has {} axes, at most {MAX_RANK} are supported", axes.len()),
        ));
    }
    if let Some(Axis::Known(d)) =
        axes.iter().find(|a| matches!(a, Axis::Known(d) if d.as_const() > Some(MAX_DIM)))
    {
        return Err(ImportError::malformed(place(), format!("its size {d} is too large")));
    }
    Ok(Declared { name, dtype, axes })
}

fn axis(d: &DimensionProto) -> Axis {
    match (d.dim_value, &d.dim_param) {
        (Some(v), _) if v >= 0 => Axis::Known(Dim::constant(v)),
        (_, Some(name)) if !name.is_empty() => Axis::Named(name.clone()),
        _ => Axis::Unnamed,
    }
}

fn check_option_names(declared: &[Declared], options: &ImportOptions) -> Result<(), ImportError> {
    let known: Vec<&str> = declared.iter().map(|d| d.name).collect();
    let unknown = options
        .shapes
        .keys()
        .chain(options.known_inputs.keys())
        .find(|k| !known.contains(&k.as_str()));
    match unknown {
        None => Ok(()),
        Some(name) => Err(ImportError::Option {
            option: format!("input `{}`", shown(name)),
            reason: format!("the model has no such input; its inputs are {}", known.join(", ")),
        }),
    }
}

fn bind_dims(
    declared: &[Declared],
    options: &ImportOptions,
) -> Result<BTreeMap<String, Dim>, ImportError> {
    let symbols: Vec<&str> = declared.iter().flat_map(|d| &d.axes).filter_map(Axis::name).collect();
    let mut bound = BTreeMap::new();
    for (name, &size) in &options.dims {
        let bad = |reason: String| {
            Err(ImportError::Option { option: format!("--dim {}={size}", shown(name)), reason })
        };
        if !(1..=MAX_DIM).contains(&size) {
            return bad("a size lies between 1 and 2^40".into());
        }
        let in_expression =
            |s: &&&str| Dim::parse(s).is_some_and(|d| d.symbols().any(|x| **x == **name));
        if name != BATCH
            && !symbols.contains(&name.as_str())
            && symbols.iter().find(in_expression).is_none()
        {
            return bad(format!(
                "no input has a size of that name; there are: {}",
                symbols.join(", ")
            ));
        }
        bound.insert(name.clone(), Dim::constant(size));
    }
    Ok(bound)
}

impl Axis {
    fn name(&self) -> Option<&str> {
        match self {
            Axis::Named(name) => Some(name),
            _ => None,
        }
    }
}

fn bind_shape(
    input: &mut Declared,
    options: &ImportOptions,
    bound: &mut BTreeMap<String, Dim>,
) -> Result<(), ImportError> {
    let Some(given) = options.shapes.get(input.name) else { return Ok(()) };
    let text = given.iter().map(Dim::to_string).collect::<Vec<_>>().join("x");
    let bad = |reason: String| {
        Err(ImportError::Option { option: format!("--shape {}={text}", shown(input.name)), reason })
    };
    if given.len() != input.axes.len() {
        return bad(format!("the model's input has {} axes", input.axes.len()));
    }
    if given
        .iter()
        .any(|d| d.as_const().is_some_and(|v| v < 0) || d.symbols().any(|s| &**s != BATCH))
    {
        return bad(format!("sizes are numbers ≥ 0, or {BATCH}"));
    }
    for (i, (axis, d)) in input.axes.iter_mut().zip(given).enumerate() {
        match axis {
            Axis::Known(known) if known != d => {
                return bad(format!("axis {i} has the size {known} in the model"));
            }
            Axis::Known(_) => {}
            Axis::Unnamed => *axis = Axis::Known(d.clone()),
            Axis::Named(name) => match bound.get(name.as_str()) {
                Some(other) if other != d => {
                    return bad(format!("`{name}` (axis {i}) is also {other}"));
                }
                _ => {
                    bound.insert(name.clone(), d.clone());
                    *axis = Axis::Known(d.clone());
                }
            },
        }
    }
    Ok(())
}

/// Makes every open size of axis 0 the batch: the one size that the options give to such an axis,
/// else [`BATCH`]. A size that is also another axis of an input is not the batch, unless its name
/// says so.
fn bind_batch(
    declared: &mut [Declared],
    options: &ImportOptions,
    bound: &mut BTreeMap<String, Dim>,
) {
    // a size of the model may have the batch's name
    let elsewhere = only_elsewhere(declared, BATCH);
    let fixed = options.dims.get(BATCH).filter(|_| !elsewhere).map(|&v| Dim::constant(v));
    let sizes: BTreeSet<String> = declared
        .iter()
        .filter_map(|d| d.axes.first()?.name())
        .filter(|name| is_elsewhere(declared, name) && !says_batch(name))
        .map(str::to_string)
        .collect();
    let of_batch = |d: &Declared| {
        let name = d.axes.first()?.name().filter(|&name| !sizes.contains(name))?;
        bound.get(name).cloned()
    };
    let mut given: Vec<Dim> = declared.iter().filter_map(of_batch).collect();
    given.extend(declared.iter().filter_map(|d| options.shapes.get(d.name)?.first()).cloned());
    given.sort();
    given.dedup();
    let only = match given.as_slice() {
        [one] => Some(one.clone()),
        _ => None,
    };
    let batch = fixed.or(only).unwrap_or_else(|| Dim::symbol(BATCH));
    for first in declared.iter_mut().filter_map(|d| d.axes.first_mut()) {
        match first {
            Axis::Unnamed => *first = Axis::Known(batch.clone()),
            Axis::Named(name) if sizes.contains(name) => {}
            Axis::Named(name) if is_symbol(name) || Dim::parse(name).is_none() => {
                bound.entry(name.clone()).or_insert_with(|| batch.clone());
            }
            _ => {}
        }
    }
}

/// Whether an input has a size of that name, or one computed from it, on another axis than axis 0.
fn is_elsewhere(declared: &[Declared], name: &str) -> bool {
    let reads = |axis: &Axis| {
        axis.name().is_some_and(|text| {
            let parsed = || Dim::parse(text);
            text == name || parsed().is_some_and(|d| d.symbols().any(|s| **s == *name))
        })
    };
    declared.iter().any(|d| d.axes.iter().skip(1).any(reads))
}

/// Whether inputs have sizes of that name, none of which is on axis 0.
fn only_elsewhere(declared: &[Declared], name: &str) -> bool {
    let first = |d: &Declared| d.axes.first().is_some_and(|axis| axis.name() == Some(name));
    is_elsewhere(declared, name) && !declared.iter().any(first)
}

/// Whether the name of a size is one that exporters give to the batch.
fn says_batch(name: &str) -> bool {
    name == BATCH || name.to_ascii_lowercase().contains("batch")
}

fn resolve(input: &Declared, bound: &BTreeMap<String, Dim>) -> ValueType {
    let size = |axis: &Axis| axis.size(bound).expect("open sizes have been refused");
    ValueType::new(input.dtype, input.axes.iter().map(size).collect::<Vec<_>>())
}

impl Axis {
    fn size(&self, bound: &BTreeMap<String, Dim>) -> Option<Dim> {
        match self {
            Axis::Known(d) => Some(d.clone()),
            Axis::Named(name) => bound.get(name).cloned().or_else(|| expression(name, bound)),
            Axis::Unnamed => None,
        }
    }

    /// The names that options would have to fix for a size that is open.
    fn unbound(&self, bound: &BTreeMap<String, Dim>) -> Vec<String> {
        let Axis::Named(name) = self else { return vec![] };
        match Dim::parse(name) {
            Some(parsed) => {
                let symbols = parsed.symbols().map(|s| s.to_string());
                symbols.filter(|s| !bound.contains_key(s)).collect()
            }
            None => vec![name.clone()],
        }
    }
}

/// Everything that options have to fix: a shape for an input with sizes that have no name, and one
/// number for every other name.
fn open_sizes(declared: &[Declared], bound: &BTreeMap<String, Dim>) -> Vec<OpenSize> {
    let open = |input: &Declared| -> Vec<usize> {
        (0..input.axes.len()).filter(|&i| input.axes[i].size(bound).is_none()).collect()
    };
    let spelled = |axis: &Axis| match axis {
        Axis::Known(d) => d.to_string(),
        Axis::Named(name) => shown(name),
        Axis::Unnamed => "?".into(),
    };
    let size = |input: &Declared, axes: Vec<usize>, symbol: Option<&str>| OpenSize {
        input: shown(input.name),
        shape: input.axes.iter().map(spelled).collect(),
        axes,
        symbol: symbol.map(shown),
    };
    let by_shape =
        |input: &Declared| open(input).iter().any(|&i| matches!(input.axes[i], Axis::Unnamed));
    let mut found = Vec::new();
    let mut fixed: Vec<String> = Vec::new();
    for input in declared.iter().filter(|input| by_shape(input)) {
        let axes = open(input);
        // the shape fixes the names of that input, too
        fixed.extend(axes.iter().flat_map(|&i| input.axes[i].unbound(bound)));
        found.push(size(input, axes, None));
    }
    for input in declared.iter().filter(|input| !by_shape(input)) {
        for name in open(input).iter().flat_map(|&i| input.axes[i].unbound(bound)) {
            if !fixed.contains(&name) {
                let has = |&i: &usize| input.axes[i].unbound(bound).contains(&name);
                let axes = open(input).into_iter().filter(has).collect();
                found.push(size(input, axes, Some(&name)));
                fixed.push(name);
            }
        }
    }
    found
}

/// The value of an expression such as `2*batch`, which dynamo exports contain.
fn expression(text: &str, bound: &BTreeMap<String, Dim>) -> Option<Dim> {
    let parsed = Dim::parse(text)?;
    let mut sum = parsed.bind(&Bindings::from_iter(parsed.symbols().map(|s| (s.clone(), 0))))?;
    for symbol in parsed.symbols() {
        let value = bound.get(&**symbol)?;
        sum = sum.add(&value.mul(&Dim::constant(parsed.coefficient(symbol)))?)?;
    }
    Some(sum)
}
