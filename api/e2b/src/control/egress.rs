//! What a sandbox may reach over the network: `network` of a creation, and
//! `PUT /sandboxes/{id}/network` (api/PROTOCOL.md §4.13).

use crate::Body;
use crate::control::header_rules;
use crate::error::ApiError;
use crate::linger::LingeringBody;
use crate::state::{AppState, no_content};
use engine::network::{AllowTarget, EgressPolicy, IpRange, NetPolicy};
use engine::owner::Caller;
use hyper::{Request, Response};
use serde::Deserialize;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Where name servers listen.
const DNS_PORT: u16 = 53;

/// What there is of it in `network`, and as a body. Fields that are not here are ignored.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EgressRequest {
    allow_out: Option<Vec<String>>,
    deny_out: Option<Vec<String>>,
    dns_servers: Option<Vec<String>>,
    egress_proxy: Option<Value>,
    rules: Option<Value>,
    #[serde(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
}

/// What a creation asks for.
///
/// # Errors
/// [`ApiError::Invalid`], [`ApiError::NotYet`].
pub(super) fn asked(
    network: Option<&Value>,
    internet: Option<bool>,
) -> Result<EgressPolicy, ApiError> {
    let request = match network {
        None | Some(Value::Null) => EgressRequest::default(),
        Some(network) => EgressRequest::deserialize(network)
            .map_err(|error| ApiError::Invalid(format!("network: {error}")))?,
    };
    request.egress(internet)
}

/// Replaces what a running sandbox may reach, as a whole; flows that are no longer allowed are cut.
///
/// # Errors
/// [`engine::error::EngineError::SandboxNotFound`], [`ApiError::Conflict`] of a paused one,
/// [`ApiError::Invalid`], [`ApiError::NotYet`].
pub async fn set(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ApiError> {
    let wanted: EgressRequest = app.json(request.into_body()).await?;
    let egress = wanted.egress(None)?;
    if app.look(who, id)?.paused.is_some() {
        return Err(ApiError::Conflict(format!(
            "Sandbox {id:?} is paused: what it reaches is changed while it runs"
        )));
    }
    app.sandbox(who, id)?.set_egress(egress).await?;
    tracing::info!(sandbox_id = id, "network policy replaced");
    Ok(no_content())
}

impl EgressRequest {
    /// What is asked for, checked.
    fn egress(mut self, internet: Option<bool>) -> Result<EgressPolicy, ApiError> {
        let headers = header_rules::asked(self.rules.take())?;
        Ok(EgressPolicy::new(self.reach(internet)?, headers))
    }

    fn reach(self, internet: Option<bool>) -> Result<NetPolicy, ApiError> {
        let needs = |value: Option<Value>| value.is_some_and(|value| !is_empty(&value));
        if needs(self.egress_proxy) {
            return Err(ApiError::NotYet(
                "A proxy for a sandbox's network (egressProxy)",
            ));
        }
        let invalid =
            |error: &dyn std::fmt::Display| ApiError::Invalid(format!("network: {error}"));
        let parse = |text: &String| text.parse::<AllowTarget>().map_err(|error| invalid(&error));
        let allow_out = each(self.allow_out.as_deref(), parse)?;
        let parse = |text: &String| {
            text.parse::<IpRange>().map_err(|error| {
                ApiError::Invalid(format!("network.denyOut takes no domains: {error}"))
            })
        };
        let deny_out = each(self.deny_out.as_deref(), parse)?;
        let internet = internet.unwrap_or(true) && self.allow_internet_access.unwrap_or(true);
        let everything = |range: &IpRange| range.prefix == 0 && range.address.is_ipv4();
        let domain = allow_out.iter().find_map(|target| match target {
            AllowTarget::Domain(domain) => Some(domain),
            AllowTarget::Range(_) => None,
        });
        if let Some(domain) = domain
            && internet
            && !deny_out.iter().any(everything)
        {
            return Err(ApiError::Invalid(format!(
                "network.allowOut has the domain {:?}, which means something only where all else \
                 is denied: put \"0.0.0.0/0\" into network.denyOut",
                domain.as_str()
            )));
        }
        let server = |text: &String| match text.parse::<IpAddr>() {
            Ok(address) => Ok(SocketAddr::new(address, DNS_PORT)),
            Err(_) => Err(ApiError::Invalid(format!(
                "network.dnsServers: {text:?} is not an IP address"
            ))),
        };
        let dns_servers = each(self.dns_servers.as_deref(), server)?;
        let policy = NetPolicy {
            internet,
            allow_out,
            deny_out,
            openings: Vec::new(),
            dns_servers,
        };
        policy.check().map_err(|error| invalid(&error))?;
        Ok(policy)
    }
}

/// The entries of a list, which may be left out.
fn each<T>(
    list: Option<&[String]>,
    of: impl Fn(&String) -> Result<T, ApiError>,
) -> Result<Vec<T>, ApiError> {
    list.unwrap_or_default().iter().map(of).collect()
}

/// Whether a field that is not served is as if it were not there.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::json;

    fn refused(network: &Value) -> String {
        asked(Some(network), None).unwrap_err().to_string()
    }

    #[test]
    fn rules_are_read_as_clients_write_them() {
        let policy = asked(
            Some(&json!({
                "allowOut": ["1.1.1.1", "10.0.0.0/8", "*.example.com"],
                "denyOut": ["0.0.0.0/0"],
                "dnsServers": ["9.9.9.9"],
                "allowPublicTraffic": true,
            })),
            None,
        );
        let policy = policy.unwrap().reach;
        assert!(policy.internet);
        assert_eq!((policy.allow_out.len(), policy.deny_out.len()), (3, 1));
        assert_eq!(policy.dns_servers, ["9.9.9.9:53".parse().unwrap()]);
        assert!(asked(None, None).unwrap().reach.internet);
        assert!(!asked(None, Some(false)).unwrap().reach.internet);
        assert!(
            asked(Some(&Value::Null), Some(true))
                .unwrap()
                .reach
                .internet
        );
    }

    #[test]
    fn domains_need_all_else_denied() {
        let domain = json!({"allowOut": ["example.com"]});
        assert!(
            refused(&domain).contains("0.0.0.0/0"),
            "{}",
            refused(&domain)
        );
        asked(Some(&domain), Some(false)).unwrap();
        let part = json!({"allowOut": ["example.com"], "denyOut": ["0.0.0.0/1"]});
        assert!(refused(&part).contains("0.0.0.0/0"));
    }

    #[test]
    fn what_is_no_rule_is_refused_with_its_value() {
        for (network, value) in [
            (json!({"denyOut": ["example.com"]}), "example.com"),
            (json!({"denyOut": ["10.0.0.0/33"]}), "10.0.0.0/33"),
            (json!({"allowOut": ["a b"]}), "a b"),
            (json!({"allowOut": "1.1.1.1"}), "1.1.1.1"),
            (json!({"dnsServers": ["dns.example"]}), "dns.example"),
            (json!({"denyOut": vec!["10.0.0.1"; 10_000]}), "10000"),
        ] {
            let refused = refused(&network);
            assert!(refused.contains(value), "{refused}");
        }
        let proxy = json!({"egressProxy": {"address": "a:1"}});
        let refused = asked(Some(&proxy), None);
        assert!(matches!(refused, Err(ApiError::NotYet(_))), "{proxy}");
        asked(Some(&json!({"egressProxy": null, "rules": {}})), None).unwrap();
    }
}
