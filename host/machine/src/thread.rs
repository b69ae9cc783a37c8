//! The thread that runs one vCPU.
//!
//! ```text
//!            run()                 an end (triple fault, …)
//!   Parked ---------> Running ------------------------------> Finished
//!     ^                 |                                        ^
//!     +---- park() -----+----------------- finish() -------------+
//! ```
//!
//! The thread looks at what is wanted before each entry; a signal takes it out of the guest. The
//! signal may fall between the look and the entry and be lost, so whoever wants something sends
//! it until the thread answers.
//!
//! While parked, the thread lets go of the vCPU, and its owner may look at it and change it
//! ([`VcpuThread::with_parked`]). Running takes no lock: the thread holds the vCPU throughout.

use crate::bus::Bus;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::kvm_stats::ExitCount;
use crate::vcpu::Vcpu;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// How long to wait for a vCPU to answer before signalling again.
const KICK_AGAIN: Duration = Duration::from_millis(1);

/// What a vCPU thread has done, readable at any time.
#[derive(Debug, Default)]
pub struct VcpuCounters {
    /// Returns from `KVM_RUN`.
    pub returns: AtomicU64,
    /// Of these, port and memory-mapped accesses.
    pub io: AtomicU64,
    /// `CLOCK_MONOTONIC` nanoseconds when it first entered the guest; 0 before.
    pub first_run_ns: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Parked,
    Running,
    Finished,
}

#[derive(Debug)]
struct Shared {
    /// Wanted, actual.
    state: Mutex<(State, State)>,
    changed: Condvar,
    /// Set when the running thread should look at `state`.
    look: AtomicBool,
    counters: VcpuCounters,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (State, State)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says where the thread is, and waits until something else is wanted.
    fn arrive(&self, actual: State) -> State {
        let mut state = self.lock();
        state.1 = actual;
        self.changed.notify_all();
        while state.0 == State::Parked {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let wanted = state.0;
        state.1 = wanted;
        self.look.store(false, Ordering::Release);
        drop(state);
        self.changed.notify_all();
        wanted
    }
}

/// What a vCPU thread is given.
#[derive(Debug)]
pub struct Wiring {
    /// Port accesses.
    pub ports: Arc<Bus>,
    /// Memory-mapped accesses.
    pub memory: Arc<Bus>,
}

/// A vCPU and its thread.
#[derive(Debug)]
pub struct VcpuThread {
    shared: Arc<Shared>,
    /// Gone when the thread has ended.
    vcpu: Weak<Mutex<Vcpu>>,
    thread: Option<JoinHandle<()>>,
    exits: Option<ExitCount>,
    index: u8,
}

impl VcpuThread {
    /// Starts the thread, parked.
    ///
    /// `ended` hears why the guest
    /// could not continue; then the thread is finished.
    ///
    /// # Errors
    /// [`Error::Thread`] when no thread or signal handler can be had.
    pub fn spawn(
        vcpu: Vcpu,
        wiring: Wiring,
        ended: impl FnOnce(u8, Exit) + Send + 'static,
    ) -> Result<Self> {
        let index = vcpu.index();
        let fail = |what| {
            move |source| Error::Thread {
                index,
                what,
                source,
            }
        };
        register_signal_handler(kick_signal(), on_kick)
            .map_err(|e| fail("installing the signal handler")(e.into()))?;
        let shared = Arc::new(Shared {
            state: Mutex::new((State::Parked, State::Parked)),
            changed: Condvar::new(),
            look: AtomicBool::new(false),
            counters: VcpuCounters::default(),
        });
        let exits = ExitCount::open(&vcpu.fd).ok();
        let theirs = Arc::clone(&shared);
        let vcpu = Arc::new(Mutex::new(vcpu));
        let ours = Arc::downgrade(&vcpu);
        let body = move || {
            // With its first entry KVM makes a thread of its own for the machine: no claim shall
            // wait for that. What fails here fails again when the guest is let go.
            let _ = hold(&vcpu).settle(&wiring.ports, &wiring.memory);
            let exit = match theirs.arrive(State::Parked) {
                State::Finished => None,
                _ => run(&vcpu, &wiring, &theirs),
            };
            if let Some(exit) = exit {
                ended(index, exit);
            }
            let mut state = theirs.lock();
            *state = (State::Finished, State::Finished);
            theirs.changed.notify_all();
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(128 * 1024)
            .spawn(body)
            .map_err(fail("starting it"))?;
        Ok(Self {
            shared,
            vcpu: ours,
            thread: Some(thread),
            exits,
            index,
        })
    }

    /// Its counters.
    #[must_use]
    pub fn counters(&self) -> &VcpuCounters {
        &self.shared.counters
    }

    /// Exits from the guest, most of which the kernel handles by itself. Where KVM does not count
    /// them (before Linux 5.14), those that reached us.
    #[must_use]
    pub fn exits(&self) -> u64 {
        let counted = self.exits.as_ref().and_then(|e| e.get().ok());
        counted.unwrap_or_else(|| self.shared.counters.returns.load(Ordering::Relaxed))
    }

    /// Lets the guest run. Does nothing to a finished vCPU.
    pub fn run(&self) {
        self.want(State::Running);
    }

    /// Brings the vCPU out of the guest and waits until it is paused with whole registers.
    ///
    /// # Errors
    /// [`Error::Thread`] if it does not answer within `limit`.
    pub fn park(&self, limit: Duration) -> Result<()> {
        self.want(State::Parked);
        self.kick_until(limit, |actual| actual != State::Running)
    }

    /// Looks at the parked vCPU, or changes it: to save it, to load it. It cannot be started while
    /// `work` runs; `work` must not call this thread's own methods, which would wait for its end.
    ///
    /// # Errors
    /// [`Error::NotParked`] when it runs, was asked to, or has ended.
    pub fn with_parked<T>(&self, work: impl FnOnce(&Vcpu) -> T) -> Result<T> {
        // The thread needs this lock to leave its place, so that it cannot want the vCPU now.
        let state = self.shared.lock();
        let vcpu = match *state {
            (State::Parked, State::Parked) => self.vcpu.upgrade(),
            _ => None,
        };
        let vcpu = vcpu.ok_or(Error::NotParked { index: self.index })?;
        Ok(work(&hold(&vcpu)))
    }

    /// Ends the thread and the vCPU.
    ///
    /// # Errors
    /// [`Error::Thread`] if it does not answer within `limit`; it is then left behind.
    pub fn finish(&mut self, limit: Duration) -> Result<()> {
        self.want(State::Finished);
        self.kick_until(limit, |actual| actual == State::Finished)?;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        Ok(())
    }

    fn want(&self, wanted: State) {
        let mut state = self.shared.lock();
        if state.0 != State::Finished {
            state.0 = wanted;
        }
        self.shared.look.store(true, Ordering::Release);
        // Who is woken finds the lock free.
        drop(state);
        self.shared.changed.notify_all();
    }

    fn kick_until(&self, limit: Duration, done: impl Fn(State) -> bool) -> Result<()> {
        let end = Instant::now() + limit;
        let mut state = self.shared.lock();
        while !done(state.1) {
            if Instant::now() >= end {
                return Err(self.late());
            }
            if let Some(thread) = self.thread.as_ref().filter(|t| !t.is_finished()) {
                let _ = thread.kill(kick_signal());
            }
            let waited = self.shared.changed.wait_timeout(state, KICK_AGAIN);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    fn late(&self) -> Error {
        let source = std::io::ErrorKind::TimedOut.into();
        Error::Thread {
            index: self.index,
            what: "bringing it out of the guest",
            source,
        }
    }
}

/// The signal that takes a vCPU thread out of the guest.
fn kick_signal() -> i32 {
    SIGRTMIN()
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn hold(vcpu: &Mutex<Vcpu>) -> MutexGuard<'_, Vcpu> {
    vcpu.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until finished (`None`) or until the guest cannot continue.
fn run(vcpu: &Mutex<Vcpu>, wiring: &Wiring, shared: &Shared) -> Option<Exit> {
    shared
        .counters
        .first_run_ns
        .store(monotonic_ns(), Ordering::Relaxed);
    let mut held = hold(vcpu);
    loop {
        if shared.look.load(Ordering::Acquire) {
            if let Err(end) = held.settle(&wiring.ports, &wiring.memory) {
                return Some(end);
            }
            drop(held);
            if shared.arrive(State::Parked) == State::Finished {
                return None;
            }
            held = hold(vcpu);
        }
        let exit = held.run_once(&wiring.ports, &wiring.memory);
        shared.counters.returns.fetch_add(1, Ordering::Relaxed);
        match exit {
            Exit::Io => {
                shared.counters.io.fetch_add(1, Ordering::Relaxed);
            }
            Exit::Interrupted => {}
            end => return Some(end),
        }
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let nanoseconds = now
        .tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec);
    u64::try_from(nanoseconds).unwrap_or(0)
}
