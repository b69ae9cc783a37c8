//! Saving a machine as files, while it is paused.
//!
//! ```text
//!  vCPUs, clock ──┐
//!  IOAPIC       ──┼─> section file      private pages ──> memory layer     blocks ──> disk layers
//!  devices      ──┘
//! ```

use crate::error::SaveError;
use crate::memory_copy::MemoryCopy;
use crate::pages::{touched, written};
use crate::parts::Machine;
use crate::state_file::{
    CPU, CPU_VERSION, DEVICES, IOAPIC, SavedState, VCPUS, VERSION, VM, encode, write_sections,
};
use control::{ReceivedFds, SaveSpec, Saved};
use devices::SavedDevices;
use machine::{Memory, Vcpu};
use snapshot_memory::{PAGES_VERSION, PageRange, TOUCHED, WRITTEN, WriteTracking, encode_pages};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> SaveError {
    move |source| SaveError::Io { what, source }
}

/// A save that is under way, and the files it goes to.
#[derive(Debug)]
pub(crate) struct SaveTask {
    /// The layer of memory.
    pub(crate) memory: MemoryCopy,
    /// The pages that the machine has used, if that was looked at before it was paused.
    touched: Option<Vec<PageRange>>,
    state: File,
    contents: Vec<File>,
    /// When the request came, when the vCPUs were asked to pause, and when they had.
    pub(crate) asked: Instant,
    pub(crate) pausing: Instant,
    pub(crate) paused: Instant,
}

impl SaveTask {
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
            memory: MemoryCopy::new(take(spec.memory)?, memory),
            touched: None,
            state: take(spec.state)?,
            contents: spec
                .contents
                .iter()
                .map(|name| take(*name))
                .collect::<Result<_, _>>()?,
            asked,
            pausing: asked,
            paused: asked,
        })
    }

    /// Copies some more while the machine runs; whether nothing is left of that.
    pub(crate) fn copy_slice(&mut self, machine: &Machine) -> Result<bool, SaveError> {
        let over = self.memory.copy_slice(machine.vm.memory())?;
        if over && machine.is_clone {
            // A hint, so it need not be exact; and it takes as long as all the rest.
            self.touched = Some(touched(machine)?);
        }
        Ok(over)
    }
}

/// Writes everything. The vCPUs are parked and the devices quiesced, and stay so. What comes beside
/// the counts is to be dropped once they run again.
pub(crate) fn write(
    machine: &Machine,
    devices: &SavedDevices,
    task: SaveTask,
) -> Result<(Saved, Vec<WriteTracking>), SaveError> {
    let (asked, has) = (task.contents.len(), devices.contents.len());
    if asked != has {
        return Err(SaveError::Contents { asked, has });
    }
    write_state(machine, devices, task.touched, &task.state)?;
    let copied = task.memory.finish(machine)?;
    let mut disk_blocks = 0;
    for (contents, target) in devices.contents.iter().zip(&task.contents) {
        let blocks = contents.write_to(target);
        disk_blocks += blocks.map_err(io("write a disk's layer"))?;
    }
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let saved = Saved {
        ahead_ns: ns(task.pausing - task.asked),
        park_ns: ns(task.paused - task.pausing),
        write_ns: ns(task.paused.elapsed()),
        memory_pages: copied.stored,
        quiesced_pages: copied.paused,
        disk_blocks,
    };
    Ok((saved, copied.watches))
}

fn write_state(
    machine: &Machine,
    devices: &SavedDevices,
    used: Option<Vec<PageRange>>,
    file: &File,
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
        // Of demand-paged memory the page tables do not say what was used.
        let used = match (&machine.demand_paged, used) {
            (Some(known), _) => known.clone(),
            (None, Some(used)) => used,
            (None, None) => touched(machine)?,
        };
        payloads.push((TOUCHED, PAGES_VERSION, encode_pages(&used)));
    }
    if machine.trial.is_some() {
        payloads.push((WRITTEN, PAGES_VERSION, encode_pages(&written(machine)?)));
    }
    write_sections(&payloads, file)
}

/// Sets a machine's clocks back to when it was saved: it may have waited since it was built, and
/// for the guest that time does not exist.
pub(crate) fn restore_clocks(machine: &Machine, state: &SavedState) -> Result<(), SaveError> {
    for (vcpu, state) in machine.vcpus.iter().zip(&state.vcpus) {
        vcpu.with_parked(|vcpu| vcpu.load_time(state))??;
    }
    Ok(machine.vm.load_clock(&state.vm)?)
}
