//! A 16550 that only transmits: what the guest's early console prints.
//!
//! There is no receiver, no interrupt and no baud rate; the line status register says at once that
//! the transmitter is empty. The last bytes are kept for the exit report, and whole lines go to a
//! sink at a bounded rate: the guest can write as much as it likes.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const DATA: u64 = 0;
const LINE_CONTROL: u64 = 3;
const LINE_STATUS: u64 = 5;
const SCRATCH: u64 = 7;
/// Line control bit 7: offset 0 is the baud rate divisor, not the transmitter.
const DIVISOR_LATCH: u8 = 0x80;
/// Transmitter holding register empty, transmitter empty.
const TRANSMITTER_EMPTY: u8 = 0x60;

/// Longest line given to the sink; a longer one is cut into several.
const MAX_LINE: usize = 256;
/// Lines the sink gets per second; the rest are counted and reported as one line.
const LINES_PER_SECOND: u32 = 200;

/// Who gets the console's lines, for logging. Called on a vCPU's thread.
pub trait LineSink: Send {
    /// A line without its line feed, at most 256 bytes, any bytes (not trusted).
    fn line(&mut self, line: &[u8]);
    /// `count` lines were left out because they came too fast.
    fn dropped(&mut self, count: u64);
}

struct State {
    tail: VecDeque<u8>,
    tail_max: usize,
    line: Vec<u8>,
    line_control: u8,
    scratch: u8,
    window_start: Instant,
    window_lines: u32,
    dropped: u64,
    sink: Option<Box<dyn LineSink>>,
}

/// The device. Shared by all vCPU threads.
pub struct Console {
    state: Mutex<State>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    /// The first of its [`Console::PORTS`] ports.
    pub const BASE: u16 = 0x3f8;
    /// Number of ports.
    pub const PORTS: u16 = 8;

    /// A console that remembers the last `tail_max` bytes and gives its lines to `sink`.
    #[must_use]
    pub fn new(tail_max: usize, sink: Option<Box<dyn LineSink>>) -> Self {
        Self {
            state: Mutex::new(State {
                tail: VecDeque::with_capacity(tail_max),
                tail_max,
                line: Vec::with_capacity(MAX_LINE),
                line_control: 0,
                scratch: 0,
                window_start: Instant::now(),
                window_lines: 0,
                dropped: 0,
                sink,
            }),
        }
    }

    /// A read at `offset` (0 to 7) from the base port.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        data.fill(match offset {
            LINE_STATUS => TRANSMITTER_EMPTY,
            LINE_CONTROL => state.line_control,
            SCRATCH => state.scratch,
            _ => 0,
        });
    }

    /// A write at `offset` (0 to 7) from the base port.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in data {
            match offset {
                DATA if state.line_control & DIVISOR_LATCH == 0 => {
                    state.put(byte, Instant::now());
                }
                LINE_CONTROL => state.line_control = byte,
                SCRATCH => state.scratch = byte,
                _ => {}
            }
        }
    }

    /// Forgets what the guest wrote: it has not written it.
    pub fn forget(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tail.clear();
        state.line.clear();
        (state.line_control, state.scratch) = (0, 0);
    }

    /// The last bytes the guest wrote, oldest first.
    #[must_use]
    pub fn tail(&self) -> Vec<u8> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tail.iter().copied().collect()
    }
}

impl State {
    fn put(&mut self, byte: u8, now: Instant) {
        if self.tail.len() == self.tail_max {
            self.tail.pop_front();
        }
        if self.tail.len() < self.tail_max {
            self.tail.push_back(byte);
        }
        match byte {
            b'\r' => {}
            b'\n' => self.end_line(now),
            _ => {
                self.line.push(byte);
                if self.line.len() == MAX_LINE {
                    self.end_line(now);
                }
            }
        }
    }

    fn end_line(&mut self, now: Instant) {
        if now.saturating_duration_since(self.window_start) >= Duration::from_secs(1) {
            self.window_start = now;
            self.window_lines = 0;
            if let (Some(sink), 1..) = (&mut self.sink, self.dropped) {
                sink.dropped(self.dropped);
                self.dropped = 0;
            }
        }
        if self.window_lines < LINES_PER_SECOND {
            self.window_lines += 1;
            if let Some(sink) = &mut self.sink {
                sink.line(&self.line);
            }
        } else {
            self.dropped += 1;
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<(Vec<Vec<u8>>, u64)>>);
    impl LineSink for Lines {
        fn line(&mut self, line: &[u8]) {
            self.0.lock().unwrap().0.push(line.to_vec());
        }
        fn dropped(&mut self, count: u64) {
            self.0.lock().unwrap().1 += count;
        }
    }

    #[test]
    fn lines_reach_the_sink_and_the_tail_is_bounded() {
        let lines = Lines::default();
        let console = Console::new(8, Some(Box::new(lines.clone())));
        let mut status = [0];
        console.read(LINE_STATUS, &mut status);
        assert_eq!(status, [TRANSMITTER_EMPTY]);
        b"hello\r\nworld\nrest"
            .iter()
            .for_each(|&b| console.write(DATA, &[b]));
        assert_eq!(
            lines.0.lock().unwrap().0,
            [b"hello".to_vec(), b"world".to_vec()]
        );
        assert_eq!(console.tail(), b"rld\nrest");
    }

    #[test]
    fn the_divisor_is_not_text() {
        let console = Console::new(8, None);
        console.write(LINE_CONTROL, &[0x83]);
        console.write(DATA, b"x");
        console.write(LINE_CONTROL, &[0x03]);
        console.write(DATA, b"y");
        assert_eq!(console.tail(), b"y");
    }

    #[test]
    fn a_flood_is_cut_off_and_counted() {
        let lines = Lines::default();
        let console = Console::new(0, Some(Box::new(lines.clone())));
        let start = Instant::now();
        let mut state = console.state.lock().unwrap();
        (0..1000).for_each(|_| state.put(b'\n', start));
        assert_eq!(lines.0.lock().unwrap().0.len(), 200);
        state.put(b'\n', start + Duration::from_secs(2));
        assert_eq!(*lines.0.lock().unwrap(), (vec![vec![]; 201], 800));
    }
}
