//! How a machine ended, and its last words.

use crate::machine::group::MemoryShortage;
use control::{ExitCause, ExitReport};
use std::fmt;

/// Most bytes of console tail that are kept and logged.
const MAX_TAIL: usize = control::MAX_CONSOLE_TAIL;

/// How a machine ended.
#[derive(Debug)]
pub struct MachineEnd {
    /// What the VM process said last, if it said anything.
    pub report: Option<ExitReport>,
    /// A request that it could not do, if it said so.
    pub failure: Option<String>,
    /// The memory that was not there for it.
    pub shortage: Option<MemoryShortage>,
    /// How the process ended: "exit status 0", "signal 9".
    pub status: String,
}

impl fmt::Display for MachineEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(shortage) = &self.shortage {
            return shortage.fmt(f);
        }
        match (&self.report, &self.failure) {
            (Some(report), _) => match &report.cause {
                ExitCause::Stopped => f.write_str("the machine was stopped"),
                ExitCause::GuestShutdown => f.write_str("the guest shut itself down"),
                ExitCause::GuestPanic => f.write_str("the guest kernel panicked"),
                ExitCause::AgentDied => f.write_str("the guest agent died"),
                ExitCause::TripleFault => {
                    f.write_str("the guest reset its processor (triple fault)")
                }
                ExitCause::KvmInternalError { suberror } => {
                    write!(
                        f,
                        "KVM could not go on with the guest (suberror {suberror})"
                    )
                }
                ExitCause::HostFault { message } => write!(f, "the VM process failed: {message}"),
            },
            (None, Some(failure)) => write!(f, "the VM process failed: {failure}"),
            (None, None) => write!(f, "the VM process ended without a report ({})", self.status),
        }
    }
}

impl MachineEnd {
    /// Logs the end of the guest's console, if there is any.
    pub fn log_console(&self, id: &str) {
        let console = self.console_tail();
        if !console.is_empty() {
            tracing::warn!(sandbox_id = id, console, "end of the guest's console");
        }
    }

    /// The end of the guest's console, made printable; empty if there is none.
    #[must_use]
    pub fn console_tail(&self) -> String {
        let tail = self
            .report
            .as_ref()
            .map_or(&[][..], |report| &report.console_tail);
        let tail = &tail[tail.len().saturating_sub(MAX_TAIL)..];
        let printable = |c: char| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        };
        String::from_utf8_lossy(tail)
            .replace('\r', "")
            .chars()
            .map(printable)
            .collect()
    }
}
