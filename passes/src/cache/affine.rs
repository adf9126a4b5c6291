//! Correction of a cached tensor (CacheQuant section 7): per evaluation and channel, the affine map of what is stored that comes
//! nearest to what it stands for.

/// Sums over all elements of each channel: enough for least squares, additive over samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Elements per channel.
    pub n: f64,
    /// Σx per channel.
    pub x: Vec<f64>,
    /// Σy.
    pub y: Vec<f64>,
    /// Σx².
    pub xx: Vec<f64>,
    /// Σxy.
    pub xy: Vec<f64>,
}

impl Moments {
    /// Of no elements.
    pub fn new(channels: usize) -> Moments {
        let zero = || vec![0.0; channels];
        Moments { n: 0.0, x: zero(), y: zero(), xx: zero(), xy: zero() }
    }

    /// Adds two tensors `[.., channels]`: `x` is what is stored, `y` what it stands for.
    ///
    /// # Panics
    /// When the lengths differ or are no multiple of the channels.
    pub fn add(&mut self, x: &[f32], y: &[f32]) {
        let c = self.x.len();
        assert!(x.len() == y.len() && x.len().is_multiple_of(c), "two tensors of {c} channels");
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact(c)) {
            let sums = self.x.iter_mut().zip(&mut self.y).zip(self.xx.iter_mut().zip(&mut self.xy));
            for (((sx, sy), (sxx, sxy)), (&x, &y)) in sums.zip(x.iter().zip(y)) {
                let (x, y) = (f64::from(x), f64::from(y));
                *sx += x;
                *sy += y;
                *sxx += x * x;
                *sxy += x * y;
            }
        }
        self.n += (x.len() / c) as f64;
    }

    /// Least squares of `y` on `x` per channel: a = cov(x, y) / var(x), b = mean(y) − a · mean(x) (section 7.2).
    ///
    /// `ridge` ≥ 0 draws a towards 1 (section 13.4): a = (cov + ridge · var) / (var + ridge · var). A channel that hardly varies
    /// gets a = 1. No elements: the identity.
    pub fn fit(&self, ridge: f64) -> Affine {
        let channels = 0..self.x.len();
        let fitted = channels.map(|c| {
            if self.n == 0.0 {
                return (1.0, 0.0);
            }
            let (mean_x, mean_y) = (self.x[c] / self.n, self.y[c] / self.n);
            let (var, cov) = (self.xx[c] / self.n - mean_x * mean_x, self.xy[c] / self.n - mean_x * mean_y);
            let varies = var > 1e-9 * (mean_x * mean_x).max(1e-6);
            let a = if varies { (cov + ridge * var) / (var + ridge * var) } else { 1.0 };
            (a as f32, (mean_y - a * mean_x) as f32)
        });
        let (scale, shift) = fitted.unzip();
        Affine { scale, shift }
    }
}

/// [`Moments`] of every pair of a band of evaluations, of one cached tensor: for the correction of any schedule.
#[derive(Clone, Debug)]
pub struct BandMoments {
    channels: usize,
    width: usize,
    /// Elements per channel, per evaluation.
    n: Vec<f64>,
    /// Σx per evaluation and channel.
    sum: Vec<f64>,
    /// Σx² per evaluation and channel.
    square: Vec<f64>,
    /// Σxy of `(i, t)` per channel at `(i · width + t − i) · channels`.
    cross: Vec<f64>,
}

impl BandMoments {
    /// Of no elements; `width` as a [`Band`](super::band::Band)'s.
    pub fn new(evaluations: usize, width: usize, channels: usize) -> BandMoments {
        let width = width.clamp(1, evaluations.max(1));
        let (n, sum) = (vec![0.0; evaluations], vec![0.0; evaluations * channels]);
        BandMoments { channels, width, n, square: sum.clone(), sum, cross: vec![0.0; evaluations * width * channels] }
    }

    /// Adds the tensor `[.., channels]` of evaluation `t`.
    pub fn add(&mut self, t: usize, x: &[f32]) {
        let c = self.channels;
        self.n[t] += (x.len() / c) as f64;
        let (sum, square) = (&mut self.sum[t * c..][..c], &mut self.square[t * c..][..c]);
        for row in x.chunks_exact(c) {
            for ((sum, square), &x) in sum.iter_mut().zip(&mut *square).zip(row) {
                *sum += f64::from(x);
                *square += f64::from(x) * f64::from(x);
            }
        }
    }

    /// Adds the tensors `x` of evaluation `i` and `y` of evaluation `t` of the same samples.
    ///
    /// # Panics
    /// Outside the band.
    pub fn add_pair(&mut self, i: usize, t: usize, x: &[f32], y: &[f32]) {
        assert!(i <= t && t - i < self.width, "({i}, {t}) is outside the band");
        let c = self.channels;
        let cross = &mut self.cross[(i * self.width + t - i) * c..][..c];
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact(c)) {
            cross.iter_mut().zip(x.iter().zip(y)).for_each(|(s, (&x, &y))| *s += f64::from(x) * f64::from(y));
        }
    }

    /// What evaluation `i` stored against what evaluation `t` would.
    ///
    /// # Panics
    /// Outside the band.
    pub fn moments(&self, i: usize, t: usize) -> Moments {
        assert!(i <= t && t - i < self.width, "({i}, {t}) is outside the band");
        let c = self.channels;
        let at = |v: &[f64], e: usize| v[e * c..][..c].to_vec();
        let (x, y, xx) = (at(&self.sum, i), at(&self.sum, t), at(&self.square, i));
        Moments { n: self.n[i], x, y, xx, xy: at(&self.cross, i * self.width + t - i) }
    }

    /// Σ of the squares left after the affine fit of `(i, t)`, over all channels: S_yy − S_xy² / S_xx (section 13.2).
    ///
    /// # Panics
    /// Outside the band.
    pub fn residual(&self, i: usize, t: usize) -> f64 {
        let Moments { n, x, y, xx, xy } = self.moments(i, t);
        let square = &self.square[t * self.channels..][..self.channels];
        let left = (0..self.channels).map(|c| {
            let (sxx, sxy) = (xx[c] - x[c] * x[c] / n, xy[c] - x[c] * y[c] / n);
            let syy = square[c] - y[c] * y[c] / n;
            (if sxx > 1e-12 * xx[c] { syy - sxy * sxy / sxx } else { syy }).max(0.0)
        });
        left.sum()
    }
}

/// `x · scale + shift`, per channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Affine {
    /// One factor per channel.
    pub scale: Vec<f32>,
    /// One summand per channel.
    pub shift: Vec<f32>,
}

impl Affine {
    /// The map that changes nothing.
    pub fn identity(channels: usize) -> Affine {
        Affine { scale: vec![1.0; channels], shift: vec![0.0; channels] }
    }

    /// A part of the way from the identity (`share` 0) to this map (1).
    pub fn shrunk(&self, share: f32) -> Affine {
        let scale = self.scale.iter().map(|a| 1.0 + share * (a - 1.0)).collect();
        Affine { scale, shift: self.shift.iter().map(|b| share * b).collect() }
    }

    /// Applies it to `x` `[.., channels]`, into `y`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn apply(&self, x: &[f32], y: &mut [f32]) {
        let c = self.scale.len();
        assert_eq!(x.len(), y.len());
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            for ((y, x), (a, b)) in y.iter_mut().zip(x).zip(self.scale.iter().zip(&self.shift)) {
                *y = a.mul_add(*x, *b);
            }
        }
    }
}

/// Σ|x − y|, in f64 (section 3.1).
pub fn l1(x: &[f32], y: &[f32]) -> f64 {
    let block = |(x, y): (&[f32], &[f32])| -> f64 { x.iter().zip(y).map(|(x, y)| f64::from((x - y).abs())).sum() };
    x.chunks(1024).zip(y.chunks(1024)).map(block).sum()
}

/// Root of the mean of (x − y)².
pub fn rms(x: &[f32], y: &[f32]) -> f64 {
    let square = |(x, y): (&f32, &f32)| f64::from(x - y) * f64::from(x - y);
    (x.iter().zip(y).map(square).sum::<f64>() / x.len().max(1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, mut seed: u64) -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn an_affine_relation_is_found_per_channel() {
        let x = noise(3 * 500, 1);
        let map = Affine { scale: vec![0.5, -2.0, 1.0], shift: vec![3.0, 0.0, -100.0] };
        let mut y = vec![0.0; x.len()];
        map.apply(&x, &mut y);
        let mut moments = Moments::new(3);
        moments.add(&x[..300], &y[..300]);
        moments.add(&x[300..], &y[300..]);
        let found = moments.fit(0.0);
        for c in 0..3 {
            assert!((found.scale[c] - map.scale[c]).abs() < 1e-4, "{found:?}");
            assert!((found.shift[c] - map.shift[c]).abs() < 1e-4, "{found:?}");
        }
    }

    #[test]
    fn a_fit_leaves_no_mean_error_and_no_larger_square_error() {
        let (x, noise_) = (noise(4 * 800, 2), noise(4 * 800, 3));
        let y: Vec<f32> = x.iter().zip(&noise_).map(|(x, n)| 0.7 * x + 0.3 + n).collect();
        let mut moments = Moments::new(4);
        moments.add(&x, &y);
        for ridge in [0.0, 1e-3, 0.5] {
            let mut fitted = vec![0.0; x.len()];
            moments.fit(ridge).apply(&x, &mut fitted);
            for c in 0..4 {
                let errors = || fitted.iter().zip(&y).skip(c).step_by(4).map(|(f, y)| f64::from(f - y));
                assert!((errors().sum::<f64>() / 800.0).abs() < 1e-5);
                let plain: f64 = x.iter().zip(&y).skip(c).step_by(4).map(|(x, y)| f64::from(x - y).powi(2)).sum();
                assert!(errors().map(|e| e * e).sum::<f64>() <= plain);
            }
        }
    }

    #[test]
    fn a_band_holds_the_moments_of_every_pair() {
        let tensors: Vec<Vec<f32>> = (0..4).map(|i| noise(3 * 50, i)).collect();
        let mut band = BandMoments::new(4, 3, 3);
        for t in 0..4 {
            band.add(t, &tensors[t]);
            (t.saturating_sub(2)..t).for_each(|i| band.add_pair(i, t, &tensors[i], &tensors[t]));
        }
        for (i, t) in [(0, 1), (0, 2), (1, 3), (2, 3)] {
            let mut direct = Moments::new(3);
            direct.add(&tensors[i], &tensors[t]);
            assert_eq!(band.moments(i, t), direct);
            let mut fitted = vec![0.0; 150];
            direct.fit(0.0).apply(&tensors[i], &mut fitted);
            let left: f64 = fitted.iter().zip(&tensors[t]).map(|(f, y)| f64::from(f - y).powi(2)).sum();
            assert!((band.residual(i, t) - left).abs() < 1e-3 * left);
        }
    }

    #[test]
    fn constant_channels_and_no_data_are_safe() {
        let mut moments = Moments::new(2);
        assert_eq!(moments.fit(0.0), Affine::identity(2));
        moments.add(&[0.0, 5.0, 0.0, 5.0], &[1.0, 7.0, 1.0, 7.0]);
        assert_eq!(moments.fit(0.0), Affine { scale: vec![1.0, 1.0], shift: vec![1.0, 2.0] });
        assert_eq!(moments.fit(0.0).shrunk(0.5).shift, [0.5, 1.0]);
    }
}
