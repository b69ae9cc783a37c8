//! `GET /sandboxes/{id}/metrics` and `GET /sandboxes/metrics` (api/PROTOCOL.md §4.11).
//!
//! Nothing is sampled while nobody asks: the answer is one measurement, of now.

use crate::Body;
use crate::control::view::time;
use crate::error::{ApiError, json_response};
use crate::state::{AppState, parse_query};
use engine::owner::Caller;
use engine::sandbox::Sandbox;
use hyper::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use wire::Sysinfo;

/// Over how long processor use is measured.
const SPAN: Duration = Duration::from_millis(100);
/// How long a guest may take to answer; after that it counts as having no measurements.
const BOUND: Duration = Duration::from_secs(5);
/// Most sandboxes of one question.
const MAX_IDS: usize = 100;

/// Measurements of one sandbox: one, or none if it does not run or its guest does not answer.
///
/// # Errors
/// [`engine::error::EngineError::SandboxNotFound`], [`ApiError::Invalid`].
pub async fn of_one(
    app: &Arc<AppState>,
    who: &Caller,
    id: &str,
    query: Option<&str>,
) -> Result<Response<Body>, ApiError> {
    let query = parse_query(query)?;
    let sandbox = match app.sandbox(who, id) {
        Err(_) if app.registry.look(who, id).is_some() => None,
        other => Some(other?),
    };
    let now = Timestamp::now().as_second();
    let bound = |key| query.get(key).and_then(|text| text.parse::<i64>().ok());
    let wanted = bound("end").is_none_or(|end| now <= end);
    let sample = match sandbox.filter(|_| wanted) {
        Some(sandbox) => measure(&sandbox).await,
        None => None,
    };
    Ok(json_response(
        StatusCode::OK,
        &sample.into_iter().collect::<Vec<_>>(),
    ))
}

/// Measurements of many sandboxes, by id; those that are not running are left out.
///
/// # Errors
/// [`ApiError::Invalid`] for more than a hundred ids.
pub async fn of_many(
    app: &Arc<AppState>,
    who: &Caller,
    query: Option<&str>,
) -> Result<Response<Body>, ApiError> {
    let query = parse_query(query)?;
    let ids: Vec<&str> = query
        .all("sandbox_ids")
        .flat_map(|ids| ids.split(','))
        .collect();
    if ids.len() > MAX_IDS {
        return Err(ApiError::Invalid(format!(
            "{} sandbox_ids are over {MAX_IDS}",
            ids.len()
        )));
    }
    let running = ids.iter().filter_map(|id| app.sandbox(who, id).ok());
    let samples = running.map(|sandbox| async move {
        let sample = measure(&sandbox).await?;
        Some((sandbox.id.clone(), sample))
    });
    let samples = futures_util::future::join_all(samples).await;
    let samples: Map<String, Value> = samples.into_iter().flatten().collect();
    Ok(json_response(
        StatusCode::OK,
        &json!({ "sandboxes": samples }),
    ))
}

async fn measure(sandbox: &Sandbox) -> Option<Value> {
    let two = async {
        let before = sandbox.link.sysinfo().await.ok()?;
        tokio::time::sleep(SPAN).await;
        Some((before, sandbox.link.sysinfo().await.ok()?))
    };
    let (before, after) = tokio::time::timeout(BOUND, two).await.ok()??;
    let now = Timestamp::now();
    Some(json!({
        "timestamp": time(now),
        "timestampUnix": now.as_second(),
        "cpuCount": after.cpus,
        "cpuUsedPct": percent(&before, &after),
        "memUsed": after.memory_total.saturating_sub(after.memory_available),
        "memTotal": after.memory_total,
        "memCache": after.memory_cached,
        "diskUsed": after.disk_total.saturating_sub(after.disk_free),
        "diskTotal": after.disk_total,
    }))
}

/// Use of all processors together, 0 to 100, to a tenth.
fn percent(before: &Sysinfo, after: &Sysinfo) -> f64 {
    let busy = after.cpu_busy_ns.saturating_sub(before.cpu_busy_ns);
    let time = after.uptime_ns.saturating_sub(before.uptime_ns);
    let all = u128::from(time) * u128::from(after.cpus.max(1));
    let tenths = (u128::from(busy) * 1000)
        .checked_div(all)
        .unwrap_or(0)
        .min(1000);
    u16::try_from(tenths).map_or(0.0, |tenths| f64::from(tenths) / 10.0)
}

#[cfg(test)]
mod test {
    use super::*;

    fn sample(busy: u64, uptime: u64) -> Sysinfo {
        Sysinfo {
            memory_total: 0,
            memory_available: 0,
            memory_cached: 0,
            cpus: 2,
            cpu_busy_ns: busy,
            uptime_ns: uptime,
            wall_clock_ns: 0,
            disk_total: 0,
            disk_free: 0,
            user_tasks: 0,
        }
    }

    #[test]
    fn processor_use_is_of_all_processors_and_bounded() {
        let used =
            |busy: u64, time: u64| percent(&sample(1000, 5000), &sample(1000 + busy, 5000 + time));
        assert!((used(100, 100) - 50.0).abs() < 0.05);
        assert!(
            (used(400, 100) - 100.0).abs() < 0.05,
            "counters may run ahead of the clock"
        );
        assert!(used(1, 0).abs() < 0.05);
    }
}
