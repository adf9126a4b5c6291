//! Exported models whose inner tensors are given from outside.

use cqc_kernels::reference;
use cqc_proto::onnx::{ModelProto, TensorTypeProto, TypeProto, ValueInfoProto, data_type};
use cqc_proto::{Op, Tensor};

fn float(name: &str) -> ValueInfoProto {
    let tensor = TensorTypeProto { elem_type: Some(data_type::FLOAT), shape: None };
    let ty = TypeProto { tensor_type: Some(tensor), ..Default::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(ty) }
}

/// The model with the tensors as additional outputs.
pub fn tapped(model: &ModelProto, tensors: &[String]) -> ModelProto {
    let mut model = model.clone();
    let graph = model.graph.as_mut().unwrap();
    let missing = |t: &&String| graph.output.iter().all(|o| o.name() != t.as_str());
    let taps: Vec<ValueInfoProto> = tensors.iter().filter(missing).map(|t| float(t)).collect();
    graph.output.extend(taps);
    model
}

/// The tapped model, whose nodes read the tensors `given` from inputs named [`input_name`]: every
/// node computes its result from operands that are given.
pub fn cut(model: &ModelProto, taps: &[String], given: &[String]) -> ModelProto {
    let mut model = tapped(model, taps);
    let graph = model.graph.as_mut().unwrap();
    for input in graph.node.iter_mut().flat_map(|n| &mut n.input) {
        if given.contains(input) {
            *input = input_name(input);
        }
    }
    graph.input.extend(given.iter().map(|t| float(&input_name(t))));
    model
}

pub fn input_name(tensor: &str) -> String {
    format!("given/{tensor}")
}

fn transposed(t: &Tensor, perm: &[usize]) -> Tensor {
    reference::eval(&Op::Transpose { perm: perm.to_vec() }, &[Some(t)]).unwrap().remove(0)
}

pub fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    let each = a.to_f32_vec().into_iter().zip(b.to_f32_vec());
    each.fold(0.0, |m, (a, b)| if (a - b).is_nan() { f32::INFINITY } else { m.max((a - b).abs()) })
}

/// Every element of the last two axes repeated `times` times.
fn enlarged(t: &Tensor, times: usize) -> Tensor {
    (t.shape().len() - 2..t.shape().len()).fold(t.clone(), |t, axis| {
        let places: Vec<i64> = (0..t.shape()[axis] * times).map(|i| (i / times) as i64).collect();
        let places = Tensor::from_i64(&[places.len()], &places);
        reference::eval(&Op::Gather { axis }, &[Some(&t), Some(&places)]).unwrap().remove(0)
    })
}

/// This engine's tensor in the arrangement of the exported model: unchanged, channels first,
/// enlarged before a convolution, or with separate heads, whichever has the shape of `like`.
pub fn arranged(ours: &Tensor, like: &Tensor) -> Option<Tensor> {
    let rank = ours.shape().len();
    let mut found = vec![ours.clone()];
    if rank >= 3 {
        let first: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
        let first = transposed(ours, &first);
        found.extend((rank == 4).then(|| enlarged(&first, 2)));
        found.push(first);
    }
    if let ([b, l, _], [_, h, ..]) = (ours.shape(), like.shape())
        && like.shape().len() == 4
        && ours.shape()[2].is_multiple_of(*h)
    {
        let heads = ours.reshaped(vec![*b, *l, *h, ours.shape()[2] / h]).unwrap();
        found.extend([transposed(&heads, &[0, 2, 1, 3]), transposed(&heads, &[0, 2, 3, 1])]);
    }
    let fits = found.into_iter().filter(|t| t.shape() == like.shape());
    fits.min_by(|a, b| largest_difference(a, like).total_cmp(&largest_difference(b, like)))
}

/// `size` elements of the last axis, from `start` on.
pub fn columns(t: &Tensor, start: usize, size: usize) -> Tensor {
    let [starts, ends] = [start, start + size].map(|n| vec![(n as i64).into()]);
    let op = Op::Slice { axes: vec![t.shape().len() - 1], starts, ends, steps: vec![1] };
    reference::eval(&op, &[Some(t)]).unwrap().remove(0)
}
