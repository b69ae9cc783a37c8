//! `network.rules`: headers that a sandbox's requests to some hosts get (api/PROTOCOL.md §4.13).

use crate::error::ApiError;
use engine::network::{HostHeaders, SecretBytes, SecretHeader, check_hosts};
use hyper::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// `{host: [rule, …]}`.
type Rules = BTreeMap<String, Option<Vec<Rule>>>;

/// One rule of a host.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    transform: Option<Transform>,
}

/// What a request becomes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Transform {
    headers: Option<BTreeMap<String, Value>>,
}

fn invalid(why: impl std::fmt::Display) -> ApiError {
    ApiError::Invalid(format!("network.rules: {why}"))
}

/// The headers of each host that has any; of two of one name, the later rule's. No error has a
/// value.
///
/// # Errors
/// [`ApiError::Invalid`].
pub(super) fn asked(rules: Option<Value>) -> Result<Vec<HostHeaders>, ApiError> {
    let Some(rules) = rules.filter(|rules| !rules.is_null()) else {
        return Ok(Vec::new());
    };
    // Not serde's words: they would repeat a value.
    let shape = |_| invalid("it is not {host: [{\"transform\": {\"headers\": {name: value}}}]}");
    let rules: Rules = serde_json::from_value(rules).map_err(shape)?;
    let mut hosts: Vec<HostHeaders> = Vec::new();
    for (host, rules) in rules {
        let mut headers: BTreeMap<String, SecretBytes> = BTreeMap::new();
        let transforms = rules
            .into_iter()
            .flatten()
            .filter_map(|rule| rule.transform);
        for (name, value) in transforms
            .filter_map(|transform| transform.headers)
            .flatten()
        {
            headers.insert(
                name.to_ascii_lowercase(),
                header_value(&host, &name, &value)?,
            );
        }
        if headers.is_empty() {
            continue;
        }
        let header = |(name, value)| SecretHeader { name, value };
        hosts.push(HostHeaders {
            host: host.parse().map_err(|_| not_a_host(&host))?,
            headers: headers.into_iter().map(header).collect(),
        });
    }
    check_hosts(&hosts).map_err(invalid)?;
    Ok(hosts)
}

fn not_a_host(host: &str) -> ApiError {
    let shown: String = host.chars().take(253).collect();
    invalid(format!(
        "{shown:?} is not a host: name a domain, such as api.example.com or *.example.com"
    ))
}

/// A value that a header may have.
fn header_value(host: &str, name: &str, value: &Value) -> Result<SecretBytes, ApiError> {
    let shown: String = name.chars().take(64).collect();
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(invalid(format!("{shown:?} is not the name of a header")));
    }
    let text = value.as_str();
    let text = text.filter(|text| HeaderValue::from_str(text).is_ok());
    let text = text.ok_or_else(|| {
        let host: String = host.chars().take(253).collect();
        invalid(format!(
            "the value of {shown:?} for {host:?} is not a text of visible ASCII characters, spaces \
             and tabs"
        ))
    })?;
    Ok(SecretBytes::new(text.as_bytes().to_vec()))
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::json;

    fn refused(rules: Value) -> String {
        asked(Some(rules)).unwrap_err().to_string()
    }

    fn one(headers: &Value) -> Value {
        json!({"api.example.com": [{"transform": {"headers": headers}}]})
    }

    #[test]
    fn rules_are_read_as_clients_write_them() {
        let hosts = asked(Some(json!({
            "API.Example.com": [
                {"transform": {"headers": {"Authorization": "Bearer a", "X-A": "1"}}},
                {"transform": {"headers": {"authorization": "Bearer b"}}},
            ],
            "*.example.net": [{"transform": {"headers": {"x-b": ""}}}],
            "nothing.example": [{"transform": {}}, {}],
            "null.example": null,
        })));
        let hosts = hosts.unwrap();
        let said: Vec<_> = hosts
            .iter()
            .flat_map(|host| host.headers.iter().map(move |h| (host, h)))
            .map(|(host, header)| (host.host.as_str(), &*header.name, header.value.expose()))
            .collect();
        let expected: [(_, _, &[u8]); 3] = [
            ("*.example.net", "x-b", b""),
            ("api.example.com", "authorization", b"Bearer b"),
            ("api.example.com", "x-a", b"1"),
        ];
        assert_eq!(said, expected);
        for nothing in [None, Some(Value::Null), Some(json!({}))] {
            assert_eq!(asked(nothing).unwrap(), []);
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_and_no_value_is_repeated() {
        let with = |name: &str| one(&json!({name: "zq"}));
        for (rules, word) in [
            (json!(["zq"]), "transform"),
            (
                json!({"a.net": [{"transform": {"body": "zq"}}]}),
                "transform",
            ),
            (json!({"a.net": [{"block": "zq"}]}), "transform"),
            (json!({"a.net": {"transform": {}}}), "transform"),
            (one(&json!({"x-a": 17})), "x-a"),
            (one(&json!({"x-a": "zq\r\nx: y"})), "x-a"),
            (one(&json!({"x-a": "zq\u{e9}"})), "x-a"),
            (one(&json!({"x-a": " zq"})), "x-a"),
            (with("x a"), "x a"),
            (with(""), "\"\""),
            (with("Host"), "host"),
            (with("Content-Length"), "content-length"),
            (with("Transfer-Encoding"), "transfer-encoding"),
            (with("connection"), "connection"),
            (
                json!({"1.2.3.4": [{"transform": {"headers": {"x": "zq"}}}]}),
                "1.2.3.4",
            ),
            (
                json!({"a b": [{"transform": {"headers": {"x": "zq"}}}]}),
                "a b",
            ),
            (
                json!({"*": [{"transform": {"headers": {"x": "zq"}}}]}),
                "every host",
            ),
            (
                json!({
                    "a.net": [{"transform": {"headers": {"x": "zq"}}}],
                    "A.net": [{"transform": {"headers": {"x": "zq"}}}],
                }),
                "twice",
            ),
            (one(&json!({"x": "zq".repeat(8000)})), "16016"),
        ] {
            let refused = refused(rules);
            assert!(
                refused.contains(word) && !refused.contains("zq"),
                "{refused}"
            );
        }
        let many = |count: usize| (0..count).map(|n| (format!("x{n}"), json!("zq")));
        asked(Some(one(&many(16).collect()))).unwrap();
        assert!(refused(one(&many(17).collect())).contains("17"));
        let host = |n: usize| {
            (
                format!("h{n}.net"),
                one(&json!({"x": "zq"}))["api.example.com"].clone(),
            )
        };
        asked(Some((0..32).map(host).collect())).unwrap();
        assert!(refused((0..33).map(host).collect()).contains("33"));
    }
}
