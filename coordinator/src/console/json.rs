//! Messages as JSON: the fields that `lockstep --output json` has. CSNs are texts.

use lockstep_core::Csn;
use lockstep_proto::v1;
use lockstep_proto::v1::plan_request::Order as Ordered;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What a person may order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Order {
    /// Finish a prepared branch by hand.
    Resolve { txid: String, participant: String, commit: bool },
    /// Give up a decided write at one store.
    Skip { txid: String, participant: String },
    /// Take damage off the record.
    Forget { txid: String, participant: String },
    /// Go on without a store's evidence.
    Waive { participant: String },
    /// Do without a store for ever.
    Remove { participant: String },
    /// Take a log that has lost records back into use.
    LeaveSafeMode,
}

impl Order {
    /// What has to be typed for it, as the command line asks for it.
    pub(super) fn word(&self) -> &str {
        match self {
            Order::Resolve { txid, .. } | Order::Skip { txid, .. } | Order::Forget { txid, .. } => txid,
            Order::Waive { participant } | Order::Remove { participant } => participant,
            Order::LeaveSafeMode => "leave safe mode",
        }
    }

    /// With who gives it, and why.
    pub(super) fn signed(self, operator: String, reason: String) -> Ordered {
        match self {
            Order::Resolve { txid, participant, commit } => {
                Ordered::Resolve(v1::ResolveRequest { txid, participant, commit, operator, reason })
            }
            Order::Skip { txid, participant } => Ordered::Skip(v1::SkipRequest { txid, participant, operator, reason }),
            Order::Forget { txid, participant } => Ordered::ForgetDamage(v1::ForgetDamageRequest { txid, participant, operator, reason }),
            Order::Waive { participant } => Ordered::Waive(v1::WaiveRequest { participant, operator, reason }),
            Order::Remove { participant } => Ordered::RemoveParticipant(v1::RemoveParticipantRequest { participant, operator, reason }),
            Order::LeaveSafeMode => Ordered::LeaveSafeMode(v1::LeaveSafeModeRequest { operator, reason }),
        }
    }

    fn of(request: v1::PlanRequest) -> Option<Order> {
        Some(match request.order? {
            Ordered::Resolve(v1::ResolveRequest { txid, participant, commit, .. }) => Order::Resolve { txid, participant, commit },
            Ordered::Skip(v1::SkipRequest { txid, participant, .. }) => Order::Skip { txid, participant },
            Ordered::ForgetDamage(v1::ForgetDamageRequest { txid, participant, .. }) => Order::Forget { txid, participant },
            Ordered::Waive(v1::WaiveRequest { participant, .. }) => Order::Waive { participant },
            Ordered::RemoveParticipant(v1::RemoveParticipantRequest { participant, .. }) => Order::Remove { participant },
            Ordered::LeaveSafeMode(_) => Order::LeaveSafeMode,
        })
    }
}

pub(super) fn summary(summary: v1::TransactionSummary) -> Value {
    json!({
        "txid": summary.txid,
        "state": summary.state,
        "csn": csn(summary.csn),
        "age_ms": summary.age_ms,
        "participants": summary.participants,
        "waiting_for": summary.waiting_for,
        "key": summary.key,
        "attempt": summary.attempt,
    })
}

pub(super) fn detail(detail: v1::TransactionDetail) -> Value {
    let branch = |branch: v1::BranchDetail| {
        json!({
            "participant": branch.participant,
            "state": branch.state,
            "vote": branch.vote,
            "keys": branch.keys,
            "note": branch.note,
        })
    };
    let moment = |moment: v1::Moment| {
        json!({
            "at_ms": moment.at_ms,
            "sentence": moment.sentence,
            "participant": moment.participant,
            "source": moment.source,
        })
    };
    json!({
        "transaction": detail.summary.map(summary),
        "source": detail.source,
        "branches": detail.branches.into_iter().map(branch).collect::<Vec<_>>(),
        "timeline": detail.timeline.into_iter().map(moment).collect::<Vec<_>>(),
    })
}

pub(super) fn explanation(explanation: v1::Explanation) -> Value {
    let facts = |facts: Vec<v1::Fact>| -> Vec<Value> {
        let fact = |fact: v1::Fact| json!({ "sentence": fact.sentence, "source": fact.source, "age_ms": fact.age_ms });
        facts.into_iter().map(fact).collect()
    };
    json!({
        "txid": explanation.txid,
        "state": explanation.state,
        "csn": csn(explanation.csn),
        "verdict": explanation.verdict,
        "attention": explanation.attention,
        "facts": facts(explanation.facts),
        "ahead": facts(explanation.ahead),
        "choices": explanation.choices.into_iter().map(choice).collect::<Vec<_>>(),
    })
}

pub(super) fn choice(choice: v1::Choice) -> Value {
    let harm = |harm: v1::Harm| json!({ "participant": harm.participant, "sentence": harm.sentence, "keys": harm.keys });
    json!({
        "command": choice.command,
        "effect": choice.effect,
        "harms": choice.harms.into_iter().map(harm).collect::<Vec<_>>(),
        "refused": choice.refused,
        "order": choice.order.and_then(Order::of),
    })
}

pub(super) fn participant(store: v1::ParticipantStatus) -> Value {
    json!({
        "name": store.name,
        "id": store.id,
        "type": store.r#type,
        "kind": store.kind,
        "session": store.session,
        "why": store.why,
        "session_ms": store.session_ms,
        "applied_csn": csn(store.applied_csn),
        "durable_csn": csn(store.durable_csn),
        "reported_ms": store.reported_ms,
        "lag": store.lag,
        "lag_ms": store.lag_ms,
        "stuck": store.stuck,
        "prepared": store.prepared,
    })
}

pub(super) fn damage(damage: v1::DamageEntry) -> Value {
    let (means, mend) = lockstep_proto::damage::meaning(&damage.kind);
    json!({
        "txid": damage.txid,
        "csn": csn(damage.csn),
        "participant": damage.participant,
        "kind": damage.kind,
        "means": means,
        "mend": mend,
        "keys": damage.keys,
        "operator": damage.operator,
        "reason": damage.reason,
        "at_ms": damage.at_ms,
    })
}

pub(super) fn finding(finding: v1::Finding) -> Value {
    json!({ "level": finding.level, "subject": finding.subject, "sentence": finding.sentence, "remedy": finding.remedy })
}

/// None is no CSN.
fn csn(raw: u64) -> Option<String> {
    (raw > 0).then(|| Csn::from_u64(raw)).flatten().map(|csn| csn.to_string())
}
