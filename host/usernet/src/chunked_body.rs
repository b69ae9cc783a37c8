//! The end of a body that comes in pieces, each behind its length in hexadecimal digits: bytes are
//! passed on as they are, and looked at for where the next request begins.

use crate::request_head::RequestFault;

/// Most digits of a piece's length: more than a `u64` has would be read in two ways.
const MAX_DIGITS: u8 = 15;
/// Most bytes of the line with a length beside these, and of all lines behind the last piece.
const MAX_EXTRA: u32 = 8 * 1024;

/// Where in such a body the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkedBody {
    /// In the digits of a length.
    Length { value: u64, digits: u8 },
    /// Behind them: what a length's line may have more.
    Extension { value: u64, seen: u32 },
    /// Before the line feed of a length's line.
    LengthEnd { value: u64 },
    /// In a piece, with so many bytes to come.
    Piece { left: u64 },
    /// Before the end of the line behind a piece.
    PieceEnd { returned: bool },
    /// Behind the last piece: in a line of `line` bytes so far.
    Trailer {
        seen: u32,
        line: u32,
        returned: bool,
    },
    /// Over.
    Over,
}

impl ChunkedBody {
    /// Before its first byte.
    pub(crate) const fn new() -> Self {
        Self::Length {
            value: 0,
            digits: 0,
        }
    }

    /// Goes over bytes; how many of them are the body's.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<usize, RequestFault> {
        let mut at = 0;
        while at < bytes.len() && *self != Self::Over {
            if let Self::Piece { left } = self {
                let rest = bytes.len() - at;
                let taken = usize::try_from(*left).map_or(rest, |left| left.min(rest));
                at += taken;
                *left -= taken as u64;
                if *left == 0 {
                    *self = Self::PieceEnd { returned: false };
                }
            } else {
                *self = self.next(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn next(self, byte: u8) -> Result<Self, RequestFault> {
        let hex = char::from(byte).to_digit(16);
        Ok(match (self, byte) {
            (Self::Length { value, digits }, _) if hex.is_some() && digits < MAX_DIGITS => {
                let value = value << 4 | u64::from(hex.unwrap_or(0));
                let digits = digits + 1;
                Self::Length { value, digits }
            }
            (Self::Length { value, digits: 1.. }, b'\r') => Self::LengthEnd { value },
            (Self::Length { value, digits: 1.. }, b';' | b' ' | b'\t') => {
                Self::Extension { value, seen: 0 }
            }
            (Self::Extension { value, .. }, b'\r') => Self::LengthEnd { value },
            (Self::Extension { value, seen }, _) if byte != b'\n' && seen < MAX_EXTRA => {
                let seen = seen + 1;
                Self::Extension { value, seen }
            }
            (Self::LengthEnd { value: 0 }, b'\n') => Self::Trailer {
                seen: 0,
                line: 0,
                returned: false,
            },
            (Self::LengthEnd { value }, b'\n') => Self::Piece { left: value },
            (Self::PieceEnd { returned: false }, b'\r') => Self::PieceEnd { returned: true },
            (Self::PieceEnd { returned: true }, b'\n') => Self::new(),
            (
                Self::Trailer {
                    seen,
                    line,
                    returned: false,
                },
                _,
            ) if byte != b'\n' && seen < MAX_EXTRA => {
                let (seen, returned) = (seen + 1, byte == b'\r');
                let line = line + u32::from(!returned);
                Self::Trailer {
                    seen,
                    line,
                    returned,
                }
            }
            (
                Self::Trailer {
                    line: 0,
                    returned: true,
                    ..
                },
                b'\n',
            ) => Self::Over,
            (
                Self::Trailer {
                    seen,
                    returned: true,
                    ..
                },
                b'\n',
            ) => Self::Trailer {
                seen,
                line: 0,
                returned: false,
            },
            _ => return Err(RequestFault::Form),
        })
    }
}
