//! Classifier-free guidance.

/// Mixes the two halves of a guided evaluation in place and returns the mixed one, `[samples,
/// len]`.
///
/// `output` is `[2 · samples, len]`, the unconditional half first. The leading `guided` elements of
/// every sample become u + `scale` · (c − u). The others (a learned variance) are those of the
/// conditional half, as in diffusers' DiT pipeline.
///
/// # Panics
/// If `output` is not made of 2 · `samples` equal parts of at least `guided` elements.
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

#[cfg(test)]
mod tests {
    use super::guide;

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
