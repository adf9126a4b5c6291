//! Lloyd's k-means, started by k-means++.

use super::below;
use nalgebra::DMatrix;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;

const ITERATIONS: usize = 100;
const TILE: usize = 1024;

/// The cluster, below `k`, of every point (a finite column), from the best of `restarts` runs: the
/// one with the least sum of squared distances, or the first among equal ones. There are fewer
/// clusters than `k` if there are fewer different points.
pub(super) fn kmeans(
    points: &DMatrix<f32>,
    k: usize,
    restarts: usize,
    random: &mut ChaCha20Rng,
) -> Vec<usize> {
    if points.ncols() == 0 || k == 0 {
        return vec![0; points.ncols()];
    }
    let runs = (0..restarts.max(1)).map(|_| run(points, begin(points, k, random)));
    runs.reduce(|best, next| if next.1 < best.1 { next } else { best })
        .map(|best| best.0)
        .unwrap_or_default()
}

/// Draws the centres one by one, each with a probability proportional to the square of its distance
/// from the earlier ones.
fn begin(points: &DMatrix<f32>, k: usize, random: &mut ChaCha20Rng) -> DMatrix<f32> {
    let (dimensions, n) = points.shape();
    let mut centres = DMatrix::zeros(dimensions, k);
    let mut square = vec![f64::INFINITY; n];
    let mut next = below(random, n);
    for c in 0..k {
        centres.column_mut(c).copy_from(&points.column(next));
        for (square, point) in square.iter_mut().zip(points.column_iter()) {
            let to = point
                .iter()
                .zip(centres.column(c).iter())
                .map(|(a, b)| f64::from((a - b) * (a - b)))
                .sum();
            *square = square.min(to);
        }
        let total: f64 = square.iter().sum();
        let mut left = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
        let chosen = square.iter().position(|s| {
            left -= s;
            left < 0.0
        });
        // because of rounding, or because all points are centres already
        next = chosen.unwrap_or_else(|| below(random, n));
    }
    centres
}

/// Labels and the sum of squared distances.
fn run(points: &DMatrix<f32>, mut centres: DMatrix<f32>) -> (Vec<usize>, f64) {
    let (mut labels, mut squares) = assign(points, &centres);
    for _ in 0..ITERATIONS {
        fill_empty(&mut labels, &mut squares, centres.ncols());
        means(points, &labels, &mut centres);
        let (next, distances) = assign(points, &centres);
        let still = next == labels;
        (labels, squares) = (next, distances);
        if still {
            break;
        }
    }
    (labels, squares.iter().sum())
}

/// The nearest centre of each point, or the first among equal ones, and the square of its distance.
fn assign(points: &DMatrix<f32>, centres: &DMatrix<f32>) -> (Vec<usize>, Vec<f64>) {
    let half: Vec<f32> = centres.column_iter().map(|c| c.norm_squared() / 2.0).collect();
    let rows = centres.transpose();
    let (mut labels, mut squares) = (vec![], vec![]);
    for first in (0..points.ncols()).step_by(TILE) {
        let tile = points.columns(first, TILE.min(points.ncols() - first));
        let products = &rows * tile;
        for (products, point) in products.column_iter().zip(tile.column_iter()) {
            // |x − c|² = |x|² − 2 (x·c − |c|² / 2)
            let nearness = products.iter().zip(&half).map(|(p, half)| p - half).enumerate();
            let (label, near) =
                nearness.fold(
                    (0, f32::NEG_INFINITY),
                    |best, next| if next.1 > best.1 { next } else { best },
                );
            labels.push(label);
            squares.push((f64::from(point.norm_squared()) - 2.0 * f64::from(near)).max(0.0));
        }
    }
    (labels, squares)
}

/// Gives clusters that have lost all points the points that are farthest from their centres.
fn fill_empty(labels: &mut [usize], squares: &mut [f64], k: usize) {
    let mut sizes = vec![0usize; k];
    labels.iter().for_each(|&l| sizes[l] += 1);
    for empty in 0..k {
        let movable = (0..labels.len()).filter(|&i| sizes[labels[i]] > 1 && squares[i] > 0.0);
        let furthest = movable.reduce(|a, b| if squares[b] > squares[a] { b } else { a });
        let (0, Some(furthest)) = (sizes[empty], furthest) else { continue };
        sizes[labels[furthest]] -= 1;
        sizes[empty] = 1;
        (labels[furthest], squares[furthest]) = (empty, 0.0);
    }
}

/// Moves every centre to the mean of its points. A centre without points stays.
fn means(points: &DMatrix<f32>, labels: &[usize], centres: &mut DMatrix<f32>) {
    let mut sums = DMatrix::<f64>::zeros(centres.nrows(), centres.ncols());
    let mut sizes = vec![0usize; centres.ncols()];
    for (point, &label) in points.column_iter().zip(labels) {
        sizes[label] += 1;
        sums.column_mut(label).iter_mut().zip(point.iter()).for_each(|(s, &x)| *s += f64::from(x));
    }
    for (c, &size) in sizes.iter().enumerate().filter(|(_, size)| **size > 0) {
        centres.column_mut(c).zip_apply(&sums.column(c), |m, s| *m = (s / size as f64) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::super::random;
    use super::*;

    #[test]
    fn separate_heaps_are_found() {
        // heap h of 20 points around (10 h, −5 h)
        let points = DMatrix::from_fn(2, 100, |d, i| {
            let heap = (i % 5) as f32;
            (if d == 0 { 10.0 } else { -5.0 }) * heap + ((i * 31 + d * 17) as f32).sin()
        });
        let labels = kmeans(&points, 5, 20, &mut random(3, 0));
        assert!((0..100).all(|i| labels[i] == labels[i % 5]), "{labels:?}");
        let mut heaps = labels[..5].to_vec();
        heaps.sort_unstable();
        assert_eq!(heaps, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn few_different_points_and_none_are_safe() {
        let same = DMatrix::from_element(3, 7, 1.5);
        assert!(kmeans(&same, 4, 3, &mut random(1, 0)).iter().all(|&l| l < 4));
        assert!(kmeans(&DMatrix::zeros(3, 0), 4, 3, &mut random(1, 0)).is_empty());
        let line = DMatrix::from_fn(1, 3, |_, i| i as f32);
        let mut labels = kmeans(&line, 3, 5, &mut random(1, 0));
        labels.sort_unstable();
        assert_eq!(labels, [0, 1, 2]);
    }
}
