//! Who may depend on whom.

use crate::{none, top};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::OnceLock;

/// Our crates: the folder, and those of ours that they may depend on, in tests too. A crate that
/// is not here has no place in the house yet.
const OURS: &[(&str, &str, &[&str])] = &[
    ("authority", "host/authority", &[]),
    ("control", "host/control", &[]),
    ("devices", "host/devices", &[]),
    ("jail", "host/jail", &[]),
    ("machine", "host/machine", &[]),
    ("usernet", "host/usernet", &["authority", "control", "jail"]),
    (
        "vmm",
        "host/vmm",
        &[
            "control",
            "devices",
            "jail",
            "machine",
            "snapshot-format",
            "snapshot-memory",
        ],
    ),
    ("host-fuzz", "host/fuzz", &["control", "devices", "usernet"]),
    ("wire", "guest-agent/wire", &[]),
    ("agent-fuzz", "guest-agent/fuzz", &["guest-agent", "wire"]),
    ("guest-agent", "guest-agent/agent", &["wire"]),
    ("snapshot-format", "snapshot/format", &[]),
    ("snapshot-memory", "snapshot/memory", &["snapshot-format"]),
    ("snapshot-store", "snapshot/store", &["snapshot-format"]),
    ("link", "api/link", &["wire"]),
    (
        "snapshot-fuzz",
        "snapshot/fuzz",
        &["snapshot-format", "snapshot-memory", "snapshot-store"],
    ),
    ("api-fuzz", "api/fuzz", &["e2b", "engine"]),
    ("register-holder", "api/tests/register-holder", &[]),
    (
        "engine",
        "api/engine",
        &[
            "authority",
            "control",
            "link",
            "snapshot-format",
            "snapshot-memory",
            "snapshot-store",
            "wire",
        ],
    ),
    ("e2b", "api/e2b", &["engine", "link", "wire"]),
    ("doctor", "api/doctor", &["control"]),
    (
        "hatchery",
        "api/hatchery",
        &[
            "control",
            "doctor",
            "e2b",
            "engine",
            "link",
            "snapshot-format",
            "snapshot-memory",
            "snapshot-store",
            "wire",
        ],
    ),
    (
        "perf",
        "perf",
        &["control", "snapshot-format", "snapshot-memory", "wire"],
    ),
    ("xtask", "xtask", &[]),
];

/// Crates of others that must not be reachable from a folder, and why.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    (
        "host/devices",
        &["kvm-ioctls", "kvm-bindings"],
        "devices are tested without KVM",
    ),
    (
        "api",
        &["kvm-ioctls", "kvm-bindings", "linux-loader"],
        "the service never links KVM",
    ),
    (
        "api/engine",
        &["http-body-util", "hyper", "hyper-util"],
        "lives of sandboxes know no HTTP",
    ),
    (
        "api/link",
        &["http-body-util", "hyper", "hyper-util"],
        "the agent's client knows no HTTP",
    ),
    (
        "host",
        &["tokio", "hyper", "async-std", "smol"],
        "threads and io_uring, no async runtime",
    ),
    (
        "snapshot",
        &["tokio", "hyper", "async-std", "smol"],
        "threads and io_uring, no async runtime",
    ),
    (
        "guest-agent",
        &["tokio", "libc", "serde_json"],
        "no libc and no JSON in the guest",
    ),
];

/// One of our crates, as cargo sees it.
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) folder: String,
    /// Names of its direct dependencies of every kind.
    direct: BTreeSet<String>,
    /// Names of everything that is compiled into it, itself not.
    reachable: BTreeSet<String>,
}

/// `cargo metadata` of the locked workspace for the platform we build for.
pub(crate) fn metadata() -> &'static Value {
    static METADATA: OnceLock<Value> = OnceLock::new();
    METADATA.get_or_init(|| {
        let platform = "x86_64-unknown-linux-gnu";
        let done = Command::new(env!("CARGO"))
            .args([
                "metadata",
                "--format-version=1",
                "--locked",
                "--filter-platform",
                platform,
            ])
            .current_dir(top())
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        serde_json::from_slice(&done.stdout).unwrap()
    })
}

pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

pub(crate) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// The packages of this workspace.
pub(crate) fn packages() -> Vec<Package> {
    let all = metadata();
    let names: BTreeMap<_, _> = list(all, "packages")
        .iter()
        .map(|package| (text(package, "id"), text(package, "name")))
        .collect();
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in list(&all["resolve"], "nodes") {
        let deps = list(node, "deps").iter();
        // A dependency of tests only is not part of what is built.
        let built = deps.filter(|dep| {
            list(dep, "dep_kinds")
                .iter()
                .any(|kind| text(kind, "kind") != "dev")
        });
        edges.insert(
            text(node, "id"),
            built.map(|dep| text(dep, "pkg")).collect(),
        );
    }
    let ours = list(all, "packages")
        .iter()
        .filter(|package| package["source"].is_null());
    ours.map(|package| {
        let manifest = std::path::Path::new(text(package, "manifest_path"));
        let folder = manifest.parent().unwrap().strip_prefix(top()).unwrap();
        let direct = list(package, "dependencies")
            .iter()
            .map(|dep| text(dep, "name").to_owned());
        let mut seen = BTreeSet::new();
        let mut next = vec![text(package, "id")];
        while let Some(id) = next.pop() {
            for &dep in &edges[id] {
                if seen.insert(dep) {
                    next.push(dep);
                }
            }
        }
        Package {
            name: text(package, "name").to_owned(),
            folder: folder.to_str().unwrap().to_owned(),
            direct: direct.collect(),
            reachable: seen.into_iter().map(|id| names[id].to_owned()).collect(),
        }
    })
    .collect()
}

#[test]
fn our_crates_know_only_whom_they_may() {
    let ours: BTreeSet<_> = OURS.iter().map(|(name, ..)| *name).collect();
    let mut broken = Vec::new();
    for package in packages() {
        let Some((_, folder, allowed)) = OURS.iter().find(|(name, ..)| *name == package.name)
        else {
            broken.push(format!(
                "{} has no place in the table of this test",
                package.name
            ));
            continue;
        };
        if package.folder != *folder {
            broken.push(format!(
                "{} is in {}, not {folder}",
                package.name, package.folder
            ));
        }
        for dep in package
            .direct
            .iter()
            .filter(|dep| ours.contains(dep.as_str()))
        {
            if !allowed.contains(&dep.as_str()) && *dep != package.name {
                broken.push(format!("{} must not know {dep}", package.name));
            }
        }
    }
    none(
        "Two sides of a boundary depend on the boundary, never on each other:",
        &broken,
    );
}

#[test]
fn nothing_forbidden_is_reachable() {
    let mut broken = Vec::new();
    for package in packages() {
        for (folder, forbidden, why) in FORBIDDEN {
            let inside =
                package.folder == *folder || package.folder.starts_with(&format!("{folder}/"));
            for name in forbidden
                .iter()
                .filter(|name| inside && package.reachable.contains(**name))
            {
                broken.push(format!("{} reaches {name}: {why}", package.name));
            }
        }
    }
    none("What a crate is built of:", &broken);
}

#[test]
fn the_wire_depends_on_nothing() {
    let wire = packages()
        .into_iter()
        .find(|package| package.name == "wire")
        .unwrap();
    assert!(
        wire.reachable.is_empty(),
        "wire depends on {:?}",
        wire.reachable
    );
}

#[test]
fn versions_and_lints_live_in_the_workspace() {
    let mut broken = Vec::new();
    for package in packages() {
        let manifest =
            std::fs::read_to_string(top().join(&package.folder).join("Cargo.toml")).unwrap();
        let table: toml::Table = manifest.parse().unwrap();
        let inherits = |value: Option<&toml::Value>| {
            value
                .and_then(|value| value.get("workspace"))
                .and_then(toml::Value::as_bool)
                == Some(true)
        };
        if !inherits(table.get("lints")) {
            broken.push(format!(
                "{} does not take the workspace's lints",
                package.name
            ));
        }
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let deps = table.get(kind).and_then(toml::Value::as_table);
            for (name, value) in deps.into_iter().flatten() {
                if !inherits(Some(value)) {
                    broken.push(format!("{}: {name} has a version of its own", package.name));
                }
            }
        }
    }
    none(
        "Each version and each lint is in the root Cargo.toml only:",
        &broken,
    );
}
