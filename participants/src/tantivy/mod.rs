//! Tantivy, embedded: a search index that votes by redo (R-REDO).
//!
//! Prepare checks every document against the declaration and Tantivy's limits, and hands the documents back as the redo: nothing is
//! written before the decision. Phase two deletes by key and adds, in CSN order as far as known, many transactions to one commit of the
//! index, whose payload carries the watermark. The log keeps every redo above the watermark, so the log makes the vote safe, not
//! Tantivy: after any error the writer is dropped, and [`ResourceManager::recover`] opens the index as its last commit left it.
//!
//! ```text
//! folder/LOCK         held while open
//! folder/store.json   format, owner, declaration, and which generation is the current one
//! folder/index-<n>/   the index; a migration builds the next one beside it and switches by store.json
//! ```

mod committing;
mod copy;
mod directory;
mod document;
mod index;
mod manifest;
mod plain;
mod reader;
mod schema;
mod seal;
mod unforced;
mod validation;

pub use document::{DocumentLimits, MAX_KEY, MAX_NAME};
pub use reader::MAX_WINDOW;
pub use schema::{Declaration, FieldDeclaration, FieldKind, MAX_FIELD_NAME, MAX_FIELDS};

use crate::document_redo as redo;
use crate::{Committed, Reader, Recovered, ResourceManager, StoreError, Tended, Validator};
use committing::Committing;
use document::shown;
use index::{Applied, Seen, Writer};
use lockstep_core::{Ballot, Csn, Decided, Kind, Owner, ParticipantId, Txid, Work};
use manifest::{Manifest, sync_folder};
use reader::IndexReads;
use schema::Layout;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use validation::Validation;

/// How a Tantivy store is run.
#[derive(Clone, Debug)]
pub struct TantivyOptions {
    /// Where it lies; made if it is not there. Nothing else may be in it.
    pub folder: PathBuf,
    /// How long after the last commit began the next one is due, if anything waits and nobody hurries it: the lag of searches behind
    /// commits.
    pub commit_every: Duration,
    /// Memory for documents that wait to be written to disk, bytes; at least 15 MB.
    pub heap: usize,
    /// Limits of one document.
    pub limits: DocumentLimits,
    /// Commits run on a thread of their own, so that votes do not wait for them; [`ResourceManager::tend`] then only begins and ends
    /// them.
    pub background: bool,
}

/// Bytes of an index whose checksums are read before it is opened, at most: a fraction of a second, and a start is to take no more than that.
pub const CHECKED_AT_OPEN: u64 = 256 << 20;

/// How long a decision may wait for others before it is indexed: for each of them alone two threads would be woken, beside the answer that
/// is on its way, and found it is only after the next commit.
const GATHER: Duration = Duration::from_millis(5);
/// How often a commit under way is looked at.
const LOOK: Duration = Duration::from_millis(2);

impl TantivyOptions {
    /// The defaults in this folder: a commit every 100 ms, 15 MB, documents of 1 MiB, commits on the caller's thread.
    pub fn new(folder: impl Into<PathBuf>) -> TantivyOptions {
        TantivyOptions {
            folder: folder.into(),
            commit_every: Duration::from_millis(100),
            heap: 15_000_000,
            limits: DocumentLimits::default(),
            background: false,
        }
    }
}

/// A Tantivy index as a participant.
pub struct Tantivy {
    options: TantivyOptions,
    manifest: Manifest,
    layout: Arc<Layout>,
    /// `None` while it is at its commit; also after an error, until recovered.
    writer: Option<Writer>,
    committing: Option<Committing>,
    seen: Seen,
    reads: Arc<IndexReads>,
    /// Somebody waits for the next commit.
    hurried: bool,
    /// When the last commit began.
    committed_at: Option<Instant>,
    /// Last, so that it is released last.
    _lock: File,
}

impl Tantivy {
    /// Opens the index, or makes one. Errors: [`StoreError::Refused`] if another process has it, a newer version wrote it, or it is
    /// not what it should be; [`StoreError::Broken`] if the disk fails.
    pub fn open(options: TantivyOptions) -> Result<Tantivy, StoreError> {
        assert!(options.limits.depth <= 100, "documents can be at most 100 levels deep");
        make_folder(&options.folder)?;
        let lock = lock(&options.folder)?;
        let manifest = match Manifest::load(&options.folder)? {
            Some(manifest) => manifest,
            None => found(&options)?,
        };
        let folder = index_folder(&options.folder, manifest.generation);
        if !folder.is_dir() {
            // Before others are removed: one of them may be what is wanted.
            return Err(StoreError::Refused(format!("the index's folder {} is gone: restore it", folder.display())));
        }
        remove_other_generations(&options.folder, manifest.generation)?;
        let layout = Arc::new(Layout::new(&manifest.declaration));
        index::check(&folder, CHECKED_AT_OPEN)?;
        let writer = Writer::open(&index_folder(&options.folder, manifest.generation), layout.clone(), options.heap)?;
        let reads = Arc::new(IndexReads::new(writer.snapshot().clone()));
        let seen = writer.seen();
        Ok(Tantivy {
            options,
            manifest,
            layout,
            writer: Some(writer),
            committing: None,
            seen,
            reads,
            hurried: false,
            committed_at: None,
            _lock: lock,
        })
    }

    /// What its documents look like.
    pub fn declaration(&self) -> &Declaration {
        &self.manifest.declaration
    }

    fn writer(&mut self) -> Result<&mut Writer, StoreError> {
        self.writer.as_mut().ok_or_else(|| StoreError::Broken("the index is stopped after an error: it must be recovered".into()))
    }

    /// Runs one step of the writer; an error ends the writer.
    fn step<T>(&mut self, step: impl FnOnce(&mut Writer, &Layout) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let layout = self.layout.clone();
        let result = step(self.writer()?, &layout);
        if result.is_err() {
            self.writer = None;
        }
        result
    }

    /// Waits for a commit that is under way, and applies what was decided meanwhile.
    fn end_commit(&mut self) -> Result<(), StoreError> {
        let Some(committing) = self.committing.take() else { return Ok(()) };
        let (writer, backlog, closed) = committing.end()?;
        self.writer = Some(writer);
        self.apply(&backlog, closed).map(drop)
    }

    fn apply(&mut self, decided: &[Decided], closed: Csn) -> Result<Committed, StoreError> {
        self.step(|writer, layout| {
            let mut stuck = Vec::new();
            for decided in decided {
                match writer.apply(layout, decided)? {
                    Applied::Yes => {}
                    Applied::Stuck(sentence) => stuck.push((decided.csn, sentence)),
                }
            }
            writer.hand_over()?;
            writer.close(closed);
            Ok(Committed { progress: writer.progress(), stuck, ..Committed::default() })
        })
    }

    /// When the next commit may begin, if not now.
    fn not_before(&self, now: Instant) -> Option<Instant> {
        let paced = self.committed_at.filter(|_| !self.hurried);
        paced.and_then(|at| at.checked_add(self.options.commit_every)).filter(|at| *at > now)
    }

    /// Begins a commit, or makes it.
    fn commit_now(&mut self, now: Instant) -> Result<(), StoreError> {
        self.committed_at = Some(now);
        self.hurried = false;
        if !self.options.background {
            return self.step(|writer, _| writer.commit());
        }
        let writer = self.writer.take().expect("seen by the caller");
        self.committing = Some(Committing::begin(writer)?);
        Ok(())
    }

    /// Opens the index as its last commit left it: that of the generation that the disk names, which a migration that failed may have
    /// switched.
    fn reopen(&mut self) -> Result<(), StoreError> {
        self.writer = None;
        let gone = || StoreError::Refused(format!("{} has an index but no store.json: restore it", self.options.folder.display()));
        self.manifest = Manifest::load(&self.options.folder)?.ok_or_else(gone)?;
        self.layout = Arc::new(Layout::new(&self.manifest.declaration));
        let folder = index_folder(&self.options.folder, self.manifest.generation);
        let writer = Writer::open(&folder, self.layout.clone(), self.options.heap)?;
        self.reads.switch(writer.snapshot().clone());
        self.seen = writer.seen();
        self.writer = Some(writer);
        Ok(())
    }

    fn validation(&self) -> Validation {
        Validation { layout: self.layout.clone(), limits: self.options.limits }
    }

    /// Builds the index anew under another declaration, beside the current one. Nothing changes unless every document fits.
    fn rebuild(&self, declaration: &Declaration, generation: u64) -> Result<(Arc<Layout>, Writer), StoreError> {
        let older = self.writer.as_ref().expect("checked by the caller");
        remove_other_generations(&self.options.folder, self.manifest.generation)?;
        let folder = index_folder(&self.options.folder, generation);
        make_folder(&folder)?;
        let layout = Arc::new(Layout::new(declaration));
        let mut writer = Writer::create(&folder, layout.clone(), self.options.heap)?;
        older.snapshot().for_each(|document| {
            document::check(&layout, self.options.limits, &document.document).map_err(|sentence| {
                StoreError::Invalid(format!("the schema does not fit the document `{}`: {sentence}", shown(&document.key)))
            })?;
            writer.add(&layout, &document.key, document.csn, &document.document)
        })?;
        writer.follow(older);
        writer.commit()?;
        Ok((layout, writer))
    }
}

impl ResourceManager for Tantivy {
    fn kind(&self) -> Kind {
        Kind::Redo
    }

    /// Everything above the watermark is given up, wherever it stands, and comes again from the log.
    fn recover(&mut self, owner: Owner, _me: ParticipantId) -> Result<Recovered, StoreError> {
        // Its outcome does not matter: what it made durable is found, and the rest comes again.
        let ended = self.end_commit();
        if ended.is_err() || !self.writer.as_ref().is_some_and(Writer::untouched) {
            self.reopen()?;
        }
        if self.manifest.owner() != Some(owner) {
            let mut manifest = self.manifest.clone();
            manifest.set_owner(owner);
            manifest.store(&self.options.folder)?;
            self.manifest = manifest;
        }
        let writer = self.writer()?;
        Ok(Recovered {
            progress: writer.progress(),
            highest: writer.highest(),
            prepared: Vec::new(),
            heuristics: Vec::new(),
            floor: lockstep_core::Position::default(),
            exclusive: true,
        })
    }

    fn owner(&mut self) -> Result<Option<Owner>, StoreError> {
        Ok(self.manifest.owner())
    }

    fn prepare(&mut self, batch: &[Work]) -> Result<Ballot, StoreError> {
        if self.committing.is_none() {
            self.writer()?;
        }
        let validation = self.validation();
        let vote = |work: &Work| Ok((work.txid, validation.vote(&work.operations, |key| self.seen.csn(key))?));
        Ok(Ballot { votes: batch.iter().map(vote).collect::<Result<_, StoreError>>()?, ..Ballot::default() })
    }

    fn validator(&self) -> Option<Arc<dyn Validator>> {
        Some(Arc::new(self.validation()))
    }

    fn commit(&mut self, decided: &[Decided], closed: Csn) -> Result<Committed, StoreError> {
        if let Some(committing) = &mut self.committing {
            // One that cannot be read is reported, so it must not wait unseen.
            let readable = decided.iter().all(|decided| redo::decode(&decided.redo).is_ok());
            if readable && committing.keep(decided, closed) {
                return Ok(Committed { progress: committing.progress(), ..Committed::default() });
            }
            self.end_commit()?;
        }
        self.apply(decided, closed)
    }

    /// A vote holds nothing here: there is nothing to forget.
    fn abort(&mut self, _txids: &[Txid]) -> Result<(), StoreError> {
        Ok(())
    }

    fn gather(&self) -> Duration {
        self.options.commit_every.min(GATHER)
    }

    fn hurry(&mut self) {
        self.hurried = true;
    }

    fn tend(&mut self, closed: Csn) -> Result<Tended, StoreError> {
        let now = Instant::now();
        if let Some(committing) = &mut self.committing {
            if !committing.ended() && committing.keep(&[], closed) {
                return Ok(Tended { progress: committing.progress(), next: now.checked_add(LOOK) });
            }
            self.end_commit()?;
        }
        let not_before = self.not_before(now);
        let due = self.step(|writer, _| {
            writer.close(closed);
            Ok(writer.due())
        })?;
        if due && not_before.is_none() {
            self.commit_now(now)?;
        }
        if let Some(committing) = &self.committing {
            return Ok(Tended { progress: committing.progress(), next: now.checked_add(LOOK) });
        }
        let writer = self.writer()?;
        let (progress, due) = (writer.progress(), writer.due());
        let next = if due { not_before.or_else(|| now.checked_add(self.options.commit_every)) } else { None };
        Ok(Tended { progress, next })
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.reads.clone()
    }

    /// Sets the declaration: JSON, see [`Declaration`]. On an index that is not empty every document must fit the new declaration; the
    /// index is then built anew beside the old one, and the switch is one atomic rename. Transactions that have voted but are not
    /// decided should not be under way: their documents were checked against the old declaration, and what does not fit the new one
    /// would be kept but not found by its field.
    fn migrate(&mut self, script: &str) -> Result<String, StoreError> {
        let declaration = Declaration::parse(script)?;
        self.end_commit()?;
        self.step(|writer, _| if writer.due() { writer.commit() } else { Ok(()) })?;
        if declaration == self.manifest.declaration {
            return Ok("the schema is as it was: nothing to do".into());
        }
        let mut manifest = self.manifest.clone();
        manifest.generation += 1;
        manifest.declaration = declaration;
        let rebuilt = self
            .rebuild(&manifest.declaration, manifest.generation)
            .and_then(|rebuilt| manifest.store(&self.options.folder).map(|()| rebuilt));
        let (layout, writer) = match rebuilt {
            Ok(rebuilt) => rebuilt,
            Err(error @ StoreError::Broken(_)) => {
                // Whether the switch is on disk is not known: recovery finds out.
                self.writer = None;
                return Err(error);
            }
            Err(error) => {
                remove_other_generations(&self.options.folder, self.manifest.generation)?;
                return Err(error);
            }
        };
        let documents = writer.snapshot().len();
        self.reads.switch(writer.snapshot().clone());
        self.seen = writer.seen();
        (self.manifest, self.layout, self.writer) = (manifest, layout, Some(writer));
        remove_other_generations(&self.options.folder, self.manifest.generation)?;
        Ok(format!("the schema is set; {documents} documents were indexed anew"))
    }
}

impl Drop for Tantivy {
    /// The folder is not given free while a commit writes there.
    fn drop(&mut self) {
        if let Some(committing) = self.committing.take() {
            let _ = committing.end();
        }
    }
}

/// Takes the lock of the folder, for as long as the file is open.
fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join("LOCK");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| io(&path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(StoreError::Refused(format!("the index folder {} is in use: another process holds its LOCK", folder.display())))
        }
        Err(TryLockError::Error(e)) => Err(io(&path, e)),
    }
}

/// Founds a new store. A crash before its manifest is there leaves an index that holds nothing, and is removed.
fn found(options: &TantivyOptions) -> Result<Manifest, StoreError> {
    let manifest = Manifest::new();
    let folder = index_folder(&options.folder, manifest.generation);
    for (_, other) in generations(&options.folder)? {
        let committed = match std::fs::read(other.join(directory::META)) {
            Ok(meta) => !serde_json::from_slice::<serde_json::Value>(&meta).is_ok_and(|meta| meta["opstamp"] == 0),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(io(&other, error)),
        };
        if committed {
            return Err(StoreError::Refused(format!("{} has an index but no store.json: restore it", options.folder.display())));
        }
    }
    remove_other_generations(&options.folder, 0)?;
    make_folder(&folder)?;
    Writer::create(&folder, Arc::new(Layout::new(&manifest.declaration)), options.heap)?;
    manifest.store(&options.folder)?;
    Ok(manifest)
}

fn index_folder(folder: &Path, generation: u64) -> PathBuf {
    folder.join(format!("index-{generation}"))
}

fn make_folder(folder: &Path) -> Result<(), StoreError> {
    std::fs::create_dir_all(folder).map_err(|e| io(folder, e))?;
    match folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_folder(parent).map_err(|e| io(parent, e)),
        None => Ok(()),
    }
}

/// Removes what a migration left, or never finished.
fn remove_other_generations(folder: &Path, current: u64) -> Result<(), StoreError> {
    for (generation, path) in generations(folder)? {
        if generation != current {
            std::fs::remove_dir_all(&path).map_err(|e| io(&path, e))?;
        }
    }
    Ok(())
}

/// The generations whose folders are there.
fn generations(folder: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let mut generations = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| io(folder, e))? {
        let path = entry.map_err(|e| io(folder, e))?.path();
        let generation = path.file_name().and_then(|name| name.to_str()?.strip_prefix("index-")?.parse().ok());
        generations.extend(generation.map(|generation| (generation, path)));
    }
    Ok(generations)
}

fn io(path: &Path, error: std::io::Error) -> StoreError {
    StoreError::Broken(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
