//! The inception score of the logits of any classifier.

/// Number of images per split in the usual evaluation code, where 50,000 images make ten splits.
pub const SPLIT: usize = 5000;

/// The inception score: mean and deviation over the splits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InceptionScore {
    /// Mean over the splits, between 1 and the number of classes.
    pub mean: f64,
    /// Standard deviation over the splits (of the population); 0 for one split.
    pub deviation: f64,
    /// Number of splits. The last one is shorter if their size does not divide the number of
    /// images.
    pub splits: usize,
}

/// The inception score of rows of `classes` logits: exp of the mean of Σ p(y|x) (log p(y|x) − log
/// p(y)), per split of `split` images, where p(y) is the mean of p(y|x) in the split. It is `None`
/// without images or classes.
pub fn inception_score(logits: &[f32], classes: usize, split: usize) -> Option<InceptionScore> {
    if logits.is_empty() || classes == 0 || split == 0 {
        return None;
    }
    let scores: Vec<f64> =
        logits.chunks(split.saturating_mul(classes)).map(|rows| of_split(rows, classes)).collect();
    let count = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / count;
    let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / count;
    Some(InceptionScore { mean, deviation: variance.sqrt(), splits: scores.len() })
}

fn of_split(rows: &[f32], classes: usize) -> f64 {
    let logs: Vec<f64> = rows.chunks_exact(classes).flat_map(log_softmax).collect();
    let count = (logs.len() / classes) as f64;
    let mut marginal = vec![0.0; classes];
    for row in logs.chunks_exact(classes) {
        marginal.iter_mut().zip(row).for_each(|(m, log)| *m += log.exp() / count);
    }
    let divergence = |row: &[f64]| {
        row.iter().zip(&marginal).map(|(&log, &m)| times(log.exp(), log - m.ln())).sum::<f64>()
    };
    (logs.chunks_exact(classes).map(divergence).sum::<f64>() / count).exp()
}

/// p · x, where 0 · −∞ is 0.
fn times(p: f64, x: f64) -> f64 {
    if p == 0.0 { 0.0 } else { p * x }
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let most = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v.into()));
    let sum: f64 = row.iter().map(|&v| (f64::from(v) - most).exp()).sum();
    row.iter().map(|&v| f64::from(v) - most - sum.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::{assert_near, numbers};

    fn logits() -> Vec<f32> {
        numbers(11, 50 * 7).into_iter().map(|v| v * 12.0).collect()
    }

    #[test]
    fn values_are_those_of_scipy() {
        let one = inception_score(&logits(), 7, SPLIT).unwrap();
        assert_near(one.mean, 3.091_188_007_109_135_8);
        assert_eq!((one.deviation, one.splits), (0.0, 1));
        let three = inception_score(&logits(), 7, 20).unwrap();
        assert_near(three.mean, 2.819_429_483_556_785_7);
        assert_near(three.deviation, 0.298_982_988_334_471);
        assert_eq!(three.splits, 3, "20, 20 and 10 images");
    }

    #[test]
    fn it_lies_between_1_and_the_number_of_classes() {
        let same = [3.0f32, 1.0, -2.0].repeat(9);
        assert_near(inception_score(&same, 3, SPLIT).unwrap().mean, 1.0);
        let certain: Vec<f32> = (0..12)
            .flat_map(|i| (0..4).map(move |c| if c == i % 4 { 9000.0 } else { 0.0 }))
            .collect();
        assert_near(inception_score(&certain, 4, SPLIT).unwrap().mean, 4.0);
        assert_eq!(inception_score(&[], 4, SPLIT), None);
    }
}
