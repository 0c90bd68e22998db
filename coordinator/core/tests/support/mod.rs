//! A play: the coordinator's machine on a stage, every event and every effect one readable line.
//!
//! Lines at the margin are what happens to the coordinator, indented ones are what it does. Stores are actors here: each remembers what it
//! would say in its Hello, and a play can change that to tell a story.

mod words;

use lockstep_core::{
    Abilities, AdminAction, Ballot, BranchRequest, Condition, Config, CoordId, Coordinator, Csn, Decider, Effect, Entry, Epoch, Event,
    FromParticipant, Hello, Identity, Kind, LogId, Lsn, Marker, Operation, Owner, ParticipantConfig, ParticipantId, Position, Progress,
    Record, Refusal, RefusalKind, Request, RequestKey, Role, SessionId, Ticket, Time, ToParticipant, Token, Txid, Vote, Wait,
};
use words::Words;

/// One play, and the text it has become.
pub struct Play {
    pub machine: Coordinator,
    config: Config,
    words: Words,
    text: String,
    now: Time,
    /// Everything that was appended; up to `durable` it survives.
    log: Vec<Entry>,
    durable: Lsn,
    starts: u64,
    tickets: u64,
    sessions: u64,
    actors: Vec<Actor>,
    quiet: bool,
}

/// What a store would say of itself.
#[derive(Clone)]
pub struct Actor {
    pub kind: Kind,
    session: SessionId,
    pub owner: Option<Owner>,
    welcomed: Option<Owner>,
    pub progress: Progress,
    pub highest: Csn,
    pub prepared: Vec<Txid>,
    pub heuristics: Vec<(Txid, bool)>,
    pub floor: Position,
    pub exclusive: bool,
    pub highest_epoch: Epoch,
    pub abilities: Abilities,
}

/// A client's branch: the store and what to do there.
pub type Part = (&'static str, Vec<Operation>);

/// One statement at a database.
pub fn row(store: &'static str) -> Part {
    (store, vec![Operation::Statement { sql: "UPDATE film SET …".into(), parameters: vec![], expect_rows: None }])
}

/// A document put into an index.
pub fn put(store: &'static str, key: &str, condition: Option<Condition>) -> Part {
    (store, vec![Operation::Put { key: key.into(), document: "{}".into(), condition }])
}

/// A branch that its application has prepared.
pub fn enlisted(store: &'static str) -> Part {
    (store, vec![Operation::Enlisted { xid: 741 }])
}

/// `1-1` or `1-1@p0`.
pub fn txid(text: &str) -> Txid {
    text.parse().unwrap()
}

/// `1.1`
pub fn csn(text: &str) -> Csn {
    text.parse().unwrap()
}

/// A name of a request: `order-7`, or `order-7/2` for its second attempt.
pub fn key(text: &str) -> RequestKey {
    let (key, attempt) = text.split_once('/').unwrap_or((text, "1"));
    RequestKey { key: key.as_bytes().into(), attempt: attempt.parse().unwrap() }
}

impl Play {
    /// A new log, and these stores: configured, connected, empty. The text begins when all that is done.
    pub fn new(stores: &[(&'static str, Kind)]) -> Play {
        Play::with(stores, |_| {})
    }

    /// The same, with other limits or time-outs.
    pub fn with(stores: &[(&'static str, Kind)], adapt: impl Fn(&mut Config)) -> Play {
        let mut play = Play::before_start(stores, adapt);
        play.quiet = true;
        play.forced();
        for (name, _) in stores {
            play.connects(name);
        }
        play.quiet = false;
        play
    }

    /// The same, where preparing stores can do this too.
    pub fn able(stores: &[(&'static str, Kind)], abilities: Abilities) -> Play {
        let mut play = Play::before_start(stores, |_| {});
        play.quiet = true;
        for actor in play.actors.iter_mut().filter(|actor| actor.kind == Kind::Preparing) {
            actor.abilities = abilities;
        }
        play.forced();
        for (name, _) in stores {
            play.connects(name);
        }
        play.forced();
        for &(name, _) in stores {
            if play.machine.followers()[play.id(name).0 as usize].has_led {
                play.tells_markers(name, &[]);
            }
        }
        play.quiet = false;
        play
    }

    /// The same, with the start still to come: its epoch is not durable, and nobody is connected.
    pub fn before_start(stores: &[(&'static str, Kind)], adapt: impl Fn(&mut Config)) -> Play {
        let mut config = Config::default();
        for &(name, kind) in stores {
            let role = if kind == Kind::Redo { Role::Index } else { Role::Database };
            config.participants.push(ParticipantConfig { name: name.into(), kind, role, standalone: false });
        }
        adapt(&mut config);
        let actors = stores.iter().map(|(_, kind)| Actor::new(*kind)).collect();
        let mut fx = Vec::new();
        let machine = Coordinator::start(config.clone(), identity(1), Vec::new(), Time(0), &mut fx).unwrap();
        let words = Words::new(stores.iter().map(|(name, _)| *name).collect());
        let mut play = Play {
            machine,
            config,
            words,
            text: String::new(),
            now: Time(0),
            log: Vec::new(),
            durable: Lsn(0),
            starts: 1,
            tickets: 0,
            sessions: 0,
            actors,
            quiet: true,
        };
        play.perform(fx);
        play.quiet = false;
        play
    }

    /// What became of it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A remark to the reader.
    pub fn note(&mut self, text: &str) {
        self.line(&format!("# {text}"));
    }

    /// A store, to change what it will say.
    pub fn actor(&mut self, store: &str) -> &mut Actor {
        let id = self.id(store);
        &mut self.actors[id.0 as usize]
    }

    // ---- clients

    /// A client sends a transaction and waits until it is applied.
    pub fn asks(&mut self, name: &str, parts: Vec<Part>) -> Ticket {
        self.asks_for(name, parts, Wait::Applied, 60_000)
    }

    /// The same with a wait and a deadline, in ms from now.
    pub fn asks_for(&mut self, name: &str, parts: Vec<Part>, wait: Wait, deadline_ms: u64) -> Ticket {
        let position = self.machine.position();
        self.sends(name, position, parts, wait, deadline_ms)
    }

    /// The same, first sent when the coordinator stood at that position: a retry.
    pub fn retries(&mut self, name: &str, epoch: u32, n: u64, parts: Vec<Part>) -> Ticket {
        self.sends(name, Position { epoch: Epoch(epoch), n }, parts, Wait::Applied, 60_000)
    }

    fn sends(&mut self, name: &str, position: Position, parts: Vec<Part>, wait: Wait, deadline_ms: u64) -> Ticket {
        let ticket = self.ticket();
        let described: Vec<_> = parts.iter().map(|(store, operations)| format!("{store}: {}", self.words.operations(operations))).collect();
        let wait_words = if wait == Wait::Applied { String::new() } else { format!(", and waits until {wait:?}").to_lowercase() };
        let since = if position == self.machine.position() { "" } else { " again" };
        self.line(&format!("client#{} asks{since}: commit `{name}` {{{}}}{wait_words}", ticket.0, described.join("; ")));
        let hash = described.join(";").bytes().fold(7u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let branches = parts.iter().map(|(store, operations)| self.branch(store, operations)).collect();
        let deadline = self.now.after(deadline_ms * 1000);
        let request = Request { key: key(name), position, new_key: false, hash, branches, wait, timeout: 0, deadline, trace: None };
        self.step(Event::Commit(ticket, request));
        ticket
    }

    fn branch(&self, store: &str, operations: &[Operation]) -> BranchRequest {
        BranchRequest { participant: self.id(store), operations: operations.into() }
    }

    /// A client begins a transaction, to be decided by the log or by this store.
    pub fn begins(&mut self, name: &str, led_by: Option<&str>) {
        let (ticket, position) = (self.ticket(), self.machine.position());
        let leader = led_by.map_or(String::new(), |store| format!(", to be decided by {store}"));
        self.line(&format!("client#{} begins `{name}`{leader}", ticket.0));
        let led_by = led_by.map(|store| self.id(store));
        self.step(Event::Begin { ticket, key: key(name), position, led_by, timeout: 0 });
    }

    /// A client gives up what it began at this position.
    pub fn rolls_back(&mut self, name: &str, epoch: u32, n: u64) {
        let (ticket, position) = (self.ticket(), Position { epoch: Epoch(epoch), n });
        self.line(&format!("client#{} rolls `{name}` back", ticket.0));
        self.step(Event::Rollback { ticket, key: key(name), position });
    }

    /// A client asks what became of a request that it first sent at this position.
    pub fn inquires(&mut self, name: &str, epoch: u32, n: u64) {
        let (ticket, position) = (self.ticket(), Position { epoch: Epoch(epoch), n });
        self.line(&format!("client#{} asks: what became of `{name}`, first sent at position {epoch}-{n}?", ticket.0));
        let deadline = self.now.after(60_000_000);
        self.step(Event::Inquire { ticket, key: key(name), position, wait: Wait::Applied, deadline });
    }

    /// A client wants to read what this token has seen.
    pub fn reads(&mut self, store: &str, token: Token, deadline_ms: u64) {
        let ticket = self.ticket();
        let own = if token.log_id == self.machine.log_id() { "" } else { " of another log" };
        self.line(&format!("client#{} wants to read at {store}, at least {}{own}, within {deadline_ms} ms", ticket.0, token.csn));
        let (participant, deadline) = (self.id(store), self.now.after(deadline_ms * 1000));
        self.step(Event::AtLeast { ticket, participant, token, deadline });
    }

    /// A token of this log.
    pub fn token(&self, at: &str) -> Token {
        Token { log_id: self.machine.log_id(), csn: csn(at) }
    }

    // ---- stores

    /// Yes, in the way of this store.
    pub fn yes(&mut self, store: &str, tx: &str) {
        self.votes(store, &[tx]);
    }

    /// Yes to several at once, in this order: a serial executor's or leader's batch.
    pub fn votes(&mut self, store: &str, txs: &[&str]) {
        let (kind, me) = (self.actor(store).kind, self.id(store));
        let leads = |tx: &str| txid(tx).decider == Decider::Leader(me);
        let vote = |tx: &str| match kind {
            Kind::Preparing if leads(tx) => Vote::Ready([].into()),
            Kind::Preparing => Vote::Prepared([].into()),
            Kind::Redo => Vote::Redo("redo".into(), [].into()),
            Kind::Serial => Vote::InGroup([].into()),
            Kind::Leader => Vote::Ready([].into()),
        };
        if kind == Kind::Preparing {
            self.actor(store).prepared.extend(txs.iter().filter(|tx| !leads(tx)).map(|tx| txid(tx)));
        }
        let votes = txs.iter().map(|tx| (txid(tx), vote(tx))).collect();
        let group_redo = if kind == Kind::Serial { "group redo".into() } else { Default::default() };
        self.says(store, FromParticipant::Ballot(Ballot { votes, group_redo }));
    }

    /// Yes from each, one after the other.
    pub fn all_yes(&mut self, stores: &[&str], tx: &str) {
        stores.iter().for_each(|store| self.yes(store, tx));
    }

    /// Read-only there.
    pub fn read_only(&mut self, store: &str, tx: &str) {
        let votes = vec![(txid(tx), Vote::ReadOnly([].into()))];
        self.says(store, FromParticipant::Ballot(Ballot { votes, ..Ballot::default() }));
    }

    /// No.
    pub fn no(&mut self, store: &str, tx: &str, kind: RefusalKind, why: &str) {
        let votes = vec![(txid(tx), Vote::No(Refusal::new(kind, why)))];
        self.says(store, FromParticipant::Ballot(Ballot { votes, ..Ballot::default() }));
    }

    /// A preparing store has committed its branch.
    pub fn acks(&mut self, store: &str, tx: &str) {
        self.actor(store).prepared.retain(|prepared| *prepared != txid(tx));
        self.says(store, FromParticipant::Committed(txid(tx)));
    }

    /// A store has followed so far.
    pub fn follows(&mut self, store: &str, applied: &str, durable: &str) {
        let progress = Progress { applied: csn(applied), durable: csn(durable) };
        let actor = self.actor(store);
        (actor.progress, actor.highest) = (progress, actor.highest.max(progress.applied));
        self.says(store, FromParticipant::Progress(progress));
    }

    /// Anything else that a store says in its session.
    pub fn says(&mut self, store: &str, message: FromParticipant) {
        self.line(&format!("{store} {}", self.words.said(&message)));
        let (id, session) = (self.id(store), self.actor(store).session);
        self.step(Event::Message(id, session, message));
    }

    /// A leader's whole answer to a scan.
    pub fn tells_markers(&mut self, store: &str, markers: &[Marker]) {
        self.says(store, FromParticipant::Markers { markers: markers.to_vec(), last: true });
    }

    /// A preparing store asks what became of a branch.
    pub fn asks_about(&mut self, store: &str, tx: &str) {
        self.says(store, FromParticipant::Inquiry(vec![txid(tx)]));
    }

    /// The connection breaks; the store goes on.
    pub fn disconnects(&mut self, store: &str) {
        self.line(&format!("the session with {store} ends"));
        self.session_ends(store);
    }

    /// The store dies: what was not durable there is gone.
    pub fn dies(&mut self, store: &str) {
        self.line(&format!("{store} dies"));
        let actor = self.actor(store);
        actor.progress.applied = actor.progress.durable;
        self.session_ends(store);
    }

    fn session_ends(&mut self, store: &str) {
        let (id, session) = (self.id(store), self.actor(store).session);
        self.step(Event::SessionDown(id, session));
    }

    /// A session begins, and the store says what it holds.
    pub fn connects(&mut self, store: &str) {
        self.arrives(store);
        self.hello(store);
    }

    /// A session begins.
    pub fn arrives(&mut self, store: &str) {
        self.sessions += 1;
        let (id, session) = (self.id(store), SessionId(self.sessions));
        self.actor(store).session = session;
        self.line(&format!("{store} connects"));
        self.step(Event::SessionUp(id, session));
    }

    /// The store says what it holds. A leader that is asked for its markers has none, unless it is told otherwise.
    pub fn hello(&mut self, store: &str) {
        let actor = self.actor(store);
        let hello = Hello {
            kind: actor.kind,
            owner: actor.owner,
            progress: actor.progress,
            highest: actor.highest,
            prepared: actor.prepared.clone(),
            heuristics: actor.heuristics.clone(),
            floor: actor.floor,
            exclusive: actor.exclusive,
            highest_epoch: actor.highest_epoch,
            abilities: actor.abilities,
        };
        actor.owner = actor.welcomed;
        actor.highest_epoch = actor.highest_epoch.max(actor.welcomed.map_or(Epoch(0), |owner| owner.epoch));
        let leads = self.machine.followers()[self.id(store).0 as usize].leads();
        self.says(store, FromParticipant::Hello(hello));
        if self.quiet && leads {
            self.tells_markers(store, &[]);
        }
    }

    // ---- the log, time, people

    /// The log has forced everything that was appended.
    pub fn forced(&mut self) {
        let last = self.log.last().expect("something was appended").lsn;
        self.durable = last;
        self.line(&format!("the log is durable up to {last}"));
        self.step(Event::Durable(last));
    }

    /// The log has forced one record more.
    pub fn forces_one(&mut self) {
        self.durable = self.durable.next();
        self.line(&format!("the log is durable up to {}", self.durable));
        self.step(Event::Durable(self.durable));
    }

    /// Space runs out, or is there again.
    pub fn log_full(&mut self, full: bool) {
        self.line(if full { "the log's disk is nearly full" } else { "the log's disk has space again" });
        self.step(Event::LogFull(full));
    }

    /// Time passes; whatever is due happens at its time.
    pub fn passes(&mut self, ms: u64) {
        self.line(&format!("{ms} ms pass"));
        let until = self.now.after(ms * 1000);
        while let Some(due) = self.machine.next_deadline().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.step(Event::Tick);
        }
        self.now = until;
        self.step(Event::Tick);
    }

    /// An operator's command.
    pub fn operator(&mut self, action: AdminAction, reason: &str) {
        let ticket = self.ticket();
        self.line(&format!("operator#{} (ann) {}: \"{reason}\"", ticket.0, self.words.action(&action)));
        self.step(Event::Admin { ticket, operator: "ann".into(), action, reason: reason.into() });
    }

    /// The coordinator dies; the log keeps what was forced. Its next start follows, up to the point where stores connect.
    pub fn coordinator_dies(&mut self) {
        let durable = self.durable;
        self.restart(durable, "what was forced survives");
    }

    /// The coordinator dies, but what it had written unforced happens to survive.
    pub fn coordinator_dies_log_survives(&mut self) {
        let last = self.log.last().map_or(Lsn(0), |last| last.lsn);
        self.restart(last, "what was written survives, forced or not");
    }

    /// The coordinator dies, and the disk has lied: the log ends earlier than what was forced.
    pub fn coordinator_dies_log_lost(&mut self, after: u64) {
        self.restart(Lsn(after), "the disk has lied about syncing");
    }

    fn restart(&mut self, end: Lsn, how: &str) {
        self.starts += 1;
        self.line("");
        self.line(&format!("== the coordinator dies; {how}: the log up to {end} =="));
        self.log.retain(|entry| entry.lsn <= end);
        self.durable = end;
        let mut fx = Vec::new();
        self.machine = Coordinator::start(self.config.clone(), identity(self.starts), self.log.clone(), self.now, &mut fx).unwrap();
        self.perform(fx);
    }

    /// The start is completed, and these stores connect again, without a word about it.
    pub fn recovers(&mut self, stores: &[&str]) {
        self.line(&format!(
            "… the new epoch is durable; connected again: {}",
            if stores.is_empty() { "nobody yet".into() } else { stores.join(", ") }
        ));
        self.quiet = true;
        let last = self.log.last().expect("an epoch was appended").lsn;
        self.durable = last;
        self.step(Event::Durable(last));
        for store in stores {
            self.connects(store);
        }
        self.quiet = false;
    }

    /// Epoch, end of the log, or any other state, to be read beside the text.
    pub fn shows_status(&mut self) {
        let status = self.machine.status();
        self.line(&format!(
            "[phase {}, open {}, committing {}, damage {}]",
            self.words.phase(&status.phase),
            status.open,
            status.committing,
            status.damage
        ));
    }

    // ---- machinery

    fn id(&self, store: &str) -> ParticipantId {
        self.words.id(store)
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// One event. The machine never panics on one.
    pub fn step(&mut self, event: Event) {
        let mut fx = Vec::new();
        self.machine.step(self.now, event, &mut fx);
        self.perform(fx);
    }

    fn perform(&mut self, fx: Vec<Effect>) {
        for effect in fx {
            self.line(&format!("    {}", self.words.effect(&effect, &self.machine)));
            match effect {
                Effect::Append { lsn, record, .. } => self.log.push(Entry { lsn, record }),
                Effect::ForgetPayload(lsn) => {
                    for entry in self.log.iter_mut().filter(|entry| entry.lsn == lsn) {
                        if let Record::Commit(group) = &mut entry.record {
                            group.payload = None;
                        }
                    }
                }
                Effect::ForgetBelow(lsn) => {
                    self.log.retain(|entry| entry.lsn >= lsn || !matches!(entry.record, Record::Commit(_) | Record::End { .. }))
                }
                Effect::Send(to, _, ToParticipant::Welcome { owner, .. }) => self.actors[to.0 as usize].welcomed = Some(owner),
                Effect::Send(to, _, ToParticipant::Abort(txid)) => {
                    self.actors[to.0 as usize].prepared.retain(|prepared| *prepared != txid);
                }
                Effect::Send(..) | Effect::Reply(..) | Effect::Alarm(_) | Effect::Trace(_) => {}
            }
        }
    }

    fn line(&mut self, line: &str) {
        if !self.quiet {
            self.text.push_str(line);
            self.text.push('\n');
        }
    }

    /// The marker that a leader was told to write.
    pub fn marker(&self, tx: &str) -> Marker {
        self.words.markers.borrow()[&txid(tx)].clone()
    }
}

impl Actor {
    fn new(kind: Kind) -> Actor {
        Actor {
            kind,
            session: SessionId(0),
            owner: None,
            welcomed: None,
            progress: Progress::default(),
            highest: Csn::ZERO,
            prepared: Vec::new(),
            heuristics: Vec::new(),
            floor: Position::default(),
            exclusive: true,
            highest_epoch: Epoch(0),
            abilities: Abilities::default(),
        }
    }
}

fn identity(start: u64) -> Identity {
    Identity { coord_id: CoordId(0xc0), log_id: LogId(0x10 + u128::from(start)), incarnation: start }
}
