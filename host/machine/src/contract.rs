//! The processor a saved machine needs: recorded when it is saved, checked before it is continued.
//! The rate of its time stamp counter is not here: each vCPU's state has it, and loading it sets
//! the rate or refuses.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
        }
    }

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
}
