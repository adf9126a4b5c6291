//! Schedules: which evaluations are full.
//!
//! A kind of schedule is a variant of [`ScheduleKind`], with a name in [`ScheduleKind::NAMED`] and
//! an arm in `ScheduleKind::find`.

use super::band::Band;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// The method that finds a schedule.
#[derive(Clone, Debug, PartialEq)]
pub enum ScheduleKind {
    /// The best of several methods on the holdout.
    Auto,
    /// Every N-th sampler step.
    Uniform,
    /// DeepCache's schedule, which is denser around a centre.
    Quadratic(Quadratic),
    /// CacheQuant's dynamic program over distances between cached tensors.
    Dps,
    /// The same dynamic program over the squared distances that remain after an affine map per
    /// channel. It is not in the paper.
    DpsAffine,
    /// The same dynamic program over errors of the network's output. It is not in the paper.
    DpsOutput,
}

/// The costs by which the methods choose, observed on the calibration set. All bands are as wide as
/// the longest group of evaluations that may share one full evaluation.
pub struct Costs<'a> {
    /// Sampler step of each evaluation, in ascending order from 0.
    pub steps: &'a [usize],
    /// Distances between cached tensors.
    pub features: &'a Band,
    /// Squared distances that remain after an affine map per channel. They are computed only if a
    /// method needs them.
    pub residuals: &'a dyn Fn() -> Band,
    /// Errors of the network's output when it is computed from an older cache. The band is empty
    /// unless [`ScheduleKind::needs_output`].
    pub output: &'a Band,
}

impl Costs<'_> {
    fn evaluations(&self) -> usize {
        self.steps.len()
    }

    fn sampler_steps(&self) -> usize {
        self.steps.last().map_or(1, |s| s + 1)
    }
}

/// A schedule that is to be measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Name of the kind that found it; `file` for a given schedule.
    pub method: String,
    /// The full evaluations, in ascending order from 0.
    pub full: Vec<usize>,
    /// The cost that the method minimises, of this schedule and of the uniform one (`None` if that
    /// one does not fit the band).
    pub cost: Option<(f64, Option<f64>)>,
}

impl ScheduleKind {
    /// The kinds without parameters, with the names that select them.
    pub const NAMED: [(&'static str, ScheduleKind); 5] = [
        ("auto", ScheduleKind::Auto),
        ("dps-output", ScheduleKind::DpsOutput),
        ("dps", ScheduleKind::Dps),
        ("dps-affine", ScheduleKind::DpsAffine),
        ("uniform", ScheduleKind::Uniform),
    ];

    /// The kinds that [`ScheduleKind::Auto`] measures for a loop of this many evaluations.
    fn of_auto(evaluations: usize) -> [ScheduleKind; 4] {
        let quadratic = ScheduleKind::Quadratic(Quadratic::around(evaluations));
        [ScheduleKind::DpsOutput, ScheduleKind::Dps, ScheduleKind::Uniform, quadratic]
    }

    /// Whether the kind reads [`Costs::output`], which takes additional evaluations to observe.
    pub fn needs_output(&self) -> bool {
        matches!(self, ScheduleKind::Auto | ScheduleKind::DpsOutput)
    }

    /// The schedules to measure for about one full evaluation per `interval`: one, or for `auto`
    /// one of each kind. The list is empty if there is no such schedule.
    ///
    /// # Panics
    /// If a band is narrower than the longest group of evaluations.
    pub fn candidates(&self, costs: &Costs, interval: usize) -> Vec<Candidate> {
        let kinds = match self {
            ScheduleKind::Auto => ScheduleKind::of_auto(costs.evaluations()).to_vec(),
            kind => vec![kind.clone()],
        };
        kinds.iter().filter_map(|kind| kind.find(costs, interval)).collect()
    }

    /// The schedule of a single kind, if there is one.
    fn find(&self, costs: &Costs, interval: usize) -> Option<Candidate> {
        let (steps, groups) = (costs.sampler_steps(), full_count(costs.sampler_steps(), interval));
        let plain = |full| Candidate { method: self.to_string(), full, cost: None };
        let searched = |band: &Band, search: Search| {
            let (full, cost) = search(band, steps, interval)?;
            let of_uniform = band.of_schedule(&uniform(costs.steps, interval));
            Some(Candidate { method: self.to_string(), full, cost: Some((cost, of_uniform)) })
        };
        match self {
            ScheduleKind::Uniform => Some(plain(uniform(costs.steps, interval))),
            ScheduleKind::Quadratic(form) => form.schedule(costs.evaluations(), groups).map(plain),
            ScheduleKind::Dps => searched(costs.features, dps),
            ScheduleKind::DpsAffine => searched(&(costs.residuals)(), dps),
            ScheduleKind::DpsOutput => searched(costs.output, dps_unbounded),
            ScheduleKind::Auto => unreachable!("`auto` stands for several kinds"),
        }
    }
}

/// A search for the schedule of least cost in a band, for a number of sampler steps and an
/// interval.
type Search = fn(&Band, usize, usize) -> Option<(Vec<usize>, f64)>;

impl fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = ScheduleKind::NAMED.iter().find(|(_, kind)| kind == self);
        f.write_str(named.map_or("quadratic", |(name, _)| name))
    }
}

impl FromStr for ScheduleKind {
    type Err = String;

    /// Parses a name of [`ScheduleKind::NAMED`], or `quadratic=CENTRE,POWER[,signed]`.
    fn from_str(text: &str) -> Result<ScheduleKind, String> {
        if let Some(form) = text.strip_prefix("quadratic=") {
            return form.parse().map(ScheduleKind::Quadratic);
        }
        let named = ScheduleKind::NAMED.iter().find(|(name, _)| *name == text);
        named.map(|(_, kind)| kind.clone()).ok_or_else(|| {
            let names: Vec<&str> = ScheduleKind::NAMED.iter().map(|(name, _)| *name).collect();
            format!("expected {} or quadratic=CENTRE,POWER", names.join(", "))
        })
    }
}

/// Number of full evaluations of `steps` sampler steps at interval N: ⌈steps / N⌉, as in
/// CacheQuant.
pub fn full_count(steps: usize, interval: usize) -> usize {
    steps.div_ceil(interval)
}

/// Lengths of groups that the published dynamic program allows: ⌈N/2⌉ to 2N, or more where
/// `evaluations` do not allow them.
pub fn group_lengths(evaluations: usize, steps: usize, interval: usize) -> RangeInclusive<usize> {
    let groups = full_count(steps, interval);
    let longest = (2 * interval).min(evaluations).max(evaluations.div_ceil(groups));
    interval.div_ceil(2).min(evaluations / groups)..=longest
}

/// Evaluation 0 and the evaluation of every N-th sampler step. `steps[e]` is the sampler step of
/// evaluation `e`. With samplers that evaluate the first step twice (PLMS), the result is 0, 1 + N,
/// 1 + 2N …
pub fn uniform(steps: &[usize], interval: usize) -> Vec<usize> {
    let first_of_step = |e: usize| e == 0 || steps[e - 1] != steps[e];
    (0..steps.len())
        .filter(|&e| {
            e == 0 || (first_of_step(e) && steps[e] > 0 && steps[e].is_multiple_of(interval))
        })
        .collect()
}

/// The schedule of least cost with the published group lengths: its full evaluations and its cost;
/// `None` if there is no such partition.
///
/// # Panics
/// If the band is narrower than the longest group.
pub fn dps(band: &Band, steps: usize, interval: usize) -> Option<(Vec<usize>, f64)> {
    band.best(full_count(steps, interval), group_lengths(band.evaluations(), steps, interval))
}

/// The same as [`dps`] with groups of any length up to the longest, so that an expensive evaluation
/// may be a group of its own.
///
/// # Panics
/// If the band is narrower than the longest group.
pub fn dps_unbounded(band: &Band, steps: usize, interval: usize) -> Option<(Vec<usize>, f64)> {
    let lengths = group_lengths(band.evaluations(), steps, interval);
    band.best(full_count(steps, interval), 1..=*lengths.end())
}

/// DeepCache's centre-power schedule (arXiv:2312.00858, equation 7).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quadratic {
    /// The evaluation around which full ones are densest. With `None`, the form without a centre,
    /// they are densest at the beginning.
    pub centre: Option<f64>,
    /// The exponent, above 1. An exponent of 1 would be uniform.
    pub power: f64,
    /// The root of a negative number.
    pub root: Root,
}

/// The root of a negative number in [`Quadratic`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// The real part of the principal complex root, as in DeepCache's code.
    Principal,
    /// The real root of the absolute value, with the sign of the number.
    Signed,
}

impl Quadratic {
    /// Power 1.4 around three tenths of the loop: DeepCache's setting for Stable Diffusion (15 of
    /// 50), scaled to this number of evaluations.
    pub fn around(evaluations: usize) -> Quadratic {
        Quadratic {
            centre: Some((0.3 * evaluations as f64).round()),
            power: 1.4,
            root: Root::Principal,
        }
    }

    /// `groups` full evaluations of `evaluations`. Where rounding makes two of them equal, the
    /// power is lowered in steps of 0.02; `None` if it would reach 1.
    pub fn schedule(&self, evaluations: usize, groups: usize) -> Option<Vec<usize>> {
        let mut power = self.power;
        while power > 1.0 {
            let mut full: Vec<usize> = self.indices(evaluations, groups, power);
            full.sort_unstable();
            full.dedup();
            if let Some(first) = full.first_mut() {
                *first = 0;
            }
            if full.len() == groups && full.windows(2).all(|w| w[0] < w[1]) {
                return Some(full);
            }
            power -= 0.02;
        }
        None
    }

    fn indices(&self, evaluations: usize, groups: usize, power: f64) -> Vec<usize> {
        let n = evaluations as f64;
        let part = |k: usize| k as f64 / groups as f64;
        let index = |x: f64| x.clamp(0.0, n - 1.0) as usize;
        let Some(centre) = self.centre else {
            let end = n.powf(1.0 / power);
            return (0..groups).map(|k| index((end * part(k)).powf(power).trunc())).collect();
        };
        let end = (n - centre).powf(1.0 / power);
        let start = centre.powf(1.0 / power);
        let at = |k: usize| match self.root {
            Root::Signed => {
                let l = -start + (end + start) * part(k);
                l.signum() * l.abs().powf(power)
            }
            Root::Principal => {
                let angle = std::f64::consts::PI / power;
                let (re, im) = (start * angle.cos(), start * angle.sin());
                let (re, im) = (re + (end - re) * part(k), im * (1.0 - part(k)));
                re.hypot(im).powf(power) * (im.atan2(re) * power).cos()
            }
        };
        // numpy computes slightly less than a whole number where this may compute slightly more
        (0..groups).map(|k| index((at(k) + 1e-9 * at(k).signum()).trunc() + centre)).collect()
    }
}

/// The text form that `from_str` reads.
impl fmt::Display for Quadratic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let centre = self.centre.map_or("none".to_string(), |c| c.to_string());
        let signed = if self.root == Root::Signed { ",signed" } else { "" };
        write!(f, "{centre},{}{signed}", self.power)
    }
}

impl FromStr for Quadratic {
    type Err = String;

    /// Parses `15,1.4`, `none,1.5` (no centre) or `15,1.4,signed` (the real root).
    fn from_str(text: &str) -> Result<Quadratic, String> {
        let wrong = || {
            format!(
                "`{text}`: expected CENTRE,POWER[,signed]: an evaluation or none, and a number above 1"
            )
        };
        let mut parts = text.split(',');
        let centre = match parts.next().ok_or_else(wrong)? {
            "none" => None,
            centre => Some(
                centre
                    .parse::<f64>()
                    .ok()
                    .filter(|c| *c >= 0.0 && c.is_finite())
                    .ok_or_else(wrong)?,
            ),
        };
        let power =
            parts.next().and_then(|p| p.parse::<f64>().ok()).filter(|p| *p > 1.0 && p.is_finite());
        let root = match parts.next() {
            None => Root::Principal,
            Some("signed") => Root::Signed,
            Some(_) => return Err(wrong()),
        };
        Ok(Quadratic { centre, power: power.ok_or_else(wrong)?, root })
    }
}

/// Checks a given schedule.
///
/// # Errors
/// A sentence about the first rule that it breaks.
pub fn check(full: &[usize], evaluations: usize) -> Result<(), String> {
    if full.first() != Some(&0) {
        return Err("the first evaluation, 0, must be full: nothing is cached before it".into());
    }
    if let Some(w) = full.windows(2).find(|w| w[0] >= w[1]) {
        return Err(format!("full evaluations must ascend, {} comes before {}", w[0], w[1]));
    }
    match full.last() {
        Some(&last) if last >= evaluations => {
            Err(format!("evaluation {last} is full, the last one is {}", evaluations - 1))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quadratic(
        evaluations: usize,
        groups: usize,
        centre: Option<f64>,
        power: f64,
        root: Root,
    ) -> Vec<usize> {
        Quadratic { centre, power, root }.schedule(evaluations, groups).unwrap()
    }

    /// The results of DeepCache's formula for its published settings.
    #[test]
    fn quadratic_schedules_equal_the_published_formula() {
        use Root::{Principal, Signed};
        assert_eq!(
            quadratic(50, 10, Some(15.0), 1.4, Principal),
            [0, 5, 9, 13, 17, 21, 26, 31, 37, 43]
        );
        assert_eq!(quadratic(50, 5, Some(15.0), 1.4, Principal), [0, 9, 17, 26, 37]);
        assert_eq!(quadratic(50, 5, Some(10.0), 1.4, Principal), [0, 8, 15, 25, 36]);
        let dense = [
            0, 2, 4, 6, 7, 9, 11, 12, 14, 15, 17, 18, 20, 22, 24, 26, 28, 30, 32, 35, 37, 39, 42,
            44, 47,
        ];
        assert_eq!(quadratic(50, 25, Some(15.0), 1.4, Principal), dense);
        assert_eq!(
            quadratic(50, 10, Some(15.0), 1.4, Signed),
            [0, 6, 11, 14, 15, 19, 24, 29, 35, 42]
        );
        assert_eq!(quadratic(50, 5, Some(15.0), 1.4, Signed), [0, 11, 15, 24, 35]);
        assert_eq!(quadratic(50, 5, Some(10.0), 1.4, Signed), [0, 9, 13, 23, 35]);
        let free = [0, 5, 15, 27, 42, 59, 78, 98, 120, 144, 168, 194, 221];
        assert_eq!(quadratic(250, 13, None, 1.5, Signed), free);
    }

    #[test]
    fn uniform_counts_sampler_steps() {
        assert_eq!(uniform(&(0..10).collect::<Vec<_>>(), 3), [0, 3, 6, 9]);
        let plms: Vec<usize> = (0..51).map(|e: usize| e.saturating_sub(1)).collect();
        assert_eq!(uniform(&plms, 5), [0, 6, 11, 16, 21, 26, 31, 36, 41, 46]);
        assert_eq!(uniform(&[0, 0, 1, 1, 2, 2], 2), [0, 4]);
    }

    #[test]
    fn there_is_a_schedule_of_the_right_size_for_every_interval() {
        for (evaluations, steps) in
            [(50, 50), (51, 50), (100, 100), (7, 7), (1, 1), (2, 2), (101, 100)]
        {
            for interval in 1..=evaluations + 3 {
                let lengths = group_lengths(evaluations, steps, interval);
                let (full, _) = dps(&Band::new(evaluations, *lengths.end()), steps, interval)
                    .unwrap_or_else(|| {
                        panic!("{evaluations} evaluations, interval {interval}, {lengths:?}")
                    });
                assert_eq!(full.len(), full_count(steps, interval));
                assert_eq!(check(&full, evaluations), Ok(()));
            }
        }
    }

    fn costs<'a>(steps: &'a [usize], band: &'a Band, residuals: &'a dyn Fn() -> Band) -> Costs<'a> {
        Costs { steps, features: band, residuals, output: band }
    }

    #[test]
    fn every_kind_can_be_asked_for_by_name_and_finds_a_schedule() {
        let steps: Vec<usize> = (0..20).collect();
        let band = Band::new(20, 20);
        let residuals = || band.clone();
        for (name, kind) in ScheduleKind::NAMED {
            assert_eq!((name.parse(), kind.to_string()), (Ok(kind.clone()), name.to_string()));
            let found = kind.candidates(&costs(&steps, &band, &residuals), 5);
            assert!(!found.is_empty(), "{name}");
            for candidate in found {
                assert_eq!(check(&candidate.full, 20), Ok(()), "{name}");
                assert!(kind == ScheduleKind::Auto || candidate.method == name);
            }
        }
        let form = Quadratic { centre: Some(6.0), power: 1.4, root: Root::Signed };
        assert_eq!(format!("quadratic={form}").parse(), Ok(ScheduleKind::Quadratic(form)));
        assert!("quadratic=6,1".parse::<ScheduleKind>().unwrap_err().contains("a number above 1"));
        assert!(
            "dsp".parse::<ScheduleKind>().unwrap_err().starts_with("expected auto, dps-output")
        );
    }

    #[test]
    fn auto_offers_each_kind_once() {
        let steps: Vec<usize> = (0..20).collect();
        let band = Band::new(20, 20);
        let residuals = || unreachable!("auto does not ask for them");
        let found = ScheduleKind::Auto.candidates(&costs(&steps, &band, &residuals), 5);
        let methods: Vec<&str> = found.iter().map(|c| c.method.as_str()).collect();
        assert_eq!(methods, ["dps-output", "dps", "uniform", "quadratic"]);
    }

    #[test]
    fn given_schedules_are_checked() {
        assert!(check(&[1, 2], 5).unwrap_err().contains("the first evaluation, 0, must be full"));
        assert!(check(&[0, 2, 2], 5).unwrap_err().contains("2 comes before 2"));
        assert!(check(&[0, 5], 5).unwrap_err().contains("evaluation 5 is full, the last one is 4"));
    }
}
