//! The error |error|^2.4 of rounding to levels that are one apart, for values and for values that
//! are spread evenly.

/// Integral of |u − round(u)|^2.4 from 0 to `u`: a whole valley per level that was passed, and a
/// part of one.
pub(super) fn integral(u: f64, levels: f64) -> f64 {
    const VALLEY: f64 = 0.055_724_873_768_764_64; // 2 · 0.5^3.4 / 3.4
    let level = nearest(u, levels);
    let (d, away) = ((u - level).abs(), (u - level).signum());
    level * VALLEY + away * d * f64::from(power(d as f32)) / 3.4
}

/// The nearest level, half to even.
pub(super) fn nearest(u: f64, levels: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 · 2^52: no fraction is left next to it
    (u.clamp(0.0, levels) + ROUND) - ROUND
}

/// Σ |x / scale + zero − level|^2.4 with the nearest level between the ends, summed in f32 over a
/// few values and in f64 over all.
pub(super) fn errors(values: &[f32], scale: f32, zero: f32, [first, last]: [f32; 2]) -> f64 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23
    const LANES: usize = 16;
    let per_scale = 1.0 / scale;
    let error = |x: f32| {
        let u = if x.is_finite() { x * per_scale + zero } else { zero };
        power((u - ((u.clamp(first, last) + ROUND) - ROUND)).abs())
    };
    let block = |values: &[f32]| {
        let mut sums = [0f32; LANES];
        let lanes = values.chunks_exact(LANES);
        lanes.remainder().iter().zip(&mut sums).for_each(|(&x, sum)| *sum += error(x));
        lanes.for_each(|values| sums.iter_mut().zip(values).for_each(|(sum, &x)| *sum += error(x)));
        sums.into_iter().map(f64::from).sum::<f64>()
    };
    values.chunks(64 * LANES).map(block).sum()
}

/// x^2.4 for 0 ≤ x < 2^40, to a relative error of 2e-6, as (x · x^(−1/5))³. It has multiplications
/// only, so it vectorises and is the same on every machine.
#[inline(always)]
fn power(x: f32) -> f32 {
    // An exponent divided by −5 is right to a few percent. Each of Newton's steps then squares
    // three times the error.
    let mut root = f32::from_bits(0x4c2b_a000 - x.to_bits() / 5);
    for _ in 0..3 {
        let square = root * root;
        root *= 1.2 - 0.2 * (x * root) * (square * square);
    }
    let y = x * root;
    y * y * y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_is_x_to_the_2_4() {
        for i in 0..200_000 {
            let x = (i as f32 - 100_000.0).mul_add(2e-4, 0.0).exp2();
            let exact = f64::from(x).powf(2.4);
            assert!(
                (f64::from(power(x)) - exact).abs() <= 2e-6 * exact + 1e-37,
                "{x}: {} {exact}",
                power(x)
            );
        }
        assert_eq!(power(0.0), 0.0);
    }

    #[test]
    fn the_closed_form_is_the_mean_over_the_bin() {
        for (a, b) in
            [(0.1, 0.2), (-3.0, -2.5), (2.3, 9.9), (250.0, 270.0), (-1.0, 300.0), (7.4, 7.6)]
        {
            let n = 100_000;
            let u = |i: usize| a + (b - a) * (i as f64 + 0.5) / n as f64;
            let mean = (0..n).map(|i| (u(i) - nearest(u(i), 255.0)).abs().powf(2.4)).sum::<f64>()
                / n as f64;
            let found = (integral(b, 255.0) - integral(a, 255.0)) / (b - a);
            assert!((found - mean).abs() < 1e-5 * mean, "{a} to {b}: {found} {mean}");
        }
    }
}
