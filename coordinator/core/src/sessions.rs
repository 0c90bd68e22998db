//! Sessions, and what participants ask when one begins (PROTOCOL §5).

use crate::coordinator::{Coordinator, Phase};
use crate::event::{Alarm, Effect};
use crate::follower::{Scan, Session};
use crate::ids::{Csn, Decider, Owner, ParticipantId, SessionId, Time, Txid};
use crate::message::{Decided, Hello, MarkerEvidence, Settle, ToParticipant};
use crate::outcomes::Fate;
use crate::record::{Damage, DamageKind};
use crate::transaction::{Branch, State};
use crate::vote::{Kind, Refusal, RefusalKind};
use std::cmp::Ordering;

/// R-ANSWER: what a prepared branch is told.
enum Answer {
    /// Its outcome is committed, at this CSN.
    Commit(Csn),
    /// Its outcome is aborted.
    Abort,
    /// Somebody newer is in charge, or it is still being decided: nothing.
    Nothing,
    /// Not known yet; asked again as soon as it may be.
    Later,
    /// Only this leader knows.
    Settle(ParticipantId),
}

impl Coordinator {
    pub(crate) fn session_up(&mut self, now: Time, participant: ParticipantId, session: SessionId, fx: &mut Vec<Effect>) {
        let current = match &self.follower(participant).session {
            Session::Down => None,
            Session::Welcomed(current) | Session::Open(current) | Session::Refused(current, _) => Some(*current),
        };
        if let Some(current) = current {
            assert!(session > current, "session numbers rise");
            self.session_down(now, participant, current, fx);
        }
        self.follower_mut(participant).session = Session::Welcomed(session);
        if self.phase != Phase::Starting {
            self.welcome(participant, fx);
        }
    }

    /// Nothing is sent before the epoch is durable.
    pub(crate) fn welcome(&mut self, participant: ParticipantId, fx: &mut Vec<Effect>) {
        if let Session::Welcomed(session) = self.follower(participant).session {
            fx.push(Effect::Send(participant, session, ToParticipant::Welcome { owner: self.owner, you: participant }));
        }
    }

    pub(crate) fn hello(&mut self, now: Time, participant: ParticipantId, session: SessionId, hello: Hello, fx: &mut Vec<Effect>) {
        if !matches!(self.follower(participant).session, Session::Welcomed(_)) {
            return;
        }
        if hello.kind != self.follower(participant).kind {
            let logged = self.follower(participant).kind;
            self.alarm(Alarm::WrongKind(participant, logged, hello.kind), fx);
            let why = format!("it votes as {:?}, but the log knows it as {logged:?}", hello.kind);
            self.follower_mut(participant).session = Session::Refused(session, why);
            return;
        }
        self.examine_log(participant, &hello, fx);
        if hello.progress.durable < self.follower(participant).acked {
            let why = format!(
                "it has lost changes (R-STORELOSS): it says it has followed up to CSN {}, but had acknowledged {}; was an older copy restored?",
                hello.progress.durable,
                self.follower(participant).acked
            );
            self.alarm(Alarm::StoreLoss(participant, why.clone()), fx);
            self.follower_mut(participant).session = Session::Refused(session, why);
            return;
        }
        let follower = self.follower_mut(participant);
        (follower.evidence, follower.progress, follower.prepared) = (true, hello.progress, hello.prepared.len());
        follower.first_unapplied = Csn::ZERO;
        for (csn, item) in &mut follower.items {
            item.applied &= *csn <= hello.progress.applied;
        }
        for (txid, commit) in hello.heuristics {
            self.heuristic_reported(now, participant, txid, commit, fx);
        }
        if self.follower(participant).kind == Kind::Leader {
            return self.take_over(participant, session, hello.exclusive, hello.prepared, fx);
        }
        self.open(now, participant, session, fx);
        self.evidence_changed(now, fx);
        for txid in hello.prepared {
            self.answer(now, participant, txid, fx);
        }
    }

    /// Hands over every decided or deciding redo, in CSN order; only then may Prepares follow (R-REDO).
    pub(crate) fn open(&mut self, now: Time, participant: ParticipantId, session: SessionId, fx: &mut Vec<Effect>) {
        self.follower_mut(participant).session = Session::Open(session);
        let progress = self.follower(participant).progress;
        self.progress(now, participant, progress, fx);
        let owed: Vec<_> = self.follower(participant).items.iter().filter(|(_, item)| !item.applied).map(|(csn, _)| *csn).collect();
        for csn in owed {
            self.deliver(now, participant, csn, fx);
        }
        self.send(participant, ToParticipant::Open, fx);
    }

    /// A leader, in this order: the owner row is updated and older backends are gone (its Hello says so), markers are scanned, and only
    /// then it takes Prepares (R-OWNER, R-LR).
    fn take_over(&mut self, participant: ParticipantId, session: SessionId, exclusive: bool, prepared: Vec<Txid>, fx: &mut Vec<Effect>) {
        assert!(prepared.is_empty(), "a leader holds no prepared branches");
        let scan = match self.follower(participant).scan {
            Scan::Complete | Scan::Again(_) if exclusive => Scan::Complete,
            Scan::Needed | Scan::Running | Scan::NotNeeded | Scan::Complete | Scan::Again(_) => Scan::Running,
        };
        let known = scan == Scan::Complete;
        let follower = self.follower_mut(participant);
        (follower.scan, follower.session) = (scan, Session::Open(session));
        self.send(participant, ToParticipant::Floor(self.outcomes.floor()), fx);
        if !known {
            self.send(participant, ToParticipant::Scan(Csn::ZERO), fx);
        }
        for txid in self.deciding_at(participant) {
            self.send(participant, ToParticipant::Settle(Settle::Txid(txid)), fx);
        }
        if known {
            self.send(participant, ToParticipant::Open, fx);
        } else {
            self.follower_mut(participant).session = Session::Welcomed(session);
        }
    }

    fn deciding_at(&self, leader: ParticipantId) -> Vec<Txid> {
        let deciding =
            |t: &&crate::transaction::Transaction| matches!(t.state, State::Deciding(_)) && t.txid.decider == Decider::Leader(leader);
        let mut txids: Vec<_> = self.transactions.values().filter(deciding).map(|transaction| transaction.txid).collect();
        txids.sort();
        txids
    }

    pub(crate) fn refused(&mut self, participant: ParticipantId, session: SessionId, owner: Owner, fx: &mut Vec<Effect>) {
        let why = if owner.coord_id != self.owner.coord_id {
            format!("it belongs to coordinator {} (R-OWNER)", owner.coord_id)
        } else {
            format!("it follows epoch {} of this coordinator, which this log knows nothing of (R-OWNER)", owner.epoch)
        };
        if owner.coord_id == self.owner.coord_id {
            self.highest_epoch_seen = self.highest_epoch_seen.max(owner.epoch);
            self.log_lost(format!("store `{}` has seen epoch {}", self.follower(participant).name, owner.epoch), fx);
        }
        self.alarm(Alarm::NotOwner(participant, why.clone()), fx);
        self.follower_mut(participant).session = Session::Refused(session, why);
    }

    pub(crate) fn session_down(&mut self, now: Time, participant: ParticipantId, session: SessionId, fx: &mut Vec<Effect>) {
        match &self.follower(participant).session {
            Session::Welcomed(current) | Session::Open(current) | Session::Refused(current, _) if *current == session => {}
            Session::Down | Session::Welcomed(_) | Session::Open(_) | Session::Refused(..) => return,
        }
        let resend = self.config.resend.0;
        let follower = self.follower_mut(participant);
        (follower.session, follower.closed_told) = (Session::Down, Csn::ZERO);
        for item in follower.items.values_mut() {
            (item.sent, item.backoff) = (None, resend);
        }
        if follower.scan == Scan::Running {
            follower.scan = Scan::Needed;
        }
        let name = follower.name.clone();
        let depends = |branch: &Branch| branch.participant == participant && branch.depends_on_session();
        let preparing = self.transactions.values().filter(|transaction| transaction.state == State::Preparing);
        let mut lost: Vec<_> = preparing.filter(|t| t.branches.iter().any(depends)).map(|transaction| transaction.txid).collect();
        lost.sort();
        for txid in lost {
            let refusal = Refusal::new(RefusalKind::Unavailable, format!("store `{name}` became unavailable before the decision"));
            self.abort(txid, Some(participant), refusal, fx);
        }
        self.leader_gone(participant, fx);
        self.asked.retain(|(asking, _)| *asking != participant);
        let _ = now;
    }

    /// A prepared branch waits for its outcome.
    pub(crate) fn answer(&mut self, now: Time, participant: ParticipantId, txid: Txid, fx: &mut Vec<Effect>) {
        self.asked.remove(&(participant, txid));
        match self.answer_for(participant, txid) {
            Answer::Nothing => {}
            Answer::Commit(csn) if self.follower(participant).items.contains_key(&csn) => self.deliver(now, participant, csn, fx),
            Answer::Commit(csn) => {
                let decided = Decided { csn, txids: vec![txid], redo: bytes::Bytes::new() };
                self.send(participant, ToParticipant::Commit(decided), fx);
            }
            Answer::Abort => self.send(participant, ToParticipant::Abort(txid), fx),
            Answer::Later => {
                self.asked.insert((participant, txid));
            }
            Answer::Settle(leader) => {
                self.asked.insert((participant, txid));
                self.send(leader, ToParticipant::Settle(Settle::Txid(txid)), fx);
            }
        }
    }

    fn answer_for(&self, participant: ParticipantId, txid: Txid) -> Answer {
        let known = self.outcomes.by_txid(txid).map(|known| &known.fate);
        match (txid.epoch.cmp(&self.owner.epoch), known) {
            (Ordering::Greater, _) => Answer::Nothing,
            (_, Some(Fate::Committed(committed))) => Answer::Commit(committed.csn),
            (Ordering::Equal, Some(Fate::Running)) => Answer::Nothing,
            (Ordering::Equal, Some(Fate::Aborted(_)) | None) => Answer::Abort,
            (Ordering::Less, Some(Fate::Running)) => Answer::Later,
            (Ordering::Less, Some(Fate::Aborted(_)) | None) => self.presume(participant, txid),
        }
    }

    /// An older epoch's branch that the log does not know (R-DECIDER, R-LOGLOSS).
    fn presume(&self, participant: ParticipantId, txid: Txid) -> Answer {
        if self.by_hand.contains_key(&(txid, participant)) {
            return Answer::Later;
        }
        match txid.decider {
            Decider::Log => match self.no_presumption(Some(participant)) {
                Some(_) => Answer::Later,
                None => Answer::Abort,
            },
            Decider::Leader(leader) if self.follower(leader).open_session().is_some() => Answer::Settle(leader),
            Decider::Leader(_) => Answer::Later,
        }
    }

    /// Why nothing may be presumed aborted now, if nothing may.
    pub(crate) fn no_presumption(&self, holder: Option<ParticipantId>) -> Option<String> {
        match &self.phase {
            Phase::Safe(evidence) => return Some(format!("safe mode: {evidence}")),
            Phase::Starting | Phase::Stopped(_) => return Some("the coordinator is not serving".into()),
            Phase::Serving => {}
        }
        let silent = |follower: &&crate::follower::Follower| follower.configured && !follower.evidence;
        if let Some(holder) = holder.map(|holder| self.follower(holder)).filter(silent) {
            return Some(format!("store `{}` has not told what it holds", holder.name));
        }
        let waits = self.config.loss_strict || self.evidence_awaited;
        let silent = self.followers.iter().find(silent).filter(|_| waits)?;
        Some(format!("store `{}` has not told yet what it has seen of the log (R-LOGLOSS)", silent.name))
    }

    /// Somebody has given evidence, or the wait for it is over: what waited for it is answered.
    pub(crate) fn evidence_changed(&mut self, now: Time, fx: &mut Vec<Effect>) {
        for (participant, txid) in std::mem::take(&mut self.asked) {
            self.answer(now, participant, txid, fx);
        }
    }

    /// R-LOGLOSS: does this store know of something that the log does not?
    fn examine_log(&mut self, participant: ParticipantId, hello: &Hello, fx: &mut Vec<Effect>) {
        let name = self.follower(participant).name.clone();
        self.highest_epoch_seen = self.highest_epoch_seen.max(hello.highest_epoch).max(hello.highest.epoch());
        if hello.highest > self.last_log_csn {
            let sentence = format!("store `{name}` has seen CSN {}, but the log ends at {}", hello.highest, self.last_log_csn);
            self.log_lost(sentence, fx);
        }
        if hello.highest_epoch > self.owner.epoch {
            self.log_lost(
                format!("store `{name}` has seen epoch {}, but the log has only come to {}", hello.highest_epoch, self.owner.epoch),
                fx,
            );
        }
        let Some(kept) = hello.owner.filter(|kept| kept.coord_id == self.owner.coord_id) else { return };
        if !self.epochs.contains(&(kept.epoch, kept.incarnation)) {
            self.log_lost(
                format!("store `{name}` has followed a start (epoch {}) that this log does not hold: a copied or restored log", kept.epoch),
                fx,
            );
        }
    }

    pub(crate) fn log_lost(&mut self, evidence: String, fx: &mut Vec<Effect>) {
        self.alarm(Alarm::LogLoss(evidence.clone()), fx);
        if self.phase == Phase::Serving {
            self.phase = Phase::Safe(evidence);
        }
    }

    /// R-MARKER: a Commit came to a branch that is not prepared there any more.
    pub(crate) fn not_prepared(
        &mut self,
        now: Time,
        participant: ParticipantId,
        txid: Txid,
        evidence: MarkerEvidence,
        fx: &mut Vec<Effect>,
    ) {
        match evidence {
            MarkerEvidence::Committed => {}
            MarkerEvidence::RolledBack => {
                let reason = "the branch was rolled back by hand before its commit arrived";
                self.record_damage(now, participant, txid, DamageKind::RolledBackByHand, None, reason.into(), fx);
            }
            MarkerEvidence::Unknowable => {
                let reason = "the branch is not prepared any more, and its store cannot tell what became of it";
                self.record_damage(now, participant, txid, DamageKind::Hazard, None, reason.into(), fx);
            }
        }
        self.committed(now, participant, txid, fx);
    }

    /// A store says that an operator finished a branch there by hand.
    fn heuristic_reported(&mut self, now: Time, participant: ParticipantId, txid: Txid, commit: bool, fx: &mut Vec<Effect>) {
        self.by_hand.insert((txid, participant), commit);
        self.compare_by_hand(now, participant, txid, fx);
    }

    /// If the decision is known and is not what was done by hand, that is damage (PROTOCOL §9).
    pub(crate) fn compare_by_hand(&mut self, now: Time, participant: ParticipantId, txid: Txid, fx: &mut Vec<Effect>) {
        let Some(&by_hand) = self.by_hand.get(&(txid, participant)) else { return };
        let kind = match (self.answer_for_known(txid), by_hand) {
            (Some(true), false) => DamageKind::RolledBackByHand,
            (Some(false), true) => DamageKind::CommittedByHand,
            (Some(true), true) | (Some(false), false) | (None, _) => return,
        };
        self.record_damage(now, participant, txid, kind, None, "an operator finished the branch against the decision".into(), fx);
    }

    fn answer_for_known(&self, txid: Txid) -> Option<bool> {
        match &self.outcomes.by_txid(txid)?.fate {
            Fate::Running => None,
            Fate::Committed(_) => Some(true),
            Fate::Aborted(_) => Some(false),
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn record_damage(
        &mut self,
        now: Time,
        participant: ParticipantId,
        txid: Txid,
        kind: DamageKind,
        operator: Option<String>,
        reason: String,
        fx: &mut Vec<Effect>,
    ) {
        if self.damage.iter().any(|damage| (damage.txid, damage.participant, damage.kind) == (txid, participant, kind)) {
            return;
        }
        let csn = self.transactions.get(&txid).and_then(|transaction| transaction.csn());
        let item = csn.and_then(|csn| self.follower(participant).items.get(&csn));
        let keys = item.and_then(|item| {
            let payload = &self.decisions[&item.decision].payload.entries[item.entry?];
            Some(payload.redos.iter().find(|redo| redo.participant == participant)?.keys.clone())
        });
        let damage = Damage { txid, csn, participant, kind, keys: keys.unwrap_or_default(), operator, reason, at_ms: self.wall_ms(now) };
        self.damage.push(damage.clone());
        self.append(crate::record::Record::Damage(damage.clone()), None, fx);
        self.alarm(Alarm::Damage(Box::new(damage)), fx);
    }
}
