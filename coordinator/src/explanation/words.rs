//! Facts with their sources and ages, and the small words that they are made of.

use crate::view::View;
use lockstep_core::follower::{Follower, Session};
use lockstep_core::outcomes::Known;
use lockstep_core::transaction::{Branch, BranchState, Transaction};
use lockstep_core::{Csn, Decider, Lsn, Operation, ParticipantId, Results, Time, Txid, Vote};
use lockstep_proto::v1;

/// Rows and documents that are named in one place, at most; of a statement, so many characters.
const NAMED: usize = 50;
const STATEMENT_CHARS: usize = 160;

impl View<'_> {
    /// What the coordinator knows at this moment.
    pub(super) fn now_known(&self, sentence: String) -> v1::Fact {
        v1::Fact { sentence, source: "memory".into(), age_ms: 0 }
    }

    /// What the coordinator has seen.
    pub(super) fn remembered(&self, at: Time, sentence: String) -> v1::Fact {
        v1::Fact { sentence, source: "memory".into(), age_ms: self.age(at) }
    }

    /// What a store has said.
    pub(super) fn of_store(&self, follower: &Follower, at: Time, sentence: String) -> v1::Fact {
        v1::Fact { sentence, source: format!("store {}", follower.name), age_ms: self.age(at) }
    }

    /// What stands in the log.
    pub(super) fn of_log(&self, lsn: Lsn, at_ms: u64, sentence: String) -> v1::Fact {
        v1::Fact { sentence, source: format!("log, record {lsn}"), age_ms: self.since_wall(at_ms) }
    }

    pub(super) fn since_wall(&self, at_ms: u64) -> u64 {
        self.machine.wall_clock(self.now).saturating_sub(at_ms)
    }

    pub(super) fn for_ms(&self, since: Time) -> String {
        duration(self.age(since))
    }

    pub(crate) fn follower(&self, participant: ParticipantId) -> &Follower {
        &self.machine.followers()[participant.0 as usize]
    }

    pub(super) fn session_fact(&self, follower: &Follower) -> v1::Fact {
        let name = &follower.name;
        let why = self.broke(follower).map_or(String::new(), |why| format!(" The last one ended: {}.", sentence(why)));
        let what = match &follower.session {
            _ if follower.removed => format!("`{name}` was removed by an operator."),
            _ if !follower.configured => format!("`{name}` is not configured any more. What it is owed is kept."),
            Session::Down => format!("`{name}` has no session: it is not there, or cannot be reached.{why}"),
            Session::Welcomed(_) if follower.greeted => {
                format!("`{name}` is there, and waits until the databases that decide have told what they decided.")
            }
            Session::Welcomed(_) => format!("`{name}` has a session, and has not told yet what it holds: it is recovering.{why}"),
            Session::Open(_) => format!("`{name}` is up."),
            Session::Refused(_, why) => format!("`{name}` is not used: {}.", sentence(why)),
        };
        self.remembered(follower.session_since, what)
    }

    /// How a store comes back.
    pub(super) fn back_again(&self, follower: &Follower) -> v1::Fact {
        let name = &follower.name;
        let store = self.registry.numbered(follower.id);
        let how = match (&follower.session, store.map(|store| store.store_type)) {
            _ if !follower.configured => format!("Nothing, as long as `{name}` is not configured."),
            (Session::Refused(..), _) => format!("Nothing: `{name}` is not used before what is wrong with it is mended."),
            (_, Some("remote")) => {
                format!("`{name}` runs in a process of its own and dials in by itself; then it is told, and applies it.")
            }
            (_, _) => format!("The daemon tries to open `{name}` again by itself, at least every 5 s; then it is told, and applies it."),
        };
        self.now_known(how)
    }

    pub(super) fn decision_fact(&self, txid: Txid, csn: Csn) -> v1::Fact {
        let decision = self.machine.decision(txid);
        let entry = decision.and_then(|decision| decision.entries.iter().find(|entry| entry.txid == txid));
        let at_ms = entry.map(|entry| entry.at_ms);
        match (txid.decider, decision.and_then(|decision| decision.lsn), at_ms) {
            (Decider::Leader(leader), ..) => {
                let name = self.name(leader);
                let age_ms = at_ms.map_or(0, |at_ms| self.since_wall(at_ms));
                v1::Fact { sentence: format!("`{name}` decided it by its own commit."), source: format!("store {name}"), age_ms }
            }
            (Decider::Log, Some(lsn), Some(at_ms)) => {
                self.of_log(lsn, at_ms, format!("Its Commit record is durable: decided at CSN {csn}."))
            }
            (Decider::Log, ..) => self.now_known(format!("It is decided, at CSN {csn}.")),
        }
    }

    pub(super) fn applied_fact(&self, transaction: &Transaction, participant: ParticipantId) -> v1::Fact {
        let follower = self.follower(participant);
        let name = &follower.name;
        if self.damaged_at(transaction.txid).any(|damaged| damaged == participant) {
            return self.now_known(format!("`{name}` counts as done, and is damaged there: see below."));
        }
        let finished = transaction.branch(participant).and_then(|branch| branch.times.finished);
        match finished {
            Some(at) => self.of_store(follower, at, format!("`{name}` has applied it.")),
            None if transaction.txid.decider == Decider::Leader(participant) => self.now_known(format!("`{name}` has it: it decided it.")),
            None => self.of_store(
                follower,
                follower.progress_at,
                format!("`{name}` has applied it: it has followed up to CSN {}.", follower.progress.applied),
            ),
        }
    }

    pub(super) fn vote_fact(&self, branch: &Branch) -> v1::Fact {
        let follower = self.follower(branch.participant);
        let name = &follower.name;
        let asked = branch.times.asked.unwrap_or(self.now);
        match &branch.state {
            BranchState::Idle => self.now_known(format!("`{name}` is not asked yet: its turn comes after the others.")),
            BranchState::Asked(_) => self.remembered(asked, format!("`{name}` was asked, and has not voted.")),
            BranchState::Voted(_, vote) => {
                let said = match vote {
                    Vote::Prepared(_) => "Yes: its branch is prepared there, durably, and its rows are locked",
                    Vote::Redo(..) => "Yes: it has checked the write, and handed over all that it needs to apply it",
                    Vote::InGroup(_) => "Yes: its statements have run there",
                    Vote::Ready(_) => "Yes: its statements have run there, and its own commit will decide",
                    Vote::ReadOnly(_) => "read-only: it has nothing to apply",
                    Vote::No(_) => "No",
                };
                self.of_store(follower, branch.times.voted.unwrap_or(self.now), format!("`{name}` voted {said}."))
            }
            BranchState::Following => self.now_known(format!("`{name}` has to apply it.")),
            BranchState::Finished => self.now_known(format!("`{name}` has nothing left to do for it.")),
        }
    }

    /// What it writes there, as far as it can be named.
    pub(super) fn write_fact(&self, transaction: &Transaction, participant: ParticipantId) -> Option<v1::Fact> {
        let written = self.written(transaction.txid, participant);
        let name = self.name(participant);
        let source = match self.machine.decision(transaction.txid).and_then(|decision| decision.lsn) {
            Some(lsn) if transaction.branch(participant).is_none_or(|branch| branch.operations.is_empty()) => format!("log, record {lsn}"),
            _ => "memory".into(),
        };
        let sentence = match written.is_empty() {
            true => {
                format!("What it writes at `{name}` is not known here by name: it was prepared before this start, or by its application.")
            }
            false => format!("It writes at `{name}`: {}.", some(&written)),
        };
        Some(v1::Fact { sentence, source, age_ms: 0 })
    }

    /// Documents by key, rows by the statements that change them.
    pub(crate) fn written(&self, txid: Txid, participant: ParticipantId) -> Vec<String> {
        let branch = self.machine.transaction(txid).and_then(|transaction| transaction.branch(participant));
        let operations = branch.map_or(&[][..], |branch| &branch.operations);
        if operations.is_empty() {
            let documents = self.machine.writes(participant, txid).unwrap_or_default().iter();
            return documents.map(|write| document(&write.key, write.delete)).collect();
        }
        let results = self.results(txid, participant);
        let mut statement = 0;
        let mut name = |operation: &Operation| match operation {
            Operation::Put { key, .. } => document(key, false),
            Operation::Delete { key, .. } => document(key, true),
            Operation::Enlisted { .. } => "what its application ran on its own connection".to_string(),
            Operation::Statement { sql, .. } => {
                let rows = results.and_then(|results| results.get(statement)).map(|result| result.rows_affected);
                statement += 1;
                rows_of(sql, rows)
            }
        };
        operations.iter().map(&mut name).collect()
    }

    /// What its statements gave there, while that is kept.
    fn results(&self, txid: Txid, participant: ParticipantId) -> Option<&Results> {
        let branch = self.machine.transaction(txid)?.branch(participant)?;
        if let BranchState::Voted(_, Vote::Prepared(results) | Vote::Redo(_, results) | Vote::InGroup(results) | Vote::Ready(results)) =
            &branch.state
        {
            return Some(results);
        }
        let decision = self.machine.decision(txid)?;
        let at = decision.entries.iter().position(|entry| entry.txid == txid)?;
        decision.payload.entries[at].results.iter().find(|(of, _)| *of == participant).map(|(_, results)| results)
    }

    pub(super) fn waiting_clients(&self, transaction: &Transaction) -> Option<v1::Fact> {
        let sentence = match transaction.waiters.len() {
            0 => return None,
            1 => "A client waits for its answer.".to_string(),
            n => format!("{n} clients wait for its answer."),
        };
        Some(self.now_known(sentence))
    }

    /// Reads that ask for at least this CSN wait, or are told *behind*.
    pub(super) fn held_up_readers(&self, follower: &Follower, csn: Csn) -> Option<v1::Fact> {
        let waiting = follower.readers.iter().filter(|reader| reader.csn >= csn).count();
        let name = &follower.name;
        (waiting > 0).then(|| self.now_known(format!("{waiting} reads wait until `{name}` has followed this far.")))
    }

    pub(super) fn at_deadline(&self, transaction: &Transaction, unless: &str) -> v1::Fact {
        let sentence = match transaction.timer {
            Some(at) => {
                let left = at.0.saturating_sub(self.now.0) / 1000;
                format!("In {}, its deadline, it is aborted if {unless}; nothing of it is anywhere then.", duration(left))
            }
            None => "It has no deadline: it ends with the next answer of a store.".to_string(),
        };
        self.now_known(sentence)
    }

    /// Under which key its client asks for it.
    pub(super) fn named(&self, known: &Known) -> Option<v1::Fact> {
        let key = lockstep_log::key_text(&known.key.key);
        Some(self.now_known(format!("Its client asks for it under the key `{key}`, attempt {}.", known.key.attempt)))
    }
}

/// A name between quotes.
pub(super) fn quoted(name: impl AsRef<str>) -> String {
    format!("`{}`", name.as_ref())
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn listed(names: impl IntoIterator<Item = String>) -> String {
    let mut names: Vec<_> = names.into_iter().collect();
    match names.pop() {
        None => "nobody".into(),
        Some(last) if names.is_empty() => last,
        Some(last) => format!("{} and {last}", names.join(", ")),
    }
}

/// The first of them, and how many more there are.
pub(super) fn some(names: &[String]) -> String {
    let named = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// The first of them, for a list.
pub(super) fn bounded(mut names: Vec<String>) -> Vec<String> {
    let more = names.len().saturating_sub(NAMED);
    if more > 0 {
        names.truncate(NAMED);
        names.push(format!("and {more} more"));
    }
    names
}

/// Somebody else's words as a part of a sentence: one line, no full stop of its own.
pub(super) fn sentence(text: &str) -> String {
    let line: Vec<_> = text.split_whitespace().collect();
    line.join(" ").trim_end_matches('.').to_string()
}

fn document(key: &str, delete: bool) -> String {
    format!("`{key}` ({})", if delete { "delete" } else { "put" })
}

fn rows_of(sql: &str, rows: Option<u64>) -> String {
    let sql = sentence(sql);
    let shown: String = sql.chars().take(STATEMENT_CHARS).collect();
    let cut = if shown.len() < sql.len() { "…" } else { "" };
    let rows = match rows {
        None => String::new(),
        Some(1) => " (1 row)".into(),
        Some(n) => format!(" ({n} rows)"),
    };
    format!("{shown}{cut}{rows}")
}

/// Milliseconds in the unit that fits.
pub(super) fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{} s", ms / 1_000),
        60_000..3_600_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}
