//! The one command of the keyboard controller that matters: pulse the processor's reset line.

use std::fmt;

/// Port 0x64. Linux ends a machine with `reboot=k` by writing 0xfe here.
pub struct ResetPort {
    on_reset: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for ResetPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResetPort").finish_non_exhaustive()
    }
}

impl ResetPort {
    /// The port's number.
    pub const PORT: u16 = 0x64;
    const PULSE_RESET: u8 = 0xfe;

    /// `on_reset` is called on the vCPU's thread each time the guest asks for a reset.
    pub fn new(on_reset: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            on_reset: Box::new(on_reset),
        }
    }

    /// Status: both buffers empty, so that no driver waits.
    pub fn read(&self, data: &mut [u8]) {
        data.fill(0);
    }

    /// A command.
    pub fn write(&self, data: &[u8]) {
        if data.first() == Some(&Self::PULSE_RESET) {
            (self.on_reset)();
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn only_the_reset_command_resets() {
        let count = Arc::new(AtomicU32::new(0));
        let counter = count.clone();
        let port = ResetPort::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        (0..=0xff).for_each(|command| port.write(&[command]));
        port.write(&[]);
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
}
