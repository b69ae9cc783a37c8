//! What it means with which certificate TLS would be served.

use crate::host::TlsFacts;
use crate::{Finding, Level};

/// One finding.
pub(super) fn judge(tls: &Result<TlsFacts, String>) -> Finding {
    match tls {
        Ok(facts) => {
            let ends = facts.ends.as_deref().unwrap_or("an unknown time");
            let found = format!("{} until {ends}, on {}", facts.names, facts.listen);
            match facts.warnings.as_slice() {
                [] => Finding::fine("tls", found),
                warnings => Finding::bad(
                    Level::Degraded,
                    "tls",
                    found,
                    warnings.join(". "),
                    "A new certificate is read while the server runs.",
                ),
            }
        }
        Err(error) => Finding::bad(
            Level::Unusable,
            "tls",
            error.clone(),
            "`hatchery serve` does not start.",
            "Correct the files, or leave out the [tls] table.",
        ),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn tls_is_as_good_as_its_certificate() {
        let certificate = TlsFacts {
            listen: ([0, 0, 0, 0], 443).into(),
            names: "*.example.com".into(),
            ends: Some("2030-01-01T00:00:00Z".into()),
            warnings: Vec::new(),
        };
        let fine = judge(&Ok(certificate.clone()));
        assert_eq!(fine.level, Level::Fine);
        assert!(fine.found.contains("*.example.com until 2030"), "{fine:?}");
        let warned = judge(&Ok(TlsFacts {
            warnings: vec!["it has ended".into()],
            ..certificate
        }));
        assert_eq!(warned.level, Level::Degraded);
        assert_eq!(warned.consequence, "it has ended");
        let broken = judge(&Err("no key".into()));
        assert_eq!((broken.level, &*broken.found), (Level::Unusable, "no key"));
    }
}
