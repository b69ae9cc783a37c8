//! Why the machine ends: the first reason wins, and wakes the event loop.

use control::ExitCause;
use machine::Exit;
use std::sync::{Mutex, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// What ended the machine, before the console was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndReason {
    /// The service asked, or is gone.
    Stopped,
    /// The guest used the reset port.
    Reset,
    /// A vCPU could not run any further.
    Vcpu { index: u8, exit: Exit },
    /// Something of ours failed.
    Host(String),
}

/// Shared by everything that can end the machine.
#[derive(Debug)]
pub(crate) struct MachineEnding {
    reason: Mutex<Option<EndReason>>,
    wake: EventFd,
}

impl MachineEnding {
    pub(crate) fn new() -> std::io::Result<Self> {
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self {
            reason: Mutex::default(),
            wake,
        })
    }

    /// Notes a reason unless there is one, and wakes the event loop.
    pub(crate) fn report(&self, reason: EndReason) {
        let mut first = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(reason);
        // Full means it is already readable.
        let _ = self.wake.write(1);
    }

    /// Becomes readable when there is a reason.
    pub(crate) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// The reason, once there is one.
    pub(crate) fn reason(&self) -> Option<EndReason> {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// What is reported to the service. The console's end distinguishes a panic from an orderly end:
/// the guest writes both through the same port, and is believed only about itself.
pub(crate) fn classify(reason: &EndReason, console_tail: &[u8]) -> ExitCause {
    match reason {
        EndReason::Stopped => ExitCause::Stopped,
        EndReason::Reset => by_console(console_tail),
        EndReason::Vcpu {
            exit: Exit::Shutdown,
            ..
        } => ExitCause::TripleFault,
        EndReason::Vcpu {
            exit: Exit::InternalError { suberror, .. },
            ..
        } => ExitCause::KvmInternalError {
            suberror: *suberror,
        },
        EndReason::Vcpu { index, exit } => ExitCause::HostFault {
            message: format!("vCPU {index} cannot run any further: {exit:?}"),
        },
        EndReason::Host(message) => ExitCause::HostFault {
            message: message.clone(),
        },
    }
}

fn by_console(tail: &[u8]) -> ExitCause {
    let says = |text: &[u8]| tail.windows(text.len()).any(|w| w == text);
    if says(b"Attempted to kill init") {
        ExitCause::AgentDied
    } else if says(b"Kernel panic - not syncing") {
        ExitCause::GuestPanic
    } else {
        ExitCause::GuestShutdown
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_first_reason_wins() {
        let ending = MachineEnding::new().unwrap();
        assert_eq!(ending.reason(), None);
        ending.report(EndReason::Reset);
        ending.report(EndReason::Stopped);
        assert_eq!(ending.reason(), Some(EndReason::Reset));
        assert_eq!(ending.wake().read().unwrap(), 2);
    }

    #[test]
    fn ends_are_told_apart() {
        let reset = |tail: &str| classify(&EndReason::Reset, tail.as_bytes());
        let panic = "[1.0] Kernel panic - not syncing: ";
        assert_eq!(reset("reboot: Restarting system"), ExitCause::GuestShutdown);
        assert_eq!(
            reset(&format!("{panic}Fatal exception")),
            ExitCause::GuestPanic
        );
        let init = format!("{panic}Attempted to kill init! exitcode=0x0000000b");
        assert_eq!(reset(&init), ExitCause::AgentDied);
        let vcpu = |exit| classify(&EndReason::Vcpu { index: 0, exit }, panic.as_bytes());
        assert_eq!(vcpu(Exit::Shutdown), ExitCause::TripleFault);
        assert_eq!(
            vcpu(Exit::InternalError {
                suberror: 1,
                rip: 0
            }),
            ExitCause::KvmInternalError { suberror: 1 }
        );
        assert!(matches!(
            vcpu(Exit::Failed(14)),
            ExitCause::HostFault { .. }
        ));
    }
}
