//! Connections that bring garbage, break off at any byte, or take nothing.

use crate::lab::{LIMIT, Lab, MESSAGE_BYTES, launch, says};
use crate::wire::{branch, inquiry, put, request, sql, written};
use bytes::Bytes;
use lockstep_proto::v1;
use lockstep_proto::v1::participant_service_client::ParticipantServiceClient;
use lockstep_proto::v1::transact_request::Request;
use lockstep_proto::v1::transaction_service_client::TransactionServiceClient;
use lockstep_tests::verbatim::Verbatim;
use lockstep_tests::workload;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Where in what passes between a client and the daemon the connection is cut: so many places each way.
const CUTS: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_harms_nobody() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut lab = Lab::start(launch(folder.path(), &[])).await?;
    // Some that say nothing, and stay.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(lab.daemon.address()).await?);
    }
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let endless_frame = [0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1];
    let zeros = [0; 9];
    let garbage: [&[u8]; 6] = [
        &[0xff; 4096],
        b"GET / HTTP/1.1\r\nHost: lockstep\r\n\r\n",
        // The beginning of TLS.
        &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
        &[preface.as_slice(), &[0xff; 512]].concat(),
        &[preface.as_slice(), &endless_frame, &[0; 4096]].concat(),
        &[preface.as_slice(), &zeros, &zeros, &zeros].concat(),
    ];
    for bytes in garbage {
        let mut socket = TcpStream::connect(lab.daemon.address()).await?;
        // Refused and closed at any byte.
        let _ = socket.write_all(bytes).await;
        let _ = socket.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(LIMIT, socket.read_to_end(&mut answer)).await?;
        lab.one_works().await?;
    }
    drop(silent);
    lab.is_sound().await
}

/// HTTP/2 and gRPC are in order, but what they carry is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_inside_grpc_is_told_to_its_sender() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut lab = Lab::start(launch(folder.path(), &[])).await?;
    let status = raw(&lab, "/lockstep.v1.TransactionService/Commit", vec![0xff; 100]).await?;
    assert_eq!(status.code(), Code::Internal, "{status}");
    says(status.message(), &["Protobuf"]);
    // A text that is not UTF-8, as a store's name: branches (3) of length 3, store (1) of length 1.
    let status = raw(&lab, "/lockstep.v1.TransactionService/Commit", vec![0x1a, 3, 0x0a, 1, 0xff]).await?;
    says(status.message(), &["UTF-8", "store"]);
    let status = raw(&lab, "/lockstep.v1.TransactionService/Transact", vec![0xff; 100]).await?;
    says(status.message(), &["Protobuf"]);
    let status = raw(&lab, "/lockstep.v1.TransactionService/Begin", vec![]).await?;
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
    let status = raw(&lab, "/lockstep.v1.TransactionService/Commit", vec![0; 9_000_000]).await?;
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    says(status.message(), &["found 9000000 bytes", "8388608"]);
    // Empty parts, two bytes each, that would be a hundred times as large in memory: requests (1) of a frame, branches (3) of a commit.
    for (method, part) in [("/lockstep.v1.TransactionService/Transact", [0x0a, 0]), ("/lockstep.v1.TransactionService/Commit", [0x1a, 0])] {
        let status = raw(&lab, method, part.repeat(4_000_000)).await?;
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        says(status.message(), &["a message of 8000000 bytes", "in memory; at most 48777216"]);
    }

    // On a stream it ends the stream, with the limit's name; what came before it is done and answered.
    let mut wire = lab.wire().await?;
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let mut replies = wire.transact(ReceiverStream::new(receiver)).await?.into_inner();
    sender.send(frame(1, written("before", "item-0"))).await?;
    let large = request("large", vec![branch("index", vec![put("k", &"x".repeat(9_000_000))])]);
    sender.send(frame(2, large)).await?;
    let (told, end) = all_of(&mut replies).await;
    assert_eq!(told.len(), 1);
    says(end.expect("a reason").message(), &["8388608", "(limits.frame_bytes)"]);
    lab.heard_raw("before", "item-0", told.into_iter().next().expect("one").1)?;

    // A resource manager that nobody knows.
    let mut participants = ParticipantServiceClient::new(Endpoint::from_shared(lab.daemon.url())?.connect().await?);
    let attend = |name: &str| v1::FromParticipant {
        messages: vec![v1::FromParticipantMessage {
            message: Some(v1::from_participant_message::Message::Attend(v1::Attend { name: name.into(), version: "1".into() })),
        }],
    };
    for (name, words) in [("nobody", "`nobody`"), ("db", "`db`")] {
        let status = participants.attend(tokio_stream::once(attend(name))).await.expect_err(name);
        says(status.message(), &[words]);
    }
    lab.is_sound().await
}

/// A client goes away after any number of bytes, sent or received: its transaction has happened everywhere or nowhere, and whoever asks
/// is told which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_vanish_at_each_step() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut lab = Lab::start(launch(folder.path(), &[])).await?;
    let whole = Cut::new(lab.daemon.address(), usize::MAX, usize::MAX).await?;
    assert!(one_conversation(whole.address, written("whole", "item-1")).await, "nothing was cut, so it is answered");
    let (sent, received) = (whole.sent.load(Ordering::Relaxed), whole.received.load(Ordering::Relaxed));
    ask(&mut lab, &written("whole", "item-1"), "whole").await?;

    let places = |all: usize| (0..CUTS).map(move |cut| all * cut / CUTS);
    let cuts = places(sent).map(|at| (at, usize::MAX)).chain(places(received).map(|at| (usize::MAX, at)));
    let (mut committed, mut aborted) = (0, 0);
    for (n, (send, receive)) in cuts.enumerate() {
        let id = format!("cut{n}");
        let position = lab.wire().await?.describe(v1::DescribeRequest {}).await?.into_inner().position;
        let request = v1::CommitRequest { position, ..written(&id, "item-1") };
        let cut = Cut::new(lab.daemon.address(), send, receive).await?;
        one_conversation(cut.address, request.clone()).await;
        ask(&mut lab, &request, &id).await?;
        *if lab.told.last().is_some_and(|told| told.outcome.is_ok()) { &mut committed } else { &mut aborted } += 1;
    }
    assert!(committed > 0 && aborted > 0, "some were cut before they arrived, some after: {committed} committed, {aborted} aborted");

    // The library's calls, dropped at their first waits: once sent, a transaction goes on.
    for polls in 0..8 {
        let (id, position) = (format!("dropped{polls}"), lab.client.position().expect("it has spoken"));
        let mut call = Box::pin(workload::transaction(&lab.client, &id, "item-1").idempotency_key(id.as_str()).position(position).commit());
        for _ in 0..polls {
            if futures_poll(&mut call).await {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(call);
        let request = lockstep_client::RequestId { key: id.as_str().into(), attempt: 1, position };
        let told = lab.client.inquire(&request).await.map(|receipt| receipt.csn.to_u64());
        lab.heard(&id, "item-1", told)?;
    }
    lab.is_sound().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_loses_its_stream_alone() -> anyhow::Result<()> {
    const REQUESTS: u64 = 48;
    let folder = tempfile::tempdir()?;
    let mut lab = Lab::start(launch(folder.path(), &["limits.stream_in_flight=8", "timeouts.stream_stall_ms=200"])).await?;
    let position = lab.wire().await?.describe(v1::DescribeRequest {}).await?.into_inner().position;
    // Each answer is large: together they are more than HTTP/2's windows and the sockets hold.
    let requests: Vec<_> = (0..REQUESTS)
        .map(|n| {
            let mut request = v1::CommitRequest { position, ..written(&format!("unread{n}"), "item-2") };
            request.branches[0].operations.push(sql("SELECT zeroblob(1000000)", &[]));
            request
        })
        .collect();
    let mut wire = lab.wire().await?;
    let (sender, receiver) = tokio::sync::mpsc::channel(REQUESTS as usize);
    let mut replies = wire.transact(ReceiverStream::new(receiver)).await?.into_inner();
    for (id, request) in (1..).zip(&requests) {
        sender.send(frame(id, request.clone())).await?;
    }
    // Not one of them is read while others are served, until the daemon has given the stream up.
    let output = lab.daemon.launch().log_file();
    let until = Instant::now() + LIMIT;
    while !std::fs::read_to_string(&output)?.contains("replies were not read") {
        lab.one_works().await?;
        anyhow::ensure!(Instant::now() < until, "the stream was never ended: {}", output.display());
    }
    let (answered, end) = all_of(&mut replies).await;
    says(end.expect("a reason").message(), &["replies were not read for 200 ms (timeouts.stream_stall_ms)", "the transactions go on"]);
    assert!((answered.len() as u64) < REQUESTS);
    for (n, request) in requests.iter().enumerate() {
        ask(&mut lab, request, &format!("unread{n}")).await?;
    }
    lab.is_sound().await
}

/// One connection, one stream, one transaction, acknowledged. Whether all of it worked.
async fn one_conversation(address: SocketAddr, request: v1::CommitRequest) -> bool {
    let talk = async {
        let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let mut replies = TransactionServiceClient::new(channel).transact(ReceiverStream::new(receiver)).await?.into_inner();
        sender.send(frame(1, request)).await?;
        while let Some(frame) = replies.message().await? {
            for reply in frame.replies {
                if let Some(v1::transact_reply::Reply::Outcome(v1::Outcome { outcome: Some(outcome) })) = reply.reply {
                    let v1::outcome::Outcome::Committed(committed) = outcome else { anyhow::bail!("{outcome:?}") };
                    let acknowledge = Request::Acknowledge(committed.txid.expect("it is committed"));
                    sender.send(v1::TransactRequests { requests: vec![v1::TransactRequest { id: 2, request: Some(acknowledge) }] }).await?;
                    return Ok(());
                }
            }
        }
        anyhow::bail!("the stream ended")
    };
    tokio::time::timeout(LIMIT, talk).await.is_ok_and(|talked: anyhow::Result<()>| talked.is_ok())
}

/// What became of it; definite, and the same whenever it is asked.
async fn ask(lab: &mut Lab, request: &v1::CommitRequest, id: &str) -> anyhow::Result<()> {
    let mut wire = lab.wire().await?;
    let told = wire.inquire(inquiry(request)).await?.into_inner();
    let again = wire.inquire(inquiry(request)).await?.into_inner();
    let item = document_key(&request.branches[1].operations[0]);
    let before = lab.told.len();
    lab.heard_raw(id, &item, told)?;
    lab.heard_raw(id, &item, again)?;
    let again = lab.told.pop().expect("just heard");
    assert_eq!(lab.told[before].outcome, again.outcome, "{id}: two answers");
    Ok(())
}

fn document_key(operation: &v1::Operation) -> String {
    match &operation.operation {
        Some(v1::operation::Operation::Put(put)) => put.key.clone(),
        other => panic!("{other:?} writes no document"),
    }
}

fn frame(id: u64, request: v1::CommitRequest) -> v1::TransactRequests {
    v1::TransactRequests { requests: vec![v1::TransactRequest { id, request: Some(Request::Commit(request)) }] }
}

/// Every outcome that the stream still gives, and how it ends.
async fn all_of(replies: &mut tonic::Streaming<v1::TransactReplies>) -> (Vec<(u64, v1::Outcome)>, Option<Status>) {
    let mut all = Vec::new();
    loop {
        match replies.message().await {
            Ok(Some(frame)) => all.extend(frame.replies.into_iter().filter_map(|reply| match reply.reply {
                Some(v1::transact_reply::Reply::Outcome(outcome)) => Some((reply.id, outcome)),
                _ => None,
            })),
            Ok(None) => return (all, None),
            Err(status) => return (all, Some(status)),
        }
    }
}

/// Polls once; whether it is done.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|context| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_ready())).await
}

/// A way to the daemon for one connection, which is cut after so many bytes.
struct Cut {
    address: SocketAddr,
    sent: Arc<AtomicUsize>,
    received: Arc<AtomicUsize>,
}

impl Cut {
    async fn new(daemon: SocketAddr, send: usize, receive: usize) -> anyhow::Result<Cut> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let cut = Cut { address: listener.local_addr()?, sent: Arc::default(), received: Arc::default() };
        let (sent, received) = (cut.sent.clone(), cut.received.clone());
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await?;
            let mut server = TcpStream::connect(daemon).await?;
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.split(), server.split());
            // Whichever way ends first ends both.
            tokio::select! {
                done = forward(&mut from_client, &mut to_server, send, &sent) => done,
                done = forward(&mut from_server, &mut to_client, receive, &received) => done,
            }
        });
        Ok(cut)
    }
}

async fn forward(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    budget: usize,
    count: &AtomicUsize,
) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    while count.load(Ordering::Relaxed) < budget {
        let room = buffer.len().min(budget - count.load(Ordering::Relaxed));
        let read = from.read(&mut buffer[..room]).await?;
        if read == 0 {
            break;
        }
        to.write_all(&buffer[..read]).await?;
        count.fetch_add(read, Ordering::Relaxed);
    }
    Ok(())
}

/// Calls a method with a message of these bytes; how it failed.
async fn raw(lab: &Lab, method: &'static str, message: Vec<u8>) -> anyhow::Result<Status> {
    let channel: Channel = Endpoint::from_shared(lab.daemon.url())?.connect().await?;
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES);
    grpc.ready().await?;
    let call = tonic::Request::new(tokio_stream::once(Bytes::from(message)));
    let mut answers = match grpc.streaming(call, method.parse()?, Verbatim).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return Ok(status),
    };
    loop {
        match answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => anyhow::bail!("{method} took it"),
            Err(status) => return Ok(status),
        }
    }
}
