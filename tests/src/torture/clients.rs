//! Clients that append, read, give up and ask again, and record all of it.

use super::participant::Questions;
use super::schedule::Mix;
use crate::history::{Ask, Document, Event, Op, Recorder, SeenDocument, SeenRow, Shown, Store, Told, Write};
use anyhow::Context;
use lockstep_client::{Client, CommitError, Csn, Key, Position, Reason, Receipt, RequestId, Row, Token, Transaction, Value, Wait, params};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The table.
pub const TABLE: &str = "CREATE TABLE list (key TEXT PRIMARY KEY NOT NULL, ops TEXT NOT NULL)";
/// Keys that are written at a time.
const KEYS: u64 = 6;
/// Writes of them all, until others take their place: so that lists stay short.
const WRITES: u64 = 200;
/// How long a client waits that gives up early.
const IMPATIENT: Duration = Duration::from_millis(400);
/// How long others do.
const PATIENT: Duration = Duration::from_secs(5);
/// How long everybody does when all has come to rest.
const AT_REST: Duration = Duration::from_secs(30);
/// Questions that are asked at once.
const AT_ONCE: usize = 16;
/// Of what was told, so much is asked for once more at most.
const TWICE: usize = 300;
/// Keys of one read.
const PAGE: usize = 50;
/// A process number above those of clients.
pub(super) const JUDGE: u32 = 1_000_000;

/// What all clients of one run share.
pub struct Crowd {
    client: Client,
    recorder: Recorder,
    documents: Documents,
    writes: AtomicU64,
    requests: Mutex<Vec<Request>>,
    trouble: Mutex<Vec<String>>,
    odd: Mutex<Vec<String>>,
    committed: watch::Sender<u64>,
    enough: AtomicBool,
    held: AtomicBool,
    under_way: AtomicU64,
}

/// An append that can be asked for again.
#[derive(Clone)]
struct Request {
    op: Op,
    id: RequestId,
    /// Nobody was told what became of it.
    open: bool,
}

/// Of what no outcome was told even when all had come to rest.
#[derive(Clone, Default, Debug)]
pub struct Unsettled {
    /// Appends, and why.
    pub unknown: Vec<(Op, String)>,
    /// Appends whose outcome is said to be kept no longer, and where the daemon stood when they were sent.
    pub expired: Vec<(Op, Position)>,
}

/// How documents are read.
#[derive(Clone)]
pub enum Documents {
    /// Of the daemon, by key; or by a search.
    Daemon {
        /// Whether a search shows one instant, and no less than a read by key.
        snapshot: bool,
    },
    /// Of a remote store, at its own process.
    Remote(Arc<Questions>),
}

/// A document as it stands in an index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SeenAt {
    /// Of the write that made it.
    pub csn: u64,
    /// A JSON object.
    pub text: String,
}

impl Crowd {
    /// With this client, which may be on its own network.
    pub fn new(client: Client, documents: Documents) -> Crowd {
        Crowd {
            client,
            recorder: Recorder::default(),
            documents,
            writes: AtomicU64::new(0),
            requests: Mutex::default(),
            trouble: Mutex::default(),
            odd: Mutex::default(),
            committed: watch::Sender::new(0),
            enough: AtomicBool::new(false),
            held: AtomicBool::new(false),
            under_way: AtomicU64::new(0),
        }
    }

    /// What was recorded.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Answers that no client should ever get.
    pub fn trouble(&self) -> Vec<String> {
        self.trouble.lock().expect("no holder panics").clone()
    }

    /// Aborts that nothing explains which clients do, or a daemon that is stopped in order.
    pub fn odd(&self) -> Vec<String> {
        self.odd.lock().expect("no holder panics").clone()
    }

    /// Waits until something was told committed.
    pub async fn commits(&self, limit: Duration) -> anyhow::Result<()> {
        let mut committed = self.committed.subscribe();
        let some = committed.wait_for(|committed| *committed > 0);
        tokio::time::timeout(limit, some).await.with_context(|| format!("nothing is committed within {limit:?}"))??;
        Ok(())
    }

    /// Everybody ends after what it is doing.
    pub fn stop(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    /// Nobody begins anything; on return nothing is under way.
    pub async fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
        while self.under_way.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// They go on.
    pub fn go_on(&self) {
        self.held.store(false, Ordering::SeqCst);
    }

    /// Operations until [`Crowd::stop`], one after the other.
    pub async fn run(self: Arc<Self>, process: u32, seed: u64, mix: Mix) {
        let mut random = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(process.into()));
        let mut token = None;
        while !self.enough.load(Ordering::Relaxed) {
            let under_way = UnderWay::begin(&self.under_way);
            if self.held.load(Ordering::SeqCst) {
                drop(under_way);
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            if random.random_range(0..100) < mix.reads {
                let keys = self.keys(&mut random, mix.keys);
                let at_least = token.as_ref().filter(|_| random.random_bool(0.5));
                if random.random_bool(0.5) {
                    self.read_rows(process, keys, at_least, false, PATIENT).await;
                } else {
                    self.read_documents(process, keys, at_least, PATIENT).await;
                }
            } else if let Some(new) = self.append(process, &mut random, mix, token.as_ref()).await {
                token = Some(new);
            }
            drop(under_way);
            if mix.pause_ms > 0 {
                tokio::time::sleep(Duration::from_millis(random.random_range(0..=mix.pause_ms))).await;
            }
        }
    }

    /// Asks once more what became of everything that nobody knows, and of some of what was told: it must be told again.
    pub async fn settle(&self) -> Unsettled {
        let requests = std::mem::take(&mut *self.requests.lock().expect("no holder panics"));
        let (open, told): (Vec<Request>, Vec<Request>) = requests.into_iter().partition(|request| request.open);
        let every = told.len().div_ceil(TWICE).max(1);
        let again: Vec<Request> = open.into_iter().chain(told.into_iter().step_by(every)).collect();
        let mut unsettled = Unsettled::default();
        for some in again.chunks(AT_ONCE) {
            let mut asked = tokio::task::JoinSet::new();
            for Request { op, id, .. } in some.iter().cloned() {
                let inquiry = self.client.inquire(&id).deadline(AT_REST).wait(Wait::Decided);
                asked.spawn(async move { (op, inquiry.await) });
            }
            let mut answered = false;
            while let Some(asked) = asked.join_next().await {
                let Ok((op, answer)) = asked.map_err(|panic| self.troubled(format!("an inquiry ends with: {panic}"))) else { continue };
                match &answer {
                    Err(CommitError::Unknown { message, .. }) => unsettled.unknown.push((op, message.clone())),
                    Err(CommitError::Expired { request }) => {
                        unsettled.expired.push((op, request.position));
                        answered = true;
                    }
                    Ok(_) | Err(_) => answered = true,
                }
                let told = self.told(op, answer, Wait::Decided, &[]);
                self.recorder.told(op, told);
            }
            // Nobody answers any more.
            if !answered {
                break;
            }
        }
        unsettled
    }

    /// One more transaction, which must be committed now; then what is in both stores.
    pub async fn last_reads(&self) -> anyhow::Result<()> {
        let key = self.keys(&mut ChaCha8Rng::seed_from_u64(0), 1).remove(0);
        let write = Write { key, document: Document::Put };
        let op = self.recorder.invoke(JUDGE, Ask::Append { writes: vec![write.clone()] });
        let answer = self.transaction(op, &[(write.clone(), None)]).wait(Wait::Visible).deadline(AT_REST).retry(50).commit().await;
        let why = answer.as_ref().err().map(ToString::to_string);
        let told = self.told(op, answer, Wait::Visible, std::slice::from_ref(&write));
        self.recorder.told(op, told);
        if let Some(why) = why {
            anyhow::bail!("nothing can be committed any more: {why}");
        }
        let generations = self.writes.load(Ordering::Relaxed) / WRITES;
        let keys: Vec<String> = (0..=generations).flat_map(|generation| (0..KEYS).map(move |n| key_of(generation, n))).collect();
        for keys in keys.chunks(PAGE) {
            // A connection may be dead without a word: who reads is told that it took too long, and reads again.
            let until = Instant::now() + AT_REST;
            while self.read_rows(JUDGE, keys.to_vec(), None, true, AT_REST).await.is_none() {
                anyhow::ensure!(Instant::now() < until, "rows cannot be read any more: {}", self.last_trouble());
            }
        }
        for generation in keys.chunks(KEYS as usize) {
            let documents = self.read_at_rest(generation.to_vec()).await;
            anyhow::ensure!(documents.is_some(), "documents cannot be read any more: {}", self.last_trouble());
        }
        Ok(())
    }

    /// What the last read said that showed nothing.
    fn last_trouble(&self) -> String {
        let history = self.recorder.history();
        let why = history.into_iter().rev().find_map(|happened| match happened.event {
            Event::Told { told: Told::Unknown { why }, .. } => Some(why),
            Event::Told { .. } | Event::Invoke { .. } => None,
        });
        why.unwrap_or_default()
    }

    async fn append(&self, process: u32, random: &mut ChaCha8Rng, mix: Mix, token: Option<&(Op, Token)>) -> Option<(Op, Token)> {
        let mut writes = Vec::new();
        for key in self.keys(random, mix.keys) {
            let document = match random.random_range(0..100) {
                n if n < mix.deletes => Document::Delete,
                // Half of them under a condition at the index alone: no statement then does what it is to do.
                n if n < mix.deletes + mix.based && random.random_bool(0.5) => Document::Based,
                n if n < mix.deletes + mix.based => Document::After { last: None },
                _ => Document::Put,
            };
            let write = match document {
                Document::Put | Document::Delete => (Write { key, document }, None),
                Document::Based => {
                    let list = self.list(process, &key, token).await?;
                    let csn = self.document(process, &key, token).await?.map(|(_, csn)| csn);
                    (Write { key, document }, Some(Base { list, csn }))
                }
                Document::After { .. } => {
                    let (last, csn) = self.document(process, &key, token).await?.unzip();
                    (Write { key, document: Document::After { last } }, Some(Base { list: Vec::new(), csn }))
                }
            };
            writes.push(write);
        }
        self.writes.fetch_add(writes.len() as u64, Ordering::Relaxed);
        let only: Vec<Write> = writes.iter().map(|(write, _)| write.clone()).collect();
        let op = self.recorder.invoke(process, Ask::Append { writes: only.clone() });
        let wait = *[Wait::Decided, Wait::Applied, Wait::Applied, Wait::Visible].choose(random).expect("not empty");
        let deadline = if random.random_range(0..100) < mix.impatient { IMPATIENT } else { PATIENT };
        let (key, position) = (Key::from(format!("append-{op}")), self.client.position());
        let mut transaction = self.transaction(op, &writes).idempotency_key(key.clone());
        let refused = random.random_range(0..100) < mix.refused;
        if refused {
            transaction = transaction.put("index", format!("refused-{op}"), &serde_json::json!({ "_lockstep": 1, "last": op }));
        }
        let answer = transaction.wait(wait).deadline(deadline).commit().await;
        let token = answer.as_ref().ok().map(|receipt| (op, receipt.token.clone()));
        if token.is_some() {
            self.committed.send_modify(|committed| *committed += 1);
        }
        if let Err(CommitError::Aborted(aborted)) = &answer
            && !refused
            && self.is_odd(aborted.reason, only.iter().any(|write| write.document == Document::Based))
        {
            self.odd.lock().expect("no holder panics").push(format!("{op} is aborted for no reason: {aborted}"));
        }
        self.requests.lock().expect("no holder panics").extend(Request::of(op, key, position, &answer));
        let told = self.told(op, answer, wait, &only);
        self.recorder.told(op, told);
        token
    }

    fn transaction(&self, op: Op, writes: &[(Write, Option<Base>)]) -> Transaction {
        let mut transaction = self.client.transaction();
        for (write, base) in writes {
            let (key, number) = (write.key.as_str(), op.to_string());
            let list = base.as_ref().filter(|_| write.document == Document::Based).map(|base| base.list.as_slice());
            transaction = match list {
                None => transaction.sql(
                    "db",
                    "INSERT INTO list VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET ops = list.ops || ' ' || excluded.ops RETURNING ops",
                    params![key, number],
                ),
                Some([]) => transaction.sql("db", "INSERT INTO list VALUES ($1, $2) RETURNING ops", params![key, number]),
                Some(list) => transaction
                    .sql(
                        "db",
                        "UPDATE list SET ops = ops || ' ' || $2 WHERE key = $1 AND ops = $3 RETURNING ops",
                        params![key, number, text(list)],
                    )
                    .expect_rows(1),
            };
            let group = key.split('-').next().unwrap_or(key);
            let document = serde_json::json!({ "of": group, "last": op });
            transaction = match (write.document, base) {
                (Document::Delete, _) => transaction.delete("index", key),
                (Document::Based, Some(base)) => {
                    let whole = format!("{} {op}", text(&base.list));
                    let put = transaction.put("index", key, &serde_json::json!({ "of": group, "last": op, "list": whole.trim() }));
                    base.hold(put)
                }
                (Document::After { .. }, Some(base)) => base.hold(transaction.put("index", key, &document)),
                (Document::Put | Document::Based | Document::After { .. }, _) => transaction.put("index", key, &document),
            };
        }
        transaction
    }

    /// A row's list, which a conditional write is based on.
    async fn list(&self, process: u32, key: &str, token: Option<&(Op, Token)>) -> Option<Vec<Op>> {
        let rows = self.read_rows(process, vec![key.to_owned()], token, false, PATIENT).await?;
        Some(rows.into_iter().next()?.list)
    }

    /// A document's last write and its version, if there is a document.
    async fn document(&self, process: u32, key: &str, token: Option<&(Op, Token)>) -> Option<Option<(Op, Csn)>> {
        let documents = self.read_documents(process, vec![key.to_owned()], token, PATIENT).await?;
        Some(documents.first().and_then(|document| Some((document.last?, Csn::from_u64(document.csn)))))
    }

    async fn read_rows(
        &self,
        process: u32,
        keys: Vec<String>,
        token: Option<&(Op, Token)>,
        last: bool,
        timeout: Duration,
    ) -> Option<Vec<SeenRow>> {
        let at_least = token.map(|(op, _)| *op);
        let ask = Ask::Read { store: Store::Rows, keys: keys.clone(), at_least, snapshot: true, last };
        let op = self.recorder.invoke(process, ask);
        let places: Vec<String> = (1..=keys.len()).map(|n| format!("${n}")).collect();
        let sql = format!("SELECT key, ops FROM list WHERE key IN ({})", places.join(", "));
        let mut query = self.client.query("db", &sql, keys.iter().map(Value::from)).limit(1_000).timeout(timeout);
        if let Some((_, token)) = token {
            query = query.at_least(token);
        }
        let rows = query.await.map_err(|error| error.to_string()).and_then(|result| {
            let found: Vec<(String, Vec<Op>)> = result.rows.iter().map(found).collect::<Result<_, _>>()?;
            let row = |key: &String| found.iter().find(|(found, _)| found == key).map_or(Vec::new(), |(_, list)| list.clone());
            Ok(keys.iter().map(|key| SeenRow { key: key.clone(), list: row(key) }).collect::<Vec<_>>())
        });
        self.heard(op, rows, |rows| Told::Rows { rows })
    }

    async fn read_documents(
        &self,
        process: u32,
        keys: Vec<String>,
        token: Option<&(Op, Token)>,
        timeout: Duration,
    ) -> Option<Vec<SeenDocument>> {
        let how = self.how(keys.len());
        // One by one they are not of one instant.
        let keys = if how == How::Get { keys[..1].to_vec() } else { keys };
        let token = token.filter(|_| matches!(self.documents, Documents::Daemon { .. }));
        let at_least = token.map(|(op, _)| *op);
        let ask = Ask::Read { store: how.store(), keys: keys.clone(), at_least, snapshot: how == How::Snapshot, last: false };
        let op = self.recorder.invoke(process, ask);
        let documents = match how {
            How::Get => self.get(&keys[0], token, timeout).await.map(|document| vec![document]),
            How::Snapshot | How::Search => self.search(&keys, token, timeout).await,
        };
        self.heard(op, documents, |documents| Told::Documents { documents })
    }

    /// How so many documents are read.
    fn how(&self, keys: usize) -> How {
        match self.documents {
            Documents::Daemon { snapshot: true } if keys > 1 => How::Snapshot,
            Documents::Daemon { snapshot: false } if keys > 1 => How::Search,
            Documents::Daemon { .. } | Documents::Remote(_) => How::Get,
        }
    }

    /// By key, and by a search if there is one: both show the same now.
    async fn read_at_rest(&self, keys: Vec<String>) -> Option<Vec<SeenDocument>> {
        let found = match self.how(keys.len()) {
            How::Get => None,
            how @ (How::Snapshot | How::Search) => {
                let ask = Ask::Read { store: how.store(), keys: keys.clone(), at_least: None, snapshot: how == How::Snapshot, last: true };
                let op = self.recorder.invoke(JUDGE, ask);
                let found = self.search(&keys, None, AT_REST).await;
                Some(self.heard(op, found, |documents| Told::Documents { documents })?)
            }
        };
        let ask = Ask::Read { store: Store::Documents, keys: keys.clone(), at_least: None, snapshot: false, last: true };
        let op = self.recorder.invoke(JUDGE, ask);
        let mut documents = Ok(Vec::new());
        for key in &keys {
            let got = self.get(key, None, AT_REST).await;
            documents = documents.and_then(|mut all: Vec<SeenDocument>| got.map(|got| all.push(got)).map(|()| all));
        }
        let documents = self.heard(op, documents, |documents| Told::Documents { documents })?;
        for (found, got) in found.iter().flatten().zip(&documents).filter(|(found, got)| found != got) {
            self.troubled(format!("at rest a search shows {found:?}, and a read by key {got:?}"));
        }
        Some(documents)
    }

    /// Records what a read has shown, or that it is not known.
    fn heard<T: Clone>(&self, op: Op, seen: Result<Vec<T>, String>, told: impl FnOnce(Vec<T>) -> Told) -> Option<Vec<T>> {
        let answer = seen.as_ref().map_or_else(|why| Told::Unknown { why: why.clone() }, |seen| told(seen.clone()));
        self.recorder.told(op, answer);
        seen.ok()
    }

    /// By one search for all documents of a generation; those that were asked for.
    async fn search(&self, keys: &[String], token: Option<&(Op, Token)>, timeout: Duration) -> Result<Vec<SeenDocument>, String> {
        let group = keys[0].split('-').next().unwrap_or_default();
        // In each index's own language.
        let query = match self.documents {
            Documents::Daemon { snapshot: false } => format!(r#"{{"match": {{"of": "{group}"}}}}"#),
            Documents::Daemon { snapshot: true } | Documents::Remote(_) => format!("of:{group}"),
        };
        let mut search = self.client.search("index", &query).limit(1_000).timeout(timeout);
        if let Some((_, token)) = token {
            search = search.at_least(token);
        }
        let hits = search.await.map_err(|error| error.to_string())?;
        let mut found: Vec<SeenDocument> = Vec::new();
        for document in hits.documents {
            if found.iter().any(|other| other.key == document.key) {
                self.troubled(format!("a search for {group} finds `{}` twice", document.key));
            }
            found.push(seen(&document.key, Some((document.csn.to_u64(), &document.document)))?);
        }
        let one = |key: &String| found.iter().find(|document| document.key == *key).cloned();
        keys.iter().map(|key| one(key).map_or_else(|| seen(key, None), Ok)).collect()
    }

    async fn get(&self, key: &str, token: Option<&(Op, Token)>, timeout: Duration) -> Result<SeenDocument, String> {
        match &self.documents {
            Documents::Daemon { .. } => {
                let mut get = self.client.get("index", key).timeout(timeout);
                if let Some((_, token)) = token {
                    get = get.at_least(token);
                }
                let got = get.await.map_err(|error| error.to_string())?;
                seen(key, got.as_ref().map(|document| (document.csn.to_u64(), document.document.as_str())))
            }
            Documents::Remote(questions) => {
                let got = questions.get(key, timeout).await?;
                seen(key, got.as_ref().map(|SeenAt { csn, text }| (*csn, text.as_str())))
            }
        }
    }

    fn told(&self, op: Op, answer: Result<Receipt, CommitError>, wait: Wait, writes: &[Write]) -> Told {
        match answer {
            Ok(receipt) => {
                let there = |store: &str| !receipt.pending.iter().any(|pending| pending == store);
                let shown = match wait {
                    Wait::Decided => Shown::Nowhere,
                    Wait::Applied | Wait::Visible if !there("db") => Shown::Nowhere,
                    Wait::Visible if there("index") && matches!(self.documents, Documents::Daemon { .. }) => Shown::Both,
                    Wait::Applied | Wait::Visible => Shown::Rows,
                };
                let results = receipt.results("db").iter();
                let rows = results.zip(writes).filter_map(|(result, write)| {
                    let text: &str = result.rows.first()?.get(0).ok()?;
                    Some(SeenRow { key: write.key.clone(), list: list(text).ok()? })
                });
                Told::Committed { csn: receipt.csn.to_u64(), shown, rows: rows.collect() }
            }
            Err(CommitError::Aborted(aborted)) => Told::Aborted { why: format!("{:?}: {}", aborted.reason, aborted.message) },
            Err(CommitError::NotSent(why)) => Told::Aborted { why: format!("not sent: {why}") },
            Err(CommitError::Unknown { message, .. }) => Told::Unknown { why: message },
            Err(CommitError::Expired { .. }) => Told::Unknown { why: "expired".into() },
            Err(
                error @ (CommitError::Invalid(_)
                | CommitError::Damaged(_)
                | CommitError::AlreadyCommitted(_)
                | CommitError::KeyReused { .. }),
            ) => {
                self.troubled(format!("{op} was told: {error}"));
                Told::Unknown { why: error.to_string() }
            }
        }
    }

    /// Of an abort where nothing fails but a daemon that is stopped now and then. `based`: it inserts a row that may be there by then.
    fn is_odd(&self, reason: Reason, based: bool) -> bool {
        match reason {
            Reason::Conflict | Reason::Condition | Reason::Unavailable | Reason::Cancelled => false,
            Reason::Constraint => !based,
            // A server has few connections, and who waits for a row keeps one.
            Reason::Busy | Reason::Timeout => !matches!(self.documents, Documents::Daemon { snapshot: false }),
            Reason::Invalid | Reason::Other => true,
        }
    }

    fn troubled(&self, what: String) {
        self.trouble.lock().expect("no holder panics").push(what);
    }

    /// Some keys of those that are written now, in one order: so transactions that lock rows do not wait for each other in a circle.
    fn keys(&self, random: &mut ChaCha8Rng, most: u64) -> Vec<String> {
        let generation = self.writes.load(Ordering::Relaxed) / WRITES;
        let all: Vec<u64> = (0..KEYS).collect();
        let count = random.random_range(1..=most.clamp(1, KEYS)) as usize;
        let mut some: Vec<u64> = all.sample(random, count).copied().collect();
        some.sort_unstable();
        some.into_iter().map(|n| key_of(generation, n)).collect()
    }
}

impl Request {
    /// `position`: where the daemon stood before it was sent, or earlier. Nothing if it was not sent, or has no outcome to be told again.
    fn of(op: Op, key: Key, position: Option<Position>, answer: &Result<Receipt, CommitError>) -> Option<Request> {
        let (id, open) = match answer {
            Ok(_) => (RequestId { key, attempt: 1, position: position? }, false),
            Err(CommitError::Aborted(aborted)) => (aborted.request.clone(), false),
            Err(CommitError::Unknown { request, .. } | CommitError::Expired { request }) => ((**request).clone(), true),
            Err(
                CommitError::NotSent(_)
                | CommitError::Invalid(_)
                | CommitError::Damaged(_)
                | CommitError::AlreadyCommitted(_)
                | CommitError::KeyReused { .. },
            ) => return None,
        };
        Some(Request { op, id, open })
    }
}

/// Somebody does something, until this is dropped: also by a panic.
struct UnderWay<'a>(&'a AtomicU64);

impl UnderWay<'_> {
    fn begin(count: &AtomicU64) -> UnderWay<'_> {
        count.fetch_add(1, Ordering::SeqCst);
        UnderWay(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A list and a document as they were read.
struct Base {
    list: Vec<Op>,
    csn: Option<Csn>,
}

impl Base {
    /// Of the put just added: it is on the condition that the document is still that one.
    fn hold(&self, put: Transaction) -> Transaction {
        match self.csn {
            Some(csn) => put.if_csn(csn),
            None => put.if_absent(),
        }
    }
}

/// How documents are read: one by its key; several at one instant; several as a search finds them, which a read by key may be ahead of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Get,
    Snapshot,
    Search,
}

impl How {
    fn store(self) -> Store {
        match self {
            How::Get | How::Snapshot => Store::Documents,
            How::Search => Store::Found,
        }
    }
}

fn key_of(generation: u64, n: u64) -> String {
    format!("g{generation}-{n}")
}

fn text(list: &[Op]) -> String {
    list.iter().map(Op::to_string).collect::<Vec<_>>().join(" ")
}

fn list(text: &str) -> Result<Vec<Op>, String> {
    text.split_whitespace().map(|op| op.parse().map_err(|_| format!("`{text}` is no list"))).collect()
}

fn found(row: Row<'_>) -> Result<(String, Vec<Op>), String> {
    let key: String = row.get(0).map_err(|error| error.to_string())?;
    let ops: &str = row.get(1).map_err(|error| error.to_string())?;
    Ok((key, list(ops)?))
}

fn seen(key: &str, document: Option<(u64, &str)>) -> Result<SeenDocument, String> {
    let Some((csn, json)) = document else { return Ok(SeenDocument { key: key.into(), last: None, csn: 0, list: None }) };
    let value: serde_json::Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let last = value["last"].as_u64().ok_or_else(|| format!("the document `{key}` has no last write: {json}"))?;
    let list = value["list"].as_str().map(list).transpose()?;
    Ok(SeenDocument { key: key.into(), last: Some(last), csn, list })
}
