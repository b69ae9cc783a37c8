//! The part of a creation's `network` that is about its ports: who reaches them, and as what
//! (api/PROTOCOL.md §4.13).

use crate::error::ApiError;
use engine::facts::{IngressPolicy, MAX_TLS_PORTS};
use engine::registry::AskedIngress;
use hyper::http::uri::Authority;
use serde_json::Value;
use std::collections::BTreeSet;

/// Most bytes of `maskRequestHost`.
const MAX_HOST: usize = 255;

/// What is asked for; `secure`: whether the sandbox has a token.
///
/// # Errors
/// [`ApiError::Invalid`] for what cannot be.
pub(super) fn ingress(network: Option<&Value>, secure: bool) -> Result<AskedIngress, ApiError> {
    let Some(Value::Object(network)) = network else {
        return Ok(AskedIngress::default());
    };
    let private = match network.get("allowPublicTraffic") {
        None | Some(Value::Null | Value::Bool(true)) => false,
        Some(Value::Bool(false)) if secure => true,
        Some(Value::Bool(false)) => {
            return invalid("network.allowPublicTraffic: false needs secure: true".into());
        }
        Some(other) => {
            let text = format!("network.allowPublicTraffic is {}, no boolean", short(other));
            return invalid(text);
        }
    };
    let policy = IngressPolicy {
        traffic_token: None,
        mask_host: mask(network.get("maskRequestHost"))?,
        tls_ports: ports(network.get("httpsPorts"))?,
    };
    Ok(AskedIngress { private, policy })
}

fn invalid<T>(text: String) -> Result<T, ApiError> {
    Err(ApiError::Invalid(text))
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(64).collect()
}

/// A host, perhaps with a port, in which `${PORT}` stands for the one that is asked for.
fn mask(host: Option<&Value>) -> Result<Option<String>, ApiError> {
    let text = match host {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.is_empty() => return Ok(None),
        Some(Value::String(text)) => text,
        Some(other) => {
            let text = format!("network.maskRequestHost is {}, no string", short(other));
            return invalid(text);
        }
    };
    let longest = text.replace("${PORT}", "65535");
    let good = longest.parse::<Authority>();
    let good = good.is_ok_and(|host| !host.host().is_empty() && !host.as_str().contains('@'));
    if longest.len() > MAX_HOST || !good {
        let text: String = text.chars().take(64).collect();
        return invalid(format!(
            "network.maskRequestHost {text:?} is no host of at most {MAX_HOST} bytes, such as \
             \"localhost:${{PORT}}\""
        ));
    }
    Ok(Some(text.clone()))
}

/// Ports on which programs speak TLS.
fn ports(list: Option<&Value>) -> Result<BTreeSet<u16>, ApiError> {
    let numbers = match list {
        None | Some(Value::Null) => return Ok(BTreeSet::new()),
        Some(Value::Array(numbers)) => numbers,
        Some(other) => {
            let text = format!("network.httpsPorts is {}, no list", short(other));
            return invalid(text);
        }
    };
    if numbers.len() > MAX_TLS_PORTS {
        let text = format!("network.httpsPorts has {} ports", numbers.len());
        return invalid(format!("{text}, over {MAX_TLS_PORTS}"));
    }
    let port = |number: &Value| {
        let port = number.as_u64().and_then(|port| u16::try_from(port).ok());
        port.filter(|port| *port != 0).ok_or_else(|| {
            let text = format!("network.httpsPorts: {} is no port", short(number));
            ApiError::Invalid(text)
        })
    };
    numbers.iter().map(port).collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::json;

    fn asked(network: &Value) -> Result<AskedIngress, ApiError> {
        ingress(Some(network), true)
    }

    #[test]
    fn ports_are_open_unless_the_request_says_otherwise() {
        for network in [
            Value::Null,
            json!({}),
            json!({ "allowPublicTraffic": true, "maskRequestHost": "", "httpsPorts": null }),
            json!({ "allowOut": ["1.2.3.4"] }),
        ] {
            let asked = asked(&network).unwrap();
            assert!(!asked.private && asked.policy == IngressPolicy::default());
        }
        assert!(!ingress(None, false).unwrap().private);
    }

    #[test]
    fn what_is_asked_for_is_taken() {
        let asked = asked(&json!({
            "allowPublicTraffic": false,
            "maskRequestHost": "localhost:${PORT}",
            "httpsPorts": [8443, 443, 443],
        }))
        .unwrap();
        assert!(asked.private);
        assert_eq!(
            asked.policy,
            IngressPolicy {
                traffic_token: None,
                mask_host: Some("localhost:${PORT}".into()),
                tls_ports: BTreeSet::from([443, 8443]),
            }
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let private = json!({ "allowPublicTraffic": false });
        ingress(Some(&private), false).unwrap_err();
        for network in [
            json!({ "allowPublicTraffic": "no" }),
            json!({ "maskRequestHost": 7 }),
            json!({ "maskRequestHost": "a b" }),
            json!({ "maskRequestHost": "user@host" }),
            json!({ "maskRequestHost": "host\r\nx: y" }),
            json!({ "maskRequestHost": "host/path" }),
            json!({ "maskRequestHost": "a".repeat(MAX_HOST + 1) }),
            json!({ "httpsPorts": 443 }),
            json!({ "httpsPorts": [0] }),
            json!({ "httpsPorts": [65_536] }),
            json!({ "httpsPorts": ["443"] }),
            json!({ "httpsPorts": vec![1; MAX_TLS_PORTS + 1] }),
        ] {
            let refused = asked(&network);
            assert!(matches!(refused, Err(ApiError::Invalid(_))), "{network}");
        }
    }
}
