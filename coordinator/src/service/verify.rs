//! `AdminService`'s Verify and Repair: mappings of the configuration, the stores' readers, and the engine's watches, put together.

use super::Context;
use super::translate::{self, Translator};
use crate::engine_handle::{EngineHandle, Question};
use crate::security::Caller;
use crate::verification::{Counts, Difference, Finding, Lacking, Mapping, Movements, Pair, Stopped, Told, Verification, What};
use lockstep_core::{ParticipantId, RefusalKind, Reply};
use lockstep_participants::{ReadLimits, Reader};
use lockstep_proto::v1;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use uuid::Uuid;

/// What comes back, as long as somebody takes it.
pub type Replies<T> = ReceiverStream<Result<T, Status>>;

/// Replies that wait for their reader; above it a run waits.
const QUEUE: usize = 64;
/// Runs at once: each holds a page of rows in memory, and reads as fast as it can.
const RUNS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE_MAX: Duration = Duration::from_secs(3_600);
const FINDINGS: u32 = 1_000;
const FINDINGS_MAX: u32 = 100_000;
const REPAIRS: usize = 1_000;
/// How often a repair is tried that another writer was faster than.
const TRIES: u32 = 5;
/// Before each further try: an index shows the other's write some time later.
const PAUSE: Duration = Duration::from_millis(50);

/// Room for runs.
pub fn runs() -> Arc<tokio::sync::Semaphore> {
    Arc::new(tokio::sync::Semaphore::new(RUNS))
}

/// Compares, on a thread that may block.
pub async fn verify(context: &Context, request: v1::VerifyRequest) -> Result<Replies<v1::VerifyReply>, Status> {
    let mappings = mappings(context)?;
    let wanted: Vec<Mapping> = match request.names.is_empty() {
        true => mappings.clone(),
        false => request.names.iter().map(|name| named(&mappings, name).cloned()).collect::<Result<_, _>>()?,
    };
    let patience = match request.patience_ms {
        0 => PATIENCE,
        ms => Duration::from_millis(ms.into()),
    };
    if patience > PATIENCE_MAX {
        return Err(Status::invalid_argument(format!("patience_ms is {}: at most {}", patience.as_millis(), PATIENCE_MAX.as_millis())));
    }
    let limit = match request.limit {
        0 => FINDINGS,
        limit if limit > FINDINGS_MAX => return Err(Status::invalid_argument(format!("limit is {limit}: at most {FINDINGS_MAX}"))),
        limit => limit,
    };
    let slot = slot(context)?;
    let stores = wanted.iter().map(|mapping| Stores::of(context, mapping)).collect::<Result<Vec<_>, _>>()?;
    let (sender, replies) = mpsc::channel(QUEUE);
    let (engine, timeout, runtime) = (context.engine.clone(), context.configuration.timeouts.statement(0), Handle::current());
    tokio::task::spawn_blocking(move || {
        let _slot = slot;
        for (mapping, stores) in wanted.iter().zip(stores) {
            let movements = Watched { engine: &engine, index: stores.index_id, runtime: &runtime };
            let verification = Verification {
                mapping,
                others: &mappings.iter().filter(|other| other.index == mapping.index).cloned().collect::<Vec<_>>(),
                database: stores.database,
                index: stores.index,
                movements: &movements,
                timeout,
                patience,
            };
            let ended = compare(&verification, limit, &sender);
            if let Err(stopped) = ended {
                let _ = sender.blocking_send(Err(status(stopped)));
                return;
            }
        }
    });
    Ok(ReceiverStream::new(replies))
}

fn compare(verification: &Verification<'_>, limit: u32, sender: &mpsc::Sender<Result<v1::VerifyReply, Status>>) -> Result<(), Stopped> {
    use v1::verify_reply::Reply as Said;
    let (began, mapping) = (Instant::now(), verification.mapping);
    let say = |said| sender.blocking_send(Ok(v1::VerifyReply { reply: Some(said) })).map_err(|_| Stopped::Unheard);
    let mut left = limit;
    let counts = verification.run(&mut |told| match told {
        Told::Progress(counts) => say(Said::Progress(counts_out(&mapping.name, &counts))),
        Told::Finding(finding) => {
            let Some(less) = left.checked_sub(1) else { return Ok(()) };
            left = less;
            say(Said::Finding(finding_out(&mapping.name, finding)))
        }
    })?;
    say(Said::Summary(v1::VerifySummary {
        counts: Some(counts_out(&mapping.name, &counts)),
        database: mapping.database.clone(),
        index: mapping.index.clone(),
        elapsed_ms: began.elapsed().as_millis() as u64,
    }))
}

/// Repairs one document after the other.
pub async fn repair(context: &Context, caller: &Caller, request: v1::RepairRequest) -> Result<Replies<v1::RepairReply>, Status> {
    let mappings = mappings(context)?;
    let mapping = named(&mappings, &request.name)?.clone();
    if request.keys.len() > REPAIRS {
        return Err(Status::invalid_argument(format!("keys has {} entries: at most {REPAIRS}", request.keys.len())));
    }
    let slot = slot(context)?;
    let stores = Stores::of(context, &mapping)?;
    let what = format!("repair {} documents of", request.keys.len());
    context.engine.note_order(caller, &what, &mapping.name).await?;
    let (sender, replies) = mpsc::channel(QUEUE);
    let (context, caller) = (context.clone(), caller.clone());
    tokio::spawn(async move {
        let _slot = slot;
        let (engine, name) = (context.engine.clone(), mapping.name.clone());
        let repairs = Arc::new(Repairs { context, mapping, stores });
        if let Err(why) = repairs.run(request.keys, &sender).await {
            engine.note_failure(&caller, &what, &name, &why);
        }
    });
    Ok(ReceiverStream::new(replies))
}

/// A mapping's stores.
#[derive(Clone)]
struct Stores {
    database: Arc<dyn Reader>,
    index: Arc<dyn Reader>,
    index_id: ParticipantId,
}

impl Stores {
    fn of(context: &Context, mapping: &Mapping) -> Result<Stores, Status> {
        let store = |name: &str| {
            let entry = context.engine.names().named(name);
            let reader = entry.and_then(|entry| Some((entry.id, context.engine.reader(entry.id)?)));
            reader.ok_or_else(|| Status::unavailable(format!("store `{name}` is not open yet")))
        };
        let ((_, database), (index_id, index)) = (store(&mapping.database)?, store(&mapping.index)?);
        Ok(Stores { database, index, index_id })
    }
}

/// The engine's watches, for a thread that may block.
struct Watched<'a> {
    engine: &'a EngineHandle,
    index: ParticipantId,
    runtime: &'a Handle,
}

impl Movements for Watched<'_> {
    fn watch(&self, keys: &[String]) -> Result<(u64, HashSet<String>), Stopped> {
        let keys: HashSet<_> = keys.iter().cloned().collect();
        let asked = self.runtime.block_on(self.engine.ask(|answer| Question::Watch(self.index, keys, answer)));
        let too_many = || Stopped::Unfit("too many verifications run at once".into());
        asked.map_err(|_| Stopped::Daemon)?.ok_or_else(too_many)
    }

    fn unwatch(&self, watch: u64) -> Result<HashSet<String>, Stopped> {
        self.runtime.block_on(self.engine.ask(|answer| Question::Unwatch(watch, answer))).map_err(|_| Stopped::Daemon)
    }

    fn lacking(&self, keys: &[String]) -> Result<HashMap<String, Lacking>, Stopped> {
        let keys: HashSet<_> = keys.iter().cloned().collect();
        self.runtime.block_on(self.engine.ask(|answer| Question::Lacking(self.index, keys, answer))).map_err(|_| Stopped::Daemon)
    }
}

/// Repairs of one mapping.
struct Repairs {
    context: Context,
    mapping: Mapping,
    stores: Stores,
}

/// What came of a try.
enum Tried {
    Put(u64),
    Deleted(u64),
    Agrees,
    /// Somebody else wrote it, or its row, meanwhile.
    Overtaken(String),
    Left(String),
}

impl Tried {
    fn reply(self, key: String) -> v1::RepairReply {
        let (outcome, csn, why) = match self {
            Tried::Put(csn) => ("put", csn, String::new()),
            Tried::Deleted(csn) => ("deleted", csn, String::new()),
            Tried::Agrees => ("agrees", 0, String::new()),
            Tried::Overtaken(why) => ("left", 0, format!("row or document is not what it was when they were looked at: {why}")),
            Tried::Left(why) => ("left", 0, why),
        };
        v1::RepairReply { key, outcome: outcome.into(), csn, why }
    }
}

impl Repairs {
    /// One document after the other. An error says what was not repaired, and why.
    async fn run(self: &Arc<Self>, keys: Vec<String>, sender: &mpsc::Sender<Result<v1::RepairReply, Status>>) -> Result<(), String> {
        let (count, mut left) = (keys.len(), Vec::new());
        for (at, key) in keys.into_iter().enumerate() {
            let ended = |why: &str| Err(format!("it ended after {at} of {count} documents: {why}"));
            match self.repair(&key).await {
                Ok(tried) => {
                    let reply = tried.reply(key);
                    if reply.outcome == "left" {
                        left.push(reply.why.clone());
                    }
                    if sender.send(Ok(reply)).await.is_err() {
                        return ended("nobody waits for it any more");
                    }
                }
                Err(status) => {
                    let why = status.message().to_owned();
                    let _ = sender.send(Err(status)).await;
                    return ended(&why);
                }
            }
        }
        match left.first() {
            None => Ok(()),
            Some(why) => Err(format!("{} of {count} documents were left, the first because {why}", left.len())),
        }
    }

    /// As often as another writer was faster, up to a limit.
    async fn repair(self: &Arc<Self>, key: &str) -> Result<Tried, Status> {
        let mut tried = self.try_one(key).await;
        for times in 1..TRIES {
            if !matches!(tried, Ok(Tried::Overtaken(_))) {
                break;
            }
            tokio::time::sleep(PAUSE * times).await;
            tried = self.try_one(key).await;
        }
        tried
    }

    /// Looks at row and document anew, and writes what the row says, under the condition that neither has changed since.
    async fn try_one(self: &Arc<Self>, key: &str) -> Result<Tried, Status> {
        let (repairs, wanted) = (Arc::clone(self), key.to_string());
        let read = tokio::task::spawn_blocking(move || repairs.pair(&wanted)).await;
        let pair = read.map_err(|error| Status::internal(format!("the read failed: {error}")))?.map_err(status)?;
        if pair.finding.is_none() {
            return Ok(Tried::Agrees);
        }
        let exact = pair.exact.as_ref().map(|(columns, values)| (columns.as_slice(), values.as_slice()));
        let guard = match self.mapping.guard(&pair.row_key, exact) {
            Ok(guard) => guard,
            Err(sentence) => return Err(Status::failed_precondition(sentence)),
        };
        let statements = guard.into_iter().map(|((sql, parameters), affects)| v1::Operation {
            operation: Some(v1::operation::Operation::Statement(v1::Statement {
                sql,
                parameters: parameters.iter().map(translate::value_out).collect(),
                expect_rows: affects.then_some(1),
            })),
        });
        let condition = Some(v1::Condition {
            condition: Some(match pair.csn {
                Some(csn) => v1::condition::Condition::IfCsn(csn.to_u64()),
                None => v1::condition::Condition::IfAbsent(true),
            }),
        });
        let (operation, deletes) = match pair.expected {
            Some(document) => {
                let put = v1::Put { key: key.into(), document: document.to_string(), condition };
                (v1::operation::Operation::Put(put), false)
            }
            None => (v1::operation::Operation::Delete(v1::Delete { key: key.into(), condition }), true),
        };
        let branch = |store: &str, operations| v1::Branch { store: store.into(), operations };
        let request = v1::CommitRequest {
            key: Some(v1::RequestKey { key: Uuid::new_v4().as_bytes().to_vec().into(), attempt: 1 }),
            branches: vec![
                branch(&self.mapping.database, statements.collect()),
                branch(&self.mapping.index, vec![v1::Operation { operation: Some(operation) }]),
            ],
            new_key: true,
            ..v1::CommitRequest::default()
        };
        let engine = &self.context.engine;
        let ticket = engine.ticket();
        let configuration = &self.context.configuration;
        let mut translator = Translator::new(engine.names(), &configuration.limits, &configuration.timeouts);
        let reply = match translator.commit(request, ticket, engine.position(), engine.now()) {
            Ok(event) => engine.call_as(ticket, event).await?,
            Err(reply) => reply,
        };
        Ok(match reply {
            Reply::Committed(receipt) if deletes => Tried::Deleted(receipt.csn.to_u64()),
            Reply::Committed(receipt) => Tried::Put(receipt.csn.to_u64()),
            Reply::Aborted(aborted) => match aborted.refusal.kind {
                RefusalKind::Condition if deletes && self.has_no_row().await? => Tried::Left(
                    "SQLite removes a document together with a write to a row of its table (R-COVER), and the table is empty: insert a row first"
                        .into(),
                ),
                RefusalKind::Conflict | RefusalKind::Condition | RefusalKind::Busy => Tried::Overtaken(aborted.refusal.message),
                // PostgreSQL's guard fails by a division by zero.
                _ if aborted.refusal.message.contains("division by zero") => Tried::Overtaken("its row has changed".into()),
                _ => Tried::Left(aborted.refusal.message),
            },
            Reply::Unknown(sentence) => Tried::Left(format!("what became of it is not known yet: {sentence}")),
            reply => Tried::Left(format!("the engine answered {reply:?}")),
        })
    }

    /// Whether there is none that a guard could write to.
    async fn has_no_row(&self) -> Result<bool, Status> {
        let Some(sql) = self.mapping.any_row() else { return Ok(false) };
        let (database, timeout) = (Arc::clone(&self.stores.database), self.context.configuration.timeouts.statement(0));
        let read = tokio::task::spawn_blocking(move || database.query(&sql, &[], ReadLimits { rows: 1, offset: 0, timeout })).await;
        let found =
            read.map_err(|error| Status::internal(format!("the read failed: {error}")))?.map_err(super::transactions::store_status)?;
        Ok(found.rows.is_empty())
    }

    fn pair(&self, key: &str) -> Result<Pair, Stopped> {
        struct Nobody;
        impl Movements for Nobody {
            fn watch(&self, _: &[String]) -> Result<(u64, HashSet<String>), Stopped> {
                Ok((0, HashSet::new()))
            }
            fn unwatch(&self, _: u64) -> Result<HashSet<String>, Stopped> {
                Ok(HashSet::new())
            }
            fn lacking(&self, _: &[String]) -> Result<HashMap<String, Lacking>, Stopped> {
                Ok(HashMap::new())
            }
        }
        let Stores { database, index, .. } = self.stores.clone();
        let timeout = self.context.configuration.timeouts.statement(0);
        let verification = Verification {
            mapping: &self.mapping,
            others: &[],
            database,
            index,
            // What changes after the look is held off by the transaction's own conditions.
            movements: &Nobody,
            timeout,
            patience: Duration::ZERO,
        };
        verification.pair(key)
    }
}

fn mappings(context: &Context) -> Result<Vec<Mapping>, Status> {
    let configuration = &context.configuration;
    if configuration.verify.is_empty() {
        let sentence = "no mapping is configured: say in the daemon's configuration which rows belong to which documents ([[verify]])";
        return Err(Status::failed_precondition(sentence));
    }
    let ready = configuration.verify.iter().map(|verify| Mapping::of(verify, &configuration.stores));
    ready.collect::<Result<_, _>>().map_err(Status::failed_precondition)
}

fn named<'a>(mappings: &'a [Mapping], name: &str) -> Result<&'a Mapping, Status> {
    mappings.iter().find(|mapping| mapping.name == name).ok_or_else(|| {
        let names: Vec<_> = mappings.iter().map(|mapping| mapping.name.as_str()).collect();
        Status::not_found(format!("there is no mapping `{name}`; there are {}", names.join(", ")))
    })
}

fn slot(context: &Context) -> Result<tokio::sync::OwnedSemaphorePermit, Status> {
    let full = |_| {
        Status::resource_exhausted(format!("{RUNS} verifications or repairs run already, as many as may: try again when one has ended"))
    };
    Arc::clone(&context.verifications).try_acquire_owned().map_err(full)
}

fn status(stopped: Stopped) -> Status {
    let sentence = stopped.to_string();
    match stopped {
        Stopped::Unfit(_) => Status::failed_precondition(sentence),
        Stopped::Store(_, lockstep_participants::StoreError::Invalid(_)) => Status::failed_precondition(sentence),
        Stopped::Store(..) | Stopped::Daemon => Status::unavailable(sentence),
        Stopped::Unheard => Status::cancelled(sentence),
    }
}

fn counts_out(name: &str, counts: &Counts) -> v1::VerifyCounts {
    let Counts { rows, documents, uncovered, pending, missing, extra, stale, different, moving } = *counts;
    v1::VerifyCounts { name: name.into(), rows, documents, uncovered, pending, missing, extra, stale, different, moving }
}

fn finding_out(name: &str, finding: Finding) -> v1::VerifyFinding {
    let what = match finding.what {
        What::Missing => "missing",
        What::Extra => "extra",
        What::Stale => "stale",
        What::Different => "different",
        What::Moving => "moving",
    };
    let difference =
        |difference: Difference| v1::FieldDifference { path: difference.path, row: difference.row, document: difference.document };
    v1::VerifyFinding {
        name: name.into(),
        key: finding.key,
        what: what.into(),
        csn: finding.csn.map_or(0, |csn| csn.to_u64()),
        differences: finding.differences.into_iter().map(difference).collect(),
        note: finding.note,
    }
}
