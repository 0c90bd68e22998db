//! `AdminService`'s Backup: the log and every embedded store, copied while the daemon goes on, so that together they are what a crash at one
//! moment would have left.
//!
//! In this order, each step resting on the one before:
//! 1. a **hold**: nothing is forgotten, and the log does not say of any store that it has come further (R-STORELOSS);
//! 2. the embedded stores that follow;
//! 3. the servers, by their own tools, those that lead last. What a store that prepares lacks no redo brings: if there is one, nothing new is
//!    taken from here until the log is copied, and what is under way has come to its end there;
//! 4. the embedded stores that lead: no copy may hold what the leader that decided it lacks in its own, and nobody would notice (R-LOGLOSS);
//! 5. the log, last: it has every decision of its own that any copy holds (R-LOGLOSS), and every redo that one may lack;
//! 6. the manifest: without it there is no backup.

use super::Context;
use super::verify::Replies;
use crate::configuration::Store;
use crate::engine_handle::{Held, Paused, Question};
use crate::failpoints;
use crate::log::backup::{self, LOG, MANIFEST, Manifest, STORES, StoreCopy};
use crate::security::Caller;
use lockstep_core::{Csn, Entry, Kind, Record};
use lockstep_participants::StoreError;
use lockstep_proto::v1;
use lockstep_proto::v1::backup_reply::Reply as Said;
use lockstep_proto::v1::backup_request::Request as Told;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// How long transactions under way may take to come to their end before servers are copied.
const REST: Duration = Duration::from_secs(30);
/// Between two looks whether they have.
const LOOK: Duration = Duration::from_millis(5);
/// Replies that wait for their reader.
const QUEUE: usize = 64;

/// Makes a backup.
pub async fn back_up(
    context: &Context,
    caller: &Caller,
    mut told: Streaming<v1::BackupRequest>,
) -> Result<Replies<v1::BackupReply>, Status> {
    let first = told.message().await?.and_then(|request| request.request);
    let Some(Told::Folder(folder)) = first else { return Err(Status::invalid_argument("folder is missing: it has to come first")) };
    let folder = PathBuf::from(folder);
    if !folder.is_absolute() {
        return Err(Status::invalid_argument(format!("folder: {} is no absolute path", folder.display())));
    }
    let data = std::path::absolute(&context.configuration.data_dir).map_err(|error| Status::internal(error.to_string()))?;
    if folder.starts_with(data) {
        return Err(Status::invalid_argument(format!("folder: {} is in the data folder itself", folder.display())));
    }
    let full = |_| Status::resource_exhausted("a backup is being made already: wait until it is done");
    let slot = Arc::clone(&context.backups).try_acquire_owned().map_err(full)?;
    // A redo of after a migration does not fit a copy of before it.
    let changing = |_| Status::resource_exhausted("a store's schema is being changed: try again when its migration is done");
    let schemas = Arc::clone(&context.schemas).try_write_owned().map_err(changing)?;
    context.engine.note_order(caller, "backup", &folder.display().to_string()).await?;
    let (made, at) = (!folder.exists(), folder.clone());
    let prepare = move || {
        backup::refuse_occupied(&at).and_then(|()| backup::make_folder(&at).map_err(|error| backup::BackupError::Io(error.to_string())))
    };
    let unfit = |error: backup::BackupError| {
        let sentence = format!("folder: {error}");
        context.engine.note_failure(caller, "backup", &folder.display().to_string(), &sentence);
        Status::failed_precondition(sentence)
    };
    blocking(prepare).await?.map_err(unfit)?;
    let (sender, replies) = mpsc::channel(QUEUE);
    let run = Run { context: context.clone(), folder: folder.clone(), sender: sender.clone(), began: Instant::now() };
    let caller = caller.clone();
    tokio::spawn(async move {
        let (_slot, _schemas) = (slot, schemas);
        if let Err(status) = run.make(told).await {
            run.context.engine.note_failure(&caller, "backup", &folder.display().to_string(), status.message());
            // What is left of it is no backup; the folder may be used again.
            let _ = blocking(move || clear(&folder, made)).await;
            let _ = sender.send(Err(status)).await;
        }
    });
    Ok(ReceiverStream::new(replies))
}

struct Run {
    context: Context,
    folder: PathBuf,
    sender: mpsc::Sender<Result<v1::BackupReply, Status>>,
    began: Instant,
}

impl Run {
    async fn make(&self, mut told: Streaming<v1::BackupRequest>) -> Result<(), Status> {
        let held = self.context.engine.ask(Question::HoldForgetting).await?;
        failpoints::hit("backup.before_stores");
        let mut stores = Vec::new();
        let leads = |store: &&Store| store.kind() == Kind::Leader;
        let data = &self.context.configuration.data_dir;
        let (embedded, servers): (Vec<_>, Vec<_>) = self.context.configuration.stores.iter().partition(|store| store.path(data).is_some());
        let (leading, following): (Vec<_>, Vec<_>) = embedded.into_iter().partition(leads);
        for store in following {
            stores.push(self.copy(store).await?);
        }
        let mut paused = None;
        if !servers.is_empty() {
            if servers.iter().any(|store| store.kind() == Kind::Preparing) {
                paused = Some(self.pause().await?);
            }
            let mut turn = Vec::new();
            let (leaders, followers): (Vec<_>, Vec<_>) = servers.into_iter().partition(leads);
            for store in followers.into_iter().chain(leaders) {
                let (name, r#type) = (store.name().to_string(), store.store_type().to_string());
                turn.push(v1::BackupServer { name: name.clone(), r#type: r#type.clone(), leads: leads(&store) });
                stores.push(StoreCopy { name, r#type, copy: None, path: None });
            }
            self.say(Said::Servers(v1::BackupServers { servers: turn, paused: paused.is_some() })).await?;
            match told.message().await?.and_then(|request| request.request) {
                Some(Told::ServersDone(true)) => {}
                _ => return Err(Status::cancelled("the servers were not backed up")),
            }
        }
        for store in leading {
            stores.push(self.copy(store).await?);
        }
        failpoints::hit("backup.before_log");
        let entries = self.copy_log().await?;
        drop(paused);
        failpoints::hit("backup.before_manifest");
        let manifest = self.manifest(&held, stores, &entries);
        let folder = self.folder.clone();
        self.say(Said::Progress("every file is read once more for its checksum".into())).await?;
        let manifest = blocking(move || manifest.finish(&folder)).await?.map_err(|error| Status::unavailable(error.to_string()))?;
        drop(held);
        let names =
            |server: bool| manifest.stores.iter().filter(|store| store.copy.is_none() == server).map(|store| store.name.clone()).collect();
        self.say(Said::Summary(v1::BackupSummary {
            folder: self.folder.display().to_string(),
            coord_id: manifest.coord_id.clone(),
            log_id: manifest.log_id.clone(),
            epoch: manifest.epoch,
            since_csn: manifest.since_csn.parse::<Csn>().map_or(0, Csn::to_u64),
            last_csn: manifest.last_csn.parse::<Csn>().map_or(0, Csn::to_u64),
            last_lsn: manifest.last_lsn,
            stores: names(false),
            servers: names(true),
            files: manifest.files.len() as u64,
            bytes: manifest.files.iter().map(|file| file.bytes).sum(),
            elapsed_ms: self.began.elapsed().as_millis() as u64,
        }))
        .await
    }

    /// Takes nothing new, and waits until no preparing store has anything to do.
    async fn pause(&self) -> Result<Paused, Status> {
        let engine = &self.context.engine;
        self.say(Said::Progress("no new transaction is taken, and those under way are waited for".into())).await?;
        let paused = engine.pause();
        let until = Instant::now() + REST;
        while !engine.ask(Question::PreparingStoresRest).await? {
            if Instant::now() > until {
                return Err(Status::unavailable(format!(
                    "transactions under way did not come to their end within {REST:?}, so the servers cannot be copied: see `lockstep tx list`"
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(paused)
    }

    /// An embedded store's own copy.
    async fn copy(&self, store: &Store) -> Result<StoreCopy, Status> {
        let (name, data) = (store.name().to_string(), &self.context.configuration.data_dir);
        let path = store.path(data).and_then(|path| path.strip_prefix(data).ok().map(Path::to_path_buf));
        let entry = StoreCopy { name: name.clone(), r#type: store.store_type().into(), copy: None, path };
        let reader = self.context.engine.names().named(&name).and_then(|store| self.context.engine.reader(store.id));
        let Some(reader) = reader else { return Ok(entry) };
        let below = PathBuf::from(STORES).join(&name);
        let (stores, to) = (self.folder.join(STORES), self.folder.join(&below));
        self.say(Said::Progress(format!("store `{name}` is copied"))).await?;
        let copied = blocking(move || {
            fs::create_dir_all(&stores).map_err(|error| StoreError::Broken(format!("{}: {error}", stores.display())))?;
            reader.back_up(&to)
        });
        let copied = copied.await?.map_err(|error| Status::unavailable(format!("store `{name}`: {error}")))?;
        Ok(StoreCopy { copy: copied.then_some(below), ..entry })
    }

    async fn copy_log(&self) -> Result<Vec<Entry>, Status> {
        self.say(Said::Progress("the decision log is copied".into())).await?;
        let (snapshot, reading) =
            self.context.engine.ask(Question::ReadLog).await?.map_err(|error| Status::unavailable(error.to_string()))?;
        let to = self.folder.join(LOG);
        let copied = blocking(move || {
            let _reading = reading;
            snapshot.copy_to(&to)
        });
        copied.await?.map_err(|error| Status::unavailable(error.to_string()))
    }

    fn manifest(&self, held: &Held, stores: Vec<StoreCopy>, entries: &[Entry]) -> Manifest {
        let last = entries.iter().rev().find_map(|entry| match &entry.record {
            Record::Commit(group) => group.entries.last().map(|entry| entry.csn),
            _ => None,
        });
        Manifest {
            format: backup::FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            made_at_ms: std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            coord_id: held.owner.coord_id.to_string(),
            log_id: held.log_id.to_string(),
            epoch: held.owner.epoch.0,
            since_csn: held.csn.to_string(),
            last_csn: last.unwrap_or(Csn::ZERO).to_string(),
            last_lsn: entries.last().map_or(0, |entry| entry.lsn.0),
            stores,
            files: Vec::new(),
        }
    }

    async fn say(&self, said: Said) -> Result<(), Status> {
        let gone = |_| Status::cancelled("nobody waits for the backup any more");
        self.sender.send(Ok(v1::BackupReply { reply: Some(said) })).await.map_err(gone)
    }
}

/// Removes what a run has left, and the folder if it made it.
fn clear(folder: &Path, made: bool) -> io::Result<()> {
    let gone = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    // First: without it the rest is no backup, however much of it stays.
    gone(fs::remove_file(folder.join(MANIFEST)))?;
    if made {
        return fs::remove_dir_all(folder);
    }
    for name in [LOG, STORES] {
        gone(fs::remove_dir_all(folder.join(name)))?;
    }
    gone(fs::remove_file(folder.join(format!("{MANIFEST}.tmp"))))
}

async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(run).await.map_err(|error| Status::internal(format!("the backup failed: {error}")))
}
