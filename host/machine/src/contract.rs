//! The processor a saved machine needs: recorded when it is saved, checked before it is continued.
//! The rate of its time stamp counter is not here: each vCPU's state has it, and loading it sets
//! the rate or refuses.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

/// What a guest has seen of its processor and may have kept in mind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuContract {
    /// The vendor's name, for example `AuthenticAMD`.
    pub vendor: String,
    /// Words of feature bits by leaf, sub-leaf and register, for example `00000001.0.ecx`; each bit
    /// that is set was offered to the guest. Words that are zero are left out.
    pub features: BTreeMap<String, u32>,
    /// Bytes of the XSAVE area with everything in it; 0 without XSAVE.
    pub xsave_size: u32,
    /// The parts of that area beyond the first 576 bytes, by their number (from 2), which is also
    /// their bit in XCR0. A saved vCPU's area, and those that the guest's kernel keeps in its
    /// memory, are laid out so.
    pub xsave_parts: BTreeMap<u8, XsavePart>,
}

/// Where a part of the XSAVE area lies: a sub-leaf of CPUID leaf 0xd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct XsavePart {
    /// Bytes (`eax`).
    pub size: u32,
    /// From the start of the area, in bytes (`ebx`); 0 for supervisor state.
    pub offset: u32,
    /// Bit 0: supervisor state; bit 1: aligned to 64 bytes in a compacted area (`ecx`).
    pub flags: u32,
}

/// The contract as section version 2 has it: it says nothing of the parts of the XSAVE area, and
/// lacks some words of features, so that neither is compared.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuContractV2 {
    vendor: String,
    features: BTreeMap<String, u32>,
    xsave_size: u32,
}

impl From<CpuContractV2> for CpuContract {
    fn from(old: CpuContractV2) -> Self {
        Self {
            vendor: old.vendor,
            features: old.features,
            xsave_size: old.xsave_size,
            xsave_parts: BTreeMap::new(),
        }
    }
}

impl Display for XsavePart {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            size,
            offset,
            flags,
        } = self;
        write!(f, "{size} bytes at {offset} (flags {flags:#x})")
    }
}

/// How a host falls short of a contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuMismatch {
    /// Another vendor.
    #[error("it is from {snapshot:?}, this host has {host:?}")]
    Vendor {
        /// The snapshot's.
        snapshot: String,
        /// The host's.
        host: String,
    },
    /// Features the guest was offered and the host lacks.
    #[error("this host lacks the bits {missing:#010x} of CPUID word {word}")]
    Features {
        /// The word.
        word: String,
        /// The bits.
        missing: u32,
    },
    /// A smaller area for the saved extended state than it needs.
    #[error("its XSAVE area has {snapshot} bytes, this host's {host}")]
    Xsave {
        /// The snapshot's.
        snapshot: u32,
        /// The host's.
        host: u32,
    },
    /// A part of that area that the host has elsewhere, in another size, or not at all.
    #[error(
        "part {part} of its XSAVE area has {snapshot}, this host's {}",
        host.map_or("is not there".to_owned(), |host| format!("has {host}"))
    )]
    XsavePart {
        /// Its number.
        part: u8,
        /// The snapshot's.
        snapshot: XsavePart,
        /// The host's.
        host: Option<XsavePart>,
    },
}

impl CpuContract {
    /// Whether a guest with this contract can continue on `host`.
    ///
    /// # Errors
    /// The first difference that a guest could notice.
    pub fn fits(&self, host: &Self) -> Result<(), CpuMismatch> {
        if self.vendor != host.vendor {
            let (snapshot, host) = (self.vendor.clone(), host.vendor.clone());
            return Err(CpuMismatch::Vendor { snapshot, host });
        }
        for (word, bits) in &self.features {
            let missing = bits & !host.features.get(word).copied().unwrap_or(0);
            if missing != 0 {
                return Err(CpuMismatch::Features {
                    word: word.clone(),
                    missing,
                });
            }
        }
        if self.xsave_size > host.xsave_size {
            let (snapshot, host) = (self.xsave_size, host.xsave_size);
            return Err(CpuMismatch::Xsave { snapshot, host });
        }
        for (&part, &snapshot) in &self.xsave_parts {
            let host = host.xsave_parts.get(&part).copied();
            if host != Some(snapshot) {
                return Err(CpuMismatch::XsavePart {
                    part,
                    snapshot,
                    host,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn cpu() -> CpuContract {
        CpuContract {
            vendor: "AuthenticAMD".into(),
            features: BTreeMap::from([("00000001.0.ecx".into(), 0b1011)]),
            xsave_size: 832,
            xsave_parts: BTreeMap::from([(2, AVX)]),
        }
    }

    const AVX: XsavePart = XsavePart {
        size: 256,
        offset: 576,
        flags: 0,
    };

    #[test]
    fn a_richer_host_fits_and_a_poorer_one_is_named() {
        let mut host = cpu();
        host.features.insert("00000007.0.ebx".into(), 1);
        host.xsave_size += 1;
        assert_eq!(cpu().fits(&host), Ok(()));
        host.features.insert("00000001.0.ecx".into(), 0b0011);
        let word = "00000001.0.ecx".to_owned();
        let mismatch = Err(CpuMismatch::Features {
            word,
            missing: 0b1000,
        });
        assert_eq!(cpu().fits(&host), mismatch);
    }

    #[test]
    fn parts_of_the_xsave_area_must_lie_where_they_did() {
        let mut host = cpu();
        let wide = XsavePart {
            size: 64,
            offset: 1088,
            flags: 0,
        };
        host.xsave_parts.insert(5, wide);
        assert_eq!(cpu().fits(&host), Ok(()), "more parts than were seen");
        let moved = XsavePart {
            offset: 832,
            ..wide
        };
        let seen = CpuContract {
            xsave_parts: BTreeMap::from([(5, moved)]),
            ..cpu()
        };
        let said = seen.fits(&host).unwrap_err().to_string();
        let words = "part 5 of its XSAVE area has 64 bytes at 832 (flags 0x0), this host's has 64 \
                     bytes at 1088 (flags 0x0)";
        assert_eq!(said, words);
        host.xsave_parts.remove(&5);
        let said = seen.fits(&host).unwrap_err().to_string();
        assert!(said.ends_with("this host's is not there"), "{said}");
    }
}
