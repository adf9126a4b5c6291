//! Images in the format PNG: a grid of samples is written, one image is read.

use super::{FileError, Overwrite, write_atomic};
use cqc_proto::Tensor;
use std::io::Write;
use std::path::Path;

/// Number of pixels between and around the images of a grid.
const MARGIN: usize = 2;

/// Largest number of pixels of a grid, margins included. The grid is put together in memory, with a
/// byte per pixel and channel.
const MAX_PIXELS: u64 = 1 << 26;

/// Writes images `[N, C, H, W]` in [-1, 1] as one grid; see [`encode_grid`].
///
/// # Errors
/// [`FileError::CannotHold`] for other shapes, [`FileError::Exists`] or [`FileError::Io`].
pub fn write_png(path: &Path, images: &Tensor, overwrite: Overwrite) -> Result<(), FileError> {
    write_encoded(path, encode_grid(images), overwrite)
}

/// Writes an encoded image.
pub(super) fn write_encoded(
    path: &Path,
    png: Result<Vec<u8>, String>,
    overwrite: Overwrite,
) -> Result<(), FileError> {
    let png = png.map_err(|what| FileError::CannotHold {
        path: path.to_path_buf(),
        what,
        help: format!("write the values with -o {}", path.with_extension("npy").display()),
    })?;
    write_atomic(path, overwrite, |out| out.write_all(&png))
}

/// Encodes images `[N, C, H, W]` with C = 1 (grey) or 3 (RGB) as one PNG. -1 becomes 0, 1 becomes
/// 255, values outside are clipped, and NaN becomes 0.
///
/// A row has ⌈√N⌉ images. They are placed from left to right and top to bottom, with a black margin
/// of 2 pixels. A single image has no margin.
///
/// # Errors
/// A description of the tensor, if it has another shape or is too large.
pub fn encode_grid(images: &Tensor) -> Result<Vec<u8>, String> {
    let size = images.shape().get(1..).unwrap_or_default().iter().product::<usize>();
    let values = images.to_f32_vec();
    encode_images(images.shape(), values.chunks_exact(size.max(1)).map(<[f32]>::to_vec))
}

/// Checks whether [`encode_grid`] would accept a tensor of this shape.
///
/// # Errors
/// As [`encode_grid`].
pub fn check_grid(shape: &[usize]) -> Result<(), String> {
    Grid::of(shape).map(|_| ())
}

/// The places of images in a grid.
struct Grid {
    color: png::ColorType,
    columns: usize,
    margin: usize,
    width: u32,
    height: u32,
}

impl Grid {
    fn of(shape: &[usize]) -> Result<Grid, String> {
        let &[n, c, h, w] = shape else {
            return Err(format!("a tensor of shape {shape:?}, only [N, C, H, W]"));
        };
        let color = match c {
            1 => png::ColorType::Grayscale,
            3 => png::ColorType::Rgb,
            _ => return Err(format!("images of {c} channels (latents?), only of 1 or 3")),
        };
        let columns = (1..).find(|k| k * k >= n).expect("some square is large enough");
        let rows = n.div_ceil(columns.max(1));
        let margin = if n == 1 { 0 } else { MARGIN };
        let side = |count: usize, size: usize| {
            u32::try_from(count * (size + margin) + margin).unwrap_or(u32::MAX)
        };
        let (width, height) = (side(columns, w), side(rows, h));
        if n * c * h * w == 0 || u64::from(width) * u64::from(height) > MAX_PIXELS {
            return Err(format!("an image of {width}x{height} pixels ({n} samples)"));
        }
        Ok(Grid { color, columns, margin, width, height })
    }
}

/// Does the same as [`encode_grid`] with images that are given one by one.
pub(super) fn encode_images(
    shape: &[usize],
    images: impl Iterator<Item = Vec<f32>>,
) -> Result<Vec<u8>, String> {
    let Grid { color, columns, margin, width, height } = Grid::of(shape)?;
    let (c, h, w) = (shape[1], shape[2], shape[3]);
    let mut pixels = vec![0u8; width as usize * height as usize * c];
    for (i, image) in images.enumerate() {
        let (top, left) =
            (margin + i / columns * (h + margin), margin + i % columns * (w + margin));
        for (at, &value) in image.iter().enumerate() {
            let (channel, y, x) = (at / (h * w), at / w % h, at % w);
            pixels[((top + y) * width as usize + left + x) * c + channel] = to_byte(value);
        }
    }
    encode(&pixels, width, height, color)
        .map_err(|e| format!("an image of {width}x{height} pixels: {e}"))
}

/// Reads a PNG as `[1, C, H, W]` in [-1, 1], with C = 1 (grey) or 3 (RGB). Byte 0 becomes -1, byte
/// 255 becomes 1. Palettes are resolved, 16 bits are cut to 8, and transparency is ignored.
///
/// # Errors
/// [`FileError::Io`]; [`FileError::Format`] for another format or more than 16384 pixels along an
/// axis.
pub fn read_png(path: &Path) -> Result<Tensor, FileError> {
    let bytes = std::fs::read(path).map_err(FileError::reading(path))?;
    decode(&bytes).map_err(|reason| FileError::Format {
        path: path.to_path_buf(),
        format: ".png",
        reason,
    })
}

/// Largest number of pixels along an axis of an image that is read.
const MAX_SIDE: u32 = 1 << 14;

fn decode(bytes: &[u8]) -> Result<Tensor, String> {
    let mut decoder = png::Decoder::new(std::io::Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let wrong = |e: png::DecodingError| format!("it is not a PNG that can be read: {e}");
    let mut reader = decoder.read_info().map_err(wrong)?;
    let (width, height) = (reader.info().width, reader.info().height);
    if width > MAX_SIDE || height > MAX_SIDE {
        return Err(format!(
            "it has {width}x{height} pixels, at most {MAX_SIDE} along an axis are read"
        ));
    }
    let size = reader.output_buffer_size().ok_or("it is too large")?;
    let mut pixels = vec![0; size];
    let frame = reader.next_frame(&mut pixels).map_err(wrong)?;
    let (stored, kept) = match frame.color_type {
        png::ColorType::Grayscale => (1, 1),
        png::ColorType::GrayscaleAlpha => (2, 1),
        png::ColorType::Rgb => (3, 3),
        png::ColorType::Rgba => (4, 3),
        png::ColorType::Indexed => return Err("its palette cannot be looked up".into()),
    };
    let (h, w) = (height as usize, width as usize);
    let value = |c: usize, at: usize| f32::from(pixels[at * stored + c]) / 127.5 - 1.0;
    let values: Vec<f32> = (0..kept)
        .flat_map(|c| (0..h * w).map(move |at| (c, at)))
        .map(|(c, at)| value(c, at))
        .collect();
    Ok(Tensor::from_f32(&[1, kept, h, w], &values))
}

/// A pixel in [-1, 1] as a byte: clipped, and rounded to the nearest byte with halves up. NaN
/// becomes 0.
pub fn to_byte(value: f32) -> u8 {
    // a cast saturates and turns NaN into 0
    ((value + 1.0) * 127.5).round() as u8
}

fn encode(
    pixels: &[u8],
    width: u32,
    height: u32,
    color: png::ColorType,
) -> Result<Vec<u8>, png::EncodingError> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_read_as_it_was_written() {
        for channels in [1, 3] {
            let bytes: Vec<f32> =
                (0..channels * 6).map(|i| i as f32 * 14.0 / 127.5 - 1.0).collect();
            let image = Tensor::from_f32(&[1, channels, 2, 3], &bytes);
            let read = super::decode(&encode_grid(&image).unwrap()).unwrap();
            assert_eq!(read.shape(), [1, channels, 2, 3]);
            let near = |(a, b): (f32, f32)| (a - b).abs() < 1e-6;
            assert!(read.to_f32_vec().into_iter().zip(bytes).all(near));
        }
        assert!(super::decode(b"\x89PNG no").unwrap_err().contains("PNG"));
    }

    fn decode(png: &[u8]) -> (u32, u32, Vec<u8>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        (info.width, info.height, pixels)
    }

    #[test]
    fn one_image_has_no_margin_and_values_are_clipped() {
        let values = [-1.0, 1.0, 0.0, -7.0, 7.0, f32::NAN];
        let (w, h, pixels) =
            decode(&encode_grid(&Tensor::from_f32(&[1, 1, 2, 3], &values)).unwrap());
        assert_eq!((w, h, pixels), (3, 2, vec![0, 255, 128, 0, 255, 0]));
    }

    #[test]
    fn five_images_stand_in_two_rows_of_three() {
        let values: Vec<f32> = (0..5).flat_map(|i| [i as f32 / 127.5 - 1.0; 12]).collect();
        let (w, h, pixels) =
            decode(&encode_grid(&Tensor::from_f32(&[5, 3, 2, 2], &values)).unwrap());
        assert_eq!((w, h), (2 + 3 * 4, 2 + 2 * 4));
        let at = |x: usize, y: usize| pixels[(y * 14 + x) * 3];
        assert_eq!([at(2, 2), at(6, 2), at(10, 2), at(2, 6), at(6, 6)], [0, 1, 2, 3, 4]);
        assert_eq!((at(1, 1), at(10, 6)), (0, 0), "margins and missing images are black");
    }

    #[test]
    fn latents_are_refused() {
        let said = encode_grid(&Tensor::from_f32(&[1, 4, 1, 1], &[0.0; 4])).unwrap_err();
        assert!(said.contains("4 channels"), "{said}");
    }
}
