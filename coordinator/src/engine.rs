//! The engine: the one thread that owns the machine. It feeds it events in the order in which they come and carries out its effects in
//! the order in which it asks for them; it decides nothing.

use crate::committer::{Committer, ToCommitter};
use crate::configuration::{self, Configuration};
use crate::engine_handle::{
    Answer, EngineHandle, EngineMessage, HandleParts, Held, Identity, Outbox, Phase, Question, Registered, Registry, RunningEngine, Shared,
    Stopped, Submission,
};
use crate::log::{DecisionLog, LogError, Metrics, Options, SledLog};
use crate::meters::Meters;
use crate::traces::{self, Tracer};
use crate::view::View;
use crate::watches::Watches;
use crate::{failpoints, stores, workers};
use lockstep_core::follower::Session;
use lockstep_core::{
    Alarm, Audit, Ballot, CoordId, Coordinator, Effect, Entry, Event, FromParticipant, LogId, Lsn, ParticipantId, Reply, Request,
    SessionId, Ticket, Time, ToParticipant, TraceContext, TraceId, Txid, Wait,
};
use lockstep_participants::look_out::{LOOK_OUT, look_out};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tracing::field::{DisplayValue, display};

/// Messages taken before effects are carried out: bounds how long a vote waits for its decision.
const DRAIN: usize = 256;

/// Takes up the log, starts the engine's and the committer's threads, opens the embedded stores and lets them attend. Blocks while the
/// log is read; on a tokio runtime.
pub fn start(configuration: &Configuration, began: Instant) -> anyhow::Result<RunningEngine> {
    let options = Options { write_ahead: configuration.log.write_ahead_bytes, ..Options::default() };
    let mut log = SledLog::open(configuration.log_dir(), options)?;
    let metrics = log.metrics();
    let mut effects = Vec::new();
    let machine = Coordinator::start(configuration.machine(wall_ms()), fresh_identity(), log.replay()?, Time(0), &mut effects)?;
    let (handle, messages) = EngineHandle::new(HandleParts {
        registry: registry(&machine, configuration),
        queue_events: configuration.limits.queue_events,
        identity: Identity { coord_id: machine.owner().coord_id, log_id: machine.log_id() },
        position: machine.position(),
        before: machine.last_csn(),
    });
    let meters = Meters::default();
    let (tracer, export) = traces::start(&configuration.traces, handle.shared(), machine.owner(), &meters)?.unzip();
    let stores: Vec<_> = stores::open(configuration)?.into_iter().map(|store| store.measure(&meters)).collect();
    let (fail, failed) = oneshot::channel();
    let on_failure = move |error: LogError| drop(fail.send(error.to_string()));
    let committer = Committer::spawn(Box::new(log), handle.clone(), meters.clone(), configuration.log.reserve_bytes, on_failure);
    let engine = Engine {
        sessions: machine.followers().iter().map(|_| None).collect(),
        machine,
        shared: handle.shared(),
        messages,
        committer,
        metrics,
        meters: meters.clone(),
        tracer,
        answers: FxHashMap::default(),
        effects,
        outgoing: Vec::new(),
        votes: VecDeque::new(),
        appends: Vec::new(),
        force: false,
        forget: Vec::new(),
        asked: false,
        votes_come_soon: false,
        watches: Watches::default(),
        hold: Weak::new(),
        held: false,
        stopping: None,
        began,
        serving_after: None,
        mended_after: None,
    };
    std::thread::Builder::new().name("engine".into()).spawn(move || {
        let _guard = AbortOnPanic;
        engine.run();
    })?;
    workers::start(stores, &handle, &tokio::runtime::Handle::current())?;
    Ok(RunningEngine { handle, failed, meters, export })
}

struct Engine {
    machine: Coordinator,
    shared: Arc<Shared>,
    messages: Receiver<EngineMessage>,
    committer: Committer,
    metrics: Arc<Metrics>,
    meters: Meters,
    tracer: Option<Tracer>,
    answers: FxHashMap<Ticket, Waiting>,
    sessions: Vec<Option<(SessionId, Outbox)>>,
    effects: Vec<Effect>,
    /// What goes to participants: of each session all together, in order. Every hand-over wakes a thread.
    outgoing: Vec<(ParticipantId, SessionId, Vec<ToParticipant>)>,
    /// Given without being sent for, and not heard yet.
    votes: VecDeque<(ParticipantId, SessionId, Ballot)>,
    appends: Vec<Entry>,
    force: bool,
    forget: Vec<Lsn>,
    /// A Prepare has just gone to a store of this process.
    asked: bool,
    /// After the last one something came within [`LOOK_OUT`].
    votes_come_soon: bool,
    watches: Watches,
    /// Somebody copies the stores and the log.
    hold: Weak<()>,
    held: bool,
    stopping: Option<(Instant, oneshot::Sender<Stopped>)>,
    began: Instant,
    serving_after: Option<Duration>,
    mended_after: Option<Duration>,
}

/// Who waits for a reply, and since when, if it is that of a commit.
struct Waiting {
    answer: Answer,
    since: Option<Instant>,
    trace: Option<TraceContext>,
}

impl Engine {
    fn run(mut self) {
        self.carry_out();
        loop {
            match self.wait() {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => self.step(Event::Tick),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            for _ in 0..DRAIN {
                match self.messages.try_recv() {
                    Ok(message) => self.take(message),
                    Err(_) => break,
                }
            }
            self.carry_out();
            self.note_progress();
            if std::mem::take(&mut self.held) && self.hold.strong_count() == 0 {
                self.machine.hold_forgetting(false);
            }
            self.held = self.hold.strong_count() > 0;
            if let Some(how) = self.ended() {
                if let Some((_, answer)) = self.stopping.take() {
                    let _ = answer.send(how);
                }
                return;
            }
        }
    }

    /// After a Prepare a vote is looked for, if one came at once after the last.
    fn wait(&mut self) -> Result<EngineMessage, RecvTimeoutError> {
        if !std::mem::take(&mut self.asked) {
            return self.sleep();
        }
        let began = Instant::now();
        let seen = if self.votes_come_soon { look_out(&self.messages) } else { None };
        let message = seen.map_or_else(|| self.sleep(), Ok);
        self.votes_come_soon = began.elapsed() < LOOK_OUT;
        message
    }

    /// Sleeps until something comes or is due.
    fn sleep(&self) -> Result<EngineMessage, RecvTimeoutError> {
        let due = self.machine.next_deadline().map(|at| self.shared.instant(at));
        let due = match (due, &self.stopping) {
            (Some(due), Some((deadline, _))) => Some(due.min(*deadline)),
            (None, Some((deadline, _))) => Some(*deadline),
            (due, None) => due,
        };
        match due {
            Some(due) => self.messages.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn take(&mut self, message: EngineMessage) {
        match message {
            EngineMessage::Submit(submissions, _room) => {
                for submission in submissions {
                    self.submit(submission);
                }
            }
            EngineMessage::Event(Event::SessionDown(participant, session)) => self.session_down(participant, session),
            EngineMessage::Event(event) => {
                if event == Event::Pause(true) {
                    self.hand_on();
                }
                self.step(event);
            }
            EngineMessage::FromParticipant(participant, session, messages, _room) => self.hear(participant, session, messages),
            EngineMessage::Attend(participant, session, outbox) => self.attend(participant, session, outbox),
            EngineMessage::Order(audit, order, _room) => self.order(audit, order),
            EngineMessage::Ask(question) => self.answer(question),
            EngineMessage::Stop(deadline, answer) => {
                self.shared.publish_phase(Phase::Stopping);
                self.hand_on();
                self.stopping = Some((deadline, answer));
            }
        }
    }

    fn submit(&mut self, Submission { ticket, mut event, answer, owner }: Submission) {
        if let (Event::ResultsAcked(txid), Some(owner)) = (&event, owner)
            && !self.owns(&owner, *txid)
        {
            return;
        }
        if self.stopping.is_some() && matches!(event, Event::Commit(..)) {
            return answer.give(Reply::Unknown("the daemon is stopping; ask the next one".into()));
        }
        if let Some(ticket) = ticket {
            let since = matches!(event, Event::Commit(..)).then(Instant::now);
            let trace = self.trace_of(&mut event);
            self.answers.insert(ticket, Waiting { answer, since, trace });
        }
        if let Event::Commit(_, request) = &event {
            self.watches.note(request);
        }
        let read = match &event {
            Event::Commit(_, Request { wait: Wait::Visible, branches, .. }) => {
                branches.iter().for_each(|branch| self.hurry(branch.participant));
                None
            }
            Event::AtLeast { ticket, participant, .. } => Some((*ticket, *participant)),
            _ => None,
        };
        self.step(event);
        if let Some((ticket, participant)) = read
            && self.answers.contains_key(&ticket)
        {
            self.hurry(participant);
        }
    }

    /// The trace of a request. Where it came without, it may begin one.
    fn trace_of(&self, event: &mut Event) -> Option<TraceContext> {
        let (Event::Commit(_, request) | Event::Decline { request, .. }) = event else { return None };
        if let (None, Some(tracer)) = (request.trace, &self.tracer) {
            request.trace = tracer.begin();
        }
        request.trace
    }

    fn order(&mut self, audit: Audit, order: Submission) {
        let refused = match &order.event {
            Event::Admin { action, .. } => self.machine.allows(action).err().unwrap_or_default(),
            event => panic!("{event:?} is no order"),
        };
        self.step(Event::Audit(None, Audit { refused, ..audit }));
        self.submit(order);
    }

    /// Whether the transaction is known, and its key begins so.
    fn owns(&self, owner: &str, txid: Txid) -> bool {
        self.machine.known(txid).is_some_and(|known| known.key.key.starts_with(owner.as_bytes()))
    }

    /// Somebody waits to read there.
    fn hurry(&self, participant: ParticipantId) {
        if let Some(Some((_, outbox))) = self.sessions.get(participant.0 as usize) {
            outbox.hurry();
        }
    }

    /// What is decided goes to the stores, and waits for nothing there.
    fn hand_on(&self) {
        self.sessions.iter().flatten().for_each(|(_, outbox)| outbox.hand_on());
    }

    fn hear(&mut self, participant: ParticipantId, session: SessionId, messages: Vec<FromParticipant>) {
        if self.current(participant) == Some(session) {
            for message in messages {
                self.step(Event::Message(participant, session, message));
            }
        }
    }

    fn attend(&mut self, participant: ParticipantId, session: SessionId, outbox: Outbox) {
        let slot = &mut self.sessions[participant.0 as usize];
        if let Some((old, outbox)) = slot.take() {
            outbox.close(old);
            self.step(Event::SessionDown(participant, old));
        }
        outbox.open(session);
        self.sessions[participant.0 as usize] = Some((session, outbox));
        self.step(Event::SessionUp(participant, session));
    }

    fn session_down(&mut self, participant: ParticipantId, session: SessionId) {
        if self.current(participant) == Some(session) {
            self.sessions[participant.0 as usize] = None;
            self.step(Event::SessionDown(participant, session));
        }
    }

    fn current(&self, participant: ParticipantId) -> Option<SessionId> {
        self.sessions[participant.0 as usize].as_ref().map(|(session, _)| *session)
    }

    fn step(&mut self, event: Event) {
        self.machine.step(self.shared.now(), event, &mut self.effects);
        self.sort_effects();
        while let Some((participant, session, ballot)) = self.votes.pop_front() {
            let ballot = FromParticipant::Ballot(ballot);
            self.machine.step(self.shared.now(), Event::Message(participant, session, ballot), &mut self.effects);
            self.sort_effects();
        }
    }

    /// Collects what the machine asked for. Answers are given at once: what they tell is durable already.
    fn sort_effects(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Append { lsn, record, force } => {
                    self.appends.push(Entry { lsn, record });
                    self.force |= force;
                }
                Effect::Send(participant, session, message) => self.address(participant, session, message),
                Effect::Reply(ticket, reply) => {
                    if let Some(Waiting { answer, since, trace }) = self.answers.remove(&ticket) {
                        if let Some(since) = since {
                            self.meters.answered(&reply, since.elapsed());
                        }
                        note(&reply, trace, self.shared.registry());
                        failpoints::hit("engine.before_reply");
                        answer.give(reply);
                        failpoints::hit("engine.after_reply");
                    }
                }
                Effect::ForgetPayload(lsn) => self.forget.push(lsn),
                Effect::ForgetBelow(lsn) => self.committer.tell(ToCommitter::ForgetBelow(lsn)),
                Effect::Alarm(alarm) => shout(&alarm, self.shared.registry()),
                Effect::Trace(span) => {
                    if let Some(tracer) = &self.tracer {
                        tracer.tell(*span);
                    }
                }
            }
        }
        self.effects = effects;
    }

    /// Puts a message to what goes out in its session; a Prepare that can be voted on here need not go.
    fn address(&mut self, participant: ParticipantId, session: SessionId, message: ToParticipant) {
        if let ToParticipant::Prepare(work) = &message
            && let Some((current, outbox)) = &self.sessions[participant.0 as usize]
            && *current == session
            && let Some(vote) = outbox.vote(session, work)
        {
            let ballot = Ballot { votes: vec![(work.txid, vote)], ..Ballot::default() };
            return self.votes.push_back((participant, session, ballot));
        }
        match self.outgoing.iter_mut().find(|(to, within, _)| (*to, *within) == (participant, session)) {
            Some((_, _, messages)) => messages.push(message),
            None => self.outgoing.push((participant, session, vec![message])),
        }
    }

    fn carry_out(&mut self) {
        self.sort_effects();
        if !self.appends.is_empty() {
            let entries = std::mem::take(&mut self.appends);
            self.committer.tell(ToCommitter::Append { entries, force: std::mem::take(&mut self.force) });
        }
        if !self.forget.is_empty() {
            self.committer.tell(ToCommitter::ForgetPayloads(std::mem::take(&mut self.forget)));
        }
        self.shared.publish_position(self.machine.position());
        let mut lost = Vec::new();
        for (participant, session, messages) in self.outgoing.drain(..) {
            let Some((current, outbox)) = self.sessions[participant.0 as usize].as_ref() else { continue };
            if *current == session {
                self.asked |= matches!(outbox, Outbox::Worker(_)) && messages.iter().any(|m| matches!(m, ToParticipant::Prepare(_)));
                hit_before_send(&messages);
                if outbox.send(session, messages).is_err() {
                    lost.push((participant, session));
                }
                failpoints::hit("engine.after_send");
            }
        }
        for (participant, session) in lost {
            tracing::warn!(participant = %self.shared.registry().name(participant), "the participant does not read what it is sent: its session is ended");
            self.session_down(participant, session);
        }
    }

    /// Publishes what changed, and notes how long this start took.
    fn note_progress(&mut self) {
        if self.stopping.is_none() {
            let phase = match self.machine.phase() {
                lockstep_core::Phase::Starting => Phase::Starting,
                lockstep_core::Phase::Serving if self.serving() => Phase::Serving,
                lockstep_core::Phase::Serving => Phase::Starting,
                lockstep_core::Phase::Safe(why) => Phase::SafeMode(why.clone()),
                lockstep_core::Phase::Stopped(why) => Phase::SafeMode(why.clone()),
            };
            if phase == Phase::Serving && self.serving_after.is_none() {
                self.serving_after = Some(self.began.elapsed());
            }
            if self.serving_after.is_some() && self.mended_after.is_none() && self.machine.mended() {
                self.mended_after = Some(self.began.elapsed());
                tracing::info!(
                    after_ms = self.mended_after.unwrap_or_default().as_millis() as u64,
                    "everything decided before this start is applied"
                );
            }
            self.shared.publish_phase(phase);
        }
    }

    /// Every embedded store has been opened once; remote ones and servers come when they come.
    fn serving(&self) -> bool {
        self.serving_after.is_some()
            || self.shared.registry().all().iter().filter(|store| matches!(store.store_type, "sqlite" | "tantivy")).all(|store| {
                let follower = &self.machine.followers()[store.id.0 as usize];
                !matches!(follower.session, Session::Down | Session::Welcomed(_))
            })
    }

    fn ended(&self) -> Option<Stopped> {
        let (deadline, _) = self.stopping.as_ref()?;
        let status = self.machine.status();
        // What is only begun can't be committed any more: it is presumed aborted.
        if status.open == status.active && status.committing == 0 {
            Some(Stopped::Clean)
        } else if Instant::now() >= *deadline {
            Some(Stopped::Deadline)
        } else {
            None
        }
    }

    fn answer(&mut self, question: Question) {
        let breaks = self.shared.breaks();
        let view = View {
            machine: &self.machine,
            registry: self.shared.registry(),
            breaks: &breaks,
            now: self.shared.now(),
            space: self.committer.space(),
            forces: self.metrics.forces.load(std::sync::atomic::Ordering::Relaxed) + lockstep_log::engine_forces(),
            uptime: self.began.elapsed(),
            serving_after: self.serving_after,
            mended_after: self.mended_after,
            stopping: self.stopping.is_some(),
        };
        match question {
            Question::Status(answer) => drop(answer.send(view.status())),
            Question::Pulse(answer) => drop(answer.send(view.pulse())),
            Question::ListTransactions(request, answer) => drop(answer.send(view.transactions(&request))),
            Question::ShowTransaction(txid, answer) => drop(answer.send(view.transaction(txid))),
            Question::Explain(txid, answer) => drop(answer.send(view.explanation(txid))),
            Question::Plan(action, answer) => drop(answer.send(view.plan(&action))),
            Question::ListParticipants(answer) => drop(answer.send(view.participants())),
            Question::Doctor(answer) => drop(answer.send(view.doctor(wall_ms()))),
            Question::ListDamage(answer) => drop(answer.send(view.damage())),
            Question::Participant(name, answer) => drop(answer.send(self.machine.participant(&name))),
            Question::Watch(index, keys, answer) => {
                let written = view.being_written(index, &keys);
                let watch = self.watches.open(index, keys).map(|watch| (watch, written));
                // Nobody would close it.
                if let Err(Some((watch, _))) = answer.send(watch) {
                    self.watches.close(watch);
                }
            }
            Question::ListAudit(request, answer) => drop(answer.send(view.audit(&request))),
            Question::Owns(owner, txid, answer) => drop(answer.send(self.owns(&owner, txid))),
            Question::Unwatch(watch, answer) => drop(answer.send(self.watches.close(watch))),
            Question::Lacking(index, keys, answer) => drop(answer.send(view.lacking(index, &keys))),
            Question::ReadLog(answer) => self.committer.tell(ToCommitter::Snapshot(answer)),
            Question::PreparingStoresRest(answer) => drop(answer.send(self.machine.preparing_stores_rest())),
            Question::HoldForgetting(answer) => {
                let hold = self.hold.upgrade().unwrap_or_default();
                (self.hold, self.held) = (Arc::downgrade(&hold), true);
                let status = self.machine.status();
                drop(answer.send(Held { owner: status.owner, log_id: status.log_id, csn: status.last_csn, hold }));
                self.machine.hold_forgetting(true);
            }
        }
    }
}

/// Random numbers for this start; the first two count only if the log is new.
fn fresh_identity() -> lockstep_core::Identity {
    let random = || uuid::Uuid::new_v4().as_u128();
    lockstep_core::Identity { coord_id: CoordId(random()), log_id: LogId(random()), incarnation: random() as u64 }
}

fn registry(machine: &Coordinator, configuration: &Configuration) -> Registry {
    let registered = |store: &configuration::Store| Registered {
        id: machine.participant(store.name()).expect("the machine registers every configured store"),
        name: store.name().into(),
        store_type: store.store_type(),
        role: store.role(),
        kind: store.kind(),
    };
    let retired = |follower: &lockstep_core::follower::Follower| Registered {
        id: follower.id,
        name: follower.name.as_str().into(),
        store_type: "retired",
        role: if follower.kind == lockstep_core::Kind::Redo { lockstep_core::Role::Index } else { lockstep_core::Role::Database },
        kind: follower.kind,
    };
    let configured = |name: &str| configuration.stores.iter().any(|store| store.name() == name);
    Registry::new(configuration.stores.iter().map(registered).collect())
        .with_retired(machine.followers().iter().filter(|follower| !configured(&follower.name)).map(retired))
}

/// A transaction's outcome, for those who want to read each.
fn note(reply: &Reply, trace: Option<TraceContext>, registry: &Registry) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    match reply {
        Reply::Committed(receipt) => {
            let (txid, csn, pending) = (receipt.txid, receipt.csn, receipt.pending.len());
            tracing::debug!(%txid, %csn, trace_id = trace_id(trace), pending, "a transaction is committed");
        }
        Reply::Aborted(aborted) => {
            let (txid, store) = (aborted.txid.map(display), aborted.participant.map(|at| display(registry.name(at))));
            let (kind, why) = (aborted.refusal.kind.word(), &aborted.refusal.message);
            tracing::debug!(txid, trace_id = trace_id(trace), store, kind, why, "a transaction is aborted");
        }
        Reply::Begun(_)
        | Reply::Unknown(_)
        | Reply::Expired(_)
        | Reply::KeyReused(_)
        | Reply::Reached(_)
        | Reply::Behind(_)
        | Reply::ForeignToken(_)
        | Reply::Done(_)
        | Reply::Refused(_) => {}
    }
}

/// As a field of a log line: the trace's id, if there is one.
fn trace_id(trace: Option<TraceContext>) -> Option<DisplayValue<TraceId>> {
    trace.map(|context| display(context.trace))
}

fn shout(alarm: &Alarm, registry: &Registry) {
    match alarm {
        Alarm::LogLoss(evidence) => tracing::error!(%evidence, "the decision log has lost records: safe mode (R-LOGLOSS)"),
        Alarm::StoreLoss(p, why) => tracing::error!(store = %registry.name(*p), %why, "a store has lost changes (R-STORELOSS)"),
        Alarm::NotOwner(p, why) => tracing::error!(store = %registry.name(*p), %why, "a store refuses this coordinator (R-OWNER)"),
        Alarm::Misbehaves(p, why) => {
            tracing::error!(store = %registry.name(*p), %why, "a store has broken the protocol: its session is ended")
        }
        Alarm::Stuck { participant, txid, csn, trace, reason } => {
            let (store, trace_id) = (registry.name(*participant), trace_id(*trace));
            tracing::error!(%store, %txid, %csn, trace_id, why = reason, "a decided transaction is not applied");
        }
        Alarm::Damage(damage, trace) => {
            let (txid, csn, trace_id) = (damage.txid, damage.csn.map(display), trace_id(*trace));
            let (store, kind, why) = (registry.name(damage.participant), damage.kind, &damage.reason);
            tracing::error!(%store, %txid, csn, trace_id, ?kind, why, "damage (I12)");
        }
        Alarm::WrongKind(p, logged, found) => {
            tracing::error!(store = %registry.name(*p), ?logged, ?found, "a store votes in another way than the log knows")
        }
    }
}

#[cfg(any(debug_assertions, feature = "failpoints"))]
fn hit_before_send(messages: &[ToParticipant]) {
    for message in messages {
        match message {
            ToParticipant::Prepare(_) => failpoints::hit("engine.before_send_prepare"),
            ToParticipant::Commit(_) => failpoints::hit("engine.before_send_commit"),
            ToParticipant::Abort(_) => failpoints::hit("engine.before_send_abort"),
            ToParticipant::Lead(_) => failpoints::hit("engine.before_send_lead"),
            _ => {}
        }
    }
}

#[cfg(not(any(debug_assertions, feature = "failpoints")))]
#[inline(always)]
fn hit_before_send(_messages: &[ToParticipant]) {}

fn wall_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A machine that found its own promise broken must not go on.
pub struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
