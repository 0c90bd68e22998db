//! What a commit ends in, whatever the coordinator answers.

mod fake;

use fake::{Act, Fake};
use lockstep_client::{Client, CommitError, Csn, Reason, RequestId, Transaction, Wait, params};
use lockstep_proto::v1;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Long enough for any machine; no test waits for it to pass.
const AMPLE: Duration = Duration::from_secs(60);
/// For tests in which a deadline passes.
const SHORT: Duration = Duration::from_millis(150);

async fn start() -> (Fake, Client) {
    let fake = Fake::start().await;
    let client = Client::builder(fake.endpoint()).request_timeout(AMPLE).connect_timeout(AMPLE).connect().await.unwrap();
    (fake, client)
}

fn write(client: &Client) -> Transaction {
    client.transaction().sql("db", "UPDATE stock SET n = n - 1 WHERE id = ?1", params![42])
}

#[tokio::test]
async fn a_transaction_arrives_as_it_was_put_together() {
    let (fake, client) = start().await;
    let receipt = client
        .transaction()
        .sql("db", "INSERT INTO film VALUES (?1, ?2, ?3)", params![42, "Solaris", None::<f64>])
        .expect_rows(1)
        .put("index", "film-42", &serde_json::json!({ "title": "Solaris" }))
        .if_csn("1.5".parse().unwrap())
        .delete("index", "film-7")
        .if_absent()
        .sql("db", "SELECT 1", [])
        .wait(Wait::Visible)
        .idempotency_key("order-17")
        .timeout(Duration::from_secs(7))
        .commit()
        .await
        .unwrap();

    assert_eq!(receipt.csn.to_string(), "1.1");
    assert_eq!(receipt.txid.to_string(), "1-1");
    assert_eq!(receipt.results("db").len(), 2);
    assert_eq!(receipt.result("db", 0).unwrap().rows_affected, 1);
    assert_eq!(receipt.result("db", 0).unwrap().rows.first().unwrap().get::<i64>("n").unwrap(), receipt.csn.to_u64() as i64);
    assert!(receipt.results("index").is_empty() && receipt.is_complete());

    let request = fake.state().executed.pop().unwrap();
    assert_eq!(request.key, Some(v1::RequestKey { key: "order-17".into(), attempt: 1 }));
    assert_eq!(request.position, Some(v1::Position { epoch: 1, n: 1 }));
    assert_eq!(request.wait(), v1::Wait::Visible);
    assert_eq!(request.timeout_ms, 7000);
    assert!(request.wait_ms > 0 && u128::from(request.wait_ms) < AMPLE.as_millis());
    let shape: Vec<_> = request.branches.iter().map(|branch| (branch.store.as_str(), branch.operations.len())).collect();
    assert_eq!(shape, [("db", 2), ("index", 2)]);
    let Some(v1::operation::Operation::Statement(statement)) = &request.branches[0].operations[0].operation else { panic!() };
    assert_eq!((statement.parameters.len(), statement.expect_rows), (3, Some(1)));
    let Some(v1::operation::Operation::Put(put)) = &request.branches[1].operations[0].operation else { panic!() };
    assert_eq!(put.document, r#"{"title":"Solaris"}"#);
    assert_eq!(put.condition.unwrap().condition, Some(v1::condition::Condition::IfCsn(1 << 39 | 5)));
    let Some(v1::operation::Operation::Delete(delete)) = &request.branches[1].operations[1].operation else { panic!() };
    assert_eq!(delete.condition.unwrap().condition, Some(v1::condition::Condition::IfAbsent(true)));
}

#[tokio::test]
async fn an_abort_says_what_to_do_and_is_not_tried_again_unasked() {
    let (fake, client) = start().await;
    fake.script([Act::Abort(v1::Reason::Conflict, true)]);
    let error = write(&client).commit().await.unwrap_err();
    assert!(error.is_retryable() && error.is_definite());
    let CommitError::Aborted(aborted) = &error else { panic!("{error}") };
    assert_eq!((aborted.reason, aborted.store.as_deref()), (Reason::Conflict, Some("db")));
    assert_eq!(error.to_string(), "aborted at db: refused as Conflict");
    assert_eq!(fake.state().received.len(), 1);
}

#[tokio::test]
async fn retry_makes_new_attempts_under_the_same_key_after_definite_aborts_only() {
    let (fake, client) = start().await;
    fake.script([Act::Abort(v1::Reason::Conflict, true), Act::Abort(v1::Reason::Busy, true), Act::Commit]);
    write(&client).idempotency_key("k").retry(5).commit().await.unwrap();
    let attempts: Vec<_> = fake.state().received.iter().map(|request| request.key.clone().unwrap()).collect();
    assert_eq!(attempts, [1, 2, 3].map(|attempt| v1::RequestKey { key: "k".into(), attempt }));
    assert_eq!(fake.state().executed.len(), 1);

    fake.script([Act::Abort(v1::Reason::Condition, false)]);
    assert!(!write(&client).retry(5).commit().await.unwrap_err().is_retryable());
    fake.script([Act::Abort(v1::Reason::Conflict, true), Act::Abort(v1::Reason::Conflict, true)]);
    assert!(write(&client).retry(1).commit().await.unwrap_err().is_retryable());
    assert_eq!(fake.state().received.len(), 3 + 1 + 2);
    assert_eq!(fake.state().executed.len(), 1);
}

#[tokio::test]
async fn unknown_is_asked_again_until_it_is_known() {
    let (fake, client) = start().await;
    fake.script([Act::Unknown(2)]);
    write(&client).idempotency_key("k").wait(Wait::Visible).commit().await.unwrap();
    let state = fake.state();
    // As a whole: one that had not run would never run once it had been asked about.
    assert_eq!((state.received.len(), state.executed.len(), state.inquiries.len()), (4, 1, 0));
    for again in &state.received {
        assert_eq!((&again.key, again.position), (&state.received[0].key, state.received[0].position));
        assert_eq!(again.wait(), v1::Wait::Visible);
    }
}

#[tokio::test]
async fn unknown_at_the_deadline_carries_what_to_ask_with_later() {
    let (fake, client) = start().await;
    fake.script([Act::Unknown(u32::MAX)]);
    let error = write(&client).idempotency_key("k").deadline(SHORT).commit().await.unwrap_err();
    assert!(!error.is_definite() && !error.is_retryable());
    assert_eq!(error.to_string(), "unknown, ask again: waiting for db");
    let CommitError::Unknown { request, .. } = error else { panic!("{error}") };
    assert_eq!((request.key.to_string(), request.attempt), ("k".into(), 1));

    // As another process would, from what this one kept.
    let request: RequestId = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
    fake.script([Act::Silent]);
    let error = write(&client).deadline(SHORT).commit().await.unwrap_err();
    let CommitError::Unknown { request: silent, message } = error else { panic!("{error}") };
    assert_eq!(message, "the connection stands, but no answer came");
    assert_eq!(client.inquire(&silent).await.unwrap().csn.to_string(), "1.2");
    assert!(matches!(client.inquire(&request).deadline(SHORT).await, Err(CommitError::Unknown { .. })));
}

#[tokio::test]
async fn expired_is_told_where_the_position_was_given() {
    let (fake, client) = start().await;
    let position = client.position().unwrap();
    fake.script([Act::Expired]);
    let error = write(&client).idempotency_key("old").position(position).commit().await.unwrap_err();
    assert!(matches!(error, CommitError::Expired { .. }), "{error}");
    assert_eq!(error.to_string(), "expired: the outcome of old is no longer kept");
    assert!(!error.is_definite() && !error.is_retryable(), "an earlier sending may have executed");
    assert!(fake.state().executed.is_empty());
}

#[tokio::test]
async fn an_idle_client_whose_idea_of_the_position_is_old_takes_the_new_one() {
    let (fake, client) = start().await;
    fake.state().n = 500_000;
    fake.script([Act::Expired]);
    write(&client).commit().await.unwrap();
    let positions: Vec<_> = fake.state().received.iter().map(|request| request.position.unwrap().n).collect();
    assert_eq!(positions, [1, 500_000]);
}

#[tokio::test]
async fn a_reused_key_names_the_transaction_that_has_it() {
    let (fake, client) = start().await;
    fake.script([Act::KeyReused]);
    let error = write(&client).idempotency_key("k").commit().await.unwrap_err();
    assert_eq!(error.to_string(), "key reused: k already names another transaction, 1-99");
}

#[tokio::test]
async fn what_is_wrong_in_itself_is_never_sent() {
    let fake = Fake::start().await;
    fake.state().limits = v1::Limits { transaction_bytes: 300, operations: 2, document_bytes: 100 };
    let client = Client::connect(fake.endpoint()).await.unwrap();
    let begin = || client.transaction();
    let refused = [
        (begin(), "the transaction has no operation"),
        (begin().expect_rows(1), "expect_rows() must follow sql()"),
        (write(&client).if_csn(Csn::from_u64(1)), "if_csn() must follow put() or delete()"),
        (begin().put("index", "k", &[1, 2]), "the document for `k` is no JSON object"),
        (begin().delete("index", ""), "a document's key has 0 bytes; it takes 1 to 512"),
        (begin().delete("index", "k".repeat(513)), "a document's key has 513 bytes; it takes 1 to 512"),
        (write(&client).idempotency_key("k".repeat(65)), "idempotency_key has 65 bytes; it takes 1 to 64"),
        (write(&client).attempt(0), "attempt is 0; attempts count from 1"),
        (
            begin().put("index", "k", &serde_json::json!({ "t": "x".repeat(100) })),
            "the document for `k` has 108 bytes; the limit (document_bytes) is 100",
        ),
        (
            begin().delete("index", "a").delete("index", "b").delete("index", "c"),
            "the transaction has 3 operations; the limit (operations) is 2",
        ),
    ];
    for (transaction, sentence) in refused {
        let error = transaction.commit().await.unwrap_err();
        assert!(matches!(error, CommitError::Invalid(_)));
        assert_eq!(error.to_string(), format!("invalid: {sentence}"));
    }
    let long = begin().sql("db", "-".repeat(300), []).commit().await.unwrap_err();
    assert!(long.to_string().ends_with("bytes; the limit (transaction_bytes) is 300"), "{long}");
    assert!(fake.state().received.is_empty());
}

#[tokio::test]
async fn answers_are_told_apart_by_id_in_any_order_and_second_ones_ignored() {
    let (fake, client) = start().await;
    let gate = Arc::new(Notify::new());
    fake.script([Act::Hold(gate.clone()), Act::CommitTwice, Act::Commit]);
    let (first, _) = tokio::join!(write(&client).commit(), async {
        assert_eq!(write(&client).commit().await.unwrap().csn.to_string(), "1.2");
        assert_eq!(write(&client).commit().await.unwrap().csn.to_string(), "1.3");
        gate.notify_one();
    });
    assert_eq!(first.unwrap().csn.to_string(), "1.1");
}

#[tokio::test]
async fn what_waits_together_goes_in_one_frame() {
    let (fake, client) = start().await;
    let mut commits = tokio::task::JoinSet::new();
    for _ in 0..200 {
        commits.spawn(write(&client).commit());
    }
    for receipt in commits.join_all().await {
        receipt.unwrap();
    }
    let state = fake.state();
    assert_eq!(state.executed.len(), 200);
    assert!(state.frames.len() < 20, "{:?}", state.frames);
}

#[tokio::test]
async fn no_more_than_the_limit_are_under_way() {
    let fake = Fake::start().await;
    let client = Client::builder(fake.endpoint()).in_flight(1).request_timeout(AMPLE).connect().await.unwrap();
    let gate = Arc::new(Notify::new());
    fake.script([Act::Hold(gate.clone())]);
    let first = tokio::spawn(write(&client).commit());
    while fake.state().received.is_empty() {
        tokio::task::yield_now().await;
    }
    let second = write(&client).deadline(SHORT).commit().await.unwrap_err();
    assert!(matches!(second, CommitError::NotSent(_)), "{second}");
    gate.notify_one();
    first.await.unwrap().unwrap();
    write(&client).commit().await.unwrap();
    assert_eq!(fake.state().received.len(), 2);
}

#[tokio::test]
async fn receipts_are_acknowledged_along_with_later_requests() {
    let (fake, client) = start().await;
    let first = write(&client).commit().await.unwrap();
    assert!(fake.state().acknowledged.is_empty());
    client.transaction().delete("index", "film-7").commit().await.unwrap();
    assert_eq!(fake.state().acknowledged, [v1::TransactionId::from(first.txid)]);
    // The second had no results: there is nothing to acknowledge.
    write(&client).commit().await.unwrap();
    assert_eq!(fake.state().acknowledged.len(), 1);
}

#[tokio::test]
async fn what_is_begun_is_committed_under_its_name_and_position() {
    let (fake, client) = start().await;
    let begun = client.begin().led_by("db").timeout(Duration::from_secs(7)).await.unwrap();
    assert_eq!(begun.txid().to_string(), "1-1");
    let receipt =
        begun.sql("db", "UPDATE t SET n = 1", []).expect_rows(1).put("index", "k", &serde_json::json!({})).commit().await.unwrap();
    assert_eq!(receipt.txid.to_string(), "1-1");
    let state = fake.state();
    let (begin, commit) = (&state.begun[0], &state.executed[0]);
    assert_eq!((begin.led_by.as_str(), begin.timeout_ms), ("db", 7_000));
    assert_eq!((&begin.key, &begin.position), (&commit.key, &commit.position));
    assert!(state.rolled_back.is_empty(), "what was committed is not given up");
}

#[tokio::test]
async fn what_is_begun_and_dropped_or_never_sent_is_rolled_back() {
    let (fake, client) = start().await;
    drop(client.begin().idempotency_key("dropped").await.unwrap());
    let mistaken = client.begin().idempotency_key("mistaken").await.unwrap().expect_rows(1).commit().await;
    assert!(matches!(mistaken, Err(CommitError::Invalid(_))), "{mistaken:?}");
    client.begin().idempotency_key("given up").await.unwrap().rollback().await.unwrap();
    let again = client.begin().idempotency_key("given up").await;
    assert!(matches!(&again, Err(CommitError::Aborted(aborted)) if aborted.reason == Reason::Cancelled), "{again:?}");
    let state = fake.state();
    let names: Vec<_> = state.rolled_back.iter().map(|rollback| rollback.key.clone().unwrap().key).collect();
    assert_eq!(names, ["dropped", "mistaken", "given up"]);
}

#[tokio::test]
async fn what_is_committed_is_told_as_that_and_neither_begun_again_nor_rolled_back() {
    let (_fake, client) = start().await;
    let (one, other) = (client.begin().idempotency_key("k").await.unwrap(), client.begin().idempotency_key("k").await.unwrap());
    let receipt = one.sql("db", "UPDATE t SET n = 1", []).commit().await.unwrap();
    for error in [other.rollback().await.unwrap_err(), client.begin().idempotency_key("k").await.unwrap_err()] {
        assert!(!error.is_definite() && !error.is_retryable(), "{error}");
        assert_eq!(error.to_string(), "committed already, as 1-1");
        let CommitError::AlreadyCommitted(again) = error else { panic!("{error}") };
        assert_eq!((again.csn, again.results("db").len()), (receipt.csn, 1));
    }
}

#[tokio::test]
async fn a_begin_with_a_position_that_is_too_old_is_made_anew() {
    let (fake, client) = start().await;
    fake.state().too_old = 1;
    client.begin().idempotency_key("mine").await.unwrap().rollback().await.unwrap();
    assert_eq!(fake.state().begun.len(), 2);
    fake.state().too_old = u32::MAX;
    let error = client.begin().await.unwrap_err();
    assert!(matches!(error, CommitError::Expired { .. }), "{error}");
}

#[tokio::test]
async fn frames_are_no_larger_than_what_the_daemon_takes() {
    let fake = Fake::start().await;
    fake.state().limits.transaction_bytes = 4_000;
    let client = Client::builder(fake.endpoint()).request_timeout(AMPLE).connect_timeout(AMPLE).connect().await.unwrap();
    let commits: Vec<_> = (0..100).map(|_| tokio::spawn(client.transaction().sql("db", "-".repeat(2_000), []).commit())).collect();
    for commit in commits {
        commit.await.unwrap().unwrap();
    }
    let largest = fake.state().frame_bytes.iter().copied().max();
    // A daemon takes 64 KiB more than a transaction may have.
    assert!(largest.is_some_and(|bytes| bytes < 4_000 + 65_536), "{largest:?}");
}

#[tokio::test]
async fn what_turns_out_too_large_harms_no_other() {
    let fake = Fake::start().await;
    fake.state().limits.transaction_bytes = 4_000;
    fake.proxy.refuse(true);
    // Put together before anybody has told the limit.
    let client = Client::builder(fake.endpoint()).request_timeout(AMPLE).connect_timeout(AMPLE).connect_lazy().unwrap();
    let large = tokio::spawn(client.transaction().sql("db", "-".repeat(9_000), []).commit());
    let small = tokio::spawn(write(&client).commit());
    tokio::task::yield_now().await;
    fake.proxy.refuse(false);
    let error = large.await.unwrap().unwrap_err();
    assert!(error.is_definite() && error.to_string().contains("the limit (transaction_bytes) is 4000"), "{error}");
    small.await.unwrap().unwrap();
    assert!(fake.state().received.iter().all(|request| request.encoded_len() < 1_000), "the large one was never sent");
}

#[tokio::test]
async fn a_deadline_may_be_for_ever() {
    let (_fake, client) = start().await;
    write(&client).deadline(Duration::MAX).commit().await.unwrap();
    client.begin().deadline(Duration::MAX).await.unwrap().rollback().await.unwrap();
    client.query("db", "SELECT 1", []).timeout(Duration::MAX).await.unwrap();
}
