//! `cqc sample` with an image, a mask, and parts of a loop.

mod common;

use cachequant::io::{Overwrite, read_array, write_npy, write_png};
use common::{done, line, model};
use cqc_proto::Tensor;
use std::path::Path;

const SAMPLE: [usize; 4] = [2, 3, 32, 32];

struct Folder(tempfile::TempDir);

impl Folder {
    /// With `a.cq`, a loop of 8 DDIM steps, and `x.npy`, two of its samples.
    fn new() -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        let (artifact, model) = (folder.at("a.cq"), model("ddpm-shapes32").display().to_string());
        let plain = "--steps 8 --interval 1 --quant none --threads 2";
        done(&format!("compile {model} -o {artifact} {plain}"));
        folder.sample("-n 2 -o", "x.npy");
        folder
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// The samples that `cqc sample` writes with these options, where `@` precedes the names of
    /// files.
    fn sample(&self, options: &str, output: &str) -> Vec<f32> {
        let options = options.replace('@', &format!("{}/", self.0.path().display()));
        let artifact = self.at("a.cq");
        let output = self.at(output);
        done(&format!("sample {artifact} {options} {output} --threads 2 --force"));
        read_array(Path::new(&output), "samples").unwrap().to_f32_vec()
    }

    /// Exit code and message.
    fn refused(&self, options: &str) -> (i32, String) {
        let options = options.replace('@', &format!("{}/", self.0.path().display()));
        let (artifact, output) = (self.at("a.cq"), self.at("refused.npy"));
        let ran = line(&format!("sample {artifact} {options} -o {output}"));
        assert!(!Path::new(&output).exists());
        (ran.code, ran.stderr)
    }
}

#[test]
fn images_masks_and_parts_of_a_loop() {
    let folder = Folder::new();
    let x = read_array(Path::new(&folder.at("x.npy")), "samples").unwrap().to_f32_vec();

    // as many samples as the file has, for any batch and shard
    let half = folder.sample("--init @x.npy --strength 0.5 --seed 5 -o", "half.npy");
    assert_eq!(half.len(), x.len());
    assert_ne!(half, x);
    let one_by_one = "--init @x.npy --strength 0.5 --seed 5 --batch 1 -o";
    assert_eq!(folder.sample(one_by_one, "b.npy"), half);
    let shard = "--init @x.npy --strength 0.5 --seed 5 --shard 1/2 -o";
    assert_eq!(folder.sample(shard, "s.npy"), half[half.len() / 2..]);
    // one image for all samples
    let image = Tensor::from_f32(&[1, 3, 32, 32], &x[..x.len() / 2]);
    write_npy(Path::new(&folder.at("one.npy")), &image, Overwrite::Refuse).unwrap();
    let both = folder.sample("-n 2 --init @one.npy --strength 0.5 --seed 5 -o", "c.npy");
    assert_eq!(both[..both.len() / 2], half[..half.len() / 2]);
    assert_ne!(both[both.len() / 2..], half[half.len() / 2..]);

    // a mask as an array, and as a PNG of twice the size
    let left = |size: usize| -> Vec<f32> {
        (0..size * size).map(|i| if i % size < size / 2 { 1.0 } else { 0.0 }).collect()
    };
    let mask = Tensor::from_f32(&[1, 1, 32, 32], &left(32));
    write_npy(Path::new(&folder.at("mask.npy")), &mask, Overwrite::Refuse).unwrap();
    let png: Vec<f32> = left(64).into_iter().map(|m| 2.0 * m - 1.0).collect();
    let png = Tensor::from_f32(&[1, 1, 64, 64], &png);
    write_png(Path::new(&folder.at("mask.png")), &png, Overwrite::Refuse).unwrap();
    let filled = folder.sample("--init @x.npy --mask @mask.npy -o", "filled.npy");
    for (i, (filled, x)) in filled.iter().zip(&x).enumerate() {
        assert!(i % 32 < 16 || filled == x, "element {i} is kept: {filled}, {x}");
    }
    assert_ne!(filled, x);
    assert_eq!(folder.sample("--init @x.npy --mask @mask.png -o", "p.npy"), filled);

    // time steps 875, 750, … 0: six of them are at least 250, a share of 0.75
    let to = folder.sample("-n 2 --to 0.75 -o", "to.npy");
    assert_eq!(folder.sample("-n 2 --to 6 -o", "to6.npy"), to);
    assert_eq!(folder.sample("--from 6 --noise @to.npy -o", "from.npy"), x);
    assert_eq!(folder.sample("--from 0.75 --noise @to.npy -o", "from2.npy"), x);
    assert_eq!(SAMPLE.iter().product::<usize>(), x.len());
}

#[test]
fn contradictions_are_usage_errors_that_say_what_to_do() {
    let folder = Folder::new();
    let cases = [
        ("--strength 0.5", &["a strength without an image", "--init FILE"][..]),
        ("--mask @x.npy", &["a mask without an image", "--init FILE"]),
        ("--init @x.npy --strength 0", &["a strength of 0; expected more than 0, at most 1"]),
        ("--init @x.npy --strength -1", &["a strength of -1"]),
        ("--init @x.npy --strength 0.1", &["leaves none of 8 steps", "--strength 0.125"]),
        ("--from 3", &["none are given as `noise`", "--noise FILE"]),
        ("--from 8 --noise @x.npy", &["expected 1 to 7"]),
        ("--from 5 --to 5 --noise @x.npy", &["`to` is step 5, and the loop begins with step 5"]),
        ("--to 0", &["expected 1 to 8"]),
        ("--from 3 --noise @x.npy --strength 0.5", &["without an image", "`from` continues"]),
        ("--to x", &["expected the number of a step, or a share from 0.0 to 1.0"]),
        ("--init @x.npy --mask @x.npy", &["the mask holds"]),
    ];
    for (options, expected) in cases {
        let (code, stderr) = folder.refused(options);
        assert_eq!(code, 2, "{options}: {stderr}");
        for text in expected {
            assert!(stderr.contains(text), "{options}: {stderr}");
        }
    }
}
