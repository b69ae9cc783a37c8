//! Any Cloud Hypervisor, by the path of its program, through its public HTTP API.
//!
//! The same agent and disk. It has its devices on a PCI bus, which our guest kernel leaves out, so
//! it needs a kernel of its own: the one difference, and it is said beside its figures.

use super::GuestSpec;
use super::peer::{CMDLINE, PeerEngine, PeerVm, disk, vsock_path};
use super::started::{StartedEngine, api};
use crate::http::HttpClient;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A Cloud Hypervisor program, and a kernel with PCI.
#[derive(Clone, Debug)]
pub(crate) struct CloudHypervisorEngine {
    /// The program.
    pub(crate) program: PathBuf,
    /// The guest's kernel.
    pub(crate) kernel: PathBuf,
}

fn put(api: &mut HttpClient<UnixStream>, action: &str, body: Option<&Value>) -> Result<()> {
    let path = format!("/api/v1/{action}");
    let body = body
        .map(serde_json::to_vec)
        .transpose()?
        .unwrap_or_default();
    let fields = [("Content-Type", "application/json"), ("Accept", "*/*")];
    let answer = api.ask("PUT", &path, &fields, &body)?;
    answer
        .expect(204, &format!("Cloud Hypervisor's PUT {path}"))
        .map(drop)
}

/// Where it saves to and begins from.
fn saved(place: &Path) -> (PathBuf, String) {
    let folder = place.join("saved");
    let url = format!("file://{}", folder.display());
    (folder, url)
}

impl PeerEngine for CloudHypervisorEngine {
    fn name(&self) -> &'static str {
        "cloud-hypervisor, its own kernel"
    }

    fn boot(&self, guest: &GuestSpec, place: &Path) -> Result<PeerVm> {
        ensure!(!guest.network, "its network is not measured");
        let disk = disk(guest, place)?;
        let mut started = StartedEngine::new(&self.program, "--api-socket", place)?;
        let machine = json!({
            "cpus": { "boot_vcpus": guest.vcpus, "max_vcpus": guest.vcpus },
            "memory": { "size": u64::from(guest.memory_mib) << 20 },
            "payload": {
                "kernel": self.kernel,
                "initramfs": guest.dist.join("initrd.cpio"),
                "cmdline": CMDLINE,
            },
            "disks": [{ "path": disk }],
            "vsock": { "cid": 3, "socket": vsock_path(place) },
            "serial": { "mode": "Off" },
            "console": { "mode": "Off" },
        });
        put(&mut started.api, "vm.create", Some(&machine))?;
        put(&mut started.api, "vm.boot", None)?;
        started.machine()
    }

    fn save(&self, machine: PeerVm, place: &Path) -> Result<()> {
        let mut process = machine.process;
        let (folder, url) = saved(place);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("Creating {}", folder.display()))?;
        let mut api = api(&mut process, place)?;
        put(&mut api, "vm.pause", None)?;
        put(
            &mut api,
            "vm.snapshot",
            Some(&json!({ "destination_url": url })),
        )
    }

    fn restore(&self, _guest: &GuestSpec, place: &Path) -> Result<PeerVm> {
        let mut started = StartedEngine::new(&self.program, "--api-socket", place)?;
        let (_, url) = saved(place);
        // Lazily, which is its faster way.
        let wanted = json!({ "source_url": url, "memory_restore_mode": "OnDemand" });
        put(&mut started.api, "vm.restore", Some(&wanted))?;
        put(&mut started.api, "vm.resume", None)?;
        started.machine()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::engine::stand_in::StandIn;

    #[test]
    fn a_machine_is_booted_saved_and_begun_again_by_its_api() {
        let stand_in = StandIn::new(|(_, path, _)| {
            ["/api/v1/vm.boot", "/api/v1/vm.resume"].contains(&path.as_str())
        });
        let engine = CloudHypervisorEngine {
            program: stand_in.program.clone(),
            kernel: "/kernel".into(),
        };
        let (guest, place) = (stand_in.guest(), stand_in.place());
        let machine = engine.boot(&guest, &place).unwrap();
        let asked = stand_in.asked();
        let paths = |asked: &[(String, String, Value)]| -> Vec<String> {
            let name = |path: &str| path.rsplit('/').next().unwrap().to_owned();
            asked.iter().map(|(_, path, _)| name(path)).collect()
        };
        assert_eq!(paths(&asked), ["vm.create", "vm.boot"]);
        assert_eq!(asked[0].2["memory"]["size"], 128 << 20);
        assert_eq!(asked[0].2["payload"]["kernel"], "/kernel");
        engine.save(machine, &place).unwrap();
        let asked = stand_in.asked();
        assert_eq!(paths(&asked), ["vm.pause", "vm.snapshot"]);
        let saved = asked[1].2["destination_url"].clone();
        assert!(place.join("saved").is_dir());
        let again = engine.restore(&guest, &place).unwrap();
        let asked = stand_in.asked();
        assert_eq!(paths(&asked), ["vm.restore", "vm.resume"]);
        assert_eq!(asked[0].2["source_url"], saved);
        assert!(again.times.is_sorted());
        again.end().unwrap();
    }
}
