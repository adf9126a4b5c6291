//! Writes rounded values and quantized weights where a product reads them, in the form that
//! runtimes fuse: QuantizeLinear and DequantizeLinear directly before the product for values, and
//! DequantizeLinear directly before it for weights.
//!
//! A product whose input has segments, each with a scale of its own, is written as a sum of
//! products, one per segment.

use super::cx::{Cx, Def, ExportResult, Val};
use super::ops::int;
use super::{Qdq, ops};
use crate::rewrite::layout::to_last;
use cqc_proto::op::BinaryKind;
use cqc_proto::plan::WeightCodes;
use cqc_proto::{DType, Dim, Op, Tensor, ValueType};
use std::rc::Rc;

/// A value whose last axis has rounded segments.
#[derive(Debug)]
pub(super) struct Rounded {
    of: Val,
    name: String,
    segments: Vec<Segment>,
}

#[derive(Debug)]
struct Segment {
    start: usize,
    size: usize,
    /// Scale and zero point, whose type is that of the codes; `None` if the segment is not rounded.
    scale: Option<[Val; 2]>,
}

/// Quantized weights.
#[derive(Debug)]
pub(super) struct Quantized {
    /// The codes, i8.
    codes: Tensor,
    /// The scales, f32 `[outputs, segments]`.
    scale: Tensor,
    how: WeightCodes,
}

impl Quantized {
    pub fn new(codes: Tensor, scale: Tensor, how: WeightCodes) -> Quantized {
        Quantized { codes, scale, how }
    }

    fn op(&self) -> Op {
        let WeightCodes { bits, output_axis, segments, .. } = self.how.clone();
        Op::DequantizeWeight { bits, output_axis, segments }
    }
}

/// Operands of one of the products whose sum is a product with segments.
pub(super) struct Operands {
    /// The value before rounding. The product decides where its channels are.
    pub x: Val,
    pub rounding: Option<Rounding>,
    pub w: Val,
}

/// The rounding of a value.
#[derive(Clone, Debug)]
pub(super) struct Rounding {
    name: String,
    scale: [Val; 2],
}

impl Cx<'_> {
    /// A value that is rounded where it is read. The scales are those of its segments, of which
    /// there is at least one.
    pub fn rounded(
        &mut self,
        name: &str,
        x: Val,
        segments: &[usize],
        scales: Vec<Option<[Val; 2]>>,
    ) -> Val {
        if scales.iter().all(Option::is_none) {
            return x;
        }
        let sizes = if segments.is_empty() { vec![self.columns(x)] } else { segments.to_vec() };
        let mut start = 0;
        let segment = |(size, scale)| {
            start += size;
            Segment { start: start - size, size, scale }
        };
        let segments = sizes.into_iter().zip(scales).map(segment).collect();
        let rounded = Rounded { of: x, name: name.into(), segments };
        self.add(self.ty(x).clone(), Def::Rounded(Rc::new(rounded)), None, name)
    }

    /// Size of the last axis; 0 if it is not known.
    fn columns(&self, x: Val) -> usize {
        self.shape(x).last().and_then(|d| d.as_const()).map_or(0, |n| n as usize)
    }

    /// Quantized weights, which are constant `index` of the plan.
    pub fn weights(&mut self, name: &str, index: usize, weights: Quantized) -> Val {
        if self.qdq == Qdq::None {
            let floats =
                self.store.dequantized(index, &weights.op(), &weights.codes, &weights.scale);
            return self.constant(name, floats);
        }
        let shape: Vec<Dim> = weights.codes.shape().iter().map(|&n| (n as i64).into()).collect();
        self.add(ValueType::new(DType::F32, shape), Def::Quantized(Rc::new(weights)), None, name)
    }

    /// The value, and its rounding if it is rounded in one segment.
    pub fn split_rounding(&self, v: Val) -> (Val, Option<Rounding>) {
        match self.def(v) {
            Def::Rounded(rounded) if rounded.segments.len() == 1 => {
                (rounded.of, rounded.rounding(0))
            }
            _ => (v, None),
        }
    }

    /// Writes QuantizeLinear and DequantizeLinear.
    pub fn round(&mut self, x: Val, rounding: Option<&Rounding>) -> ExportResult {
        let Some(Rounding { name, scale: [scale, zero] }) = rounding else { return Ok(x) };
        if let Some(&known) = self.rounded.get(&[x, *scale, *zero]) {
            return Ok(known);
        }
        let step = std::mem::replace(&mut self.step, name.clone());
        let to = self.dtype(*zero);
        let codes = self.emit(Op::Quantize { axis: None, block: 0, to }, &[x, *scale, *zero])?;
        let y = self.emit(
            Op::Dequantize { axis: None, block: 0, to: DType::F32 },
            &[codes, *scale, *zero],
        )?;
        self.step = step;
        self.rounded.insert([x, *scale, *zero], y);
        Ok(y)
    }

    /// Writes the rounding of all segments of a value, for operators that are not products.
    pub(super) fn all_rounded(&mut self, rounded: &Rounded) -> Val {
        let axis = self.rank(rounded.of) - 1;
        let parts = (0..rounded.segments.len()).map(|i| {
            let x = self.segment(rounded, i)?;
            self.round(x, rounded.rounding(i).as_ref())
        });
        let parts = parts.collect::<ExportResult<Vec<Val>>>().expect("floats have a spelling");
        if parts.len() == 1 {
            return parts[0];
        }
        self.emit(Op::Concat { axis }, &parts).expect("Concat has a spelling")
    }

    /// A segment, taken from the concat that joins it if there is one.
    fn segment(&mut self, rounded: &Rounded, i: usize) -> ExportResult {
        let (x, &Segment { start, size, .. }) = (rounded.of, &rounded.segments[i]);
        if rounded.segments.len() == 1 {
            return Ok(x);
        }
        if let Some(&known) = self.segments.get(&(x, start)) {
            return Ok(known);
        }
        let part = match self.part_of_concat(x, start, size) {
            Some(part) => part,
            None => {
                let step = std::mem::replace(&mut self.step, rounded.name.clone());
                let part = ops::quant::part(self, x, self.rank(x) - 1, start, size)?;
                self.step = step;
                part
            }
        };
        self.segments.insert((x, start), part);
        Ok(part)
    }

    fn part_of_concat(&mut self, x: Val, start: usize, size: usize) -> Option<Val> {
        let (root, first) = match self.def(x) {
            Def::Transposed { of, perm } if *perm == to_last(perm.len()) => (*of, true),
            _ => (x, false),
        };
        let channels = if first { 1 } else { self.rank(x) - 1 };
        let (axis, parts) = self.joined.get(&root)?.clone();
        let mut at = 0;
        for part in parts.into_iter().filter(|_| axis == channels) {
            let own = self.shape(part)[channels].as_const()? as usize;
            if (at, own) == (start, size) {
                return Some(if first { self.last(part) } else { part });
            }
            at += own;
        }
        None
    }

    /// The operands of the products whose sum is the product of `x` and `w`.
    pub fn operands(&mut self, x: Val, w: Val) -> ExportResult<Vec<Operands>> {
        let weights = match self.def(w) {
            Def::Quantized(weights) => Some(weights.clone()),
            _ => None,
        };
        if let (Def::Rounded(rounded), Some(weights)) = (self.def(x), &weights)
            && rounded.sizes() == weights.how.segments
        {
            let rounded = rounded.clone();
            let of = |i: usize| {
                let (x, w) = (self.segment(&rounded, i)?, self.weight_segment(w, weights, i)?);
                Ok(Operands { x, rounding: rounded.rounding(i), w })
            };
            return (0..rounded.segments.len()).map(of).collect();
        }
        let (x, rounding) = self.split_rounding(x);
        let w = match &weights {
            Some(weights) if weights.how.segments.is_empty() => {
                self.weight_segment(w, weights, 0)?
            }
            _ => w,
        };
        Ok(vec![Operands { x, rounding, w }])
    }

    /// Writes DequantizeLinear of the weights of a segment, along the axis of outputs. Each has its
    /// own zero points, because ONNX Runtime replaces them where it changes the type of weights.
    fn weight_segment(&mut self, w: Val, weights: &Quantized, i: usize) -> ExportResult {
        if let Some(&known) = self.segments.get(&(w, i)) {
            return Ok(known);
        }
        let Quantized { codes, scale, how } = weights;
        let (name, axis) = (self.label(w).to_string(), how.output_axis);
        let outputs = codes.shape()[axis];
        let (codes, scale) = match how.segments.get(i) {
            None => (codes.clone(), scale.clone()),
            Some(&size) => {
                let start = how.segments[..i].iter().sum();
                (self.store.cut(codes, 1 - axis, start, size), self.store.cut(scale, 1, i, 1))
            }
        };
        let scale = scale.reshaped(vec![outputs]).expect("a scale per output");
        let shape = codes.value_type().shape;
        let (label, ty) = (format!("{name}/codes"), codes.value_type());
        // TensorRT has 4 bits only for weights in blocks
        let is_packed = how.bits == 4 && self.qdq != Qdq::Trt;
        let def = if is_packed { Def::Nibbles(codes) } else { Def::Constant(codes) };
        let codes = self.add(ty, def, None, &label);
        let zeros = self.scope.zeros(&format!("{name}/zero_point"), outputs, is_packed);
        let zeros = self.add(ValueType::fixed(DType::I8, &[outputs]), Def::Named, Some(zeros), "");
        let scale = self.constant(&format!("{name}/scale"), scale);
        let step = std::mem::replace(&mut self.step, name);
        let attributes = vec![int("axis", axis as i64)];
        let ty = ValueType::new(DType::F32, shape);
        let y = self.node("DequantizeLinear", &[codes, scale, zeros], attributes, ty);
        self.step = step;
        self.segments.insert((w, i), y);
        Ok(y)
    }

    /// Dequantizes all weights, for operators that are not products.
    pub(super) fn dequantized(&mut self, weights: &Quantized) -> Val {
        let codes = self.constant("codes", weights.codes.clone());
        let scale = self.constant("scale", weights.scale.clone());
        self.emit(weights.op(), &[codes, scale]).expect("DequantizeLinear takes i8")
    }

    /// The sum of the results of products.
    pub fn sum(&mut self, parts: &[Val]) -> ExportResult {
        let mut sum = parts[0];
        for &part in &parts[1..] {
            sum = self.binary(BinaryKind::Add, sum, part)?;
        }
        Ok(sum)
    }
}

impl Rounded {
    fn rounding(&self, i: usize) -> Option<Rounding> {
        let segment = &self.segments[i];
        let name =
            if self.segments.len() > 1 { format!("{}.{i}", self.name) } else { self.name.clone() };
        segment.scale.map(|scale| Rounding { name, scale })
    }

    /// The sizes in the form of a plan: empty for a single segment.
    fn sizes(&self) -> Vec<usize> {
        let sizes = self.segments.iter().map(|s| s.size);
        if self.segments.len() > 1 { sizes.collect() } else { vec![] }
    }
}
