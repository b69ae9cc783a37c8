//! How many events a VM process may still send: as many as answer what it was asked.
//!
//! A process that its guest has taken over could send for ever: each event costs the service work,
//! and some a line in the log.

use control::Request;

/// Most that is outstanding at one time, and more: what was never answered does not add up.
const MOST: u64 = 64;

/// What was asked and not answered. Some requests need no answer when all is well, so this only
/// bounds what may come.
#[derive(Debug)]
pub(super) struct EventAllowance(u64);

impl EventAllowance {
    /// Of a process that has been sent its configuration.
    pub(super) fn configured() -> Self {
        Self(1)
    }

    /// It is asked this.
    pub(super) fn ask(&mut self, request: &Request) {
        let more = match request {
            // Memory is copied ahead; then the save's own end.
            Request::Save(_) => 2,
            Request::Configure(_)
            | Request::Start
            | Request::Pause
            | Request::Reset(_)
            | Request::Stats
            | Request::Stop => 1,
        };
        self.0 = MOST.min(self.0 + more);
    }

    /// An event came; false when nothing asked for it.
    pub(super) fn answer(&mut self) -> bool {
        match self.0.checked_sub(1) {
            Some(left) => {
                self.0 = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn as_many_events_as_answers() {
        let mut allowance = EventAllowance::configured();
        assert!(allowance.answer());
        assert!(!allowance.answer());
        allowance.ask(&Request::Stats);
        allowance.ask(&Request::Start);
        assert!(allowance.answer() && allowance.answer());
        assert!(!allowance.answer() && !allowance.answer());
    }
}
