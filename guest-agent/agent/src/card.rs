//! The guest's network card, and who answers names.

use crate::sys::file::{O_CREAT, O_WRONLY, PathBase, open, unlink, write_setting};
use crate::sys::network::{Card, card_up};
use crate::sys::{Errno, write_all};
use core::ffi::CStr;

/// The guest's network card, as whoever serves it has it (`control::NetSpec`): every guest has the
/// same, so that a clone need not be told.
pub(crate) const CARD: Card = Card {
    name: c"eth0",
    guest: [169, 254, 0, 21],
    mask: [255, 255, 255, 252],
    gateway: [169, 254, 0, 22],
    gateway_mac: [0x02, 0xfc, 0, 0, 0, 0x06],
};
/// No IPv6 on it: the kernel would look for routers and for others with its address.
const NO_IPV6: &CStr = c"/proc/sys/net/ipv6/conf/eth0/disable_ipv6";
const RESOLV_CONF: &CStr = c"/etc/resolv.conf";
/// The gateway answers names.
const NAME_SERVER: &[u8] = b"nameserver 169.254.0.22\n";

/// The network card, and who answers names, in place of what the image says.
pub(crate) fn set_up() -> Result<(), (&'static str, Errno)> {
    write_setting(PathBase::Cwd, NO_IPV6, "1").map_err(|e| ("find eth0", e))?;
    card_up(&CARD).map_err(|e| ("bring eth0 up", e))?;
    let _ = unlink(PathBase::Cwd, RESOLV_CONF);
    open(PathBase::Cwd, RESOLV_CONF, O_WRONLY | O_CREAT, 0o644)
        .and_then(|file| write_all(&file, NAME_SERVER))
        .map_err(|e| ("write /etc/resolv.conf", e))
}
