//! `quantize`: rewrites layers so that they read rounded activations and quantized weights, and so
//! that their sums may be corrected.
//!
//! ```text
//! y = conv(x, w, bias)   →   xq = fake_quant(x, scale[e], zero_point[e])     one for all layers that read x
//!                            wq = dequantize_weight(codes, scales)
//!                            y  = conv(xq, wq, bias[e], scale: a[e])         a and bias[e] only where a correction was fitted
//! ```
//!
//! A layer of the survey without sites reads `round_bf16(x)`. Codes can be represented in bf16, so
//! its sums can be those of products of bf16, times the scale of the weights. Everything that
//! varies by evaluation is in tables. The rewritten graph is executed by the float engine,
//! exported, reported and lowered to integers. In the preludes, which run once per request, only
//! the weights are quantized, and the inputs and sums stay float.

use super::migrate;
use super::survey::{ActivationSite, Layer, QuantSpec, Survey};
use super::weights::QuantizedWeight;
use crate::bind::{Bound, InputOrigin, Part, TableId, copy_node};
use crate::ir::{Graph, LayerId, Node, NodeId, NodeOrigin, SiteId, ValueId};
use cqc_proto::op::{Act, OpError};
use cqc_proto::{DType, Op, Tensor, ValueType};
use std::collections::{BTreeMap, HashMap};

/// The fitted tables by evaluation.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct QuantTables {
    /// Number of evaluations.
    pub evaluations: usize,
    /// Per site of the survey, its table.
    pub sites: Vec<SiteTable>,
    /// The corrections by the layer's index in the survey.
    pub corrections: BTreeMap<usize, OutputCorrection>,
}

/// The rounding of a site.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SiteTable {
    /// Scales, `[evaluations · segments]`. A scale of 0 means that the site is not rounded.
    pub scale: Vec<f32>,
    /// Zero points, `[evaluations · segments]`, which are whole numbers.
    pub zero_point: Vec<f32>,
}

/// CacheQuant's correction of quantization errors (DEC): `a · sum + b`, with the bias outside of
/// the sum.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct OutputCorrection {
    /// Factors, `[evaluations · channels]`.
    pub a: Vec<f32>,
    /// Summands, `[evaluations · channels]`, which include the layer's bias.
    pub bias: Vec<f32>,
}

impl OutputCorrection {
    /// A correction that changes nothing.
    pub fn identity(layer: &Layer, evaluations: usize) -> OutputCorrection {
        let bias = layer.bias.clone().unwrap_or_else(|| vec![0.0; layer.channels]);
        OutputCorrection {
            a: vec![1.0; evaluations * layer.channels],
            bias: bias.repeat(evaluations),
        }
    }
}

impl QuantTables {
    /// Tables that round nothing and correct nothing.
    pub fn float(survey: &Survey, evaluations: usize) -> QuantTables {
        let site = |segments: usize| {
            let zeros = vec![0.0; evaluations * segments];
            SiteTable { scale: zeros.clone(), zero_point: zeros }
        };
        let sites = survey.sites.iter().map(|s| site(s.segments.len())).collect();
        QuantTables { evaluations, sites, corrections: BTreeMap::new() }
    }

    /// These tables, of `survey`, for the survey `other`. Sites that only `other` has are not
    /// rounded.
    pub fn of_other(&self, survey: &Survey, other: &Survey) -> QuantTables {
        let mut out = QuantTables::float(other, self.evaluations);
        for (site, table) in other.sites.iter().zip(&mut out.sites) {
            if let Some(i) = survey.sites.iter().position(|s| s == site) {
                table.clone_from(&self.sites[i]);
            }
        }
        out
    }
}

/// Names of the steps that compute a layer's sum a second time for fits: from float operands, and
/// from rounded ones.
fn reference_sum_names(key: &str) -> [String; 2] {
    [format!("{key}/float sum"), format!("{key}/rounded sum")]
}

/// Options of [`annotate`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnnotateOptions {
    /// Whether the sums of corrected layers are also computed a second time, from float operands
    /// and from rounded ones. Corrections are fitted with these sums. Tables stay f32, so that fits
    /// can write them.
    pub reference_sums: bool,
}

/// Name of a table of a site or layer.
fn table_name(of: &str, what: &str) -> String {
    format!("quant:{of}/{what}")
}

/// Stores the tables that a loop has so far in f16: rows of time embeddings and corrections of the
/// cache, of which there is one per evaluation. A table that f16 cannot hold with an error below a
/// thousandth stays as it is.
pub fn narrow_tables(bound: &mut Bound) {
    for (_, table) in &mut bound.tables {
        narrow(table, TOLERANCE);
    }
}

/// Largest change that f16 may make in a table that does not choose levels, relative to the value
/// or to a thousandth of the largest value.
const TOLERANCE: f32 = 1e-3;

fn narrow(table: &mut Tensor, tolerance: f32) {
    if table.dtype() != DType::F32 {
        return;
    }
    let half = table.to_float(DType::F16);
    let values = table.to_f32_vec();
    let most = values.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
    let close = |(a, b): (&f32, f32)| (a - b).abs() <= tolerance * a.abs().max(1e-3 * most);
    if values.iter().zip(half.to_f32_vec()).all(close) {
        *table = half;
    }
}

/// The tables that [`annotate`] has added to a loop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotation {
    /// The tables of every site of the survey.
    pub sites: Vec<SiteTables>,
    /// The tables of the corrected layers.
    pub corrections: BTreeMap<LayerId, CorrectionTables>,
}

/// The tables that say how a site is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiteTables {
    /// Scales, `[evaluations, segments]`.
    pub scale: TableId,
    /// Zero points, `[evaluations, segments]`.
    pub zero_point: TableId,
}

/// The tables that correct the sums of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorrectionTables {
    /// Factors, `[evaluations, channels]`.
    pub factor: TableId,
    /// Summands, `[evaluations, channels]`.
    pub bias: TableId,
}

/// Rewrites all parts of a loop, and returns the tables that the rewritten parts read. The
/// [`NodeOrigin`] of an added node says for which site or layer it is.
///
/// # Errors
/// [`OpError`] if a rewritten node does not type-check, which is a bug of this pass.
pub fn annotate(
    bound: &mut Bound,
    survey: &Survey,
    tables: &QuantTables,
    options: AnnotateOptions,
) -> Result<Annotation, OpError> {
    let mut add = |name: String, values: &[f32], exactly: bool| {
        let width = values.len() / tables.evaluations;
        let mut tensor = Tensor::from_f32(&[tables.evaluations, width], values);
        // fits write f32
        if !options.reference_sums {
            narrow(&mut tensor, if exactly { 0.0 } else { TOLERANCE });
        }
        bound.add_table(name, tensor)
    };
    let sites = survey.sites.iter().enumerate().zip(&tables.sites).map(|((i, site), table)| {
        let of = format!("{}#{i}", site.name);
        let scale = add(table_name(&of, "scale"), &table.scale, true);
        SiteTables {
            scale,
            zero_point: add(table_name(&of, "zero_point"), &table.zero_point, true),
        }
    });
    let sites = sites.collect();
    let corrections = tables.corrections.iter().map(|(&layer, c)| {
        let of = &survey.layers[layer].value;
        let factor = add(table_name(of, "a"), &c.a, false);
        (
            LayerId(layer),
            CorrectionTables { factor, bias: add(table_name(of, "bias"), &c.bias, false) },
        )
    });
    let tables = Annotation { corrections: corrections.collect(), sites };
    let layers =
        survey.layers.iter().enumerate().map(|(i, layer)| (layer.node, LayerId(i))).collect();
    let rewrite = Rewrite { survey, tables: &tables, layers, options };
    rewrite.part(&mut bound.full)?;
    if let Some(cached) = &mut bound.cached {
        rewrite.part(&mut cached.part)?;
    }
    for prelude in [&mut bound.prelude, &mut bound.prelude_steps] {
        quantize_weights(prelude, survey)?;
    }
    Ok(tables)
}

struct Rewrite<'a> {
    survey: &'a Survey,
    tables: &'a Annotation,
    /// The layers by their nodes.
    layers: HashMap<NodeId, LayerId>,
    options: AnnotateOptions,
}

/// A part that is rewritten into another one, node by node.
pub(super) struct PartBuilder {
    /// The new part.
    pub part: Part,
    /// The values of the new part, by those of the old one.
    pub map: HashMap<ValueId, ValueId>,
    /// Inputs that are rows of tables.
    rows: HashMap<TableId, ValueId>,
    rounded: HashMap<(ValueId, SiteId), ValueId>,
    /// Values that have been rounded to bf16.
    bf16: HashMap<ValueId, ValueId>,
    /// Values that have been divided by powers of two.
    divided: HashMap<(ValueId, Vec<i8>), ValueId>,
    /// Values of the old part whose operators compute them divided.
    folds: HashMap<ValueId, Vec<i8>>,
}

impl PartBuilder {
    /// A part that has the inputs of `part` and nothing else yet.
    pub fn new(part: &Part) -> PartBuilder {
        let (g, mut to) = (&part.graph, Graph::new(part.graph.name.clone()));
        let map =
            g.inputs.iter().map(|&v| (v, to.input(&g.value(v).name, g.ty(v).clone()))).collect();
        PartBuilder {
            part: Part { graph: to, origins: part.origins.clone() },
            map,
            rows: HashMap::new(),
            rounded: HashMap::new(),
            bf16: HashMap::new(),
            divided: HashMap::new(),
            folds: HashMap::new(),
        }
    }

    /// The new part, with the outputs of the old graph.
    pub fn into_part(mut self, g: &Graph) -> Part {
        for (name, v) in &g.outputs {
            let output = self.operand(g, *v);
            self.part.graph.outputs.push((name.clone(), output));
        }
        self.part
    }

    /// The node's operands in the new graph.
    pub fn operands(&mut self, g: &Graph, node: &Node) -> Vec<Option<ValueId>> {
        node.inputs.iter().map(|v| v.map(|v| self.operand(g, v))).collect()
    }

    /// A value in the new graph. Constants are copied as they are.
    fn operand(&mut self, g: &Graph, v: ValueId) -> ValueId {
        match g.tensor(v) {
            Some(t) if !self.map.contains_key(&v) => {
                let constant = self.part.graph.constant(&g.value(v).name, t.clone());
                *self.map.entry(v).or_insert(constant)
            }
            _ => self.map[&v],
        }
    }

    /// The value divided by powers of two.
    fn divided(&mut self, x: ValueId, exponents: &[i8]) -> Result<ValueId, OpError> {
        if let Some(&v) = self.divided.get(&(x, exponents.to_vec())) {
            return Ok(v);
        }
        let v = migrate::divided(x, exponents, &mut self.part.graph)?;
        self.divided.insert((x, exponents.to_vec()), v);
        Ok(v)
    }

    /// The row of a table for this evaluation.
    fn row(&mut self, table: TableId, name: &str, width: usize) -> ValueId {
        let part = &mut self.part;
        *self.rows.entry(table).or_insert_with(|| {
            part.origins.push(InputOrigin::Table(table));
            part.graph.input(name, ValueType::fixed(DType::F32, &[width]))
        })
    }
}

impl Rewrite<'_> {
    fn part(&self, part: &mut Part) -> Result<(), OpError> {
        let g = &part.graph;
        let mut m = PartBuilder::new(part);
        // fits look at the inputs of layers as they are
        if !self.options.reference_sums {
            m.folds = migrate::folds(g, self.survey, &self.layers);
        }
        for (_, node) in g.nodes() {
            let layer = match node.origin {
                Some(NodeOrigin::Source(id)) => self.layers.get(&id),
                _ => None,
            };
            match layer {
                Some(&layer) => self.layer(g, node, layer, &mut m)?,
                None => match m.folds.get(&node.outputs[0]).cloned() {
                    None => copy_node(g, node, &mut m.part.graph, &mut m.map)?,
                    Some(e) => {
                        let inputs = m.operands(g, node);
                        let inputs = migrate::divide(g, node, &e, inputs, &mut m.part.graph);
                        let outputs = m.part.graph.repeat(g, node, node.op.clone(), &inputs)?;
                        m.map.extend(node.outputs.iter().copied().zip(outputs));
                    }
                },
            }
        }
        *part = m.into_part(g);
        Ok(())
    }

    fn layer(
        &self,
        g: &Graph,
        node: &Node,
        id: LayerId,
        m: &mut PartBuilder,
    ) -> Result<(), OpError> {
        let layer = &self.survey.layers[id.0];
        let mut inputs = m.operands(g, node);
        let (x, w) = (inputs[0], inputs[1]);
        if !layer.exponents.is_empty() && !node.input(0).is_some_and(|x| m.folds.contains_key(&x)) {
            inputs[0] = Some(m.divided(x.expect("a layer has it"), &layer.exponents)?);
        }
        for (input, &site) in inputs.iter_mut().zip(&layer.sites) {
            *input = Some(self.rounded(input.expect("a layer has it"), SiteId(site), m)?);
        }
        if layer.reads_bf16() {
            inputs[0] = Some(rounded_bf16(inputs[0].expect("a layer has it"), m)?);
        }
        let mut op = node.op.clone();
        if let Op::Attention { softmax_bits, .. } = &mut op {
            *softmax_bits = 8;
        }
        if let Some(weight) = &layer.weight {
            let name = &g.value(node.inputs[1].expect("a product has weights")).name;
            inputs[1] = Some(dequantized(&mut m.part.graph, name, weight)?);
        }
        if let Some(&CorrectionTables { factor, bias }) = self.tables.corrections.get(&id) {
            if self.options.reference_sums {
                let names = reference_sum_names(&layer.value);
                let bare = bare(&op);
                let float = m.part.graph.node(&names[0], bare.clone(), &[x, w])?[0];
                m.part.graph.set_origin(float, NodeOrigin::FloatSum(id));
                let rounded = m.part.graph.node(&names[1], bare, &[inputs[0], inputs[1]])?[0];
                m.part.graph.set_origin(rounded, NodeOrigin::RoundedSum(id));
            }
            inputs.resize(7, None);
            inputs[2] = Some(m.row(bias, &table_name(&layer.value, "bias"), layer.channels));
            inputs[6] = Some(m.row(factor, &table_name(&layer.value, "a"), layer.channels));
        }
        if let Some(e) = m.folds.get(&node.outputs[0]).cloned() {
            inputs = migrate::divide(g, node, &e, inputs, &mut m.part.graph);
        }
        let outputs = m.part.graph.repeat(g, node, op, &inputs)?;
        m.map.extend(node.outputs.iter().copied().zip(outputs));
        Ok(())
    }

    fn rounded(&self, x: ValueId, site: SiteId, m: &mut PartBuilder) -> Result<ValueId, OpError> {
        if let Some(&v) = m.rounded.get(&(x, site)) {
            return Ok(v);
        }
        let ActivationSite { name, segments } = &self.survey.sites[site.0];
        let SiteTables { scale, zero_point } = self.tables.sites[site.0];
        let of = format!("{name}#{}", site.0);
        let scale = m.row(scale, &table_name(&of, "scale"), segments.len());
        let zero = m.row(zero_point, &table_name(&of, "zero_point"), segments.len());
        let segments = if segments.len() > 1 { segments.to_vec() } else { vec![] };
        let op = Op::FakeQuant { bits: 8, segments };
        let v = m.part.graph.op(&format!("{of}/rounded"), op, &[x, scale, zero])?;
        m.part.graph.set_numbered(v);
        m.part.graph.set_origin(v, NodeOrigin::Rounds(site));
        m.rounded.insert((x, site), v);
        Ok(v)
    }
}

fn rounded_bf16(x: ValueId, m: &mut PartBuilder) -> Result<ValueId, OpError> {
    if let Some(&v) = m.bf16.get(&x) {
        return Ok(v);
    }
    let name = format!("{}/bf16", m.part.graph.value(x).name);
    let v = m.part.graph.op(&name, Op::RoundBf16, &[x])?;
    m.bf16.insert(x, v);
    Ok(v)
}

/// The product without activation, for the inputs x and w alone.
fn bare(op: &Op) -> Op {
    let mut op = op.clone();
    if let Op::Conv { act, .. } | Op::Linear { act } = &mut op {
        *act = Act::None;
    }
    op
}

fn dequantized(g: &mut Graph, name: &str, weight: &QuantizedWeight) -> Result<ValueId, OpError> {
    let codes = g.constant(&format!("{name}/codes"), weight.codes.clone());
    let scale = g.constant(&format!("{name}/scale"), weight.scale.clone());
    let (bits, output_axis, segments) = (weight.bits, weight.output_axis, weight.segments.clone());
    g.op(
        &format!("{name}/dequantized"),
        Op::DequantizeWeight { bits, output_axis, segments },
        &[codes, scale],
    )
}

/// Quantizes the weights of a prelude's products. Weights that several products share are quantized
/// as for the first of them.
fn quantize_weights(part: &mut Part, survey: &Survey) -> Result<(), OpError> {
    let weights: HashMap<NodeId, &QuantizedWeight> =
        survey.preludes.iter().map(|p| (p.node, &p.weight)).collect();
    let g = &part.graph;
    let mut m = PartBuilder::new(part);
    for (_, node) in g.nodes() {
        if let Some(NodeOrigin::Source(id)) = node.origin
            && let Some(weight) = weights.get(&id)
            && let Some(w) = node.input(1).filter(|w| !m.map.contains_key(w))
        {
            let v = dequantized(&mut m.part.graph, &g.value(w).name, weight)?;
            m.map.insert(w, v);
        }
        copy_node(g, node, &mut m.part.graph, &mut m.map)?;
    }
    *part = m.into_part(g);
    Ok(())
}

impl QuantSpec {
    /// The layers of a step, with weights of `weight_bits` bits and the defaults for everything
    /// else.
    pub fn new(weight_bits: u8) -> QuantSpec {
        QuantSpec { weight_bits, keep_float: vec![], split: true, narrow_float: true }
    }
}
