//! A Chrome trace of a denoising loop.
//!
//! The engine measures the total time of each step of a program. The differences of these totals
//! between two evaluations are laid out one after the other, which is the order in which steps run.

use super::report::Failure;
use cachequant::io::{Overwrite, write_atomic};
use cqc_runtime::denoise::Moment;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

pub struct Trace {
    start: Instant,
    /// The time at which the last evaluation ended.
    last: Duration,
    /// Total time of each step so far.
    totals: Vec<Duration>,
    events: Vec<Value>,
}

impl Trace {
    pub fn begin() -> Trace {
        Trace { start: Instant::now(), last: Duration::ZERO, totals: vec![], events: vec![] }
    }

    /// Adds the evaluation that has just ended, and its operators. The first evaluation of a batch
    /// includes the preludes.
    pub fn after_evaluation(&mut self, moment: &Moment) {
        let now = self.start.elapsed();
        let name = format!(
            "evaluation {} of samples {}–{}",
            moment.evaluation,
            moment.samples.start,
            moment.samples.end - 1
        );
        self.events.push(event(&name, "evaluation", 1, self.last, now - self.last, json!({})));
        let profile = moment.engine.profile();
        self.totals.resize(profile.len(), Duration::ZERO);
        let mut at = self.last;
        for (step, total) in profile.iter().zip(&mut self.totals) {
            let took = step.total - *total;
            *total = step.total;
            if took > Duration::ZERO {
                let details = json!({"node": step.name, "program": step.program.to_string()});
                self.events.push(event(&step.op, "operator", 2, at, took, details));
                at += took;
            }
        }
        self.last = now;
    }

    pub fn write(self, path: &Path, overwrite: Overwrite) -> Result<(), Failure> {
        let text = json!({"displayTimeUnit": "ms", "traceEvents": self.events}).to_string();
        Ok(write_atomic(path, overwrite, |out| out.write_all(text.as_bytes()))?)
    }
}

fn event(
    name: &str,
    category: &str,
    track: u32,
    start: Duration,
    took: Duration,
    details: Value,
) -> Value {
    let us = |d: Duration| d.as_secs_f64() * 1e6;
    json!({"name": name, "cat": category, "ph": "X", "ts": us(start), "dur": us(took), "pid": 1, "tid": track, "args": details})
}
