//! The services over a real connection, with an engine that answers by rote.

use super::serve;
use crate::configuration::{Configuration, Source};
use crate::engine_handle::{
    Access, Answer, EngineHandle, EngineMessage, HandleParts, Identity, Outbox, Phase, Question, Registered, Registry,
};
use crate::security::Security;
use bytes::Bytes;
use lockstep_core::{
    CoordId, Csn, Decider, Epoch, Event, FromParticipant, Kind, LogId, ParticipantId, Position, Progress, Receipt, Refusal, RefusalKind,
    Reply, Role, SessionId, ToParticipant, Token, Txid,
};
use lockstep_participants::{Finding, Reader, StoreError};
use lockstep_proto::v1;
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use lockstep_proto::v1::participant_service_client::ParticipantServiceClient;
use lockstep_proto::v1::transaction_service_client::TransactionServiceClient;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;
use v1::outcome::Outcome as O;

const IDENTITY: Identity = Identity { coord_id: CoordId(7), log_id: LogId(8) };
const HERE: Position = Position { epoch: Epoch(3), n: 17 };
const BEFORE: Position = Position { epoch: Epoch(2), n: 7 };

/// A server, and what reaches its engine.
struct Server {
    engine: EngineHandle,
    address: SocketAddr,
    channel: Channel,
    messages: Option<mpsc::Receiver<EngineMessage>>,
    _open: oneshot::Sender<()>,
}

impl Server {
    async fn start(overrides: &[&str]) -> Server {
        let source = Source { set: overrides.iter().map(|pair| pair.to_string()).collect(), ..Source::default() };
        let configuration: Configuration = source.load().unwrap();
        let entry =
            |id, name: &str, store_type, role, kind| Registered { id: ParticipantId(id), name: name.into(), store_type, role, kind };
        let registry = Registry::new(vec![
            entry(1, "db", "sqlite", Role::Database, Kind::Serial),
            entry(2, "index", "tantivy", Role::Index, Kind::Redo),
            entry(3, "far", "remote", Role::Database, Kind::Preparing),
        ]);
        let queue_events = configuration.limits.queue_events;
        let parts = HandleParts { registry, queue_events, identity: IDENTITY, position: HERE, before: Csn::new(BEFORE.epoch, BEFORE.n) };
        let (engine, messages) = EngineHandle::new(parts);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, ended) = oneshot::channel::<()>();
        let ended = async {
            let _ = ended.await;
        };
        tokio::spawn(serve(engine.clone(), Arc::new(configuration), Security::none(), listener, None, ended));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Server { engine, address, channel, messages: Some(messages), _open: open }
    }

    /// Every transaction commits at once, in the order of arrival.
    fn commit_everything(&mut self) -> std::thread::JoinHandle<()> {
        let messages = self.messages.take().unwrap();
        std::thread::spawn(move || {
            let mut n = 0;
            for message in messages {
                let EngineMessage::Submit(submissions, _room) = message else { continue };
                for submission in submissions {
                    n += 1;
                    submission.answer.give(committed(n));
                }
            }
        })
    }

    fn transactions(&self) -> TransactionServiceClient<Channel> {
        TransactionServiceClient::new(self.channel.clone())
    }

    /// A stream, past its welcome.
    async fn transact(&self) -> (tokio::sync::mpsc::Sender<v1::TransactRequests>, tonic::Streaming<v1::TransactReplies>) {
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        let mut replies = self.transactions().transact(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let welcome = replies.message().await.unwrap().unwrap();
        let Some(v1::transact_reply::Reply::Welcome(welcome)) = &welcome.replies[0].reply else { panic!("{welcome:?}") };
        assert_eq!(welcome.stores.iter().map(|store| store.name.as_str()).collect::<Vec<_>>(), ["db", "index", "far"]);
        (sender, replies)
    }
}

fn committed(n: u64) -> Reply {
    let csn = Csn::new(Epoch(3), n);
    let txid = Txid { epoch: Epoch(3), n, decider: Decider::Log };
    Reply::Committed(Receipt {
        txid,
        csn,
        token: Token { log_id: IDENTITY.log_id, csn },
        results: Some(vec![]),
        pending: vec![],
        damaged: vec![],
    })
}

fn commit(key: u64) -> v1::CommitRequest {
    let statement = v1::Statement { sql: "INSERT INTO t VALUES (?)".into(), ..v1::Statement::default() };
    let operation = v1::Operation { operation: Some(v1::operation::Operation::Statement(statement)) };
    v1::CommitRequest {
        key: Some(v1::RequestKey { key: Bytes::copy_from_slice(&key.to_be_bytes()), attempt: 1 }),
        branches: vec![v1::Branch { store: "db".into(), operations: vec![operation] }],
        ..v1::CommitRequest::default()
    }
}

fn request(id: u64, commit: v1::CommitRequest) -> v1::TransactRequest {
    v1::TransactRequest { id, request: Some(v1::transact_request::Request::Commit(commit)) }
}

fn outcome(reply: &v1::TransactReply) -> &O {
    match &reply.reply {
        Some(v1::transact_reply::Reply::Outcome(outcome)) => outcome.outcome.as_ref().unwrap(),
        reply => panic!("{reply:?}"),
    }
}

async fn some_replies(stream: &mut tonic::Streaming<v1::TransactReplies>, count: usize) -> Vec<v1::TransactReply> {
    let mut replies = Vec::new();
    while replies.len() < count {
        replies.extend(stream.message().await.unwrap().expect("the stream is open").replies);
    }
    replies
}

#[tokio::test]
async fn a_frame_goes_to_the_engine_as_one_and_a_refused_request_fails_alone() {
    let mut server = Server::start(&[]).await;
    let (sender, mut replies) = server.transact().await;
    let acknowledge = v1::transact_request::Request::Acknowledge(v1::TransactionId { epoch: 3, n: 1, leader: 0 });
    let requests = vec![
        request(1, commit(1)),
        request(2, v1::CommitRequest { branches: vec![], ..commit(2) }),
        v1::TransactRequest { id: 3, request: None },
        v1::TransactRequest { id: 4, request: Some(acknowledge) },
        request(5, commit(5)),
    ];
    sender.send(v1::TransactRequests { requests }).await.unwrap();
    let messages = server.messages.take().unwrap();
    let message = tokio::task::spawn_blocking(move || messages.recv().unwrap()).await.unwrap();
    let EngineMessage::Submit(submissions, _room) = message else { panic!("not a submission") };
    // The engine declines the second, whose key it may know; the third has none.
    assert_eq!(submissions.len(), 4);
    assert!(matches!(&submissions[1].event, Event::Decline { refusal, .. } if refusal.message.starts_with("branches is empty")));
    assert!(matches!(&submissions[2], submission if matches!(submission.event, Event::ResultsAcked(_)) && submission.ticket.is_none()));
    for (n, submission) in submissions.into_iter().enumerate() {
        submission.answer.give(committed(n as u64 + 1));
    }
    let mut replies = some_replies(&mut replies, 4).await;
    replies.sort_by_key(|reply| reply.id);
    assert_eq!(replies.iter().map(|reply| reply.id).collect::<Vec<_>>(), [1, 2, 3, 5]);
    for answered in [0, 1, 3] {
        assert!(matches!(outcome(&replies[answered]), O::Committed(_)));
    }
    assert!(matches!(outcome(&replies[2]), O::Aborted(aborted) if aborted.reason() == v1::Reason::Invalid));
    assert_eq!(replies[0].position, Some(v1::Position { epoch: 3, n: 17 }));
}

#[tokio::test]
async fn many_requests_on_one_stream_are_all_answered_once_though_few_may_be_under_way() {
    let mut server = Server::start(&["limits.stream_in_flight=8"]).await;
    server.commit_everything();
    let (sender, mut replies) = server.transact().await;
    const FRAMES: u64 = 20;
    const EACH: u64 = 100;
    tokio::spawn(async move {
        for frame in 0..FRAMES {
            let requests = (0..EACH).map(|at| request(frame * EACH + at, commit(frame * EACH + at))).collect();
            sender.send(v1::TransactRequests { requests }).await.unwrap();
        }
    });
    let mut ids: Vec<u64> = some_replies(&mut replies, (FRAMES * EACH) as usize).await.iter().map(|reply| reply.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..FRAMES * EACH).collect::<Vec<_>>());
    // The client has closed its half: once all is answered, so does the server.
    assert!(replies.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_client_that_reads_nothing_loses_its_stream_and_its_transactions_go_on() {
    let mut server = Server::start(&["limits.stream_in_flight=4", "timeouts.stream_stall_ms=50"]).await;
    let messages = server.messages.take().unwrap();
    let (answered, mut answers) = tokio::sync::mpsc::unbounded_channel();
    // One reply is more than HTTP/2's windows hold.
    let rows = vec![vec![lockstep_core::Value::Blob(Bytes::from(vec![0; 16 << 20]))]];
    let result = lockstep_core::StatementResult { rows, ..lockstep_core::StatementResult::default() };
    let results: lockstep_core::Results = vec![result].into();
    std::thread::spawn(move || {
        for message in messages {
            let EngineMessage::Submit(submissions, _room) = message else { continue };
            for submission in submissions {
                let Answer::Stream(replies, id) = submission.answer else { panic!("not of a stream") };
                let Reply::Committed(receipt) = committed(id) else { unreachable!() };
                let receipt = Receipt { results: Some(vec![(ParticipantId(1), results.clone())]), ..receipt };
                Answer::Stream(replies.clone(), id).give(Reply::Committed(receipt));
                let _ = answered.send(replies);
            }
        }
    });
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    let mut client = server.transactions().max_decoding_message_size(usize::MAX);
    let mut replies = client.transact(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    for id in 0..16 {
        sender.send(v1::TransactRequests { requests: vec![request(id, commit(id))] }).await.unwrap();
    }
    // Nothing is read meanwhile: the server gives the queue up.
    answers.recv().await.unwrap().closed().await;
    let ended = loop {
        match replies.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::ResourceExhausted, "{ended}");
    assert!(ended.message().contains("timeouts.stream_stall_ms"), "{ended}");
}

#[tokio::test]
async fn streams_are_limited() {
    let server = Server::start(&["limits.streams=1"]).await;
    let first = server.transact().await;
    // Over a connection of its own: HTTP/2's own limit of streams is the connection's.
    let other = Channel::from_shared(format!("http://{}", server.address)).unwrap().connect().await.unwrap();
    let (_sender, receiver) = tokio::sync::mpsc::channel::<v1::TransactRequests>(1);
    let refused = TransactionServiceClient::new(other).transact(ReceiverStream::new(receiver)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("limits.streams"), "{refused}");
    drop(first);
}

#[tokio::test]
async fn an_oversized_frame_ends_its_stream_with_a_reason() {
    let server = Server::start(&["limits.transaction_bytes=1000", "limits.frame_bytes=70000"]).await;
    let (sender, mut replies) = server.transact().await;
    let mut large = commit(1);
    large.traceparent = "x".repeat(100_000);
    sender.send(v1::TransactRequests { requests: vec![request(1, large)] }).await.unwrap();
    let status = loop {
        match replies.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(status.message().contains("70000"), "{status}");
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    let mut server = Server::start(&[]).await;
    server.commit_everything();
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(&[0xff; 4096]).await.unwrap();
    let mut answer = Vec::new();
    // Whatever HTTP/2 has to say about it, and then the end: closed or reset.
    let _ = socket.read_to_end(&mut answer).await;
    let answer = server.transactions().commit(commit(1)).await.unwrap().into_inner();
    assert!(matches!(answer.outcome, Some(O::Committed(_))));
}

#[tokio::test]
async fn unary_calls_follow_the_same_rules() {
    let mut server = Server::start(&[]).await;
    server.commit_everything();
    let mut client = server.transactions();
    let committed = client.commit(commit(1)).await.unwrap().into_inner();
    assert!(matches!(committed.outcome, Some(O::Committed(_))));
    let refused = client.commit(v1::CommitRequest { key: None, ..commit(1) }).await.unwrap().into_inner();
    assert!(matches!(refused.outcome, Some(O::Aborted(aborted)) if aborted.message.contains("key is missing")));
    let inquire = v1::InquireRequest { key: commit(1).key, ..v1::InquireRequest::default() };
    assert!(matches!(client.inquire(inquire).await.unwrap().into_inner().outcome, Some(O::Committed(_))));
    let described = client.describe(v1::DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!(described.log_id.len(), 16);
    let query = v1::QueryRequest { store: "nowhere".into(), sql: "SELECT 1".into(), ..v1::QueryRequest::default() };
    let unknown = client.query(query).await.unwrap_err();
    assert_eq!((unknown.code(), unknown.message()), (Code::NotFound, "store: there is no store `nowhere`; configured: db, index, far"));
    let token =
        v1::QueryRequest { store: "db".into(), sql: "SELECT 1".into(), at_least: Bytes::from_static(b"x"), ..v1::QueryRequest::default() };
    assert_eq!(client.query(token).await.unwrap_err().code(), Code::InvalidArgument);
    let remote = v1::GetRequest { store: "far".into(), key: "k".into(), ..v1::GetRequest::default() };
    assert_eq!(client.get(remote).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_store_that_is_behind_says_where_it_stands() {
    let mut server = Server::start(&[]).await;
    let messages = server.messages.take().unwrap();
    std::thread::spawn(move || {
        for message in messages {
            let EngineMessage::Submit(submissions, _room) = message else { continue };
            for submission in submissions {
                assert!(matches!(submission.event, Event::AtLeast { participant: ParticipantId(1), .. }));
                submission.answer.give(Reply::Behind(Csn::new(Epoch(3), 4)));
            }
        }
    });
    let at_least = super::translate::token_out(Token { log_id: IDENTITY.log_id, csn: Csn::new(Epoch(3), 9) });
    let query = v1::QueryRequest { store: "db".into(), sql: "SELECT 1".into(), at_least, ..v1::QueryRequest::default() };
    let behind = server.transactions().query(query).await.unwrap_err();
    assert_eq!(behind.code(), Code::DeadlineExceeded);
    assert!(behind.message().contains("up to CSN 3.4"), "{behind}");
    assert_eq!(behind.metadata().get("lockstep-behind-csn").unwrap(), &Csn::new(Epoch(3), 4).to_u64().to_string());
}

/// Power loss may have taken back what a store showed whose commits are not forced: it is read once it has followed the log again.
#[tokio::test]
async fn a_read_waits_until_the_store_shows_what_it_showed_before() {
    let mut server = Server::start(&[]).await;
    let messages = server.messages.take().unwrap();
    let questions = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&questions);
    std::thread::spawn(move || {
        for message in messages {
            let EngineMessage::Submit(submissions, _room) = message else { continue };
            for submission in submissions {
                let Event::AtLeast { participant: ParticipantId(1), token, .. } = submission.event else {
                    panic!("{:?}", submission.event)
                };
                assert_eq!((token.csn.epoch(), token.csn.n()), (BEFORE.epoch, BEFORE.n));
                let early = asked.fetch_add(1, Ordering::Relaxed) < 2;
                submission.answer.give(if early { Reply::Behind(Csn::ZERO) } else { Reply::Reached(token.csn) });
            }
        }
    });
    let mut transactions = server.transactions();
    let query = v1::QueryRequest { store: "db".into(), sql: "SELECT 1".into(), ..v1::QueryRequest::default() };
    let search = v1::SearchRequest { store: "index".into(), query: "*".into(), ..v1::SearchRequest::default() };
    assert_eq!(transactions.query(query.clone()).await.unwrap_err().code(), Code::DeadlineExceeded);
    // Also one whose token is older than what was seen.
    let at_least = super::translate::token_out(Token { log_id: IDENTITY.log_id, csn: Csn::new(BEFORE.epoch, BEFORE.n - 1) });
    let older = v1::QueryRequest { at_least, ..query.clone() };
    assert_eq!(transactions.query(older).await.unwrap_err().code(), Code::DeadlineExceeded);
    // Nothing can be read here; but it is tried.
    for _ in 0..2 {
        assert_eq!(transactions.query(query.clone()).await.unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(transactions.search(search.clone()).await.unwrap_err().code(), Code::FailedPrecondition);
    }
    assert_eq!(questions.load(Ordering::Relaxed), 3, "once it shows them, nobody waits any more");
}

#[tokio::test]
async fn an_engine_that_has_ended_is_unavailable_never_aborted() {
    let mut server = Server::start(&[]).await;
    drop(server.messages.take());
    let gone = server.transactions().commit(commit(1)).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable);
}

#[tokio::test]
async fn operators_are_asked_who_and_why_and_names_become_numbers() {
    let mut server = Server::start(&[]).await;
    let messages = server.messages.take().unwrap();
    std::thread::spawn(move || {
        for message in messages {
            match message {
                EngineMessage::Order(audit, order, _room) => {
                    let Event::Admin { operator, .. } = order.event else { panic!("{:?}", order.event) };
                    assert_eq!(audit.operator, operator);
                    order.answer.give(Reply::Done(format!("by {operator}")));
                }
                EngineMessage::Ask(Question::Status(answer)) => {
                    let _ = answer.send(v1::StatusReply { phase: "serving".into(), ..v1::StatusReply::default() });
                }
                EngineMessage::Ask(Question::Participant(name, answer)) => {
                    let _ = answer.send((name == "index").then_some(ParticipantId(2)));
                }
                EngineMessage::Ask(Question::ShowTransaction(_, answer)) => drop(answer.send(None)),
                _ => panic!("not asked for"),
            }
        }
    });
    let mut client = AdminServiceClient::new(server.channel.clone());
    assert_eq!(client.status(v1::StatusRequest {}).await.unwrap().into_inner().phase, "serving");
    let skip = v1::SkipRequest { txid: "3-17".into(), participant: "index".into(), operator: "ada".into(), reason: String::new() };
    assert!(client.skip(skip.clone()).await.unwrap_err().message().contains("reason is empty"));
    let reply = client.skip(v1::SkipRequest { reason: "broken".into(), ..skip.clone() }).await.unwrap().into_inner();
    assert_eq!((reply.done, reply.message.as_str()), (true, "by ada"));
    let wrong = client.skip(v1::SkipRequest { txid: "x".into(), ..skip }).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    let unknown = client.show_transaction(v1::ShowTransactionRequest { txid: "3-17".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let states = v1::ListTransactionsRequest { states: vec!["odd".into()], ..v1::ListTransactionsRequest::default() };
    assert!(client.list_transactions(states).await.unwrap_err().message().contains("`odd` is none of active"));
}

#[tokio::test]
async fn health_follows_the_engine() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    let server = Server::start(&[]).await;
    let request = HealthCheckRequest { service: "lockstep.v1.TransactionService".into() };
    let mut health = HealthClient::new(server.channel.clone()).watch(request).await.unwrap().into_inner();
    let mut expect = async |expected: ServingStatus| while health.message().await.unwrap().unwrap().status() != expected {};
    expect(ServingStatus::NotServing).await;
    server.engine.shared().publish_phase(Phase::Serving);
    expect(ServingStatus::Serving).await;
    server.engine.shared().publish_phase(Phase::SafeMode("lost".into()));
    expect(ServingStatus::NotServing).await;
}

#[tokio::test]
async fn a_remote_participant_attends_and_leaves() {
    let mut server = Server::start(&[]).await;
    let messages = server.messages.take().unwrap();
    let next = |messages: mpsc::Receiver<EngineMessage>| async {
        tokio::task::spawn_blocking(move || (messages.recv().unwrap(), messages)).await.unwrap()
    };
    let mut client = ParticipantServiceClient::new(server.channel.clone());
    let attend = |name: &str| v1::FromParticipant {
        messages: vec![v1::FromParticipantMessage {
            message: Some(v1::from_participant_message::Message::Attend(v1::Attend { name: name.into(), version: "1".into() })),
        }],
    };
    for (name, code) in [("nobody", Code::NotFound), ("db", Code::FailedPrecondition)] {
        assert_eq!(client.attend(tokio_stream::once(attend(name))).await.unwrap_err().code(), code, "{name}");
    }
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    sender.send(attend("far")).await.unwrap();
    let mut sent = client.attend(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let (message, messages) = next(messages).await;
    let EngineMessage::Attend(ParticipantId(3), session, outbox) = message else { panic!("no attendance") };
    assert!(matches!(outbox, Outbox::Stream(_)) && session > SessionId(0));
    outbox.send(session, vec![ToParticipant::Open, ToParticipant::Closed(Csn::ZERO)]).unwrap();
    let frame = sent.message().await.unwrap().unwrap();
    assert_eq!(frame.messages.len(), 2, "what has gathered goes out together");
    let progress = FromParticipant::Progress(Progress::default());
    let frame = v1::FromParticipant { messages: vec![super::participant_messages::from_participant_out(&progress)] };
    sender.send(frame).await.unwrap();
    let (message, messages) = next(messages).await;
    assert!(matches!(message, EngineMessage::FromParticipant(ParticipantId(3), at, said, _) if at == session && said == [progress]));
    drop(sender);
    let (message, _messages) = next(messages).await;
    assert!(matches!(message, EngineMessage::Event(Event::SessionDown(ParticipantId(3), at)) if at == session));
    drop(outbox);
    assert!(sent.message().await.unwrap().is_none());
}

#[test]
fn an_answer_to_nobody_is_no_error() {
    Answer::Nobody.give(committed(1));
    let (sender, _) = oneshot::channel();
    Answer::Once(sender).give(committed(1));
}

#[tokio::test]
async fn a_transaction_is_begun_and_rolled_back_over_the_stream() {
    use v1::transact_reply::Reply as R;
    use v1::transact_request::Request as Q;
    let mut server = Server::start(&[]).await;
    let messages = server.messages.take().unwrap();
    std::thread::spawn(move || {
        for message in messages {
            let EngineMessage::Submit(submissions, _room) = message else { continue };
            for submission in submissions {
                submission.answer.give(match submission.event {
                    Event::Begin { position, led_by, timeout, .. } => {
                        assert_eq!((position, timeout), (HERE, 7_000_000));
                        Reply::Begun(Txid { epoch: Epoch(3), n: 17, decider: led_by.map_or(Decider::Log, Decider::Leader) })
                    }
                    Event::Rollback { position, .. } => Reply::Unknown(format!("{position:?}")),
                    Event::Decline { refusal, .. } => Reply::Unknown(refusal.message),
                    other => panic!("{other:?}"),
                });
            }
        }
    });
    let (sender, mut replies) = server.transact().await;
    let key = commit(1).key;
    let begin = |led_by: &str| Q::Begin(v1::BeginRequest { key: key.clone(), position: None, led_by: led_by.into(), timeout_ms: 7_000 });
    let rollback = v1::RollbackRequest { key: key.clone(), position: Some(v1::Position { epoch: 2, n: 1 }) };
    let requests = [begin("far"), Q::Rollback(rollback), begin("nowhere"), Q::Begin(v1::BeginRequest::default())];
    let requests = requests.into_iter().zip(1..).map(|(request, id)| v1::TransactRequest { id, request: Some(request) }).collect();
    sender.send(v1::TransactRequests { requests }).await.unwrap();
    let mut replies = some_replies(&mut replies, 4).await;
    replies.sort_by_key(|reply| reply.id);
    let begun = v1::TransactionId { epoch: 3, n: 17, leader: 4 };
    assert_eq!(replies[0].reply, Some(R::Begun(v1::Begun { txid: Some(begun) })));
    let told = |at: usize| match outcome(&replies[at]) {
        O::Unknown(unknown) => unknown.message.clone(),
        O::Aborted(aborted) => aborted.message.clone(),
        other => panic!("{other:?}"),
    };
    assert!(told(1).contains("epoch: 2, n: 1"), "{}", told(1));
    assert!(told(2).starts_with("led_by: there is no store `nowhere`"), "{}", told(2));
    assert!(told(3).starts_with("key is missing"), "{}", told(3));
}

type Migrated = oneshot::Sender<Result<String, StoreError>>;

/// A store of which nothing is asked that a reader has to know.
struct Plain;

impl Reader for Plain {
    fn examine(&self) -> Vec<Finding> {
        vec![Finding::warning("it is plain", "leave it so")]
    }
}

/// One that answers only when nobody can hear it any more.
struct Deaf {
    examinations: AtomicUsize,
    released: Mutex<mpsc::Receiver<()>>,
}

impl Reader for Deaf {
    fn examine(&self) -> Vec<Finding> {
        self.examinations.fetch_add(1, Ordering::Relaxed);
        let _ = self.released.lock().unwrap().recv();
        Vec::new()
    }
}

/// Says when it reads, and reads until it is released.
struct Slow {
    reading: tokio::sync::mpsc::UnboundedSender<()>,
    released: Mutex<mpsc::Receiver<()>>,
}

impl Reader for Slow {
    fn get(&self, _: &str) -> Result<Option<lockstep_participants::Document>, StoreError> {
        let _ = self.reading.send(());
        let _ = self.released.lock().unwrap().recv();
        Ok(None)
    }
}

fn access(participant: u16, reader: Arc<dyn Reader>) -> Access {
    Access { participant: ParticipantId(participant), reader, applications: None, migrate: Box::new(|_, _| {}) }
}

/// What reaches an engine that notes every order, and holds its log as soon as the test says so.
struct Orders {
    migrations: UnboundedReceiver<Migrated>,
    holds: UnboundedReceiver<oneshot::Sender<crate::engine_handle::Held>>,
    failures: UnboundedReceiver<lockstep_core::Audit>,
}

impl Orders {
    fn at(server: &mut Server) -> Orders {
        let (migrating, migrations) = unbounded_channel();
        let migrate = Box::new(move |_, waiter| drop(migrating.send(waiter)));
        server.engine.install(vec![Access { migrate, ..access(1, Arc::new(Plain)) }]);
        let ((holding, holds), (failing, failures)) = (unbounded_channel(), unbounded_channel());
        let messages = server.messages.take().unwrap();
        std::thread::spawn(move || {
            for message in messages {
                match message {
                    EngineMessage::Submit(submissions, _room) => {
                        submissions.into_iter().for_each(|noted| noted.answer.give(Reply::Done("noted".into())));
                    }
                    EngineMessage::Ask(Question::HoldForgetting(answer)) => drop(holding.send(answer)),
                    EngineMessage::Event(Event::Audit(None, audit)) => drop(failing.send(audit)),
                    _ => panic!("not asked for"),
                }
            }
        });
        Orders { migrations, holds, failures }
    }
}

fn migration() -> v1::MigrateRequest {
    v1::MigrateRequest { store: "db".into(), script: "ALTER TABLE t ADD COLUMN w".into() }
}

fn backup(folder: &std::path::Path) -> tokio_stream::Once<v1::BackupRequest> {
    tokio_stream::once(v1::BackupRequest { request: Some(v1::backup_request::Request::Folder(folder.display().to_string())) })
}

/// A redo of after a migration does not fit a copy of before it.
#[tokio::test]
async fn a_backup_and_a_migration_exclude_each_other() {
    let mut server = Server::start(&[]).await;
    let mut orders = Orders::at(&mut server);
    let folder = std::env::temp_dir().join(format!("lockstep-schemas-{}", std::process::id()));
    let mut admin = AdminServiceClient::new(server.channel.clone());
    let mut transactions = server.transactions();
    let migrating = tokio::spawn(async move { transactions.migrate(migration()).await });
    let migrated = orders.migrations.recv().await.unwrap();
    let refused = admin.backup(backup(&folder)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("schema is being changed") && !folder.exists(), "{refused}");
    migrated.send(Ok("changed".into())).unwrap();
    assert_eq!(migrating.await.unwrap().unwrap().into_inner().message, "changed");

    let mut replies = admin.backup(backup(&folder)).await.unwrap().into_inner();
    let hold = orders.holds.recv().await.unwrap();
    let refused = server.transactions().migrate(migration()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("a backup is being made"), "{refused}");
    // The engine ends: the backup has failed, and that is noted.
    drop(hold);
    assert_eq!(replies.message().await.unwrap_err().code(), Code::Unavailable);
    let failure = orders.failures.recv().await.unwrap();
    assert_eq!(failure.what, format!("backup `{}`", folder.display()));
    assert!(!failure.refused.is_empty() && !folder.exists());
}

#[tokio::test]
async fn a_migration_whose_caller_has_gone_is_still_under_way() {
    let mut server = Server::start(&[]).await;
    let mut orders = Orders::at(&mut server);
    let mut transactions = server.transactions();
    let migrating = tokio::spawn(async move { transactions.migrate(migration()).await });
    let migrated = orders.migrations.recv().await.unwrap();
    migrating.abort();
    let _ = migrating.await;
    let folder = std::env::temp_dir().join(format!("lockstep-abandoned-{}", std::process::id()));
    let refused = AdminServiceClient::new(server.channel.clone()).backup(backup(&folder)).await.unwrap_err();
    assert!(refused.message().contains("schema is being changed"), "{refused}");
    // It fails, and that is noted though nobody hears of it.
    migrated.send(Err(StoreError::Invalid("no such table: t".into()))).unwrap();
    let failure = orders.failures.recv().await.unwrap();
    assert_eq!((failure.what.as_str(), failure.refused.as_str()), ("migrate `db`", "no such table: t"));
}

#[tokio::test]
async fn a_store_that_does_not_answer_blinds_the_doctor_to_no_other() {
    let mut server = Server::start(&[]).await;
    let (_release, released) = mpsc::channel();
    let deaf = Arc::new(Deaf { examinations: AtomicUsize::new(0), released: Mutex::new(released) });
    server.engine.install(vec![access(1, Arc::clone(&deaf) as Arc<dyn Reader>), access(2, Arc::new(Plain))]);
    let messages = server.messages.take().unwrap();
    std::thread::spawn(move || {
        for message in messages {
            let EngineMessage::Ask(Question::Doctor(answer)) = message else { panic!("not asked for") };
            let _ = answer.send(v1::DoctorReply::default());
        }
    });
    let examine = || {
        let mut admin = AdminServiceClient::new(server.channel.clone());
        tokio::spawn(async move { admin.doctor(v1::DoctorRequest {}).await.unwrap().into_inner().findings })
    };
    for asked in [examine(), examine()] {
        let findings = asked.await.unwrap();
        let of_stores = findings.iter().filter(|finding| finding.subject.starts_with("store "));
        let told: Vec<_> = of_stores.map(|finding| (finding.subject.as_str(), finding.sentence.as_str())).collect();
        assert_eq!(told, [("store db", "it did not answer within 12s"), ("store index", "it is plain")]);
    }
    assert_eq!(deaf.examinations.load(Ordering::Relaxed), 1, "no more threads wait for it");
}

#[tokio::test]
async fn a_read_waits_for_its_turn_no_longer_than_it_may_take() {
    let server = Server::start(&["limits.reads=1", "timeouts.statement_ms=20"]).await;
    let (release, released) = mpsc::channel();
    let (reading, mut reads) = unbounded_channel();
    server.engine.install(vec![access(2, Arc::new(Slow { reading, released: Mutex::new(released) }))]);
    let get = || v1::GetRequest { store: "index".into(), key: "k".into(), ..v1::GetRequest::default() };
    let mut transactions = server.transactions();
    let first = tokio::spawn(async move { transactions.get(get()).await });
    reads.recv().await.unwrap();
    let busy = server.transactions().get(get()).await.unwrap_err();
    assert_eq!(busy.code(), Code::ResourceExhausted, "{busy}");
    assert_eq!(busy.message(), "1 reads (limits.reads) were under way for all of 20 ms; ask again");
    release.send(()).unwrap();
    assert_eq!(first.await.unwrap().unwrap().into_inner().document, None);
}

#[tokio::test]
async fn the_log_is_read_for_one_at_a_time() {
    let mut server = Server::start(&[]).await;
    let messages = server.messages.take().unwrap();
    let (reading, mut reads) = unbounded_channel();
    std::thread::spawn(move || {
        for message in messages {
            let EngineMessage::Ask(Question::ReadLog(answer)) = message else { panic!("not asked for") };
            let _ = reading.send(answer);
        }
    });
    let mut admin = AdminServiceClient::new(server.channel.clone());
    let mut other = admin.clone();
    let first = tokio::spawn(async move { other.verify_log(v1::VerifyLogRequest {}).await });
    let answer = reads.recv().await.unwrap();
    let busy = admin.dump_log(v1::DumpLogRequest { from_lsn: 0, limit: 1 }).await.unwrap_err();
    assert_eq!(busy.code(), Code::ResourceExhausted, "{busy}");
    assert!(reads.is_empty(), "nothing more is read meanwhile");
    drop(answer);
    assert_eq!(first.await.unwrap().unwrap_err().code(), Code::Unavailable);
}

/// It stands in the log as ordered; that it was not done stands there too.
#[tokio::test]
async fn an_order_that_is_refused_after_all_is_noted_again() {
    let mut server = Server::start(&[]).await;
    let messages = server.messages.take().unwrap();
    let (noting, mut noted) = unbounded_channel();
    std::thread::spawn(move || {
        for message in messages {
            match message {
                EngineMessage::Order(audit, order, _room) => {
                    let kind = if audit.reason == "late" { RefusalKind::Condition } else { RefusalKind::Invalid };
                    order.answer.give(Reply::Refused(Refusal::new(kind, "meanwhile: it is applied")));
                }
                EngineMessage::Ask(Question::Participant(name, answer)) => {
                    let _ = answer.send((name == "index").then_some(ParticipantId(2)));
                }
                EngineMessage::Event(Event::Audit(None, audit)) => drop(noting.send(audit)),
                _ => panic!("not asked for"),
            }
        }
    });
    let mut admin = AdminServiceClient::new(server.channel.clone());
    for reason in ["early", "late"] {
        let skip = v1::SkipRequest { txid: "3-17".into(), participant: "index".into(), operator: "ada".into(), reason: reason.into() };
        assert!(!admin.skip(skip).await.unwrap().into_inner().done);
    }
    let again = noted.recv().await.unwrap();
    assert_eq!(
        (again.what.as_str(), again.reason.as_str()),
        ("skip 3-17 at `index`", "late"),
        "what is refused at once is noted by the engine"
    );
    assert_eq!(again.refused, "meanwhile: it is applied");
}
