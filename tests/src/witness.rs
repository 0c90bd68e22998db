//! Clients that remember what they were told, and since when; and the judgement on a data folder that something happened to.

use crate::workload::{self, Told};
use anyhow::{Context, bail, ensure};
use lockstep_client::{Client, CommitError, Reason, RequestId, Transaction, Wait, params};
use lockstepd::demo::daemon::{Daemon, Launch};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

/// How long a start may take to mend, or to say why not. Far above what it takes: the point is that it ends.
const MEND: Duration = Duration::from_secs(60);
/// How long a client insists on an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Questions under way at once.
const AT_ONCE: usize = 32;
/// What is written after a start.
const MORE: Load = Load { clients: 2, transactions: 2, items: 5, big_every: 0 };
/// Bytes of the largest document that is taken (`limits.document_bytes`).
pub const LARGEST: usize = 1 << 20;
/// The table of the contents, beside those of the workload.
const CONTENTS: &str = "CREATE TABLE content (id TEXT PRIMARY KEY NOT NULL, content TEXT NOT NULL)";

/// What a client was told of a transaction.
#[derive(Clone, Debug)]
pub struct Testimony {
    /// What it was, and what came of it.
    pub told: Told,
    /// What to ask with.
    pub request: RequestId,
    /// Length of its content, bytes: it stands in a row of its own, and in the document.
    pub bytes: usize,
    /// Where the world stood before it was sent, on a scale of the test's own.
    pub sent: u64,
    /// Where the world stood when the answer had come.
    pub since: u64,
}

/// Concurrent clients, and what they write.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Clients, each with one transaction under way.
    pub clients: usize,
    /// Transactions of each.
    pub transactions: usize,
    /// Items that all of them write.
    pub items: usize,
    /// Of so many transactions one has the largest document that there may be; 0: none has.
    pub big_every: usize,
}

/// What came of a start.
#[derive(Debug)]
pub enum Verdict {
    /// Everything is there and agrees.
    Right {
        /// What is known now for certain of what was told before.
        known: Vec<Testimony>,
        /// What was written since.
        more: Vec<Testimony>,
    },
    /// It refused, in this sentence.
    Refused(String),
    /// It answers, wrongly.
    Wrong(anyhow::Error),
}

/// The tables; those that are there already are left alone.
pub async fn prepare(client: &Client) -> anyhow::Result<()> {
    if !has_table(client, "journal").await? {
        workload::prepare(client).await?;
    }
    if !has_table(client, "content").await? {
        client.migrate("db", CONTENTS).await?;
    }
    Ok(())
}

async fn has_table(client: &Client, name: &str) -> anyhow::Result<bool> {
    Ok(!client.query("db", "SELECT name FROM sqlite_schema WHERE name = ?1", params![name]).await?.rows.is_empty())
}

/// Runs all clients at once and notes for each answer where the world stood when it came.
pub async fn run(
    client: &Client,
    name: &str,
    load: Load,
    now: impl Fn() -> u64 + Clone + Send + 'static,
) -> anyhow::Result<Vec<Testimony>> {
    // The client's position is known once it is connected.
    client.describe().await?;
    let mut running = tokio::task::JoinSet::new();
    for who in 0..load.clients {
        let (client, name, now) = (client.clone(), name.to_string(), now.clone());
        running.spawn(async move {
            let mut all = Vec::new();
            for n in 0..load.transactions {
                let id = format!("{name}-{who}-{n}");
                let item = format!("item-{}", (who + n * 7) % load.items);
                let big = load.big_every > 0 && (who * load.transactions + n) % load.big_every == 0;
                let bytes = if big { LARGEST - document(&id, &item, "").to_string().len() } else { [20, 200, 9_000][(who + n) % 3] };
                let wait = [Wait::Decided, Wait::Applied, Wait::Visible][(who * 5 + n) % 3];
                let sent = now();
                let (request, outcome) = one(&client, &id, &item, bytes, wait).await.with_context(|| format!("transaction {id}"))?;
                all.push(Testimony { told: Told { id, item, outcome }, request, bytes, sent, since: now() });
            }
            anyhow::Ok(all)
        });
    }
    let mut all = Vec::new();
    while let Some(some) = running.join_next().await {
        all.extend(some??);
    }
    Ok(all)
}

async fn one(client: &Client, id: &str, item: &str, bytes: usize, wait: Wait) -> anyhow::Result<(RequestId, Result<u64, String>)> {
    let position = match client.position() {
        Some(position) => position,
        // It has not connected yet.
        None => client.describe().await?.position,
    };
    let request = RequestId { key: id.into(), attempt: 1, position };
    let answer = transaction(client, id, item, bytes).idempotency_key(id).position(position).wait(wait).deadline(PATIENCE).commit().await;
    match answer {
        Ok(receipt) => Ok((request, Ok(receipt.csn.to_u64()))),
        // Nothing that is written here breaks a rule: what is refused is tested no more than what is not written.
        Err(CommitError::Aborted(aborted)) if aborted.reason == Reason::Invalid => bail!("refused: {}", aborted.message),
        Err(CommitError::Aborted(aborted)) => Ok((request, Err(aborted.message))),
        Err(error) => Err(error.into()),
    }
}

/// As the workload's, and a content that can be told from every other.
fn transaction(client: &Client, id: &str, item: &str, bytes: usize) -> Transaction {
    let content = content(id, bytes);
    let counted = "INSERT INTO item VALUES (?1, 1, ?2) ON CONFLICT (name) DO UPDATE SET version = version + 1, last = excluded.last";
    client
        .transaction()
        .sql("db", "INSERT INTO journal VALUES (?1, ?2)", params![id, item])
        .sql("db", counted, params![item, id])
        .sql("db", "INSERT INTO content VALUES (?1, ?2)", params![id, content.as_str()])
        .put("index", item, &document(id, item, &content))
}

fn document(id: &str, item: &str, content: &str) -> serde_json::Value {
    serde_json::json!({ "item": item, "last": id, "content": content })
}

/// So many characters that follow from the name and cannot be compressed away, in words: an index refuses a long one.
fn content(id: &str, bytes: usize) -> String {
    let seed = id.bytes().fold(0u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut text = String::with_capacity(bytes + 17);
    while text.len() < bytes {
        write!(text, "{:016x} ", random.random::<u64>()).expect("a string takes everything");
    }
    text.truncate(bytes);
    text
}

/// Starts a daemon and holds everything it answers against what was told until `now`; of what was told later either is right, but whole.
/// Then more is written, under this name, and all of it judged again. An error is one of the test's own.
pub async fn judge(launch: Launch, all: &[Testimony], now: u64, name: &str) -> anyhow::Result<Verdict> {
    let mut daemon = match Daemon::start(launch).await {
        Ok(daemon) => daemon,
        Err(error) => return Ok(Verdict::Refused(format!("{error:#}"))),
    };
    let verdict = match mended(&daemon).await {
        Ok(None) => {
            let client = workload::connect(&daemon.url()).await?;
            match testify_twice(&daemon, &client, all, now, name).await {
                Ok((known, more)) => Verdict::Right { known, more },
                // A store that is refused only when it is first asked says so in its status.
                Err(error) => refusal(&daemon).await.map_or(Verdict::Wrong(error), Verdict::Refused),
            }
        }
        Ok(Some(sentence)) => Verdict::Refused(sentence),
        Err(error) => Verdict::Wrong(error),
    };
    daemon.kill();
    Ok(verdict)
}

/// Waits until the daemon has followed its log; gives its sentence if it refuses to.
pub async fn mended(daemon: &Daemon) -> anyhow::Result<Option<String>> {
    let settled = daemon
        .wait_for(MEND, |status| {
            let refused =
                status.phase == "safe mode" || status.participants.iter().any(|store| store.session == "refused" || store.stuck > 0);
            refused || (status.mended_after_ms > 0 && status.in_doubt == 0 && status.active == 0)
        })
        .await?;
    ensure!(settled.damage == 0, "I12: {} damages", settled.damage);
    Ok(refusal(daemon).await)
}

/// Why the daemon, or one of its stores, does not serve.
async fn refusal(daemon: &Daemon) -> Option<String> {
    let status = match daemon.status().await {
        Ok(status) => status,
        Err(error) => return Some(format!("the daemon is gone: {error:#}")),
    };
    if status.phase == "safe mode" {
        return Some(format!("safe mode: {}", status.why));
    }
    let store = status.participants.iter().find(|store| store.session == "refused" || store.stuck > 0)?;
    Some(format!("store `{}` is {} and stuck at {} transactions: {}", store.name, store.session, store.stuck, store.why))
}

async fn testify_twice(
    daemon: &Daemon,
    client: &Client,
    all: &[Testimony],
    now: u64,
    name: &str,
) -> anyhow::Result<(Vec<Testimony>, Vec<Testimony>)> {
    let known = testify(daemon, client, all, now).await?;
    prepare(client).await?;
    let more = run(client, name, MORE, || 0).await.context("nothing more can be written")?;
    if let Some(sentence) = mended(daemon).await? {
        bail!("after more was written: {sentence}");
    }
    testify(daemon, client, &[known.as_slice(), &more].concat(), 0).await.context("after more was written")?;
    Ok((known, more))
}

/// Both stores, the contents, and the answers to every request asked for again.
async fn testify(daemon: &Daemon, client: &Client, all: &[Testimony], now: u64) -> anyhow::Result<Vec<Testimony>> {
    let there = if has_table(client, "journal").await? { ids(client).await? } else { BTreeSet::new() };
    let mut known = Vec::with_capacity(all.len());
    for testimony in all.iter().filter(|testimony| testimony.sent <= now) {
        let mut testimony = testimony.clone();
        let written = there.contains(&testimony.told.id);
        testimony.told.outcome = match testimony.told.outcome {
            told if testimony.since <= now => told,
            Ok(csn) if written => Ok(csn),
            Ok(_) => Err("nobody was told an outcome, and it is not there".to_string()),
            Err(why) => Err(why),
        };
        (testimony.sent, testimony.since) = (0, 0);
        known.push(testimony);
    }
    if there.is_empty() {
        let lost = known.iter().find(|testimony| testimony.told.outcome.is_ok());
        ensure!(lost.is_none(), "I7: the database is empty, but {} was told committed", lost.map_or("", |lost| &lost.told.id));
    } else {
        let told: Vec<Told> = known.iter().map(|testimony| testimony.told.clone()).collect();
        workload::check(client, &told).await?;
        contents(client, &known).await?;
    }
    let floor = daemon.status().await?.floor.unwrap_or_default();
    inquire(client, &known, (floor.epoch, floor.n) > (0, 0)).await?;
    Ok(known)
}

async fn ids(client: &Client) -> anyhow::Result<BTreeSet<String>> {
    let rows = client.query("db", "SELECT id FROM journal", params![]).await?.rows;
    Ok(rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?)
}

/// Every row's and every document's content is whole.
async fn contents(client: &Client, known: &[Testimony]) -> anyhow::Result<()> {
    let committed: Vec<&Testimony> = known.iter().filter(|testimony| testimony.told.outcome.is_ok()).collect();
    for some in committed.chunks(AT_ONCE) {
        let mut asked = tokio::task::JoinSet::new();
        for testimony in some {
            asked.spawn(whole(client.clone(), (*testimony).clone()));
        }
        while let Some(answer) = asked.join_next().await {
            answer??;
        }
    }
    Ok(())
}

async fn whole(client: Client, testimony: Testimony) -> anyhow::Result<()> {
    let Told { id, item, .. } = &testimony.told;
    let content = content(id, testimony.bytes);
    let rows = client.query("db", "SELECT content = ?2 FROM content WHERE id = ?1", params![id.as_str(), content.as_str()]).await?.rows;
    let same: Vec<i64> = rows.iter().map(|row| row.get(0)).collect::<Result<_, _>>()?;
    ensure!(same == [1], "I1: the content of {id} in the database is not what was written: {same:?}");
    let document: serde_json::Value = client.get("index", item).await?.context("no document")?.json()?;
    let last = document["last"] == *id;
    ensure!(!last || document["content"] == content, "I1: the content of {id} in the index is not what was written");
    Ok(())
}

/// Asked again, every request has the outcome that was told (I7), or, if the daemon forgets any, may have expired.
async fn inquire(client: &Client, known: &[Testimony], forgets: bool) -> anyhow::Result<()> {
    for some in known.chunks(AT_ONCE) {
        let mut asked = tokio::task::JoinSet::new();
        for testimony in some {
            let (inquiry, told) = (client.inquire(&testimony.request).deadline(PATIENCE), testimony.told.clone());
            asked.spawn(async move { (inquiry.await, told) });
        }
        while let Some(answer) = asked.join_next().await {
            let (answer, Told { id, outcome, .. }) = answer?;
            match (answer, outcome) {
                (Ok(receipt), Ok(csn)) => {
                    ensure!(receipt.csn.to_u64() == csn, "I7: {id} had CSN {csn}, asked again {}", receipt.csn.to_u64());
                }
                (Err(CommitError::Aborted(_)), Err(_)) => {}
                (Err(CommitError::Expired { .. }), _) if forgets => {}
                (answer, outcome) => bail!("I7: {id} was told {outcome:?}, asked again {answer:?}"),
            }
        }
    }
    Ok(())
}
