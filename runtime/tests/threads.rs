//! Types that an embedder may share between threads, and the threads on which kernels run.

mod common;

use common::*;
use cqc_kernels::Isa;
use cqc_proto::Op;
use cqc_proto::op::{Act, ConvLayout};
use cqc_proto::plan::{InputRole, ProgramKind::Full};
use cqc_proto::sampler::{SamplerConfig, SamplerKind};
use cqc_runtime::denoise::{DenoiseError, Denoiser, Request, Trajectory};
use cqc_runtime::engine::{
    Backend, Engine, EngineError, EngineOptions, Executor, InFlight, Pool, Weights,
};
use cqc_runtime::sampler::Sampler;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn assert_send<T: Send>() {}
fn assert_shared<T: Send + Sync>() {}

#[test]
fn engines_move_between_threads_and_weights_are_shared() {
    assert_shared::<Weights>();
    assert_shared::<Pool>();
    assert_shared::<EngineOptions>();
    assert_shared::<Arc<dyn Backend>>();
    assert_shared::<Engine>();
    assert_shared::<InFlight>();
    assert_send::<Denoiser>();
    assert_send::<Trajectory>();
    assert_shared::<EngineError>();
    assert_shared::<DenoiseError>();
}

/// Runs jobs on `threads` threads of its own, and counts the jobs.
struct Scoped {
    threads: usize,
    jobs: AtomicUsize,
}

impl Executor for Scoped {
    fn threads(&self) -> usize {
        self.threads
    }

    fn run(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        assert!(jobs <= self.threads, "{jobs} jobs on {} threads", self.threads);
        self.jobs.fetch_add(jobs, Ordering::Relaxed);
        std::thread::scope(|scope| (0..jobs).for_each(|i| drop(scope.spawn(move || job(i)))));
    }
}

/// Runs jobs one after the other, or not at all.
struct Lazy {
    runs: bool,
}

impl Executor for Lazy {
    fn threads(&self) -> usize {
        3
    }

    fn run(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        (0..jobs).filter(|_| self.runs).for_each(job);
    }
}

/// A convolution, an attention and a linear layer between the sample and the output,
/// `[N, 8, 8, 32]`.
fn denoiser() -> Arc<Weights> {
    let mut b = Build::new(0);
    let sample = b.model_input("sample", InputRole::Sample, f32s("N,8,8,32"));
    let x = b.input(Full, sample);
    let conv = Op::Conv {
        strides: vec![1, 1],
        pads: vec![1; 4],
        dilations: vec![1, 1],
        groups: 1,
        layout: ConvLayout::ChannelsLast,
        upsample: 1,
        act: Act::Silu,
    };
    let filter = b.weight(Full, &[32, 32, 3, 3]);
    let y = b.full(conv, &[x, filter]);
    let tokens = b.full(Op::Reshape { shape: shape("N,64,32") }, &[y]);
    let attention = Op::Attention {
        heads: 4,
        kv_heads: 4,
        scale: 0.4,
        causal: false,
        softcap: 0.0,
        softmax_bits: 0,
    };
    let y = b.full(attention, &[tokens, tokens, tokens]);
    let w = b.weight(Full, &[32, 32]);
    let y = b.full(Op::Linear { act: Act::None }, &[y, w]);
    let y = b.full(Op::Reshape { shape: shape("N,8,8,32") }, &[y]);
    b.output("out", y);
    Weights::for_isa(b.plan.clone(), b.bytes(), Isa::detect().unwrap()).unwrap()
}

fn samples(weights: &Arc<Weights>, pool: Pool) -> Vec<f32> {
    let sampler = Sampler::new(&SamplerConfig::of_kind(SamplerKind::Ddim), 3).unwrap();
    let options =
        EngineOptions { batch: 2, pool: Some(Arc::new(pool)), ..EngineOptions::default() };
    let mut denoise = Denoiser::open(weights, sampler, false, &options).unwrap();
    let request = Request { samples: 3, seed: 5, ..Request::default() };
    denoise.sample(&request, &mut |_| ControlFlow::Continue(())).unwrap().to_f32_vec()
}

#[test]
fn samples_do_not_depend_on_whose_threads_run_the_kernels() {
    let weights = denoiser();
    let expected = samples(&weights, Pool::new(1));
    assert!(expected.iter().all(|v| v.is_finite()) && expected.iter().any(|v| *v != 0.0));
    for threads in [1, 2, 5] {
        let scoped = Arc::new(Scoped { threads, jobs: AtomicUsize::new(0) });
        assert!(
            samples(&weights, Pool::from_executor(scoped.clone())) == expected,
            "{threads} threads"
        );
        assert_eq!(
            scoped.jobs.load(Ordering::Relaxed) > 0,
            threads > 1,
            "one thread is the caller's"
        );
    }
    for runs in [true, false] {
        assert!(samples(&weights, Pool::from_executor(Arc::new(Lazy { runs }))) == expected);
    }
}

#[test]
fn engines_on_one_executor_run_side_by_side() {
    let weights = denoiser();
    let expected = samples(&weights, Pool::new(1));
    let scoped: Arc<Scoped> = Arc::new(Scoped { threads: 2, jobs: AtomicUsize::new(0) });
    let run = || samples(&weights, Pool::from_executor(scoped.clone()));
    let [a, b] =
        std::thread::scope(|scope| [scope.spawn(run), scope.spawn(run)].map(|t| t.join().unwrap()));
    assert!(a == expected && b == expected);
}

#[test]
fn a_panic_in_a_task_reaches_the_caller() {
    let pool = Pool::from_executor(Arc::new(Scoped { threads: 2, jobs: AtomicUsize::new(0) }));
    let run = || pool.run(8, &|task, _| assert_ne!(task, 5, "task five"));
    let payload = std::panic::catch_unwind(run).unwrap_err();
    assert!(payload.downcast_ref::<String>().unwrap().contains("task five"));
    let done = AtomicUsize::new(0);
    pool.run(8, &|_, worker| {
        done.fetch_add(1 + 100 * usize::from(worker >= 2), Ordering::Relaxed);
    });
    assert_eq!(done.into_inner(), 8);
}
