//! A participant, as the coordinator sees it.

use crate::config::Role;
use crate::ids::{Csn, Epoch, ParticipantId, Position, SessionId, Ticket, Time};
use crate::message::Progress;
use crate::vote::{Abilities, Kind};
use std::collections::BTreeMap;

/// A participant and how far it has followed.
#[derive(Debug)]
pub struct Follower {
    /// Its number in the log's registry.
    pub id: ParticipantId,
    /// Its name.
    pub name: String,
    /// How it votes.
    pub kind: Kind,
    /// What it is to clients.
    pub role: Role,
    /// An index that may be written without any row.
    pub standalone: bool,
    /// Whether it is configured now; one that is not keeps what it is owed.
    pub configured: bool,
    /// Whether an operator has given it up, for ever: it counts as not configured, and is owed nothing.
    pub removed: bool,
    /// The stream to it; changed by [`Follower::turn`].
    pub session: Session,
    /// When that changed last.
    pub session_since: Time,
    /// Its Hello has come, and it waits for leaders to be scanned before anything is handed to it (R-LR).
    pub greeted: bool,
    /// How far it says it has followed.
    pub progress: Progress,
    /// When it said so.
    pub progress_at: Time,
    /// How far it had followed, durably, at its first Hello since this start.
    pub followed_before: Option<Csn>,
    /// Whether the log holds that, because a leader is waived (`Record::Followed`).
    pub noted: Noted,
    /// How far the log says it had followed, durably (`Record::Acked`).
    pub acked: Csn,
    /// Decisions that concern it and are not durable there, by CSN; of a serial executor, one for each group, by its last CSN; one for those
    /// that share a branch, by their first CSN: nothing is acked up to the last before all are.
    pub items: BTreeMap<Csn, Item>,
    /// The first item that may not be applied yet.
    pub first_unapplied: Csn,
    /// The last [`crate::ToParticipant::Closed`] in this session.
    pub closed_told: Csn,
    /// How far it may have followed: what its Hello said, and what it was told since; the serial executor by each decision.
    pub let_pass: Csn,
    /// What is known of its markers, if it leads. Others wait for that only where it is of [`Kind::Leader`]: what a preparing store decides
    /// touches nobody else.
    pub scan: Scan,
    /// Whether no older session can commit anything there any more, as of its last Hello.
    pub exclusive: bool,
    /// Whether it has given its evidence about the log since this start (R-LOGLOSS), or was waived.
    pub evidence: bool,
    /// Clients that wait to read here.
    pub readers: Vec<ReadWaiter>,
    /// What it cannot apply yet, by CSN: at most [`Follower::STUCK_MAX`].
    pub stuck: BTreeMap<Csn, Stuck>,
    /// What it can do beside preparing, as of its last Hello.
    pub abilities: Abilities,
    /// A preparing store that may have decided transactions: the log says so, durably.
    pub has_led: bool,
    /// The last [`crate::ToParticipant::Acked`] in this session.
    pub acked_told: Csn,
    /// The newest start in which it is known to have said Hello, and so to have kept that start as its owner (R-STORELOSS).
    pub heard: Epoch,
    /// The older owner that it has come back with in this start; it has overwritten that since, and is not let in (R-STORELOSS).
    pub stale_owner: Option<Epoch>,
    /// Whether it was found to hold less than it once did, and has not shown since that it does not.
    pub lost: bool,
    /// Whether the log was told in this start what it should hold, because it held less.
    pub loss_noted: bool,
    /// The newest transaction that it is known to have decided, until it is told a floor above it (R-STORELOSS).
    pub led: Option<Led>,
    /// Records that have to be durable before it is told a floor.
    pub floor_waits: usize,
    /// How far the floor may go for what it has prepared: known when a Floor has become durable, and with it what was said before it.
    pub floor_for_branches: Position,
    /// Whether the log was told that this leader has answered this start.
    pub answer_noted: bool,
    /// The highest CSN among the markers of the scan under way.
    pub scanned: Csn,
}

/// A transaction that a leader has decided: its marker stands until the floor passes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Led {
    /// Its place.
    pub csn: Csn,
    /// Where it began; of one that an earlier start has missed, a lower bound.
    pub position: Position,
}

/// The stream to a participant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Session {
    /// None.
    Down,
    /// Welcomed; its Hello has not come.
    Welcomed(SessionId),
    /// Handed over; takes Prepares.
    Open(SessionId),
    /// It must not be used; the sentence says why.
    Refused(SessionId, String),
}

/// Whether the log holds how far a participant had followed at its first Hello.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Noted {
    /// Nobody has needed it.
    No,
    /// Its record is on its way.
    Pending,
    /// It does, durably.
    Durable,
}

/// A decision that concerns a participant and is not durable there.
#[derive(Clone, Debug)]
pub struct Item {
    /// Key of the decision.
    pub decision: Csn,
    /// The entry of that decision; `None` is the whole group.
    pub entry: Option<usize>,
    /// Whether it can be read there.
    pub applied: bool,
    /// It was found when its participant may have followed past it, without it.
    pub missed: bool,
    /// When it was sent last in this session.
    pub sent: Option<Time>,
    /// When it was sent first in this start, decided.
    pub first_sent: Option<Time>,
    /// The pause before it is sent again.
    pub backoff: u64,
    /// When it was decided or found.
    pub since: Time,
}

/// Why a decision is not applied at a participant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stuck {
    /// Its own words, or the coordinator's if it has said nothing.
    pub reason: String,
    /// Whether these are its own.
    pub told: bool,
    /// When it was stuck first.
    pub since: Time,
    /// When it was said last.
    pub at: Time,
}

/// What is known of a leader's markers in this incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scan {
    /// It does not lead.
    NotNeeded,
    /// Not known at all: its outcomes are in doubt.
    Needed,
    /// Not known, and by an operator's word other stores do not wait for it: its outcomes stay in doubt. Read when it comes back.
    Waived,
    /// Being read for the first time.
    Running,
    /// Known; and no older session can add to it. A new session has to show the newest one that is known, before it takes Prepares.
    Checking,
    /// Known; and no older session can add to it.
    Complete,
    /// Known, but older sessions may still commit: scanned again at this time.
    Again(Time),
    /// It was removed in this start. It had told all that it decided, and every other store had that durably: a branch that is still prepared
    /// for it was aborted. Which keys it had decided up to then nobody knows any more; later ones it has not.
    Gone(Epoch),
}

/// A client that waits to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadWaiter {
    /// Whom to answer.
    pub ticket: Ticket,
    /// How far it must have followed.
    pub csn: Csn,
    /// Until when at the latest.
    pub deadline: Time,
}

impl Follower {
    /// Decisions whose reasons are kept; of more than that, the first ones.
    pub const STUCK_MAX: usize = 256;

    /// A participant before its first session.
    pub fn new(id: ParticipantId, name: String, kind: Kind) -> Follower {
        Follower {
            id,
            name,
            kind,
            role: match kind {
                Kind::Redo => Role::Index,
                Kind::Preparing | Kind::Serial | Kind::Leader => Role::Database,
            },
            standalone: false,
            configured: false,
            removed: false,
            session: Session::Down,
            session_since: Time(0),
            greeted: false,
            progress: Progress::default(),
            progress_at: Time(0),
            followed_before: None,
            noted: Noted::No,
            acked: Csn::ZERO,
            items: BTreeMap::new(),
            first_unapplied: Csn::ZERO,
            closed_told: Csn::ZERO,
            let_pass: Csn::ZERO,
            scan: if kind == Kind::Leader { Scan::Needed } else { Scan::NotNeeded },
            exclusive: false,
            evidence: false,
            readers: Vec::new(),
            stuck: BTreeMap::new(),
            abilities: Abilities::default(),
            has_led: false,
            acked_told: Csn::ZERO,
            heard: Epoch(0),
            stale_owner: None,
            lost: false,
            loss_noted: false,
            led: None,
            floor_waits: 0,
            floor_for_branches: Position::default(),
            answer_noted: false,
            scanned: Csn::ZERO,
        }
    }

    /// Whether it may have decided transactions, and is asked about them.
    pub fn leads(&self) -> bool {
        self.kind == Kind::Leader || self.has_led
    }

    /// Whether it decides new transactions that touch it alone.
    pub fn leads_alone(&self) -> bool {
        self.kind == Kind::Preparing && self.has_led && self.abilities.leads
    }

    /// A leader that has decided something and was let in, which the log was not told in this start.
    pub fn has_answer_news(&self) -> bool {
        self.kind == Kind::Leader && self.led.is_some() && self.open_session().is_some() && !self.answer_noted
    }

    /// Whether it writes down how far it was acked, before the log forgets (R-STORELOSS). Before its Hello: whether it ever did. One that is
    /// not configured any more is not waited for.
    pub fn keeps_acked(&self) -> bool {
        let ever = !self.evidence && self.acked > Csn::ZERO;
        self.configured && self.kind == Kind::Preparing && (self.abilities.keeps_acked || ever)
    }

    /// The session that takes Prepares, if there is one.
    pub fn open_session(&self) -> Option<SessionId> {
        match self.session {
            Session::Open(session) => Some(session),
            Session::Down | Session::Welcomed(_) | Session::Refused(..) => None,
        }
    }

    /// It is given up in this start: nobody waits for what it knows.
    pub fn remove(&mut self, epoch: Epoch) {
        (self.removed, self.configured, self.evidence) = (true, false, true);
        if self.leads() {
            self.scan = Scan::Gone(epoch);
        }
    }

    /// Its session becomes another, or the same one gets on.
    pub fn turn(&mut self, now: Time, session: Session) {
        (self.session, self.session_since) = (session, now);
    }

    /// Notes why a decision is not applied here. Says whether that is news.
    pub fn note_stuck(&mut self, now: Time, csn: Csn, reason: String, told: bool) -> bool {
        let since = self.stuck.get(&csn).map(|stuck| stuck.since);
        let room = self.stuck.len() < Follower::STUCK_MAX;
        if since.is_some() || room {
            self.stuck.insert(csn, Stuck { reason, told, since: since.unwrap_or(now), at: now });
        }
        since.is_none() && room
    }

    /// Whether a message of this session is to be heard.
    pub fn hears(&self, session: SessionId) -> bool {
        match &self.session {
            Session::Welcomed(current) | Session::Open(current) => *current == session,
            Session::Down | Session::Refused(..) => false,
        }
    }

    /// The oldest decision that it has not applied.
    pub fn oldest_unapplied(&self) -> Option<(Csn, &Item)> {
        self.items.range(self.first_unapplied..).find(|(_, item)| !item.applied).map(|(csn, item)| (*csn, item))
    }

    /// Under which CSN it owes what has this one, and how far that is.
    pub fn item_of(&self, csn: Csn) -> Option<(Csn, &Item)> {
        let found = match self.kind {
            Kind::Serial => self.items.range(csn..).next(),
            Kind::Preparing => {
                let before = self.items.range(..=csn).next_back();
                before.filter(|(at, item)| **at == csn || (item.entry.is_none() && csn <= item.decision))
            }
            Kind::Redo | Kind::Leader => self.items.get_key_value(&csn),
        };
        found.map(|(csn, item)| (*csn, item))
    }

    /// Up to where nothing is missing there.
    pub fn reached(&self) -> Csn {
        if self.lost {
            return Csn::ZERO;
        }
        match (self.kind, self.oldest_unapplied()) {
            (Kind::Preparing, Some((csn, _))) => csn.before(),
            (Kind::Preparing | Kind::Redo | Kind::Serial | Kind::Leader, _) => self.progress.applied,
        }
    }

    /// How many decisions it has not applied.
    pub fn unapplied(&self) -> usize {
        self.items.range(self.first_unapplied..).filter(|(_, item)| !item.applied).count()
    }
}
