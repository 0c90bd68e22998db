//! The machine alone, on one core: a log and participants that say Yes at once.

use bytes::Bytes;
use lockstep_core::{
    Ballot, BranchRequest, Config, CoordId, Coordinator, Effect, Event, FromParticipant, Hello, Identity, Kind, LogId, Lsn, Operation,
    Owner, ParticipantConfig, ParticipantId, Position, Progress, Reply, Request, RequestKey, Role, SessionId, Ticket, Time, ToParticipant,
    Txid, Value, Vote, Wait,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What each transaction touches, and how that is called.
pub const PAIRS: [(&str, Pair); 2] = [
    ("an index and a serial executor", [(Kind::Redo, Role::Index), (Kind::Serial, Role::Database)]),
    ("two preparing databases", [(Kind::Preparing, Role::Database), (Kind::Preparing, Role::Database)]),
];

/// Two participants.
pub type Pair = [(Kind, Role); 2];

const TRANSACTIONS: u64 = 1_000_000;
const IN_FLIGHT: u64 = 32;
const SESSION: SessionId = SessionId(1);
/// Microseconds on the machine's clock from one event to the next, as in a busy daemon: outcomes are forgotten by the clock, and a machine
/// that keeps too many refuses.
const PACE: u64 = 10;

/// Transactions a second: of the machine's steps, and not of making up what is asked.
pub fn per_second(pair: Pair) -> f64 {
    let mut play = Play::new(pair);
    let mut stepped = Duration::ZERO;
    for first in (0..TRANSACTIONS).step_by(IN_FLIGHT as usize) {
        let requests: Vec<_> = (first..first + IN_FLIGHT).map(|n| (Ticket(n), request(n, play.machine.position(), pair))).collect();
        let began = Instant::now();
        for (ticket, request) in requests {
            play.step(Event::Commit(ticket, request));
        }
        play.settle();
        stepped += began.elapsed();
    }
    assert_eq!(play.committed, TRANSACTIONS, "what is not committed is not measured");
    play.committed as f64 / stepped.as_secs_f64()
}

/// The machine, and participants and a log that say Yes at once.
struct Play {
    machine: Coordinator,
    kinds: [Kind; 2],
    now: Time,
    effects: Vec<Effect>,
    welcomed: Vec<(ParticipantId, Owner)>,
    votes: [Vec<Txid>; 2],
    commits: [Vec<(u64, Vec<Txid>)>; 2],
    durable: Option<Lsn>,
    committed: u64,
}

impl Play {
    fn new(pair: Pair) -> Play {
        let participant = |(n, (kind, role)): (usize, &(Kind, Role))| ParticipantConfig {
            name: format!("p{n}"),
            kind: *kind,
            role: *role,
            standalone: false,
        };
        let config = Config { participants: pair.iter().enumerate().map(participant).collect(), ..Config::default() };
        let identity = Identity { coord_id: CoordId(1), log_id: LogId(2), incarnation: 3 };
        let mut effects = Vec::new();
        let machine = Coordinator::start(config, identity, Vec::new(), Time(0), &mut effects).expect("an empty log starts");
        let kinds = pair.map(|(kind, _)| kind);
        let (votes, commits) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        let mut play = Play { machine, kinds, now: Time(0), effects, welcomed: Vec::new(), votes, commits, durable: None, committed: 0 };
        play.take_effects();
        for p in 0..2 {
            play.step(Event::SessionUp(ParticipantId(p), SESSION));
        }
        play.settle();
        play
    }

    fn step(&mut self, event: Event) {
        self.now = self.now.after(PACE);
        self.machine.step(self.now, event, &mut self.effects);
        self.take_effects();
    }

    fn say(&mut self, p: usize, message: FromParticipant) {
        self.step(Event::Message(ParticipantId(p as u16), SESSION, message));
    }

    fn take_effects(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Append { lsn, .. } => self.durable = Some(lsn),
                Effect::Reply(_, Reply::Committed(_)) => self.committed += 1,
                Effect::Reply(ticket, reply) => panic!("transaction {} is not committed: {reply:?}", ticket.0),
                Effect::Trace(_) => {}
                Effect::Send(p, _, ToParticipant::Prepare(work)) => self.votes[p.0 as usize].push(work.txid),
                Effect::Send(p, _, ToParticipant::Commit(decided)) => {
                    self.commits[p.0 as usize].push((decided.csn.to_u64(), decided.txids))
                }
                Effect::Send(p, _, ToParticipant::Welcome { owner, .. }) => self.welcomed.push((p, owner)),
                Effect::Send(..) | Effect::ForgetPayload(_) | Effect::ForgetBelow(_) | Effect::Alarm(_) => {}
            }
        }
        self.effects = effects;
        for (p, owner) in std::mem::take(&mut self.welcomed) {
            let hello = Hello { highest_epoch: owner.epoch, ..Hello::of_nothing(self.kinds[p.0 as usize]) };
            self.say(p.0 as usize, FromParticipant::Hello(hello));
        }
    }

    /// Votes, forces and acks until nothing is under way.
    fn settle(&mut self) {
        loop {
            let before = (self.votes.iter().map(Vec::len).sum::<usize>(), self.durable, self.commits.iter().map(Vec::len).sum::<usize>());
            for p in 0..2 {
                let asked = std::mem::take(&mut self.votes[p]);
                if !asked.is_empty() {
                    let votes = asked.into_iter().map(|txid| (txid, vote(self.kinds[p]))).collect();
                    self.say(p, FromParticipant::Ballot(Ballot { votes, group_redo: Bytes::from_static(&[7; 200]) }));
                }
            }
            if let Some(lsn) = self.durable.take() {
                self.step(Event::Durable(lsn));
            }
            for p in 0..2 {
                for (csn, txids) in std::mem::take(&mut self.commits[p]) {
                    self.ack(p, csn, txids);
                }
            }
            if before == (0, None, 0) {
                return;
            }
        }
    }

    fn ack(&mut self, p: usize, csn: u64, txids: Vec<Txid>) {
        match self.kinds[p] {
            Kind::Preparing => {
                for txid in txids {
                    self.say(p, FromParticipant::Committed(txid));
                }
            }
            Kind::Redo | Kind::Serial | Kind::Leader => {
                let csn = lockstep_core::Csn::from_u64(csn).expect("a CSN");
                self.say(p, FromParticipant::Progress(Progress { applied: csn, durable: csn }));
            }
        }
    }
}

fn vote(kind: Kind) -> Vote {
    match kind {
        Kind::Redo => Vote::Redo(Bytes::from_static(&[7; 200]), [].into()),
        Kind::Serial => Vote::InGroup([].into()),
        Kind::Preparing => Vote::Prepared([].into()),
        Kind::Leader => Vote::Ready([].into()),
    }
}

/// A row at a database, a document at an index.
fn request(n: u64, position: Position, pair: Pair) -> Request {
    let operation = |role| match role {
        Role::Database => Operation::Statement { sql: "UPDATE t".into(), parameters: vec![Value::Integer(n as i64)], expect_rows: None },
        Role::Index => Operation::Put { key: n.to_string(), document: "{}".into(), condition: None },
    };
    let branch = |p: usize| BranchRequest { participant: ParticipantId(p as u16), operations: [operation(pair[p].1)].into() };
    let branches = vec![branch(0), branch(1)];
    let key = RequestKey { key: Arc::from(&n.to_be_bytes()[..]), attempt: 1 };
    Request { key, position, new_key: true, hash: n, branches, wait: Wait::Applied, timeout: 0, deadline: Time(u64::MAX), trace: None }
}
