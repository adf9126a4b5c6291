//! Checks the invariant of a cut: with the cache of the same evaluation and no correction, `cached`
//! gives the same as `full`, bit for bit.

use super::CalibrateError;
use cqc_proto::plan::ProgramKind;
use cqc_runtime::denoise::{Denoiser, Request};

/// Checks the invariant at the first, a middle and the last evaluation of one sample's ordinary
/// trajectory.
///
/// # Errors
/// [`CalibrateError::CutInvariant`] if it does not hold; [`CalibrateError::Denoise`] if the loop
/// cannot be run.
pub fn check_cut(denoiser: &Denoiser, request: &Request) -> Result<(), CalibrateError> {
    let mut denoiser = denoiser.of_width(1)?;
    let evaluations = denoiser.sampler().evaluations().len();
    let mut trajectory = denoiser.begin(request, 0)?;
    for e in 0..evaluations {
        let checked = e == 0 || e == evaluations / 2 || e + 1 == evaluations;
        denoiser.evaluate_as(ProgramKind::Full, &mut trajectory)?;
        let full = denoiser.output().to_vec();
        if checked {
            denoiser.evaluate_as(ProgramKind::Cached, &mut trajectory)?;
            let pairs = full.iter().zip(denoiser.output());
            if let Some((full, cached)) = pairs.clone().find(|(a, b)| a.to_bits() != b.to_bits()) {
                return Err(CalibrateError::CutInvariant {
                    evaluation: e,
                    full: *full,
                    cached: *cached,
                });
            }
        }
        denoiser.advance(&mut trajectory, &full);
    }
    Ok(())
}
