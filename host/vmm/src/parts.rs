//! A machine, as it lies there once it is built: what the files that save, reset and supervise it
//! share.

use crate::device_list::DeviceMetrics;
use crate::ending::MachineEnding;
use crate::state_file::SavedState;
use crate::stats::ProcessAccounts;
use control::DeviceSpec;
use devices::{Console, EventLoop, Ioapic};
use jail::Filter;
use machine::{CpuContract, VcpuThread, Vm};
use snapshot_memory::{PageRange, Pagemap, TouchTracking};
use std::sync::Arc;

/// A machine that is ready to run.
pub(crate) struct Machine {
    /// The devices' event loop, until it is taken to run on the thread that assembled it.
    pub(crate) event_loop: Option<EventLoop>,
    pub(crate) vcpus: Vec<VcpuThread>,
    pub(crate) vm: Vm,
    pub(crate) ioapic: Arc<Ioapic>,
    /// What its guest sees of the processor.
    pub(crate) cpu: CpuContract,
    /// For saving; opened before files were given up.
    pub(crate) pagemap: Pagemap,
    /// Whether it was restored from another one's state.
    pub(crate) is_clone: bool,
    /// Its known working set, if its memory is demand-paged.
    pub(crate) demand_paged: Option<Vec<PageRange>>,
    /// If its working set is to be learned.
    pub(crate) trial: Option<TrialRun>,
    /// What it resumes from when it runs for the first time, or for the first time since a reset.
    pub(crate) restore_point: Option<SavedState>,
    pub(crate) console: Arc<Console>,
    pub(crate) ending: Arc<MachineEnding>,
    /// Its virtio devices, in the order in which their state is saved.
    pub(crate) devices: Vec<DeviceSpec>,
    pub(crate) metrics: DeviceMetrics,
    pub(crate) accounts: ProcessAccounts,
    /// For all threads, when the loop begins.
    pub(crate) filter: Filter,
}

/// A machine that runs to learn the working set of its clones.
#[derive(Debug)]
pub(crate) struct TrialRun {
    /// Keeps its page tables exact, where that is possible.
    pub(crate) _exact: Option<TouchTracking>,
}
