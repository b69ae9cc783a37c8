//! What `hatchery-vmm probe` says. Its words are another program's: every field may be missing.

use control::MissingWall;
use serde::Deserialize;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long the probe may take; on a host that interprets guests it takes a few seconds.
const BOUND: Duration = Duration::from_secs(60);
/// Most bytes that are read of its answer.
const MAX_ANSWER: u64 = 1 << 20;

/// The whole answer.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct ProbeReport {
    /// Virtual machines.
    #[serde(default)]
    pub kvm: KvmFacts,
    /// Page-fault handling in user space.
    #[serde(default)]
    pub userfaultfd: UserfaultfdFacts,
    /// The event loop's interface.
    #[serde(default)]
    pub io_uring: ProbeOutcome,
    /// Walls around VM processes.
    #[serde(default)]
    pub walls: WallFacts,
}

/// Which walls can be had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct WallFacts {
    /// All of them.
    #[serde(default)]
    pub ok: bool,
    /// Why that is not known.
    pub error: Option<String>,
    /// Those that cannot.
    #[serde(default)]
    pub missing: Vec<MissingWall>,
}

/// Whether something worked, or why not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ProbeOutcome {
    /// It worked.
    #[serde(default)]
    pub ok: bool,
    /// Why not.
    pub error: Option<String>,
}

/// What `/dev/kvm` gives.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct KvmFacts {
    /// It can be opened and has all that is needed.
    #[serde(default)]
    pub ok: bool,
    /// Why it cannot be opened.
    pub error: Option<String>,
    /// Needed capabilities that are not there.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Useful capabilities that are not there.
    #[serde(default)]
    pub optional_missing: Vec<String>,
    /// How long some calls take, microseconds.
    #[serde(default)]
    pub times_us: ProbeTimes,
    /// How fast guest kernels run.
    #[serde(default)]
    pub supervisor_speed: GuestSpeed,
}

/// Microseconds; `None` when a call failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ProbeTimes {
    /// An empty machine.
    #[serde(deserialize_with = "number")]
    pub create_vm: Option<f64>,
    /// A change of memory slots before any interrupt controller.
    #[serde(deserialize_with = "number")]
    pub slot_before_irqchip: Option<f64>,
    /// The same after the kernel's whole interrupt controller.
    #[serde(deserialize_with = "number")]
    pub slot_after_full_irqchip: Option<f64>,
    /// A machine as sandboxes have it.
    #[serde(deserialize_with = "number")]
    pub whole_machine: Option<f64>,
}

/// The speed test.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct GuestSpeed {
    /// It ran.
    #[serde(default)]
    pub ok: bool,
    /// Why not.
    pub error: Option<String>,
    /// Its result.
    pub million_instructions_per_second: Option<f64>,
}

/// A measurement, or an object that says why there is none.
fn number<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    Ok(serde_json::Value::deserialize(from)?.as_f64())
}

/// Page-fault handling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct UserfaultfdFacts {
    /// This user may open the device.
    #[serde(default)]
    pub device: ProbeOutcome,
    /// What it gives has the features that are needed; `None` without the device.
    pub features: Option<ProbeOutcome>,
    /// `vm.unprivileged_userfaultfd`.
    pub unprivileged: Option<bool>,
}

/// Asks the VM program.
///
/// # Errors
/// Why there is no answer, for people.
pub fn ask(vmm: &Path) -> Result<ProbeReport, String> {
    let mut child = Command::new(vmm)
        .args(["probe", "--json"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{} does not start: {error}", vmm.display()))?;
    let answer = child.stdout.take().map(|pipe| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            pipe.take(MAX_ANSWER).read_to_end(&mut text).map(|_| text)
        })
    });
    let begin = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if begin.elapsed() < BOUND => std::thread::sleep(Duration::from_millis(20)),
            other => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(match other {
                    Err(error) => format!("cannot wait for {}: {error}", vmm.display()),
                    _ => format!("{} probe took over {} s", vmm.display(), BOUND.as_secs()),
                });
            }
        }
    };
    let text = answer
        .and_then(|thread| thread.join().ok())
        .and_then(Result::ok)
        .unwrap_or_default();
    if !status.success() {
        return Err(format!("{} probe failed ({status})", vmm.display()));
    }
    serde_json::from_slice(&text).map_err(|error| {
        format!(
            "{} probe answered what cannot be read: {error}",
            vmm.display()
        )
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_answer_may_lack_anything() {
        assert_eq!(
            serde_json::from_str::<ProbeReport>("{}").unwrap(),
            ProbeReport::default()
        );
        let text = r#"{"kvm": {"ok": true, "times_us": {"create_vm": 2.5, "whole_machine":
            {"error": "x"}}, "supervisor_speed": {"ok": false, "error": "y"}, "new": 1}}"#;
        let probe: ProbeReport = serde_json::from_str(text).unwrap();
        assert_eq!(probe.kvm.times_us.create_vm, Some(2.5));
        assert_eq!(probe.kvm.times_us.whole_machine, None);
        assert_eq!(probe.kvm.supervisor_speed.error.as_deref(), Some("y"));
    }

    #[test]
    fn a_program_that_fails_or_babbles_is_an_error() {
        assert!(
            ask(Path::new("/nowhere/vmm"))
                .unwrap_err()
                .contains("does not start")
        );
        assert!(ask(Path::new("/bin/false")).unwrap_err().contains("failed"));
        assert!(
            ask(Path::new("/bin/echo"))
                .unwrap_err()
                .contains("cannot be read")
        );
    }
}
