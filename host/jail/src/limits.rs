//! Limits of a process, and its privileges.

use crate::error::JailError;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

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
    /// Bytes of private memory that can be written, program and stack among them. `None`: as many
    /// as the process had.
    pub memory: Option<u64>,
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
    /// Applies them to the whole process, for ever. What is limited to less already stays so.
    ///
    /// # Errors
    /// [`JailError::System`].
    pub fn apply(self) -> Result<(), JailError> {
        let lower = |resource, most: u64| {
            let most = getrlimit(resource)
                .maximum
                .map_or(most, |now| now.min(most));
            let limit = Rlimit {
                current: Some(most),
                maximum: Some(most),
            };
            setrlimit(resource, limit)
        };
        if let Some(memory) = self.memory {
            lower(Resource::Data, memory).map_err(system("limit memory"))?;
        }
        lower(Resource::Nofile, self.descriptors).map_err(system("limit descriptors"))
    }
}
