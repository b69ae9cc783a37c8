//! Entry points for fuzzers.

pub use crate::pager::fuzz::{fuzz_attach_request, fuzz_layer_chain, fuzz_paging_messages};
use crate::working_set::{PAGES_VERSION, TOUCHED, WRITTEN, WorkingSet, encode_pages};
use snapshot_format::{Section, SectionFile, SectionName};

/// The payloads of both sections of a working set, one half each, of a memory of as many pages as
/// the first eight bytes tell.
pub fn fuzz_working_set(bytes: &[u8]) {
    let Some((pages, bytes)) = bytes.split_first_chunk() else {
        return;
    };
    let pages = u64::from_le_bytes(*pages);
    let (touched, written) =
        bytes.split_at((bytes.len() / 2).next_multiple_of(16).min(bytes.len()));
    let section = |name, payload| {
        Some(Section {
            name: SectionName::new(name).ok()?,
            version: PAGES_VERSION,
            payload,
        })
    };
    let sections = [section(TOUCHED, touched), section(WRITTEN, written)];
    let Ok(state) = SectionFile::encode(&sections.into_iter().flatten().collect::<Vec<_>>()) else {
        return;
    };
    let Ok(file) = SectionFile::parse(&state) else {
        return;
    };
    let learned = WorkingSet::learn(&state, &state);
    assert!(
        learned.is_ok_and(|learned| learned == state),
        "learned differently"
    );
    if let Ok(set) = WorkingSet::of(&file, pages) {
        assert_eq!(encode_pages(&set.touched), touched);
        assert_eq!(encode_pages(&set.written), written);
        let blocks = set.only_read(pages);
        assert!(blocks.iter().all(|block| block.end <= pages), "{blocks:?}");
    }
}
