//! Disks that are full or read-only: small file systems in memory. Skipped, with the reason, where this process may not mount one.

use crate::lab::{LIMIT, Lab, launch, refusal, says, stores_at};
use lockstep_client::CommitError;
use lockstep_core::{CoordId, Csn, Decided, Decider, Epoch, Operation, Owner, ParticipantId, Txid, Value, Vote, Work};
use lockstep_participants::sqlite::{Sqlite, SqliteOptions};
use lockstep_participants::{ReadLimits, ResourceManager, StoreError};
use lockstep_proto::v1::StatusReply;
use lockstep_tests::disk_faults::{Ailment, Call, Control, Fault, Library, Ports};
use lockstep_tests::small_disk::Disk;
use lockstep_tests::workload;
use lockstepd::demo::daemon::Launch;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// R-FULL: below the reserve new transactions are refused, and nothing else happens to anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_the_reserve_new_transactions_are_refused() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(disk) = Disk::mount(&folder.path().join("data"), 128)? else { return Ok(()) };
    let mut lab = Lab::start(launch(folder.path(), &["log.reserve_bytes=67108864"])).await?;
    lab.write().await?;
    // Enough is left for what is written before the daemon looks, once a second.
    let filler = disk.fill_up_to(60 << 20)?;
    let refused = until(&mut lab, "full", |told| told.is_err()).await?;
    says(&refused.expect_err("it is refused"), &["log.reserve_bytes", "(R-FULL)", "what is under way is finished"]);
    let status = lab.daemon.wait_for(LIMIT, |status| status.in_doubt == 0 && status.active == 0).await?;
    assert!(status.log_free_bytes < 64 << 20, "{status:?}");
    std::fs::remove_file(filler)?;
    until(&mut lab, "roomy", |told| told.is_ok()).await?.map_err(anyhow::Error::msg)?;
    lab.is_sound().await
}

/// Not one byte is left for the log, the database and the index. Whichever meets it first: the daemon refuses, or says so and ends
/// (R-FSYNC); what it has acknowledged is there when there is room again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_loses_nothing_acknowledged() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(disk) = Disk::mount(&folder.path().join("data"), 48)? else { return Ok(()) };
    match fill_while_it_runs(&disk, launch(folder.path(), &["log.reserve_bytes=0"])).await? {
        Full::Ended(said) => says(&said, LOG_FAILED),
        Full::Refused(why) => says(&why, &["store `", "not available now"]),
    }
    Ok(())
}

/// SQLite drops what it knows of its file after such an error, which looks as if somebody else had written it.
#[test]
fn a_transaction_that_spills_onto_a_full_disk_is_no_foreign_writer() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(disk) = Disk::mount(&folder.path().join("data"), 16)? else { return Ok(()) };
    let mut options = SqliteOptions::new(folder.path().join("data/db.sqlite"));
    options.limits.cache_bytes = 64 << 10;
    let (owner, me) = (Owner { coord_id: CoordId(7), epoch: Epoch(1), incarnation: 11 }, ParticipantId(1));
    let mut store = Sqlite::open(options)?;
    store.recover(owner, me)?;
    store.migrate("CREATE TABLE item(id INTEGER PRIMARY KEY, body BLOB)")?;
    let filler = disk.fill_up_to(256 << 10)?;
    let many = "INSERT INTO item(body) WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) SELECT zeroblob(4000) FROM n";
    let refused = store.prepare(&[insert(1, many)]).map(|ballot| ballot.votes);
    assert!(matches!(refused.as_deref(), Err(StoreError::Broken(_)) | Ok([(_, Vote::No(_))])), "{refused:?}");
    store.abort(&[])?;
    std::fs::remove_file(filler)?;
    let work = insert(2, "INSERT INTO item(body) VALUES ('one')");
    let ballot = store.prepare(std::slice::from_ref(&work)).or_else(|error| {
        assert!(matches!(error, StoreError::Broken(_)), "{error:?}");
        store.recover(owner, me)?;
        store.prepare(std::slice::from_ref(&work))
    })?;
    let decided = Decided { csn: Csn::new(Epoch(1), 2), redo: ballot.group_redo, txids: vec![work.txid], trace: None };
    let committed = store.commit(std::slice::from_ref(&decided), decided.csn)?;
    assert_eq!(committed.progress.applied, decided.csn);
    let rows = store.reader().query("SELECT count(*) FROM item", &[], ReadLimits { rows: 1, offset: 0, timeout: LIMIT })?.rows;
    assert_eq!(rows, [[Value::Integer(1)]]);
    Ok(())
}

/// What a force that failed was for may be gone, though the kernel shows it and a second force says that all is well: it is read from the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failed_force_was_for_is_not_believed() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (library, control) = (Library::compile(folder.path())?, Control::create(folder.path().join("faults"), Ports::default())?);
    let mut launch = launch(folder.path(), &[]);
    std::fs::create_dir_all(&launch.data_dir)?;
    launch.environment.extend(library.environment(&launch.data_dir.canonicalize()?, &control));
    let mut lab = Lab::start(launch.clone()).await?;
    let fault = Fault { files: vec!["sqlite-wal".into()], calls: vec![Call::Sync], ailment: Ailment::Io, first: 1, count: Some(1) };
    control.arm(&fault)?;
    let until = Instant::now() + LIMIT;
    while control.dropped()? == 0 {
        anyhow::ensure!(Instant::now() < until, "{} forces have failed, and nothing was read from the disk", control.failed()?);
        lab.write().await?;
    }
    control.disarm()?;
    lab.is_sound().await?;
    lab.daemon.kill();
    lab.daemon.relaunch(launch).await?;
    lab.daemon.wait_until_mended(LIMIT).await?;
    lab.is_sound().await
}

fn insert(n: u64, sql: &str) -> Work {
    let operation = Operation::Statement { sql: sql.into(), parameters: [].into(), expect_rows: None };
    Work {
        txid: Txid { epoch: Epoch(1), n, decider: Decider::Log },
        operations: [operation].into(),
        timeout: 0,
        trace: None,
        shares: false,
    }
}

/// Only the log's disk is full: nobody but the log can say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_full_ends_the_daemon() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(disk) = Disk::mount(&folder.path().join("data"), 24)? else { return Ok(()) };
    let mut launch = launch(folder.path(), &["log.reserve_bytes=0"]);
    launch.arguments.extend(stores_at(folder.path(), folder.path())?);
    match fill_while_it_runs(&disk, launch).await? {
        Full::Ended(said) => says(&said, LOG_FAILED),
        Full::Refused(why) => panic!("it still refuses transactions, one by one: {why}"),
    }
    Ok(())
}

/// What an operator reads (R-FSYNC).
const LOG_FAILED: &[&str] = &["cannot write the decision log in", "No space left on device", "start it again: it replays its log"];

/// How a daemon met a full disk.
enum Full {
    /// It ended, and said this.
    Ended(String),
    /// It refused a transaction with this.
    Refused(String),
}

/// A life on a disk that becomes full and gets room again. Everything acknowledged is there afterwards, also from the disk alone.
async fn fill_while_it_runs(disk: &Disk, launch: Launch) -> anyhow::Result<Full> {
    let mut lab = Lab::start(launch.clone()).await?;
    lab.write().await?;
    let filler = disk.fill_up_to(0)?;
    // One that insists, until it is refused or the daemon has been started again.
    let client = lab.client.clone();
    let enough = Arc::new(AtomicBool::new(false));
    let over = enough.clone();
    let writing = tokio::spawn(async move {
        let mut told = Vec::new();
        for n in 0.. {
            let (id, item) = (format!("cramped{n}"), format!("item-{}", n % 3));
            let outcome = workload::insist(&client, workload::transaction(&client, &id, &item)).await?.map(|receipt| receipt.csn.to_u64());
            let refused = outcome.is_err();
            told.push(workload::Told { id, item, outcome });
            if refused || over.load(Ordering::Relaxed) {
                break;
            }
        }
        anyhow::Ok(told)
    });
    let until = Instant::now() + LIMIT;
    let mut ended = None;
    while ended.is_none() && !writing.is_finished() {
        anyhow::ensure!(Instant::now() < until, "it neither ended nor refused; its output is in {}", launch.log_file().display());
        ended = lab.daemon.wait_until_dead(Duration::from_millis(20)).await?;
    }
    let said = std::fs::read_to_string(launch.log_file())?;
    enough.store(true, Ordering::Relaxed);
    std::fs::remove_file(filler)?;
    if let Some(status) = ended {
        assert_eq!(status.code(), Some(3), "{said}");
        lab.daemon.relaunch(launch.clone()).await?;
    }
    let told = writing.await??;
    let refused = told.last().and_then(|told| told.outcome.clone().err());
    lab.told.extend(told);
    // Stores that broke come back by themselves.
    let up = |status: &StatusReply| status.participants.iter().all(|participant| participant.session == "up");
    lab.daemon.wait_for(LIMIT, up).await?;
    lab.is_sound().await?;
    lab.daemon.kill();
    lab.daemon.relaunch(launch).await?;
    lab.daemon.wait_until_mended(LIMIT).await?;
    lab.is_sound().await?;
    match (ended, refused) {
        (Some(_), _) => Ok(Full::Ended(said)),
        (None, Some(why)) => Ok(Full::Refused(why)),
        (None, None) => anyhow::bail!("it neither ended nor refused"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_folder_is_refused_at_the_start() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let Some(disk) = Disk::mount(&data, 64)? else { return Ok(()) };
    let launch: &dyn Fn() -> Launch = &|| launch(folder.path(), &["log.reserve_bytes=0"]);
    let mut lab = Lab::start(launch()).await?;
    lab.write().await?;
    lab.daemon.stop().await?;
    disk.remount("ro")?;
    says(&refusal(launch()).await?, &["exit status: 1", "Read-only file system", &data.join("log").display().to_string()]);
    disk.remount("rw")?;
    lab.daemon.relaunch(launch()).await?;
    lab.daemon.wait_until_serving().await?;
    lab.is_sound().await
}

/// Transactions one after the other, until one is told what is waited for.
async fn until(lab: &mut Lab, name: &str, enough: impl Fn(&Result<u64, String>) -> bool) -> anyhow::Result<Result<u64, String>> {
    let end = Instant::now() + LIMIT;
    for n in 0.. {
        let (id, item) = (format!("{name}{n}"), "item-0");
        let told = match workload::transaction(&lab.client, &id, item).commit().await {
            Ok(receipt) => Ok(receipt.csn.to_u64()),
            Err(CommitError::Aborted(aborted)) => Err(aborted.to_string()),
            Err(error) => return Err(error.into()),
        };
        lab.told.push(workload::Told { id, item: item.into(), outcome: told.clone() });
        if enough(&told) {
            return Ok(told);
        }
        anyhow::ensure!(Instant::now() < end, "{name}: still told {told:?}");
    }
    unreachable!("numbers do not end")
}
