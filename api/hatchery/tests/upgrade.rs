//! What an older server stored is read: `goldens/v1/` is the data folder that the first version of
//! every record was written to (a sandbox paused with its memory, with a process, two checkpoints;
//! two snapshots of it, one of its files only; a sandbox of a snapshot, paused with its files
//! only). `goldens/v2/` has a snapshot with the variables of its sandbox, which the second version
//! of its record has.

#![allow(
    clippy::unwrap_used,
    reason = "clippy only knows test functions, not their helpers"
)]

mod support;

use hatchery::config::{ClonesFile, ConfigFile, PoolFile};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, SystemTime};
use support::{KEY, Server};

/// Paused with its memory.
const PAUSED: &str = "is5lgf7zuqgftom77vni";
const TOKEN: &str = "8a9b893a165e61660d2e1ef936a7bfb23cfb856350ec7fae49c196f6e33d340a";
/// Made from the snapshot `kept:v1`, and paused with its files only.
const FILES_ONLY: &str = "ibte5dud8hgsuqd265mt";
/// When the image under the stored disks was last changed, seconds since 1970.
const IMAGE_CHANGED: Duration = Duration::from_secs(1_700_000_000);

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// A server that finds the folder of an older one, and the image that was under its disks.
async fn server() -> Server {
    server_of("v1").await
}

async fn server_of(version: &str) -> Server {
    let file = ConfigFile {
        clones: ClonesFile {
            enabled: Some(true),
            ..ClonesFile::default()
        },
        pool: PoolFile { size: Some(1) },
        ..ConfigFile::default()
    };
    server_with(version, file).await
}

async fn server_with(version: &str, file: ConfigFile) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    copy(&goldens.join(version), &dir.path().join("data"));
    let image = std::fs::File::create_new(dir.path().join("base.ext4")).unwrap();
    image.set_len(1 << 20).unwrap();
    let changed = SystemTime::UNIX_EPOCH + IMAGE_CHANGED;
    image.set_modified(changed).unwrap();
    Server::start_file(dir, "", file).await
}

#[tokio::test]
async fn an_older_servers_sandboxes_snapshots_and_checkpoints_are_there() {
    let server = server().await;
    let view = server.get(PAUSED).await.json();
    assert_eq!(view["state"], "paused");
    assert_eq!(view["metadata"], json!({ "team": "blue" }));
    assert_eq!(view["envdAccessToken"], TOKEN);
    assert_eq!(
        view["lifecycle"],
        json!({ "autoResume": true, "onTimeout": "pause" })
    );
    let other = server.get(FILES_ONLY).await.json();
    assert_eq!(
        (&other["state"], &other["pauseMode"]),
        (&json!("paused"), &json!("filesystem"))
    );

    let path = format!("/sandboxes/{PAUSED}/checkpoints");
    let tree = server.api("GET", &path, Value::Null).await.json();
    let names: Vec<_> = tree["checkpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["first", "second"]);
    assert_eq!(
        tree["checkpoints"][1]["parentID"],
        tree["checkpoints"][0]["checkpointID"]
    );
    assert_eq!(tree["current"], tree["checkpoints"][1]["checkpointID"]);

    let snapshots = server.api("GET", "/snapshots", Value::Null).await.json();
    let mut ids: Vec<_> = snapshots
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["snapshotID"].as_str().unwrap())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, ["files:default", "kept:v1"]);
    assert!(server.stop().await);
}

#[tokio::test]
async fn an_older_servers_machines_go_on() {
    let server = server().await;
    for id in [PAUSED, FILES_ONLY] {
        let path = format!("/sandboxes/{id}/connect");
        let resumed = server.api("POST", &path, json!({ "timeout": 60 })).await;
        assert_eq!(resumed.status, 201, "{resumed:?}");
    }
    let path = format!("/sandboxes/{PAUSED}/reset");
    let reset = server
        .api("POST", &path, json!({ "checkpoint": "first" }))
        .await;
    assert_eq!(reset.status, 204, "{reset:?}");
    for template in ["kept:v1", "files"] {
        let made = server.create(json!({ "templateID": template })).await;
        assert_eq!(made.status, 201, "{made:?}");
    }
    let path = format!("/sandboxes/{PAUSED}/pause");
    assert_eq!(
        server.api("POST", &path, json!({})).await.status,
        204,
        "and is stored again"
    );
    assert!(server.stop().await);
}

/// It has no owner, and is there for every key, as it was; what is made of it is its maker's.
#[tokio::test]
async fn what_an_older_server_stored_is_everybodys() {
    const OTHER: &str = "e2b_fedcba9876543210fedcba9876543210fedcba98";
    let file = ConfigFile {
        api_keys: vec![KEY.into(), OTHER.into()],
        ..ConfigFile::default()
    };
    let server = server_with("v2", file).await;
    let snapshots = async |key: &str| {
        let all = server.api_as(key, "GET", "/snapshots", Value::Null).await;
        all.json().as_array().unwrap().len()
    };
    assert_eq!((snapshots(KEY).await, snapshots(OTHER).await), (1, 1));
    let made = json!({ "templateID": "kept:v2", "timeout": 60 });
    let id = server
        .api_as(OTHER, "POST", "/v2/sandboxes", made)
        .await
        .id();
    assert_eq!(server.get(&id).await.status, 404);
    // Taken again under its name, it is one owner's, and no other is left.
    let path = format!("/sandboxes/{id}/snapshots");
    let again = json!({ "name": "kept:v2" });
    let taken = server.api_as(OTHER, "POST", &path, again).await;
    assert_eq!(taken.status, 201, "{taken:?}");
    assert_eq!((snapshots(KEY).await, snapshots(OTHER).await), (0, 1));
    assert!(server.stop().await);
}

/// Snapshots of the first version have no variables to give, those of the second have.
#[tokio::test]
async fn an_older_servers_snapshots_give_what_variables_they_have() {
    for (version, template, expected) in [
        ("v1", "kept:v1", Value::Null),
        ("v2", "kept:v2", json!("blue")),
    ] {
        let server = server_of(version).await;
        let made = server.create(json!({ "templateID": template })).await;
        let (id, made) = (made.id(), made.json());
        let headers = [
            ("e2b-sandbox-id", id.as_str()),
            ("e2b-sandbox-port", "49983"),
            ("x-access-token", made["envdAccessToken"].as_str().unwrap()),
        ];
        let variables = server.send("GET", "/envs", &headers, "").await.json();
        assert_eq!(variables["TEAM"], expected, "{template}");
        assert_eq!(variables["E2B_TEMPLATE_ID"], template);
        assert!(server.stop().await);
    }
}
