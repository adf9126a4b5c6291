//! Exported and imported again, a plan means what it meant: judged by the reference kernels,
//! without any runtime.

use cqc_passes::interpret::{bind_op, interpret};
use cqc_passes::onnx::export::{ExportError, ExportOptions, Layout, Qdq, export};
use cqc_passes::onnx::{self, ImportOptions};
use cqc_proto::dim::Dim;
use cqc_proto::op::*;
use cqc_proto::plan::{
    Alias, Constant, InputRole, Plan, PlanInput, PlanOutput, PlanValue, Program, Source, Step,
};
use cqc_proto::types::ValueType;
use cqc_proto::{Bindings, DType, Tensor};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::json;
use std::collections::BTreeMap;

#[allow(dead_code)] // shared by path; this test uses a part of it
#[path = "../../proto/src/op/arbitrary.rs"]
mod arbitrary;

fn options(layout: Layout) -> ExportOptions {
    ExportOptions {
        layout,
        timesteps: vec![3.0, 2.0, 1.0],
        weights: "weights.bin".into(),
        inline_below: usize::MAX,
        qdq: Qdq::default(),
    }
}

/// One operator; its operands are inputs, so that nothing folds.
fn plan_of(op: &Op, inputs: &[Option<ValueType>], outputs: &[ValueType]) -> Plan {
    let mut full = Program::default();
    let mut plan_inputs = vec![];
    let value = |name: String, ty: &ValueType, source| PlanValue {
        name,
        ty: ty.clone(),
        source,
        alias: None,
    };
    let mut operands = vec![];
    for ty in inputs {
        operands.push(ty.as_ref().map(|ty| {
            let i = plan_inputs.len();
            plan_inputs.push(PlanInput {
                name: format!("x{i}"),
                ty: ty.clone(),
                role: InputRole::Condition,
            });
            full.values.push(value(format!("x{i}"), ty, Source::Input(i)));
            full.values.len() - 1
        }));
    }
    let first = full.values.len();
    full.values
        .extend(outputs.iter().enumerate().map(|(i, ty)| value(format!("y{i}"), ty, Source::Step)));
    let results: Vec<usize> = (first..full.values.len()).collect();
    let step =
        Step { op: op.clone(), inputs: operands, outputs: results.clone(), name: "step".into() };
    full.steps.push(step);
    let output = |(i, (&value, ty)): (usize, (&usize, &ValueType))| PlanOutput {
        name: format!("y{i}"),
        ty: ty.clone(),
        value,
    };
    Plan {
        batch_symbol: Some("N".into()),
        fixed_batch: None,
        inputs: plan_inputs,
        outputs: results.iter().zip(outputs).enumerate().map(output).collect(),
        evaluations: 0,
        constants: vec![],
        prelude: Program::default(),
        prelude_steps: Program::default(),
        full,
        cache: None,
        times: None,
    }
}

/// What the exported model gives; `None` where the operator has no spelling.
fn round_trip(
    op: &Op,
    inputs: &[Option<Tensor>],
    types: &[Option<ValueType>],
) -> Option<Vec<Tensor>> {
    let refs: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
    let plan = plan_of(op, types, &op.infer(&refs).unwrap());
    let exported = match export(&plan, &[], &options(Layout::Split)) {
        Ok(exported) => exported,
        Err(ExportError::Unsupported(_)) => return None,
        Err(e) => panic!("{op:?}: {e}"),
    };
    let model = &exported.models[0];
    let imported = onnx::import(&model.proto, &ImportOptions::default());
    let graph = imported
        .unwrap_or_else(|e| panic!("{op:?} {types:?}: {e}\n{:#?}", model.proto.graph))
        .graph;
    let named: BTreeMap<String, Tensor> =
        inputs.iter().flatten().enumerate().map(|(i, t)| (format!("x{i}"), t.clone())).collect();
    let outputs = interpret(&graph, &named);
    Some(
        outputs
            .unwrap_or_else(|e| panic!("{op:?} {types:?}: {e}\n{graph}"))
            .into_iter()
            .map(|o| o.1)
            .collect(),
    )
}

fn values(t: &ValueType, seed: usize) -> Tensor {
    let shape = t.fixed_shape().unwrap();
    let pool = [0.0, 1.0, -1.0, 0.5, 1.0, 0.0, 1.5, -0.25, -1.0, 1.0, 0.0, 3.0];
    let all: Vec<f32> = (0..shape.iter().product())
        .map(|i: usize| pool[(i * 7 + seed) % (pool.len() - seed % 6)])
        .collect();
    let wide = Tensor::from_f32(&shape, &all);
    cqc_kernels::reference::eval(&Op::Cast { to: t.dtype }, &[Some(&wide)]).unwrap().remove(0)
}

fn close(a: &Tensor, b: &Tensor) -> bool {
    // 1e-3: halves round at every node of a decomposition, not once
    let tolerance = if matches!(a.dtype(), DType::F16 | DType::BF16) { 2e-2 } else { 1e-4 };
    let near = |(a, b): (&f64, &f64)| {
        a == b
            || (a.is_nan() && b.is_nan())
            || (a - b).abs() <= tolerance * (1.0 + a.abs().max(b.abs()))
    };
    a.shape() == b.shape()
        && a.dtype() == b.dtype()
        && a.to_f64_vec().iter().zip(&b.to_f64_vec()).all(near)
}

/// Floats of plans are f32; the standard's other floats are the spelling's business only where
/// operators mix types.
fn occurs_in_plans(op: &Op, types: &[Option<ValueType>]) -> bool {
    let float = |d: DType| !d.is_float() || d == DType::F32;
    let to = match op {
        Op::Cast { to } | Op::Dequantize { to, .. } => float(*to),
        _ => true,
    };
    to && types.iter().flatten().all(|t| float(t.dtype))
}

#[test]
fn random_operators_keep_their_meaning() {
    let strategy = arbitrary::operation(false);
    let mut runner = TestRunner::deterministic();
    let mut spelled: BTreeMap<String, usize> = BTreeMap::new();
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..400_000 {
        let (op, types) = strategy.new_tree(&mut runner).unwrap().current();
        let refs: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
        let Ok(outputs) = op.infer(&refs) else { continue };
        let empty = |t: &ValueType| t.shape.iter().any(|d| d.is(0));
        if !occurs_in_plans(&op, &types) || outputs.iter().chain(types.iter().flatten()).any(empty)
        {
            continue;
        }
        let mut inputs: Vec<Option<Tensor>> =
            types.iter().map(|t| t.as_ref().map(|t| values(t, seed))).collect();
        if let Op::FakeQuant { .. } = op {
            // computed scales are taken for positive, zero points are whole
            for t in inputs[1..].iter_mut().flatten() {
                *t = Tensor::from_f32(
                    t.shape(),
                    &t.to_f32_vec().iter().map(|v| v.abs().ceil().max(1.0)).collect::<Vec<_>>(),
                );
            }
        }
        let operands: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        let Ok(expected) = cqc_kernels::reference::eval(&op, &operands) else { continue };
        let name = format!("{op:?}").split([' ', '(']).next().unwrap().to_string();
        match round_trip(&op, &inputs, &types) {
            None => *refused.entry(name).or_default() += 1,
            Some(found) => {
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(
                        close(found, expected),
                        "{op:?} of {inputs:?}: {found:?}, expected {expected:?}"
                    );
                }
                *spelled.entry(name).or_default() += 1;
            }
        }
    }
    println!("spelled {spelled:?}\nrefused {refused:?}");
    let never: Vec<_> = refused.keys().filter(|&name| !spelled.contains_key(name)).collect();
    assert!(never.is_empty(), "never spelled: {never:?}");
    assert_eq!(spelled.len(), 43, "some operator was never spelled: {spelled:?}");
}

/// A list of steps over inputs `x0`, `x1`, … and weights.
#[derive(Default)]
struct Chain {
    plan: Program,
    inputs: Vec<PlanInput>,
    constants: Vec<Tensor>,
}

impl Chain {
    fn input(&mut self, ty: &str) -> usize {
        let name = format!("x{}", self.inputs.len());
        let ty = parse(ty);
        self.inputs.push(PlanInput {
            name: name.clone(),
            ty: ty.clone(),
            role: InputRole::Condition,
        });
        self.value(name, ty, Source::Input(self.inputs.len() - 1))
    }

    fn weight(&mut self, shape: &[usize]) -> usize {
        let t = noise(shape, self.constants.len() as u64 + 50);
        self.constants.push(t.clone());
        let i = self.constants.len() - 1;
        self.value(format!("w{i}"), t.value_type(), Source::Constant(i))
    }

    fn value(&mut self, name: String, ty: ValueType, source: Source) -> usize {
        self.plan.values.push(PlanValue { name, ty, source, alias: None });
        self.plan.values.len() - 1
    }

    fn step(
        &mut self,
        name: &str,
        attributes: serde_json::Value,
        inputs: &[Option<usize>],
    ) -> usize {
        let serde_json::Value::Object(attributes) = attributes else {
            panic!("attributes are an object")
        };
        let op = Op::from_parts(name, attributes).unwrap();
        let types: Vec<_> = inputs.iter().map(|v| v.map(|v| &self.plan.values[v].ty)).collect();
        let ty = op.infer(&types).unwrap_or_else(|e| panic!("{e}")).remove(0);
        let label = format!("{name}{}", self.plan.steps.len());
        let y = self.value(label.clone(), ty, Source::Step);
        self.plan.steps.push(Step { op, inputs: inputs.to_vec(), outputs: vec![y], name: label });
        y
    }

    /// A reshape without a step.
    fn alias(&mut self, of: usize, ty: &str) -> usize {
        let y = self.value(format!("alias{}", self.plan.values.len()), parse(ty), Source::Step);
        self.plan.values[y].alias = Some(Alias::Same { of });
        y
    }

    /// Compares the exported graph with the steps, for a batch of 2; the exported operators.
    fn check(self, result: usize) -> Vec<String> {
        let output =
            PlanOutput { name: "y".into(), ty: self.plan.values[result].ty.clone(), value: result };
        let constant = |(i, t): (usize, &Tensor)| Constant {
            name: format!("w{i}"),
            ty: t.value_type(),
            offset: 0,
            codes: None,
        };
        let plan = Plan {
            outputs: vec![output],
            constants: self.constants.iter().enumerate().map(constant).collect(),
            inputs: self.inputs,
            full: self.plan,
            ..plan_of(&Op::Where, &[], &[])
        };
        let exported = export(&plan, &self.constants, &options(Layout::Split)).unwrap();
        let model = &exported.models[0].proto;
        let graph = onnx::import(model, &ImportOptions::default())
            .unwrap_or_else(|e| panic!("{e}\n{model:#?}"))
            .graph;
        let batch = [("N".into(), 2)].into();
        let inputs: BTreeMap<String, Tensor> = plan
            .inputs
            .iter()
            .enumerate()
            .map(|(i, input)| {
                (
                    input.name.clone(),
                    random(&input.ty, &input.ty.resolve(&batch).unwrap(), i as u64),
                )
            })
            .collect();
        let found =
            interpret(&graph, &inputs).unwrap_or_else(|e| panic!("{e}\n{graph}")).remove(0).1;
        let expected = run(&plan, &self.constants, &inputs, &batch);
        assert!(close(&found, &expected), "{graph}\n{found:?}, expected {expected:?}");
        model.graph.as_ref().unwrap().node.iter().map(|n| n.op_type().to_string()).collect()
    }
}

/// The steps of a plan through the reference kernels.
fn run(
    plan: &Plan,
    constants: &[Tensor],
    inputs: &BTreeMap<String, Tensor>,
    batch: &Bindings,
) -> Tensor {
    let program = &plan.full;
    let mut values: Vec<Option<Tensor>> = vec![None; program.values.len()];
    let read = |values: &[Option<Tensor>], v: usize| -> Tensor {
        let value = &program.values[v];
        match (&value.alias, value.source) {
            (Some(Alias::Same { of }), _) => {
                let root = values[*of].as_ref().expect("operands come first");
                root.reshaped(value.ty.resolve(batch).unwrap()).unwrap()
            }
            (_, Source::Input(i)) => inputs[&plan.inputs[i].name].clone(),
            (_, Source::Constant(i)) => constants[i].clone(),
            _ => values[v].clone().expect("operands come first"),
        }
    };
    for step in &program.steps {
        let operands: Vec<Option<Tensor>> =
            step.inputs.iter().map(|v| v.map(|v| read(&values, v))).collect();
        let operands: Vec<Option<&Tensor>> = operands.iter().map(Option::as_ref).collect();
        let op = bind_op(&step.op, batch).unwrap();
        let results = cqc_kernels::reference::eval(&op, &operands).unwrap();
        step.outputs.iter().zip(results).for_each(|(&v, t)| values[v] = Some(t));
    }
    read(&values, plan.outputs[0].value)
}

/// `f32[N,3,8]`.
fn parse(text: &str) -> ValueType {
    let (dtype, shape) = text.trim_end_matches(']').split_once('[').unwrap();
    let sizes = shape.split(',').filter(|d| !d.is_empty());
    ValueType::new(
        DType::parse(dtype).unwrap(),
        sizes.map(|d| Dim::parse(d).unwrap()).collect::<Vec<_>>(),
    )
}

/// Numbers in [-1, 1).
fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    Tensor::from_f32(shape, &(0..shape.iter().product()).map(|_| next()).collect::<Vec<_>>())
}

fn random(ty: &ValueType, shape: &[usize], seed: u64) -> Tensor {
    let wide = noise(shape, seed);
    cqc_kernels::reference::eval(&Op::Cast { to: ty.dtype }, &[Some(&wide)]).unwrap().remove(0)
}

fn count(ops: &[String], name: &str) -> usize {
    ops.iter().filter(|o| *o == name).count()
}

const LAST: &str = "channels_last";

/// What a U-Net does between its first and its last transpose.
#[test]
fn channels_last_steps_become_channels_first_without_transposes() {
    let mut c = Chain::default();
    let (x, time) = (c.input("f32[N,3,8,8]"), c.input("f32[N,6]"));
    let last = c.step("transpose", json!({"perm": [0, 2, 3, 1]}), &[Some(x)]);
    let conv = |pad: usize| json!({"strides": [1, 1], "pads": [pad, pad, pad, pad], "dilations": [1, 1], "layout": LAST});
    let (w, b) = (c.weight(&[8, 3, 3, 3]), c.weight(&[8]));
    let h = c.step("conv", conv(1), &[Some(last), Some(w), Some(b)]);
    let (gamma, beta) = (c.weight(&[8]), c.weight(&[8]));
    let norm = json!({"groups": 4, "eps": 1e-5, "layout": LAST, "act": "silu"});
    let n = c.step("group_norm", norm, &[Some(h), Some(gamma), Some(beta)]);
    let (wt, bt) = (c.weight(&[6, 8]), c.weight(&[8]));
    let row = c.step("linear", json!({"act": "silu"}), &[Some(time), Some(wt), Some(bt)]);
    let row = c.alias(row, "f32[N,1,1,8]");
    let mut attributes = conv(1);
    attributes["act"] = json!("gelu_tanh");
    let (w, b) = (c.weight(&[8, 8, 3, 3]), c.weight(&[8]));
    let h2 =
        c.step("conv", attributes, &[Some(n), Some(w), Some(b), Some(row), Some(row), Some(h)]);
    let pool = json!({"kind": "average", "kernel": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0], "dilations": [1, 1], "layout": LAST});
    let down = c.step("pool", pool, &[Some(h2)]);
    let mut up = conv(1);
    up["upsample"] = json!(2);
    let w = c.weight(&[8, 8, 3, 3]);
    let up = c.step("conv", up, &[Some(down), Some(w)]);
    let joined = c.step("concat", json!({"axis": 3}), &[Some(up), Some(h)]);
    let scale = c.weight(&[16]);
    let scaled =
        c.step("affine", json!({}), &[Some(joined), Some(scale), Some(scale), Some(joined)]);
    let y = c.step("transpose", json!({"perm": [0, 3, 1, 2]}), &[Some(scaled)]);
    let ops = c.check(y);
    assert_eq!(
        (count(&ops, "Conv"), count(&ops, "Transpose"), count(&ops, "Shape")),
        (3, 0, 0),
        "{ops:?}"
    );
}

#[test]
fn attention_over_pixels_moves_channels_once_each_way() {
    let mut c = Chain::default();
    let x = c.input("f32[N,8,4,4]");
    let last = c.step("transpose", json!({"perm": [0, 2, 3, 1]}), &[Some(x)]);
    let norm =
        c.step("group_norm", json!({"groups": 2, "eps": 1e-6, "layout": LAST}), &[Some(last)]);
    let rows = c.alias(norm, "f32[N,16,8]");
    let w = c.weight(&[8, 8]);
    let [q, k, v] = [0; 3].map(|_| c.step("linear", json!({}), &[Some(rows), Some(w)]));
    let a = c.step(
        "attention",
        json!({"heads": 2, "kv_heads": 2, "scale": 0.5}),
        &[Some(q), Some(k), Some(v)],
    );
    let out = c.step("linear", json!({}), &[Some(a), Some(w)]);
    let image = c.alias(out, "f32[N,4,4,8]");
    let sum = c.step("add", json!({}), &[Some(image), Some(last)]);
    let y = c.step("transpose", json!({"perm": [0, 3, 1, 2]}), &[Some(sum)]);
    let ops = c.check(y);
    // q, k, v, the heads' results, in and out
    assert_eq!((count(&ops, "Transpose"), count(&ops, "Shape")), (6, 0), "{ops:?}");
}

#[test]
fn every_form_of_attention() {
    for (queries, keys, kv_heads, causal, softcap, mask) in [
        (4, 4, 4, false, 0.0, None),
        (4, 6, 2, true, 0.0, None),
        (6, 4, 1, true, 2.0, None), // the first two queries see nothing
        (4, 6, 2, false, 3.0, Some("f32[N,1,4,6]")),
        (4, 6, 4, false, 0.0, Some("bool[N,1,1,6]")),
        (4, 4, 4, true, 0.0, Some("bool[4,4]")),
    ] {
        let mut c = Chain::default();
        let q = c.input(&format!("f32[N,{queries},8]"));
        let k = c.input(&format!("f32[N,{keys},{}]", 2 * kv_heads));
        let v = c.input(&format!("f32[N,{keys},{}]", 3 * kv_heads));
        let mask = mask.map(|m| c.input(m));
        let attributes = json!({"heads": 4, "kv_heads": kv_heads, "scale": 0.7, "causal": causal, "softcap": softcap});
        let y = c.step("attention", attributes, &[Some(q), Some(k), Some(v), mask]);
        c.check(y);
    }
}

#[test]
fn linear_layers_with_every_epilogue() {
    for act in Act::ALL {
        let mut c = Chain::default();
        let (x, row, residual) =
            (c.input("f32[N,5,6]"), c.input("f32[N,1,4]"), c.input("f32[N,5,4]"));
        let (w, b, gate) = (c.weight(&[6, 4]), c.weight(&[4]), c.weight(&[1, 1, 4]));
        let act = json!({ "act": act });
        let y = c.step(
            "linear",
            act,
            &[Some(x), Some(w), Some(b), Some(row), Some(gate), Some(residual)],
        );
        c.check(y);
    }
    let mut c = Chain::default();
    let (x, scale) = (c.input("f32[N,5,6]"), c.input("f32[N,1,6]"));
    let gamma = c.weight(&[6]);
    let y = c.step(
        "layer_norm",
        json!({"eps": 1e-5}),
        &[Some(x), Some(gamma), None, Some(scale), Some(scale)],
    );
    c.check(y);
}

#[test]
fn sizes_with_the_batch() {
    let one = |name: &str, attributes: serde_json::Value, inputs: &[&str]| {
        let mut c = Chain::default();
        let inputs: Vec<_> = inputs.iter().map(|t| Some(c.input(t))).collect();
        let y = c.step(name, attributes, &inputs);
        c.check(y)
    };
    let ops = one("reshape", json!({"shape": ["N", 6]}), &["f32[N,2,3]"]);
    assert_eq!(ops, ["Reshape"]);
    one("reshape", json!({"shape": ["6*N"]}), &["f32[N,2,3]"]);
    one("reshape", json!({"shape": [2, "N", 3]}), &["f32[N,6]"]);
    one("reshape", json!({"shape": ["2*N", 3, "N"]}), &["f32[N,6,N]"]);
    one("expand", json!({"shape": ["N", "2*N+1", 3]}), &["f32[N,1,3]"]);
    one(
        "slice",
        json!({"axes": [0], "starts": ["N-1"], "ends": [-1], "steps": [-1]}),
        &["f32[N,5]"],
    );
    let resize = json!({"sizes": ["N", 3, 8, 8], "mode": "nearest", "coordinates": "asymmetric", "nearest": "floor"});
    let ops = one("resize", resize, &["f32[N,3,4,4]"]);
    assert_eq!(ops, ["Resize"], "the batch need not be known");
}
