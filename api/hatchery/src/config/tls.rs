//! The `[tls]` table: TLS for the service's own domain.

use crate::config::error::ConfigError;
use crate::config::typed::{Overrides, TlsFile};
use e2b::tls::TlsFiles;
use std::net::SocketAddr;

/// TLS, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// Where to listen for it.
    pub listen: SocketAddr,
    /// The certificate and its key.
    pub files: TlsFiles,
    /// The domain below which clients ask for names.
    pub domain: String,
}

/// Checks the table and fills the default in; `None`: no TLS.
pub(super) fn tls(
    file: TlsFile,
    over: &Overrides,
    domain: Option<&str>,
) -> Result<Option<TlsSettings>, ConfigError> {
    let listen = over.tls_listen.or(file.listen);
    let certificate = over.tls_certificate.clone().or(file.certificate);
    let key = over.tls_key.clone().or(file.key);
    let (certificate, key) = match (certificate, key) {
        (Some(certificate), Some(key)) => (certificate, key),
        (None, None) if listen.is_none() => return Ok(None),
        (None, _) => return Err(ConfigError::TlsFile("tls.certificate")),
        (_, None) => return Err(ConfigError::TlsFile("tls.key")),
    };
    let default_listen = SocketAddr::from(([0, 0, 0, 0], 443));
    Ok(Some(TlsSettings {
        listen: listen.unwrap_or(default_listen),
        files: TlsFiles { certificate, key },
        domain: domain.ok_or(ConfigError::TlsDomain)?.to_owned(),
    }))
}
