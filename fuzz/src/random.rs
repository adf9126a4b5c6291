//! Random numbers of mutators.

/// xorshift64*.
pub struct Random(u64);

/// Whole numbers at which code changes its mind.
const EDGES: [i64; 27] = [
    0,
    1,
    -1,
    2,
    -2,
    3,
    4,
    5,
    7,
    8,
    9,
    16,
    31,
    32,
    64,
    127,
    128,
    255,
    4096,
    1 << 16,
    1 << 20,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    1 << 40,
    i64::MAX,
    i64::MIN,
];

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u32) -> Random {
        Random((u64::from(seed) << 17 | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below `n`; 0 for `n` = 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize;
        if n == 0 { 0 } else { drawn % n }
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// 0, seldom 1 or 2: most inputs that differ in much are refused at once.
    pub fn few(&mut self) -> usize {
        [0, 0, 0, 0, 0, 1, 1, 2][self.below(8)]
    }

    /// One of a list that is not empty.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// One of a list; `None` if it is empty.
    pub fn pick_mut<'a, T>(&mut self, list: &'a mut [T]) -> Option<&'a mut T> {
        let at = self.below(list.len());
        list.get_mut(at)
    }

    /// Another whole number: near the old one, or one at which code changes its mind.
    pub fn number(&mut self, old: i64) -> i64 {
        match self.below(8) {
            0 | 1 => old.wrapping_add(1),
            2 => old.wrapping_sub(1),
            3 => old.wrapping_mul(2),
            4 => old / 2,
            5 => self.below(12) as i64,
            _ => *self.pick(&EDGES),
        }
    }

    /// Another number.
    pub fn float(&mut self, old: f64) -> f64 {
        match self.below(10) {
            0 => -old,
            1 => old + 1.0,
            2 => old * 2.0,
            3 => 0.0,
            4 => f64::INFINITY,
            5 => f64::NAN,
            6 => f64::MAX,
            7 => 1e-30,
            8 => self.below(1000) as f64 / 999.0,
            _ => self.number(old as i64) as f64,
        }
    }
}
