//! What the processes of a sandbox need of it.

use link::{Link, LinkError};
use std::time::Duration;
use tokio::sync::watch;

/// How long the registry may need to notice what the link has noticed already.
const NOTICE: Duration = Duration::from_secs(5);

/// A sandbox, as its processes see it. Holding it keeps neither the sandbox nor its machine.
#[derive(Clone, Debug)]
pub struct GuestContext {
    /// Its id, for the log.
    pub sandbox_id: String,
    /// The connection to its guest agent.
    pub link: Link,
    /// True once the sandbox has ended.
    pub gone: watch::Receiver<bool>,
}

impl GuestContext {
    /// Completes when the sandbox has ended.
    pub async fn gone(&self) {
        let mut gone = self.gone.clone();
        // An error: the sandbox itself is no more, which is an end too.
        let _ = gone.wait_for(|gone| *gone).await;
    }
}

/// When the link is closed the sandbox is about to be gone: lets the registry say so, of which
/// `gone` tells. If it does not within 5 s, the caller goes on with its own error.
pub async fn settle(gone: impl Future<Output = ()>, error: &LinkError) {
    if error.is_closed() {
        let _ = tokio::time::timeout(NOTICE, gone).await;
    }
}
