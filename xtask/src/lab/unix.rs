//! Unix sockets in folders whose path may be longer than the 107 bytes that an address holds.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Connects to the socket at `path`.
pub(super) fn connect(path: &Path) -> Result<UnixStream> {
    let (_folder, short) = short(path)?;
    UnixStream::connect(short)
}

/// Listens at `path`, in place of whatever is there.
pub(super) fn listen(path: &Path) -> Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let (_folder, short) = short(path)?;
    UnixListener::bind(short)
}

/// The socket's folder, opened, and a short path by way of it.
fn short(path: &Path) -> Result<(File, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "a socket's path without a folder",
        ));
    };
    let folder = File::open(folder)?;
    let short = Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(name);
    Ok((folder, short))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_long_path_works() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("socket");
        std::fs::write(&path, "a socket of an earlier process").unwrap();
        let listener = listen(&path).unwrap();
        let mut near = connect(&path).unwrap();
        near.write_all(b"hello").unwrap();
        drop(near);
        let mut text = String::new();
        listener
            .accept()
            .unwrap()
            .0
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "hello");
    }
}
