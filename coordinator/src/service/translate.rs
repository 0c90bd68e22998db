//! Transactions on the wire (`lockstep.v1`) ↔ the machine's vocabulary. Everything that can be refused without a store is refused
//! here, in a sentence that names the field and the limit.

use super::hash::xxh64;
use crate::configuration::{Limits, Timeouts};
use crate::engine_handle::{Registered, Registry};
use crate::security::{self, Caller, settings::NAME_BYTES};
use lockstep_core::{
    Aborted, BranchRequest, Condition, Csn, Decider, Epoch, Event, Kind, LogId, Operation, ParticipantId, Position, Receipt, Refusal,
    RefusalKind, Reply, Request, RequestKey, Role, StatementResult, Ticket, Time, Token, TraceContext, Txid, Value, Wait,
};
use lockstep_participants::{Document, PoolUse};
use lockstep_proto::v1;
use std::sync::Arc;

/// An idempotency key is at most so long.
pub const REQUEST_KEY_BYTES: usize = 64;
/// With the principal that it belongs to.
pub const OWNED_KEY_BYTES: usize = NAME_BYTES + 1 + REQUEST_KEY_BYTES;
/// A read token: 16 bytes of the log's identity, 8 of the CSN, big endian.
pub const TOKEN_BYTES: usize = 24;

/// Translates requests; one for each stream, because it keeps a buffer.
pub struct Translator<'a> {
    names: &'a Registry,
    limits: &'a Limits,
    timeouts: &'a Timeouts,
    /// Whose requests they are; `None`: of somebody who is in this process.
    caller: Option<Caller>,
    canonical: Vec<u8>,
    /// The first limit that the request under translation exceeds.
    exceeded: Option<Invalid>,
}

/// Why a request can't be translated: a sentence that names the field, and the store if it is about one.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The store, if the fault is in its branch.
    pub participant: Option<ParticipantId>,
    /// The sentence.
    pub sentence: String,
}

impl From<String> for Invalid {
    fn from(sentence: String) -> Invalid {
        Invalid { participant: None, sentence }
    }
}

impl Invalid {
    /// As the outcome of that request alone. Only for one without a name: under a name there may be an outcome already.
    pub fn reply(self) -> Reply {
        Reply::Aborted(Aborted { txid: None, participant: self.participant, refusal: self.refusal() })
    }

    fn refusal(self) -> Refusal {
        Refusal::new(RefusalKind::Invalid, self.sentence)
    }
}

impl<'a> Translator<'a> {
    /// With these names and limits.
    pub fn new(names: &'a Registry, limits: &'a Limits, timeouts: &'a Timeouts) -> Translator<'a> {
        Translator { names, limits, timeouts, caller: None, canonical: Vec::new(), exceeded: None }
    }

    /// For this caller: its keys are its own, and so are its stores and limits.
    pub fn of(self, caller: Caller) -> Translator<'a> {
        Translator { caller: Some(caller), ..self }
    }

    /// A whole transaction. `here` and `now`: where the coordinator stands and its clock, for what the request leaves out.
    ///
    /// A request that cannot be run is declined by the engine, which first looks its key up: a limit may have been lowered since it ran.
    /// Its hash tells whether it is the one that ran, so what only exceeds a limit is translated all the same. An error is the answer
    /// to a request that has no name.
    pub fn commit(&mut self, request: v1::CommitRequest, ticket: Ticket, here: Position, now: Time) -> Result<Event, Reply> {
        let key = self.key(request.key).map_err(|sentence| Invalid::from(sentence).reply())?;
        // Without its position a key cannot be looked up: no outcome is told.
        let position = position_or(request.position, here).map_err(Reply::Unknown)?;
        self.exceeded = None;
        let wait = wait(request.wait).unwrap_or_else(|sentence| {
            self.exceeded = Some(sentence.into());
            Wait::default()
        });
        let translated = self.branches(request.branches).map(|branches| (self.hash(&branches), branches));
        let (hash, branches, invalid) = match translated {
            Ok((hash, branches)) => (hash, branches, self.exceeded.take()),
            Err(invalid) => (0, Vec::new(), Some(invalid)),
        };
        let timeout = self.timeouts.transaction(request.timeout_ms).as_micros() as u64;
        let deadline = now.after(self.timeouts.wait(request.wait_ms).as_micros() as u64);
        let trace = TraceContext::parse(&request.traceparent);
        let new_key = request.new_key;
        let request = Request { key, position, new_key, hash, branches, wait, timeout, deadline, trace };
        Ok(match invalid {
            None => Event::Commit(ticket, request),
            Some(invalid) => Event::Decline {
                ticket,
                request: Request { branches: Vec::new(), ..request },
                at: invalid.participant,
                refusal: invalid.refusal(),
            },
        })
    }

    /// A transaction that is begun. One that cannot be is declined by the engine, which first looks its key up.
    pub fn begin(&self, request: v1::BeginRequest, ticket: Ticket, here: Position, now: Time) -> Result<Event, Reply> {
        let key = self.key(request.key).map_err(|sentence| Invalid::from(sentence).reply())?;
        let position = position_or(request.position, here).map_err(Reply::Unknown)?;
        let timeout = match request.timeout_ms {
            0 => 0,
            wish => self.timeouts.transaction(wish).as_micros() as u64,
        };
        let led_by = match request.led_by.as_str() {
            "" => None,
            name => match self.names.named(name) {
                Some(store) if self.reach(&store.name).is_ok() => Some(store.id),
                found => {
                    let why = found.and_then(|store| self.reach(&store.name).err()).unwrap_or_else(|| unknown_store(name, self.names));
                    let refusal = Refusal::new(RefusalKind::Invalid, format!("led_by: {why}"));
                    return Ok(self.not_begun(Event::Begin { ticket, key, position, led_by: None, timeout }, now, refusal));
                }
            },
        };
        Ok(Event::Begin { ticket, key, position, led_by, timeout })
    }

    /// A transaction that is given up. The error is a sentence that names the field; it tells no outcome.
    pub fn rollback(&self, request: v1::RollbackRequest, ticket: Ticket, here: Position) -> Result<Event, String> {
        Ok(Event::Rollback { ticket, key: self.key(request.key)?, position: position_or(request.position, here)? })
    }

    /// A question about a request's outcome. The error is a sentence that names the field; it tells no outcome.
    pub fn inquire(&self, request: v1::InquireRequest, ticket: Ticket, here: Position, now: Time) -> Result<Event, String> {
        let deadline = now.after(self.timeouts.wait(request.wait_ms).as_micros() as u64);
        let (key, position, wait) = (self.key(request.key)?, position_or(request.position, here)?, wait(request.wait)?);
        Ok(Event::Inquire { ticket, key, position, wait, deadline })
    }

    /// A transaction that is not taken up, whatever it is, unless its key is known.
    pub fn decline(
        &mut self,
        request: v1::CommitRequest,
        ticket: Ticket,
        here: Position,
        now: Time,
        refusal: Refusal,
    ) -> Result<Event, Reply> {
        Ok(match self.commit(request, ticket, here, now)? {
            Event::Commit(ticket, request) => {
                Event::Decline { ticket, request: Request { branches: Vec::new(), ..request }, at: None, refusal }
            }
            declined => declined,
        })
    }

    /// A transaction that is not begun, whatever it is, unless its key is known.
    pub fn decline_begin(
        &self,
        request: v1::BeginRequest,
        ticket: Ticket,
        here: Position,
        now: Time,
        refusal: Refusal,
    ) -> Result<Event, Reply> {
        Ok(self.not_begun(self.begin(request, ticket, here, now)?, now, refusal))
    }

    fn not_begun(&self, begin: Event, now: Time, refusal: Refusal) -> Event {
        let Event::Begin { ticket, key, position, timeout, .. } = begin else { return begin };
        let deadline = now.after(self.timeouts.wait(0).as_micros() as u64);
        let (branches, wait) = (Vec::new(), Wait::Decided);
        let request = Request { key, position, new_key: false, hash: 0, branches, wait, timeout, deadline, trace: None };
        Event::Decline { ticket, request, at: None, refusal }
    }

    fn reach(&self, store: &str) -> Result<(), String> {
        self.caller.as_ref().map_or(Ok(()), |caller| caller.reaches(security::Role::Client, store))
    }

    /// The name of a request, its caller's in front.
    fn key(&self, wire: Option<v1::RequestKey>) -> Result<RequestKey, String> {
        let key = request_key(wire, REQUEST_KEY_BYTES)?;
        match self.caller.as_ref().and_then(Caller::scope) {
            None => Ok(key),
            Some(scope) => Ok(RequestKey { key: [scope.as_bytes(), &key.key[..]].concat().into(), attempt: key.attempt }),
        }
    }

    fn branches(&mut self, wire: Vec<v1::Branch>) -> Result<Vec<BranchRequest>, Invalid> {
        if wire.is_empty() {
            return Err("branches is empty: a transaction needs at least one operation".to_string().into());
        }
        let mut left = self.limits.operations;
        let mut branches: Vec<BranchRequest> = Vec::with_capacity(wire.len());
        for (at, branch) in wire.into_iter().enumerate() {
            let branch = self.branch(at, branch, &mut left)?;
            if branches.iter().any(|other| other.participant == branch.participant) {
                let name = self.names.name(branch.participant);
                let sentence = format!("branches[{at}].store: `{name}` has a branch already: put all its operations into one");
                return Err(Invalid { participant: Some(branch.participant), sentence });
            }
            branches.push(branch);
        }
        branches.sort_unstable_by_key(|branch| branch.participant);
        Ok(branches)
    }

    fn branch(&mut self, at: usize, branch: v1::Branch, left: &mut usize) -> Result<BranchRequest, Invalid> {
        let names = self.names;
        let store = match (names.named(&branch.store), names.retired(&branch.store)) {
            (Some(store), _) => store,
            // It may have run before: its hash tells.
            (None, Some(retired)) => {
                let sentence = format!("branches[{at}].store: `{}` is not configured any more", branch.store);
                self.exceeded.get_or_insert(sentence.into());
                retired
            }
            (None, None) => return Err(format!("branches[{at}].store: {}", unknown_store(&branch.store, names)).into()),
        };
        let invalid = |sentence: String| Invalid { participant: Some(store.id), sentence };
        // It may have run before its principal was narrowed: so it is translated all the same.
        if let Err(what) = self.reach(&store.name) {
            self.exceeded.get_or_insert(invalid(format!("branches[{at}].store: {what}")));
        }
        if branch.operations.is_empty() {
            return Err(invalid(format!("branches[{at}].operations is empty: leave the branch out")));
        }
        if branch.operations.len() > *left {
            let limit = self.limits.operations;
            let sentence = format!("branches[{at}].operations: the transaction has more than {limit} operations (limits.operations)");
            self.exceeded.get_or_insert(invalid(sentence));
        }
        *left = left.saturating_sub(branch.operations.len());
        // An exact-size iterator of results would be collected twice; a vector of known capacity becomes the slice at once.
        let mut operations = Vec::with_capacity(branch.operations.len());
        for (number, operation) in branch.operations.into_iter().enumerate() {
            let path = |what: String| invalid(format!("branches[{at}].operations[{number}]{what}"));
            let operation = self.operation(store, operation).map_err(path)?;
            if let Some(what) = self.excess(&operation) {
                self.exceeded.get_or_insert_with(|| path(what));
            }
            operations.push(operation);
        }
        Ok(BranchRequest { participant: store.id, operations: operations.into() })
    }

    /// The error continues the operation's path.
    fn operation(&self, store: &Registered, operation: v1::Operation) -> Result<Operation, String> {
        use v1::operation::Operation as Wire;
        let operation = operation.operation.ok_or(" is neither statement nor put nor delete nor enlisted")?;
        match (store.role, operation) {
            (_, Wire::Update(_)) => Err(".update: partial updates are refused: put the whole document".into()),
            (Role::Index, Wire::Statement(_)) => Err(format!(".statement: `{}` is an index: it takes put and delete", store.name)),
            (Role::Database, Wire::Put(_)) => Err(format!(".put: `{}` is a database: it takes statements", store.name)),
            (Role::Database, Wire::Delete(_)) => Err(format!(".delete: `{}` is a database: it takes statements", store.name)),
            (Role::Index, Wire::Enlisted(_)) => Err(format!(".enlisted: `{}` is an index: it takes put and delete", store.name)),
            (Role::Database, Wire::Enlisted(enlisted)) => Ok(Operation::Enlisted { xid: enlisted.xid }),
            (Role::Database, Wire::Statement(statement)) => {
                if statement.sql.trim().is_empty() {
                    return Err(".statement.sql is empty".into());
                }
                let parameters = values(statement.parameters).map_err(|what| format!(".statement.{what}"))?;
                Ok(Operation::Statement { sql: statement.sql, parameters, expect_rows: statement.expect_rows })
            }
            (Role::Index, Wire::Put(put)) => {
                if put.key.is_empty() {
                    return Err(".put.key is empty".into());
                }
                if !put.document.trim_start().starts_with('{') {
                    return Err(".put.document is no JSON object".into());
                }
                let condition = condition(put.condition).map_err(|what| format!(".put.condition{what}"))?;
                Ok(Operation::Put { key: put.key, document: put.document, condition })
            }
            (Role::Index, Wire::Delete(delete)) => {
                if delete.key.is_empty() {
                    return Err(".delete.key is empty".into());
                }
                let condition = condition(delete.condition).map_err(|what| format!(".delete.condition{what}"))?;
                Ok(Operation::Delete { key: delete.key, condition })
            }
        }
    }

    /// The limit that an operation exceeds by itself, if there is one. Continues the operation's path.
    fn excess(&self, operation: &Operation) -> Option<String> {
        let (verb, key, document) = match operation {
            Operation::Statement { .. } | Operation::Enlisted { .. } => return None,
            Operation::Put { key, document, .. } => ("put", key.len(), document.len()),
            Operation::Delete { key, .. } => ("delete", key.len(), 0),
        };
        let Limits { key_bytes, document_bytes, .. } = self.limits;
        if key > *key_bytes {
            return Some(format!(".{verb}.key has {key} bytes: at most {key_bytes} (limits.key_bytes)"));
        }
        (document > *document_bytes)
            .then(|| format!(".{verb}.document has {document} bytes: at most {document_bytes} (limits.document_bytes)"))
    }

    /// Everything that the request asks for, in one unambiguous form, hashed: fields in order, each with a tag or a length before it.
    fn hash(&mut self, branches: &[BranchRequest]) -> u64 {
        /// A buffer that a large transaction left is given back.
        const KEEP: usize = 64 << 10;
        self.canonical.clear();
        for branch in branches {
            self.canonical.extend_from_slice(&branch.participant.0.to_le_bytes());
            self.canonical.extend_from_slice(&(branch.operations.len() as u64).to_le_bytes());
            for operation in branch.operations.iter() {
                encode(operation, &mut self.canonical);
            }
        }
        let (size, limit) = (self.canonical.len(), self.limits.transaction_bytes);
        let own = self.caller.as_ref().and_then(|caller| caller.transaction_bytes()).filter(|own| *own < limit);
        let hash = xxh64(&self.canonical);
        if self.canonical.capacity() > KEEP {
            self.canonical = Vec::new();
        }
        if let Some(own) = own.filter(|own| size > *own) {
            let sentence = format!("branches: the transaction has {size} bytes: at most {own} (transaction_bytes of the principal)");
            self.exceeded.get_or_insert(sentence.into());
        } else if size > limit {
            let sentence = format!("branches: the transaction has {size} bytes: at most {limit} (limits.transaction_bytes)");
            self.exceeded.get_or_insert(sentence.into());
        }
        hash
    }
}

fn encode(operation: &Operation, out: &mut Vec<u8>) {
    match operation {
        Operation::Statement { sql, parameters, expect_rows } => {
            out.push(1);
            encode_bytes(sql.as_bytes(), out);
            out.extend_from_slice(&(parameters.len() as u64).to_le_bytes());
            for value in parameters {
                match value {
                    Value::Null => out.push(0),
                    Value::Integer(integer) => encode_word(1, *integer as u64, out),
                    Value::Real(real) => encode_word(2, real.to_bits(), out),
                    Value::Text(text) => {
                        out.push(3);
                        encode_bytes(text.as_bytes(), out);
                    }
                    Value::Blob(blob) => {
                        out.push(4);
                        encode_bytes(blob, out);
                    }
                    Value::Boolean(boolean) => out.extend_from_slice(&[5, u8::from(*boolean)]),
                }
            }
            match expect_rows {
                None => out.push(0),
                Some(rows) => encode_word(1, *rows, out),
            }
        }
        Operation::Put { key, document, condition } => {
            out.push(2);
            encode_bytes(key.as_bytes(), out);
            encode_bytes(document.as_bytes(), out);
            encode_condition(*condition, out);
        }
        Operation::Delete { key, condition } => {
            out.push(3);
            encode_bytes(key.as_bytes(), out);
            encode_condition(*condition, out);
        }
        Operation::Enlisted { xid } => encode_word(4, *xid, out),
    }
}

fn encode_condition(condition: Option<Condition>, out: &mut Vec<u8>) {
    match condition {
        None => out.push(0),
        Some(Condition::Csn(csn)) => encode_word(1, csn.to_u64(), out),
        Some(Condition::Absent) => out.push(2),
    }
}

fn encode_word(tag: u8, word: u64, out: &mut Vec<u8>) {
    out.push(tag);
    out.extend_from_slice(&word.to_le_bytes());
}

fn encode_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// The sentence about a store that is not configured.
pub fn unknown_store(name: &str, names: &Registry) -> String {
    let known: Vec<&str> = names.all().iter().map(|entry| &*entry.name).collect();
    let name: String = name.chars().take(REQUEST_KEY_BYTES).collect();
    format!("there is no store `{name}`; configured: {}", known.join(", "))
}

/// The name of a request, of so many bytes at most.
pub fn request_key(key: Option<v1::RequestKey>, most: usize) -> Result<RequestKey, String> {
    let key = key.ok_or("key is missing: 1 to 64 bytes that name the request, the same on every retry")?;
    match key.key.len() {
        0 => Err("key.key is empty: 1 to 64 bytes".into()),
        size if size > most => Err(format!("key.key has {size} bytes: at most {most}")),
        _ if key.attempt == 0 => Err("key.attempt is 0: attempts count from 1".into()),
        _ => Ok(RequestKey { key: Arc::from(&key.key[..]), attempt: key.attempt }),
    }
}

/// A request's key on the wire.
pub fn request_key_out(key: &RequestKey) -> v1::RequestKey {
    v1::RequestKey { key: bytes::Bytes::copy_from_slice(&key.key), attempt: key.attempt }
}

fn position_or(position: Option<v1::Position>, here: Position) -> Result<Position, String> {
    position.map_or(Ok(here), |position| self::position(position).map_err(|what| format!("position{what}")))
}

/// A position. The error continues the field's path.
pub fn position(position: v1::Position) -> Result<Position, String> {
    Ok(Position { epoch: epoch(position.epoch).map_err(|what| format!(".epoch{what}"))?, n: position.n })
}

/// A position on the wire.
pub fn position_out(position: Position) -> v1::Position {
    v1::Position { epoch: position.epoch.0, n: position.n }
}

/// An epoch. The error continues the field's path.
pub fn epoch(epoch: u32) -> Result<Epoch, String> {
    if epoch > Epoch::MAX.0 { Err(format!(" is {epoch}: at most {}", Epoch::MAX)) } else { Ok(Epoch(epoch)) }
}

/// A CSN. The error continues the field's path.
pub fn csn(raw: u64) -> Result<Csn, String> {
    Csn::from_u64(raw).ok_or_else(|| format!(" is {raw}: no CSN, which is below 2^63"))
}

fn wait(wait: i32) -> Result<Wait, String> {
    match v1::Wait::try_from(wait) {
        Ok(v1::Wait::Unspecified | v1::Wait::Applied) => Ok(Wait::Applied),
        Ok(v1::Wait::Decided) => Ok(Wait::Decided),
        Ok(v1::Wait::Visible) => Ok(Wait::Visible),
        Err(_) => Err(format!("wait is {wait}: none of decided, applied, visible")),
    }
}

fn condition(condition: Option<v1::Condition>) -> Result<Option<Condition>, String> {
    use v1::condition::Condition as Wire;
    let Some(condition) = condition else { return Ok(None) };
    match condition.condition {
        None => Err(" is empty: if_csn or if_absent".into()),
        Some(Wire::IfCsn(0)) => Err(".if_csn is 0: for a document that must not exist, use if_absent".into()),
        Some(Wire::IfCsn(raw)) => Ok(Some(Condition::Csn(csn(raw).map_err(|what| format!(".if_csn{what}"))?))),
        Some(Wire::IfAbsent(true)) => Ok(Some(Condition::Absent)),
        Some(Wire::IfAbsent(false)) => Err(".if_absent is false: leave the condition out, or set it true".into()),
    }
}

/// A condition on the wire.
pub fn condition_out(condition: Condition) -> v1::Condition {
    use v1::condition::Condition as Wire;
    let condition = match condition {
        Condition::Csn(csn) => Wire::IfCsn(csn.to_u64()),
        Condition::Absent => Wire::IfAbsent(true),
    };
    v1::Condition { condition: Some(condition) }
}

/// A statement's parameters. The error starts with the field's name.
pub fn values(values: Vec<v1::Value>) -> Result<Vec<Value>, String> {
    let mut translated = Vec::with_capacity(values.len());
    for (at, wire) in values.into_iter().enumerate() {
        translated.push(value(wire).ok_or_else(|| format!("parameters[{at}] has no value: for NULL, set null"))?);
    }
    Ok(translated)
}

/// A value, if it has one.
pub fn value(value: v1::Value) -> Option<Value> {
    use v1::value::Value as Wire;
    Some(match value.value? {
        Wire::Null(_) => Value::Null,
        Wire::Integer(integer) => Value::Integer(integer),
        Wire::Real(real) => Value::Real(real),
        Wire::Text(text) => Value::Text(text),
        Wire::Blob(blob) => Value::Blob(blob),
        Wire::Boolean(boolean) => Value::Boolean(boolean),
    })
}

/// A value on the wire.
pub fn value_out(value: &Value) -> v1::Value {
    use v1::value::Value as Wire;
    let value = match value {
        Value::Null => Wire::Null(v1::Null {}),
        Value::Integer(integer) => Wire::Integer(*integer),
        Value::Real(real) => Wire::Real(*real),
        Value::Text(text) => Wire::Text(text.clone()),
        Value::Blob(blob) => Wire::Blob(blob.clone()),
        Value::Boolean(boolean) => Wire::Boolean(*boolean),
    };
    v1::Value { value: Some(value) }
}

/// A statement's result on the wire.
pub fn result_out(result: &StatementResult) -> v1::StatementResult {
    v1::StatementResult {
        rows_affected: result.rows_affected,
        columns: result.columns.clone(),
        rows: result.rows.iter().map(|row| v1::Row { values: row.iter().map(value_out).collect() }).collect(),
    }
}

/// How a pool is used.
pub fn pool_out(pool: PoolUse) -> v1::ConnectionPool {
    let number = |n| u32::try_from(n).unwrap_or(u32::MAX);
    let PoolUse { name, limit, open, lent, waiting } = pool;
    v1::ConnectionPool { name: name.into(), limit: number(limit), open: number(open), lent: number(lent), waiting: number(waiting) }
}

/// A document on the wire.
pub fn document_out(document: Document) -> v1::Document {
    v1::Document { key: document.key, csn: document.csn.to_u64(), document: document.document, score: document.score }
}

/// A transaction's id. The error continues the field's path.
pub fn txid(txid: v1::TransactionId) -> Result<Txid, String> {
    let decider = match txid.leader {
        0 => Decider::Log,
        number => Decider::Leader(participant(number - 1).map_err(|what| format!(".leader{what}"))?),
    };
    let n = Some(txid.n).filter(|n| *n <= Csn::N_MAX).ok_or_else(|| format!(".n is {}: at most {}", txid.n, Csn::N_MAX))?;
    Ok(Txid { epoch: epoch(txid.epoch).map_err(|what| format!(".epoch{what}"))?, n, decider })
}

/// A transaction's id on the wire.
pub fn txid_out(txid: Txid) -> v1::TransactionId {
    let leader = match txid.decider {
        Decider::Log => 0,
        Decider::Leader(participant) => u32::from(participant.0) + 1,
    };
    v1::TransactionId { epoch: txid.epoch.0, n: txid.n, leader }
}

/// A participant's number. The error continues the field's path.
pub fn participant(number: u32) -> Result<ParticipantId, String> {
    u16::try_from(number).map(ParticipantId).map_err(|_| format!(" is {number}: at most {}", u16::MAX))
}

/// A read token, as a receipt carries it.
pub fn token(bytes: &[u8]) -> Result<Token, String> {
    let bad = || format!("at_least is no token: a receipt's has {TOKEN_BYTES} bytes");
    let (log_id, raw) = bytes.split_first_chunk::<16>().ok_or_else(bad)?;
    let raw: [u8; 8] = raw.try_into().map_err(|_| bad())?;
    Ok(Token { log_id: LogId(u128::from_be_bytes(*log_id)), csn: Csn::from_u64(u64::from_be_bytes(raw)).ok_or_else(bad)? })
}

/// A read token on the wire.
pub fn token_out(token: Token) -> bytes::Bytes {
    let mut bytes = [0; TOKEN_BYTES];
    bytes[..16].copy_from_slice(&token.log_id.0.to_be_bytes());
    bytes[16..].copy_from_slice(&token.csn.to_u64().to_be_bytes());
    bytes::Bytes::copy_from_slice(&bytes)
}

/// The reply to a Commit or an Inquire, on the wire.
pub fn outcome_out(reply: Reply, names: &Registry) -> v1::Outcome {
    use v1::outcome::Outcome as Wire;
    let outcome = match reply {
        Reply::Committed(receipt) => Wire::Committed(committed_out(receipt, names)),
        Reply::Aborted(aborted) => Wire::Aborted(v1::Aborted {
            txid: aborted.txid.map(txid_out),
            store: aborted.participant.map(|participant| names.name(participant)).unwrap_or_default(),
            reason: reason_out(aborted.refusal.kind).into(),
            retryable: aborted.refusal.kind.retryable(),
            message: aborted.refusal.message,
        }),
        Reply::Unknown(message) => Wire::Unknown(v1::Unknown { message }),
        Reply::Expired(floor) => Wire::Expired(v1::Expired { floor: Some(position_out(floor)) }),
        Reply::KeyReused(txid) => Wire::KeyReused(v1::KeyReused { txid: Some(txid_out(txid)) }),
        Reply::Begun(_) | Reply::Reached(_) | Reply::Behind(_) | Reply::ForeignToken(_) | Reply::Done(_) | Reply::Refused(_) => {
            panic!("the engine answered a transaction with {reply:?}")
        }
    };
    v1::Outcome { outcome: Some(outcome) }
}

fn committed_out(receipt: Receipt, names: &Registry) -> v1::Committed {
    let results_gone = receipt.results.is_none();
    let results = receipt.results.unwrap_or_default();
    v1::Committed {
        txid: Some(txid_out(receipt.txid)),
        csn: receipt.csn.to_u64(),
        token: token_out(receipt.token),
        results: results
            .iter()
            .filter(|(_, results)| !results.is_empty())
            .map(|(participant, results)| v1::BranchResults {
                store: names.name(*participant),
                results: results.iter().map(result_out).collect(),
            })
            .collect(),
        results_gone,
        pending: receipt.pending.iter().map(|participant| names.name(*participant)).collect(),
        damaged: receipt.damaged.iter().map(|participant| names.name(*participant)).collect(),
    }
}

/// A refusal's kind on the wire.
pub fn reason_out(kind: RefusalKind) -> v1::Reason {
    match kind {
        RefusalKind::Invalid => v1::Reason::Invalid,
        RefusalKind::Constraint => v1::Reason::Constraint,
        RefusalKind::Condition => v1::Reason::Condition,
        RefusalKind::Conflict => v1::Reason::Conflict,
        RefusalKind::Busy => v1::Reason::Busy,
        RefusalKind::Unavailable => v1::Reason::Unavailable,
        RefusalKind::Timeout => v1::Reason::Timeout,
        RefusalKind::Cancelled => v1::Reason::Cancelled,
    }
}

/// A refusal's kind from the wire; `None` where it has none that is known.
pub fn reason(raw: i32) -> Option<RefusalKind> {
    Some(match v1::Reason::try_from(raw).ok()? {
        v1::Reason::Unspecified => return None,
        v1::Reason::Invalid => RefusalKind::Invalid,
        v1::Reason::Constraint => RefusalKind::Constraint,
        v1::Reason::Condition => RefusalKind::Condition,
        v1::Reason::Conflict => RefusalKind::Conflict,
        v1::Reason::Busy => RefusalKind::Busy,
        v1::Reason::Unavailable => RefusalKind::Unavailable,
        v1::Reason::Timeout => RefusalKind::Timeout,
        v1::Reason::Cancelled => RefusalKind::Cancelled,
    })
}

/// The word for a store's role.
pub fn role_word(role: Role) -> &'static str {
    match role {
        Role::Database => "database",
        Role::Index => "index",
    }
}

/// The word for a way to vote.
pub fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Preparing => "preparing",
        Kind::Redo => "redo",
        Kind::Serial => "serial",
        Kind::Leader => "leader",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const HERE: Position = Position { epoch: Epoch(3), n: 17 };

    fn names() -> Registry {
        let entry = |id, name: &str, role, kind| Registered { id: ParticipantId(id), name: name.into(), store_type: "sqlite", role, kind };
        Registry::new(vec![
            entry(1, "db", Role::Database, Kind::Serial),
            entry(2, "index", Role::Index, Kind::Redo),
            entry(3, "notes", Role::Index, Kind::Redo),
        ])
    }

    fn statement(sql: &str) -> v1::Operation {
        operation(v1::operation::Operation::Statement(v1::Statement { sql: sql.into(), parameters: vec![], expect_rows: None }))
    }

    fn put(key: &str, document: &str, condition: Option<v1::Condition>) -> v1::Operation {
        operation(v1::operation::Operation::Put(v1::Put { key: key.into(), document: document.into(), condition }))
    }

    fn operation(operation: v1::operation::Operation) -> v1::Operation {
        v1::Operation { operation: Some(operation) }
    }

    fn branch(store: &str, operations: Vec<v1::Operation>) -> v1::Branch {
        v1::Branch { store: store.into(), operations }
    }

    fn request(branches: Vec<v1::Branch>) -> v1::CommitRequest {
        let key = Some(v1::RequestKey { key: Bytes::from_static(b"key"), attempt: 1 });
        v1::CommitRequest { key, branches, ..v1::CommitRequest::default() }
    }

    fn both() -> v1::CommitRequest {
        request(vec![branch("index", vec![put("k", "{}", None)]), branch("db", vec![statement("SELECT 1")])])
    }

    fn translate(request: v1::CommitRequest) -> Result<Request, Invalid> {
        let limits = Limits { operations: 3, document_bytes: 20, key_bytes: 4, transaction_bytes: 200, ..Limits::default() };
        match Translator::new(&names(), &limits, &Timeouts::default()).commit(request, Ticket(1), HERE, Time(1_000)) {
            Ok(Event::Commit(_, request)) => Ok(request),
            Ok(Event::Decline { request, at, refusal, .. }) => {
                assert!(request.branches.is_empty() && refusal.kind == RefusalKind::Invalid);
                Err(Invalid { participant: at, sentence: refusal.message })
            }
            Err(Reply::Aborted(aborted)) => Err(Invalid { participant: None, sentence: aborted.refusal.message }),
            Err(Reply::Unknown(sentence)) => Err(Invalid { participant: None, sentence }),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(request: v1::CommitRequest, sentence: &str) {
        let invalid = translate(request).expect_err(sentence);
        assert!(invalid.sentence.contains(sentence), "{}", invalid.sentence);
    }

    fn with(change: impl FnOnce(&mut v1::CommitRequest)) -> v1::CommitRequest {
        let mut request = both();
        change(&mut request);
        request
    }

    #[test]
    fn a_whole_request_is_translated() {
        let translated = translate(both()).unwrap();
        assert_eq!((translated.position, translated.wait, translated.timeout), (HERE, Wait::Applied, 15_000_000));
        assert_eq!(translated.deadline, Time(10_001_000));
        assert_eq!(translated.branches.iter().map(|branch| branch.participant.0).collect::<Vec<_>>(), [1, 2]);
        let longest = translate(with(|request| request.timeout_ms = u32::MAX)).unwrap();
        assert_eq!(longest.timeout, 300_000_000, "a wish is cut to timeouts.transaction_max_ms");
    }

    #[test]
    fn names_of_requests_are_checked() {
        let key = |bytes: &'static [u8], attempt| Some(v1::RequestKey { key: Bytes::from_static(bytes), attempt });
        refused(with(|request| request.key = None), "key is missing");
        refused(with(|request| request.key = key(b"", 1)), "key.key is empty");
        refused(with(|request| request.key = key(&[1; 65], 1)), "key.key has 65 bytes: at most 64");
        refused(with(|request| request.key = key(b"k", 0)), "key.attempt is 0");
        refused(with(|request| request.wait = 9), "wait is 9");
        refused(with(|request| request.position = Some(v1::Position { epoch: 1 << 24, n: 0 })), "position.epoch is 16777216");
    }

    #[test]
    fn branches_are_checked() {
        refused(request(vec![]), "branches is empty");
        refused(request(vec![branch("db", vec![])]), "branches[0].operations is empty");
        refused(
            request(vec![branch("dbx", vec![statement("x")])]),
            "branches[0].store: there is no store `dbx`; configured: db, index, notes",
        );
        refused(
            request(vec![branch("db", vec![statement("x")]), branch("db", vec![statement("x")])]),
            "branches[1].store: `db` has a branch already",
        );
        let many = (0..4).map(|_| statement("x")).collect();
        refused(request(vec![branch("db", many)]), "more than 3 operations (limits.operations)");
        let spread =
            vec![branch("db", vec![statement("x"), statement("x")]), branch("notes", vec![put("a", "{}", None), put("b", "{}", None)])];
        refused(request(spread), "branches[1].operations: the transaction has more than 3 operations");
        refused(request(vec![branch("db", vec![statement(&"x".repeat(300))])]), "at most 200 (limits.transaction_bytes)");
    }

    #[test]
    fn operations_are_checked() {
        use v1::condition::Condition as C;
        use v1::operation::Operation as O;
        let db = |wire: v1::Operation| request(vec![branch("db", vec![statement("x"), wire])]);
        let index = |wire: v1::Operation| request(vec![branch("notes", vec![wire])]);
        let on = |condition| index(put("k", "{}", Some(v1::Condition { condition })));
        refused(db(v1::Operation { operation: None }), "branches[0].operations[1] is neither");
        refused(db(put("k", "{}", None)), "operations[1].put: `db` is a database");
        refused(db(operation(O::Delete(v1::Delete::default()))), "operations[1].delete: `db` is a database");
        refused(db(statement(" ")), "operations[1].statement.sql is empty");
        let unset = v1::Statement { sql: "x".into(), parameters: vec![v1::Value { value: None }], expect_rows: None };
        refused(db(operation(O::Statement(unset))), "operations[1].statement.parameters[0] has no value");
        refused(index(statement("x")), "operations[0].statement: `notes` is an index");
        refused(index(operation(O::Update(v1::Update::default()))), "operations[0].update: partial updates are refused");
        refused(index(put("", "{}", None)), "put.key is empty");
        refused(index(put("12345", "{}", None)), "put.key has 5 bytes: at most 4 (limits.key_bytes)");
        refused(index(operation(O::Delete(v1::Delete::default()))), "delete.key is empty");
        refused(index(put("k", &format!("{{{:20}}}", ""), None)), "put.document has 22 bytes: at most 20 (limits.document_bytes)");
        refused(index(put("k", "[]", None)), "put.document is no JSON object");
        refused(on(None), "put.condition is empty");
        refused(on(Some(C::IfCsn(0))), "put.condition.if_csn is 0");
        refused(on(Some(C::IfCsn(1 << 63))), "put.condition.if_csn is 9223372036854775808: no CSN");
        refused(on(Some(C::IfAbsent(false))), "put.condition.if_absent is false");
    }

    #[test]
    fn a_refusal_is_an_outcome_of_that_request_alone() {
        let outcome = outcome_out(translate(request(vec![branch("db", vec![])])).unwrap_err().reply(), &names());
        let Some(v1::outcome::Outcome::Aborted(aborted)) = outcome.outcome else { panic!("{outcome:?}") };
        assert_eq!((aborted.reason(), aborted.retryable, aborted.store.as_str()), (v1::Reason::Invalid, false, "db"));
    }

    #[test]
    fn a_declined_request_is_known_by_its_hash_as_far_as_it_makes_sense() {
        let declined = |request: v1::CommitRequest, limits: Limits| match Translator::new(&names(), &limits, &Timeouts::default()).commit(
            request,
            Ticket(1),
            HERE,
            Time(0),
        ) {
            Ok(Event::Decline { request, .. }) => request.hash,
            other => panic!("{other:?}"),
        };
        let roomy = Limits::default();
        for lowered in [
            Limits { operations: 1, ..roomy.clone() },
            Limits { document_bytes: 1, ..roomy.clone() },
            Limits { transaction_bytes: 1, ..roomy.clone() },
        ] {
            assert_eq!(declined(both(), lowered), EXPECTED_HASH, "the same request as before the limit was lowered");
        }
        assert_eq!(declined(with(|request| request.wait = 9), roomy.clone()), EXPECTED_HASH);
        let (kept, gone): (Vec<_>, Vec<_>) = names().all().iter().cloned().partition(|store| store.role == Role::Database);
        let fewer = Registry::new(kept).with_retired(gone);
        let told = Translator::new(&fewer, &roomy, &Timeouts::default()).commit(both(), Ticket(1), HERE, Time(0));
        let Ok(Event::Decline { request: known, refusal, .. }) = told else { panic!("{told:?}") };
        assert_eq!((known.hash, &*refusal.message), (EXPECTED_HASH, "branches[0].store: `index` is not configured any more"));
        assert_eq!(declined(request(vec![]), roomy), 0, "never ran, so it is no request that is known");
    }

    #[test]
    fn without_a_position_no_outcome_is_told() {
        let limits = Limits::default();
        let wrong = with(|request| request.position = Some(v1::Position { epoch: 1 << 24, n: 0 }));
        let told = Translator::new(&names(), &limits, &Timeouts::default()).commit(wrong, Ticket(1), HERE, Time(0));
        assert!(matches!(told, Err(Reply::Unknown(_))), "{told:?}");
    }

    #[test]
    fn the_hash_sees_what_is_asked_for_and_nothing_else() {
        let hash = |request| translate(request).unwrap().hash;
        let same = hash(both());
        assert_eq!(same, hash(with(|request| request.branches.reverse())));
        assert_eq!(same, hash(with(|request| request.wait_ms = 5)));
        assert_eq!(same, hash(with(|request| request.wait = 3)));
        let document = |document: &str| with(|request| request.branches[0].operations[0] = put("k", document, None));
        assert_ne!(same, hash(document("{} ")));
        let integer = |value| {
            with(|request| {
                let statement = v1::Statement { sql: "SELECT 1".into(), parameters: vec![v1::Value { value }], expect_rows: None };
                request.branches[1].operations[0] = operation(v1::operation::Operation::Statement(statement));
            })
        };
        assert_ne!(hash(integer(Some(v1::value::Value::Integer(0)))), hash(integer(Some(v1::value::Value::Real(0.0)))));
        // Kept in logs: a change of the canonical form would make retries over an update look like other requests.
        assert_eq!(same, EXPECTED_HASH);
    }

    const EXPECTED_HASH: u64 = 17_841_318_801_973_525_627;

    #[test]
    fn tokens_and_ids_come_back() {
        let token = Token { log_id: LogId(7 << 100), csn: Csn::new(Epoch(3), 9) };
        assert_eq!(super::token(&token_out(token)), Ok(token));
        for bytes in [&b""[..], &[0; 23], &[0; 25], &[255; 24]] {
            assert!(super::token(bytes).is_err());
        }
        for decider in [Decider::Log, Decider::Leader(ParticipantId(u16::MAX))] {
            let id = Txid { epoch: Epoch(2), n: 5, decider };
            assert_eq!(txid(txid_out(id)), Ok(id));
        }
        assert!(txid(v1::TransactionId { epoch: 1, n: 1, leader: 65_537 }).is_err());
    }

    #[test]
    fn a_receipt_names_its_stores() {
        let result = StatementResult {
            rows_affected: 1,
            columns: vec!["a".into()],
            rows: vec![vec![Value::Null, Value::Blob(Bytes::from_static(b"x"))]],
        };
        let receipt = Receipt {
            txid: Txid { epoch: Epoch(3), n: 1, decider: Decider::Log },
            csn: Csn::new(Epoch(3), 1),
            token: Token { log_id: LogId(1), csn: Csn::new(Epoch(3), 1) },
            results: Some(vec![(ParticipantId(1), vec![result].into()), (ParticipantId(2), vec![].into())]),
            pending: vec![ParticipantId(2)],
            damaged: vec![],
        };
        let committed = committed_out(receipt, &names());
        assert_eq!((committed.results.len(), committed.results[0].store.as_str()), (1, "db"));
        assert_eq!((committed.pending, committed.results_gone), (vec!["index".to_string()], false));
    }
}
