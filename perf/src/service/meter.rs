//! What a piece of work took of the whole machine, apart from the client's own part.
//!
//! Waiting is not work: under instruction counting idle time is skipped to the next timer, so the
//! clock alone would count it. The scheduler's account of each processor's busy time does not.

use crate::engine::now_ns;
use crate::{host, processes};
use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// A slice of work is in the scheduler's account when its task has stopped.
const SETTLE: Duration = Duration::from_micros(100);

/// A running measurement.
#[derive(Debug)]
pub(crate) struct WorkMeter {
    server: u32,
    begin: MeterReading,
}

#[derive(Clone, Copy, Debug)]
struct MeterReading {
    now_ns: u64,
    busy_ns: Option<u64>,
    client_ns: u64,
    server_ns: u64,
}

/// What was taken between two points. Nanoseconds; instructions where they are counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkSpent {
    /// By the clock.
    pub(crate) elapsed_ns: u64,
    /// By all processes but this one, guests among them; if the kernel keeps such an account.
    pub(crate) work_ns: Option<u64>,
    /// By the server's own process.
    pub(crate) server_ns: u64,
}

impl WorkMeter {
    /// From here on; `server` is a process that is looked at apart.
    pub(crate) fn start(server: u32) -> Result<Self> {
        std::thread::sleep(SETTLE);
        Ok(Self {
            server,
            begin: MeterReading::now(server)?,
        })
    }

    /// To here.
    pub(crate) fn stop(&self) -> Result<WorkSpent> {
        let end_ns = now_ns();
        std::thread::sleep(SETTLE);
        let (begin, end) = (self.begin, MeterReading::now(self.server)?);
        let client_ns = end.client_ns - begin.client_ns;
        let busy_ns = begin.busy_ns.zip(end.busy_ns).map(|(a, b)| b - a);
        Ok(WorkSpent {
            elapsed_ns: end_ns - begin.now_ns,
            work_ns: busy_ns.map(|busy| busy.saturating_sub(client_ns)),
            server_ns: end.server_ns.saturating_sub(begin.server_ns),
        })
    }
}

impl MeterReading {
    fn now(server: u32) -> Result<Self> {
        let own = clock_gettime(ClockId::ProcessCPUTime);
        let part = |n: i64| u64::try_from(n).unwrap_or(0);
        Ok(Self {
            busy_ns: host::busy_ns(),
            server_ns: processes::ran_ns(server),
            client_ns: part(own.tv_sec) * 1_000_000_000 + part(own.tv_nsec),
            now_ns: now_ns(),
        })
    }
}

impl WorkSpent {
    /// Each of `count` equal parts, as values of a sample.
    pub(crate) fn each(&self, count: u32) -> Vec<(&'static str, u64)> {
        let count = u64::from(count.max(1));
        let mut values = vec![
            ("elapsed_each_time", self.elapsed_ns / count),
            ("server_each_time", self.server_ns / count),
        ];
        values.extend(self.work_ns.map(|work| ("work_each_time", work / count)));
        values
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn waiting_is_not_work_and_the_clients_own_part_is_left_out() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn();
        let child = child.as_mut().unwrap();
        let meter = WorkMeter::start(child.id()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let spent = meter.stop().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(spent.elapsed_ns >= 20_000_000, "{spent:?}");
        assert!(spent.server_ns < 20_000_000, "{spent:?}");
        let mut sum = 0_u64;
        let meter = WorkMeter::start(std::process::id()).unwrap();
        let begin = now_ns();
        while now_ns() - begin < 20_000_000 {
            sum = std::hint::black_box(sum + 1);
        }
        let spent = meter.stop().unwrap();
        assert!(spent.server_ns > 1_000_000, "{spent:?} for {sum}");
    }
}
