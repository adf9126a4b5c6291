//! The kernels that measure a device's peak: that they do the products they are counted with.

use crate::bench::{Bench, benches};
use crate::common::Rng;
use cqc_kernels::cuda::{ElementType, Operand, PEAK_IN, PEAK_OUT, PeakOf, mma_peak};
use half::f16;

const BLOCKS: usize = 2;

fn results(b: &Bench, of: PeakOf, input: &Operand, rounds: usize) -> Vec<f32> {
    let element = if of == PeakOf::Bytes { ElementType::I32 } else { ElementType::F32 };
    let y = b.room(1, BLOCKS * PEAK_OUT, element);
    b.run(&[mma_peak(&b.state, of, BLOCKS, rounds, input, &y)]);
    b.get(&y, 1, BLOCKS * PEAK_OUT)
}

/// The numbers in a word, as many as there are.
type Read = fn(u32) -> Vec<f64>;

/// Sums over the lanes that hold this quarter of the depth, and over these words of theirs, number
/// by number.
fn sums(words: &[u32], quarter: usize, at: &[usize], read: Read) -> Vec<f64> {
    let lanes = words.chunks(16).skip(quarter).step_by(4);
    let parts: Vec<Vec<f64>> = lanes.flat_map(|lane| at.iter().map(|&i| read(lane[i]))).collect();
    (0..parts[0].len()).map(|i| parts.iter().map(|part| part[i]).sum()).collect()
}

/// What all sums of a warp come to: for each place in the depth, all that a holds there times all
/// that b holds there. Of a lane's words eight are of a, the upper half of the depth in the second
/// pair of four, and eight of b, that half in the odd ones.
fn wanted(words: &[u32], a: Read, b: Read) -> f64 {
    let halves = [([0, 1, 4, 5], [8, 10, 12, 14]), ([2, 3, 6, 7], [9, 11, 13, 15])];
    let places = (0..4).flat_map(|quarter| halves.map(|(of_a, of_b)| (quarter, of_a, of_b)));
    let product = |(quarter, of_a, of_b): (usize, [usize; 4], [usize; 4])| -> f64 {
        let (a, b) = (sums(words, quarter, &of_a, a), sums(words, quarter, &of_b, b));
        a.iter().zip(&b).map(|(a, b)| a * b).sum()
    };
    places.map(product).sum()
}

fn check(of: PeakOf, words: &[u32], [a, b]: [Read; 2]) {
    let expected = wanted(words, a, b);
    for bench in benches() {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let memory = bench.device.allocate(bytes.len()).unwrap();
        bench.device.write(&memory, 0, &bytes).unwrap();
        let input = Operand::new(&memory, 0, ElementType::I32, PEAK_IN);
        let [once, five] = [1, 5].map(|rounds| results(&bench, of, &input, rounds));
        let warps: Vec<f64> =
            once.chunks(32).map(|warp| warp.iter().map(|&v| f64::from(v)).sum()).collect();
        assert!(warps.iter().all(|&sum| sum == expected), "{of:?}: {warps:?}, not {expected}");
        assert!(
            five.iter().zip(&once).all(|(five, once)| *five == once * 5.0),
            "{of:?}: five rounds are five times one"
        );
    }
}

#[test]
fn peak_of_bytes_multiplies_what_it_counts() {
    let mut rng = Rng::new(21);
    let words: Vec<u32> = (0..PEAK_IN).map(|_| rng.bits() & 0x0707_0707).collect();
    // a byte of b with its sign, one of a without
    let words: Vec<u32> = words
        .iter()
        .enumerate()
        .map(|(i, w)| if i % 16 < 8 { *w } else { w ^ 0xff00_ff00 })
        .collect();
    check(
        PeakOf::Bytes,
        &words,
        [
            |w| w.to_le_bytes().map(f64::from).to_vec(),
            |w| w.to_le_bytes().map(|b| f64::from(b as i8)).to_vec(),
        ],
    );
    assert_eq!(PeakOf::Bytes.macs(2, 3), 2 * 8 * 3 * 8 * 16 * 8 * 32);
}

#[test]
fn peak_of_halves_multiplies_what_it_counts() {
    let mut rng = Rng::new(22);
    let mut half = || u32::from(f16::from_f32(rng.size(0, 8) as f32 - 4.0).to_bits());
    let words: Vec<u32> = (0..PEAK_IN).map(|_| half() | half() << 16).collect();
    let read: Read = |w| [w as u16, (w >> 16) as u16].map(|h| f16::from_bits(h).to_f64()).to_vec();
    check(PeakOf::Halves, &words, [read, read]);
    assert_eq!(PeakOf::Halves.macs(1, 1) * 2, PeakOf::Bytes.macs(1, 1));
}
