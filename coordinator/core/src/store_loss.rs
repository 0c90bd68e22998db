//! R-STORELOSS: does a store hold less than it once did? What it reports is compared with what the log, and this start, know of it.

use crate::coordinator::{Coordinator, Pending};
use crate::event::{Alarm, Effect};
use crate::follower::{Led, Scan, Session};
use crate::ids::{Csn, Epoch, ParticipantId, Position, SessionId, Time, Txid};
use crate::message::{Hello, ToParticipant};
use crate::mutation::{Mutation, broken};
use crate::record::Record;
use crate::vote::Kind;

impl Coordinator {
    /// Why this Hello shows that the store was put back to an older state; `None` if it does not.
    pub(crate) fn store_loss(&self, participant: ParticipantId, hello: &Hello) -> Option<String> {
        let follower = self.follower(participant);
        let once = follower.acked.max(follower.progress.durable);
        if hello.progress.durable < once && !broken(Mutation::StoreLossUnseen) {
            return Some(format!("it says it has followed up to CSN {}, but had acknowledged {once}", hello.progress.durable));
        }
        let stale = follower.stale_owner.filter(|_| !broken(Mutation::OwnerLossUnseen));
        stale.map(|kept| format!("it came with epoch {kept} as its last owner's, but has answered epoch {}", follower.heard))
    }

    /// What its Hello says of its owner is said once: it keeps this start now.
    pub(crate) fn note_stale_owner(&mut self, participant: ParticipantId, hello: &Hello) {
        let kept = hello.owner.map_or(Epoch(0), |owner| owner.epoch);
        let follower = self.follower_mut(participant);
        if kept < follower.heard {
            follower.stale_owner.get_or_insert(kept);
        }
    }

    /// It gets no Prepare and no decision any more. What it should hold is forced, for later starts.
    pub(crate) fn store_lost(&mut self, now: Time, participant: ParticipantId, session: SessionId, how: String, fx: &mut Vec<Effect>) {
        let why = format!("it has lost changes (R-STORELOSS): {how}; was an older copy restored?");
        self.alarm(Alarm::StoreLoss(participant, why.clone()), fx);
        self.follower_mut(participant).lost = true;
        let follower = self.follower(participant);
        let csn = match follower.kind {
            Kind::Leader => follower.led.map_or(Csn::ZERO, |led| led.csn),
            Kind::Preparing | Kind::Redo | Kind::Serial => follower.acked.max(follower.progress.durable),
        };
        // Only what was heard in this start is this start's knowledge.
        if follower.heard == self.owner.epoch && !follower.loss_noted {
            self.follower_mut(participant).loss_noted = true;
            self.append(Record::Acked { participant, csn }, Some(Pending::Noted(None)), fx);
        }
        self.session_down(now, participant, session, fx);
        self.follower_mut(participant).turn(now, Session::Refused(session, why));
    }

    /// Every marker that was missed is there: the log is told, if it holds that one was lost.
    pub(crate) fn marker_shown(&mut self, leader: ParticipantId, fx: &mut Vec<Effect>) {
        let follower = self.follower_mut(leader);
        if std::mem::take(&mut follower.lost) && follower.kind == Kind::Leader {
            (follower.loss_noted, follower.answer_noted) = (false, true);
            // Before it may drop what it has shown.
            follower.floor_waits += 1;
            self.append(Record::Acked { participant: leader, csn: Csn::ZERO }, Some(Pending::FloorTo(leader)), fx);
        }
    }

    /// A leader has decided this: a marker that it has to hold until the floor has passed it.
    pub(crate) fn note_led(&mut self, leader: ParticipantId, txid: Txid, csn: Csn) {
        let follower = self.follower_mut(leader);
        if follower.led.is_none_or(|led| led.csn < csn) {
            follower.led = Some(Led { csn, position: txid.position() });
        }
    }

    /// A store that leads is told the floor, if it is there: markers below it may be gone from then on. One that is away has them still.
    pub(crate) fn tell_floor(&mut self, leader: ParticipantId, fx: &mut Vec<Effect>) {
        let floor = self.outcomes.floor();
        let kept = self.lowest_late(leader).into_iter().chain(self.lowest_owed_of(leader)).min();
        let mut floor = kept.map_or(floor, |kept| kept.min(floor));
        let follower = self.follower_mut(leader);
        if follower.kind == Kind::Preparing && !broken(Mutation::FloorPassesBranches) {
            floor = floor.min(follower.floor_for_branches);
        }
        if follower.open_session().is_some() && follower.floor_waits == 0 {
            follower.led.take_if(|led| led.position < floor);
            self.send(leader, ToParticipant::Floor(floor), fx);
        }
    }

    /// A Floor has become durable. For what preparing stores have prepared it goes as far only as no later start tells them again: what became
    /// of a branch is to be found there until the log says that it was acked (R-MARKER).
    pub(crate) fn raise_floor_for_branches(&mut self) {
        for i in 0..self.followers.len() {
            if self.followers[i].kind == Kind::Preparing {
                let told_again = self.first_told_again(ParticipantId(i as u16));
                let floor = told_again.map_or(self.outcomes.floor(), |first| first.min(self.outcomes.floor()));
                let follower = &mut self.followers[i];
                follower.floor_for_branches = follower.floor_for_branches.max(floor);
            }
        }
    }

    /// Where the first transaction began of which a later start may tell this preparing store again. The Ends that were noted before the Floor
    /// are durable with it, and so is how far a store was acked.
    fn first_told_again(&self, participant: ParticipantId) -> Option<Position> {
        let open = self.decisions.values().flat_map(|decision| &decision.entries).filter(|entry| entry.branches.contains(&participant));
        let open = open.map(|entry| entry.txid.position());
        let held = self.releasable.iter().map(|releasable| releasable.began);
        let live = self.transactions.values().filter(|t| t.branches.iter().any(|branch| branch.participant == participant));
        open.chain(held).chain(live.map(|t| t.txid.position())).chain(self.ended.iter().map(|txid| txid.position())).min()
    }

    /// The log is told, unforced and once in a start, which leaders have answered it: a later start compares it with their owners. Not which
    /// markers they hold: a log that is put back may have lost the floor that has dropped them.
    pub(crate) fn note_leaders(&mut self, fx: &mut Vec<Effect>) {
        for i in 0..self.followers.len() {
            if self.followers[i].has_answer_news() {
                let follower = &mut self.followers[i];
                follower.answer_noted = true;
                let record = Record::Acked { participant: follower.id, csn: Csn::ZERO };
                self.append(record, None, fx);
            }
        }
    }

    /// From where on a leader's markers are to be told, of one of which all are known already.
    pub(crate) fn newest_known(&self, leader: ParticipantId) -> Csn {
        self.follower(leader).led.map_or(Csn::ZERO, |led| led.csn.before())
    }

    /// A scan has ended: whether the newest marker that is known was in it.
    pub(crate) fn marker_lost(&self, leader: ParticipantId) -> Option<String> {
        let follower = self.follower(leader);
        let led = follower.led.filter(|led| follower.scanned < led.csn && !broken(Mutation::MarkerLossUnseen))?;
        Some(format!("it had decided CSN {}, and tells nothing above {}", led.csn, follower.scanned))
    }

    /// A scan begins.
    pub(crate) fn begin_scan(&mut self, leader: ParticipantId, above: Csn, scan: Scan, fx: &mut Vec<Effect>) {
        let follower = self.follower_mut(leader);
        (follower.scan, follower.scanned) = (scan, Csn::ZERO);
        self.send(leader, ToParticipant::Scan(above), fx);
    }
}
