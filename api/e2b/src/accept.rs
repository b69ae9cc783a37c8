//! The next client of a listener.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// Between two tries. Most often out of descriptors: some are closed meanwhile.
const AGAIN: Duration = Duration::from_millis(100);

/// Waits for the next connection; `what` it is for is said in the log when one cannot be accepted.
pub(crate) async fn accept(listener: &TcpListener, what: &'static str) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(found) => return found,
            Err(error) => {
                tracing::warn!(%error, what, "cannot accept a connection");
                sleep(AGAIN).await;
            }
        }
    }
}
