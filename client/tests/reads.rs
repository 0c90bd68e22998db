//! Reads and migrations.

mod fake;

use fake::Fake;
use lockstep_client::{CallError, Client, Credentials, Token, params};
use std::time::Duration;
use tonic::Status;

async fn start() -> (Fake, Client) {
    let fake = Fake::start().await;
    let client = Client::connect(fake.endpoint()).await.unwrap();
    (fake, client)
}

#[tokio::test]
async fn a_query_carries_its_token_and_gives_typed_rows() {
    let (fake, client) = start().await;
    let token = Token(vec![1, 2, 3].into());
    let result = client.query("db", "SELECT n FROM stock WHERE id = ?1", params![42]).at_least(&token).limit(7).await.unwrap();
    assert_eq!(result.rows.first().unwrap().get::<i64>("n").unwrap(), 42);
    let request = fake.state().queries.pop().unwrap();
    assert_eq!((request.at_least, request.limit, request.parameters.len()), (token.0, 7, 1));
    assert!(request.wait_ms > 0 && request.wait_ms < request.timeout_ms);
}

#[tokio::test]
async fn a_search_pages_and_gives_documents_with_their_version() {
    let (fake, client) = start().await;
    let hits = client.search("index", "solaris").limit(5).offset(10).at_least(&Token(vec![9].into())).await.unwrap();
    assert_eq!((hits.total, hits.documents.len()), (3, 1));
    assert_eq!(hits.documents[0].csn.to_string(), "1.5");
    assert_eq!(hits.documents[0].json::<serde_json::Value>().unwrap()["title"], "Solaris");
    let request = fake.state().searches.pop().unwrap();
    assert_eq!((request.limit, request.offset, request.at_least.to_vec()), (5, 10, vec![9]));
}

#[tokio::test]
async fn a_document_is_there_or_not() {
    let (_fake, client) = start().await;
    assert_eq!(client.get("index", "film-42").await.unwrap().unwrap().key, "film-42");
    assert_eq!(client.get("index", "nothing").await.unwrap(), None);
}

#[tokio::test]
async fn a_read_that_could_not_be_answered_is_sent_again() {
    let (fake, client) = start().await;
    fake.state().failures.extend([Status::unavailable("starting"), Status::unknown("cut")]);
    client.query("db", "SELECT 1", []).await.unwrap();
    assert_eq!(fake.state().queries.len(), 3);
    fake.proxy.cut();
    client.query("db", "SELECT 1", []).await.unwrap();
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let (fake, client) = start().await;
    let fail = |status| {
        fake.state().failures.push_back(status);
        client.query("db", "SELECT 1", []).timeout(Duration::from_millis(100)).into_future()
    };
    let mut behind = Status::deadline_exceeded("db is at 1.5");
    behind.metadata_mut().insert("lockstep-behind-csn", (1u64 << 39 | 5).into());
    let error = fail(behind).await.unwrap_err();
    assert!(matches!(error, CallError::Behind { at, .. } if at.to_string() == "1.5"), "{error}");
    assert!(matches!(fail(Status::deadline_exceeded("after 10 ms")).await, Err(CallError::Timeout(_))));
    assert!(matches!(fail(Status::invalid_argument("no such table")).await, Err(CallError::Invalid(_))));
    assert!(matches!(fail(Status::failed_precondition("the token is of another log")).await, Err(CallError::Refused(_))));
    fake.proxy.refuse(true);
    fake.proxy.cut();
    assert!(matches!(fail(Status::unavailable("never seen")).await, Err(CallError::Unavailable(_))));
}

#[tokio::test]
async fn a_schema_is_changed_and_the_daemon_describes_itself() {
    let (_fake, client) = start().await;
    assert_eq!(client.migrate("db", "CREATE TABLE t (id INTEGER PRIMARY KEY)").await.unwrap(), "1 table");
    assert!(matches!(client.migrate("db", "").await, Err(CallError::Invalid(_))));
    let description = client.describe().await.unwrap();
    assert_eq!(description.coordinator.0, 7);
    assert_eq!(description.stores.iter().map(|store| store.name.as_str()).collect::<Vec<_>>(), ["db", "index"]);
}

#[tokio::test]
async fn a_token_that_was_replaced_is_taken_up_by_reads_alone() {
    let (fake, folder) = (Fake::start().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("token");
    std::fs::write(&file, "the-old-token-of-before").unwrap();
    let credentials = Credentials::default().token_file(&file);
    let client = Client::builder(fake.endpoint()).credentials(credentials).connect().await.unwrap();
    std::fs::write(&file, "the-new-token-of-today").unwrap();
    // The daemon does not know the old one any more; nothing else has ended the connection.
    fake.state().failures.push_back(Status::unauthenticated("who are you?"));
    client.query("db", "SELECT 1", []).await.unwrap();
    assert_eq!(fake.state().tokens, ["Bearer the-old-token-of-before", "Bearer the-new-token-of-today"]);
    // Who is not known with that one either is told so.
    fake.state().failures.extend([Status::unauthenticated("who are you?"), Status::unauthenticated("who?")]);
    assert!(matches!(client.query("db", "SELECT 1", []).await, Err(CallError::Refused(_))));
}
