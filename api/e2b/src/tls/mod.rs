//! TLS for the service's own domain: a listener beside the plain one, with a certificate out of two
//! files that is read again when they change.
//!
//! ```text
//! files ── certificate: read, checked ──> CurrentCertificate <── every handshake
//!   ^                                          ^
//!   └───── every few seconds: watch ── a new pair that is good
//! ```
//!
//! After its handshake, a connection is one like those of the plain listener.

mod certificate;
mod der;
mod watch;

pub use certificate::{ServingCertificate, TlsError, TlsFiles};

use certificate::TimeLeft;
use engine::error::chain;
use jiff::Timestamp;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use watch::{FileWatch, PairStamp};

/// What is spoken.
const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
/// What is spoken inside, the better one first (RFC 7301).
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Between two looks at the files. No event tells of a link whose target is another one now, or of
/// a volume that another machine writes; and a certificate ends without any.
const LOOK: Duration = Duration::from_secs(2);

/// For a client that begins with a method of HTTP, and not with a record of TLS.
const PLAIN_ANSWER: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n\
    Content-Length: 67\r\nConnection: close\r\n\r\n\
    {\"code\":400,\"message\":\"This port speaks TLS: use https in the URL\"}";

/// One end of TLS.
#[derive(Debug)]
pub struct TlsServer {
    files: TlsFiles,
    /// Below which clients ask for names.
    domain: String,
    /// The files as they were when they were read first.
    opened: PairStamp,
    current: Arc<CurrentCertificate>,
    config: Arc<ServerConfig>,
}

/// The certificate of the next handshake.
#[derive(Debug)]
struct CurrentCertificate(RwLock<Arc<ServingCertificate>>);

impl CurrentCertificate {
    fn get(&self) -> Arc<ServingCertificate> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, certificate: ServingCertificate) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificate);
    }
}

impl ResolvesServerCert for CurrentCertificate {
    /// The same whatever name is asked for: a client that wants another one refuses it.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.get().key))
    }
}

impl TlsServer {
    /// With the certificate and the key in these files, for names below `domain`. What is not well
    /// but can be served with is said in the log.
    ///
    /// # Errors
    /// [`TlsError`]: they cannot be read, or are none, or do not belong together.
    pub fn open(files: TlsFiles, domain: &str) -> Result<Self, TlsError> {
        // Before they are read: what changes meanwhile is read again.
        let opened = PairStamp::of(&files);
        let first = ServingCertificate::read(&files)?;
        tell(&first, &files, domain);
        let current = Arc::new(CurrentCertificate(RwLock::new(Arc::new(first))));
        let resolver = Arc::clone(&current) as Arc<dyn ResolvesServerCert>;
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&VERSIONS)
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        Ok(Self {
            files,
            domain: domain.to_owned(),
            opened,
            current,
            config: Arc::new(config),
        })
    }

    /// Reads the files whenever they have changed, for ever.
    pub(crate) async fn keep_current(self: Arc<Self>) {
        let mut watch = FileWatch::new(self.opened);
        let mut left = self.current.get().time_left(Timestamp::now());
        loop {
            tokio::time::sleep(LOOK).await;
            let server = Arc::clone(&self);
            // They may be on a volume that is slow.
            let looked = tokio::task::spawn_blocking(move || {
                server.look(&mut watch);
                watch
            });
            let Ok(back) = looked.await else {
                return; // the runtime ends
            };
            watch = back;
            let current = self.current.get();
            let now = current.time_left(Timestamp::now());
            if left != now && now != TimeLeft::Enough {
                warn(&current, &self.files, &self.domain);
            }
            left = now;
        }
    }

    /// One look. What cannot be served with leaves all as it is.
    fn look(&self, watch: &mut FileWatch) {
        if !watch.is_new(PairStamp::of(&self.files)) {
            return;
        }
        let read = ServingCertificate::read(&self.files).and_then(|read| {
            read.check_end(&self.files)?;
            Ok(read)
        });
        match read {
            Ok(read) => {
                tell(&read, &self.files, &self.domain);
                self.current.set(read);
            }
            Err(error) => tracing::error!(
                error = chain(&error),
                "the files of the certificate have changed and cannot be served with: the one \
                 that was read before is kept"
            ),
        }
    }

    /// The handshake of a new connection, within `limit`.
    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
        limit: Duration,
    ) -> io::Result<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.config));
        let shake = async {
            let mut first = [0];
            if stream.peek(&mut first).await? == 1 && first[0].is_ascii_uppercase() {
                let _ = stream.try_write(PLAIN_ANSWER.as_bytes());
                return Err(io::Error::other("the client speaks HTTP without TLS"));
            }
            acceptor.accept(stream).await
        };
        let shaken = tokio::time::timeout(limit, shake).await;
        shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Says in the log what will be served with, and what is not well about it.
fn tell(certificate: &ServingCertificate, files: &TlsFiles, domain: &str) {
    let (path, names) = (files.certificate.display(), certificate.names());
    let ends = certificate.ends.map(|ends| ends.to_string());
    tracing::info!(certificate = %path, names, ends, "a certificate is read");
    warn(certificate, files, domain);
}

fn warn(certificate: &ServingCertificate, files: &TlsFiles, domain: &str) {
    for warning in certificate.warnings(files, domain) {
        tracing::warn!("{warning}");
    }
}

#[cfg(test)]
mod test;
