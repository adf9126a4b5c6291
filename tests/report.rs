//! The measurements of `Compiled::report`.

mod common;

use cachequant::Recipe;
use cachequant::recipe::{CacheFit, Quant};
use cachequant::report::FileFacts;
use cachequant::report::trajectory::Variant;
use common::{compiled, load};

/// The report and the calibration measure the same: the uncorrected schedule has the PSNR by which
/// it was chosen.
#[test]
fn errors_agree_with_what_calibration_measured() {
    let model = load("ddpm-shapes32");
    let recipe = Recipe {
        steps: Some(6),
        interval: Some(2),
        quant: Some(Quant::None),
        schedule: Some("uniform".parse().unwrap()),
        cache_fit: Some(CacheFit::Sequential),
        calib_samples: Some(4),
        seed: Some(7),
        threads: Some(2),
        ..Recipe::default()
    };
    let compiled = compiled(&model, &recipe);
    let report = compiled.report(FileFacts { path: "a.cq".into(), bytes: 0 }, &mut ()).unwrap();
    let (errors, choice) = (report.errors.unwrap(), compiled.choice().unwrap());
    assert_eq!(errors.samples, 2);
    let variants: Vec<Variant> = errors.curves.iter().map(|c| c.of).collect();
    assert_eq!(variants, [Variant::Cache, Variant::Artifact]);
    assert_eq!(choice.measured.len(), 2);
    for (curve, measured) in errors.curves.iter().zip(&choice.measured) {
        // the artifact corrects while it loads the cache, calibration before that: the last digits
        // differ
        assert!((curve.psnr - measured.psnr).abs() < 0.01, "{} {}", curve.psnr, measured.psnr);
        let found = (curve.errors.len(), curve.errors[0]);
        assert_eq!(found, (6, 0.0), "the first evaluation is full");
        assert!(curve.errors[5] > 0.0);
    }
}
