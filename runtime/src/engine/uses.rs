//! Who writes and who reads the values of a program, found once: programs are as long as a file
//! says, so nothing may look through all of one for each of its steps.

use super::values::Value;
use cqc_proto::plan::Program;

/// What the steps of a program and its values have to do with each other.
pub(crate) struct Uses {
    /// Per value, the step that writes it.
    makers: Vec<Option<usize>>,
    /// Per value, the steps that read it, ascending, each once.
    readers: Vec<Vec<usize>>,
    /// Per value, how many operands of steps it is.
    reads: Vec<usize>,
    /// Per value, how many values have it as their home.
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

    /// The steps that read the value, ascending.
    pub fn readers(&self, v: usize) -> &[usize] {
        &self.readers[v]
    }

    /// How many operands of steps it is.
    pub fn reads(&self, v: usize) -> usize {
        self.reads[v]
    }

    /// Whether the value has storage that no other value lies in.
    pub fn own(&self, values: &[Value], v: usize) -> bool {
        self.sharers[v] == 1 && values[v].home == v
    }
}
