//! The Intel processors that a lab can have.

use serde::{Deserialize, Serialize};

/// A processor that Bochs emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum IntelModel {
    /// With AVX-512, TSC scaling, page modification logging
    #[value(name = "icelake")]
    IceLake,
    /// With AVX2
    Haswell,
}

impl IntelModel {
    /// Bochs' words for it.
    pub(super) fn processor(self) -> &'static str {
        match self {
            Self::IceLake => "model=corei7_icelake_u, count=1, ips=1497600000",
            Self::Haswell => "model=corei7_haswell_4770, count=1, ips=70000000",
        }
    }

    /// Features that the kernel is not to use: slow ones, and those that Bochs describes wrongly.
    pub(super) fn kernel_options(self) -> &'static str {
        match self {
            Self::IceLake => "clearcpuid=xsaves,xsavec,pku,erms,fsrm",
            Self::Haswell => "clearcpuid=erms",
        }
    }
}

impl std::fmt::Display for IntelModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::IceLake => "Intel Ice Lake",
            Self::Haswell => "Intel Haswell",
        })
    }
}
