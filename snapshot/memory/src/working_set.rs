//! The pages that every clone of a machine is going to write, as a layer that changes nothing.
//!
//! A trial clone shows them: they are what it has written when it has done what all clones do first.
//! Copied into a clone while it is built, they cost no fault when it runs, and no memory that it would
//! not have taken then.

use crate::error::{MemoryError, io};
use crate::golden::Golden;
use crate::layer::Layer;
use snapshot_format::{LayerIndex, UNIT};
use std::io::Write;

/// Most pages of a working set: 8 MiB.
const MAX_PAGES: usize = 2048;
const PAGE: usize = 4096;

/// Writes a layer with the golden file's own bytes of the pages that `trial`, saved from a clone,
/// names, the first [`MAX_PAGES`] of them. Returns how many pages it has.
///
/// # Errors
/// When the trial is of another machine, or a file cannot be read or written.
pub fn write_working_set(
    golden: &Golden,
    trial: &Layer,
    out: &mut impl Write,
) -> Result<u64, MemoryError> {
    let (found, wanted) = (trial.index().units(), golden.pages());
    if found != wanted {
        return Err(MemoryError::Size { found, wanted });
    }
    let extents = trial.index().extents().iter();
    let pages = extents.flat_map(|e| e.first..e.end()).take(MAX_PAGES);
    let pages: Vec<u64> = pages.collect();
    let runs = pages.iter().map(|page| (*page, 1, true));
    let index = LayerIndex::new(wanted, runs)?;
    let mut put = |bytes: &[u8]| {
        let with = format!("{} bytes", bytes.len());
        out.write_all(bytes)
            .map_err(io("Writing a working set", with))
    };
    put(&index.encode())?;
    let mut page = [0; PAGE];
    for number in &pages {
        golden.read_at(&mut page, number * UNIT)?;
        put(&page)?;
    }
    Ok(pages.len() as u64)
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::dirty::Range;
    use crate::layer::write_layer;
    use std::fs::File;

    fn layer(pages: &[u8], named: &[Range]) -> Layer {
        let mut file = tempfile::tempfile().unwrap();
        write_layer(&[pages], named, &mut file).unwrap();
        Layer::open(file).unwrap()
    }

    #[test]
    fn it_has_the_trials_pages_and_the_golden_files_bytes() {
        let size = PAGE;
        let was: Vec<u8> = (0..8).flat_map(|n| vec![n; size]).collect();
        let all = Range { first: 0, end: 8 };
        let golden = Golden::flatten(8, &[layer(&was, &[all])]).unwrap();
        let named = [Range { first: 0, end: 1 }, Range { first: 3, end: 5 }];
        let trial = layer(&vec![0xff; 8 * size], &named);
        let mut out: File = tempfile::tempfile().unwrap();
        assert_eq!(write_working_set(&golden, &trial, &mut out).unwrap(), 3);
        let mut seen = Vec::new();
        let set = Layer::open(out).unwrap();
        set.apply(|offset, bytes| {
            seen.extend(
                bytes
                    .chunks(size)
                    .zip(offset / UNIT..)
                    .map(|(b, n)| (n, b[0])),
            );
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [(0, 0), (3, 3), (4, 4)]);
        let short = layer(&vec![1; size], &[Range { first: 0, end: 1 }]);
        write_working_set(&golden, &short, &mut Vec::new()).unwrap_err();
    }
}
