//! The nodes of a model under construction, and the values that they read and write.
//!
//! Transposes and reshapes are views (`views.rs`). A node for a view is written only if something
//! reads the value in that form, and views of views are joined before. So the channels-last values
//! of a plan stay channels first, as standard operators need them.

use super::Qdq;
use super::ops;
use super::proto::number;
use super::quantized::{Quantized, Rounded};
use super::store::{Scope, Store};
use crate::onnx::tensors;
use cqc_proto::onnx::{AttributeProto, NodeProto};
use cqc_proto::op::{BinaryKind, UnaryKind};
use cqc_proto::{DType, Dim, Op, Tensor, ValueType};
use std::collections::HashMap;
use std::rc::Rc;

/// Id of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Val(usize);

/// The definition of a value.
#[derive(Clone, Debug)]
pub(super) enum Def {
    /// An input or the result of a node.
    Named,
    Constant(Tensor),
    /// Numbers of 4 bits, given as i8.
    Nibbles(Tensor),
    /// Another value that is rounded where it is read.
    Rounded(Rc<Rounded>),
    /// Quantized weights that are dequantized where they are read.
    Quantized(Rc<Quantized>),
    /// Axis `k` is axis `perm[k]` of the other value.
    Transposed {
        of: Val,
        perm: Vec<usize>,
    },
    Reshaped {
        of: Val,
    },
}

struct Value {
    ty: ValueType,
    def: Def,
    /// Name of the tensor in this form, once it has one.
    name: Option<String>,
    /// Name for people.
    label: String,
}

/// A result, or the reason why an operator cannot be written in ONNX.
pub(super) type ExportResult<T = Val> = Result<T, String>;

pub(super) struct Cx<'a> {
    pub store: &'a mut Store,
    pub scope: &'a mut Scope,
    /// The form in which rounding is written.
    pub qdq: Qdq,
    pub nodes: Vec<NodeProto>,
    /// Name of the current step, which its nodes get.
    pub step: String,
    values: Vec<Value>,
    pub(super) transposed: HashMap<(Val, Vec<usize>), Val>,
    pub(super) reshaped: HashMap<(Val, Vec<Dim>), Val>,
    /// Values that are rounded by a scale and a zero point.
    pub(super) rounded: HashMap<[Val; 3], Val>,
    /// Segments of values.
    pub(super) segments: HashMap<(Val, usize), Val>,
    /// The parts of a concatenation and its axis.
    pub(super) joined: HashMap<Val, (usize, Vec<Val>)>,
    /// A value with the batch alone on an axis, and that axis.
    batch_on: Option<(Val, usize)>,
    batch: Option<Val>,
}

impl<'a> Cx<'a> {
    pub fn new(store: &'a mut Store, scope: &'a mut Scope, qdq: Qdq) -> Cx<'a> {
        Cx {
            store,
            scope,
            qdq,
            nodes: vec![],
            step: String::new(),
            values: vec![],
            transposed: HashMap::new(),
            reshaped: HashMap::new(),
            rounded: HashMap::new(),
            segments: HashMap::new(),
            joined: HashMap::new(),
            batch_on: None,
            batch: None,
        }
    }

    pub fn ty(&self, v: Val) -> &ValueType {
        &self.values[v.0].ty
    }

    pub fn shape(&self, v: Val) -> &[Dim] {
        &self.ty(v).shape
    }

    pub fn rank(&self, v: Val) -> usize {
        self.ty(v).rank()
    }

    pub fn dtype(&self, v: Val) -> DType {
        self.ty(v).dtype
    }

    pub fn def(&self, v: Val) -> &Def {
        &self.values[v.0].def
    }

    pub(super) fn add(
        &mut self,
        ty: ValueType,
        def: Def,
        name: Option<String>,
        label: &str,
    ) -> Val {
        self.values.push(Value { ty, def, name, label: label.into() });
        Val(self.values.len() - 1)
    }

    pub fn label(&self, v: Val) -> &str {
        &self.values[v.0].label
    }

    /// A tensor that exists outside of this list, under its name.
    pub fn input(&mut self, name: &str, ty: ValueType) -> Val {
        let batch = ty.shape.iter().position(|d| d.as_symbol().is_some());
        let v = self.add(ty, Def::Named, Some(name.into()), name);
        self.batch_on = self.batch_on.or(batch.map(|axis| (v, axis)));
        v
    }

    pub fn constant(&mut self, label: &str, tensor: Tensor) -> Val {
        self.add(tensor.value_type(), Def::Constant(tensor), None, label)
    }

    pub fn scalar(&mut self, value: f64, dtype: DType) -> Val {
        self.constant("scalar", tensors::from_floats(dtype, vec![], &[value]))
    }

    pub fn filled(&mut self, value: f64, dtype: DType, size: usize) -> Val {
        self.constant("constant", tensors::from_floats(dtype, vec![size], &vec![value; size]))
    }

    pub fn ints(&mut self, list: &[i64]) -> Val {
        self.constant("sizes", Tensor::from_i64(&[list.len()], list))
    }

    /// The name of the tensor that holds the value in its own form. Writes the nodes that bring it
    /// into this form.
    pub fn name(&mut self, v: Val) -> String {
        if let Some(name) = &self.values[v.0].name {
            return name.clone();
        }
        let name = match self.def(v).clone() {
            Def::Named => unreachable!("a named value has a name"),
            Def::Constant(tensor) => {
                let label = self.values[v.0].label.clone();
                self.scope.initializer(self.store, &label, &tensor)
            }
            Def::Nibbles(codes) => {
                let label = self.values[v.0].label.clone();
                self.scope.nibbles(self.store, &label, &codes)
            }
            Def::Rounded(rounded) => {
                let whole = self.all_rounded(&rounded);
                self.name(whole)
            }
            Def::Quantized(weight) => {
                let whole = self.dequantized(&weight);
                self.name(whole)
            }
            Def::Transposed { of, perm } => self.transpose_node(of, &perm),
            Def::Reshaped { of } => {
                let shape = self.shape(v).to_vec();
                self.reshape_node(of, &shape)
            }
        };
        self.values[v.0].name = Some(name.clone());
        name
    }

    /// Writes a node with results of these types.
    pub fn nodes(
        &mut self,
        op: &str,
        inputs: &[Option<Val>],
        attribute: Vec<AttributeProto>,
        types: &[ValueType],
    ) -> Vec<Val> {
        let mut names: Vec<String> =
            inputs.iter().map(|v| v.map_or(String::new(), |v| self.name(v))).collect();
        while names.last().is_some_and(String::is_empty) {
            names.pop();
        }
        let label = format!("{}/{op}", self.step);
        let output: Vec<String> =
            types.iter().map(|_| self.scope.unique(&format!("{label}_output"))).collect();
        self.nodes.push(NodeProto {
            input: names,
            output: output.clone(),
            name: Some(self.scope.unique(&label)),
            op_type: Some(op.into()),
            attribute,
            ..Default::default()
        });
        output
            .into_iter()
            .zip(types)
            .map(|(n, ty)| self.add(ty.clone(), Def::Named, Some(n), &label))
            .collect()
    }

    /// Writes a node with one result.
    pub fn node(
        &mut self,
        op: &str,
        inputs: &[Val],
        attribute: Vec<AttributeProto>,
        ty: ValueType,
    ) -> Val {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.nodes(op, &inputs, attribute, &[ty])[0]
    }

    /// Writes an operator with one result.
    pub fn emit(&mut self, op: Op, inputs: &[Val]) -> ExportResult {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        Ok(ops::export_op(self, &op, &inputs)?[0])
    }

    pub fn unary(&mut self, kind: UnaryKind, x: Val) -> ExportResult {
        self.emit(Op::unary(kind), &[x])
    }

    pub fn binary(&mut self, kind: BinaryKind, a: Val, b: Val) -> ExportResult {
        self.emit(Op::binary(kind), &[a, b])
    }

    pub fn cast(&mut self, x: Val, to: DType) -> Val {
        if self.dtype(x) == to {
            return x;
        }
        let ty = ValueType::new(to, self.shape(x));
        self.node("Cast", &[x], vec![super::proto::int("to", number(to).into())], ty)
    }

    /// Sizes as an int64 vector.
    pub fn sizes(&mut self, dims: &[Dim]) -> ExportResult {
        let known: Option<Vec<i64>> = dims.iter().map(Dim::as_const).collect();
        if let Some(known) = known {
            return Ok(self.ints(&known));
        }
        let symbol = dims
            .iter()
            .flat_map(Dim::symbols)
            .next()
            .expect("a size that is not known has a symbol")
            .clone();
        let batch = self.batch(&symbol)?;
        let zero = [(symbol.clone(), 0)].into();
        let rest = dims.iter().map(|d| d.eval(&zero)).collect::<Option<Vec<i64>>>();
        let rest = rest.ok_or_else(|| format!("a size holds another symbol than {symbol}"))?;
        let factors: Vec<i64> = dims.iter().map(|d| d.coefficient(&symbol)).collect();
        let (factors, rest) = (self.ints(&factors), self.ints(&rest));
        let scaled = self.binary(BinaryKind::Mul, batch, factors)?;
        self.binary(BinaryKind::Add, scaled, rest)
    }

    /// The batch size, as a vector of one element.
    fn batch(&mut self, symbol: &str) -> ExportResult {
        if let Some(batch) = self.batch {
            return Ok(batch);
        }
        let on = self.batch_on.filter(|&(v, axis)| self.shape(v)[axis].as_symbol() == Some(symbol));
        let (v, axis) = on.ok_or_else(|| format!("no input tells the size {symbol}"))?;
        let (start, end) =
            (super::proto::int("start", axis as i64), super::proto::int("end", axis as i64 + 1));
        let batch = self.node("Shape", &[v], vec![start, end], ValueType::fixed(DType::I64, &[1]));
        self.batch = Some(batch);
        Ok(batch)
    }

    /// Gives the tensor under the last node's result a name of the source model.
    pub fn call(&mut self, v: Val, name: &str) {
        let root = match self.def(v) {
            Def::Transposed { of, .. } => *of,
            _ => v,
        };
        let old = self.values[root.0].name.clone();
        let Some(last) = self
            .nodes
            .last_mut()
            .filter(|n| n.output.len() == 1 && n.output.first() == old.as_ref())
        else {
            return;
        };
        let name = self.scope.unique(name);
        last.output[0] = name.clone();
        self.values[root.0].name = Some(name);
    }

    /// Makes the value the output `name`, which no other tensor has.
    pub fn output(&mut self, v: Val, name: &str, others: &[String]) {
        let old = self.name(v);
        let made_here = self.nodes.iter().any(|n| n.output.contains(&old));
        if !made_here || others.contains(&old) {
            let unique = self.scope.unique(&format!("{name}/Identity"));
            self.nodes.push(NodeProto {
                input: vec![old],
                output: vec![name.into()],
                name: Some(unique),
                op_type: Some("Identity".into()),
                ..Default::default()
            });
            return;
        }
        let rename = |n: &mut String| {
            if *n == old {
                *n = name.into();
            }
        };
        self.nodes
            .iter_mut()
            .for_each(|n| n.input.iter_mut().chain(&mut n.output).for_each(rename));
        self.values.iter_mut().filter_map(|v| v.name.as_mut()).for_each(rename);
    }
}
