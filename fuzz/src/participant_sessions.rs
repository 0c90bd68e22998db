//! A participant's machine and a coordinator that says anything. The store is honest, and says what a store may.

use crate::input::{below, bytes, number, one, seldom};
use arbitrary::Unstructured;
use bytes::Bytes;
use lockstep_core::{
    Abilities, Ballot, BranchRedo, CommitEntry, CoordId, Csn, Decided, Decider, EntryPayload, Epoch, FromParticipant, KeyWrite, Kind,
    Marker, MarkerEvidence, Operation, Owner, Participant, ParticipantEffect, ParticipantEvent, ParticipantId, Position, Progress, Refusal,
    RefusalKind, RequestKey, Results, SessionId, Settle, Starts, StoreCommand, StoreReport, Ticket, Time, ToParticipant, Txid, Vote, Work,
};
use lockstep_proto::v1;
use lockstepd::service::participant_messages as wire;
use prost::Message;
use std::collections::HashSet;

/// Steps of one play, at most.
const STEPS: usize = 400;
const ME: ParticipantId = ParticipantId(2);

/// Any bytes as a play: no coordinator can stop a participant, make its store run a branch twice (R-ONEPREP), or apply out of order.
pub fn participant_sessions(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut play = Play::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        play.step(&mut input);
    }
}

struct Play {
    machine: Participant,
    kind: Kind,
    abilities: Abilities,
    now: Time,
    session: SessionId,
    up: bool,
    command: Option<StoreCommand>,
    store: Store,
    /// What the store ran in this session.
    ran: HashSet<Txid>,
}

/// What the store holds.
#[derive(Default)]
struct Store {
    owner: Option<Owner>,
    progress: Progress,
    prepared: Vec<Txid>,
    markers: Vec<Marker>,
}

impl Play {
    fn new(input: &mut Unstructured) -> Play {
        let kind = *one(input, &[Kind::Preparing, Kind::Redo, Kind::Serial, Kind::Leader]);
        let able = kind == Kind::Preparing && input.ratio(1, 2).unwrap_or(false);
        let abilities = Abilities { leads: able, keeps_acked: able, shares: able };
        let mut play = Play {
            machine: Participant::with(kind, abilities),
            kind,
            abilities,
            now: Time(0),
            session: SessionId(0),
            up: false,
            command: None,
            store: Store::default(),
            ran: HashSet::new(),
        };
        play.event(ParticipantEvent::Owner(None));
        if !seldom(input, 8) {
            play.connect();
            let owner = owner_of(1);
            let starts = Starts { known: [(owner.epoch, owner.incarnation)].into(), lost_below: Epoch(0) };
            play.hear(&ToParticipant::Welcome { owner, you: ME, starts });
            play.event(ParticipantEvent::Idle);
            play.report(&mut Unstructured::new(&[]));
            play.hear(&ToParticipant::Open);
        }
        play
    }

    fn step(&mut self, input: &mut Unstructured) {
        match below(input, 20) {
            0..=8 => {
                let message = self.message(input);
                self.hear(&message);
            }
            9 => {
                if let Ok(message) = v1::ToParticipantMessage::decode(bytes(input, 200))
                    && let Ok(message) = wire::to_participant(message)
                {
                    self.event(ParticipantEvent::Message(self.session, message));
                }
            }
            10..=12 => self.event(ParticipantEvent::Idle),
            13..=15 => {
                self.event(ParticipantEvent::Idle);
                self.report(input);
            }
            16 => {
                self.now = self.now.after(*one(input, &[1, 100_000, 2_000_000, 61_000_000]));
                self.event(ParticipantEvent::Idle);
            }
            17 => self.connect(),
            18 if seldom(input, 4) => {
                self.up = false;
                self.event(ParticipantEvent::SessionDown(self.session));
            }
            18 => self.event(ParticipantEvent::Migrate(Ticket(number(input)), "script".into())),
            _ if seldom(input, 4) => self.event(ParticipantEvent::Broken("found by itself".into())),
            _ => {
                self.event(ParticipantEvent::Idle);
                self.report(input);
            }
        }
    }

    fn connect(&mut self) {
        if self.up {
            self.event(ParticipantEvent::SessionDown(self.session));
        }
        self.session = SessionId(self.session.0 + 1);
        self.up = true;
        self.ran.clear();
        self.event(ParticipantEvent::Owner(self.store.owner));
        self.event(ParticipantEvent::SessionUp(self.session));
    }

    fn message(&self, input: &mut Unstructured) -> ToParticipant {
        match below(input, 20) {
            0 => ToParticipant::Welcome {
                owner: owner(input),
                you: *one(input, &[ME, ME, ME, ParticipantId(0)]),
                starts: Starts { known: [(Epoch(1), 1), (owner(input).epoch, 1)].into(), lost_below: Epoch(below(input, 3) as u32) },
            },
            1 | 2 => ToParticipant::Reserve(decided(input)),
            3 => ToParticipant::Open,
            4..=7 => ToParticipant::Prepare(Work {
                txid: txid(input),
                operations: [operation(input)].into(),
                timeout: *one(input, &[5_000_000, 5_000_000, 0, 1, u64::MAX]),
                trace: None,
                shares: seldom(input, 2),
            }),
            8..=10 => ToParticipant::Commit(decided(input)),
            11 => ToParticipant::Abort(txid(input)),
            12 => ToParticipant::Lead((0..below(input, 4)).map(|_| marker(input)).collect()),
            13 => ToParticipant::Settle(match seldom(input, 2) {
                false => Settle::Txid(txid(input)),
                true => Settle::Key(key(input), Position { epoch: Epoch(1), n: number(input) }),
            }),
            14 => ToParticipant::Scan(csn(input)),
            15 => ToParticipant::Acked(csn(input)),
            16 => ToParticipant::Closed(csn(input)),
            17 => match seldom(input, 2) {
                false => ToParticipant::Floor(Position { epoch: csn(input).epoch(), n: number(input) }),
                true => ToParticipant::Resolve { txid: txid(input), commit: input.arbitrary().unwrap_or(true) },
            },
            18 => ToParticipant::Skip(decided(input)),
            _ => ToParticipant::Close,
        }
    }

    fn hear(&mut self, message: &ToParticipant) {
        let out = wire::to_participant_out(message).encode_to_vec();
        let decoded = v1::ToParticipantMessage::decode(&out[..]).expect("it was just encoded");
        if let Ok(message) = wire::to_participant(decoded) {
            self.event(ParticipantEvent::Message(self.session, message));
        }
    }

    /// The store has done what it was told.
    fn report(&mut self, input: &mut Unstructured) {
        let Some(command) = self.command.take() else { return };
        if seldom(input, 12) {
            return self.event(ParticipantEvent::Store(StoreReport::Broken("the disk".into())));
        }
        let store = &mut self.store;
        let report = match command {
            StoreCommand::Recover { owner, .. } => {
                store.owner = Some(owner);
                StoreReport::Recovered {
                    progress: store.progress,
                    highest: store.progress.applied,
                    prepared: store.prepared.clone(),
                    heuristics: vec![],
                    floor: lockstep_core::Position::default(),
                    exclusive: true,
                }
            }
            StoreCommand::Prepare(batch) => {
                let vote = |work: &Work, input: &mut Unstructured| match (below(input, 8), self.kind) {
                    (6, _) => Vote::ReadOnly(none()),
                    (7, _) => Vote::No(Refusal::new(RefusalKind::Constraint, "no")),
                    (_, Kind::Preparing) if self.abilities.leads && work.txid.decider == Decider::Leader(ME) => Vote::Ready(none()),
                    (_, Kind::Preparing) => Vote::Prepared(none()),
                    (_, Kind::Redo) => Vote::Redo(Bytes::from_static(b"redo"), none()),
                    (_, Kind::Serial) => Vote::InGroup(none()),
                    (_, Kind::Leader) => Vote::Ready(none()),
                };
                let votes: Vec<_> = batch.iter().map(|work| (work.txid, vote(work, input))).collect();
                let prepared = votes.iter().filter(|(_, vote)| matches!(vote, Vote::Prepared(_))).map(|(txid, _)| *txid);
                store.prepared.extend(prepared);
                StoreReport::Prepared(Ballot { votes, group_redo: Bytes::from_static(b"group") })
            }
            StoreCommand::Commit { decided, closed } => {
                let (mut done, mut not_prepared, mut stuck) = (Vec::new(), Vec::new(), Vec::new());
                for decided in decided.iter() {
                    if self.kind == Kind::Preparing {
                        for txid in &decided.txids {
                            match store.prepared.iter().position(|prepared| prepared == txid) {
                                Some(at) => {
                                    store.prepared.remove(at);
                                    done.push(*txid);
                                }
                                None => not_prepared.push((*txid, MarkerEvidence::Unknowable)),
                            }
                        }
                    } else if self.kind == Kind::Redo && seldom(input, 6) {
                        stuck.push((decided.csn, "not now".into()));
                    }
                }
                if self.kind != Kind::Preparing && stuck.is_empty() {
                    follow(store, closed, input);
                }
                StoreReport::Committed { progress: store.progress, done, not_prepared, stuck }
            }
            StoreCommand::Abort(txids) => {
                store.prepared.retain(|prepared| !txids.contains(prepared));
                StoreReport::Aborted
            }
            StoreCommand::Lead(markers) => {
                let good = !seldom(input, 4);
                let refusal = || Refusal::new(RefusalKind::Conflict, "no");
                let report = match self.kind {
                    Kind::Preparing => {
                        let outcome = |marker: &Marker| (marker.entry.txid, if good { Ok(()) } else { Err(refusal()) });
                        StoreReport::LedEach(markers.iter().map(outcome).collect())
                    }
                    _ => StoreReport::Led(if good { Ok(()) } else { Err(refusal()) }),
                };
                if good {
                    store.markers.extend(markers);
                }
                report
            }
            StoreCommand::Acked(csn) => {
                let to = csn.max(store.progress.applied);
                store.progress = Progress { applied: to, durable: to };
                StoreReport::Acked
            }
            StoreCommand::Settle(what) => {
                StoreReport::Settled(store.markers.iter().find(|marker| what == Settle::Txid(marker.entry.txid)).cloned().map(Box::new))
            }
            StoreCommand::Scan { above, limit } => {
                let found = store.markers.iter().filter(|marker| marker.entry.csn > above).take(limit).cloned();
                StoreReport::Scanned(found.collect())
            }
            StoreCommand::Floor(_) => StoreReport::Floored,
            StoreCommand::Resolve { txid, commit } => {
                store.prepared.retain(|prepared| *prepared != txid);
                StoreReport::Resolved(commit)
            }
            StoreCommand::List => StoreReport::Listed(input.ratio(1, 2).unwrap_or(true).then(|| store.prepared.clone())),
            StoreCommand::Tend(closed) => {
                if self.kind != Kind::Preparing {
                    follow(store, closed, input);
                }
                StoreReport::Tended { progress: store.progress, next: None }
            }
            StoreCommand::Migrate(..) => StoreReport::Migrated(Ok("done".into())),
        };
        self.event(ParticipantEvent::Store(report));
    }

    fn event(&mut self, event: ParticipantEvent) {
        let mut effects = Vec::new();
        self.machine.step(self.now, event, &mut effects);
        for effect in effects {
            match effect {
                ParticipantEffect::Store(command) => self.take(command),
                ParticipantEffect::Send(session, message) => {
                    assert!(session <= self.session, "a session that never was");
                    sayable(&message);
                }
                ParticipantEffect::EndSession(session, why) => {
                    assert!(!why.is_empty());
                    self.up &= session != self.session;
                }
                ParticipantEffect::Migrated(..) => {}
            }
        }
    }

    fn take(&mut self, command: StoreCommand) {
        match &command {
            StoreCommand::Prepare(batch) => {
                for work in batch.iter() {
                    // What its application has prepared is only looked at.
                    if matches!(work.operations[..], [Operation::Enlisted { .. }]) {
                        continue;
                    }
                    // A serial executor runs again what another one of the batch took with it.
                    let first = self.ran.insert(work.txid);
                    assert!(first || matches!(self.kind, Kind::Serial | Kind::Leader), "R-ONEPREP: {} runs twice", work.txid);
                }
            }
            StoreCommand::Commit { decided, .. } => assert!(decided.is_sorted_by_key(|decided| decided.csn), "in CSN order"),
            _ => {}
        }
        let before = self.command.replace(command);
        assert!(before.is_none(), "one command at a time: {before:?}");
    }
}

fn follow(store: &mut Store, closed: Csn, input: &mut Unstructured) {
    let applied = store.progress.applied.max(closed);
    let durable = if seldom(input, 4) { store.progress.durable } else { applied };
    store.progress = Progress { applied, durable };
}

/// What the machine says means the same on the other side.
fn sayable(message: &FromParticipant) {
    let out = wire::from_participant_out(message).encode_to_vec();
    let decoded = v1::FromParticipantMessage::decode(&out[..]).expect("it was just encoded");
    let heard = wire::from_participant(decoded).expect("what a participant says means something");
    assert_eq!(wire::from_participant_out(&heard).encode_to_vec(), out);
}

fn none() -> Results {
    Results::from(vec![])
}

fn owner_of(epoch: u32) -> Owner {
    Owner { coord_id: CoordId(7), epoch: Epoch(epoch), incarnation: 1 }
}

fn owner(input: &mut Unstructured) -> Owner {
    match below(input, 4) {
        0 => Owner { incarnation: 2, ..owner_of(1) },
        1 => Owner { coord_id: CoordId(8), ..owner_of(1) },
        _ => owner_of(below(input, 4) as u32),
    }
}

fn txid(input: &mut Unstructured) -> Txid {
    let decider = *one(input, &[Decider::Log, Decider::Log, Decider::Leader(ME), Decider::Leader(ParticipantId(0))]);
    match seldom(input, 12) {
        true => Txid { epoch: csn(input).epoch(), n: number(input) & Csn::N_MAX, decider },
        false => Txid { epoch: Epoch(1), n: below(input, 6) as u64, decider },
    }
}

fn csn(input: &mut Unstructured) -> Csn {
    match below(input, 10) {
        0 => Csn::from_u64(number(input)).unwrap_or(Csn::ZERO),
        1 => Csn::from_u64(input.arbitrary().unwrap_or(0)).unwrap_or(Csn::ZERO),
        _ => Csn::new(Epoch(1), below(input, 8) as u64),
    }
}

fn key(input: &mut Unstructured) -> RequestKey {
    RequestKey { key: one(input, &[b"k0", b"k1"])[..].into(), attempt: 1 }
}

fn decided(input: &mut Unstructured) -> Decided {
    let txids = (0..*one(input, &[1, 1, 1, 0, 2, 3])).map(|_| txid(input)).collect();
    Decided { csn: csn(input), txids, redo: Bytes::copy_from_slice(bytes(input, 8)), trace: None }
}

fn operation(input: &mut Unstructured) -> Operation {
    match below(input, 3) {
        0 => Operation::Statement { sql: "SELECT 1".into(), parameters: vec![], expect_rows: None },
        1 => Operation::Put { key: "a".into(), document: "{}".into(), condition: None },
        _ => Operation::Enlisted { xid: number(input) },
    }
}

fn marker(input: &mut Unstructured) -> Marker {
    let redos = vec![BranchRedo {
        participant: ParticipantId(1),
        redo: Bytes::from_static(b"redo"),
        keys: vec![KeyWrite { key: "a".into(), delete: false }],
    }];
    let txid = txid(input);
    Marker {
        entry: CommitEntry { txid, csn: csn(input), key: key(input), request_hash: 1, at_ms: 1, branches: vec![ParticipantId(1)] },
        payload: EntryPayload { results: vec![], redos },
        groups: vec![],
        trace: None,
    }
}
