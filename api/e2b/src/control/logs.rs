//! `GET /sandboxes/{id}/logs`, `GET /v2/sandboxes/{id}/logs` (api/PROTOCOL.md §4.12).

use crate::Body;
use crate::error::{ApiError, json_response};
use crate::route::ApiVersion;
use crate::state::{AppState, parse_query};
use engine::owner::Caller;
use engine::sandbox_log::{LogEntry, LogLevel};
use hyper::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Most entries of one answer, and the default.
const MAX_LIMIT: usize = 1000;

/// Which entries are asked for.
#[derive(Debug)]
struct LogFilter {
    from: Option<Timestamp>,
    backward: bool,
    least: LogLevel,
    search: String,
    limit: usize,
}

/// What happened to a sandbox that its user should know, as refusals of its network; of a paused
/// one nothing.
///
/// # Errors
/// [`engine::error::EngineError::SandboxNotFound`], [`ApiError::Invalid`].
pub fn handle(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
    version: ApiVersion,
    query: Option<&str>,
) -> Result<Response<Body>, ApiError> {
    let seen = app.look(who, id)?;
    let filter = LogFilter::new(query, version)?;
    let entries = match seen.paused {
        Some(_) => Vec::new(),
        None => app.sandbox(who, id)?.log.entries(),
    };
    let taken = filter.take(entries);
    let structured: Vec<_> = taken.iter().map(structured).collect();
    let answer = match version {
        ApiVersion::V1 => {
            let line =
                |entry: &LogEntry| json!({"timestamp": entry.at.to_string(), "line": line(entry)});
            let lines: Vec<_> = taken.iter().map(line).collect();
            json!({ "logs": lines, "logEntries": structured })
        }
        ApiVersion::V2 => json!({ "logs": structured }),
    };
    Ok(json_response(StatusCode::OK, &answer))
}

impl LogFilter {
    fn new(query: Option<&str>, version: ApiVersion) -> Result<Self, ApiError> {
        let invalid = |what: &str| ApiError::Invalid(format!("{what} is not valid"));
        let query = parse_query(query)?;
        let from = match version {
            ApiVersion::V1 => "start",
            ApiVersion::V2 => "cursor",
        };
        let milliseconds = |text: &str| {
            let value = text.parse().ok().map(Timestamp::from_millisecond);
            value.and_then(Result::ok).ok_or_else(|| invalid(from))
        };
        let limit = |text: &str| match text.parse() {
            Ok(limit) if limit <= MAX_LIMIT => Ok(limit),
            _ => Err(invalid("limit")),
        };
        Ok(Self {
            from: query.get(from).map(milliseconds).transpose()?,
            backward: match query.get("direction") {
                None | Some("forward") => false,
                Some("backward") => true,
                Some(_) => return Err(invalid("direction")),
            },
            least: match query.get("level") {
                None => LogLevel::Debug,
                Some(word) => level_of(word).ok_or_else(|| invalid("level"))?,
            },
            search: query.get("search").unwrap_or_default().to_owned(),
            limit: query
                .get("limit")
                .map(limit)
                .transpose()?
                .unwrap_or(MAX_LIMIT),
        })
    }

    fn take(&self, mut entries: Vec<LogEntry>) -> Vec<LogEntry> {
        entries.retain(|entry| {
            let in_time = self.from.is_none_or(|from| match self.backward {
                true => entry.at <= from,
                false => entry.at >= from,
            });
            in_time && entry.level >= self.least && line(entry).contains(&self.search)
        });
        if self.backward {
            entries.reverse();
        }
        entries.truncate(self.limit);
        entries
    }
}

const LEVELS: [(&str, LogLevel); 4] = [
    ("debug", LogLevel::Debug),
    ("info", LogLevel::Info),
    ("warn", LogLevel::Warn),
    ("error", LogLevel::Error),
];

fn level_of(word: &str) -> Option<LogLevel> {
    LEVELS
        .iter()
        .find(|(known, _)| *known == word)
        .map(|(_, level)| *level)
}

fn level_name(level: LogLevel) -> &'static str {
    LEVELS
        .iter()
        .find(|(_, known)| *known == level)
        .map_or("info", |(name, _)| name)
}

/// An entry in one line.
fn line(entry: &LogEntry) -> String {
    let fields = entry
        .fields
        .iter()
        .map(|(name, value)| format!(" {name}={value}"));
    format!("{}{}", entry.message, fields.collect::<String>())
}

fn structured(entry: &LogEntry) -> Value {
    let fields: Map<_, _> = entry
        .fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str())))
        .collect();
    json!({
        "timestamp": entry.at.to_string(),
        "level": level_name(entry.level),
        "message": entry.message,
        "fields": fields,
    })
}

#[cfg(test)]
mod test {
    use super::*;

    fn entry(second: i64, level: LogLevel, value: &str) -> LogEntry {
        LogEntry {
            at: Timestamp::from_second(second).unwrap(),
            level,
            message: "denied",
            fields: vec![("to", value.into())],
        }
    }

    fn taken(query: &str) -> Vec<String> {
        let all = vec![
            entry(1, LogLevel::Info, "a"),
            entry(2, LogLevel::Warn, "b"),
            entry(3, LogLevel::Error, "ab"),
        ];
        let filter = LogFilter::new(Some(query), ApiVersion::V2).unwrap();
        filter
            .take(all)
            .into_iter()
            .map(|entry| entry.fields[0].1.clone())
            .collect()
    }

    #[test]
    fn entries_are_chosen_by_time_level_and_words() {
        assert_eq!(taken(""), ["a", "b", "ab"]);
        assert_eq!(taken("cursor=2000&limit=1"), ["b"]);
        assert_eq!(taken("direction=backward&cursor=2000"), ["b", "a"]);
        assert_eq!(taken("level=warn"), ["b", "ab"]);
        assert_eq!(taken("search=to=a"), ["a", "ab"]);
        assert_eq!(line(&entry(1, LogLevel::Info, "a")), "denied to=a");
        for wrong in [
            "limit=x",
            "limit=1001",
            "level=loud",
            "direction=up",
            "cursor=now",
        ] {
            LogFilter::new(Some(wrong), ApiVersion::V2).unwrap_err();
        }
    }
}
