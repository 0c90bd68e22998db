//! Messages of gRPC, from any bytes to the machine's vocabulary.

use crate::input;
use arbitrary::Unstructured;
use lockstep_core::{Epoch, Event, Kind, Operation, ParticipantId, Position, Refusal, RefusalKind, Reply, Request, Role, Ticket, Time};
use lockstep_proto::v1;
use lockstepd::configuration::{Limits, Timeouts};
use lockstepd::engine_handle::{Registered, Registry};
use lockstepd::service::participant_messages as wire;
use lockstepd::service::translate::{self, OWNED_KEY_BYTES, Translator};
use lockstepd::view;
use prost::Message;

const HERE: Position = Position { epoch: Epoch(3), n: 17 };

/// Any bytes as a client's request: it is taken within the limits, or refused in a sentence.
pub fn client_messages(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let names = names();
    let limits = Limits { operations: 5, document_bytes: 40, key_bytes: 8, transaction_bytes: 300, ..Limits::default() };
    let timeouts = Timeouts::default();
    let mut translator = Translator::new(&names, &limits, &timeouts);
    let (ticket, now) = (Ticket(1), Time(1_000));
    match kind % 8 {
        0 => {
            if let Ok(request) = v1::CommitRequest::decode(data) {
                let again = translator.commit(request.clone(), ticket, HERE, now);
                let translated = translator.commit(request, ticket, HERE, now);
                assert_eq!(format!("{again:?}"), format!("{translated:?}"), "a request means one thing");
                event(translated, &limits);
            }
        }
        1 => reading(data, &names),
        2 => {
            if let Ok(request) = v1::BeginRequest::decode(data) {
                event(translator.begin(request, ticket, HERE, now), &limits);
            }
        }
        3 => {
            if let Ok(request) = v1::RollbackRequest::decode(data) {
                event(translator.rollback(request, ticket, HERE).map_err(Reply::Unknown), &limits);
            }
        }
        4 => {
            if let Ok(request) = v1::InquireRequest::decode(data) {
                event(translator.inquire(request, ticket, HERE, now).map_err(Reply::Unknown), &limits);
            }
        }
        5 => {
            if let Ok(requests) = v1::TransactRequests::decode(data) {
                for request in requests.requests {
                    of_a_stream(request, &mut translator, &limits, now);
                }
            }
        }
        6 => token(data),
        _ => {
            if let Ok(id) = v1::TransactionId::decode(data) {
                transaction_id(id);
            }
        }
    }
}

/// A request among those of a frame. One whose id says so comes when its caller has asked for too much already: it is never run.
fn of_a_stream(request: v1::TransactRequest, translator: &mut Translator<'_>, limits: &Limits, now: Time) {
    use v1::transact_request::Request as Wire;
    let ticket = Ticket(1);
    let busy = (request.id % 4 == 3).then(|| Refusal::new(RefusalKind::Busy, "too much"));
    let declined = busy.is_some();
    let translated = match (request.request, busy) {
        (Some(Wire::Commit(commit)), None) => translator.commit(commit, ticket, HERE, now),
        (Some(Wire::Commit(commit)), Some(busy)) => translator.decline(commit, ticket, HERE, now, busy),
        (Some(Wire::Begin(begin)), None) => translator.begin(begin, ticket, HERE, now),
        (Some(Wire::Begin(begin)), Some(busy)) => translator.decline_begin(begin, ticket, HERE, now, busy),
        (Some(Wire::Inquire(inquire)), _) => translator.inquire(inquire, ticket, HERE, now).map_err(Reply::Unknown),
        (Some(Wire::Rollback(rollback)), _) => translator.rollback(rollback, ticket, HERE).map_err(Reply::Unknown),
        (Some(Wire::Acknowledge(id)), _) => return transaction_id(id),
        (None, _) => return,
    };
    assert!(!declined || !matches!(translated, Ok(Event::Commit(..) | Event::Begin { .. })), "what is declined is run");
    event(translated, limits);
}

/// What is asked beside transactions: the parts of a read that are understood before a store is asked, and where a list goes on.
fn reading(data: &[u8], names: &Registry) {
    let Some((kind, data)) = data.split_first() else { return };
    let (store, at_least, parameters) = match kind % 4 {
        0 => {
            let Ok(request) = v1::QueryRequest::decode(data) else { return };
            (request.store, request.at_least, request.parameters)
        }
        1 => {
            let Ok(request) = v1::SearchRequest::decode(data) else { return };
            (request.store, request.at_least, Vec::new())
        }
        2 => {
            let Ok(request) = v1::GetRequest::decode(data) else { return };
            (request.store, request.at_least, Vec::new())
        }
        _ => {
            let Ok(request) = v1::ListTransactionsRequest::decode(data) else { return };
            return list(&request);
        }
    };
    match names.named(&store) {
        Some(registered) => assert_eq!(*registered.name, *store),
        None => input::shown(&translate::unknown_store(&store, names)),
    }
    if !at_least.is_empty() {
        token(&at_least);
    }
    match translate::values(parameters.clone()) {
        Ok(values) => {
            let back: Vec<_> = values.iter().map(|value| translate::value_out(value).encode_to_vec()).collect();
            assert_eq!(back, parameters.iter().map(|value| value.encode_to_vec()).collect::<Vec<_>>());
        }
        Err(sentence) => input::shown(&sentence),
    }
}

fn list(request: &v1::ListTransactionsRequest) {
    if let Some(sentence) = view::unanswerable(request) {
        input::shown(sentence);
    }
    match request.after.parse::<view::Cursor>() {
        Ok(cursor) => assert_eq!(cursor.to_string().parse(), Ok(cursor)),
        Err(sentence) => input::shown(&sentence),
    }
}

fn token(bytes: &[u8]) {
    match translate::token(bytes) {
        Ok(token) => assert_eq!(translate::token_out(token)[..], *bytes),
        Err(sentence) => input::shown(&sentence),
    }
}

fn transaction_id(id: v1::TransactionId) {
    match translate::txid(id) {
        Ok(txid) => assert_eq!(translate::txid_out(txid), id),
        Err(sentence) => input::shown(&sentence),
    }
}

fn event(translated: Result<Event, Reply>, limits: &Limits) {
    match translated {
        Ok(Event::Commit(_, request)) => within(&request, limits),
        Ok(Event::Decline { request, refusal, .. }) => {
            assert!(request.branches.is_empty());
            named(&request.key.key);
            input::shown(&refusal.message);
        }
        Ok(Event::Begin { key, position, led_by, .. }) => {
            named(&key.key);
            assert!(position.epoch <= Epoch::MAX && led_by.is_none_or(|id| id.0 < 4));
        }
        Ok(Event::Rollback { key, position, .. } | Event::Inquire { key, position, .. }) => {
            named(&key.key);
            assert!(position.epoch <= Epoch::MAX);
        }
        Ok(other) => panic!("a request became {other:?}"),
        Err(Reply::Aborted(aborted)) => input::shown(&aborted.refusal.message),
        Err(Reply::Unknown(sentence)) => input::shown(&sentence),
        Err(other) => panic!("a request was answered with {other:?}"),
    }
}

fn named(key: &[u8]) {
    assert!((1..=OWNED_KEY_BYTES).contains(&key.len()));
}

fn within(request: &Request, limits: &Limits) {
    named(&request.key.key);
    assert!(request.key.attempt > 0 && request.position.epoch <= Epoch::MAX && !request.branches.is_empty());
    let mut ids: Vec<_> = request.branches.iter().map(|branch| branch.participant.0).collect();
    ids.dedup();
    assert!(ids.is_sorted() && ids.len() == request.branches.len(), "each store once, in one order");
    let operations = || request.branches.iter().flat_map(|branch| branch.operations.iter());
    assert!(request.branches.iter().all(|branch| !branch.operations.is_empty()) && operations().count() <= limits.operations);
    let mut size = 0;
    for operation in operations() {
        size += match operation {
            Operation::Statement { sql, .. } => sql.len(),
            Operation::Put { key, document, .. } => {
                assert!((1..=limits.key_bytes).contains(&key.len()) && document.len() <= limits.document_bytes);
                key.len() + document.len()
            }
            Operation::Delete { key, .. } => {
                assert!((1..=limits.key_bytes).contains(&key.len()));
                key.len()
            }
            Operation::Enlisted { .. } => 0,
        };
    }
    assert!(size <= limits.transaction_bytes);
}

fn names() -> Registry {
    let entry = |id, name: &str, role, kind| Registered { id: ParticipantId(id), name: name.into(), store_type: "remote", role, kind };
    Registry::new(vec![
        entry(0, "db", Role::Database, Kind::Preparing),
        entry(1, "lite", Role::Database, Kind::Serial),
        entry(2, "index", Role::Index, Kind::Redo),
    ])
    .with_retired([entry(3, "old", Role::Index, Kind::Redo)])
}

/// Any bytes as a message between coordinator and participant: what is understood is written as what is understood as the same.
pub fn participant_messages(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let from = input.ratio(1, 2).unwrap_or(true);
    let bytes = input::rest(&mut input);
    if from {
        let Ok(message) = v1::FromParticipantMessage::decode(bytes) else { return };
        match wire::from_participant(message) {
            Ok(message) => {
                let out = wire::from_participant_out(&message).encode_to_vec();
                let back = v1::FromParticipantMessage::decode(&out[..]).map(wire::from_participant).expect("it was just encoded");
                let back = back.expect("what was understood is understood again");
                assert_eq!(wire::from_participant_out(&back).encode_to_vec(), out);
            }
            Err(sentence) => field_named(&sentence),
        }
    } else {
        let Ok(message) = v1::ToParticipantMessage::decode(bytes) else { return };
        match wire::to_participant(message) {
            Ok(message) => {
                let out = wire::to_participant_out(&message).encode_to_vec();
                let back = v1::ToParticipantMessage::decode(&out[..]).map(wire::to_participant).expect("it was just encoded");
                let back = back.expect("what was understood is understood again");
                assert_eq!(wire::to_participant_out(&back).encode_to_vec(), out);
            }
            Err(sentence) => field_named(&sentence),
        }
    }
}

fn field_named(sentence: &str) {
    input::shown(sentence);
    assert!(sentence.starts_with(|first: char| first.is_ascii_lowercase()), "it does not begin with a field: {sentence}");
}
