//! Events and effects in words.

use lockstep_core::{
    AdminAction, Alarm, Coordinator, Decided, Effect, FromParticipant, Marker, MarkerEvidence, Operation, ParticipantId, Phase, Progress,
    Record, Reply, Settle, Ticket, ToParticipant, Txid, Vote,
};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// The names of the stage.
pub struct Words {
    stores: Vec<&'static str>,
    /// Every marker that a leader was given.
    pub markers: RefCell<BTreeMap<Txid, Marker>>,
}

impl Words {
    pub fn new(stores: Vec<&'static str>) -> Words {
        Words { stores, markers: RefCell::default() }
    }

    pub fn id(&self, store: &str) -> ParticipantId {
        let known = self.stores.iter().position(|name| *name == store);
        ParticipantId(known.unwrap_or_else(|| panic!("no store {store} on this stage")) as u16)
    }

    fn name(&self, id: ParticipantId) -> String {
        self.stores.get(id.0 as usize).map_or_else(|| id.to_string(), |name| name.to_string())
    }

    fn names<'a>(&self, ids: impl IntoIterator<Item = &'a ParticipantId>) -> String {
        ids.into_iter().map(|id| self.name(*id)).collect::<Vec<_>>().join(", ")
    }

    pub fn operations(&self, operations: &[Operation]) -> String {
        let one = |operation: &Operation| match operation {
            Operation::Statement { .. } => "1 statement".to_string(),
            Operation::Put { key, condition, .. } => match condition {
                None => format!("put {key}"),
                Some(lockstep_core::Condition::Absent) => format!("create {key}"),
                Some(lockstep_core::Condition::Csn(csn)) => format!("put {key} if it is still {csn}"),
            },
            Operation::Delete { key, .. } => format!("delete {key}"),
            Operation::Enlisted { xid } => format!("enlisted, {xid} there"),
        };
        operations.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    pub fn effect(&self, effect: &Effect, machine: &Coordinator) -> String {
        match effect {
            Effect::Append { lsn, record, force } => {
                format!("log {lsn} <- {}{}", self.record(record), if *force { " (forced)" } else { "" })
            }
            Effect::Send(to, _, message) => format!("{} <- {}", self.name(*to), self.sent(message)),
            Effect::Reply(ticket, reply) => format!("{} -> {}", self.who(*ticket, reply), self.reply(reply)),
            Effect::ForgetPayload(lsn) => format!("log: the redos of {lsn} may be forgotten"),
            Effect::ForgetBelow(lsn) => format!("log: Commit, End and Floor records below {lsn} may be forgotten"),
            Effect::Alarm(alarm) => format!("ALARM {}", self.alarm(alarm, machine)),
            Effect::Trace(span) => format!("trace: {:?}", span.stretch),
        }
    }

    fn who(&self, ticket: Ticket, reply: &Reply) -> String {
        match reply {
            Reply::Done(_) | Reply::Refused(_) => format!("operator#{}", ticket.0),
            _ => format!("client#{}", ticket.0),
        }
    }

    fn record(&self, record: &Record) -> String {
        match record {
            Record::Header { .. } => "Header".into(),
            Record::Participant { id, kind, .. } => format!("Participant {} ({kind:?})", self.name(*id)),
            Record::Epoch { epoch, .. } => format!("Epoch {epoch}"),
            Record::Commit(group) => {
                let entries = group.entries.iter();
                let entries: Vec<_> = entries.map(|e| format!("{} at {}: {}", e.txid, e.csn, self.names(&e.branches))).collect();
                format!("Commit [{}]", entries.join("; "))
            }
            Record::End { txids } => format!("End [{}]", list(txids)),
            Record::Acked { participant, csn } => format!("Acked {} up to {csn}", self.name(*participant)),
            Record::Damage(damage) => {
                let by = damage.operator.as_ref().map_or(String::new(), |operator| format!(" by {operator}"));
                format!("Damage [{:?} of {} at {}{by}: {}]", damage.kind, damage.txid, self.name(damage.participant), damage.reason)
            }
            Record::Admin { operator, action, reason, .. } => format!("Admin [{operator} {}: {reason}]", self.action(action)),
            Record::Leads { participant } => format!("Leads: {} decides what touches it alone", self.name(*participant)),
            Record::Followed { participant, csn } => format!("Followed: {} had come to {csn}", self.name(*participant)),
            Record::Restored { log_id, .. } => format!("Restored as log {log_id}"),
            Record::Scanned { participant } => format!("Scanned {}: its waiver is over", self.name(*participant)),
            Record::Audit { slot, audit } => format!("Audit {slot} [{} {}]", audit.who, audit.what),
            Record::Floor { position } => format!("Floor {}-{}", position.epoch, position.n),
        }
    }

    fn sent(&self, message: &ToParticipant) -> String {
        match message {
            ToParticipant::Welcome { owner, .. } => format!("Welcome from epoch {}", owner.epoch),
            ToParticipant::Reserve(decided) => format!("Reserve {}: perhaps decided, not to be applied yet", self.decided(decided)),
            ToParticipant::Open => "Open: Prepares may follow".into(),
            ToParticipant::Prepare(work) => format!("Prepare {} ({} ms)", work.txid, work.timeout / 1000),
            ToParticipant::Commit(decided) => format!("Commit {}", self.decided(decided)),
            ToParticipant::Abort(txid) => format!("Abort {txid}"),
            ToParticipant::Lead(markers) => {
                self.markers.borrow_mut().extend(markers.iter().map(|marker| (marker.entry.txid, marker.clone())));
                let markers: Vec<_> = markers.iter().map(|marker| format!("{} at {}", marker.entry.txid, marker.entry.csn)).collect();
                format!("Lead [{}]: write the marker and commit", markers.join("; "))
            }
            ToParticipant::Settle(what) => format!("Settle {}: what became of it? If nothing, then abort", self.settle(what)),
            ToParticipant::Scan(above) => format!("Scan: which markers are there above {above}?"),
            ToParticipant::Acked(csn) => format!("Acked {csn}: write it down"),
            ToParticipant::Closed(csn) => format!("Closed {csn}: the watermark may go so far"),
            ToParticipant::Floor(position) => format!("Floor {}-{}", position.epoch, position.n),
            ToParticipant::Resolve { txid, commit } => format!("Resolve {txid}: {} by hand", end(*commit)),
            ToParticipant::Skip(decided) => format!("Skip {}", self.decided(decided)),
            ToParticipant::Close => "Close: this session is over".into(),
        }
    }

    fn decided(&self, decided: &Decided) -> String {
        format!("{} at {}", list(&decided.txids), decided.csn)
    }

    fn settle(&self, what: &Settle) -> String {
        match what {
            Settle::Txid(txid) => txid.to_string(),
            Settle::Key(key, _) => format!("key `{}`", String::from_utf8_lossy(&key.key)),
        }
    }

    pub fn said(&self, message: &FromParticipant) -> String {
        match message {
            FromParticipant::Hello(hello) => {
                let mut held = vec![format!("followed {}", self.progress(&hello.progress))];
                if !hello.prepared.is_empty() {
                    held.push(format!("holds prepared {}", list(&hello.prepared)));
                }
                held.extend(hello.heuristics.iter().map(|(txid, commit)| format!("{txid} was {} by hand", end(*commit))));
                if !hello.exclusive {
                    held.push("older sessions may still commit here".into());
                }
                format!("says Hello: {}", held.join("; "))
            }
            FromParticipant::Refused(owner) => format!("refuses: its owner is epoch {} of coordinator {:x}", owner.epoch, owner.coord_id.0),
            FromParticipant::Ballot(ballot) => {
                let votes: Vec<_> = ballot.votes.iter().map(|(txid, vote)| format!("{} on {txid}", self.vote(vote))).collect();
                format!("votes {}", votes.join(", "))
            }
            FromParticipant::Committed(txid) => format!("acks {txid}: committed, durable"),
            FromParticipant::NotPrepared(txid, evidence) => {
                let why = match evidence {
                    MarkerEvidence::Committed => "its marker says committed",
                    MarkerEvidence::RolledBack => "it has no marker: it was rolled back by hand",
                    MarkerEvidence::Unknowable => "nobody can know why",
                };
                format!("says: {txid} is not prepared here; {why}")
            }
            FromParticipant::Progress(progress) => format!("has followed {}", self.progress(progress)),
            FromParticipant::Stuck(csn, why) => format!("is stuck at {csn}: {why}"),
            FromParticipant::Inquiry(txids) => format!("asks: what became of {}?", list(txids)),
            FromParticipant::Led(txids) => format!("has committed {}: decided", list(txids)),
            FromParticipant::NotLed(txids, refusal) => format!("has rolled back {} for certain: {}", list(txids), refusal.message),
            FromParticipant::Settled(what, None) => format!("answers: {} did not commit, and never will", self.settle(what)),
            FromParticipant::Settled(what, Some(marker)) => {
                format!("answers: {} committed, as {} at {}", self.settle(what), marker.entry.txid, marker.entry.csn)
            }
            FromParticipant::Markers { markers, last } => {
                let list: Vec<_> = markers.iter().map(|marker| format!("{} at {}", marker.entry.txid, marker.entry.csn)).collect();
                let more = if *last { "no more" } else { "more follow" };
                format!("has markers [{}], {more}", list.join("; "))
            }
            FromParticipant::Resolved { txid, commit } => format!("has {} {txid} by hand", end(*commit)),
        }
    }

    fn vote(&self, vote: &Vote) -> String {
        match vote {
            Vote::Prepared(_) => "Yes (prepared)".into(),
            Vote::Redo(..) => "Yes (redo)".into(),
            Vote::InGroup(_) => "Yes (in the group)".into(),
            Vote::Ready(_) => "Yes (ready to lead)".into(),
            Vote::ReadOnly(_) => "Yes (read-only)".into(),
            Vote::No(refusal) => format!("No ({:?}: {})", refusal.kind, refusal.message),
        }
    }

    fn progress(&self, progress: &Progress) -> String {
        format!("up to {}, durably up to {}", progress.applied, progress.durable)
    }

    fn reply(&self, reply: &Reply) -> String {
        match reply {
            Reply::Begun(txid) => format!("begun {txid}"),
            Reply::Committed(receipt) => {
                let pending =
                    if receipt.pending.is_empty() { String::new() } else { format!(", pending at {}", self.names(&receipt.pending)) };
                format!("committed {} at {}{pending}", receipt.txid, receipt.csn)
            }
            Reply::Aborted(aborted) => {
                let at = aborted.participant.map_or(String::new(), |id| format!(" at {}", self.name(id)));
                let txid = aborted.txid.map_or(String::new(), |txid| format!(" {txid}"));
                format!("aborted{txid}{at} ({:?}: {})", aborted.refusal.kind, aborted.refusal.message)
            }
            Reply::Unknown(why) => format!("unknown, ask again: {why}"),
            Reply::Expired(floor) => format!("expired: nothing below {}-{} is kept", floor.epoch, floor.n),
            Reply::KeyReused(txid) => format!("another request ran under this key, as {txid}"),
            Reply::Reached(csn) => format!("read: it has followed up to {csn}"),
            Reply::Behind(csn) => format!("behind: it has followed up to {csn}"),
            Reply::ForeignToken(_) => "this token is of another log".into(),
            Reply::Done(sentence) => sentence.clone(),
            Reply::Refused(refusal) => format!("refused: {}", refusal.message),
        }
    }

    fn alarm(&self, alarm: &Alarm, _machine: &Coordinator) -> String {
        match alarm {
            Alarm::LogLoss(evidence) => format!("the log has lost records: {evidence}"),
            Alarm::StoreLoss(id, why) => format!("{}: {why}", self.name(*id)),
            Alarm::NotOwner(id, why) => format!("{}: {why}", self.name(*id)),
            Alarm::Stuck { participant, txid, reason, .. } => format!("{txid} is stuck at {}: {reason}", self.name(*participant)),
            Alarm::Damage(damage, _) => {
                format!("damage: {} at {}, {:?}: {}", damage.txid, self.name(damage.participant), damage.kind, damage.reason)
            }
            Alarm::WrongKind(id, logged, found) => format!("{} votes as {found:?}, the log knows it as {logged:?}", self.name(*id)),
            Alarm::Misbehaves(id, why) => format!("{} has broken the protocol: {why}", self.name(*id)),
        }
    }

    pub fn action(&self, action: &AdminAction) -> String {
        match action {
            AdminAction::Resolve { txid, participant, commit } => {
                format!("resolves {txid} at {}: {}", self.name(*participant), end(*commit))
            }
            AdminAction::Remove { participant } => format!("removes {}", self.name(*participant)),
            AdminAction::Skip { txid, participant } => format!("gives up {txid} at {}", self.name(*participant)),
            AdminAction::Forget { txid, participant } => format!("forgets the damage of {txid} at {}", self.name(*participant)),
            AdminAction::Waive { participant } => format!("waives the evidence of {}", self.name(*participant)),
            AdminAction::LeaveSafeMode => "leaves safe mode".into(),
            AdminAction::Cancel { txid } => format!("cancels {txid}"),
        }
    }

    pub fn phase(&self, phase: &Phase) -> String {
        match phase {
            Phase::Starting => "starting".into(),
            Phase::Serving => "serving".into(),
            Phase::Safe(why) => format!("safe mode ({why})"),
            Phase::Stopped(why) => format!("stopped ({why})"),
        }
    }
}

fn list(txids: &[Txid]) -> String {
    txids.iter().map(|txid| txid.to_string()).collect::<Vec<_>>().join(", ")
}

fn end(commit: bool) -> &'static str {
    if commit { "committed" } else { "rolled back" }
}
