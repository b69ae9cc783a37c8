//! The processes of a sandbox that clients started: who listens, who feeds, how each ended.
//!
//! ```text
//! start, attach ─> pump (one task a process) ──notices──> listeners (bounded, slow ones cut off)
//!                    │ owns the process's stream             └─> a protocol's encoder
//!                    └─ the table: found by pid or tag, remembered for a while after the end
//! ```
//!
//! Nothing here knows in which protocol clients speak.

mod context;
mod guest_process;
mod listener;
mod notice;
mod pump;
mod record;
mod table;

pub use context::{GuestContext, settle};
pub use guest_process::{GuestProcess, ProcessFeed};
pub use notice::{ProcessError, ProcessNotice};
pub use record::{ProcessRecord, ProcessRecordV1, ProcessSpec};
pub use table::{ProcessSelector, ProcessSummary, ProcessTable};
