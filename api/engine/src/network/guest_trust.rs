//! What a guest trusts: its sandbox's own authority is put where its programs look for such, before
//! the sandbox is anybody's.
//!
//! ```text
//! /usr/local/share/ca-certificates/hatchery.crt   for who makes the others anew; written last
//! /etc/ssl/certs/ca-certificates.crt              for most programs: at its end
//! /etc/ssl/certs/{hash}.0                         for programs that look it up by OpenSSL's hash
//! ```

use crate::network::roots;
use authority::{HASHED_NAME, pem};
use bytes::Bytes;
use link::{Link, LinkError};
use memchr::memmem;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;
use wire::ErrorCode;

/// The certificate by itself.
const CERTIFICATE: &str = "/usr/local/share/ca-certificates/hatchery.crt";
/// All certificates that are trusted, where Debian and its kin have them.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// The same while it is written.
const NEW_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt.hatchery";
/// Its folder.
const CERTIFICATES: &str = "/etc/ssl/certs";
/// Whose they are.
const ROOT: &str = "root";
/// Most bytes of them.
const MAX_BUNDLE: usize = 4 << 20;
/// Most bytes of the certificate by itself: what is longer, or none, is no predecessor.
const MAX_CERTIFICATE: usize = 4 << 10;
/// A guest that takes longer for all of it is stuck.
const LIMIT: Duration = Duration::from_secs(20);

/// Variables for programs that bring certificates of their own.
const VARIABLES: [(&str, &str); 3] = [
    ("NODE_EXTRA_CA_CERTS", CERTIFICATE),
    ("REQUESTS_CA_BUNDLE", BUNDLE),
    ("SSL_CERT_FILE", BUNDLE),
];

/// Adds the variables, unless the creator has others of the same names.
pub(crate) fn add_variables(env: &mut BTreeMap<String, String>) {
    for (name, value) in VARIABLES {
        let own = env.entry(name.to_owned());
        own.or_insert_with(|| value.to_owned());
    }
}

/// Has the guest trust an authority; one that it has trusted so far, in the same place, no more.
///
/// # Errors
/// Why it does not, in words.
pub(crate) async fn trust(link: &Link, certificate: &[u8]) -> Result<(), String> {
    let text = pem(certificate);
    let put = async {
        let before = match read(link, CERTIFICATE, MAX_CERTIFICATE).await {
            Err(LinkError::TooLarge(_)) => Vec::new(),
            other => other?,
        };
        if before == text.as_bytes() {
            return Ok::<_, LinkError>(());
        }
        let bundle = bundle_with(&trusted(link).await?, &before, text.as_bytes());
        write(link, NEW_BUNDLE, bundle.into()).await?;
        let (from, to) = (NEW_BUNDLE.as_bytes(), BUNDLE.as_bytes());
        link.rename(from, to, ROOT).await?;
        let text = Bytes::from(text);
        let hashed = format!("{CERTIFICATES}/{HASHED_NAME}");
        write(link, &hashed, text.clone()).await?;
        write(link, CERTIFICATE, text).await
    };
    match timeout(LIMIT, put).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!(
            "The guest was not given its sandbox's certificate authority ({CERTIFICATE}, \
             {BUNDLE}): {}",
            crate::error::chain(&error)
        )),
        Err(_) => Err(format!(
            "The guest has not taken its sandbox's certificate authority within {} s",
            LIMIT.as_secs()
        )),
    }
}

/// What the guest trusts so far: programs that are told of [`BUNDLE`] by a variable are to trust it
/// still. Of an image that has it elsewhere, that; of one without any, what this host trusts.
async fn trusted(link: &Link) -> Result<Vec<u8>, LinkError> {
    for path in roots::BUNDLES {
        let bundle = read(link, path, MAX_BUNDLE).await?;
        if !bundle.is_empty() {
            return Ok(bundle);
        }
    }
    Ok(roots::host_bundle().unwrap_or_default())
}

/// A bundle with one certificate at its end in place of another. The guest may have written both:
/// the search takes time as they are long, not as they are like each other.
fn bundle_with(bundle: &[u8], before: &[u8], text: &[u8]) -> Vec<u8> {
    let mut made = Vec::with_capacity(bundle.len() + text.len() + 1);
    let mut rest = bundle;
    if before.starts_with(roots::BEGIN)
        && let Some(at) = memmem::find(bundle, before)
    {
        made.extend_from_slice(&bundle[..at]);
        rest = &bundle[at + before.len()..];
    }
    made.extend_from_slice(rest);
    if made.last().is_some_and(|last| *last != b'\n') {
        made.push(b'\n');
    }
    made.extend_from_slice(text);
    made
}

/// A file of the guest's; empty where there is none.
async fn read(link: &Link, path: &str, most: usize) -> Result<Vec<u8>, LinkError> {
    let missing = |error: &LinkError| {
        let refusal = error.refusal();
        refusal.is_some_and(|refusal| refusal.code == ErrorCode::NotFound)
    };
    let opened = link.read_file(path.as_bytes(), 0, most as u64 + 1).await;
    let mut reader = match opened {
        Ok((_, reader)) => reader,
        Err(error) if missing(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    while let Some(part) = reader.next().await {
        bytes.extend_from_slice(&part?);
    }
    // Of one that is longer only a part would be written again.
    if bytes.len() > most {
        return Err(LinkError::TooLarge(most));
    }
    Ok(bytes)
}

async fn write(link: &Link, path: &str, bytes: Bytes) -> Result<(), LinkError> {
    let mut writer = link.write_file(path.as_bytes(), ROOT).await?;
    writer.write(bytes).await?;
    writer.finish().await.map(drop)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_certificate_takes_its_predecessors_place_in_a_bundle() {
        let old = "-----BEGIN CERTIFICATE-----\nOLD\n";
        for (bundle, before, expected) in [
            ("", "", "NEW\n"),
            ("a\nb", "", "a\nb\nNEW\n"),
            ("a\nOLD", old, "a\nNEW\n"),
            ("a\nOLDb\n", old, "a\nb\nNEW\n"),
            ("a\n", old, "a\nNEW\n"),
            // What is no certificate takes nothing out.
            ("a\nb\n", "a\n", "a\nb\nNEW\n"),
        ] {
            let bundle = bundle.replace("OLD", old);
            let made = bundle_with(bundle.as_bytes(), before.as_bytes(), b"NEW\n");
            assert_eq!(made, expected.as_bytes(), "{bundle:?}");
        }
    }

    #[test]
    fn variables_of_the_creator_stay() {
        let own = ("SSL_CERT_FILE".to_owned(), "/mine".to_owned());
        let mut env = BTreeMap::from([own]);
        add_variables(&mut env);
        assert_eq!(env["SSL_CERT_FILE"], "/mine");
        assert_eq!(env["NODE_EXTRA_CA_CERTS"], CERTIFICATE);
    }
}
