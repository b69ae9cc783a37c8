//! Telling the host what runs, a frame at a time.

use crate::procs::ProcessTable;
use agent_core::Session;
use wire::{DataChannel, Record};

/// Tells as many processes as one frame holds; true when that were all.
pub(crate) fn tell_processes(
    procs: &ProcessTable,
    next: &mut usize,
    listed: &mut u64,
    slot: usize,
    session: &mut Session,
) -> bool {
    let Some(space) = session.data_space(slot) else {
        return false;
    };
    let mut used = 0;
    let all = loop {
        match procs.info(*next) {
            None => break true,
            Some(None) => *next += 1,
            Some(Some(info)) => match info.write(&mut space[used..]) {
                Ok(n) => {
                    used += n;
                    *next += 1;
                    *listed += 1;
                }
                Err(_) => break false,
            },
        }
    };
    session.data_commit(slot, DataChannel::Records, used);
    all
}
