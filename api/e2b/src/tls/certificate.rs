//! A certificate and its key, as files have them and as handshakes need them.

use crate::ports::ENVD_PORT;
use crate::tls::der;
use jiff::{SignedDuration, Timestamp};
use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use rustls::{Error as RustlsError, InconsistentKeys};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};
use webpki::EndEntityCert;

/// Most names of a certificate that are told.
const MAX_NAMES: usize = 8;
/// Who renews in time has done so when no more than this is left, also of the shortest-lived ones.
const LITTLE: SignedDuration = SignedDuration::from_hours(48);
/// What everybody may do with a file that everybody may read.
const READ_BY_OTHERS: u32 = 0o004;

/// Where a certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then those of who signed it.
    pub certificate: PathBuf,
    /// The private key of the first.
    pub key: PathBuf,
}

/// Why TLS cannot be served with the files that there are.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there, or may not be read.
    #[error("Cannot read {} ({setting})", path.display())]
    Read {
        /// Who names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No certificate is in the file that should have one.
    #[error(
        "{} (tls.certificate) has no certificate that can be read ({why}): it has to be a PEM file \
         with the server's certificate first and then those of who signed it, as certbot's \
         fullchain.pem is", path.display()
    )]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// No key is in the file that should have one.
    #[error(
        "{} (tls.key) has no private key that can be used ({why}): it has to be a PEM file with an \
         RSA, ECDSA (P-256, P-384) or Ed25519 key without a password, as certbot's privkey.pem is",
        path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The key is another certificate's.
    #[error(
        "The private key in {} (tls.key) is not that of the first certificate in {} \
         (tls.certificate): put both files of one certificate there, and the server's certificate \
         before those of who signed it", key.display(), certificate.display()
    )]
    Mismatch {
        /// The file with the key.
        key: PathBuf,
        /// The file with the certificate.
        certificate: PathBuf,
    },
    /// It holds no longer.
    #[error(
        "The certificate in {} (tls.certificate) has ended at {ends}, and clients refuse it: put a \
         renewed one there", path.display()
    )]
    Ended {
        /// The file.
        path: PathBuf,
        /// Since when.
        ends: Timestamp,
    },
    /// What could only be if the library was built in another way.
    #[error("TLS cannot be served: {0}")]
    Setup(RustlsError),
}

/// How much longer a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeLeft {
    /// As far as is known.
    Enough,
    /// It should have been renewed.
    Little,
    /// Clients refuse it.
    Nothing,
}

/// A certificate that handshakes are made with.
#[derive(Debug)]
pub struct ServingCertificate {
    pub(super) key: Arc<CertifiedKey>,
    /// The names it is for, the first few.
    pub(super) names: Vec<String>,
    /// Until when it holds, if that can be read.
    pub ends: Option<Timestamp>,
    /// The file of its key can be read by everybody on this machine.
    pub exposed: bool,
}

impl ServingCertificate {
    /// Reads the files, and checks that they can be served with.
    ///
    /// # Errors
    /// [`TlsError`]: they cannot be read, or are none, or do not belong together.
    pub fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let no_certificate = |why: String| TlsError::NoCertificate {
            path: files.certificate.clone(),
            why,
        };
        let no_key = |why: String| TlsError::NoKey {
            path: files.key.clone(),
            why,
        };
        let chain = read_file("tls.certificate", &files.certificate)?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain)
            .collect::<Result<_, _>>()
            .map_err(|error| no_certificate(error.to_string()))?;
        let first = chain
            .first()
            .ok_or_else(|| no_certificate("no `BEGIN CERTIFICATE` in it".into()))?;
        let (names, ends) = told(first).map_err(|error| no_certificate(error.to_string()))?;
        let text = read_file("tls.key", &files.key)?;
        let key =
            PrivateKeyDer::from_pem_slice(&text).map_err(|error| no_key(error.to_string()))?;
        let provider = ring::default_provider();
        let signing = provider.key_provider.load_private_key(key);
        let signing = signing.map_err(|error| no_key(error.to_string()))?;
        let pair = CertifiedKey::new(chain, signing);
        match pair.keys_match() {
            Ok(()) => {}
            Err(RustlsError::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                return Err(TlsError::Mismatch {
                    key: files.key.clone(),
                    certificate: files.certificate.clone(),
                });
            }
            Err(error) => return Err(no_certificate(error.to_string())),
        }
        let mode = fs::metadata(&files.key).map_or(0, |found| found.permissions().mode());
        Ok(Self {
            key: Arc::new(pair),
            names,
            ends,
            exposed: mode & READ_BY_OTHERS != 0,
        })
    }

    /// How much longer it holds at this time.
    pub(super) fn time_left(&self, now: Timestamp) -> TimeLeft {
        match self.ends {
            Some(ends) if ends <= now => TimeLeft::Nothing,
            Some(ends) if now.duration_until(ends) <= LITTLE => TimeLeft::Little,
            _ => TimeLeft::Enough,
        }
    }

    /// An error if it holds no longer.
    pub(super) fn check_end(&self, files: &TlsFiles) -> Result<(), TlsError> {
        match (self.time_left(Timestamp::now()), self.ends) {
            (TimeLeft::Nothing, Some(ends)) => Err(TlsError::Ended {
                path: files.certificate.clone(),
                ends,
            }),
            _ => Ok(()),
        }
    }

    /// What to do about its end, if that is near or past.
    fn end_warning(&self, files: &TlsFiles) -> Option<String> {
        match self.time_left(Timestamp::now()) {
            TimeLeft::Enough => None,
            TimeLeft::Little => {
                let (path, ends) = (files.certificate.display(), self.ends?);
                let soon = format!("The certificate in {path} (tls.certificate) ends at {ends}");
                Some(format!(
                    "{soon}, and clients refuse it then: put a renewed one there"
                ))
            }
            TimeLeft::Nothing => self.check_end(files).err().map(|error| error.to_string()),
        }
    }

    /// What the operator should change though it can be served with, in sentences.
    #[must_use]
    pub fn warnings(&self, files: &TlsFiles, domain: &str) -> Vec<String> {
        let name = domain.split(':').next().unwrap_or_default();
        let hosts = [format!("api.{name}"), format!("{ENVD_PORT}-i1.{name}")];
        let foreign = hosts.iter().any(|host| !self.is_for(host)).then(|| {
            format!(
                "The certificate in {} (tls.certificate) is for {}, and clients ask for names \
                 below {name}: get one for *.{name}, or set `domain` to what it is for",
                files.certificate.display(),
                self.names(),
            )
        });
        let exposed = self.exposed.then(|| {
            let key = files.key.display();
            format!("Everybody on this machine can read {key} (tls.key): chmod 600 {key}")
        });
        [self.end_warning(files), foreign, exposed]
            .into_iter()
            .flatten()
            .collect()
    }

    /// The names it is for, in one line.
    #[must_use]
    pub fn names(&self) -> String {
        if self.names.is_empty() {
            return "no host name".into();
        }
        self.names.join(", ")
    }

    /// Whether clients that ask for this host take it for that one's.
    fn is_for(&self, host: &str) -> bool {
        let certificate = self.key.end_entity_cert().ok();
        let certificate = certificate.and_then(|der| EndEntityCert::try_from(der).ok());
        let name = ServerName::try_from(host).ok();
        certificate.zip(name).is_some_and(|(certificate, name)| {
            certificate.verify_is_valid_for_subject_name(&name).is_ok()
        })
    }
}

fn read_file(setting: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read {
        setting,
        path: path.to_owned(),
        source,
    })
}

/// A certificate's names and its end.
fn told(der: &CertificateDer<'_>) -> Result<(Vec<String>, Option<Timestamp>), webpki::Error> {
    let certificate = EndEntityCert::try_from(der)?;
    let names = certificate.valid_dns_names().take(MAX_NAMES);
    let names = names.map(str::to_owned).collect();
    Ok((names, der::end(der)))
}
