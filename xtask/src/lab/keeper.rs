//! A process of this machine beside each lab, for as long as the lab runs.
//!
//! It relays ports of loopback into the lab (`relay`), and keeps the lab's clock with this
//! machine's (`clock`), but for a lab that counts instructions, whose clock is their number. Who
//! wants a port relayed asks by a unix socket in the lab's folder.

use super::clock::ClockSample;
use super::ping::AgentAddress;
use super::relay::{self, RelayGate};
use super::state::{AGENT_PORT, LabPlace};
use super::{emulator, unix};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit, setsid};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::Runtime;

/// How often the clock is looked at.
const CLOCK_PERIOD: Duration = Duration::from_secs(4);
/// So many looks at a time; the quickest answer says most.
const LOOKS: u32 = 3;
/// How long a lab gets to say its time.
const ANSWER: Duration = Duration::from_secs(2);
/// How soon the keeper sees that its lab has ended.
const LOOK: Duration = Duration::from_millis(200);
/// How long a keeper gets to come up, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(20);
/// The longest question or answer, bytes.
const LONGEST: u64 = 4096;

/// What a keeper is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeeperRequest {
    /// The process whose keeper is meant.
    lab: i32,
    /// A port of loopback, and the emulator's port that it shall lead to.
    relay: Option<(u16, u16)>,
}

/// Sees to it that the running lab has a keeper.
///
/// # Errors
/// If none comes up.
pub(super) fn ensure(place: &LabPlace, lab: Pid) -> Result<()> {
    if ask(place, lab, None).is_ok() {
        return Ok(());
    }
    let log = File::options()
        .create(true)
        .append(true)
        .open(place.keeper_log())?;
    // Not by its name: cargo may have put a newer one in its place.
    Command::new(format!("/proc/{}/exe", std::process::id()))
        .args(["lab", "keep", "--name", &place.name])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("Starting the lab's keeper")?;
    let begin = Instant::now();
    while let Err(error) = ask(place, lab, None) {
        if begin.elapsed() > START_LIMIT {
            let log = place.keeper_log();
            return Err(error.context(format!("The lab's keeper is not up: see {}", log.display())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Relays a port of loopback to the emulator's port `to`.
///
/// # Errors
/// If the port is in use, or there is no keeper.
pub(super) fn forward(place: &LabPlace, lab: Pid, host: u16, to: u16) -> Result<()> {
    ask(place, lab, Some((host, to)))
}

fn ask(place: &LabPlace, lab: Pid, relay: Option<(u16, u16)>) -> Result<()> {
    let mut stream = unix::connect(&place.keeper()).context("Asking the lab's keeper")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = KeeperRequest {
        lab: lab.as_raw_nonzero().get(),
        relay,
    };
    stream.write_all(&serde_json::to_vec(&request)?)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.take(LONGEST).read_to_string(&mut answer)?;
    match answer.as_str() {
        "ok" => Ok(()),
        other => bail!("The lab's keeper: {other}"),
    }
}

/// Is a lab's keeper until the lab ends.
///
/// # Errors
/// If no lab of this name runs.
pub(super) fn keep(name: &str) -> Result<()> {
    let place = LabPlace::new(name)?;
    let _ = setsid(); // the terminal's Ctrl-C is not for it
    let lock = File::create(place.keeper_lock()).context("Opening the keeper's lock")?;
    lock.lock().context("Waiting for an earlier keeper")?;
    let lab = emulator::process(&place).context("The lab does not run")?;
    let state = place.load()?;
    raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let relays = KeeperRelays {
        runtime,
        gate: RelayGate::new(),
    };
    for forward in &state.forwards {
        if let Some(via) = forward.via
            && let Err(error) = relays.add(forward.host, via)
        {
            eprintln!("{error:#}");
        }
    }
    let listener = unix::listen(&place.keeper()).context("Listening for questions")?;
    std::thread::spawn(move || answer_all(&listener, lab, &relays));
    let agent = state.host_port(AGENT_PORT).map(|port| AgentAddress {
        port,
        token: state.token,
    });
    let agent = agent.filter(|_| !state.icount);
    let mut clock = Instant::now();
    while emulator::process(&place) == Some(lab) {
        std::thread::sleep(LOOK);
        if let Some(agent) = agent.as_ref().filter(|_| clock.elapsed() > CLOCK_PERIOD) {
            match set_clock(agent) {
                Ok(Some(step_ns)) => say(&format!("the clock was stepped by {step_ns} ns")),
                Ok(None) => {}
                Err(error) => say(&format!("the clock was not looked at: {error:#}")),
            }
            clock = Instant::now();
        }
    }
    Ok(())
}

fn say(what: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    eprintln!("{}: {what}", now.unwrap_or_default().as_secs());
}

/// Each connection takes two files.
fn raise_open_files() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(RelayGate::open_files(), |most| {
        most.min(RelayGate::open_files())
    });
    let current = limit.current.map(|current| current.max(wanted));
    let maximum = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).context("Raising the limit on files")
}

/// What the relayed ports run on.
struct KeeperRelays {
    runtime: Runtime,
    gate: Arc<RelayGate>,
}

impl KeeperRelays {
    fn add(&self, host: u16, to: u16) -> Result<()> {
        let _context = self.runtime.enter();
        let listener = relay::listen(host)?;
        self.runtime
            .spawn(relay::serve(listener, to, Arc::clone(&self.gate)));
        Ok(())
    }
}

fn answer_all(listener: &UnixListener, lab: Pid, relays: &KeeperRelays) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else {
            std::thread::sleep(LOOK);
            continue;
        };
        let _ = stream.set_read_timeout(Some(ANSWER));
        let mut text = String::new();
        let read = (&stream).take(LONGEST).read_to_string(&mut text);
        let answer = read
            .context("Reading the question")
            .and_then(|_| answer(&text, lab, relays))
            .map_or_else(|error| format!("{error:#}"), |()| "ok".to_owned());
        let _ = stream.write_all(answer.as_bytes());
    }
}

fn answer(text: &str, lab: Pid, relays: &KeeperRelays) -> Result<()> {
    let request: KeeperRequest = serde_json::from_str(text).context("The question is not valid")?;
    if request.lab != lab.as_raw_nonzero().get() {
        bail!("This is the keeper of a lab that has ended");
    }
    match request.relay {
        Some((host, to)) => relays.add(host, to),
        None => Ok(()),
    }
}

/// The lab's clock beside this machine's: the best of a few looks.
///
/// # Errors
/// If the lab does not answer.
pub(super) fn look(agent: &AgentAddress) -> Result<ClockSample> {
    let mut best: Option<ClockSample> = None;
    for _ in 0..LOOKS {
        let asked = now()?;
        let lab = agent.time(None, ANSWER)?;
        let sample = ClockSample::new(asked, lab, now()?);
        if best.is_none_or(|best| sample.error_ns < best.error_ns) {
            best = Some(sample);
        }
    }
    best.context("No look at the clock")
}

/// Steps the lab's clock if it is wrong; by how much, nanoseconds.
///
/// # Errors
/// If the lab does not answer.
pub(super) fn set_clock(agent: &AgentAddress) -> Result<Option<i64>> {
    let step = look(agent)?.step();
    if step.is_some() {
        agent.time(step, ANSWER)?;
    }
    Ok(step)
}

fn now() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_keeper_answers_for_its_own_lab_and_relays_a_free_port_once() {
        let relays = KeeperRelays {
            runtime: Runtime::new().unwrap(),
            gate: RelayGate::new(),
        };
        let lab = Pid::from_raw(7).unwrap();
        let free = super::super::free_port().unwrap();
        let ask = |text: &str| answer(text, lab, &relays).map_err(|error| format!("{error:#}"));
        ask(r#"{"lab":7,"relay":null}"#).unwrap();
        ask(&format!(r#"{{"lab":7,"relay":[{free},1]}}"#)).unwrap();
        for (text, why) in [
            (format!(r#"{{"lab":7,"relay":[{free},1]}}"#), "in use"),
            (r#"{"lab":8,"relay":null}"#.to_owned(), "has ended"),
            ("{".to_owned(), "not valid"),
        ] {
            let error = ask(&text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
