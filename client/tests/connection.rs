//! Connections that come, go and never come.

mod fake;

use fake::{Act, Fake};
use lockstep_client::{Client, CommitError, ConnectError, Reason, Transaction, params};
use lockstep_proto::v1;
use std::collections::HashSet;
use std::time::Duration;

/// Long enough for any machine; no test waits for it to pass.
const AMPLE: Duration = Duration::from_secs(60);
/// For tests in which a deadline passes.
const SHORT: Duration = Duration::from_millis(150);

fn client(fake: &Fake) -> Client {
    let quick = Duration::from_millis(1);
    let builder = Client::builder(fake.endpoint()).request_timeout(AMPLE).connect_timeout(AMPLE).reconnect(quick, quick * 10);
    builder.connect_lazy().unwrap()
}

fn write(client: &Client) -> Transaction {
    client.transaction().sql("db", "UPDATE stock SET n = n - 1 WHERE id = ?1", params![42])
}

/// The same request each time: key, attempt, position and all the rest (R-KEY).
fn assert_all_the_same(received: &[v1::CommitRequest]) {
    assert!(received.windows(2).all(|pair| pair[0] == pair[1]), "{received:#?}");
}

#[tokio::test]
async fn lost_after_the_decision_it_is_sent_again_as_it_was_and_answered_once() {
    let fake = Fake::start().await;
    let client = client(&fake);
    fake.script([Act::CutAfter]);
    let receipt = write(&client).commit().await.unwrap();
    assert_eq!(receipt.csn.to_string(), "1.1");
    let state = fake.state();
    assert_eq!((state.received.len(), state.executed.len()), (2, 1));
    assert_all_the_same(&state.received);
}

#[tokio::test]
async fn lost_before_it_was_executed_it_is_sent_again_as_it_was() {
    let fake = Fake::start().await;
    let client = client(&fake);
    fake.script([Act::CutBefore, Act::CutBefore, Act::Commit]);
    write(&client).commit().await.unwrap();
    let state = fake.state();
    assert_eq!((state.received.len(), state.executed.len()), (3, 1));
    assert_all_the_same(&state.received);
}

#[tokio::test]
async fn after_a_restart_the_old_position_keeps_it_from_running() {
    let fake = Fake::start().await;
    let client = client(&fake);
    write(&client).commit().await.unwrap();
    for retries in [0, 1] {
        fake.script([Act::CutBefore]);
        let before = fake.state().received.len();
        let commit = tokio::spawn(write(&client).retry(retries).commit());
        while fake.state().received.len() == before {
            tokio::task::yield_now().await;
        }
        fake.restart();
        let outcome = commit.await.unwrap();
        let state = fake.state();
        let mine = &state.received[before..];
        match retries {
            0 => {
                let CommitError::Aborted(aborted) = outcome.unwrap_err() else { panic!("not aborted") };
                assert!(aborted.retryable && aborted.reason == Reason::Unavailable);
                assert_all_the_same(mine);
                assert_eq!(state.executed.len(), 1);
            }
            _ => {
                outcome.unwrap();
                let (last, first) = mine.split_last().unwrap();
                assert_all_the_same(first);
                assert_eq!(last.key.as_ref().unwrap().attempt, 2);
                assert_eq!(last.position.unwrap().epoch, state.epoch);
                assert_eq!(state.executed.len(), 2);
            }
        }
    }
}

#[tokio::test]
async fn another_coordinator_at_the_same_endpoint_is_never_given_an_old_request() {
    let fake = Fake::start().await;
    let client = client(&fake);
    write(&client).commit().await.unwrap();
    let first = client.position().unwrap();
    fake.state().coordinator = 8;
    fake.script([Act::CutAfter]);
    let error = write(&client).commit().await.unwrap_err();
    let CommitError::Unknown { message, .. } = &error else { panic!("{error}") };
    assert!(message.starts_with("it was sent to coordinator 0000") && message.ends_with("8 answers at this endpoint now"), "{message}");
    assert_eq!(fake.state().received.len(), 2);
    let error = write(&client).idempotency_key("k").position(first).commit().await.unwrap_err();
    assert!(matches!(error, CommitError::Unknown { .. }), "{error}");
    write(&client).commit().await.unwrap();
    assert_eq!(fake.state().received.len(), 3);
}

#[tokio::test]
async fn another_coordinator_at_the_same_endpoint_hears_nothing_of_what_the_first_one_has() {
    let fake = Fake::start().await;
    let client = client(&fake);
    let (before, after) = (client.begin().await.unwrap(), client.begin().await.unwrap());
    // Its results are kept until they are acknowledged.
    write(&client).commit().await.unwrap();
    fake.proxy.refuse(true);
    fake.proxy.cut();
    write(&client).deadline(SHORT).commit().await.unwrap_err();
    // Given up while there is no connection, and when another one stands.
    drop(before);
    fake.state().coordinator = 8;
    fake.proxy.refuse(false);
    let other = || client.transaction().delete("index", "film-7").commit();
    other().await.unwrap();
    drop(after);
    other().await.unwrap();
    let state = fake.state();
    assert_eq!((state.acknowledged.len(), state.rolled_back.len()), (0, 0));
}

#[tokio::test]
async fn a_daemon_that_has_gone_gives_an_answer_by_the_deadline() {
    let fake = Fake::start().await;
    let client = client(&fake);
    write(&client).commit().await.unwrap();
    fake.proxy.refuse(true);
    fake.script([Act::CutAfter]);
    let error = write(&client).deadline(SHORT).commit().await.unwrap_err();
    let CommitError::Unknown { request, message } = &error else { panic!("{error}") };
    assert!(message.starts_with("no connection: "), "{message}");
    let error = write(&client).deadline(SHORT).commit().await.unwrap_err();
    assert!(matches!(&error, CommitError::NotSent(why) if why.starts_with("no connection: ")), "{error}");

    fake.proxy.refuse(false);
    assert_eq!(client.inquire(request).await.unwrap().csn.to_string(), "1.2");
    assert_eq!(fake.state().executed.len(), 2);
}

#[tokio::test]
async fn a_client_may_start_before_its_daemon() {
    let fake = Fake::start().await;
    fake.proxy.refuse(true);
    let client = client(&fake);
    assert_eq!(client.position(), None);
    let commit = tokio::spawn(write(&client).commit());
    tokio::task::yield_now().await;
    fake.proxy.refuse(false);
    commit.await.unwrap().unwrap();
}

#[tokio::test]
async fn connecting_says_why_it_could_not() {
    let error = Client::connect("ftp://127.0.0.1:1").await.unwrap_err();
    assert!(matches!(error, ConnectError::InvalidEndpoint { .. }), "{error}");
    let fake = Fake::start().await;
    fake.proxy.refuse(true);
    let error = Client::builder(fake.endpoint()).connect_timeout(SHORT).connect().await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("no coordinator answers at {}: ", fake.endpoint())), "{error}");
    // A port behind which nobody ever says a word.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = Client::builder(mute.local_addr().unwrap().to_string()).connect_timeout(SHORT).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn who_drops_the_future_does_not_cancel_what_was_sent_and_nothing_is_sent_again_for_nobody() {
    let fake = Fake::start().await;
    let client = client(&fake);
    fake.script([Act::Silent]);
    let commit = tokio::spawn(write(&client).commit());
    while fake.state().received.is_empty() {
        tokio::task::yield_now().await;
    }
    commit.abort();
    assert!(commit.await.unwrap_err().is_cancelled());
    fake.proxy.cut();
    write(&client).commit().await.unwrap();
    let state = fake.state();
    assert_eq!((state.received.len(), state.executed.len()), (2, 2));
}

#[tokio::test]
async fn the_last_client_closes_the_connection() {
    let fake = Fake::start().await;
    let client = client(&fake);
    let clone = client.clone();
    drop(client);
    write(&clone).commit().await.unwrap();
    drop(clone);
    let again = self::client(&fake);
    write(&again).commit().await.unwrap();
}

/// Every transaction is executed exactly once and its client has its receipt, under any mix of faults.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_mix_of_faults_commits_each_exactly_once() {
    for seed in 0..8u64 {
        let fake = Fake::start().await;
        let client = client(&fake);
        let mut random = Random(seed);
        let acts = (0..400).map(|_| match random.below(40) {
            0 => Act::CutBefore,
            1 => Act::CutAfter,
            2..=4 => Act::CommitTwice,
            5..=6 => Act::Unknown(random.below(3) as u32),
            7..=9 => Act::Abort(v1::Reason::Conflict, true),
            10 => Act::Expired,
            _ => Act::Commit,
        });
        fake.script(acts);
        let mut commits = tokio::task::JoinSet::new();
        for n in 0..300 {
            commits.spawn(write(&client).idempotency_key(format!("key-{n}")).retry(1000).commit());
        }
        let mut receipts = HashSet::new();
        while let Some(receipt) = commits.join_next().await {
            match receipt.unwrap() {
                Ok(receipt) => assert!(receipts.insert(receipt.csn), "seed {seed}: {} twice", receipt.csn),
                // Sent more than once and then called expired: the client may not take another position by itself.
                Err(CommitError::Expired { .. }) => {}
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        let state = fake.state();
        let keys: HashSet<_> = state.executed.iter().map(|request| request.key.clone().unwrap().key).collect();
        assert_eq!(keys.len(), state.executed.len(), "seed {seed}: a key was executed twice");
        assert_eq!(receipts.len(), state.executed.len(), "seed {seed}: an execution without a receipt");
        assert!(receipts.len() >= 290, "seed {seed}: {} of 300", receipts.len());
    }
}

/// Marsaglia's xorshift, seeded.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        let x = &mut self.0;
        *x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*x >> 33) % limit
    }
}
