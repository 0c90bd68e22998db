//! What operators see of the machine: `lockstep_core`'s state in the words of `admin.proto`.

use crate::engine_handle::Registry;
use crate::log::Space;
use lockstep_core::follower::{Follower, Session};
use lockstep_core::outcomes::{Fate, Known};
use lockstep_core::transaction::{Branch, BranchState, State, Transaction};
use lockstep_core::{Coordinator, DamageKind, Entry, Kind, Phase, Record, Time, Txid, Vote};
use lockstep_proto::v1;
use serde_json::json;
use std::time::Duration;

/// Transactions in one list, at most.
const LIST_MAX: usize = 10_000;

/// A look at one moment.
pub struct View<'a> {
    /// The machine.
    pub machine: &'a Coordinator,
    /// Names.
    pub registry: &'a Registry,
    /// The moment.
    pub now: Time,
    /// The log's space.
    pub space: Space,
    /// Forces of the log since the start.
    pub forces: u64,
    /// Since the process began.
    pub uptime: Duration,
    /// How long it took to serve.
    pub serving_after: Option<Duration>,
    /// How long it took until everything decided before was applied.
    pub mended_after: Option<Duration>,
    /// Whether it is stopping.
    pub stopping: bool,
}

impl View<'_> {
    /// One screen.
    pub fn status(&self) -> v1::StatusReply {
        let status = self.machine.status();
        let (phase, why) = self.phase();
        v1::StatusReply {
            phase,
            why,
            coord_id: status.owner.coord_id.to_string(),
            log_id: status.log_id.to_string(),
            epoch: status.owner.epoch.0,
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_ms: millis(self.uptime),
            in_doubt: status.committing as u64,
            oldest_in_doubt_ms: status.oldest.map_or(0, |at| self.age(at)),
            active: status.open as u64,
            committed: status.counts.committed,
            aborted: status.counts.aborted,
            forces: self.forces,
            outcomes_kept: status.outcomes as u64,
            floor: Some(v1::Position { epoch: status.floor.epoch.0, n: status.floor.n }),
            last_csn: status.last_csn.to_u64(),
            log_bytes: self.space.used,
            log_free_bytes: self.space.free,
            damage: status.damage as u64,
            participants: self.participants().participants,
            serving_after_ms: self.serving_after.map_or(0, millis),
            mended_after_ms: self.mended_after.map_or(0, millis),
            last_lsn: status.last_lsn.0,
        }
    }

    /// Every participant that the log knows.
    pub fn participants(&self) -> v1::ListParticipantsReply {
        v1::ListParticipantsReply { participants: self.machine.followers().iter().map(|follower| self.participant(follower)).collect() }
    }

    /// Transactions by state.
    pub fn transactions(&self, request: &v1::ListTransactionsRequest) -> v1::ListTransactionsReply {
        let limit = if request.limit == 0 { LIST_MAX } else { (request.limit as usize).min(LIST_MAX) };
        let wanted = |summary: &v1::TransactionSummary| {
            (request.states.is_empty() || request.states.contains(&summary.state))
                && (request.participant.is_empty() || summary.participants.contains(&request.participant))
                && summary.age_ms >= request.older_than_ms
        };
        let mut live: Vec<_> = self.machine.transactions().collect();
        live.sort_by_key(|transaction| transaction.txid.position());
        let mut all: Vec<_> = live.into_iter().map(|transaction| self.live(transaction)).filter(wanted).take(limit + 1).collect();
        if request.states.iter().any(|state| state == "committed" || state == "aborted") {
            let ended = self.machine.all_known().rev().filter(|known| self.machine.transaction(known.txid).is_none());
            all.extend(ended.map(|known| self.ended(known)).filter(wanted).take((limit + 1).saturating_sub(all.len())));
        }
        let truncated = all.len() > limit;
        all.truncate(limit);
        v1::ListTransactionsReply { transactions: all, truncated }
    }

    /// One transaction.
    pub fn transaction(&self, txid: Txid) -> Option<v1::TransactionDetail> {
        if let Some(transaction) = self.machine.transaction(txid) {
            return Some(v1::TransactionDetail {
                summary: Some(self.live(transaction)),
                branches: transaction.branches.iter().map(|branch| self.branch(branch)).collect(),
                explanation: self.explain(transaction),
                source: "memory".into(),
            });
        }
        let known = self.machine.known(txid)?;
        let sentence = match &known.fate {
            Fate::Running => "it is under way".to_string(),
            Fate::Committed(committed) => format!("it is committed, at CSN {}, and every store has applied it", committed.csn),
            Fate::Aborted(aborted) => format!("it is aborted, and nothing of it is anywhere: {}", aborted.refusal),
        };
        let source = match &known.fate {
            Fate::Committed(committed) => committed.lsn.map_or("memory".to_string(), |lsn| format!("memory, and the log's record {lsn}")),
            Fate::Running | Fate::Aborted(_) => "memory".to_string(),
        };
        Some(v1::TransactionDetail { summary: Some(self.ended(known)), branches: Vec::new(), explanation: vec![sentence], source })
    }

    /// Recorded damage.
    pub fn damage(&self) -> v1::ListDamageReply {
        let entry = |damage: &lockstep_core::Damage| v1::DamageEntry {
            txid: damage.txid.to_string(),
            csn: damage.csn.map_or(0, |csn| csn.to_u64()),
            participant: self.name(damage.participant),
            kind: match damage.kind {
                DamageKind::RolledBackByHand => "rolled back by hand",
                DamageKind::CommittedByHand => "committed by hand",
                DamageKind::Hazard => "hazard",
                DamageKind::Skipped => "skipped",
            }
            .into(),
            keys: damage.keys.iter().map(|write| write.key.to_string()).collect(),
            operator: damage.operator.clone().unwrap_or_default(),
            reason: damage.reason.clone(),
            at_ms: damage.at_ms,
        };
        v1::ListDamageReply { damage: self.machine.damage().iter().map(entry).collect() }
    }

    /// What is wrong, and what to do about it.
    pub fn doctor(&self) -> v1::DoctorReply {
        let mut findings = vec![self.examine_phase(), self.examine_space()];
        findings.extend(self.machine.followers().iter().map(|follower| self.examine_participant(follower)));
        let damage = self.machine.damage().len();
        findings.push(match damage {
            0 => finding("ok", "damage", "no damage is recorded".into(), ""),
            n => finding(
                "problem",
                "damage",
                format!("{n} transactions are damaged"),
                "see `lockstep damage list`, mend the stores, then `lockstep damage forget`",
            ),
        });
        v1::DoctorReply { findings }
    }

    fn phase(&self) -> (String, String) {
        match self.machine.phase() {
            _ if self.stopping => ("stopping".into(), "it was told to stop, and finishes what is decided".into()),
            Phase::Starting => ("starting".into(), "its epoch is not durable yet".into()),
            Phase::Serving if self.serving_after.is_none() => ("starting".into(), "its embedded stores are being recovered".into()),
            Phase::Serving => ("serving".into(), String::new()),
            Phase::Safe(why) => ("safe mode".into(), why.clone()),
            Phase::Stopped(why) => ("stopping".into(), why.clone()),
        }
    }

    fn participant(&self, follower: &Follower) -> v1::ParticipantStatus {
        let (session, why) = session_words(follower);
        let oldest = follower.oldest_unapplied();
        v1::ParticipantStatus {
            name: follower.name.clone(),
            id: u32::from(follower.id.0),
            r#type: self.registry.numbered(follower.id).map_or("", |store| store.store_type).into(),
            kind: kind_word(follower.kind).into(),
            session: session.into(),
            why,
            applied_csn: follower.progress.applied.to_u64(),
            durable_csn: follower.progress.durable.to_u64(),
            lag: follower.unapplied() as u64,
            lag_ms: oldest.map_or(0, |(_, item)| self.age(item.since)),
            stuck: u64::from(follower.stuck.is_some()),
            prepared: follower.prepared as u64,
            forces: 0,
        }
    }

    fn live(&self, transaction: &Transaction) -> v1::TransactionSummary {
        let (key, attempt) =
            self.machine.known(transaction.txid).map_or((String::new(), 0), |known| (key_text(&known.key.key), known.key.attempt));
        v1::TransactionSummary {
            txid: transaction.txid.to_string(),
            state: match transaction.state {
                State::Active => "active",
                State::Preparing => "preparing",
                State::Deciding(_) => "deciding",
                State::Committing(_) => "committing",
            }
            .into(),
            csn: transaction.csn().map_or(0, |csn| csn.to_u64()),
            age_ms: self.age(transaction.began),
            participants: transaction.branches.iter().map(|branch| self.name(branch.participant)).collect(),
            waiting_for: self.waiting_for(transaction),
            key,
            attempt,
        }
    }

    fn ended(&self, known: &Known) -> v1::TransactionSummary {
        let (state, csn) = match &known.fate {
            Fate::Running => ("preparing", 0),
            Fate::Committed(committed) => ("committed", committed.csn.to_u64()),
            Fate::Aborted(_) => ("aborted", 0),
        };
        v1::TransactionSummary {
            txid: known.txid.to_string(),
            state: state.into(),
            csn,
            age_ms: self.age(known.since),
            participants: Vec::new(),
            waiting_for: Vec::new(),
            key: key_text(&known.key.key),
            attempt: known.key.attempt,
        }
    }

    fn waiting_for(&self, transaction: &Transaction) -> Vec<String> {
        let waits = |branch: &&Branch| match (&branch.state, transaction.state) {
            (BranchState::Asked(_), State::Preparing) | (BranchState::Following, State::Committing(_)) => true,
            (BranchState::Idle | BranchState::Asked(_) | BranchState::Voted(..) | BranchState::Following | BranchState::Finished, _) => {
                false
            }
        };
        match transaction.state {
            State::Active => vec!["its client".into()],
            State::Deciding(_) => vec!["the decision".into()],
            State::Preparing | State::Committing(_) => {
                transaction.branches.iter().filter(waits).map(|branch| self.name(branch.participant)).collect()
            }
        }
    }

    fn branch(&self, branch: &Branch) -> v1::BranchDetail {
        let (state, vote) = match &branch.state {
            BranchState::Idle => ("not asked yet", ""),
            BranchState::Asked(_) => ("asked for its vote", ""),
            BranchState::Voted(_, vote) => ("voted", vote_word(vote)),
            BranchState::Following => ("not applied yet", "yes"),
            BranchState::Finished => ("applied", "yes"),
        };
        let stuck = self.machine.followers()[branch.participant.0 as usize].stuck.as_ref();
        v1::BranchDetail {
            participant: self.name(branch.participant),
            state: state.into(),
            vote: vote.into(),
            keys: branch.operations.iter().filter_map(|operation| operation.key().map(str::to_string)).collect(),
            note: stuck.map_or(String::new(), |(csn, why)| format!("stuck at CSN {csn}: {why}")),
        }
    }

    fn explain(&self, transaction: &Transaction) -> Vec<String> {
        let waiting = self.waiting_for(transaction).join(", ");
        match transaction.state {
            State::Active => vec![
                "It has begun: its client has its id, and has not asked to commit it.".into(),
                "If that does not come before its deadline it is aborted, and nothing of it is anywhere.".into(),
            ],
            State::Preparing => vec![
                format!("It is not decided: it waits for the vote of {waiting}."),
                "If a vote does not come before its deadline it is aborted, and nothing of it is anywhere.".into(),
            ],
            State::Deciding(csn) => vec![
                format!("All have voted Yes and it has CSN {csn}; the decision is being made durable."),
                "It will be committed; only if the process dies now, the next start finds out whether the record got to the disk.".into(),
            ],
            State::Committing(csn) => {
                let mut sentences = vec![format!("It is committed, at CSN {csn}, for ever. It is not applied at {waiting} yet.")];
                for branch in transaction.branches.iter().filter(|branch| branch.state == BranchState::Following) {
                    let follower = &self.machine.followers()[branch.participant.0 as usize];
                    sentences.push(match (&follower.stuck, session_words(follower)) {
                        (Some((at, why)), _) => format!("`{}` is stuck at CSN {at}: {why}. It is tried again by itself.", follower.name),
                        (None, ("up", _)) => {
                            format!("`{}` is up and {} decisions behind: it will follow by itself.", follower.name, follower.unapplied())
                        }
                        (None, (session, why)) => format!("`{}` is {session} ({why}): it will follow when it is back.", follower.name),
                    });
                }
                sentences.push(
                    "Giving it up at a store (`lockstep skip`) would leave that store without it, for ever, and is recorded as damage."
                        .into(),
                );
                sentences
            }
        }
    }

    fn examine_phase(&self) -> v1::Finding {
        let (phase, why) = self.phase();
        match phase.as_str() {
            "serving" => finding("ok", "coordinator", "it is serving".into(), ""),
            "safe mode" => finding("problem", "coordinator", format!("safe mode: {why}"), "see docs/operations.md, R-LOGLOSS"),
            _ => finding("warning", "coordinator", format!("{phase}: {why}"), "wait, and look again"),
        }
    }

    fn examine_space(&self) -> v1::Finding {
        let Space { used, free } = self.space;
        let mib = |bytes: u64| bytes >> 20;
        let sentence = format!("the decision log holds {} MiB, and its disk has {} MiB free", mib(used), mib(free));
        match mib(free) {
            0..1024 => {
                finding("warning", "log", sentence, "free space on the log's disk: below the reserve new transactions are refused (R-FULL)")
            }
            _ => finding("ok", "log", sentence, ""),
        }
    }

    fn examine_participant(&self, follower: &Follower) -> v1::Finding {
        let (session, why) = session_words(follower);
        let owed = follower.unapplied();
        let subject = format!("store {}", follower.name);
        match (follower.configured, session, &follower.stuck) {
            (false, ..) if owed > 0 => finding(
                "problem",
                &subject,
                format!("it is not configured any more, and {owed} decisions are owed to it"),
                "configure it again until it has followed",
            ),
            (false, ..) => finding("ok", &subject, "it is not configured any more, and nothing is owed to it".into(), ""),
            (true, "up", None) => finding("ok", &subject, format!("it is up, and {owed} decisions behind"), ""),
            (true, "up", Some((csn, why))) => finding(
                "problem",
                &subject,
                format!("it is stuck at CSN {csn}: {why}"),
                "mend what the sentence names; it is tried again by itself",
            ),
            (true, "refused", _) => finding("problem", &subject, why, "see docs/operations.md"),
            (true, _, _) => finding(
                "warning",
                &subject,
                format!("it is {session}; {owed} decisions wait for it"),
                "bring it back; it follows by itself",
            ),
        }
    }

    fn name(&self, participant: lockstep_core::ParticipantId) -> String {
        self.machine.followers()[participant.0 as usize].name.clone()
    }

    fn age(&self, since: Time) -> u64 {
        self.now.0.saturating_sub(since.0) / 1000
    }
}

/// Records for people: payloads by their sizes.
pub fn log_records(entries: Vec<Entry>, request: &v1::DumpLogRequest) -> Vec<v1::LogRecord> {
    let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
    entries.into_iter().filter(|entry| entry.lsn.0 >= request.from_lsn).take(limit).map(|entry| log_record(&entry)).collect()
}

/// One record for people.
pub fn log_record(entry: &Entry) -> v1::LogRecord {
    let (kind, value) = match &entry.record {
        Record::Header { coord_id, log_id } => ("header", json!({"coord_id": coord_id.to_string(), "log_id": log_id.to_string()})),
        Record::Participant { id, name, kind } => ("participant", json!({"id": id.0, "name": name, "kind": kind_word(*kind)})),
        Record::Epoch { epoch, incarnation, at_ms } => {
            ("epoch", json!({"epoch": epoch.0, "incarnation": format!("{incarnation:016x}"), "at_ms": at_ms}))
        }
        Record::Commit(group) => {
            let entries: Vec<_> =
                group.entries.iter().enumerate().map(|(i, e)| commit_entry(e, group.payload.as_ref().map(|p| &p.entries[i]))).collect();
            let groups = group.payload.as_ref().map(|payload| {
                payload.groups.iter().map(|g| json!({"participant": g.participant.0, "redo_bytes": g.redo.len()})).collect::<Vec<_>>()
            });
            ("commit", json!({"transactions": entries, "groups": groups, "payload": group.payload.is_some()}))
        }
        Record::End { txids } => ("end", json!({"txids": txids.iter().map(Txid::to_string).collect::<Vec<_>>()})),
        Record::Acked { participant, csn } => ("acked", json!({"participant": participant.0, "csn": csn.to_string()})),
        Record::Damage(damage) => (
            "damage",
            json!({"txid": damage.txid.to_string(), "participant": damage.participant.0, "kind": format!("{:?}", damage.kind), "reason": damage.reason, "operator": damage.operator, "at_ms": damage.at_ms}),
        ),
        Record::Admin { operator, action, reason, at_ms } => {
            ("admin", json!({"operator": operator, "action": format!("{action:?}"), "reason": reason, "at_ms": at_ms}))
        }
        Record::Leads { participant } => ("leads", json!({"participant": participant.0})),
        Record::Followed { participant, csn } => ("followed", json!({"participant": participant.0, "csn": csn.to_string()})),
        Record::Scanned { participant } => ("scanned", json!({"participant": participant.0})),
        Record::Floor { position } => ("floor", json!({"epoch": position.epoch.0, "n": position.n})),
    };
    v1::LogRecord { lsn: entry.lsn.0, kind: kind.into(), json: value.to_string() }
}

fn commit_entry(entry: &lockstep_core::CommitEntry, payload: Option<&lockstep_core::EntryPayload>) -> serde_json::Value {
    let redos = payload.map(|payload| {
        let redo = |redo: &lockstep_core::BranchRedo| {
            let keys: Vec<_> = redo.keys.iter().map(|write| write.key.to_string()).collect();
            json!({"participant": redo.participant.0, "redo_bytes": redo.redo.len(), "keys": keys})
        };
        payload.redos.iter().map(redo).collect::<Vec<_>>()
    });
    let branches: Vec<_> = entry.branches.iter().map(|participant| participant.0).collect();
    json!({
        "txid": entry.txid.to_string(), "csn": entry.csn.to_string(), "key": key_text(&entry.key.key), "attempt": entry.key.attempt,
        "at_ms": entry.at_ms, "branches": branches, "redos": redos,
    })
}

fn session_words(follower: &Follower) -> (&'static str, String) {
    match &follower.session {
        Session::Down => ("down", "it has no session".into()),
        Session::Welcomed(_) => ("recovering", "it has not told yet what it holds".into()),
        Session::Open(_) => ("up", String::new()),
        Session::Refused(_, why) => ("refused", why.clone()),
    }
}

fn vote_word(vote: &Vote) -> &'static str {
    match vote {
        Vote::Prepared(_) => "yes (prepared)",
        Vote::Redo(..) => "yes (redo)",
        Vote::InGroup(_) => "yes (in a group)",
        Vote::Ready(_) => "yes (ready to lead)",
        Vote::ReadOnly(_) => "read-only",
        Vote::No(_) => "no",
    }
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Preparing => "preparing",
        Kind::Redo => "redo",
        Kind::Serial => "serial",
        Kind::Leader => "leader",
    }
}

fn key_text(key: &[u8]) -> String {
    match (<[u8; 16]>::try_from(key), std::str::from_utf8(key)) {
        (_, Ok(text)) if text.chars().all(|c| !c.is_control()) => text.to_string(),
        (Ok(bytes), _) => uuid::Uuid::from_bytes(bytes).to_string(),
        (Err(_), _) => key.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn finding(level: &str, subject: &str, sentence: String, remedy: &str) -> v1::Finding {
    v1::Finding { level: level.into(), subject: subject.into(), sentence, remedy: remedy.into() }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
