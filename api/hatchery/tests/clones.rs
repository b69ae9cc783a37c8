//! Sandboxes as copies of a template VM, with stand-ins: each copy runs a fresh agent, but goes
//! the way that a real one goes.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use hatchery::config::LimitsFile;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::{Answer, Server, children, open_files, until, zygotes_and_others};

/// These tests count processes of this one, so they run one after the other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn server(mode: &str, max: usize, warm_vms: usize) -> Server {
    let limits = LimitsFile {
        max_sandboxes: Some(max),
        boot_timeout: Some(20),
        ..LimitsFile::default()
    };
    let clones = Some(warm_vms);
    Server::start_clones(mode, limits, clones).await
}

/// Waits until so many VM processes are there.
async fn processes(count: usize) {
    let other = until(Duration::from_secs(20), || {
        Some(children()).filter(|now| now.len() != count)
    });
    assert_eq!(other.await, None, "{count} wanted");
}

/// The steps that an answer says it took.
fn steps(answer: &Answer) -> Vec<String> {
    let timing = answer.header("server-timing").unwrap();
    let name = |step: &str| step.split(';').next().unwrap().to_owned();
    timing.split(", ").map(name).collect()
}

/// Says something that only a sandbox whose agent works can say.
async fn works(server: &Server, made: &Answer) {
    let id = made.id();
    let metrics = format!("/sandboxes/{id}/metrics");
    let metrics = server.api("GET", &metrics, Value::Null).await.json();
    assert!(metrics[0]["memTotal"].as_u64().unwrap() > 0, "{metrics}");
}

#[tokio::test]
async fn a_creation_claims_a_warm_vm_and_another_takes_its_place() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = server("", 8, 2).await;
    // Early: it waits for the template VM and may have to build its copy.
    let first = server.create(json!({})).await;
    works(&server, &first).await;
    assert!(!steps(&first).contains(&"hello".into()), "{first:?}");
    processes(3).await;
    let second = server.create(json!({})).await;
    assert_eq!(
        steps(&second),
        ["request", "wait", "claim", "identity", "total"]
    );
    works(&server, &second).await;
    processes(4).await;
    assert_eq!(server.registry.in_use(), 2, "warm VMs are nobody's");
    for made in [&first, &second] {
        let path = format!("/sandboxes/{}", made.id());
        assert_eq!(server.api("DELETE", &path, Value::Null).await.status, 204);
    }
    server.idle().await;
    processes(2).await;
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

#[tokio::test]
async fn without_warm_vms_a_copy_is_built_on_the_spot() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = server("", 8, 0).await;
    let made = server.create(json!({})).await;
    let built = ["spawn", "configure", "claim", "identity"].map(String::from);
    assert_eq!(steps(&made)[2..6], built);
    works(&server, &made).await;
    processes(1).await;
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

/// Kills the zygote, and waits until it is gone or only waits to be reaped.
async fn kill_the_zygote() {
    let (zygotes, _) = zygotes_and_others();
    let [zygote] = &zygotes[..] else {
        panic!("not one zygote: {zygotes:#?}");
    };
    let number = zygote.split(' ').next().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(number).unwrap(), Signal::KILL).unwrap();
    let state = || std::fs::read_to_string(format!("/proc/{number}/stat"));
    while state().is_ok_and(|stat| !stat.contains(") Z ")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn sandboxes_outlive_the_zygote_and_others_come_of_the_next() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = server("", 8, 0).await;
    let mut made = vec![server.create(json!({})).await];
    for _ in 0..3 {
        kill_the_zygote().await;
        made.push(server.create(json!({})).await);
        for sandbox in &made {
            works(&server, sandbox).await;
        }
    }
    processes(4).await;
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_vms_never_cost_a_sandbox_its_place() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = server("", 3, 3).await;
    server.create(json!({})).await.id();
    processes(3).await;
    let more = [server.create(json!({})), server.create(json!({}))];
    for made in futures_util::future::join_all(more).await {
        works(&server, &made).await;
    }
    processes(3).await;
    assert_eq!(server.create(json!({})).await.status, 429);
    assert_eq!(server.registry.in_use(), 3);
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

#[tokio::test]
async fn what_cannot_be_saved_or_copied_boots() {
    let _alone = ONE_AT_A_TIME.lock().await;
    for (mode, warm_vms) in [("nosave", 2), ("nocopy", 0), ("nocopy", 2), ("crash", 1)] {
        let server = server(mode, 8, warm_vms).await;
        for _ in 0..4 {
            let made = server.create(json!({})).await;
            assert!(steps(&made).contains(&"hello".into()), "{mode}: {made:?}");
            works(&server, &made).await;
        }
        let last = server.create(json!({})).await;
        assert!(
            !steps(&last).contains(&"failed".into()),
            "{mode}: tried no more"
        );
        assert!(server.stop().await);
        assert_eq!(children(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_warm_vm_that_dies_is_replaced_without_haste() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = server("frail", 8, 1).await;
    let mut seen = std::collections::BTreeSet::new();
    server.create(json!({})).await.id();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(3) {
        let pid = |stat: String| stat.split_whitespace().next().unwrap().to_owned();
        seen.extend(children().into_iter().map(pid));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The sandbox, then warm VMs after 0.1, 0.2, 0.4, 0.8 and 1.6 s, each of which lives 0.05 s.
    assert!((3..=9).contains(&seen.len()), "{seen:?}");
    works(&server, &server.create(json!({})).await).await;
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_copies_leave_nothing_behind() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let server = server("", 6, 2).await;
    server.create(json!({})).await.id();
    processes(3).await;
    let before = open_files();
    for _ in 0..50 {
        let id = server.create(json!({})).await.id();
        let path = format!("/sandboxes/{id}");
        assert_eq!(server.api("DELETE", &path, Value::Null).await.status, 204);
    }
    processes(3).await;
    let after = open_files();
    println!("descriptors before {before}, after {after}");
    assert!(after <= before + 6, "{before} before, {after} after");
    let layers = std::fs::read_dir(server.dir.path().join("data/layers"));
    assert_eq!(layers.unwrap().count(), 0, "no file has a name");
    assert!(server.stop().await);
    assert_eq!(children(), Vec::<String>::new());
}
