//! An I/O APIC without a chip: 24 edge-triggered pins, each a message-signalled route.
//!
//! The guest programs it like Intel's 82093AA (register names below are from that data sheet); a
//! change of a redirection entry becomes a call to [`IrqRoutes::set`]. Interrupts themselves never
//! pass through here: a device's eventfd goes straight to the route.

use crate::state::{InvalidState, LoadError, decode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Pins of the I/O APIC; global interrupt numbers 0 to 23.
pub const IOAPIC_PINS: u8 = 24;
/// Bytes of the register window.
pub const IOAPIC_WINDOW: u64 = 0x1000;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const IOAPICID: u8 = 0x00;
const IOAPICVER: u8 = 0x01;
const IOAPICARB: u8 = 0x02;
const IOREDTBL: u8 = 0x10;
/// Version 0x11 has no EOI register, as on the 82093AA.
const VERSION: u32 = 0x11;

const VECTOR_AND_DELIVERY: u64 = 0x7ff;
const DEST_LOGICAL: u64 = 1 << 11;
const POLARITY: u64 = 1 << 13;
const TRIGGER_LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Bits 56..64, and in bits 48..56 the extended destination used with x2APIC-aware hypervisors.
const DESTINATION_SHIFT: u32 = 56;
const WRITABLE: u64 = VECTOR_AND_DELIVERY
    | DEST_LOGICAL
    | POLARITY
    | TRIGGER_LEVEL
    | MASKED
    | (0xff << DESTINATION_SHIFT);

/// Where an edge on a pin goes: an MSI message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiRoute {
    /// The message's address (`0xfee…`).
    pub address: u64,
    /// The message's data: vector and delivery mode, always edge-triggered.
    pub data: u32,
    /// No interrupt is to be delivered.
    pub masked: bool,
}

/// Who turns routes into deliveries.
pub trait IrqRoutes: Send + Sync {
    /// `pin` (0 to 23) now goes to `route`. Called only when something changed, on the vCPU's
    /// thread that wrote the register.
    fn set(&self, pin: u8, route: MsiRoute);
}

/// The saved form.
#[derive(Serialize, Deserialize)]
struct IoapicV1 {
    select: u8,
    id: u32,
    entries: [u64; IOAPIC_PINS as usize],
}

const ID_BITS: u32 = 0x0f00_0000;

struct State {
    select: u8,
    id: u32,
    entries: [u64; IOAPIC_PINS as usize],
}

/// The register model. Shared by all vCPU threads.
pub struct Ioapic {
    state: Mutex<State>,
    routes: Arc<dyn IrqRoutes>,
}

impl fmt::Debug for Ioapic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ioapic").finish_non_exhaustive()
    }
}

fn route(entry: u64) -> MsiRoute {
    let destination = entry >> DESTINATION_SHIFT;
    let logical = u64::from(entry & DEST_LOGICAL != 0);
    MsiRoute {
        address: 0xfee0_0000 | (destination << 12) | (logical << 2),
        data: low(entry & VECTOR_AND_DELIVERY),
        masked: entry & MASKED != 0,
    }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

impl Ioapic {
    /// An I/O APIC after power-on: every pin masked, no route set.
    #[must_use]
    pub fn new(routes: Arc<dyn IrqRoutes>) -> Self {
        let entries = [MASKED; IOAPIC_PINS as usize];
        Self {
            state: Mutex::new(State {
                select: 0,
                id: 0,
                entries,
            }),
            routes,
        }
    }

    /// What [`Ioapic::load`] takes.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = IoapicV1 {
            select: state.select,
            id: state.id,
            entries: state.entries,
        };
        // Numbers into memory: nothing that can fail. No bytes at all would be refused.
        postcard::to_allocvec(&saved).unwrap_or_default()
    }

    /// Takes over what was saved, which need not be trusted, and sets the routes that differ from
    /// what they were.
    ///
    /// # Errors
    /// [`LoadError`], and nothing has changed.
    pub fn load(&self, bytes: &[u8]) -> Result<(), LoadError> {
        const NAME: &str = "the IOAPIC";
        let saved: IoapicV1 = decode(bytes, NAME)?;
        let wrong = |what: String| Err(InvalidState(what).of(NAME.into()));
        if saved.id & !ID_BITS != 0 {
            return wrong(format!("id {:#x}", saved.id));
        }
        if let Some(entry) = saved.entries.iter().find(|&&e| e & !WRITABLE != 0) {
            return wrong(format!("redirection entry {entry:#x}"));
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (pin, (&old, &new)) in (0..).zip(state.entries.iter().zip(&saved.entries)) {
            if let Some(route) = changed(old, new) {
                self.routes.set(pin, route);
            }
        }
        *state = State {
            select: saved.select,
            id: saved.id,
            entries: saved.entries,
        };
        Ok(())
    }

    /// A read of `data.len()` bytes at `offset` into the window. Anything but a 4-byte read of
    /// one of the two registers gives zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let value = match offset {
            IOREGSEL => u32::from(state.select),
            IOWIN => state.read(),
            _ => 0,
        };
        data.fill(0);
        let n = data.len().min(4);
        data[..n].copy_from_slice(&value.to_le_bytes()[..n]);
    }

    /// A write at `offset` into the window. Unknown registers are ignored.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        let n = data.len().min(4);
        bytes[..n].copy_from_slice(&data[..n]);
        let value = u32::from_le_bytes(bytes);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match offset {
            IOREGSEL => state.select = bytes[0],
            IOWIN => {
                if let Some((pin, route)) = state.write(value) {
                    // Under the lock: routes are set in the order in which the guest wrote them.
                    self.routes.set(pin, route);
                }
            }
            _ => {}
        }
    }
}

impl State {
    fn read(&self) -> u32 {
        match self.select {
            IOAPICID | IOAPICARB => self.id,
            IOAPICVER => VERSION | (u32::from(IOAPIC_PINS - 1) << 16),
            _ => match self.selected() {
                Some((pin, false)) => low(self.entries[usize::from(pin)]),
                Some((pin, true)) => low(self.entries[usize::from(pin)] >> 32),
                None => 0,
            },
        }
    }

    /// The pin and half (`true` = high) of the redirection entry that is selected.
    fn selected(&self) -> Option<(u8, bool)> {
        let index = self.select.checked_sub(IOREDTBL)?;
        (index / 2 < IOAPIC_PINS).then_some((index / 2, index % 2 == 1))
    }

    /// Returns the pin's new route if it changed as far as deliveries go.
    fn write(&mut self, value: u32) -> Option<(u8, MsiRoute)> {
        if self.select == IOAPICID {
            self.id = value & ID_BITS;
            return None;
        }
        let (pin, high) = self.selected()?;
        let entry = &mut self.entries[usize::from(pin)];
        let old = *entry;
        *entry = if high {
            (*entry & 0xffff_ffff) | (u64::from(value) << 32)
        } else {
            (*entry & !0xffff_ffff) | u64::from(value)
        } & WRITABLE;
        changed(old, *entry).map(|route| (pin, route))
    }
}

/// The new entry's route, if it differs as far as deliveries go.
fn changed(old: u64, new: u64) -> Option<MsiRoute> {
    let (old, new) = (route(old), route(new));
    (new != old && !(new.masked && old.masked)).then_some(new)
}

#[cfg(test)]
mod test {
    use super::*;

    #[derive(Default)]
    struct Record(Mutex<Vec<(u8, MsiRoute)>>);
    impl IrqRoutes for Record {
        fn set(&self, pin: u8, route: MsiRoute) {
            self.0.lock().unwrap().push((pin, route));
        }
    }

    fn write(ioapic: &Ioapic, register: u8, value: u32) {
        ioapic.write(IOREGSEL, &u32::from(register).to_le_bytes());
        ioapic.write(IOWIN, &value.to_le_bytes());
    }

    fn read(ioapic: &Ioapic, register: u8) -> u32 {
        ioapic.write(IOREGSEL, &u32::from(register).to_le_bytes());
        let mut bytes = [0; 4];
        ioapic.read(IOWIN, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn an_entry_becomes_one_route_when_it_is_unmasked() {
        let record = Arc::new(Record::default());
        let ioapic = Ioapic::new(record.clone());
        assert_eq!(read(&ioapic, IOAPICVER), 0x0017_0011);
        write(&ioapic, IOREDTBL + 2 * 5 + 1, 0x0300_0000);
        write(&ioapic, IOREDTBL + 2 * 5, 0x0800 | 0x31);
        let on = MsiRoute {
            address: 0xfee0_3004,
            data: 0x31,
            masked: false,
        };
        assert_eq!(*record.0.lock().unwrap(), [(5, on)]);
        write(&ioapic, IOREDTBL + 2 * 5, 0x0001_0831);
        let off = MsiRoute { masked: true, ..on };
        assert_eq!(*record.0.lock().unwrap(), [(5, on), (5, off)]);
        assert_eq!(read(&ioapic, IOREDTBL + 2 * 5 + 1), 0x0300_0000);
    }

    #[test]
    fn a_loaded_ioapic_has_the_registers_and_routes_of_the_saved_one() {
        let ioapic = Ioapic::new(Arc::new(Record::default()));
        write(&ioapic, IOAPICID, 0x0300_0000);
        write(&ioapic, IOREDTBL + 2 * 5 + 1, 0x0300_0000);
        write(&ioapic, IOREDTBL + 2 * 5, 0x0800 | 0x31);
        write(&ioapic, IOREDTBL + 2 * 7, 0x0001_0032);
        ioapic.write(IOREGSEL, &[IOREDTBL + 10, 0, 0, 0]);
        let saved = ioapic.save();
        let record = Arc::new(Record::default());
        let loaded = Ioapic::new(record.clone());
        loaded.load(&saved).unwrap();
        let on = MsiRoute {
            address: 0xfee0_3004,
            data: 0x31,
            masked: false,
        };
        assert_eq!(*record.0.lock().unwrap(), [(5, on)]);
        assert_eq!(loaded.save(), saved);
        assert_eq!(read(&loaded, IOREDTBL + 14), 0x0001_0032);

        // Loading what is there already sets nothing; what cannot be changes nothing.
        loaded.load(&ioapic.save()).unwrap();
        assert_eq!(record.0.lock().unwrap().len(), 1);
        for hostile in [&saved[1..], &[&saved[..], &[0]].concat(), &[0xff; 300], &[]] {
            assert!(loaded.load(hostile).is_err());
        }
        let mut entries = [MASKED; IOAPIC_PINS as usize];
        entries[3] = 1 << 12;
        for (id, entries) in [(1, [0; IOAPIC_PINS as usize]), (0, entries)] {
            let select = 0;
            let hostile = IoapicV1 {
                select,
                id,
                entries,
            };
            let bytes = postcard::to_allocvec(&hostile).unwrap();
            let refused = loaded.load(&bytes).unwrap_err();
            assert!(matches!(refused, LoadError::Value { .. }), "{refused}");
        }
        assert_eq!(record.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn registers_outside_the_table_do_nothing() {
        let record = Arc::new(Record::default());
        let ioapic = Ioapic::new(record.clone());
        for register in 0..=u8::MAX {
            if !(IOREDTBL..IOREDTBL + 2 * IOAPIC_PINS).contains(&register) {
                write(&ioapic, register, u32::MAX);
            }
        }
        for (offset, len) in [(0, 0), (3, 8), (0x10, 1), (0xfff, 2), (u64::MAX, 4)] {
            ioapic.write(offset, &vec![0xff; len]);
            ioapic.read(offset, &mut vec![0; len]);
        }
        assert!(record.0.lock().unwrap().is_empty());
        assert_eq!(read(&ioapic, 0x40), 0);
    }
}
