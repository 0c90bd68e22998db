//! What clients send to stores: statements, documents, queries.

use crate::input::{self, below, one};
use crate::log_folder::scratch;
use arbitrary::Unstructured;
use bytes::Bytes;
use lockstep_core::{
    Ballot, CoordId, Csn, Decided, Decider, Epoch, Operation, Owner, ParticipantId, StatementResult, Txid, Value, Vote, Work,
};
use lockstep_participants::postgres::{self, text_form};
use lockstep_participants::sqlite::{Sqlite, SqliteOptions};
use lockstep_participants::tantivy::{Tantivy, TantivyOptions};
use lockstep_participants::{ReadLimits, ResourceManager, StoreError, opensearch};
use std::cell::RefCell;
use std::time::Duration;
use tempfile::TempDir;
use tokio_postgres::types::Type;

const OWNER: Owner = Owner { coord_id: CoordId(7), epoch: Epoch(1), incarnation: 11 };
const ME: ParticipantId = ParticipantId(1);
const SCHEMA: &str =
    "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL, price REAL CHECK (price >= 0), stock INTEGER DEFAULT 0);
    CREATE TABLE note (key TEXT, part INTEGER, body BLOB, item INTEGER REFERENCES item (id), PRIMARY KEY (key, part)) WITHOUT ROWID;
    CREATE UNIQUE INDEX by_name ON item (name);
    CREATE VIEW cheap AS SELECT * FROM item WHERE price < 10;
    INSERT INTO item (id, name, price) VALUES (1, 'a', 1.5), (2, 'b', 20), (3, 'c', NULL);
    INSERT INTO note VALUES ('x', 1, x'00ff', 1), ('x', 2, 'text', 2);";

/// Any statements, a zero byte between two, as one transaction at SQLite; their parameters are drawn from them. Whatever they are, the store
/// stays well; what it says Yes to is applied; and its redo does the same at a copy.
pub fn statements(data: &[u8]) {
    let text = String::from_utf8_lossy(&data[..data.len().min(2048)]);
    let operations: Vec<Operation> = text.split('\0').take(4).map(statement).collect();
    let mut pair = PAIR.take().unwrap_or_else(Pair::new);
    let ballot = prepare(&mut pair.first, operations.clone(), pair.n);
    let (_, vote) = &ballot.votes[0];
    match vote {
        Vote::InGroup(_) => {
            let decided = decided(pair.n, ballot.group_redo.clone());
            for store in [&mut pair.first, &mut pair.second] {
                let committed = store.commit(std::slice::from_ref(&decided), decided.csn).expect("phase two cannot be refused");
                assert!(committed.stuck.is_empty(), "{:?}", committed.stuck);
            }
            assert_eq!(content(&pair.first), content(&pair.second), "the redo does something else than the statements");
            // A changed store is not used again: an input shows the same wherever it comes.
            return;
        }
        Vote::ReadOnly(_) => {}
        Vote::No(refusal) => assert!(!refusal.message.is_empty()),
        other => panic!("a serial executor voted {other:?}"),
    }
    pair.first.abort(&[txid(pair.n)]).expect("a rollback");
    assert_eq!(content(&pair.first), pair.content, "what was not decided has changed something");
    if let Operation::Statement { sql, parameters, .. } = &operations[0] {
        match pair.first.reader().query(sql, parameters, limits()) {
            Ok(_) | Err(StoreError::Invalid(_) | StoreError::Timeout(_)) => {}
            Err(other) => panic!("a query broke the store: {other}"),
        }
        assert_eq!(content(&pair.first), pair.content, "a query has changed something");
    }
    pair.n += 1;
    // Now and then anew, so that nothing piles up.
    if pair.n < 2_000 {
        PAIR.set(Some(pair));
    }
}

/// A store, and a copy that only follows.
struct Pair {
    first: Sqlite,
    second: Sqlite,
    content: Vec<StatementResult>,
    n: u64,
    _folder: TempDir,
}

thread_local! {
    static PAIR: RefCell<Option<Pair>> = const { RefCell::new(None) };
    static INDEX: RefCell<Option<Index>> = const { RefCell::new(None) };
}

impl Pair {
    fn new() -> Pair {
        let folder = scratch();
        let open = |name: &str| {
            let mut options = SqliteOptions::new(folder.path().join(name));
            options.limits.timeout = Duration::from_millis(500);
            options.limits.value_bytes = 1 << 20;
            (options.limits.rows, options.limits.readers) = (500, 1);
            let mut store = Sqlite::open(options).expect("a new file");
            store.recover(OWNER, ME).expect("a new file");
            store.migrate(SCHEMA).expect("a good schema");
            store
        };
        let (first, second) = (open("first.db"), open("second.db"));
        let content = content(&first);
        Pair { first, second, content, n: 1, _folder: folder }
    }
}

fn content(store: &Sqlite) -> Vec<StatementResult> {
    let reader = store.reader();
    let all = |sql| reader.query(sql, &[], limits()).expect("a good query");
    // As text: NaN does not occur, and -0.0 has to be seen.
    vec![
        all("SELECT id, quote(name), quote(price), quote(stock) FROM item ORDER BY id"),
        all("SELECT quote(key), quote(part), quote(body), quote(item) FROM note ORDER BY key, part"),
    ]
}

fn prepare(store: &mut Sqlite, operations: Vec<Operation>, n: u64) -> Ballot {
    let work = Work { txid: txid(n), operations: operations.into(), timeout: 500_000, trace: None, shares: false };
    let ballot = store.prepare(&[work]).unwrap_or_else(|error| panic!("a client broke the store: {error}"));
    assert_eq!(ballot.votes.len(), 1);
    ballot
}

fn statement(text: &str) -> Operation {
    let parameter = |(at, _): (usize, char)| match text.len().wrapping_add(at) % 7 {
        0 => Value::Null,
        1 => Value::Integer(at as i64 - 3),
        2 => Value::Real(f64::NAN),
        3 => Value::Text(text.chars().take(at).collect()),
        4 => Value::Blob(Bytes::from_static(b"\x00\xff")),
        5 => Value::Boolean(true),
        _ => Value::Integer(i64::MIN),
    };
    let parameters = text.char_indices().filter(|(_, c)| *c == '?').take(4).map(parameter).collect();
    let expect_rows = text.ends_with('!').then_some(1);
    Operation::Statement { sql: text.trim_end_matches('!').into(), parameters, expect_rows }
}

fn txid(n: u64) -> Txid {
    Txid { epoch: Epoch(1), n, decider: Decider::Log }
}

fn decided(n: u64, redo: Bytes) -> Decided {
    Decided { csn: Csn::new(Epoch(1), n), txids: vec![txid(n)], redo, trace: None }
}

fn limits() -> ReadLimits {
    ReadLimits { rows: 1_000, offset: 0, timeout: Duration::from_secs(2) }
}

const DECLARATION: &str = r#"{"fields": {"title": {"type": "text", "required": true}, "tag": {"type": "keyword"}, "n": {"type": "integer"},
    "x": {"type": "real"}, "ok": {"type": "boolean"}, "at": {"type": "date"}, "more": {"type": "json"}}}"#;

/// A Tantivy index under a declaration, or a dynamic one.
struct Index {
    stores: [Tantivy; 2],
    n: u64,
    _folder: TempDir,
}

/// Any text as a document, its key and a query, a zero byte between them, at Tantivy: what is said Yes to is applied and found by its key.
pub fn documents(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(3, '\0');
    let (document, key, query) = (parts.next().unwrap_or_default(), parts.next().unwrap_or("k"), parts.next().unwrap_or("*"));
    let mut index = INDEX.take().unwrap_or_else(|| {
        let folder = scratch();
        let stores = [None, Some(DECLARATION)].map(|script| {
            let mut options = TantivyOptions::new(folder.path().join(script.map_or("dynamic", |_| "declared")));
            (options.commit_every, options.heap) = (Duration::ZERO, 15_000_000);
            let mut store = Tantivy::open(options).expect("a new index");
            store.recover(OWNER, ME).expect("a new index");
            if let Some(script) = script {
                store.migrate(script).expect("a good declaration");
            }
            store
        });
        Index { stores, n: 0, _folder: folder }
    });
    index.n += 1;
    let n = index.n;
    for store in &mut index.stores {
        let put = Operation::Put { key: key.into(), document: document.into(), condition: None };
        let beside = store.validator().and_then(|validator| validator.validate(std::slice::from_ref(&put)));
        let work = Work { txid: txid(n), operations: [put].into(), timeout: 1_000_000, trace: None, shares: false };
        let ballot = store.prepare(&[work]).unwrap_or_else(|error| panic!("a client broke the store: {error}"));
        let vote = ballot.votes.into_iter().next().expect("one vote").1;
        assert!(beside.is_none_or(|beside| beside == vote), "two votes on one document");
        match vote {
            Vote::Redo(redo, _) => {
                let decided = decided(n, redo);
                let committed = store.commit(std::slice::from_ref(&decided), decided.csn).expect("phase two cannot be refused");
                assert!(committed.stuck.is_empty(), "{:?}", committed.stuck);
                store.tend(decided.csn).expect("a commit of the index");
                let found = store.reader().get(key).expect("a read").expect("it was put");
                assert_eq!((found.csn, &*found.document), (decided.csn, document));
            }
            Vote::No(refusal) => input::shown(&refusal.message),
            other => panic!("an index voted {other:?}"),
        }
        match store.reader().search(query, ReadLimits { rows: 10, offset: 0, timeout: Duration::from_secs(2) }) {
            Ok(found) => assert!(found.documents.len() <= 10),
            Err(StoreError::Invalid(sentence) | StoreError::Timeout(sentence)) => assert!(!sentence.is_empty()),
            Err(other) => panic!("a search broke the store: {other}"),
        }
    }
    if n < 500 {
        INDEX.set(Some(index));
    }
}

/// Any text as a mapping, its settings and a document, a zero byte between them, before OpenSearch is asked.
pub fn opensearch_documents(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(3, '\0');
    let (mapping, settings) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let document = parts.next().unwrap_or_default();
    let (Ok(mapping), settings) = (serde_json::from_str(mapping), serde_json::from_str(settings).unwrap_or_default()) else { return };
    if let Err(sentence) = opensearch::judge(&mapping, &settings, document) {
        input::shown(&sentence);
    }
}

/// Any bytes as a value of PostgreSQL in its binary form: its text, from which the value can be read again where Rust has such a value.
pub fn postgres_texts(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let ty = match below(&mut input, 4) {
        0 => Type::from_oid(input::number(&mut input) as u32).unwrap_or(Type::RECORD),
        _ => one(&mut input, &TYPES).clone(),
    };
    let raw = input::rest(&mut input);
    match text_form::of(&ty, raw) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(text) => {
            let starts = |of: &[u8]| raw.starts_with(of);
            let same = match ty {
                Type::INT2 => text.parse().is_ok_and(|value: i16| starts(&value.to_be_bytes())),
                Type::INT4 => text.parse().is_ok_and(|value: i32| starts(&value.to_be_bytes())),
                Type::INT8 => text.parse().is_ok_and(|value: i64| starts(&value.to_be_bytes())),
                Type::FLOAT4 => text.parse().is_ok_and(|value: f32| value.is_nan() || starts(&value.to_be_bytes())),
                Type::FLOAT8 => text.parse().is_ok_and(|value: f64| value.is_nan() || starts(&value.to_be_bytes())),
                Type::TEXT => text.as_bytes() == raw,
                Type::BYTEA => text.len() == 2 + 2 * raw.len(),
                Type::UUID => text.len() == 36 && text.chars().all(|c| c == '-' || c.is_ascii_hexdigit()),
                _ => true,
            };
            assert!(same, "{ty} {raw:?} became {text}");
        }
    }
}

/// Any text as a client's statement for PostgreSQL, before the server is asked: it is let through, or refused in a sentence that can be shown;
/// the same every time, and whatever comments, blanks and parentheses stand before it.
pub fn postgres_statements(data: &[u8]) {
    use postgres::statement::{check, only_returns, writes};
    let text = String::from_utf8_lossy(data);
    let text: &str = &text;
    let judged = |sql: &str, limit: usize| check(sql, limit).map_err(|failure| failure.refusal());
    let judgement = judged(text, usize::MAX);
    assert_eq!(judged(text, usize::MAX), judgement, "a statement is judged one way");
    for before in ["\n\t", "((", ";", "-- a\n", "/* a /* b */ c */", "\u{feff}"] {
        assert_eq!(judged(&format!("{before}{text}"), usize::MAX), judgement, "{before:?} makes it another statement");
    }
    if let Err(refusal) = &judgement {
        input::shown(&refusal.message);
    }
    if !text.is_empty() {
        let refusal = judged(text, text.len() - 1).expect_err("it is longer than it may be");
        input::shown(&refusal.message);
    }
    let (returned, written) = (only_returns(text), writes(text));
    assert!(!(returned && written), "what writes does not only return rows");
    assert!(judgement.is_ok() || !(returned || written) || text.contains('\0'), "a statement of use is refused: {judgement:?}");
}

const TYPES: [Type; 34] = [
    Type::BOOL,
    Type::INT2,
    Type::INT4,
    Type::INT8,
    Type::FLOAT4,
    Type::FLOAT8,
    Type::BYTEA,
    Type::TEXT,
    Type::JSONB,
    Type::UUID,
    Type::NUMERIC,
    Type::NUMERIC,
    Type::NUMERIC,
    Type::DATE,
    Type::TIME,
    Type::TIMETZ,
    Type::TIMESTAMP,
    Type::TIMESTAMPTZ,
    Type::INTERVAL,
    Type::INET,
    Type::CIDR,
    Type::MACADDR,
    Type::BIT,
    Type::VARBIT,
    Type::PG_LSN,
    Type::RECORD,
    Type::RECORD,
    Type::INT4_ARRAY,
    Type::TEXT_ARRAY,
    Type::NUMERIC_ARRAY,
    Type::INT4_RANGE,
    Type::TS_RANGE,
    Type::NUM_RANGE,
    Type::RECORD_ARRAY,
];
