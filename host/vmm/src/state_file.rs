//! The section file: a machine's state but for its memory and its devices' contents.

use crate::error::SaveError;
use machine::{CpuContract, CpuContractV2, VcpuStateV1, VmStateV1};
use serde::Serialize;
use serde::de::DeserializeOwned;
use snapshot_format::{FormatError, Section, SectionFile, SectionName};
use snapshot_memory::{TOUCHED, WRITTEN, WorkingSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

/// The processor its guest has seen. A guest keeps in mind what it was offered, and would fail much
/// later, and anyhow, without it.
pub(crate) const CPU: &str = "cpu";
/// Version 1, which is refused, had the counter's rate too, which each vCPU's state has.
pub(crate) const CPU_VERSION: u16 = 3;
/// The version before, without the parts of the XSAVE area. It is still read: what it does not say
/// is not compared.
const CPU_BEFORE: u16 = 2;
pub(crate) const VM: &str = "vm";
pub(crate) const VCPUS: &str = "vcpus";
pub(crate) const IOAPIC: &str = "ioapic";
pub(crate) const DEVICES: &str = "devices";
/// Of the types of the other sections.
pub(crate) const VERSION: u16 = 1;
/// Most bytes of a section file that are read.
const MAX_STATE: u64 = 32 << 20;

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> SaveError {
    move |source| SaveError::Io { what, source }
}

/// What a section file says; each part is checked by its owner when it is loaded.
#[derive(Debug)]
pub(crate) struct SavedState {
    /// The processor its guest has seen.
    pub(crate) cpu: CpuContract,
    pub(crate) vm: VmStateV1,
    pub(crate) vcpus: Vec<VcpuStateV1>,
    pub(crate) ioapic: Vec<u8>,
    pub(crate) devices: Vec<Vec<u8>>,
    /// Pages that a machine restored from here is going to use.
    pub(crate) working_set: WorkingSet,
}

impl SavedState {
    /// Reads a section file whole.
    pub(crate) fn read(file: &File, pages: u64) -> Result<Self, SaveError> {
        let len = file.metadata().map_err(io("ask the section file"))?.len();
        let len = usize::try_from(len.min(MAX_STATE)).unwrap_or(0);
        let mut bytes = vec![0; len];
        // By offset: the position is shared with every process that was given this file.
        file.read_exact_at(&mut bytes, 0)
            .map_err(io("read the section file"))?;
        let sections = SectionFile::parse(&bytes)?;
        sections.all_known(|name| {
            [VM, VCPUS, IOAPIC, DEVICES, CPU, TOUCHED, WRITTEN].contains(&name)
        })?;
        Ok(Self {
            cpu: contract(&sections)?,
            vm: decode(VM, sections.get(VM, VERSION)?)?,
            vcpus: decode(VCPUS, sections.get(VCPUS, VERSION)?)?,
            ioapic: sections.get(IOAPIC, VERSION)?.to_vec(),
            devices: decode(DEVICES, sections.get(DEVICES, VERSION)?)?,
            working_set: WorkingSet::of(&sections, pages)?,
        })
    }
}

fn contract(sections: &SectionFile<'_>) -> Result<CpuContract, SaveError> {
    if let Ok(before) = sections.get(CPU, CPU_BEFORE) {
        return decode::<CpuContractV2>(CPU, before).map(CpuContract::from);
    }
    decode(CPU, sections.get(CPU, CPU_VERSION)?)
}

/// Writes a section file: name, version and payload of each section.
pub(crate) fn write_sections(
    payloads: &[(&str, u16, Vec<u8>)],
    mut file: &File,
) -> Result<(), SaveError> {
    let sections = payloads
        .iter()
        .map(|(name, version, payload)| {
            Ok(Section {
                name: SectionName::new(name)?,
                version: *version,
                payload,
            })
        })
        .collect::<Result<Vec<_>, FormatError>>()?;
    let bytes = SectionFile::encode(&sections)?;
    file.write_all(&bytes).map_err(io("write the section file"))
}

/// A section's payload.
pub(crate) fn encode(name: &'static str, value: &impl Serialize) -> Result<Vec<u8>, SaveError> {
    postcard::to_allocvec(value).map_err(|source| SaveError::Section {
        name,
        what: "encode",
        source,
    })
}

fn decode<T: DeserializeOwned>(name: &'static str, bytes: &[u8]) -> Result<T, SaveError> {
    postcard::from_bytes(bytes).map_err(|source| SaveError::Section {
        name,
        what: "decode",
        source,
    })
}

#[cfg(test)]
mod test;
