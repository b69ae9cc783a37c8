//! TLS on both sides of a network process: a guest that trusts its sandbox's authority, and servers
//! with certificates of an authority of their own.

use super::NetGuest;
use authority::{CertifiedKey, Signer, new_authority, pem};
use control::{HeaderRules, HostHeaders, SecretBytes, SecretHeader};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

pub(crate) type TlsServer = StreamOwned<ServerConnection, TcpStream>;

/// The authority of a sandbox, and that of the servers.
pub(crate) struct Trust {
    pub(crate) sandbox: CertifiedKey,
    pub(crate) servers: CertifiedKey,
}

impl Trust {
    pub(crate) fn new() -> Self {
        Self {
            sandbox: new_authority().unwrap(),
            servers: new_authority().unwrap(),
        }
    }

    /// A file with the servers' authority.
    pub(crate) fn roots(&self) -> OwnedFd {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("roots", flags).unwrap();
        let pem = pem(&self.servers.certificate);
        rustix::io::write(&file, pem.as_bytes()).unwrap();
        file
    }

    /// Rules with a header `x-key` for each host.
    pub(crate) fn rules(&self, hosts: &[(&str, &str)]) -> HeaderRules {
        let host = |(host, value): &(&str, &str)| HostHeaders {
            host: host.parse().unwrap(),
            headers: vec![SecretHeader {
                name: "x-key".into(),
                value: SecretBytes::new((*value).into()),
            }],
        };
        HeaderRules {
            authority_key: SecretBytes::new(self.sandbox.key.clone()),
            hosts: hosts.iter().map(host).collect(),
        }
    }

    /// A server of this name for one connection, and what it does with it.
    pub(crate) fn server<T: Send + 'static>(
        &self,
        name: &str,
        serve: impl FnOnce(TlsServer) -> T + Send + 'static,
    ) -> (SocketAddr, JoinHandle<T>) {
        let made = Signer::new(&self.servers.key)
            .unwrap()
            .certify(name)
            .unwrap();
        let chain = vec![CertificateDer::from(made.certificate)];
        let key = PrivatePkcs8KeyDer::from(made.key).into();
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let config = builder.with_no_client_auth().with_single_cert(chain, key);
        let config = Arc::new(config.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(super::LIMIT)).unwrap();
            serve(StreamOwned::new(
                ServerConnection::new(config).unwrap(),
                stream,
            ))
        });
        (address, thread)
    }

    /// The guest's side of a connection for this name, which trusts only its sandbox's authority.
    pub(crate) fn client(&self, name: &str) -> ClientConnection {
        Self::client_of(&self.sandbox, name)
    }

    /// The same with another authority.
    pub(crate) fn client_of(authority: &CertifiedKey, name: &str) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        let own = CertificateDer::from(authority.certificate.clone());
        roots.add(own).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let server = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), server).unwrap();
        client.set_buffer_limit(Some(16 * 1024));
        client
    }
}

/// A connection of the guest's, in TLS.
pub(crate) struct TlsFlow {
    pub(crate) flow: SocketHandle,
    pub(crate) tls: ClientConnection,
    /// What has been read.
    pub(crate) heard: Vec<u8>,
    pub(crate) over: bool,
    pub(crate) error: Option<rustls::Error>,
}

impl TlsFlow {
    pub(crate) fn connect(guest: &mut NetGuest, to: SocketAddr, tls: ClientConnection) -> Self {
        let flow = guest.connect(to);
        guest.until_state(flow, State::Established);
        Self {
            flow,
            tls,
            heard: Vec::new(),
            over: false,
            error: None,
        }
    }

    /// Moves what there is.
    pub(crate) fn turn(&mut self, guest: &mut NetGuest) {
        let socket = guest.tcp(self.flow);
        while self.tls.wants_write() && socket.can_send() {
            let mut bytes = Vec::new();
            let room = socket.send_capacity() - socket.send_queue();
            if room < 40_000 {
                break;
            }
            self.tls.write_tls(&mut bytes).unwrap();
            assert_eq!(socket.send_slice(&bytes).unwrap(), bytes.len());
        }
        while socket.can_recv() && self.error.is_none() {
            let read = socket.recv(|bytes| {
                let (length, mut rest) = (bytes.len(), &*bytes);
                let _ = self.tls.read_tls(&mut rest);
                (length - rest.len(), ())
            });
            read.unwrap();
            self.process();
        }
        if !socket.may_recv() && !self.over {
            let _ = self.tls.read_tls(&mut std::io::empty());
            self.process();
            self.over = true;
        }
    }

    fn process(&mut self) {
        if let Err(error) = self.tls.process_new_packets() {
            self.error = Some(error);
        }
        let _ = self.tls.reader().read_to_end(&mut self.heard);
    }

    /// Sends all of it.
    pub(crate) fn send(&mut self, guest: &mut NetGuest, bytes: &[u8]) {
        let mut sent = 0;
        guest.until("sending over TLS", |guest| {
            sent += self.tls.writer().write(&bytes[sent..]).unwrap();
            self.turn(guest);
            let waits = self.tls.is_handshaking() || self.tls.wants_write();
            (sent == bytes.len() && !waits).then_some(())
        });
    }

    /// Receives until something holds of what has come, and takes that.
    pub(crate) fn receive(
        &mut self,
        guest: &mut NetGuest,
        enough: impl Fn(&[u8]) -> bool,
    ) -> Vec<u8> {
        guest.until("receiving over TLS", |guest| {
            self.turn(guest);
            assert!(!self.over || enough(&self.heard), "{:?}", self.error);
            enough(&self.heard).then(|| std::mem::take(&mut self.heard))
        })
    }

    /// Waits for the end of it.
    pub(crate) fn ended(&mut self, guest: &mut NetGuest) {
        guest.until("its end", |guest| {
            self.turn(guest);
            self.over.then_some(())
        });
    }
}

/// Reads a request's head; `None` at the end of them.
pub(crate) fn head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            Ok(_) | Err(_) if head.is_empty() => return None,
            other => panic!("{other:?} in the middle of a head"),
        }
    }
    Some(String::from_utf8(head).unwrap())
}
