//! The context into which operators are emitted: the graph under construction. Constants and sizes
//! are folded on the way.

use super::error::{Refusal, malformed, shown, unsupported};
use super::item::{Item, Sizes};
use super::limits::*;
use super::load::Files;
use super::narrow::Narrow;
use super::partial;
use super::quantized::Quantized;
use crate::interpret::work;
use crate::ir::{Graph, ValueId};
use cqc_kernels::reference;
use cqc_proto::op::{BinaryKind, ReduceKind, UnaryKind};
use cqc_proto::{DType, Dim, Op, Tensor, ValueType};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

/// A run-time value that the caller has given, and the inputs from which it was computed.
struct Shadow {
    tensor: Tensor,
    sources: Rc<BTreeSet<String>>,
}

/// The graph under construction.
pub(super) struct Cx<'a> {
    pub graph: Graph,
    pub files: &'a Files,
    pub warnings: Vec<String>,
    /// Inputs whose known value was used as a static operand.
    pub consumed: BTreeSet<String>,
    /// Name of the node that is being imported; `output` is that of its first output.
    pub node: String,
    pub output: String,
    /// Counts of the quantized parts of the model.
    pub quantized: Quantized,
    shadows: HashMap<ValueId, Shadow>,
    /// ONNX types of values whose own types can only hold their numbers.
    narrow: HashMap<ValueId, Narrow>,
    fold_bytes: i64,
    fold_macs: i64,
    /// Largest number of nodes and constants that one loop may become.
    pub unrolled: usize,
}

/// The result of an operator's function: one item per output of the standard operator.
pub(super) type Done = Result<Vec<Item>, Refusal>;

impl<'a> Cx<'a> {
    pub fn new(name: &str, files: &'a Files, budget: Budget) -> Cx<'a> {
        Cx {
            graph: Graph::new(name),
            files,
            warnings: Vec::new(),
            consumed: BTreeSet::new(),
            node: String::new(),
            output: String::new(),
            quantized: Quantized::default(),
            shadows: HashMap::new(),
            narrow: HashMap::new(),
            fold_bytes: budget.fold_bytes,
            fold_macs: budget.fold_macs,
            unrolled: budget.unrolled,
        }
    }

    /// Adds an input. `known` is its value if the caller has given it.
    pub fn input(&mut self, name: &str, ty: ValueType, known: Option<&Tensor>) -> Item {
        if let Some(empty) = empty(&ty) {
            self.warnings.push(format!("input `{}` has no elements and is left out", shown(name)));
            return Item::constant(name, empty);
        }
        let id = self.graph.input(name, ty);
        if let Some(tensor) = known {
            let sources = Rc::new(BTreeSet::from([name.to_string()]));
            self.shadows.insert(id, Shadow { tensor: tensor.clone(), sources });
        }
        Item::Value(id)
    }

    /// Adds an initializer, which may be folded into other constants, to the budget.
    pub fn grant(&mut self, initializer: &Tensor) {
        // codes may become floats
        let size = initializer.dtype().size().max(DType::F32.size());
        let bytes = (initializer.len() as i64).saturating_mul(size as i64);
        self.fold_bytes = self.fold_bytes.saturating_add(bytes.saturating_mul(FOLD_SHARE));
    }

    /// Takes bytes from the budget for constants.
    ///
    /// # Errors
    /// [`Refusal::Unsupported`] if the budget does not have as many.
    pub fn spend(&mut self, bytes: i64) -> Result<(), Refusal> {
        if bytes > self.fold_bytes {
            return unsupported("the model's computed constants take too much memory");
        }
        self.fold_bytes -= bytes;
        Ok(())
    }

    /// Type of a value.
    ///
    /// # Errors
    /// [`Refusal`] for an item that has no type.
    pub fn ty(&self, item: &Item) -> Result<ValueType, Refusal> {
        match item {
            Item::Value(id) => Ok(self.graph.ty(*id).clone()),
            Item::Const(c) => Ok(c.tensor.value_type()),
            Item::Sizes(s) => Ok(s.value_type()),
            Item::List(_) => unsupported("a sequence stands where a tensor is needed"),
            Item::Omitted => unsupported("an operand is absent"),
            Item::Poison => Err(Refusal::Poisoned),
            Item::Absent(reason) => unsupported(reason.to_string()),
        }
    }

    /// A constant named after the node.
    pub fn constant(&self, tensor: Tensor) -> Item {
        Item::constant(&self.output, tensor)
    }

    /// The ONNX type of a value whose own type can only hold its numbers.
    pub fn narrow(&self, item: &Item) -> Option<Narrow> {
        match item {
            Item::Value(id) => self.narrow.get(id).copied(),
            Item::Const(c) => c.narrow,
            _ => None,
        }
    }

    /// Records the ONNX type of a value whose own type can only hold its numbers.
    pub fn mark(&mut self, item: Item, narrow: Narrow) -> Item {
        match &item {
            Item::Value(id) => drop(self.narrow.insert(*id, narrow)),
            Item::Const(c) => {
                return Item::narrow_constant(c.name.clone(), c.tensor.clone(), Some(narrow));
            }
            _ => {}
        }
        item
    }

    /// A number of the same type as `like`.
    pub fn scalar(&self, value: f64, like: DType) -> Item {
        self.constant(super::tensors::from_floats(like, vec![], &[value]))
    }

    /// Applies an operator: to tensors at once if all operands are known, to sizes if they are
    /// sizes, else at run time.
    ///
    /// # Errors
    /// [`Refusal::Unsupported`] with the operator's reason if it does not take these operands.
    pub fn emit_all(&mut self, op: Op, inputs: &[Option<Item>]) -> Done {
        let moved = if only_moves(&op) { inputs.first().cloned().flatten() } else { None };
        let results = self.emit_plain(op, inputs)?;
        Ok(match moved.and_then(|x| self.narrow(&x)) {
            Some(narrow) => results.into_iter().map(|y| self.mark(y, narrow)).collect(),
            None => results,
        })
    }

    fn emit_plain(&mut self, op: Op, inputs: &[Option<Item>]) -> Done {
        for item in inputs.iter().flatten() {
            self.ty(item)?;
        }
        if inputs.iter().flatten().any(|i| matches!(i, Item::Sizes(_)))
            && let Some(done) = self.partial(&op, inputs)
        {
            return Ok(done);
        }
        if inputs.iter().flatten().all(|i| matches!(i, Item::Const(_)))
            && let Some(tensors) = self.fold(&op, inputs)
        {
            return Ok(tensors.into_iter().map(|t| self.constant(t)).collect());
        }
        if let Some(empty) = self.without_elements(&op, inputs)? {
            return Ok(empty);
        }
        let operands = inputs
            .iter()
            .map(|i| i.as_ref().map(|i| self.value(i)).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        if self.graph.node_count() >= MAX_EMITTED {
            return malformed(format!("the graph would have more than {MAX_EMITTED} nodes"));
        }
        let name = format!("{}/{}", self.node, op.name());
        let ids = self.graph.node_with_outputs(&self.node, op.clone(), &operands, &[&name]);
        let ids = ids.map_err(|e| Refusal::Unsupported(e.reason))?;
        self.shadow(&op, &operands, &ids);
        Ok(ids.into_iter().map(Item::Value).collect())
    }

    /// The results if none of them has an element, so that nothing is computed at run time.
    fn without_elements(
        &mut self,
        op: &Op,
        inputs: &[Option<Item>],
    ) -> Result<Option<Vec<Item>>, Refusal> {
        let types: Vec<Option<ValueType>> = inputs
            .iter()
            .map(|i| i.as_ref().map(|i| self.ty(i)).transpose())
            .collect::<Result<_, _>>()?;
        let types: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
        let Ok(outputs) = op.infer(&types) else { return Ok(None) };
        Ok(outputs.iter().map(|t| Some(self.constant(empty(t)?))).collect())
    }

    /// [`Cx::emit_all`] for operators with one output and no absent operand.
    pub fn emit(&mut self, op: Op, inputs: &[&Item]) -> Result<Item, Refusal> {
        let inputs: Vec<_> = inputs.iter().map(|&i| Some(i.clone())).collect();
        Ok(self.emit_all(op, &inputs)?.swap_remove(0))
    }

    /// `f(x)`.
    pub fn unary(&mut self, kind: UnaryKind, x: &Item) -> Result<Item, Refusal> {
        self.emit(Op::unary(kind), &[x])
    }

    /// `f(a, b)`.
    pub fn binary(&mut self, kind: BinaryKind, a: &Item, b: &Item) -> Result<Item, Refusal> {
        self.emit(Op::binary(kind), &[a, b])
    }

    /// Reduces `axes`.
    pub fn reduce(
        &mut self,
        kind: ReduceKind,
        axes: Vec<usize>,
        keep: bool,
        x: &Item,
    ) -> Result<Item, Refusal> {
        self.emit(Op::Reduce { kind, axes, keep }, &[x])
    }

    /// Changes the shape. Nothing is emitted if it is the shape already.
    pub fn reshape(&mut self, x: &Item, shape: Vec<Dim>) -> Result<Item, Refusal> {
        if self.ty(x)?.shape == shape {
            Ok(x.clone())
        } else {
            self.emit(Op::Reshape { shape }, &[x])
        }
    }

    /// Changes the order of axes. Nothing is emitted if it is the same.
    pub fn transpose(&mut self, x: &Item, perm: Vec<usize>) -> Result<Item, Refusal> {
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            Ok(x.clone())
        } else {
            self.emit(Op::Transpose { perm }, &[x])
        }
    }

    /// Changes the element type. Nothing is emitted if it is the same.
    pub fn cast(&mut self, x: &Item, to: DType) -> Result<Item, Refusal> {
        if self.ty(x)?.dtype == to { Ok(x.clone()) } else { self.emit(Op::Cast { to }, &[x]) }
    }

    /// A piece of one axis.
    pub fn slice(&mut self, x: &Item, axis: usize, start: Dim, end: Dim) -> Result<Item, Refusal> {
        if start.is(0) && self.ty(x)?.shape.get(axis) == Some(&end) {
            return Ok(x.clone());
        }
        self.emit(
            Op::Slice { axes: vec![axis], starts: vec![start], ends: vec![end], steps: vec![1] },
            &[x],
        )
    }

    /// The value of an item in the graph.
    ///
    /// # Errors
    /// [`Refusal`] for an item that is not a tensor.
    pub fn value(&mut self, item: &Item) -> Result<ValueId, Refusal> {
        match item {
            Item::Value(id) => Ok(*id),
            Item::Const(c) => {
                let id =
                    c.id.get().unwrap_or_else(|| self.graph.constant(&c.name, c.tensor.clone()));
                c.id.set(Some(id));
                Ok(id)
            }
            Item::Sizes(s) => self.sizes_at_run_time(s),
            other => Err(self.ty(other).err().unwrap_or(Refusal::Poisoned)),
        }
    }

    /// The elements of an operand that must be known at compile time.
    ///
    /// # Errors
    /// [`Refusal::Unsupported`] that names `what` if they are not known.
    pub fn static_tensor(&mut self, item: &Item, what: &str) -> Result<Tensor, Refusal> {
        match item {
            Item::Const(c) => Ok(c.tensor.clone()),
            Item::Sizes(_) => unsupported(format!("`{what}` depends on the batch")),
            Item::Value(id) => match self.shadows.get(id) {
                Some(shadow) => {
                    self.consumed.extend(shadow.sources.iter().cloned());
                    Ok(shadow.tensor.clone())
                }
                None => {
                    let name = shown(&self.graph.value(*id).name);
                    unsupported(format!(
                        "`{what}` (`{name}`) is computed at run time; it must be known at compile time"
                    ))
                }
            },
            other => Err(self.ty(other).err().unwrap_or(Refusal::Poisoned)),
        }
    }

    /// The same as [`Cx::static_tensor`] for whole numbers that may depend on the batch.
    pub fn static_sizes(&mut self, item: &Item, what: &str) -> Result<Vec<Dim>, Refusal> {
        if let Item::Sizes(s) = item {
            return Ok(s.elements.clone());
        }
        let tensor = self.static_tensor(item, what)?;
        match Sizes::of_tensor(&tensor) {
            Some(sizes) => Ok(sizes.elements),
            None => unsupported(format!("`{what}` holds numbers that are no sizes")),
        }
    }

    /// The same as [`Cx::static_tensor`] for whole numbers.
    pub fn static_ints(&mut self, item: &Item, what: &str) -> Result<Vec<i64>, Refusal> {
        Ok(self.static_tensor(item, what)?.to_i64_vec())
    }

    fn partial(&mut self, op: &Op, inputs: &[Option<Item>]) -> Option<Vec<Item>> {
        let mut sizes = Vec::new();
        let mut sources = BTreeSet::new();
        for item in inputs {
            sizes.push(match item.as_ref()? {
                Item::Sizes(s) => s.clone(),
                Item::Const(c) => Sizes::of_tensor(&c.tensor)?,
                Item::Value(id) => {
                    let shadow = self.shadows.get(id)?;
                    sources.extend(shadow.sources.iter().cloned());
                    Sizes::of_tensor(&shadow.tensor)?
                }
                _ => return None,
            });
        }
        let done = partial::eval(op, &sizes)?;
        self.consumed.extend(sources);
        let item =
            |s: Sizes| s.to_tensor().map_or_else(|| Item::Sizes(s.clone()), |t| self.constant(t));
        Some(done.into_iter().map(item).collect())
    }

    /// The results of an operator on known tensors; `None` if they are too large to keep or too
    /// slow to compute.
    fn fold(&mut self, op: &Op, inputs: &[Option<Item>]) -> Option<Vec<Tensor>> {
        let tensors: Vec<Option<&Tensor>> =
            inputs.iter().map(|i| i.as_ref().and_then(Item::tensor)).collect();
        let cost = fold_cost(op, &tensors)?;
        let repeats = cost.written > MAX_REPEAT_BYTES && cost.written > 4 * cost.read.max(1);
        let picks = matches!(
            op,
            Op::Gather { .. } | Op::GatherElements { .. } | Op::GatherNd { .. } | Op::Slice { .. }
        );
        let bytes = if picks { cost.written } else { cost.written + cost.read };
        if repeats || cost.written > MAX_FOLD_BYTES || cost.macs > self.fold_macs {
            return None;
        }
        self.spend(bytes).ok()?;
        self.fold_macs -= cost.macs;
        reference::eval(op, &tensors).ok()
    }

    /// Follows given input values through small operators.
    fn shadow(&mut self, op: &Op, operands: &[Option<ValueId>], results: &[ValueId]) {
        let mut sources: Option<Rc<BTreeSet<String>>> = None;
        let mut tensors = Vec::new();
        for v in operands {
            tensors.push(match v {
                None => None,
                Some(v) => match (self.graph.tensor(*v), self.shadows.get(v)) {
                    (Some(t), _) => Some(t),
                    (_, Some(shadow)) => {
                        let merged = sources
                            .iter()
                            .flat_map(|s| s.iter())
                            .chain(shadow.sources.iter())
                            .cloned();
                        sources = Some(Rc::new(merged.collect()));
                        Some(&shadow.tensor)
                    }
                    _ => return,
                },
            });
        }
        let Some(sources) = sources else { return };
        let small =
            fold_cost(op, &tensors).is_some_and(|c| c.macs <= 1 << 16 && c.written <= 1 << 16);
        let Some(evaluated) = small.then(|| reference::eval(op, &tensors).ok()).flatten() else {
            return;
        };
        for (&id, tensor) in results.iter().zip(evaluated) {
            self.shadows.insert(id, Shadow { tensor, sources: sources.clone() });
        }
    }

    /// Computes `constant + Σ coefficient · symbol` at run time. A symbol is the sum of that many
    /// ones.
    fn sizes_at_run_time(&mut self, s: &Sizes) -> Result<ValueId, Refusal> {
        let one = Item::constant("one", Tensor::from_i64(&[1], &[1]));
        let mut parts = Vec::new();
        for d in &s.elements {
            let mut sum = self.constant(Tensor::from_i64(&[1], &[constant_part(d)]));
            for symbol in d.symbols().cloned().collect::<Vec<_>>() {
                let ones = self.emit(Op::Expand { shape: vec![Dim::symbol(&symbol)] }, &[&one])?;
                let size = self.reduce(ReduceKind::Sum, vec![0], true, &ones)?;
                let factor = self.constant(Tensor::from_i64(&[1], &[d.coefficient(&symbol)]));
                let term = self.binary(BinaryKind::Mul, &size, &factor)?;
                sum = self.binary(BinaryKind::Add, &sum, &term)?;
            }
            parts.push(sum);
        }
        let parts: Vec<&Item> = parts.iter().collect();
        let joined = self.emit(Op::Concat { axis: 0 }, &parts)?;
        let shaped = self.reshape(&joined, s.value_type().shape)?;
        let typed = self.cast(&shaped, s.dtype)?;
        self.value(&typed)
    }
}

/// Whether the results consist of elements of operand 0 and of others of its type.
fn only_moves(op: &Op) -> bool {
    matches!(
        op,
        Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Expand { .. }
            | Op::Slice { .. }
            | Op::Tile { .. }
            | Op::Concat { .. }
            | Op::Gather { .. }
            | Op::GatherElements { .. }
            | Op::GatherNd { .. }
            | Op::Pad { .. }
    )
}

/// The only tensor of a type with an axis of size 0.
pub(super) fn empty(ty: &ValueType) -> Option<Tensor> {
    let shape = ty.fixed_shape().filter(|s| s.contains(&0))?;
    Tensor::new(ty.dtype, shape, Vec::new()).ok()
}

struct FoldCost {
    read: i64,
    written: i64,
    macs: i64,
}

/// The cost of evaluating an operator; `None` if the operands do not fit or a size is symbolic.
fn fold_cost(op: &Op, inputs: &[Option<&Tensor>]) -> Option<FoldCost> {
    let types: Vec<Option<ValueType>> = inputs.iter().map(|t| t.map(|t| t.value_type())).collect();
    let types: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
    let outputs = op.infer(&types).ok()?;
    let bytes = |t: &ValueType| t.elements()?.as_const()?.checked_mul(t.dtype.size() as i64);
    let written: i64 = outputs.iter().map(bytes).sum::<Option<i64>>()?;
    let read = inputs.iter().flatten().map(|t| t.bytes().len() as i64).sum();
    // The cost of sizes whose product exceeds a `Dim` comes out as 0 MACs, but then the inputs are
    // that large, too.
    let macs = work(op, &types, &outputs)?;
    Some(FoldCost { read, written, macs })
}

/// A size without its symbols.
fn constant_part(d: &Dim) -> i64 {
    let zeros = d.symbols().map(|s| (s.clone(), 0)).collect();
    d.bind(&zeros).and_then(|d| d.as_const()).unwrap_or(0)
}
