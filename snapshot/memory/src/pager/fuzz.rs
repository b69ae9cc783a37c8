//! Entry points for fuzzers: what a machine, the service and the pager say, and layers of any
//! shape.

use super::layer_chain::LayerChain;
use super::message::{AttachRequest, JobHeader, PagerStatus};
use crate::base_memory::BaseMemory;
use crate::layer_file::LayerFile;
use rustix::fs::{MemfdFlags, memfd_create};
use snapshot_format::fuzz::layer_file_of;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// What a machine says of a memory of as many pages as the first eight bytes tell.
pub fn fuzz_attach_request(bytes: &[u8]) {
    let Some((pages, bytes)) = bytes.split_first_chunk() else {
        return;
    };
    let pages = u64::from_le_bytes(*pages);
    if let Ok(AttachRequest { parts, first }) = AttachRequest::decode(bytes, pages) {
        let whole: u64 = parts.iter().map(|(_, pages)| pages).sum();
        assert_eq!(whole, pages);
        assert!(first.iter().all(|r| r.first < r.end && r.end <= pages));
    }
}

/// What the service says of a machine, and what the pager answers.
pub fn fuzz_paging_messages(bytes: &[u8]) {
    let _ = JobHeader::decode(bytes);
    let _ = PagerStatus::decode(bytes);
}

/// Up to three layer files, read as a machine's base memory and page by page: both say the same.
///
/// # Panics
/// When they differ, or there is no memory for files.
pub fn fuzz_layer_chain(bytes: &[u8]) {
    let Some((&count, bytes)) = bytes.split_first() else {
        return;
    };
    let count = usize::from(count % 3) + 1;
    let part = bytes.len().div_ceil(count).next_multiple_of(4).max(4);
    let mut files = Vec::new();
    let mut pages = 0;
    for bytes in bytes.chunks(part) {
        let whole;
        (pages, whole) = layer_file_of(bytes);
        let file = memfd_create("layer", MemfdFlags::CLOEXEC).map(File::from);
        let Ok(mut file) = file else { return };
        assert!(file.write_all(&whole).is_ok(), "no memory for a layer");
        files.push(file);
    }
    let copies: Vec<_> = files.iter().flat_map(File::try_clone).collect();
    let opened: Result<Vec<_>, _> = files.into_iter().map(LayerFile::open).collect();
    let chain = LayerChain::open(pages, copies);
    let Ok(layers) = opened else {
        assert!(chain.is_err(), "a layer that is refused is used");
        return;
    };
    for layer in &layers {
        let applied = layer.apply(|_, _| Ok(()));
        assert!(applied.is_ok(), "{applied:?}");
    }
    let Ok(base) = BaseMemory::merge_layers(pages, &layers) else {
        return;
    };
    // Without checksums there is no reading page by page.
    let Ok(chain) = chain else { return };
    let Ok(base) = base.as_fd().try_clone_to_owned() else {
        return;
    };
    compare(pages, &chain, &File::from(base));
}

fn compare(pages: u64, chain: &LayerChain, base: &File) {
    let regions = chain.regions();
    let (mut page, mut merged, mut single) = (0, vec![0; 1 << 20], vec![0; 1 << 20]);
    while page < pages {
        let (end, layer) = chain.run(page, pages);
        assert!(page < end && end <= pages, "{page} to {end}");
        let bytes = usize::try_from((end - page) * 4096).unwrap_or(0);
        single[..bytes].fill(0);
        if let Some(layer) = layer {
            let registered = regions.iter().any(|r| r.start <= page && end <= r.end);
            assert!(registered, "{page} to {end} is in no region");
            let read = chain.read(layer, page, &mut single[..bytes]);
            assert!(read.is_ok(), "{read:?}");
        }
        let read = base.read_exact_at(&mut merged[..bytes], page * 4096);
        assert!(
            read.is_ok() && merged[..bytes] == single[..bytes],
            "{page} to {end}"
        );
        page = end;
    }
}
