//! Who a guest is to be.

use crate::codec::{DecodeError, EncodeError, FieldReader, FieldWriter};
use crate::limits::{MAX_DEFAULT_ENV, MAX_ENTROPY, MAX_ENV, MAX_NAME};
use crate::strings::StringList;

/// Gives a guest a new identity. Replies `Done(generation)` when all of it has taken effect: no
/// tenant code may run in a clone before. With the generation that the guest has already it sets
/// the clock and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetIdentity<'a> {
    /// Nanoseconds since 1970 for the wall clock; 0 leaves it.
    pub wall_clock_ns: u64,
    /// The number of this identity, shown in later [`crate::Hello`]s.
    pub generation: u64,
    /// The host name; empty leaves it.
    pub hostname: &'a [u8],
    /// Mixed into the kernel's random pool and credited in full, then the pool is reseeded.
    pub entropy: &'a [u8],
    /// Replaces the environment defaults; together at most [`MAX_DEFAULT_ENV`] bytes.
    pub env: StringList<'a>,
}

impl<'a> SetIdentity<'a> {
    pub(crate) fn encode(&self, w: &mut FieldWriter<'_>) -> Result<(), EncodeError> {
        w.u64(self.wall_clock_ns)?;
        w.u64(self.generation)?;
        w.cbytes("host name", self.hostname, MAX_NAME)?;
        w.bytes("entropy", self.entropy, MAX_ENTROPY)?;
        let bytes = self.env.iter().map(|s| s.len() + 1).sum();
        if bytes > MAX_DEFAULT_ENV {
            return Err(EncodeError::TooLong {
                field: "env",
                len: bytes,
                max: MAX_DEFAULT_ENV,
            });
        }
        self.env.encode(w, "env", MAX_ENV)
    }

    pub(crate) fn decode(r: &mut FieldReader<'a>) -> Result<Self, DecodeError> {
        let identity = Self {
            wall_clock_ns: r.u64()?,
            generation: r.u64()?,
            hostname: r.cbytes("host name", MAX_NAME)?,
            entropy: r.bytes("entropy", MAX_ENTROPY)?,
            env: StringList::decode(r, "env", MAX_ENV)?,
        };
        match identity.env.packed().map_or(0, <[u8]>::len) {
            len if len > MAX_DEFAULT_ENV => Err(DecodeError::TooLong {
                field: "env",
                len,
                max: MAX_DEFAULT_ENV,
            }),
            _ => Ok(identity),
        }
    }
}
