//! Clients: what they ask, again and again, and what they are told.

use super::checker::{Tag, Writes};
use super::world::{Happening, World};
use crate::follower::Session;
use crate::{
    BranchRequest, Condition, Csn, Event, Kind, Lsn, Operation, ParticipantEvent, ParticipantId, Phase, Position, Refusal, RefusalKind,
    Reply, Request, RequestKey, Ticket, Time, Token, Txid, Value, Wait,
};
use std::collections::BTreeMap;

/// From here on every store has had time to connect (I4).
const SETTLED: Time = Time(3_000_000);
/// A client gives up after so many answers of *unknown*, where a log has lost its past.
const UNKNOWN_MAX: usize = 30;

#[derive(Debug, Default)]
pub(super) struct Client {
    position: Option<Position>,
    pub(super) current: Option<Current>,
    /// What it has learnt of documents.
    seen: BTreeMap<(usize, String), Csn>,
    /// Answers of *unknown* to its current request.
    unknown: usize,
}

/// A request whose outcome its client does not know yet.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) tag: Tag,
    request: Request,
    /// It is settled whether the client prepares a branch of it itself.
    settled: bool,
    /// When it was sent first.
    since: Time,
}

/// What a ticket stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked {
    Outcome {
        client: usize,
        tag: Tag,
        position: Position,
        wait: Wait,
        since: Time,
    },
    /// Another request under a key that is known.
    Other(Tag),
    Read {
        store: usize,
        token: Token,
    },
    /// An operator's order, and the record that says who gave it, where it is audited.
    Operator {
        audit: Option<Lsn>,
    },
    /// To leave safe mode.
    Leave {
        host: usize,
    },
}

impl World {
    pub(super) fn client(&mut self, i: usize) {
        if self.calm && self.clients[i].current.is_none() {
            return;
        }
        let again = self.dice.between(1_000, 400_000);
        self.after(again, Happening::Client(i));
        let Some(host) = self.a_host() else { return };
        if let Some(machine) = self.hosts[host].machine.as_ref().filter(|machine| *machine.phase() == Phase::Serving) {
            let position = machine.position();
            let stale = self.dice.chance(0.1);
            if !stale || self.clients[i].position.is_none() {
                self.clients[i].position = Some(position);
            }
        }
        if !self.calm && self.dice.chance(self.climate.sent_again) {
            self.send_answered(host);
        }
        if !self.calm && self.dice.chance(self.climate.nonsense) {
            self.send_other(host);
        }
        if self.clients[i].current.is_some() && !self.calm && self.dice.chance(self.climate.client_vanishes) {
            self.close(i);
        }
        match self.clients[i].current.clone() {
            Some(current) => {
                let current = self.forget(host, current);
                self.ask_again(host, i, current);
            }
            None if self.asked < self.climate.transactions && !self.calm => self.ask_new(host, i),
            None => {}
        }
    }

    /// Another process sends its request, which does not know at which position the key was first sent.
    fn forget(&mut self, host: usize, current: Current) -> Current {
        let forgetful = self.climate.forgetful;
        let position = self.hosts[host].machine.as_ref().map(|machine| machine.position());
        match position {
            Some(position) if forgetful > 0.0 && !self.calm && self.dice.chance(forgetful) => {
                Current { request: Request { position, ..current.request }, ..current }
            }
            Some(_) | None => current,
        }
    }

    /// Whether a key may come to this coordinator with another position than it was first sent at: not if its outcome is nobody's any more, as an abort's that an earlier start has
    /// told, what the floor has passed, or what a removed store had decided; nor if another coordinator may have it.
    fn may_be_forgotten(&self, host: usize, tag: Tag) -> bool {
        let Some(machine) = &self.hosts[host].machine else { return false };
        let removed = (0..self.actors.len()).any(|store| self.checker.is_removed(store));
        let known = self.first_sent[tag.0 as usize] >= machine.outcomes.floor() && !self.checker.was_told_aborted(tag);
        known && !removed && self.climate.twin.is_none()
    }

    fn ask_new(&mut self, host: usize, i: usize) {
        let Some(position) = self.clients[i].position else { return };
        self.asked += 1;
        let tag = self.checker.next_tag();
        let (branches, writes) = self.draw_branches(i, tag);
        let name = RequestKey { key: tag.0.to_be_bytes()[..].into(), attempt: 0 };
        self.checker.asks(name.clone(), writes);
        self.first_sent.push(position);
        let wait = *self.dice.pick(&[Wait::Decided, Wait::Applied, Wait::Visible]);
        let hurried = self.dice.chance(0.5) && !self.climate.gentle;
        let timeout = if hurried { self.dice.log_between(1_000, 5_000_000) } else { 0 };
        let deadline = self.now.after(self.dice.log_between(10_000, 20_000_000));
        let new_key = self.climate.forgetful == 0.0;
        let request = Request { key: name, position, new_key, hash: tag.0 + 1, branches, wait, timeout, deadline, trace: None };
        let current = Current { tag, request: request.clone(), settled: false, since: self.now };
        (self.clients[i].current, self.clients[i].unknown) = (Some(current), 0);
        match self.dice.chance(self.climate.begins) {
            true => self.begin(host, i, tag, request),
            false => self.send_request(host, i, tag, request, self.now),
        }
    }

    /// The client wants its id first; once in a while it names the wrong decider.
    fn begin(&mut self, host: usize, i: usize, tag: Tag, request: Request) {
        let is_leader = |p: &ParticipantId| self.climate.kinds[p.0 as usize] == Kind::Leader;
        let leader = request.branches.iter().map(|branch| branch.participant).find(is_leader);
        let alone = request.branches.first().filter(|_| request.branches.len() == 1).map(|branch| branch.participant);
        let alone = alone.filter(|p| self.actors[p.0 as usize].store.abilities.leads && self.dice.chance(0.5));
        let led_by = leader.filter(|_| self.climate.gentle || !self.dice.chance(0.1)).or(alone);
        let timeout = if self.climate.gentle || self.dice.chance(0.5) { 0 } else { self.dice.log_between(1_000, 2_000_000) };
        let Request { key, position, .. } = request;
        for _ in 0..1 + u64::from(!self.calm && self.dice.chance(self.climate.client_duplicate)) {
            let ticket = self.ticket(Asked::Outcome { client: i, tag, position, wait: Wait::Decided, since: self.now });
            self.send_unreliably(host, Event::Begin { ticket, key: key.clone(), position, led_by, timeout });
        }
    }

    /// Mostly it goes on to commit; now and then it gives up, or forgets.
    fn begun(&mut self, i: usize, tag: Tag, txid: Txid) {
        let Some(host) = self.a_host() else { return };
        self.enlist(i, txid);
        let current = self.clients[i].current.as_ref().filter(|c| c.tag == tag).expect("just looked at");
        let (request, since) = (current.request.clone(), current.since);
        match if self.climate.gentle { 2 } else { self.dice.below(10) } {
            0 => {
                let position = request.position;
                let ticket = self.ticket(Asked::Outcome { client: i, tag, position, wait: Wait::Decided, since });
                self.send_unreliably(host, Event::Rollback { ticket, key: request.key, position });
            }
            1 => {}
            _ => self.send_request(host, i, tag, request, since),
        }
    }

    /// The client runs a branch on its own connection, and prepares it.
    fn enlist(&mut self, i: usize, txid: Txid) {
        let enlists = self.dice.chance(self.climate.enlists);
        let current = self.clients[i].current.as_mut().expect("just looked at");
        if std::mem::replace(&mut current.settled, true) || !enlists {
            return;
        }
        for branch in &mut current.request.branches {
            let actor = &mut self.actors[branch.participant.0 as usize];
            let there = actor.store.kind == Kind::Preparing && actor.machine.is_some();
            if there && actor.store.enlist(txid, &branch.operations) {
                branch.operations = [Operation::Enlisted { xid: current.tag.0 }].into();
                return;
            }
        }
    }

    /// Which row is in which database: every writer of a document locks its row (R-COVER).
    fn draw_branches(&mut self, i: usize, tag: Tag) -> (Vec<BranchRequest>, Vec<Writes>) {
        let of = |kinds: &[Kind], index: bool| -> Vec<usize> {
            kinds.iter().enumerate().filter(|(_, kind)| (**kind == Kind::Redo) == index).map(|(i, _)| i).collect()
        };
        let (databases, indices) = (of(&self.climate.kinds, false), of(&self.climate.kinds, true));
        let wide = self.dice.chance(self.climate.wide);
        let count = match self.climate.width {
            most if wide && most > 2 => self.dice.between(2, most),
            _ => 1 + u64::from(wide),
        };
        let mut keys: Vec<u64> = (0..count).map(|_| self.dice.below(self.climate.keys)).collect();
        keys.sort();
        keys.dedup();
        if self.climate.careful && !self.dice.chance(0.05) {
            self.leave_out(&mut keys, &databases);
        }
        let reads_only = self.dice.chance(self.climate.reads);
        let mut operations: BTreeMap<usize, Vec<Operation>> = BTreeMap::new();
        let mut writes: BTreeMap<usize, Vec<(String, bool, Option<Condition>)>> = BTreeMap::new();
        for key in keys {
            let database = databases[key as usize % databases.len()];
            let name = format!("k{key}");
            let (sql, parameters) = match reads_only {
                true => ("read".to_owned(), vec![Value::Text(name.clone())]),
                false => ("write".to_owned(), vec![Value::Text(name.clone()), Value::Integer(tag.0 as i64)]),
            };
            operations.entry(database).or_default().push(Operation::Statement { sql, parameters, expect_rows: None });
            if reads_only {
                continue;
            }
            writes.entry(database).or_default().push((name.clone(), false, None));
            for &index in &indices {
                if self.dice.chance(0.8) && !(self.climate.careful && self.checker.is_removed(index)) {
                    let condition = self.draw_condition(i, index, &name);
                    let delete = self.dice.chance(self.climate.deletes);
                    let operation = match delete {
                        true => Operation::Delete { key: name.clone(), condition },
                        false => Operation::Put { key: name.clone(), document: tag.0.to_string(), condition },
                    };
                    operations.entry(index).or_default().push(operation);
                    writes.entry(index).or_default().push((name.clone(), delete, condition));
                }
            }
        }
        if self.dice.chance(self.climate.reads_beside) {
            let beside = *self.dice.pick(&databases);
            let sql = "read".to_owned();
            operations.entry(beside).or_default().push(Operation::Statement { sql, parameters: Vec::new(), expect_rows: None });
        }
        if !reads_only && !indices.is_empty() && self.dice.chance(self.climate.uncovered) {
            let (index, name) = (*self.dice.pick(&indices), format!("c{}", self.dice.below(2)));
            let condition = self.seen_condition(i, index, &name).filter(|_| self.dice.chance(0.8));
            operations.entry(index).or_default().push(Operation::Put { key: name.clone(), document: tag.0.to_string(), condition });
            writes.entry(index).or_default().push((name, false, condition));
        }
        for &index in &indices {
            if let Some(operations) = operations.get_mut(&index) {
                let key = format!("t{}", tag.0);
                operations.push(Operation::Put { key: key.clone(), document: tag.0.to_string(), condition: None });
                writes.get_mut(&index).expect("it has operations").push((key, false, None));
            }
        }
        let branch = |(store, operations): (usize, Vec<Operation>)| BranchRequest {
            participant: ParticipantId(store as u16),
            operations: operations.into(),
        };
        let writes = writes.into_iter().map(|(store, keys)| Writes { store, keys }).collect();
        (operations.into_iter().map(branch).collect(), writes)
    }

    /// Rows of a second leader, or serial executor, cannot be written in one transaction; and none of a store that was removed.
    fn leave_out(&self, keys: &mut Vec<u64>, databases: &[usize]) {
        let database = |key: u64| databases[key as usize % databases.len()];
        for kind in [Kind::Serial, Kind::Leader] {
            let of_kind = |key: &&u64| self.climate.kinds[database(**key)] == kind;
            if let Some(first) = keys.iter().find(of_kind).map(|key| database(*key)) {
                keys.retain(|key| self.climate.kinds[database(*key)] != kind || database(*key) == first);
            }
        }
        if keys.iter().any(|key| !self.checker.is_removed(database(*key))) {
            keys.retain(|key| !self.checker.is_removed(database(*key)));
        }
    }

    fn draw_condition(&mut self, i: usize, index: usize, key: &str) -> Option<Condition> {
        if !self.dice.chance(self.climate.conditions) {
            return None;
        }
        self.seen_condition(i, index, key)
    }

    /// What this client knows of the document.
    fn seen_condition(&self, i: usize, index: usize, key: &str) -> Option<Condition> {
        match self.clients[i].seen.get(&(index, key.to_owned())) {
            Some(csn) => Some(Condition::Csn(*csn)),
            None => Some(Condition::Absent),
        }
    }

    fn ask_again(&mut self, host: usize, i: usize, current: Current) {
        if self.dice.chance(0.5) {
            self.clients[i].current.as_mut().expect("it is asked about").settled = true;
            return self.send_request(host, i, current.tag, current.request, current.since);
        }
        self.send_inquiry(host, i, current);
    }

    fn send_inquiry(&mut self, host: usize, i: usize, current: Current) {
        let Request { key, position, wait, .. } = current.request;
        let ticket = self.ticket(Asked::Outcome { client: i, tag: current.tag, position, wait, since: current.since });
        let deadline = self.now.after(self.dice.log_between(10_000, 20_000_000));
        self.send_unreliably(host, Event::Inquire { ticket, key, position, wait, deadline });
    }

    fn send_request(&mut self, host: usize, i: usize, tag: Tag, request: Request, since: Time) {
        let copies = 1 + u64::from(!self.calm && self.dice.chance(self.climate.client_duplicate));
        for _ in 0..copies {
            let ticket = self.ticket(Asked::Outcome { client: i, tag, position: request.position, wait: request.wait, since });
            let event = match !self.calm && self.dice.chance(self.climate.nonsense) {
                // A limit was lowered meanwhile.
                true => {
                    let request = Request { branches: Vec::new(), ..request.clone() };
                    Event::Decline { ticket, request, at: None, refusal: Refusal::new(RefusalKind::Invalid, "it exceeds a limit") }
                }
                false => Event::Commit(ticket, request.clone()),
            };
            self.send_unreliably(host, event);
        }
    }

    /// A late copy of a request that its client has the answer to, of an older epoch perhaps, or below the floor.
    fn send_answered(&mut self, host: usize) {
        if self.answered.is_empty() {
            return;
        }
        let (client, current) = self.dice.pick(&self.answered).clone();
        match self.dice.chance(0.5) {
            true => self.send_request(host, client, current.tag, current.request, current.since),
            false => self.send_inquiry(host, client, current),
        }
    }

    /// Another request under a key that is known: it is told so, and nothing else.
    fn send_other(&mut self, host: usize) {
        if self.answered.is_empty() {
            return;
        }
        let (_, current) = self.dice.pick(&self.answered).clone();
        let Some(machine) = &self.hosts[host].machine else { return };
        if machine.outcomes.by_key(&current.request.key).is_some_and(|known| known.hash == current.request.hash) {
            let ticket = self.ticket(Asked::Other(current.tag));
            let request = Request { hash: u64::MAX, ..current.request };
            self.request(host, Event::Commit(ticket, request));
        }
    }

    pub(super) fn ticket(&mut self, asked: Asked) -> Ticket {
        self.tickets.push(asked);
        Ticket(self.tickets.len() as u64 - 1)
    }

    /// Clients' messages may be lost, doubled and overtaken.
    fn send_unreliably(&mut self, host: usize, event: Event) {
        if self.calm || !self.dice.chance(self.climate.client_loss) {
            let delay = self.delay();
            self.after(delay, Happening::Request { host, event });
        }
    }

    pub(super) fn request(&mut self, host: usize, event: Event) {
        let Some(machine) = &self.hosts[host].machine else { return };
        let before = machine.position();
        let (ticket, key) = match &event {
            Event::Commit(ticket, request) | Event::Decline { ticket, request, .. } => (Some(*ticket), Some(request.key.clone())),
            Event::Begin { ticket, key, .. } | Event::Rollback { ticket, key, .. } => (Some(*ticket), Some(key.clone())),
            Event::Inquire { ticket, .. } => (Some(*ticket), None),
            _ => (None, None),
        };
        if let Some(Asked::Outcome { tag, position, .. }) = ticket.map(|ticket| self.tickets[ticket.0 as usize])
            && position != self.first_sent[tag.0 as usize]
            && !self.may_be_forgotten(host, tag)
        {
            return;
        }
        self.coordinate(host, event);
        let log = self.hosts[host].disk;
        let Some(machine) = &self.hosts[host].machine else { return };
        if let Some(known) = key.as_ref().and_then(|key| machine.outcomes.by_key(key)) {
            self.checker.named(log, known.txid, &known.key);
        }
        let closed = self.disks[log].full.then_some("R-FULL: the log is full").or(self.hosts[host].held.then_some("a backup is made"));
        if let Some(why) = closed.filter(|_| machine.transactions().any(|t| t.txid.position() >= before)) {
            self.checker.violation(format!("{why}, and a new transaction runs"));
        }
    }

    /// What the coordinator says is a promise from that moment on.
    pub(super) fn reply(&mut self, host: usize, ticket: Ticket, reply: Reply) {
        let log = self.hosts[host].disk;
        match (self.tickets[ticket.0 as usize], &reply) {
            (Asked::Outcome { tag, wait, .. }, Reply::Committed(receipt)) => {
                let there: Vec<_> = (0..self.actors.len()).map(|store| self.is_there(host, store)).collect();
                let visible: Vec<_> = self.actors.iter().zip(there).map(|(actor, there)| there.then(|| actor.store.visible())).collect();
                self.checker.told_committed(log, tag, receipt, wait, &visible);
            }
            (Asked::Outcome { tag, since, .. }, Reply::Aborted(aborted)) => {
                self.checker.told_aborted(log, tag);
                let hindered = matches!(aborted.refusal.kind, RefusalKind::Timeout | RefusalKind::Unavailable | RefusalKind::Busy);
                if self.climate.gentle && hindered && since > SETTLED {
                    self.checker.violation(format!("I4: nothing is amiss, and {tag:?} is aborted: {}", aborted.refusal));
                }
            }
            (Asked::Outcome { tag, .. }, Reply::KeyReused(_)) => {
                self.checker.violation(format!("R-KEY: {tag:?} is told that its key is another's"))
            }
            (Asked::Other(_), Reply::KeyReused(_)) => {}
            (Asked::Other(tag), reply) => {
                self.checker.violation(format!("R-KEY: another request under the key of {tag:?} is told {reply:?}"))
            }
            // One that has a successor goes by the Floors of its own time.
            (Asked::Outcome { tag, position, .. }, Reply::Expired(_))
                if position >= self.disks[log].floor() && self.disks[log].appender == host =>
            {
                self.checker.violation(format!("R-KEY: {tag:?}, sent first at {position:?}, is told expired, and no Floor is above that"))
            }
            (Asked::Outcome { .. }, _) => {}
            (Asked::Read { token, .. }, Reply::Reached(_)) if self.checker.is_retired(token.log_id) && self.disks[log].appender == host => {
                self.checker.violation(format!("R-LOGLOSS: {token:?}, of before the log was put back by command, is honoured"));
            }
            (Asked::Read { store, token }, Reply::Reached(_)) => self.check_read(host, store, token.csn),
            (Asked::Leave { host }, Reply::Done(_)) => self.safe_mode_left(host),
            (Asked::Operator { audit: Some(lsn) }, Reply::Done(_)) if lsn > self.disks[log].durable() => {
                self.checker.violation(format!("what an operator ordered is done, and who it was is not durable: {lsn}"));
            }
            (Asked::Read { .. } | Asked::Operator { .. } | Asked::Leave { .. }, _) => {}
        }
        if self.calm || !self.dice.chance(self.climate.client_loss) {
            let delay = self.delay();
            self.after(delay, Happening::Answer { ticket, reply });
        }
    }

    fn check_read(&mut self, host: usize, store: usize, csn: Csn) {
        if self.is_there(host, store) {
            self.checker.reached(store, csn, self.actors[store].store.visible());
        }
    }

    /// Whether it is in the session that the coordinator knows: another one cannot be read at all.
    fn is_there(&self, host: usize, store: usize) -> bool {
        let Some(machine) = &self.hosts[host].machine else { return false };
        let known = matches!(machine.followers()[store].session, Session::Open(session) if self.linked(store, host, session));
        known && self.actors[store].machine.is_some()
    }

    pub(super) fn answer(&mut self, ticket: Ticket, reply: Reply) {
        let Asked::Outcome { client, tag, .. } = self.tickets[ticket.0 as usize] else { return };
        if self.clients[client].current.as_ref().is_none_or(|current| current.tag != tag) {
            return;
        }
        match reply {
            Reply::Committed(receipt) => {
                self.learn(client, tag, receipt.csn);
                self.close(client);
                let acks = self.climate.results_acked;
                if acks > 0.0
                    && self.dice.chance(acks)
                    && let Some(host) = self.a_host()
                {
                    self.send_unreliably(host, Event::ResultsAcked(receipt.txid));
                }
                if self.dice.chance(0.5) {
                    let store = self.dice.below(self.actors.len() as u64) as usize;
                    self.read(store, receipt.token);
                }
            }
            Reply::Aborted(_) => {
                let again = self.dice.chance(0.7) && self.asked < self.climate.transactions && !self.calm;
                let current = self.close(client);
                if again {
                    self.new_attempt(client, current);
                }
            }
            Reply::Expired(_) => drop(self.close(client)),
            Reply::Begun(txid) => self.begun(client, tag, txid),
            Reply::Unknown(_) => {
                self.clients[client].unknown += 1;
                let removed = (0..self.actors.len()).any(|store| self.checker.is_removed(store));
                let memory = self.climate.log_backup.is_none() && self.disks.len() == 1 && self.checker.keeps_all() && !removed;
                if self.calm && !memory && self.clients[client].unknown > UNKNOWN_MAX {
                    self.close(client);
                }
            }
            other => panic!("a client that asked for an outcome is told {other:?}"),
        }
    }

    /// The client has its answer, or does not wait for it.
    fn close(&mut self, client: usize) -> Current {
        let current = self.clients[client].current.take().expect("it asks");
        self.answered.push((client, current.clone()));
        current
    }

    /// An aborted key stays aborted: the same writes under the next attempt, as a new request.
    fn new_attempt(&mut self, i: usize, old: Current) {
        let (Some(position), Some(host)) = (self.clients[i].position, self.a_host()) else { return };
        self.asked += 1;
        let tag = self.checker.next_tag();
        let (branches, writes) = self.draw_branches(i, tag);
        let key = RequestKey { key: old.request.key.key.clone(), attempt: old.request.key.attempt + 1 };
        self.checker.asks(key.clone(), writes);
        self.first_sent.push(position);
        let request = Request { key, position, hash: tag.0 + 1, branches, ..old.request };
        let request = Request { deadline: self.now.after(self.dice.log_between(10_000, 20_000_000)), ..request };
        let current = Current { tag, request: request.clone(), settled: true, since: self.now };
        (self.clients[i].current, self.clients[i].unknown) = (Some(current), 0);
        self.send_request(host, i, tag, request, self.now);
    }

    fn learn(&mut self, i: usize, tag: Tag, csn: Csn) {
        let request = &self.clients[i].current.as_ref().filter(|c| c.tag == tag).expect("just looked at").request;
        let mut news = Vec::new();
        for branch in &request.branches {
            for operation in branch.operations.iter() {
                if let Some(key) = operation.key() {
                    news.push(((branch.participant.0 as usize, key.to_owned()), matches!(operation, Operation::Delete { .. })));
                }
            }
        }
        for (key, deleted) in news {
            // What one client learns, all do: conditions that hold now and then are worth more than ones that never do.
            for client in &mut self.clients {
                if client.seen.get(&key).is_none_or(|known| *known < csn) {
                    match deleted {
                        true => drop(client.seen.remove(&key)),
                        false => drop(client.seen.insert(key.clone(), csn)),
                    }
                }
            }
        }
    }

    fn read(&mut self, store: usize, token: Token) {
        let Some(host) = self.a_host() else { return };
        let ticket = self.ticket(Asked::Read { store, token });
        let deadline = self.now.after(self.dice.log_between(1_000, 5_000_000));
        self.send_unreliably(host, Event::AtLeast { ticket, participant: ParticipantId(store as u16), token, deadline });
        if self.climate.gather > 0 {
            self.participate(store, ParticipantEvent::Hurry);
        }
    }
}
