use cqc::calibrate::*;
use cqc::calibrate::{choose as _, correct::*, measure::*, observe::*};
use cqc::compile::*;
use cqc::model::*;
use cqc_passes::cache::CutSpec;
use cqc_passes::cache::affine::rms;
use cqc_passes::cache::band::Band;
use cqc_passes::cache::schedule::*;
use cqc_proto::plan::ProgramKind;
use cqc_proto::sampler::SamplerConfig;
use cqc_runtime::denoise::*;
use cqc_runtime::engine::*;
use cqc_runtime::sampler::Sampler;
use std::ops::ControlFlow;

fn best_sq(band: &Band, groups: usize, lo: usize, hi: usize) -> Vec<usize> {
    let n = band.evaluations();
    let mut least = vec![vec![f64::INFINITY; n + 1]; groups + 1];
    let mut from = vec![vec![0; n + 1]; groups + 1];
    least[0][0] = 0.0;
    for k in 1..=groups {
        for end in 1..=n {
            for l in (lo..=hi.min(end)).rev() {
                let c = least[k - 1][end - l] + band.group(end - l, l).powi(2);
                if c < least[k][end] {
                    least[k][end] = c;
                    from[k][end] = end - l;
                }
            }
        }
    }
    let (mut e, mut v) = (n, vec![]);
    for k in (1..=groups).rev() {
        e = from[k][e];
        v.push(e);
    }
    v.reverse();
    v
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let model = Model::load(a[1].as_ref(), &ModelOptions::default(), |_, _| {}).unwrap();
    let steps: usize = a[2].parse().unwrap();
    let interval: usize = a[3].parse().unwrap();
    let fit: usize = a[5].parse().unwrap();
    let held: usize = a[6].parse().unwrap();
    let opts = LoopOptions { sampler: SamplerConfig::default(), steps };
    for cut in a[4].split(' ') {
        let cut: CutSpec = cut.parse().unwrap();
        let cl = cut_loop(&model, &opts, &cut).unwrap();
        println!("cut {} share {:.3}", cl.cut_name, cl.cut.share());
        let low = cl.uncorrected().unwrap();
        let w = Weights::new(low.plan.clone(), low.weight_bytes().unwrap()).unwrap();
        let mut l = Loop::open(
            &w,
            Sampler::new(&opts.sampler, steps).unwrap(),
            false,
            &EngineOptions { batch: 8, threads: 2, ..Default::default() },
        )
        .unwrap();
        let request = Request { samples: fit + held, seed: 1000, ..Default::default() };
        let mut call = |_, _| ControlFlow::Continue(());
        let mut p = Progress { done: 0, all: 0, call: &mut call };
        let width = *group_lengths(steps, steps, interval).end();
        let o = observe(&mut l, &request, fit, width, 8, &mut p).unwrap();
        // sensitivity: inject the error of a cache of lag 2 at t0, go on in full
        let wts = l.sampler().output_weights();
        let mut g = vec![0.0; steps];
        let probes: Vec<usize> = (1..steps).step_by((steps / 10).max(1)).collect();
        for &t0 in &probes {
            let mut tr = l.begin(&request, 0).unwrap();
            let mut hist = vec![];
            for _ in 0..t0 {
                l.evaluate_as(ProgramKind::Full, &mut tr).unwrap();
                hist.push(snapshot(&tr));
                let o = l.output().to_vec();
                l.advance(&mut tr, &o);
            }
            let mut clean = l.begin(&request, 0).unwrap();
            for _ in 0..t0 {
                l.evaluate_as(ProgramKind::Full, &mut clean).unwrap();
                let o = l.output().to_vec();
                l.advance(&mut clean, &o);
            }
            l.evaluate_as(ProgramKind::Full, &mut clean).unwrap();
            let of = l.output().to_vec();
            l.advance(&mut clean, &of);
            restore(&mut tr, &hist[t0 - 1.min(t0)]);
            l.evaluate_as(ProgramKind::Cached, &mut tr).unwrap();
            let oc = l.output().to_vec();
            l.advance(&mut tr, &oc);
            let e = rms(&of, &oc);
            for _ in t0 + 1..steps {
                for t in [&mut tr, &mut clean] {
                    l.evaluate_as(ProgramKind::Full, t).unwrap();
                    let o = l.output().to_vec();
                    l.advance(t, &o);
                }
            }
            g[t0] = rms(tr.x(), clean.x()) / (wts[t0] * e);
            println!("   t {t0} w {:.4} e {:.5} final {:.5} gain {:.3}", wts[t0], e, rms(tr.x(), clean.x()), g[t0]);
        }
        // interpolate gains
        let gain: Vec<f64> = (0..steps)
            .map(|t| {
                let j = probes.partition_point(|&x| x <= t);
                if j == 0 {
                    g[probes[0]]
                } else if j == probes.len() {
                    g[*probes.last().unwrap()]
                } else {
                    let (x0, x1) = (probes[j - 1], probes[j]);
                    g[x0] + (g[x1] - g[x0]) * (t - x0) as f64 / (x1 - x0) as f64
                }
            })
            .collect();
        let mut gb = Band::new(steps, width);
        for i in 0..steps {
            for t in i + 1..(i + width).min(steps) {
                gb.add(i, t, o.output.get(i, t) * gain[t]);
            }
        }
        let k = full_count(steps, interval);
        let (lo, hi) = (interval.div_ceil(2), width);
        let cands: Vec<(&str, Vec<usize>)> = vec![
            ("uniform", uniform(&(0..steps).collect::<Vec<_>>(), interval)),
            ("dps", dps(&o.features, steps, interval).unwrap().0),
            ("out", o.output.best(k, lo..=hi).unwrap().0),
            ("out-unb", o.output.best(k, 1..=hi).unwrap().0),
            ("out-sq", best_sq(&o.output, k, 1, hi)),
            ("gain", gb.best(k, 1..=hi).unwrap().0),
            ("gain-sq", best_sq(&gb, k, 1, hi)),
        ];
        let h = HeldOut::new(&mut l, &request, fit, &mut p).unwrap();
        for (name, full) in cands {
            let s = h.psnr(&mut l, &request, &full, None, &mut p).unwrap();
            let tf = teacher_forced(&o, &channels(&l), &full, steps);
            let c = h.psnr(&mut l, &request, &full, Some(&tf), &mut p).unwrap();
            println!(
                "   {name:10} {s:.2}  tf {c:.2}  out {:.4} gain {:.4} {full:?}",
                o.output.of_schedule(&full).unwrap_or(-1.0),
                gb.of_schedule(&full).unwrap_or(-1.0)
            );
        }
    }
}
