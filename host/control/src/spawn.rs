//! Starting a VM process.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Starts `program` as a VM process: empty environment, the control socket as standard input,
/// nothing on standard output, and its log lines on [`Child::stderr`]. Returns the process and the
/// service's end of the control socket.
///
/// There is no code between fork and exec, so the standard library uses `posix_spawn`, whose cost
/// does not grow with the size of the calling process.
///
/// # Errors
/// When the program cannot be started or the process is out of descriptors.
pub fn spawn(program: impl AsRef<OsStr>, args: &[&str]) -> io::Result<(Child, OwnedFd)> {
    let (ours, theirs) = crate::pair()?;
    let child = Command::new(program)
        .args(args)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A terminal's Ctrl-C is for the service, which ends its machines in order.
        .process_group(0)
        .spawn()?;
    Ok((child, ours))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_child_holds_the_other_end_as_standard_input() {
        let (mut child, control) = spawn("/bin/sh", &["-c", "test -S /dev/stdin"]).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(
            crate::recv::<crate::Event>(&control).unwrap().is_none(),
            "it is gone"
        );
    }
}
