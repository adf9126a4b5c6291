//! The model as a denoising loop calls it.

use super::roles::{self, Fit, Named, RoleOptions};
use cqc_passes::ir::Graph;
use cqc_proto::op::OpError;
use cqc_proto::plan::{InputRole, PlanInput, PlanOutput};
use cqc_proto::{Dim, Op, ValueType};
use std::collections::HashMap;

/// The network of a denoising loop: it reads a sample, a time step and conditions, and computes the
/// prediction.
///
/// Its graph is that of the model with two differences. Where only some channels of the model's
/// input are the sample, the other channels are a condition of their own ([`Network::rest`]).
/// Outputs other than the prediction are removed.
#[derive(Clone, Debug)]
pub struct Network {
    /// The graph. Its inputs are those of `inputs`, in the same order.
    pub graph: Graph,
    /// The inputs with their roles and their types in the model.
    pub inputs: Vec<PlanInput>,
    /// The prediction with its type in the model. `value` has no meaning here.
    pub output: PlanOutput,
    /// The channels that are not the sample, where only a part of an input is.
    pub rest: Option<Rest>,
}

/// The channels of an input that are not the sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Name of the condition that holds them: the name of the input with `.rest` appended.
    pub name: String,
    /// Name of the model's input.
    pub input: String,
    /// The axis of the channels.
    pub axis: usize,
    /// Number of channels of the input.
    pub channels: usize,
    /// The channels that are the sample.
    pub sample: std::ops::Range<usize>,
}

impl std::fmt::Display for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Rest { name, input, channels, sample, .. } = self;
        let (first, last, others) = (sample.start, sample.end - 1, channels - sample.len());
        write!(
            f,
            "channels {first} to {last} of the {channels} channels of `{input}` are the sample; the other {others} are the condition `{name}`"
        )
    }
}

impl Network {
    /// The inputs that are neither the sample nor the time step.
    pub fn conditions(&self) -> impl Iterator<Item = &PlanInput> {
        self.inputs.iter().filter(|i| i.role.is_condition())
    }

    /// The role of each input of the graph, in order.
    pub fn roles(&self) -> Vec<InputRole> {
        self.inputs.iter().map(|i| i.role).collect()
    }
}

/// Name of the condition that holds the channels of `input` that are not the sample.
pub fn rest_of(input: &str) -> String {
    format!("{input}.rest")
}

/// The role of every input of the model, and the network or the reason why there is none.
pub(super) struct Found {
    pub roles: Vec<InputRole>,
    pub network: Result<Network, String>,
}

/// Finds the roles of a model's inputs and outputs and makes the network from its graph. `inputs`
/// and `outputs` have the types of the source model.
pub(super) fn find(
    graph: &Graph,
    inputs: &[PlanInput],
    outputs: &[PlanOutput],
    options: &RoleOptions,
) -> Result<Found, OpError> {
    let named_inputs: Vec<Named> = inputs.iter().map(|i| (i.name.as_str(), &i.ty)).collect();
    let named_outputs: Vec<Named> = outputs.iter().map(|o| (o.name.as_str(), &o.ty)).collect();
    let found = roles::find(&named_inputs, &named_outputs, options);
    let of = |i: usize| match i {
        i if found.sample.as_ref() == Ok(&i) => InputRole::Sample,
        i if found.time.as_ref() == Ok(&i) => InputRole::Timestep,
        i => {
            let name = &inputs[i].name;
            let by_name = roles::varies(name) && !options.per_request.contains(name);
            match by_name || options.per_step.contains(name) {
                true => InputRole::StepCondition,
                false => InputRole::Condition,
            }
        }
    };
    let roles: Vec<InputRole> = (0..inputs.len()).map(of).collect();
    let mut reasons: Vec<String> = Vec::new();
    reasons.extend(found.sample.as_ref().err().cloned());
    reasons.extend(found.time.as_ref().err().cloned());
    // without a sample the reason is the same
    reasons.extend(found.prediction.as_ref().err().filter(|_| found.sample.is_ok()).cloned());
    let (Ok(sample), Ok((prediction, fit)), true) =
        (found.sample, found.prediction, reasons.is_empty())
    else {
        return Ok(Found { roles, network: Err(reasons.join("\n")) });
    };
    let inputs = inputs.iter().zip(&roles);
    let inputs = inputs.map(|(i, &role)| PlanInput { role, ..i.clone() }).collect();
    let output = outputs[prediction].clone();
    let mut network = Network { graph: graph.clone(), inputs, output, rest: None };
    if outputs.len() > 1 {
        network.graph.outputs = vec![graph.outputs[prediction].clone()];
        network.graph.compact().expect("the graph of a loaded model has no cycle");
    }
    let network = match fit {
        Fit::Whole if options.sample_channel.is_some() => Err(format!(
            "--sample-channel: the whole of input `{}` is the sample",
            network.inputs[sample].name
        )),
        Fit::Whole => Ok(network),
        Fit::Part { axis } => {
            let first = options.sample_channel.unwrap_or(0);
            match rest(&network, sample, axis, first) {
                Ok(rest) => Ok(split(network, sample, rest)?),
                Err(reason) => Err(reason),
            }
        }
    };
    Ok(Found { roles, network })
}

/// The channels of input `sample` that are not the sample, if the sample begins with channel
/// `first`.
fn rest(network: &Network, sample: usize, axis: usize, first: usize) -> Result<Rest, String> {
    let size = |ty: &ValueType| ty.shape[axis].as_const().unwrap_or_default() as usize;
    let input = &network.inputs[sample];
    let (channels, of_sample) = (size(&input.ty), size(&network.output.ty));
    let last = channels - of_sample;
    if first > last {
        return Err(format!(
            "--sample-channel {first}: input `{}` has {channels} channels and the prediction {of_sample}, so the first can be 0 to {last}",
            input.name
        ));
    }
    let name = rest_of(&input.name);
    if network.inputs.iter().any(|i| i.name == name) {
        return Err(format!("two inputs would be called `{name}`: rename the model's"));
    }
    Ok(Rest { name, input: input.name.clone(), axis, channels, sample: first..first + of_sample })
}

/// The network whose input `sample` is divided into the sample and the rest. The graph joins the
/// two again.
fn split(mut network: Network, sample: usize, rest: Rest) -> Result<Network, OpError> {
    let g = &mut network.graph;
    let whole = g.inputs[sample];
    let sized = |ty: &ValueType, size: usize| {
        let mut ty = ty.clone();
        ty.shape[rest.axis] = Dim::constant(size as i64);
        ty
    };
    let others = rest.channels - rest.sample.len();
    let whole_ty = g.ty(whole).clone();
    // Both inputs are added after the model's inputs and then moved to the place of the whole.
    let x = g.input(&rest.input, sized(&whole_ty, rest.sample.len()));
    g.swap_names(whole, x);
    let c = g.input(&rest.name, sized(&whole_ty, others));
    g.inputs.truncate(g.inputs.len() - 2);
    g.inputs.splice(sample..=sample, [x, c]);
    let cut = |g: &mut Graph, start: usize, end: usize| {
        if start == 0 && end == others {
            return Ok(c);
        }
        let (starts, ends) = (vec![(start as i64).into()], vec![(end as i64).into()]);
        let op = Op::Slice { axes: vec![rest.axis], starts, ends, steps: vec![1] };
        g.op(&rest.name, op, &[c])
    };
    let mut parts = Vec::new();
    if rest.sample.start > 0 {
        parts.push(cut(g, 0, rest.sample.start)?);
    }
    parts.push(x);
    if rest.sample.start < others {
        parts.push(cut(g, rest.sample.start, others)?);
    }
    let joined = g.op(&format!("{} joined", rest.input), Op::Concat { axis: rest.axis }, &parts)?;
    g.substitute(&HashMap::from([(whole, joined)]));
    g.compact().expect("the parts of an input make no cycle");
    let input = &mut network.inputs[sample];
    let condition = PlanInput {
        name: rest.name.clone(),
        ty: sized(&input.ty, others),
        role: InputRole::Condition,
    };
    input.ty = sized(&input.ty, rest.sample.len());
    network.inputs.insert(sample + 1, condition);
    network.rest = Some(rest);
    Ok(network)
}
