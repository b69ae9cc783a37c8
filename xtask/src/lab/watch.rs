//! Whether a lab that says nothing is slow or dead.
//!
//! A machine with much to do gives the emulator little of its processors, and then a living lab may
//! be silent for minutes. So a silence counts without the time in which the emulator's processor
//! waited for one of this machine's, and who is silent for long is asked whether it is there.

use super::emulator;
use super::ping::AgentAddress;
use super::state::LabPlace;
use anyhow::{Result, anyhow, bail};
use rustix::process::Pid;
use std::time::{Duration, Instant};

/// After so much silence the agent is asked whether it is there.
const ASK_AFTER: Duration = Duration::from_secs(30);
/// How long it gets for an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// An agent that has not answered for so long has died with its lab.
const DEAD_AFTER: Duration = Duration::from_secs(120);
/// However little of this machine the lab got, a silence is at least this part of its time.
const LEAST_PART: u32 = 4;
/// Of the console, in messages.
const CONSOLE_LINES: usize = 20;

/// A lab's process, as it was when somebody began to use it.
#[derive(Clone)]
pub(super) struct LabWatch {
    place: LabPlace,
    process: Pid,
    /// `None` where a question would be counted with what is measured.
    agent: Option<AgentAddress>,
}

impl LabWatch {
    /// Watches this process; `agent` is asked if the lab is silent for long.
    pub(super) fn new(place: &LabPlace, process: Pid, agent: Option<AgentAddress>) -> Self {
        Self {
            place: place.clone(),
            process,
            agent,
        }
    }

    /// # Errors
    /// If the process has ended, with its last messages.
    pub(super) fn is_there(&self) -> Result<()> {
        if emulator::process(&self.place) == Some(self.process) {
            return Ok(());
        }
        Err(self.dead("The lab's process has ended"))
    }

    /// A silence that begins now.
    pub(super) fn silence(&self) -> LabSilence<'_> {
        LabSilence {
            watch: self,
            began: Moment::now(self.process),
            seen: Moment::now(self.process),
        }
    }

    /// An error with the lab's last messages.
    pub(super) fn dead(&self, why: &str) -> anyhow::Error {
        let console = self.place.console_tail(CONSOLE_LINES);
        anyhow!("{why}; the last lines of its console:\n{console}")
    }
}

/// A time in which a lab says nothing.
pub(super) struct LabSilence<'a> {
    watch: &'a LabWatch,
    began: Moment,
    /// When it last showed that it is alive.
    seen: Moment,
}

impl LabSilence<'_> {
    /// How long it has been, without the time in which the lab had no processor.
    pub(super) fn lasted(&self) -> Duration {
        self.began.until(Moment::now(self.watch.process))
    }

    /// # Errors
    /// If the lab has died, or this has lasted longer than `limit`.
    pub(super) fn check(&mut self, limit: Option<Duration>) -> Result<()> {
        self.watch.is_there()?;
        if let Some(limit) = limit.filter(|limit| self.lasted() > *limit) {
            let real = self.began.at.elapsed().as_secs();
            let why = format!("The lab was silent for {limit:?} ({real} s of this machine's time)");
            return Err(self.watch.dead(&why));
        }
        let now = Moment::now(self.watch.process);
        let unseen = self.seen.until(now);
        let Some(agent) = self.watch.agent.as_ref().filter(|_| unseen > ASK_AFTER) else {
            return Ok(());
        };
        match agent.time(None, ANSWER) {
            Ok(_) => self.seen = Moment::now(self.watch.process),
            Err(error) if self.seen.until(Moment::now(self.watch.process)) > DEAD_AFTER => {
                bail!(
                    self.watch
                        .dead(&format!("The lab does not answer ({error:#})"))
                );
            }
            Err(_) => {}
        }
        Ok(())
    }
}

/// A moment, and how long the emulator's processor had waited for one of this machine's by then.
#[derive(Clone, Copy, Debug)]
struct Moment {
    at: Instant,
    waited: Duration,
}

impl Moment {
    fn now(process: Pid) -> Self {
        Self {
            at: Instant::now(),
            waited: waited(process),
        }
    }

    fn until(self, later: Self) -> Duration {
        let real = later.at.saturating_duration_since(self.at);
        real.saturating_sub(later.waited.saturating_sub(self.waited))
            .max(real / LEAST_PART)
    }
}

/// How long a process's busiest thread has been ready to run without a processor; zero if the
/// kernel keeps no account of it.
fn waited(process: Pid) -> Duration {
    let folder = format!("/proc/{}/task", process.as_raw_nonzero());
    let tasks = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let accounts =
        tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
    let busiest = accounts.filter_map(|text| ran_and_waited(&text)).max();
    Duration::from_nanos(busiest.map_or(0, |(_, waited)| waited))
}

/// The first two figures of a task's `schedstat`, nanoseconds.
fn ran_and_waited(text: &str) -> Option<(u64, u64)> {
    let mut figures = text.split_whitespace().map(str::parse);
    Some((figures.next()?.ok()?, figures.next()?.ok()?))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::process::Command;

    fn watch(name: &str, process: u32) -> LabWatch {
        let place = LabPlace::new(name).unwrap();
        LabWatch::new(&place, Pid::from_raw(process.cast_signed()).unwrap(), None)
    }

    #[test]
    fn time_without_a_processor_is_no_silence() {
        let at = Instant::now();
        let second = |n| Duration::from_secs(n);
        let begin = Moment {
            at,
            waited: second(7),
        };
        let later = |waited| Moment {
            at: at + second(100),
            waited: second(waited),
        };
        assert_eq!(begin.until(later(7)), second(100));
        assert_eq!(begin.until(later(67)), second(40));
        assert_eq!(begin.until(later(107)), second(25));
        assert_eq!(begin.until(later(0)), second(100)); // another thread is the busiest now
    }

    #[test]
    fn a_threads_account_is_read() {
        assert_eq!(ran_and_waited("123 45 6\n"), Some((123, 45)));
        assert_eq!(ran_and_waited("123\n"), None);
        let own = std::fs::read_to_string("/proc/self/schedstat").unwrap();
        assert!(ran_and_waited(&own).is_some());
    }

    #[test]
    fn a_process_that_is_no_lab_is_a_dead_lab_with_its_last_words() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let watch = watch("test-watch", child.id());
        std::fs::create_dir_all(&watch.place.dir).unwrap();
        std::fs::write(watch.place.console(), "one\nKernel panic\n").unwrap();
        let error = watch.silence().check(None).unwrap_err().to_string();
        std::fs::remove_dir_all(&watch.place.dir).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(
            error,
            "The lab's process has ended; the last lines of its console:\none\nKernel panic"
        );
    }
}
