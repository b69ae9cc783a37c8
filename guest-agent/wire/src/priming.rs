//! Page-cache priming: what is read in a template VM, in a fixed order, before anything runs in it.

/// Files, in order, and how many of their first bytes; what an image does not have is left out.
///
/// A guest's kernel fills its memory from gaps that starting it has left, and then in order. Read
/// one after the other, the files that every program begins with come to lie together, in 2 MiB
/// blocks with nothing that is ever written: a copy maps such a block in one step, and each page
/// elsewhere in a step of its own. A language's interpreter comes first to fill the gaps, and some
/// of its libraries last, to keep others out of the last block.
pub const PRIMED_FILES: [(&str, u64); 14] = [
    ("/usr/bin/python3", 8 * MIB),
    ("/usr/bin/perl", 4 * MIB),
    ("/lib64/ld-linux-x86-64.so.2", MIB),
    ("/lib/x86_64-linux-gnu/libc.so.6", 4 * MIB),
    ("/lib64/libc.so.6", 4 * MIB),
    ("/lib/ld-musl-x86_64.so.1", MIB),
    ("/bin/bash", 2 * MIB),
    ("/bin/busybox", 2 * MIB),
    ("/lib/x86_64-linux-gnu/libtinfo.so.6", MIB),
    ("/lib64/libtinfo.so.6", MIB),
    ("/bin/true", MIB),
    ("/lib/x86_64-linux-gnu/libm.so.6", MIB),
    ("/lib/x86_64-linux-gnu/libcrypto.so.3", 2 * MIB),
    ("/lib64/libcrypto.so.3", 2 * MIB),
];

const MIB: u64 = 1 << 20;
