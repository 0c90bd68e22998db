//! A small coordinator that keeps R-KEY and misbehaves on demand, behind a proxy that can cut connections.

#![allow(dead_code)] // each test binary uses its part

use lockstep_proto::v1;
use lockstep_proto::v1::outcome::Outcome;
use lockstep_proto::v1::transact_reply::Reply;
use lockstep_proto::v1::transact_request::Request;
use lockstep_proto::v1::transaction_service_server::{TransactionService, TransactionServiceServer};
use prost::Message;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Response, Status, Streaming};

/// What happens to the next commit that was not seen before.
#[derive(Clone, Debug)]
pub enum Act {
    /// Executes and answers.
    Commit,
    /// Executes and answers twice.
    CommitTwice,
    /// Executes; the connection is lost before the answer.
    CutAfter,
    /// The connection is lost before it is executed.
    CutBefore,
    /// Executes and never answers.
    Silent,
    /// Executes, and answers when told to.
    Hold(Arc<Notify>),
    /// Executes, and answers "unknown" to it and to so many inquiries.
    Unknown(u32),
    /// Aborts.
    Abort(v1::Reason, bool),
    /// Answers "expired"; does not execute.
    Expired,
    /// Answers "key reused"; does not execute.
    KeyReused,
}

type Name = (Vec<u8>, u32);

/// What the coordinator knows and has seen.
#[derive(Default)]
pub struct State {
    pub script: VecDeque<Act>,
    pub coordinator: u128,
    pub epoch: u32,
    pub n: u64,
    /// Every commit as it came, repeats included.
    pub received: Vec<v1::CommitRequest>,
    /// Those that were executed.
    pub executed: Vec<v1::CommitRequest>,
    /// How many requests each frame had, and how many bytes.
    pub frames: Vec<usize>,
    pub frame_bytes: Vec<usize>,
    pub inquiries: Vec<v1::InquireRequest>,
    pub acknowledged: Vec<v1::TransactionId>,
    pub begun: Vec<v1::BeginRequest>,
    /// So many times a position is too old to begin with.
    pub too_old: u32,
    pub rolled_back: Vec<v1::RollbackRequest>,
    pub queries: Vec<v1::QueryRequest>,
    /// What each of them said of who asks.
    pub tokens: Vec<String>,
    pub searches: Vec<v1::SearchRequest>,
    /// The next reads fail so.
    pub failures: VecDeque<Status>,
    pub limits: v1::Limits,
    outcomes: HashMap<Name, Outcome>,
    unknown: HashMap<Name, u32>,
}

/// The coordinator and its proxy, on free ports of the loopback interface.
pub struct Fake {
    pub state: Arc<Mutex<State>>,
    pub proxy: Arc<Proxy>,
}

/// Passes bytes on, until it is told to cut.
pub struct Proxy {
    address: SocketAddr,
    connections: Mutex<JoinSet<()>>,
    refusing: Mutex<bool>,
}

impl Fake {
    pub async fn start() -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).await;
        let state = State { coordinator: 7, epoch: 1, n: 1, ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let service = TransactionServiceServer::new(Service { state: state.clone(), proxy: proxy.clone() });
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        Fake { state, proxy }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.proxy.address)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn script(&self, acts: impl IntoIterator<Item = Act>) {
        self.state().script.extend(acts);
    }

    /// A new start of the daemon: what it did not log is gone.
    pub fn restart(&self) {
        let mut state = self.state();
        state.epoch += 1;
        state.n = 1;
        drop(state);
        self.proxy.cut();
    }
}

impl Proxy {
    async fn start(target: SocketAddr) -> Arc<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Arc::new(Proxy { address, connections: Mutex::default(), refusing: Mutex::default() });
        let accepting = proxy.clone();
        tokio::spawn(async move {
            while let Ok((mut inner, _)) = listener.accept().await {
                if *accepting.refusing.lock().unwrap() {
                    continue;
                }
                accepting.connections.lock().unwrap().spawn(async move {
                    if let Ok(mut outer) = TcpStream::connect(target).await {
                        inner.set_nodelay(true).and(outer.set_nodelay(true)).unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
                    }
                });
            }
        });
        proxy
    }

    /// Cuts all connections that stand.
    pub fn cut(&self) {
        self.connections.lock().unwrap().abort_all();
    }

    /// Closes new connections at once, or no longer does.
    pub fn refuse(&self, refuse: bool) {
        *self.refusing.lock().unwrap() = refuse;
    }
}

impl State {
    pub fn welcome(&self) -> v1::Welcome {
        let store = |name: &str, r#type: &str, role: &str, kind: &str| v1::Store {
            name: name.into(),
            r#type: r#type.into(),
            role: role.into(),
            kind: kind.into(),
            number: None,
        };
        v1::Welcome {
            coord_id: self.coordinator.to_be_bytes().to_vec().into(),
            log_id: 9u128.to_be_bytes().to_vec().into(),
            position: Some(self.position()),
            stores: vec![store("db", "sqlite", "database", "serial"), store("index", "tantivy", "index", "redo")],
            limits: Some(self.limits),
            version: "0.0.0".into(),
        }
    }

    pub fn position(&self) -> v1::Position {
        v1::Position { epoch: self.epoch, n: self.n }
    }

    fn execute(&mut self, request: &v1::CommitRequest) -> Outcome {
        let txid = v1::TransactionId { epoch: self.epoch, n: self.n, leader: 0 };
        let csn = u64::from(self.epoch) << 39 | self.n;
        self.n += 1;
        self.executed.push(request.clone());
        let results = |branch: &v1::Branch| v1::BranchResults {
            store: branch.store.clone(),
            results: branch.operations.iter().map(|_| one_row(csn)).collect(),
        };
        let results = request.branches.iter().filter(|branch| branch.store == "db").map(results).collect();
        let token = csn.to_be_bytes().to_vec().into();
        self.decide(
            request,
            Outcome::Committed(v1::Committed {
                txid: Some(txid),
                csn,
                token,
                results,
                results_gone: false,
                pending: vec![],
                damaged: vec![],
            }),
        )
    }

    fn decide(&mut self, request: &v1::CommitRequest, outcome: Outcome) -> Outcome {
        self.outcomes.insert(name(&request.key), outcome.clone());
        outcome
    }

    fn aborted(&self, reason: v1::Reason, retryable: bool) -> Outcome {
        Outcome::Aborted(v1::Aborted {
            txid: None,
            store: "db".into(),
            reason: reason.into(),
            message: format!("refused as {reason:?}"),
            retryable,
        })
    }

    fn begin(&mut self, request: v1::BeginRequest) -> Reply {
        let name = name(&request.key);
        self.begun.push(request);
        if self.too_old > 0 {
            self.too_old -= 1;
            return Reply::Outcome(v1::Outcome { outcome: Some(Outcome::Expired(v1::Expired { floor: Some(self.position()) })) });
        }
        match self.outcomes.get(&name) {
            Some(outcome) => Reply::Outcome(v1::Outcome { outcome: Some(outcome.clone()) }),
            None => Reply::Begun(v1::Begun { txid: Some(v1::TransactionId { epoch: self.epoch, n: self.n, leader: 0 }) }),
        }
    }

    fn roll_back(&mut self, request: v1::RollbackRequest) -> Outcome {
        let aborted = self.aborted(v1::Reason::Cancelled, false);
        let outcome = self.outcomes.entry(name(&request.key)).or_insert(aborted).clone();
        self.rolled_back.push(request);
        outcome
    }

    fn inquire(&mut self, request: v1::InquireRequest) -> Outcome {
        let name = name(&request.key);
        self.inquiries.push(request);
        self.untold(&name).unwrap_or_else(|| match self.outcomes.get(&name) {
            Some(outcome) => outcome.clone(),
            None => self.aborted(v1::Reason::Unavailable, true),
        })
    }

    /// What is said as long as nothing can be told.
    fn untold(&mut self, name: &Name) -> Option<Outcome> {
        let left = self.unknown.get_mut(name).filter(|left| **left > 0)?;
        *left -= 1;
        Some(Outcome::Unknown(v1::Unknown { message: "waiting for db".into() }))
    }
}

fn one_row(csn: u64) -> v1::StatementResult {
    let value = v1::Value { value: Some(v1::value::Value::Integer(csn as i64)) };
    v1::StatementResult { rows_affected: 1, columns: vec!["n".into()], rows: vec![v1::Row { values: vec![value] }] }
}

fn name(key: &Option<v1::RequestKey>) -> Name {
    let key = key.clone().expect("a request has a key");
    (key.key.to_vec(), key.attempt)
}

struct Service {
    state: Arc<Mutex<State>>,
    proxy: Arc<Proxy>,
}

type Out = mpsc::UnboundedSender<Result<v1::TransactReplies, Status>>;

impl Service {
    fn commit(&self, id: u64, request: v1::CommitRequest, out: &Out) {
        let mut state = self.state.lock().unwrap();
        state.received.push(request.clone());
        let name = name(&request.key);
        let known = state.untold(&name).or_else(|| state.outcomes.get(&name).cloned());
        let position = request.position.expect("a commit carries the position of its first sending");
        let answer = match known {
            Some(outcome) => Some(outcome),
            // From an older epoch: looked up, never executed (R-KEY).
            None if position.epoch != state.epoch => {
                let outcome = state.aborted(v1::Reason::Unavailable, true);
                Some(state.decide(&request, outcome))
            }
            None => match state.script.pop_front().unwrap_or(Act::Commit) {
                Act::Commit => Some(state.execute(&request)),
                Act::CommitTwice => {
                    let outcome = state.execute(&request);
                    reply(out, id, outcome.clone(), state.position());
                    Some(outcome)
                }
                Act::CutAfter => {
                    state.execute(&request);
                    self.proxy.cut();
                    None
                }
                Act::CutBefore => {
                    self.proxy.cut();
                    None
                }
                Act::Silent => {
                    state.execute(&request);
                    None
                }
                Act::Hold(gate) => {
                    let (outcome, position, out) = (state.execute(&request), state.position(), out.clone());
                    tokio::spawn(async move {
                        gate.notified().await;
                        reply(&out, id, outcome, position);
                    });
                    None
                }
                Act::Unknown(times) => {
                    state.execute(&request);
                    state.unknown.insert(name, times);
                    Some(Outcome::Unknown(v1::Unknown { message: "waiting for db".into() }))
                }
                Act::Abort(reason, retryable) => {
                    let outcome = state.aborted(reason, retryable);
                    Some(state.decide(&request, outcome))
                }
                Act::Expired => Some(Outcome::Expired(v1::Expired { floor: Some(state.position()) })),
                Act::KeyReused => Some(Outcome::KeyReused(v1::KeyReused { txid: Some(v1::TransactionId { epoch: 1, n: 99, leader: 0 }) })),
            },
        };
        if let Some(outcome) = answer {
            reply(out, id, outcome, state.position());
        }
    }
}

fn reply(out: &Out, id: u64, outcome: Outcome, position: v1::Position) {
    let reply = Reply::Outcome(v1::Outcome { outcome: Some(outcome) });
    let reply = v1::TransactReply { id, reply: Some(reply), position: Some(position) };
    let _ = out.send(Ok(v1::TransactReplies { replies: vec![reply] }));
}

#[tonic::async_trait]
impl TransactionService for Service {
    type TransactStream = UnboundedReceiverStream<Result<v1::TransactReplies, Status>>;
    type LeadStream = UnboundedReceiverStream<Result<v1::LeadReply, Status>>;

    async fn lead(&self, _: tonic::Request<Streaming<v1::LeadRequest>>) -> Result<Response<Self::LeadStream>, Status> {
        Err(Status::unimplemented("no database leads here"))
    }

    async fn transact(&self, request: tonic::Request<Streaming<v1::TransactRequests>>) -> Result<Response<Self::TransactStream>, Status> {
        let (out, replies) = mpsc::unbounded_channel();
        let welcome = Reply::Welcome(self.state.lock().unwrap().welcome());
        let welcome = v1::TransactReply { id: 0, reply: Some(welcome), position: None };
        let _ = out.send(Ok(v1::TransactReplies { replies: vec![welcome] }));
        let service = Service { state: self.state.clone(), proxy: self.proxy.clone() };
        let mut frames = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                service.state.lock().unwrap().frames.push(frame.requests.len());
                service.state.lock().unwrap().frame_bytes.push(frame.encoded_len());
                for v1::TransactRequest { id, request } in frame.requests {
                    match request.expect("a request says what it is") {
                        Request::Commit(commit) => service.commit(id, commit, &out),
                        Request::Inquire(inquire) => {
                            let mut state = service.state.lock().unwrap();
                            let outcome = state.inquire(inquire);
                            reply(&out, id, outcome, state.position());
                        }
                        Request::Begin(begin) => {
                            let mut state = service.state.lock().unwrap();
                            let begun = v1::TransactReply { id, reply: Some(state.begin(begin)), position: Some(state.position()) };
                            let _ = out.send(Ok(v1::TransactReplies { replies: vec![begun] }));
                        }
                        Request::Rollback(rollback) => {
                            let mut state = service.state.lock().unwrap();
                            let outcome = state.roll_back(rollback);
                            reply(&out, id, outcome, state.position());
                        }
                        Request::Acknowledge(txid) => service.state.lock().unwrap().acknowledged.push(txid),
                    }
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(replies)))
    }

    async fn commit(&self, _: tonic::Request<v1::CommitRequest>) -> Result<Response<v1::Outcome>, Status> {
        Err(Status::unimplemented("the library commits over the stream"))
    }

    async fn inquire(&self, _: tonic::Request<v1::InquireRequest>) -> Result<Response<v1::Outcome>, Status> {
        Err(Status::unimplemented("the library inquires over the stream"))
    }

    async fn describe(&self, _: tonic::Request<v1::DescribeRequest>) -> Result<Response<v1::Welcome>, Status> {
        Ok(Response::new(self.state.lock().unwrap().welcome()))
    }

    async fn query(&self, request: tonic::Request<v1::QueryRequest>) -> Result<Response<v1::QueryReply>, Status> {
        let mut state = self.state.lock().unwrap();
        let token = request.metadata().get("authorization").and_then(|token| token.to_str().ok()).unwrap_or_default().to_owned();
        state.tokens.push(token);
        state.queries.push(request.into_inner());
        match state.failures.pop_front() {
            Some(failure) => Err(failure),
            None => Ok(Response::new(v1::QueryReply { result: Some(one_row(42)) })),
        }
    }

    async fn search(&self, request: tonic::Request<v1::SearchRequest>) -> Result<Response<v1::SearchReply>, Status> {
        let mut state = self.state.lock().unwrap();
        state.searches.push(request.into_inner());
        Ok(Response::new(v1::SearchReply { total: 3, documents: vec![document("film-42")] }))
    }

    async fn get(&self, request: tonic::Request<v1::GetRequest>) -> Result<Response<v1::GetReply>, Status> {
        let key = request.into_inner().key;
        Ok(Response::new(v1::GetReply { document: key.starts_with("film").then(|| document(&key)) }))
    }

    async fn migrate(&self, request: tonic::Request<v1::MigrateRequest>) -> Result<Response<v1::MigrateReply>, Status> {
        match request.into_inner().script.as_str() {
            "" => Err(Status::invalid_argument("the script is empty")),
            _ => Ok(Response::new(v1::MigrateReply { message: "1 table".into() })),
        }
    }
}

fn document(key: &str) -> v1::Document {
    v1::Document { key: key.into(), csn: 1 << 39 | 5, document: r#"{"title":"Solaris"}"#.into(), score: 0.5 }
}
