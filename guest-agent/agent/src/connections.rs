//! TCP connections that lead out of the guest. A copy of a machine has them as its original had
//! them, but nobody at the other end: its processes are told, before they go on.

use crate::card::CARD;
use crate::sys::Result;
use crate::sys::sock_diag::{self, FAMILIES, TcpConnection};

/// As many are ended at a time, and so often: a guest with more waits no longer for it, and the
/// rest are reset when they are used.
const AT_A_TIME: usize = 64;
const TIMES: usize = 64;

/// Whether one leads out: it begins at the card. Others lead to the guest itself, or to a container
/// in it, and are copied with both their ends.
fn leads_out(connection: &TcpConnection) -> bool {
    connection
        .ipv4()
        .is_some_and(|(own, peer)| own == CARD.guest && peer != CARD.guest)
}

/// Whether there is any.
pub(crate) fn any() -> Result<bool> {
    let mut any = false;
    for family in FAMILIES {
        sock_diag::connections(family, |connection| {
            any |= leads_out(connection);
            !any
        })?;
    }
    Ok(any)
}

/// Ends them all.
#[inline(never)] // its buffers shall not be in the stack of every claim
pub(crate) fn end_all() -> Result<()> {
    for _ in 0..TIMES {
        let mut found = [TcpConnection::NONE; AT_A_TIME];
        let mut count = 0;
        for family in FAMILIES {
            sock_diag::connections(family, |connection| {
                if leads_out(connection) && count < AT_A_TIME {
                    found[count] = *connection;
                    count += 1;
                }
                count < AT_A_TIME
            })?;
        }
        sock_diag::end(&found[..count])?;
        if count < AT_A_TIME {
            break;
        }
    }
    Ok(())
}
