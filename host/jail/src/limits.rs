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

/// Limits a resource for ever. What is limited to less already stays so: who has given up its
/// rights could not raise it.
fn lower(resource: Resource, most: u64, what: &'static str) -> Result<(), JailError> {
    let most = getrlimit(resource)
        .maximum
        .map_or(most, |now| now.min(most));
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(resource, limit).map_err(system(what))
}

/// Bounds the size of each file that the process writes or lengthens, for ever; what goes beyond
/// ends it (`SIGXFSZ`). What is limited to less already stays so.
///
/// # Errors
/// [`JailError::System`].
pub fn limit_file_size(bytes: u64) -> Result<(), JailError> {
    lower(Resource::Fsize, bytes, "limit the size of files")
}

impl Limits {
    /// Applies them to the whole process, for ever. What is limited to less already stays so.
    ///
    /// # Errors
    /// [`JailError::System`].
    pub fn apply(self) -> Result<(), JailError> {
        if let Some(memory) = self.memory {
            lower(Resource::Data, memory, "limit memory")?;
        }
        lower(Resource::Nofile, self.descriptors, "limit descriptors")
    }
}
