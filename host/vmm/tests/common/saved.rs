//! Machines that are saved, and those that are restored from them.

use super::{Machine, spec};
use control::{BootSource, Descriptors, Event, Request, SaveSpec, Saved, VmSpec};
use machine::CpuContract;
use rustix::fs::{MemfdFlags, memfd_create};
use snapshot_format::{Section, SectionFile, SectionName};
use snapshot_memory::{
    BaseMemory, LayerFile, PAGES_VERSION, TOUCHED, WRITTEN, WorkingSet, encode_pages,
};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

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
    let files = Files {
        memory: empty(),
        state: empty(),
    };
    let (spec, fds) = save_spec(&files, ahead);
    machine.send(&Request::Save(spec), &fds);
    if ahead {
        assert!(matches!(machine.receive(), Some(Event::CopiedAhead)));
        machine.send(&Request::Pause, &[]);
    }
    match machine.receive() {
        Some(Event::Saved(saved)) => (files, saved),
        other => panic!("{other:?}"),
    }
}

/// A request to save a machine without disks to `files`.
pub(crate) fn save_spec(files: &Files, ahead: bool) -> (SaveSpec, Vec<OwnedFd>) {
    let mut fds = Descriptors::default();
    let spec = SaveSpec {
        memory: fds.add(files.memory.try_clone().unwrap()),
        state: fds.add(files.state.try_clone().unwrap()),
        contents: Vec::new(),
        ahead,
    };
    (spec, fds.into())
}

/// The memory that the layers add up to, the newest first.
pub(crate) fn base_memory(layers: Vec<&OwnedFd>) -> BaseMemory {
    let open = |fd: &OwnedFd| LayerFile::open(File::from(fd.try_clone().unwrap())).unwrap();
    let layers: Vec<_> = layers.into_iter().map(open).collect();
    BaseMemory::merge_layers(MEMORY_PAGES, &layers).unwrap()
}

/// A machine that is restored from a saved one, and the descriptors for it.
pub(crate) fn from(
    memory: &dyn AsFd,
    state: &dyn AsFd,
    layer: Option<&OwnedFd>,
    link: UnixStream,
) -> (VmSpec, Vec<OwnedFd>) {
    let own = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned().unwrap();
    let mut fds = Descriptors::default();
    let snapshot = BootSource::Snapshot {
        base_memory: fds.add(own(memory)),
        state: fds.add(own(state)),
        delta_layer: layer.map(|fd| fds.add(own(fd))),
        trial: false,
    };
    (spec(2, snapshot, fds.add(link)), fds.into())
}

pub(crate) fn clone(base: &BaseMemory, files: &Files, layer: Option<&OwnedFd>) -> Machine {
    let (machine, link) = Machine::spawn();
    let (spec, fds) = from(base, &files.state, layer, link);
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

/// The state with a working set that a trial run would have learned.
pub(crate) fn with_working_set(state: &OwnedFd, set: &WorkingSet) -> OwnedFd {
    let bytes = whole(state);
    let (touched, written) = (encode_pages(&set.touched), encode_pages(&set.written));
    let learned = [(TOUCHED, &touched), (WRITTEN, &written)].map(|(name, payload)| Section {
        name: SectionName::new(name).unwrap(),
        version: PAGES_VERSION,
        payload,
    });
    let trial = SectionFile::encode(&learned).unwrap();
    super::file(&WorkingSet::learn(&bytes, &trial).unwrap())
}

/// All bytes of a file, wherever its position is.
pub(crate) fn whole(file: &OwnedFd) -> Vec<u8> {
    std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}
