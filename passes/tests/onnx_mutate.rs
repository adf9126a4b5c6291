//! Damaged copies of models: import ends, with a graph or an error, and never panics.

mod onnx_build;

use cqc_passes::onnx::{ImportOptions, import_bytes};
use cqc_proto::onnx::ModelProto;
use onnx_build::{bytes, small};
use prost::Message;
use std::time::{Duration, Instant};

/// xorshift64*: the same damage on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

/// Damages one place of the first `head` bytes.
fn damage(whole: &[u8], head: usize, random: &mut Random) -> Vec<u8> {
    let mut damaged = whole.to_vec();
    let at = random.below(head);
    match random.below(4) {
        0 => damaged.truncate(at),
        1 => {
            let from = random.below(head);
            let n = random.below(64).min(whole.len() - from.max(at));
            damaged.copy_within(from..from + n, at);
        }
        2 => drop(damaged.drain(at..(at + 1 + random.below(8)).min(whole.len()))),
        _ => {
            damaged[at] ^= 1 << random.below(8);
            for _ in 0..random.below(4) {
                damaged[random.below(head)] ^= 1 << random.below(8);
            }
        }
    }
    damaged
}

fn survive(whole: &[u8], head: usize, rounds: usize, limit: Duration) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let start = Instant::now();
    for round in 0..rounds {
        let damaged = damage(whole, head, &mut random);
        let begin = Instant::now();
        let _ = import_bytes(damaged, &ImportOptions::default());
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(5), "round {round} took {took:?}");
        if start.elapsed() > limit {
            println!("stopped after {round} rounds");
            return;
        }
    }
}

#[test]
fn small_model() {
    let whole = bytes(&small());
    survive(&whole, whole.len(), 20_000, Duration::from_secs(20));
}

/// Written anew, nodes stand in front of weights: damage to weights is of no interest here.
#[test]
fn real_model() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/ddpm-shapes32.onnx");
    let path = std::env::var("CQC_MUTATE_MODEL").unwrap_or(path.to_string());
    let Ok(file) = std::fs::read(&path) else { return println!("skipped: {path} is not there") };
    let mut model = ModelProto::decode(&file[..]).expect("a model");
    let whole = model.encode_to_vec();
    model.graph.as_mut().expect("a graph").initializer.clear();
    survive(&whole, model.encoded_len(), 500, Duration::from_secs(30));
}
