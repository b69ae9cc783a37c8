//! The certificates that hosts are verified with: the host's own, and what the operator adds. A
//! network process may open no file, so it gets them as a descriptor.

use memchr::memmem;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Where distributions have them; the first that is there is read.
pub(super) const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How a certificate begins.
pub(super) const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Refuses a file of the operator's that has no certificates. It is read for each network process
/// that needs them.
///
/// # Errors
/// Why.
pub(super) fn check(path: &Path) -> Result<(), String> {
    let refused = |why: &dyn std::fmt::Display| {
        Err(format!(
            "network.extra_roots is {path:?}, which {why}: name a file of certificates, PEM"
        ))
    };
    match std::fs::read(path) {
        Ok(text) if memmem::find(&text, BEGIN).is_some() => Ok(()),
        Ok(_) => refused(&"has no certificate"),
        Err(error) => refused(&format_args!("cannot be read ({error})")),
    }
}

/// This host's own.
pub(super) fn host_bundle() -> Option<Vec<u8>> {
    BUNDLES.iter().find_map(|path| std::fs::read(path).ok())
}

/// All of them in a file without a name, which nobody can change.
///
/// # Errors
/// The operator's cannot be read, or there is no memory. A host without any is told in the log.
pub(super) fn certificates(extra: Option<&Path>) -> io::Result<OwnedFd> {
    let bundle = host_bundle();
    if bundle.is_none() && extra.is_none() {
        tracing::warn!(
            looked_for = ?BUNDLES,
            "no host is trusted by network.rules: this one has no certificate authorities"
        );
    }
    let extra = extra.map(std::fs::read).transpose()?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("hatchery-roots", flags)?);
    for part in [bundle, extra].into_iter().flatten() {
        file.write_all(&part)?;
        file.write_all(b"\n")?;
    }
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn the_operators_certificates_come_behind_the_hosts_and_nobody_changes_them() {
        let dir = tempfile::tempdir().unwrap();
        let extra = dir.path().join("extra.pem");
        std::fs::write(&extra, "EXTRA").unwrap();
        let mut file = File::from(certificates(Some(&extra)).unwrap());
        let mut text = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut text).unwrap();
        assert!(text.ends_with(b"EXTRA\n"));
        file.write_all(b"x").unwrap_err();
        let none = dir.path().join("none");
        certificates(Some(&none)).unwrap_err();
        assert!(check(&none).unwrap_err().contains("none"));
        assert!(check(&extra).unwrap_err().contains("no certificate"));
        std::fs::write(&extra, [b"# it\n", BEGIN].concat()).unwrap();
        check(&extra).unwrap();
    }
}
