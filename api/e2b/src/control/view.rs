//! A sandbox as clients see it, in its three sizes.

use engine::facts::{KeptState, SandboxFacts, TimeoutAction};
use engine::registry::SandboxView;
use jiff::{Timestamp, Unit};
use serde::Serialize;
use std::collections::BTreeMap;

/// The version of envd whose behaviour port 49983 has (api/PROTOCOL.md §7.1).
pub const ENVD_VERSION: &str = "0.6.13";
/// A constant that old clients append to ids.
pub const CLIENT_ID: &str = "6532622b";

/// The answer to create and connect.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CreatedView<'a> {
    #[serde(rename = "templateID")]
    template_id: &'a str,
    #[serde(rename = "sandboxID")]
    sandbox_id: &'a str,
    #[serde(rename = "clientID")]
    client_id: &'static str,
    envd_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    envd_access_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traffic_access_token: Option<&'a str>,
    domain: Option<&'a str>,
}

impl<'a> CreatedView<'a> {
    /// Of this sandbox, under this domain.
    #[must_use]
    pub fn new(sandbox: &'a SandboxFacts, domain: Option<&'a str>) -> Self {
        Self {
            template_id: &sandbox.origin.template_id,
            sandbox_id: &sandbox.id,
            client_id: CLIENT_ID,
            envd_version: ENVD_VERSION,
            alias: sandbox.origin.alias.as_deref(),
            envd_access_token: sandbox.access_token.as_deref(),
            traffic_access_token: sandbox.ingress.traffic_token.as_deref(),
            domain,
        }
    }
}

/// An entry of a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedView<'a> {
    #[serde(rename = "templateID")]
    template_id: &'a str,
    #[serde(rename = "sandboxID")]
    sandbox_id: &'a str,
    #[serde(rename = "clientID")]
    client_id: &'static str,
    envd_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<&'a str>,
    started_at: String,
    end_at: String,
    cpu_count: u8,
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u64,
    state: &'static str,
    metadata: &'a BTreeMap<String, String>,
}

impl<'a> ListedView<'a> {
    /// Of this sandbox.
    #[must_use]
    pub fn new(seen: &'a SandboxView) -> Self {
        let sandbox = &seen.facts;
        Self {
            template_id: &sandbox.origin.template_id,
            sandbox_id: &sandbox.id,
            client_id: CLIENT_ID,
            envd_version: ENVD_VERSION,
            alias: sandbox.origin.alias.as_deref(),
            started_at: time(sandbox.started_at),
            end_at: time(seen.end_at),
            cpu_count: sandbox.origin.cpu_count,
            memory_mb: sandbox.origin.memory_mb,
            disk_size_mb: sandbox.origin.disk_size_mb,
            state: match seen.paused {
                None => "running",
                Some(_) => "paused",
            },
            metadata: &sandbox.metadata,
        }
    }
}

/// The answer to get.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DetailView<'a> {
    #[serde(flatten)]
    listed: ListedView<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    envd_access_token: Option<&'a str>,
    domain: Option<&'a str>,
    lifecycle: LifecycleView,
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_mode: Option<&'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LifecycleView {
    auto_resume: bool,
    on_timeout: &'static str,
}

impl<'a> DetailView<'a> {
    /// Of this sandbox, under this domain.
    #[must_use]
    pub fn new(seen: &'a SandboxView, domain: Option<&'a str>) -> Self {
        Self {
            listed: ListedView::new(seen),
            envd_access_token: seen.facts.access_token.as_deref(),
            domain,
            lifecycle: LifecycleView {
                auto_resume: seen.facts.lifecycle.auto_resume,
                on_timeout: match seen.facts.lifecycle.on_timeout {
                    TimeoutAction::Kill => "kill",
                    TimeoutAction::Pause(_) => "pause",
                },
            },
            pause_mode: seen.paused.map(|kept| match kept {
                KeptState::Memory => "full",
                KeptState::Files => "filesystem",
            }),
        }
    }
}

/// RFC 3339 in UTC, to the millisecond.
#[must_use]
pub fn time(at: Timestamp) -> String {
    at.round(Unit::Millisecond).unwrap_or(at).to_string()
}
