//! Machines that are saved, and those that begin where they stood.

use super::{Machine, spec};
use control::{Event, Origin, Request, SaveSpec, Saved, SavedLink, VmSpec};
use machine::CpuContract;
use rustix::fs::{MemfdFlags, memfd_create};
use snapshot_format::{Section, SectionFile, SectionName};
use snapshot_memory::{
    BaseMemory, LayerFile, PAGES_VERSION, TOUCHED, WRITTEN, WorkingSet, encode_pages,
};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const MEMORY_PAGES: u64 = 128 << 20 >> 12;

pub(crate) fn empty() -> OwnedFd {
    memfd_create("saved", MemfdFlags::CLOEXEC).unwrap()
}

pub(crate) struct Files {
    pub(crate) memory: OwnedFd,
    pub(crate) state: OwnedFd,
}

pub(crate) fn save(machine: &Machine) -> (Files, Saved) {
    save_as(machine, false)
}

/// `ahead`: memory is copied while the machine runs.
pub(crate) fn save_as(machine: &Machine, ahead: bool) -> (Files, Saved) {
    let files = [empty(), empty()];
    let spec = SaveSpec {
        memory: 0,
        state: 1,
        disks: Vec::new(),
        ahead,
    };
    machine.send(&Request::Save(spec), &files);
    let saved = match machine.receive() {
        Some(Event::Saved(saved)) => saved,
        other => panic!("{other:?}"),
    };
    let [memory, state] = files;
    (Files { memory, state }, saved)
}

pub(crate) fn golden(layers: Vec<&OwnedFd>) -> BaseMemory {
    let open = |fd: &OwnedFd| LayerFile::open(File::from(fd.try_clone().unwrap())).unwrap();
    let layers: Vec<_> = layers.into_iter().map(open).collect();
    BaseMemory::merge_layers(MEMORY_PAGES, &layers).unwrap()
}

pub(crate) fn from(layer: Option<u8>) -> VmSpec {
    VmSpec {
        origin: Origin::Snapshot {
            memory: 0,
            state: 1,
            layer,
            link: SavedLink::Kept,
            trial: false,
        },
        ..spec(2)
    }
}

pub(crate) fn clone(golden: &BaseMemory, files: &Files, layer: Option<&OwnedFd>) -> Machine {
    let (machine, link) = Machine::spawn();
    let mut fds = vec![
        golden.as_fd().try_clone_to_owned().unwrap(),
        files.state.try_clone().unwrap(),
        link.into(),
    ];
    fds.extend(layer.map(|fd| fd.try_clone().unwrap()));
    let spec = from(layer.map(|_| 3));
    machine.send(&Request::Configure(Box::new(spec)), &fds);
    match machine.receive() {
        Some(Event::Configured(_)) => machine,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn start(machine: &Machine) {
    machine.send(&Request::Start, &[]);
}

/// What another processor has that this one has not.
pub(crate) type Change = Box<dyn Fn(&mut CpuContract)>;

/// The state of a machine that has seen another processor.
pub(crate) fn on_another(state: &[u8], change: &Change) -> Vec<u8> {
    let state = SectionFile::parse(state).unwrap();
    let mut sections = state.sections().to_vec();
    let cpu = sections
        .iter_mut()
        .find(|s| s.name.as_str() == "cpu")
        .unwrap();
    let mut contract = postcard::from_bytes(cpu.payload).unwrap();
    change(&mut contract);
    let payload = postcard::to_allocvec(&contract).unwrap();
    cpu.payload = &payload;
    SectionFile::encode(&sections).unwrap()
}

/// The state with a working set that a trial would have told.
pub(crate) fn with_working_set(state: &OwnedFd, set: &WorkingSet) -> OwnedFd {
    let bytes = whole(state);
    let (touched, written) = (encode_pages(&set.touched), encode_pages(&set.written));
    let told = [(TOUCHED, &touched), (WRITTEN, &written)].map(|(name, payload)| Section {
        name: SectionName::new(name).unwrap(),
        version: PAGES_VERSION,
        payload,
    });
    let trial = SectionFile::encode(&told).unwrap();
    super::file(&WorkingSet::learn(&bytes, &trial).unwrap())
}

/// All bytes of a file, wherever its position is.
pub(crate) fn whole(file: &OwnedFd) -> Vec<u8> {
    std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}
