//! Putting a machine back, in place, to a moment at which one over the same golden file was saved.
//!
//! ```text
//! files read and checked ─> vCPUs parked ─> devices cleared ─┬─> own pages given up, layer written
//!        (refused: the machine runs on)                      ├─> vCPUs, clock, IOAPIC
//!                                                            └─> devices, with another link
//!                                        (failed: the machine ends)
//! ```
//!
//! Pages are given up rather than overwritten, so that a machine that has used much memory gives it
//! back; those that the layer names are overwritten, since they would be copied again at once. No
//! memory slot changes. What follows is what follows for a husk: it stands until it is let go, and its
//! agent gets a new identity before anything else.

use crate::assemble::Machine;
use crate::begin::{after, write_whole};
use crate::save::{SaveError, State, ranges};
use control::{FdIndex, Reset, ResetSpec};
use devices::{Beginning, EventLoop, LinkAfter};
use machine::monotonic_ns;
use snapshot_memory::{LayerFile, MemoryError, PageRange, subtract};
use std::fs::File;
use std::os::fd::OwnedFd;

/// Why a machine could not be put back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResetError {
    #[error("{count} files came along to reset to, descriptor {index} is not among them")]
    Descriptor { index: u8, count: usize },
    #[error("The machine booted: it has no golden file that it could go back to")]
    Booted,
    #[error(
        "The machine's memory came through a pager: it has no golden file that it could go back to"
    )]
    Lazy,
    #[error("A state of {asked} {what} was given, the machine has {has}")]
    Count {
        what: &'static str,
        asked: usize,
        has: usize,
    },
    #[error("The state was refused")]
    State(#[from] SaveError),
    #[error("The memory was refused")]
    Memory(#[from] MemoryError),
    #[error("The processors were refused")]
    Machine(#[from] machine::Error),
    #[error("The devices could not be cleared")]
    Busy(#[source] devices::SaveError),
    #[error("The devices' state was refused")]
    Devices(#[from] devices::LoadError),
}

/// Where the machine is to go, read and checked as far as that is possible before it stands still.
#[derive(Debug)]
pub(crate) struct Target {
    state: State,
    layer: Option<LayerFile>,
    link: OwnedFd,
    after: LinkAfter,
    parents: Vec<Option<File>>,
    asked_ns: u64,
}

impl Target {
    /// Sorts out the descriptors that came with a request, each used once, and reads what they are.
    pub(crate) fn new(
        machine: &Machine,
        spec: &ResetSpec,
        fds: Vec<OwnedFd>,
    ) -> Result<Self, ResetError> {
        let asked_ns = monotonic_ns();
        if !machine.is_clone {
            return Err(ResetError::Booted);
        }
        if machine.lazy.is_some() {
            return Err(ResetError::Lazy);
        }
        let count = fds.len();
        let mut fds: Vec<_> = fds.into_iter().map(Some).collect();
        let mut take = |index: FdIndex| {
            let fd = fds.get_mut(usize::from(index)).and_then(Option::take);
            fd.ok_or(ResetError::Descriptor { index, count })
        };
        let pages = machine.vm.memory().pages();
        let state = State::read(&File::from(take(spec.state)?), pages)?;
        let same = |what, asked, has| match asked == has {
            true => Ok(()),
            false => Err(ResetError::Count { what, asked, has }),
        };
        same("processors", state.vcpus.len(), machine.vcpus.len())?;
        same("disks", spec.disks.len(), machine.metrics.blocks.len())?;
        let layer = spec.layer.map(&mut take).transpose()?;
        let layer = layer.map(File::from).map(LayerFile::open).transpose()?;
        if let Some(layer) = &layer {
            let (asked, has) = (layer.index().units(), pages);
            let int = |n| usize::try_from(n).unwrap_or(usize::MAX);
            same("pages", int(asked), int(has))?;
        }
        let parent = |disk: &Option<FdIndex>| Ok(disk.map(&mut take).transpose()?.map(File::from));
        let parents = spec.disks.iter().map(parent);
        let parents = parents.collect::<Result<_, ResetError>>()?;
        Ok(Self {
            state,
            layer,
            link: take(spec.link)?,
            after: after(spec.after),
            parents,
            asked_ns,
        })
    }
}

/// Puts the machine back. The vCPUs are parked and the devices cleared; on an error the machine is
/// neither here nor there, and must end.
pub(crate) fn put_back(
    machine: &mut Machine,
    target: Target,
    event_loop: &mut EventLoop,
) -> Result<Reset, ResetError> {
    let still_ns = monotonic_ns();
    let state = target.state;
    let written = &state.first.written;
    let (dropped_pages, written_pages) = memory(machine, target.layer.as_ref(), written)?;
    for (vcpu, state) in machine.vcpus.iter().zip(&state.vcpus) {
        vcpu.with_parked(|vcpu| vcpu.reload(state))??;
    }
    machine.vm.load_clock(&state.vm)?;
    machine.ioapic.load(&state.ioapic)?;
    event_loop.put_back(Beginning {
        devices: &state.devices,
        link: target.link,
        after: target.after,
        parents: target.parents,
    })?;
    machine.console.forget();
    // When it is let go, its clocks are set once more.
    machine.saved = Some(state);
    Ok(Reset {
        park_ns: still_ns - target.asked_ns,
        reset_ns: monotonic_ns() - still_ns,
        dropped_pages,
        written_pages,
    })
}

/// The pages that a layer has.
fn named(layer: &LayerFile) -> impl Iterator<Item = PageRange> {
    let extents = layer.index().extents().iter();
    extents.map(|extent| PageRange {
        first: extent.first,
        end: extent.end(),
    })
}

/// The golden file with the layer over it. `first` is what the machine is going to write: it has its own
/// copies of them afterwards. Pages given up, and pages written.
fn memory(
    machine: &Machine,
    layer: Option<&LayerFile>,
    first: &[PageRange],
) -> Result<(u64, u64), ResetError> {
    let memory = machine.vm.memory();
    let own = ranges(memory, |part| machine.pagemap.dirty_ranges(part))?;
    let others = match layer {
        Some(layer) => subtract(&own, named(layer)),
        None => own,
    };
    let dropped = subtract(&others, first.iter().copied());
    for pages in &dropped {
        memory.forget(pages.first, pages.end)?;
    }
    // What it has anyway is overwritten: a copy, instead of a page freed, found, mapped and copied to.
    for pages in subtract(&others, dropped.iter().copied()) {
        memory.restore(pages.first, pages.end)?;
    }
    for pages in subtract(first, others) {
        memory.own(pages.first, pages.end)?;
    }
    let mut written = 0;
    if let Some(layer) = layer {
        layer.apply(|offset, bytes| write_whole(&machine.vm, offset, bytes))?;
        written = named(layer).map(|pages| pages.end - pages.first).sum();
    }
    Ok((PageRange::count(&dropped), written))
}
