//! Limits of a process, and its privileges.

use crate::error::JailError;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

fn system(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> JailError {
    move |source| JailError::System {
        what,
        source: source.into(),
    }
}

/// Gives up the right to gain privileges, to be traced by processes of the same user, and to leave
/// a core dump with the guest's secrets in it.
///
/// # Errors
/// [`JailError::System`].
pub fn seal() -> Result<(), JailError> {
    rustix::thread::set_no_new_privs(true).map_err(system("give up new privileges"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(system("forbid core dumps"))?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(system("forbid core dumps"))
}

/// Bounds on what a process may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Highest descriptor plus one.
    pub descriptors: u64,
}

/// Bounds the size of each file that the process writes or lengthens, for ever; what goes beyond
/// ends it (`SIGXFSZ`).
///
/// # Errors
/// [`JailError::System`].
pub fn limit_file_size(bytes: u64) -> Result<(), JailError> {
    let limit = Rlimit {
        current: Some(bytes),
        maximum: Some(bytes),
    };
    setrlimit(Resource::Fsize, limit).map_err(system("limit the size of files"))
}

impl Limits {
    /// Applies them to the whole process, for ever.
    ///
    /// # Errors
    /// [`JailError::System`].
    pub fn apply(self) -> Result<(), JailError> {
        let limit = Rlimit {
            current: Some(self.descriptors),
            maximum: Some(self.descriptors),
        };
        setrlimit(Resource::Nofile, limit).map_err(system("limit descriptors"))
    }
}
