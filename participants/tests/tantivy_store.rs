//! The Tantivy participant: what it refuses, what it applies, what it keeps.

use lockstep_core::{
    Ballot, Condition, CoordId, Csn, Decided, Decider, Epoch, Kind, Operation, Owner, ParticipantId, Progress, RefusalKind, Txid, Vote,
    Work,
};
use lockstep_participants::tantivy::{Tantivy, TantivyOptions};
use lockstep_participants::{ReadLimits, ResourceManager, SearchResult, StoreError};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const OWNER: Owner = Owner { coord_id: CoordId(0xfeed), epoch: Epoch(3), incarnation: u64::MAX };

/// A store and its folder, with a commit due at every tend.
struct Fixture {
    folder: TempDir,
    store: Option<Tantivy>,
    next: u64,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let mut fixture = Fixture { folder, store: None, next: 0 };
        fixture.crash();
        fixture
    }

    fn with(script: &str) -> Fixture {
        let mut fixture = Fixture::new();
        fixture.store().migrate(script).unwrap();
        fixture
    }

    fn store(&mut self) -> &mut Tantivy {
        self.store.as_mut().unwrap()
    }

    /// Drops what is in memory and opens what is on disk.
    fn crash(&mut self) -> Progress {
        self.store = None;
        let (store, progress) = open(self.folder.path());
        self.store = Some(store);
        progress
    }

    fn vote(&mut self, operations: Vec<Operation>) -> Vote {
        self.next += 1;
        let work = Work { txid: txid(self.next), operations: operations.into(), timeout: 1_000_000, trace: None, shares: false };
        let Ballot { mut votes, .. } = self.store().prepare(&[work]).unwrap();
        votes.pop().unwrap().1
    }

    fn refusal(&mut self, operation: Operation) -> (RefusalKind, String) {
        match self.vote(vec![operation]) {
            Vote::No(refusal) => (refusal.kind, refusal.message),
            vote => panic!("not refused: {vote:?}"),
        }
    }

    fn decide(&mut self, n: u64, operations: Vec<Operation>) -> Decided {
        match self.vote(operations) {
            Vote::Redo(redo, results) => {
                assert!(results.is_empty());
                Decided { csn: csn(n), txids: vec![txid(self.next)], redo, trace: None }
            }
            vote => panic!("no redo: {vote:?}"),
        }
    }

    fn apply(&mut self, decided: &[Decided], closed: u64) -> Progress {
        self.store().commit(decided, csn(closed)).unwrap().progress
    }

    fn tend(&mut self, closed: u64) -> Progress {
        self.store().tend(csn(closed)).unwrap().progress
    }

    fn search(&mut self, query: &str) -> Result<SearchResult, StoreError> {
        self.store().reader().search(query, limits(1_000))
    }

    fn found(&mut self, query: &str) -> Vec<String> {
        let mut keys: Vec<_> = self.search(query).unwrap().documents.into_iter().map(|d| d.key).collect();
        keys.sort();
        keys
    }

    /// All keys with the numbers of their CSNs.
    fn all(&mut self) -> Vec<(String, u64)> {
        let mut all: Vec<_> = self.search("*").unwrap().documents.into_iter().map(|d| (d.key, d.csn.n())).collect();
        all.sort();
        all
    }
}

fn open(folder: &Path) -> (Tantivy, Progress) {
    // A process that another test is about to start holds every lock of this one until it runs its own program.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut store = loop {
        match Tantivy::open(options(folder)) {
            Err(StoreError::Refused(why)) if why.contains("holds its LOCK") && Instant::now() < deadline => std::thread::yield_now(),
            opened => break opened.unwrap(),
        }
    };
    let recovered = store.recover(OWNER, ParticipantId(1)).unwrap();
    assert!(recovered.prepared.is_empty() && recovered.heuristics.is_empty() && recovered.exclusive);
    (store, recovered.progress)
}

fn options(folder: &Path) -> TantivyOptions {
    let mut options = TantivyOptions::new(folder);
    options.commit_every = Duration::ZERO;
    options.heap = 15_000_000;
    options
}

fn limits(rows: usize) -> ReadLimits {
    ReadLimits { rows, offset: 0, timeout: Duration::from_secs(30) }
}

fn csn(n: u64) -> Csn {
    if n == 0 { Csn::ZERO } else { Csn::new(Epoch(3), n) }
}

fn txid(n: u64) -> Txid {
    Txid { epoch: Epoch(3), n, decider: Decider::Log }
}

fn at(applied: u64, durable: u64) -> Progress {
    Progress { applied: csn(applied), durable: csn(durable) }
}

fn put(key: &str, document: &str) -> Operation {
    Operation::Put { key: key.into(), document: document.into(), condition: None }
}

fn delete(key: &str) -> Operation {
    Operation::Delete { key: key.into(), condition: None }
}

fn put_if(key: &str, condition: Condition) -> Operation {
    Operation::Put { key: key.into(), document: "{}".into(), condition: Some(condition) }
}

#[test]
fn a_document_is_found_after_the_commit_and_not_before() {
    let mut t = Fixture::new();
    assert_eq!(t.store().kind(), Kind::Redo);
    let matrix =
        r#"{"title": "The Matrix", "year": 1999, "cast": [{"name": "Keanu Reeves"}], "released": "1999-03-31T00:00:00Z", "good": true}"#;
    let first = t.decide(1, vec![put("m1", matrix), put("m2", r#"{"title":"Heat","year":1995}"#)]);
    let before = t.apply(&[first], 1);
    assert!(before.applied < csn(1) && before.durable == Csn::ZERO, "{before:?}");
    assert!(t.found("matrix").is_empty());
    assert_eq!(t.tend(1), at(1, 1));
    for query in [
        "matrix",
        "title:matrix",
        "title:\"the matrix\"",
        "year:1999",
        "cast.name:reeves",
        "good:true",
        "released:\"1999-03-31T00:00:00Z\"",
        "title: IN [matrix]",
        "_key:m1",
        "-title:heat *",
    ] {
        assert_eq!(t.found(query), ["m1"], "{query}");
    }
    let document = t.store().reader().get("m1").unwrap().unwrap();
    assert_eq!((document.document.as_str(), document.csn), (matrix, csn(1)));
    assert!(t.store().reader().get("m3").unwrap().is_none());

    // A put replaces the whole document, a delete removes it.
    let decided = [t.decide(2, vec![put("m1", r#"{"title":"Speed"}"#)]), t.decide(3, vec![delete("m2")])];
    t.apply(&decided, 3);
    t.tend(3);
    assert_eq!(t.all(), [("m1".to_owned(), 2)]);
    assert!(t.found("matrix").is_empty());
}

#[test]
fn searches_count_page_and_score() {
    let mut t = Fixture::new();
    let decided: Vec<_> = (1..=25)
        .map(|n| t.decide(n, vec![put(&format!("k{n:02}"), &format!(r#"{{"text":"word{}"}}"#, " word".repeat(n as usize)))]))
        .collect();
    t.apply(&decided, 25);
    t.tend(25);
    let reader = t.store().reader();
    let page = |offset, rows| reader.search("word", ReadLimits { rows, offset, timeout: Duration::from_secs(30) }).unwrap();
    let (first, second) = (page(0, 20), page(20, 20));
    assert_eq!((first.total, first.documents.len(), second.total, second.documents.len()), (25, 20, 25, 5));
    assert!(first.documents.is_sorted_by(|a, b| a.score >= b.score) && first.documents[0].score > 0.0);
    assert_eq!((page(0, 0).total, page(0, 0).documents.len()), (25, 0));
    let too_far = reader.search("word", ReadLimits { rows: 9_999, offset: 2, timeout: Duration::from_secs(1) });
    assert_eq!(too_far.unwrap_err().to_string(), "limit 9999 plus offset 2 is more than 10000");
    for deep in ["(", "NOT ", "a:(", "NOT (", "-("] {
        let deep = reader.search(&deep.repeat(100_000), ReadLimits { rows: 1, offset: 0, timeout: Duration::from_secs(30) });
        assert!(matches!(deep, Err(StoreError::Invalid(why)) if why.contains("nested deeper than 50")));
    }
    let late = reader.search("word", ReadLimits { rows: 1, offset: 0, timeout: Duration::ZERO });
    assert!(matches!(late, Err(StoreError::Timeout(_))), "{late:?}");
}

#[test]
fn queries_that_cannot_be_searched_are_refused_with_a_sentence() {
    let mut dynamic = Fixture::new();
    let mut declared = Fixture::with(r#"{"fields": {"title": {"type": "text"}, "year": {"type": "integer"}}}"#);
    for (is_declared, query, part) in [
        (false, "title:", "expected word at position 6"),
        (false, "year:[1990 TO 1999]", "a range or existence of `year` can be searched only if the field is declared"),
        (false, "a: {\"a\0b\": 1}", "NUL"),
        (false, "\"a\0b\":word", "NUL"),
        (true, "a\0b:1", "NUL"),
        (false, "-matrix", "Only excluding terms given"),
        (true, "director:mann", "'director'"),
        (true, "year:many", "Expected a valid integer"),
        (true, "title:*", "title"),
    ] {
        let t = if is_declared { &mut declared } else { &mut dynamic };
        match t.search(query) {
            Err(StoreError::Invalid(sentence)) => assert!(sentence.contains(part) && sentence.contains("the query"), "{query}: {sentence}"),
            other => panic!("{query}: {other:?}"),
        }
    }
    let sql = dynamic.store().reader().query("SELECT 1", &[], limits(1));
    assert!(matches!(sql, Err(StoreError::Invalid(_))));
}

#[test]
fn what_would_not_be_found_is_refused_by_name() {
    let (long, key) = ("x".repeat(65_531), "k".repeat(513));
    let nested = format!("{}1{}", r#"{"a":"#.repeat(33), "}".repeat(33));
    let deep_array = format!(r#"{{"a":{}1{}}}"#, "[".repeat(32), "]".repeat(32));
    let cases: Vec<(Operation, &str)> = vec![
        (put("", "{}"), "put of ``: the key is empty; it must have 1 to 512 bytes"),
        (put(&key, "{}"), "the key has 513 bytes; it must have 1 to 512"),
        (delete(&key), "the key has 513 bytes; it must have 1 to 512"),
        (put("k", "[1]"), "put of `k`: the document must be a JSON object, not an array"),
        (put("k", "7"), "the document must be a JSON object, not the number 7"),
        (put("k", "{\"a\":"), "the document is no JSON: EOF"),
        (put("k", "{} {}"), "the document is no JSON: trailing characters"),
        (put("k", &format!(r#"{{"a":"{}"}}"#, "x ".repeat(600_000))), "bytes; the limit is 1048576"),
        (put("k", &format!(r#"{{"a":"{long}"}}"#)), "the field `a` holds a word of 65531 bytes; the limit is 65530"),
        (put("k", &format!(r#"{{"a":{{"b":["fine {long} fine"]}}}}"#)), "the field `b` holds a word of 65531 bytes; the limit is 65530"),
        // U+023A grows from two bytes to three in lower case.
        (put("k", &format!(r#"{{"a":"{}"}}"#, "Ⱥ".repeat(21_844))), "the field `a` holds a word of 65532 bytes; the limit is 65530"),
        (put("k", &nested), "the field `a` is nested deeper than the limit of 32"),
        (put("k", &deep_array), "the field `a` is nested deeper than the limit of 32"),
        (put("k", &format!(r#"{{"{}":1}}"#, "n".repeat(513))), "has 513 bytes; the limit is 512"),
        (put("k", r#"{"a\u0000b":1}"#), "the field name `a\\0b` contains a NUL character"),
        (
            Operation::Statement { sql: "SELECT 1".into(), parameters: vec![], expect_rows: None },
            "an index takes no SQL: put and delete whole documents",
        ),
    ];
    let mut t = Fixture::new();
    for (operation, part) in cases {
        let (kind, sentence) = t.refusal(operation);
        assert_eq!(kind, RefusalKind::Invalid);
        assert!(sentence.contains(part), "{sentence}\nlacks: {part}");
    }
    let twice = t.vote(vec![put("k", "{}"), delete("k")]);
    assert!(matches!(twice, Vote::No(r) if r.message == "the document `k` is written twice in one transaction"));
    assert_eq!(t.vote(vec![]), Vote::ReadOnly([].into()));

    // What is just within the limits is taken, and found.
    let limit = "y".repeat(65_530);
    let nested = format!("{}1{}", r#"{"a":"#.repeat(32), "}".repeat(32));
    let decided = t
        .decide(1, vec![put(&"k".repeat(512), &format!(r#"{{"a":"{limit}"}}"#)), put("deep", &nested), put("null", r#"{"a":null,"":""}"#)]);
    t.apply(&[decided], 1);
    t.tend(1);
    assert_eq!(t.all().len(), 3);
    assert_eq!(t.found(&limit), ["k".repeat(512)]);
}

#[test]
fn a_declaration_is_held() {
    let script = r#"{"fields": {"title": {"type": "text", "required": true}, "code": {"type": "keyword"}, "year": {"type": "integer"},
        "score": {"type": "real"}, "good": {"type": "boolean"}, "at": {"type": "date"}, "more": {"type": "json"}}}"#;
    let mut t = Fixture::with(script);
    let long = "x".repeat(65_531);
    for (document, part) in [
        (r#"{}"#.to_owned(), "the field `title` is required"),
        (r#"{"title":null}"#.to_owned(), "the field `title` is required"),
        (r#"{"title":[null]}"#.to_owned(), "the field `title` is required"),
        (r#"{"title":"a","director":"b"}"#.to_owned(), "the field `director` is not declared"),
        (r#"{"title":7}"#.to_owned(), "the field `title` must be text, not the number 7"),
        (r#"{"title":"a","code":true}"#.to_owned(), "the field `code` must be a keyword (text), not the boolean true"),
        (r#"{"title":"a","year":"1999"}"#.to_owned(), "the field `year` must be an integer of 64 bits, not the text \"1999\""),
        (r#"{"title":"a","year":1.5}"#.to_owned(), "the field `year` must be an integer of 64 bits, not the number 1.5"),
        (r#"{"title":"a","year":9223372036854775808}"#.to_owned(), "the field `year` must be an integer of 64 bits"),
        (r#"{"title":"a","score":"7"}"#.to_owned(), "the field `score` must be a real number, not the text"),
        (r#"{"title":"a","good":1}"#.to_owned(), "the field `good` must be a boolean, not the number 1"),
        (
            r#"{"title":"a","at":"yesterday"}"#.to_owned(),
            "the field `at` must be a date (RFC 3339, years 1677 to 2262), not the text \"yesterday\"",
        ),
        (r#"{"title":"a","at":"9999-01-01T00:00:00Z"}"#.to_owned(), "the field `at` must be a date"),
        (r#"{"title":"a","more":"x"}"#.to_owned(), "the field `more` must be a JSON object, not the text \"x\""),
        (r#"{"title":["a",["b"]]}"#.to_owned(), "the field `title` must be text, not an array"),
        (format!(r#"{{"title":"a","code":"{long}"}}"#), "the field `code` holds a word of 65531 bytes; the limit is 65530"),
        (format!(r#"{{"title":"{long}"}}"#), "the field `title` holds a word of 65531 bytes; the limit is 65530"),
        (format!(r#"{{"title":"a","more":{{"x":"{long}"}}}}"#), "the field `x` holds a word of 65531 bytes; the limit is 65530"),
    ] {
        let (kind, sentence) = t.refusal(put("k", &document));
        assert_eq!(kind, RefusalKind::Invalid);
        assert!(sentence.starts_with("put of `k`: ") && sentence.contains(part), "{sentence}\nlacks: {part}");
    }
    let film = r#"{"title":["The Matrix","Matrix"],"code":"tt-0133093","year":1999,"score":8,"good":true,"at":"1999-03-31T12:00:00+02:00","more":{"cast":["Keanu"]}}"#;
    let decided = t.decide(1, vec![put("m1", film), put("m2", r#"{"title":"Heat","year":[1995,1996],"score":null}"#)]);
    t.apply(&[decided], 1);
    t.tend(1);
    for query in [
        "matrix",
        "code:\"tt-0133093\"",
        "year:[1997 TO 2000]",
        "score:[7.5 TO *]",
        "good:true",
        "at:[1999-03-31T00:00:00Z TO 1999-04-01T00:00:00Z]",
        "more.cast:keanu",
    ] {
        assert_eq!(t.found(query), ["m1"], "{query}");
    }
    assert_eq!(t.found("year:1996"), ["m2"]);
    // It holds after a crash too.
    t.crash();
    assert!(t.refusal(put("k", "{}")).1.contains("the field `title` is required"));
}

#[test]
fn a_migration_fits_every_document_or_changes_nothing() {
    let mut t = Fixture::new();
    for (script, part) in [
        ("{}", "missing field `fields`"),
        (r#"{"fields": {"a": {"type": "string"}}}"#, "unknown variant `string`"),
        (r#"{"fields": {"a": {"type": "text", "stored": true}}}"#, "unknown field `stored`"),
        (r#"{"fields": {"_key": {"type": "text"}}}"#, "the field name `_key` must be"),
        (r#"{"fields": {}}"#, "the schema has 0 fields; it must have 1 to 1000"),
    ] {
        match t.store().migrate(script) {
            Err(StoreError::Invalid(sentence)) => assert!(sentence.contains(part), "{sentence}\nlacks: {part}"),
            other => panic!("{script}: {other:?}"),
        }
    }
    let decided =
        [t.decide(1, vec![put("a", r#"{"year":1999}"#)]), t.decide(2, vec![put("b", r#"{"year":2000}"#)]), t.decide(3, vec![delete("c")])];
    t.apply(&decided, 2);
    let misfit = t.store().migrate(r#"{"fields": {"year": {"type": "text"}}}"#).unwrap_err();
    assert!(
        misfit.to_string().contains("the schema does not fit the document `")
            && misfit.to_string().contains("the field `year` must be text"),
        "{misfit}"
    );
    assert_eq!(t.all(), [("a".to_owned(), 1), ("b".to_owned(), 2)], "what came before is committed");

    let script = r#"{"fields": {"year": {"type": "integer", "required": true}, "title": {"type": "text"}}}"#;
    let reader = t.store().reader();
    assert_eq!(t.store().migrate(script).unwrap(), "the schema is set; 2 documents were indexed anew");
    assert_eq!(t.store().migrate(script).unwrap(), "the schema is as it was: nothing to do");
    assert_eq!(reader.search("year:[2000 TO *]", limits(10)).unwrap().total, 1, "a reader from before sees the new index");
    assert_eq!(t.crash(), at(2, 2), "the watermark came along");
    assert_eq!(t.all(), [("a".to_owned(), 1), ("b".to_owned(), 2)]);
    assert_eq!(t.found("year:[2000 TO *]"), ["b"]);
    // And so did the delete above it.
    let late = decided[0].clone();
    let redo = Decided { csn: csn(2), ..late };
    t.apply(&[redo], 2);
    assert_eq!(t.all(), [("a".to_owned(), 1), ("b".to_owned(), 2)]);
    let folders =
        std::fs::read_dir(t.folder.path()).unwrap().filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("index-"));
    assert_eq!(folders.count(), 1);
}

#[test]
fn a_migration_cut_off_before_the_switch_never_happened() {
    let mut t = Fixture::new();
    let decided = t.decide(1, vec![put("a", "{}")]);
    t.apply(&[decided], 1);
    t.tend(1);
    t.store = None;
    // Built beside, not switched to.
    copy(&t.folder.path().join("index-1"), &t.folder.path().join("index-2"));
    t.crash();
    assert_eq!(t.all(), [("a".to_owned(), 1)]);
    assert!(!t.folder.path().join("index-2").exists());
}

#[test]
fn conditions() {
    let mut t = Fixture::new();
    let decided = [t.decide(1, vec![put("old", "{}"), put("gone", "{}")]), t.decide(2, vec![delete("gone")])];
    t.apply(&decided, 2);
    t.tend(2);
    // Applied, but neither durable nor readable yet.
    let decided = [t.decide(3, vec![put("new", "{}")]), t.decide(4, vec![put("going", "{}")]), t.decide(5, vec![delete("going")])];
    t.apply(&decided, 2);
    let (yes, c) = ("", |n| Condition::Csn(csn(n)));
    for (key, condition, expected) in [
        ("old", c(1), yes),
        ("old", c(2), "expected the document with CSN 3.2, found it with CSN 3.1"),
        ("old", Condition::Absent, "expected no such document, found it with CSN 3.1"),
        ("gone", Condition::Absent, yes),
        ("gone", c(2), "expected the document with CSN 3.2, found no such document"),
        ("never", Condition::Absent, yes),
        ("never", c(1), "expected the document with CSN 3.1, found no such document"),
        ("new", c(3), yes),
        ("new", c(1), "expected the document with CSN 3.1, found it with CSN 3.3"),
        ("new", Condition::Absent, "expected no such document, found it with CSN 3.3"),
        ("going", Condition::Absent, yes),
        ("going", c(4), "expected the document with CSN 3.4, found no such document"),
    ] {
        let delete = Operation::Delete { key: key.into(), condition: Some(condition) };
        for (verb, operation) in [("put", put_if(key, condition)), ("delete", delete)] {
            match t.vote(vec![operation]) {
                Vote::Redo(..) => assert_eq!(expected, yes, "{key} {condition:?}"),
                Vote::No(refusal) => {
                    assert_eq!(refusal.kind, RefusalKind::Condition);
                    assert_eq!(refusal.message, format!("{verb} of `{key}`: {expected}"));
                }
                vote => panic!("{vote:?}"),
            }
        }
    }
}

#[test]
fn the_watermark_waits_for_what_is_open() {
    let mut t = Fixture::new();
    let decided: Vec<_> = (1..=4).map(|n| t.decide(n, vec![put(&format!("k{n}"), "{}")])).collect();
    // 2 is late, so nothing above 1 is closed.
    let before = t.apply(&[decided[0].clone(), decided[2].clone()], 1);
    assert!(before.applied < csn(1) && before.durable == Csn::ZERO, "{before:?}");
    assert_eq!(t.tend(1), at(1, 1));
    assert_eq!(t.crash(), at(1, 1));
    assert_eq!(t.all(), [("k1".to_owned(), 1), ("k3".to_owned(), 3)], "applied above the watermark, and found again");
    t.apply(&[decided[2].clone(), decided[1].clone()], 3);
    assert_eq!(t.tend(3), at(3, 3));
    // Nothing waits: what is closed counts as applied, and needs no commit of its own to be so.
    assert_eq!(t.tend(7), at(7, 3));
    assert_eq!(t.crash(), at(3, 3));
    // The log forgets by the durable watermark alone, so it rises even if all that is left to write is itself.
    t.apply(&[Decided { csn: csn(9), ..decided[3].clone() }], 8);
    assert_eq!(t.tend(8), at(8, 8));
    assert_eq!(t.tend(9), at(9, 9));
    assert_eq!(t.store().tend(csn(9)).unwrap().next, None);
}

#[test]
fn a_commit_is_due_once_an_interval() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Tantivy::open(TantivyOptions { commit_every: Duration::from_secs(3_600), ..options(folder.path()) }).unwrap();
    store.recover(OWNER, ParticipantId(1)).unwrap();
    let mut t = Fixture { folder, store: Some(store), next: 0 };
    assert_eq!(t.store().tend(csn(0)).unwrap().next, None, "nothing waits");
    let decided = [t.decide(1, vec![put("a", "{}")]), t.decide(2, vec![put("b", "{}")])];
    t.apply(&decided[..1], 1);
    assert_eq!(t.tend(1), at(1, 1), "the first one need not wait");
    t.apply(&decided[1..], 2);
    let tended = t.store().tend(csn(2)).unwrap();
    assert_eq!(tended.progress, at(1, 1));
    assert!(tended.next.is_some(), "the second one does, and says until when");
    assert_eq!(t.all().len(), 1);

    t.store().hurry();
    assert_eq!(t.tend(2), at(2, 2), "unless somebody waits for it");
    let third = t.decide(3, vec![put("c", "{}")]);
    t.apply(&[third], 3);
    assert_eq!(t.tend(3), at(2, 2), "once");
}

#[test]
fn order_on_a_key_is_csn_order_in_whichever_order_they_come() {
    let mut t = Fixture::new();
    let decided: Vec<_> = [
        vec![put("k", r#"{"n":1}"#)],
        vec![delete("k")],
        vec![put("k", r#"{"n":3}"#), put("l", "{}")],
        vec![delete("k")],
        vec![put("l", "{}")],
    ]
    .into_iter()
    .zip(1..)
    .map(|(operations, n)| t.decide(n, operations))
    .collect();
    let expected = [
        vec![("k".to_owned(), 1)],
        vec![],
        vec![("k".to_owned(), 3), ("l".to_owned(), 3)],
        vec![("l".to_owned(), 3)],
        vec![("l".to_owned(), 5)],
    ];
    for upto in 1..=5 {
        for crash in [None, Some(1), Some(2)] {
            for (order, commit_each) in permutations(upto).into_iter().flat_map(|order| [(order.clone(), true), (order, false)]) {
                // A commit at each step costs; the permutations of five are sampled.
                if upto == 5 && (order[0] != 4 || crash != Some(2) || !commit_each) || upto == 4 && commit_each != crash.is_some() {
                    continue;
                }
                let mut t = Fixture::new();
                for (step, i) in order.iter().enumerate() {
                    t.apply(&[decided[*i].clone()], 0);
                    if commit_each {
                        t.tend(0);
                    }
                    if crash == Some(step) {
                        t.crash();
                        let again: Vec<_> = order[..=step].iter().map(|i| decided[*i].clone()).collect();
                        t.apply(&again, 0);
                    }
                }
                t.tend(upto as u64);
                assert_eq!(t.all(), expected[upto - 1], "{order:?}, crash after {crash:?}, commit at each: {commit_each}");
            }
        }
    }
}

#[test]
fn a_delete_is_remembered_until_the_watermark_has_passed_it() {
    let mut t = Fixture::new();
    let decided = [t.decide(1, vec![put("k", r#"{"late":1}"#)]), t.decide(2, vec![delete("k")])];
    t.apply(&decided[1..], 0);
    assert_eq!(t.tend(0), at(0, 0));
    // The delete is committed and the log need not repeat it first.
    t.crash();
    t.apply(&decided[..1], 0);
    t.tend(0);
    assert!(t.all().is_empty(), "a late put does not bring the document back");
    assert_eq!(t.tend(2), at(2, 2));
    t.apply(&decided[..1], 2);
    t.tend(2);
    assert!(t.all().is_empty(), "nor does a repeat from below the watermark");
}

#[test]
fn many_transactions_go_into_one_commit() {
    let mut t = Fixture::new();
    let decided: Vec<_> = (1..=5_000).map(|n| t.decide(n, vec![put(&format!("k{n}"), &format!(r#"{{"n":{n}}}"#))])).collect();
    for batch in decided.chunks(100) {
        t.apply(batch, batch.last().unwrap().csn.n());
    }
    assert_eq!(t.crash(), at(0, 0), "nothing of it was durable");
    assert!(t.all().is_empty());
    let before = opstamp(t.folder.path());
    t.apply(&decided, 5_000);
    assert_eq!(t.tend(5_000), at(5_000, 5_000));
    assert!(opstamp(t.folder.path()) > before);
    assert_eq!(t.search("*").unwrap().total, 5_000);
    // A repeat of it all changes nothing and makes nothing due.
    let after = opstamp(t.folder.path());
    t.apply(&decided, 5_000);
    assert_eq!(t.tend(5_000), at(5_000, 5_000));
    assert_eq!(opstamp(t.folder.path()), after);
}

#[test]
fn a_copy_taken_at_any_moment_opens_and_takes_the_replay() {
    let mut t = Fixture::new();
    let decided: Vec<_> = (1..=300)
        .map(|n| t.decide(n, vec![if n % 7 == 0 { delete(&format!("k{}", n % 40)) } else { put(&format!("k{}", n % 40), "{}") }]))
        .collect();
    let mut copies = Vec::new();
    for (i, batch) in decided.chunks(30).enumerate() {
        let last = batch.last().unwrap().csn.n();
        t.apply(batch, last);
        copies.push(tempfile::tempdir().unwrap());
        copy(t.folder.path(), copies.last().unwrap().path());
        if i % 3 == 2 {
            t.tend(last);
        }
    }
    t.tend(300);
    let expected = t.all();
    for copied in copies {
        let mut t = Fixture { folder: copied, store: None, next: 0 };
        let durable = t.crash().durable;
        let replay: Vec<_> = decided.iter().filter(|d| d.csn > durable).cloned().collect();
        t.apply(&replay, 300);
        assert_eq!(t.tend(300), at(300, 300));
        assert_eq!(t.all(), expected);
    }
}

#[test]
fn a_redo_that_cannot_be_read_is_stuck_and_holds_the_watermark() {
    let mut t = Fixture::new();
    let good = t.decide(3, vec![put("a", "{}")]);
    let bad = Decided { csn: csn(2), txids: vec![txid(2)], redo: vec![99, 1, 2].into(), trace: None };
    let committed = t.store().commit(&[bad.clone(), good], csn(3)).unwrap();
    assert_eq!(committed.stuck.len(), 1);
    assert_eq!(committed.stuck[0].0, csn(2));
    assert!(committed.stuck[0].1.contains("newer version"), "{}", committed.stuck[0].1);
    assert_eq!(t.tend(3), at(1, 1));
    assert_eq!(t.all(), [("a".to_owned(), 3)], "others go on");
    // Skipped by an operator (R-SKIP): an empty redo in its place.
    t.apply(&[Decided { redo: Default::default(), ..bad }], 3);
    assert_eq!(t.tend(3), at(3, 3));
}

#[test]
fn the_owner_and_the_highest_csn_are_kept() {
    let mut t = Fixture::new();
    assert_eq!(t.store().owner().unwrap(), Some(OWNER));
    let led = Decided { txids: vec![Txid { decider: Decider::Leader(ParticipantId(4)), ..txid(9) }], ..t.decide(9, vec![put("l", "{}")]) };
    let decided = [t.decide(5, vec![put("a", "{}")]), led];
    t.apply(&decided, 9);
    t.tend(9);
    t.store = None;
    let mut store = Tantivy::open(options(t.folder.path())).unwrap();
    assert_eq!(store.owner().unwrap(), Some(OWNER));
    let newer = Owner { epoch: Epoch(4), incarnation: 1, ..OWNER };
    let recovered = store.recover(newer, ParticipantId(1)).unwrap();
    assert_eq!((recovered.highest, recovered.progress.durable), (csn(5), csn(9)), "what a leader decided is no evidence about the log");
    drop(store);
    assert_eq!(Tantivy::open(options(t.folder.path())).unwrap().owner().unwrap(), Some(newer));
}

#[test]
fn a_new_session_gives_up_what_is_not_durable() {
    let mut t = Fixture::new();
    let decided = [t.decide(1, vec![put("a", "{}")]), t.decide(2, vec![put("b", "{}")])];
    t.apply(&decided[..1], 1);
    t.tend(1);
    t.apply(&decided[1..], 2);
    assert_eq!(t.store().recover(OWNER, ParticipantId(1)).unwrap().progress, at(1, 1));
    assert_eq!(t.tend(1), at(1, 1));
    assert_eq!(t.all(), [("a".to_owned(), 1)]);
    t.apply(&decided[1..], 2);
    assert_eq!(t.tend(2), at(2, 2));
}

#[test]
fn a_folder_in_use_newer_or_foreign_is_refused() {
    let refused = |folder: &Path| match Tantivy::open(options(folder)) {
        Err(StoreError::Refused(sentence)) => sentence,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("opened"),
    };
    let mut t = Fixture::new();
    let sentence = refused(t.folder.path());
    assert!(sentence.contains("is in use: another process holds its LOCK"), "{sentence}");

    let decided = t.decide(1, vec![put("a", "{}")]);
    t.apply(&[decided], 1);
    t.tend(1);
    t.store = None;
    let manifest = t.folder.path().join("store.json");
    let kept = unsealed(&manifest);
    std::fs::write(&manifest, kept.replace("\"format\": 1", "\"format\": 2")).unwrap();
    let sentence = refused(t.folder.path());
    assert!(sentence.ends_with("was written in format 2; this version reads format 1: start the newer version"), "{sentence}");
    std::fs::write(&manifest, &kept[..kept.len() / 2]).unwrap();
    assert!(refused(t.folder.path()).contains("store.json is damaged"));
    std::fs::remove_file(&manifest).unwrap();
    assert!(refused(t.folder.path()).contains("has an index but no store.json: restore it"));
    std::fs::write(&manifest, &kept).unwrap();

    let meta = t.folder.path().join("index-1/meta.json");
    let kept = unsealed(&meta);
    let mut foreign: serde_json::Value = serde_json::from_str(&kept).unwrap();
    foreign["payload"] = serde_json::Value::Null;
    std::fs::write(&meta, foreign.to_string()).unwrap();
    assert!(refused(t.folder.path()).contains("committed by another program"));
    std::fs::write(&meta, kept).unwrap();
    t.crash();
    assert_eq!(t.all(), [("a".to_owned(), 1)]);
}

/// Disks (torture): whatever bit is flipped in whichever file, the index is refused by the file's name, or right.
#[test]
fn a_flipped_bit_is_refused_by_its_file_or_harmless() {
    let mut t = Fixture::new();
    for n in 1..=6 {
        let decided = t.decide(n, vec![put(&format!("k{}", n % 4), &format!("{{\"n\":{n}}}")), delete("gone")]);
        t.apply(&[decided], n);
        t.tend(n);
    }
    let all = t.all();
    t.store = None;
    let (mut refused, mut harmless) = (0, 0);
    for folder in [t.folder.path().to_path_buf(), t.folder.path().join("index-1")] {
        let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file()).collect();
        for file in files {
            let whole = std::fs::read(&file).unwrap();
            for at in (0..whole.len()).step_by(whole.len().div_ceil(12).max(1)) {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << (at % 8);
                let copied = tempfile::tempdir().unwrap();
                copy(t.folder.path(), copied.path());
                let there = copied.path().join(file.strip_prefix(t.folder.path()).unwrap());
                std::fs::write(&there, damaged).unwrap();
                let name = file.file_name().unwrap().to_str().unwrap();
                match Tantivy::open(options(copied.path())) {
                    Err(StoreError::Refused(sentence)) => {
                        assert!(sentence.contains(name), "{name} at {at}: {sentence}");
                        refused += 1;
                    }
                    // Tantivy's own list of files decides nothing but what may be deleted.
                    Err(StoreError::Broken(_)) if name == ".managed.json" => refused += 1,
                    Err(error) => panic!("{name} at {at}: {error}"),
                    Ok(store) => {
                        let found = store.reader().search("*", limits(100)).unwrap().documents;
                        let mut found: Vec<_> = found.into_iter().map(|d| (d.key, d.csn.n())).collect();
                        found.sort();
                        assert_eq!(found, all, "{name} at {at}");
                        harmless += 1;
                    }
                }
            }
        }
    }
    assert!(refused > 50, "{refused} refused, {harmless} harmless");
}

/// A manifest that names another generation must not make an index go: there is nobody else who has it.
#[test]
fn a_missing_generation_removes_no_other() {
    let mut t = Fixture::new();
    let decided = t.decide(1, vec![put("a", "{}")]);
    t.apply(&[decided], 1);
    t.tend(1);
    t.store = None;
    let manifest = t.folder.path().join("store.json");
    let kept = unsealed(&manifest);
    std::fs::write(&manifest, kept.replace("\"generation\": 1", "\"generation\": 3")).unwrap();
    match Tantivy::open(options(t.folder.path())) {
        Err(StoreError::Refused(sentence)) => assert!(sentence.contains("index-3 is gone: restore it"), "{sentence}"),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("opened"),
    }
    std::fs::write(&manifest, kept).unwrap();
    t.crash();
    assert_eq!(t.all(), [("a".to_owned(), 1)]);
}

/// What the file would be without its checksum: as an older version wrote it.
fn unsealed(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let rest = text.strip_prefix("{\"_crc32c\":\"").expect("it has a checksum");
    format!("{{{}", &rest["00000000\",".len()..])
}

#[test]
fn a_full_disk_breaks_the_writer_and_loses_nothing() {
    let mount = tempfile::tempdir().unwrap();
    let path = mount.path().to_str().unwrap();
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs", path]).output();
    if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
        println!("skipped: a small tmpfs cannot be mounted here ({mounted:?})");
        return;
    }
    let run = std::panic::catch_unwind(|| full_disk(mount.path()));
    let unmounted = std::process::Command::new("umount").args(["-l", path]).status().unwrap();
    assert!(unmounted.success());
    run.unwrap();
}

fn full_disk(folder: &Path) {
    let mut t = Fixture { folder: tempfile::tempdir().unwrap(), store: None, next: 0 };
    t.store = Some(open(folder).0);
    // Text that does not compress, more of it than there is room.
    let mut random = 1u64;
    let mut text = || {
        let words = (0..100).map(|_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            format!("{random:x}")
        });
        words.collect::<Vec<_>>().join(" ")
    };
    let decided: Vec<_> = (1..=2_500).map(|n| t.decide(n, vec![put(&format!("k{n}"), &format!(r#"{{"t":"{}"}}"#, text()))])).collect();
    let mut durable = 0;
    let error = decided.chunks(50).find_map(|batch| {
        let last = batch.last().unwrap().csn.n();
        let step = t.store().commit(batch, csn(last)).and_then(|_| t.store().tend(csn(last)));
        step.map(|tended| durable = tended.progress.durable.n()).err()
    });
    assert!(matches!(error, Some(StoreError::Broken(_))), "{error:?}");
    assert!(matches!(t.store().commit(&[], csn(0)), Err(StoreError::Broken(_))), "the writer is of no use until recovered");
    assert!(matches!(t.store().prepare(&[]), Err(StoreError::Broken(_))));
    // Room again, as an operator would make it: what was promised durable is all there.
    let resized = std::process::Command::new("mount").args(["-o", "remount,size=64m", folder.to_str().unwrap()]).status().unwrap();
    assert!(resized.success());
    let recovered = t.store().recover(OWNER, ParticipantId(1)).unwrap().progress;
    assert!(recovered.durable.n() >= durable && durable > 0, "{recovered:?} {durable}");
    let replay: Vec<_> = decided.iter().filter(|d| d.csn > recovered.durable).cloned().collect();
    t.apply(&replay, 2_500);
    assert_eq!(t.tend(2_500), at(2_500, 2_500));
    assert_eq!(t.store().reader().search("*", limits(1)).unwrap().total, 2_500);
    t.store = None;
}

/// `cargo test -p lockstep-participants --test tantivy_store -- --ignored --nocapture`
#[test]
#[ignore = "measures; nothing to fail"]
fn speed() {
    const N: u64 = 50_000;
    let mut t = Fixture::new();
    let text = "the quick brown fox jumps over the lazy dog and runs away from the hunter ".repeat(3);
    let operations =
        |n| vec![put(&format!("k{}", n % 20_000), &format!(r#"{{"title":"film {n}","year":{},"plot":"{text}"}}"#, 1900 + n % 100))];
    let works: Vec<_> =
        (1..=N).map(|n| Work { txid: txid(n), operations: operations(n).into(), timeout: 1_000_000, trace: None, shares: false }).collect();
    let begin = std::time::Instant::now();
    let ballots: Vec<_> = works.chunks(32).map(|batch| t.store().prepare(batch).unwrap()).collect();
    println!("prepare: {:.2} µs a document of {} bytes", begin.elapsed().as_secs_f64() * 1e6 / N as f64, text.len() + 40);
    let redos = ballots.into_iter().flat_map(|ballot| ballot.votes).map(|(txid, vote)| match vote {
        Vote::Redo(redo, _) => Decided { csn: csn(txid.n), txids: vec![txid], redo, trace: None },
        vote => panic!("{vote:?}"),
    });
    let decided: Vec<_> = redos.collect();
    let (mut committing, mut tending, mut commits) = (Duration::ZERO, Duration::ZERO, 0);
    for batch in decided.chunks(32) {
        let begin = std::time::Instant::now();
        t.apply(batch, batch.last().unwrap().csn.n());
        committing += begin.elapsed();
        if batch[0].csn.n() % 3_200 == 1 {
            let begin = std::time::Instant::now();
            t.tend(batch.last().unwrap().csn.n());
            tending += begin.elapsed();
            commits += 1;
        }
    }
    let begin = std::time::Instant::now();
    t.tend(N);
    tending += begin.elapsed();
    println!("commit: {:.2} µs a document on the calling thread", committing.as_secs_f64() * 1e6 / N as f64);
    println!("tend: {:.1} ms a commit of 3,200 documents", tending.as_secs_f64() * 1e3 / (commits + 1) as f64);
    let condition = Condition::Csn(csn(N));
    let works: Vec<_> = (0..10_000)
        .map(|n| Work {
            txid: txid(n),
            operations: vec![put_if(&format!("k{}", n % 20_000), condition)].into(),
            timeout: 1,
            trace: None,
            shares: false,
        })
        .collect();
    let begin = std::time::Instant::now();
    works.chunks(32).for_each(|batch| drop(t.store().prepare(batch).unwrap()));
    println!("prepare with a condition: {:.2} µs", begin.elapsed().as_secs_f64() * 1e6 / 10_000.0);
    for n in 1..=5 {
        let decided = t.decide(N + n, operations(n));
        t.apply(&[decided], N + n);
        let begin = std::time::Instant::now();
        t.tend(N + n);
        println!("tend: {:.1} ms a commit of one document", begin.elapsed().as_secs_f64() * 1e3);
    }
}

/// The number of the last operation that the index committed.
fn opstamp(folder: &Path) -> u64 {
    let meta: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("index-1/meta.json")).unwrap()).unwrap();
    meta["opstamp"].as_u64().unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            // A file may go while it is copied, as it may while a machine crashes.
            let _ = std::fs::copy(entry.path(), target);
        }
    }
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![vec![]];
    }
    permutations(n - 1)
        .into_iter()
        .flat_map(|rest| {
            (0..n).map(move |at| {
                let mut all = rest.clone();
                all.insert(at, n - 1);
                all
            })
        })
        .collect()
}
