//! Phase one: asking, counting, and the decision.

use crate::config::Role;
use crate::coordinator::{Coordinator, Pending};
use crate::decision::Decision;
use crate::event::Effect;
use crate::ids::{Csn, Decider, Epoch, ParticipantId, SessionId, Time, Txid};
use crate::message::{ToParticipant, Work};
use crate::mutation::{Mutation, broken};
use crate::operation::{KeyWrite, Operation};
use crate::outcomes::{CommittedFate, Fate};
use crate::record::{BranchRedo, CommitEntry, CommitGroup, EntryPayload, GroupRedo, Marker, Payload, Record};
use crate::request::{Aborted, Reply};
use crate::trace::{Span, Stretch, TraceContext};
use crate::transaction::{Branch, BranchState, State, Transaction};
use crate::vote::{Ballot, Kind, Refusal, RefusalKind, Vote};
use rustc_hash::FxHashSet;
use std::sync::Arc;

/// Transactions in one record, and bytes of their redos and results, at most; a single one may have more ([`TRANSACTION_RECORD_BYTES`]).
const GROUP_TRANSACTIONS: usize = 256;
const GROUP_BYTES: usize = 8 << 20;
/// The same bytes of a batch that ran in one local transaction, and so must share a record: far below what the log takes as one.
const BATCH_RECORD_BYTES: usize = 64 << 20;
/// The same bytes of one that may share a branch, which it shares a record with.
const SHARED_BYTES: usize = BATCH_RECORD_BYTES / 128;
/// The same bytes of one transaction: with all that stands beside them in its record, below what the log takes as one.
const TRANSACTION_RECORD_BYTES: usize = 192 << 20;

/// What a transaction in Preparing needs next.
enum Next {
    /// These are to be asked now.
    Ask(Vec<ParticipantId>),
    /// Votes are outstanding.
    Wait,
    /// All have voted Yes.
    Decide,
}

impl Coordinator {
    /// One order for all: redo participants at once, preparing databases one after another, then the serial executor, the leader last.
    pub(crate) fn advance(&mut self, now: Time, txid: Txid, fx: &mut Vec<Effect>) {
        self.advance_all(now, vec![txid], fx);
    }

    /// The same for several; those on which everyone has voted Yes share a record.
    fn advance_all(&mut self, now: Time, txids: Vec<Txid>, fx: &mut Vec<Effect>) {
        let mut agreed = Vec::new();
        for txid in txids {
            // One that went before may have ended it.
            if !self.transactions.contains_key(&txid) {
                continue;
            }
            match self.next(txid) {
                Next::Ask(participants) => {
                    for participant in participants {
                        self.ask(now, txid, participant, fx);
                    }
                }
                Next::Wait => {}
                Next::Decide if self.concludes(now, txid, fx) => agreed.push(txid),
                Next::Decide => {}
            }
        }
        for group in self.groups(agreed) {
            self.decide(now, &group, Vec::new(), fx);
        }
    }

    /// Cuts into groups that make records of a bounded size.
    fn groups(&self, txids: Vec<Txid>) -> Vec<Vec<Txid>> {
        let mut groups: Vec<Vec<Txid>> = Vec::new();
        let mut bytes = usize::MAX;
        for txid in txids {
            let more = self.recorded_bytes(txid);
            match groups.last_mut() {
                Some(group) if group.len() < GROUP_TRANSACTIONS && bytes.saturating_add(more) <= GROUP_BYTES => group.push(txid),
                _ => {
                    bytes = 0;
                    groups.push(vec![txid]);
                }
            }
            bytes += more;
        }
        groups
    }

    /// What a transaction's redos and results add to the record that decides it, as far as its branches have voted; bytes.
    fn recorded_bytes(&self, txid: Txid) -> usize {
        let voted = self.transactions[&txid].branches.iter().filter_map(|branch| match &branch.state {
            BranchState::Voted(_, vote) => Some(vote),
            BranchState::Idle | BranchState::Asked(_) | BranchState::Following | BranchState::Finished => None,
        });
        voted.map(Vote::recorded_bytes).sum()
    }

    fn next(&self, txid: Txid) -> Next {
        let transaction = &self.transactions[&txid];
        let of_kind = |kind| transaction.branches.iter().filter(move |branch| self.follower(branch.participant).kind == kind);
        let idle = |kind| of_kind(kind).filter(|branch| branch.state == BranchState::Idle);
        let asked = |kind| of_kind(kind).any(|branch| matches!(branch.state, BranchState::Asked(_)));
        let mut ask: Vec<_> = idle(Kind::Redo).map(|branch| branch.participant).collect();
        if !asked(Kind::Preparing) {
            // What an application has prepared holds its locks already: it is looked at before another database waits for its own.
            let first = idle(Kind::Preparing).find(|branch| branch.enlisted()).or_else(|| idle(Kind::Preparing).next());
            let next = first.map(|branch| branch.participant);
            ask.extend(next.filter(|next| !self.may_share_soon(transaction, *next)));
        }
        if broken(Mutation::LeaderVotesEarly) {
            ask.extend(idle(Kind::Leader).map(|branch| branch.participant));
        }
        if !ask.is_empty() {
            return Next::Ask(ask);
        }
        if asked(Kind::Redo) || asked(Kind::Preparing) {
            return Next::Wait;
        }
        for last in [Kind::Serial, Kind::Leader] {
            if let Some(branch) = idle(last).next() {
                return Next::Ask(vec![branch.participant]);
            }
            if asked(last) {
                return Next::Wait;
            }
        }
        Next::Decide
    }

    /// R-SHARED: whether this branch may be one with others' at its store: everybody else has voted Yes, so nothing but the store's own vote
    /// is still to come.
    pub(crate) fn may_share(&self, transaction: &Transaction, participant: ParticipantId) -> bool {
        let voted = |branch: &Branch| matches!(branch.state, BranchState::Voted(..)) || broken(Mutation::SharesEarly);
        let last = transaction.branches.iter().all(|branch| branch.participant == participant || voted(branch));
        last && self.can_share(transaction, participant) && self.recorded_bytes(transaction.txid) <= SHARED_BYTES
    }

    fn can_share(&self, transaction: &Transaction, participant: ParticipantId) -> bool {
        let follower = self.follower(participant);
        let able = follower.kind == Kind::Preparing && follower.abilities.shares && follower.role == Role::Database;
        let enlisted = transaction.branch(participant).is_some_and(Branch::enlisted);
        able && !enlisted && transaction.txid.decider == Decider::Log
    }

    /// Whether only redo votes, which nobody waits for long, are missing for that.
    fn may_share_soon(&self, transaction: &Transaction, participant: ParticipantId) -> bool {
        let redo = |branch: &&Branch| self.follower(branch.participant).kind == Kind::Redo;
        let voted = |branch: &Branch| matches!(branch.state, BranchState::Voted(..));
        let mut others = transaction.branches.iter().filter(|branch| branch.participant != participant && !voted(branch)).peekable();
        self.can_share(transaction, participant) && others.peek().is_some() && others.all(|branch| redo(&branch))
    }

    fn ask(&mut self, now: Time, txid: Txid, participant: ParticipantId, fx: &mut Vec<Effect>) {
        let Some(session) = self.follower(participant).open_session() else {
            let sentence = format!("store `{}` has become unavailable", self.follower(participant).name);
            return self.abort(now, txid, Some(participant), Refusal::new(RefusalKind::Unavailable, sentence), fx);
        };
        let timeout = self.config.prepare_timeout;
        let Some(transaction) = self.transactions.get(&txid) else { return };
        let shares = self.may_share(transaction, participant);
        let transaction = self.transactions.get_mut(&txid).expect("just found");
        let left = transaction.timer.map_or(timeout, |deadline| deadline.0.saturating_sub(now.0));
        let branch = transaction.branch_mut(participant).expect("only branches are asked");
        assert_eq!(branch.state, BranchState::Idle, "R-ONEPREP: a second Prepare for {txid}");
        (branch.state, branch.times.asked) = (BranchState::Asked(session), Some(now));
        let within = |context: TraceContext| context.within(context.prepare_span(txid, participant));
        let trace = transaction.trace.map(|traced| within(traced.context));
        let branch = transaction.branch(participant).expect("just found");
        let work = Work { txid, operations: branch.operations.clone(), timeout: timeout.min(left), trace, shares };
        fx.push(Effect::Send(participant, session, ToParticipant::Prepare(work)));
    }

    /// A participant's votes. One No ends a transaction; the last Yes of those that ran together decides them, and every other Yes gets
    /// its transaction on.
    pub(crate) fn ballot(&mut self, now: Time, participant: ParticipantId, session: SessionId, ballot: Ballot, fx: &mut Vec<Effect>) {
        self.abort_what_no_record_takes(now, participant, session, &ballot, fx);
        // What a preparing store leads it leads by itself.
        let together = self.follower(participant).kind != Kind::Preparing;
        let in_batch = |vote: &Vote| matches!(vote, Vote::InGroup(_)) || (together && matches!(vote, Vote::Ready(_)));
        // R-SERIAL, R-SHARED: one of them was aborted meanwhile; its Abort is on its way, and the others run again.
        let stays = if together { Mutation::RestOfBatchStays } else { Mutation::RestOfBranchStays };
        let taken_back =
            !broken(stays) && ballot.votes.iter().any(|(txid, vote)| in_batch(vote) && !self.awaits(*txid, participant, session));
        let (mut batch, mut ready, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for (txid, vote) in ballot.votes {
            if !self.awaits(txid, participant, session) || (taken_back && in_batch(&vote)) {
                continue;
            }
            let refusal = if let Vote::No(refusal) = &vote { Some(refusal.clone()) } else { None };
            let agreed = match &vote {
                vote if in_batch(vote) => &mut batch,
                Vote::Ready(_) => &mut ready,
                _ => &mut others,
            };
            self.take_vote(now, txid, participant, session, vote, fx);
            match refusal {
                Some(refusal) => self.abort(now, txid, Some(participant), refusal, fx),
                None => agreed.push(txid),
            }
        }
        self.batch_voted(now, participant, batch, ballot.group_redo, fx);
        if !ready.is_empty() {
            self.lead(now, participant, ready, fx);
        }
        self.advance_all(now, others, fx);
    }

    /// The vote that was awaited stands with its branch.
    fn take_vote(&mut self, now: Time, txid: Txid, participant: ParticipantId, session: SessionId, vote: Vote, fx: &mut Vec<Effect>) {
        let transaction = self.transactions.get_mut(&txid).expect("awaited");
        let branch = transaction.branch_mut(participant).expect("awaited");
        let refusal = if let Vote::No(refusal) = &vote { Some(refusal.kind) } else { None };
        let stretch = Stretch::Prepare { participant, vote: Some(vote.word()), refusal };
        let began = branch.times.asked.unwrap_or(now);
        (branch.state, branch.times.voted) = (BranchState::Voted(session, vote), Some(now));
        if let Some(traced) = transaction.trace {
            self.tell_trace(Span { context: traced.context, txid, csn: None, began, ended: now, stretch }, fx);
        }
    }

    fn abort_what_no_record_takes(
        &mut self,
        now: Time,
        participant: ParticipantId,
        session: SessionId,
        ballot: &Ballot,
        fx: &mut Vec<Effect>,
    ) {
        for (txid, bytes) in self.too_large(participant, session, ballot) {
            let sentence =
                format!("its redos and results have {bytes} bytes: a record of the log takes at most {TRANSACTION_RECORD_BYTES} of one");
            self.abort(now, txid, Some(participant), Refusal::new(RefusalKind::Invalid, sentence), fx);
        }
        for txid in self.beyond_record(participant, session, ballot) {
            let sentence = "too much is to be committed at once: the other transactions of its batch fill the log's record";
            self.abort(now, txid, Some(participant), Refusal::new(RefusalKind::Busy, sentence), fx);
        }
    }

    /// Those whose redos and results alone, with these votes, are more than a record takes; and how many bytes.
    fn too_large(&self, participant: ParticipantId, session: SessionId, ballot: &Ballot) -> Vec<(Txid, usize)> {
        let in_batch = |vote: &Vote| matches!(vote, Vote::InGroup(_));
        let alone = ballot.votes.iter().filter(|(_, vote)| in_batch(vote)).count() == 1;
        let awaited = ballot.votes.iter().filter(|(txid, _)| self.awaits(*txid, participant, session));
        let sized = awaited.map(|(txid, vote)| {
            let group = if alone && in_batch(vote) { ballot.group_redo.len() } else { 0 };
            (*txid, self.recorded_bytes(*txid) + vote.recorded_bytes() + group)
        });
        sized.filter(|(_, bytes)| *bytes > TRANSACTION_RECORD_BYTES).collect()
    }

    /// Of a batch that ran in one local transaction, and that the log is to decide: those behind what one record takes.
    fn beyond_record(&self, participant: ParticipantId, session: SessionId, ballot: &Ballot) -> Vec<Txid> {
        let of_batch = ballot.votes.iter().filter(|(txid, vote)| {
            matches!(vote, Vote::InGroup(_)) && txid.decider == Decider::Log && self.awaits(*txid, participant, session)
        });
        let mut bytes = ballot.group_redo.len();
        let mut beyond = Vec::new();
        for (place, (txid, vote)) in of_batch.enumerate() {
            bytes += self.recorded_bytes(*txid) + vote.recorded_bytes();
            if bytes > BATCH_RECORD_BYTES && place > 0 {
                beyond.push(*txid);
            }
        }
        beyond
    }

    /// Whether this participant's vote on it, in this session, is still to come.
    pub(crate) fn awaits(&self, txid: Txid, participant: ParticipantId, session: SessionId) -> bool {
        let branch = self.transactions.get(&txid).and_then(|transaction| transaction.branch(participant));
        branch.is_some_and(|branch| branch.state == BranchState::Asked(session))
    }

    /// The votes of those that ran in one local transaction, open (R-SERIAL) or prepared (R-SHARED): decided together, in the order run.
    fn batch_voted(&mut self, now: Time, participant: ParticipantId, batch: Vec<Txid>, redo: bytes::Bytes, fx: &mut Vec<Effect>) {
        let Some(&first) = batch.first() else { return };
        match (self.follower(participant).kind, first.decider) {
            (Kind::Leader, _) => self.lead(now, participant, batch, fx),
            (_, Decider::Log) => {
                let together = batch.iter().all(|txid| txid.decider == Decider::Log);
                assert!(together || broken(Mutation::LedSharesBatch), "R-SERIAL: a led transaction shares a batch");
                self.decide(now, &batch, vec![GroupRedo { participant, redo }], fx);
            }
            (_, Decider::Leader(_)) => {
                assert!(batch.len() == 1 || broken(Mutation::LedSharesBatch), "R-SERIAL: a led transaction gets a batch of its own");
                self.transactions.get_mut(&first).expect("voted").group_redo = Some(GroupRedo { participant, redo });
                self.advance(now, first, fx);
            }
        }
    }

    /// All have voted Yes, and none of them in an open batch: whether the log is to decide it. If not, it has ended here.
    fn concludes(&mut self, now: Time, txid: Txid, fx: &mut Vec<Effect>) -> bool {
        let transaction = &self.transactions[&txid];
        let writes = |role| {
            let mut branches = transaction.branches.iter().filter(|branch| self.follower(branch.participant).role == role);
            branches.find(|branch| !matches!(branch.state, BranchState::Voted(_, Vote::ReadOnly(_)))).map(|branch| branch.participant)
        };
        let refusal = match (writes(Role::Database), writes(Role::Index), txid.decider) {
            (None, None, _) => {
                self.commit_read_only(now, txid, fx);
                return false;
            }
            (Some(_), _, Decider::Log) => return true,
            (None, Some(index), Decider::Log) if self.follower(index).standalone => return true,
            (None, Some(index), _) => (index, self.uncovered_sentence(index)),
            (Some(database), _, Decider::Leader(leader)) => {
                (database, format!("nothing was written at `{}`, which would have to decide", self.follower(leader).name))
            }
        };
        self.abort(now, txid, Some(refusal.0), Refusal::new(RefusalKind::Invalid, refusal.1), fx);
        false
    }

    /// Nothing was written anywhere: no CSN, no record, no phase two.
    fn commit_read_only(&mut self, now: Time, txid: Txid, fx: &mut Vec<Effect>) {
        // What was read may be as new as that, though a leader still decides about something older.
        let csn = self.last_csn;
        let results = Some(results_of(&self.transactions[&txid]));
        let at_ms = self.wall_ms(now);
        self.outcomes.settle(txid, now, Fate::Committed(CommittedFate { csn, lsn: None, at_ms, results }));
        self.counts.committed += 1;
        self.open -= 1;
        self.set_timer(txid, None);
        let transaction = self.transactions.get_mut(&txid).expect("it is being concluded");
        transaction.state = State::Committing(csn);
        let branches = std::mem::take(&mut transaction.branches);
        self.release_keys(&branches, None);
        self.answer_waiters(now, txid, fx);
        self.end_if_followed(txid);
    }

    /// **The decision**, where the log decides: CSNs are taken in this order, and one record holds them all (R-ORDER, R-SERIAL).
    fn decide(&mut self, now: Time, txids: &[Txid], groups: Vec<GroupRedo>, fx: &mut Vec<Effect>) {
        let mut txids = txids.to_vec();
        if broken(Mutation::BatchOutOfOrder) {
            txids.reverse();
        }
        if broken(Mutation::CsnAtBegin) {
            // A record is in CSN order, however its CSNs are taken.
            txids.sort();
        }
        let (entries, payloads): (Vec<_>, Vec<_>) = txids.iter().map(|txid| self.take_csn(now, *txid)).unzip();
        let trace = |(at, txid): (usize, &Txid)| Some((at as u32, self.transactions[txid].trace?.context));
        let payload = Payload { entries: payloads, groups, traces: txids.iter().enumerate().filter_map(trace).collect() };
        let key = entries.last().expect("a decision has entries").csn;
        let group = CommitGroup { entries: entries.clone(), payload: Some(payload.clone()) };
        let lsn = self.append(Record::Commit(group), Some(Pending::Decision(key)), fx);
        self.last_log_csn = key;
        self.last_commit = Some(lsn);
        self.reserve(now, Decision { entries, payload, lsn: Some(lsn), decided: false, since: now, open_items: 0 });
    }

    /// The CSNs where a database decides: everything has run there; now it may commit (R-LR).
    fn lead(&mut self, now: Time, leader: ParticipantId, batch: Vec<Txid>, fx: &mut Vec<Effect>) {
        let mut markers = Vec::with_capacity(batch.len());
        for txid in batch {
            let (entry, payload) = self.take_csn(now, txid);
            let transaction = self.transactions.get_mut(&txid).expect("voted");
            let groups: Vec<_> = transaction.group_redo.take().into_iter().collect();
            let trace = transaction.trace.map(|traced| traced.context);
            if entry.branches == [leader] && self.deciding.remove(&entry.csn) {
                self.deciding_alone.insert(entry.csn);
            }
            let mut kept = payload.clone();
            if broken(Mutation::MarkerHoldsOneRedo) {
                kept.redos.truncate(1);
            }
            markers.push(Marker { entry: entry.clone(), payload: kept, groups: groups.clone(), trace });
            let payload = Payload::of_one(payload, groups, trace);
            self.reserve(now, Decision { entries: vec![entry], payload, lsn: None, decided: false, since: now, open_items: 0 });
        }
        self.send(leader, ToParticipant::Lead(markers), fx);
    }

    /// Takes the next CSN for a transaction on which everyone has voted Yes (I3, R-ORDER).
    fn take_csn(&mut self, now: Time, txid: Txid) -> (CommitEntry, EntryPayload) {
        let csn = self.next_csn(txid);
        let at_ms = self.wall_ms(now);
        self.deciding.insert(csn);
        self.set_timer(txid, None);
        let known = self.outcomes.by_txid(txid).expect("a live transaction is known");
        let (key, request_hash) = (known.key.clone(), known.hash);
        let transaction = self.transactions.get_mut(&txid).expect("voted");
        assert_eq!(transaction.state, State::Preparing, "a decision is taken once: {txid}");
        transaction.state = State::Deciding(csn);
        let mut entry = CommitEntry { txid, csn, key, request_hash, at_ms, branches: Vec::new() };
        let mut payload = EntryPayload { results: results_of(transaction), redos: Vec::new() };
        for branch in &mut transaction.branches {
            if broken(Mutation::LeaderVotesEarly) && !matches!(branch.state, BranchState::Voted(..)) {
                // It is decided without those that have not voted.
                if matches!(branch.state, BranchState::Asked(_)) {
                    branch.state = BranchState::Finished;
                }
                continue;
            }
            let BranchState::Voted(_, vote) = std::mem::replace(&mut branch.state, BranchState::Following) else {
                panic!("I3: {txid} is decided without the vote of {}", branch.participant);
            };
            match vote {
                Vote::Prepared(_) | Vote::InGroup(_) | Vote::Ready(_) => entry.branches.push(branch.participant),
                Vote::Redo(redo, _) => {
                    entry.branches.push(branch.participant);
                    payload.redos.push(BranchRedo { participant: branch.participant, redo, keys: keys_of(&branch.operations) });
                }
                Vote::ReadOnly(_) if broken(Mutation::ReadOnlyFollows) => entry.branches.push(branch.participant),
                Vote::ReadOnly(_) => branch.state = BranchState::Finished,
                Vote::No(_) => panic!("I3: {txid} is decided against the vote of {}", branch.participant),
            }
        }
        (entry, payload)
    }

    fn next_csn(&mut self, txid: Txid) -> Csn {
        let epoch = if broken(Mutation::CsnRestarts) { Epoch(1) } else { self.owner.epoch };
        let n = if self.last_csn.epoch() == epoch { self.last_csn.n() + 1 } else { 1 };
        let csn = if broken(Mutation::CsnAtBegin) { Csn::new(txid.epoch, txid.n) } else { Csn::new(epoch, n) };
        assert!(csn > self.last_csn || broken(Mutation::CsnAtBegin), "R-ORDER: CSNs never go back");
        self.last_csn = self.last_csn.max(csn);
        csn
    }

    /// From now on every new session of a participant learns of this redo before it takes a Prepare (R-REDO).
    pub(crate) fn reserve(&mut self, now: Time, mut decision: Decision) {
        decision.open_items = self.put_items(now, &decision, &FxHashSet::default());
        self.decisions.insert(decision.key(), decision);
    }

    /// The one way to Aborted before the decision is on its way. Behind that there is only R-LR's own: see `take_back`.
    pub(crate) fn abort(&mut self, now: Time, txid: Txid, at: Option<ParticipantId>, refusal: Refusal, fx: &mut Vec<Effect>) {
        self.set_timer(txid, None);
        let transaction = self.transactions.remove(&txid).expect("only a live transaction is aborted");
        let undecided = matches!(transaction.state, State::Active | State::Preparing) || broken(Mutation::DecidingAborts);
        assert!(undecided, "R-UNKNOWN: there is no way from {:?} to Aborted: {txid}", transaction.state);
        for branch in &transaction.branches {
            let session = self.follower(branch.participant).open_session();
            let working = match &branch.state {
                BranchState::Asked(asked) => session == Some(*asked),
                BranchState::Voted(_, Vote::Prepared(_)) => session.is_some(),
                BranchState::Voted(voted, Vote::Redo(..) | Vote::InGroup(_) | Vote::Ready(_)) => session == Some(*voted),
                // Nobody asked, but its application has prepared it.
                BranchState::Idle => branch.enlisted() && session.is_some(),
                BranchState::Voted(_, Vote::ReadOnly(_) | Vote::No(_)) => false,
                BranchState::Following | BranchState::Finished => false,
            };
            if working {
                self.send(branch.participant, ToParticipant::Abort(txid), fx);
            }
        }
        self.release_keys(&transaction.branches, None);
        self.trace_abort(now, &transaction, at, refusal.kind, fx);
        self.aborted(now, txid, at, refusal, transaction.waiters, fx);
    }

    /// Settles the fate and tells everyone who waits.
    pub(crate) fn aborted(
        &mut self,
        now: Time,
        txid: Txid,
        at: Option<ParticipantId>,
        refusal: Refusal,
        waiters: Vec<crate::transaction::Waiter>,
        fx: &mut Vec<Effect>,
    ) {
        let aborted = Aborted { txid: Some(txid), participant: at, refusal };
        for waiter in waiters {
            self.reply(waiter.ticket, Reply::Aborted(aborted.clone()), fx);
        }
        self.outcomes.settle(txid, now, Fate::Aborted(Box::new(aborted)));
        self.open -= 1;
        self.counts.aborted += 1;
        self.compare_by_hand(now, txid, Some(false), fx);
    }

    /// The writers of these documents are decided.
    pub(crate) fn release_keys(&mut self, branches: &[Branch], committed: Option<Csn>) {
        for branch in branches {
            // Only a redo is applied some day; what was read-only there wrote nothing.
            let wrote = branch.state == BranchState::Following && self.follower(branch.participant).kind == Kind::Redo;
            for operation in branch.operations.iter() {
                self.keys.decide(branch.participant, operation, committed.filter(|_| wrote));
            }
        }
    }
}

fn results_of(transaction: &Transaction) -> crate::outcomes::ResultsByStore {
    let mut results = Vec::new();
    for branch in &transaction.branches {
        let of_branch = match &branch.state {
            BranchState::Voted(_, Vote::Prepared(r) | Vote::Redo(_, r) | Vote::InGroup(r) | Vote::Ready(r) | Vote::ReadOnly(r)) => r,
            BranchState::Voted(_, Vote::No(_)) => continue,
            BranchState::Idle | BranchState::Asked(_) | BranchState::Following | BranchState::Finished => continue,
        };
        if !of_branch.is_empty() {
            results.push((branch.participant, of_branch.clone()));
        }
    }
    results
}

fn keys_of(operations: &[Operation]) -> Vec<KeyWrite> {
    let write = |operation: &Operation| {
        let delete = matches!(operation, Operation::Delete { .. });
        operation.key().map(|key| KeyWrite { key: Arc::from(key), delete })
    };
    operations.iter().filter_map(write).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::event::Event;
    use crate::ids::{CoordId, LogId, Lsn, Ticket};
    use crate::message::{FromParticipant, Hello};
    use crate::recovery::Identity;
    use crate::request::{BranchRequest, Request, RequestKey, Wait};
    use crate::{ParticipantConfig, StatementResult};
    use bytes::Bytes;

    /// Two indices, each of which says that it needs so many bytes to apply its part.
    fn decides(bytes: usize) -> Vec<Effect> {
        let store = |name: &str| ParticipantConfig { name: name.into(), kind: Kind::Redo, role: Role::Index, standalone: true };
        let config = Config { participants: vec![store("films"), store("people")], ..Config::default() };
        let identity = Identity { coord_id: CoordId(1), log_id: LogId(1), incarnation: 1 };
        let (mut fx, indices) = (Vec::new(), [ParticipantId(0), ParticipantId(1)]);
        let mut machine = Coordinator::start(config, identity, Vec::new(), Time(0), &mut fx).expect("a log");
        let mut step = |event| machine.step(Time(1), event, &mut fx);
        step(Event::Durable(Lsn(4)));
        let sessions = indices.map(|index| (index, SessionId(1 + u64::from(index.0))));
        for (index, session) in sessions {
            step(Event::SessionUp(index, session));
            step(Event::Message(index, session, FromParticipant::Hello(Hello::of_nothing(Kind::Redo))));
        }
        let put = Operation::Put { key: "k".into(), document: "{}".into(), condition: None };
        let branches = indices.map(|participant| BranchRequest { participant, operations: [put.clone()].into() });
        let (key, position) = (RequestKey { key: b"1"[..].into(), attempt: 1 }, crate::Position { epoch: Epoch(1), n: 1 });
        let (wait, deadline) = (Wait::Decided, Time(9));
        let request = Request { key, position, new_key: true, hash: 1, branches: branches.into(), wait, timeout: 0, deadline, trace: None };
        step(Event::Commit(Ticket(1), request));
        let txid = Txid { epoch: Epoch(1), n: 1, decider: Decider::Log };
        let (redo, results) = (Bytes::from(vec![0; bytes]), [StatementResult::default()].into());
        for (index, session) in sessions {
            let votes = vec![(txid, Vote::Redo(redo.clone(), crate::Results::clone(&results)))];
            step(Event::Message(index, session, FromParticipant::Ballot(Ballot { votes, ..Ballot::default() })));
        }
        fx
    }

    #[test]
    fn what_a_record_does_not_take_is_aborted() {
        let is_decided = |effect: &Effect| matches!(effect, Effect::Append { record: Record::Commit(_), .. });
        assert!(decides(TRANSACTION_RECORD_BYTES / 2 - 100).iter().any(is_decided));
        let fx = decides(TRANSACTION_RECORD_BYTES / 2);
        assert!(!fx.iter().any(is_decided));
        let aborted = |effect| if let Effect::Reply(_, Reply::Aborted(aborted)) = effect { Some(aborted) } else { None };
        let aborted = fx.into_iter().find_map(aborted).expect("it is answered");
        assert_eq!((aborted.participant, aborted.refusal.kind), (Some(ParticipantId(1)), RefusalKind::Invalid));
        assert!(aborted.refusal.message.contains(&TRANSACTION_RECORD_BYTES.to_string()), "{}", aborted.refusal);
    }
}
