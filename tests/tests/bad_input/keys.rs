//! Idempotency keys (R-KEY): used twice, malformed, from elsewhere, and across a change of the limits.

use crate::lab::{Lab, launch, says};
use crate::wire::{branch, inquiry, request, sql, written};
use lockstep_client::{CommitError, params};
use lockstep_proto::v1;
use lockstep_proto::v1::outcome::Outcome;
use lockstep_proto::v1::transact_request::Request;
use lockstep_proto::v1::transaction_service_client::TransactionServiceClient;
use lockstep_tests::workload;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_names_one_request() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut lab = Lab::start(launch(folder.path(), &[])).await?;
    let mut wire = lab.wire().await?;

    let first = wire.commit(written("order-1", "item-0")).await?.into_inner();
    let Some(Outcome::Committed(committed)) = &first.outcome else { panic!("{first:?}") };
    let txid = committed.txid;
    assert_eq!(wire.commit(written("order-1", "item-0")).await?.into_inner(), first, "sent twice, run once");
    lab.heard_raw("order-1", "item-0", first)?;
    // Another request: one that would be good, and one that makes no sense.
    for other in [request("order-1", vec![branch("db", vec![sql("DELETE FROM journal", &[])])]), request("order-1", vec![])] {
        let told = wire.commit(other).await?.into_inner();
        assert_eq!(told.outcome, Some(Outcome::KeyReused(v1::KeyReused { txid })));
    }
    let reused = lab.client.transaction().sql("db", "DELETE FROM journal", params![]).idempotency_key("order-1").commit().await;
    match reused {
        Err(error @ CommitError::KeyReused { .. }) => says(&error.to_string(), &["key reused", "already names another transaction"]),
        other => panic!("{other:?}"),
    }
    lab.is_sound().await
}

/// Answers that tell no outcome, or one that is true whatever else may be under the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_names_tell_nothing_untrue() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut lab = Lab::start(launch(folder.path(), &[])).await?;
    let good = lab.wire().await?.commit(written("order-1", "item-0")).await?.into_inner();
    lab.heard_raw("order-1", "item-0", good)?;

    let key = |bytes: Vec<u8>, attempt| Some(v1::RequestKey { key: bytes.into(), attempt });
    let named = |key| v1::CommitRequest { key, ..written("", "item-0") };
    let at = |epoch, n| v1::CommitRequest { position: Some(v1::Position { epoch, n }), ..written("order-1", "item-0") };
    let nameless = [
        (named(None), "key is missing: 1 to 64 bytes"),
        (named(key(vec![], 1)), "key.key is empty: 1 to 64 bytes"),
        (named(key(vec![1; 65], 1)), "key.key has 65 bytes: at most 64"),
        (named(key(vec![1], 0)), "key.attempt is 0: attempts count from 1"),
    ];
    for (request, words) in nameless {
        for told in everywhere(&lab, request).await? {
            let Some(Outcome::Aborted(aborted)) = told.outcome else { panic!("{told:?}") };
            assert!(aborted.txid.is_none() && aborted.reason() == v1::Reason::Invalid);
            says(&aborted.message, &[words]);
        }
    }
    // The key is known and committed: no wrong position may make it look aborted.
    for told in everywhere(&lab, at(1 << 24, 0)).await? {
        let Some(Outcome::Unknown(unknown)) = told.outcome else { panic!("{told:?}") };
        says(&unknown.message, &["position.epoch is 16777216: at most 16777215"]);
    }
    let future = v1::CommitRequest { position: Some(v1::Position { epoch: 9, n: 9 }), ..written("order-2", "item-0") };
    for told in everywhere(&lab, future).await? {
        let Some(Outcome::Unknown(unknown)) = told.outcome else { panic!("{told:?}") };
        says(&unknown.message, &["first sent at position 9-9", "it may have lost records"]);
    }
    lab.is_sound().await
}

/// I7: what ran before a limit was lowered stays committed, also for a client that sends it again; what was told aborted never runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_outlives_the_limits_it_was_made_under() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let roomy = || launch(folder.path(), &[]);
    let tight = || launch(folder.path(), &["limits.operations=2", "limits.document_bytes=20", "limits.transaction_bytes=100"]);
    let mut lab = Lab::start(roomy()).await?;
    let position = lab.wire().await?.describe(v1::DescribeRequest {}).await?.into_inner().position;
    let of = |id: &str| v1::CommitRequest { position, ..written(id, "item-0") };
    let first = lab.wire().await?.commit(of("order-1")).await?.into_inner();
    lab.heard_raw("order-1", "item-0", first.clone())?;
    let first = csn(&first);

    lab.restart(tight()).await?;
    for told in everywhere(&lab, of("order-1")).await? {
        assert_eq!(csn(&told), first, "the same request gets its receipt");
    }
    for told in everywhere(&lab, v1::CommitRequest { key: of("order-1").key, ..of("order-2") }).await? {
        assert!(matches!(told.outcome, Some(Outcome::KeyReused(_))), "another request under its key: {told:?}");
    }
    let mut wire = lab.wire().await?;
    let here = wire.describe(v1::DescribeRequest {}).await?.into_inner().position;
    let refused = v1::CommitRequest { position: here, ..written("order-3", "item-0") };
    let told = wire.commit(refused.clone()).await?.into_inner();
    let Some(Outcome::Aborted(aborted)) = &told.outcome else { panic!("{told:?}") };
    says(&aborted.message, &["(limits."]);
    assert!(aborted.txid.is_some(), "it is known under its key");
    lab.heard_raw("order-3", "item-0", told)?;
    // What ended it is kept, so that a question never finds it unborn.
    assert!(matches!(wire.inquire(inquiry(&refused)).await?.into_inner().outcome, Some(Outcome::Aborted(_))));

    lab.restart(roomy()).await?;
    for told in everywhere(&lab, refused).await? {
        assert!(matches!(told.outcome, Some(Outcome::Aborted(_))), "told aborted, so it never runs: {told:?}");
    }
    for told in everywhere(&lab, of("order-1")).await? {
        assert_eq!(csn(&told), first);
    }
    lab.is_sound().await
}

/// The library refuses what exceeds the limits without sending it, which tells nothing of an earlier sending; an inquiry does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_library_can_ask_about_what_it_could_no_longer_send() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut lab = Lab::start(launch(folder.path(), &[])).await?;
    let position = lab.client.position().expect("it has spoken");
    let order = |lab: &Lab| workload::transaction(&lab.client, "order-1", "item-0").idempotency_key("order-1").position(position);
    let csn = order(&lab).commit().await?.csn.to_u64();
    lab.heard("order-1", "item-0", Ok(csn))?;
    lab.restart(launch(folder.path(), &["limits.operations=2"])).await?;
    lab.client = workload::connect(&lab.daemon.url()).await?;
    lab.client.describe().await?;
    let told = order(&lab).commit().await;
    match told {
        Err(CommitError::Invalid(sentence)) => says(&sentence, &["the limit (operations) is 2"]),
        // Its connection had not heard of the limits yet.
        Ok(receipt) => assert_eq!(receipt.csn.to_u64(), csn),
        other => panic!("{other:?}"),
    }
    let id = lockstep_client::RequestId { key: "order-1".into(), attempt: 1, position };
    assert_eq!(lab.client.inquire(&id).await?.csn.to_u64(), csn);
    lab.restart(launch(folder.path(), &[])).await?;
    lab.client = workload::connect(&lab.daemon.url()).await?;
    lab.is_sound().await
}

/// By a call of its own, and on a stream: the rules are the same.
async fn everywhere(lab: &Lab, request: v1::CommitRequest) -> anyhow::Result<Vec<v1::Outcome>> {
    let mut wire = lab.wire().await?;
    Ok(vec![wire.commit(request.clone()).await?.into_inner(), on_a_stream(&mut wire, request).await?])
}

async fn on_a_stream(wire: &mut TransactionServiceClient<Channel>, request: v1::CommitRequest) -> anyhow::Result<v1::Outcome> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut replies = wire.transact(ReceiverStream::new(receiver)).await?.into_inner();
    sender.send(v1::TransactRequests { requests: vec![v1::TransactRequest { id: 1, request: Some(Request::Commit(request)) }] }).await?;
    while let Some(frame) = replies.message().await? {
        for reply in frame.replies {
            if let Some(v1::transact_reply::Reply::Outcome(outcome)) = reply.reply {
                return Ok(outcome);
            }
        }
    }
    anyhow::bail!("the stream ended without an answer")
}

#[track_caller]
fn csn(outcome: &v1::Outcome) -> u64 {
    match &outcome.outcome {
        Some(Outcome::Committed(committed)) => committed.csn,
        other => panic!("not committed: {other:?}"),
    }
}
