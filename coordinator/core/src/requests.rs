//! Clients: what they ask, and what they are told (R-KEY).

use crate::coordinator::{Coordinator, Phase, Settling, Timer};
use crate::event::Effect;
use crate::follower::{Follower, ReadWaiter, Session};
use crate::ids::{Csn, Decider, ParticipantId, Position, Ticket, Time, Token, Txid};
use crate::message::{Settle, ToParticipant};
use crate::mutation::{Mutation, broken};
use crate::outcomes::{CommittedFate, Fate, Known};
use crate::record::{Damage, DamageKind, Marker};
use crate::request::{Aborted, BranchRequest, Receipt, Reply, Request, RequestKey, Wait};
use crate::trace::{Outcome, Span, Stretch};
use crate::transaction::{Branch, State, Transaction, Waiter, is_enlisted};
use crate::vote::{Kind, Refusal, RefusalKind};
use crate::{config::Role, follower::Scan};
use std::collections::BTreeSet;

/// What is to be done with a request whose key is not known (R-KEY).
enum Unseen {
    /// First sent to this start: run it.
    Run,
    /// First sent to an earlier start: look it up, never run it.
    LookUp,
    /// Its outcome may be forgotten.
    Expired,
    /// First sent to a start that this log knows nothing of.
    FromTheFuture,
    /// First sent to this start, as it says; but nobody can tell whether it was not decided before. The sentence says what is waited for.
    InDoubt(String),
}

/// At which store, if at one, and why not.
type Refused = (Option<ParticipantId>, Refusal);

/// Clients that wait for one transaction, at most.
const WAITERS_MAX: usize = 1_024;
/// Clients that wait to read at one store, at most; one more is told at once how far it is.
const READERS_MAX: usize = 16_384;

/// Damage not forgotten, at most: with more of it nothing new is taken. One store that is removed far behind adds some 100,000.
const DAMAGE_MAX: usize = 1_000_000;

/// Why nothing is said of a key now.
const PASSED_NEXT: &str = "the floor is being raised past it: its outcome is about to be forgotten";

impl Coordinator {
    /// `declined`: it cannot be run as it stands, and why.
    pub(crate) fn request(&mut self, now: Time, ticket: Ticket, request: Request, declined: Option<Refused>, fx: &mut Vec<Effect>) {
        let waiter = Waiter { ticket, wait: request.wait, deadline: request.deadline };
        if let Some(known) = self.outcomes.by_key(&request.key)
            && !broken(Mutation::KeyRunsAgain)
            && !(broken(Mutation::AbortedKeyRuns) && matches!(known.fate, Fate::Aborted(_)))
        {
            let txid = known.txid;
            return match self.is_active(txid) {
                true => self.commit_begun(now, txid, waiter, request, declined, fx),
                false => self.join(now, txid, waiter, Some(request.hash), fx),
            };
        }
        if let Some(reason) = self.cannot_tell() {
            return self.reply(ticket, Reply::Unknown(reason), fx);
        }
        // Of one that is declined nobody says what it asks for.
        let concerns = |leader: &Follower| !request.new_key && (declined.is_some() || may_have_led(leader, &request.branches));
        match (self.unseen(request.position, concerns), declined) {
            (Unseen::Run, None) => self.run(now, waiter, request, fx),
            (Unseen::Run, Some(refused)) => self.turn_down(now, waiter, request, refused, fx),
            (Unseen::LookUp, _) => self.look_up(now, waiter, request.key, request.position, Some(request.hash), fx),
            (Unseen::Expired, _) => self.reply(ticket, Reply::Expired(self.outcomes.floor()), fx),
            (Unseen::FromTheFuture, _) => self.reply(ticket, Reply::Unknown(self.future_sentence(request.position)), fx),
            (Unseen::InDoubt(reason), _) => self.reply(ticket, Reply::Unknown(reason), fx),
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn begin(
        &mut self,
        now: Time,
        ticket: Ticket,
        key: RequestKey,
        position: Position,
        led_by: Option<ParticipantId>,
        timeout: u64,
        fx: &mut Vec<Effect>,
    ) {
        let timeout = now.after(if timeout == 0 { self.config.begin_timeout } else { timeout });
        let decider = led_by.map_or(Decider::Log, Decider::Leader);
        let waiter = Waiter { ticket, wait: Wait::Decided, deadline: timeout };
        if let Some(txid) = self.outcomes.by_key(&key).map(|known| known.txid) {
            return match (self.is_active(txid), txid.decider == decider) {
                (true, true) => self.reply(ticket, Reply::Begun(txid), fx),
                (true, false) => self.reply(ticket, Reply::KeyReused(txid), fx),
                // It has been asked to commit already: this Begin was late, and its outcome is the answer.
                (false, _) => self.join(now, txid, waiter, None, fx),
            };
        }
        if let Some(reason) = self.cannot_tell() {
            return self.reply(ticket, Reply::Unknown(reason), fx);
        }
        // Its id names who decides it: begun again, it is the same one.
        match self.unseen(position, |leader| led_by == Some(leader.id)) {
            Unseen::Run => match self.admit_begin(led_by) {
                Ok(()) => {
                    let txid = self.enter(now, State::Active, decider, key, 0, Vec::new(), Vec::new(), timeout);
                    self.reply(ticket, Reply::Begun(txid), fx);
                }
                Err((at, refusal)) => drop(self.refuse(now, waiter, key, 0, at, refusal, fx)),
            },
            Unseen::LookUp => self.look_up(now, waiter, key, position, None, fx),
            Unseen::Expired => self.reply(ticket, Reply::Expired(self.outcomes.floor()), fx),
            Unseen::FromTheFuture => self.reply(ticket, Reply::Unknown(self.future_sentence(position)), fx),
            Unseen::InDoubt(reason) => self.reply(ticket, Reply::Unknown(reason), fx),
        }
    }

    pub(crate) fn roll_back(&mut self, now: Time, ticket: Ticket, key: RequestKey, position: Position, fx: &mut Vec<Effect>) {
        let refusal = Refusal::new(RefusalKind::Cancelled, "rolled back by its client");
        let waiter = Waiter { ticket, wait: Wait::Decided, deadline: now.after(self.config.transaction_timeout) };
        match self.outcomes.by_key(&key).map(|known| known.txid) {
            Some(txid) if self.is_active(txid) => {
                self.transactions.get_mut(&txid).expect("it is active").waiters.push(waiter);
                self.abort(now, txid, None, refusal, fx);
            }
            _ => self.ask_outcome(now, waiter, key, position, refusal, fx),
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn inquire(
        &mut self,
        now: Time,
        ticket: Ticket,
        key: RequestKey,
        position: Position,
        wait: Wait,
        deadline: Time,
        fx: &mut Vec<Effect>,
    ) {
        let refusal =
            Refusal::new(RefusalKind::Cancelled, "the request never arrived; it was asked about first, so it never runs under this key");
        self.ask_outcome(now, Waiter { ticket, wait, deadline }, key, position, refusal, fx);
    }

    /// `never_came`: what its key is settled with if nothing has arrived under it.
    #[allow(clippy::too_many_arguments)]
    fn ask_outcome(&mut self, now: Time, waiter: Waiter, key: RequestKey, position: Position, never_came: Refusal, fx: &mut Vec<Effect>) {
        if let Some(known) = self.outcomes.by_key(&key) {
            return self.join(now, known.txid, waiter, None, fx);
        }
        if let Some(reason) = self.cannot_tell() {
            return self.reply(waiter.ticket, Reply::Unknown(reason), fx);
        }
        match self.unseen(position, |_| true) {
            Unseen::Run => drop(self.refuse(now, waiter, key, 0, None, never_came, fx)),
            Unseen::LookUp => self.look_up(now, waiter, key, position, None, fx),
            Unseen::Expired => self.reply(waiter.ticket, Reply::Expired(self.outcomes.floor()), fx),
            Unseen::FromTheFuture => self.reply(waiter.ticket, Reply::Unknown(self.future_sentence(position)), fx),
            Unseen::InDoubt(reason) => self.reply(waiter.ticket, Reply::Unknown(reason), fx),
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn at_least(
        &mut self,
        now: Time,
        ticket: Ticket,
        participant: ParticipantId,
        token: Token,
        deadline: Time,
        fx: &mut Vec<Effect>,
    ) {
        if participant.0 as usize >= self.followers.len() {
            let refusal = Refusal::new(RefusalKind::Invalid, format!("there is no store {participant}"));
            return self.reply(ticket, Reply::Refused(refusal), fx);
        }
        if token.log_id != self.log_id {
            return self.reply(ticket, Reply::ForeignToken(self.log_id), fx);
        }
        if self.reached(participant, token.csn) {
            return self.reply(ticket, Reply::Reached(self.follower(participant).progress.applied.max(token.csn)), fx);
        }
        if deadline <= now || self.follower(participant).readers.len() >= READERS_MAX {
            return self.reply(ticket, Reply::Behind(self.follower(participant).reached()), fx);
        }
        self.follower_mut(participant).readers.push(ReadWaiter { ticket, csn: token.csn, deadline });
        self.timers.insert((deadline, Timer::Read(participant, ticket)));
    }

    /// Whether every branch with a CSN up to this one is applied there.
    fn reached(&self, participant: ParticipantId, csn: Csn) -> bool {
        let follower = self.follower(participant);
        // What it had, it may not have any more.
        if follower.lost {
            return false;
        }
        // A serial executor's item stands under the last CSN of its group, and is owed from the first.
        let first_owed = follower.oldest_unapplied().map(|(key, item)| {
            let mut covered = self.decisions[&item.decision].covered(participant, item.entry);
            covered.next().filter(|_| !broken(Mutation::GroupOwedFromLast)).map_or(key, |(_, entry)| entry.csn)
        });
        // Nothing of an older epoch is open once its leaders have told, though its last CSNs may not have been decided.
        let taken = csn.epoch() < self.owner.epoch || csn <= self.last_csn;
        let known = follower.progress.applied >= csn || (follower.evidence && self.unscanned_leader().is_none() && taken);
        known && first_owed.is_none_or(|oldest| oldest > csn || (oldest == csn && broken(Mutation::ReachedOffByOne)))
    }

    /// Answers clients that wait to read there and need not wait any more.
    pub(crate) fn answer_readers(&mut self, participant: ParticipantId, fx: &mut Vec<Effect>) {
        if self.follower(participant).readers.is_empty() {
            return;
        }
        let readers = std::mem::take(&mut self.follower_mut(participant).readers);
        let (reached, waiting): (Vec<_>, Vec<_>) = readers.into_iter().partition(|reader| self.reached(participant, reader.csn));
        self.follower_mut(participant).readers = waiting;
        for reader in reached {
            self.timers.remove(&(reader.deadline, Timer::Read(participant, reader.ticket)));
            self.reply(reader.ticket, Reply::Reached(self.follower(participant).progress.applied.max(reader.csn)), fx);
        }
    }

    pub(crate) fn answer_all_readers(&mut self, fx: &mut Vec<Effect>) {
        for i in 0..self.followers.len() {
            self.answer_readers(ParticipantId(i as u16), fx);
        }
    }

    pub(crate) fn read_deadline(&mut self, participant: ParticipantId, ticket: Ticket, fx: &mut Vec<Effect>) {
        self.follower_mut(participant).readers.retain(|reader| reader.ticket != ticket);
        self.reply(ticket, Reply::Behind(self.follower(participant).reached()), fx);
    }

    /// Why nothing can be said about an unknown key now, if nothing can.
    fn cannot_tell(&self) -> Option<String> {
        match &self.phase {
            Phase::Starting => Some("the coordinator is starting: its new epoch is not durable yet".into()),
            Phase::Stopped(reason) => Some(format!("the coordinator has stopped: {reason}")),
            // Keys that leaders are being asked about get theirs yet.
            Phase::Serving | Phase::Safe(_) if self.next_n > Csn::N_MAX.saturating_sub(self.config.max_open as u64) => {
                Some("the numbers for transactions of this start are used up: start the coordinator again".into())
            }
            // Outcomes can't be dropped past a transaction in doubt; a fate that cannot be kept is not promised.
            Phase::Serving | Phase::Safe(_) if self.outcomes.len() >= self.outcomes_limit() => {
                let kept = self.outcomes.len();
                Some(format!(
                    "{kept} outcomes are kept, far more than outcomes_max: they are forgotten in order, and an old transaction is undecided, or a \
                     store has not followed one that a database decided; `lockstep status` shows which"
                ))
            }
            Phase::Serving | Phase::Safe(_) => None,
        }
    }

    /// Outcomes that a start keeps at most; what leaders tell may come on top.
    pub(crate) fn outcomes_limit(&self) -> usize {
        2 * self.config.outcomes_max + 4 * self.config.max_open
    }

    /// `concerns`: whether the request may have been decided at this leader.
    fn unseen(&self, position: Position, concerns: impl Fn(&Follower) -> bool) -> Unseen {
        if position > self.position() {
            Unseen::FromTheFuture
        } else if (self.is_below_floor(position) && !broken(Mutation::BelowFloorRuns))
            || (position.epoch < self.owner.epoch && broken(Mutation::EarlierStartsExpire))
        {
            Unseen::Expired
        } else if position.epoch < self.owner.epoch && !broken(Mutation::OldEpochRuns) {
            Unseen::LookUp
        } else if let Some(reason) = self.in_doubt(concerns) {
            Unseen::InDoubt(reason)
        } else {
            Unseen::Run
        }
    }

    /// Why a key that says it was first sent to this start may have been decided before: its client may have lost the position at which it first
    /// sent it. What the log decided before is known; what a leader did, once its markers are read, or once the floor has passed it.
    fn in_doubt(&self, concerns: impl Fn(&Follower) -> bool) -> Option<String> {
        match &self.phase {
            // A log that has lost records may have lost its own start, and count its numbers a second time.
            Phase::Safe(evidence) => return Some(format!("safe mode: {evidence}")),
            Phase::Starting | Phase::Serving | Phase::Stopped(_) => {}
        }
        let first = self.epochs.len() == 1;
        if first || self.outcomes.floor().epoch == self.owner.epoch || broken(Mutation::UntoldKeysRun) {
            return None;
        }
        let untold = |leader: &&Follower| match leader.scan {
            // A waiver lets stores go on; it settles no outcome.
            Scan::Needed | Scan::Running | Scan::Waived => leader.leads() && concerns(leader),
            // An operator has given up what a removed one had decided.
            Scan::NotNeeded | Scan::Checking | Scan::Complete | Scan::Again(_) | Scan::Gone(_) => false,
        };
        let leader = self.followers.iter().find(untold)?;
        Some(format!("store `{}` may have decided it in an earlier start, and has not told yet", leader.name))
    }

    fn is_below_floor(&self, position: Position) -> bool {
        let position = if broken(Mutation::FloorOffByOne) { Position { n: position.n + 1, ..position } } else { position };
        position < self.outcomes.floor()
    }

    fn future_sentence(&self, position: Position) -> String {
        let Position { epoch, n } = position;
        format!(
            "the request was first sent at position {epoch}-{n}, but this log has only come to {}-{}: it may have lost records",
            self.owner.epoch, self.next_n
        )
    }

    /// Another waiter for a known request, if it is the same request (R-KEY).
    fn join(&mut self, now: Time, txid: Txid, waiter: Waiter, hash: Option<u64>, fx: &mut Vec<Effect>) {
        // 0: the key became known by an inquiry, or by a request that made no sense: neither tells what the request asks for.
        let known = self.outcomes.by_txid(txid).map_or(0, |known| known.hash);
        if hash.is_some_and(|hash| hash != known && known != 0) && !broken(Mutation::AnyRequestJoins) {
            return self.reply(waiter.ticket, Reply::KeyReused(txid), fx);
        }
        if let Some(leader) = self.absent_decider(txid) {
            let sentence = format!("store `{}` decides it, and is not available now", leader.name);
            return self.reply(waiter.ticket, Reply::Unknown(sentence), fx);
        }
        if let Some(transaction) = self.transactions.get_mut(&txid) {
            if transaction.waiters.len() >= WAITERS_MAX {
                let sentence = format!("{WAITERS_MAX} clients wait for {txid} already");
                return self.reply(waiter.ticket, Reply::Unknown(sentence), fx);
            }
            transaction.waiters.push(waiter);
            if matches!(transaction.state, State::Committing(_)) {
                self.answer_waiters(now, txid, fx);
            }
            return;
        }
        let reply = self.told(txid).expect("a known request that does not run has its fate");
        self.reply(waiter.ticket, reply, fx);
    }

    /// The leader that is deciding this transaction, if it is away: nothing bounds how long.
    fn absent_decider(&self, txid: Txid) -> Option<&Follower> {
        let State::Deciding(_) = self.transactions.get(&txid)?.state else { return None };
        let Decider::Leader(leader) = txid.decider else { return None };
        Some(self.follower(leader)).filter(|leader| leader.open_session().is_none())
    }

    /// What a client is told of a settled request.
    fn told(&self, txid: Txid) -> Option<Reply> {
        match &self.outcomes.by_txid(txid)?.fate {
            Fate::Running => None,
            Fate::Committed(committed) => Some(Reply::Committed(self.receipt(txid, committed))),
            Fate::Aborted(aborted) => Some(Reply::Aborted((**aborted).clone())),
        }
    }

    fn receipt(&self, txid: Txid, committed: &CommittedFate) -> Receipt {
        let token = Token { log_id: self.log_id, csn: committed.csn };
        let of_it = |damage: &&Damage| damage.txid == txid && damage.kind != DamageKind::CommittedByHand;
        let damaged = match self.damaged.contains(&txid) {
            true => self.damage.iter().filter(of_it).map(|damage| damage.participant).collect(),
            false => Vec::new(),
        };
        Receipt { txid, csn: committed.csn, token, results: committed.results.clone(), pending: Vec::new(), damaged }
    }

    /// A key of an earlier start that the log does not know: every database that may have decided it is asked (R-KEY, R-LR).
    fn look_up(&mut self, now: Time, waiter: Waiter, key: RequestKey, position: Position, hash: Option<u64>, fx: &mut Vec<Effect>) {
        if let Some(reason) = self.no_presumption(None) {
            return self.reply(waiter.ticket, Reply::Unknown(reason), fx);
        }
        if self.is_passed_next(position) {
            return self.reply(waiter.ticket, Reply::Unknown(PASSED_NEXT.into()), fx);
        }
        if let Some(settling) = self.settling.get_mut(&key).filter(|settling| settling.waiters.len() < WAITERS_MAX) {
            settling.waiters.push((waiter, hash));
            return;
        }
        if self.settling.len() >= self.config.max_open || self.settling.contains_key(&key) {
            let reason = format!("{} keys are being asked about, or {WAITERS_MAX} clients wait for this one", self.settling.len());
            return self.reply(waiter.ticket, Reply::Unknown(reason), fx);
        }
        let mut waiting = BTreeSet::new();
        let leads = |follower: &&Follower| follower.leads() && !broken(Mutation::KeyNotAskedAtLeader);
        for follower in self.followers.iter().filter(leads) {
            match (follower.scan, follower.open_session()) {
                (Scan::NotNeeded | Scan::Complete | Scan::Checking, _) => {}
                // Nothing that was first sent after that has it decided.
                (Scan::Gone(removed), _) if removed < position.epoch => {}
                (Scan::Waived, _) if broken(Mutation::WaivedNotAsked) => {}
                // A waiver lets stores go on; it settles no outcome.
                (Scan::Needed | Scan::Waived | Scan::Running | Scan::Gone(_), _) | (Scan::Again(_), None) => {
                    let reason = format!("store `{}` may have decided it, and is not available now", follower.name);
                    return self.reply(waiter.ticket, Reply::Unknown(reason), fx);
                }
                (Scan::Again(_), Some(_)) => {
                    waiting.insert(follower.id);
                }
            }
        }
        if waiting.is_empty() {
            return self.presume_aborted(now, waiter, key, hash.unwrap_or(0), fx);
        }
        for &leader in &waiting {
            self.send(leader, ToParticipant::Settle(Settle::Key(key.clone(), position)), fx);
        }
        self.settling.insert(key, Settling { waiting, waiters: vec![(waiter, hash)] });
    }

    /// A leader has said what it knows of a key.
    pub(crate) fn key_settled(
        &mut self,
        now: Time,
        leader: ParticipantId,
        key: RequestKey,
        position: Position,
        marker: Option<Marker>,
        fx: &mut Vec<Effect>,
    ) {
        if let Some(marker) = marker {
            self.learn(now, marker, fx);
        }
        let Some(settling) = self.settling.get_mut(&key) else { return };
        settling.waiting.remove(&leader);
        let known = self.outcomes.by_key(&key).map(|known| known.txid);
        if known.is_none() && !settling.waiting.is_empty() {
            return;
        }
        let settling = self.settling.remove(&key).expect("just found");
        let hash = settling.waiters.iter().find_map(|(_, hash)| *hash).unwrap_or(0);
        for (waiter, own) in settling.waiters {
            match (self.outcomes.by_key(&key).map(|known| known.txid), self.no_presumption(None)) {
                (Some(txid), _) => self.join(now, txid, waiter, own, fx),
                // Meanwhile the floor has passed it.
                (None, _) if position < self.outcomes.floor() => self.reply(waiter.ticket, Reply::Expired(self.outcomes.floor()), fx),
                (None, _) if self.is_passed_next(position) => self.reply(waiter.ticket, Reply::Unknown(PASSED_NEXT.into()), fx),
                (None, Some(reason)) => self.reply(waiter.ticket, Reply::Unknown(reason), fx),
                (None, None) => self.presume_aborted(now, waiter, key.clone(), hash, fx),
            }
        }
    }

    /// A leader that was being asked, or is deciding, has gone: those who wait are told to ask again.
    pub(crate) fn leader_gone(&mut self, leader: ParticipantId, fx: &mut Vec<Effect>) {
        let name = self.follower(leader).name.clone();
        let gone: Vec<_> =
            self.settling.iter().filter(|(_, settling)| settling.waiting.contains(&leader)).map(|(key, _)| key.clone()).collect();
        let settling = gone.iter().flat_map(|key| self.settling.remove(key).expect("just found").waiters);
        let mut waiters: Vec<_> = settling.map(|(waiter, _)| waiter).collect();
        for txid in self.deciding_at(leader) {
            waiters.append(&mut self.transactions.get_mut(&txid).expect("it is being decided").waiters);
        }
        for waiter in waiters {
            let sentence = format!("store `{name}` may have decided it, and has just become unavailable");
            self.reply(waiter.ticket, Reply::Unknown(sentence), fx);
        }
    }

    fn presume_aborted(&mut self, now: Time, waiter: Waiter, key: RequestKey, hash: u64, fx: &mut Vec<Effect>) {
        let refusal = Refusal::new(RefusalKind::Unavailable, "the coordinator was restarted before this transaction was decided");
        self.refuse(now, waiter, key, hash, None, refusal, fx);
    }

    /// The same of a request that may be a part of a trace.
    fn turn_down(&mut self, now: Time, waiter: Waiter, request: Request, (at, refusal): Refused, fx: &mut Vec<Effect>) {
        let outcome = Outcome::Aborted { at, refusal: refusal.kind };
        let txid = self.refuse(now, waiter, request.key, request.hash, at, refusal, fx);
        if let Some(context) = request.trace {
            let stretch = Stretch::Transaction { wait: waiter.wait, outcome };
            self.tell_trace(Span { context, txid, csn: None, began: now, ended: now, stretch }, fx);
        }
    }

    /// A request that is not run: aborted under its key, for ever.
    #[allow(clippy::too_many_arguments)]
    fn refuse(
        &mut self,
        now: Time,
        waiter: Waiter,
        key: RequestKey,
        hash: u64,
        at: Option<ParticipantId>,
        refusal: Refusal,
        fx: &mut Vec<Effect>,
    ) -> Txid {
        let txid = self.next_txid(Decider::Log);
        let aborted = Aborted { txid: Some(txid), participant: at, refusal };
        self.reply(waiter.ticket, Reply::Aborted(aborted.clone()), fx);
        self.outcomes.insert(Known { txid, key, hash, since: now, settled: Some(now), fate: Fate::Aborted(Box::new(aborted)) });
        self.counts.aborted += 1;
        txid
    }

    fn next_txid(&mut self, decider: Decider) -> Txid {
        assert!(self.next_n <= Csn::N_MAX, "transactions of a start are numbered in {} bits", Csn::N_BITS);
        let txid = Txid { epoch: self.owner.epoch, n: self.next_n, decider };
        self.next_n += 1;
        txid
    }

    fn is_active(&self, txid: Txid) -> bool {
        self.transactions.get(&txid).is_some_and(|transaction| transaction.state == State::Active)
    }

    fn run(&mut self, now: Time, waiter: Waiter, request: Request, fx: &mut Vec<Effect>) {
        let decider = match self.admit_new().and_then(|()| self.admit_open()).and_then(|()| self.admit(&request, false)) {
            Ok(decider) => decider,
            Err(refused) => return self.turn_down(now, waiter, request, refused, fx),
        };
        let deadline = now.after(self.time_to_decide(&request));
        let branches = self.take_branches(request.branches);
        let txid = self.enter(now, State::Preparing, decider, request.key, request.hash, branches, vec![waiter], deadline);
        self.trace_from(now, txid, request.trace);
        self.advance(now, txid, fx);
    }

    /// A transaction that was begun is told what it does, and is prepared.
    fn commit_begun(&mut self, now: Time, txid: Txid, waiter: Waiter, request: Request, declined: Option<Refused>, fx: &mut Vec<Effect>) {
        self.outcomes.identify(txid, request.hash);
        self.transactions.get_mut(&txid).expect("it is active").waiters.push(waiter);
        self.trace_from(now, txid, request.trace);
        let admitted = match declined {
            Some(refused) => Err(refused),
            None => self.admit_new().and_then(|()| self.admit(&request, true)).and_then(|decider| self.admit_decider(txid, decider)),
        };
        if let Err((at, refusal)) = admitted {
            // What its application has prepared is told so.
            let prepared = request.branches.into_iter().filter(|branch| self.may_be_enlisted(branch)).map(Branch::idle).collect();
            self.transactions.get_mut(&txid).expect("it is active").branches = prepared;
            return self.abort(now, txid, at, refusal, fx);
        }
        let deadline = now.after(self.time_to_decide(&request));
        let branches = self.take_branches(request.branches);
        let transaction = self.transactions.get_mut(&txid).expect("it is active");
        (transaction.state, transaction.branches) = (State::Preparing, branches);
        self.set_timer(txid, Some(deadline));
        self.advance(now, txid, fx);
    }

    fn time_to_decide(&self, request: &Request) -> u64 {
        if request.timeout == 0 { self.config.transaction_timeout } else { request.timeout }
    }

    /// The documents they write have a writer from now on.
    fn take_branches(&mut self, requests: Vec<BranchRequest>) -> Vec<Branch> {
        for branch in &requests {
            for operation in branch.operations.iter() {
                self.keys.begin(branch.participant, operation);
            }
        }
        let mut branches: Vec<_> = requests.into_iter().map(Branch::idle).collect();
        branches.sort_by_key(|branch| branch.participant);
        branches
    }

    /// A transaction becomes known, and open.
    #[allow(clippy::too_many_arguments)]
    fn enter(
        &mut self,
        now: Time,
        state: State,
        decider: Decider,
        key: RequestKey,
        hash: u64,
        branches: Vec<Branch>,
        waiters: Vec<Waiter>,
        deadline: Time,
    ) -> Txid {
        let txid = self.next_txid(decider);
        self.outcomes.insert(Known { txid, key, hash, since: now, settled: None, fate: Fate::Running });
        let transaction = Transaction { txid, began: now, state, branches, group_redo: None, trace: None, waiters, timer: None };
        self.transactions.insert(txid, transaction);
        self.open += 1;
        self.set_timer(txid, Some(deadline));
        txid
    }

    /// Whether one more may be begun.
    fn admit_open(&self) -> Result<(), Refused> {
        if self.open >= self.config.max_open {
            let sentence = format!("{} transactions are under way, the limit (open_transactions)", self.config.max_open);
            return Err((None, Refusal::new(RefusalKind::Busy, sentence)));
        }
        Ok(())
    }

    /// Whether anything may be decided that is not under way.
    fn admit_new(&self) -> Result<(), Refused> {
        let (kind, sentence) = match &self.phase {
            Phase::Safe(evidence) => (RefusalKind::Unavailable, format!("the coordinator is in safe mode: {evidence}")),
            Phase::Stopped(why) => (RefusalKind::Unavailable, format!("the coordinator has stopped: {why}")),
            Phase::Starting | Phase::Serving if self.log_full && !broken(Mutation::FullLogRuns) => (
                RefusalKind::Unavailable,
                "the decision log's disk has less room than log.reserve_bytes keeps free: only what is under way is finished (R-FULL)"
                    .into(),
            ),
            Phase::Starting | Phase::Serving if self.paused && !broken(Mutation::PausedRuns) => (
                RefusalKind::Busy,
                "a backup is being made, and nothing new is taken until its servers are copied (lockstep backup)".into(),
            ),
            Phase::Starting | Phase::Serving if self.damage.len() >= DAMAGE_MAX => (
                RefusalKind::Unavailable,
                format!(
                    "{} damages are on record, and nobody has looked at them: forget what is mended (lockstep damage forget)",
                    self.damage.len()
                ),
            ),
            Phase::Starting | Phase::Serving => return Ok(()),
        };
        Err((None, Refusal::new(kind, sentence)))
    }

    fn admit_begin(&self, led_by: Option<ParticipantId>) -> Result<(), Refused> {
        self.admit_new()?;
        self.admit_open()?;
        let Some(leader) = led_by else { return Ok(()) };
        match self.followers.get(leader.0 as usize) {
            Some(follower) if follower.configured && (follower.kind == Kind::Leader || follower.leads_alone()) => Ok(()),
            Some(follower) => {
                let sentence = format!("led_by: store `{}` does not decide transactions (database-led)", follower.name);
                Err((Some(leader), Refusal::new(RefusalKind::Invalid, sentence)))
            }
            None => Err((None, Refusal::new(RefusalKind::Invalid, format!("led_by: there is no store {leader}")))),
        }
    }

    /// R-DECIDER: what was begun cannot get another decider, because its id names the one that it has.
    fn admit_decider(&self, txid: Txid, by_branches: Decider) -> Result<(), Refused> {
        let name = |leader: ParticipantId| &self.follower(leader).name;
        let (at, sentence) = match (txid.decider, by_branches) {
            (Decider::Log, Decider::Log) => return Ok(()),
            (Decider::Leader(begun), Decider::Leader(needed)) if begun == needed => return Ok(()),
            // Begun without a leader, it goes through the log.
            (Decider::Log, Decider::Leader(leader)) if self.follower(leader).kind == Kind::Preparing => return Ok(()),
            (Decider::Log, Decider::Leader(leader)) => {
                let name = name(leader);
                (leader, format!("store `{name}` is database-led and has to decide: name it at Begin (led_by)"))
            }
            (Decider::Leader(leader), Decider::Log | Decider::Leader(_)) => {
                let name = name(leader);
                (
                    leader,
                    format!(
                        "it was begun to be decided by store `{name}` (led_by), which its branches do not allow: it has to be among \
                                  them, as the only one that is database-led, or alone where it prepares"
                    ),
                )
            }
        };
        Err((Some(at), Refusal::new(RefusalKind::Invalid, format!("{sentence} (R-DECIDER)"))))
    }

    /// Everything that can be seen before any Prepare is sent. Says who decides.
    fn admit(&self, request: &Request, begun: bool) -> Result<Decider, Refused> {
        let no = |at, kind, sentence: String| Err((at, Refusal::new(kind, sentence)));
        if request.branches.is_empty() {
            return no(None, RefusalKind::Invalid, "the transaction has no operations".into());
        }
        let mut decider = Decider::Log;
        let (mut serial, mut rows, mut uncovered) = (None, false, None);
        for (i, branch) in request.branches.iter().enumerate() {
            let at = Some(branch.participant);
            let Some(follower) = self.followers.get(branch.participant.0 as usize) else {
                return no(None, RefusalKind::Invalid, format!("there is no store {}", branch.participant));
            };
            if request.branches[..i].iter().any(|earlier| earlier.participant == branch.participant) {
                return no(at, RefusalKind::Invalid, format!("store `{}` is named twice", follower.name));
            }
            match (&follower.session, follower.configured) {
                (_, false) => return no(at, RefusalKind::Invalid, format!("store `{}` is not configured any more", follower.name)),
                (Session::Open(_), true) => {}
                (Session::Down | Session::Welcomed(_), true) => {
                    return no(at, RefusalKind::Unavailable, format!("store `{}` is not available now", follower.name));
                }
                (Session::Refused(_, why), true) => {
                    return no(at, RefusalKind::Unavailable, format!("store `{}` must not be used: {why}", follower.name));
                }
            }
            if follower.items.len() >= self.config.max_lag {
                let sentence =
                    format!("store `{}` is {} decisions behind, the limit (lag_transactions)", follower.name, follower.items.len());
                return no(at, RefusalKind::Busy, sentence);
            }
            match follower.kind {
                Kind::Leader if decider != Decider::Log => {
                    return no(at, RefusalKind::Invalid, "at most one store of a transaction can be database-led".into());
                }
                Kind::Leader => decider = Decider::Leader(branch.participant),
                Kind::Serial if serial.is_some() => {
                    return no(at, RefusalKind::Invalid, "at most one store of a transaction can be a serial executor (SQLite)".into());
                }
                Kind::Serial => serial = Some(branch.participant),
                Kind::Preparing | Kind::Redo => {}
            }
            match follower.role {
                Role::Database => rows = true,
                Role::Index if follower.standalone => {}
                Role::Index => uncovered = Some(branch.participant),
            }
            self.admit_enlisted(branch, begun).map_err(|refusal| (at, refusal))?;
            self.admit_keys(branch.participant, &branch.operations).map_err(|refusal| (at, refusal))?;
        }
        match uncovered {
            Some(index) if !rows => no(Some(index), RefusalKind::Invalid, self.uncovered_sentence(index)),
            _ => Ok(self.leads_alone(&request.branches).map_or(decider, Decider::Leader)),
        }
    }

    /// The one participant of a transaction, if it decides what touches it alone (R-LR). What an application has prepared is past that.
    fn leads_alone(&self, branches: &[BranchRequest]) -> Option<ParticipantId> {
        let [branch] = branches else { return None };
        let leads = self.follower(branch.participant).leads_alone() && !is_enlisted(&branch.operations);
        leads.then_some(branch.participant)
    }

    fn admit_enlisted(&self, branch: &BranchRequest, begun: bool) -> Result<(), Refusal> {
        let follower = self.follower(branch.participant);
        let sentence = match (is_enlisted(&branch.operations), begun) {
            (false, _) => return Ok(()),
            (true, false) => "an enlisted branch is prepared under the name of its transaction: begin the transaction first".into(),
            (true, true) if !matches!(follower.kind, Kind::Preparing | Kind::Leader) => {
                format!("store `{}` holds no prepared branches: nothing can be enlisted there", follower.name)
            }
            (true, true) if branch.operations.len() > 1 => "an enlisted branch is prepared already: it takes no other operation".into(),
            (true, true) => return Ok(()),
        };
        Err(Refusal::new(RefusalKind::Invalid, sentence))
    }

    fn may_be_enlisted(&self, branch: &BranchRequest) -> bool {
        let prepares = self.followers.get(branch.participant.0 as usize).is_some_and(|follower| follower.kind == Kind::Preparing);
        prepares && is_enlisted(&branch.operations)
    }

    fn admit_keys(&self, participant: ParticipantId, operations: &[crate::Operation]) -> Result<(), Refusal> {
        for operation in operations {
            if operation.condition().is_some()
                && let Some(leader) = self.unscanned_leader()
                && !broken(Mutation::ConditionsBeforeScan)
            {
                let sentence = format!("a condition cannot be tested before store `{}` has told what it decided", leader.name);
                return Err(Refusal::new(RefusalKind::Unavailable, sentence));
            }
            self.keys.admit(participant, operation)?;
        }
        Ok(())
    }

    pub(crate) fn uncovered_sentence(&self, index: ParticipantId) -> String {
        format!(
            "the transaction writes documents of `{}` and no row: nothing gives their order (R-COVER); write a row in the same transaction, or \
             configure the index as standalone",
            self.follower(index).name
        )
    }

    /// Answers those whose wait is over. Only for a decided transaction.
    pub(crate) fn answer_waiters(&mut self, now: Time, txid: Txid, fx: &mut Vec<Effect>) {
        let Some(transaction) = self.transactions.get(&txid) else { return };
        let State::Committing(_) = transaction.state else { return };
        let (mut rows, mut documents) = (true, true);
        for participant in transaction.following() {
            match self.follower(participant).role {
                Role::Database => (rows, documents) = (false, false),
                Role::Index => documents = false,
            }
        }
        let over = |waiter: &Waiter| match waiter.wait {
            Wait::Decided => true,
            Wait::Applied => rows,
            Wait::Visible => documents || (rows && broken(Mutation::VisibleIsApplied)),
        };
        if transaction.waiters.iter().any(|waiter| over(waiter) || waiter.deadline <= now) {
            let Some(Known { fate: Fate::Committed(committed), .. }) = self.outcomes.by_txid(txid) else {
                panic!("I7: a transaction in Committing has no committed fate: {txid}");
            };
            let receipt = self.receipt(txid, committed);
            let following: Vec<_> = transaction.following().collect();
            for waiter in transaction.waiters.iter().filter(|waiter| over(waiter) || waiter.deadline <= now) {
                let pending = if over(waiter) { Vec::new() } else { following.clone() };
                fx.push(Effect::Reply(waiter.ticket, Reply::Committed(receipt.clone().pending(pending))));
            }
            let answered = transaction.waiters.iter().find(|waiter| over(waiter) || waiter.deadline <= now).copied();
            let transaction = self.transactions.get_mut(&txid).expect("just found");
            transaction.waiters.retain(|waiter| !over(waiter) && waiter.deadline > now);
            if let Some(waiter) = answered.filter(|_| transaction.trace.is_some()) {
                let pending = if over(&waiter) { 0 } else { following.len() };
                self.trace_answer(now, txid, waiter.wait, Outcome::Committed { pending }, fx);
            }
        }
        let earliest = self.transactions[&txid].earliest_wait();
        self.set_timer(txid, earliest);
    }
}

/// Whether a transaction with these branches may be one that this store decided, in an earlier start: as one of them, or alone (R-LR).
fn may_have_led(leader: &Follower, branches: &[BranchRequest]) -> bool {
    match branches {
        [branch] if branch.participant == leader.id => leader.kind == Kind::Leader || !is_enlisted(&branch.operations),
        branches => leader.kind == Kind::Leader && branches.iter().any(|branch| branch.participant == leader.id),
    }
}

impl Branch {
    fn idle(request: BranchRequest) -> Branch {
        Branch::new(request.participant, request.operations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::event::Event;
    use crate::ids::{CoordId, Epoch, LogId, SessionId};
    use crate::message::{FromParticipant, Hello};
    use crate::record::{CommitEntry, EntryPayload};
    use crate::recovery::Identity;
    use crate::{Alarm, ParticipantConfig, Role};

    const BANK: ParticipantId = ParticipantId(0);
    const PG: ParticipantId = ParticipantId(1);

    /// A leader and a store that prepares, in the second start.
    fn start() -> Coordinator {
        let store = |(name, kind): (&str, Kind)| ParticipantConfig { name: name.into(), kind, role: Role::Database, standalone: false };
        let participants = [("bank", Kind::Leader), ("pg", Kind::Preparing)].map(store).into();
        let config = Config { participants, max_open: 4, outcomes_max: 10, ..Config::default() };
        let identity = |incarnation| Identity { coord_id: CoordId(1), log_id: LogId(1), incarnation };
        let mut fx = Vec::new();
        Coordinator::start(config.clone(), identity(1), Vec::new(), Time(0), &mut fx).expect("a log");
        let entry = |effect| if let Effect::Append { lsn, record, .. } = effect { Some(crate::Entry { lsn, record }) } else { None };
        let log = fx.drain(..).filter_map(entry).collect();
        let mut machine = Coordinator::start(config, identity(2), log, Time(0), &mut fx).expect("a log");
        let last = crate::Lsn(machine.next_lsn.0 - 1);
        machine.step(Time(0), Event::Durable(last), &mut fx);
        machine
    }

    fn named(n: u64) -> RequestKey {
        RequestKey { key: n.to_be_bytes()[..].into(), attempt: 1 }
    }

    fn begin(machine: &mut Coordinator, n: u64) -> Reply {
        let mut fx = Vec::new();
        let position = machine.position();
        machine.step(Time(1), Event::Begin { ticket: Ticket(n), key: named(n), position, led_by: None, timeout: 0 }, &mut fx);
        let reply = |effect| if let Effect::Reply(_, reply) = effect { Some(reply) } else { None };
        fx.into_iter().find_map(reply).expect("it is answered at once")
    }

    #[test]
    fn numbers_end_with_a_sentence() {
        let mut machine = start();
        machine.next_n = Csn::N_MAX - 4;
        machine.outcomes.begin(machine.position());
        assert!(matches!(begin(&mut machine, 1), Reply::Begun(_)));
        machine.next_n = Csn::N_MAX - 3;
        let Reply::Unknown(why) = begin(&mut machine, 2) else { panic!("no number is left") };
        assert!(why.contains("start the coordinator again"), "{why}");
    }

    #[test]
    fn nothing_new_is_taken_over_too_much_damage() {
        let mut machine = start();
        let txid = Txid { epoch: Epoch(1), n: 1, decider: Decider::Log };
        let (keys, reason) = (Vec::new(), String::new());
        let damage = Damage { txid, csn: None, participant: BANK, kind: DamageKind::Hazard, keys, operator: None, reason, at_ms: 0 };
        machine.damage = vec![damage; DAMAGE_MAX - 1];
        assert!(matches!(begin(&mut machine, 1), Reply::Begun(_)));
        machine.damage.push(machine.damage[0].clone());
        let Reply::Aborted(aborted) = begin(&mut machine, 2) else { panic!("too much damage") };
        assert!(aborted.refusal.message.contains("damages are on record"), "{}", aborted.refusal);
    }

    /// Of those that it could have decided all are taken, and no more: above the floor, and below it where a store may hold a branch.
    #[test]
    fn a_leader_tells_of_so_many_transactions_at_most() {
        for below in [false, true] {
            let mut machine = start();
            let session = SessionId(1);
            let mut fx = Vec::new();
            machine.step(Time(1), Event::SessionUp(BANK, session), &mut fx);
            machine.step(Time(1), Event::Message(BANK, session, FromParticipant::Hello(Hello::of_nothing(Kind::Leader))), &mut fx);
            if below {
                machine.outcomes.raise_floor(machine.position());
            }
            let marker = |n| {
                let txid = Txid { epoch: Epoch(1), n, decider: Decider::Leader(BANK) };
                let (csn, branches) = (Csn::new(Epoch(1), n), vec![BANK, PG]);
                let entry = CommitEntry { txid, csn, key: named(n), request_hash: 0, at_ms: 0, branches };
                Marker { entry, payload: EntryPayload::default(), groups: Vec::new(), trace: None }
            };
            let limit = 3 * machine.outcomes_limit() as u64;
            for (from, to, misbehaves) in [(1, limit, false), (limit + 1, limit + 1, true)] {
                fx.clear();
                let markers = (from..=to).map(marker).collect();
                machine.step(Time(1), Event::Message(BANK, session, FromParticipant::Markers { markers, last: false }), &mut fx);
                let told = if below { machine.late.len() } else { machine.outcomes.len() };
                assert_eq!(told as u64, limit);
                assert_eq!(fx.iter().any(|effect| matches!(effect, Effect::Alarm(Alarm::Misbehaves(..)))), misbehaves);
            }
        }
    }
}
