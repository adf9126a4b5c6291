//! The primitives of a GPU against those of the simulator: the first thing to look at on a new
//! architecture.

use crate::bench::all_benches;
use cqc_kernels::cuda::{
    ElementType, Operand, SELFTEST_IN, SELFTEST_OUT, check_selftest, selftest, selftest_input,
};
use half::f16;

/// Words of a lane that are approximations; all others are exact.
const NEAR: [usize; 3] = [24, 25, 26];

#[test]
fn primitives_are_the_same_everywhere() {
    let benches = all_benches();
    if benches.len() < 2 {
        println!(
            "skipped: a GPU and the simulator are compared, there is {} of them",
            benches.len()
        );
    }
    for seed in 0..20 {
        let words = selftest_input(seed);
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
        // what can be said without a second device: a reciprocal is rounded to nearest, conversions
        // are those of `half`
        for result in &results {
            for (lane, (got, given)) in result.chunks(32).zip(words[..512].chunks(16)).enumerate() {
                let floats = [given[12], given[13]].map(f32::from_bits);
                assert_eq!(
                    got[19],
                    u32::from(f16::from_f32(floats[0]).to_bits()),
                    "lane {lane}: to_f16({})",
                    floats[0]
                );
                assert_eq!(
                    f32::from_bits(got[21]),
                    f16::from_bits(given[14] as u16).to_f32(),
                    "lane {lane}: from_f16"
                );
                assert_eq!(
                    f32::from_bits(got[23]),
                    1.0 / floats[1],
                    "lane {lane}: 1 / {}",
                    floats[1]
                );
            }
            if seed == 0 {
                assert_eq!(check_selftest(result), Ok(()));
            }
        }
        for (i, (one, other)) in
            results.iter().skip(1).flat_map(|r| r.iter().zip(&results[0])).enumerate()
        {
            if NEAR.contains(&(i % 32)) {
                let [one, other] = [one, other].map(|w| f32::from_bits(*w));
                // what is rounded in an exponential is the exponent, up to 50 here: 2^-24 of it
                assert!(
                    (one - other).abs() <= 7e-6 * other.abs(),
                    "seed {seed}, word {i}: {one} {other}"
                );
            } else {
                assert_eq!(one, other, "seed {seed}, lane {}, word {}", i / 32, i % 32);
            }
        }
    }
}

#[cfg(feature = "cuda-sim")]
mod simulator {
    use cqc_kernels::cuda::simulator::Simulator;
    use cqc_kernels::cuda::{
        CudaError, Device, ElementType, Launch, Memory, Operand, Recorded, SELFTEST_IN,
        SELFTEST_OUT, State, check_selftest, selftest, selftest_hashes, selftest_input, verify,
    };
    use std::sync::Arc;

    /// What the simulator makes of input 0.
    fn results() -> Vec<u32> {
        let words: Vec<u8> = selftest_input(0).iter().flat_map(|w| w.to_le_bytes()).collect();
        let [given, found] =
            [words.len(), SELFTEST_OUT * 4].map(|bytes| Simulator.allocate(bytes).unwrap());
        Simulator.write(&given, 0, &words).unwrap();
        let state = State::new(&Simulator, 1, 1).unwrap();
        let input = Operand::new(&given, 0, ElementType::I32, SELFTEST_IN);
        let output = Operand::new(&found, 0, ElementType::I32, SELFTEST_OUT);
        Simulator.run(&[selftest(&state, &input, &output)]).unwrap();
        let mut bytes = vec![0; SELFTEST_OUT * 4];
        Simulator.read(&found, 0, &mut bytes).unwrap();
        bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn the_simulator_gives_the_stored_results() {
        let results = results();
        let table: Vec<String> =
            selftest_hashes(&results).iter().map(|(n, h)| format!("{n:?}: {h:#018x}")).collect();
        let same = check_selftest(&results);
        assert_eq!(
            same,
            Ok(()),
            "to be stored in EXACT of kernels/src/cuda/selftest.rs:\n{}",
            table.join("\n")
        );
    }

    #[test]
    fn a_wrong_word_of_any_primitive_is_found() {
        let results = results();
        for word in 0..SELFTEST_OUT {
            let mut wrong = results.clone();
            // past the tolerance of approximations
            wrong[word] ^= 1 << 12;
            check_selftest(&wrong).unwrap_err();
        }
        for nan in 23..27 {
            let mut wrong = results.clone();
            wrong[nan] = f32::NAN.to_bits();
            check_selftest(&wrong).unwrap_err();
        }
    }

    /// A device whose results lack their lowest bit.
    struct Faulty;

    impl Device for Faulty {
        fn name(&self) -> String {
            "a faulty device".into()
        }

        fn multiprocessors(&self) -> usize {
            1
        }

        fn allocate(&self, bytes: usize) -> Result<Arc<Memory>, CudaError> {
            Simulator.allocate(bytes)
        }

        fn write(&self, to: &Memory, offset: usize, bytes: &[u8]) -> Result<(), CudaError> {
            Simulator.write(to, offset, bytes)
        }

        fn read(&self, from: &Memory, offset: usize, bytes: &mut [u8]) -> Result<(), CudaError> {
            Simulator.read(from, offset, bytes)?;
            bytes.iter_mut().for_each(|b| *b &= !1);
            Ok(())
        }

        fn wait(&self) -> Result<(), CudaError> {
            Simulator.wait()
        }

        fn run(&self, launches: &[Launch]) -> Result<(), CudaError> {
            Simulator.run(launches)
        }

        fn record(&self, launches: Vec<Launch>) -> Result<Box<dyn Recorded>, CudaError> {
            Simulator.record(launches)
        }
    }

    #[test]
    fn a_device_is_verified_or_refused_by_the_name_of_a_primitive() {
        verify(&Simulator).unwrap();
        let refused = verify(&Faulty).unwrap_err();
        assert_eq!(
            refused,
            CudaError::Selftest { device: "a faulty device".into(), primitive: "mma_u8s8" }
        );
    }
}
