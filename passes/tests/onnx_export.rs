//! Exported and imported again, a plan means what it meant: judged by the reference kernels, without any runtime.

use cqc_passes::interpret::interpret;
use cqc_passes::onnx::export::{ExportError, ExportOptions, Layout, export};
use cqc_passes::onnx::{self, ImportOptions};
use cqc_proto::dim::Dim;
use cqc_proto::op::*;
use cqc_proto::plan::{InputRole, Plan, PlanInput, PlanOutput, PlanValue, Program, Source, Step};
use cqc_proto::types::ValueType;
use cqc_proto::{DType, Tensor};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use std::collections::BTreeMap;

#[allow(dead_code)]
#[path = "../../proto/src/op/arbitrary.rs"]
mod arbitrary;

fn options(layout: Layout) -> ExportOptions {
    ExportOptions { layout, timesteps: vec![3.0, 2.0, 1.0], weights: "weights.bin".into(), inline_below: usize::MAX }
}

/// One operator; its operands are inputs, so that nothing folds.
fn plan_of(op: &Op, inputs: &[Option<ValueType>], outputs: &[ValueType]) -> Plan {
    let mut full = Program::default();
    let mut plan_inputs = vec![];
    let value = |name: String, ty: &ValueType, source| PlanValue { name, ty: ty.clone(), source, alias: None };
    let mut operands = vec![];
    for ty in inputs {
        operands.push(ty.as_ref().map(|ty| {
            let i = plan_inputs.len();
            plan_inputs.push(PlanInput { name: format!("x{i}"), ty: ty.clone(), role: InputRole::Condition });
            full.values.push(value(format!("x{i}"), ty, Source::Input(i)));
            full.values.len() - 1
        }));
    }
    let first = full.values.len();
    full.values.extend(outputs.iter().enumerate().map(|(i, ty)| value(format!("y{i}"), ty, Source::Step)));
    let results: Vec<usize> = (first..full.values.len()).collect();
    let step = Step { op: op.clone(), inputs: operands, outputs: results.clone(), name: "step".into() };
    full.steps.push(step);
    let output =
        |(i, (&value, ty)): (usize, (&usize, &ValueType))| PlanOutput { name: format!("y{i}"), ty: ty.clone(), value };
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
    }
}

/// What the exported model gives; `None` where the operator has no spelling.
fn round_trip(op: &Op, inputs: &[Option<Tensor>], types: &[Option<ValueType>]) -> Option<Vec<Tensor>> {
    let refs: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
    let plan = plan_of(op, types, &op.infer(&refs).unwrap());
    let exported = match export(&plan, &[], &options(Layout::Split)) {
        Ok(exported) => exported,
        Err(ExportError::Unspelled(_)) => return None,
        Err(e) => panic!("{op:?}: {e}"),
    };
    let model = &exported.models[0];
    let imported = onnx::import(&model.proto, &ImportOptions::default());
    let graph = imported.unwrap_or_else(|e| panic!("{op:?} {types:?}: {e}\n{:#?}", model.proto.graph)).graph;
    let named: BTreeMap<String, Tensor> =
        inputs.iter().flatten().enumerate().map(|(i, t)| (format!("x{i}"), t.clone())).collect();
    let outputs = interpret(&graph, &named);
    Some(outputs.unwrap_or_else(|e| panic!("{op:?} {types:?}: {e}\n{graph}")).into_iter().map(|o| o.1).collect())
}

fn values(t: &ValueType, seed: usize) -> Tensor {
    let shape = t.fixed_shape().unwrap();
    let pool = [0.0, 1.0, -1.0, 0.5, 1.0, 0.0, 1.5, -0.25, -1.0, 1.0, 0.0, 3.0];
    let all: Vec<f32> =
        (0..shape.iter().product()).map(|i: usize| pool[(i * 7 + seed) % (pool.len() - seed % 6)]).collect();
    let wide = Tensor::from_f32(&shape, &all);
    cqc_kernels::reference::eval(&Op::Cast { to: t.dtype }, &[Some(&wide)]).unwrap().remove(0)
}

fn close(a: &Tensor, b: &Tensor) -> bool {
    // 1e-3: halves round at every node of a decomposition, not once
    let tolerance = if matches!(a.dtype(), DType::F16 | DType::BF16) { 2e-2 } else { 1e-4 };
    let near = |(a, b): (&f64, &f64)| {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * (1.0 + a.abs().max(b.abs()))
    };
    a.shape() == b.shape() && a.dtype() == b.dtype() && a.to_f64_vec().iter().zip(&b.to_f64_vec()).all(near)
}

/// Floats of plans are f32; the standard's other floats are the spelling's business only where operators mix types.
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
    let strategy = (arbitrary::op(false), arbitrary::input_types(false));
    let mut runner = TestRunner::deterministic();
    let mut spelled: BTreeMap<String, usize> = BTreeMap::new();
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..200_000 {
        let (op, types) = strategy.new_tree(&mut runner).unwrap().current();
        let refs: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
        let Ok(outputs) = op.infer(&refs) else { continue };
        let empty = |t: &ValueType| t.shape.iter().any(|d| d.is(0));
        if !occurs_in_plans(&op, &types) || outputs.iter().chain(types.iter().flatten()).any(empty) {
            continue;
        }
        let inputs: Vec<Option<Tensor>> = types.iter().map(|t| t.as_ref().map(|t| values(t, seed))).collect();
        let operands: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        let Ok(expected) = cqc_kernels::reference::eval(&op, &operands) else { continue };
        let name = format!("{op:?}").split([' ', '(']).next().unwrap().to_string();
        match round_trip(&op, &inputs, &types) {
            None => *refused.entry(name).or_default() += 1,
            Some(found) => {
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(close(found, expected), "{op:?} of {inputs:?}: {found:?}, expected {expected:?}");
                }
                *spelled.entry(name).or_default() += 1;
            }
        }
    }
    println!("spelled {spelled:?}\nrefused {refused:?}");
    assert_eq!(spelled.len(), 39, "some operator was never spelled: {spelled:?}");
}
