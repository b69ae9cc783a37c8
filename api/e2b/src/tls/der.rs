//! When a certificate ends: the one field that is wanted of it and that nobody below tells.
//!
//! ```text
//! Certificate ::= SEQUENCE { tbsCertificate SEQUENCE {                 (RFC 5280 §4.1)
//!     version [0], serialNumber, signature, issuer,
//!     validity SEQUENCE { notBefore, notAfter }, … } … }
//! ```

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// `notAfter` of a certificate; `None` if it has none that can be read.
pub(super) fn end(certificate: &[u8]) -> Option<Timestamp> {
    let mut outer = certificate;
    let mut whole = take(&mut outer, SEQUENCE)?;
    let mut fields = take(&mut whole, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        take(&mut fields, VERSION)?;
    }
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        take(&mut fields, tag)?;
    }
    let mut validity = take(&mut fields, SEQUENCE)?;
    time(&mut validity)?;
    time(&mut validity)
}

/// The content of the next element, which has to be of this kind.
fn take<'a>(bytes: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (&[found, short], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match usize::from(short) {
        length @ 0..=0x7f => (length, rest),
        // So many bytes of length; no certificate has more than three.
        count @ 0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(count - 0x80)?;
            let add = |sum, byte: &u8| sum << 8 | usize::from(*byte);
            (length.iter().fold(0, add), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    (found == tag).then_some(content)
}

/// The next element, a time; in certificates all are in UTC, with seconds (RFC 5280 §4.1.2.5).
fn time(bytes: &mut &[u8]) -> Option<Timestamp> {
    let tag = *bytes.first()?;
    let text = std::str::from_utf8(take(bytes, tag)?).ok()?;
    let text = match tag {
        UTC_TIME => {
            let century = if text.get(..2)? < "50" { "20" } else { "19" };
            format!("{century}{text}")
        }
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let time = DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

#[cfg(test)]
mod test {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn made(year: i32) -> Vec<u8> {
        let mut params = CertificateParams::new(["example.com".into()]).unwrap();
        params.not_after = date_time_ymd(year, 2, 28);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_is_read_in_both_notations() {
        for year in [1999, 2049, 2050, 4096] {
            let end = end(&made(year)).unwrap();
            assert_eq!(end.to_string(), format!("{year}-02-28T00:00:00Z"));
        }
    }

    #[test]
    fn what_is_cut_off_has_no_end_and_nothing_panics() {
        let whole = made(2049);
        for length in 0..whole.len() {
            let _ = end(&whole[..length]);
            let mut bent = whole.clone();
            bent[length] ^= 0xff;
            let _ = end(&bent);
        }
        assert_eq!(end(&whole[..64]), None);
    }
}
