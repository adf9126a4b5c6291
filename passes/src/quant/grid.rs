//! The levels to which weights are rounded.

/// Weights and their possible levels.
pub(super) struct Grid<'a> {
    weights: &'a [f32],
    scales: &'a [f32],
    pub outputs: usize,
    pub inputs: usize,
    /// Segment of every input.
    segment: Vec<usize>,
    segments: usize,
    last: f64,
}

impl<'a> Grid<'a> {
    /// The levels −(2^(bits−1) − 1) … 2^(bits−1) − 1 times the scales.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn new(weights: &'a [f32], scales: &'a [f32], segments: &[usize], bits: u32) -> Grid<'a> {
        assert!((2..=8).contains(&bits), "{bits} bits");
        let segment: Vec<usize> =
            segments.iter().enumerate().flat_map(|(s, &len)| vec![s; len]).collect();
        let outputs = scales.len().checked_div(segments.len()).unwrap_or(0);
        let inputs = segment.len();
        assert_eq!(
            weights.len(),
            outputs * inputs,
            "weights of {outputs} outputs and {inputs} inputs"
        );
        assert_eq!(scales.len(), outputs * segments.len(), "a scale per output and segment");
        let last = f64::from((1i32 << (bits - 1)) - 1);
        Grid { weights, scales, outputs, inputs, segment, segments: segments.len(), last }
    }

    pub fn weight(&self, n: usize, k: usize) -> f64 {
        f64::from(self.weights[n * self.inputs + k])
    }

    pub fn scale(&self, n: usize, k: usize) -> f64 {
        f64::from(self.scales[n * self.segments + self.segment[k]])
    }

    /// The level for the value `w` of output `n`, input `k`.
    pub fn level(&self, n: usize, k: usize, w: f64) -> i8 {
        let scale = self.scale(n, k);
        // NaN becomes 0
        if scale > 0.0 && scale.is_finite() {
            (w / scale).round_ties_even().clamp(-self.last, self.last) as i8
        } else {
            0
        }
    }

    /// The difference between the weight and level `q`; 0 if it is not finite.
    pub fn error(&self, n: usize, k: usize, q: i8) -> f64 {
        let value = if q == 0 { 0.0 } else { f64::from(q) * self.scale(n, k) };
        let error = self.weight(n, k) - value;
        if error.is_finite() { error } else { 0.0 }
    }

    /// All weights rounded to the nearest level.
    pub fn nearest(&self) -> Vec<i8> {
        let each = (0..self.outputs).flat_map(|n| (0..self.inputs).map(move |k| (n, k)));
        each.map(|(n, k)| self.level(n, k, self.weight(n, k))).collect()
    }
}
