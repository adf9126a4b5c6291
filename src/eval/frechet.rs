//! The Frechet distance between Gaussians fitted to features.
//!
//! The distance is |μ₁ − μ₂|² + Tr S₁ + Tr S₂ − 2 Tr (S₁S₂)^½ with unbiased covariances. The last
//! trace is computed without a root of a matrix, as Σ √m over the eigenvalues m of a symmetric
//! matrix that has the same eigenvalues as S₁S₂. If there are fewer images than dimensions, S = A
//! Aᵀ is kept as A (one column per image, centred, divided by √(n−1)), and the symmetric matrix is
//! as small as the number of images.

use nalgebra::{DMatrix, DVector};

/// Number of images that are added to the moments at once.
const CHUNK: usize = 256;

/// Count, mean and co-moments Σ (x−μ)(x−μ)ᵀ of features, to which further features can be added.
#[derive(Clone, Debug)]
pub struct Moments {
    count: usize,
    mean: DVector<f64>,
    comoment: DMatrix<f64>,
}

impl Moments {
    /// The moments of no features.
    pub fn new(dimensions: usize) -> Moments {
        let (mean, comoment) = (DVector::zeros(dimensions), DMatrix::zeros(dimensions, dimensions));
        Moments { count: 0, mean, comoment }
    }

    /// The moments of all rows of `dimensions` features. The length of `rows` is a multiple of
    /// `dimensions`.
    pub fn of(rows: &[f32], dimensions: usize) -> Moments {
        let mut all = Moments::new(dimensions);
        rows.chunks(CHUNK * dimensions.max(1))
            .for_each(|rows| all.merge(&Moments::of_chunk(rows, dimensions)));
        all
    }

    fn of_chunk(rows: &[f32], dimensions: usize) -> Moments {
        let (mean, centred) = centred(rows, dimensions);
        Moments { count: centred.ncols(), mean, comoment: &centred * centred.transpose() }
    }

    /// Adds the moments of other images (Chan, Golub, LeVeque 1979).
    ///
    /// # Panics
    /// If the dimensions differ.
    pub fn merge(&mut self, other: &Moments) {
        let (n, m) = (self.count as f64, other.count as f64);
        if other.count == 0 {
            return;
        }
        let delta = &other.mean - &self.mean;
        self.comoment += &other.comoment;
        self.comoment.ger(n * m / (n + m), &delta, &delta, 1.0);
        self.mean.axpy(m / (n + m), &delta, 1.0);
        self.count += other.count;
    }

    /// Number of rows that were added.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Mean and unbiased covariance. They are not finite for fewer than two rows.
    pub fn gaussian(&self) -> Gaussian {
        let covariance = &self.comoment / (self.count as f64 - 1.0);
        Gaussian { mean: self.mean.clone(), spread: Spread::Covariance(covariance) }
    }
}

/// The mean of the rows, and the centred rows as columns.
fn centred(rows: &[f32], dimensions: usize) -> (DVector<f64>, DMatrix<f64>) {
    let values = rows.iter().map(|&v| f64::from(v));
    let mut columns = DMatrix::from_iterator(dimensions, rows.len() / dimensions.max(1), values);
    let mean = columns.column_mean();
    columns.column_iter_mut().for_each(|mut column| column -= &mean);
    (mean, columns)
}

/// A normal distribution of features, given by its mean and covariance.
#[derive(Clone, Debug)]
pub struct Gaussian {
    mean: DVector<f64>,
    spread: Spread,
}

#[derive(Clone, Debug)]
enum Spread {
    Covariance(DMatrix<f64>),
    /// A matrix whose product with its transpose is the covariance.
    Factor(DMatrix<f64>),
}

impl Gaussian {
    /// The normal distribution fitted to rows of `dimensions` features. It is not finite for fewer
    /// than two rows.
    pub fn of(rows: &[f32], dimensions: usize) -> Gaussian {
        if rows.len() / dimensions.max(1) >= dimensions {
            return Moments::of(rows, dimensions).gaussian();
        }
        let (mean, centred) = centred(rows, dimensions);
        let scale = (centred.ncols() as f64 - 1.0).sqrt();
        Gaussian { mean, spread: Spread::Factor(centred / scale) }
    }

    /// The normal distribution with this mean of length d and this covariance of length d², row by
    /// row.
    ///
    /// # Errors
    /// A sentence, if the sizes do not fit, the covariance is not symmetric, or a number is not
    /// finite.
    pub fn new(mean: Vec<f64>, covariance: Vec<f64>) -> Result<Gaussian, String> {
        let d = mean.len();
        if covariance.len() != d * d {
            return Err(format!(
                "a mean of {d} and a covariance of {} numbers, expected {}",
                covariance.len(),
                d * d
            ));
        }
        if !mean.iter().chain(&covariance).all(|v| v.is_finite()) {
            return Err("a number is not finite".into());
        }
        let covariance = DMatrix::from_vec(d, d, covariance);
        let (largest, odd) = (covariance.amax(), (&covariance - covariance.transpose()).amax());
        // 1e-5 admits statistics that were stored in f32
        if odd > 1e-5 * largest {
            return Err(format!(
                "the covariance is not symmetric: entries differ by {odd:.3e} of at most {largest:.3e}"
            ));
        }
        Ok(Gaussian { mean: mean.into(), spread: Spread::Covariance(covariance) })
    }

    /// Number of features.
    pub fn dimensions(&self) -> usize {
        self.mean.len()
    }

    fn total_variance(&self) -> f64 {
        match &self.spread {
            Spread::Covariance(s) => s.trace(),
            Spread::Factor(a) => a.norm_squared(),
        }
    }

    fn is_finite(&self) -> bool {
        let (Spread::Covariance(spread) | Spread::Factor(spread)) = &self.spread;
        self.mean.iter().chain(spread.iter()).all(|v| v.is_finite())
    }
}

/// A Frechet distance, and the effect of rounding on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frechet {
    /// The distance.
    pub distance: f64,
    /// Its first term, |μ₁ − μ₂|².
    pub mean_term: f64,
    /// Sum of the negative eigenvalues, which count as 0. Above 1e-3 the covariances are doubtful.
    pub clipped: f64,
}

/// The Frechet distance of two normal distributions. It is NaN if one of them is not finite. It
/// takes O(d³) time, or O(n²d) with fewer images n than dimensions d.
///
/// # Panics
/// If the dimensions differ.
pub fn frechet(a: &Gaussian, b: &Gaussian) -> Frechet {
    assert_eq!(a.dimensions(), b.dimensions(), "features of one extractor");
    let mean_term = (&a.mean - &b.mean).norm_squared();
    if !a.is_finite() || !b.is_finite() {
        return Frechet { distance: f64::NAN, mean_term, clipped: f64::NAN };
    }
    let (root, clipped) = match (&a.spread, &b.spread) {
        (Spread::Factor(a), Spread::Factor(b)) => {
            ((a.transpose() * b).singular_values().sum(), 0.0)
        }
        (Spread::Factor(f), Spread::Covariance(s)) | (Spread::Covariance(s), Spread::Factor(f)) => {
            sum_of_roots(f.transpose() * s * f)
        }
        (Spread::Covariance(a), Spread::Covariance(b)) => trace_of_root(a, b),
    };
    let distance = mean_term + a.total_variance() + b.total_variance() - 2.0 * root;
    Frechet { distance, mean_term, clipped }
}

/// Tr (S₁S₂)^½, and the sum of the clipped eigenvalues. With S₁ = Q diag(l) Qᵀ and F = Q diag(√l),
/// S₁S₂ has the eigenvalues of Fᵀ S₂ F.
fn trace_of_root(a: &DMatrix<f64>, b: &DMatrix<f64>) -> (f64, f64) {
    let eigen = a.clone().symmetric_eigen();
    let mut factor = eigen.eigenvectors;
    for (mut column, l) in factor.column_iter_mut().zip(eigen.eigenvalues.iter()) {
        column *= l.max(0.0).sqrt();
    }
    sum_of_roots(factor.transpose() * b * factor)
}

/// Σ √max(m, 0) over the eigenvalues m, and Σ max(−m, 0).
fn sum_of_roots(m: DMatrix<f64>) -> (f64, f64) {
    let symmetric = (&m + m.transpose()) * 0.5;
    let values = symmetric.symmetric_eigenvalues();
    values.iter().fold((0.0, 0.0), |(roots, clipped), m| {
        (roots + m.max(0.0).sqrt(), clipped + (-m).max(0.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::numbers;

    const D: usize = 6;

    /// Two sets of correlated features.
    fn sets(n: usize) -> (Vec<f32>, Vec<f32>) {
        let mix = |seed: u64, shift: f32| {
            let values = numbers(seed, n * D);
            let row = |row: &[f32]| {
                (0..D)
                    .map(|j| row[j] + row[(j + 1) % D] * 0.5 + shift * j as f32)
                    .collect::<Vec<_>>()
            };
            values.chunks_exact(D).flat_map(row).collect::<Vec<f32>>()
        };
        (mix(1, 0.0), mix(2, 0.125))
    }

    fn covariance(g: &Gaussian) -> DMatrix<f64> {
        match &g.spread {
            Spread::Covariance(s) => s.clone(),
            Spread::Factor(a) => a * a.transpose(),
        }
    }

    fn as_statistics(rows: &[f32]) -> Gaussian {
        let g = Gaussian::of(rows, D);
        Gaussian::new(g.mean.as_slice().to_vec(), covariance(&g).as_slice().to_vec()).unwrap()
    }

    #[test]
    fn values_are_those_of_scipy() {
        for (n, expected) in [
            (40, 0.933_385_129_195_320_8),
            (6, 0.958_708_818_849_700_5),
            (4, 1.037_290_101_737_801_3),
        ] {
            let (a, b) = sets(n);
            let found = frechet(&Gaussian::of(&a, D), &Gaussian::of(&b, D));
            // singular covariances: scipy's root is good to some 1e-8
            let tolerance = if n > D { 1e-12 } else { 1e-6 };
            assert!((found.distance - expected).abs() < tolerance, "n = {n}: {found:?}");
        }
    }

    #[test]
    fn every_path_gives_the_same_number() {
        for n in [3, 4, 5, 6, 7, 30] {
            let (a, b) = sets(n);
            let [ga, gb] = [&a, &b].map(|rows| Gaussian::of(rows, D));
            let expected = frechet(&ga, &gb).distance;
            for (a, b) in [
                (&gb, &ga),
                (&as_statistics(&a), &gb),
                (&ga, &as_statistics(&b)),
                (&as_statistics(&a), &as_statistics(&b)),
            ] {
                let found = frechet(a, b);
                // roots of eigenvalues that are 0 up to 1e-17
                assert!(
                    (found.distance - expected).abs() < 1e-7 && found.clipped < 1e-12,
                    "n = {n}: {found:?} {expected}"
                );
            }
        }
    }

    #[test]
    fn the_distance_to_itself_is_0_and_to_a_shifted_copy_the_shift() {
        for n in [4, 50] {
            let (a, _) = sets(n);
            let g = Gaussian::of(&a, D);
            assert!(frechet(&g, &g).distance.abs() < 1e-7);
            let mut moved = g.clone();
            moved.mean.add_scalar_mut(2.0);
            assert!((frechet(&g, &moved).distance - 4.0 * D as f64).abs() < 1e-7);
        }
    }

    #[test]
    fn merged_moments_are_those_of_the_whole() {
        let (a, _) = sets(700);
        let whole = Moments::of(&a, D);
        for cut in [0, 1, 255, 256, 699, 700] {
            let (first, second) = a.split_at(cut * D);
            let mut merged = Moments::of(first, D);
            merged.merge(&Moments::of(second, D));
            assert_eq!(merged.count(), 700);
            assert!((&merged.mean - &whole.mean).amax() < 1e-14);
            assert!((&merged.comoment - &whole.comoment).amax() < 1e-11);
        }
        let reversed: Vec<f32> = a.chunks_exact(D).rev().flatten().copied().collect();
        assert!(
            (Moments::of(&reversed, D).comoment - &whole.comoment).amax() < 1e-11,
            "in any order"
        );
    }

    #[test]
    fn too_few_images_are_not_a_number_and_bad_statistics_an_error() {
        let (a, _) = sets(1);
        assert!(frechet(&Gaussian::of(&a, D), &as_statistics(&sets(9).0)).distance.is_nan());
        for (mean, covariance, said) in [
            (vec![0.0; 2], vec![1.0; 3], "expected 4"),
            (vec![0.0; 2], vec![1.0, 0.5, 0.0, 1.0], "symmetric"),
            (vec![f64::NAN], vec![1.0], "finite"),
        ] {
            assert!(Gaussian::new(mean, covariance).unwrap_err().contains(said), "{said}");
        }
    }
}
