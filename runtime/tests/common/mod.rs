//! Plans that are built by hand, and an interpreter that runs them through the definitions of their
//! operators, without an arena.
#![allow(dead_code)] // every test file uses its own part

use bytes::Bytes;
use cqc_proto::plan::*;
use cqc_proto::{Bindings, DType, Dim, Op, Tensor, ValueType};
use std::collections::BTreeMap;

/// Numbers in [-1, 1), the same in every run.
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

pub fn tensor(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_f32(shape, &noise(shape.iter().product(), seed))
}

/// Parses a shape, such as `N,3,8`.
pub fn shape(text: &str) -> Vec<Dim> {
    text.split(',').filter(|t| !t.trim().is_empty()).map(|t| Dim::parse(t).unwrap()).collect()
}

pub fn f32s(text: &str) -> ValueType {
    ValueType::new(DType::F32, shape(text))
}

/// A plan under construction.
pub struct Build {
    pub plan: Plan,
    pub weights: Vec<u8>,
}

impl Build {
    pub fn new(evaluations: usize) -> Build {
        let plan = Plan {
            batch_symbol: Some("N".into()),
            fixed_batch: None,
            inputs: vec![],
            outputs: vec![],
            evaluations,
            constants: vec![],
            prelude: Program::default(),
            prelude_steps: Program::default(),
            full: Program::default(),
            cache: None,
            times: None,
        };
        Build { plan, weights: vec![] }
    }

    pub fn program(&mut self, kind: ProgramKind) -> &mut Program {
        match kind {
            ProgramKind::Prelude => &mut self.plan.prelude,
            ProgramKind::PreludeSteps => &mut self.plan.prelude_steps,
            ProgramKind::Full => &mut self.plan.full,
            ProgramKind::Cached => {
                &mut self.plan.cache.as_mut().expect("a plan with a cache").cached
            }
        }
    }

    pub fn model_input(&mut self, name: &str, role: InputRole, ty: ValueType) -> usize {
        self.plan.inputs.push(PlanInput { name: name.into(), ty, role });
        self.plan.inputs.len() - 1
    }

    pub fn value(&mut self, kind: ProgramKind, ty: ValueType, source: Source) -> usize {
        let program = self.program(kind);
        let name = format!("{kind}.{}", program.values.len());
        program.values.push(PlanValue { name, ty, source, alias: None });
        program.values.len() - 1
    }

    pub fn input(&mut self, kind: ProgramKind, i: usize) -> usize {
        let mut ty = self.plan.inputs[i].ty.clone();
        if ty.dtype.is_float() {
            ty.dtype = DType::F32;
        }
        self.value(kind, ty, Source::Input(i))
    }

    pub fn store(&mut self, tensor: &Tensor) -> usize {
        self.weights.resize(self.weights.len().next_multiple_of(64), 0);
        let (name, offset) = (format!("w{}", self.plan.constants.len()), self.weights.len() as u64);
        self.plan.constants.push(Constant { name, ty: tensor.value_type(), offset, codes: None });
        self.weights.extend_from_slice(tensor.bytes());
        self.plan.constants.len() - 1
    }

    pub fn constant(&mut self, kind: ProgramKind, tensor: &Tensor) -> usize {
        let i = self.store(tensor);
        let mut ty = tensor.value_type();
        if ty.dtype.is_float() {
            ty.dtype = DType::F32;
        }
        self.value(kind, ty, Source::Constant(i))
    }

    /// A constant of random values.
    pub fn weight(&mut self, kind: ProgramKind, shape: &[usize]) -> usize {
        let seed = self.plan.constants.len() as u64 + 100;
        self.constant(kind, &tensor(shape, seed))
    }

    pub fn step(&mut self, kind: ProgramKind, op: Op, inputs: &[Option<usize>]) -> usize {
        let program = self.program(kind);
        let types: Vec<Option<&ValueType>> =
            inputs.iter().map(|v| v.map(|v| &program.values[v].ty)).collect();
        let ty = op.infer(&types).unwrap().remove(0);
        let name = format!("{}{}", op.name(), program.steps.len());
        let y = program.values.len();
        program.values.push(PlanValue {
            name: name.clone(),
            ty,
            source: Source::Step,
            alias: None,
        });
        program.steps.push(Step { op, inputs: inputs.to_vec(), outputs: vec![y], name });
        y
    }

    pub fn full(&mut self, op: Op, inputs: &[usize]) -> usize {
        let inputs: Vec<Option<usize>> = inputs.iter().map(|&v| Some(v)).collect();
        self.step(ProgramKind::Full, op, &inputs)
    }

    pub fn output(&mut self, name: &str, value: usize) {
        let ty = self.plan.full.values[value].ty.clone();
        self.plan.outputs.push(PlanOutput { name: name.into(), ty, value });
    }

    pub fn bytes(&self) -> Bytes {
        self.weights.clone().into()
    }
}

/// The values of a program, computed by the definitions alone.
pub struct Interpreter<'a> {
    pub plan: &'a Plan,
    pub weights: &'a [u8],
    pub batch: usize,
    pub timesteps: Vec<f64>,
    pub inputs: BTreeMap<String, Tensor>,
    pub evaluation: usize,
}

impl Interpreter<'_> {
    pub fn outputs(&self) -> BTreeMap<String, Tensor> {
        let values = self.run(ProgramKind::Full);
        self.plan.outputs.iter().map(|o| (o.name.clone(), values[o.value].clone())).collect()
    }

    pub fn run(&self, kind: ProgramKind) -> Vec<Tensor> {
        let program = self.plan.program(kind);
        let rows =
            self.batch * if kind == ProgramKind::PreludeSteps { self.plan.evaluations } else { 1 };
        let bindings = Bindings::from([("N".into(), rows as i64)]);
        let mut values: Vec<Option<Tensor>> = program
            .values
            .iter()
            .map(|v| self.outside(kind, v, v.ty.resolve(&bindings).unwrap()))
            .collect();
        for step in &program.steps {
            let inputs: Vec<Option<&Tensor>> =
                step.inputs.iter().map(|v| v.map(|v| values[v].as_ref().unwrap())).collect();
            let outputs =
                cqc_kernels::reference::eval(&bind(&step.op, &bindings), &inputs).unwrap();
            step.outputs.iter().zip(outputs).for_each(|(&v, t)| values[v] = Some(t));
        }
        values.into_iter().map(|v| v.unwrap()).collect()
    }

    fn constant(&self, i: usize) -> Tensor {
        let c = &self.plan.constants[i];
        let shape = c.ty.fixed_shape().unwrap();
        let len = shape.iter().product::<usize>() * c.ty.dtype.size();
        let bytes = self.weights[c.offset as usize..][..len].to_vec();
        let t = Tensor::new(c.ty.dtype, shape, bytes).unwrap();
        if t.dtype().is_float() { t.to_float(DType::F32) } else { t }
    }

    fn outside(&self, kind: ProgramKind, value: &PlanValue, shape: Vec<usize>) -> Option<Tensor> {
        let evaluations = self.plan.evaluations;
        let stacked = kind == ProgramKind::PreludeSteps;
        Some(match value.source {
            Source::Step => return None,
            Source::Input(i) if stacked && self.plan.inputs[i].role == InputRole::Timestep => {
                let per = shape[0] / evaluations;
                let steps: Vec<f32> =
                    self.timesteps.iter().flat_map(|&t| vec![t as f32; per]).collect();
                Tensor::from_f32(&shape, &steps)
            }
            Source::Input(i) => {
                let t = self.inputs[&self.plan.inputs[i].name].clone();
                let t = if t.dtype().is_float() { t.to_float(DType::F32) } else { t };
                if stacked { repeated(&t, evaluations, shape) } else { t }
            }
            Source::Constant(i) => self.constant(i),
            Source::Table(i) if stacked => {
                let t = self.constant(i).to_f32_vec();
                let rows = t.chunks(t.len() / evaluations);
                let all: Vec<f32> = rows.flat_map(|row| row.repeat(self.batch)).collect();
                Tensor::from_f32(&shape, &all)
            }
            Source::Table(i) => rows(&self.constant(i), self.evaluation, evaluations, shape),
            Source::Prelude(i) => {
                let t = self.run(ProgramKind::Prelude)[self.plan.prelude.results[i]].clone();
                if stacked { repeated(&t, evaluations, shape) } else { t }
            }
            Source::Cache(_) => unreachable!("the definition runs whole evaluations"),
            Source::PreludeSteps(i) => {
                let t = &self.run(ProgramKind::PreludeSteps)[self.plan.prelude_steps.results[i]];
                rows(t, self.evaluation, evaluations, shape)
            }
        })
    }
}

fn rows(t: &Tensor, at: usize, of: usize, shape: Vec<usize>) -> Tensor {
    let part = t.bytes().len() / of;
    Tensor::new(t.dtype(), shape, t.bytes().slice(at * part..(at + 1) * part)).unwrap()
}

fn repeated(t: &Tensor, times: usize, shape: Vec<usize>) -> Tensor {
    Tensor::new(t.dtype(), shape, t.bytes().repeat(times)).unwrap()
}

fn bind(op: &Op, bindings: &Bindings) -> Op {
    let all = |dims: &[Dim]| dims.iter().map(|d| d.bind(bindings).unwrap()).collect::<Vec<_>>();
    match op {
        Op::Reshape { shape } => Op::Reshape { shape: all(shape) },
        Op::Expand { shape } => Op::Expand { shape: all(shape) },
        other => other.clone(),
    }
}

/// The largest difference, relative to the largest value of `b`.
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()));
    let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
    let scale = b.iter().fold(1e-6, |m: f64, v| m.max(v.abs()));
    a.iter().zip(&b).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs())) / scale
}
