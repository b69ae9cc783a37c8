//! The loader of saved devices against state that nobody saved.

use super::{BLOCK, Guest, Source, VSOCK, add_net, file, wire};
use crate::testing::{MEMORY, Running, add_block, add_vsock, copy, line, vsock_config};
use crate::{
    BlockConfig, DiskParent, EventLoop, LoadError, Memory, MmioWindow, Rng, SavedConnection,
};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

type State = (Arc<Memory>, Vec<Vec<u8>>);

/// What a machine in use has saved: memory and devices.
fn valid() -> State {
    static VALID: OnceLock<Mutex<State>> = OnceLock::new();
    let saved = VALID.get_or_init(|| {
        let mut guest = Guest::new();
        guest.recovers();
        let _ = (&guest.link).write(b"to the guest");
        // Written blocks in several places, and resets that wait for a buffer.
        for i in 0..8 {
            guest.request(&mut Source(&[i, 1, i * 24, 1, 8, 1]));
            guest.packet(&mut Source(&[1, 1, i, 0, 1, 1, 0, 0, 0, 0, 1, 1, i, 1, 1]));
        }
        for device in [VSOCK, BLOCK] {
            let mmio = guest.running.made[device].clone();
            guest.queues[device]
                .iter()
                .for_each(|q| q.force_kick(&mmio));
        }
        std::thread::sleep(Duration::from_millis(20));
        let (saved, memory) = guest.running.save();
        Mutex::new((memory, saved.devices))
    });
    let saved = saved.lock().unwrap();
    (copy(&saved.0), saved.1.clone())
}

/// The devices that [`Guest::new`] has, over a snapshot's disk layer.
fn add(
    event_loop: &mut EventLoop,
    (link, frames): (UnixStream, OwnedFd),
    after: SavedConnection,
) -> Vec<Arc<MmioWindow>> {
    let (vsock, _) = add_vsock(event_loop, vsock_config(link, after), line());
    let config = BlockConfig {
        base: file(1 << 20),
        layer: Some(file(0)),
        parent: DiskParent(Some(file(2 << 20))),
        size: 2 << 20,
        serial: String::new(),
    };
    let (block, _) = add_block(event_loop, config);
    let rng = event_loop.add(Box::new(Rng::default()), line()).unwrap();
    vec![vsock, block, rng, add_net(event_loop, frames)]
}

/// A loop with these devices that has not run.
fn new_loop(memory: Arc<Memory>, after: SavedConnection) -> EventLoop {
    let mut event_loop = EventLoop::new(memory).unwrap();
    let sockets = (UnixStream::pair().unwrap().0, wire().1);
    add(&mut event_loop, sockets, after);
    event_loop
}

/// Changes what was saved as `source` says.
fn edit(devices: &mut [Vec<u8>], source: &mut Source<'_>) {
    let (kind, index) = (source.u8() % 16, usize::from(source.u8()) % devices.len());
    let blob = &mut devices[index];
    let at = usize::from(source.u16()) % (blob.len() + 1);
    match kind {
        0 => blob.truncate(at),
        1 => blob.insert(at, source.u8()),
        2 => blob.extend(source.take::<8>()),
        3 => drop(blob.splice(at..at, source.take::<4>())),
        4 => devices.swap(index, usize::from(source.u8()) % 4),
        5..9 => blob
            .iter_mut()
            .skip(at)
            .take(1)
            .for_each(|b| *b = source.u8()),
        _ => {
            let bit = 1 << (source.u8() % 8);
            blob.iter_mut().skip(at).take(1).for_each(|b| *b ^= bit);
        }
    }
}

/// Loads what `input` makes of a valid state. What is not refused runs, and a well-behaved driver
/// that resets the devices finds them working.
pub fn fuzz_load(input: &[u8]) {
    let mut source = Source(input);
    let after = match source.u8() % 2 {
        0 => SavedConnection::Kept,
        _ => SavedConnection::Broken,
    };
    let (memory, mut devices) = valid();
    while !source.is_empty() {
        edit(&mut devices, &mut source);
    }
    if let Some(mut guest) = load(memory, devices, after) {
        std::thread::sleep(Duration::from_micros(500));
        guest.recovers();
    }
}

fn load(memory: Arc<Memory>, devices: Vec<Vec<u8>>, after: SavedConnection) -> Option<Guest> {
    let (link, theirs) = UnixStream::pair().unwrap();
    link.set_nonblocking(true).unwrap();
    let _ = (&link).write(&[7; MEMORY / 256]);
    let (wire, frames) = wire();
    let try_first = |devices: &[Vec<u8>]| -> Result<(), LoadError> {
        new_loop(memory.clone(), after).load(devices)
    };
    try_first(&devices).ok()?;
    let running = Running::new(memory.clone(), move |event_loop| {
        let made = add(event_loop, (theirs, frames), after);
        event_loop.load(&devices).unwrap();
        made
    });
    let queues = Vec::new();
    Some(Guest {
        running,
        memory,
        queues,
        link,
        wire,
    })
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::block::BlockV1;
    use crate::mmio::state::WindowV1;
    use crate::vsock::VsockV1;
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    /// One blob of version 1 in one piece: what each device writes on its own must add up to it.
    #[derive(Debug, Serialize, Deserialize)]
    struct SlotV1 {
        device: DeviceV1,
        window: WindowV1,
    }

    /// The kinds, with their tags in this order.
    #[derive(Debug, Serialize, Deserialize)]
    enum DeviceV1 {
        Vsock(VsockV1),
        Block(BlockV1),
        Rng,
        Net,
    }

    impl DeviceV1 {
        fn kind(&self) -> &'static str {
            match self {
                Self::Vsock(_) => "vsock",
                Self::Block(_) => "block",
                Self::Rng => "rng",
                Self::Net => "net",
            }
        }
    }

    const KINDS: [&str; 4] = ["vsock", "block", "rng", "net"];

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 100,
            max_shrink_iters: 0,
            ..ProptestConfig::default()
        })]
        #[test]
        fn hostile_states_break_nothing(input in proptest::collection::vec(any::<u8>(), 0..20)) {
            fuzz_load(&input);
        }
    }

    fn refused(devices: &[Vec<u8>]) -> LoadError {
        let mut event_loop = new_loop(valid().0, SavedConnection::Kept);
        event_loop.load(devices).unwrap_err()
    }

    #[test]
    fn the_valid_state_says_something_and_goes_on() {
        let (memory, devices) = valid();
        let states: Vec<SlotV1> = devices
            .iter()
            .map(|bytes| postcard::from_bytes(bytes).unwrap())
            .collect();
        assert!(matches!(states[0].device, DeviceV1::Vsock(_)));
        let interesting = devices[0].len() > 100 && devices[1].len() > 45;
        assert!(interesting, "{states:?}");
        load(memory, devices, SavedConnection::Kept)
            .unwrap()
            .recovers();
    }

    /// What version 1 of the saved state's section `devices` has for a socket, a block, an entropy
    /// and a network device; the last of which it did not have at first.
    const GOLDENS: [&[u8]; 4] = [
        include_bytes!("goldens/vsock-v1"),
        include_bytes!("goldens/block-v1"),
        include_bytes!("goldens/rng-v1"),
        include_bytes!("goldens/net-v1"),
    ];

    /// A change that this does not pass needs another version of the section, and goldens of it,
    /// made by `cargo test -p devices -- --ignored make_goldens`.
    #[test]
    fn stored_states_are_read_and_still_written_so() {
        let written = valid().1;
        let stored = GOLDENS.map(<[u8]>::to_vec);
        for states in [&stored[..], &written] {
            for (bytes, kind) in states.iter().zip(KINDS) {
                let state: SlotV1 = crate::state::decode(bytes, kind).unwrap();
                assert_eq!(state.device.kind(), kind);
                assert!(
                    postcard::to_allocvec(&state).unwrap() == *bytes,
                    "{state:?}"
                );
            }
        }
        for states in [&stored[..3], &stored[..]] {
            let mut event_loop = new_loop(crate::testing::memory(), SavedConnection::Kept);
            event_loop.load(states).unwrap();
        }
    }

    #[test]
    #[ignore = "writes into the tree"]
    fn make_goldens() {
        let place = concat!(env!("CARGO_MANIFEST_DIR"), "/src/fuzz/goldens");
        for (bytes, kind) in valid().1.iter().zip(KINDS) {
            std::fs::write(format!("{place}/{kind}-v1"), bytes).unwrap();
        }
    }

    #[test]
    fn what_is_not_the_state_of_these_devices_is_refused_by_name() {
        let (_, devices) = valid();
        let mut swapped = devices.clone();
        swapped.swap(0, 1);
        let LoadError::Kind { device, saved } = refused(&swapped) else {
            panic!("a swapped order was taken");
        };
        assert_eq!((&*device, &*saved), ("socket device 0", "block device"));
        assert!(matches!(
            refused(&devices[..2]),
            LoadError::Count {
                saved: 2,
                present: 4
            }
        ));
        let mut longer = devices.clone();
        longer[2].push(0);
        assert!(matches!(
            refused(&longer),
            LoadError::Trailing { extra: 1, .. }
        ));
        let mut shorter = devices.clone();
        shorter[1].pop();
        assert!(matches!(refused(&shorter), LoadError::Decode { .. }));

        let mut event_loop = new_loop(valid().0, SavedConnection::Kept);
        event_loop.load(&devices).unwrap();
        let again = event_loop.load(&devices);
        assert!(matches!(again, Err(LoadError::Late)));
    }

    /// Each byte changed in several ways: a state that is taken saves as what was loaded.
    #[test]
    fn no_single_byte_is_trusted() {
        let (memory, devices) = valid();
        let (mut taken, mut refused) = (0, 0);
        for index in 0..devices.len() {
            for at in 0..devices[index].len().min(120) {
                for change in [0x01, 0x40, 0x80, 0xff] {
                    let mut devices = devices.clone();
                    devices[index][at] ^= change;
                    let mut event_loop = new_loop(memory.clone(), SavedConnection::Kept);
                    match event_loop.load(&devices) {
                        Ok(()) => taken += 1,
                        Err(error) => {
                            assert!(!error.to_string().is_empty());
                            refused += 1;
                        }
                    }
                }
            }
        }
        assert!(refused > taken / 4 && taken > 0, "{refused} {taken}");
    }
}
