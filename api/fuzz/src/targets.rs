//! The targets: everything of a client's that is read. Only the paths here know where it is read.

use e2b::connect::envelope::fuzz_envelopes;
use e2b::control::list::fuzz_list;
use e2b::envd::{
    fuzz_filesystem_json, fuzz_multipart, fuzz_process_json, fuzz_range, fuzz_signature,
};
use e2b::query::fuzz_query;
use e2b::route::fuzz_route;
use engine::store::fuzz_records;

/// A fuzz target: its name, which is its corpus' too, and what is run.
pub(crate) type Target = (&'static str, fn(&[u8]));

pub(crate) const TARGETS: &[Target] = &[
    ("records", fuzz_records),
    ("route", fuzz_route),
    ("query", fuzz_query),
    ("list", fuzz_list),
    ("envelopes", fuzz_envelopes),
    ("process_json", fuzz_process_json),
    ("filesystem_json", fuzz_filesystem_json),
    ("signature", fuzz_signature),
    ("range", fuzz_range),
    ("multipart", fuzz_multipart),
];
