//! `POST /sandboxes:batch`, which E2B does not have: many sandboxes by one request, told of as they
//! become ready.
//!
//! ```text
//! room for all ─> 200 ─┬─ {"index": 3, "sandbox": {…}}   a line each, as they become ready
//!   (or 429, 503)      ├─ {"index": 0, "error": {…}}
//!                      └─ {"summary": {…}}               always the last one
//! ```
//!
//! What a client that leaves keeps is what has been handed to its connection: with mode `any` each
//! sandbox with its line, with mode `all` every sandbox with the summary, or none. The rest is
//! ended.

use crate::control::create::{CreateRequest, IdempotencyClaim, IdempotencyTable, find};
use crate::control::view::CreatedView;
use crate::error::ApiError;
use crate::linger::LingeringBody;
use crate::route::ApiVersion;
use crate::state::{AppState, parse_json};
use crate::{Body, BodyError};
use bytes::Bytes;
use engine::owner::{Caller, OwnerId};
use engine::registry::{NewSandbox, SandboxRegistry, SandboxReservation};
use engine::sandbox::Sandbox;
use engine::timings::StepTimings;
use futures_util::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Most sandboxes of one batch.
const MAX_COUNT: usize = 1000;
/// So many are made at one time.
const AT_ONCE: usize = 8;

/// What the body has beside a creation's fields.
#[derive(Deserialize)]
struct BatchRequest {
    count: usize,
    #[serde(default)]
    mode: BatchMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum BatchMode {
    /// All of them or none.
    #[default]
    All,
    /// As many as can be had.
    Any,
}

/// Creates many sandboxes.
///
/// # Errors
/// What is wrong with the request, or that there is no room: then there is no sandbox. What happens
/// later is told in the lines.
pub async fn handle(
    app: &Arc<AppState>,
    who: &Caller,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, ApiError> {
    let (head, body) = request.into_parts();
    let body = app.body(body).await?;
    let BatchRequest { count, mode } = parse_json(&body)?;
    if !(1..=MAX_COUNT).contains(&count) {
        return Err(ApiError::Invalid(format!(
            "A count of {count} is out of range: 1 to {MAX_COUNT}"
        )));
    }
    let wanted: CreateRequest = parse_json(&body)?;
    let (template, asked) = wanted.check(&app.options, ApiVersion::V2)?;
    // A single creation with this body is another request.
    let sent = IdempotencyTable::digest(&[b"batch\n", &body]);
    drop(body);
    let claim = match head.headers.get("idempotency-key") {
        None => None,
        Some(key) => match app.idempotency.claim((&who.owner, key), sent).await? {
            Ok(claim) => Some(claim),
            Err(known) => return Ok(again(app, who, &known, (count, mode))),
        },
    };
    let source = find(app, who, &template).await?;
    let new = NewSandbox::new(who.owner.clone(), source, asked)?;
    let partial = mode == BatchMode::Any;
    let places = app.registry.reserve_batch(&new, count, partial).await?;
    let new = app.registry.load_source(new).await?;
    tracing::info!(count, room = places.len(), ?mode, "batch");
    let (lines, receiver) = mpsc::unbounded_channel();
    let job = BatchJob {
        registry: Arc::clone(&app.registry),
        owner: who.owner.clone(),
        domain: app.options.domain.clone(),
        lines,
        count,
        mode,
    };
    tokio::spawn(job.run(new, places));
    Ok(stream_of(BatchBody {
        receiver,
        claim,
        delivered: Vec::new(),
    }))
}

/// A sandbox that its client does not know of yet: it is killed if it never will.
struct UndeliveredSandbox {
    registry: Arc<SandboxRegistry>,
    index: usize,
    sandbox: Option<Arc<Sandbox>>,
}

impl UndeliveredSandbox {
    /// From now on it is the client's.
    fn deliver(mut self) -> Option<(usize, String)> {
        let sandbox = self.sandbox.take()?;
        Some((self.index, sandbox.id.clone()))
    }

    async fn kill(mut self) {
        if let Some(sandbox) = self.sandbox.take() {
            kill(&self.registry, &sandbox.id).await;
        }
    }
}

impl Drop for UndeliveredSandbox {
    fn drop(&mut self) {
        // Without a runtime there is no machine either.
        if let Some(sandbox) = self.sandbox.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let registry = Arc::clone(&self.registry);
            runtime.spawn(async move { kill(&registry, &sandbox.id).await });
        }
    }
}

async fn kill(registry: &SandboxRegistry, id: &str) {
    if let Err(error) = registry.kill_any(id).await {
        tracing::error!(sandbox_id = id, %error, "a batch's sandbox was not taken back");
    }
}

/// A line, and the sandboxes that are the client's with it.
struct BatchLine {
    text: Bytes,
    with: Vec<UndeliveredSandbox>,
}

struct BatchJob {
    registry: Arc<SandboxRegistry>,
    owner: OwnerId,
    domain: Option<String>,
    /// At most one line a sandbox and one more are ever in it.
    lines: mpsc::UnboundedSender<BatchLine>,
    count: usize,
    mode: BatchMode,
}

impl BatchJob {
    async fn run(self, new: NewSandbox, places: Vec<SandboxReservation>) {
        let full = ApiError::from(self.registry.full(&self.owner));
        let mut failed = self.count - places.len();
        for index in places.len()..self.count {
            self.say(&json!({ "index": index, "error": full.view() }), Vec::new());
        }
        let creations = places.into_iter().enumerate().map(|(index, place)| {
            let new = new.clone();
            let registry = &self.registry;
            async move {
                let mut timings = StepTimings::default();
                (
                    index,
                    registry.create_reserved(place, new, &mut timings).await,
                )
            }
        });
        let mut work = Box::pin(stream::iter(creations).buffer_unordered(AT_ONCE));
        let (mut created, mut held) = (0, Vec::new());
        let broken = loop {
            let (index, made) = tokio::select! {
                biased;
                // What is in the making goes with `work`, what is made with `held` and the lines.
                () = self.lines.closed() => return,
                next = work.next() => match next {
                    Some(next) => next,
                    None => break None,
                },
            };
            match made {
                Ok(sandbox) => {
                    created += 1;
                    let view = CreatedView::new(&sandbox, self.domain.as_deref());
                    let line = json!({ "index": index, "sandbox": view });
                    let own = self.own(index, sandbox);
                    if self.mode == BatchMode::All {
                        held.push(own);
                        self.say(&line, Vec::new());
                    } else {
                        self.say(&line, vec![own]);
                    }
                }
                Err(why) => {
                    failed += 1;
                    let why = ApiError::from(why).view();
                    self.say(&json!({ "index": index, "error": why }), Vec::new());
                    if self.mode == BatchMode::All {
                        break Some(why);
                    }
                }
            }
        };
        drop(work);
        let mut summary = json!({ "count": self.count, "created": created, "failed": failed });
        if let Some(why) = broken {
            stream::iter(std::mem::take(&mut held))
                .for_each_concurrent(AT_ONCE, UndeliveredSandbox::kill)
                .await;
            summary = json!({
                "count": self.count, "created": 0, "failed": self.count,
                "rolledBack": created, "error": why,
            });
        }
        tracing::info!(count = self.count, created, failed, "batch is over");
        self.say(&json!({ "summary": summary }), held);
    }

    fn own(&self, index: usize, sandbox: Arc<Sandbox>) -> UndeliveredSandbox {
        UndeliveredSandbox {
            registry: Arc::clone(&self.registry),
            index,
            sandbox: Some(sandbox),
        }
    }

    /// Nobody hears it: then what is with it goes.
    fn say(&self, line: &Value, with: Vec<UndeliveredSandbox>) {
        let text = Bytes::from(format!("{line}\n"));
        let _ = self.lines.send(BatchLine { text, with });
    }
}

/// The response's body: a line is the client's when it is taken from here.
struct BatchBody {
    receiver: mpsc::UnboundedReceiver<BatchLine>,
    claim: Option<IdempotencyClaim>,
    delivered: Vec<(usize, String)>,
}

impl hyper::body::Body for BatchBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.receiver.poll_recv(context).map(|line| {
            let line = line?;
            let with = line
                .with
                .into_iter()
                .filter_map(UndeliveredSandbox::deliver);
            self.delivered.extend(with);
            Some(Ok(Frame::data(line.text)))
        })
    }
}

impl Drop for BatchBody {
    fn drop(&mut self) {
        // Who asks again with this key gets what was delivered; if that is nothing, anew.
        if let Some(claim) = self.claim.take()
            && !self.delivered.is_empty()
        {
            let all = self.delivered.iter();
            let all: Vec<String> = all.map(|(index, id)| format!("{index}:{id}")).collect();
            claim.settle(&all.join(","));
        }
    }
}

/// The answer to a batch that was asked before: what was delivered then.
fn again(
    app: &AppState,
    who: &Caller,
    known: &str,
    (count, mode): (usize, BatchMode),
) -> Response<Body> {
    let domain = app.options.domain.as_deref();
    let mut lines = vec![None; count];
    for (index, id) in known.split(',').filter_map(|one| one.split_once(':')) {
        let index: usize = index.parse().unwrap_or(count);
        if let Some(line) = lines.get_mut(index) {
            *line = Some(match app.look(who, id) {
                Ok(view) => {
                    json!({ "index": index, "sandbox": CreatedView::new(&view.facts, domain) })
                }
                Err(why) => json!({ "index": index, "error": why.view() }),
            });
        }
    }
    let missing = || ApiError::Conflict("It was not made, or not delivered, the first time".into());
    let filled = lines.into_iter().enumerate().map(|(index, line)| {
        line.unwrap_or_else(|| json!({ "index": index, "error": missing().view() }))
    });
    let filled: Vec<Value> = filled.collect();
    let created = filled.iter().filter(|line| line["error"].is_null()).count();
    let summary = json!({ "count": count, "created": created, "failed": count - created });
    tracing::info!(count, created, ?mode, "batch asked again");
    let lines = filled.into_iter().chain([json!({ "summary": summary })]);
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    let mut response = Response::new(crate::body::full(text));
    ndjson(&mut response);
    response
}

fn stream_of(lines: BatchBody) -> Response<Body> {
    let mut response = Response::new(lines.boxed_unsync());
    ndjson(&mut response);
    response
}

fn ndjson(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
}
