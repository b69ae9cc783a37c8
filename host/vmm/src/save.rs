//! A machine's state as files: written while it stands still, read when another begins there.
//!
//! ```text
//!  vCPUs, clock ──┐
//!  IOAPIC       ──┼─> section file      private pages ──> memory layer     blocks ──> disk layers
//!  devices      ──┘
//! ```

use crate::assemble::Machine;
use crate::copying::Copying;
use crate::prefault::blocks;
use control::{MissingFd, ReceivedFds, SaveSpec, Saved};
use devices::SavedDevices;
use machine::{CpuContract, Memory, Vcpu, VcpuStateV1, VmStateV1};
use serde::Serialize;
use serde::de::DeserializeOwned;
use snapshot_format::{FormatError, Section, SectionFile, SectionName};
use snapshot_memory::{
    MemoryError, PAGES_VERSION, Range as Pages, Rewritten, TOUCHED, WRITTEN, WorkingSet,
    encode_pages, outside,
};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// The processor its guest has seen. A guest keeps in mind what it was offered, and would fail much later,
/// and anyhow, without it.
const CPU: &str = "cpu";
/// Version 1 had the counter's rate too, which each vCPU's state has.
const CPU_VERSION: u16 = 2;
const VM: &str = "vm";
const VCPUS: &str = "vcpus";
const IOAPIC: &str = "ioapic";
const DEVICES: &str = "devices";
/// Of the types of the other sections.
const VERSION: u16 = 1;
/// Most bytes of a section file that are read.
const MAX_STATE: u64 = 32 << 20;

/// Why a machine could not be saved, or not be continued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    #[error(transparent)]
    Descriptor(#[from] MissingFd),
    #[error("The contents of {asked} devices asked to be saved, {has} have any")]
    Contents { asked: usize, has: usize },
    #[error("The processors did not halt")]
    Park(#[source] machine::Error),
    #[error("The processors' state was refused")]
    Processor(#[from] machine::Error),
    #[error("The devices' state was refused")]
    Devices(#[from] devices::SaveError),
    #[error("The machine's memory was refused")]
    Memory(#[from] MemoryError),
    #[error("The section file was refused")]
    Format(#[from] FormatError),
    #[error("Section {name:?} does not {what}")]
    Section {
        name: &'static str,
        what: &'static str,
        #[source]
        source: postcard::Error,
    },
    #[error("Could not {what}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> SaveError {
    move |source| SaveError::Io { what, source }
}

/// The files to save to.
#[derive(Debug)]
pub(crate) struct Targets {
    /// The layer of memory.
    pub(crate) memory: Copying,
    /// The pages that the machine has used, if that was looked at before it stood still.
    touched: Option<Vec<Pages>>,
    state: File,
    contents: Vec<File>,
    /// When the request came, when the vCPUs were to stand still, and when they did.
    pub(crate) asked: Instant,
    pub(crate) halt: Instant,
    pub(crate) parked: Instant,
}

impl Targets {
    /// Sorts out the descriptors that came with a request. Each is used once.
    pub(crate) fn new(
        spec: &SaveSpec,
        fds: Vec<OwnedFd>,
        memory: &Memory,
    ) -> Result<Self, SaveError> {
        let asked = Instant::now();
        let mut fds = ReceivedFds::from(fds);
        let mut take = |name| fds.take(name).map(File::from);
        Ok(Self {
            memory: Copying::new(take(spec.memory)?, memory),
            touched: None,
            state: take(spec.state)?,
            contents: spec
                .contents
                .iter()
                .map(|name| take(*name))
                .collect::<Result<_, _>>()?,
            asked,
            halt: asked,
            parked: asked,
        })
    }

    /// Copies some more while the machine runs; whether there is nothing left of that.
    pub(crate) fn go_on(&mut self, machine: &Machine) -> Result<bool, SaveError> {
        let over = self.memory.go_on(machine.vm.memory())?;
        if over && machine.is_clone {
            // A hint, so it need not be of the very moment; and it takes as long as all the rest.
            self.touched = Some(touched(machine)?);
        }
        Ok(over)
    }
}

/// Writes everything. The vCPUs are parked and the devices still, and stay so. What comes beside the counts
/// is to be dropped once they run again.
pub(crate) fn write(
    machine: &Machine,
    devices: &SavedDevices,
    targets: Targets,
) -> Result<(Saved, Vec<Rewritten>), SaveError> {
    let (asked, has) = (targets.contents.len(), devices.contents.len());
    if asked != has {
        return Err(SaveError::Contents { asked, has });
    }
    write_state(machine, devices, targets.touched, &targets.state)?;
    let copied = targets.memory.finish(machine)?;
    let mut disk_blocks = 0;
    for (contents, target) in devices.contents.iter().zip(&targets.contents) {
        let blocks = contents.write_to(target);
        disk_blocks += blocks.map_err(io("write a disk's layer"))?;
    }
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let saved = Saved {
        ahead_ns: ns(targets.halt - targets.asked),
        park_ns: ns(targets.parked - targets.halt),
        write_ns: ns(targets.parked.elapsed()),
        memory_pages: copied.stored,
        still_pages: copied.still,
        disk_blocks,
    };
    Ok((saved, copied.watches))
}

fn write_state(
    machine: &Machine,
    devices: &SavedDevices,
    used: Option<Vec<Pages>>,
    mut file: &File,
) -> Result<(), SaveError> {
    let vcpus = machine
        .vcpus
        .iter()
        .map(|vcpu| vcpu.with_parked(Vcpu::save)?)
        .collect::<Result<Vec<_>, _>>()?;
    let mut payloads = vec![
        (CPU, CPU_VERSION, encode(CPU, &machine.cpu)?),
        (VM, VERSION, encode(VM, &machine.vm.save()?)?),
        (VCPUS, VERSION, encode(VCPUS, &vcpus)?),
        (IOAPIC, VERSION, machine.ioapic.save()),
        (DEVICES, VERSION, encode(DEVICES, &devices.devices)?),
    ];
    if machine.is_clone {
        // What a machine that booted has used, others like it need not.
        // Of memory that is streamed in, the page tables do not tell what was used.
        let used = match (&machine.lazy, used) {
            (Some(known), _) => known.clone(),
            (None, Some(used)) => used,
            (None, None) => touched(machine)?,
        };
        payloads.push((TOUCHED, PAGES_VERSION, encode_pages(&used)));
    }
    if machine.trial.is_some() {
        payloads.push((WRITTEN, PAGES_VERSION, encode_pages(&written(machine)?)));
    }
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

/// Pages of the whole memory, asked for one part of it after the other.
pub(crate) fn ranges(
    memory: &Memory,
    ask: impl Fn(&Range<usize>) -> Result<Vec<Pages>, MemoryError>,
) -> Result<Vec<Pages>, MemoryError> {
    let mut all = Vec::new();
    let mut before = 0;
    for part in memory.host_ranges() {
        let of_part = ask(&part)?;
        all.extend(of_part.into_iter().map(|pages| Pages {
            first: pages.first + before,
            end: pages.end + before,
        }));
        before += part.len() as u64 / 4096;
    }
    Ok(all)
}

/// The pages that it has used. One stands for each huge page: whoever begins here gets it whole if it has
/// huge pages too, and else, by a look at one of them, not 512 small ones.
fn touched(machine: &Machine) -> Result<Vec<Pages>, MemoryError> {
    let memory = machine.vm.memory();
    let present = ranges(memory, |part| machine.pagemap.present_ranges(part))?;
    let huge = ranges(memory, |part| machine.pagemap.huge_ranges(part))?;
    let mut used = outside(&present, huge.iter().copied());
    used.extend(huge.iter().flat_map(blocks));
    used.sort_unstable_by_key(|pages| pages.first);
    Ok(used)
}

/// The pages that are not what the machine began with.
pub(crate) fn written(machine: &Machine) -> Result<Vec<Pages>, MemoryError> {
    ranges(machine.vm.memory(), |part| match machine.lazy {
        Some(_) => machine.pagemap.written_ranges(part),
        None => machine.pagemap.dirty_ranges(part),
    })
}

/// What a section file says; each part is checked by its owner when it is loaded.
#[derive(Debug)]
pub(crate) struct State {
    /// The processor its guest has seen.
    pub(crate) cpu: CpuContract,
    pub(crate) vm: VmStateV1,
    pub(crate) vcpus: Vec<VcpuStateV1>,
    pub(crate) ioapic: Vec<u8>,
    pub(crate) devices: Vec<Vec<u8>>,
    /// Pages that whoever begins here is going to use.
    pub(crate) first: WorkingSet,
}

impl State {
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
            cpu: decode(CPU, sections.get(CPU, CPU_VERSION)?)?,
            vm: decode(VM, sections.get(VM, VERSION)?)?,
            vcpus: decode(VCPUS, sections.get(VCPUS, VERSION)?)?,
            ioapic: sections.get(IOAPIC, VERSION)?.to_vec(),
            devices: decode(DEVICES, sections.get(DEVICES, VERSION)?)?,
            first: WorkingSet::of(&sections, pages)?,
        })
    }
}

/// Sets a machine's clocks back to when it was saved: it may have waited since it was built, and for
/// the guest that time does not exist.
pub(crate) fn go_back(machine: &Machine, state: &State) -> Result<(), SaveError> {
    for (vcpu, state) in machine.vcpus.iter().zip(&state.vcpus) {
        vcpu.with_parked(|vcpu| vcpu.load_time(state))??;
    }
    Ok(machine.vm.load_clock(&state.vm)?)
}

fn encode(name: &'static str, value: &impl Serialize) -> Result<Vec<u8>, SaveError> {
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
