//! Exports one program of a plan: its steps, in order.

use super::Qdq;
use super::cx::{Cx, ExportResult, Val};
use super::error::UnsupportedStep;
use super::ops;
use super::ports::{Port, Wire, used, wire};
use super::quantized::Quantized;
use super::scales::{Rows, Written};
use cqc_proto::op::Op;
use cqc_proto::plan::{Alias, InputRole, Plan, PlanValue, Program, ProgramKind, Source, Step};
use cqc_proto::{DType, Dim, Tensor, ValueType};

/// The plan and the constants from which programs are written.
#[derive(Clone, Copy)]
pub(super) struct ExportSource<'a> {
    pub plan: &'a Plan,
    /// Tensors of `Plan::constants`.
    pub constants: &'a [Tensor],
    /// The time step of every evaluation.
    pub timesteps: &'a [f64],
}

/// Writes a program whose inputs are `ports`, and its `results` (values of the program) under their
/// names.
///
/// # Errors
/// Every step that has no form in standard ONNX.
pub(super) fn write(
    cx: &mut Cx,
    origin: ExportSource,
    kind: ProgramKind,
    ports: &[Port],
    results: &[(usize, String)],
) -> Result<(), Vec<UnsupportedStep>> {
    let program = origin.plan.program(kind);
    let inputs: Vec<(Wire, Val)> =
        ports.iter().map(|p| (p.value.clone(), cx.input(&p.name, p.ty.clone()))).collect();
    let wanted: Vec<usize> = results.iter().map(|r| r.0).collect();
    let mut writer = Writer {
        cx,
        origin,
        kind,
        program,
        inputs,
        values: vec![None; program.values.len()],
        refused: vec![],
    };
    writer.check_batch(&wanted);
    let live = used(program, &wanted);
    for step in &program.steps {
        if step.outputs.iter().any(|v| live.contains(v)) {
            writer.step(step);
        }
    }
    let values: Vec<Option<Val>> = wanted.iter().map(|&v| writer.get(v)).collect();
    if !writer.refused.is_empty() {
        return Err(writer.refused);
    }
    let mut named: Vec<String> = ports.iter().map(|p| p.name.clone()).collect();
    for ((_, name), v) in results.iter().zip(values) {
        let v = v.expect("without a refusal every value is there");
        cx.output(v, name, &named);
        named.push(name.clone());
    }
    Ok(())
}

struct Writer<'c, 'a, 'o> {
    cx: &'c mut Cx<'a>,
    origin: ExportSource<'o>,
    kind: ProgramKind,
    program: &'o Program,
    inputs: Vec<(Wire, Val)>,
    values: Vec<Option<Val>>,
    refused: Vec<UnsupportedStep>,
}

impl Writer<'_, '_, '_> {
    fn refuse(&mut self, step: &str, op: &str, reason: String) {
        self.refused.push(UnsupportedStep {
            program: self.kind,
            step: step.into(),
            op: op.into(),
            reason,
        });
    }

    /// Checks that sizes that depend on the batch can be computed from an input.
    fn check_batch(&mut self, results: &[usize]) {
        let symbol = |d: &Dim| d.as_const().is_none();
        let live = used(self.program, results);
        let symbolic =
            live.iter().map(|&v| &self.program.values[v]).find(|v| v.ty.shape.iter().any(symbol));
        let tells =
            |(_, v): &(Wire, Val)| self.cx.shape(*v).iter().any(|d| d.as_symbol().is_some());
        if let (Some(value), false) = (symbolic, self.inputs.iter().any(tells)) {
            let (name, ty) = (value.name.clone(), value.ty.to_string());
            self.refuse(
                &name,
                "input",
                format!("it is {ty}, and no input of the program tells the batch"),
            );
        }
    }

    fn step(&mut self, step: &Step) {
        if !self.refused.is_empty() && step.inputs.iter().flatten().any(|&v| self.is_lost(v)) {
            return; // reported where the operand was to be made
        }
        self.cx.step = step.name.clone();
        let exported = match &step.op {
            Op::FakeQuant { bits: 8, segments } => self.rounded(step, segments),
            Op::RoundBf16 if self.cx.qdq == Qdq::None => {
                step.inputs[0].and_then(|x| self.get(x)).map(|x| Ok(vec![x]))
            }
            _ => None,
        };
        let exported = exported.unwrap_or_else(|| {
            let inputs: Vec<Option<Val>> =
                step.inputs.iter().map(|v| v.and_then(|v| self.get(v))).collect();
            self.cx.step = step.name.clone();
            ops::export_op(self.cx, &step.op, &inputs)
        });
        match exported {
            Ok(results) => {
                for (&v, result) in step.outputs.iter().zip(results) {
                    self.cx.call(result, &self.program.values[v].name);
                    self.values[v] = Some(result);
                }
            }
            Err(reason) => self.refuse(&step.name, &step.op.name(), reason),
        }
    }

    /// Whether the value was to be written by a step that was refused.
    fn is_lost(&self, v: usize) -> bool {
        let value = &self.program.values[v];
        match (&value.alias, value.source) {
            _ if self.values[v].is_some() => false,
            (Some(Alias::Same { of }), _) => self.is_lost(*of),
            (_, source) => source == Source::Step,
        }
    }

    /// The value. Sources and reshapes are added when they are first used. `None` for a value whose
    /// step was refused.
    fn get(&mut self, v: usize) -> Option<Val> {
        if let Some(known) = self.values[v] {
            return Some(known);
        }
        let value = &self.program.values[v];
        let found = match (&value.alias, value.source) {
            (Some(Alias::Same { of }), _) => {
                let root = self.get(*of)?;
                Ok(self.cx.reshape(root, value.ty.shape.clone()))
            }
            // columns of a concat are written by the step that computes them
            (_, Source::Step) => return None,
            _ => self.source(value),
        };
        match found {
            Ok(found) => self.values[v] = Some(found),
            Err(reason) => {
                let name = value.name.clone();
                self.refuse(&name, "input", reason);
            }
        }
        self.values[v]
    }

    fn source(&mut self, value: &PlanValue) -> ExportResult {
        let plan = self.origin.plan;
        if let Some(wire) = wire(plan, self.kind, value.source) {
            let found = self.inputs.iter().find(|(w, _)| *w == wire);
            return Ok(found.expect("every source that is used has a port").1);
        }
        self.cx.step = value.name.clone();
        match value.source {
            Source::Constant(i) if plan.constants[i].codes.is_some() => {
                let how = plan.constants[i].codes.clone().expect("just seen");
                let (codes, scale) =
                    (self.origin.constants[i].clone(), self.origin.constants[how.scale].clone());
                Ok(self.cx.weights(&plan.constants[i].name, i, Quantized::new(codes, scale, how)))
            }
            // half the size, and exact
            Source::Constant(i)
                if plan.constants[i].ty.dtype == DType::BF16 && self.cx.qdq != Qdq::None =>
            {
                let stored =
                    self.cx.constant(&plan.constants[i].name, self.origin.constants[i].clone());
                Ok(self.cx.cast(stored, value.ty.dtype))
            }
            Source::Constant(i) => {
                let t = self.cx.store.converted(i, &self.origin.constants[i], value.ty.dtype);
                Ok(self.cx.constant(&plan.constants[i].name, t))
            }
            Source::Table(i) => {
                let t = self.cx.store.converted(i, &self.origin.constants[i], value.ty.dtype);
                let table = self.cx.constant(&plan.constants[i].name, t);
                self.row(table, value)
            }
            _ => {
                let input = plan.inputs.iter().find(|i| i.role == InputRole::Timestep);
                let name =
                    input.map_or("timesteps".to_string(), |i| format!("{}/timesteps", i.name));
                let steps = timesteps(self.origin.timesteps, value.ty.dtype);
                let table = self.cx.constant(&name, steps);
                self.row(table, value)
            }
        }
    }

    /// The value that layers read rounded; `None` if its scales are computed.
    fn rounded(&mut self, step: &Step, segments: &[usize]) -> Option<ExportResult<Vec<Val>>> {
        let (x, plan, kind) = (self.get(step.inputs[0]?)?, self.origin.plan, self.kind);
        if self.cx.qdq == Qdq::None {
            return Some(Ok(vec![x]));
        }
        let table = |input: usize| match self.program.values[step.inputs[input]?].source {
            Source::Table(i) | Source::Constant(i) => Some(self.origin.constants[i].to_f32_vec()),
            _ => None,
        };
        let count = segments.len().max(1);
        let (scale, zero) = (table(1)?, table(2)?);
        let rows = scale.len() / count;
        let runs = |e: &usize| rows == 1 || plan.program_at(*e) == kind;
        let column = |values: &[f32], i: usize| {
            values.iter().skip(i).step_by(count).copied().collect::<Vec<f32>>()
        };
        let mut parts = vec![];
        for i in 0..count {
            let rows = Rows {
                scale: column(&scale, i),
                zero: column(&zero, i),
                runs: (0..rows).filter(runs).collect(),
            };
            match rows.written(self.cx.qdq) {
                Err(reason) => return Some(Err(reason)),
                Ok(written) => parts.push(written.map(|w| self.scales(&step.name, w))),
            }
        }
        Some(Ok(vec![self.cx.rounded(&step.name, x, segments, parts)]))
    }

    /// Scale and zero point as numbers of this evaluation.
    fn scales(&mut self, name: &str, written: Written) -> [Val; 2] {
        let step = self.inputs.iter().find(|(w, _)| *w == Wire::Step).map(|i| i.1);
        [("scale", written.scale), ("zero_point", written.zero)].map(|(what, t)| {
            let label = format!("{name}/{what}");
            let t = self.cx.constant(&label, t);
            if self.cx.rank(t) == 0 {
                return t;
            }
            self.cx.step = label;
            let step = step.expect("a program with tables takes the step");
            self.cx.emit(Op::Gather { axis: 0 }, &[t, step]).expect("Gather has a spelling")
        })
    }

    /// The row of this evaluation in a table, repeated for the batch if the value has one.
    fn row(&mut self, table: Val, value: &PlanValue) -> ExportResult {
        let step = self
            .inputs
            .iter()
            .find(|(w, _)| *w == Wire::Step)
            .expect("a program with tables takes the step")
            .1;
        let row = self.cx.emit(Op::Gather { axis: 0 }, &[table, step])?;
        let wanted = &value.ty.shape;
        let all = |s: &[Dim]| ValueType::new(DType::F32, s).elements();
        if all(wanted) == all(self.cx.shape(row)) {
            return Ok(self.cx.reshape(row, wanted.clone()));
        }
        let mut one = wanted.clone();
        if let Some(batch) = one.first_mut() {
            *batch = 1.into();
        }
        if all(&one) == all(self.cx.shape(row)) {
            let one = self.cx.reshape(row, one);
            return self.cx.emit(Op::Expand { shape: wanted.clone() }, &[one]);
        }
        self.cx.emit(Op::Expand { shape: wanted.clone() }, &[row])
    }
}

/// The time steps as the engine converts them: integers are truncated.
fn timesteps(list: &[f64], dtype: DType) -> Tensor {
    crate::onnx::tensors::from_floats(dtype, vec![list.len()], list)
}
