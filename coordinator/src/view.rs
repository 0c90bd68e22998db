//! What operators see of the machine: `lockstep_core`'s state in the words of `admin.proto`.

use crate::engine_handle::{Breaks, Registry};
use crate::explanation::remedy;
use crate::log::{self, Space, key_text, kind_word};
use lockstep_core::follower::{Follower, Session};
use lockstep_core::outcomes::{Fate, Known};
use lockstep_core::transaction::{Branch, BranchState, State, Transaction};
use lockstep_core::{Coordinator, DamageKind, Decider, Entry, ParticipantId, Phase, Time, Txid, Vote};
use lockstep_proto::v1;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Transactions in one list, at most.
const LIST_MAX: usize = 10_000;

/// Ages by which what is in doubt is counted, milliseconds.
pub const AGES: [u64; 5] = [1_000, 10_000, 60_000, 600_000, 3_600_000];

/// How things are at one moment.
pub struct Pulse {
    /// One screen.
    pub status: v1::StatusReply,
    /// Transactions whose decision is under way, not applied everywhere, or not known to anybody here: younger than the first of
    /// [`AGES`], than the second, …, older than the last.
    pub ages: [u64; AGES.len() + 1],
}

/// Where a list ended: its three parts come one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cursor {
    /// Among those that this start has no entry of.
    Unanswered(Txid),
    /// Among those that are not ended.
    Live(Txid),
    /// Among those that are, the newest first.
    Ended(Reverse<Txid>),
}

/// A look at one moment.
pub struct View<'a> {
    /// The machine.
    pub machine: &'a Coordinator,
    /// Names.
    pub registry: &'a Registry,
    /// Why stores' last sessions ended.
    pub breaks: &'a Breaks,
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
            deciding: status.deciding as u64,
            unanswered: status.asked as u64,
            log_full: status.log_full,
            paused: status.paused,
        }
    }

    /// Every participant that the log knows.
    pub fn participants(&self) -> v1::ListParticipantsReply {
        // One that was removed is nobody's concern any more, unless the configuration still names it.
        let shown = |follower: &&Follower| !follower.removed || self.registry.numbered(follower.id).is_some();
        v1::ListParticipantsReply {
            participants: self.machine.followers().iter().filter(shown).map(|follower| self.participant(follower)).collect(),
        }
    }

    /// Transactions by state.
    pub fn transactions(&self, request: &v1::ListTransactionsRequest) -> v1::ListTransactionsReply {
        let limit = if request.limit == 0 { LIST_MAX } else { (request.limit as usize).min(LIST_MAX) };
        let wanted = |summary: &v1::TransactionSummary| {
            (request.states.is_empty() || request.states.contains(&summary.state))
                && (request.participant.is_empty() || summary.participants.contains(&request.participant))
                && summary.age_ms >= request.older_than_ms
        };
        let named = |summary: &v1::TransactionSummary| request.key.is_empty() || summary.key == request.key;
        // A malformed cursor is refused before it comes here.
        let after: Option<Cursor> = request.after.parse().ok();
        let unanswered = self.unanswered().filter(|(txid, _)| after.is_none_or(|after| after < Cursor::Unanswered(*txid)));
        let unanswered = unanswered.filter(|(_, summary)| named(summary)).map(|(txid, summary)| (Cursor::Unanswered(txid), summary));
        let live = self.machine.transactions().map(|transaction| (Cursor::Live(transaction.txid), transaction));
        let mut live: Vec<_> = live.filter(|(cursor, _)| after.is_none_or(|after| after < *cursor)).collect();
        live.sort_unstable_by_key(|(cursor, _)| *cursor);
        let live = live.into_iter().map(|(cursor, transaction)| (cursor, transaction, self.live(transaction)));
        let live = live.filter(|(_, transaction, summary)| named(summary) || self.writes_key(transaction, &request.key));
        let live = live.map(|(cursor, _, summary)| (cursor, summary));
        let of_interest = |(_, summary): &(Cursor, v1::TransactionSummary)| wanted(summary);
        let mut all: Vec<_> = unanswered.chain(live).filter(of_interest).take(limit + 1).collect();
        if request.states.iter().any(|state| state == "committed" || state == "aborted") {
            let ended = self.machine.all_known().rev().filter(|known| self.machine.transaction(known.txid).is_none());
            let ended = ended.map(|known| (Cursor::Ended(Reverse(known.txid)), known));
            let ended = ended.filter(|(cursor, _)| after.is_none_or(|after| after < *cursor));
            let ended = ended.map(|(cursor, known)| (cursor, self.ended(known))).filter(|(_, summary)| named(summary));
            all.extend(ended.filter(of_interest).take((limit + 1).saturating_sub(all.len())));
        }
        let truncated = all.len() > limit;
        all.truncate(limit);
        let next = all.last().filter(|_| truncated).map_or(String::new(), |(cursor, _)| cursor.to_string());
        v1::ListTransactionsReply { transactions: all.into_iter().map(|(_, summary)| summary).collect(), truncated, next }
    }

    /// How things are at this moment, in numbers.
    pub fn pulse(&self) -> Pulse {
        let mut ages = [0; AGES.len() + 1];
        let undone = |transaction: &&Transaction| match transaction.state {
            State::Active | State::Preparing => false,
            State::Deciding(_) | State::Committing(_) => true,
        };
        let decided = self.machine.transactions().filter(undone).map(|transaction| self.age(transaction.began));
        for age in decided.chain(self.unanswered().map(|(_, summary)| summary.age_ms)) {
            let older = |limit: &u64| age >= *limit;
            ages[AGES.iter().take_while(|limit| older(limit)).count()] += 1;
        }
        Pulse { status: self.status(), ages }
    }

    /// One transaction.
    pub fn transaction(&self, txid: Txid) -> Option<v1::TransactionDetail> {
        let v1::Explanation { verdict, facts, ahead, .. } = self.explanation(txid);
        let ahead = ahead.into_iter().map(|fact| fact.sentence);
        let (explanation, timeline) = (std::iter::once(verdict).chain(ahead).collect(), self.timeline(txid));
        if let Some(transaction) = self.machine.transaction(txid) {
            return Some(v1::TransactionDetail {
                summary: Some(self.live(transaction)),
                branches: transaction.branches.iter().map(|branch| self.branch(transaction, branch)).collect(),
                explanation,
                source: "memory".into(),
                timeline,
            });
        }
        let summary = self
            .machine
            .known(txid)
            .map(|known| self.ended(known))
            .or_else(|| self.unanswered().find(|(of, _)| *of == txid).map(|(_, summary)| summary))?;
        let source = facts.into_iter().map(|fact| fact.source).next().unwrap_or_else(|| "memory".into());
        Some(v1::TransactionDetail { summary: Some(summary), branches: Vec::new(), explanation, source, timeline })
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

    /// What operators ordered, and were refused, the newest first.
    pub fn audit(&self, request: &v1::ListAuditRequest) -> v1::ListAuditReply {
        let entry = |noted: &&lockstep_core::Noted| {
            let lockstep_core::Audit { who, origin, operator, what, reason, refused, at_ms } = noted.audit.clone();
            v1::AuditEntry { lsn: noted.lsn.0, at_ms, who, origin, operator, reason, what, refused }
        };
        let (all, limit) = (self.machine.audit(), request.limit as usize);
        v1::ListAuditReply { entries: all.iter().take(limit).map(entry).collect(), truncated: all.len() > limit }
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
        let (session, why) = self.session_words(follower);
        let oldest = follower.oldest_unapplied();
        let prepared = self.machine.prepared_at(follower.id);
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
            stuck: follower.stuck.len() as u64,
            prepared: prepared.branches as u64,
            prepared_ms: prepared.since.map_or(0, |since| self.age(since)),
            unanswered: prepared.unanswered as u64,
            forces: 0,
            pools: Vec::new(),
            session_ms: self.age(follower.session_since),
            reported_ms: self.age(follower.progress_at),
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

    /// Transactions that this start has no entry of, with branches that wait for an answer; one for each.
    fn unanswered(&self) -> impl Iterator<Item = (Txid, v1::TransactionSummary)> {
        let mut holders: BTreeMap<Txid, Vec<ParticipantId>> = BTreeMap::new();
        for (holder, txid) in self.machine.asked().filter(|(_, txid)| self.machine.transaction(*txid).is_none()) {
            holders.entry(txid).or_default().push(holder);
        }
        holders.into_iter().map(|(txid, holders)| {
            let since = holders.iter().map(|holder| self.machine.followers()[holder.0 as usize].session_since).min();
            let waiting_for = match txid.decider {
                Decider::Leader(leader) => {
                    self.machine.followers().get(leader.0 as usize).map_or_else(|| leader.to_string(), |f| f.name.clone())
                }
                Decider::Log => "evidence about the log".into(),
            };
            let summary = v1::TransactionSummary {
                txid: txid.to_string(),
                state: "in doubt".into(),
                csn: 0,
                age_ms: since.map_or(0, |since| self.age(since)),
                participants: holders.iter().map(|holder| self.name(*holder)).collect(),
                waiting_for: vec![waiting_for],
                key: String::new(),
                attempt: 0,
            };
            (txid, summary)
        })
    }

    /// Whether it writes the document under this key, as far as that is kept.
    fn writes_key(&self, transaction: &Transaction, key: &str) -> bool {
        transaction.branches.iter().any(|branch| {
            let asked = branch.operations.iter().filter_map(|operation| operation.key());
            let decided = self.machine.writes(branch.participant, transaction.txid).unwrap_or_default();
            asked.chain(decided.iter().map(|write| &*write.key)).any(|written| written == key)
        })
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
            State::Deciding(_) => match transaction.txid.decider {
                Decider::Log => vec!["the log".into()],
                Decider::Leader(leader) => vec![self.name(leader)],
            },
            State::Preparing | State::Committing(_) => {
                transaction.branches.iter().filter(waits).map(|branch| self.name(branch.participant)).collect()
            }
        }
    }

    fn branch(&self, transaction: &Transaction, branch: &Branch) -> v1::BranchDetail {
        let (state, vote) = match &branch.state {
            BranchState::Idle => ("not asked yet", ""),
            BranchState::Asked(_) => ("asked for its vote", ""),
            BranchState::Voted(_, vote) => ("voted", vote_word(vote)),
            BranchState::Following => ("not applied yet", "yes"),
            BranchState::Finished => ("applied", "yes"),
        };
        let follower = &self.machine.followers()[branch.participant.0 as usize];
        let owed = transaction.csn().and_then(|csn| self.machine.owed_item(branch.participant, csn));
        let stuck = owed.and_then(|(at, _)| follower.stuck.get(&at));
        v1::BranchDetail {
            participant: self.name(branch.participant),
            state: state.into(),
            vote: vote.into(),
            keys: self.written(transaction.txid, branch.participant),
            note: stuck.map_or(String::new(), |stuck| format!("stuck: {}", stuck.reason)),
        }
    }

    fn examine_phase(&self) -> v1::Finding {
        let (phase, why) = self.phase();
        match phase.as_str() {
            "serving" => finding("ok", "coordinator", "it is serving".into(), ""),
            "safe mode" => finding("problem", "coordinator", format!("safe mode: {why}"), remedy::of_lost_log()),
            _ => finding("warning", "coordinator", format!("{phase}: {why}"), "wait, and look again"),
        }
    }

    fn examine_space(&self) -> v1::Finding {
        let Space { used, free } = self.space;
        let mib = |bytes: u64| bytes >> 20;
        let sentence = format!("the decision log holds {} MiB, and its disk has {} MiB free", mib(used), mib(free));
        match mib(free) {
            _ if self.machine.status().log_full => finding(
                "problem",
                "log",
                format!("{sentence}: less than the reserve (log.reserve_bytes), so new transactions are refused (R-FULL)"),
                "make room on the log's disk; it goes on by itself",
            ),
            0..1024 => {
                finding("warning", "log", sentence, "free space on the log's disk: below the reserve new transactions are refused (R-FULL)")
            }
            _ => finding("ok", "log", sentence, ""),
        }
    }

    fn examine_participant(&self, follower: &Follower) -> v1::Finding {
        let (session, why) = self.session_words(follower);
        let owed = follower.unapplied();
        let subject = format!("store {}", follower.name);
        if follower.removed {
            return match self.registry.numbered(follower.id) {
                Some(_) => finding(
                    "warning",
                    &subject,
                    "an operator has removed it, and it is still configured".into(),
                    "take it out of the configuration",
                ),
                None => finding("ok", &subject, "an operator has removed it".into(), ""),
            };
        }
        match (follower.configured, session, follower.stuck.first_key_value()) {
            (false, ..) if owed > 0 => finding(
                "problem",
                &subject,
                format!("it is not configured any more, and {owed} decisions are owed to it"),
                "configure it again until it has followed, or give it up: `lockstep participants remove`",
            ),
            (false, ..) => finding("ok", &subject, "it is not configured any more, and nothing is owed to it".into(), ""),
            (true, "up", None) => finding("ok", &subject, format!("it is up, and {owed} decisions behind"), ""),
            (true, "up", Some((csn, stuck))) => finding(
                "problem",
                &subject,
                format!("{} decisions are stuck there, the first at CSN {csn}: {}", follower.stuck.len(), stuck.reason),
                "mend what the sentence names; it is tried again by itself",
            ),
            (true, "refused", _) => {
                let remedy = remedy::of_refused(&why, &follower.name);
                finding("problem", &subject, why, &remedy)
            }
            (true, _, _) => finding(
                "warning",
                &subject,
                format!("it is {session}; {owed} decisions wait for it"),
                "bring it back; it follows by itself",
            ),
        }
    }

    fn session_words(&self, follower: &Follower) -> (&'static str, String) {
        let broke = self.broke(follower).map_or(String::new(), |why| format!("; the last one ended: {why}"));
        match &follower.session {
            _ if follower.removed => ("removed", "an operator has removed it: take it out of the configuration".into()),
            Session::Down => ("down", format!("it has no session{broke}")),
            Session::Welcomed(_) => ("recovering", format!("it has not told yet what it holds{broke}")),
            Session::Open(_) => ("up", String::new()),
            Session::Refused(_, why) => ("refused", why.clone()),
        }
    }

    /// Why its last session ended, if it said so.
    pub(crate) fn broke(&self, follower: &Follower) -> Option<&str> {
        self.breaks.get(&follower.id).map(String::as_str)
    }

    pub(crate) fn name(&self, participant: ParticipantId) -> String {
        self.machine.followers()[participant.0 as usize].name.clone()
    }

    pub(crate) fn age(&self, since: Time) -> u64 {
        self.now.0.saturating_sub(since.0) / 1000
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cursor::Unanswered(txid) => write!(f, "in-doubt:{txid}"),
            Cursor::Live(txid) => write!(f, "live:{txid}"),
            Cursor::Ended(Reverse(txid)) => write!(f, "ended:{txid}"),
        }
    }
}

/// `live:3-17`: the form that `Display` gives.
impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Cursor, String> {
        let bad = || format!("`{text}` is not where a list ended");
        let (part, txid) = text.split_once(':').ok_or_else(bad)?;
        let txid = txid.parse().map_err(|_| bad())?;
        match part {
            "in-doubt" => Ok(Cursor::Unanswered(txid)),
            "live" => Ok(Cursor::Live(txid)),
            "ended" => Ok(Cursor::Ended(Reverse(txid))),
            _ => Err(bad()),
        }
    }
}

/// Records for people: payloads by their sizes.
pub fn log_records(entries: Vec<Entry>, request: &v1::DumpLogRequest) -> Vec<v1::LogRecord> {
    let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
    let wanted = entries.iter().filter(|entry| entry.lsn.0 >= request.from_lsn).take(limit);
    wanted.map(log::line).map(|log::Line { lsn, kind, record }| v1::LogRecord { lsn, kind, json: record.to_string() }).collect()
}

/// What the log says of itself.
pub fn log_report(report: log::Report) -> v1::LogReport {
    let owed = |owed: log::Owed| v1::OwedTransaction {
        txid: owed.txid.to_string(),
        csn: owed.csn.to_u64(),
        participants: owed.participants,
        at_ms: owed.at_ms,
        lsn: owed.lsn.0,
    };
    v1::LogReport {
        first_lsn: report.first.0,
        last_lsn: report.last.0,
        records: report.records,
        coord_id: report.coord_id.map_or(String::new(), |id| id.to_string()),
        log_id: report.log_id.map_or(String::new(), |id| id.to_string()),
        epoch: report.epoch.0,
        last_csn: report.last_csn.to_u64(),
        floor: Some(v1::Position { epoch: report.floor.epoch.0, n: report.floor.n }),
        commits: report.commits,
        transactions: report.transactions,
        owed: report.owed,
        torn_lsn: report.torn.map_or(0, |lsn| lsn.0),
        problems: report.problems,
        damage: report.damage,
        owed_transactions: report.oldest_owed.into_iter().map(owed).collect(),
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

fn finding(level: &str, subject: &str, sentence: String, remedy: &str) -> v1::Finding {
    v1::Finding { level: level.into(), subject: subject.into(), sentence, remedy: remedy.into() }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
