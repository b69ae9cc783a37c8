//! What makes a machine somebody: given before any of its tenant's code runs.

use link::{GuestIdentity, Link, LinkError};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

/// How long the agent may take to accept its identity.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(20);

/// The guest's clock is late by the message's way, which nobody but its answer tells. After an
/// answer that took longer than this it is set again.
const LATE: Duration = Duration::from_millis(25);
/// By one after the other: all at once would be in each other's way.
static TURN: Semaphore = Semaphore::const_new(1);
/// For so long, also when others have their turn: on a host that is so busy that no answer comes in
/// time, a clock that is late is better than no sandbox.
const SET_AGAIN: Duration = Duration::from_secs(2);

/// The wall clock.
#[must_use]
pub fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Gives the guest its name, clock and entropy, and waits for its word that it has them: no longer
/// than `bound`, nor than 20 s, of which a template's clone hook may take 10.
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
    let given = async {
        let mut turn = None;
        let mut end = None;
        loop {
            let begin = Instant::now();
            let identity = GuestIdentity {
                unix_ns: u64::try_from(since_1970().as_nanos()).unwrap_or(u64::MAX),
                hostname: id.to_owned(),
                generation,
                entropy,
                env: env.clone(),
            };
            link.set_identity(identity).await?;
            let end = *end.get_or_insert_with(|| Instant::now() + SET_AGAIN);
            if begin.elapsed() <= LATE || Instant::now() >= end {
                return Ok::<_, LinkError>(());
            }
            if turn.is_none() {
                turn = timeout_at(end, TURN.acquire()).await.ok();
            }
            if turn.is_none() {
                return Ok(());
            }
        }
    };
    let bound = bound.min(IDENTITY_TIMEOUT);
    match timeout(bound, given).await {
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
