//! The manifest: one JSON object that names everything a snapshot is made of.

use crate::error::{FormatError, version_error};
use crate::layer::UNIT;
use crate::limits::{MAX_LAYERS, MAX_MANIFEST, MAX_UNITS};
use crate::section::limit;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Version of the manifest's schema, and of what digests are: version 1 had SHA-256.
pub const MANIFEST_VERSION: u32 = 2;

/// The BLAKE3 hash of a blob, 256 bits, which is also its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = FormatError;

    fn try_from(text: String) -> Result<Self, FormatError> {
        let invalid = || FormatError::Invalid {
            what: "digest",
            value: format!("{text:?}"),
        };
        let digit = |b: u8| match b {
            b'0'..=b'9' => Ok(b - b'0'),
            b'a'..=b'f' => Ok(b - b'a' + 10),
            _ => Err(invalid()),
        };
        let mut bytes = [0; 32];
        if text.len() != 64 {
            return Err(invalid());
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

/// A blob and its size, so that a reader knows how much to expect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobRef {
    /// Its name.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// The machine that a snapshot continues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestShape {
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Size of the root disk, bytes.
    pub disk_size: u64,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub manifest_version: u32,
    /// The protocol version that the agent in it speaks.
    pub wire_version: u16,
    /// The machine's shape.
    pub guest: GuestShape,
    /// The section file, which also says what processor the machine needs.
    pub machine: BlobRef,
    /// Memory layers, newest first; none: a snapshot of the disk alone, and the machine boots.
    pub memory: Vec<BlobRef>,
    /// Disk layers over the base image, newest first.
    pub disk: Vec<BlobRef>,
    /// The base image under all disk layers, which is not a part of the snapshot.
    pub base: BaseImage,
    /// What its owner keeps with it; the owner's business.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<BlobRef>,
}

/// An image that lies elsewhere, and by what it is recognized: a snapshot over an image that has
/// changed since is not continued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseImage {
    /// The owner's name for it.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// When it was last changed, nanoseconds since 1970.
    pub modified_ns: u64,
}

/// Just enough to tell a newer manifest from a broken one.
#[derive(Deserialize)]
struct VersionOnly {
    manifest_version: u32,
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// What is wrong first, in the order of the crate's introduction.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        limit("length of the manifest", bytes.len(), MAX_MANIFEST)?;
        let decode = |e: serde_json::Error| FormatError::Manifest(e.to_string());
        let VersionOnly { manifest_version } = serde_json::from_slice(bytes).map_err(decode)?;
        if manifest_version != MANIFEST_VERSION {
            return Err(version_error(
                "manifest",
                manifest_version,
                MANIFEST_VERSION,
            ));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(decode)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Writes a manifest.
    ///
    /// # Errors
    /// When it would not be read back.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let bytes =
            serde_json::to_vec_pretty(self).map_err(|e| FormatError::Manifest(e.to_string()))?;
        limit("length of the manifest", bytes.len(), MAX_MANIFEST)?;
        Ok(bytes)
    }

    fn check(&self) -> Result<(), FormatError> {
        limit("number of memory layers", self.memory.len(), MAX_LAYERS)?;
        limit("number of disk layers", self.disk.len(), MAX_LAYERS)?;
        let shape = &self.guest;
        let disk_units = shape.disk_size / UNIT;
        if disk_units > MAX_UNITS {
            return Err(FormatError::Limit {
                what: "disk size",
                found: disk_units,
                limit: MAX_UNITS,
            });
        }
        let empty = shape.vcpus == 0 || shape.memory_mib == 0;
        if empty || !shape.disk_size.is_multiple_of(UNIT) {
            return Err(FormatError::Invalid {
                what: "machine shape",
                value: format!("{shape:?}"),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod test {
    use super::*;

    pub(crate) fn sample() -> Manifest {
        let blob = |n| BlobRef {
            digest: Digest([n; 32]),
            size: 4096,
        };
        Manifest {
            manifest_version: MANIFEST_VERSION,
            wire_version: 1,
            guest: GuestShape {
                vcpus: 1,
                memory_mib: 512,
                disk_size: 8 << 30,
            },
            machine: blob(1),
            memory: vec![blob(2), blob(3)],
            disk: vec![],
            base: BaseImage {
                name: "base".into(),
                size: 8 << 30,
                modified_ns: 1,
            },
            record: Some(blob(4)),
        }
    }

    #[test]
    fn a_manifest_survives_the_disk() {
        let bytes = sample().encode().unwrap();
        assert_eq!(Manifest::parse(&bytes).unwrap(), sample());
    }

    #[test]
    fn newer_older_and_unknown_are_told_apart() {
        let text = String::from_utf8(sample().encode().unwrap()).unwrap();
        let with = |from: &str, to: &str| Manifest::parse(text.replace(from, to).as_bytes());
        let newer = with(
            "\"manifest_version\": 2",
            "\"manifest_version\": 3, \"more\": 1",
        );
        assert!(
            newer
                .unwrap_err()
                .to_string()
                .contains("update this program")
        );
        let older = with("\"manifest_version\": 2", "\"manifest_version\": 1");
        assert!(
            older
                .unwrap_err()
                .to_string()
                .contains("an older program wrote it")
        );
        let unknown = with("\"wire_version\"", "\"colour\": 1, \"wire_version\"");
        assert!(matches!(unknown, Err(FormatError::Manifest(_))));
    }

    #[test]
    fn names_cannot_leave_the_store() {
        let text = String::from_utf8(sample().encode().unwrap()).unwrap();
        let bad = text.replace(&Digest([1; 32]).to_string(), "../../etc/passwd");
        Manifest::parse(bad.as_bytes()).expect_err("a path is no digest");
    }
}
