//! A full and a cached step agree: on every graph of `tests/filetests/cache`, at every candidate.

use cqc_passes::bind::{InputOrigin, Part, TableId};
use cqc_passes::cache::{self, Batch, Cached, Correction, Cut, CutError, CutSpec, Split};
use cqc_passes::interpret::interpret;
use cqc_passes::ir::{Graph, parse, verify};
use cqc_proto::{Bindings, Op, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

const N: Batch = Batch::Symbol("N");

/// The graphs of the filetests with inputs `%x` (the sample) and tables.
fn steps() -> Vec<Part> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/filetests/cache");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for graph in text.split_inclusive("\n}\n").filter(|t| t.contains("\ngraph(")) {
            found.push(step(graph));
        }
    }
    assert!(found.len() > 3);
    found
}

fn step(text: &str) -> Part {
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with(';')).collect();
    let graph = parse(&lines.join("\n")).unwrap();
    let origins = (0..graph.inputs.len())
        .map(|i| if i == 0 { InputOrigin::Input(0) } else { InputOrigin::Table(TableId(i - 1)) });
    Part { origins: origins.collect(), graph }
}

fn candidates(step: &Part) -> Vec<Cut> {
    cache::candidates(&step.graph, step.graph.inputs[0], N)
}

fn choose(step: &Part, spec: &str) -> Result<Cut, CutError> {
    cache::choose(&candidates(step), &spec.parse().unwrap(), &step.graph, step.graph.inputs[0], N)
}

/// Distinct numbers for every input, for a batch of two.
fn noise(g: &Graph) -> BTreeMap<String, Tensor> {
    let two: Bindings = [("N".into(), 2)].into();
    let tensor = |i: usize, shape: Vec<usize>| {
        let count = shape.iter().product();
        let at = |j: usize| ((i * 7919 + j * 104_729) % 1009) as f32 / 500.0 - 1.0;
        Tensor::from_f32(&shape, &(0..count).map(at).collect::<Vec<_>>())
    };
    let input = |(i, v)| {
        let v: &_ = g.value(v);
        (v.name.clone(), tensor(i, v.ty.resolve(&two).unwrap()))
    };
    g.inputs.iter().copied().enumerate().map(input).collect()
}

/// What the full step gives, and the cached one with its cache.
fn run(split: &Split, outputs: usize) -> [Vec<(String, Tensor)>; 2] {
    let inputs = noise(&split.full.graph);
    let mut full = interpret(&split.full.graph, &inputs).unwrap();
    let stored = full.split_off(outputs);
    let g = &split.cached.graph;
    let given = g.inputs.iter().zip(&split.cached.origins).map(|(&v, origin)| {
        let name = g.value(v).name.clone();
        let tensor = match *origin {
            InputOrigin::Cache(slot) => stored[slot].1.clone(),
            _ => inputs[&name].clone(),
        };
        (name, tensor)
    });
    let cached = interpret(g, &given.collect()).unwrap();
    [full, cached]
}

#[test]
fn a_cached_step_with_the_cache_of_the_same_step_equals_the_full_one_bit_for_bit() {
    let mut tried = 0;
    for step in steps() {
        for cut in candidates(&step) {
            let mut split = cache::split(&step, &cut).unwrap();
            verify(&split.full.graph).unwrap();
            verify(&split.cached.graph).unwrap();
            assert_eq!(split.slots.len(), cut.tensors.len());
            let outputs = step.graph.outputs.len();
            let [full, cached] = run(&split, outputs);
            assert_eq!(full, cached, "cut at {}", cut.name(&step.graph));
            split.full.graph.compact().unwrap();
            assert_eq!(
                split.full.graph.outputs.len(),
                outputs + split.slots.len(),
                "stored values are outputs"
            );
            tried += 1;
        }
    }
    assert!(tried >= 4, "{tried}");
}

#[test]
fn a_cut_at_a_tensor_changes_nothing_in_the_full_step() {
    let step = &steps().into_iter().find(|s| candidates(s).iter().any(|c| !c.has_delta())).unwrap();
    let cut = choose(step, "auto").unwrap();
    let mut split = cache::split(step, &cut).unwrap();
    split.full.graph.outputs.truncate(step.graph.outputs.len());
    assert_eq!(split.full.graph.to_string(), step.graph.to_string());
    assert_eq!(split.full.origins, step.origins);
}

const ADDED: &str = "graph(%x: f32[N,4,8]) {
  %w = const f32[8,8] 0.1
  %a: f32[N,4,8] = linear(%x, %w)
  %f: f32[N,4,8] = linear(%a, %w) act=\"silu\"
  %h: f32[N,4,8] = linear(%f, %w, _, _, _, %a)
  %y: f32[N,4,8] = linear(%h, %w)
  return %y
}
";

#[test]
fn a_correction_behind_a_delta_takes_the_addition_in() {
    let step = step(ADDED);
    let mut split = cache::split(&step, &choose(&step, "a..h").unwrap()).unwrap();
    cache::correct(
        &mut split.cached,
        &[Correction { slot: 0, scale: TableId(5), shift: TableId(6), previous: None }],
    )
    .unwrap();
    verify(&split.cached.graph).unwrap();
    let ops: Vec<Op> = split.cached.graph.nodes().map(|(_, n)| n.op.clone()).collect();
    assert!(
        matches!(ops[..], [Op::Linear { .. }, Op::Affine, Op::Linear { .. }]),
        "{}",
        split.cached.graph
    );
    assert_eq!(
        split.cached.origins,
        [
            InputOrigin::Input(0),
            InputOrigin::Cache(0),
            InputOrigin::Table(TableId(5)),
            InputOrigin::Table(TableId(6))
        ],
        "tables stand behind"
    );
}

#[test]
fn a_correction_of_a_tensor_stands_before_all_its_readers() {
    let step = step(ADDED);
    let mut split = cache::split(&step, &choose(&step, "f").unwrap()).unwrap();
    cache::correct(
        &mut split.cached,
        &[Correction { slot: 0, scale: TableId(0), shift: TableId(1), previous: None }],
    )
    .unwrap();
    verify(&split.cached.graph).unwrap();
    let g = &split.cached.graph;
    let mut inputs = noise(g);
    let corrected = interpret(g, &inputs).unwrap();
    let (scale, shift) = (inputs["f/scale"].to_f32_vec(), inputs["f/shift"].to_f32_vec());
    let by_hand: Vec<f32> = inputs["f"]
        .to_f32_vec()
        .iter()
        .enumerate()
        .map(|(i, x)| x * scale[i % 8] + shift[i % 8])
        .collect();
    inputs.insert("f".into(), Tensor::from_f32(&[2, 4, 8], &by_hand));
    let plain = cache::split(&step, &choose(&step, "f").unwrap()).unwrap();
    let expected = interpret(&plain.cached.graph, &inputs).unwrap();
    let difference = |(a, b): (f32, f32)| (a - b).abs();
    let found =
        corrected[0].1.to_f32_vec().into_iter().zip(expected[0].1.to_f32_vec()).map(difference);
    assert!(found.fold(0.0, f32::max) < 1e-6, "one fused rounding apart");
}

#[test]
fn names_must_cut() {
    let step = step(ADDED);
    let error = |spec: &str| choose(&step, spec).unwrap_err();
    assert_eq!(error("x"), CutError::NotStorable { name: "x".into() });
    assert_eq!(error("y"), CutError::HidesSample { name: "y".into() });
    assert_eq!(error("f,h..a"), CutError::NotARange { name: "h..a".into() });
    assert_eq!(error("a,h"), CutError::Unused { name: "a".into() });
    assert!(error("nope").to_string().starts_with("the step has no tensor `nope`"));
    let both = choose(&step, "a..h,f");
    assert!(matches!(both, Err(CutError::Unused { .. })), "{both:?}");
    let delta = choose(&step, "a..h").unwrap();
    assert!(matches!(delta.tensors[..], [Cached::Delta { .. }]));
    assert_eq!((delta.macs_full, delta.macs_cached, delta.bytes), (4 * 256, 2 * 256, 128));
}

#[test]
fn specifications_read_back() {
    for text in ["auto", "shallow", "deep", "cost=0.3", "a,b..c"] {
        assert_eq!(text.parse::<CutSpec>().unwrap().to_string(), text);
    }
    for text in ["cost=", "cost=1.5", "cost=0", "cost=nan", "a,,b", ""] {
        assert!(text.parse::<CutSpec>().is_err(), "{text}");
    }
}
