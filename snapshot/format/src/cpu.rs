//! The processor a snapshot needs: recorded when it is taken, checked before it is continued.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a guest has seen of its processor and may have kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuContract {
    /// The vendor's name, for example `AuthenticAMD`.
    pub vendor: String,
    /// Feature words by the leaf, sub-leaf and register they come from, for example
    /// `00000001.0.ecx`; each bit that is set was offered to the guest.
    pub features: BTreeMap<String, u32>,
    /// Bytes of the XSAVE area.
    pub xsave_size: u32,
    /// Time stamp counter frequency, kHz.
    pub tsc_khz: u32,
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
    /// Another size of the saved extended state.
    #[error("its XSAVE area has {snapshot} bytes, this host's {host}")]
    Xsave {
        /// The snapshot's.
        snapshot: u32,
        /// The host's.
        host: u32,
    },
    /// The counter runs at another rate and cannot be scaled.
    #[error("its counter runs at {snapshot} kHz, this host's at {host} kHz and does not scale")]
    Tsc {
        /// The snapshot's.
        snapshot: u32,
        /// The host's.
        host: u32,
    },
}

/// A guest tolerates a counter that is off by this much (parts per million), as clocks are.
const TSC_TOLERANCE_PPM: u64 = 250;

impl CpuContract {
    /// Whether a guest with this contract can continue on `host`.
    ///
    /// # Errors
    /// The first difference that a guest could notice.
    pub fn fits(&self, host: &Self, tsc_scales: bool) -> Result<(), CpuMismatch> {
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
        let (ours, theirs) = (u64::from(self.tsc_khz), u64::from(host.tsc_khz));
        if !tsc_scales && ours.abs_diff(theirs) * 1_000_000 > ours * TSC_TOLERANCE_PPM {
            let (snapshot, host) = (self.tsc_khz, host.tsc_khz);
            return Err(CpuMismatch::Tsc { snapshot, host });
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
            tsc_khz: 2_400_000,
        }
    }

    #[test]
    fn a_richer_host_fits_and_a_poorer_one_is_named() {
        let mut host = cpu();
        host.features.insert("00000007.0.ebx".into(), 1);
        host.tsc_khz += 100;
        assert_eq!(cpu().fits(&host, false), Ok(()));
        host.features.insert("00000001.0.ecx".into(), 0b0011);
        let word = "00000001.0.ecx".to_owned();
        let mismatch = Err(CpuMismatch::Features {
            word,
            missing: 0b1000,
        });
        assert_eq!(cpu().fits(&host, false), mismatch);
    }

    #[test]
    fn another_clock_needs_scaling() {
        let host = CpuContract {
            tsc_khz: 3_000_000,
            ..cpu()
        };
        assert!(matches!(
            cpu().fits(&host, false),
            Err(CpuMismatch::Tsc { .. })
        ));
        assert_eq!(cpu().fits(&host, true), Ok(()));
    }
}
