//! What makes a machine somebody: given before any of its tenant's code runs.

use crate::link::{Identity, Link};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::timeout;

/// How long the agent may take to accept its identity.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(20);

/// The wall clock.
#[must_use]
pub fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Gives the guest its name, clock and entropy, and waits for its word that it has them: no longer than
/// `bound`, nor than 20 s, of which a template's clone hook may take 10.
///
/// # Errors
/// Why it cannot be shown that the guest has them: it must not become a sandbox.
pub async fn identify(
    link: &Link,
    id: &str,
    generation: u64,
    env: &BTreeMap<String, String>,
    bound: Duration,
) -> Result<(), String> {
    let mut entropy = [0; 32];
    getrandom::fill(&mut entropy).map_err(|e| format!("The host gave no random bytes: {e}"))?;
    let identity = Identity {
        unix_ns: u64::try_from(since_1970().as_nanos()).unwrap_or(u64::MAX),
        hostname: id.to_owned(),
        generation,
        entropy,
        env: env.clone(),
    };
    let bound = bound.min(IDENTITY_TIMEOUT);
    match timeout(bound, link.set_identity(identity)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!(
            "The guest agent did not accept its identity: {}",
            crate::error::chain(&error)
        )),
        Err(_) => Err(format!(
            "The guest agent did not accept its identity within {} s",
            bound.as_secs()
        )),
    }
}
