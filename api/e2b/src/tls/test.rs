use super::*;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::Instant;

const DOMAIN: &str = "sandbox.example.com:8443";
const LIMIT: Duration = Duration::from_secs(10);

/// A certificate of these names that ends in this year, and its key.
fn made(names: &[&str], year: i32) -> (String, String) {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_after = date_time_ymd(year, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    (certificate, key.serialize_pem())
}

fn good() -> (String, String) {
    made(&["*.sandbox.example.com"], 2100)
}

/// Writes a file that is told from every earlier one by its length: the clock of files ticks every
/// few ms only, and what is behind a PEM text means nothing.
fn write(path: &Path, text: &str) {
    static WRITTEN: AtomicUsize = AtomicUsize::new(0);
    let lines = WRITTEN.fetch_add(1, Ordering::Relaxed) * 4096;
    fs::write(path, format!("{text}{}", "\n".repeat(lines))).unwrap();
}

/// Files with these texts.
fn written(dir: &Path, (certificate, key): &(String, String)) -> TlsFiles {
    let files = TlsFiles {
        certificate: dir.join("fullchain.pem"),
        key: dir.join("privkey.pem"),
    };
    write(&files.certificate, certificate);
    write(&files.key, key);
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
    files
}

#[test]
fn files_that_cannot_be_served_with_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = good();
    let refused = |certificate: &str, key: &str| {
        let files = written(dir.path(), &(certificate.to_owned(), key.to_owned()));
        TlsServer::open(files, DOMAIN).unwrap_err().to_string()
    };
    let (other, _) = good();
    let mismatch = refused(&other, &key);
    assert!(
        mismatch.contains("privkey.pem (tls.key) is not that of"),
        "{mismatch}"
    );
    assert!(mismatch.contains("fullchain.pem"), "{mismatch}");
    let broken = certificate.replacen("MI", "M!", 1);
    let empty = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    for bad in ["", "garbage", &key, &broken, &certificate[..90], empty] {
        let said = refused(bad, &key);
        assert!(
            said.contains("fullchain.pem (tls.certificate) has no cert"),
            "{said}"
        );
    }
    let locked = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    for bad in ["", "garbage", &certificate, &key[..60], &locked] {
        let said = refused(&certificate, bad);
        assert!(
            said.contains("privkey.pem (tls.key) has no private key"),
            "{said}"
        );
    }
    let files = written(dir.path(), &good());
    fs::remove_file(&files.key).unwrap();
    let said = chain(&TlsServer::open(files, DOMAIN).unwrap_err());
    assert!(
        said.contains("Cannot read") && said.contains("(tls.key): No such"),
        "{said}"
    );
}

#[test]
fn what_is_not_well_is_said_and_served_with() {
    let dir = tempfile::tempdir().unwrap();
    let warnings = |files: &TlsFiles| {
        let read = ServingCertificate::read(files).unwrap();
        read.warnings(files, DOMAIN)
    };
    let files = written(dir.path(), &good());
    assert_eq!(warnings(&files), Vec::<String>::new());
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    let [exposed] = warnings(&files).try_into().unwrap();
    assert!(exposed.contains("chmod 600"), "{exposed}");
    let ended = written(dir.path(), &made(&["*.sandbox.example.com"], 2001));
    let read = ServingCertificate::read(&ended).unwrap();
    let left = |text: &str| read.time_left(text.parse().unwrap());
    assert_eq!(left("2000-12-29T23:59:59Z"), TimeLeft::Enough);
    assert_eq!(left("2000-12-30T00:00:00Z"), TimeLeft::Little);
    assert_eq!(left("2001-01-01T00:00:00Z"), TimeLeft::Nothing);
    let [ended] = warnings(&ended).try_into().unwrap();
    assert!(ended.contains("has ended at 2001-01-01"), "{ended}");
    for other in [
        "sandbox.example.com",
        "*.example.com",
        "*.other.example.com",
    ] {
        let files = written(dir.path(), &made(&[other], 2100));
        let [foreign] = warnings(&files).try_into().unwrap();
        assert!(foreign.contains(&format!("is for {other},")), "{foreign}");
        assert!(
            foreign.contains("get one for *.sandbox.example.com,"),
            "{foreign}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_pair_is_served_with_and_a_bad_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let files = written(dir.path(), &made(&["one.example.com"], 2100));
    let server = Arc::new(TlsServer::open(files, DOMAIN).unwrap());
    tokio::spawn(Arc::clone(&server).keep_current());
    let names = async |after: u32| {
        // The clock is the test's: it goes on when all else waits.
        tokio::time::sleep(LOOK * after).await;
        server.current.get().names.clone()
    };
    assert_eq!(names(3).await, ["one.example.com"]);
    written(dir.path(), &made(&["two.example.com"], 2100));
    assert_eq!(names(3).await, ["two.example.com"]);
    let (certificate, key) = made(&["three.example.com"], 2100);
    written(dir.path(), &(certificate, "garbage".into()));
    assert_eq!(names(3).await, ["two.example.com"]);
    write(&dir.path().join("privkey.pem"), &key);
    assert_eq!(names(3).await, ["three.example.com"], "the key came late");
    written(dir.path(), &made(&["ended.example.com"], 2001));
    assert_eq!(
        names(3).await,
        ["three.example.com"],
        "no client would take it"
    );
    fs::remove_file(dir.path().join("privkey.pem")).unwrap();
    assert_eq!(names(3).await, ["three.example.com"]);
    written(dir.path(), &made(&["four.example.com"], 2100));
    assert_eq!(names(3).await, ["four.example.com"]);
}

/// A connection, and what became of its handshake.
async fn shake(client: impl AsyncFnOnce(TcpStream)) -> (io::Result<()>, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let server = TlsServer::open(written(dir.path(), &good()), DOMAIN).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stream, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let begin = Instant::now();
    let accept = server.accept(accepted.unwrap().0, LIMIT);
    let (shaken, ()) = tokio::join!(accept, client(stream.unwrap()));
    (shaken.map(drop), begin.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_dawdles_is_cut_off() {
    let dribbled = shake(async |mut stream| {
        // A record of a client's first message that is announced longer than it comes.
        stream.write_all(&[22, 3, 1, 1, 0, 1]).await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    let silent = shake(async |mut stream| {
        let _ = stream.read_u8().await;
    });
    for (shaken, time) in [dribbled.await, silent.await] {
        assert_eq!(shaken.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(time >= LIMIT && time < LIMIT * 2, "{time:?}");
    }
}

#[tokio::test]
async fn a_client_without_tls_is_told() {
    let told = shake(async |mut stream| {
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = vec![0; PLAIN_ANSWER.len()];
        stream.read_exact(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
        assert!(
            head.contains(&format!("Content-Length: {}\r\n", body.len())),
            "{head}"
        );
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    });
    told.await.0.unwrap_err();
    let garbage = shake(async |mut stream| {
        stream
            .write_all(b"\x00garbage that is no record")
            .await
            .unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    garbage.await.0.unwrap_err();
}
