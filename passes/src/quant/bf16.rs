//! `bf16`: rewrites products so that they read activations and weights rounded to bf16, and
//! attention so that it reads rounded queries, keys and values.
//!
//! ```text
//! y = conv(x, w, bias)   →   xr = round_bf16(x)              one for all products that read x
//!                            wr = cast(const bf16) to f32    stored in half the space, exact
//!                            y  = conv(xr, wr, bias)
//! y = attention(q, k, v) →   y  = attention(round_bf16(q), round_bf16(k), round_bf16(v)), whose weights are rounded to bf16
//! ```
//!
//! Nothing is fitted, so the graphs are rewritten before the calibration, and schedules and
//! corrections are found on the loop that the artifact will run. In the preludes, which run once
//! per request, only the weights are rounded, not the inputs. Tests:
//! tests/filetests/bf16/products.cqt

use super::annotate::PartBuilder;
use super::survey::{QuantSpec, candidate, source};
use crate::bind::{Bound, Part, copy_node};
use crate::ir::{Graph, Node, NodeId, ValueId};
use cqc_proto::op::{OpError, SOFTMAX_BF16};
use cqc_proto::{DType, Op, Tensor};
use std::collections::HashMap;

/// The products of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bf16Products {
    /// The products whose operands are rounded, in the order of execution.
    pub layers: Vec<Bf16Layer>,
    /// The products that stay float, each with the reason.
    pub float_layers: Vec<(String, String)>,
}

/// A product whose operands are rounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bf16Layer {
    /// Its node in the graph that was bound.
    pub node: NodeId,
    /// Name of the value that it computes.
    pub value: String,
    /// Name of its node in the source model.
    pub name: String,
    /// `conv`, `linear` or `attention`.
    pub op: String,
}

/// Rewrites all parts of a loop. The returned products are those of `full`. The bits and splits of
/// `spec` have no meaning here.
///
/// # Errors
/// [`OpError`] if a rewritten node does not type-check, which is a bug of this pass.
pub fn round_products(bound: &mut Bound, spec: &QuantSpec) -> Result<Bf16Products, OpError> {
    let mut rewrite = Rewrite { spec, weights: HashMap::new() };
    let products = rewrite.part(&mut bound.full, true)?;
    if let Some(cached) = &mut bound.cached {
        rewrite.part(&mut cached.part, true)?;
    }
    for prelude in [&mut bound.prelude, &mut bound.prelude_steps] {
        rewrite.part(prelude, false)?;
    }
    Ok(products)
}

/// Address and number of bytes of a tensor's elements.
type BufferKey = (usize, usize);

struct Rewrite<'a> {
    spec: &'a QuantSpec,
    /// Weights and their rounded form, which is the same tensor for all parts. The first tensor is
    /// kept, so that its address stays taken.
    weights: HashMap<BufferKey, (Tensor, Tensor)>,
}

impl Rewrite<'_> {
    fn part(&mut self, part: &mut Part, rounds_inputs: bool) -> Result<Bf16Products, OpError> {
        let g = &part.graph;
        let (mut m, mut known, mut found) =
            (PartBuilder::new(part), Known::default(), Bf16Products::default());
        for (_, node) in g.nodes() {
            match candidate(g, node, self.spec) {
                // nothing is gained where it runs once per request
                Some(Ok(())) if matches!(node.op, Op::Attention { .. }) && !rounds_inputs => {}
                None => {}
                Some(Err(why)) => found.float_layers.push((node.name.clone(), why)),
                Some(Ok(())) => {
                    let value = g.value(node.outputs[0]).name.clone();
                    let (name, op) = (node.name.clone(), node.op.name());
                    found.layers.push(Bf16Layer { node: source(node), value, name, op });
                    match node.op {
                        Op::Attention { .. } => attention(g, node, &mut m, &mut known)?,
                        _ => self.product(g, node, rounds_inputs, &mut m, &mut known)?,
                    }
                    continue;
                }
            }
            copy_node(g, node, &mut m.part.graph, &mut m.map)?;
        }
        *part = m.into_part(g);
        Ok(found)
    }

    fn product(
        &mut self,
        g: &Graph,
        node: &Node,
        rounds_inputs: bool,
        m: &mut PartBuilder,
        known: &mut Known,
    ) -> Result<(), OpError> {
        let (x, w) = (
            node.inputs[0].expect("a product reads something"),
            node.inputs[1].expect("and has weights"),
        );
        let mut inputs = m.operands(g, node);
        if rounds_inputs {
            inputs[0] = Some(known.rounded(g, x, m)?);
        }
        inputs[1] = Some(match known.weights.get(&w) {
            Some(&v) => v,
            None => {
                let rounded =
                    self.weight(g.tensor(w).expect("the weights of a candidate are a constant"));
                let name = &g.value(w).name;
                let stored = m.part.graph.constant(&format!("{name}/bf16"), rounded);
                let v = m.part.graph.op(
                    &format!("{name}/widened"),
                    Op::Cast { to: DType::F32 },
                    &[stored],
                )?;
                *known.weights.entry(w).or_insert(v)
            }
        });
        emit(g, node, node.op.clone(), &inputs, m)
    }

    fn weight(&mut self, w: &Tensor) -> Tensor {
        let place = (w.bytes().as_ptr().addr(), w.bytes().len());
        let rounded =
            self.weights.entry(place).or_insert_with(|| (w.clone(), w.to_float(DType::BF16)));
        // the same elements may have another shape elsewhere
        rounded.1.clone().reshaped(w.shape().to_vec()).expect("as many elements")
    }
}

/// Nodes that a part has already, by the values from which they were made.
#[derive(Default)]
struct Known {
    rounded: HashMap<ValueId, ValueId>,
    weights: HashMap<ValueId, ValueId>,
}

impl Known {
    /// `x` rounded.
    fn rounded(&mut self, g: &Graph, x: ValueId, m: &mut PartBuilder) -> Result<ValueId, OpError> {
        if let Some(&v) = self.rounded.get(&x) {
            return Ok(v);
        }
        let v =
            m.part.graph.op(&format!("{}/bf16", g.value(x).name), Op::RoundBf16, &[m.map[&x]])?;
        Ok(*self.rounded.entry(x).or_insert(v))
    }
}

fn attention(
    g: &Graph,
    node: &Node,
    m: &mut PartBuilder,
    known: &mut Known,
) -> Result<(), OpError> {
    let mut inputs = m.operands(g, node);
    for (input, x) in inputs.iter_mut().zip(&node.inputs[..3]) {
        *input = Some(known.rounded(g, x.expect("attention has queries, keys and values"), m)?);
    }
    let mut op = node.op.clone();
    if let Op::Attention { softmax_bits, .. } = &mut op {
        *softmax_bits = SOFTMAX_BF16;
    }
    emit(g, node, op, &inputs, m)
}

/// The same node with another operator and other operands.
fn emit(
    g: &Graph,
    node: &Node,
    op: Op,
    inputs: &[Option<ValueId>],
    m: &mut PartBuilder,
) -> Result<(), OpError> {
    let outputs = m.part.graph.repeat(g, node, op, inputs)?;
    m.map.extend(node.outputs.iter().copied().zip(outputs));
    Ok(())
}
