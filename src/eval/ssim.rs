//! The structural similarity of two images.
//!
//! It follows Wang et al. 2004 with an 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, L
//! = 255 and population-weighted moments. Only windows inside the image count. It is computed per
//! channel (RGB, not luma) and then averaged.

const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
const C1: f64 = (0.01 * 255.0) * (0.01 * 255.0);
const C2: f64 = (0.03 * 255.0) * (0.03 * 255.0);

/// SSIM of two images `[channels, height, width]`; `None` if they are smaller than the window.
///
/// # Panics
/// If the length of an image is not channels · height · width.
pub fn ssim(a: &[u8], b: &[u8], [channels, height, width]: [usize; 3]) -> Option<f64> {
    assert_eq!([a.len(), b.len()], [channels * height * width; 2], "images of the size given");
    if height < WINDOW || width < WINDOW || channels == 0 {
        return None;
    }
    let planes = a.chunks_exact(height * width).zip(b.chunks_exact(height * width));
    Some(planes.map(|(a, b)| of_plane(a, b, height, width)).sum::<f64>() / channels as f64)
}

fn of_plane(a: &[u8], b: &[u8], height: usize, width: usize) -> f64 {
    let mean = |f: &dyn Fn(f64, f64) -> f64| {
        let values: Vec<f64> = a.iter().zip(b).map(|(&a, &b)| f(a.into(), b.into())).collect();
        blurred(&values, height, width)
    };
    let (a1, b1) = (mean(&|a, _| a), mean(&|_, b| b));
    let (aa, bb, ab) = (mean(&|a, _| a * a), mean(&|_, b| b * b), mean(&|a, b| a * b));
    let at = |i: usize| {
        let (means, squares) = (a1[i] * b1[i], a1[i] * a1[i] + b1[i] * b1[i]);
        let (covariance, variances) = (ab[i] - means, aa[i] + bb[i] - squares);
        (2.0 * means + C1) * (2.0 * covariance + C2) / ((squares + C1) * (variances + C2))
    };
    (0..a1.len()).map(at).sum::<f64>() / a1.len() as f64
}

/// The weighted means of all windows inside the image: first along rows, then along columns.
fn blurred(plane: &[f64], height: usize, width: usize) -> Vec<f64> {
    let weights = weights();
    let inner = width + 1 - WINDOW;
    let weighted =
        |f: &dyn Fn(usize) -> f64| weights.iter().enumerate().map(|(k, w)| w * f(k)).sum::<f64>();
    let along: Vec<f64> = (0..height * inner)
        .map(|i| weighted(&|k| plane[i / inner * width + i % inner + k]))
        .collect();
    (0..(height + 1 - WINDOW) * inner).map(|i| weighted(&|k| along[i + k * inner])).collect()
}

fn weights() -> [f64; WINDOW] {
    let bell = |k: usize| (-0.5 * ((k as f64 - (WINDOW / 2) as f64) / SIGMA).powi(2)).exp();
    let sum: f64 = (0..WINDOW).map(bell).sum();
    std::array::from_fn(|k| bell(k) / sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::assert_near;

    const SIZE: [usize; 3] = [3, 16, 20];

    fn images() -> (Vec<u8>, Vec<u8>) {
        let a = (0..3 * 16 * 20).map(|i| (i * 37 % 251) as u8).collect();
        let b = (0..3 * 16 * 20).map(|i| (i * 37 % 251 / 2 + i * 11 % 64) as u8).collect();
        (a, b)
    }

    #[test]
    fn values_are_those_of_scikit_image() {
        let (a, b) = images();
        assert_near(ssim(&a, &b, SIZE).unwrap(), 0.729_664_678_461_847_8);
        assert_near(ssim(&a[..320], &b[..320], [1, 16, 20]).unwrap(), 0.715_477_548_084_488_9);
    }

    #[test]
    fn it_is_symmetric_and_1_for_identical_images() {
        let (a, b) = images();
        assert_eq!(ssim(&a, &b, SIZE), ssim(&b, &a, SIZE));
        assert_near(ssim(&a, &a, SIZE).unwrap(), 1.0);
        assert_eq!(ssim(&[0; 121], &[0; 121], [1, 11, 11]), Some(1.0), "one window, no variance");
        assert_eq!(ssim(&[0; 110], &[0; 110], [1, 10, 11]), None);
    }
}
