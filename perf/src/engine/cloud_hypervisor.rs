//! Any Cloud Hypervisor, by the path of its program, through its public HTTP API.
//!
//! The same agent and disk. It has its devices on a PCI bus, which our guest kernel leaves out, so it needs
//! a kernel of its own: the one difference, and it is said beside its figures.

use super::peer::{CMDLINE, Machine, Peer, Process, disk, listen, remove, vsock_path};
use super::{Guest, now_ns};
use crate::http::Http;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A Cloud Hypervisor program, and a kernel with PCI.
#[derive(Clone, Debug)]
pub(crate) struct CloudHypervisor {
    /// The program.
    pub(crate) program: PathBuf,
    /// The guest's kernel.
    pub(crate) kernel: PathBuf,
}

/// A process that answers, with nothing in it yet.
struct Started {
    process: Process,
    api: Http<UnixStream>,
    listener: UnixListener,
    /// When it was asked for, and when it answered.
    times: [u64; 2],
}

fn put(api: &mut Http<UnixStream>, action: &str, body: Option<&Value>) -> Result<()> {
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

impl CloudHypervisor {
    fn start(&self, place: &Path) -> Result<Started> {
        let socket = place.join("api");
        remove(&socket)?;
        let listener = listen(place)?;
        let asked_ns = now_ns();
        let child = Command::new(&self.program)
            .arg("--api-socket")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("Starting {}", self.program.display()))?;
        let mut process = Process(child);
        let api = Http::new(process.connect(&socket)?, "localhost");
        Ok(Started {
            process,
            api,
            listener,
            times: [asked_ns, now_ns()],
        })
    }
}

impl Started {
    fn machine(mut self) -> Result<Machine> {
        let loaded_ns = now_ns();
        let (agent, ready) = self.process.agent(&self.listener)?;
        let [asked_ns, answers_ns] = self.times;
        Ok(Machine {
            process: self.process,
            agent,
            ready,
            times: [asked_ns, answers_ns, loaded_ns, now_ns()],
        })
    }
}

impl Peer for CloudHypervisor {
    fn name(&self) -> &'static str {
        "cloud-hypervisor, its own kernel"
    }

    fn boot(&self, guest: &Guest, place: &Path) -> Result<Machine> {
        let disk = disk(guest, place)?;
        let mut started = self.start(place)?;
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

    fn save(&self, machine: Machine, place: &Path) -> Result<()> {
        let mut process = machine.process;
        let (folder, url) = saved(place);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("Creating {}", folder.display()))?;
        let mut api = Http::new(process.connect(&place.join("api"))?, "localhost");
        put(&mut api, "vm.pause", None)?;
        put(
            &mut api,
            "vm.snapshot",
            Some(&json!({ "destination_url": url })),
        )
    }

    fn restore(&self, _guest: &Guest, place: &Path) -> Result<Machine> {
        let mut started = self.start(place)?;
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
        let engine = CloudHypervisor {
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
