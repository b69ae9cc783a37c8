//! Ending the guest's TLS to hosts whose requests get headers: certificates for their names, and
//! what the hosts' own are verified with. Nothing of it is made before a first flow wants it.

use crate::intercept_fault::InterceptFault;
use authority::Signer;
use control::{HeaderRules, HostHeaders};
use rustix::io::{Errno, pread};
use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The only protocol in which headers are added.
const PROTOCOL: &[u8] = b"http/1.1";
/// Most flows whose TLS is ended at a time.
const MAX_INTERCEPTED: usize = 256;
/// Most names whose certificates are kept.
const MAX_CERTIFICATES: usize = 64;
/// Most sessions with hosts that are taken up again.
const MAX_SESSIONS: usize = 32;
/// Most bytes of the file of certificates that hosts are verified with.
const MAX_ROOTS: usize = 8 << 20;

/// The headers of a host, as a flow holds them.
pub(crate) type HostRule = Arc<HostHeaders>;

/// The host's side of a flow that begins.
pub(crate) struct HostOpening {
    pub(crate) connection: ClientConnection,
    /// The flow's place among those that there may be.
    pub(crate) held: Arc<()>,
}

/// What TLS needs once a first flow has wanted it.
struct TlsMaterial {
    signer: Signer,
    hosts: Arc<ClientConfig>,
}

/// One network's rules, and what they need.
pub(crate) struct Interception {
    rules: Option<HeaderRules>,
    /// Certificates, PEM; gone when they have been read.
    roots: Option<OwnedFd>,
    material: Option<TlsMaterial>,
    certificates: HashMap<String, Arc<ServerConfig>>,
    /// Held by each open flow.
    open: Arc<()>,
}

impl std::fmt::Debug for Interception {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interception")
            .field("rules", &self.rules)
            .field("certificates", &self.certificates.len())
            .finish_non_exhaustive()
    }
}

impl Interception {
    /// By these rules, with hosts verified by the certificates in a file; by none: nothing.
    pub(crate) fn new(rules: Option<(HeaderRules, OwnedFd)>) -> Self {
        let (rules, roots) = rules.unzip();
        Self {
            rules,
            roots,
            material: None,
            certificates: HashMap::new(),
            open: Arc::new(()),
        }
    }

    /// Puts other rules in place. Flows that have begun hold their headers.
    pub(crate) fn replace(&mut self, rules: Option<(HeaderRules, OwnedFd)>) {
        let open = Arc::clone(&self.open);
        *self = Self {
            open,
            ..Self::new(rules)
        };
    }

    /// Whether any host's requests get headers.
    pub(crate) const fn is_on(&self) -> bool {
        self.rules.is_some()
    }

    /// The headers for requests to this name.
    pub(crate) fn rule(&self, name: &str) -> Option<&HostHeaders> {
        self.rules.as_ref()?.find(name)
    }

    /// Begins TLS with the host of this name, for a flow whose guest waits meanwhile.
    pub(crate) fn begin(&mut self, name: &str) -> Result<HostOpening, InterceptFault> {
        if Arc::strong_count(&self.open) > MAX_INTERCEPTED {
            return Err(InterceptFault::TooMany);
        }
        let hosts = Arc::clone(&self.material()?.hosts);
        let server = ServerName::try_from(name.to_owned()).map_err(|_| InterceptFault::HostTls)?;
        let connection = ClientConnection::new(hosts, server);
        Ok(HostOpening {
            connection: connection.map_err(|_| InterceptFault::HostTls)?,
            held: Arc::clone(&self.open),
        })
    }

    /// The guest's side of a flow whose host has been verified.
    pub(crate) fn accept(&mut self, name: &str) -> Result<ServerConnection, InterceptFault> {
        let config = match self.certificates.get(name) {
            Some(config) => Arc::clone(config),
            None => self.certify(name)?,
        };
        ServerConnection::new(config).map_err(|_| InterceptFault::GuestTls)
    }

    fn certify(&mut self, name: &str) -> Result<Arc<ServerConfig>, InterceptFault> {
        let made = self.material()?.signer.certify(name);
        let made = made.map_err(|_| InterceptFault::GuestTls)?;
        let chain = vec![CertificateDer::from(made.certificate)];
        let key = PrivatePkcs8KeyDer::from(made.key).into();
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let config = builder
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
        let mut config = config.map_err(|_| InterceptFault::GuestTls)?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // The way to the guest is short: nothing is worth being remembered.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let config = Arc::new(config);
        if self.certificates.len() >= MAX_CERTIFICATES {
            self.certificates.clear();
        }
        self.certificates
            .insert(name.to_owned(), Arc::clone(&config));
        Ok(config)
    }

    fn material(&mut self) -> Result<&TlsMaterial, InterceptFault> {
        if self.material.is_none() {
            let rules = self.rules.as_ref().ok_or(InterceptFault::HostTls)?;
            let signer = Signer::new(rules.authority_key.expose());
            let signer = signer.map_err(|_| InterceptFault::GuestTls)?;
            let roots = self.roots.take().as_ref().map_or(Ok(Vec::new()), read_all);
            let hosts = hosts_config(&roots.map_err(|_| InterceptFault::Untrusted)?)?;
            self.material = Some(TlsMaterial { signer, hosts });
        }
        self.material.as_ref().ok_or(InterceptFault::HostTls)
    }
}

/// How hosts are spoken to: verified by these certificates, PEM. One that cannot be read verifies
/// nobody.
fn hosts_config(roots: &[u8]) -> Result<Arc<ClientConfig>, InterceptFault> {
    let certificates = CertificateDer::pem_slice_iter(roots).filter_map(Result::ok);
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates);
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions();
    let builder = builder.map_err(|_| InterceptFault::HostTls)?;
    let mut config = builder.with_root_certificates(store).with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.resumption = Resumption::in_memory_sessions(MAX_SESSIONS);
    Ok(Arc::new(config))
}

/// A whole file, from its beginning wherever others have read it.
fn read_all(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let mut part = vec![0; 64 * 1024];
    while bytes.len() < MAX_ROOTS {
        match pread(file, &mut part[..], bytes.len() as u64) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&part[..count]),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}
