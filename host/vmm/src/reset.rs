//! Resetting a machine, in place, to a restore point over the same base memory.
//!
//! ```text
//! files read and checked ─> vCPUs parked ─> devices cleared ─┬─> own pages given up, layer written
//!        (refused: the machine runs on)                      ├─> vCPUs, clock, IOAPIC
//!                                                            └─> devices, with new attachments
//!                                        (failed: the machine ends)
//! ```
//!
//! Pages are given up rather than overwritten, so that a machine that has used much memory gives it
//! back; those that the layer names are overwritten, since they would be copied again at once. No
//! memory slot changes. From there the machine is like a warm VM: paused until it is started, and
//! its agent gets a new identity before anything else.

use crate::device_list::attachment;
use crate::error::ResetError;
use crate::pages::{ranges, write_whole};
use crate::parts::Machine;
use crate::state_file::SavedState;
use control::{ReceivedFds, Reset, ResetSpec};
use devices::{Attachment, EventLoop};
use machine::monotonic_ns;
use snapshot_memory::{LayerFile, PageRange, subtract};
use std::fs::File;
use std::os::fd::OwnedFd;

/// The restore point, read and checked as far as that is possible before the machine is paused.
#[derive(Debug)]
pub(crate) struct ResetTarget {
    state: SavedState,
    layer: Option<LayerFile>,
    attachments: Vec<Attachment>,
    asked_ns: u64,
}

impl ResetTarget {
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
        if machine.demand_paged.is_some() {
            return Err(ResetError::DemandPaged);
        }
        spec.check(&machine.devices, fds.len())?;
        let mut fds = ReceivedFds::from(fds);
        let pages = machine.vm.memory().pages();
        let state = SavedState::read(&File::from(fds.take(spec.state)?), pages)?;
        let same = |what, asked, has| match asked == has {
            true => Ok(()),
            false => Err(ResetError::Count { what, asked, has }),
        };
        same("processors", state.vcpus.len(), machine.vcpus.len())?;
        let layer = spec.delta_layer.map(|name| fds.take(name)).transpose()?;
        let layer = layer.map(File::from).map(LayerFile::open).transpose()?;
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

/// Resets the machine. The vCPUs are parked and the devices cleared; on an error its state is half
/// the old one and half the new one, and it must end.
pub(crate) fn reset(
    machine: &mut Machine,
    target: ResetTarget,
    event_loop: &mut EventLoop,
) -> Result<Reset, ResetError> {
    let paused_ns = monotonic_ns();
    let state = target.state;
    let written = &state.working_set.written;
    let (dropped_pages, written_pages) = reset_memory(machine, target.layer.as_ref(), written)?;
    for (vcpu, state) in machine.vcpus.iter().zip(&state.vcpus) {
        vcpu.with_parked(|vcpu| vcpu.reload(state))??;
    }
    machine.vm.load_clock(&state.vm)?;
    machine.ioapic.load(&state.ioapic)?;
    event_loop.reset(&state.devices, target.attachments)?;
    machine.console.forget();
    // When it is started, its clocks are set once more.
    machine.restore_point = Some(state);
    Ok(Reset {
        park_ns: paused_ns - target.asked_ns,
        reset_ns: monotonic_ns() - paused_ns,
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

/// Makes memory the base memory with the layer over it. `first` is what the machine is going to
/// write: it has its own copies of those afterwards. Pages given up, and pages written.
fn reset_memory(
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
    // What it has anyway is overwritten: a copy, instead of a page freed, found, mapped and copied
    // to.
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
