//! Walks over the nodes of graphs, function bodies and branches, and imports them.

use super::call::Call;
use super::cx::{Cx, Done};
use super::error::{ImportError, Refusal, Unsupported, shown, unsupported};
use super::item::Item;
use super::limits::{MAX_DEPTH, MAX_NODES, OPSETS};
use super::load::Files;
use super::narrow::Narrow;
use super::ops;
use super::order::{self, check_name, name_of, place};
use super::tensors::{self, BadTensor};
use super::{ImportOptions, inputs};
use crate::ir::{Def, Graph};
use cqc_proto::onnx::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto,
};
use std::collections::{BTreeSet, HashMap, HashSet};

/// The result of a walk over a model.
pub(super) struct Walked {
    pub graph: Graph,
    pub node_count: usize,
    pub consumed: BTreeSet<String>,
    pub warnings: Vec<String>,
}

/// The domain of a node or function, where the standard one has its long name.
fn long_domain(domain: &str) -> &str {
    if domain.is_empty() { "ai.onnx" } else { domain }
}

pub(super) fn version(imports: &[OperatorSetIdProto], domain: &str) -> Option<i64> {
    imports.iter().find(|o| long_domain(o.domain()) == domain).map(|o| o.version())
}

/// Version of the standard operator set.
///
/// # Errors
/// [`ImportError::Opset`] if it is not supported.
pub(super) fn opset(imports: &[OperatorSetIdProto]) -> Result<i64, ImportError> {
    let Some(found) = version(imports, "ai.onnx") else {
        return Err(ImportError::malformed(
            "opset_import",
            "the model names no version of the standard operator set",
        ));
    };
    if OPSETS.contains(&found) {
        return Ok(found);
    }
    let supported = format!("{} to {}", OPSETS.start(), OPSETS.end());
    Err(ImportError::Opset { domain: "ai.onnx".into(), found, supported })
}

/// Names visible to the nodes of one graph or function body.
pub(super) struct Scope<'a, 's> {
    pub names: HashMap<&'a str, Item>,
    pub outer: Option<&'s Scope<'a, 's>>,
    /// Prefix of the names of nodes and values.
    pub prefix: String,
    pub imports: &'a [OperatorSetIdProto],
    /// Attributes of the function call.
    pub attributes: Vec<(&'a str, &'a AttributeProto)>,
    pub depth: usize,
}

impl Scope<'_, '_> {
    fn get(&self, name: &str) -> Option<&Item> {
        self.names.get(name).or_else(|| self.outer.and_then(|o| o.get(name)))
    }
}

type FunctionKey<'a> = (&'a str, &'a str, &'a str);

pub(super) struct Walker<'a> {
    pub cx: Cx<'a>,
    functions: HashMap<FunctionKey<'a>, &'a FunctionProto>,
    unsupported: Vec<Unsupported>,
    /// Number of nodes imported.
    nodes: usize,
    /// Number of nodes looked at, and of other parts that repetitions of loops look at.
    pub seen: usize,
}

/// Imports the model's graph.
pub(super) fn model<'a>(
    model: &'a ModelProto,
    graph: &'a GraphProto,
    opset: i64,
    files: &'a Files,
    options: &ImportOptions,
) -> Result<Walked, ImportError> {
    let functions = model
        .functions
        .iter()
        .map(|f| ((long_domain(f.domain()), f.name(), f.overload()), f))
        .collect();
    let mut walker = Walker {
        cx: Cx::new(&shown(graph.name()), files, options.budget),
        functions,
        unsupported: Vec::new(),
        nodes: 0,
        seen: 0,
    };
    debug_assert!(OPSETS.contains(&opset));
    let mut scope = Scope {
        names: HashMap::new(),
        outer: None,
        prefix: String::new(),
        imports: &model.opset_import,
        attributes: Vec::new(),
        depth: 0,
    };
    walker.initializers(graph, &mut scope)?;
    walker.inputs(model, graph, options, &mut scope)?;
    let outputs = walker.body(&graph.node, output_names(graph)?, &mut scope)?;
    walker.outputs(graph, outputs)?;
    if !walker.unsupported.is_empty() {
        return Err(ImportError::Unsupported(walker.unsupported));
    }
    let Cx { graph, consumed, mut warnings, quantized, .. } = walker.cx;
    warnings.extend(quantized.warning());
    Ok(Walked { graph, node_count: walker.nodes, consumed, warnings })
}

fn output_names(graph: &GraphProto) -> Result<Vec<&str>, ImportError> {
    let mut names = Vec::new();
    for output in graph.output.iter().map(|o| o.name()) {
        check_name(output).map_err(|reason| ImportError::malformed("output", reason))?;
        if names.contains(&output) {
            return Err(ImportError::malformed(
                format!("output `{}`", shown(output)),
                "it is listed twice",
            ));
        }
        names.push(output);
    }
    if names.is_empty() {
        return Err(ImportError::malformed(
            format!("graph `{}`", shown(graph.name())),
            "it has no outputs",
        ));
    }
    Ok(names)
}

impl<'a> Walker<'a> {
    pub(super) fn initializers(
        &mut self,
        graph: &'a GraphProto,
        scope: &mut Scope<'a, '_>,
    ) -> Result<(), ImportError> {
        if let Some(sparse) = graph.sparse_initializer.first() {
            let name = sparse.values.as_ref().map_or("", |v| v.name());
            self.refuse(name, "initializer", "ai.onnx", "sparse tensors are not supported".into());
        }
        for t in &graph.initializer {
            check_name(t.name()).map_err(|reason| ImportError::malformed("tensor", reason))?;
            let place = || format!("tensor `{}`", shown(t.name()));
            if t.name().is_empty() {
                return Err(ImportError::malformed("tensor", "an initializer has no name"));
            }
            let item = match tensors::read(t, self.cx.files) {
                Ok(tensor) => {
                    self.cx.grant(&tensor);
                    {
                        let name = format!("{}{}", scope.prefix, t.name());
                        Item::narrow_constant(name, tensor, Narrow::of(t.data_type()))
                    }
                }
                Err(BadTensor::Malformed(reason)) => {
                    return Err(ImportError::malformed(place(), reason));
                }
                Err(BadTensor::Unsupported(reason)) => {
                    self.refuse(t.name(), "initializer", "ai.onnx", reason);
                    Item::Poison
                }
            };
            if scope.names.insert(t.name(), item).is_some() {
                return Err(ImportError::malformed(place(), "it is defined twice"));
            }
        }
        Ok(())
    }

    fn inputs(
        &mut self,
        model: &ModelProto,
        graph: &'a GraphProto,
        options: &ImportOptions,
        scope: &mut Scope<'a, '_>,
    ) -> Result<(), ImportError> {
        let mut seen = HashSet::new();
        let mut free = Vec::new();
        for input in &graph.input {
            let name = input.name();
            let bad = |reason: &str| {
                Err(ImportError::malformed(format!("input `{}`", shown(name)), reason))
            };
            check_name(name).map_err(|reason| ImportError::malformed("input", reason))?;
            if name.is_empty() {
                return bad("an input has no name");
            }
            if !seen.insert(name) {
                return bad("it is listed twice");
            }
            match scope.names.get(name) {
                None => free.push(input),
                // before IR version 4 every initializer had to be listed as an input
                Some(_) if model.ir_version() < 4 => {}
                Some(_) => self.cx.warnings.push(format!(
                    "input `{}` has a default value, which is taken as a constant",
                    shown(name)
                )),
            }
        }
        for (input, ty) in free.iter().zip(inputs::types(&free, options)?) {
            let known = options.known_inputs.get(input.name());
            if let Some(t) = known
                && (t.dtype() != ty.dtype || t.shape().len() != ty.rank())
            {
                let reason = format!("the given value is {}, the model takes {ty}", t.value_type());
                return Err(ImportError::Option {
                    option: format!("input `{}`", shown(input.name())),
                    reason,
                });
            }
            let mut item = self.cx.input(input.name(), ty, known);
            if let Some(narrow) = inputs::narrow(input) {
                item = self.cx.mark(item, narrow);
            }
            scope.names.insert(input.name(), item);
        }
        Ok(())
    }

    fn outputs(&mut self, graph: &GraphProto, items: Vec<Item>) -> Result<(), ImportError> {
        for (info, item) in graph.output.iter().zip(items) {
            let name = info.name();
            self.cx.node = name.to_string();
            self.cx.output = name.to_string();
            match self.cx.value(&item) {
                Ok(id) => self.cx.graph.outputs.push((name.to_string(), id)),
                Err(Refusal::Poisoned) => {}
                Err(Refusal::Unsupported(reason) | Refusal::Malformed(reason)) => {
                    self.refuse(name, "output", "ai.onnx", reason);
                }
            }
        }
        Ok(())
    }

    fn refuse(&mut self, node: &str, op: &str, domain: &str, reason: String) {
        self.unsupported.push(Unsupported {
            node: shown(node),
            op: shown(op),
            domain: shown(domain),
            reason,
        });
    }

    /// Imports the nodes that `outputs` need, and returns the items of these names.
    pub(super) fn body(
        &mut self,
        nodes: &'a [NodeProto],
        outputs: Vec<&str>,
        scope: &mut Scope<'a, '_>,
    ) -> Result<Vec<Item>, ImportError> {
        self.seen += nodes.len();
        if self.seen > MAX_NODES {
            return Err(ImportError::malformed(
                "graph",
                format!("it has more than {MAX_NODES} nodes, those of unrolled loops included"),
            ));
        }
        for i in order::live(nodes, &outputs, &|name| scope.names.contains_key(name), &|name| {
            scope.get(name).is_some()
        })? {
            self.nodes += 1;
            self.node(&nodes[i], scope)?;
        }
        let find = |name: &str| match scope.get(name) {
            Some(item) => Ok(item.clone()),
            None => Err(ImportError::malformed(
                format!("output `{}`", shown(name)),
                "nothing defines it",
            )),
        };
        outputs.into_iter().map(find).collect()
    }

    fn node(&mut self, node: &'a NodeProto, scope: &mut Scope<'a, '_>) -> Result<(), ImportError> {
        self.enter(node, scope);
        let (name, output) = (self.cx.node.clone(), self.cx.output.clone());
        let first = self.cx.graph.values().count() as u32;
        let domain = long_domain(node.domain());
        let items = match self.dispatch(node, domain, scope)? {
            Ok(items) => items,
            Err(Refusal::Poisoned) => vec![],
            Err(Refusal::Malformed(reason)) => {
                return Err(ImportError::malformed(place(node), reason));
            }
            Err(Refusal::Unsupported(reason)) => {
                self.refuse(&name, node.op_type(), domain, reason);
                vec![]
            }
        };
        (self.cx.node, self.cx.output) = (name, output);
        let refused = items.is_empty();
        let mut items = items.into_iter();
        for output in &node.output {
            let item = items.next().unwrap_or_else(|| match refused {
                true => Item::Poison,
                false => Item::Absent(
                    format!(
                        "its operand `{}` is an output that cqc does not compute",
                        shown(output)
                    )
                    .into(),
                ),
            });
            if output.is_empty() {
                continue;
            }
            if let Item::Value(id) = item
                && id.0 >= first
                && matches!(self.cx.graph.value(id).def, Def::Node(..))
            {
                self.cx.graph.rename(id, &format!("{}{output}", scope.prefix));
            }
            scope.names.insert(output, item);
        }
        Ok(())
    }

    /// Sets the names of the values that the node emits.
    fn enter(&mut self, node: &NodeProto, scope: &Scope) {
        let first = node.output.iter().find(|o| !o.is_empty()).map_or("", String::as_str);
        self.cx.node = format!("{}{}", scope.prefix, name_of(node));
        self.cx.output = format!("{}{first}", scope.prefix);
    }

    /// Imports one node. The outer error ends the import, the inner one concerns this node.
    fn dispatch(
        &mut self,
        node: &'a NodeProto,
        domain: &'a str,
        scope: &Scope<'a, '_>,
    ) -> Result<Done, ImportError> {
        let key = (domain, node.op_type(), node.overload());
        if let Some(&function) = self.functions.get(&key) {
            let call = match self.call(node, 0, scope) {
                Ok(call) => call,
                Err(refusal) => return Ok(Err(refusal)),
            };
            return self.function(function, call, scope).map(Ok);
        }
        if domain == "ai.onnx" {
            match node.op_type() {
                "If" => return self.branch(node, scope),
                "Loop" => return self.repeat(node, scope),
                "Scan" => return self.scan(node, scope),
                _ => {}
            }
        }
        let Some(handler) = ops::find(domain, node.op_type()) else {
            return Ok(Err(Refusal::Unsupported(ops::missing(domain, node.op_type()))));
        };
        let opset = match version(scope.imports, domain) {
            Some(version) => version,
            None if domain == "ai.onnx" => OPSETS.end().to_owned(),
            None => 1,
        };
        Ok(self.call(node, opset, scope).and_then(|call| handler(&mut self.cx, &call)))
    }

    /// The operands and attributes of a node; [`Refusal::Poisoned`] if an operand has no value.
    pub(super) fn call(
        &self,
        node: &'a NodeProto,
        opset: i64,
        scope: &Scope<'a, '_>,
    ) -> Result<Call<'a>, Refusal> {
        let mut inputs = Vec::new();
        for name in &node.input {
            inputs.push(match scope.get(name) {
                _ if name.is_empty() => None,
                Some(Item::Omitted) => None,
                Some(Item::Poison) => return Err(Refusal::Poisoned),
                Some(Item::Absent(reason)) => return unsupported(reason.to_string()),
                item => item.cloned(),
            });
        }
        let mut attributes: Vec<(&str, &AttributeProto)> = Vec::new();
        for a in &node.attribute {
            let value = match a.ref_attr_name() {
                "" => Some(a),
                name => scope.attributes.iter().find(|(n, _)| *n == name).map(|(_, a)| *a),
            };
            attributes.extend(value.map(|v| (a.name(), v)));
        }
        Ok(Call { opset, inputs, outputs: &node.output, attributes })
    }

    fn function(
        &mut self,
        f: &'a FunctionProto,
        call: Call<'a>,
        scope: &Scope<'a, '_>,
    ) -> Result<Vec<Item>, ImportError> {
        let place = format!("function `{}`", shown(f.name()));
        if scope.depth >= MAX_DEPTH {
            return Err(ImportError::malformed(
                place,
                format!("calls are nested more than {MAX_DEPTH} deep"),
            ));
        }
        let mut attributes = call.attributes;
        for default in &f.attribute_proto {
            if !attributes.iter().any(|(n, _)| *n == default.name()) {
                attributes.push((default.name(), default));
            }
        }
        let imports = if f.opset_import.is_empty() { scope.imports } else { &f.opset_import };
        if version(imports, "ai.onnx").is_some() {
            opset(imports)?;
        }
        let operand = |i: usize| call.inputs.get(i).cloned().flatten().unwrap_or(Item::Omitted);
        let names =
            f.input.iter().enumerate().map(|(i, name)| (name.as_str(), operand(i))).collect();
        let prefix = format!("{}/", self.cx.node);
        let mut inner =
            Scope { names, outer: None, prefix, imports, attributes, depth: scope.depth + 1 };
        let outputs = f.output.iter().map(String::as_str).collect();
        self.body(&f.node, outputs, &mut inner)
    }
}

/// Reads a tensor attribute.
pub(super) fn attribute_tensor(cx: &Cx, name: &str, t: &TensorProto) -> Result<Item, Refusal> {
    let tensor = tensors::read(t, cx.files).map_err(|e| match e {
        BadTensor::Malformed(reason) => Refusal::Malformed(format!("attribute `{name}`: {reason}")),
        BadTensor::Unsupported(reason) => {
            Refusal::Unsupported(format!("attribute `{name}`: {reason}"))
        }
    })?;
    Ok(Item::narrow_constant(&cx.output, tensor, Narrow::of(t.data_type())))
}
