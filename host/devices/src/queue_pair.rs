//! The two queues of a device that sends and receives.

use crate::device::BrokenQueue;
use virtio_queue::Queue;

/// Number of the queue with buffers for what comes to the guest.
pub(crate) const RX: usize = 0;
/// Number of the queue with what the guest sends.
pub(crate) const TX: usize = 1;

/// A queue with the driver's buffers, and one with what the driver sends, in this order in both
/// kinds of devices that have them (virtio 1.2 §5.1.2, §5.10.2).
#[derive(Debug)]
pub(crate) struct QueuePair {
    pub(crate) rx: Queue,
    pub(crate) tx: Queue,
}

impl QueuePair {
    /// The first two of the queues that the driver made ready; it needs both.
    pub(crate) fn new(mut queues: Vec<Option<Queue>>) -> Result<Self, BrokenQueue> {
        let mut take = |number| {
            queues
                .get_mut(number)
                .and_then(Option::take)
                .ok_or(BrokenQueue)
        };
        let (rx, tx) = (take(RX)?, take(TX)?);
        Ok(Self { rx, tx })
    }

    /// By number, as far as there are any.
    pub(crate) fn list(pair: Option<&Self>) -> Vec<Option<&Queue>> {
        vec![pair.map(|q| &q.rx), pair.map(|q| &q.tx)]
    }
}
