//! What the engine counts, told as OpenMetrics text that Prometheus reads.

use crate::error::EngineError;
use control::NetCounters;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};
use snapshot_format::BlobRef;
use std::fmt::Error;
use std::time::Duration;

/// How something came about.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WayLabel {
    way: &'static str,
}

/// How something came about, and what came of it.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    way: &'static str,
    outcome: &'static str,
}

/// What came of something.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// A sandbox's state.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// What is true at one moment, for gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineGauges {
    /// Sandboxes that run.
    pub running: usize,
    /// Sandboxes that are paused.
    pub paused: usize,
    /// Clones that wait for a sandbox.
    pub warm_vms: usize,
    /// Machines that exist in some way and are not warm VMs.
    pub in_use: usize,
    /// The most sandboxes at one time.
    pub max_sandboxes: usize,
}

/// All counters. Counting costs an atomic addition and, by a label, a look into a small table.
#[derive(Debug)]
pub struct EngineMetrics {
    registry: Registry,
    creations: Family<OutcomeLabels, Counter>,
    claims: Family<OutcomeLabels, Counter>,
    fork_children: Counter,
    stored_bytes: Family<WayLabel, Counter>,
    reaps: Counter,
    /// How long what succeeded took, by the verb.
    seconds: Family<WayLabel, Histogram>,
    /// What was done, by the verb and its outcome.
    actions: Family<OutcomeLabels, Counter>,
    network: NetworkMetrics,
    sandboxes: Family<StateLabel, Gauge>,
    warm_vms: Gauge,
    in_use: Gauge,
    max_sandboxes: Gauge,
}

/// From a quarter of a millisecond to two minutes.
fn buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 20))
}

/// A metric in the registry.
fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

impl Default for EngineMetrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("hatchery");
        let stored_bytes = Family::default();
        registry.register_with_unit(
            "stored",
            "What pauses, snapshots and checkpoints have written for themselves",
            Unit::Bytes,
            stored_bytes.clone(),
        );
        let seconds = Family::new_with_constructor(buckets as fn() -> Histogram);
        registry.register_with_unit(
            "action",
            "How long what succeeded took, by the verb",
            Unit::Seconds,
            seconds.clone(),
        );
        let mut metric = |name, help| register(&mut registry, name, help);
        let creations = metric(
            "creations",
            "Sandboxes that were asked for, by the way they came about and the outcome",
        );
        let claims = metric(
            "claims",
            "Clones that were claimed, made ahead (warm) or on the spot (built)",
        );
        let actions = metric(
            "actions",
            "What was done to sandboxes, by the verb and its outcome",
        );
        let mut count = |name, help| register(&mut registry, name, help);
        let fork_children = count("fork_children", "Sandboxes that forks have made");
        let reaps = count(
            "reaps",
            "Machines of sandboxes that have ended and are reaped",
        );
        let mut gauge = |name, help| register(&mut registry, name, help);
        let warm_vms = gauge("warm_vms", "Clones that wait for a sandbox");
        let in_use = gauge(
            "machines_in_use",
            "Machines being made, running or being torn down, warm VMs not among them",
        );
        let max_sandboxes = gauge(
            "max_sandboxes",
            "The most sandboxes at one time (limits.max_sandboxes)",
        );
        Self {
            creations,
            claims,
            fork_children,
            stored_bytes,
            network: NetworkMetrics::new(&mut registry),
            reaps,
            seconds,
            actions,
            sandboxes: register(
                &mut registry,
                "sandboxes",
                "Sandboxes that there are, by their state",
            ),
            warm_vms,
            in_use,
            max_sandboxes,
            registry,
        }
    }
}

/// What is counted of sandboxes' networks.
#[derive(Debug)]
struct NetworkMetrics {
    bytes: Family<WayLabel, Counter>,
    flows: Family<OutcomeLabel, Counter>,
    processes: Family<OutcomeLabel, Counter>,
}

impl NetworkMetrics {
    fn new(registry: &mut Registry) -> Self {
        let bytes = Family::default();
        let help = "Frames from guests (out) and to them (in)";
        registry.register_with_unit("network", help, Unit::Bytes, bytes.clone());
        Self {
            bytes,
            flows: register(
                registry,
                "network_flows",
                "Flows of sandboxes: opened, denied by policy, refused for want of room, cut by \
                 another policy",
            ),
            processes: register(
                registry,
                "network_processes",
                "Network processes that were started, and that were lost",
            ),
        }
    }
}

impl EngineMetrics {
    /// Everything, as OpenMetrics text.
    ///
    /// # Errors
    /// When it does not encode.
    pub fn text(&self, now: EngineGauges) -> Result<String, Error> {
        let set = |gauge: &Gauge, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        for (state, count) in [("running", now.running), ("paused", now.paused)] {
            set(&self.sandboxes.get_or_create(&StateLabel { state }), count);
        }
        set(&self.warm_vms, now.warm_vms);
        set(&self.in_use, now.in_use);
        set(&self.max_sandboxes, now.max_sandboxes);
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }

    /// A sandbox was created: a clone, at a restore point (`image`), or booted.
    pub(crate) fn created(&self, way: &'static str, time: Duration) {
        self.creation(way, "ok");
        self.took("create", time);
    }

    /// A sandbox was not created, for want of room or because it failed.
    pub(crate) fn creation_failed(&self, error: &EngineError) {
        let outcome = match error {
            EngineError::TooManySandboxes { .. }
            | EngineError::LimitReached(_)
            | EngineError::NoMemory { .. }
            | EngineError::NoDisk { .. } => "refused",
            EngineError::ShuttingDown => "closing",
            _ => "failed",
        };
        self.creation("none", outcome);
    }

    fn creation(&self, way: &'static str, outcome: &'static str) {
        let labels = OutcomeLabels { way, outcome };
        self.creations.get_or_create(&labels).inc();
    }

    /// A clone that was made ahead, or on the spot, became a sandbox, or did not.
    pub(crate) fn claimed(&self, ahead: bool, became: bool) {
        let labels = OutcomeLabels {
            way: if ahead { "warm" } else { "built" },
            outcome: if became { "ok" } else { "failed" },
        };
        self.claims.get_or_create(&labels).inc();
    }

    /// A fork that was to make so many children has made some of them; it is good if that is all.
    pub(crate) fn forked(&self, wanted: usize, made: usize, time: Duration) {
        self.fork_children.inc_by(made as u64);
        self.done("fork", made == wanted, time);
    }

    /// A sandbox was reset: in place or with another machine; `None`: it was not.
    pub(crate) fn reset(&self, way: Option<&'static str>, time: Duration) {
        match way {
            Some(way) => {
                let labels = OutcomeLabels {
                    way: "reset",
                    outcome: way,
                };
                self.actions.get_or_create(&labels).inc();
                self.took("reset", time);
            }
            None => self.done("reset", false, time),
        }
    }

    /// Something was done to a sandbox, or was not.
    pub(crate) fn done(&self, verb: &'static str, good: bool, time: Duration) {
        let labels = OutcomeLabels {
            way: verb,
            outcome: if good { "ok" } else { "failed" },
        };
        self.actions.get_or_create(&labels).inc();
        if good {
            self.took(verb, time);
        }
    }

    /// These blobs were stored by a verb.
    pub(crate) fn stored(&self, verb: &'static str, blobs: &[BlobRef]) {
        let bytes = blobs.iter().map(|blob| blob.size).sum();
        let labels = WayLabel { way: verb };
        self.stored_bytes.get_or_create(&labels).inc_by(bytes);
    }

    /// A sandbox's machine is reaped.
    pub(crate) fn reaped(&self) {
        self.reaps.inc();
    }

    /// A network process was started, or ended before its machine.
    pub(crate) fn network_process(&self, outcome: &'static str) {
        let labels = OutcomeLabel { outcome };
        self.network.processes.get_or_create(&labels).inc();
    }

    /// What a network process has counted between two of its reports.
    pub(crate) fn network_counted(&self, before: &NetCounters, now: &NetCounters) {
        let count = |counter: &Counter, of: fn(&NetCounters) -> u64| {
            counter.inc_by(of(now).saturating_sub(of(before)));
        };
        let bytes = |way| self.network.bytes.get_or_create_owned(&WayLabel { way });
        count(&bytes("out"), |c| c.tx_bytes);
        count(&bytes("in"), |c| c.rx_bytes);
        let flows = |outcome| {
            let labels = OutcomeLabel { outcome };
            self.network.flows.get_or_create_owned(&labels)
        };
        count(&flows("opened"), |c| c.flows_opened);
        count(&flows("denied"), |c| c.denied);
        count(&flows("refused"), |c| c.flows_refused);
        count(&flows("cut"), |c| c.flows_cut);
    }

    fn took(&self, verb: &'static str, time: Duration) {
        let labels = WayLabel { way: verb };
        self.seconds
            .get_or_create(&labels)
            .observe(time.as_secs_f64());
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_was_counted_is_told() {
        let metrics = EngineMetrics::default();
        metrics.created("clone", Duration::from_micros(900));
        metrics.created("clone", Duration::from_micros(1100));
        metrics.creation_failed(&EngineError::TooManySandboxes { max: 1 });
        metrics.claimed(true, true);
        metrics.forked(3, 3, Duration::from_millis(2));
        metrics.reset(Some("in_place"), Duration::from_millis(1));
        metrics.done("pause", false, Duration::from_millis(1));
        metrics.reaped();
        metrics.network_process("started");
        let counters = |tx_bytes, denied| NetCounters {
            tx_bytes,
            denied,
            ..NetCounters::default()
        };
        metrics.network_counted(&counters(0, 0), &counters(700, 1));
        metrics.network_counted(&counters(700, 1), &counters(1000, 3));
        let now = EngineGauges {
            running: 2,
            warm_vms: 5,
            ..EngineGauges::default()
        };
        let text = metrics.text(now).unwrap();
        for line in [
            "hatchery_creations_total{way=\"clone\",outcome=\"ok\"} 2",
            "hatchery_creations_total{way=\"none\",outcome=\"refused\"} 1",
            "hatchery_claims_total{way=\"warm\",outcome=\"ok\"} 1",
            "hatchery_fork_children_total 3",
            "hatchery_actions_total{way=\"reset\",outcome=\"in_place\"} 1",
            "hatchery_actions_total{way=\"pause\",outcome=\"failed\"} 1",
            "hatchery_action_seconds_count{way=\"create\"} 2",
            "hatchery_reaps_total 1",
            "hatchery_network_bytes_total{way=\"out\"} 1000",
            "hatchery_network_flows_total{outcome=\"denied\"} 3",
            "hatchery_network_processes_total{outcome=\"started\"} 1",
            "hatchery_sandboxes{state=\"running\"} 2",
            "hatchery_warm_vms 5",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
