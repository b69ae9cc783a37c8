//! What a running `hatchery-net` process has given up.

mod common;

use common::{NetGuest, only};
use smoltcp::socket::tcp::State;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Command, Stdio};

#[test]
fn it_is_confined_before_it_reads_a_frame() {
    let guest = NetGuest::start(only(&[]));
    let path = format!("/proc/{}", guest.process.id());
    let status = std::fs::read_to_string(format!("{path}/status")).unwrap();
    let of = |field: &str| {
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line[field.len()..].trim().to_owned()
    };
    assert_eq!(
        (of("NoNewPrivs:"), of("Seccomp:")),
        ("1".to_owned(), "2".to_owned())
    );
    assert_eq!(of("CapEff:"), "0000000000000000");
    assert_eq!(of("Threads:"), "1");
    if rustix::process::geteuid().is_root() {
        assert!(of("Uid:").starts_with("1879048191"), "{}", of("Uid:"));
        assert_eq!(of("Groups:"), "");
        // Nobody of its user may look at it: what is in /proc of it is root's.
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(format!("{path}/mem")).unwrap().uid(), 0);
        let open = std::fs::read_dir(format!("{path}/fd")).unwrap();
        assert_eq!(open.count(), 4, "frames, control, standard error, epoll");
    }
}

#[test]
fn as_root_without_another_user_it_does_not_begin() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: this test is about root");
        return;
    }
    let (one, other) = control::pair().unwrap();
    let mut process = Command::new(env!("CARGO_BIN_EXE_hatchery-net"))
        .stdin(Stdio::from(one.try_clone().unwrap()))
        .stdout(Stdio::from(one))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(other);
    assert!(!process.wait().unwrap().success());
    let mut words = String::new();
    let mut stderr = process.stderr.take().unwrap();
    stderr.read_to_string(&mut words).unwrap();
    assert!(words.contains("--uid"), "{words}");
}

#[test]
fn ipv6_works_as_ipv4_does() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        eprintln!("skipped: this host has no IPv6");
        return;
    };
    let address = listener.local_addr().unwrap();
    let mut guest = NetGuest::start(only(&[address]));
    let flow = guest.connect(address);
    guest.until_state(flow, State::Established);
    let (mut stream, _) = listener.accept().unwrap();
    guest.send_all(flow, b"six");
    let mut heard = [0; 3];
    guest.until("the bytes", |_| {
        stream.read_exact(&mut heard).is_ok().then_some(())
    });
    assert_eq!(&heard, b"six");
    drop(stream);
    guest.until_state(flow, State::CloseWait);
}
