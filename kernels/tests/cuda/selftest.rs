//! The primitives of a GPU against those of the simulator: the first thing to look at on a new architecture.

use crate::bench::benches;
use crate::common::Rng;
use cqc_kernels::cuda::{ElementType, Operand, SELFTEST_IN, SELFTEST_OUT, selftest};
use half::f16;

/// Words of a lane that are approximations, with their tolerance; all others are exact.
const NEAR: [(usize, f32); 3] = [(24, 2e-6), (25, 1e-6), (26, 1e-6)];

fn input(seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    let mut words: Vec<u32> = (0..SELFTEST_IN).map(|_| rng.bits() ^ rng.bits() << 16).collect();
    for lane in words[..512].chunks_mut(16) {
        // whole numbers, whose sums are exact in any order
        let mut half = || u32::from(f16::from_f32(rng.size(0, 64) as f32 - 32.0).to_bits());
        lane[6..12].iter_mut().for_each(|word| *word = half() | half() << 16);
        let scale = [1e-6, 1e-3, 1.0, 300.0, 1e5][rng.size(0, 4)];
        lane[12] = (rng.noise(1)[0] * scale).to_bits();
        lane[13] = (rng.noise(1)[0].abs() * 50.0 + 0.01).to_bits();
        lane[14] &= 0x7bff; // no NaN, whose bits may differ
        lane[15] &= 0xffff;
    }
    words
}

#[test]
fn primitives_are_the_same_everywhere() {
    let benches = benches();
    if benches.len() < 2 {
        println!("skipped: a GPU and the simulator are compared, there is {} of them", benches.len());
    }
    for seed in 0..20 {
        let words = input(seed);
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let results: Vec<Vec<u32>> = benches
            .iter()
            .map(|b| {
                let memory = b.device.allocate(bytes.len()).unwrap();
                b.device.write(&memory, 0, &bytes).unwrap();
                let input = Operand::new(&memory, 0, ElementType::I32, SELFTEST_IN);
                let output = b.room(1, SELFTEST_OUT, ElementType::I32);
                b.run(&[selftest(&b.state, &input, &output)]);
                let mut bytes = vec![0; SELFTEST_OUT * 4];
                b.device.read(&output.memory, 0, &mut bytes).unwrap();
                bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
            })
            .collect();
        // what can be said without a second device: a reciprocal is rounded to nearest, conversions are those of `half`
        for result in &results {
            for (lane, (got, given)) in result.chunks(32).zip(words[..512].chunks(16)).enumerate() {
                let floats = [given[12], given[13]].map(f32::from_bits);
                assert_eq!(
                    got[19],
                    u32::from(f16::from_f32(floats[0]).to_bits()),
                    "lane {lane}: to_f16({})",
                    floats[0]
                );
                assert_eq!(f32::from_bits(got[21]), f16::from_bits(given[14] as u16).to_f32(), "lane {lane}: from_f16");
                assert_eq!(f32::from_bits(got[23]), 1.0 / floats[1], "lane {lane}: 1 / {}", floats[1]);
            }
        }
        for (i, (one, other)) in results.iter().skip(1).flat_map(|r| r.iter().zip(&results[0])).enumerate() {
            match NEAR.iter().find(|(word, _)| *word == i % 32) {
                Some((_, tolerance)) => {
                    let [one, other] = [one, other].map(|w| f32::from_bits(*w));
                    assert!(
                        (one - other).abs() <= tolerance * (1e-30 + other.abs()),
                        "seed {seed}, word {i}: {one} {other}"
                    );
                }
                None => assert_eq!(one, other, "seed {seed}, lane {}, word {}", i / 32, i % 32),
            }
        }
    }
}
