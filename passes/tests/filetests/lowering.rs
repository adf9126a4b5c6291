//! `; lower: WORD ..`: a graph becomes a plan. The first input is the sample, `%t` the time step,
//! all others are conditions; the batch is `N`.
//!
//! | word | effect |
//! |---|---|
//! | `times=999,500` | the loop has these evaluations; without it the plan is one evaluation of the graph |
//! | `any_steps` | the plan keeps the program that computes its tables |
//! | `bf16` | products read bf16 |
//! | `quantize=8` | layers are quantized, weights to this number of bits; `fit=y` corrects the sums of layer `y` |
//! | `cut=NAME` | the step is cut there; `full=0,2` are the full evaluations; `correct` corrects what the cached step reads, `forecast` also looks at what was stored before |

use cqc_passes::bind::{self, Bound};
use cqc_passes::cache::affine::Affine;
use cqc_passes::cache::{self, Batch};
use cqc_passes::ir::{Graph, verify};
use cqc_passes::lower::lower;
use cqc_passes::quant::{
    self, AnnotateOptions, OutputCorrection, QuantSpec, QuantTables, round_products,
};
use cqc_proto::plan::{InputRole, PlanInput, PlanOutput, validate};

pub fn lines(graph: &Graph, how: &str) -> Result<Vec<String>, String> {
    let how = Words(how.split_whitespace().collect());
    let inputs: Vec<PlanInput> =
        graph.inputs.iter().enumerate().map(|(i, &v)| input(graph, i, v)).collect();
    let output = |(name, v): &(String, _)| PlanOutput {
        name: name.clone(),
        ty: graph.ty(*v).clone(),
        value: 0,
    };
    let outputs = graph.outputs.iter().map(output).collect();
    let roles: Vec<InputRole> = inputs.iter().map(|i| i.role).collect();
    let times: Vec<f64> = how.numbers("times=");
    let mut bound = match &times[..] {
        [] => bind::unbound(graph),
        times => bind::bind(graph, &roles, Some("N"), times).map_err(text)?,
    };
    if let Some(spec) = how.value("cut=") {
        bound = cut(&bound, &roles, spec, &how, times.len())?;
    }
    if let Some(bits) = how.value("quantize=") {
        let survey = quant::survey(&bound, &QuantSpec::new(bits.parse().map_err(text)?), Some("N"));
        let mut tables = QuantTables::float(&survey, times.len());
        for (i, layer) in
            survey.layers.iter().enumerate().filter(|(_, l)| how.value("fit=") == Some(&l.value))
        {
            tables.corrections.insert(i, OutputCorrection::identity(layer, times.len()));
        }
        quant::annotate(&mut bound, &survey, &tables, AnnotateOptions::default()).map_err(text)?;
    }
    if how.has("bf16") {
        round_products(&mut bound, &QuantSpec::new(16)).map_err(text)?;
    }
    for part in [&bound.full, &bound.prelude, &bound.prelude_steps, &bound.times] {
        verify(&part.graph).map_err(text)?;
    }
    let lowered =
        lower(&bound, inputs, outputs, Some("N"), None, times.len(), how.has("any_steps"))
            .map_err(text)?;
    validate(&lowered.plan, lowered.weights.len).map_err(text)?;
    Ok(lowered.plan.to_string().lines().map(str::to_string).collect())
}

/// The words of a directive.
struct Words<'a>(Vec<&'a str>);

impl<'a> Words<'a> {
    fn has(&self, word: &str) -> bool {
        self.0.contains(&word)
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find_map(|word| word.strip_prefix(key))
    }

    fn numbers<T: std::str::FromStr>(&self, key: &str) -> Vec<T> {
        let list = self.value(key).into_iter().flat_map(|list| list.split(','));
        list.map(|n| n.parse().ok().unwrap_or_else(|| panic!("{key}: `{n}` is no number")))
            .collect()
    }
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

fn input(graph: &Graph, i: usize, v: cqc_passes::ir::ValueId) -> PlanInput {
    let name = graph.value(v).name.clone();
    let role = match (i, &name[..]) {
        (_, "t") => InputRole::Timestep,
        (0, _) => InputRole::Sample,
        _ => InputRole::Condition,
    };
    PlanInput { ty: graph.ty(v).clone(), role, name }
}

fn cut(
    bound: &Bound,
    roles: &[InputRole],
    spec: &str,
    how: &Words,
    evaluations: usize,
) -> Result<Bound, String> {
    let (step, batch) = (&bound.full.graph, Batch::Symbol("N"));
    let sample = cache::sample_value(&bound.full, roles).ok_or("no sample")?;
    let candidates = cache::candidates(step, sample, batch);
    let cut = cache::choose(&candidates, &spec.parse()?, step, sample, batch).map_err(text)?;
    let split = cache::split(&bound.full, &cut).map_err(text)?;
    let rows = split.slots.iter().map(|slot| {
        let channels =
            split.full.graph.shape(slot.stored).last().and_then(|d| d.as_const()).unwrap_or(1)
                as usize;
        let mut row = Affine::identity(channels);
        if how.has("forecast") {
            row.previous = vec![0.0; channels];
        }
        vec![row; evaluations]
    });
    let rows: Vec<Vec<Affine>> = rows.collect();
    let rows = (how.has("correct") || how.has("forecast")).then_some(&rows[..]);
    Ok(cache::assemble(bound, &split, &how.numbers("full="), rows).map_err(text)?.0)
}
