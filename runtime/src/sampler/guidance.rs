//! Classifier-free guidance and its rescaling.

/// Mixes the two halves of a guided evaluation in place and returns the result, `[samples, len]`.
///
/// `output` is `[2 · samples, len]`, the unconditional half first. The first `guided` elements of
/// every sample become u + `scale` · (c − u). The others, which are a learned variance, are taken
/// from the conditional half, as in diffusers' DiT pipeline.
///
/// # Panics
/// If `output` does not consist of 2 · `samples` equal parts of at least `guided` elements.
pub fn guide(output: &mut [f32], samples: usize, guided: usize, scale: f32) -> &[f32] {
    let half = output.len() / 2;
    let len = half.checked_div(samples).unwrap_or(0);
    assert!(
        output.len() == 2 * samples * len && guided <= len,
        "two halves of {samples} samples, {guided} guided"
    );
    let (unconditional, conditional) = output.split_at_mut(half);
    for (u, c) in
        unconditional.chunks_exact_mut(len.max(1)).zip(conditional.chunks_exact(len.max(1)))
    {
        for (u, c) in u[..guided].iter_mut().zip(c) {
            *u += scale * (c - *u);
        }
        u[guided..].copy_from_slice(&c[guided..]);
    }
    unconditional
}

/// Rescales the mixed prediction that [`guide`] left in the first half, per sample, towards the
/// standard deviation of the conditional one: g · (`phi` · σ(c) / σ(g) + 1 − `phi`), with `phi`
/// from 0 to 1 (Lin et al. 2023, arXiv:2305.08891, section 3.4). The elements after the first
/// `guided` ones do not change.
///
/// A mixed prediction with a standard deviation of 0 does not change either.
///
/// # Panics
/// Under the conditions of [`guide`].
pub fn rescale(output: &mut [f32], samples: usize, guided: usize, phi: f32) {
    let half = output.len() / 2;
    let len = half.checked_div(samples).unwrap_or(0);
    assert!(
        output.len() == 2 * samples * len && guided <= len,
        "two halves of {samples} samples, {guided} guided"
    );
    let (mixed, conditional) = output.split_at_mut(half);
    for (g, c) in mixed.chunks_exact_mut(len.max(1)).zip(conditional.chunks_exact(len.max(1))) {
        let (of_mixed, of_conditional) = (deviation(&g[..guided]), deviation(&c[..guided]));
        if of_mixed > 0.0 {
            let phi = f64::from(phi);
            let factor = (phi * (of_conditional / of_mixed) + (1.0 - phi)) as f32;
            g[..guided].iter_mut().for_each(|g| *g *= factor);
        }
    }
}

/// The standard deviation times the root of the number of values.
fn deviation(values: &[f32]) -> f64 {
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len().max(1) as f64;
    values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::{guide, rescale};

    #[test]
    fn rescaled_by_one_the_deviation_is_the_conditional_one() {
        // two samples of [mean, mean, variance]; mixed [8.5, 2] of deviation 3.25, conditional [2,
        // 2]
        let mut output = [8.5, 2.0, 30.0, 3.0, -25.0, 40.0, 2.0, 4.0, 30.0, 3.0, -11.0, 40.0];
        rescale(&mut output, 2, 2, 1.0);
        let factor = 2.0 / 6.5;
        assert_eq!(output[..6], [8.5 * factor, 2.0 * factor, 30.0, 1.5, -12.5, 40.0]);
        // a constant prediction has no deviation
        let mut output = [1.0, 1.0, 2.0, 4.0];
        rescale(&mut output, 1, 2, 0.7);
        assert_eq!(output, [1.0, 1.0, 2.0, 4.0]);
    }

    #[test]
    fn unconditional_comes_first_and_the_variance_is_conditional() {
        // two samples of [mean, mean, variance]
        let mut output = [1.0, 2.0, 10.0, 3.0, 4.0, 20.0, 2.0, 2.0, 30.0, 3.0, 0.0, 40.0];
        assert_eq!(guide(&mut output, 2, 2, 7.5), [8.5, 2.0, 30.0, 3.0, -26.0, 40.0]);
    }

    #[test]
    fn scale_one_is_the_conditional_half() {
        let mut output = [0.5, -1.0, 0.25, 2.0];
        assert_eq!(guide(&mut output, 1, 2, 1.0), [0.25, 2.0]);
    }
}
