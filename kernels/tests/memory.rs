//! The arena, the pool and mapped files.

use cqc_kernels::arena::*;
use cqc_kernels::*;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn an_arena_is_aligned_and_zero() {
    // from the allocator, and pages of its own
    for len in [0, 1000, (4 << 20) + 1000] {
        let mut arena = Arena::new(len);
        let all = Span::new(0, len);
        let bytes: &mut [u8] = arena.get_mut(all).unwrap();
        assert_eq!(bytes.as_ptr().addr() % ALIGN, 0);
        assert!(bytes.iter().all(|&byte| byte == 0));
        bytes.fill(7);
        let copy = arena.clone();
        drop(arena);
        assert!(copy.get::<u8>(all).unwrap().iter().all(|&byte| byte == 7));
        assert!(copy.get::<u8>(Span::new(0, len + 1)).is_err());
    }
}

#[test]
fn views_of_one_step_may_be_read_together_but_not_written_over() {
    let mut arena = Arena::new(256);
    let (x, y) = (Span::new(0, 64), Span::new(64, 64));
    arena.get_mut::<f32>(x).unwrap().fill(2.0);
    let (reads, [out]) = arena.split([y]).unwrap();
    let (a, b): (&[f32], &[f32]) = (reads.get(x).unwrap(), reads.get(Span::new(32, 32)).unwrap());
    cast_mut::<f32>(out)[..8].copy_from_slice(b);
    assert_eq!((a[0], cast::<f32>(out)[0]), (2.0, 2.0));
    let touching = Span::new(60, 8);
    assert_eq!(reads.get::<u8>(touching), Err(ArenaError::Overlap { written: y, other: touching }));
}

#[test]
fn two_written_spans_must_not_meet() {
    let mut arena = Arena::new(256);
    let (a, b) = (Span::new(0, 65), Span::new(64, 64));
    assert_eq!(arena.split([a, b]).err(), Some(ArenaError::Overlap { written: b, other: a }));
    assert!(arena.split([Span::new(0, 64), b]).is_ok());
}

#[test]
fn spans_outside_or_between_values_are_errors() {
    let arena = Arena::new(64);
    for span in [Span::new(60, 8), Span::new(usize::MAX, 8), Span::new(65, 0)] {
        assert_eq!(arena.get::<u8>(span), Err(ArenaError::OutOfBounds { span, len: 64 }));
    }
    let span = Span::new(4, 8);
    assert_eq!(arena.get::<i64>(span), Err(ArenaError::Misaligned { span, size: 8 }));
    assert_eq!(arena.get::<f32>(span).unwrap().len(), 2);
}

#[test]
fn every_task_runs_once_and_worker_indices_are_in_range() {
    for threads in [0, 1, 2, 5] {
        let pool = Pool::new(threads);
        for tasks in [0, 1, 2, 7, 1000] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, &|task, worker| {
                assert!(worker < pool.threads());
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }
}

#[test]
fn a_pool_serves_many_short_jobs_from_several_threads() {
    let (pool, total) = (Pool::new(3), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    pool.run(3, &|_, _| {
                        total.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(total.into_inner(), 18_000);
}

#[test]
fn a_job_within_a_task_runs() {
    let (pool, total) = (Pool::new(3), AtomicUsize::new(0));
    pool.run(4, &|_, _| {
        pool.run(5, &|_, _| {
            total.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(total.into_inner(), 20);
}

#[test]
fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
    let pool = Pool::new(2);
    for _ in 0..20 {
        let outcome = std::panic::catch_unwind(|| {
            pool.run(50, &|task, _| assert_ne!(task, 13, "task thirteen"))
        });
        let payload = outcome.expect_err("task 13 panics");
        assert!(
            payload.downcast_ref::<String>().is_some_and(|text| text.contains("task thirteen"))
        );
    }
    pool.run(4, &|_, _| {});
}

#[test]
fn a_mapped_file_has_the_bytes_of_the_file() {
    let path = std::env::temp_dir().join(format!("cqc-mapped-{}", std::process::id()));
    for content in [&b""[..], b"weights"] {
        std::fs::write(&path, content).unwrap();
        assert_eq!(map_file(&path).unwrap().as_ref(), content);
    }
    std::fs::remove_file(&path).unwrap();
    assert!(map_file(&path).is_err());
}

#[test]
fn an_unavailable_isa_is_not_detected() {
    assert!(Isa::available().contains(&Isa::Portable));
    assert!(Isa::detect().unwrap().is_available());
}
