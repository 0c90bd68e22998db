//! The coordinator's machine among participants of which some keep to the protocol, some do not, and all may do either at any moment.
//!
//! Everything goes over the wire: what a participant says is encoded, decoded and translated before the machine hears it, and so is what
//! the coordinator says. Clients, operators, the log and the clock are honest: what they do is drawn too.

use crate::input::{below, bytes, number, one, seldom};
use crate::log_records::comes_back;
use arbitrary::Unstructured;
use bytes::Bytes;
use lockstep_core::outcomes::ResultLimits;
use lockstep_core::{
    Abilities, AdminAction, Ballot, BranchRedo, BranchRequest, CommitEntry, Condition, Config, CoordId, Coordinator, Csn, Decider, Effect,
    Entry, EntryPayload, Epoch, Event, FromParticipant, GroupRedo, Hello, Identity, KeyWrite, Kind, LogId, Lsn, Marker, MarkerEvidence,
    Operation, Owner, ParticipantConfig, ParticipantId, Position, Progress, Refusal, RefusalKind, Reply, Request, RequestKey, Results,
    Role, SessionId, Settle, Ticket, Time, ToParticipant, Token, TraceContext, Txid, Vote, Wait, Work,
};
use lockstep_proto::v1;
use lockstepd::service::participant_messages as wire;
use prost::Message;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Steps of one play, at most.
const STEPS: usize = 600;
/// Ids that are remembered to be said again, at most.
const POOL: usize = 24;
const STORES: [(&str, Kind); 6] = [
    ("pg", Kind::Preparing),
    ("lite", Kind::Serial),
    ("index", Kind::Redo),
    ("notes", Kind::Redo),
    ("led", Kind::Leader),
    ("maria", Kind::Preparing),
];
const SECOND: u64 = 1_000_000;

/// Any bytes as a play: no participant can stop the coordinator, make it take back what it has said (I7, as far as the log decides), or
/// leave it a log that it cannot take up again.
pub fn coordinator_sessions(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut play = Play::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        play.step(&mut input);
    }
    play.restart();
    play.look();
}

struct Play {
    machine: Coordinator,
    config: Config,
    now: Time,
    log: Vec<Entry>,
    durable: Lsn,
    starts: u64,
    sessions: u64,
    /// Every ticket, and whether it was answered.
    tickets: Vec<bool>,
    actors: Vec<Actor>,
    txids: Vec<Txid>,
    csns: Vec<Csn>,
    markers: Vec<Marker>,
    /// Which request a ticket is about.
    asked: HashMap<u64, RequestKey>,
    told: BTreeMap<RequestKey, Told>,
    /// Where the coordinator stood when the key was first sent; none once a client has lied about it.
    sent: BTreeMap<RequestKey, Option<Position>>,
}

/// A participant.
struct Actor {
    kind: Kind,
    abilities: Abilities,
    session: Option<SessionId>,
    inbox: VecDeque<ToParticipant>,
    owner: Option<Owner>,
    progress: Progress,
    prepared: Vec<Txid>,
    markers: Vec<Marker>,
}

/// What the client of a request was told, where the log decided it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Told {
    Committed(Csn),
    Aborted,
}

impl Play {
    fn new(input: &mut Unstructured) -> Play {
        let able = input.ratio(1, 2).unwrap_or(false);
        let small = input.ratio(1, 2).unwrap_or(false);
        let mut config = Config { traces: input.ratio(1, 4).unwrap_or(false), ..Config::default() };
        if small {
            (config.max_open, config.max_lag, config.outcomes_max) = (8, 4, 6);
            config.results = ResultLimits { transactions: 2, bytes: 1_000 };
            config.outcomes_keep = 10 * SECOND;
        }
        let actors = STORES.map(|(name, kind)| {
            let role = if kind == Kind::Redo { Role::Index } else { Role::Database };
            config.participants.push(ParticipantConfig { name: name.into(), kind, role, standalone: name == "notes" });
            let abilities = Abilities { leads: able && name == "pg", keeps_acked: able && name == "pg", shares: able && name == "pg" };
            Actor {
                kind,
                abilities,
                session: None,
                inbox: VecDeque::new(),
                owner: None,
                progress: Progress::default(),
                prepared: Vec::new(),
                markers: Vec::new(),
            }
        });
        let mut fx = Vec::new();
        let machine = Coordinator::start(config.clone(), identity(1), Vec::new(), Time(0), &mut fx).expect("an empty log");
        let mut play = Play {
            machine,
            config,
            now: Time(0),
            log: Vec::new(),
            durable: Lsn(0),
            starts: 1,
            sessions: 0,
            tickets: Vec::new(),
            actors: actors.into(),
            txids: Vec::new(),
            csns: Vec::new(),
            markers: Vec::new(),
            asked: HashMap::new(),
            told: BTreeMap::new(),
            sent: BTreeMap::new(),
        };
        play.perform(fx);
        if !seldom(input, 8) {
            play.force();
            for id in 0..STORES.len() {
                play.connect(id);
                while play.behave(id, &mut Unstructured::new(&[])) {}
            }
            play.force();
            for id in 0..STORES.len() {
                while play.behave(id, &mut Unstructured::new(&[])) {}
            }
            play.force();
        }
        play
    }

    fn step(&mut self, input: &mut Unstructured) {
        let id = below(input, STORES.len());
        match below(input, 24) {
            0..=3 => self.commit(input),
            4 => self.begin(input),
            5 => self.ask(input),
            6 => self.order(input),
            7 => self.connect(id),
            8 => self.disconnect(id),
            9..=12 => {
                for _ in 0..below(input, 6) + 1 {
                    self.behave(id, input);
                }
            }
            13 => self.settle_down(input),
            14..=18 => self.misbehave(id, input),
            19 => {
                let raw = bytes(input, 200);
                if let Ok(message) = v1::FromParticipantMessage::decode(raw) {
                    self.hear(id, message);
                }
            }
            20 | 21 => self.force(),
            22 => {
                let micros = *one(input, &[1, SECOND / 2, 3 * SECOND, 20 * SECOND, 61 * SECOND, 3_600 * SECOND]);
                self.now = self.now.after(micros);
                self.event(Event::Tick);
            }
            _ => match below(input, 8) {
                0 | 1 => self.restart(),
                2 => self.event(Event::LogFull(true)),
                3 => self.event(Event::LogFull(false)),
                4 => self.event(Event::Pause(true)),
                5 => self.event(Event::Pause(false)),
                6 => self.look(),
                _ => self.event(Event::Tick),
            },
        }
    }

    // ---- clients and operators

    fn ticket(&mut self) -> Ticket {
        self.tickets.push(false);
        Ticket(self.tickets.len() as u64 - 1)
    }

    /// A request's name, and where the coordinator stood when it was first sent.
    fn name(&mut self, input: &mut Unstructured) -> (RequestKey, Position) {
        let (key, here) = (key(input), self.machine.position());
        let lie = match below(input, 32) {
            0 => Some(Position { epoch: Epoch(here.epoch.0.saturating_sub(1)), n: number(input) }),
            1 => Some(Position { epoch: here.epoch, n: number(input) }),
            2 => Some(Position { epoch: Epoch(number(input) as u32 & Epoch::MAX.0), n: number(input) }),
            _ => None,
        };
        let first = self.sent.entry(key.clone()).or_insert(Some(here));
        if lie.is_some() {
            *first = None;
        }
        let position = lie.or(*first).unwrap_or(here);
        (key, position)
    }

    fn commit(&mut self, input: &mut Unstructured) {
        let ticket = self.ticket();
        let (key, position) = self.name(input);
        let stores = input.arbitrary::<u8>().unwrap_or(1) % (1 << STORES.len());
        let mut branches = Vec::new();
        for (id, (_, kind)) in STORES.iter().enumerate().filter(|(id, _)| stores >> id & 1 == 1) {
            let operation = match kind {
                Kind::Redo => Operation::Put {
                    key: one(input, &["a", "b"]).to_string(),
                    document: "{}".into(),
                    condition: match below(input, 6) {
                        0 => Some(Condition::Absent),
                        1 => Some(Condition::Csn(self.csn(input))),
                        _ => None,
                    },
                },
                Kind::Preparing if seldom(input, 6) => Operation::Enlisted { xid: 7 },
                _ => Operation::Statement { sql: "UPDATE t SET a = 1".into(), parameters: vec![], expect_rows: None },
            };
            branches.push(BranchRequest { participant: ParticipantId(id as u16), operations: [operation].into() });
        }
        let hash = u64::from(stores) << 8 | u64::from(seldom(input, 8));
        let (wait, timeout) = (*one(input, &[Wait::Decided, Wait::Applied, Wait::Visible]), *one(input, &[0, SECOND]));
        let trace = input.ratio(1, 4).unwrap_or(false).then(|| TraceContext::parse(TRACEPARENT).expect("it is one"));
        let request = Request {
            key: key.clone(),
            position,
            new_key: false,
            hash,
            branches,
            wait,
            timeout,
            deadline: self.now.after(10 * SECOND),
            trace,
        };
        self.asked.insert(ticket.0, key);
        if request.branches.is_empty() {
            let refusal = Refusal::new(RefusalKind::Invalid, "branches is empty");
            return self.event(Event::Decline { ticket, request: Request { hash: 0, ..request }, at: None, refusal });
        }
        self.event(Event::Commit(ticket, request));
    }

    fn begin(&mut self, input: &mut Unstructured) {
        let ticket = self.ticket();
        let (key, position) = self.name(input);
        self.asked.insert(ticket.0, key.clone());
        let led_by = one(input, &[None, Some(0), Some(4), Some(5), Some(2)]).map(ParticipantId);
        self.event(match seldom(input, 4) {
            true => Event::Rollback { ticket, key, position },
            false => Event::Begin { ticket, key, position, led_by, timeout: *one(input, &[0, SECOND]) },
        });
    }

    fn ask(&mut self, input: &mut Unstructured) {
        let ticket = self.ticket();
        let deadline = self.now.after(SECOND);
        match below(input, 3) {
            0 => {
                let (key, position) = self.name(input);
                self.asked.insert(ticket.0, key.clone());
                self.event(Event::Inquire { ticket, key, position, wait: Wait::Visible, deadline });
            }
            1 => {
                let log_id = if seldom(input, 4) { LogId(9) } else { self.machine.log_id() };
                let (csn, participant) = (self.csn(input), ParticipantId(below(input, STORES.len()) as u16));
                self.event(Event::AtLeast { ticket, participant, token: Token { log_id, csn }, deadline });
            }
            _ => {
                let txid = self.txid(input);
                self.event(Event::ResultsAcked(txid));
            }
        }
    }

    fn order(&mut self, input: &mut Unstructured) {
        let ticket = self.ticket();
        let (txid, participant) = (self.txid(input), ParticipantId(below(input, STORES.len()) as u16));
        let action = match below(input, 8) {
            0 | 1 => AdminAction::Resolve { txid, participant, commit: input.arbitrary().unwrap_or(false) },
            2 => AdminAction::Skip { txid, participant },
            3 => AdminAction::Forget { txid, participant },
            4 => AdminAction::Waive { participant },
            5 => AdminAction::LeaveSafeMode,
            6 => AdminAction::Cancel { txid },
            _ if seldom(input, 4) => AdminAction::Remove { participant },
            _ => AdminAction::Cancel { txid },
        };
        self.event(Event::Admin { ticket, operator: "eve".into(), action, reason: "because".into() });
    }

    // ---- participants

    fn connect(&mut self, id: usize) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        self.actors[id].session = Some(session);
        self.actors[id].inbox.clear();
        self.event(Event::SessionUp(ParticipantId(id as u16), session));
    }

    fn disconnect(&mut self, id: usize) {
        if let Some(session) = self.actors[id].session.take() {
            self.actors[id].inbox.clear();
            self.event(Event::SessionDown(ParticipantId(id as u16), session));
        }
    }

    /// All participants do what they should until nothing more is to be done.
    fn settle_down(&mut self, input: &mut Unstructured) {
        for _ in 0..20 {
            self.force();
            let mut busy = false;
            for id in 0..STORES.len() {
                busy |= self.behave(id, input);
            }
            if !busy {
                break;
            }
        }
    }

    /// Does what the next message asks for, as it should. `false` if there is none.
    fn behave(&mut self, id: usize, input: &mut Unstructured) -> bool {
        let me = ParticipantId(id as u16);
        let actor = &mut self.actors[id];
        let Some(message) = actor.inbox.pop_front() else { return false };
        let none = || Results::from(vec![]);
        let answer = match message {
            ToParticipant::Welcome { owner, .. } => {
                let before = actor.owner.replace(owner);
                Some(FromParticipant::Hello(Hello {
                    kind: actor.kind,
                    owner: before,
                    progress: actor.progress,
                    highest: actor.progress.applied,
                    prepared: actor.prepared.clone(),
                    heuristics: vec![],
                    floor: lockstep_core::Position::default(),
                    exclusive: !seldom(input, 8),
                    highest_epoch: before.map_or(Epoch(0), |before| before.epoch),
                    abilities: actor.abilities,
                }))
            }
            ToParticipant::Prepare(Work { txid, shares, .. }) => {
                let leads = txid.decider == Decider::Leader(me);
                let mut group_redo = Bytes::new();
                let vote = match (below(input, 10), actor.kind) {
                    (8, _) => Vote::ReadOnly(none()),
                    (9, _) => Vote::No(Refusal::new(RefusalKind::Conflict, "in the way")),
                    (_, Kind::Preparing) if leads => Vote::Ready(none()),
                    (n, Kind::Preparing) => {
                        actor.prepared.push(txid);
                        if shares && n < 4 { Vote::InGroup(none()) } else { Vote::Prepared(none()) }
                    }
                    (_, Kind::Redo) => Vote::Redo(Bytes::from_static(b"redo"), none()),
                    (_, Kind::Serial) => {
                        group_redo = Bytes::from_static(b"group");
                        Vote::InGroup(none())
                    }
                    (_, Kind::Leader) => Vote::Ready(none()),
                };
                Some(FromParticipant::Ballot(Ballot { votes: vec![(txid, vote)], group_redo }))
            }
            ToParticipant::Commit(decided) if actor.kind == Kind::Preparing => {
                for txid in &decided.txids {
                    actor.prepared.retain(|prepared| prepared != txid);
                }
                decided.txids.first().map(|txid| FromParticipant::Committed(*txid))
            }
            ToParticipant::Closed(csn) if actor.kind != Kind::Preparing => {
                let to = csn.max(actor.progress.applied);
                actor.progress = Progress { applied: to, durable: to };
                Some(FromParticipant::Progress(actor.progress))
            }
            ToParticipant::Acked(csn) => {
                actor.progress = Progress { applied: csn, durable: csn };
                Some(FromParticipant::Progress(actor.progress))
            }
            ToParticipant::Abort(txid) => {
                actor.prepared.retain(|prepared| *prepared != txid);
                None
            }
            ToParticipant::Lead(markers) => {
                let txids = markers.iter().map(|marker| marker.entry.txid).collect();
                actor.markers.extend(markers);
                Some(FromParticipant::Led(txids))
            }
            ToParticipant::Settle(what) => {
                let found = actor.markers.iter().find(|marker| match &what {
                    Settle::Txid(txid) => marker.entry.txid == *txid,
                    Settle::Key(key, _) => marker.entry.key == *key,
                });
                let found = found.cloned().map(Box::new);
                Some(FromParticipant::Settled(what, found))
            }
            ToParticipant::Scan(above) => {
                let mut markers: Vec<_> = actor.markers.iter().filter(|marker| marker.entry.csn > above).cloned().collect();
                markers.sort_by_key(|marker| marker.entry.csn);
                Some(FromParticipant::Markers { markers, last: true })
            }
            ToParticipant::Resolve { txid, commit } => Some(FromParticipant::Resolved { txid, commit }),
            ToParticipant::Close => {
                self.disconnect(id);
                None
            }
            ToParticipant::Commit(_)
            | ToParticipant::Closed(_)
            | ToParticipant::Reserve(_)
            | ToParticipant::Open
            | ToParticipant::Floor(_)
            | ToParticipant::Skip(_) => None,
        };
        if let Some(answer) = answer {
            self.say(id, &answer);
        }
        true
    }

    /// Says anything.
    fn misbehave(&mut self, id: usize, input: &mut Unstructured) {
        let message = match below(input, 17) {
            0 => FromParticipant::Hello(Hello {
                kind: if seldom(input, 4) { *one(input, &KINDS) } else { self.actors[id].kind },
                owner: match below(input, 3) {
                    0 => None,
                    1 => self.actors[id].owner,
                    _ => Some(self.owner(input)),
                },
                progress: self.progress(input),
                highest: self.csn(input),
                prepared: self.some_txids(input),
                heuristics: self.some_txids(input).into_iter().map(|txid| (txid, input.arbitrary().unwrap_or(false))).collect(),
                floor: lockstep_core::Position { epoch: self.csn(input).epoch(), n: self.csn(input).n() },
                exclusive: input.arbitrary().unwrap_or(false),
                highest_epoch: self.csn(input).epoch(),
                abilities: Abilities {
                    leads: input.arbitrary().unwrap_or(false),
                    keeps_acked: input.arbitrary().unwrap_or(false),
                    shares: input.arbitrary().unwrap_or(false),
                },
            }),
            1 => FromParticipant::Refused(self.owner(input)),
            2..=4 => {
                let votes = self.some_txids(input).into_iter().map(|txid| (txid, vote(input))).collect();
                FromParticipant::Ballot(Ballot { votes, group_redo: Bytes::copy_from_slice(bytes(input, 8)) })
            }
            5 => FromParticipant::Committed(self.txid(input)),
            6 => {
                let evidence = *one(input, &[MarkerEvidence::Committed, MarkerEvidence::RolledBack, MarkerEvidence::Unknowable]);
                FromParticipant::NotPrepared(self.txid(input), evidence)
            }
            7 | 8 => FromParticipant::Progress(self.progress(input)),
            9 => FromParticipant::Stuck(self.csn(input), "no".into()),
            10 => FromParticipant::Inquiry(self.some_txids(input)),
            11 => FromParticipant::Led(self.some_txids(input)),
            12 => FromParticipant::NotLed(self.some_txids(input), Refusal::new(RefusalKind::Timeout, "no")),
            13 => {
                let what = match seldom(input, 2) {
                    false => Settle::Txid(self.txid(input)),
                    true => Settle::Key(key(input), Position { n: number(input), ..self.machine.position() }),
                };
                let marker = input.ratio(1, 2).unwrap_or(false).then(|| Box::new(self.marker(id, input)));
                FromParticipant::Settled(what, marker)
            }
            14 | 15 => {
                let markers = (0..below(input, 4)).map(|_| self.marker(id, input)).collect();
                FromParticipant::Markers { markers, last: input.arbitrary().unwrap_or(true) }
            }
            _ => FromParticipant::Resolved { txid: self.txid(input), commit: input.arbitrary().unwrap_or(false) },
        };
        self.say(id, &message);
    }

    fn txid(&self, input: &mut Unstructured) -> Txid {
        let known = if self.txids.is_empty() { Txid { epoch: Epoch(1), n: 1, decider: Decider::Log } } else { *one(input, &self.txids) };
        match below(input, 12) {
            0 => Txid { n: known.n.wrapping_add(1), ..known },
            1 => Txid { decider: Decider::Leader(ParticipantId(below(input, 8) as u16)), ..known },
            2 => Txid { epoch: Epoch(known.epoch.0.saturating_sub(1)), ..known },
            3 => Txid { epoch: self.csn(input).epoch(), n: number(input) & Csn::N_MAX, ..known },
            _ => known,
        }
    }

    fn some_txids(&self, input: &mut Unstructured) -> Vec<Txid> {
        (0..*one(input, &[1, 1, 1, 0, 2, 3])).map(|_| self.txid(input)).collect()
    }

    fn csn(&self, input: &mut Unstructured) -> Csn {
        let known = if self.csns.is_empty() { Csn::ZERO } else { *one(input, &self.csns) };
        match below(input, 10) {
            0 => known.before(),
            1 => Csn::from_u64(known.to_u64() + 1).unwrap_or(known),
            2 => Csn::new(self.machine.owner().epoch, number(input) & Csn::N_MAX),
            3 => Csn::from_u64(number(input)).unwrap_or(Csn::ZERO),
            _ => known,
        }
    }

    fn progress(&self, input: &mut Unstructured) -> Progress {
        let applied = self.csn(input);
        Progress { applied, durable: if seldom(input, 3) { self.csn(input) } else { applied } }
    }

    fn owner(&self, input: &mut Unstructured) -> Owner {
        let owner = self.machine.owner();
        match below(input, 4) {
            0 => owner,
            1 => Owner { epoch: Epoch(owner.epoch.0 + 1), ..owner },
            2 => Owner { incarnation: number(input), ..owner },
            _ => Owner { coord_id: CoordId(number(input).into()), epoch: self.csn(input).epoch(), incarnation: number(input) },
        }
    }

    fn marker(&self, id: usize, input: &mut Unstructured) -> Marker {
        if !self.markers.is_empty() && input.ratio(1, 3).unwrap_or(false) {
            return one(input, &self.markers).clone();
        }
        let txid = match seldom(input, 4) {
            true => self.txid(input),
            false => Txid { decider: Decider::Leader(ParticipantId(id as u16)), ..self.txid(input) },
        };
        let csn = match below(input, 3) {
            0 => self.csn(input),
            _ => Csn::new(txid.epoch.min(Epoch::MAX), number(input) & Csn::N_MAX),
        };
        let anyone = |input: &mut Unstructured| {
            // Seldom one that does not exist.
            let stores = STORES.len() + usize::from(seldom(input, 8));
            ParticipantId(below(input, stores) as u16)
        };
        let branches: Vec<_> = (0..below(input, 4)).map(|_| anyone(input)).collect();
        let redos = (0..below(input, 3)).map(|_| BranchRedo {
            participant: anyone(input),
            redo: Bytes::from_static(b"redo"),
            keys: vec![KeyWrite { key: "a".into(), delete: input.arbitrary().unwrap_or(false) }],
        });
        let redos = redos.collect();
        let groups = (0..below(input, 2)).map(|_| GroupRedo { participant: anyone(input), redo: Bytes::from_static(b"group") }).collect();
        let results = (0..below(input, 2)).map(|_| (anyone(input), Results::from(vec![]))).collect();
        Marker {
            entry: CommitEntry { txid, csn, key: key(input), request_hash: number(input), at_ms: number(input), branches },
            payload: EntryPayload { results, redos },
            groups,
            trace: None,
        }
    }

    fn say(&mut self, id: usize, message: &FromParticipant) {
        let out = wire::from_participant_out(message).encode_to_vec();
        self.hear(id, v1::FromParticipantMessage::decode(&out[..]).expect("it was just encoded"));
    }

    /// A message of this participant arrives. One that means nothing ends its session.
    fn hear(&mut self, id: usize, message: v1::FromParticipantMessage) {
        let Some(session) = self.actors[id].session else { return };
        match wire::from_participant(message) {
            Ok(message) => self.event(Event::Message(ParticipantId(id as u16), session, message)),
            Err(_) => self.disconnect(id),
        }
    }

    // ---- the log, and what the machine wants

    fn force(&mut self) {
        if let Some(last) = self.log.last().map(|entry| entry.lsn).filter(|last| *last > self.durable) {
            self.durable = last;
            self.event(Event::Durable(last));
        }
    }

    /// The coordinator dies, and takes up what of its log was durable.
    fn restart(&mut self) {
        let durable = self.durable;
        self.log.retain(|entry| entry.lsn <= durable);
        self.starts += 1;
        for actor in &mut self.actors {
            actor.session = None;
            actor.inbox.clear();
        }
        self.asked.clear();
        let mut fx = Vec::new();
        let identity = identity(self.starts);
        self.machine = Coordinator::start(self.config.clone(), identity, self.log.clone(), self.now, &mut fx).expect("its own log");
        self.perform(fx);
    }

    /// Looks at all that operators can look at.
    fn look(&self) {
        let machine = &self.machine;
        let _ = (machine.status(), machine.audit().len(), machine.damage().len(), machine.closed_up_to(), machine.preparing_stores_rest());
        for id in 0..STORES.len() as u16 {
            let _ = (machine.prepared_at(ParticipantId(id)), machine.why_not_presumed(Some(ParticipantId(id))));
        }
        for txid in machine.transactions().map(|transaction| transaction.txid).chain(self.txids.iter().copied()) {
            let _ = (machine.transaction(txid), machine.known(txid), machine.decision(txid), machine.by_hand(txid).count());
        }
    }

    fn event(&mut self, event: Event) {
        let mut fx = Vec::new();
        self.machine.step(self.now, event, &mut fx);
        self.perform(fx);
        if let Some(due) = self.machine.next_deadline().filter(|due| *due <= self.now) {
            panic!("at {:?} something is due since {due:?}", self.now);
        }
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Append { lsn, record, .. } => {
                    let next = self.log.last().map_or(Lsn(1), |last| last.lsn.next());
                    assert_eq!(lsn, next, "the log has no gap");
                    let entry = Entry { lsn, record };
                    comes_back(&entry);
                    self.log.push(entry);
                }
                Effect::Send(participant, session, message) => self.deliver(participant, session, message),
                Effect::Reply(ticket, reply) => self.answer(ticket, reply),
                Effect::ForgetPayload(lsn) => {
                    let found = self.log.iter_mut().find(|entry| entry.lsn == lsn).expect("what is forgotten is in the log");
                    match &mut found.record {
                        lockstep_core::Record::Commit(group) => group.payload = None,
                        other => panic!("the payload of {other:?} is to be forgotten"),
                    }
                }
                Effect::ForgetBelow(_) | Effect::Alarm(_) | Effect::Trace(_) => {}
            }
        }
    }

    fn deliver(&mut self, participant: ParticipantId, session: SessionId, message: ToParticipant) {
        let out = wire::to_participant_out(&message).encode_to_vec();
        let decoded = v1::ToParticipantMessage::decode(&out[..]).expect("it was just encoded");
        let heard = wire::to_participant(decoded).expect("what the coordinator says means something");
        match &heard {
            ToParticipant::Prepare(work) => remember(&mut self.txids, work.txid),
            ToParticipant::Commit(decided) | ToParticipant::Reserve(decided) => {
                remember(&mut self.csns, decided.csn);
                decided.txids.iter().for_each(|txid| remember(&mut self.txids, *txid));
            }
            ToParticipant::Lead(markers) => {
                for marker in markers {
                    remember(&mut self.csns, marker.entry.csn);
                    if self.markers.len() < POOL {
                        self.markers.push(marker.clone());
                    }
                }
            }
            ToParticipant::Closed(csn) | ToParticipant::Acked(csn) => remember(&mut self.csns, *csn),
            ToParticipant::Abort(txid) | ToParticipant::Settle(Settle::Txid(txid)) => remember(&mut self.txids, *txid),
            _ => {}
        }
        let actor = &mut self.actors[participant.0 as usize];
        if actor.session == Some(session) {
            actor.inbox.push_back(heard);
        }
    }

    fn answer(&mut self, ticket: Ticket, reply: Reply) {
        let answered = &mut self.tickets[ticket.0 as usize];
        assert!(!std::mem::replace(answered, true), "{ticket:?} is answered twice, now with {reply:?}");
        let told = match &reply {
            Reply::Begun(txid) => return remember(&mut self.txids, *txid),
            Reply::Committed(receipt) => {
                remember(&mut self.csns, receipt.csn);
                (receipt.txid, Told::Committed(receipt.csn))
            }
            Reply::Aborted(aborted) => match aborted.txid {
                Some(txid) => (txid, Told::Aborted),
                None => return,
            },
            _ => return,
        };
        let (txid, told) = told;
        remember(&mut self.txids, txid);
        // What a database decides is its own word.
        let Some(key) = self.asked.get(&ticket.0).filter(|_| txid.decider == Decider::Log) else { return };
        if self.sent.get(key).is_none_or(Option::is_none) {
            return;
        }
        let before = *self.told.entry(key.clone()).or_insert(told);
        assert_eq!(before, told, "I7: {key:?} was told {before:?}, and now {told:?}");
    }
}

const KINDS: [Kind; 4] = [Kind::Preparing, Kind::Redo, Kind::Serial, Kind::Leader];
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn identity(start: u64) -> Identity {
    Identity { coord_id: CoordId(7), log_id: LogId(u128::from(start)), incarnation: start * 1_000 }
}

/// One of a few names.
fn key(input: &mut Unstructured) -> RequestKey {
    RequestKey { key: one(input, &[b"k0", b"k1", b"k2", b"k3", b"k4", b"k5"])[..].into(), attempt: *one(input, &[1, 1, 1, 2]) }
}

fn vote(input: &mut Unstructured) -> Vote {
    let results = || Results::from(vec![]);
    match below(input, 7) {
        0 => Vote::Prepared(results()),
        1 => Vote::Redo(Bytes::copy_from_slice(bytes(input, 8)), results()),
        2 => Vote::InGroup(results()),
        3 => Vote::Ready(results()),
        4 => Vote::ReadOnly(results()),
        _ => Vote::No(Refusal::new(*one(input, &[RefusalKind::Conflict, RefusalKind::Constraint]), "no")),
    }
}

fn remember<T: PartialEq>(pool: &mut Vec<T>, what: T) {
    if !pool.contains(&what) {
        if pool.len() == POOL {
            pool.remove(0);
        }
        pool.push(what);
    }
}
