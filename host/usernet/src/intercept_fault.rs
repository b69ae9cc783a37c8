//! Why a flow whose TLS is ended here is not carried on.

use crate::request_head::RequestFault;
use control::DenyReason;

/// Why a flow is not carried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InterceptFault {
    /// The host's certificate is not trusted.
    Untrusted,
    /// TLS with the host failed.
    HostTls,
    /// TLS with the guest failed.
    GuestTls,
    /// A request is not passed on.
    Request(RequestFault),
    /// There are too many such flows.
    TooMany,
    /// A connection is gone.
    Lost,
}

impl InterceptFault {
    /// What the service hears; `None`: it is no refusal.
    pub(crate) const fn reason(self) -> Option<DenyReason> {
        match self {
            Self::Untrusted => Some(DenyReason::Untrusted),
            Self::HostTls => Some(DenyReason::HostTls),
            Self::GuestTls => Some(DenyReason::GuestTls),
            Self::Request(RequestFault::OtherHost) => Some(DenyReason::OtherHost),
            Self::Request(RequestFault::Form) => Some(DenyReason::Request),
            Self::TooMany => Some(DenyReason::Flows),
            Self::Lost => None,
        }
    }
}
