//! The index's writer: applies decided redos, and commits many of them at once, with the watermark in the commit's payload.

use super::directory::{Fence, FencedDirectory, META};
use super::document;
use super::manifest::{FORMAT, check_format};
use super::reader::Snapshot;
use super::schema::{Layout, register_tokenizers};
use crate::StoreError;
use crate::document_redo::{self as redo, Write};
use lockstep_core::{Csn, Decided, Progress};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use tantivy::directory::error::OpenReadError;
use tantivy::index::SegmentComponent;
use tantivy::indexer::{IndexWriterOptions, UserOperation};
use tantivy::merge_policy::LogMergePolicy;
use tantivy::{Directory, Index, IndexSettings, IndexWriter, TantivyError, Term};

/// An open index. Dropped, it leaves what its last commit left, and nothing of it writes any more.
pub(super) struct Writer {
    fence: Fence,
    writer: IndexWriter,
    snapshot: Arc<Snapshot>,
    /// Everything up to here is durable in the index (R-WATERMARK).
    watermark: Csn,
    /// No outcome at or below this is open.
    closed: Csn,
    /// The highest log-decided CSN ever seen (R-LOGLOSS).
    highest: Csn,
    /// The highest CSN handed to this writer.
    received: Csn,
    /// The lowest CSN that waits for the next commit.
    waiting: Option<Csn>,
    /// Redos that could not be applied; they hold the watermark.
    stuck: BTreeSet<Csn>,
    /// The newest write of each key above the watermark. No write at or below it can come any more, so this is all that R-ORDER needs
    /// to tell an older write from a newer one, and a delete's late put from a new document.
    newest: Arc<Mutex<FxHashMap<String, Newest>>>,
    /// Operations on their way to the indexing thread, which is woken once for many.
    operations: Vec<UserOperation>,
}

/// Operations that are handed to the indexing thread at once, at most.
const HANDED_OVER: usize = 64;

/// Segments of about one size that are merged into one.
const MERGED: usize = 12;
/// Documents of a segment below which all segments count as of one size. Tantivy's own 10,000 lets a segment take part in merge after merge
/// until it has that many.
const SMALL: u32 = 1_000;

/// The newest writes of documents, as far as the index knows them.
pub(super) struct Seen {
    newest: Arc<Mutex<FxHashMap<String, Newest>>>,
    snapshot: Arc<Snapshot>,
}

impl Seen {
    /// The CSN of the document, if there is one.
    pub fn csn(&self, key: &str) -> Result<Option<Csn>, StoreError> {
        match locked(&self.newest).get(key) {
            Some(newest) => Ok((!newest.delete).then_some(newest.csn)),
            None => self.snapshot.csn(key),
        }
    }
}

fn merge_policy() -> LogMergePolicy {
    let mut policy = LogMergePolicy::default();
    policy.set_min_num_segments(MERGED);
    policy.set_min_layer_size(SMALL);
    policy
}

fn locked(newest: &Mutex<FxHashMap<String, Newest>>) -> MutexGuard<'_, FxHashMap<String, Newest>> {
    newest.lock().expect("no holder panics")
}

/// A key's newest write.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Newest {
    pub csn: Csn,
    pub delete: bool,
    /// Whether the last commit has it.
    durable: bool,
}

/// What became of a decided redo.
#[derive(Debug, PartialEq)]
pub(super) enum Applied {
    /// It is applied, was before, or is superseded.
    Yes,
    /// It cannot be read; the sentence says why.
    Stuck(String),
}

/// The commit's payload: how far the index has followed, in the same atomic write as the documents.
#[derive(Serialize, Deserialize)]
struct Payload {
    format: u32,
    watermark: String,
    highest: String,
    /// Deletes above the watermark: of a put the index itself tells the CSN, of a delete nothing does.
    deletes: Vec<(String, String)>,
}

impl Writer {
    /// Makes an empty index in a folder that is there and empty.
    pub fn create(folder: &Path, layout: Arc<Layout>, heap: usize) -> Result<Writer, StoreError> {
        let fence = Fence::new();
        let directory = FencedDirectory::open(folder, fence.clone()).map_err(broken)?;
        let index = Index::create(directory, layout.schema.clone(), IndexSettings::default()).map_err(broken)?;
        Writer::start(index, folder, fence, layout, heap)
    }

    /// Opens an index as its last commit left it.
    pub fn open(folder: &Path, layout: Arc<Layout>, heap: usize) -> Result<Writer, StoreError> {
        let fence = Fence::new();
        let directory = FencedDirectory::open(folder, fence.clone()).map_err(broken)?;
        let index = Index::open(directory).map_err(broken)?;
        if index.schema() != layout.schema {
            return Err(StoreError::Refused(format!("the index in {} has another schema than its declaration says", folder.display())));
        }
        Writer::start(index, folder, fence, layout, heap)
    }

    fn start(index: Index, folder: &Path, fence: Fence, layout: Arc<Layout>, heap: usize) -> Result<Writer, StoreError> {
        register_tokenizers(&index);
        let options = IndexWriterOptions::builder().memory_budget_per_thread(heap).num_worker_threads(1).num_merge_threads(1).build();
        let writer: IndexWriter = index.writer_with_options(options).map_err(broken)?;
        writer.set_merge_policy(Box::new(merge_policy()));
        // A crash may leave files that the replayed operations would be given the names of again.
        writer.garbage_collect_files().wait().map_err(broken)?;
        // The first operation would get the last commit's number, and a merge of the committed segments would carry it out in some of them and
        // lose it in the rest: it is given to no operation.
        writer.run([]).map_err(broken)?;
        let metas = index.load_metas().map_err(broken)?;
        let payload = Payload::read(metas.payload.as_deref(), metas.opstamp)?;
        let snapshot = Arc::new(Snapshot::open(&index, folder, layout)?);

        let mut newest = FxHashMap::default();
        for (key, csn) in snapshot.above(payload.watermark)? {
            newest.insert(key, Newest { csn, delete: false, durable: true });
        }
        for (csn, key) in payload.deletes {
            newest.insert(key, Newest { csn, delete: true, durable: true });
        }
        let received = newest.values().map(|n| n.csn).max().unwrap_or(payload.watermark);
        Ok(Writer {
            fence,
            writer,
            snapshot,
            watermark: payload.watermark,
            closed: payload.watermark,
            highest: payload.highest,
            received,
            waiting: None,
            stuck: BTreeSet::new(),
            newest: Arc::new(Mutex::new(newest)),
            operations: Vec::with_capacity(HANDED_OVER),
        })
    }

    /// Whether it stands as its last commit left it, and was told nothing since.
    pub fn untouched(&self) -> bool {
        self.waiting.is_none() && self.stuck.is_empty() && self.closed == self.watermark
    }

    /// What readers see.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// The highest log-decided CSN ever seen.
    pub fn highest(&self) -> Csn {
        self.highest
    }

    /// What conditions are tested against, also while the writer is at its commit.
    pub fn seen(&self) -> Seen {
        Seen { newest: self.newest.clone(), snapshot: self.snapshot.clone() }
    }

    /// Applies a decided redo. A repeat changes nothing, and of two writes of a key the one with the higher CSN stays, in whichever
    /// order they come (R-ORDER). After an error the writer is of no use any more.
    pub fn apply(&mut self, layout: &Layout, decided: &Decided) -> Result<Applied, StoreError> {
        let csn = decided.csn;
        if decided.is_by_log() {
            self.highest = self.highest.max(csn);
        }
        if csn <= self.watermark {
            return Ok(Applied::Yes);
        }
        self.received = self.received.max(csn);
        let writes = match redo::decode(&decided.redo) {
            Ok(writes) => writes,
            Err(sentence) => {
                self.stuck.insert(csn);
                return Ok(Applied::Stuck(sentence));
            }
        };
        for write in &writes {
            self.write(layout, csn, write)?;
        }
        self.stuck.remove(&csn);
        Ok(Applied::Yes)
    }

    fn write(&mut self, layout: &Layout, csn: Csn, write: &Write) -> Result<(), StoreError> {
        let key = write.key();
        let mut keys = locked(&self.newest);
        match keys.get_mut(key) {
            // Superseded, or here already; readable when what superseded it is.
            Some(newest) if newest.csn >= csn => {
                if !newest.durable {
                    self.waiting = Some(self.waiting.map_or(csn, |waiting| waiting.min(csn)));
                }
                return Ok(());
            }
            Some(newest) => *newest = Newest { csn, delete: matches!(write, Write::Delete { .. }), durable: false },
            None => {
                keys.insert(key.to_owned(), Newest { csn, delete: matches!(write, Write::Delete { .. }), durable: false });
            }
        }
        drop(keys);
        self.waiting = Some(self.waiting.map_or(csn, |waiting| waiting.min(csn)));
        self.operations.push(UserOperation::Delete(Term::from_field_text(layout.key, key)));
        match write {
            Write::Put { document, .. } => self.add(layout, key, csn, document),
            Write::Delete { .. } => Ok(()),
        }
    }

    /// Adds a document that is not there.
    pub fn add(&mut self, layout: &Layout, key: &str, csn: Csn, source: &str) -> Result<(), StoreError> {
        self.operations.push(UserOperation::Add(document::build(layout, key, csn, source)));
        if self.operations.len() < HANDED_OVER { Ok(()) } else { self.hand_over() }
    }

    /// Gives what was applied to the indexing thread; waits if that has too much to do.
    pub fn hand_over(&mut self) -> Result<(), StoreError> {
        if self.operations.is_empty() {
            return Ok(());
        }
        self.writer.run(self.operations.drain(..)).map(drop).map_err(broken)
    }

    /// Takes over where an older index of the same documents stands: migration only.
    pub fn follow(&mut self, older: &Writer) {
        self.watermark = older.watermark;
        self.closed = older.closed;
        self.highest = older.highest;
        self.received = older.received;
        self.stuck.clone_from(&older.stuck);
        locked(&self.newest).clone_from(&locked(&older.newest));
    }

    /// No outcome at or below this is open any more.
    pub fn close(&mut self, closed: Csn) {
        self.closed = self.closed.max(closed);
    }

    /// Whether a commit would make anything readable, or let the log forget anything.
    pub fn due(&self) -> bool {
        self.waiting.is_some() || (self.received > self.watermark && self.next_watermark() > self.watermark)
    }

    /// Makes everything applied durable and readable. After an error the writer is of no use any more.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        self.hand_over()?;
        let watermark = self.next_watermark();
        let mut prepared = self.writer.prepare_commit().map_err(broken)?;
        // Every commit carries it: one without would leave none.
        prepared.set_payload(&Payload::text(watermark, self.highest, &locked(&self.newest)));
        prepared.commit().map_err(broken)?;
        self.snapshot.reload()?;
        self.watermark = watermark;
        self.waiting = None;
        locked(&self.newest).retain(|_, newest| {
            newest.durable = true;
            newest.csn > watermark
        });
        Ok(())
    }

    /// How far the index has followed.
    pub fn progress(&self) -> Progress {
        let readable = self.waiting.map_or(self.closed, |waiting| waiting.before()).min(self.held());
        Progress { applied: readable.max(self.watermark), durable: self.watermark }
    }

    fn next_watermark(&self) -> Csn {
        self.held().max(self.watermark)
    }

    /// Up to where outcomes are closed and no redo is stuck.
    fn held(&self) -> Csn {
        self.stuck.first().map_or(self.closed, |stuck| self.closed.min(stuck.before()))
    }

    #[cfg(test)]
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    #[cfg(test)]
    pub fn merge_nothing(&self) {
        self.writer.set_merge_policy(Box::new(tantivy::merge_policy::NoMergePolicy));
    }

    #[cfg(test)]
    pub fn segments(&self) -> usize {
        self.writer.index().searchable_segment_ids().expect("the index can be read").len()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.fence.close();
    }
}

/// A payload, read.
struct Position {
    watermark: Csn,
    highest: Csn,
    deletes: Vec<(Csn, String)>,
}

impl Payload {
    fn text(watermark: Csn, highest: Csn, newest: &FxHashMap<String, Newest>) -> String {
        let deletes = newest.iter().filter(|(_, n)| n.delete && n.csn > watermark).map(|(key, n)| (n.csn.to_string(), key.clone()));
        let payload =
            Payload { format: FORMAT, watermark: watermark.to_string(), highest: highest.to_string(), deletes: deletes.collect() };
        serde_json::to_string(&payload).expect("texts always encode")
    }

    fn read(payload: Option<&str>, opstamp: u64) -> Result<Position, StoreError> {
        let Some(text) = payload else {
            if opstamp > 0 {
                return Err(StoreError::Refused("the index was committed by another program: its last commit has no watermark".into()));
            }
            return Ok(Position { watermark: Csn::ZERO, highest: Csn::ZERO, deletes: Vec::new() });
        };
        check_format(text, "the payload of the index's last commit")?;
        let read = || -> Result<Position, String> {
            let payload: Payload = serde_json::from_str(text).map_err(|e| e.to_string())?;
            let deletes = payload.deletes.into_iter().map(|(csn, key)| Ok((csn.parse()?, key)));
            Ok(Position {
                watermark: payload.watermark.parse()?,
                highest: payload.highest.parse()?,
                deletes: deletes.collect::<Result<_, String>>()?,
            })
        };
        read().map_err(|e| StoreError::Refused(format!("the payload of the index's last commit is damaged: {e}")))
    }
}

/// Files of a segment, each with a checksum at its end.
const COMPONENTS: &[SegmentComponent] = &[
    SegmentComponent::Postings,
    SegmentComponent::Positions,
    SegmentComponent::FastFields,
    SegmentComponent::FieldNorms,
    SegmentComponent::Terms,
    SegmentComponent::Store,
    SegmentComponent::Delete,
];

/// Reads the checksums of the index's files, the smallest first, so many bytes at most. `Refused` if one of them is not what was written:
/// Tantivy itself trusts what it reads.
pub(super) fn check(folder: &Path, limit: u64) -> Result<(), StoreError> {
    let damaged = |path: &Path, how: &str| StoreError::Refused(format!("{} is damaged: {how}: restore the store", path.display()));
    let directory = FencedDirectory::open(folder, Fence::new()).map_err(broken)?;
    let unread = |path: &Path, error: &dyn std::fmt::Display| StoreError::Broken(format!("{} cannot be read: {error}", path.display()));
    let index = Index::open(directory).map_err(|error| match &error {
        TantivyError::OpenReadError(reading) if is_of_the_disk(reading) => unread(&folder.join(META), reading),
        _ => damaged(&folder.join(META), &error.to_string()),
    })?;
    let metas = index.load_metas().map_err(broken)?;
    let mut files: Vec<(u64, PathBuf)> = Vec::new();
    for segment in &metas.segments {
        for component in COMPONENTS {
            let name = segment.relative_path(component.clone());
            match std::fs::metadata(folder.join(&name)) {
                Ok(metadata) => files.push((metadata.len(), name)),
                // Not all kinds of files are there in each segment; what is needed is missed where it is opened.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(unread(&folder.join(&name), &error)),
            }
        }
    }
    files.sort_unstable();
    let mut read = 0;
    for (size, name) in &files {
        read += size;
        if read > limit {
            tracing::warn!(folder = %folder.display(), limit, "the index is too big to be checked as a whole before it is opened");
            break;
        }
        // The checksum is not of what says which version wrote the file: that is read where it is opened.
        match index.directory().open_read(name).and_then(|_| index.directory().validate_checksum(name)) {
            Ok(true) => {}
            Ok(false) => return Err(damaged(&folder.join(name), "its checksum is another one")),
            Err(error) if is_of_the_disk(&error) => return Err(unread(&folder.join(name), &error)),
            Err(error) => return Err(damaged(&folder.join(name), &error.to_string())),
        }
    }
    Ok(())
}

/// Whether the disk could not read, rather than the file being another one.
fn is_of_the_disk(error: &OpenReadError) -> bool {
    matches!(error, OpenReadError::IoError { io_error, .. } if io_error.raw_os_error().is_some())
}

/// Any error of Tantivy: what is in memory can't be trusted any more. After a full disk the same writer would say Ok and have lost
/// documents.
pub(super) fn broken(error: impl std::fmt::Display) -> StoreError {
    StoreError::Broken(format!("the index failed: {error}"))
}
