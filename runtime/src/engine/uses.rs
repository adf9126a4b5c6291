//! The steps that write and read each value of a program. They are found once, because the length
//! of a program is not limited, and a search per step would take quadratic time.

use super::values::Value;
use cqc_proto::plan::Program;

/// The uses of a program's values.
pub(crate) struct Uses {
    /// The step that writes each value.
    makers: Vec<Option<usize>>,
    /// The steps that read each value, ascending, each once.
    readers: Vec<Vec<usize>>,
    /// The number of operands of steps that each value is.
    reads: Vec<usize>,
    /// The number of values whose home is each value.
    sharers: Vec<usize>,
}

impl Uses {
    pub fn new(program: &Program, values: &[Value]) -> Uses {
        let (mut makers, mut readers) = (vec![None; values.len()], vec![Vec::new(); values.len()]);
        let (mut reads, mut sharers) = (vec![0; values.len()], vec![0; values.len()]);
        values.iter().for_each(|value| sharers[value.home] += 1);
        for (at, step) in program.steps.iter().enumerate() {
            step.outputs.iter().for_each(|&v| makers[v] = Some(at));
            for &v in step.inputs.iter().flatten() {
                reads[v] += 1;
                if readers[v].last() != Some(&at) {
                    readers[v].push(at);
                }
            }
        }
        Uses { makers, readers, reads, sharers }
    }

    /// The step that writes the value.
    pub fn maker(&self, v: usize) -> Option<usize> {
        self.makers[v]
    }

    /// The steps that read the value, in ascending order.
    pub fn readers(&self, v: usize) -> &[usize] {
        &self.readers[v]
    }

    /// The number of operands of steps that the value is.
    pub fn reads(&self, v: usize) -> usize {
        self.reads[v]
    }

    /// Whether the value has storage of its own that no other value shares.
    pub fn own(&self, values: &[Value], v: usize) -> bool {
        self.sharers[v] == 1 && values[v].home == v
    }
}
