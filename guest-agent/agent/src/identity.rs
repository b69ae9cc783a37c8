//! Who this guest is: its name, clock, randomness, generation and environment defaults.

use crate::sys::event::set_wall_ns;
use crate::sys::file::{Dir, O_APPEND, O_RDWR, O_WRONLY, open};
use crate::sys::{Errno, system, write};
use agent_core::Text;
use wire::{MAX_DEFAULT_ENV, MAX_NAME, SetIdentity, Strings};

/// The identity last taken.
pub(crate) struct Identity {
    generation: u64,
    /// The clock, name and randomness are not this program's to change.
    borrowed: bool,
    env: [u8; MAX_DEFAULT_ENV],
    env_len: usize,
}

impl Identity {
    pub(crate) const fn new() -> Self {
        Self {
            generation: 0,
            borrowed: false,
            env: [0; MAX_DEFAULT_ENV],
            env_len: 0,
        }
    }

    /// Its number; 0 before the first.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// For tests: from now on only the generation and the environment are taken.
    pub(crate) fn leave_machine_alone(&mut self) {
        self.borrowed = true;
    }

    /// What every process has in its environment.
    pub(crate) fn env(&self) -> Strings<'_> {
        Strings::Packed(&self.env[..self.env_len])
    }

    /// Takes a new one. Randomness first: nothing that follows may use the old.
    ///
    /// # Errors
    /// At the first part that fails; the generation changes only when all have succeeded.
    pub(crate) fn take(&mut self, new: &SetIdentity<'_>) -> Result<(), Errno> {
        if !self.borrowed {
            change_machine(new)?;
        }
        let env = new.env.packed().unwrap_or(&[]);
        let room = self.env.get_mut(..env.len()).ok_or(Errno::TOOBIG)?;
        room.copy_from_slice(env);
        self.env_len = env.len();
        self.generation = new.generation;
        Ok(())
    }
}

fn change_machine(new: &SetIdentity<'_>) -> Result<(), Errno> {
    if !new.entropy.is_empty() {
        let random = open(Dir::Cwd, c"/dev/urandom", O_RDWR, 0)?;
        system::add_entropy(&random, new.entropy)?;
    }
    if new.wall_clock_ns != 0 {
        set_wall_ns(new.wall_clock_ns)?;
    }
    if !new.hostname.is_empty() {
        system::set_hostname(new.hostname)?;
        name_in_hosts(new.hostname);
    }
    Ok(())
}

/// Lets programs resolve the guest's own name (`sudo` complains otherwise). An image without the
/// file, or a full disk, only costs that.
fn name_in_hosts(name: &[u8]) {
    let Ok(hosts) = open(Dir::Cwd, c"/etc/hosts", O_WRONLY | O_APPEND, 0) else {
        return;
    };
    let name = core::str::from_utf8(name).unwrap_or("");
    let line = Text::<{ MAX_NAME + 16 }>::of(format_args!("127.0.1.1\t{name}\n"));
    let _ = write(&hosts, line.as_str().as_bytes());
}
