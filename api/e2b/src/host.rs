//! Names that a server on a loopback address answers to.
//!
//! A web page can have its own name point at 127.0.0.1 and make the browser ask this server in the
//! page's name. It has no key and no token then, so all that it could reach are sandboxes without
//! a token: those are not for requests under a name that is not this server's.

use hyper::Uri;
use hyper::header::{HOST, HeaderMap};
use std::net::{IpAddr, Ipv6Addr};

/// Whether a request came under a name that is neither this machine's, nor an address, nor of the
/// sandboxes' domain.
pub(crate) fn is_foreign(uri: &Uri, headers: &HeaderMap, domain: Option<&str>) -> bool {
    let header = headers.get(HOST).map(|host| host.to_str().unwrap_or("?"));
    let authority = uri.authority().map(hyper::http::uri::Authority::as_str);
    // A client that names nobody is no browser.
    let Some(host) = authority.or(header) else {
        return false;
    };
    let name = name(host).to_ascii_lowercase();
    let ours = |ours: &str| name.strip_suffix(ours).is_some_and(ends_label);
    let domain = domain.map(|domain| name_of_domain(domain).to_ascii_lowercase());
    let domain = domain.is_some_and(|domain| ours(&domain));
    !(is_address(&name) || ours("localhost") || domain || is_spelt_address(&name))
}

/// Whether what is before a suffix ends a label.
fn ends_label(before: &str) -> bool {
    before.is_empty() || before.ends_with('.')
}

/// A host without its port and its final dot.
fn name(host: &str) -> &str {
    let end = if host.starts_with('[') {
        host.find(']').map_or(host.len(), |at| at + 1)
    } else {
        host.find(':').unwrap_or(host.len())
    };
    host[..end].trim_end_matches('.')
}

fn name_of_domain(domain: &str) -> &str {
    name(domain).trim_start_matches('.')
}

/// Names that spell a loopback address, under domains which resolve such a name to the address that
/// it spells: they are as good as `localhost` where that has no names below it. With a port and a
/// sandbox in front at most: other labels can spell another address, or make these domains ask
/// somebody else (`_acme-challenge`), who answers as he likes.
fn is_spelt_address(name: &str) -> bool {
    const SPELT: [&str; 2] = ["127.0.0.1", "127-0-0-1"];
    const DOMAINS: [&str; 2] = [".sslip.io", ".nip.io"];
    let below = |domain| name.strip_suffix(domain);
    let Some(rest) = DOMAINS.into_iter().find_map(below) else {
        return false;
    };
    let spelt = |address| rest.strip_suffix(address).is_some_and(is_one_port);
    SPELT.into_iter().any(spelt)
}

/// Whether what is before a suffix is nothing, or one label `{port}-{sandbox}` and its dot.
fn is_one_port(before: &str) -> bool {
    let Some(label) = before.strip_suffix('.') else {
        return before.is_empty();
    };
    let word = |text: &str, is: fn(&u8) -> bool| !text.is_empty() && text.as_bytes().iter().all(is);
    label.split_once('-').is_some_and(|(port, id)| {
        word(port, u8::is_ascii_digit) && word(id, u8::is_ascii_alphanumeric)
    })
}

fn is_address(name: &str) -> bool {
    let v6 = name.strip_prefix('[').and_then(|v6| v6.strip_suffix(']'));
    v6.is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok()) || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod test {
    use super::*;

    fn foreign(host: &str, domain: Option<&str>) -> bool {
        let headers = HeaderMap::from_iter([(HOST, host.parse().unwrap())]);
        is_foreign(&Uri::from_static("/"), &headers, domain)
    }

    #[test]
    fn this_machines_names_and_addresses_are_ours() {
        for ours in [
            "localhost",
            "LocalHost:3000",
            "localhost.",
            "49983-i1.localhost:3000",
            "127.0.0.1:3000",
            "10.1.2.3",
            "[::1]:3000",
            "49983-i1.sandbox.example.com",
            "api.sandbox.example.com",
            "sandbox.example.com",
            "49983-i1.127.0.0.1.sslip.io:3000",
            "127-0-0-1.nip.io",
        ] {
            assert!(!foreign(ours, Some("sandbox.example.com:443")), "{ours}");
        }
        assert!(!is_foreign(&Uri::from_static("/"), &HeaderMap::new(), None));
    }

    #[test]
    fn other_names_are_foreign() {
        for other in [
            "attacker.example",
            "49983-i1.attacker.example:3000",
            "notlocalhost",
            "evilsandbox.example.com",
            "127.0.0.1.attacker.example",
            "[::1",
            "1127.0.0.1.sslip.io",
            "10.0.0.1.sslip.io",
            "_acme-challenge.6.6.6.6.127.0.0.1.sslip.io",
            "80-i1-6-6-6-6-_acme-challenge.127.0.0.1.sslip.io",
            "80-i1.6.6.6.6.127.0.0.1.nip.io",
            "6-6-6-6.127.0.0.1.nip.io",
            "-i1.127.0.0.1.sslip.io",
            "127.0.0.1.sslip.io.attacker.example",
            "",
        ] {
            assert!(foreign(other, Some("sandbox.example.com")), "{other}");
        }
        assert!(foreign("49983-i1.sandbox.example.com", None));
        let authority = Uri::from_static("http://attacker.example/files");
        let headers = HeaderMap::from_iter([(HOST, "localhost".parse().unwrap())]);
        assert!(is_foreign(&authority, &headers, None), "as HTTP/2 has it");
    }
}
