//! A domain with TLS for a server under test: who signs, and the certificate of all names below
//! `sbx.localhost`, which the Python SDK resolves by itself.

use crate::lab::free_port;
use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::fs;
use std::path::{Path, PathBuf};

/// The domain but for its port.
const NAME: &str = "sbx.localhost";

/// What a server needs to serve TLS, and a client to trust it.
pub(super) struct TestDomain {
    /// With the port.
    pub(super) domain: String,
    /// The certificate that clients trust.
    pub(super) root: PathBuf,
    /// Flags of `hatchery serve`.
    pub(super) flags: String,
}

impl TestDomain {
    /// Writes the files into `dir`, and takes a free port.
    pub(super) fn make(dir: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let params = CertificateParams::new([format!("*.{NAME}")])?;
        let certificate = params.signed_by(&key, &issuer)?;
        let file = |name: &str, text: String| {
            let path = dir.join(name);
            fs::write(&path, text).map(|()| path)
        };
        let root = file("tls-root.pem", issuer.pem())?;
        let chain = file("tls-chain.pem", certificate.pem())?;
        let key = file("tls-key.pem", key.serialize_pem())?;
        let port = free_port()?;
        let flags = format!(
            "--domain {NAME}:{port} --tls-listen 127.0.0.1:{port} --tls-certificate \"{}\" \
             --tls-key \"{}\"",
            chain.display(),
            key.display()
        );
        Ok(Self {
            domain: format!("{NAME}:{port}"),
            root,
            flags,
        })
    }
}
