//! The table of sandboxes and the only owner of their lives: one verb a file.
//!
//! ```text
//! Creating ──> Running ──> Gone        and between Running and Running: Busy, Paused, Resuming
//!     └──(dropped, failed)──^          (`transitions` has all of it as one table)
//! ```
//!
//! A sandbox leaves the table first, then its connections are cut, then its machine is stopped; the
//! slot it counts for is given back only when its process is reaped, so that `max_sandboxes` bounds
//! what really exists. Machines that wait for a sandbox ([`crate::pool`]) count as well.
//!
//! | verb | file | what it calls |
//! |---|---|---|
//! | create | `new_sandbox`, `create` | `limits`, `reserve`, `load`, `bring_up` (`claim`), `take_identity`, `running` |
//! | create many | `batch` | `reserve` |
//! | pause, connect, kill | `pause`, `connect`, `kill` | `capture`; `load`, `bring_up`; `table` |
//! | traffic | `enter` | `connect` |
//! | fork, snapshot, checkpoint | `fork`, `snapshot`, `checkpoint` | `capture` |
//! | reset | `reset` | `in_place`, else `bring_up` |
//! | at the deadline, at the machine's end | `lifecycle` | `pause`, `kill` |

mod batch;
mod bring_up;
mod capture;
mod checkpoint;
mod claim;
mod connect;
mod counted;
mod create;
mod enter;
mod entry;
mod fork;
mod in_place;
mod kill;
mod lifecycle;
mod limits;
mod load;
mod new_sandbox;
mod pause;
mod recover;
mod reserve;
mod reset;
mod running;
mod sandboxes;
mod snapshot;
mod table;
mod take_identity;
mod templates;
mod transitions;
mod unreadable;
mod view;

pub use enter::Entrance;
pub use fork::CaptureTimings;
pub use new_sandbox::{
    AskedIngress, AskedSandbox, CreationSource, MAX_VARIABLE_BYTES, MAX_VARIABLES, NewSandbox,
};
pub use reserve::SandboxReservation;
pub use sandboxes::{EndReason, SandboxRegistry};
pub use view::SandboxView;
