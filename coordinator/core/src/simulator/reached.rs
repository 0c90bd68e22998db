//! What was reached: how often each kind of event, message, record and command occurred in the runs of this thread, and how often each
//! state was left for each other one. What an enum has and no run has met stands there with a zero.

use crate::coordinator::Phase;
use crate::follower::{Scan, Session};
use crate::outcomes::Fate;
use crate::participant::{BatchState, SessionState};
use crate::transaction::{BranchState, State};
use crate::{
    AdminAction, Alarm, Coordinator, DamageKind, Effect, Event, FromParticipant, Participant, ParticipantId, Record, RefusalKind, Reply,
    StoreCommand, StoreReport, ToParticipant, Txid, Vote,
};
use rustc_hash::FxHashMap;
use std::cell::RefCell;

thread_local! {
    static REACHED: RefCell<Reached> = RefCell::new(Reached::none());
}

/// The kinds of one enum, numbered: a new one does not compile before it stands here.
macro_rules! kinds {
    ($name:ident($type:ty) { $($pattern:pat => $label:ident),* $(,)? }) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[derive(Clone, Copy)]
            enum Numbered { $($label),* }

            pub(super) const LABELS: &[&str] = &[$(stringify!($label)),*];

            pub(super) fn number(one: &$type) -> usize {
                (match one { $($pattern => Numbered::$label),* }) as usize
            }
        }
    };
}

kinds!(event(Event) {
    Event::Begin { .. } => Begin, Event::Rollback { .. } => Rollback, Event::Commit(..) => Commit, Event::Decline { .. } => Decline,
    Event::Inquire { .. } => Inquire, Event::AtLeast { .. } => AtLeast, Event::ResultsAcked(_) => ResultsAcked,
    Event::SessionUp(..) => SessionUp, Event::SessionDown(..) => SessionDown, Event::Message(..) => Message,
    Event::Durable(_) => Durable, Event::LogFull(_) => LogFull, Event::Pause(_) => Pause, Event::Admin { .. } => Admin, Event::Audit(..) => Audit, Event::Tick => Tick,
});
kinds!(said(FromParticipant) {
    FromParticipant::Hello(_) => Hello, FromParticipant::Refused(_) => Refused, FromParticipant::Ballot(_) => Ballot,
    FromParticipant::Committed(_) => Committed, FromParticipant::NotPrepared(..) => NotPrepared, FromParticipant::Progress(_) => Progress,
    FromParticipant::Stuck(..) => Stuck, FromParticipant::Inquiry(_) => Inquiry, FromParticipant::Led(_) => Led,
    FromParticipant::NotLed(..) => NotLed, FromParticipant::Settled(..) => Settled, FromParticipant::Markers { .. } => Markers,
    FromParticipant::Resolved { .. } => Resolved,
});
kinds!(effect(Effect) {
    Effect::Append { .. } => Append, Effect::Send(..) => Send, Effect::Reply(..) => Reply, Effect::ForgetPayload(_) => ForgetPayload,
    Effect::ForgetBelow(_) => ForgetBelow, Effect::Alarm(_) => Alarm, Effect::Trace(_) => Trace,
});
kinds!(sent(ToParticipant) {
    ToParticipant::Welcome { .. } => Welcome, ToParticipant::Reserve(_) => Reserve, ToParticipant::Open => Open,
    ToParticipant::Prepare(_) => Prepare, ToParticipant::Commit(_) => Commit, ToParticipant::Abort(_) => Abort,
    ToParticipant::Lead(_) => Lead, ToParticipant::Settle(_) => Settle, ToParticipant::Scan(_) => Scan, ToParticipant::Acked(_) => Acked,
    ToParticipant::Closed(_) => Closed, ToParticipant::Floor(_) => Floor, ToParticipant::Resolve { .. } => Resolve,
    ToParticipant::Skip(_) => Skip, ToParticipant::Close => Close,
});
kinds!(reply(Reply) {
    Reply::Begun(_) => Begun, Reply::Committed(_) => Committed, Reply::Aborted(_) => Aborted, Reply::Unknown(_) => Unknown,
    Reply::Expired(_) => Expired, Reply::KeyReused(_) => KeyReused, Reply::Reached(_) => Reached, Reply::Behind(_) => Behind,
    Reply::ForeignToken(_) => ForeignToken, Reply::Done(_) => Done, Reply::Refused(_) => Refused,
});
kinds!(refusal(RefusalKind) {
    RefusalKind::Invalid => Invalid, RefusalKind::Constraint => Constraint, RefusalKind::Condition => Condition,
    RefusalKind::Conflict => Conflict, RefusalKind::Busy => Busy, RefusalKind::Unavailable => Unavailable, RefusalKind::Timeout => Timeout,
    RefusalKind::Cancelled => Cancelled,
});
kinds!(record(Record) {
    Record::Header { .. } => Header, Record::Participant { .. } => Participant, Record::Epoch { .. } => Epoch, Record::Commit(_) => Commit,
    Record::End { .. } => End, Record::Acked { .. } => Acked, Record::Damage(_) => Damage, Record::Admin { .. } => Admin,
    Record::Floor { .. } => Floor, Record::Leads { .. } => Leads, Record::Followed { .. } => Followed, Record::Scanned { .. } => Scanned,
    Record::Audit { .. } => Audit, Record::Restored { .. } => Restored,
});
kinds!(damage(DamageKind) {
    DamageKind::RolledBackByHand => RolledBackByHand, DamageKind::CommittedByHand => CommittedByHand, DamageKind::Hazard => Hazard,
    DamageKind::Skipped => Skipped,
});
kinds!(order(AdminAction) {
    AdminAction::Resolve { .. } => Resolve, AdminAction::Skip { .. } => Skip, AdminAction::Forget { .. } => Forget,
    AdminAction::Waive { .. } => Waive, AdminAction::LeaveSafeMode => LeaveSafeMode, AdminAction::Cancel { .. } => Cancel,
    AdminAction::Remove { .. } => Remove,
});
kinds!(alarm(Alarm) {
    Alarm::LogLoss(_) => LogLoss, Alarm::StoreLoss(..) => StoreLoss, Alarm::NotOwner(..) => NotOwner, Alarm::Stuck { .. } => Stuck,
    Alarm::Damage(..) => Damage, Alarm::Misbehaves(..) => Misbehaves, Alarm::WrongKind(..) => WrongKind,
});
kinds!(command(StoreCommand) {
    StoreCommand::Recover { .. } => Recover, StoreCommand::Prepare(_) => Prepare, StoreCommand::Commit { .. } => Commit,
    StoreCommand::Abort(_) => Abort, StoreCommand::Lead(_) => Lead, StoreCommand::Acked(_) => Acked, StoreCommand::Settle(_) => Settle,
    StoreCommand::Scan { .. } => Scan, StoreCommand::Floor(_) => Floor, StoreCommand::Resolve { .. } => Resolve, StoreCommand::List => List,
    StoreCommand::Tend(_) => Tend, StoreCommand::Migrate(..) => Migrate,
});
kinds!(report(StoreReport) {
    StoreReport::Recovered { .. } => Recovered, StoreReport::Prepared(_) => Prepared, StoreReport::Committed { .. } => Committed,
    StoreReport::Aborted => Aborted, StoreReport::Led(_) => Led, StoreReport::LedEach(_) => LedEach, StoreReport::Acked => Acked,
    StoreReport::Settled(_) => Settled, StoreReport::Unsettled(_) => Unsettled, StoreReport::Scanned(_) => Scanned, StoreReport::Floored => Floored,
    StoreReport::Resolved(_) => Resolved, StoreReport::Unresolved(_) => Unresolved, StoreReport::Listed(_) => Listed, StoreReport::Tended { .. } => Tended,
    StoreReport::Migrated(_) => Migrated, StoreReport::Broken(_) => Broken,
});

kinds!(phase(Phase) { Phase::Starting => Starting, Phase::Serving => Serving, Phase::Safe(_) => Safe, Phase::Stopped(_) => Stopped });
kinds!(transaction(Outcome) {
    Outcome::Live(State::Active) => Active, Outcome::Live(State::Preparing) => Preparing, Outcome::Live(State::Deciding(_)) => Deciding,
    Outcome::Live(State::Committing(_)) => Committing, Outcome::Ended => Ended, Outcome::Aborted => Aborted,
});
kinds!(branch(BranchState) {
    BranchState::Idle => Idle, BranchState::Asked(_) => Asked, BranchState::Voted(_, Vote::Prepared(_)) => VotedPrepared,
    BranchState::Voted(_, Vote::Redo(..)) => VotedRedo, BranchState::Voted(_, Vote::InGroup(_)) => VotedInGroup,
    BranchState::Voted(_, Vote::Ready(_)) => VotedReady, BranchState::Voted(_, Vote::ReadOnly(_)) => VotedReadOnly,
    BranchState::Voted(_, Vote::No(_)) => VotedNo, BranchState::Following => Following, BranchState::Finished => Finished,
});
kinds!(session(Session) {
    Session::Down => Down, Session::Welcomed(_) => Welcomed, Session::Open(_) => Open, Session::Refused(..) => Refused,
});
kinds!(scan(Scan) {
    Scan::NotNeeded => NotNeeded, Scan::Needed => Needed, Scan::Waived => Waived, Scan::Running => Running, Scan::Checking => Checking,
    Scan::Complete => Complete, Scan::Again(_) => Again, Scan::Gone(_) => Gone,
});
kinds!(there(SessionState) {
    SessionState::Silent => Silent, SessionState::Recovering => Recovering, SessionState::HandingOver => HandingOver,
    SessionState::Open => Open, SessionState::Refused => Refused,
});
kinds!(batch(BatchState) { BatchState::None => None, BatchState::Running => Running, BatchState::Voted => Voted });

/// A transaction as the coordinator knows it: it lives, or how it went.
enum Outcome {
    Live(State),
    Ended,
    Aborted,
}

/// Of one enum: how often each of its kinds occurred.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Which enum.
    pub title: &'static str,
    /// Its kinds.
    pub labels: &'static [&'static str],
    /// How often each.
    pub counts: Vec<u64>,
}

/// Of one thing's states: how often each followed each. Before its first and after its last it is not there.
#[derive(Clone, Debug)]
pub struct Transitions {
    /// Whose states.
    pub title: &'static str,
    /// The states.
    pub labels: &'static [&'static str],
    /// Those that the protocol allows.
    allowed: Vec<(usize, usize)>,
    counts: Vec<u64>,
}

/// What the runs of one thread, or of several together, have met.
#[derive(Clone, Debug)]
pub struct Reached {
    /// Kinds.
    pub tallies: Vec<Tally>,
    /// States.
    pub transitions: Vec<Transitions>,
}

/// In the place of a state: it is not there.
const ABSENT: &str = "-";

impl Transitions {
    /// `allowed` says for each state, by name, which may follow it.
    fn of(title: &'static str, labels: &'static [&'static str], allowed: &[(&str, &str)]) -> Transitions {
        let size = labels.len() + 1;
        let place = |name: &str| match name {
            ABSENT => labels.len(),
            name => labels.iter().position(|label| *label == name).unwrap_or_else(|| panic!("{title}: there is no state {name}")),
        };
        let pairs = allowed.iter().flat_map(|(from, to)| to.split_whitespace().map(move |to| (*from, to)));
        let allowed = pairs.map(|(from, to)| (place(from), place(to))).collect();
        Transitions { title, labels, allowed, counts: vec![0; size * size] }
    }

    fn name(&self, state: usize) -> &'static str {
        self.labels.get(state).copied().unwrap_or(ABSENT)
    }

    /// Notes a change; says what it is if it is not allowed.
    fn note(&mut self, from: Option<usize>, to: Option<usize>) -> Option<String> {
        let absent = self.labels.len();
        let (from, to) = (from.unwrap_or(absent), to.unwrap_or(absent));
        let count = &mut self.counts[from * (absent + 1) + to];
        *count += 1;
        (!self.allowed.contains(&(from, to)))
            .then(|| format!("{}: from {} to {}, which the protocol does not know", self.title, self.name(from), self.name(to)))
    }

    /// Each change that is allowed, or occurred: from, to, how often.
    pub fn changes(&self) -> Vec<(&'static str, &'static str, u64)> {
        let size = self.labels.len() + 1;
        let all = (0..size).flat_map(|from| (0..size).map(move |to| (from, to)));
        let known = all.map(|(from, to)| (from, to, self.counts[from * size + to]));
        let known = known.filter(|(from, to, count)| *count > 0 || self.allowed.contains(&(*from, *to)));
        known.map(|(from, to, count)| (self.name(from), self.name(to), count)).collect()
    }
}

const EVENT: usize = 0;
const SAID: usize = 1;
const EFFECT: usize = 2;
const SENT: usize = 3;
const REPLY: usize = 4;
const REFUSAL: usize = 5;
const RECORD: usize = 6;
const DAMAGE: usize = 7;
const ORDER: usize = 8;
const ALARM: usize = 9;
const COMMAND: usize = 10;
const REPORT: usize = 11;

const PHASE: usize = 0;
const TRANSACTION: usize = 1;
const BRANCH: usize = 2;
const SESSION: usize = 3;
const SCAN: usize = 4;
const THERE: usize = 5;
const BATCH: usize = 6;

impl Reached {
    /// Nothing.
    pub fn none() -> Reached {
        let tallies: [(&str, &[&str]); 12] = [
            ("events", event::LABELS),
            ("participants said", said::LABELS),
            ("effects", effect::LABELS),
            ("participants were told", sent::LABELS),
            ("clients and operators were told", reply::LABELS),
            ("aborted because", refusal::LABELS),
            ("records", record::LABELS),
            ("damage", damage::LABELS),
            ("orders carried out", order::LABELS),
            ("alarms", alarm::LABELS),
            ("store commands", command::LABELS),
            ("store reports", report::LABELS),
        ];
        let tally = |(title, labels): (&'static str, &'static [&'static str])| Tally { title, labels, counts: vec![0; labels.len()] };
        Reached { tallies: tallies.into_iter().map(tally).collect(), transitions: transitions() }
    }

    /// Both together.
    pub fn add(&mut self, other: &Reached) {
        for (own, other) in self.tallies.iter_mut().zip(&other.tallies) {
            own.counts.iter_mut().zip(&other.counts).for_each(|(own, other)| *own += other);
        }
        for (own, other) in self.transitions.iter_mut().zip(&other.transitions) {
            own.counts.iter_mut().zip(&other.counts).for_each(|(own, other)| *own += other);
        }
    }

    /// What exists, or is allowed, and never occurred.
    pub fn never(&self) -> Vec<String> {
        let kinds = self.tallies.iter().flat_map(|tally| {
            let never = tally.labels.iter().zip(&tally.counts).filter(|(_, count)| **count == 0);
            never.map(|(label, _)| format!("{}: {label}", tally.title))
        });
        let changes = self.transitions.iter().flat_map(|of| {
            let never = of.changes().into_iter().filter(|(_, _, count)| *count == 0);
            never.map(|(from, to, _)| format!("{}: {from} to {to}", of.title))
        });
        kinds.chain(changes).collect()
    }

    /// For people: one line for each enum.
    pub fn lines(&self) -> Vec<String> {
        let kinds = self.tallies.iter().map(|tally| {
            let each: Vec<_> = tally.labels.iter().zip(&tally.counts).map(|(label, count)| format!("{label} {count}")).collect();
            format!("{}: {}", tally.title, each.join(", "))
        });
        let changes = self.transitions.iter().map(|of| {
            let each: Vec<_> = of.changes().into_iter().map(|(from, to, count)| format!("{from}>{to} {count}")).collect();
            format!("{}: {}", of.title, each.join(", "))
        });
        kinds.chain(changes).collect()
    }

    /// For programs.
    pub fn json(&self) -> String {
        let kinds = self.tallies.iter().map(|tally| {
            let each: Vec<_> = tally.labels.iter().zip(&tally.counts).map(|(label, count)| format!("\"{label}\":{count}")).collect();
            format!("\"{}\":{{{}}}", tally.title, each.join(","))
        });
        let changes = self.transitions.iter().map(|of| {
            let change = |(from, to, count)| format!("{{\"from\":\"{from}\",\"to\":\"{to}\",\"count\":{count}}}");
            let each: Vec<_> = of.changes().into_iter().map(change).collect();
            format!("\"{}\":[{}]", of.title, each.join(","))
        });
        let never: Vec<_> = self.never().iter().map(|never| format!("\"{never}\"")).collect();
        let (kinds, changes): (Vec<_>, Vec<_>) = (kinds.collect(), changes.collect());
        format!("{{\"kinds\":{{{}}},\"transitions\":{{{}}},\"never\":[{}]}}", kinds.join(","), changes.join(","), never.join(","))
    }
}

/// What this thread has met since it was asked last.
pub fn reached() -> Reached {
    REACHED.replace(Reached::none())
}

/// The states, and which may follow which, in one step of their machine.
fn transitions() -> Vec<Transitions> {
    vec![
        Transitions::of(
            "the coordinator",
            phase::LABELS,
            &[(ABSENT, "Starting"), ("Starting", "Serving -"), ("Serving", "Safe -"), ("Safe", "Stopped -"), ("Stopped", "-")],
        ),
        // One that was decided before this start begins where it stands. One step may be several.
        Transitions::of(
            "a transaction",
            transaction::LABELS,
            &[
                (ABSENT, "Active Preparing Committing"),
                ("Active", "Preparing Aborted"),
                ("Preparing", "Deciding Ended Aborted"),
                ("Deciding", "Committing Ended Aborted"),
                ("Committing", "Ended"),
            ],
        ),
        Transitions::of(
            "a branch, at the coordinator",
            branch::LABELS,
            &[
                (ABSENT, "Idle Asked Following Finished"),
                ("Idle", "Asked -"),
                ("Asked", "VotedPrepared VotedRedo VotedInGroup VotedReadOnly Following Finished -"),
                ("VotedPrepared", "Following -"),
                ("VotedRedo", "Following -"),
                ("VotedInGroup", "Following -"),
                ("VotedReadOnly", "Finished -"),
                ("Following", "Finished -"),
                ("Finished", "Following -"),
            ],
        ),
        Transitions::of(
            "a session, at the coordinator",
            session::LABELS,
            &[
                (ABSENT, "Down"),
                ("Down", "Welcomed Refused"),
                ("Welcomed", "Down Open Refused"),
                ("Open", "Down Welcomed Refused"),
                ("Refused", "Down Welcomed"),
            ],
        ),
        Transitions::of(
            "what is known of a leader's markers",
            scan::LABELS,
            &[
                (ABSENT, "NotNeeded Needed Gone"),
                ("NotNeeded", "Needed Gone Running"),
                ("Needed", "Waived Gone Running"),
                ("Waived", "Running"),
                ("Running", "Needed Complete Again"),
                ("Checking", "Complete"),
                ("Complete", "Checking Gone Running"),
                ("Again", "Running"),
            ],
        ),
        Transitions::of(
            "a session, at the participant",
            there::LABELS,
            &[
                (ABSENT, "Silent"),
                ("Silent", "Recovering Refused -"),
                ("Recovering", "Silent HandingOver -"),
                ("HandingOver", "Silent Open -"),
                ("Open", "Silent -"),
                ("Refused", "Silent -"),
            ],
        ),
        Transitions::of(
            "a participant's batch",
            batch::LABELS,
            &[(ABSENT, "None"), ("None", "Running -"), ("Running", "None Voted -"), ("Voted", "None -")],
        ),
    ]
}

fn note(tally: usize, kind: usize) {
    REACHED.with_borrow_mut(|reached| reached.tallies[tally].counts[kind] += 1);
}

pub(super) fn event_comes(event: &Event) {
    note(EVENT, self::event::number(event));
    if let Event::Message(_, _, message) = event {
        note(SAID, said::number(message));
    }
}

pub(super) fn effect_goes(effect: &Effect) {
    note(EFFECT, self::effect::number(effect));
    match effect {
        Effect::Append { record, .. } => {
            note(RECORD, self::record::number(record));
            match record {
                Record::Damage(damage) => note(DAMAGE, self::damage::number(&damage.kind)),
                Record::Admin { action, .. } => note(ORDER, order::number(action)),
                _ => {}
            }
        }
        Effect::Send(_, _, message) => note(SENT, sent::number(message)),
        Effect::Alarm(alarm) => note(ALARM, self::alarm::number(alarm)),
        Effect::Reply(_, reply) => {
            note(REPLY, self::reply::number(reply));
            if let Reply::Aborted(aborted) = reply {
                note(REFUSAL, refusal::number(&aborted.refusal.kind));
            }
        }
        Effect::ForgetPayload(_) | Effect::ForgetBelow(_) | Effect::Trace(_) => {}
    }
}

/// A record that no machine has written.
pub(super) fn record_written(record: &Record) {
    note(RECORD, self::record::number(record));
}

pub(super) fn store_call(command: &StoreCommand, report: &StoreReport) {
    note(COMMAND, self::command::number(command));
    note(REPORT, self::report::number(report));
}

/// A coordinator's states, as they were seen last.
#[derive(Debug, Default)]
pub(super) struct CoordinatorSeen {
    phase: Option<usize>,
    followers: Vec<(usize, usize)>,
    transactions: FxHashMap<Txid, TransactionSeen>,
    looks: u64,
}

#[derive(Debug)]
struct TransactionSeen {
    state: usize,
    branches: Vec<(ParticipantId, usize)>,
    look: u64,
}

impl CoordinatorSeen {
    /// Looks at it again; says which change is not allowed, if one is not.
    pub(super) fn look(&mut self, machine: &Coordinator) -> Option<String> {
        REACHED.with_borrow_mut(|reached| {
            let mut wrong = None;
            let of = &mut reached.transitions;
            let phase = Some(self::phase::number(machine.phase()));
            if self.phase != phase {
                wrong = wrong.or(of[PHASE].note(self.phase, phase));
                self.phase = phase;
            }
            for (i, follower) in machine.followers().iter().enumerate() {
                let now = (self::session::number(&follower.session), self::scan::number(&follower.scan));
                let before = self.followers.get(i).copied();
                if before == Some(now) {
                    continue;
                }
                if before.map(|(session, _)| session) != Some(now.0) {
                    wrong = wrong.or(of[SESSION].note(before.map(|(session, _)| session), Some(now.0)));
                }
                if before.map(|(_, scan)| scan) != Some(now.1) {
                    wrong = wrong.or(of[SCAN].note(before.map(|(_, scan)| scan), Some(now.1)));
                }
                match before {
                    Some(_) => self.followers[i] = now,
                    None => self.followers.push(now),
                }
            }
            wrong.or(self.look_at_transactions(machine, of))
        })
    }

    fn look_at_transactions(&mut self, machine: &Coordinator, of: &mut [Transitions]) -> Option<String> {
        let mut wrong = None;
        self.looks += 1;
        let mut live = 0;
        for one in machine.transactions() {
            live += 1;
            let state = transaction::number(&Outcome::Live(one.state));
            let seen = self.transactions.entry(one.txid).or_insert_with(|| {
                wrong = wrong.take().or(of[TRANSACTION].note(None, Some(state)));
                TransactionSeen { state, branches: Vec::new(), look: 0 }
            });
            seen.look = self.looks;
            if seen.state != state {
                wrong = wrong.or(of[TRANSACTION].note(Some(seen.state), Some(state)));
                seen.state = state;
            }
            for branch in &one.branches {
                let state = self::branch::number(&branch.state);
                match seen.branches.iter_mut().find(|(at, _)| *at == branch.participant) {
                    Some((_, before)) if *before == state => {}
                    Some((_, before)) => wrong = wrong.or(of[BRANCH].note(Some(std::mem::replace(before, state)), Some(state))),
                    None => {
                        wrong = wrong.or(of[BRANCH].note(None, Some(state)));
                        seen.branches.push((branch.participant, state));
                    }
                }
            }
        }
        if live == self.transactions.len() {
            return wrong;
        }
        let looks = self.looks;
        self.transactions.retain(|txid, seen| {
            if seen.look == looks {
                return true;
            }
            let ended = match machine.known(*txid).map(|known| &known.fate) {
                Some(Fate::Committed(_)) => Outcome::Ended,
                Some(Fate::Aborted(_)) => Outcome::Aborted,
                // Its outcome is below the floor: it went as it could from there.
                Some(Fate::Running) | None if seen.state == transaction::number(&Outcome::Live(State::Committing(Default::default()))) => {
                    Outcome::Ended
                }
                Some(Fate::Running) | None => Outcome::Aborted,
            };
            wrong = wrong.take().or(of[TRANSACTION].note(Some(seen.state), Some(transaction::number(&ended))));
            for (_, branch) in &seen.branches {
                wrong = wrong.take().or(of[BRANCH].note(Some(*branch), None));
            }
            false
        });
        wrong
    }

    /// Its process is gone.
    pub(super) fn ends(&mut self) {
        REACHED.with_borrow_mut(|reached| {
            if let Some(phase) = self.phase.take() {
                reached.transitions[PHASE].note(Some(phase), None);
            }
        });
        *self = CoordinatorSeen::default();
    }
}

/// A participant's states, as they were seen last.
#[derive(Debug, Default)]
pub(super) struct ParticipantSeen {
    session: Option<usize>,
    batch: Option<usize>,
}

impl ParticipantSeen {
    /// Looks at it again; says which change is not allowed, if one is not.
    pub(super) fn look(&mut self, machine: &Participant) -> Option<String> {
        let session = machine.session_state().map(|state| there::number(&state));
        let batch = machine.batch_state().map(|state| self::batch::number(&state));
        if (session, batch) == (self.session, self.batch) {
            return None;
        }
        REACHED.with_borrow_mut(|reached| {
            let mut wrong = None;
            if session != self.session {
                wrong = wrong.or(reached.transitions[THERE].note(self.session, session));
            }
            if batch != self.batch {
                wrong = wrong.or(reached.transitions[BATCH].note(self.batch, batch));
            }
            (self.session, self.batch) = (session, batch);
            wrong
        })
    }

    /// Its process is gone.
    pub(super) fn ends(&mut self) {
        REACHED.with_borrow_mut(|reached| {
            if let Some(session) = self.session {
                reached.transitions[THERE].note(Some(session), None);
            }
            if let Some(batch) = self.batch {
                reached.transitions[BATCH].note(Some(batch), None);
            }
        });
        *self = ParticipantSeen::default();
    }
}
