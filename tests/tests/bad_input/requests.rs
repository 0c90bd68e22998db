//! Requests that make no sense, break a rule or exceed a limit. All are sent to one daemon.

use crate::lab::{Lab, launch, says};
use crate::wire::{Operation, branch, inquiry, operation, put, put_if, request, sql, value, written};
use lockstep_client::{CallError, CommitError, params};
use lockstep_proto::v1;
use lockstep_proto::v1::Reason;
use lockstep_proto::v1::operation::Operation as Wire;
use lockstep_proto::v1::outcome::Outcome;
use std::time::Duration;
use tonic::Code;

/// Large enough for a document of 10 MB to be looked at.
const SETTINGS: &[&str] = &["limits.frame_bytes=16777216", "limits.participant_frame_bytes=268435456"];
const STORES: &str = r#"
[[store]]
type = "sqlite"
name = "db"

[[store]]
type = "tantivy"
name = "index"

[[store]]
type = "tantivy"
name = "typed"
"#;
const TABLES: &str = "
    CREATE TABLE strict (id INTEGER PRIMARY KEY, n INTEGER NOT NULL CHECK (n < 10), parent INTEGER REFERENCES strict) STRICT;
    CREATE TABLE keyless (a TEXT);";
const TYPES: &str = r#"{"fields": {"title": {"type": "text", "required": true}, "year": {"type": "integer"}}}"#;
/// Never ends by itself.
const ENDLESS: &str = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_refused_in_words() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let configuration = folder.path().join("lockstepd.toml");
    std::fs::write(&configuration, STORES)?;
    let mut launch = launch(folder.path(), SETTINGS);
    launch.arguments.extend(["--config".into(), configuration.display().to_string()]);
    let mut lab = Lab::start(launch).await?;
    lab.client.migrate("db", TABLES).await?;
    lab.client.migrate("typed", TYPES).await?;

    lab.write().await?;
    transactions(&mut lab).await?;
    lab.one_works().await?;
    what_the_library_refuses_itself(&lab).await?;
    deadlines(&mut lab).await?;
    reads(&lab).await?;
    migrations(&lab).await?;
    lab.is_sound().await
}

/// Aborts, each with its reason and words, for ever under its key; what is good in them is not done either.
async fn transactions(lab: &mut Lab) -> anyhow::Result<()> {
    let mut wire = lab.wire().await?;
    for (n, (what, change, reason, words)) in aborted().into_iter().enumerate() {
        let (id, item) = (format!("bad{n}"), format!("bad-item{n}"));
        let mut request = written(&id, &item);
        change(&mut request);
        let told = wire.commit(request.clone()).await.unwrap_or_else(|status| panic!("{what}: {status}")).into_inner();
        let Some(Outcome::Aborted(aborted)) = &told.outcome else { panic!("{what}: {told:?}") };
        assert_eq!(aborted.reason(), reason, "{what}: {}", aborted.message);
        assert_eq!(aborted.retryable, reason == Reason::Timeout, "{what}");
        println!("{what}: {}", aborted.message);
        says(&aborted.message, words);
        // I7: it stays so, whatever is asked.
        assert_eq!(wire.commit(request.clone()).await?.into_inner(), told, "{what}: sent again");
        assert_eq!(wire.inquire(inquiry(&request)).await?.into_inner(), told, "{what}: asked about");
        let mut mended = wire.commit(v1::CommitRequest { ..written(&id, &item) }).await?.into_inner();
        match mended.outcome.take() {
            Some(Outcome::Aborted(_) | Outcome::KeyReused(_)) => {}
            other => panic!("{what}: another request under its key gets {other:?}"),
        }
        lab.heard_raw(&id, &item, told)?;
    }
    Ok(())
}

type Change = Box<dyn Fn(&mut v1::CommitRequest)>;
type Row = (&'static str, Change, Reason, &'static [&'static str]);

#[rustfmt::skip]
fn aborted() -> Vec<Row> {
    use Reason::*;
    let row = |what, change: Change, reason, words| -> Row { (what, change, reason, words) };
    vec![
        // Stores.
        row("an unknown store", also("dbx", || sql("SELECT 1", &[])), Invalid, &["branches[2].store", "there is no store `dbx`", "configured: db, index, typed"]),
        row("an unknown index", also("indices", || put("k", "{}")), Invalid, &["branches[2].store", "there is no store `indices`"]),
        row("a store twice", also("db", || sql("SELECT 1", &[])), Invalid, &["branches[2].store", "`db` has a branch already"]),
        row("SQL at an index", also("typed", || sql("SELECT 1", &[])), Invalid, &["branches[2].operations[0].statement", "`typed` is an index"]),
        row("a document at a database", at_db(|| put("k", "{}")), Invalid, &["branches[0].operations[2].put", "`db` is a database"]),
        // SQL.
        row("SQL that does not parse", db("INSRT INTO journal"), Invalid, &["operations[2]", "near \"INSRT\": syntax error"]),
        row("an unknown table", db("DELETE FROM nowhere"), Invalid, &["operations[2]", "no such table: nowhere"]),
        row("an unknown column", db("UPDATE item SET colour = 1"), Invalid, &["operations[2]", "no such column: colour"]),
        row("empty SQL", db(" "), Invalid, &["branches[0].operations[2].statement.sql is empty"]),
        row("two statements", db("SELECT 1; DELETE FROM item"), Invalid, &["operations[2]", "exactly one statement"]),
        row("UNIQUE", db("INSERT INTO journal SELECT * FROM journal"), Constraint, &["operations[2]", "UNIQUE constraint failed: journal.id"]),
        row("NOT NULL", db("INSERT INTO strict VALUES (1, NULL, NULL)"), Constraint, &["NOT NULL constraint failed: strict.n"]),
        row("CHECK", db("INSERT INTO strict VALUES (1, 10, NULL)"), Constraint, &["CHECK constraint failed: n < 10"]),
        row("FOREIGN KEY", db("INSERT INTO strict VALUES (1, 1, 7)"), Constraint, &["FOREIGN KEY constraint failed"]),
        row("an unmet number of rows", at_db(|| operation(Wire::Statement(v1::Statement { sql: "DELETE FROM item WHERE name = ''".into(), parameters: vec![], expect_rows: Some(1) }))), Condition, &["operations[2]", "affected 0 rows, 1 were expected"]),
        row("DDL", db("CREATE TABLE t (a PRIMARY KEY)"), Invalid, &["operations[2]", "the schema is not changed inside a transaction: use a migration"]),
        row("DROP", db("DROP TABLE journal"), Invalid, &["use a migration"]),
        row("PRAGMA", db("PRAGMA synchronous = OFF"), Invalid, &["PRAGMA synchronous is not allowed"]),
        row("ATTACH", db("ATTACH ':memory:' AS other"), Invalid, &["ATTACH and DETACH are not allowed"]),
        row("COMMIT", db("COMMIT"), Invalid, &["BEGIN, COMMIT and ROLLBACK are Lockstep's"]),
        row("SAVEPOINT", db("ROLLBACK TO branch"), Invalid, &["SAVEPOINT, RELEASE and ROLLBACK TO are Lockstep's"]),
        row("VACUUM", db("VACUUM"), Invalid, &["operations[2]"]),
        row("Lockstep's own tables", db("UPDATE _lockstep_state SET watermark = 0"), Invalid, &["_lockstep_"]),
        row("a table without a key", db("INSERT INTO keyless VALUES ('a')"), Invalid, &["`keyless`", "PRIMARY KEY"]),
        row("SQL that runs for ever", with(|request| { request.timeout_ms = 200; request.branches[0].operations.push(sql(ENDLESS, &[])); }), Timeout, &["time"]),
        row("too few parameters", db("INSERT INTO item VALUES (?1, 1, ?2)"), Invalid, &["operations[2]", "takes 2 parameters, 0 were given"]),
        row("too many parameters", at_db(|| sql("DELETE FROM strict", &["a"])), Invalid, &["operations[2]", "takes 0 parameters, 1 were given"]),
        row("a parameter of the wrong type", at_db(|| sql("INSERT INTO strict VALUES (1, ?1, NULL)", &["nine"])), Constraint, &["cannot store TEXT value in INTEGER column strict.n"]),
        row("a key of the wrong type", at_db(|| sql("INSERT INTO strict VALUES (?1, 1, NULL)", &["one"])), Constraint, &["operations[2]", "datatype mismatch"]),
        row("a parameter without a value", at_db(|| operation(Wire::Statement(v1::Statement { sql: "SELECT ?1".into(), parameters: vec![v1::Value { value: None }], expect_rows: None }))), Invalid, &["operations[2].statement.parameters[0] has no value"]),
        row("a result without end", db("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n"), Invalid, &["more rows than allowed (10000)"]),
        // Documents.
        row("a document of the wrong type", typed(r#"{"title": 1}"#), Invalid, &["put of `k`", "the field `title` must be text, not the number 1"]),
        row("a document without a required field", typed(r#"{"year": 1972}"#), Invalid, &["the field `title` is required"]),
        row("an undeclared field", typed(r#"{"title": "Solaris", "colour": "red"}"#), Invalid, &["the field `colour` is not declared"]),
        row("a document that is no JSON", typed(r#"{"title": "#), Invalid, &["the document is no JSON"]),
        row("a document that is no object", typed("[1]"), Invalid, &["branches[2].operations[0].put.document is no JSON object"]),
        row("an empty document key", also("typed", || put("", r#"{"title": "x"}"#)), Invalid, &["branches[2].operations[0].put.key is empty"]),
        row("a delete without a key", also("typed", || operation(Wire::Delete(v1::Delete::default()))), Invalid, &["operations[0].delete.key is empty"]),
        row("a document key that is too long", also("typed", || put(&"k".repeat(513), r#"{"title": "x"}"#)), Invalid, &["put.key has 513 bytes: at most 512 (limits.key_bytes)"]),
        row("a field of 10 MB", in_index(|| put("k", &field(10_000_000, " x"))), Invalid, &["branches[1].operations[1].put.document has 10000008 bytes: at most 1048576 (limits.document_bytes)"]),
        row("a token of 70 KB", in_index(|| put("k", &field(70_000, "x"))), Invalid, &["put of `k`", "the field `f` holds a word of 70000 bytes; the limit is 65530"]),
        row("deep nesting", in_index(|| put("k", &format!("{}1{}", r#"{"f":"#.repeat(40), "}".repeat(40)))), Invalid, &["nested deeper than the limit of 32"]),
        row("a partial update", in_index(|| operation(Wire::Update(v1::Update { key: "k".into(), patch: "{}".into() }))), Invalid, &["branches[1].operations[1].update: partial updates are refused: put the whole document"]),
        row("the same document twice", with(|request| { let again = request.branches[1].operations[0].clone(); request.branches[1].operations.push(again); }), Invalid, &["the document `bad-item", "is written twice in one transaction"]),
        row("a condition on a document that is not there", in_index(|| put_if("k", v1::condition::Condition::IfCsn(1))), Condition, &["put of `k`"]),
        row("an absence that is none", in_index(|| put_if("item-0", v1::condition::Condition::IfAbsent(true))), Condition, &["`item-0`"]),
        row("an empty condition", in_index(|| operation(Wire::Put(v1::Put { key: "k".into(), document: "{}".into(), condition: Some(v1::Condition { condition: None }) }))), Invalid, &["put.condition is empty: if_csn or if_absent"]),
        // Whole transactions.
        row("zero branches", with(|request| request.branches.clear()), Invalid, &["branches is empty: a transaction needs at least one operation"]),
        row("zero operations", with(|request| request.branches[0].operations.clear()), Invalid, &["branches[0].operations is empty"]),
        row("100,000 operations", with(|request| request.branches[0].operations = vec![sql("SELECT 1", &[]); 100_000]), Invalid, &["branches[0].operations", "more than 10000 operations (limits.operations)"]),
        row("5 MB in all", at_db(|| operation(Wire::Statement(v1::Statement { sql: "SELECT ?1".into(), parameters: vec![value(v1::value::Value::Blob(vec![0; 5_000_000].into()))], expect_rows: None }))), Invalid, &["branches: the transaction has 50", "at most 4194304 (limits.transaction_bytes)"]),
        row("documents and no row", with(|request| drop(request.branches.remove(0))), Invalid, &["documents of `index` and no row", "R-COVER"]),
        row("documents beside SQL that only reads", with(|request| request.branches[0].operations = vec![sql("SELECT 1", &[])]), Invalid, &["documents of `index` and no row", "R-COVER"]),
        row("an unknown wait", with(|request| request.wait = 9), Invalid, &["wait is 9: none of decided, applied, visible"]),
        row("no operation at all", in_index(|| v1::Operation { operation: None }), Invalid, &["branches[1].operations[1] is neither statement nor put nor delete"]),
    ]
}

fn with(change: impl Fn(&mut v1::CommitRequest) + 'static) -> Change {
    Box::new(change)
}

/// One more branch.
fn also(store: &'static str, operation: impl Fn() -> Operation + 'static) -> Change {
    with(move |request| request.branches.push(branch(store, vec![operation()])))
}

fn typed(document: &'static str) -> Change {
    also("typed", move || put("k", document))
}

/// One more operation at the database.
fn at_db(operation: impl Fn() -> Operation + 'static) -> Change {
    with(move |request| request.branches[0].operations.push(operation()))
}

fn db(text: &'static str) -> Change {
    at_db(move || sql(text, &[]))
}

/// One more operation at the index.
fn in_index(operation: impl Fn() -> Operation + 'static) -> Change {
    with(move |request| request.branches[1].operations.push(operation()))
}

/// A document with one field of so many bytes.
fn field(bytes: usize, text: &str) -> String {
    format!(r#"{{"f":"{}"}}"#, text.repeat(bytes / text.len()))
}

/// Before anything is sent, so with no outcome under any key.
async fn what_the_library_refuses_itself(lab: &Lab) -> anyhow::Result<()> {
    let begin = || lab.client.transaction();
    let invalid = [
        (begin(), "the transaction has no operation"),
        (begin().put("index", "", &serde_json::json!({})), "a document's key has 0 bytes; it takes 1 to 512"),
        (begin().put("index", "k", &[1]), "the document for `k` is no JSON object"),
        (begin().put_raw("index", "k", field(10_000_000, "x ")), "the limit (document_bytes) is 1048576"),
        (begin().sql("db", "SELECT ?1", params![vec![0_u8; 5_000_000]]), "the limit (transaction_bytes) is 4194304"),
        (
            (0..100_000).fold(begin(), |many, _| many.sql("db", "SELECT 1", params![])),
            "has 100000 operations; the limit (operations) is 10000",
        ),
        (begin().sql("db", "SELECT 1", params![]).if_absent(), "if_absent() must follow put() or delete()"),
        (begin().sql("db", "SELECT 1", params![]).idempotency_key("k".repeat(65)), "idempotency_key has 65 bytes; it takes 1 to 64"),
    ];
    for (transaction, words) in invalid {
        match transaction.commit().await {
            Err(CommitError::Invalid(sentence)) => says(&sentence, &[words]),
            other => panic!("{words}: {other:?}"),
        }
    }
    Ok(())
}

/// A deadline that has passed is never a wrong answer.
async fn deadlines(lab: &mut Lab) -> anyhow::Result<()> {
    let (id, item) = ("late", "item-0");
    let late = lockstep_tests::workload::transaction(&lab.client, id, item).idempotency_key(id).deadline(Duration::ZERO).commit().await;
    match late {
        // Nothing but the time was missing.
        Err(CommitError::NotSent(why)) => assert!(why.contains("the deadline was over before it was sent"), "{why}"),
        // It had gone out before anybody looked at the clock.
        Err(CommitError::Unknown { request, .. }) => {
            let told = lab.client.inquire(&request).await.map(|receipt| receipt.csn.to_u64());
            lab.heard(id, item, told)?;
        }
        other => panic!("{other:?}"),
    }
    // Past the wait's deadline: committed, with the stores that have yet to follow.
    let mut wire = lab.wire().await?;
    let hurried = v1::CommitRequest { wait: v1::Wait::Visible.into(), wait_ms: 1, ..written("hurried", item) };
    let told = wire.commit(hurried).await?.into_inner();
    let Some(Outcome::Committed(committed)) = &told.outcome else { panic!("{told:?}") };
    says(&committed.pending.join(","), &["index"]);
    let (token, csn) = (committed.token.clone(), committed.csn);
    lab.heard_raw("hurried", item, told)?;
    // Past a read's: behind, and how far it has come; or it has come so far meanwhile.
    let get = v1::GetRequest { store: "index".into(), key: item.into(), at_least: token, wait_ms: 1 };
    match wire.get(get).await {
        Ok(found) => assert!(found.into_inner().document.is_some_and(|document| document.csn >= csn)),
        Err(status) => {
            assert_eq!(status.code(), Code::DeadlineExceeded);
            says(status.message(), &["store `index` is behind", "it has followed up to CSN", "ask again"]);
        }
    }
    Ok(())
}

/// Reads that are wrong say why, and are no transactions.
async fn reads(lab: &Lab) -> anyhow::Result<()> {
    let mut wire = lab.wire().await?;
    let query = |sql: &str| v1::QueryRequest { store: "db".into(), sql: sql.into(), ..v1::QueryRequest::default() };
    let search = |text: &str| v1::SearchRequest { store: "index".into(), query: text.into(), ..v1::SearchRequest::default() };
    let queries = [
        (
            v1::QueryRequest { store: "dbx".into(), ..query("SELECT 1") },
            Code::NotFound,
            "store: there is no store `dbx`; configured: db, index, typed",
        ),
        (v1::QueryRequest { store: "index".into(), ..query("SELECT 1") }, Code::InvalidArgument, "cannot be queried by SQL; use search"),
        (query(""), Code::InvalidArgument, "sql is empty"),
        (query("SELEC 1"), Code::InvalidArgument, "near \"SELEC\": syntax error"),
        (query("DELETE FROM journal"), Code::InvalidArgument, "a query reads; to write, use a transaction"),
        (query("DROP TABLE journal"), Code::InvalidArgument, "a query reads"),
        (query("PRAGMA journal_mode"), Code::InvalidArgument, "PRAGMA journal_mode is not allowed"),
        (query("ATTACH ':memory:' AS other"), Code::InvalidArgument, "ATTACH and DETACH are not allowed"),
        (query("SELECT ?1"), Code::InvalidArgument, "takes 1 parameters, 0 were given"),
        (v1::QueryRequest { timeout_ms: 200, ..query(ENDLESS) }, Code::DeadlineExceeded, "the query took longer than 200ms"),
        (
            v1::QueryRequest { limit: 10_001, ..query("SELECT 1") },
            Code::InvalidArgument,
            "limit is 10001: at most 10000 (limits.result_rows)",
        ),
        (
            v1::QueryRequest { at_least: vec![1; 7].into(), ..query("SELECT 1") },
            Code::InvalidArgument,
            "at_least is no token: a receipt's has 24 bytes",
        ),
        (v1::QueryRequest { at_least: vec![1; 24].into(), ..query("SELECT 1") }, Code::FailedPrecondition, "at_least is of another log"),
        (query("SELECT zeroblob(5000000)"), Code::InvalidArgument, "result_bytes"),
    ];
    for (request, code, words) in queries {
        let status = wire.query(request.clone()).await.expect_err(words);
        assert_eq!(status.code(), code, "{request:?}: {status}");
        says(status.message(), &[words]);
    }
    let searches = [
        (v1::SearchRequest { store: "indices".into(), ..search("x") }, Code::NotFound, "store: there is no store `indices`"),
        (v1::SearchRequest { store: "db".into(), ..search("x") }, Code::InvalidArgument, "is no search index; use query"),
        (search("title:[1 TO"), Code::InvalidArgument, "query"),
        (v1::SearchRequest { store: "typed".into(), ..search("colour:red") }, Code::InvalidArgument, "colour"),
    ];
    for (request, code, words) in searches {
        let status = wire.search(request.clone()).await.expect_err(words);
        assert_eq!(status.code(), code, "{request:?}: {status}");
        says(status.message(), &[words]);
    }
    // What only reads is a transaction all the same, and gives its rows.
    let read = wire.commit(request("read", vec![branch("db", vec![sql("SELECT 42", &[])])])).await?.into_inner();
    let Some(Outcome::Committed(committed)) = read.outcome else { panic!("{read:?}") };
    assert_eq!(committed.results[0].results[0].rows[0].values, [value(v1::value::Value::Integer(42))]);
    Ok(())
}

/// A migration that fails changes nothing.
async fn migrations(lab: &Lab) -> anyhow::Result<()> {
    let scripts = [
        ("dbx", "SELECT 1", "there is no store `dbx`"),
        ("db", "CREATE TABLE half (a PRIMARY KEY); CREATE TABLE half (a PRIMARY KEY)", "table half already exists"),
        ("db", "CREATE TABLE half (a PRIMARY KEY); COMMIT", "no BEGIN, COMMIT, ROLLBACK or SAVEPOINT"),
        ("db", "CREATE TABLE half (a PRIMARY KEY); DROP TABLE _lockstep_state", "_lockstep_"),
        ("db", "CREATE TABLE half (a PRIMARY KEY); ATTACH ':memory:' AS other", "ATTACH"),
        ("index", "no schema", "the schema is not of the form"),
        ("index", r#"{"fields": {"item": {"type": "integer"}}}"#, "the schema does not fit the document `item-"),
    ];
    for (store, script, words) in scripts {
        match lab.client.migrate(store, script).await {
            Err(CallError::Invalid(sentence)) => says(&sentence, &[words]),
            other => panic!("{script}: {other:?}"),
        }
    }
    let half = lab.client.query("db", "SELECT count(*) FROM sqlite_master WHERE name = 'half'", params![]).await?.rows;
    assert_eq!(half.first().expect("a count").get::<i64>(0)?, 0);
    Ok(())
}
