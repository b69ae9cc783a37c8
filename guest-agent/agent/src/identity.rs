//! Who this guest is: its name, clock, randomness, generation and environment defaults.

use crate::cgroups::CgroupTable;
use crate::clone_hook::{self, IdentityError};
use crate::connections;
use crate::sys::event::{set_wall_ns, wall_ns};
use crate::sys::file::{O_APPEND, O_CREAT, O_RDONLY, O_RDWR, O_WRONLY, PathBase, open, truncate};
use crate::sys::system::log;
use crate::sys::{Errno, Fd, read, system, write, write_all};
use agent_core::FixedText;
use core::ffi::CStr;
use core::mem;
use wire::{MAX_DEFAULT_ENV, MAX_NAME, SetIdentity, StringList};

/// The number of the identity, for programs: it is written anew with each.
pub(crate) const GENERATION: &CStr = c"/run/hatchery/generation";
/// Mounted over `/etc/machine-id`, so that no clone writes to its disk for it.
pub(crate) const MACHINE_ID: &CStr = c"/run/hatchery/machine-id";
/// Where programs find names without asking anybody.
const HOSTS: &CStr = c"/etc/hosts";
/// Where an image says who is asked for names.
const LOOKUP: &CStr = c"/etc/nsswitch.conf";

/// The identity last taken.
pub(crate) struct GuestIdentity {
    generation: u64,
    name: [u8; MAX_NAME],
    name_len: usize,
    /// The clock, name and randomness are not this program's to change.
    borrowed: bool,
    /// Programs find the guest's own name without the hosts file.
    named_by_kernel: bool,
    /// Connections led out of the guest when its processes were stopped.
    connected: bool,
    env: [u8; MAX_DEFAULT_ENV],
    env_len: usize,
}

impl GuestIdentity {
    pub(crate) const fn new() -> Self {
        Self {
            generation: 0,
            name: [0; MAX_NAME],
            name_len: 0,
            borrowed: false,
            named_by_kernel: false,
            connected: false,
            env: [0; MAX_DEFAULT_ENV],
            env_len: 0,
        }
    }

    /// Its number; 0 before the first.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Looks how programs of this image find the guest's own name: C libraries that have a module
    /// `myhostname` ask the kernel. Others read the hosts file, which is on the disk: each copy
    /// writes to it then, and shall not wait for its first page.
    pub(crate) fn look(&mut self) {
        let mut text = [0; 2048];
        let file = open(PathBase::Cwd, LOOKUP, O_RDONLY, 0);
        let len = file.and_then(|file| read(&file, &mut text)).unwrap_or(0);
        self.named_by_kernel = asks_kernel(text.get(..len).unwrap_or(&[]));
        if !self.named_by_kernel
            && let Ok(hosts) = open(PathBase::Cwd, HOSTS, O_RDONLY, 0)
        {
            let _ = read(&hosts, &mut text);
        }
    }

    /// Stops processes, because the machine is about to be saved. What a copy has to end is known
    /// before there is one, so that a copy without connections pays nothing.
    ///
    /// # Errors
    /// Why they are not stopped; they all go on.
    pub(crate) fn freeze(&mut self, cgroups: &mut CgroupTable) -> Result<(), Errno> {
        cgroups.freeze()?;
        self.connected = !self.borrowed && connections::any().unwrap_or(false);
        Ok(())
    }

    /// For tests: from now on only the generation and the environment are taken.
    pub(crate) fn leave_machine_alone(&mut self) {
        self.borrowed = true;
    }

    /// What every process has in its environment.
    pub(crate) fn env(&self) -> StringList<'_> {
        StringList::Packed(&self.env[..self.env_len])
    }

    /// Takes a new one, or sets the clock again for the one that it has. Randomness first: nothing
    /// that follows may use the old. Processes that were stopped when the machine was saved go on
    /// when everything else is done. The template's hook last: it may ask them for something.
    ///
    /// # Errors
    /// At the first part that fails; the generation changes only when all have succeeded.
    pub(crate) fn take(
        &mut self,
        new: &SetIdentity<'_>,
        cgroups: &mut CgroupTable,
    ) -> Result<(), IdentityError> {
        if new.generation != 0 && new.generation == self.generation {
            // Processes go on already. The time was on its way for a while, and the clock that it
            // finds ahead may be right: it is set forward only.
            if wall_ns() >= new.wall_clock_ns {
                return Ok(());
            }
            let set = self.set_clock(new);
            return set.map_err(IdentityError::Change);
        }
        if !self.borrowed {
            self.change_machine(new).map_err(IdentityError::Change)?;
        }
        let env = new.env.packed().unwrap_or(&[]);
        let room = self.env.get_mut(..env.len());
        room.ok_or(IdentityError::Change(Errno::TOOBIG))?
            .copy_from_slice(env);
        self.env_len = env.len();
        if mem::take(&mut self.connected)
            && let Err(e) = connections::end_all()
        {
            log(format_args!(
                "connections of before are reset only when used: errno {}",
                e.0
            ));
        }
        cgroups.thaw().map_err(IdentityError::Change)?;
        if !self.borrowed {
            clone_hook::run(cgroups, new.generation)?;
        }
        self.generation = new.generation;
        Ok(())
    }

    fn set_clock(&self, new: &SetIdentity<'_>) -> Result<(), Errno> {
        if self.borrowed || new.wall_clock_ns == 0 {
            return Ok(());
        }
        set_wall_ns(new.wall_clock_ns)
    }

    fn change_machine(&mut self, new: &SetIdentity<'_>) -> Result<(), Errno> {
        let random = open(PathBase::Cwd, c"/dev/urandom", O_RDWR, 0)?;
        if !new.entropy.is_empty() {
            system::add_entropy(&random, new.entropy)?;
        }
        self.set_clock(new)?;
        if !new.hostname.is_empty() && *new.hostname != self.name[..self.name_len] {
            system::set_hostname(new.hostname)?;
            if !self.named_by_kernel {
                name_in_hosts(new.hostname);
            }
            let name = self.name.get_mut(..new.hostname.len());
            name.ok_or(Errno::NAMETOOLONG)?
                .copy_from_slice(new.hostname);
            self.name_len = new.hostname.len();
            new_machine_id(&random)?;
        }
        let number = FixedText::<24>::of(format_args!("{}\n", new.generation));
        replace_text(GENERATION, number.as_str().as_bytes())
    }
}

/// A machine is another when its name is: one that is resumed after a pause keeps its id.
fn new_machine_id(random: &Fd) -> Result<(), Errno> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut bytes = [0; 16];
    if read(random, &mut bytes)? != bytes.len() {
        return Err(Errno::IO);
    }
    let mut text = [b'\n'; 33];
    for (pair, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        let digit = |b: u8| DIGITS.get(usize::from(b)).copied().unwrap_or(b'0');
        *pair = [digit(byte >> 4), digit(byte & 15)];
    }
    replace_text(MACHINE_ID, &text)
}

/// Writes a small file in place, so that who watches it hears of it.
fn replace_text(path: &CStr, text: &[u8]) -> Result<(), Errno> {
    let file = open(PathBase::Cwd, path, O_WRONLY | O_CREAT, 0o444)?;
    truncate(&file)?;
    write_all(&file, text)
}

/// Whether the text of `nsswitch.conf` has hosts looked up by `myhostname`.
fn asks_kernel(text: &[u8]) -> bool {
    const MODULE: &[u8] = b"myhostname";
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| line.strip_prefix(b"hosts:"))
        .any(|modules| modules.split(u8::is_ascii_whitespace).any(|m| m == MODULE))
}

/// Lets programs resolve the guest's own name (`sudo` complains otherwise). An image without the
/// file, or a full disk, only costs that.
fn name_in_hosts(name: &[u8]) {
    let Ok(hosts) = open(PathBase::Cwd, HOSTS, O_WRONLY | O_APPEND, 0) else {
        return;
    };
    let name = core::str::from_utf8(name).unwrap_or("");
    let line = FixedText::<{ MAX_NAME + 16 }>::of(format_args!("127.0.1.1\t{name}\n"));
    let _ = write(&hosts, line.as_str().as_bytes());
}
