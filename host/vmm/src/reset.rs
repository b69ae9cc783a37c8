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
use crate::begin::write_whole;
use crate::device_list::attachment;
use crate::save::{SaveError, State, ranges};
use control::{MissingFd, ReceivedFds, Reset, ResetSpec, SpecError};
use devices::{Attachment, EventLoop};
use machine::monotonic_ns;
use snapshot_memory::{Layer, MemoryError, Range, outside};
use std::fs::File;
use std::os::fd::OwnedFd;

/// Why a machine could not be put back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResetError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Descriptor(#[from] MissingFd),
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
    layer: Option<Layer>,
    attachments: Vec<Attachment>,
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
        spec.check(&machine.devices, fds.len())?;
        let mut fds = ReceivedFds::from(fds);
        let pages = machine.vm.memory().pages();
        let state = State::read(&File::from(fds.take(spec.state)?), pages)?;
        let same = |what, asked, has| match asked == has {
            true => Ok(()),
            false => Err(ResetError::Count { what, asked, has }),
        };
        same("processors", state.vcpus.len(), machine.vcpus.len())?;
        let layer = spec.delta_layer.map(|name| fds.take(name)).transpose()?;
        let layer = layer.map(File::from).map(Layer::open).transpose()?;
        if let Some(layer) = &layer {
            let (asked, has) = (layer.index().units(), pages);
            let int = |n| usize::try_from(n).unwrap_or(usize::MAX);
            same("pages", int(asked), int(has))?;
        }
        let attachments = spec.devices.iter().map(|to| attachment(to, &mut fds));
        let attachments = attachments.collect::<Result<_, _>>()?;
        Ok(Self {
            state,
            layer,
            attachments,
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
    event_loop.reset(&state.devices, target.attachments)?;
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
fn named(layer: &Layer) -> impl Iterator<Item = Range> {
    let extents = layer.index().extents().iter();
    extents.map(|extent| Range {
        first: extent.first,
        end: extent.end(),
    })
}

/// The golden file with the layer over it. `first` is what the machine is going to write: it has its own
/// copies of them afterwards. Pages given up, and pages written.
fn memory(
    machine: &Machine,
    layer: Option<&Layer>,
    first: &[Range],
) -> Result<(u64, u64), ResetError> {
    let memory = machine.vm.memory();
    let own = ranges(memory, |part| machine.pagemap.dirty_ranges(part))?;
    let others = match layer {
        Some(layer) => outside(&own, named(layer)),
        None => own,
    };
    let dropped = outside(&others, first.iter().copied());
    for pages in &dropped {
        memory.forget(pages.first, pages.end)?;
    }
    // What it has anyway is overwritten: a copy, instead of a page freed, found, mapped and copied to.
    for pages in outside(&others, dropped.iter().copied()) {
        memory.restore(pages.first, pages.end)?;
    }
    for pages in outside(first, others) {
        memory.own(pages.first, pages.end)?;
    }
    let mut written = 0;
    if let Some(layer) = layer {
        layer.apply(|offset, bytes| write_whole(&machine.vm, offset, bytes))?;
        written = named(layer).map(|pages| pages.end - pages.first).sum();
    }
    Ok((Range::count(&dropped), written))
}
