//! The noise of an image against its reference, in decibels.

/// The PSNR of identical images, in dB, which is also the largest one.
pub const CAP: f64 = 100.0;

/// Mean square of the differences of two images.
///
/// # Panics
/// If the lengths differ.
pub fn mse<T: Copy + Into<f64>>(a: &[T], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len(), "images of one size");
    let square = |(&a, &b): (&T, &T)| (a.into() - b.into()).powi(2);
    a.iter().zip(b).map(square).sum::<f64>() / a.len() as f64
}

/// The peak signal-to-noise ratio 10 log10(peak² / mse) in dB, at most [`CAP`]. `peak` is the
/// largest possible difference, e.g. 255.
pub fn psnr(mse: f64, peak: f64) -> f64 {
    let db = if mse == 0.0 { CAP } else { 10.0 * (peak * peak / mse).log10() };
    // `min` would turn NaN into the cap
    if db > CAP { CAP } else { db }
}

/// The signal-to-noise ratio 10 log10(Σx² / Σ(x−y)²) in dB, where x is the reference. It is
/// infinite without noise.
pub fn sqnr(signal: f64, noise: f64) -> f64 {
    10.0 * (signal / noise).log10()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::assert_near;

    #[test]
    fn values_are_those_of_scikit_image() {
        let a: Vec<u8> = (0..3 * 16 * 20).map(|i| (i * 37 % 251) as u8).collect();
        let b: Vec<u8> = (0..3 * 16 * 20).map(|i| (i * 37 % 251 / 2 + i * 11 % 64) as u8).collect();
        assert_near(psnr(mse(&a, &b), 255.0), 13.965_535_725_915_74);
    }

    #[test]
    fn identical_images_are_capped_and_nan_stays() {
        assert_eq!((psnr(0.0, 255.0), psnr(1e-30, 255.0), psnr(0.0, 0.0)), (CAP, CAP, CAP));
        assert!(psnr(f64::NAN, 1.0).is_nan());
        assert_near(psnr(1.0, 255.0), 48.130_803_608_679_1);
        assert_eq!((sqnr(100.0, 1.0), sqnr(1.0, 0.0)), (20.0, f64::INFINITY));
    }
}
