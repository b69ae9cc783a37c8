//! Sorted address maps: which device answers a port or a memory-mapped address.
//!
//! A [`Bus`] is built once and never changes, so vCPU threads look it up without a lock.

use crate::error::{Error, Result};
use std::fmt;
use std::sync::Arc;

/// Something that answers reads and writes of a guest. Called on vCPU threads, several at once.
///
/// `offset` counts from the start of the range. `data` has 1 to 8 bytes and may reach past what a
/// device expects: guests choose both freely.
pub trait BusDevice: Send + Sync {
    /// Fills `data`; bytes left alone read as they were given (all ones).
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data`.
    fn write(&self, offset: u64, data: &[u8]);
}

struct Range {
    base: u64,
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// An immutable map from addresses to devices.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<Range>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.ranges.iter().map(|r| (r.base, r.len)))
            .finish()
    }
}

impl Bus {
    /// Sorts the devices by address.
    ///
    /// # Errors
    /// [`Error::BusOverlap`] for a range that is empty, wraps around or overlaps another.
    pub fn new(devices: impl IntoIterator<Item = (u64, u64, Arc<dyn BusDevice>)>) -> Result<Self> {
        let mut ranges: Vec<_> = devices
            .into_iter()
            .map(|(base, len, device)| Range { base, len, device })
            .collect();
        ranges.sort_by_key(|r| r.base);
        let mut free = 0;
        for &Range { base, len, .. } in &ranges {
            let end = base.checked_add(len).filter(|_| len > 0 && base >= free);
            free = end.ok_or(Error::BusOverlap { base, len })?;
        }
        Ok(Self { ranges })
    }

    fn find(&self, address: u64) -> Option<(&dyn BusDevice, u64)> {
        let after = self.ranges.partition_point(|r| r.base <= address);
        let range = &self.ranges[after.checked_sub(1)?];
        let offset = address - range.base;
        (offset < range.len).then_some((&*range.device, offset))
    }

    /// Reads; an address that nobody claims reads as all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.find(address) {
            device.read(offset, data);
        }
    }

    /// Writes; an address that nobody claims takes no notice.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data[0] = u8::try_from(offset).unwrap();
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn addresses_find_their_device_and_others_read_as_ones() {
        let (a, b) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let bus = Bus::new([(0x20, 8, b.clone() as _), (0x10, 8, a.clone() as _)]).unwrap();
        let read = |address| {
            let mut data = [0; 2];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(0x10), [0, 0xff]);
        assert_eq!(read(0x27), [7, 0xff]);
        assert_eq!(
            [read(0x0f), read(0x18), read(0x28), read(u64::MAX)],
            [[0xff, 0xff]; 4]
        );
        bus.write(0x21, &[9]);
        bus.write(0x18, &[9]);
        assert_eq!(*b.0.lock().unwrap(), [(1, vec![9])]);
        assert!(a.0.lock().unwrap().is_empty());
    }

    #[test]
    fn overlaps_are_refused() {
        let at = |base, len| {
            (
                base,
                len,
                Arc::new(Recorder::default()) as Arc<dyn BusDevice>,
            )
        };
        Bus::new([at(0, 8), at(8, 8)]).unwrap();
        for bad in [
            vec![at(0, 9), at(8, 8)],
            vec![at(4, 0)],
            vec![at(u64::MAX, 2)],
        ] {
            assert!(matches!(Bus::new(bad), Err(Error::BusOverlap { .. })));
        }
    }
}
