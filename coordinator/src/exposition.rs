//! Everything that is measured, in the text format that Prometheus reads (OpenMetrics 1.0). `ops/` has alert rules and a dashboard; a
//! test holds both to the names made here.

use crate::meters::Meters;
use lockstep_proto::v1::{ConnectionPool, ParticipantStatus, StatusReply};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

/// The content type of [`text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics, as of this status.
pub fn text(status: &StatusReply, meters: &Meters) -> String {
    let mut registry = Registry::with_prefix("lockstep");
    daemon(&mut registry, status);
    transactions(&mut registry, status);
    log(&mut registry, status);
    stores(&mut registry, &status.participants);
    pools(&mut registry, &status.participants);
    measured(&mut registry, meters);
    let mut text = String::new();
    encode(&mut text, &registry).expect("a String takes everything");
    text
}

/// A gauge of whole numbers, and one of seconds.
type Number = Gauge<i64>;
type Seconds = Gauge<f64, AtomicU64>;

/// A metric's name, its help, and how it is read.
type Reading<Of, Figure> = (&'static str, &'static str, fn(&Of) -> Figure);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Store {
    store: String,
    r#type: String,
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pool {
    store: String,
    pool: String,
}

fn daemon(registry: &mut Registry, status: &StatusReply) {
    let build = Info::new([("version", status.version.clone())]);
    registry.register("build", "The daemon's version", build);
    let help = "1 while its phase is serving: transactions are taken, unless paused or log_full is 1";
    number(registry, "serving", help, u64::from(status.phase == "serving"));
    number(registry, "paused", "1 while new transactions are refused because a backup's servers are copied", u64::from(status.paused));
    let help = "1 while new transactions are refused because the log's disk has less than log.reserve_bytes left (R-FULL)";
    number(registry, "log_full", help, u64::from(status.log_full));
    number(registry, "safe_mode", "1 while the log is known to have lost records (R-LOGLOSS)", u64::from(status.phase == "safe mode"));
    number(registry, "epoch", "The coordinator's epoch: one more at each start", status.epoch.into());
    seconds(registry, "uptime", "Since the daemon was started", status.uptime_ms);
    seconds(registry, "start_serving", "From this start to serving; 0 while not yet", status.serving_after_ms);
    seconds(
        registry,
        "start_mended",
        "From this start until all that was decided before it was applied; 0 while not yet",
        status.mended_after_ms,
    );
    number(registry, "damage", "Promises broken by hand or lost, until they are forgotten by hand", status.damage);
}

fn transactions(registry: &mut Registry, status: &StatusReply) {
    let ended = Family::<Outcome, Counter>::default();
    ended.get_or_create(&Outcome { outcome: "committed" }).inc_by(status.committed);
    ended.get_or_create(&Outcome { outcome: "aborted" }).inc_by(status.aborted);
    registry.register("transactions", "Transactions decided since the start", ended);
    number(registry, "transactions_open", "Transactions that are not decided yet", status.active);
    number(registry, "transactions_deciding", "Transactions whose decision is being made durable", status.deciding);
    number(registry, "transactions_in_doubt", "Decided transactions that some store has not applied", status.in_doubt);
    let help = "How long ago the oldest of them was decided; by the wall clock where that was before this start";
    seconds(registry, "transactions_in_doubt_oldest", help, status.oldest_in_doubt_ms);
    let help = "Prepared branches of which nobody here can tell the outcome yet: they keep their locks";
    number(registry, "branches_unanswered", help, status.unanswered);
}

fn log(registry: &mut Registry, status: &StatusReply) {
    let forces = Counter::<u64>::default();
    forces.inc_by(status.forces);
    registry.register("log_forces", "Forced writes of the decision log since the start", forces);
    bytes(registry, "log_size", "What the decision log takes on its disk", status.log_bytes);
    bytes(
        registry,
        "log_free",
        "What its disk has left; below log.reserve_bytes new transactions are refused (R-FULL)",
        status.log_free_bytes,
    );
    number(registry, "log_outcomes", "Outcomes kept for clients that ask again (R-KEY)", status.outcomes_kept);
}

fn stores(registry: &mut Registry, stores: &[ParticipantStatus]) {
    let label = |store: &ParticipantStatus| Store { store: store.name.clone(), r#type: store.r#type.clone(), kind: store.kind.clone() };
    let numbers: [Reading<ParticipantStatus, u64>; 4] = [
        ("store_up", "1 while the store's session is up", |store| u64::from(store.session == "up")),
        ("store_lag_transactions", "Decided transactions that it has not applied", |store| store.lag),
        ("store_stuck_transactions", "Those of them that it says it cannot apply now", |store| store.stuck),
        ("store_prepared_branches", "Branches that it holds prepared, as far as it has told", |store| store.prepared),
    ];
    for (name, help, value) in numbers {
        let family = Family::<Store, Number>::default();
        for store in stores {
            family.get_or_create(&label(store)).set(i64::try_from(value(store)).unwrap_or(i64::MAX));
        }
        registry.register(name, help, family);
    }
    let (lag, prepared) = (Family::<Store, Seconds>::default(), Family::<Store, Seconds>::default());
    let forces = Family::<Store, Counter>::default();
    for store in stores {
        prepared.get_or_create(&label(store)).set(store.prepared_ms as f64 / 1000.0);
        lag.get_or_create(&label(store)).set(store.lag_ms as f64 / 1000.0);
        forces.get_or_create(&label(store)).inc_by(store.forces);
    }
    let help = "Age of the oldest decided transaction that it has not applied, as far as this start knows";
    registry.register_with_unit("store_lag", help, Unit::Seconds, lag);
    let help = "Age of the oldest branch that it holds prepared, at least: it keeps its locks, and in PostgreSQL holds vacuum back";
    registry.register_with_unit("store_prepared_age", help, Unit::Seconds, prepared);
    registry.register("store_forces", "Forced writes of an embedded store since it was opened", forces);
}

fn pools(registry: &mut Registry, stores: &[ParticipantStatus]) {
    let numbers: [Reading<ConnectionPool, u32>; 4] = [
        ("store_pool_connections_max", "Connections that a pool may open to its store", |pool| pool.limit),
        ("store_pool_connections", "Connections that are open", |pool| pool.open),
        ("store_pool_connections_lent", "Those of them that are lent", |pool| pool.lent),
        ("store_pool_waiting", "Who waits for a connection of the pool", |pool| pool.waiting),
    ];
    for (name, help, value) in numbers {
        let family = Family::<Pool, Number>::default();
        for (store, pool) in stores.iter().flat_map(|store| store.pools.iter().map(|pool| (store.name.clone(), pool))) {
            family.get_or_create(&Pool { store, pool: pool.name.clone() }).set(value(pool).into());
        }
        registry.register(name, help, family);
    }
}

fn measured(registry: &mut Registry, meters: &Meters) {
    let Meters { commits, forces, group, calls, spans, recent: _ } = meters.clone();
    registry.register_with_unit("commit", "From a commit's request to its answer", Unit::Seconds, commits);
    registry.register_with_unit("log_force", "One force of the decision log", Unit::Seconds, forces);
    registry.register("trace_spans", "Spans that the collector has taken, or that were dropped: it is away, slow, or refuses them", spans);
    registry.register("log_group_records", "Records that one force served", group);
    registry.register_with_unit("store_call", "A call of a store, by its own thread", Unit::Seconds, calls);
}

fn number(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Number::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

fn seconds(registry: &mut Registry, name: &str, help: &str, millis: u64) {
    let gauge = Seconds::default();
    gauge.set(millis as f64 / 1000.0);
    registry.register_with_unit(name, help, Unit::Seconds, gauge);
}

fn bytes(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Number::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register_with_unit(name, help, Unit::Bytes, gauge);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    fn served() -> String {
        let pools = vec![ConnectionPool { name: "branches".into(), limit: 32, open: 8, lent: 5, waiting: 0 }];
        let store =
            ParticipantStatus { name: "db".into(), session: "up".into(), lag: 3, lag_ms: 1_500, pools, ..ParticipantStatus::default() };
        let status = StatusReply {
            phase: "serving".into(),
            committed: 7,
            unanswered: 2,
            paused: true,
            log_full: true,
            participants: vec![store],
            ..StatusReply::default()
        };
        let meters = Meters::default();
        meters.forced(4, Duration::from_millis(2));
        meters.answered(&lockstep_core::Reply::Unknown(String::new()), Duration::from_millis(3));
        meters.calls.get_or_create(&crate::meters::Called { store: "db".into(), call: "prepare" }).observe(0.001);
        text(&status, &meters)
    }

    fn names(text: &str) -> BTreeSet<&str> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.filter(|word| word.starts_with("lockstep_")).collect()
    }

    #[test]
    fn what_is_served_is_what_is_known() {
        let served = served();
        for line in [
            "lockstep_serving 1",
            "lockstep_paused 1",
            "lockstep_log_full 1",
            "lockstep_branches_unanswered 2",
            "lockstep_transactions_total{outcome=\"committed\"} 7",
            "lockstep_store_lag_transactions{store=\"db\",type=\"\",kind=\"\"} 3",
            "lockstep_store_lag_seconds{store=\"db\",type=\"\",kind=\"\"} 1.5",
            "lockstep_store_pool_connections_lent{store=\"db\",pool=\"branches\"} 5",
            "lockstep_log_group_records_sum 4.0",
            "lockstep_log_force_seconds_count 1",
            "lockstep_commit_seconds_count{outcome=\"unknown\"} 1",
            "lockstep_store_call_seconds_count{store=\"db\",call=\"prepare\"} 1",
            "# EOF",
        ] {
            assert!(served.lines().any(|found| found == line), "`{line}` is not among:\n{served}");
        }
    }

    #[test]
    fn alert_rules_and_the_dashboard_use_names_that_are_served() {
        let (served, rules, dashboard) = (served(), include_str!("../../ops/alerts.yml"), include_str!("../../ops/grafana-dashboard.json"));
        serde_json::from_str::<serde_json::Value>(dashboard).expect("the dashboard is JSON");
        for (file, text) in [("alerts.yml", rules), ("grafana-dashboard.json", dashboard)] {
            let (used, served) = (names(text), names(&served));
            assert!(!used.is_empty(), "{file} uses nothing");
            let unknown: Vec<_> = used.difference(&served).collect();
            assert!(unknown.is_empty(), "{file} uses what is not served: {unknown:?}");
        }
    }
}
