//! KVM's own count of a vCPU's exits, most of which the kernel handles without telling us.
//!
//! `Documentation/virt/kvm/api.rst`, `KVM_GET_STATS_FD` (Linux 5.14): a header, descriptors with
//! names, and the values, all in one readable file.
#![expect(unsafe_code, reason = "the ioctl is not in kvm-ioctls")]

use kvm_ioctls::VcpuFd;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// `_IO(KVMIO, 0xce)`
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
const HEADER: usize = 24;
const DESCRIPTOR: usize = 16;
/// Most descriptors and longest name looked at; a vCPU has about 40, of 48 bytes.
const MAX_DESCRIPTORS: u32 = 1024;
const MAX_NAME: u32 = 256;

/// Where one vCPU's exits are counted.
#[derive(Debug)]
pub(crate) struct ExitCount {
    file: File,
    offset: u64,
}

impl ExitCount {
    /// Looks for the counter.
    ///
    /// # Errors
    /// When this kernel has no such file or no such counter.
    pub(crate) fn open(vcpu: &VcpuFd) -> Result<Self> {
        // SAFETY: the ioctl takes no argument and gives a new descriptor.
        let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else has it.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let offset = find(&file, "exits")?;
        Ok(Self { file, offset })
    }

    /// Exits so far.
    pub(crate) fn get(&self) -> Result<u64> {
        let mut value = [0; 8];
        self.file.read_exact_at(&mut value, self.offset)?;
        Ok(u64::from_le_bytes(value))
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let part = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    part.map_or(0, u32::from_le_bytes)
}

/// Offset of the value with this name.
fn find(file: &File, name: &str) -> Result<u64> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let [_, name_size, count, _, descriptors, data] =
        [0, 4, 8, 12, 16, 20].map(|at| word(&header, at));
    let size = DESCRIPTOR + name_size.min(MAX_NAME) as usize;
    let mut all = vec![0; size * count.min(MAX_DESCRIPTORS) as usize];
    file.read_exact_at(&mut all, descriptors.into())?;
    all.chunks_exact(size)
        .find(|d| d[DESCRIPTOR..].split(|b| *b == 0).next() == Some(name.as_bytes()))
        .map(|d| u64::from(data) + u64::from(word(d, 8)))
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("KVM counts no {name:?}")))
}
