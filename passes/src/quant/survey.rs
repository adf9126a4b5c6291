//! Surveys the layers of a step that can be quantized, and the tensors that they read.
//!
//! Layers are convolutions and linear layers whose weights are constants, and attentions. If a
//! layer reads a concat, directly or through operators that keep channels apart (a normalisation,
//! an activation), its input and its weights are split at the border of the concat, and each
//! segment has a scale of its own (the shortcut splitting of Q-Diffusion, arXiv:2302.04304).

use super::weights::QuantizedWeight;
use crate::bind::{Bound, CachedPart, InputOrigin, Part};
use crate::ir::{Graph, Node, NodeId, NodeOrigin, ValueId};
use cqc_proto::op::Quantization;
use cqc_proto::{Bindings, Op, Tensor};
use std::collections::{BTreeMap, HashSet};

/// Options of the survey.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantSpec {
    /// Bits of the weights: one of [`WEIGHT_BITS`](cqc_proto::op::WEIGHT_BITS), or 16 for bf16. The
    /// first and the last layer have 8, as in CacheQuant.
    pub weight_bits: u8,
    /// Names of layers that stay float.
    pub keep_float: Vec<String>,
    /// Whether inputs are split at concats.
    pub split: bool,
    /// Whether layers with few channels stay float; see [`FEW_CHANNELS`].
    pub narrow_float: bool,
}

/// Layers with fewer input or output channels than this stay float. They have next to no work to
/// save and do not fill vectors of integers, and they read the sample and write the prediction,
/// where 8 bits cost more than anywhere between. (On the U-Net that the tests use, rounding the
/// first layer alone leaves 26 dB, and rounding all others together 38 dB.)
pub const FEW_CHANNELS: usize = 16;

/// A layer that is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Its node in the graph that was bound, for which all forms of the step stand.
    pub node: NodeId,
    /// Name of the value that it computes, from which the names of its tables are made.
    pub value: String,
    /// Name of its node in the source model.
    pub name: String,
    /// `conv`, `linear` or `attention`.
    pub op: String,
    /// Sites of its inputs: one, or those of q, k and v. It is empty if the layer reads inputs
    /// rounded to bf16.
    pub sites: Vec<usize>,
    /// Exponents of the powers of two by which its input channels are divided and its weights
    /// multiplied; see [`migrate`](super::migrate). It is empty if they are not.
    pub exponents: Vec<i8>,
    /// Its quantized weights; `None` for attention.
    pub weight: Option<QuantizedWeight>,
    /// Number of output channels.
    pub channels: usize,
    /// Its bias, which is zeros if it has none; `None` if the bias is computed.
    pub bias: Option<Vec<f32>>,
    /// Multiply-accumulates per sample.
    pub macs: i64,
    /// Whether its input comes from the cache without passing another layer.
    pub reads_cache: bool,
    /// Whether cached steps run it, or find its result in the cache.
    pub is_live: bool,
}

impl Layer {
    /// Whether it reads bf16 instead of codes.
    pub fn reads_bf16(&self) -> bool {
        self.sites.is_empty()
    }
}

/// A tensor that layers read rounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActivationSite {
    /// Name of the value.
    pub name: String,
    /// Sizes of the segments of its channels; there is at least one.
    pub segments: Vec<usize>,
}

/// Quantized weights of a product in a prelude. The inputs and the results of the product stay
/// float.
#[derive(Clone, Debug, PartialEq)]
pub struct PreludeWeight {
    /// The product's node in the graph that was bound.
    pub node: NodeId,
    /// The quantized weights.
    pub weight: QuantizedWeight,
}

/// The layers of a loop.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// The layers, in the order of execution.
    pub layers: Vec<Layer>,
    /// Weights of the preludes, in the order of execution.
    pub preludes: Vec<PreludeWeight>,
    /// The tensors that the layers read.
    pub sites: Vec<ActivationSite>,
    /// The layers that stay float, each with the reason.
    pub float_layers: Vec<(String, String)>,
}

impl Survey {
    /// The survey without some of the sites. The products that read them read bf16 instead, so one
    /// scale per output suffices for their weights.
    pub fn without(&self, sites: &[usize]) -> Survey {
        let kept: Vec<usize> = (0..self.sites.len()).filter(|site| !sites.contains(site)).collect();
        let mut out = self.clone();
        out.sites = kept.iter().map(|&site| self.sites[site].clone()).collect();
        for layer in &mut out.layers {
            layer.sites =
                layer.sites.iter().filter_map(|site| kept.binary_search(site).ok()).collect();
            if let Some(weight) =
                layer.weight.take_if(|w| layer.sites.is_empty() && !w.segments.is_empty())
            {
                layer.weight = Some(QuantizedWeight::nearest(
                    &weight.float,
                    weight.output_axis,
                    &[],
                    weight.bits,
                ));
            }
        }
        out
    }
}

/// Surveys the layers of `full`, whose nodes `cached` repeats.
pub fn survey(bound: &Bound, spec: &QuantSpec, batch: Option<&str>) -> Survey {
    let g = &bound.full.graph;
    let products: Vec<&Node> =
        g.nodes().map(|(_, node)| node).filter(|node| is_product(node)).collect();
    let (first, last) =
        (products.first().map(|n| n.outputs[0]), products.last().map(|n| n.outputs[0]));
    let reads_cache =
        bound.cached.as_ref().map_or_else(HashSet::new, |cached| cache_readers(&cached.part));
    let live = bound.cached.as_ref().map(|cached| live_nodes(bound, cached));
    let one: Bindings = batch.iter().map(|&s| (s.into(), 1)).collect();
    let mut out = Survey::default();
    let mut known: BTreeMap<(ValueId, Vec<usize>), usize> = BTreeMap::new();
    for (_, node) in g.nodes() {
        match candidate(g, node, spec) {
            None => {}
            Some(Err(why)) => out.float_layers.push((node.name.clone(), why)),
            Some(Ok(())) => {
                let segments = if spec.split { segments(g, node) } else { vec![] };
                let edge = [first, last].contains(&Some(node.outputs[0]));
                let bits = if edge { 8 } else { spec.weight_bits };
                let quantization = node.op.traits().quantization;
                let count = quantization.rounded_operands();
                let mut site = |v: ValueId| {
                    let name = g.value(v).name.clone();
                    let sizes =
                        if segments.is_empty() { vec![channels(g, v)] } else { segments.clone() };
                    *known.entry((v, sizes.clone())).or_insert_with(|| {
                        out.sites.push(ActivationSite { name, segments: sizes });
                        out.sites.len() - 1
                    })
                };
                let sites = (0..count).filter_map(|i| node.input(i)).map(&mut site).collect();
                let weight = node.input(1).and_then(|w| g.tensor(w)).filter(|_| is_product(node));
                let weight = weight.zip(quantization.output_axis());
                let weight =
                    weight.map(|(w, axis)| QuantizedWeight::nearest(w, axis, &segments, bits));
                let channels = channels(g, node.outputs[0]);
                out.layers.push(Layer {
                    name: node.name.clone(),
                    op: node.op.name(),
                    sites,
                    exponents: vec![],
                    weight,
                    channels,
                    bias: bias(g, node, channels),
                    macs: g.cost(node).macs.eval(&one).unwrap_or(0),
                    reads_cache: reads_cache.contains(&source(node)),
                    is_live: live.as_ref().is_none_or(|live| live.contains(&source(node))),
                    node: source(node),
                    value: g.value(node.outputs[0]).name.clone(),
                });
            }
        }
    }
    for part in [&bound.prelude, &bound.prelude_steps] {
        out.preludes.extend(prelude_weights(&part.graph, spec.weight_bits));
    }
    out
}

/// Weights of the products of a prelude.
fn prelude_weights(g: &Graph, bits: u8) -> impl Iterator<Item = PreludeWeight> {
    g.nodes().filter_map(move |(_, node)| {
        let axis = node.op.traits().quantization.output_axis().filter(|_| !is_grouped(node))?;
        let weight = QuantizedWeight::nearest(g.tensor(node.input(1)?)?, axis, &[], bits);
        Some(PreludeWeight { node: source(node), weight })
    })
}

/// The node of the graph that was bound.
///
/// # Panics
/// If the node was added for a part; no such node is a layer.
pub(super) fn source(node: &Node) -> NodeId {
    match node.origin {
        Some(NodeOrigin::Source(id)) => id,
        other => panic!("`{}` is a layer, its origin is {other:?}", node.name),
    }
}

/// Nodes that the cached step runs, and those whose results it finds in the cache.
fn live_nodes(bound: &Bound, cached: &CachedPart) -> HashSet<NodeId> {
    let full = &bound.full.graph;
    let stored = full
        .outputs
        .iter()
        .rev()
        .take(cached.slots.len())
        .filter_map(|(_, v)| full.producer_node(*v));
    let origins = cached
        .part
        .graph
        .nodes()
        .map(|(_, node)| node)
        .chain(stored)
        .filter_map(|node| node.origin);
    origins
        .filter_map(|origin| if let NodeOrigin::Source(id) = origin { Some(id) } else { None })
        .collect()
}

fn is_product(node: &Node) -> bool {
    node.op.traits().quantization.is_product()
}

/// Whether the node is a convolution whose channels are in groups.
fn is_grouped(node: &Node) -> bool {
    if let Op::Conv { groups, .. } = &node.op { *groups > 1 } else { false }
}

/// Whether the node is a layer that can be quantized, or the reason why the layer cannot; `None` if
/// it is no layer.
pub(super) fn candidate(g: &Graph, node: &Node, spec: &QuantSpec) -> Option<Result<(), String>> {
    let refuse = |why: &str| Some(Err(why.to_string()));
    let quantization = node.op.traits().quantization;
    if spec.keep_float.contains(&node.name) && quantization.rounded_operands() > 0 {
        return refuse("as asked");
    }
    match quantization {
        Quantization::Product { .. } if g.tensor(node.input(1)?).is_none() => {
            refuse("its weights are computed")
        }
        Quantization::Product { .. } if is_grouped(node) => {
            refuse("its channels are in groups: fewer bits gain nothing")
        }
        Quantization::Product { .. } if spec.narrow_float && is_narrow(g, node) => {
            Some(Err(format!("fewer than {FEW_CHANNELS} channels go in or out")))
        }
        Quantization::Product { .. } if has_channels_first(node) => {
            refuse("its channels come first")
        }
        Quantization::Product { .. } | Quantization::Attention => Some(Ok(())),
        Quantization::FloatProduct => refuse("its operator has no form with fewer bits"),
        Quantization::KeepsChannels | Quantization::MixesChannels => None,
    }
}

/// Whether the node is a convolution over channels-first images.
fn has_channels_first(node: &Node) -> bool {
    if let Op::Conv { layout, .. } = &node.op { layout.channel_axis(4) != 3 } else { false }
}

fn is_narrow(g: &Graph, node: &Node) -> bool {
    let ends = [node.input(0), node.outputs.first().copied()];
    ends.into_iter().flatten().any(|v| channels(g, v) < FEW_CHANNELS)
}

/// Size of the last axis.
fn channels(g: &Graph, v: ValueId) -> usize {
    g.shape(v).last().and_then(|d| d.as_const()).map_or(1, |c| c as usize)
}

fn bias(g: &Graph, node: &Node, channels: usize) -> Option<Vec<f32>> {
    match node.input(2).filter(|_| is_product(node)) {
        None => Some(vec![0.0; channels]),
        Some(v) => g.tensor(v).map(Tensor::to_f32_vec),
    }
}

/// Sizes of the parts of the concat from which a product's input comes; empty if it comes from no
/// concat.
fn segments(g: &Graph, node: &Node) -> Vec<usize> {
    let Some(mut v) = node.input(0).filter(|_| is_product(node)) else { return vec![] };
    while let Some(producer) = g.producer_node(v) {
        match &producer.op {
            op if op.traits().quantization == Quantization::KeepsChannels => {
                v = producer.inputs[0].expect("it has channels to keep");
            }
            Op::Concat { axis } if *axis + 1 == g.shape(v).len() && producer.inputs.len() > 1 => {
                let sizes =
                    producer.inputs.iter().flatten().map(|&part| g.shape(part)[*axis].as_const());
                return sizes
                    .map(|n| n.map(|n| n as usize))
                    .collect::<Option<_>>()
                    .unwrap_or_default();
            }
            _ => return vec![],
        }
    }
    vec![]
}

/// Layers of a cached step that read the cache without another layer between.
fn cache_readers(part: &Part) -> HashSet<NodeId> {
    let g = &part.graph;
    let slots = g
        .inputs
        .iter()
        .zip(&part.origins)
        .filter(|(_, origin)| matches!(origin, InputOrigin::Cache(_)));
    let mut reached: HashSet<ValueId> = slots.map(|(&v, _)| v).collect();
    let mut out = HashSet::new();
    for (_, node) in g.nodes() {
        let operands = node.op.traits().quantization.rounded_operands();
        if operands > 0 {
            if (0..operands).filter_map(|i| node.input(i)).any(|v| reached.contains(&v)) {
                out.insert(source(node));
            }
        } else if node.inputs.iter().flatten().any(|v| reached.contains(v)) {
            reached.extend(&node.outputs);
        }
    }
    out
}
