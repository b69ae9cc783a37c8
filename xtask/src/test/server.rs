//! A server that tests may kill and start again: by a shell script on its host.

use super::runner::{cargo, program, tee};
use super::tls::TestDomain;
use crate::dist::{Dist, target_dir};
use crate::lab::free_port;
use crate::sdk::SdkTarget;
use crate::service::{API_KEY, LAB_DIST, ServerPlace};
use anyhow::{Context, Result, bail};
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Another key of the servers here: whoever has it sees nothing of what the first one has.
pub(super) const OTHER_KEY: &str = "e2b_fedcba9876543210fedcba9876543210fedcba98";

/// The server's port in the lab, beside that of `up`.
const LAB_PORT: u16 = 3100;
/// A server that is not there after this long is given up.
const START_LIMIT: Duration = Duration::from_secs(60);
/// The user that commands run as by default, with a number that nobody else has.
const USER: &str = "user:x:60123:60123::/home/user:/bin/bash";

/// A server that tests may kill and start again by a shell script on its host. Ends when dropped.
pub(super) struct MortalServer {
    /// From this machine.
    pub(super) url: String,
    /// Runs its next argument as a shell script on the server's host.
    host_command: Vec<String>,
    /// The script that starts the server in the background.
    start: String,
    /// A folder on that host with the process id, the log and the server's state.
    dir: String,
    /// What it serves TLS for.
    tls: Option<TestDomain>,
}

impl MortalServer {
    /// A server with microVMs.
    pub(super) fn start(place: &mut ServerPlace, dist: &Dist) -> Result<Self> {
        let programs = place.install(dist)?;
        let port = free_port()?;
        match place {
            ServerPlace::Host => {
                let dir = fs::canonicalize(target_dir())?.join("test-fault");
                let start = start_script(&programs, &format!("127.0.0.1:{port}"), &dir, "", "");
                Self::launch(&["sh", "-c"], start, &dir, port)
            }
            ServerPlace::Lab(lab) => {
                lab.forward(port, LAB_PORT)?;
                let dir = Path::new(LAB_DIST).join("test-fault");
                let start = start_script(&programs, &format!("0.0.0.0:{LAB_PORT}"), &dir, "", "");
                let program = program()?;
                let exec = [
                    &program,
                    "lab",
                    "exec",
                    "--name",
                    lab.name(),
                    "--",
                    "sh",
                    "-c",
                ];
                Self::launch(&exec, start, &dir, port)
            }
        }
    }

    /// A server whose VM program runs the agent as an ordinary process, with private home folders
    /// and a list of users that has `user`.
    pub(super) fn start_native() -> Result<Self> {
        let dir = fs::canonicalize(target_dir())?.join("test-native");
        let programs = native_programs(&dir)?;
        with_user("/etc/passwd", &dir.join("passwd"), USER)?;
        with_user("/etc/group", &dir.join("group"), "user:x:60123:")?;
        let wrap = format!(
            "unshare --mount --propagation private sh -c 'mount --bind {0}/passwd /etc/passwd && \
             mount --bind {0}/group /etc/group && mount -t tmpfs -o mode=755 none /home && \
             mount -t tmpfs -o mode=700 none /root && mkdir /home/user && \
             chown 60123:60123 /home/user && exec \"$@\"' - ",
            dir.display()
        );
        let port = free_port()?;
        let tls = TestDomain::make(&dir)?;
        let listen = format!("127.0.0.1:{port}");
        let start = start_script(&programs, &listen, &dir, &wrap, &tls.flags);
        let mut server = Self::launch(&["sh", "-c"], start, &dir, port)?;
        server.tls = Some(tls);
        Ok(server)
    }

    fn launch(host_command: &[&str], start: String, dir: &Path, port: u16) -> Result<Self> {
        let host_command = host_command.iter().map(|&word| word.to_owned()).collect();
        let (url, dir) = (
            format!("http://127.0.0.1:{port}"),
            dir.display().to_string(),
        );
        let server = Self {
            url,
            host_command,
            start,
            dir,
            tls: None,
        };
        // An earlier run in the same lab may have left what was paused in it.
        server.on_host(&format!("rm -rf '{0}/data' && mkdir -p '{0}'", server.dir))?;
        server.on_host(&server.start)?;
        server.wait(port)?;
        Ok(server)
    }

    /// Tells the suites how to look at this server's host, and how to start the server again.
    pub(super) fn describe(&self, target: &mut SdkTarget) {
        target
            .set("HATCHERY_HOST_CMD", self.host_command.join(" "))
            .set("HATCHERY_STATE_DIR", format!("{}/data", self.dir))
            .set("HATCHERY_SERVER_LOG", format!("{}/log", self.dir))
            .set("HATCHERY_SERVER_PID", self.pid_file())
            .set("HATCHERY_SERVER_START", self.start.as_str());
        if let Some(tls) = &self.tls {
            target
                .set("HATCHERY_TLS_DOMAIN", tls.domain.as_str())
                .set("HATCHERY_TLS_ROOT", tls.root.display().to_string());
        }
    }

    fn pid_file(&self) -> String {
        format!("{}/pid", self.dir)
    }

    fn on_host(&self, script: &str) -> Result<()> {
        let (program, args) = self
            .host_command
            .split_first()
            .context("No command for the host")?;
        let status = Command::new(program)
            .args(args)
            .arg(script)
            .stdin(Stdio::null())
            .status()?;
        if !status.success() {
            bail!("`{script}` on the server's host: {status}");
        }
        Ok(())
    }

    fn wait(&self, port: u16) -> Result<()> {
        let start = Instant::now();
        // The lab's forwarder accepts at once, so ask until somebody answers.
        while !answers(port) {
            if start.elapsed() > START_LIMIT {
                let _ = self.on_host(&format!("tail -n 20 '{}/log' >&2", self.dir));
                bail!("The server did not come up: the end of its log is above");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for MortalServer {
    fn drop(&mut self) {
        // Killed hard only if it does not end by itself.
        let script = format!(
            "p=$(cat '{}') || exit 0; kill $p || exit 0; for i in 1 2 3 4 5 6 7 8 9 10; do \
             kill -0 $p 2>/dev/null || exit 0; sleep 1; done; kill -9 $p",
            self.pid_file()
        );
        let _ = self.on_host(&script);
    }
}

/// A shell script that starts a server in the background, away from the terminal; `wrap` is put
/// before its command line, `flags` after it. Without warm VMs, so that each sandbox is one VM
/// process more.
fn start_script(programs: &Path, listen: &str, dir: &Path, wrap: &str, flags: &str) -> String {
    let (programs, dir) = (programs.display(), dir.display());
    format!(
        "HATCHERY_API_KEYS={API_KEY},{OTHER_KEY} HATCHERY_POOL_SIZE=0 setsid {wrap}sh -c \
         'echo $$ > \"{dir}/pid\"; \
         exec \"{programs}/hatchery\" serve --listen {listen} --image-dir \"{programs}\" \
         --data-dir \"{dir}/data\" {flags}' >> '{dir}/log' 2>&1 < /dev/null &"
    )
}

fn answers(port: u16) -> bool {
    use std::io::{Read, Write};
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut head = [0; 10];
        stream.read_exact(&mut head)?;
        Ok(head == *b"HTTP/1.1 2")
    };
    ask().unwrap_or(false)
}

/// The programs as the server looks for them, with the stand-in for `hatchery-vmm`.
fn native_programs(dir: &Path) -> Result<PathBuf> {
    let built = fs::canonicalize(target_dir())?;
    let programs = dir.join("dist");
    fs::create_dir_all(&programs)?;
    for args in [
        // With the features of the whole workspace, as the reader of records: what the two share is
        // built once. The tests' build is another, because a panic does not end a test.
        &["build", "--workspace", "--bin=hatchery", "--bin=fake-vmm"][..],
        &["build", "--profile", "agent", "-p", "guest-agent"],
    ] {
        let (status, _) = tee(&mut cargo(args))?;
        if !status.success() {
            bail!("`cargo {}` failed: see its messages above", args.join(" "));
        }
    }
    for (from, to) in [
        ("debug/hatchery", "hatchery"),
        ("debug/fake-vmm", "hatchery-vmm"),
        ("agent/hatchery-agent", "hatchery-agent"),
    ] {
        let link = programs.join(to);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(built.join(from), &link)?;
    }
    // Handed to the stand-in, which does not look into them.
    fs::write(programs.join("vmlinux"), [0; 4096])?;
    fs::write(programs.join("base.ext4"), vec![0; 1 << 20])?;
    Ok(programs)
}

/// Writes a copy of a list of users or groups in which `entry` takes the place of its namesake.
fn with_user(from: &str, to: &Path, entry: &str) -> Result<()> {
    let text = fs::read_to_string(from).with_context(|| format!("Reading {from}"))?;
    let mut lines: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with("user:"))
        .collect();
    lines.push(entry);
    fs::write(to, lines.join("\n") + "\n").with_context(|| format!("Writing {}", to.display()))
}
