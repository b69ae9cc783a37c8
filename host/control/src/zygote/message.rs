//! What the service and a zygote say to each other.

use crate::walls::MissingWall;
use serde::{Deserialize, Serialize};

/// The argument that makes a VM program a zygote.
pub const ZYGOTE_ARGUMENT: &str = "zygote";

/// From the service to a zygote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    /// Make a VM process. Descriptors come along: its end of the control socket, its standard
    /// error, and the control group to be born in if there is one. Answered by [`Event::Spawned`]
    /// or [`Event::Failed`].
    Spawn {
        /// Whether a control group comes along.
        group: bool,
    },
}

/// From a zygote to the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Event {
    /// It is ready.
    Ready {
        /// The walls that cannot be had here; empty if all stand.
        missing: Vec<MissingWall>,
    },
    /// A VM process is there, as a child of the service; its own first word.
    Spawned {
        /// Its number.
        pid: i32,
    },
    /// None could be made.
    Failed {
        /// Why.
        message: String,
    },
}
