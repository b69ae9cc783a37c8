//! Namespaces: a view of the system in which there is nothing.
#![expect(unsafe_code, reason = "unshare can take away what other threads use")]

use crate::error::JailError;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    unmount,
};
use rustix::process::{chdir, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Where the empty root is put together; in a mount namespace of its own, so nobody else sees it.
const STAGE: &str = "/tmp";

fn system(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> JailError {
    move |source| JailError::System {
        what,
        source: source.into(),
    }
}

/// Gives the calling thread a root, working folder and mask of its own, so that it may enter
/// namespaces by itself while others go on.
///
/// # Errors
/// [`JailError::System`].
pub fn leave_shared_paths() -> Result<(), JailError> {
    // SAFETY: the thread's paths are copied; descriptors, the only ones with owners, stay shared.
    unsafe { unshare_unsafe(UnshareFlags::FS) }.map_err(system("have paths of its own"))
}

/// Moves the process into namespaces of its own: no network interface, no System V objects, a host
/// name that nobody sees, and a file system with nothing in it but `/proc`. Processes that it forks
/// are born in them, for nothing.
///
/// # Errors
/// [`JailError::System`]; without the right to administer the system (root), the first step fails
/// and nothing has changed.
///
/// # Safety
/// The process must have one thread, or the calling one must have [left](leave_shared_paths) the
/// others' paths; it must own no path that it still needs.
pub unsafe fn enter_empty_namespaces() -> Result<(), JailError> {
    let flags =
        UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: there is one thread, says the caller; descriptors are not among the flags.
    unsafe { unshare_unsafe(flags) }.map_err(system("leave the namespaces"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(system("keep mounts to itself"))?;
    let sealed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let size = c"size=64k,nr_inodes=8,mode=0555";
    mount("none", STAGE, "tmpfs", sealed, size).map_err(system("mount an empty root"))?;
    chdir(STAGE).map_err(system("enter the empty root"))?;
    rustix::fs::mkdir("proc", 0o555.into()).map_err(system("make /proc"))?;
    // Not a new one: where the service itself is in a container, that may be forbidden.
    mount_bind_recursive("/proc", "proc").map_err(system("keep /proc"))?;
    pivot_root(".", ".").map_err(system("turn to the empty root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(system("give up the old root"))?;
    chdir("/").map_err(system("enter the new root"))
}

/// Makes the calling thread's control group the highest that it sees. Not a part of
/// [`enter_empty_namespaces`], as who forks a process into another group has to see that.
///
/// # Errors
/// [`JailError::System`] without the right to administer the system.
pub fn see_own_group_only() -> Result<(), JailError> {
    // SAFETY: nothing that other threads use is among the flags; paths and descriptors stay.
    unsafe { unshare_unsafe(UnshareFlags::NEWCGROUP) }.map_err(system("leave its group's view"))
}

/// Makes the calling thread, and those that it starts, this user and nobody else: no group, no
/// capability. It may still look at its own files in `/proc`, until [`crate::seal`].
///
/// # Errors
/// [`JailError::System`] without the right to change users.
pub fn become_user(id: u32) -> Result<(), JailError> {
    become_user_of_group(id, id)
}

/// As [`become_user`], with another group than the one of the user's number.
///
/// # Errors
/// [`JailError::System`] without the right to change users.
pub fn become_user_of_group(user: u32, group: u32) -> Result<(), JailError> {
    use rustix::process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior};
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    set_thread_groups(&[]).map_err(system("leave all groups"))?;
    set_thread_res_gid(group, group, group).map_err(system("change the group"))?;
    set_thread_res_uid(user, user, user).map_err(system("change the user"))?;
    // The kernel takes a process that changed its user for one with secrets, and hides it.
    set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(system("see itself"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn nothing_is_left_and_the_parent_keeps_all() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: this needs root");
            return;
        }
        // Namespaces and users are a thread's own at first, so this test costs only its own thread.
        let alone = std::thread::spawn(|| {
            leave_shared_paths().unwrap();
            // SAFETY: what is left behind is this thread's, and it needs no path afterwards.
            unsafe { enter_empty_namespaces() }.unwrap();
            let names: Vec<_> = std::fs::read_dir("/").unwrap().collect();
            assert_eq!(names.len(), 1, "{names:?}");
            see_own_group_only().unwrap();
            let groups = std::fs::read_to_string("/proc/thread-self/cgroup").unwrap();
            assert!(groups.lines().all(|line| line.ends_with(":/")), "{groups}");
            become_user(1_234_567_890).unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
            assert!(
                status.contains("\nUid:\t1234567890\t1234567890\t"),
                "{status}"
            );
        });
        alone.join().unwrap();
        assert!(std::path::Path::new("/usr").exists());
        assert!(rustix::process::geteuid().is_root());
    }
}
