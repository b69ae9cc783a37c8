//! A host whose volume is full: changes that do not fit wait, and nothing else does.

use super::*;
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// A file system of 64 pages that is nowhere in sight; `None` without the right to make one.
fn volume() -> Option<OwnedFd> {
    let made = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|volume| {
        fsconfig_set_string(&volume, "size", "256k")?;
        fsconfig_create(&volume)?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        fsmount(&volume, flags, MountAttrFlags::empty())
    });
    if let Err(error) = &made {
        eprintln!("skipped: this needs the right to mount a tmpfs: {error}");
    }
    made.ok()
}

fn file_on(volume: &OwnedFd) -> File {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(volume, ".", flags, Mode::RUSR | Mode::WUSR).unwrap();
    File::from(file)
}

/// A guest whose layer has room for `pages`, and what takes the rest of it.
fn squeezed(pages: u64) -> Option<(Guest, Vec<u8>, File)> {
    let volume = volume()?;
    let (base, bytes) = base(SIZE);
    let layer = file_on(&volume);
    let rest = file_on(&volume);
    rustix::fs::fallocate(
        &rest,
        rustix::fs::FallocateFlags::empty(),
        0,
        4096 * (64 - pages),
    )
    .unwrap();
    Some((Guest::new(base, Some(layer)), bytes, rest))
}

fn status(guest: &Guest, at: u64) -> u8 {
    guest.memory.read_obj(GuestAddress(at)).unwrap()
}

#[test]
fn a_write_without_room_waits_until_there_is_some() {
    let Some((mut guest, before, rest)) = squeezed(8) else {
        return;
    };
    let first = vec![0xa1; 4096 * 4];
    assert_eq!(guest.write(0, &first, 1), S_OK, "this fits");
    // Whole blocks, and a part of one.
    let (large, _) = guest.submit(T_OUT, 64, Data::Out(&vec![0xa2; 4096 * 16]), 2);
    let (partial, _) = guest.submit(T_OUT, 257, Data::Out(&[0xa3; 512]), 1);
    guest.queue.kick(&guest.running.made.0);
    crate::testing::wait(|| (guest.running.made.1.held.get() == 2).then_some(()));
    // What needs no room goes on, and what waits is tried again.
    assert_eq!(guest.write(0, &vec![0xa4; 4096 * 4], 1), S_OK);
    let (read, bytes) = guest.read(384, 4096, 1);
    assert_eq!(
        (read, &bytes[..]),
        (S_OK, &before[384 * 512..384 * 512 + 4096])
    );
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(
        (status(&guest, large), status(&guest, partial)),
        (0xff, 0xff)
    );
    rest.set_len(0).unwrap();
    for _ in 0..2 {
        guest.queue.wait_used();
    }
    assert_eq!(
        (status(&guest, large), status(&guest, partial)),
        (S_OK, S_OK)
    );
    assert_eq!(guest.read(64, 4096 * 16, 1).1, vec![0xa2; 4096 * 16]);
    let (_, bytes) = guest.read(256, 4096, 1);
    assert_eq!(&bytes[512..1024], [0xa3; 512]);
    assert_eq!(bytes[1024..], before[258 * 512..264 * 512]);
    assert_eq!(guest.running.made.1.errors.get(), 0);
}

#[test]
fn a_driver_that_resets_its_device_gets_it_back_though_the_volume_is_full() {
    let Some((mut guest, before, _rest)) = squeezed(0) else {
        return;
    };
    guest.submit(T_OUT, 64, Data::Out(&vec![0xa2; 4096 * 4]), 1);
    guest.queue.kick(&guest.running.made.0);
    crate::testing::wait(|| (guest.running.made.1.held.get() == 1).then_some(()));
    write32(&guest.running.made.0, 0x70, 0);
    crate::testing::wait(|| {
        (crate::testing::read32(&guest.running.made.0, 0x70) == 0).then_some(())
    });
    guest.queue = set_up(&guest.running.made.0, &guest.memory, 0, QUEUES).remove(0);
    let (read, bytes) = guest.read(64, 4096, 1);
    assert_eq!(
        (read, &bytes[..]),
        (S_OK, &before[64 * 512..64 * 512 + 4096])
    );
}
