//! What comes after an upgrade: bytes both ways, of whatever protocol.

use crate::proxy::headers;
use crate::proxy::upstream::DrivenConnection;
use crate::slots::UpgradedConnection;
use crate::{Body, body};
use engine::sandbox::Sandbox;
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio::io::copy_bidirectional_with_sizes;

/// Bytes that are read at once, each way.
const PIECE: usize = 8 << 10;

/// The answer that makes the connection of the client a tunnel, which begins when that is written.
/// It ends with either side, with the sandbox, and when the connection has to give way.
pub(super) fn begin(
    sandbox: &Arc<Sandbox>,
    connection: UpgradedConnection,
    (client, driven): (OnUpgrade, DrivenConnection),
    mut response: Response<Incoming>,
    protocol: &HeaderValue,
) -> Response<Body> {
    let program = hyper::upgrade::on(&mut response);
    headers::for_upgraded(&mut response, protocol);
    let sandbox = Arc::clone(sandbox);
    tokio::spawn(async move {
        let work = async {
            let (client, program) = tokio::try_join!(client, program)?;
            let (mut client, mut program) = (TokioIo::new(client), TokioIo::new(program));
            let copied =
                copy_bidirectional_with_sizes(&mut client, &mut program, PIECE, PIECE).await;
            Ok::<_, hyper::Error>(copied)
        };
        tokio::select! {
            ended = work => tracing::debug!(sandbox_id = sandbox.id, ?ended, "a tunnel ended"),
            () = sandbox.gone() => {}
            () = connection.given_up() => {
                tracing::debug!(sandbox_id = sandbox.id, "a tunnel gave way to another connection");
            }
        }
        drop(driven);
    });
    response.map(|_| body::empty())
}
