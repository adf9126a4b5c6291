//! Target `text_ir`: the text form of graphs → passes, and back to text.

use crate::Random;
use cqc_passes::ir::{parse, verify};
use cqc_passes::rewrite;

/// Reads a graph, writes it, reads it back, and runs the passes over it.
pub fn run(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(mut graph) = parse(text) else { return false };
    crate::depth::read();
    verify(&graph).expect("a graph that was read is valid");
    let written = graph.to_string();
    // constants of many elements are not written
    if !written.contains("] #") {
        let read = parse(&written).unwrap_or_else(|e| panic!("{e}\n{written}"));
        assert_eq!(read.to_string(), written);
    }
    rewrite::run(&mut graph, rewrite::PIPELINE, |_, _| {}).expect("passes keep graphs valid");
    true
}

/// The graphs of the passes' tests.
pub fn seeds() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/filetests");
    let mut files = Vec::new();
    for group in ["passes", "lower", "bf16", "cache", "quantize", "wire"] {
        let entries = std::fs::read_dir(format!("{folder}/{group}")).expect("tests are there");
        files.extend(entries.map(|entry| entry.expect("it can be read").path()));
    }
    files.sort();
    let mut out = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).expect("tests are text");
        let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with(';')).collect();
        for part in lines.join("\n").split("graph(").skip(1) {
            let end = part.find("\n}").map_or(part.len(), |end| end + 2);
            out.push(format!("graph({}", &part[..end]).into_bytes());
        }
    }
    out
}

#[rustfmt::skip]
const WORDS: &[&str] = &[
    "graph", "%x", "%y", "%w", "%\"a b\"", "const", "return", "f32", "f16", "i64", "bool", "[N,4]", "[2,3]", "[]", "[N]", "_",
    "axis=0", "axis=1", "perm=[1,0]", "shape=[\"N\",8]", "act=\"silu\"", "groups=2", "0.5", "-1", "[1,2,3]", "#1", "2*N", "N+1",
    "add", "mul", "linear", "conv", "matmul", "softmax", "reshape", "transpose", "concat", "sigmoid", "silu", "group_norm",
    "layer_norm", "attention", "reduce", "slice", "gather", "expand", "cast", "pad", "resize", "where", "9223372036854775807",
    "1e400", "nan", "inf", "keep=true", "to=\"i64\"", "heads=2", "layout=\"channels_last\"",
];

/// Replaces, doubles or removes a word or a line.
pub fn mutate(data: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(data).ok()?;
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    for _ in 0..=random.few() {
        let at = random.below(lines.len());
        match random.below(8) {
            0 if lines.len() > 1 => drop(lines.remove(at)),
            1 => {
                let line = lines.get(random.below(lines.len()))?.clone();
                lines.insert(at, line);
            }
            2 => {
                let other = random.below(lines.len());
                lines.swap(at, other);
            }
            _ => {
                let other = lines.get(random.below(lines.len()))?.clone();
                let line = lines.get_mut(at)?;
                *line = edit(line, &other, random);
            }
        }
    }
    Some(lines.join("\n").into_bytes())
}

/// Another word at some place of a line: of a list, or of another line.
fn edit(line: &str, other: &str, random: &mut Random) -> String {
    let mut words: Vec<&str> = line.split_inclusive([' ', ',', '(', ')', '[', ']', '=']).collect();
    let others: Vec<&str> = other.split_inclusive([' ', ',', '(', ')', '[', ']', '=']).collect();
    let at = random.below(words.len());
    let word = if random.one_in(2) && !others.is_empty() {
        random.pick(&others)
    } else {
        random.pick(WORDS)
    };
    match words.get_mut(at) {
        Some(place) => *place = word,
        None => words.push(word),
    }
    words.concat()
}
