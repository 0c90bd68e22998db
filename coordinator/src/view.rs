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

/// How far recorded times may be from the wall clock before that is said, milliseconds.
const CLOCK_OFF: u64 = 5_000;

/// Ages by which what is in doubt is counted, milliseconds.
pub const AGES: [u64; 5] = [1_000, 10_000, 60_000, 600_000, 3_600_000];

/// How things are at one moment.
pub struct Pulse {
    /// One screen.
    pub status: v1::StatusReply,
    /// Transactions whose decision is under way, not applied everywhere (by the age of the decision), or not known to anybody here:
    /// younger than the first of [`AGES`], than the second, …, older than the last.
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
            oldest_in_doubt_ms: status.oldest.map_or(0, |at_ms| self.age_of_wall(at_ms)),
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
        let is_wanted = |state: &str| request.states.is_empty() || request.states.iter().any(|wanted| wanted == state);
        let wanted = |summary: &v1::TransactionSummary| {
            is_wanted(&summary.state)
                && (request.participant.is_empty() || summary.participants.contains(&request.participant))
                && summary.age_ms >= request.older_than_ms
        };
        let named = |key: &str| request.key.is_empty() || key == request.key;
        // A malformed cursor is refused before it comes here.
        let after: Option<Cursor> = request.after.parse().ok();
        let unanswered = self.unanswered().filter(|(txid, _)| after.is_none_or(|after| after < Cursor::Unanswered(*txid)));
        let unanswered = unanswered.filter(|(_, summary)| named(&summary.key)).map(|(txid, summary)| (Cursor::Unanswered(txid), summary));
        let live = self.machine.transactions().map(|transaction| (Cursor::Live(transaction.txid), transaction));
        let mut live: Vec<_> = live.filter(|(cursor, _)| after.is_none_or(|after| after < *cursor)).collect();
        live.sort_unstable_by_key(|(cursor, _)| *cursor);
        let live = live.into_iter().map(|(cursor, transaction)| (cursor, transaction, self.live(transaction)));
        let live = live.filter(|(_, transaction, summary)| named(&summary.key) || self.writes_key(transaction, &request.key));
        let live = live.map(|(cursor, _, summary)| (cursor, summary));
        let of_interest = |(_, summary): &(Cursor, v1::TransactionSummary)| wanted(summary);
        let mut all: Vec<_> = unanswered.chain(live).filter(of_interest).take(limit + 1).collect();
        if asks_for_ended(request) {
            // There may be hundreds of thousands: each is judged before it is written out.
            let ended = self.machine.all_known().rev().map(|known| (Cursor::Ended(Reverse(known.txid)), known));
            let ended = ended.filter(|(cursor, _)| after.is_none_or(|after| after < *cursor));
            let ended = ended.filter(|(_, known)| is_wanted(fate_word(&known.fate)) && self.age(known.since) >= request.older_than_ms);
            let ended = ended.filter(|(_, known)| named_so(known, &request.key) && self.machine.transaction(known.txid).is_none());
            all.extend(ended.map(|(cursor, known)| (cursor, self.ended(known))).take((limit + 1).saturating_sub(all.len())));
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
        let decided = self.machine.transactions().filter(undone).map(|transaction| {
            let decided = self.machine.decided_at(transaction);
            decided.map_or_else(|| self.age(transaction.began), |at_ms| self.age_of_wall(at_ms))
        });
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

    /// What is wrong, and what to do about it. `wall_ms`: what the wall clock shows now, milliseconds since 1970.
    pub fn doctor(&self, wall_ms: u64) -> v1::DoctorReply {
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
        findings.extend(self.examine_clock(wall_ms));
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
        // Of an earlier start's, this one has seen no beginning.
        let decided = self.machine.decided_at(transaction).map_or(0, |at_ms| self.age_of_wall(at_ms));
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
            age_ms: self.age(transaction.began).max(decided),
            participants: transaction.branches.iter().map(|branch| self.name(branch.participant)).collect(),
            waiting_for: self.waiting_for(transaction),
            key,
            attempt,
        }
    }

    fn ended(&self, known: &Known) -> v1::TransactionSummary {
        let csn = match &known.fate {
            Fate::Committed(committed) => committed.csn.to_u64(),
            Fate::Running | Fate::Aborted(_) => 0,
        };
        v1::TransactionSummary {
            txid: known.txid.to_string(),
            state: fate_word(&known.fate).into(),
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
            "serving" if self.machine.status().paused => finding(
                "warning",
                "coordinator",
                "it is serving, and refuses new transactions while a backup's servers are copied".into(),
                "wait until `lockstep backup` is done with them, or stop it",
            ),
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

    /// Times are recorded by the wall clock of the start, and what has passed since: a clock that is set meanwhile does not move them.
    fn examine_clock(&self, wall_ms: u64) -> Option<v1::Finding> {
        let recorded = self.machine.wall_clock(self.now);
        let (off, side) = if recorded < wall_ms { (wall_ms - recorded, "behind") } else { (recorded - wall_ms, "ahead of") };
        (off > CLOCK_OFF).then(|| {
            let sentence = format!(
                "the machine's clock was set, or the machine slept, after the daemon's start: the times that it records are {} s {side} it",
                off / 1000
            );
            finding(
                "warning",
                "clock",
                sentence,
                "restart the daemon when it suits; mind the difference in what was recorded since its start",
            )
        })
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

    /// Of what stands in the log: it may be from before this start.
    fn age_of_wall(&self, at_ms: u64) -> u64 {
        self.machine.wall_clock(self.now).saturating_sub(at_ms)
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

/// Bytes of what is none that are shown: more than any has.
const CURSOR_SHOWN: usize = 64;

/// `live:3-17`: the form that `Display` gives.
impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Cursor, String> {
        // It may be as long as a message.
        let bad = || format!("`{}` is not where a list ended", &text[..text.floor_char_boundary(CURSOR_SHOWN)]);
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

/// Why these transactions cannot be listed: of those that have ended it is not kept at which stores they were.
pub fn unanswerable(request: &v1::ListTransactionsRequest) -> Option<&'static str> {
    (asks_for_ended(request) && !request.participant.is_empty()).then_some(
        "participant: at which stores a transaction was is not kept once it has ended: ask for one without the other (states: committed, \
         aborted)",
    )
}

fn asks_for_ended(request: &v1::ListTransactionsRequest) -> bool {
    request.states.iter().any(|state| state == "committed" || state == "aborted")
}

fn fate_word(fate: &Fate) -> &'static str {
    match fate {
        Fate::Running => "preparing",
        Fate::Committed(_) => "committed",
        Fate::Aborted(_) => "aborted",
    }
}

/// Whether this is its key as people read it, or none is asked for.
fn named_so(known: &Known, key: &str) -> bool {
    key.is_empty() || key_text(&known.key.key) == key
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use lockstep_core::{
        Ballot, BranchRequest, Config, CoordId, Effect, Event, FromParticipant, Hello, Identity, Kind, LogId, Operation, ParticipantConfig,
        Request, RequestKey, Results, Role, SessionId, Ticket, Wait,
    };
    use std::sync::Arc;

    const INDEX: ParticipantId = ParticipantId(0);
    const SECOND: u64 = 1_000_000;
    const WALL: u64 = 1_795_402_665_000;

    /// A machine with an index that is there, and never applies anything.
    struct Lab {
        machine: Coordinator,
        now: Time,
        log: Vec<Entry>,
    }

    impl Lab {
        fn start(log: Vec<Entry>, wall_at_zero_ms: u64) -> Lab {
            let index = ParticipantConfig { name: "index".into(), kind: Kind::Redo, role: Role::Index, standalone: true };
            let config = Config { participants: vec![index], wall_at_zero_ms, ..Config::default() };
            let identity = Identity { coord_id: CoordId(1), log_id: LogId(2), incarnation: log.len() as u64 };
            let mut effects = Vec::new();
            let machine = Coordinator::start(config, identity, log.clone(), Time(0), &mut effects).unwrap();
            let mut lab = Lab { machine, now: Time(0), log };
            lab.carry_out(effects);
            let hello = Hello::of_nothing(Kind::Redo);
            lab.step(Event::SessionUp(INDEX, SessionId(1)));
            lab.step(Event::Message(INDEX, SessionId(1), FromParticipant::Hello(hello)));
            lab
        }

        fn step(&mut self, event: Event) {
            let mut effects = Vec::new();
            self.machine.step(self.now, event, &mut effects);
            self.carry_out(effects);
        }

        fn carry_out(&mut self, effects: Vec<Effect>) {
            for effect in effects {
                if let Effect::Append { lsn, record, .. } = effect {
                    self.log.push(Entry { lsn, record });
                    self.step(Event::Durable(lsn));
                }
            }
        }

        /// Under this key a transaction is begun, and asked for nothing.
        fn begins(&mut self, key: &str) {
            let (key, position) = (key_of(key), self.machine.position());
            self.step(Event::Begin { ticket: Ticket(1), key, position, led_by: None, timeout: 600 * SECOND });
        }

        /// A document under the same key is written, and that is decided.
        fn commits(&mut self, key: &str) {
            let operations = Arc::from([Operation::Put { key: "film".into(), document: "{}".into(), condition: None }]);
            let request = Request {
                key: key_of(key),
                position: self.machine.position(),
                new_key: true,
                hash: 1,
                branches: vec![BranchRequest { participant: INDEX, operations }],
                wait: Wait::Decided,
                timeout: 0,
                deadline: Time(self.now.0 + 5 * SECOND),
                trace: None,
            };
            self.step(Event::Commit(Ticket(2), request));
            let asked = |transaction: &&Transaction| transaction.state == State::Preparing;
            let txid = self.machine.transactions().find(asked).expect("its index is asked").txid;
            let votes = vec![(txid, Vote::Redo(Bytes::from_static(b"redo"), Results::default()))];
            self.step(Event::Message(INDEX, SessionId(1), FromParticipant::Ballot(Ballot { votes, group_redo: Bytes::new() })));
        }

        fn see<T>(&self, look: impl FnOnce(View) -> T) -> T {
            look(View {
                machine: &self.machine,
                registry: &Registry::default(),
                breaks: &Breaks::default(),
                now: self.now,
                space: Space { used: 0, free: 1 << 40 },
                forces: 0,
                uptime: Duration::ZERO,
                serving_after: Some(Duration::ZERO),
                mended_after: None,
                stopping: false,
            })
        }

        fn found(&self, subject: &str, wall_ms: u64) -> Option<(String, String)> {
            let findings = self.see(|view| view.doctor(wall_ms)).findings;
            findings.into_iter().find(|finding| finding.subject == subject).map(|finding| (finding.level, finding.sentence))
        }
    }

    fn key_of(key: &str) -> RequestKey {
        RequestKey { key: key.as_bytes().into(), attempt: 1 }
    }

    #[test]
    fn in_doubt_is_what_is_decided_and_it_is_as_old_as_its_decision() {
        let mut lab = Lab::start(Vec::new(), WALL);
        let seen = |lab: &Lab| lab.see(|view| view.pulse());
        lab.begins("order");
        lab.now = Time(100 * SECOND);
        assert_eq!(
            (seen(&lab).status.in_doubt, seen(&lab).status.oldest_in_doubt_ms),
            (0, 0),
            "it is open, for as long as its client likes"
        );

        lab.commits("order");
        lab.now = Time(105 * SECOND);
        assert_eq!((seen(&lab).status.in_doubt, seen(&lab).status.oldest_in_doubt_ms), (1, 5_000));
        assert_eq!(seen(&lab).ages, [0, 1, 0, 0, 0, 0]);

        // It was decided at 100 s, and this start begins at 700 s.
        let mut lab = Lab::start(lab.log, WALL + 700_000);
        lab.now = Time(5 * SECOND);
        assert_eq!((seen(&lab).status.in_doubt, seen(&lab).status.oldest_in_doubt_ms), (1, 605_000));
        assert_eq!(seen(&lab).ages, [0, 0, 0, 0, 1, 0]);
        let older = v1::ListTransactionsRequest { older_than_ms: 600_000, ..v1::ListTransactionsRequest::default() };
        assert_eq!(lab.see(|view| view.transactions(&older)).transactions.len(), 1);
    }

    #[test]
    fn a_pause_is_a_finding() {
        let mut lab = Lab::start(Vec::new(), WALL);
        assert_eq!(lab.found("coordinator", WALL), Some(("ok".into(), "it is serving".into())));
        lab.step(Event::Pause(true));
        let (level, sentence) = lab.found("coordinator", WALL).expect("it is always told of");
        assert!(level == "warning" && sentence.contains("refuses new transactions"), "{level}: {sentence}");
    }

    #[test]
    fn a_clock_that_was_set_is_a_finding() {
        let mut lab = Lab::start(Vec::new(), WALL);
        lab.now = Time(10 * SECOND);
        for (off, words) in [(0, None), (-4_000, None), (7_200_000, Some("7200 s behind it")), (-60_000, Some("60 s ahead of it"))] {
            let found = lab.found("clock", (WALL + 10_000).wrapping_add_signed(off));
            assert_eq!(found.is_some(), words.is_some(), "{off}: {found:?}");
            assert!(words.is_none_or(|words| found.as_ref().is_some_and(|(_, sentence)| sentence.ends_with(words))), "{off}: {found:?}");
        }
    }

    #[test]
    fn what_is_not_kept_of_ended_ones_is_not_listed_as_none() {
        let request = |states: &[&str], participant: &str| v1::ListTransactionsRequest {
            states: states.iter().map(|state| (*state).to_string()).collect(),
            participant: participant.into(),
            ..v1::ListTransactionsRequest::default()
        };
        assert!(unanswerable(&request(&["committing", "aborted"], "index")).is_some_and(|sentence| sentence.starts_with("participant: ")));
        for fine in [request(&["committed"], ""), request(&["committing"], "index"), request(&[], "index")] {
            assert_eq!(unanswerable(&fine), None, "{fine:?}");
        }
    }

    #[test]
    fn ended_ones_are_found_by_state_key_and_age() {
        let mut lab = Lab::start(Vec::new(), WALL);
        for key in ["one", "two"] {
            lab.begins(key);
            let position = lab.machine.position();
            lab.step(Event::Rollback { ticket: Ticket(3), key: key_of(key), position });
        }
        lab.now = Time(5 * SECOND);
        let found = |states: &[&str], key: &str, older_than_ms| {
            let states = states.iter().map(|state| (*state).to_string()).collect();
            let request = v1::ListTransactionsRequest { states, key: key.into(), older_than_ms, ..v1::ListTransactionsRequest::default() };
            let listed = lab.see(|view| view.transactions(&request)).transactions;
            listed.into_iter().map(|summary| summary.key).collect::<Vec<_>>()
        };
        assert_eq!(found(&["aborted"], "", 0), ["two", "one"], "the newest first");
        assert_eq!(found(&["aborted"], "one", 5_000), ["one"]);
        assert!(found(&["aborted"], "one", 5_001).is_empty() && found(&["committed"], "one", 0).is_empty());
    }

    #[test]
    fn what_is_no_cursor_is_not_repeated_as_a_whole() {
        for text in ["x".repeat(1 << 20), "live:".to_owned() + &"ü".repeat(1 << 20)] {
            let why = text.parse::<Cursor>().err().unwrap_or_default();
            assert!(why.ends_with("is not where a list ended") && why.len() < 100, "{} bytes", why.len());
        }
    }
}
