//! Imports `If`, `Loop` and `Scan`.
//!
//! The graph has no control flow. A known condition chooses a branch, and a known number of
//! repetitions unrolls a loop. Operators have no side effects, so a condition that is known only at
//! run time may be applied afterwards: both branches are computed and one result is picked, and
//! repetitions after the end of a loop leave its values as they are. A condition that depends on
//! the time step alone then becomes a table like every other such value.

use super::call::{Call, axis};
use super::cx::{Cx, Done};
use super::error::{ImportError, Refusal, malformed, shown, unsupported};
use super::item::Item;
use super::limits::MAX_DEPTH;
use super::order::place;
use super::tensors;
use super::walk::{Scope, Walker, version};
use cqc_proto::onnx::{GraphProto, NodeProto, ValueInfoProto};
use cqc_proto::op::BinaryKind;
use cqc_proto::types::element_count;
use cqc_proto::{DType, Op, Tensor};

/// The condition of an `If` or a `Loop`.
enum Condition {
    Known(bool),
    /// A scalar that is known only at run time.
    Open(Item),
}

fn condition(cx: &mut Cx, item: &Item, what: &str) -> Result<Condition, Refusal> {
    let ty = cx.ty(item)?;
    if ty.dtype != DType::Bool || !ty.elements().is_some_and(|n| n.is(1)) {
        return malformed(format!("`{what}` is {ty}, expected one bool"));
    }
    match (cx.static_tensor(item, what), item) {
        (Ok(tensor), _) => Ok(Condition::Known(tensor.to_i64_vec() == [1])),
        (Err(_), Item::Value(_)) => Ok(Condition::Open(cx.reshape(item, vec![])?)),
        (Err(refusal), _) => Err(refusal),
    }
}

/// The value of `then` where the condition holds, else that of `otherwise`.
fn pick(cx: &mut Cx, condition: &Item, then: &Item, otherwise: &Item) -> Result<Item, Refusal> {
    let same = match (then, otherwise) {
        (Item::Value(a), Item::Value(b)) => a == b,
        (Item::Sizes(a), Item::Sizes(b)) => a == b,
        (Item::Const(a), Item::Const(b)) => a.tensor == b.tensor,
        (Item::List(a), Item::List(b)) if a.len() == b.len() => {
            let picked = a.iter().zip(b).map(|(a, b)| pick(cx, condition, a, b));
            return Ok(Item::List(picked.collect::<Result<_, _>>()?));
        }
        _ => false,
    };
    if same {
        return Ok(then.clone());
    }
    let (a, b) = (cx.ty(then)?, cx.ty(otherwise)?);
    if a != b {
        return unsupported(format!(
            "its condition is computed at run time, and a result is {a} if it holds and {b} if not; \
             both must have one shape, or the condition must be known at compile time"
        ));
    }
    cx.emit(Op::Where, &[condition, then, otherwise])
}

/// A graph inside a node. Its initializers are read once, however often it runs.
struct Body<'a, 's> {
    graph: &'a GraphProto,
    scope: Scope<'a, 's>,
    /// The number that a repetition counts against `most`, at least 1.
    weight: usize,
    /// Largest number of nodes and constants that repetitions may become.
    most: usize,
}

/// Number of nodes and initializers of a graph and of the graphs inside it. The recursion is as
/// deep as decoding allowed.
fn weight(graph: &GraphProto) -> usize {
    let inside = |node: &NodeProto| -> usize {
        node.attribute
            .iter()
            .flat_map(|a| a.g.as_deref().into_iter().chain(&a.graphs))
            .map(weight)
            .sum()
    };
    graph.node.len() + graph.initializer.len() + graph.node.iter().map(inside).sum::<usize>()
}

impl Body<'_, '_> {
    /// Refuses a repetition beyond the limit.
    fn bound(&self, done: usize) -> Result<(), Refusal> {
        if self.weight.saturating_mul(done + 1) <= self.most {
            return Ok(());
        }
        unsupported(format!(
            "its body of {} nodes and constants is repeated more than {done} times; at most \
             {} are unrolled",
            self.weight, self.most
        ))
    }
}

/// An error of the whole import, or one of this node.
type Outcome<T> = Result<Result<T, Refusal>, ImportError>;

/// Returns the refusal of a node as the outcome of its import.
macro_rules! own {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(refusal) => return Ok(Err(refusal)),
        }
    };
}

impl<'a> Walker<'a> {
    /// The graph in attribute `name`, which can read the values around the node.
    fn inner<'s>(
        &mut self,
        node: &NodeProto,
        call: &Call<'a>,
        name: &str,
        scope: &'s Scope<'a, 's>,
        prefix: String,
    ) -> Outcome<Body<'a, 's>> {
        let graph = own!(call.graph(name));
        if scope.depth >= MAX_DEPTH {
            return Err(ImportError::malformed(
                place(node),
                format!("branches are nested more than {MAX_DEPTH} deep"),
            ));
        }
        let mut inner = Scope {
            names: Default::default(),
            outer: Some(scope),
            prefix,
            imports: scope.imports,
            attributes: scope.attributes.clone(),
            depth: scope.depth + 1,
        };
        self.initializers(graph, &mut inner)?;
        let most = self.cx.unrolled;
        Ok(Ok(Body { graph, scope: inner, weight: weight(graph).max(1), most }))
    }

    /// Runs a body once with `operands` as its inputs, in order.
    fn run(
        &mut self,
        body: &Body<'a, '_>,
        operands: Vec<Item>,
        prefix: String,
    ) -> Result<Vec<Item>, ImportError> {
        let (name, output) = (self.cx.node.clone(), self.cx.output.clone());
        // the nodes themselves are counted where they are imported
        self.seen += body.weight - body.graph.node.len().min(body.weight);
        let mut names = body.scope.names.clone();
        for (input, item) in body.graph.input.iter().zip(operands) {
            if names.insert(input.name(), item).is_some() {
                return Err(ImportError::malformed(
                    format!("input `{}` of `{}`", shown(input.name()), shown(body.graph.name())),
                    "it is defined twice",
                ));
            }
        }
        let mut scope = Scope {
            names,
            outer: body.scope.outer,
            prefix,
            imports: body.scope.imports,
            attributes: body.scope.attributes.clone(),
            depth: body.scope.depth,
        };
        let outputs = body.graph.output.iter().map(|o| o.name()).collect();
        let items = self.body(&body.graph.node, outputs, &mut scope);
        (self.cx.node, self.cx.output) = (name, output);
        items
    }

    /// `If`: imports the branch that a known condition takes; else both, and picks one of the
    /// results.
    pub(super) fn branch(
        &mut self,
        node: &'a NodeProto,
        scope: &Scope<'a, '_>,
    ) -> Outcome<Vec<Item>> {
        let call = own!(self.call(node, 0, scope));
        let condition = match call.input(0, "cond") {
            Ok(item) => condition(&mut self.cx, item, "cond"),
            Err(refusal) => Err(refusal),
        };
        let condition = match own!(condition) {
            Condition::Known(taken) => {
                let name = if taken { "then_branch" } else { "else_branch" };
                let body = own!(self.inner(node, &call, name, scope, scope.prefix.clone())?);
                return self.run(&body, vec![], scope.prefix.clone()).map(Ok);
            }
            Condition::Open(condition) => condition,
        };
        let mut results = Vec::new();
        for (name, short) in [("then_branch", "then"), ("else_branch", "else")] {
            let prefix = format!("{}/{short}/", self.cx.node);
            let body = own!(self.inner(node, &call, name, scope, prefix.clone())?);
            results.push(self.run(&body, vec![], prefix)?);
        }
        if results[0].len() != results[1].len() {
            return Ok(malformed("its branches have different numbers of outputs"));
        }
        let pairs = results[0].iter().zip(&results[1]);
        let picked = pairs.map(|(a, b)| match (a, b) {
            (Item::Poison, _) | (_, Item::Poison) => Ok(Item::Poison),
            _ => pick(&mut self.cx, &condition, a, b),
        });
        Ok(picked.collect())
    }

    /// `Loop`, unrolled. Its body maps (number of the repetition, condition, values…) to
    /// (condition, values…, results to be stacked…).
    pub(super) fn repeat(
        &mut self,
        node: &'a NodeProto,
        scope: &Scope<'a, '_>,
    ) -> Outcome<Vec<Item>> {
        let call = own!(self.call(node, 0, scope));
        let prefix = self.cx.node.clone();
        let body = own!(self.inner(node, &call, "body", scope, prefix.clone())?);
        let (trips, first) = own!(start(&mut self.cx, &call));
        let mut carried = own!(operands(&call, 2));
        let count = carried.len();
        if body.graph.input.len() != count + 2 || body.graph.output.len() < count + 1 {
            return Ok(malformed(format!(
                "its body has {} inputs and {} outputs for {count} values",
                body.graph.input.len(),
                body.graph.output.len()
            )));
        }
        let mut stacks = vec![Vec::new(); body.graph.output.len() - count - 1];
        // whether the loop still runs, where only run time tells
        let mut running = match first {
            Condition::Known(false) => {
                return Ok(self.finish(&body, carried, stacks, &[], count + 1));
            }
            Condition::Known(true) => None,
            Condition::Open(condition) => Some(condition),
        };
        let mut done = 0;
        while trips.is_none_or(|trips| (done as i64) < trips) {
            own!(body.bound(done));
            if running.is_some() && trips.is_none() {
                return Ok(unsupported(
                    "its condition is computed at run time and nothing else bounds its repetitions",
                ));
            }
            if running.is_some() && !stacks.is_empty() {
                return Ok(unsupported(
                    "its condition is computed at run time, so the number of results to be stacked \
                     is not known",
                ));
            }
            let number = self.cx.constant(Tensor::from_i64(&[], &[done as i64]));
            let holds = self.cx.constant(Tensor::from_bool(&[], &[true]));
            let operands = [vec![number, holds], carried.clone()].concat();
            let mut results = self.run(&body, operands, format!("{prefix}/{done}/"))?.into_iter();
            let next = results.next().unwrap_or(Item::Poison);
            for value in &mut carried {
                let new = results.next().unwrap_or(Item::Poison);
                *value = match &running {
                    Some(running) => own!(pick(&mut self.cx, running, &new, value)),
                    None => new,
                };
            }
            stacks.iter_mut().zip(results).for_each(|(stack, item)| stack.push(item));
            done += 1;
            if trips.is_some_and(|trips| done as i64 >= trips) {
                break;
            }
            match own!(condition(&mut self.cx, &next, "condition")) {
                Condition::Known(true) => {}
                Condition::Known(false) => break,
                Condition::Open(next) => {
                    running = Some(match running {
                        Some(running) => {
                            own!(self.cx.binary(BinaryKind::And, &running, &next))
                        }
                        None => next,
                    });
                }
            }
        }
        Ok(self.finish(&body, carried, stacks, &[], count + 1))
    }

    /// `Scan`, unrolled. Its body maps (values…, slices…) to (values…, results to be stacked…).
    pub(super) fn scan(
        &mut self,
        node: &'a NodeProto,
        scope: &Scope<'a, '_>,
    ) -> Outcome<Vec<Item>> {
        let call = own!(self.call(node, 0, scope));
        if version(scope.imports, "ai.onnx").is_some_and(|opset| opset < 9) {
            return Ok(unsupported(
                "before opset 9 its operands have an axis for the batch, which is not read; export \
                 the model with opset 9 or newer",
            ));
        }
        let prefix = self.cx.node.clone();
        let body = own!(self.inner(node, &call, "body", scope, prefix.clone())?);
        let inputs = own!(operands(&call, 0));
        let (graph_inputs, graph_outputs) = (body.graph.input.len(), body.graph.output.len());
        let scanned = own!(call.required_int("num_scan_inputs"));
        let Some(count) = usize::try_from(scanned)
            .ok()
            .filter(|&n| n > 0)
            .and_then(|n| inputs.len().checked_sub(n))
            .filter(|&n| graph_inputs == inputs.len() && graph_outputs >= n)
        else {
            return Ok(malformed(format!(
                "`num_scan_inputs` is {scanned} of {} operands; its body has {graph_inputs} inputs \
                 and {graph_outputs} outputs",
                inputs.len()
            )));
        };
        let sources = own!(sources(&self.cx, &call, &inputs[count..]));
        let length = sources[0].length;
        let targets = own!(directions(&call, "scan_output", graph_outputs - count));
        let mut carried = inputs[..count].to_vec();
        let mut stacks = vec![Vec::new(); graph_outputs - count];
        own!(body.bound(usize::try_from(length - 1).unwrap_or(0)));
        for i in 0..length {
            let mut operands = carried.clone();
            for (source, x) in sources.iter().zip(&inputs[count..]) {
                operands.push(own!(source.slice(&mut self.cx, x, i)));
            }
            let mut results = self.run(&body, operands, format!("{prefix}/{i}/"))?.into_iter();
            carried.iter_mut().for_each(|v| *v = results.next().unwrap_or(Item::Poison));
            stacks.iter_mut().zip(results).for_each(|(stack, item)| stack.push(item));
        }
        Ok(self.finish(&body, carried, stacks, &targets, count))
    }

    /// The values after the last repetition and the stacked results. Outputs of the body from
    /// `first` on are stacked.
    fn finish(
        &mut self,
        body: &Body<'a, '_>,
        mut results: Vec<Item>,
        stacks: Vec<Vec<Item>>,
        targets: &[(i64, bool)],
        first: usize,
    ) -> Done {
        for (i, mut stack) in stacks.into_iter().enumerate() {
            let &(at, reversed) = targets.get(i).unwrap_or(&(0, false));
            if reversed {
                stack.reverse();
            }
            let poisoned = stack.iter().any(|item| matches!(item, Item::Poison));
            results.push(match stack.is_empty() {
                _ if poisoned => Item::Poison,
                true => empty(&self.cx, &body.graph.output[first + i], at)?,
                false => stacked(&mut self.cx, &stack, at)?,
            });
        }
        Ok(results)
    }
}

/// The operands from `first` on, none of which may be absent.
fn operands(call: &Call, first: usize) -> Result<Vec<Item>, Refusal> {
    (first..call.inputs.len()).map(|i| call.input(i, "value").cloned()).collect()
}

/// The largest number of repetitions of a `Loop`, if it is given, and the condition of the first
/// one.
fn start(cx: &mut Cx, call: &Call) -> Result<(Option<i64>, Condition), Refusal> {
    let trips = match call.optional(0) {
        None => None,
        Some(item) => match cx.static_ints(item, "M")?[..] {
            [trips] => Some(trips),
            _ => return malformed("`M` is not one number"),
        },
    };
    let first = match call.optional(1) {
        None => Condition::Known(true),
        Some(item) => condition(cx, item, "cond")?,
    };
    Ok((trips, first))
}

/// Axes and directions (true: from the end) of the operands that a `Scan` cuts, or of the results
/// that it stacks.
fn directions(call: &Call, what: &str, count: usize) -> Result<Vec<(i64, bool)>, Refusal> {
    let list = |name: String| -> Result<Vec<i64>, Refusal> {
        let values = call.ints(&name)?.filter(|v| !v.is_empty()).unwrap_or(vec![0; count]);
        if values.len() == count {
            return Ok(values);
        }
        malformed(format!("`{name}` has {} entries, expected {count}", values.len()))
    };
    let (axes, ways) = (list(format!("{what}_axes"))?, list(format!("{what}_directions"))?);
    if let Some(way) = ways.iter().find(|w| !(0..=1).contains(*w)) {
        return malformed(format!("`{what}_directions` holds {way}"));
    }
    Ok(axes.into_iter().zip(ways).map(|(axis, way)| (axis, way == 1)).collect())
}

/// An operand that a `Scan` cuts.
struct Source {
    axis: usize,
    reversed: bool,
    length: i64,
}

fn sources(cx: &Cx, call: &Call, inputs: &[Item]) -> Result<Vec<Source>, Refusal> {
    let mut sources: Vec<Source> = Vec::new();
    for (item, (at, reversed)) in inputs.iter().zip(directions(call, "scan_input", inputs.len())?) {
        let ty = cx.ty(item)?;
        let axis = axis(at, ty.rank())?;
        let Some(length) = ty.shape[axis].as_const() else {
            return unsupported(format!(
                "it is repeated {} times, which is not known",
                ty.shape[axis]
            ));
        };
        if let Some(other) = sources.first().filter(|s| s.length != length) {
            return malformed(format!("its operands have {} and {length} slices", other.length));
        }
        sources.push(Source { axis, reversed, length });
    }
    Ok(sources)
}

impl Source {
    fn slice(&self, cx: &mut Cx, x: &Item, i: i64) -> Result<Item, Refusal> {
        let at = if self.reversed { self.length - 1 - i } else { i };
        let part = cx.slice(x, self.axis, at.into(), (at + 1).into())?;
        let mut shape = cx.ty(&part)?.shape;
        shape.remove(self.axis);
        cx.reshape(&part, shape)
    }
}

/// Joins items along a new axis.
fn stacked(cx: &mut Cx, items: &[Item], at: i64) -> Result<Item, Refusal> {
    let mut parts = Vec::new();
    let mut position = 0;
    for item in items {
        let mut shape = cx.ty(item)?.shape;
        position = axis(at, shape.len() + 1)?;
        shape.insert(position, 1.into());
        parts.push(cx.emit(Op::Reshape { shape }, &[item])?);
    }
    match &parts[..] {
        [one] => Ok(one.clone()),
        _ => cx.emit(Op::Concat { axis: position }, &parts.iter().collect::<Vec<_>>()),
    }
}

/// The result of stacking no repetition at all, by its declared type.
fn empty(cx: &Cx, output: &ValueInfoProto, at: i64) -> Result<Item, Refusal> {
    let tensor = output.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    let dtype = tensor.and_then(|t| tensors::dtype(t.elem_type()).ok());
    let shape = tensor.and_then(|t| t.shape.as_ref()).and_then(|s| {
        s.dim.iter().map(|d| usize::try_from(d.dim_value?).ok()).collect::<Option<Vec<_>>>()
    });
    let (Some(dtype), Some(mut shape)) = (dtype, shape) else {
        return unsupported(format!(
            "it is never repeated, and the type of `{}` is not declared",
            shown(output.name())
        ));
    };
    shape.insert(axis(at, shape.len() + 1)?, 0);
    if shape.len() > cqc_proto::types::MAX_RANK || element_count(&shape) != Some(0) {
        return unsupported(format!("its result has the shape {shape:?}"));
    }
    Ok(cx.constant(tensors::from_integers(dtype, shape, &[])))
}
