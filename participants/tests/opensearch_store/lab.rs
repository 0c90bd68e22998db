//! A node, a store on it, and short words for both.

use crate::node::Node;
use lockstep_core::{
    Condition, CoordId, Csn, Decided, Decider, Epoch, Operation, Owner, ParticipantId, Progress, Refusal, Txid, Vote, Work,
};
use lockstep_participants::opensearch::{OpenSearch, OpenSearchOptions};
use lockstep_participants::{Committed, Document, ReadLimits, Reader, Recovered, ResourceManager, StoreError};
use serde_json::Value;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

pub const ALL: ReadLimits = ReadLimits { rows: 1_000, offset: 0, timeout: Duration::from_secs(30) };

/// The node that tests share; it ends with the process. With `LOCKSTEP_OPENSEARCH_URL` one that runs already, of any product and version.
pub fn shared() -> Option<String> {
    static NODE: OnceLock<Option<Node>> = OnceLock::new();
    if let Ok(url) = std::env::var("LOCKSTEP_OPENSEARCH_URL") {
        return Some(url);
    }
    NODE.get_or_init(|| Node::start(&[])).as_ref().map(Node::url)
}

/// A node that a test may end and start again, one test at a time.
pub fn own() -> Option<MutexGuard<'static, Node>> {
    static NODE: OnceLock<Option<Mutex<Node>>> = OnceLock::new();
    let node = NODE.get_or_init(|| Node::start(&[]).map(Mutex::new)).as_ref()?;
    Some(node.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// An alias that no other test uses.
pub fn alias() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("items{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Options under which all that is due is done at each `tend`, and nothing is remembered.
pub fn options(url: &str, alias: &str) -> OpenSearchOptions {
    OpenSearchOptions {
        refresh_every: Duration::ZERO,
        refresh_awaited: Duration::ZERO,
        gather: Duration::ZERO,
        upkeep_every: Duration::ZERO,
        check_every: Duration::ZERO,
        request_timeout: Duration::from_secs(30),
        ..OpenSearchOptions::new(vec![url.into()], alias)
    }
}

pub fn owner(epoch: u32) -> Owner {
    Owner { coord_id: CoordId(0xc0), epoch: Epoch(epoch), incarnation: u64::from(epoch) + 7 }
}

pub fn csn(epoch: u32, n: u64) -> Csn {
    Csn::new(Epoch(epoch), n)
}

pub fn put(key: &str, document: &str) -> Operation {
    Operation::Put { key: key.into(), document: document.into(), condition: None }
}

pub fn put_if(key: &str, document: &str, condition: Condition) -> Operation {
    Operation::Put { key: key.into(), document: document.into(), condition: Some(condition) }
}

pub fn delete(key: &str) -> Operation {
    Operation::Delete { key: key.into(), condition: None }
}

/// A store with a session, and a server to look behind it.
pub struct Lab {
    pub url: String,
    pub alias: String,
    pub store: OpenSearch,
    pub epoch: u32,
    next: u64,
    closed: Csn,
}

impl Lab {
    /// On the shared node, in epoch 1.
    pub fn new() -> Option<Lab> {
        Some(Lab::open(&shared()?, &alias(), 1))
    }

    pub fn open(url: &str, alias: &str, epoch: u32) -> Lab {
        Lab::with(options(url, alias), epoch)
    }

    pub fn with(options: OpenSearchOptions, epoch: u32) -> Lab {
        let mut lab = Lab {
            url: options.nodes[0].clone(),
            alias: options.alias.clone(),
            store: OpenSearch::open(options).unwrap(),
            epoch,
            next: 0,
            closed: Csn::ZERO,
        };
        lab.store.owner().unwrap();
        lab.recover().unwrap();
        lab
    }

    pub fn recover(&mut self) -> Result<Recovered, StoreError> {
        let recovered = self.store.recover(owner(self.epoch), ParticipantId(3))?;
        self.closed = recovered.progress.applied;
        Ok(recovered)
    }

    pub fn index(&self) -> String {
        format!("{}-000001", self.alias)
    }

    pub fn vote(&mut self, operations: Vec<Operation>) -> Vote {
        self.next += 1;
        let txid = Txid { epoch: Epoch(self.epoch), n: self.next, decider: Decider::Log };
        let work = Work { txid, operations: operations.into(), timeout: 30_000_000, trace: None, shares: false };
        self.store.prepare(&[work]).unwrap().votes.remove(0).1
    }

    /// A Yes, as the log would hand it back under this CSN.
    pub fn decide(&mut self, n: u64, operations: Vec<Operation>) -> Decided {
        let csn = csn(self.epoch, n);
        match self.vote(operations) {
            Vote::Redo(redo, _) => {
                Decided { csn, txids: vec![Txid { epoch: Epoch(self.epoch), n, decider: Decider::Log }], redo, trace: None }
            }
            vote => panic!("{vote:?}"),
        }
    }

    pub fn refusal(&mut self, operations: Vec<Operation>) -> Refusal {
        match self.vote(operations) {
            Vote::No(refusal) => refusal,
            vote => panic!("{vote:?}"),
        }
    }

    pub fn refused(&mut self, document: &str) -> String {
        self.refusal(vec![put("k", document)]).message
    }

    pub fn commit(&mut self, decided: &[Decided]) -> Committed {
        let highest = decided.iter().map(|decided| decided.csn).max().unwrap_or_default();
        self.closed = self.closed.max(highest);
        let committed = self.store.commit(decided, self.closed).unwrap();
        if let Some((stuck, _)) = committed.stuck.iter().min() {
            self.closed = self.closed.min(stuck.before());
        }
        committed
    }

    /// Decides, applies and waits until it is found.
    pub fn write(&mut self, n: u64, operations: Vec<Operation>) {
        let decided = self.decide(n, operations);
        let committed = self.commit(&[decided]);
        assert_eq!(committed.stuck, [], "stuck");
        self.settle();
    }

    /// Tends until nothing is due.
    pub fn settle(&mut self) -> Progress {
        loop {
            let tended = self.store.tend(self.closed).unwrap();
            let Some(next) = tended.next else { return tended.progress };
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    pub fn reader(&self) -> Arc<dyn Reader> {
        self.store.reader()
    }

    /// The sentences for a person.
    pub fn findings(&self) -> Vec<String> {
        self.reader().examine().into_iter().map(|finding| finding.sentence).collect()
    }

    pub fn get(&self, key: &str) -> Option<Document> {
        self.reader().get(key).unwrap()
    }

    /// The keys that a search for all finds.
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.reader().search("*", ALL).unwrap().documents.into_iter().map(|d| d.key).collect();
        keys.sort();
        keys
    }

    /// A request to the server, past the store.
    pub fn http(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        http(method, &format!("{}{path}", self.url), body)
    }

    /// One that must succeed.
    pub fn ok(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, answer) = self.http(method, path, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// The document as the server keeps it, deleted or not.
    pub fn raw(&self, key: &str) -> Value {
        self.http("GET", &format!("/{}/_doc/{key}", self.alias), "").1
    }
}

pub fn http(method: &str, url: &str, body: &str) -> (u16, Value) {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let request = ureq::http::Request::builder().method(method).uri(url).header("content-type", "application/json");
    let mut answer = match (method, body) {
        ("GET" | "DELETE", "") => agent.run(request.body(()).unwrap()).unwrap(),
        (_, body) => agent.run(request.body(body.as_bytes()).unwrap()).unwrap(),
    };
    let text = answer.body_mut().read_to_string().unwrap();
    (answer.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
}
