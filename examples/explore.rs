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

/// per slot, per evaluation: (a1, a2, b) per channel
type T2 = Vec<Vec<Vec<[f32; 3]>>>;
struct M2 { n: f64, s: Vec<[f64; 9]> }
impl M2 {
    fn new(c: usize) -> M2 { M2 { n: 0.0, s: vec![[0.0; 9]; c] } }
    fn add(&mut self, x: &[f32], p: &[f32], y: &[f32]) {
        let c = self.s.len();
        for i in 0..x.len() { let (x, p, y) = (x[i] as f64, p[i] as f64, y[i] as f64); let s = &mut self.s[i % c];
            for (k, v) in [x, p, y, x*x, p*p, x*p, x*y, p*y, y*y].into_iter().enumerate() { s[k] += v; } }
        self.n += (x.len() / c) as f64;
    }
    fn fit(&self, two: bool) -> Vec<[f32; 3]> {
        self.s.iter().map(|s| { let n = self.n; if n == 0.0 { return [1.0, 0.0, 0.0]; }
            let (mx, mp, my) = (s[0]/n, s[1]/n, s[2]/n);
            // regress y - x on (x, d = x - p)
            let vxx = s[3]/n - mx*mx; let vpp = s[4]/n - mp*mp; let vxp = s[5]/n - mx*mp; let vxy = s[6]/n - mx*my; let vpy = s[7]/n - mp*my;
            let vdd = vxx + vpp - 2.0*vxp; let vxd = vxx - vxp; let vdy = vxy - vpy;
            let (rx, rd) = (vxy - vxx, vdy - vxd); // targets of y - x
            let lam = 1e-3;
            let (a, c) = if two && vdd > 1e-9 * vxx { let (m11, m12, m22) = (vxx*(1.0+lam), vxd, vdd*(1.0+lam)); let det = m11*m22 - m12*m12; ((rx*m22 - rd*m12)/det, (rd*m11 - rx*m12)/det) } else { (rx/(vxx*(1.0+lam)).max(1e-12), 0.0) };
            let a1 = 1.0 + a + c; let a2 = -c; [a1 as f32, a2 as f32, (my - a1*mx - a2*mp) as f32] }).collect()
    }
}
fn ap(x: &[f32], p: &[f32], t: &[[f32; 3]]) -> Vec<f32> { let c = t.len(); (0..x.len()).map(|i| { let r = &t[i % c]; r[0]*x[i] + r[1]*p[i] + r[2] }).collect() }
fn seq2(l: &mut Loop, request: &Request, fit: usize, full: &[usize], two: bool, own: bool) -> T2 {
    let n = l.sampler().evaluations().len();
    let ch = channels(l);
    let mut tables: T2 = ch.iter().map(|_| vec![]).collect();
    let mut pairs: Vec<_> = (0..fit).step_by(l.width()).map(|f| (l.begin(request, f).unwrap(), l.begin(request, f).unwrap(), vec![vec![]; ch.len()], vec![vec![]; ch.len()])).collect();
    for t in 0..n {
        let isf = anchor(full, t).is_none();
        let mut ms: Vec<M2> = ch.iter().map(|&c| M2::new(c)).collect();
        let second = full.len() > 1 && t > full[1];
        for (o, a, cur, prev) in &mut pairs {
            if own && !isf { l.evaluate_as(ProgramKind::Full, a).unwrap(); let truth = snapshot(a); for k in 0..ch.len() { ms[k].add(&cur[k], &prev[k], &truth[k]); } }
            l.evaluate_as(ProgramKind::Full, o).unwrap();
            let out = l.output().to_vec(); l.advance(o, &out);
            if isf { l.evaluate_as(ProgramKind::Full, a).unwrap(); *prev = std::mem::take(cur); *cur = snapshot(a); if prev[0].is_empty() { *prev = cur.clone(); } let out = l.output().to_vec(); l.advance(a, &out); }
            else if !own { let truth = snapshot(o); for k in 0..ch.len() { ms[k].add(&cur[k], &prev[k], &truth[k]); } }
        }
        for (tb, m) in tables.iter_mut().zip(&ms) { tb.push(m.fit(two && second)); }
        if !isf { for (_, a, cur, prev) in &mut pairs {
            let c: Vec<Vec<f32>> = (0..ch.len()).map(|k| ap(&cur[k], &prev[k], &tables[k][t])).collect();
            restore(a, &c); l.evaluate_as(ProgramKind::Cached, a).unwrap(); let out = l.output().to_vec(); l.advance(a, &out);
        } }
    }
    tables
}
fn psnr2(l: &mut Loop, request: &Request, from: usize, full: &[usize], tables: &T2) -> f64 {
    let n = l.sampler().evaluations().len();
    let (mut sum, mut cnt) = (0.0, 0);
    for f in (from..request.samples).step_by(l.width()) {
        let (mut o, mut a) = (l.begin(request, f).unwrap(), l.begin(request, f).unwrap());
        let (mut cur, mut prev): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (vec![], vec![]);
        for t in 0..n {
            l.evaluate_as(ProgramKind::Full, &mut o).unwrap(); let out = l.output().to_vec(); l.advance(&mut o, &out);
            if anchor(full, t).is_none() { l.evaluate_as(ProgramKind::Full, &mut a).unwrap(); prev = std::mem::take(&mut cur); cur = snapshot(&a); if prev.is_empty() { prev = cur.clone(); } }
            else { let c: Vec<Vec<f32>> = (0..cur.len()).map(|k| ap(&cur[k], &prev[k], &tables[k][t])).collect(); restore(&mut a, &c); l.evaluate_as(ProgramKind::Cached, &mut a).unwrap(); }
            let out = l.output().to_vec(); l.advance(&mut a, &out);
        }
        let len = a.x().len() / l.width();
        for (x, y) in a.x().chunks(len).zip(o.x().chunks(len)) { let m = rms(x, y); sum += 20.0 * (2.0 / m).log10(); cnt += 1; }
    }
    sum / cnt as f64
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
        let gb = o.output.clone();
        let k = full_count(steps, interval);
        let (lo, hi) = (interval.div_ceil(2), width);
        let cands: Vec<(&str, Vec<usize>)> = vec![
            ("uniform", uniform(&(0..steps).collect::<Vec<_>>(), interval)),
            ("dps", dps(&o.features, steps, interval).unwrap().0),
            ("gain", gb.best(k, lo..=hi).unwrap().0),
            ("gain-sq", best_sq(&gb, k, 1, hi)),
        ];
        let h = HeldOut::new(&mut l, &request, fit, &mut p).unwrap();
        for (name, full) in cands {
            let s = h.psnr(&mut l, &request, &full, None, &mut p).unwrap();
            let t1 = seq2(&mut l, &request, fit, &full, false, false); let a = psnr2(&mut l, &request, fit, &full, &t1);
            let t2 = seq2(&mut l, &request, fit, &full, true, false); let b = psnr2(&mut l, &request, fit, &full, &t2);
            let t3 = seq2(&mut l, &request, fit, &full, true, true); let c = psnr2(&mut l, &request, fit, &full, &t3);
            println!("   {name:10} {s:.2}  seq1 {a:.2} seq2 {b:.2} own2 {c:.2} gain {:.4} {full:?}", gb.of_schedule(&full).unwrap_or(-1.0));
        }
    }
}
