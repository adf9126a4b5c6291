//! The text form of plans, for filetests and people. It does not contain the bytes of constants, so
//! it cannot be read back.
//!
//! ```text
//! plan(%x: f32[N,8] sample, %t: i64[N] timestep) batch=N evaluations=2 {
//!   const 0 %w: f32[8,4] offset=0
//!   const 1 %e: f32[2,4] offset=128
//!   slot 0 %h = %h                      full stores its %h here
//!   slot 1 %h/previous = slot 0 before
//!   full evaluations 0
//!   full {
//!     %x: f32[N,8] = input 0
//!     %e: f32[4] = table 1              the row of this evaluation
//!     %w: f32[8,4] = const 0
//!     %h: f32[N,4] in %c from 0 = linear(%x, %w, _, %e)
//!     %v: f32[N,2,2] = same as %h       a reshape: no step, the same elements
//!     …
//!     return %y
//!   }
//! }
//! ```
//! Values appear in the order of the plan, each with the step that writes it.

use super::{Alias, Constant, InputRole, Plan, Program, ProgramKind, Source, Step};
use crate::text::{Attributes, List, Name};
use std::fmt;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inputs = self.inputs.iter().map(|i| format!("{}: {} {}", Name(&i.name), i.ty, i.role));
        write!(f, "plan({})", List(inputs))?;
        match (&self.batch_symbol, self.fixed_batch) {
            (Some(symbol), _) => write!(f, " batch={symbol}")?,
            (None, Some(batch)) => write!(f, " batch={batch}")?,
            (None, None) => {}
        }
        writeln!(f, " evaluations={} {{", self.evaluations)?;
        for (i, constant) in self.constants.iter().enumerate() {
            writeln!(f, "  const {i} {constant}")?;
        }
        for (i, slot) in self.cache.iter().flat_map(|cache| &cache.slots).enumerate() {
            match slot.previous_of {
                Some(of) => writeln!(f, "  slot {i} {} = slot {of} before", Name(&slot.name))?,
                None => writeln!(
                    f,
                    "  slot {i} {} = {}",
                    Name(&slot.name),
                    self.full.name_of(slot.value)
                )?,
            }
        }
        if let Some(cache) = &self.cache {
            writeln!(f, "  full evaluations {}", List(cache.full_evaluations.iter()))?;
        }
        for kind in ProgramKind::ALL {
            let program = self.program(kind);
            if kind == ProgramKind::Full {
                let outputs: Vec<usize> = self.outputs.iter().map(|o| o.value).collect();
                program.write(f, "full", &outputs)?;
            } else if !program.values.is_empty() {
                program.write(f, &kind.to_string(), &program.results)?;
            }
        }
        if let Some(times) = &self.times {
            times.program.write(f, "times", &times.program.results)?;
            writeln!(f, "  times make rows of const {}", List(times.tables.iter()))?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for InputRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InputRole::Sample => "sample",
            InputRole::Timestep => "timestep",
            InputRole::Condition => "condition",
            InputRole::StepCondition => "step condition",
        })
    }
}

/// Name, type, offset in the weight section, and encoding.
impl fmt::Display for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} offset={}", Name(&self.name), self.ty, self.offset)?;
        let Some(codes) = &self.codes else { return Ok(()) };
        write!(
            f,
            " bits={} scale=const {} output_axis={}",
            codes.bits, codes.scale, codes.output_axis
        )?;
        if !codes.segments.is_empty() {
            write!(f, " segments={:?}", codes.segments)?;
        }
        Ok(())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Step => f.write_str("step"),
            Source::Input(i) => write!(f, "input {i}"),
            Source::Constant(i) => write!(f, "const {i}"),
            Source::Table(i) => write!(f, "table {i}"),
            Source::Prelude(i) => write!(f, "prelude {i}"),
            Source::PreludeSteps(i) => write!(f, "prelude_steps {i}"),
            Source::Cache(i) => write!(f, "slot {i}"),
        }
    }
}

impl Program {
    fn write(&self, f: &mut fmt::Formatter<'_>, name: &str, results: &[usize]) -> fmt::Result {
        writeln!(f, "  {name} {{")?;
        for (i, value) in self.values.iter().enumerate() {
            match (&value.source, &value.alias) {
                (Source::Step, Some(Alias::Same { of })) => {
                    writeln!(
                        f,
                        "    {}: {} = same as {}",
                        Name(&value.name),
                        value.ty,
                        self.name_of(*of)
                    )?;
                }
                (Source::Step, _) => {
                    for step in self.steps.iter().filter(|step| step.outputs.first() == Some(&i)) {
                        self.write_step(f, step)?;
                    }
                }
                (source, _) => writeln!(f, "    {}: {} = {source}", Name(&value.name), value.ty)?,
            }
        }
        writeln!(f, "    return {}\n  }}", List(results.iter().map(|&v| self.name_of(v))))
    }

    fn write_step(&self, f: &mut fmt::Formatter<'_>, step: &Step) -> fmt::Result {
        let result = |&v: &usize| {
            let value = &self.values[v];
            let place = match &value.alias {
                Some(Alias::Columns { of, offset }) => {
                    format!(" in {} from {offset}", self.name_of(*of))
                }
                _ => String::new(),
            };
            format!("{}: {}{place}", Name(&value.name), value.ty)
        };
        let operand =
            |v: &Option<usize>| v.map_or("_".to_string(), |v| self.name_of(v).to_string());
        let (results, operands) =
            (List(step.outputs.iter().map(result)), List(step.inputs.iter().map(operand)));
        writeln!(f, "    {results} = {}({operands}){}", step.op.name(), Attributes(&step.op))
    }

    fn name_of(&self, value: usize) -> Name<'_> {
        Name(&self.values[value].name)
    }
}
