//! Every primitive of the kernels on given registers, against what is known to be right: a device
//! is used only where they agree.

use super::args::SelftestArgs;
use super::launch::Operands;
use super::{CudaError, Device, ElementType, Launch, Operand, State, list};
use half::f16;

/// Words that [`selftest`] reads: 16 per lane, then 32 rows of 4.
pub const SELFTEST_IN: usize = 32 * 16 + 32 * 4;
/// Words that [`selftest`] writes: 32 per lane.
pub const SELFTEST_OUT: usize = 32 * 32;

/// Primitives whose results are exact: their first word of a lane, how many, and the hash of these
/// words of all lanes for input 0.
///
/// To renew the hashes, after a change of `cuda/selftest.cu` or of [`selftest_input`]:
/// `the_simulator_gives_the_stored_results` in `tests/cuda/selftest.rs` prints those of the
/// simulator.
const EXACT: [(&str, usize, usize, u64); 10] = [
    ("mma_u8s8", 0, 4, 0x8292_4e19_2648_3042),
    ("mma_f16", 4, 4, 0x5b84_81da_df62_ed25),
    ("cp_async16, ldmatrix_x4", 8, 4, 0xd50d_ecbb_20fc_d1c5),
    ("ldmatrix_x4_trans", 12, 4, 0xcff5_fdcf_d943_6949),
    ("shfl_xor", 16, 3, 0xc8b9_a358_6c03_6ff8),
    ("to_f16", 19, 1, 0xb840_b716_7b64_7de6),
    ("pack_f16", 20, 1, 0x507e_35fb_c2de_7de6),
    ("from_f16", 21, 1, 0xf182_156c_d15e_f5a5),
    ("round_even", 22, 1, 0x61d6_0668_ffbd_33a8),
    ("copy16, fill16", 27, 5, 0x1665_8f41_726b_0705),
];

/// A function of the floats that a lane is given.
type Function = fn(f64, f64) -> f64;

/// Primitives that are functions of a lane's floats: their word, the function, the difference
/// allowed relative to it.
const NEAR: [(&str, usize, Function, Function); 4] = [
    // half a unit in the last place, and the rounding of the difference
    ("reciprocal", 23, |_, b| 1.0 / b, |_, _| 6e-8),
    // what is rounded is the exponent's product with log2 e: 2^-24 of it
    ("fast_exp", 24, |_, b| (-b).exp(), |_, b| 1e-6 + 1.2e-7 * b),
    ("fast_div", 25, |a, b| a / b, |_, _| 1e-6),
    ("inverse_sqrt", 26, |_, b| b.sqrt().recip(), |_, _| 1e-6),
];

/// Runs every primitive once: what they are given and give is written in `cuda/selftest.cu`.
///
/// # Panics
/// When an operand is too short, holds no 32-bit words or is not [wide](Operand::is_wide).
pub fn selftest(state: &State, input: &Operand, output: &Operand) -> Launch {
    let mut operands = Operands::new(state);
    for operand in [input, output] {
        assert!(
            operand.element == ElementType::I32 && operand.is_wide(),
            "words at multiples of 16 bytes"
        );
    }
    let args = SelftestArgs {
        state: operands.state_address(),
        input: operands.rows("in", input, 1, SELFTEST_IN),
        output: operands.rows("out", output, 1, SELFTEST_OUT),
    };
    operands.launch(&list::selftest, [1, 1], 512, args)
}

/// Input number `seed` of [`selftest`]: random registers whose products are exact in any order,
/// floats of many sizes, no NaN.
pub fn selftest_input(seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut random = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mixed = (state >> 33) ^ state;
        (mixed >> 16) as u32
    };
    let mut words: Vec<u32> = (0..SELFTEST_IN).map(|_| random()).collect();
    for lane in words[..512].chunks_mut(16) {
        // whole numbers, whose sums are exact in any order
        let mut half = || u32::from(f16::from_f32((random() % 65) as f32 - 32.0).to_bits());
        lane[6..12].iter_mut().for_each(|word| *word = half() | half() << 16);
        let mut unit = || (random() >> 8) as f32 / (1 << 24) as f32;
        let size = [1e-6, 1e-3, 1.0, 300.0, 1e5][(unit() * 5.0) as usize];
        lane[12] = ((unit() * 2.0 - 1.0) * size).to_bits();
        lane[13] = (unit() * 50.0 + 0.01).to_bits();
        lane[14] &= 0x7bff; // no NaN, whose bits may differ
        lane[15] &= 0xffff;
    }
    words
}

/// Results of [`selftest`] for [`selftest_input`] of 0 as this module keeps them.
///
/// # Panics
/// Unless there are [`SELFTEST_OUT`].
pub fn selftest_hashes(results: &[u32]) -> Vec<(&'static str, u64)> {
    assert_eq!(results.len(), SELFTEST_OUT);
    let hash = |first: usize, count: usize| {
        let words = results.chunks(32).flat_map(|lane| &lane[first..first + count]);
        words.fold(0xcbf2_9ce4_8422_2325, |h: u64, &w| {
            (h ^ u64::from(w)).wrapping_mul(0x0100_0000_01b3)
        })
    };
    EXACT.iter().map(|&(name, first, count, _)| (name, hash(first, count))).collect()
}

/// Whether these are the results of [`selftest`] for [`selftest_input`] of 0; else the name of a
/// primitive that differs.
///
/// # Errors
/// The name.
///
/// # Panics
/// Unless there are [`SELFTEST_OUT`].
pub fn check_selftest(results: &[u32]) -> Result<(), &'static str> {
    for ((name, found), (.., stored)) in selftest_hashes(results).into_iter().zip(EXACT) {
        if found != stored {
            return Err(name);
        }
    }
    let input = selftest_input(0);
    for (name, word, function, tolerance) in NEAR {
        for (lane, given) in results.chunks(32).zip(input.chunks(16)) {
            let [a, b] = [given[12], given[13]].map(|w| f64::from(f32::from_bits(w)));
            let (found, wanted) = (f64::from(f32::from_bits(lane[word])), function(a, b));
            let near = (found - wanted).abs() <= tolerance(a, b) * wanted.abs();
            if !near {
                return Err(name);
            }
        }
    }
    Ok(())
}

/// Runs [`selftest`] on a device: less than a millisecond on a GPU.
///
/// # Errors
/// [`CudaError::Selftest`], those of the device.
pub fn verify(device: &dyn Device) -> Result<(), CudaError> {
    let words: Vec<u8> = selftest_input(0).iter().flat_map(|w| w.to_le_bytes()).collect();
    let (given, results) = (device.allocate(words.len())?, device.allocate(SELFTEST_OUT * 4)?);
    device.write(&given, 0, &words)?;
    let state = State::new(device, 1, 1)?;
    let [input, output] = [(&given, SELFTEST_IN), (&results, SELFTEST_OUT)]
        .map(|(memory, words)| Operand::new(memory, 0, ElementType::I32, words));
    device.run(&[selftest(&state, &input, &output)])?;
    let mut bytes = vec![0; SELFTEST_OUT * 4];
    device.read(&results, 0, &mut bytes)?;
    let found: Vec<u32> =
        bytes.chunks(4).map(|w| u32::from_le_bytes(w.try_into().expect("four bytes"))).collect();
    check_selftest(&found)
        .map_err(|primitive| CudaError::Selftest { device: device.name(), primitive })
}
