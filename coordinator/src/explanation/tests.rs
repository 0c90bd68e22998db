//! What is said in every state that a transaction can be in: whole explanations. Renewed with `INSTA_UPDATE=always`; read the difference.

use crate::engine_handle::{Registered, Registry};
use crate::log::Space;
use crate::view::View;
use bytes::Bytes;
use insta::assert_snapshot;
use lockstep_core::{
    AdminAction, Ballot, BranchRequest, Config, CoordId, Coordinator, Csn, Effect, Entry, Epoch, Event, FromParticipant, Hello, Identity,
    Kind, LogId, MarkerEvidence, Operation, ParticipantConfig, ParticipantId, Position, Progress, Refusal, RefusalKind, Request,
    RequestKey, Results, Role, SessionId, StatementResult, Ticket, Time, Txid, Vote, Wait,
};
use std::sync::Arc;
use std::time::Duration;

const PG: ParticipantId = ParticipantId(0);
const INDEX: ParticipantId = ParticipantId(1);
const LEDGER: ParticipantId = ParticipantId(2);
const SECOND: u64 = 1_000_000;

/// A machine, and time that passes when it is told to.
struct Play {
    machine: Coordinator,
    now: Time,
    /// All that was appended.
    log: Vec<Entry>,
    /// Whether the log's disk confirms.
    disk: bool,
    sessions: u64,
    requests: u64,
}

impl Play {
    fn start(log: Vec<Entry>) -> Play {
        let store = |name: &str, kind, role| ParticipantConfig { name: name.into(), kind, role, standalone: false };
        let participants = vec![
            store("pg", Kind::Preparing, Role::Database),
            store("index", Kind::Redo, Role::Index),
            store("ledger", Kind::Leader, Role::Database),
        ];
        let config = Config { participants, wall_at_zero_ms: 1_795_402_665_000, ..Config::default() };
        let incarnation = 7 + log.len() as u64;
        let identity = Identity { coord_id: CoordId(10), log_id: LogId(11), incarnation };
        let mut effects = Vec::new();
        let machine = Coordinator::start(config, identity, log.clone(), Time(0), &mut effects).unwrap();
        let mut play = Play { machine, now: Time(0), log, disk: true, sessions: 0, requests: 0 };
        play.carry_out(effects);
        play
    }

    /// The same log, another start.
    fn start_again(self) -> Play {
        Play::start(self.log)
    }

    fn step(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.machine.step(self.now, event, &mut effects);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut last = None;
        for effect in effects {
            if let Effect::Append { lsn, record, .. } = effect {
                self.log.push(Entry { lsn, record });
                last = Some(lsn);
            }
        }
        if let Some(lsn) = last.filter(|_| self.disk) {
            self.step(Event::Durable(lsn));
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.now = Time(self.now.0 + seconds * SECOND);
        self.step(Event::Tick);
    }

    fn up(&mut self, participant: ParticipantId) -> SessionId {
        self.up_with(participant, |_| {})
    }

    fn up_with(&mut self, participant: ParticipantId, change: impl FnOnce(&mut Hello)) -> SessionId {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        self.step(Event::SessionUp(participant, session));
        let mut hello = Hello::of_nothing(self.machine.followers()[participant.0 as usize].kind);
        change(&mut hello);
        self.say(participant, session, FromParticipant::Hello(hello));
        if participant == LEDGER {
            self.say(participant, session, FromParticipant::Markers { markers: Vec::new(), last: true });
        }
        session
    }

    fn all_up(&mut self) -> [SessionId; 3] {
        [PG, INDEX, LEDGER].map(|participant| self.up(participant))
    }

    fn say(&mut self, participant: ParticipantId, session: SessionId, message: FromParticipant) {
        self.step(Event::Message(participant, session, message));
    }

    fn vote(&mut self, participant: ParticipantId, session: SessionId, txid: Txid, vote: Vote) {
        let ballot = Ballot { votes: vec![(txid, vote)], group_redo: Bytes::new() };
        self.say(participant, session, FromParticipant::Ballot(ballot));
    }

    /// A row at this database, and a document.
    fn request(&mut self, database: ParticipantId) -> Txid {
        self.requests += 1;
        let sql = "UPDATE item SET n = n + 1\n  WHERE name = $1".to_string();
        let row = Operation::Statement { sql, parameters: Vec::new(), expect_rows: None };
        let put = Operation::Put { key: "film-42".into(), document: "{}".into(), condition: None };
        let delete = Operation::Delete { key: "film-7".into(), condition: None };
        let branches = vec![
            BranchRequest { participant: database, operations: Arc::from([row]) },
            BranchRequest { participant: INDEX, operations: Arc::from([put, delete]) },
        ];
        let position = self.machine.position();
        let request = Request {
            key: key(self.requests),
            position,
            new_key: true,
            hash: 1,
            branches,
            wait: Wait::Visible,
            timeout: 0,
            deadline: Time(self.now.0 + 5 * SECOND),
            trace: None,
        };
        self.step(Event::Commit(Ticket(self.requests), request));
        self.newest(position)
    }

    fn newest(&self, position: Position) -> Txid {
        self.machine.all_known().rev().map(|known| known.txid).find(|txid| txid.position() == position).unwrap()
    }

    /// A transaction that is decided, and that nobody has applied.
    fn decided(&mut self, [pg, index, _]: [SessionId; 3]) -> Txid {
        let txid = self.request(PG);
        self.vote(INDEX, index, txid, Vote::Redo(Bytes::from_static(b"redo"), Results::default()));
        self.vote(PG, pg, txid, Vote::Prepared(one_row()));
        txid
    }

    fn explained(&self, txid: Txid) -> String {
        let registered = |(id, name, store_type, role, kind): (ParticipantId, &str, &'static str, Role, Kind)| Registered {
            id,
            name: Arc::from(name),
            store_type,
            role,
            kind,
        };
        let stores = [
            (PG, "pg", "postgres", Role::Database, Kind::Preparing),
            (INDEX, "index", "remote", Role::Index, Kind::Redo),
            (LEDGER, "ledger", "postgres", Role::Database, Kind::Leader),
        ];
        let breaks = [(LEDGER, "connection refused (os error 111)".to_string())].into_iter().collect();
        let view = View {
            machine: &self.machine,
            registry: &Registry::new(stores.map(registered).to_vec()),
            breaks: &breaks,
            now: self.now,
            space: Space { used: 0, free: 0 },
            forces: 0,
            uptime: Duration::ZERO,
            serving_after: Some(Duration::ZERO),
            mended_after: None,
            stopping: false,
        };
        let told = view.explanation(txid);
        let mut text = format!("{} ({}{})\n", told.verdict, told.state, if told.attention { ", needs a person" } else { "" });
        for (title, facts) in [("known", &told.facts), ("by itself", &told.ahead)] {
            for fact in facts {
                text += &format!("  {title}: {} [{}, {} ms]\n", fact.sentence, fact.source, fact.age_ms);
            }
        }
        for choice in &told.choices {
            text += &format!("  choice: {}\n", choice.effect);
            for line in [("$", &choice.command), ("refused:", &choice.refused)] {
                if !line.1.is_empty() {
                    text += &format!("    {} {}\n", line.0, line.1);
                }
            }
            for harm in &choice.harms {
                text += &format!("    damages {}: {} {:?}\n", harm.participant, harm.sentence, harm.keys);
            }
        }
        for moment in view.timeline(txid) {
            text += &format!("  {} {} {} [{}]\n", moment.at_ms - 1_795_402_665_000, moment.participant, moment.sentence, moment.source);
        }
        text
    }
}

fn key(n: u64) -> RequestKey {
    RequestKey { key: Arc::from(format!("order-{n}").as_bytes()), attempt: 1 }
}

fn one_row() -> Results {
    Arc::from([StatementResult { rows_affected: 1, ..StatementResult::default() }])
}

#[test]
fn undecided() {
    let mut play = Play::start(Vec::new());
    let [pg, index, _] = play.all_up();
    let position = play.machine.position();
    play.step(Event::Begin { ticket: Ticket(9), key: key(9), position, led_by: None, timeout: 0 });
    play.pass(2);
    let active = play.explained(play.newest(position));
    let txid = play.request(PG);
    play.vote(INDEX, index, txid, Vote::Redo(Bytes::from_static(b"redo"), Results::default()));
    play.pass(1);
    let preparing = play.explained(txid);
    play.disk = false;
    play.vote(PG, pg, txid, Vote::Prepared(one_row()));
    play.pass(1);
    let deciding = play.explained(txid);
    assert_snapshot!("undecided", [active, preparing, deciding].join("\n"));
}

#[test]
fn committing() {
    let mut play = Play::start(Vec::new());
    let sessions = play.all_up();
    let txid = play.decided(sessions);
    let following = play.explained(txid);
    play.say(PG, sessions[0], FromParticipant::Committed(txid));
    play.say(INDEX, sessions[1], FromParticipant::Stuck(Csn::new(Epoch(1), 1), "the mapping takes no field `title`.".into()));
    play.pass(3);
    // Another one writes one of the documents again.
    play.decided(sessions);
    let stuck = play.explained(txid);
    play.step(Event::SessionDown(INDEX, sessions[1]));
    play.pass(90);
    let away = play.explained(txid);
    let replayed = play.start_again().explained(txid);
    assert_snapshot!("committing", [following, stuck, away, replayed].join("\n"));
}

#[test]
fn ended() {
    let mut play = Play::start(Vec::new());
    let sessions = play.all_up();
    let committed = play.decided(sessions);
    play.say(PG, sessions[0], FromParticipant::Committed(committed));
    let progress = Progress { applied: Csn::new(Epoch(1), 1), durable: Csn::new(Epoch(1), 1) };
    play.say(INDEX, sessions[1], FromParticipant::Progress(progress));
    let aborted = play.request(PG);
    play.vote(PG, sessions[0], aborted, Vote::No(Refusal::new(RefusalKind::Constraint, "UNIQUE constraint failed: item.name")));
    play.pass(4);
    let told = [play.explained(committed), play.explained(aborted)];
    play.step(Event::SessionDown(PG, sessions[0]));
    assert_snapshot!("ended", [told.join("\n"), play.explained(aborted)].join("\n"));
}

#[test]
fn in_doubt_at_a_leader() {
    let mut play = Play::start(Vec::new());
    let [_, index, ledger] = play.all_up();
    let txid = play.request(LEDGER);
    play.vote(INDEX, index, txid, Vote::Redo(Bytes::from_static(b"redo"), Results::default()));
    play.vote(LEDGER, ledger, txid, Vote::Ready(one_row()));
    play.pass(1);
    let led = play.explained(txid);
    play.step(Event::SessionDown(LEDGER, ledger));
    play.pass(60);
    let away = play.explained(txid);
    // The next start knows nothing of it but its number, and the leader is not there.
    let next = play.start_again();
    assert_snapshot!("in_doubt_at_a_leader", [led, away, next.explained(txid)].join("\n"));
}

#[test]
fn in_doubt_at_the_log() {
    let mut play = Play::start(Vec::new());
    let [_, index, _] = play.all_up();
    let txid = play.request(PG);
    play.vote(INDEX, index, txid, Vote::Redo(Bytes::from_static(b"redo"), Results::default()));
    let mut play = play.start_again();
    // The branch became durable, and its vote was lost with the coordinator.
    play.up_with(PG, |hello| hello.prepared = vec![txid]);
    play.pass(4);
    let waiting = play.explained(txid);
    // A store that has seen more than the log holds.
    play.up_with(INDEX, |hello| hello.highest = Csn::new(Epoch(1), 900));
    let safe = play.explained(txid);
    let resolve = AdminAction::Resolve { txid, participant: PG, commit: true };
    play.step(Event::Admin { ticket: Ticket(3), operator: "ann".into(), action: resolve, reason: "the order was shipped".into() });
    assert_snapshot!("in_doubt_at_the_log", [waiting, safe, play.explained(txid)].join("\n"));
}

#[test]
fn damaged() {
    let mut play = Play::start(Vec::new());
    let sessions = play.all_up();
    let by_hand = play.decided(sessions);
    play.say(PG, sessions[0], FromParticipant::NotPrepared(by_hand, MarkerEvidence::RolledBack));
    let skipped = play.decided(sessions);
    let skip = AdminAction::Skip { txid: skipped, participant: INDEX };
    play.step(Event::Admin { ticket: Ticket(3), operator: "ann".into(), action: skip, reason: "disk lost".into() });
    play.pass(2);
    assert_snapshot!("damaged", [play.explained(by_hand), play.explained(skipped)].join("\n"));
}

#[test]
fn unknown() {
    let mut play = Play::start(Vec::new());
    play.up(PG);
    let mut play = play.start_again();
    play.up(PG);
    // The stores that are away may know what the log has lost: they are waited for.
    let awaited = play.explained(id("1-5"));
    play.pass(60);
    let all = ["1-5", "1-5@p2", "1-5@p9", "2-900", "7-1"].map(|text| play.explained(id(text)));
    assert_snapshot!("unknown", [awaited, all.join("\n")].join("\n"));
}

#[test]
fn not_kept_any_more() {
    let mut play = Play::start(Vec::new());
    let sessions = play.all_up();
    let ended = play.request(PG);
    play.vote(PG, sessions[0], ended, Vote::No(Refusal::new(RefusalKind::Constraint, "UNIQUE constraint failed: item.name")));
    for _ in 0..3 {
        play.pass(24 * 3600);
    }
    let there = play.explained(ended);
    play.step(Event::SessionDown(PG, sessions[0]));
    assert_snapshot!("not_kept_any_more", [there, play.explained(ended)].join("\n"));
}

fn id(text: &str) -> Txid {
    text.parse().unwrap()
}
