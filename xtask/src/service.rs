//! A Hatchery server for `up`, the tests and the benchmarks: on this machine if it can run guests
//! at hardware speed, else in the lab.

use crate::dist::Dist;
use crate::lab::{self, Lab, LabCommand, LabOptions, OutputStream};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The key of servers that tests start. The one of `up` is its own.
pub(crate) const API_KEY: &str = "e2b_0123456789abcdef0123456789abcdef01234567";
/// Where the programs are in the lab: on tmpfs, because a cold read over 9p is slow.
pub(crate) const LAB_DIST: &str = "/opt/hatchery";
/// What is copied there.
pub(crate) const PROGRAMS: &[&str] = &[
    "hatchery",
    "hatchery-vmm",
    "hatchery-net",
    "hatchery-pager",
    "hatchery-agent",
    "hatchery-bench",
    "vmlinux",
];
/// The server's port in the lab.
pub(crate) const LAB_PORT: u16 = 3000;
/// A server that is not healthy after this long is given up.
const HEALTH_LIMIT: Duration = Duration::from_secs(60);
/// A server ends all its sandboxes within this.
const STOP_LIMIT: Duration = Duration::from_secs(30);
const SIGTERM: u8 = 15;

/// Where guests run.
pub(crate) enum ServerPlace {
    /// This machine's own KVM.
    Host,
    /// The emulated host.
    Lab(Box<Lab>),
}

impl ServerPlace {
    /// This machine, or a lab with `options`; says which and why.
    pub(crate) fn choose(options: &LabOptions) -> Result<Self> {
        let finding = lab::hardware_virtualization();
        eprintln!("{}", finding.reason);
        if finding.usable {
            eprintln!("guests run on this machine's KVM");
            return Ok(Self::Host);
        }
        eprintln!("guests run in the lab: real KVM, emulated processor, 10 to 50 times slower");
        let start = Instant::now();
        let lab = Lab::ensure(options)?;
        if lab.fresh {
            eprintln!("the lab started in {:.1} s", start.elapsed().as_secs_f64());
        }
        Ok(Self::Lab(Box::new(lab)))
    }

    /// `host`, or that of the lab.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Host => "host",
            Self::Lab(lab) => lab.name(),
        }
    }

    /// How its lab has died, with the last lines of its console, if it has; the dead one is ended,
    /// so that the next to be chosen is fresh.
    pub(crate) fn death(&self) -> Option<String> {
        let Self::Lab(lab) = self else { return None };
        let death = lab.death()?;
        if let Err(error) = lab.stop() {
            eprintln!("the lab that died could not be stopped: {error:#}");
        }
        Some(death)
    }

    /// Where the distribution is, as programs there see it; copies it into a lab.
    pub(crate) fn install(&self, dist: &Dist) -> Result<PathBuf> {
        match self {
            Self::Host => Ok(dist.dir.clone()),
            Self::Lab(lab) => install_in_lab(lab, dist),
        }
    }
}

/// Copies the programs to the lab's tmpfs; the image stays where the lab caches its pages.
pub(crate) fn install_in_lab(lab: &Lab, dist: &Dist) -> Result<PathBuf> {
    let image = in_cache(dist)?;
    let script = format!(
        "mkdir -p {LAB_DIST} && cd /dist || exit 1
         for f in {2}; do
             [ -e {LAB_DIST}/$f ] && [ ! $f -nt {LAB_DIST}/$f ] && continue
             cp -p $f {LAB_DIST}/.new && mv {LAB_DIST}/.new {LAB_DIST}/$f || exit 1
         done
         for image in {1} /image/{0} /dist/base.ext4; do
             [ -e $image ] && exec ln -sf $image {LAB_DIST}/base.ext4
         done
         echo no base image && exit 1",
        image.display(),
        lab_copy(image),
        PROGRAMS.join(" ")
    );
    let done = lab.exec(&["sh", "-c", &script])?;
    if !done.status.success() {
        bail!(
            "Copying the programs into the lab: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
    Ok(PathBuf::from(LAB_DIST))
}

/// The image's path in the cache.
fn in_cache(dist: &Dist) -> Result<&Path> {
    let images = crate::cache::root()?.join("image");
    Ok(dist.image.strip_prefix(images)?)
}

/// Where an image of the cache is in the lab once it is copied into its memory.
fn lab_copy(image: &Path) -> String {
    format!("{LAB_DIST}/{}", image.to_string_lossy().replace('/', "-"))
}

/// The same with the image in the lab's memory too, for what is measured.
pub(crate) fn install_whole_in_lab(lab: &Lab, dist: &Dist) -> Result<PathBuf> {
    lab.bring(&dist.image, &lab_copy(in_cache(dist)?))?;
    install_in_lab(lab, dist)
}

/// The data folder of a server on this machine, where the key of `up` is kept, too.
pub(crate) fn data_dir() -> PathBuf {
    crate::dist::target_dir().join("hatchery-data")
}

/// The authority of the tests' own servers.
const ROOTS: &str = include_str!("../../api/tests/sdk/authority.pem");
/// Its name in a configuration, before it is known where it is put.
const ROOTS_NAME: &str = "\"authority.pem\"";
/// Where it is in the lab.
const LAB_ROOTS: &str = "/run/hatchery-authority.pem";

/// A configuration that names the authority's place.
fn with_roots(config: &str, place: &Path) -> String {
    config.replace(ROOTS_NAME, &format!("{:?}", place.display().to_string()))
}

/// A running server. Ends when dropped.
pub(crate) struct RunningService {
    /// `http://127.0.0.1:PORT`, from this machine.
    pub(crate) url: String,
    process: ServerProcess,
}

enum ServerProcess {
    Host(Child),
    Lab {
        control: lab::CommandControl,
        output: Option<JoinHandle<Result<()>>>,
    },
}

impl RunningService {
    /// Starts the server that is in `dist` at `place` and waits until it is healthy; its log goes
    /// to `log`. `config` is the text of its configuration, `key` what it accepts.
    pub(crate) fn start(
        place: &mut ServerPlace,
        dist: &Dist,
        port: u16,
        log: &Path,
        config: &str,
        key: &str,
    ) -> Result<Self> {
        let programs = place.install(dist)?;
        let log_file =
            File::create(log).with_context(|| format!("Creating the log {}", log.display()))?;
        let data = data_dir();
        let process = match place {
            ServerPlace::Host => {
                let file = data.with_extension("toml");
                let roots = data.with_extension("pem");
                let config = with_roots(config, &roots);
                for (file, text) in [(&file, &*config), (&roots, ROOTS)] {
                    std::fs::write(file, text)
                        .with_context(|| format!("Writing {}", file.display()))?;
                }
                Self::on_host(&programs, [&data, &file], port, log_file, key)?
            }
            ServerPlace::Lab(lab) => {
                lab.forward(port, LAB_PORT)?;
                let config = with_roots(config, Path::new(LAB_ROOTS));
                Self::in_lab(lab, &programs, [&config, key], port, log_file)?
            }
        };
        let mut service = Self {
            url: format!("http://127.0.0.1:{port}"),
            process,
        };
        service.wait_until_healthy(port, log)?;
        Ok(service)
    }

    fn on_host(
        programs: &Path,
        [data, config]: [&Path; 2],
        port: u16,
        log: File,
        key: &str,
    ) -> Result<ServerProcess> {
        let child = Command::new(programs.join("hatchery"))
            .arg("serve")
            .arg("--config")
            .arg(config)
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .arg("--data-dir")
            .arg(data)
            .env("HATCHERY_API_KEYS", key)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("Starting hatchery serve")?;
        Ok(ServerProcess::Host(child))
    }

    fn in_lab(
        lab: &Lab,
        programs: &Path,
        [config, key]: [&str; 2],
        port: u16,
        mut log: File,
    ) -> Result<ServerProcess> {
        let script = format!(
            "printf %s \"$1\" > /run/hatchery.toml || exit 1
             printf %s \"$2\" > {LAB_ROOTS} || exit 1
             HATCHERY_API_KEYS={key} exec {0}/hatchery serve --listen 0.0.0.0:{LAB_PORT} \
             --domain localhost:{port} --config /run/hatchery.toml --data-dir /var/lib/hatchery",
            programs.display()
        );
        let running: LabCommand = lab.spawn(&["sh", "-c", &script, "serve", config, ROOTS])?;
        let control = running.control();
        let output = std::thread::spawn(move || {
            let sink = |_: OutputStream, bytes: &[u8]| Ok(log.write_all(bytes)?);
            running.wait(sink).map(drop)
        });
        Ok(ServerProcess::Lab {
            control,
            output: Some(output),
        })
    }

    fn wait_until_healthy(&mut self, port: u16, log: &Path) -> Result<()> {
        let start = Instant::now();
        while !healthy(port) {
            if self.ended()? || start.elapsed() > HEALTH_LIMIT {
                let text = std::fs::read_to_string(log).unwrap_or_default();
                let tail: Vec<_> = text.lines().rev().take(20).collect();
                let tail: Vec<_> = tail.into_iter().rev().collect();
                bail!(
                    "The server did not come up; the end of {}:\n{}",
                    log.display(),
                    tail.join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Whether the server has ended by itself.
    pub(crate) fn ended(&mut self) -> Result<bool> {
        Ok(match &mut self.process {
            ServerProcess::Host(child) => child.try_wait()?.is_some(),
            ServerProcess::Lab { output, .. } => {
                output.as_ref().is_none_or(JoinHandle::is_finished)
            }
        })
    }
}

/// Whether something answers `GET /health` with a success.
fn healthy(port: u16) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok(answer.starts_with(b"HTTP/1.1 2"))
    };
    ask().unwrap_or(false)
}

impl Drop for RunningService {
    fn drop(&mut self) {
        match &mut self.process {
            ServerProcess::Host(child) => {
                if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
                let start = Instant::now();
                while matches!(child.try_wait(), Ok(None)) && start.elapsed() < STOP_LIMIT {
                    std::thread::sleep(Duration::from_millis(20));
                }
                let _ = child.kill();
                let _ = child.wait();
            }
            ServerProcess::Lab { control, output } => {
                let _ = control.signal(SIGTERM);
                if let Some(output) = output.take() {
                    let _ = output.join();
                }
            }
        }
    }
}
