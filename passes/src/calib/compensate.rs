//! Placeholder until merged.
/// Mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Least squares.
    Mse,
}
/// Map.
pub struct Map {
    /// a
    pub scale: Vec<f32>,
    /// b
    pub shift: Vec<f32>,
}
/// Fit.
pub fn fit(x: &[f32], y: &[f32], channels: usize, plane: usize, _: Mode) -> Map {
    let mut s = vec![[0f64; 5]; channels];
    for (i, (x, y)) in x.chunks_exact(plane).zip(y.chunks_exact(plane)).enumerate() {
        for (&x, &y) in x.iter().zip(y) {
            let (x, y) = (f64::from(x), f64::from(y));
            s[i % channels].iter_mut().zip([1.0, x, y, x * x, x * y]).for_each(|(s, v)| *s += v);
        }
    }
    let (mut scale, mut shift) = (vec![], vec![]);
    for [n, x, y, xx, xy] in s {
        let a = ((xy - x * y / n) / (xx - x * x / n)).clamp(0.8, 1.25);
        scale.push(a as f32);
        shift.push((x / n * (1.0 - a)) as f32);
        let _ = y;
    }
    Map { scale, shift }
}
