//! The correction of a cached tensor (the decoupled error correction of CacheQuant): per evaluation
//! and channel, the affine map of the stored value that comes nearest to the value of a full step.

/// Sums over all elements of each channel. They suffice for least squares and are additive over
/// samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Elements per channel.
    n: f64,
    /// Per channel: Σx, Σy, Σx², Σxy and, with an earlier stored tensor p, Σp, Σp², Σxp, Σpy.
    sums: Vec<[f64; 8]>,
    /// Whether earlier stored tensors were added.
    forecasts: bool,
}

impl Moments {
    /// The sums of no elements.
    pub fn new(channels: usize) -> Moments {
        Moments { n: 0.0, sums: vec![[0.0; 8]; channels], forecasts: false }
    }

    /// Adds two tensors `[.., channels]`: `x` is the stored tensor, `y` the one that a full step
    /// computes.
    ///
    /// # Panics
    /// If the lengths differ or are no multiple of the number of channels.
    pub fn add(&mut self, x: &[f32], y: &[f32]) {
        let c = self.sums.len();
        assert!(x.len() == y.len() && x.len().is_multiple_of(c), "two tensors of {c} channels");
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact(c)) {
            for ((s, &x), &y) in self.sums.iter_mut().zip(x).zip(y) {
                let (x, y) = (f64::from(x), f64::from(y));
                s[..4].iter_mut().zip([x, y, x * x, x * y]).for_each(|(s, v)| *s += v);
            }
        }
        self.n += (x.len() / c) as f64;
    }

    /// Adds three tensors `[.., channels]`: `previous` is the tensor that was stored before `x`.
    ///
    /// # Panics
    /// If the lengths differ or are no multiple of the number of channels.
    pub fn add_with_previous(&mut self, x: &[f32], previous: &[f32], y: &[f32]) {
        self.add(x, y);
        self.forecasts = true;
        let c = self.sums.len();
        assert_eq!(previous.len(), x.len());
        for ((x, p), y) in x.chunks_exact(c).zip(previous.chunks_exact(c)).zip(y.chunks_exact(c)) {
            for (((s, &x), &p), &y) in self.sums.iter_mut().zip(x).zip(p).zip(y) {
                let (x, p, y) = (f64::from(x), f64::from(p), f64::from(y));
                s[4..].iter_mut().zip([p, p * p, x * p, p * y]).for_each(|(s, v)| *s += v);
            }
        }
    }

    /// The least-squares map of `y` on `x` per channel: a = cov(x, y) / var(x), b = mean(y) − a ·
    /// mean(x). With earlier stored tensors it is the least-squares map of `y` on `x` and `x −
    /// previous`, a forecast along the line through both.
    ///
    /// `ridge` ≥ 0 draws the map towards the identity. A channel that hardly varies is only
    /// shifted. Without elements the map is the identity.
    pub fn fit(&self, ridge: f64) -> Affine {
        let mut map = Affine::identity(self.sums.len());
        if self.n == 0.0 {
            return map;
        }
        if self.forecasts {
            map.previous = vec![0.0; self.sums.len()];
        }
        // a channel far below the others counts as one of zeros
        let largest = self.sums.iter().map(|s| s[2] / self.n).fold(0.0, f64::max);
        let least = 1e-6 * largest.min(1.0);
        for (c, s) in self.sums.iter().enumerate() {
            let [x, y, xx, xy, p, pp, xp, py] = s.map(|s| s / self.n);
            let (var, cov) = (xx - x * x, xy - x * y);
            if var <= 1e-9 * (x * x).max(least) {
                map.shift[c] = (y - x) as f32;
                continue;
            }
            // with d = x − p: y − x ≈ a · x + f · d
            let (xd, py) = (var - (xp - x * p), cov - (py - p * y));
            let dd = var + (pp - p * p) - 2.0 * (xp - x * p);
            let (to_x, to_d) = (cov - var, py - xd);
            let (var_r, dd_r) = (var * (1.0 + ridge), dd * (1.0 + ridge));
            let determinant = var_r * dd_r - xd * xd;
            let moves = self.forecasts && dd > 1e-9 * var && determinant > 1e-9 * var_r * dd_r;
            let (a, f) = match moves {
                true => (
                    (to_x * dd_r - to_d * xd) / determinant,
                    (to_d * var_r - to_x * xd) / determinant,
                ),
                false => (to_x / var_r, 0.0),
            };
            map.scale[c] = (1.0 + a + f) as f32;
            map.shift[c] = (y - (1.0 + a + f) * x + f * p) as f32;
            if self.forecasts {
                map.previous[c] = -f as f32;
            }
        }
        map
    }
}

/// [`Moments`] of every pair of evaluations in a band, for one cached tensor. They suffice to fit
/// the correction of any schedule.
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
    /// The moments of no elements. `width` is that of a [`Band`](super::band::Band).
    pub fn new(evaluations: usize, width: usize, channels: usize) -> BandMoments {
        let width = width.clamp(1, evaluations.max(1));
        let (n, sum) = (vec![0.0; evaluations], vec![0.0; evaluations * channels]);
        BandMoments {
            channels,
            width,
            n,
            square: sum.clone(),
            sum,
            cross: vec![0.0; evaluations * width * channels],
        }
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
    /// If the pair is outside the band.
    pub fn add_pair(&mut self, i: usize, t: usize, x: &[f32], y: &[f32]) {
        assert!(i <= t && t - i < self.width, "({i}, {t}) is outside the band");
        let c = self.channels;
        let cross = &mut self.cross[(i * self.width + t - i) * c..][..c];
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact(c)) {
            cross
                .iter_mut()
                .zip(x.iter().zip(y))
                .for_each(|(s, (&x, &y))| *s += f64::from(x) * f64::from(y));
        }
    }

    /// The moments of the tensor that evaluation `i` stored (x) and the tensor of evaluation `t`
    /// (y).
    ///
    /// # Panics
    /// If the pair is outside the band.
    pub fn moments(&self, i: usize, t: usize) -> Moments {
        assert!(i <= t && t - i < self.width, "({i}, {t}) is outside the band");
        let c = self.channels;
        let cross = &self.cross[(i * self.width + t - i) * c..][..c];
        let row = |v: &[f64], e: usize, k: usize| v[e * c + k];
        let sums = (0..c).map(|k| {
            let (x, y, xx) = (row(&self.sum, i, k), row(&self.sum, t, k), row(&self.square, i, k));
            [x, y, xx, cross[k], 0.0, 0.0, 0.0, 0.0]
        });
        Moments { n: self.n[i], sums: sums.collect(), forecasts: false }
    }

    /// Σx² over all evaluations and channels.
    pub fn squares(&self) -> f64 {
        self.square.iter().sum()
    }

    /// The sum of squares that remains after the affine fit of `(i, t)`, over all channels: S_yy −
    /// S_xy² / S_xx.
    ///
    /// # Panics
    /// If the pair is outside the band.
    pub fn residual(&self, i: usize, t: usize) -> f64 {
        let Moments { n, sums, .. } = self.moments(i, t);
        let square = &self.square[t * self.channels..][..self.channels];
        let left = sums.iter().zip(square).map(|([x, y, xx, xy, ..], yy)| {
            let (sxx, sxy, syy) = (xx - x * x / n, xy - x * y / n, yy - y * y / n);
            (if sxx > 1e-12 * xx { syy - sxy * sxy / sxx } else { syy }).max(0.0)
        });
        left.sum()
    }
}

/// The map `x · scale + shift (+ p · previous)` per channel, where `x` is the stored tensor and `p`
/// the one that was stored before it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Affine {
    /// One factor per channel.
    pub scale: Vec<f32>,
    /// One summand per channel.
    pub shift: Vec<f32>,
    /// One factor per channel for the tensor that was stored before. It is empty if that tensor is
    /// not read.
    pub previous: Vec<f32>,
}

impl Affine {
    /// The map that changes nothing.
    pub fn identity(channels: usize) -> Affine {
        Affine { scale: vec![1.0; channels], shift: vec![0.0; channels], previous: vec![] }
    }

    /// Applies the map to the stored tensor `x` `[.., channels]` and to the tensor that was stored
    /// before.
    ///
    /// # Panics
    /// If the lengths differ. The length of `previous` counts only if the map reads it.
    pub fn apply(&self, x: &[f32], previous: &[f32]) -> Vec<f32> {
        let c = self.scale.len();
        let mut y = vec![0.0; x.len()];
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            for ((y, x), (a, b)) in y.iter_mut().zip(x).zip(self.scale.iter().zip(&self.shift)) {
                *y = a.mul_add(*x, *b);
            }
        }
        if !self.previous.is_empty() {
            assert_eq!(previous.len(), x.len());
            for (p, y) in previous.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
                y.iter_mut()
                    .zip(p.iter().zip(&self.previous))
                    .for_each(|(y, (p, f))| *y = f.mul_add(*p, *y));
            }
        }
        y
    }
}

/// Σ|x − y|, summed in f64.
pub fn l1(x: &[f32], y: &[f32]) -> f64 {
    let block = |(x, y): (&[f32], &[f32])| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from((x - y).abs())).sum()
    };
    x.chunks(1024).zip(y.chunks(1024)).map(block).sum()
}

/// The root of the mean of (x − y)², summed in f64.
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
        let map =
            Affine { scale: vec![0.5, -2.0, 1.0], shift: vec![3.0, 0.0, -100.0], previous: vec![] };
        let y = map.apply(&x, &[]);
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
    fn a_forecast_is_found_per_channel() {
        let (x, previous) = (noise(2 * 400, 5), noise(2 * 400, 6));
        let map =
            Affine { scale: vec![1.8, 1.0], shift: vec![0.25, 0.0], previous: vec![-0.8, 0.5] };
        let y = map.apply(&x, &previous);
        let mut moments = Moments::new(2);
        moments.add_with_previous(&x, &previous, &y);
        let found = moments.fit(0.0);
        for (found, map) in [
            (&found.scale, &map.scale),
            (&found.shift, &map.shift),
            (&found.previous, &map.previous),
        ] {
            assert!(
                found.iter().zip(map).all(|(a, b)| (a - b).abs() < 1e-4),
                "{found:?}, expected {map:?}"
            );
        }
    }

    #[test]
    fn a_fit_leaves_no_mean_error_and_no_larger_square_error() {
        let (x, noise_) = (noise(4 * 800, 2), noise(4 * 800, 3));
        let y: Vec<f32> = x.iter().zip(&noise_).map(|(x, n)| 0.7 * x + 0.3 + n).collect();
        let mut moments = Moments::new(4);
        moments.add(&x, &y);
        for ridge in [0.0, 1e-3, 0.5] {
            let fitted = moments.fit(ridge).apply(&x, &[]);
            for c in 0..4 {
                let errors =
                    || fitted.iter().zip(&y).skip(c).step_by(4).map(|(f, y)| f64::from(f - y));
                assert!((errors().sum::<f64>() / 800.0).abs() < 1e-5);
                let plain: f64 = x
                    .iter()
                    .zip(&y)
                    .skip(c)
                    .step_by(4)
                    .map(|(x, y)| f64::from(x - y).powi(2))
                    .sum();
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
            let fitted = direct.fit(0.0).apply(&tensors[i], &[]);
            let left: f64 =
                fitted.iter().zip(&tensors[t]).map(|(f, y)| f64::from(f - y).powi(2)).sum();
            assert!((band.residual(i, t) - left).abs() < 1e-3 * left);
        }
    }

    #[test]
    fn constant_channels_and_no_data_are_safe() {
        let mut moments = Moments::new(2);
        assert_eq!(moments.fit(0.0), Affine::identity(2));
        moments.add(&[0.0, 5.0, 0.0, 5.0], &[1.0, 7.0, 1.0, 7.0]);
        assert_eq!(
            moments.fit(0.0),
            Affine { scale: vec![1.0, 1.0], shift: vec![1.0, 2.0], previous: vec![] }
        );
        // nothing has changed since the tensor before, so there is no direction in which to go on
        let mut still = Moments::new(1);
        still.add_with_previous(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]);
        assert_eq!(
            still.fit(0.0),
            Affine { scale: vec![2.0], shift: vec![0.0], previous: vec![0.0] }
        );
    }
}
