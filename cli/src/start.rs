//! The options of `sample` that say where the loop begins and ends, and with what.

use super::prompt::Pictures;
use super::report::Failure;
use super::sampling::Selected;
use super::source::SampleSource;
use cachequant::io::{has_extension, read_array};
use clap::Args;
use cqc_proto::Tensor;
use cqc_runtime::denoise::{Course, DenoiseError, StartError, check_request, rows_at};
use cqc_runtime::sampler::Sampler;
use std::path::{Path, PathBuf};
use std::str::FromStr;

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Image to image")]
pub struct StartArgs {
    /// Image to begin with instead of noise; it is made as noisy as --strength says
    ///
    /// A .npy or .npz array [N,C,H,W] in the scale of the samples, with one image per sample or one
    /// for all; or a .png with one image, whose pixels become -1 to 1. A latent model needs
    /// latents.
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Share of the steps that run on --init, above 0 and at most 1 [default: 0.8; with --mask 1]
    ///
    /// 1 begins with noise alone. Needs --init.
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    strength: Option<f32>,
    /// The part of --init that is repainted: 1 repaints, 0 keeps
    ///
    /// A .npy or .npz array [N or 1, C or 1, H, W], or a .png, whose white pixels are repainted and
    /// which is resized to the samples. Needs --init.
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    /// Begin with this sampler step, from 0, or at this share of the time
    ///
    /// A share from 0.0 (noise) to 1.0 (image) is written with a point and has the meaning of
    /// diffusers' denoising_start. The samples of --noise are taken as they are.
    #[arg(long, value_name = "X")]
    from: Option<At>,
    /// End before this sampler step, or at this share of the time
    ///
    /// A share has the meaning of diffusers' denoising_end. The samples are still noisy, in the
    /// scale of the sampler, as --from takes them.
    #[arg(long, value_name = "X")]
    to: Option<At>,
}

/// A place in a loop.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    /// The index of a sampler step.
    Step(usize),
    /// A share of the time, from 0 (noise) to 1 (image).
    Share(f64),
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<At, String> {
        if let Ok(step) = text.parse() {
            return Ok(At::Step(step));
        }
        match text.parse() {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(At::Share(share)),
            _ => Err("expected the number of a step, or a share from 0.0 to 1.0".into()),
        }
    }
}

impl At {
    fn step(self, sampler: &Sampler) -> usize {
        match self {
            At::Step(step) => step,
            At::Share(share) => sampler.step_of_share(share),
        }
    }
}

/// The content of the files of [`StartArgs`].
pub struct Images {
    init: Option<Tensor>,
    mask: Option<Tensor>,
}

impl StartArgs {
    /// Reads the files of `--init` and `--mask`.
    pub fn read(&self) -> Result<Images, Failure> {
        let init = self.init.as_ref().map(|path| read_array(path, "init")).transpose()?;
        let mask = self.mask.as_ref().map(|path| read_mask(path)).transpose()?;
        Ok(Images { init, mask })
    }

    /// Adds the beginning and the end of the loop to the request, and returns the course.
    pub fn apply(
        &self,
        images: Images,
        source: &SampleSource,
        selected: &mut Selected,
    ) -> Result<Course, Failure> {
        let sampler = source.sampler()?;
        let Selected { request, range, total } = selected;
        // An array with a single row holds for all samples.
        let cut = |t: Tensor| {
            if t.shape().first() == Some(total) { rows_at(&t, 0, range) } else { t }
        };
        request.init = images.init.map(cut);
        request.mask = images.mask.map(cut);
        if let (Some(mask), Some(path)) = (&request.mask, &self.mask)
            && has_extension(path, "png")
        {
            request.mask = Some(nearest(mask, &source.sample_shape()?));
        }
        request.strength = self.strength;
        request.from = self.from.map(|at| at.step(&sampler));
        request.to = self.to.map(|at| at.step(&sampler));
        let course = Course::of(&sampler, request)?;
        check_request(source.plan(), request)?;
        Ok(course)
    }
}

impl Images {
    /// The same images as samples of the loop: a pipeline encodes pixels.
    pub fn encoded(self, pictures: &Pictures) -> Result<Images, Failure> {
        let init = self.init.map(|init| pictures.encoded(init)).transpose()?;
        Ok(Images { init, ..self })
    }

    /// Number of images of `--init`; `None` without the option.
    pub fn rows(&self) -> Option<usize> {
        self.init.as_ref().and_then(|init| init.shape().first().copied())
    }
}

/// Reads a mask of 0 and 1. Of a PNG, the pixels of at least half the brightness become 1.
fn read_mask(path: &Path) -> Result<Tensor, Failure> {
    let read = read_array(path, "mask")?;
    let &[_, channels, height, width] = read.shape() else { return Ok(read) };
    if !has_extension(path, "png") {
        return Ok(read);
    }
    let (values, area) = (read.to_f32_vec(), height * width);
    // brightness as in Rec. 601
    let weights: &[f32] = if channels == 3 { &[0.299, 0.587, 0.114] } else { &[1.0] };
    let light = |i| {
        let light: f32 = weights.iter().enumerate().map(|(c, w)| w * values[c * area + i]).sum();
        if light >= 0.0 { 1.0 } else { 0.0 }
    };
    let mask: Vec<f32> = (0..area).map(light).collect();
    Ok(Tensor::from_f32(&[1, 1, height, width], &mask))
}

/// A mask `[1, 1, H, W]`, resized to a sample `[C, H, W]` by taking the nearest pixels. A mask of
/// another shape is returned as it is.
fn nearest(mask: &Tensor, sample: &[usize]) -> Tensor {
    let (&[1, 1, height, width], &[_, to_height, to_width]) = (mask.shape(), sample) else {
        return mask.clone();
    };
    let values = mask.to_f32_vec();
    let at = |y: usize, x: usize| values[y * height / to_height * width + x * width / to_width];
    let rows = (0..to_height).flat_map(|y| (0..to_width).map(move |x| (y, x)));
    let values: Vec<f32> = rows.map(|(y, x)| at(y, x)).collect();
    Tensor::from_f32(&[1, 1, to_height, to_width], &values)
}

/// What to do about an impossible beginning or end, if there is something to do.
pub fn advice(error: &StartError) -> Option<String> {
    Some(match error {
        StartError::MaskAlone => "give the image with --init FILE".into(),
        StartError::StrengthAlone => "give the image with --init FILE, or leave --strength out".into(),
        StartError::Strength { .. } => "--strength 0.5".into(),
        StartError::NothingLeft { steps, .. } => {
            format!("--strength {} or more, or more --steps", 1.0 / *steps as f32)
        }
        StartError::NoImages { .. } => "leave --init out, or compile with another sampler".into(),
        StartError::NeedsImage { .. } => {
            "give an image to `cqc sample --init FILE`; compile with --interval 1 and --quant none or \
            bf16, because calibration has no images"
                .into()
        }
        StartError::Whole { .. } => "leave it out".into(),
        StartError::Twice { .. } => "give --from or --strength, not both; --init may stay with --mask".into(),
        StartError::NothingToContinue => "give the output of `cqc sample --to` with --noise FILE".into(),
        StartError::From { .. }
        | StartError::To { .. }
        | StartError::Nothing { .. }
        | StartError::Sampler(_) => return None,
    })
}

/// A failure that lists everything that is wrong, with the advice for each.
pub fn failure(errors: &[StartError], e: &DenoiseError) -> Failure {
    errors.iter().filter_map(advice).fold(Failure::usage(e.to_string()), Failure::help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_step_or_a_share() {
        assert_eq!("12".parse(), Ok(At::Step(12)));
        assert_eq!("0.8".parse(), Ok(At::Share(0.8)));
        assert_eq!("1.0".parse(), Ok(At::Share(1.0)));
        for wrong in ["1.5", "-1", "-0.5", "x", "NaN", ""] {
            assert!(wrong.parse::<At>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_mask_is_brought_to_size() {
        let mask = Tensor::from_f32(&[1, 1, 2, 4], &[0., 1., 2., 3., 4., 5., 6., 7.]);
        let seen = |shape: &[usize]| nearest(&mask, shape).to_f32_vec();
        assert_eq!(seen(&[3, 1, 2]), [0., 2.]);
        assert_eq!(seen(&[3, 2, 2]), [0., 2., 4., 6.]);
        assert_eq!(seen(&[3, 4, 4])[4..8], [0., 1., 2., 3.]);
    }
}
