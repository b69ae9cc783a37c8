//! Any Firecracker, by the path of its program, through its public HTTP API.
//!
//! The same kernel, agent and disk; its memory comes back from a file, mapped privately, which is
//! the fastest way that it has without another process. No jailer, and no network but where that is
//! measured: both would cost it more.

use super::peer::{CMDLINE, PeerEngine, PeerVm, disk, mac, vsock_path};
use super::started::{StartedEngine, api};
use super::{GuestSpec, no_xsave};
use crate::http::HttpClient;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// As a CPU template of it says that `KVM_CAP_XCRS` (`linux/kvm.h`) need not be there.
const NO_XCRS: &str = "!56";
/// The TAP of a guest with a network; one such machine runs at a time.
const TAP: &str = "hatchery-bench";

/// A Firecracker program.
#[derive(Clone, Debug)]
pub(crate) struct FirecrackerEngine {
    /// The program.
    pub(crate) program: PathBuf,
}

fn put(api: &mut HttpClient<UnixStream>, path: &str, body: &Value) -> Result<()> {
    ask(api, "PUT", path, body)
}

fn ask(api: &mut HttpClient<UnixStream>, method: &str, path: &str, body: &Value) -> Result<()> {
    let body = serde_json::to_vec(body)?;
    let fields = [
        ("Content-Type", "application/json"),
        ("Accept", "application/json"),
    ];
    let answer = api.ask(method, path, &fields, &body)?;
    answer
        .expect(204, &format!("Firecracker's {method} {path}"))
        .map(drop)
}

/// Gives the guest a card on a TAP, which goes with the process, and makes this machine the gateway
/// that the agent knows. (`ip` is busybox's, which takes one setting a call.)
fn tap(api: &mut HttpClient<UnixStream>) -> Result<()> {
    let card = json!({
        "iface_id": "eth0",
        "host_dev_name": TAP,
        "guest_mac": mac(control::GUEST_MAC),
    });
    put(api, "/network-interfaces/eth0", &card)?;
    let address = format!("{}/{}", control::GATEWAY_IPV4, control::IPV4_PREFIX);
    let hardware = mac(control::GATEWAY_MAC);
    for arguments in [
        ["link", "set", TAP, "address", &hardware].as_slice(),
        ["addr", "add", &address, "dev", TAP].as_slice(),
        ["link", "set", TAP, "up"].as_slice(),
    ] {
        let status = Command::new("ip").args(arguments).status();
        let status = status.with_context(|| format!("Running ip {arguments:?}"))?;
        ensure!(status.success(), "ip {arguments:?}: {status}");
    }
    Ok(())
}

impl PeerEngine for FirecrackerEngine {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn boot(&self, guest: &GuestSpec, place: &Path) -> Result<PeerVm> {
        let disk = disk(guest, place)?;
        let mut started = StartedEngine::new(&self.program, "--api-sock", place)?;
        let api = &mut started.api;
        let machine = json!({ "vcpu_count": guest.vcpus, "mem_size_mib": guest.memory_mib });
        put(api, "/machine-config", &machine)?;
        if no_xsave::here() {
            put(
                api,
                "/cpu-config",
                &json!({ "kvm_capabilities": [NO_XCRS] }),
            )?;
        }
        let source = json!({
            "kernel_image_path": guest.dist.join("vmlinux"),
            "initrd_path": guest.dist.join("initrd.cpio"),
            "boot_args": CMDLINE,
        });
        put(api, "/boot-source", &source)?;
        let drive = json!({
            "drive_id": "root",
            "path_on_host": disk,
            "is_root_device": false,
            "is_read_only": false,
        });
        put(api, "/drives/root", &drive)?;
        let vsock = json!({ "guest_cid": 3, "uds_path": vsock_path(place) });
        put(api, "/vsock", &vsock)?;
        put(api, "/entropy", &json!({}))?;
        if guest.network {
            tap(api)?;
        }
        put(api, "/actions", &json!({ "action_type": "InstanceStart" }))?;
        started.machine()
    }

    fn save(&self, machine: PeerVm, place: &Path) -> Result<()> {
        let mut process = machine.process;
        let mut api = api(&mut process, place)?;
        ask(&mut api, "PATCH", "/vm", &json!({ "state": "Paused" }))?;
        let files = json!({
            "snapshot_type": "Full",
            "snapshot_path": place.join("state"),
            "mem_file_path": place.join("memory"),
        });
        put(&mut api, "/snapshot/create", &files)
    }

    fn restore(&self, _guest: &GuestSpec, place: &Path) -> Result<PeerVm> {
        let mut started = StartedEngine::new(&self.program, "--api-sock", place)?;
        let files = json!({
            "snapshot_path": place.join("state"),
            "mem_backend": { "backend_type": "File", "backend_path": place.join("memory") },
            "resume_vm": true,
        });
        put(&mut started.api, "/snapshot/load", &files)?;
        started.machine()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::engine::stand_in::StandIn;

    #[test]
    fn a_machine_is_booted_saved_and_begun_again_by_its_api() {
        let stand_in = StandIn::new(|(_, path, body)| {
            path == "/actions" || path == "/snapshot/load" && body["resume_vm"] == true
        });
        let engine = FirecrackerEngine {
            program: stand_in.program.clone(),
        };
        let (guest, place) = (stand_in.guest(), stand_in.place());
        let machine = engine.boot(&guest, &place).unwrap();
        assert_eq!(machine.ready.ready_ns, 2);
        let paths = |asked: &[(String, String, Value)]| -> Vec<String> {
            asked.iter().map(|(m, p, _)| format!("{m} {p}")).collect()
        };
        let mut asked = stand_in.asked();
        asked.retain(|(_, path, _)| path != "/cpu-config"); // where there is no XSAVE
        let expected = [
            "PUT /machine-config",
            "PUT /boot-source",
            "PUT /drives/root",
            "PUT /vsock",
            "PUT /entropy",
            "PUT /actions",
        ];
        assert_eq!(paths(&asked), expected);
        assert_eq!(asked[0].2, json!({ "vcpu_count": 1, "mem_size_mib": 128 }));
        assert_eq!(asked[3].2["uds_path"], json!(place.join("vsock")));
        assert!(place.join("disk").exists());
        engine.save(machine, &place).unwrap();
        assert_eq!(
            paths(&stand_in.asked()),
            ["PATCH /vm", "PUT /snapshot/create"]
        );
        let again = engine.restore(&guest, &place).unwrap();
        let asked = stand_in.asked();
        assert_eq!(paths(&asked), ["PUT /snapshot/load"]);
        let memory = &asked[0].2["mem_backend"]["backend_path"];
        assert_eq!(*memory, json!(place.join("memory")));
        assert!(again.times.is_sorted());
        again.end().unwrap();
    }

    #[test]
    fn a_program_that_ends_is_not_waited_for() {
        let engine = FirecrackerEngine {
            program: "/bin/true".into(),
        };
        let stand_in = StandIn::new(|_| false);
        let error = engine.restore(&stand_in.guest(), &stand_in.place());
        let error = error.err().unwrap();
        assert!(format!("{error:#}").contains("engine ended"), "{error:#}");
    }
}
