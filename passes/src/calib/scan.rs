//! One pass over values: finds the extremes, the number of zeros, and whether all values are
//! finite.

/// The result of the pass. The extremes are valid only if all values are finite.
pub(super) struct Scan {
    pub min: f32,
    pub max: f32,
    pub zeros: u64,
    pub not_finite: u64,
}

impl Scan {
    pub fn of(values: &[f32]) -> Scan {
        let mut scan = Scan { min: f32::INFINITY, max: f32::NEG_INFINITY, zeros: 0, not_finite: 0 };
        values.chunks(1 << 20).for_each(|values| scan.block(values));
        scan
    }

    /// Scans sixteen lanes at once, so that it vectorises.
    fn block(&mut self, values: &[f32]) {
        const LANES: usize = 16;
        let (mut min, mut max) = ([self.min; LANES], [self.max; LANES]);
        let (mut zeros, mut not_finite) = ([0u32; LANES], [0u32; LANES]);
        let mut look = |i: usize, x: f32| {
            min[i] = if x < min[i] { x } else { min[i] };
            max[i] = if x > max[i] { x } else { max[i] };
            zeros[i] += u32::from(x == 0.0);
            not_finite[i] += u32::from(!x.is_finite());
        };
        let (blocks, rest) = values.as_chunks::<LANES>();
        blocks.iter().for_each(|block| (0..LANES).for_each(|i| look(i, block[i])));
        rest.iter().for_each(|&x| look(0, x));
        self.min = min.into_iter().fold(self.min, f32::min);
        self.max = max.into_iter().fold(self.max, f32::max);
        self.zeros += zeros.into_iter().map(u64::from).sum::<u64>();
        self.not_finite += not_finite.into_iter().map(u64::from).sum::<u64>();
    }
}
