//! Signed file URLs that name no sandbox (api/PROTOCOL.md §2.1, rule 4): whose token has signed?
//!
//! A signature does not say who made it, so the tokens are tried, in whatever state their sandboxes
//! are. Anybody can send a forged one: what is over, or cannot be a signature, is tried with no
//! token, what was found before is found again at once, and tries in vain are paid from an
//! allowance. When that is used up, nothing is tried until some of it has come back.

use crate::Body;
use crate::envd::SignedQuery;
use crate::error::ProxyError;
use crate::linger::LingeringBody;
use crate::ports::ENVD_PORT;
use crate::state::AppState;
use engine::registry::SandboxView;
use hyper::{Method, Request, Response};
use jiff::Timestamp;

impl AppState {
    /// A signed file URL that names no sandbox: from its signature on it is as any traffic to the
    /// sandbox.
    pub(crate) async fn signed(&self, request: Request<LingeringBody>) -> Response<Body> {
        match self.signer(&request) {
            Ok(id) => self.data(&id, ENVD_PORT, request).await,
            Err(error) => error.response(),
        }
    }

    /// The sandbox whose token has signed.
    fn signer<B>(&self, request: &Request<B>) -> Result<String, ProxyError> {
        let write = request.method() == Method::POST;
        let query = request.uri().query().unwrap_or_default();
        let signed = SignedQuery::parse(query, write).ok_or(ProxyError::Signature)?;
        if signed.is_over(Timestamp::now().as_second()) {
            return Err(ProxyError::SignatureOver);
        }
        let by = |view: &SandboxView| {
            let token = view.facts.access_token.as_deref();
            token.is_some_and(|token| signed.is_by(token))
        };
        if let Some(id) = self.signers.remembered(signed.signature())
            && self.registry.look_any(&id).as_ref().is_some_and(by)
        {
            return Ok(id);
        }
        if !self.signers.may_try() {
            return Err(ProxyError::TooManySignatures);
        }
        let all = self.registry.all();
        let Some(view) = all.iter().find(|view| by(view)) else {
            self.signers.pay(all.len().max(1));
            return Err(ProxyError::Signature);
        };
        self.signers.remember(*signed.signature(), &view.facts.id);
        Ok(view.facts.id.clone())
    }
}
