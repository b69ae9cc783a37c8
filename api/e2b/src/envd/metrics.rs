//! `GET /metrics` (api/PROTOCOL.md §7.14).

use crate::Body;
use crate::envd::{fail, http};
use engine::sandbox::Sandbox;
use hyper::Response;
use serde_json::json;

/// Figures of the guest. `cpu_used_pct` is the mean since the guest's boot, over all processors.
pub(super) async fn serve(sandbox: &Sandbox) -> Response<Body> {
    let info = match sandbox.link.sysinfo().await {
        Ok(info) => info,
        Err(error) => {
            let error = fail::connect(sandbox, error).await;
            return http::HttpError::from(error).response();
        }
    };
    let used = info.memory_total.saturating_sub(info.memory_available);
    let budget = u128::from(info.uptime_ns) * u128::from(info.cpus.max(1));
    // Hundredths of a percent, so that no float cast is needed.
    let busy = u128::from(info.cpu_busy_ns) * 10_000 / budget.max(1);
    let busy = f64::from(u32::try_from(busy).unwrap_or(10_000)) / 100.0;
    http::json_response(&json!({
        "ts": info.wall_clock_ns / 1_000_000_000,
        "cpu_count": info.cpus,
        "cpu_used_pct": busy,
        "mem_total": info.memory_total,
        "mem_used": used,
        "mem_cache": info.memory_cached,
        "mem_total_mib": info.memory_total >> 20,
        "mem_used_mib": used >> 20,
        "disk_used": info.disk_total.saturating_sub(info.disk_free),
        "disk_total": info.disk_total,
    }))
}
