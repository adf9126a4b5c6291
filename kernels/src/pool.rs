//! A small fixed thread pool: one job at a time. Every thread begins with tasks of its own, the
//! same share of every job, and then takes over what others have left: neighbouring tasks of one
//! job after the other work on the same memory, which is then in the right core's cache.
//!
//! Workers spin for a short while after a job, because the next layer usually comes at once, and
//! then park.

use crate::shared::cut;
use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread without work spins before it parks.
const SPIN: Duration = Duration::from_micros(80);

/// The borrowed closure of a job, its lifetime removed; see [`Pool::run`] for why that is sound.
type TaskFn = &'static (dyn Fn(usize, usize) + Sync);

thread_local! {
    /// Set while this thread runs a task: a job inside a job runs on its own thread alone.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// Threads of a caller's own, such as those of a work-stealing pool: see [`Pool::from_executor`].
///
/// ```
/// struct Scoped(usize);
///
/// impl cqc_kernels::Executor for Scoped {
///     fn threads(&self) -> usize {
///         self.0
///     }
///
///     fn run(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
///         std::thread::scope(|scope| (0..jobs).for_each(|i| drop(scope.spawn(move || job(i)))));
///     }
/// }
/// ```
pub trait Executor: Send + Sync {
    /// How many jobs may run at once, at least 1; asked once, when a pool is made of it.
    fn threads(&self) -> usize;

    /// Calls `job(i)` for every `i` below `jobs`, at most [`Executor::threads`], and returns when
    /// all are done. They may run at once, one after the other, and on the calling thread. A job
    /// does not panic and does not wait for another one.
    fn run(&self, jobs: usize, job: &(dyn Fn(usize) + Sync));
}

/// A fixed number of threads that run the tasks of one job at a time; the calling thread is one of
/// them.
///
/// Which thread runs a task is not fixed. Kernels never split a sum across tasks, so results do not
/// depend on the number of threads, nor on whose they are.
pub struct Pool(Threads);

enum Threads {
    Own(OwnThreads),
    Foreign { executor: Arc<dyn Executor>, threads: usize },
}

struct OwnThreads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose job runs.
    turn: Mutex<()>,
}

// A panic in a task leaves the pool as it was before the job.
impl UnwindSafe for Pool {}
impl RefUnwindSafe for Pool {}

struct Shared {
    job: Mutex<Job>,
    wake: Condvar,
    /// Copy of `Job::number`, to spin on.
    number: AtomicUsize,
    /// The next task of every thread's share.
    next: Box<[NextTask]>,
    /// Workers inside the present job; raised only under the lock of `job`.
    busy: AtomicUsize,
    panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A counter with a cache line, and the one that is fetched with it, of its own.
#[repr(align(128))]
#[derive(Default)]
struct NextTask(AtomicUsize);

struct Job {
    number: usize,
    tasks: usize,
    /// None once the caller has seen the last task taken: late workers need not come in.
    task: Option<TaskFn>,
    /// Workers asleep on `wake`.
    parked: usize,
    quit: bool,
}

impl Pool {
    /// A pool of `threads` threads, the caller counted; 0 counts as 1.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            job: Mutex::new(Job { number: 0, tasks: 0, task: None, parked: 0, quit: false }),
            wake: Condvar::new(),
            number: AtomicUsize::new(0),
            next: (0..threads.max(1)).map(|_| NextTask::default()).collect(),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let workers = (1..threads.max(1)).map(|index| spawn(&shared, index)).collect();
        Pool(Threads::Own(OwnThreads { shared, workers, turn: Mutex::new(()) }))
    }

    /// A pool that runs its jobs on a caller's threads. Several callers may run jobs at once.
    pub fn from_executor(executor: Arc<dyn Executor>) -> Pool {
        let threads = executor.threads().max(1);
        Pool(Threads::Foreign { executor, threads })
    }

    /// Threads, the caller counted; worker indices lie below this.
    pub fn threads(&self) -> usize {
        match &self.0 {
            Threads::Own(own) => own.workers.len() + 1,
            Threads::Foreign { threads, .. } => *threads,
        }
    }

    /// Calls `task(task_index, worker_index)` for every index below `tasks` and returns when all
    /// are done.
    ///
    /// Called from within a task, it runs all of them on the present thread, as worker 0.
    ///
    /// # Panics
    /// When a task panics, with that task's payload, after the other threads have stopped.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        if tasks <= 1 || self.threads() == 1 || IN_TASK.get() {
            return (0..tasks).for_each(|index| task(index, 0));
        }
        match &self.0 {
            Threads::Own(own) => own.run(tasks, task),
            Threads::Foreign { executor, threads } => run_on(&**executor, *threads, tasks, task),
        }
    }
}

impl OwnThreads {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        let turn = lock(&self.turn);
        // SAFETY: a worker uses the reference only between raising and lowering `busy`, and raises
        // it only while `Job::task` is there. This function returns after taking that away and then
        // seeing `busy` at 0.
        let task = unsafe { std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), TaskFn>(task) };
        self.publish(tasks, task);
        self.shared.work(task, tasks, 0);
        lock(&self.shared.job).task = None;
        wait_until(|| self.shared.busy.load(Ordering::Acquire) == 0);
        let payload = lock(&self.shared.panic).take();
        drop(turn);
        if let Some(payload) = payload {
            resume_unwind(payload);
        }
    }

    fn publish(&self, tasks: usize, task: TaskFn) {
        let shared = &*self.shared;
        let mut job = lock(&shared.job);
        for (owner, next) in shared.next.iter().enumerate() {
            next.0.store(shared.share(tasks, owner).start, Ordering::Relaxed);
        }
        shared.panicked.store(false, Ordering::Relaxed);
        job.number += 1;
        job.tasks = tasks;
        job.task = Some(task);
        shared.number.store(job.number, Ordering::Release);
        if job.parked > 0 {
            shared.wake.notify_all();
        }
    }
}

/// Runs tasks on a caller's threads. All that it needs lies on the stack, so that a thread which
/// waits for its jobs may take up other work that ends here again.
fn run_on(executor: &dyn Executor, threads: usize, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
    let (next, entered, panic) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(None));
    let work = |_: usize| {
        // whatever the executor does, no two calls get the same worker's index
        let worker = entered.fetch_add(1, Ordering::Relaxed);
        if worker >= threads {
            return;
        }
        let outer = IN_TASK.replace(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= tasks {
                    break;
                }
                task(index, worker);
            }
        }));
        IN_TASK.set(outer);
        if let Err(payload) = outcome {
            next.store(tasks, Ordering::Relaxed);
            lock(&panic).get_or_insert(payload);
        }
    };
    executor.run(threads.min(tasks), &work);
    // what an executor left out that ran no job
    work(0);
    let payload = lock(&panic).take();
    if let Some(payload) = payload {
        resume_unwind(payload);
    }
}

impl Drop for OwnThreads {
    fn drop(&mut self) {
        {
            let mut job = lock(&self.shared.job);
            job.quit = true;
            job.number += 1;
            self.shared.number.store(job.number, Ordering::Release);
        }
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so it cannot have died of one.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Shared {
    /// The tasks that a thread begins with.
    fn share(&self, tasks: usize, owner: usize) -> Range<usize> {
        cut(tasks, self.next.len(), 1, owner)
    }

    /// Takes tasks until none is left or one has panicked.
    fn work(&self, task: TaskFn, tasks: usize, worker: usize) {
        IN_TASK.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let threads = self.next.len();
            for owner in (0..threads).map(|i| (worker + i) % threads) {
                let end = self.share(tasks, owner).end;
                loop {
                    let index = self.next[owner].0.fetch_add(1, Ordering::Relaxed);
                    if index >= end || self.panicked.load(Ordering::Relaxed) {
                        break;
                    }
                    task(index, worker);
                }
            }
        }));
        IN_TASK.set(false);
        if let Err(payload) = outcome {
            self.panicked.store(true, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }

    /// Waits for a job newer than `seen` and enters it; nothing when the pool is dropped.
    fn enter_job(&self, mut seen: usize) -> Option<Entered> {
        loop {
            let start = Instant::now();
            while self.number.load(Ordering::Acquire) == seen && start.elapsed() < SPIN {
                spin_briefly();
            }
            let mut job = lock(&self.job);
            while job.number == seen {
                job.parked += 1;
                job = self.wake.wait(job).unwrap_or_else(PoisonError::into_inner);
                job.parked -= 1;
            }
            if job.quit {
                return None;
            }
            seen = job.number;
            if let Some(task) = job.task {
                self.busy.fetch_add(1, Ordering::Relaxed);
                return Some(Entered { number: seen, tasks: job.tasks, task });
            }
        }
    }
}

/// A job that a worker has entered: it is counted in `Shared::busy`.
struct Entered {
    number: usize,
    tasks: usize,
    task: TaskFn,
}

fn spawn(shared: &Arc<Shared>, index: usize) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    let body = move || {
        let mut seen = 0;
        while let Some(job) = shared.enter_job(seen) {
            seen = job.number;
            shared.work(job.task, job.tasks, index);
            shared.busy.fetch_sub(1, Ordering::Release);
        }
    };
    std::thread::Builder::new().name(format!("cqc-{index}")).spawn(body).expect("the system can start a thread")
}

/// Spins, and yields the core now and then where it takes longer: the other threads may need it.
fn wait_until(done: impl Fn() -> bool) {
    let mut rounds = 0u32;
    while !done() {
        rounds += 1;
        if rounds.is_multiple_of(256) {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}

fn spin_briefly() {
    for _ in 0..16 {
        std::hint::spin_loop();
    }
}

/// No state is left half-changed by a panic, so a poisoned lock is as good as another.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
