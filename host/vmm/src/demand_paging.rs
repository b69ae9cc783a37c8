//! Demand-paged memory: a pager fills it, and a thread of ours notices when the pager is gone.
//!
//! Whoever touches a page that has not come waits in the kernel: a vCPU, the event loop, or the
//! main thread while it builds the machine. So the pager's end is noticed by a thread that touches
//! no guest memory and needs nobody else: it gives the machine a second to end in order, then says
//! itself why it ends, and ends the process. The descriptor of the userfaultfd stays open until
//! then, so that no missing page ever reads as zeros.
//!
//! A thread of the kernel's may wait for a page too, on behalf of a vCPU that it has put to sleep
//! meanwhile (asynchronous page faults). No signal ends that wait, but the end of the userfaultfd
//! does; and KVM takes no machine down before it is over. So the userfaultfd has to go first, in
//! whatever order the kernel closes what a process leaves behind. While the thread waits it keeps
//! the process's memory, so a mapping of a vCPU keeps the machine ([`Vcpu::keep`]).

use crate::ending::{EndReason, MachineEnding, classify};
use crate::error::{AssembleError, chain};
use crate::log::SandboxLog;
use control::{Event, ExitReport, VmStats};
use machine::{Vcpu, Vm};
use snapshot_memory::pager::{LazyMemory, PagingEnd};
use snapshot_memory::{PageRange, Pagemap};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// How long a machine without its pager may take to end in order.
const GRACE: Duration = Duration::from_secs(1);

/// How to end the machine.
#[derive(Clone, Copy)]
pub(crate) struct PagerWatch<'a> {
    /// The service's socket.
    control: BorrowedFd<'a>,
    ending: &'a Arc<MachineEnding>,
    log: &'a SandboxLog,
}

impl<'a> PagerWatch<'a> {
    pub(crate) fn new(
        control: BorrowedFd<'a>,
        ending: &'a Arc<MachineEnding>,
        log: &'a SandboxLog,
    ) -> Self {
        Self {
            control,
            ending,
            log,
        }
    }
}

/// The thread's own.
struct PagerFollower {
    control: OwnedFd,
    ending: Arc<MachineEnding>,
    log: SandboxLog,
}

/// Gives the machine's memory, which nobody has touched yet, as `pagemap` tells, to the pager.
/// `working_set` is what the machine is known to use.
pub(crate) fn start(
    sockets: (OwnedFd, OwnedFd),
    (vm, processors): (&Vm, &[Vcpu]),
    (working_set, pagemap): (&[PageRange], &Pagemap),
    watch: PagerWatch<'_>,
) -> Result<(), AssembleError> {
    let control = watch.control.try_clone_to_owned();
    let follower = PagerFollower {
        control: control.map_err(AssembleError::PagerWatch)?,
        ending: Arc::clone(watch.ending),
        log: watch.log.clone(),
    };
    for vcpu in processors {
        vcpu.keep()?;
    }
    let parts = vm.memory().host_ranges();
    let lazy = LazyMemory::begin(sockets, &parts, working_set, pagemap)?;
    let thread = std::thread::Builder::new().name("pager watch".into());
    let thread = thread.spawn(move || follow(lazy, &follower));
    thread.map(drop).map_err(AssembleError::PagerWatch)
}

/// Runs as long as the process does: when it goes, so does the descriptor that guards the memory.
fn follow(mut lazy: LazyMemory, watch: &PagerFollower) {
    let followed = match lazy.wait() {
        PagingEnd::Failed(why) => {
            format!("the pager of this machine's memory failed: {why}")
        }
        PagingEnd::Done => {
            watch.log.line("debug", "all memory is loaded");
            match lazy.serve_discards() {
                Ok(()) => return,
                Err(error) => chain(&error),
            }
        }
    };
    end(watch, followed);
}

/// Ends the process, whatever its other threads wait for.
#[expect(
    clippy::disallowed_methods,
    reason = "no other thread may be able to end it"
)]
fn end(watch: &PagerFollower, why: String) {
    watch.log.line("error", &why);
    let reason = EndReason::Host(why);
    watch.ending.report(reason.clone());
    std::thread::sleep(GRACE);
    // Whoever could have said it is stuck, so nobody says it twice.
    let report = Event::Exited(ExitReport {
        cause: classify(&watch.ending.reason().unwrap_or(reason), &[]),
        console_tail: Vec::new(),
        stats: VmStats::default(),
    });
    let _ = control::send(&watch.control, &report, &[]);
    std::process::exit(1);
}
