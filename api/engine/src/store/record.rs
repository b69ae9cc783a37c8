//! The envelope of every record in the store: JSON with a version, which is looked at before
//! anything else.

use serde::Deserialize;

/// The version of a record, whatever else is in it.
///
/// # Errors
/// It is not JSON, or has no version.
pub fn record_version(bytes: &[u8]) -> Result<u32, serde_json::Error> {
    #[derive(Deserialize)]
    struct VersionOnly {
        version: u32,
    }
    serde_json::from_slice(bytes).map(|VersionOnly { version }| version)
}
