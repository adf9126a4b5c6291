//! Scale migration: channels of a layer's input are divided by powers of two, by which its weights
//! are multiplied, so that a channel far larger than its neighbours no longer decides the scale of
//! all (SmoothQuant, arXiv:2211.10438). Powers of two change exponents only, so the float loop
//! stays the same, bit for bit.
//!
//! For input channel j the factor is max|x_j|^a / max|w_j|^(1 − a), relative to the median of its
//! segment. The error of the layers' sums on held-out rows decides which a is best, or that none
//! is. Rounding errors of inputs and of weights are assumed to be independent.
//!
//! `folds` finds the operators that can compute the divided input themselves at no cost: a norm by
//! its gain, a product by its gate, a multiplication by a constant. Elsewhere the division is an
//! operator of its own, `affine`.

use super::survey::{Layer, Survey};
use super::weights::{QuantizedWeight, WeightLayout};
use crate::calib::range::search_exact;
use crate::ir::{Graph, LayerId, Node, NodeId, NodeOrigin, ValueId};
use cqc_proto::op::operand::{BETA, GAMMA, GATE, RESIDUAL, X};
use cqc_proto::op::{Act, BinaryKind, ConvLayout, OpError};
use cqc_proto::{DType, Op, Tensor};
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

/// The values of a that are tried.
const ALPHAS: [f64; 4] = [0.5, 0.65, 0.8, 1.0];

/// Scales are migrated if the square of the error falls to this share of the one without migration.
const WORTHWHILE: f64 = 0.5;

/// A site is examined only if a channel has an exponent of at least this size. With less to gain,
/// the division may cost more time than it is worth.
const OUTLIER: i8 = 2;

/// Largest exponent.
const MOST: f64 = 16.0;

/// The channels whose scales are migrated. The text forms are `auto`, `none` and the number a.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Migrate {
    /// Where it helps on held-out rows, with the a that helps most.
    #[default]
    Auto,
    /// No channels.
    None,
    /// With this a, 0 to 1, wherever channels differ.
    Alpha(f64),
}

impl fmt::Display for Migrate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Migrate::Auto => f.write_str("auto"),
            Migrate::None => f.write_str("none"),
            Migrate::Alpha(a) => write!(f, "{a}"),
        }
    }
}

impl FromStr for Migrate {
    type Err = String;

    fn from_str(text: &str) -> Result<Migrate, String> {
        match text {
            "auto" => Ok(Migrate::Auto),
            "none" => Ok(Migrate::None),
            _ => match text.parse() {
                Ok(a) if (0.0..=1.0).contains(&a) => Ok(Migrate::Alpha(a)),
                _ => Err("expected auto, none, or a number from 0 to 1".into()),
            },
        }
    }
}

/// Some rows of the inputs of layers, from several evaluations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Per channel, the largest magnitude relative to that of the evaluation's largest channel, in
    /// the evaluation where this is greatest. It is empty if a value was not finite.
    pub profile: Vec<f32>,
    /// Per evaluation, rows `[rows, channels]` on which ranges are found.
    pub fit: Vec<Vec<f32>>,
    /// Per evaluation, rows `[rows, channels]` of other samples, on which errors are measured.
    pub held: Vec<Vec<f32>>,
}

impl Seen {
    /// Adds the rows `x`, `[rows, channels]`, of one evaluation. Of these, at most `keep` evenly
    /// spaced rows are kept; none if it is `None`. Rows with `held_out` are kept for measuring
    /// only.
    pub fn add(&mut self, x: &[f32], channels: usize, keep: Option<usize>, held_out: bool) {
        if !held_out {
            let mut largest = vec![0f32; channels];
            for row in x.chunks_exact(channels) {
                largest.iter_mut().zip(row).for_each(|(m, x)| *m = m.max(x.abs()));
            }
            let most = largest.iter().fold(0f32, |a, &b| a.max(b));
            self.profile.resize(channels, 0.0);
            if most > 0.0 {
                let parts = self.profile.iter_mut().zip(&largest);
                parts.for_each(|(part, &largest)| *part = part.max(largest / most));
            }
        }
        if let Some(rows) = keep {
            let every = (x.len() / channels).div_ceil(rows).max(1);
            let kept: Vec<&[f32]> = x.chunks_exact(channels).step_by(every).collect();
            if held_out { &mut self.held } else { &mut self.fit }.push(kept.concat());
        }
    }

    fn is_finite(&self) -> bool {
        self.fit.iter().chain(&self.held).flatten().all(|x| x.is_finite())
    }
}

/// The exponents of the powers of two by which the channels of a site are divided; `None` if they
/// stay as they are.
pub fn choose(survey: &Survey, site: usize, seen: &Seen, how: Migrate) -> Option<Vec<i8>> {
    let segments = &survey.sites[site].segments;
    let layers: Vec<&Layer> = survey.layers.iter().filter(|l| l.sites.contains(&site)).collect();
    let weights: Vec<&QuantizedWeight> =
        layers.iter().map(|l| l.weight.as_ref()).collect::<Option<_>>()?;
    let channels: usize = segments.iter().sum();
    if seen.profile.len() != channels || !seen.is_finite() {
        return None;
    }
    let most = largest_weights(&weights, segments);
    let of = |a: f64| exponents(&seen.profile, &most, segments, a);
    let differs = |e: &Vec<i8>| e.iter().any(|&e| e != 0);
    match how {
        Migrate::None => None,
        Migrate::Alpha(a) => Some(of(a)).filter(differs),
        Migrate::Auto => {
            let columns = column_squares(&weights, channels);
            let none = vec![0; channels];
            let inputs = |e: &[i8]| input_error(seen, segments, &columns, e);
            let before = inputs(&none);
            let candidates: Vec<(Vec<i8>, f64)> = ALPHAS
                .iter()
                .map(|&a| of(a))
                .filter(|e: &Vec<i8>| e.iter().any(|&e| e >= OUTLIER))
                .map(|e| (inputs(&e), e))
                .filter(|(error, _)| *error < WORTHWHILE * before)
                .map(|(error, e)| (e, error))
                .collect();
            if candidates.is_empty() {
                return None;
            }
            let least = WORTHWHILE * (before + weight_error(seen, &weights, &none));
            let mut best: Option<(Vec<i8>, f64)> = None;
            for (e, error) in candidates {
                let error = error + weight_error(seen, &weights, &e);
                if error < best.as_ref().map_or(least, |best| best.1) {
                    best = Some((e, error));
                }
            }
            best.map(|best| best.0)
        }
    }
}

/// Divides the channels of sites by the powers of two with these exponents, and multiplies the
/// weights that read them.
pub fn migrate(survey: &mut Survey, exponents: &[Option<Vec<i8>>]) {
    for layer in &mut survey.layers {
        let found = layer.sites.first().and_then(|&site| exponents[site].as_ref());
        if let (Some(exponents), Some(weight)) = (found, &layer.weight) {
            layer.weight = Some(multiplied(weight, exponents));
            layer.exponents.clone_from(exponents);
        }
    }
}

/// Per channel, the largest weight of any output, relative to the output's largest one in its
/// segment.
fn largest_weights(weights: &[&QuantizedWeight], segments: &[usize]) -> Vec<f32> {
    let channels: usize = segments.iter().sum();
    let mut most = vec![0f32; channels];
    for weight in weights {
        let layout = WeightLayout::new(weight.float.shape(), weight.output_axis);
        let values = weight.float.to_f32_vec();
        let taps = |n: usize, c: usize| {
            (0..layout.rest).fold(0f32, |m, r| m.max(values[layout.at(n, c, r)].abs()))
        };
        for n in 0..layout.outputs {
            let mut start = 0;
            for &size in segments {
                let own: Vec<f32> = (start..start + size).map(|c| taps(n, c)).collect();
                let row = own.iter().fold(0f32, |a, &b| a.max(b));
                if row > 0.0 {
                    let parts = most[start..start + size].iter_mut().zip(&own);
                    parts.for_each(|(m, &w)| *m = m.max(w / row));
                }
                start += size;
            }
        }
    }
    most
}

fn exponents(profile: &[f32], weights: &[f32], segments: &[usize], a: f64) -> Vec<i8> {
    let log = |c: usize| {
        let (x, w) = (f64::from(profile[c]), f64::from(weights[c]));
        (x > 0.0 && w > 0.0).then(|| a * x.log2() - (1.0 - a) * w.log2())
    };
    let mut out = Vec::with_capacity(profile.len());
    let mut start = 0;
    for &size in segments {
        let logs: Vec<Option<f64>> = (start..start + size).map(log).collect();
        let mut known: Vec<f64> = logs.iter().flatten().copied().collect();
        known.sort_by(f64::total_cmp);
        let middle = known.get(known.len() / 2).copied().unwrap_or(0.0);
        let exponent = |log: &Option<f64>| {
            log.map_or(0, |log| (log - middle).round_ties_even().clamp(-MOST, MOST) as i8)
        };
        out.extend(logs.iter().map(exponent));
        start += size;
    }
    out
}

/// 2^e.
fn power(e: i8) -> f32 {
    f32::from_bits(((127 + i32::from(e)) as u32) << 23)
}

/// Per channel, the sum of the squares of its weights.
fn column_squares(weights: &[&QuantizedWeight], channels: usize) -> Vec<f64> {
    let mut sums = vec![0.0; channels];
    for weight in weights {
        let layout = WeightLayout::new(weight.float.shape(), weight.output_axis);
        let values = weight.float.to_f32_vec();
        for n in 0..layout.outputs {
            for (c, sum) in sums.iter_mut().enumerate() {
                let taps = (0..layout.rest).map(|r| f64::from(values[layout.at(n, c, r)]).powi(2));
                *sum += taps.sum::<f64>();
            }
        }
    }
    sums
}

/// Σ over held-out rows and channels of the squares of the rounding errors of the divided inputs,
/// times the squares of the multiplied weights that read them.
fn input_error(seen: &Seen, segments: &[usize], columns: &[f64], e: &[i8]) -> f64 {
    let channels = e.len();
    let divided = |rows: &[f32], from: usize, to: usize| -> Vec<f32> {
        let of = |row: &[f32]| -> Vec<f32> { (from..to).map(|c| row[c] * power(-e[c])).collect() };
        rows.chunks_exact(channels).flat_map(of).collect()
    };
    let mut sum = 0.0;
    for (fit, held) in seen.fit.iter().zip(&seen.held) {
        let mut start = 0;
        for &size in segments {
            let end = start + size;
            let (scale, zero) = search_exact(&divided(fit, start, end), 8).parameters(8);
            let zero = f32::from(zero);
            for row in divided(held, start, end).chunks_exact(size) {
                for (&x, c) in row.iter().zip(start..) {
                    let code = ((x / scale).round_ties_even() + zero).clamp(0.0, 255.0);
                    let error = f64::from((code - zero) * scale - x);
                    sum += error * error * columns[c] * f64::from(power(e[c])).powi(2);
                }
            }
            start = end;
        }
    }
    sum
}

/// The corresponding sum for the rounding errors of the multiplied weights.
fn weight_error(seen: &Seen, weights: &[&QuantizedWeight], e: &[i8]) -> f64 {
    let mut squares = vec![0f64; e.len()];
    for row in seen.held.iter().flat_map(|rows| rows.chunks_exact(e.len())) {
        let parts = squares.iter_mut().zip(row).zip(e);
        parts.for_each(|((sum, x), &e)| *sum += f64::from(x * power(-e)).powi(2));
    }
    let of = |weight: &&QuantizedWeight| {
        let rounded = multiplied(weight, e);
        let layout = WeightLayout::new(rounded.float.shape(), rounded.output_axis);
        let (values, codes) = (rounded.float.to_f32_vec(), rounded.code_values());
        let scales = rounded.scale.to_f32_vec();
        let sizes = match &rounded.segments[..] {
            [] => vec![layout.inputs],
            segments => segments.to_vec(),
        };
        let mut sum = 0.0;
        for n in 0..layout.outputs {
            let mut channel = 0;
            for (segment, &size) in sizes.iter().enumerate() {
                let scale = scales[n * sizes.len() + segment];
                for (c, square) in squares.iter().enumerate().skip(channel).take(size) {
                    for r in 0..layout.rest {
                        let at = layout.at(n, c, r);
                        let error = f64::from(f32::from(codes[at]) * scale - values[at]);
                        sum += error * error * square;
                    }
                }
                channel += size;
            }
        }
        sum
    };
    weights.iter().map(of).sum()
}

/// Weights whose input channels are multiplied by 2^e, rounded anew.
fn multiplied(weight: &QuantizedWeight, e: &[i8]) -> QuantizedWeight {
    if e.iter().all(|&e| e == 0) {
        return weight.clone();
    }
    let layout = WeightLayout::new(weight.float.shape(), weight.output_axis);
    let mut values = weight.float.to_f32_vec();
    for n in 0..layout.outputs {
        for (c, &e) in e.iter().enumerate() {
            (0..layout.rest).for_each(|r| values[layout.at(n, c, r)] *= power(e));
        }
    }
    let float = Tensor::from_f32(weight.float.shape(), &values);
    QuantizedWeight::nearest(&float, weight.output_axis, &weight.segments, weight.bits)
}

/// Values of a part that their operators can divide by 2^e at no cost: those that only layers read,
/// all with the same exponents.
pub(super) fn folds(
    g: &Graph,
    survey: &Survey,
    layers: &HashMap<NodeId, LayerId>,
) -> HashMap<ValueId, Vec<i8>> {
    let mut wanted: HashMap<ValueId, (&[i8], usize)> = HashMap::new();
    for (_, node) in g.nodes() {
        let Some(NodeOrigin::Source(id)) = node.origin else { continue };
        let Some(layer) = layers.get(&id).map(|id| &survey.layers[id.0]) else { continue };
        if let Some(x) = node.input(X).filter(|_| !layer.exponents.is_empty()) {
            let entry = wanted.entry(x).or_insert((&layer.exponents, 0));
            entry.1 += usize::from(entry.0 == layer.exponents);
        }
    }
    let readers = g.reader_counts();
    let kept = |v: ValueId| g.outputs.iter().any(|(_, output)| *output == v);
    let folded = wanted.into_iter().filter(|&(v, (_, count))| {
        count == readers[v.0 as usize]
            && !kept(v)
            && g.producer_node(v).is_some_and(|node| takes_factor(g, node))
    });
    folded.map(|(v, (e, _))| (v, e.to_vec())).collect()
}

/// Whether [`divide`] can change the node.
fn takes_factor(g: &Graph, node: &Node) -> bool {
    let constant = |i: usize| node.input(i).is_none_or(|v| g.tensor(v).is_some());
    let free = |i: usize| node.input(i).is_none();
    match &node.op {
        Op::Linear { .. } => free(GATE) && free(RESIDUAL),
        Op::Conv { layout, .. } => {
            *layout != ConvLayout::ChannelsFirst && free(GATE) && free(RESIDUAL)
        }
        Op::GroupNorm { layout, act, .. } => {
            *layout != ConvLayout::ChannelsFirst
                && *act == Act::None
                && constant(GAMMA)
                && constant(BETA)
        }
        Op::LayerNorm { .. } => {
            constant(GAMMA) && constant(BETA) && node.inputs.iter().skip(3).all(Option::is_none)
        }
        Op::RmsNorm { .. } => constant(GAMMA),
        Op::Binary { kind: BinaryKind::Mul } => channel_factor(g, node).is_some(),
        _ => false,
    }
}

/// The operand of a multiplication that is a constant with one number per channel.
fn channel_factor(g: &Graph, node: &Node) -> Option<usize> {
    let y = g.shape(node.outputs[0]);
    let channels = y.last()?.as_const()?;
    let is_row = |v: ValueId| {
        let shape = g.tensor(v).map(Tensor::shape)?;
        let (last, front) = shape.split_last()?;
        Some(*last as i64 == channels && front.iter().all(|&n| n == 1) && shape.len() <= y.len())
    };
    let other = |i: usize| node.input(1 - i).is_some_and(|v| g.shape(v) == y);
    (0..2).find(|&i| node.input(i).and_then(is_row) == Some(true) && other(i))
}

/// The operands with which the node computes its result divided by 2^e. `inputs` are its operands
/// in `to`.
pub(super) fn divide(
    g: &Graph,
    node: &Node,
    e: &[i8],
    mut inputs: Vec<Option<ValueId>>,
    to: &mut Graph,
) -> Vec<Option<ValueId>> {
    let name = &g.value(node.outputs[0]).name;
    let factors: Vec<f32> = e.iter().map(|&e| power(-e)).collect();
    let times = |i: usize| -> Option<Vec<f32>> {
        let values = g.tensor(node.input(i)?)?.to_f32_vec();
        Some(values.iter().zip(&factors).map(|(v, f)| v * f).collect())
    };
    let mut constant = |what: &str, shape: &[usize], values: &[f32]| {
        Some(to.constant(&format!("{name}/{what}"), Tensor::from_f32(shape, values)))
    };
    match &node.op {
        Op::Linear { .. } | Op::Conv { .. } => {
            let mut shape = vec![1; g.shape(node.outputs[0]).len()];
            *shape.last_mut().expect("it has channels") = e.len();
            inputs.resize(inputs.len().max(GATE + 1), None);
            inputs[GATE] = constant("migrated", &shape, &factors);
        }
        Op::Binary { .. } => {
            let i = channel_factor(g, node).expect("the node was found to take a factor");
            let shape = g.tensor(node.input(i).expect("it is a constant")).map(Tensor::shape);
            let values = times(i).expect("it is a constant");
            inputs[i] = constant("migrated", shape.expect("it is a constant"), &values);
        }
        _ => {
            inputs.resize(inputs.len().max(GAMMA + 1), None);
            let gamma = times(GAMMA).unwrap_or_else(|| factors.clone());
            inputs[GAMMA] = constant("migrated gain", &[e.len()], &gamma);
            if let Some(beta) = times(BETA) {
                inputs[BETA] = constant("migrated shift", &[e.len()], &beta);
            }
        }
    }
    inputs
}

/// The value divided by 2^e with an operator of its own.
pub(super) fn divided(x: ValueId, e: &[i8], to: &mut Graph) -> Result<ValueId, OpError> {
    let name = format!("{}/migrated", to.value(x).name);
    let factors: Vec<f32> = e.iter().map(|&e| power(-e)).collect();
    let scale = to.constant(&format!("{name} scale"), Tensor::from_f32(&[e.len()], &factors));
    let shift = vec![0.0; e.len()];
    let shift = to.constant(&format!("{name} shift"), Tensor::from_f32(&[e.len()], &shift));
    debug_assert_eq!(to.ty(x).dtype, DType::F32);
    to.op(&name, Op::Affine, &[x, scale, shift])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::ActivationSite;
    use cqc_proto::ValueType;

    const CHANNELS: usize = 16;

    fn noise(n: usize, mut seed: u64) -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// A linear layer whose weights compensate for channels that are `factor` times as large.
    fn survey(factor: &dyn Fn(usize) -> f32) -> Survey {
        let mut weights = noise(CHANNELS * 8, 1);
        weights.iter_mut().enumerate().for_each(|(i, w)| *w /= factor(i / 8));
        let float = Tensor::from_f32(&[CHANNELS, 8], &weights);
        let layer = Layer {
            node: NodeId(0),
            value: "y".into(),
            name: "y".into(),
            op: "linear".into(),
            sites: vec![0],
            exponents: vec![],
            weight: Some(QuantizedWeight::nearest(&float, 1, &[], 8)),
            channels: 8,
            bias: None,
            macs: 0,
            reads_cache: false,
            is_live: true,
        };
        let site = ActivationSite { name: "x".into(), segments: vec![CHANNELS] };
        Survey { layers: vec![layer], sites: vec![site], ..Survey::default() }
    }

    fn seen(factor: &dyn Fn(usize) -> f32) -> Seen {
        let mut seen = Seen::default();
        for (seed, held_out) in [(2, false), (3, true)] {
            let mut x = noise(64 * CHANNELS, seed);
            x.iter_mut().enumerate().for_each(|(i, x)| *x *= factor(i % CHANNELS));
            seen.add(&x, CHANNELS, Some(64), held_out);
        }
        seen
    }

    #[test]
    fn an_outlier_migrates_and_even_channels_do_not() {
        for outlier in [10f32, 30.0, 100.0, 1000.0] {
            let factor = |c: usize| if c == 7 { outlier } else { 1.0 };
            let mut survey = survey(&factor);
            let e = choose(&survey, 0, &seen(&factor), Migrate::Auto).unwrap();
            assert!((f32::from(e[7]) - outlier.log2()).abs() < 1.0, "{outlier}: {e:?}");
            let others = e.iter().enumerate().filter(|(c, _)| *c != 7);
            assert!(others.clone().all(|(_, e)| e.abs() <= 1), "{outlier}: {e:?}");
            assert_eq!(choose(&survey, 0, &seen(&factor), Migrate::None), None);

            // the float weights give the same product, bit for bit
            let before = survey.layers[0].weight.clone().unwrap().float.to_f32_vec();
            migrate(&mut survey, &[Some(e.clone())]);
            let after = survey.layers[0].weight.clone().unwrap().float.to_f32_vec();
            for (i, (before, after)) in before.iter().zip(&after).enumerate() {
                assert_eq!(*before, after * power(-e[i / 8]), "weight {i}");
            }
        }
        let even = |_| 1.0;
        assert_eq!(choose(&survey(&even), 0, &seen(&even), Migrate::Auto), None);
    }

    #[test]
    fn what_is_not_finite_or_dead_stays() {
        let even = |_| 1.0;
        let mut bad = seen(&even);
        bad.held[0][5] = f32::NAN;
        assert_eq!(choose(&survey(&even), 0, &bad, Migrate::Alpha(0.5)), None);
        let dead = seen(&|_| 0.0);
        assert_eq!(choose(&survey(&even), 0, &dead, Migrate::Alpha(0.5)), None);
    }

    /// Norms, products and multiplications by constants before a layer compute its divided input. A
    /// value that something else reads is divided separately.
    #[test]
    fn operators_that_can_take_the_factors_do() {
        let mut g = Graph::new("g");
        let x = g.input("x", ValueType::fixed(DType::F32, &[4, CHANNELS]));
        let w = g.constant("w", Tensor::from_f32(&[CHANNELS, CHANNELS], &[0.5; 256]));
        let row = g.constant("row", Tensor::from_f32(&[1, CHANNELS], &[3.0; CHANNELS]));
        let norm = g.op("norm", Op::LayerNorm { eps: 1e-5 }, &[x]).unwrap();
        let product = g.op("product", Op::Linear { act: Act::Silu }, &[x, w]).unwrap();
        let times = g.op("times", Op::binary(BinaryKind::Mul), &[x, row]).unwrap();
        let shared = g.op("shared", Op::LayerNorm { eps: 1e-5 }, &[x]).unwrap();
        let mut read = vec![];
        for v in [norm, product, times, shared] {
            read.push(g.op("layer", Op::Linear { act: Act::None }, &[v, w]).unwrap());
        }
        g.outputs.push(("shared".into(), shared));
        g.set_own_origins();
        let mut found = survey(&|_| 1.0);
        found.layers[0].exponents = (0..CHANNELS as i8).map(|c| c - 8).collect();
        let layers: HashMap<NodeId, LayerId> =
            read.iter().map(|&v| (g.producer(v).unwrap(), LayerId(0))).collect();
        let folds = folds(&g, &found, &layers);
        let mut names: Vec<&str> = folds.keys().map(|&v| g.value(v).name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["norm", "product", "times"]);
        for &v in folds.keys() {
            let node = g.producer_node(v).unwrap().clone();
            let mut to = g.clone();
            let e = &found.layers[0].exponents;
            let inputs = divide(&g, &node, e, node.inputs.clone(), &mut to);
            let (at, own) = match node.op {
                Op::Linear { .. } => (GATE, 1.0),
                Op::LayerNorm { .. } => (GAMMA, 1.0),
                _ => (1, 3.0),
            };
            let factors = to.tensor(inputs[at].unwrap()).unwrap().to_f32_vec();
            let expected: Vec<f32> = e.iter().map(|&e| own * power(-e)).collect();
            assert_eq!(factors, expected, "{}", node.name);
            assert!(to.node("again", node.op.clone(), &inputs).is_ok());
        }
    }
}
