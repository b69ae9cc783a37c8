//! A sandbox's own certificate authority: its guest trusts what it signs, and nobody else does. The
//! service makes it and keeps its key; the sandbox's network process signs with it.
#![forbid(unsafe_code)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use std::fmt;

/// The name that every authority has: they are told apart by their keys.
const COMMON_NAME: &str = "Hatchery sandbox authority";
/// The years in which certificates hold. A guest's clock may stand anywhere in them; what ends an
/// authority is the end of its sandbox.
const VALID_YEARS: (i32, i32) = (2020, 2050);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[error("Could not {what}: {source}")]
pub struct AuthorityError {
    /// What was tried.
    what: &'static str,
    /// What the library said.
    source: rcgen::Error,
}

fn failed(what: &'static str) -> impl FnOnce(rcgen::Error) -> AuthorityError {
    move |source| AuthorityError { what, source }
}

/// A certificate and the key that it is for. Debug output leaves the key out.
#[derive(Clone, PartialEq, Eq)]
pub struct CertifiedKey {
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// The private key, PKCS #8 DER.
    pub key: Vec<u8>,
}

impl fmt::Debug for CertifiedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let certificate = self.certificate.len();
        write!(
            f,
            "CertifiedKey({certificate} bytes of certificate, key left out)"
        )
    }
}

/// The name that OpenSSL looks an authority's certificate up by, in a folder of certificates: what
/// `openssl x509 -hash` says of the name that all have, and a number.
pub const HASHED_NAME: &str = "ce5226c3.0";
/// Characters of a line of PEM.
const PEM_LINE: usize = 64;

/// A certificate as text, PEM.
#[must_use]
pub fn pem(certificate: &[u8]) -> String {
    let text = STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, next) = rest.split_at(rest.len().min(PEM_LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = next;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Makes a new authority.
///
/// # Errors
/// [`AuthorityError`] when there are no random numbers.
pub fn new_authority() -> Result<CertifiedKey, AuthorityError> {
    let key = new_key()?;
    let signed = authority_params().self_signed(&key);
    let certificate = signed.map_err(failed("sign an authority's certificate"))?;
    Ok(CertifiedKey {
        certificate: certificate.der().to_vec(),
        key: key.serialize_der(),
    })
}

/// What signs a sandbox's certificates. Debug output leaves the key out.
pub struct Signer(Issuer<'static, KeyPair>);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(key left out)")
    }
}

impl Signer {
    /// Of an authority's key, PKCS #8 DER.
    ///
    /// # Errors
    /// [`AuthorityError`] for bytes that are none.
    pub fn new(key: &[u8]) -> Result<Self, AuthorityError> {
        let read = KeyPair::from_pkcs8_der_and_sign_algo(&key.into(), &PKCS_ECDSA_P256_SHA256);
        let key = read.map_err(failed("read an authority's key"))?;
        Ok(Self(Issuer::new(authority_params(), key)))
    }

    /// A certificate for a server of this name, and a key of its own: clients refuse two
    /// certificates of one issuer with one serial number, which comes of the key.
    ///
    /// # Errors
    /// [`AuthorityError`] for a name that a certificate cannot have.
    pub fn certify(&self, name: &str) -> Result<CertifiedKey, AuthorityError> {
        let key = new_key()?;
        let named = CertificateParams::new([name.to_owned()]);
        let mut params = named.map_err(failed("name a server in a certificate"))?;
        params.distinguished_name = DistinguishedName::new();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        hold(&mut params);
        let signed = params.signed_by(&key, &self.0);
        let certificate = signed.map_err(failed("sign a server's certificate"))?;
        Ok(CertifiedKey {
            certificate: certificate.der().to_vec(),
            key: key.serialize_der(),
        })
    }
}

fn new_key() -> Result<KeyPair, AuthorityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed("make a key"))
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, COMMON_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    hold(&mut params);
    params
}

fn hold(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(VALID_YEARS.0, 1, 1);
    params.not_after = date_time_ymd(VALID_YEARS.1, 1, 1);
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_authority_signs_for_names_and_shows_no_key() {
        let authority = new_authority().unwrap();
        let signer = Signer::new(&authority.key).unwrap();
        let (one, two) = (
            signer.certify("a.example.com"),
            signer.certify("b.example.com"),
        );
        assert_ne!(one.unwrap().key, two.unwrap().key);
        let shown = format!("{authority:?} {signer:?}");
        assert!(shown.contains("key left out"), "{shown}");
        assert!(authority.certificate.len() + authority.key.len() < 700);
    }

    /// What OpenSSL says of a certificate, where there is one to ask.
    fn openssl(certificate: &[u8], what: &str) -> Option<String> {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let mut command = Command::new("openssl");
        let command = command.args(["x509", "-noout", what]);
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = started.ok()?;
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(pem(certificate).as_bytes()).unwrap();
        drop(stdin);
        let done = child.wait_with_output().unwrap();
        Some(String::from_utf8(done.stdout).unwrap().trim().to_owned())
    }

    #[test]
    fn openssl_finds_an_authority_by_its_hashed_name() {
        let authority = new_authority().unwrap();
        let Some(hash) = openssl(&authority.certificate, "-hash") else {
            eprintln!("skipped: this host has no openssl");
            return;
        };
        assert_eq!(HASHED_NAME, format!("{hash}.0"));
    }

    #[test]
    fn what_is_no_key_or_no_name_is_refused() {
        Signer::new(b"no key").unwrap_err();
        let signer = Signer::new(&new_authority().unwrap().key).unwrap();
        signer.certify("\u{e9}.example.com").unwrap_err();
    }
}
