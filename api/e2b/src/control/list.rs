//! `GET /sandboxes`, `GET /v2/sandboxes` (api/PROTOCOL.md §4.3).

use crate::Body;
use crate::control::view::ListedView;
use crate::error::{ApiError, json_response};
use crate::query::{QueryString, metadata_filter};
use crate::route::ApiVersion;
use crate::state::{AppState, parse_query};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::owner::Caller;
use engine::registry::SandboxView;
use hyper::header::HeaderValue;
use hyper::{Response, StatusCode};
use jiff::Timestamp;
use std::sync::Arc;

/// Most entries of one answer, and the default.
const MAX_LIMIT: usize = 100;

/// What to list, and where to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ListFilter {
    metadata: Vec<(String, String)>,
    /// Which states.
    running: bool,
    paused: bool,
    ascending: bool,
    template: Option<String>,
    started_after: Option<Timestamp>,
    limit: usize,
    after: Option<ListPlace>,
}

/// A sandbox's place in the order: by start, then by id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ListPlace {
    started: i128,
    id: String,
}

/// Lists sandboxes.
///
/// # Errors
/// [`ApiError::Invalid`] for a bad filter, limit or token.
pub fn handle(
    app: &Arc<AppState>,
    who: &Caller,
    version: ApiVersion,
    query: Option<&str>,
) -> Result<Response<Body>, ApiError> {
    let query = parse_query(query)?;
    let filter = ListFilter::new(&query, version)?;
    let mut all = app.registry.list(who);
    all.retain(|seen| filter.takes(seen));
    let total = all.iter().filter(|seen| seen.paused.is_none()).count();
    let next = filter.page(&mut all);
    let views: Vec<_> = all.iter().map(ListedView::new).collect();
    let mut response = json_response(StatusCode::OK, &views);
    if version == ApiVersion::V2 {
        let headers = response.headers_mut();
        headers.insert("x-total-running", HeaderValue::from(total));
        if let Some(token) = next.and_then(|token| HeaderValue::from_str(&token).ok()) {
            headers.insert("x-next-token", token);
        }
    }
    Ok(response)
}

impl ListFilter {
    fn new(query: &QueryString, version: ApiVersion) -> Result<Self, ApiError> {
        let invalid = |what: &str| ApiError::Invalid(format!("{what} is not valid"));
        let mut metadata = Vec::new();
        for parameter in query.all("metadata") {
            metadata.extend(metadata_filter(parameter).ok_or_else(|| invalid("metadata"))?);
        }
        let (limit, ascending, after) = match version {
            // The old list has no pages.
            ApiVersion::V1 => (usize::MAX, false, None),
            ApiVersion::V2 => {
                let limit = query
                    .get("limit")
                    .map_or(Some(MAX_LIMIT), |text| text.parse().ok());
                let limit = limit.filter(|limit| (1..=MAX_LIMIT).contains(limit));
                let ascending = match query.get("order") {
                    None | Some("" | "desc") => false,
                    Some("asc") => true,
                    Some(_) => return Err(invalid("order")),
                };
                let token = query.get("nextToken").filter(|token| !token.is_empty());
                let place = |token| ListPlace::decode(token, ascending);
                let after = token.map(|t| place(t).ok_or_else(|| invalid("nextToken")));
                let limit = limit.ok_or_else(|| invalid("limit (1 to 100)"))?;
                (limit, ascending, after.transpose()?)
            }
        };
        let started_after = query.get("startedAfter").filter(|text| !text.is_empty());
        let started_after = started_after
            .map(|text| text.parse().map_err(|_| invalid("startedAfter")))
            .transpose()?;
        let (running, paused) = match version {
            // The old list has no paused ones.
            ApiVersion::V1 => (true, false),
            ApiVersion::V2 => states(query).ok_or_else(|| invalid("state"))?,
        };
        Ok(Self {
            metadata,
            running,
            paused,
            ascending,
            template: query
                .get("template")
                .filter(|t| !t.is_empty())
                .map(Into::into),
            started_after,
            limit,
            after,
        })
    }

    fn takes(&self, seen: &SandboxView) -> bool {
        let sandbox = &seen.facts;
        let same = |(key, value): &(String, String)| sandbox.metadata.get(key) == Some(value);
        let origin = &sandbox.origin;
        let template = self.template.as_ref().is_none_or(|wanted| {
            *wanted == origin.template_id || origin.alias.as_ref() == Some(wanted)
        });
        let state = match seen.paused {
            None => self.running,
            Some(_) => self.paused,
        };
        state
            && template
            && self
                .started_after
                .is_none_or(|after| sandbox.started_at > after)
            && self.metadata.iter().all(same)
    }

    /// Sorts, cuts out one page, and gives the token of the next.
    fn page(&self, all: &mut Vec<SandboxView>) -> Option<String> {
        all.sort_by_cached_key(ListPlace::of);
        if !self.ascending {
            all.reverse();
        }
        if let Some(after) = &self.after {
            all.retain(|sandbox| match self.ascending {
                true => ListPlace::of(sandbox) > *after,
                false => ListPlace::of(sandbox) < *after,
            });
        }
        let more = all.len() > self.limit;
        all.truncate(self.limit);
        let last = all.last().filter(|_| more)?;
        Some(ListPlace::of(last).encode(self.ascending))
    }
}

/// Whether running and paused sandboxes are wanted; `None` for a state that does not exist.
fn states(query: &QueryString) -> Option<(bool, bool)> {
    let mut wanted = query
        .all("state")
        .flat_map(|value| value.split(','))
        .filter(|state| !state.is_empty())
        .peekable();
    if wanted.peek().is_none() {
        return Some((true, true));
    }
    wanted.try_fold((false, false), |(running, paused), state| match state {
        "running" => Some((true, paused)),
        "paused" => Some((running, true)),
        _ => None,
    })
}

impl ListPlace {
    fn of(seen: &SandboxView) -> Self {
        Self {
            started: seen.facts.started_at.as_nanosecond(),
            id: seen.facts.id.clone(),
        }
    }

    fn encode(&self, ascending: bool) -> String {
        let order = if ascending { "asc" } else { "desc" };
        URL_SAFE_NO_PAD.encode(format!("{}__{}__{order}", self.started, self.id))
    }

    /// `None` for anything that [`ListPlace::encode`] has not made for this order.
    fn decode(token: &str, ascending: bool) -> Option<Self> {
        if token.len() > 256 {
            return None;
        }
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let mut parts = text.split("__");
        let place = Self {
            started: parts.next()?.parse().ok()?,
            id: parts.next()?.to_owned(),
        };
        let order = parts.next()?;
        let right = order == if ascending { "asc" } else { "desc" };
        (right && parts.next().is_none()).then_some(place)
    }
}

/// Fuzz entry point: tokens and queries of clients.
pub fn fuzz_list(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for ascending in [false, true] {
        if let Some(place) = ListPlace::decode(text, ascending) {
            assert_eq!(
                ListPlace::decode(&place.encode(ascending), ascending),
                Some(place),
                "{text}"
            );
        }
    }
    if let Some(query) = QueryString::parse(text) {
        let _ = ListFilter::new(&query, ApiVersion::V2);
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    fn filter(query: &str) -> Result<ListFilter, u16> {
        let query = QueryString::parse(query).unwrap();
        ListFilter::new(&query, ApiVersion::V2).map_err(|error| error.status().as_u16())
    }

    #[test]
    fn states_come_with_either_comma() {
        let states = |query: &str| {
            let filter = filter(query).unwrap();
            (filter.running, filter.paused)
        };
        assert_eq!(states(""), (true, true));
        assert_eq!(states("state="), (true, true));
        assert_eq!(states("state=running,paused"), (true, true));
        assert_eq!(states("state=running%2Cpaused"), (true, true));
        assert_eq!(states("state=paused&state=running"), (true, true));
        assert_eq!(states("state=paused"), (false, true));
        assert_eq!(states("state=running"), (true, false));
        assert_eq!(filter("state=dead"), Err(400));
    }

    #[test]
    fn bad_limits_orders_and_tokens_are_refused() {
        for bad in [
            "limit=0",
            "limit=101",
            "limit=x",
            "order=up",
            "nextToken=x",
            "startedAfter=x",
        ] {
            assert_eq!(filter(bad), Err(400), "{bad}");
        }
        assert_eq!(filter("limit=100&order=asc").map(|f| f.limit), Ok(100));
    }

    #[test]
    fn a_token_is_for_one_order() {
        let place = ListPlace {
            started: 1_700_000_000_123_456_789,
            id: "iabc".into(),
        };
        let token = place.encode(true);
        assert_eq!(ListPlace::decode(&token, false), None);
        assert_eq!(ListPlace::decode(&token, true), Some(place));
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_list(&bytes);
        }

        #[test]
        fn near_tokens_do_not_panic(text in "[-0-9]{0,40}_{0,3}[a-z0-9]{0,30}_{0,3}(asc|desc)?") {
            fuzz_list(URL_SAFE_NO_PAD.encode(text).as_bytes());
        }
    }
}
