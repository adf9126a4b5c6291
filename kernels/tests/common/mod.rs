//! What the tests share: noise, the instruction sets of this CPU, and a comparison with its reason.
#![allow(dead_code)] // every test file is a crate of its own and uses a part

pub mod definition;

use cqc_kernels::{Isa, Pool};

/// A small generator: the same numbers on every machine.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn bits(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// A number in `low..=high`.
    pub fn size(&mut self, low: usize, high: usize) -> usize {
        low + self.bits() as usize % (high - low + 1)
    }

    /// Values in −1..1.
    pub fn noise(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.bits() as f32 / (1u32 << 30) as f32 - 1.0).collect()
    }

    pub fn chance(&mut self) -> bool {
        self.bits().is_multiple_of(2)
    }
}

/// Those this CPU has; the others are skipped aloud.
pub fn isas() -> Vec<Isa> {
    let have = Isa::available();
    Isa::ALL
        .into_iter()
        .filter(|isa| !have.contains(isa))
        .for_each(|isa| println!("skipped: this CPU has no {isa}"));
    have
}

/// One thread, and more than this machine may have.
pub fn pools() -> [Pool; 2] {
    [Pool::new(1), Pool::new(3)]
}

/// Every `got` within `tolerance · (1 + |want|)` of `want`; NaN equals NaN, ∞ itself.
#[track_caller]
pub fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let same = got == want || (got.is_nan() && want.is_nan());
        assert!(
            same || (got - want).abs() <= tolerance * (1.0 + want.abs()),
            "{what}: [{i}] is {got}, not {want}"
        );
    }
}
