//! Copying a machine's memory into a layer: all of it while the machine is paused, or most of it
//! ahead, while it runs.

use crate::error::SaveError;
use crate::pages::written;
use crate::parts::Machine;
use machine::Memory;
use snapshot_memory::{LayerWriter, PageRange, WriteTracking};
use std::fs::File;

/// Most pages that are copied before the devices have their turn again.
const SLICE: u64 = 256;

/// A layer of memory that is being written.
#[derive(Debug)]
pub(crate) struct MemoryCopy {
    writer: LayerWriter,
    ahead: Vec<PartCopy>,
}

/// A part of the memory that is copied ahead.
#[derive(Debug)]
struct PartCopy {
    rewritten: WriteTracking,
    /// Its first page in the whole.
    begin: u64,
    /// What is still to be copied, last first.
    left: Vec<PageRange>,
}

/// What was copied.
#[derive(Debug)]
pub(crate) struct CopyReport {
    /// Pages that the layer holds bytes of.
    pub(crate) stored: u64,
    /// Pages that were copied while the machine was paused.
    pub(crate) paused: u64,
    /// To be dropped once the machine runs again.
    pub(crate) watches: Vec<WriteTracking>,
}

impl MemoryCopy {
    /// Into an empty file.
    pub(crate) fn new(file: File, memory: &Memory) -> Self {
        Self {
            writer: LayerWriter::new(file, memory.pages()),
            ahead: Vec::new(),
        }
    }

    /// Starts to copy what the machine has written by now, while it runs. After an error all of it
    /// is left to [`MemoryCopy::finish`].
    pub(crate) fn start_ahead(&mut self, machine: &Machine) -> Result<(), SaveError> {
        let mut begin = 0;
        let mut ahead = Vec::new();
        for part in machine.vm.memory().host_ranges() {
            let pages = part.len() as u64 / 4096;
            let (rewritten, mut left) = WriteTracking::begin(part, &machine.pagemap)?;
            left.reverse();
            ahead.push(PartCopy {
                rewritten,
                begin,
                left,
            });
            begin += pages;
        }
        self.ahead = ahead;
        Ok(())
    }

    /// Copies some more ahead; whether nothing is left of that.
    pub(crate) fn copy_slice(&mut self, memory: &Memory) -> Result<bool, SaveError> {
        let mut room = SLICE;
        for part in &mut self.ahead {
            while room > 0
                && let Some(pages) = part.left.pop()
            {
                let now = PageRange {
                    end: pages.end.min(pages.first + room),
                    ..pages
                };
                if now.end < pages.end {
                    part.left.push(PageRange {
                        first: now.end,
                        ..pages
                    });
                }
                room -= now.end - now.first;
                copy(&mut self.writer, memory, part.begin, now)?;
            }
        }
        Ok(room > 0)
    }

    /// Copies all the rest. The machine is paused.
    pub(crate) fn finish(mut self, machine: &Machine) -> Result<CopyReport, SaveError> {
        let memory = machine.vm.memory();
        let mut paused = 0;
        if self.ahead.is_empty() {
            for pages in written(machine)? {
                paused += pages.end - pages.first;
                copy(&mut self.writer, memory, 0, pages)?;
            }
        }
        for part in &self.ahead {
            let again = part.rewritten.ranges(&machine.pagemap)?;
            for pages in again.iter().chain(part.left.iter().rev()) {
                paused += pages.end - pages.first;
                copy(&mut self.writer, memory, part.begin, *pages)?;
            }
        }
        let index = self.writer.finish()?;
        Ok(CopyReport {
            stored: index.slots().into(),
            paused,
            watches: self.ahead.into_iter().map(|part| part.rewritten).collect(),
        })
    }
}

/// Copies pages that are numbered from the page `begin` of the whole.
fn copy(
    writer: &mut LayerWriter,
    memory: &Memory,
    begin: u64,
    pages: PageRange,
) -> Result<(), SaveError> {
    let whole = PageRange {
        first: begin + pages.first,
        end: begin + pages.end,
    };
    writer.write(whole, |page, into| Ok(memory.copy_page(page, into)?))
}
