//! Somebody on call, with nothing but `lockstep`: what it says of a real daemon, whose index refuses a document, goes away, and comes back.

use anyhow::{Context, ensure};
use lockstep::{Exit, Io};
use lockstep_client::{Client, Wait};
use lockstep_core::{Ballot, Csn, Decided, Kind, Owner, ParticipantId, Txid, Work};
use lockstep_participants::tantivy::{Tantivy, TantivyOptions};
use lockstep_participants::{Committed, Reader, Recovered, ResourceManager, StoreError, Tended};
use lockstep_tests::remote_participant::RemoteParticipant;
use lockstep_tests::workload;
use lockstepd::demo::daemon::{Daemon, Launch};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

const STORES: &str = "[[store]]\ntype = \"sqlite\"\nname = \"db\"\n
[[store]]\ntype = \"remote\"\nname = \"index\"\nrole = \"index\"\nkind = \"redo\"\n";
/// Far above what anything here takes.
const LIMIT: Duration = Duration::from_secs(60);
const WHY: &str = "the mapping does not take the field `last`";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_is_refused() -> anyhow::Result<()> {
    let lab = Lab::start().await?;
    lab.refuses.store(true, Ordering::SeqCst);
    let txid = lab.one("first", "item-1").await?;
    lab.daemon.wait_for(LIMIT, |status| status.participants.iter().any(|store| store.stuck == 1)).await?;

    let metrics = lab.page("/metrics").await?;
    for line in [
        "lockstep_store_stuck_transactions{store=\"index\",type=\"remote\",kind=\"redo\"} 1",
        "lockstep_transactions_in_doubt 1",
        "lockstep_store_up{store=\"db\",type=\"sqlite\",kind=\"serial\"} 1",
    ] {
        ensure!(metrics.lines().any(|found| found == line), "`{line}` is not among:\n{metrics}");
    }
    ensure!(metrics.contains("lockstep_store_call_seconds_count{store=\"db\",call=\"commit\"}"), "{metrics}");
    let forces = "lockstep_store_forces_total{store=\"db\",type=\"sqlite\",kind=\"serial\"} ";
    let forces = metrics.lines().find_map(|line| line.strip_prefix(forces)).and_then(|forces| forces.parse::<u64>().ok());
    ensure!(forces.is_some_and(|forces| forces > 0), "the database has committed, and forced nothing:\n{metrics}");
    ensure!(lab.page("/readyz").await?.starts_with("HTTP/1.0 200"), "it serves, whatever is stuck");

    let said = lab.says(&["tx", "explain", &txid], Exit::Attention).await?;
    says(
        &said,
        &[
            &format!("{txid} is committed, at CSN 2.1, and that does not change. It is not finished: `index` has not"),
            "Its Commit record is durable: decided at CSN 2.1. [log, record ",
            "`db` has applied it.",
            &format!("`index` cannot apply it: {WHY}."),
            "[store index, ",
            "It writes at `index`: `item-1` (put).",
            "tries again by itself, at least every 10 s",
            "$ lockstep doctor",
            &format!("$ lockstep skip {txid} --participant index --reason WHY"),
            "`index` never gets these documents",
        ],
    );
    let shown = lab.says(&["tx", "show", &txid], Exit::Ok).await?;
    says(&shown, &["its vote came", "store index", "it was committed, at CSN 2.1", "it could not be applied, first", "it has applied it"]);
    says(&lab.says(&["tx", "list", "--key", "item-1"], Exit::Ok).await?, &[&txid]);
    says(&lab.says(&["wait", "--timeout", "0s"], Exit::Attention).await?, &["1 decided and not applied everywhere", "index"]);
    let json = lab.says(&["tx", "explain", &txid, "--output", "json"], Exit::Attention).await?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    ensure!(
        json["state"] == "committing" && json["attention"] == true && json["choices"].as_array().is_some_and(|c| c.len() == 2),
        "{json}"
    );

    // A second write of the document puts right what giving up the first one would break.
    let second = lab.one("second", "item-1").await?;
    let plan = ["skip", &txid, "--participant", "index", "--dry-run"];
    says(&lab.says(&plan, Exit::Ok).await?, &["A later transaction writes these again", "item-1", "recorded as damage"]);
    ensure!(lab.daemon.status().await?.damage == 0, "a dry run does nothing");
    let at_database = ["skip", &txid, "--participant", "db", "--dry-run"];
    says(&lab.says(&at_database, Exit::Refused).await?, &["The daemon would refuse it now", "later transactions of `db`"]);
    let resolve = ["tx", "resolve", &txid, "--participant", "db", "--abort", "--dry-run"];
    says(&lab.says(&resolve, Exit::Refused).await?, &["only a branch that its own store holds prepared"]);

    let skip = ["skip", &txid, "--participant", "index", "--operator", "ann", "--reason", "it is not needed", "--yes"];
    says(&lab.says(&skip, Exit::Ok).await?, &[&format!("given up at `index`, and recorded as damage: {txid}")]);
    says(&lab.says(&skip, Exit::Refused).await?, &["refused, nothing was done"]);
    let said = lab.says(&["tx", "explain", &txid], Exit::Attention).await?;
    says(&said, &["but damaged at `index`", "Damage is recorded at `index`", "By ann.", "it is not needed", "damage forget"]);
    says(&lab.says(&["damage", "show", &txid], Exit::Attention).await?, &["skipped", "item-1", "ann", "read the truth in the database"]);
    let forget = ["tx", "forget", &txid, "--participant", "index", "--operator", "ann", "--reason", "mended", "--yes"];
    says(&lab.says(&forget, Exit::Ok).await?, &["is forgotten"]);

    lab.refuses.store(false, Ordering::SeqCst);
    says(&lab.says(&["wait", "--timeout", "60s"], Exit::Ok).await?, &["nothing is in doubt"]);
    says(&lab.says(&["tx", "explain", &second], Exit::Ok).await?, &["is finished: it is committed", "every store has applied it"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_away() -> anyhow::Result<()> {
    let mut lab = Lab::start().await?;
    lab.refuses.store(true, Ordering::SeqCst);
    let txid = lab.one("first", "item-1").await?;
    lab.attending.abort();
    lab.daemon.wait_for(LIMIT, |status| status.participants.iter().any(|store| store.session == "down")).await?;
    let said = lab.says(&["tx", "explain", &txid], Exit::Attention).await?;
    says(&said, &["`index` has no session", "dials in by itself", "Bring `index` back", "lockstep skip"]);

    // The same of a new start, which knows the transaction from its log alone.
    lab.daemon.kill();
    lab.daemon.start_again().await?;
    lab.daemon.wait_until_serving().await?;
    lab.daemon.wait_for(LIMIT, |status| status.participants.iter().any(|store| store.name == "db" && store.lag == 0)).await?;
    let said = lab.says(&["tx", "explain", &txid], Exit::Attention).await?;
    says(&said, &["`index` has no session", "It writes at `index`: `item-1` (put). [log, record ", "`db` has applied it"]);
    for (unknown, words) in
        [("2-9", "nothing may be presumed of that yet"), ("3-99", "was never begun"), ("9-1", "this log has only come to epoch 3")]
    {
        let exit = if unknown == "2-9" { Exit::Attention } else { Exit::Ok };
        says(&lab.says(&["tx", "explain", unknown], exit).await?, &[words]);
    }
    lab.refuses.store(false, Ordering::SeqCst);
    lab.attending = attend(&lab.remote, &lab.daemon);
    says(&lab.says(&["wait", "--timeout", "60s", "--output", "json"], Exit::Ok).await?, &["\"committing\": 0"]);
    says(&lab.says(&["tx", "explain", &txid], Exit::Ok).await?, &["every store has applied it"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_read_with_the_daemon_down() -> anyhow::Result<()> {
    let mut lab = Lab::start().await?;
    lab.refuses.store(true, Ordering::SeqCst);
    let txid = lab.one("first", "item-1").await?;
    let log = lab.folder.path().join("data/log");
    let folder = log.display().to_string();
    says(&lab.says(&["log", "verify"], Exit::Ok).await?, &["sound", "1: decided, and some store may lack them", &txid]);
    let running = lab.says(&["log", "verify", "--folder", &folder], Exit::Refused).await?;
    says(&running, &["is in use by process", "leave --folder out"]);

    // The daemon has settled what it read: what is damaged below has to come later.
    for id in ["second", "third"] {
        lab.one(id, "item-2").await?;
    }
    lab.attending.abort();
    lab.daemon.kill();
    let before = contents(&log)?;
    let said = lab.says(&["log", "verify", "--folder", &folder], Exit::Ok).await?;
    says(&said, &["sound: every record is there", "none is missing that was not forgotten on purpose", "whole", &txid, "index"]);
    let dumped = lab.says(&["log", "dump", "--folder", &folder, "--output", "json"], Exit::Ok).await?;
    let kinds: Vec<_> = dumped.lines().map(serde_json::from_str::<serde_json::Value>).collect::<Result<_, _>>()?;
    ensure!(kinds.iter().any(|line| line["kind"] == "commit" && line["record"]["transactions"][0]["txid"] == txid.as_str()), "{dumped}");
    ensure!(contents(&log)? == before, "reading has changed the folder");

    // One bit of what was forced last but one.
    let (name, at) = last_frame_but_one(&log)?;
    let mut bytes = std::fs::read(&name)?;
    bytes[at] ^= 1;
    std::fs::write(&name, bytes)?;
    let damaged = lab.says(&["log", "verify", "--folder", &folder], Exit::Attention).await?;
    says(&damaged, &["! the decision log in", &folder, "is damaged"]);
    says(&lab.says(&["log", "dump", "--folder", &folder], Exit::Failed).await?, &["log verify --folder"]);
    Ok(())
}

/// A daemon with an index that is a process of its own, as far as the daemon can tell.
struct Lab {
    folder: tempfile::TempDir,
    /// Where its metrics are.
    watched: String,
    daemon: Daemon,
    client: Client,
    remote: Arc<RemoteParticipant>,
    refuses: Arc<AtomicBool>,
    attending: tokio::task::JoinHandle<()>,
}

impl Lab {
    async fn start() -> anyhow::Result<Lab> {
        let folder = tempfile::tempdir()?;
        let configuration = folder.path().join("lockstepd.toml");
        let watched = format!("127.0.0.1:{}", lockstep_servers::free_port()?);
        std::fs::write(&configuration, format!("{STORES}\n[http]\nlisten = \"{watched}\"\n"))?;
        let program = PathBuf::from(env!("CARGO_BIN_EXE_lockstepd-with-failpoints"));
        let arguments = vec!["--config".into(), configuration.display().to_string()];
        let mut daemon =
            Daemon::start(Launch { program, data_dir: folder.path().join("data"), arguments, environment: Vec::new() }).await?;
        daemon.wait_until_serving().await?;
        let refuses = Arc::new(AtomicBool::new(false));
        let index = Tantivy::open(TantivyOptions::new(folder.path().join("index")))?;
        let store = Refusing { index, refuses: Arc::clone(&refuses), held: None };
        let remote = Arc::new(RemoteParticipant::start("index", Box::new(store))?);
        let attending = attend(&remote, &daemon);
        daemon.wait_until_ready().await?;
        let client = workload::connect(&daemon.url()).await?;
        workload::prepare(&client).await?;
        // Epoch 2 from here on, so that there is an earlier start.
        daemon.kill();
        daemon.start_again().await?;
        daemon.wait_until_ready().await?;
        Ok(Lab { folder, watched, daemon, client, remote, refuses, attending })
    }

    /// Commits one transaction; its id.
    async fn one(&self, id: &str, item: &str) -> anyhow::Result<String> {
        let receipt = workload::transaction(&self.client, id, item).wait(Wait::Applied).deadline(LIMIT).commit().await?;
        Ok(receipt.txid.to_string())
    }

    /// An answer of the daemon's plain HTTP, with its head.
    async fn page(&self, path: &str) -> anyhow::Result<String> {
        let (watched, request) = (self.watched.clone(), format!("GET {path} HTTP/1.0\r\n\r\n"));
        let asked = tokio::task::spawn_blocking(move || -> anyhow::Result<String> {
            let mut stream = TcpStream::connect(watched)?;
            stream.write_all(request.as_bytes())?;
            let mut page = String::new();
            stream.read_to_string(&mut page)?;
            Ok(page)
        });
        asked.await?
    }

    /// What the CLI writes, to either stream.
    async fn says(&self, words: &[&str], expected: Exit) -> anyhow::Result<String> {
        let endpoint = self.daemon.url();
        let line: Vec<_> = ["lockstep", "--endpoint", &endpoint].iter().chain(words).map(|word| word.to_string()).collect();
        let (exit, text) = tokio::task::spawn_blocking(move || {
            let (mut stdout, mut stderr, mut stdin) = (Vec::new(), Vec::new(), &b""[..]);
            let mut io = Io { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr, interactive: false, color: false };
            let exit = lockstep::run(line, &mut io);
            // Data alone where there is any: it may be JSON.
            (exit, if stdout.is_empty() { stderr } else { stdout })
        })
        .await?;
        let text = String::from_utf8(text)?;
        println!("$ lockstep {}\n{text}", words.join(" "));
        ensure!(exit == expected, "lockstep {}: {exit:?} instead of {expected:?}\n{text}", words.join(" "));
        Ok(text)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.attending.abort();
    }
}

/// Attends again and again, as a process of its own would.
fn attend(remote: &Arc<RemoteParticipant>, daemon: &Daemon) -> tokio::task::JoinHandle<()> {
    let (remote, url) = (Arc::clone(remote), daemon.url());
    tokio::spawn(async move {
        loop {
            let _ = remote.attend(&url).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}

/// An index that votes Yes, and cannot apply what it has voted on as long as it is told so.
struct Refusing {
    index: Tantivy,
    refuses: Arc<AtomicBool>,
    /// The first that was refused.
    held: Option<Csn>,
}

impl Refusing {
    /// The watermark does not pass what was refused (R-WATERMARK).
    fn below_held(&mut self, closed: Csn) -> Csn {
        self.held.take_if(|_| !self.refuses.load(Ordering::SeqCst));
        self.held.map_or(closed, |held| closed.min(held.before()))
    }
}

impl ResourceManager for Refusing {
    fn kind(&self) -> Kind {
        self.index.kind()
    }

    fn recover(&mut self, owner: Owner, me: ParticipantId) -> Result<Recovered, StoreError> {
        self.index.recover(owner, me)
    }

    fn owner(&mut self) -> Result<Option<Owner>, StoreError> {
        self.index.owner()
    }

    fn prepare(&mut self, batch: &[Work]) -> Result<Ballot, StoreError> {
        self.index.prepare(batch)
    }

    fn commit(&mut self, decided: &[Decided], closed: Csn) -> Result<Committed, StoreError> {
        if self.refuses.load(Ordering::SeqCst) && !decided.is_empty() {
            self.held = decided.iter().map(|decided| decided.csn).chain(self.held).min();
            let closed = self.below_held(closed);
            let mut committed = self.index.commit(&[], closed)?;
            committed.stuck.extend(decided.iter().map(|decided| (decided.csn, WHY.to_string())));
            return Ok(committed);
        }
        let closed = self.below_held(closed);
        self.index.commit(decided, closed)
    }

    fn abort(&mut self, txids: &[Txid]) -> Result<(), StoreError> {
        self.index.abort(txids)
    }

    fn tend(&mut self, closed: Csn) -> Result<Tended, StoreError> {
        let closed = self.below_held(closed);
        self.index.tend(closed)
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.index.reader()
    }

    fn migrate(&mut self, script: &str) -> Result<String, StoreError> {
        self.index.migrate(script)
    }
}

/// Every file of a folder: what is in it, and when it was changed.
fn contents(folder: &Path) -> anyhow::Result<BTreeMap<PathBuf, (Vec<u8>, SystemTime)>> {
    let mut all = BTreeMap::new();
    for file in std::fs::read_dir(folder)? {
        let path = file?.path();
        if path.is_dir() {
            all.extend(contents(&path)?);
        } else {
            let changed = path.metadata()?.modified()?;
            all.insert(path.clone(), (std::fs::read(&path)?, changed));
        }
    }
    Ok(all)
}

/// Inside the content of the last frame but one of the write-ahead files.
fn last_frame_but_one(log: &Path) -> anyhow::Result<(PathBuf, usize)> {
    let mut frames = Vec::new();
    for name in ["ahead-0", "ahead-1"] {
        let path = log.join(name);
        let bytes = std::fs::read(&path)?;
        for at in (0..bytes.len()).step_by(4096).filter(|at| bytes[*at..].starts_with(b"LSWA")) {
            let sequence = u64::from_le_bytes(bytes[at + 16..at + 24].try_into()?);
            frames.push((sequence, path.clone(), at + 60));
        }
    }
    frames.sort();
    let (_, path, at) = frames.into_iter().rev().nth(1).context("there are two frames")?;
    Ok((path, at))
}

fn says(text: &str, words: &[&str]) {
    // Sentences are wrapped.
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in words {
        let word = word.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(&word), "`{word}` is missing in:\n{text}");
    }
}
