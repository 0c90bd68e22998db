//! `lockstep verify`: do a database's rows and an index's documents agree? Found out while writes go on.
//!
//! Two passes. The rows, page by page in the order of their keys, each held against its document: *missing*, *different*, *stale*. Then
//! the documents' keys, page by page, each held against its row: *extra*. What differs at first sight may only have been written
//! between two reads, so it is looked at again, with its key **watched** ([`Movements`]): the daemon says whether any transaction that
//! writes the document was under way when the reads began, or came before they ended. If none, whatever wrote it before is applied
//! everywhere, both reads show the same state, and a difference is one. If there was one, it is looked at again, until it rests.
//!
//! Memory is bounded whatever the size: one page of rows ([`PAGE`], and `limits.result_bytes`), one page of keys, [`DOCUMENTS`] documents,
//! and [`PENDING`] keys that wait to be looked at again.

mod comparison;
mod mapping;
mod query;
mod template;
#[cfg(test)]
mod tests;

pub use comparison::Difference;
pub use mapping::{Mapping, Statement};

use comparison::differences;
use lockstep_core::{Csn, StatementResult, Value};
use lockstep_participants::{Document, KeyPage, ReadLimits, Reader, StoreError};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows, and keys of documents, that are read at once, at most.
const PAGE: usize = 500;
/// Documents that are held at once, at most.
const DOCUMENTS: usize = 16;
/// Keys that wait to be looked at again, at most; above it no further page is read before there are fewer.
const PENDING: usize = 4_096;
/// Pauses between two looks at the same keys.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(1_000));
/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Tells which documents are being written.
pub trait Movements {
    /// From now on writes of these documents are noted; with those that are being written already.
    fn watch(&self, keys: &[String]) -> Result<(u64, HashSet<String>), Stopped>;
    /// Which have been written since.
    fn unwatch(&self, watch: u64) -> Result<HashSet<String>, Stopped>;
    /// Decided writes that the index does not have and will not get soon, or never.
    fn lacking(&self, keys: &[String]) -> Result<HashMap<String, Lacking>, Stopped>;
}

/// A decided write that an index does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// Its place.
    pub csn: Csn,
    /// Whether it may still come.
    pub waits: bool,
    /// Which it is, and why.
    pub sentence: String,
}

/// Why a verification has ended.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The mapping does not fit the data, or is none that can be used.
    #[error("{0}")]
    Unfit(String),
    /// A store cannot be read.
    #[error("store `{0}`: {1}")]
    Store(String, StoreError),
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Daemon,
    /// Nobody listens any more.
    #[error("nobody waits for it any more")]
    Unheard,
}

/// What is told on the way.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// How far it has come.
    Progress(Counts),
    /// Something is not as it should be.
    Finding(Finding),
}

/// How far it has come, and what was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows read.
    pub rows: u64,
    /// Documents whose keys were read.
    pub documents: u64,
    /// Documents of the index that belong to no mapping.
    pub uncovered: u64,
    /// Keys that wait to be looked at again.
    pub pending: u64,
    /// Rows without a document.
    pub missing: u64,
    /// Documents without a row.
    pub extra: u64,
    /// Documents that lack a decided write.
    pub stale: u64,
    /// Documents that are not what their rows say.
    pub different: u64,
    /// What was written all the time.
    pub moving: u64,
}

/// A row and a document that do not agree.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The document's key.
    pub key: String,
    /// In which way.
    pub what: What,
    /// The document's CSN, if there is one.
    pub csn: Option<Csn>,
    /// Where they differ.
    pub differences: Vec<Difference>,
    /// What is known of why; may be empty.
    pub note: String,
}

/// In which way a row and a document do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// There is a row and no document.
    Missing,
    /// There is a document and no row.
    Extra,
    /// The document lacks a decided write.
    Stale,
    /// Nobody knows why.
    Different,
    /// It was written all the time: not known.
    Moving,
}

/// A mapping and its stores.
pub struct Verification<'a> {
    /// What is to agree.
    pub mapping: &'a Mapping,
    /// Further mappings to the same index.
    pub others: &'a [Mapping],
    /// The rows.
    pub database: Arc<dyn Reader>,
    /// The documents.
    pub index: Arc<dyn Reader>,
    /// Who writes meanwhile.
    pub movements: &'a dyn Movements,
    /// How long one read may take.
    pub timeout: Duration,
    /// How long what moves is waited for, once all is read.
    pub patience: Duration,
}

/// A row, and what its document should be.
#[derive(Clone, Debug)]
struct Row {
    key: Value,
    document_key: String,
    document: serde_json::Value,
}

impl Verification<'_> {
    /// Compares all of it. Blocks: it reads.
    pub fn run(&self, tell: &mut dyn FnMut(Told) -> Result<(), Stopped>) -> Result<Counts, Stopped> {
        let mut run =
            Run { verification: self, tell, counts: Counts::default(), pending: Vec::new(), told: Instant::now(), pause: PAUSE.0 };
        self.refuse_without_key()?;
        run.rows()?;
        run.documents()?;
        run.rest()?;
        Ok(run.counts)
    }

    /// The row and the document under this key, now.
    pub fn pair(&self, document_key: &str) -> Result<Pair, Stopped> {
        let row_key = self
            .mapping
            .row_key(document_key)
            .ok_or_else(|| Stopped::Unfit(format!("the key `{document_key}` is none of a document of `{}`", self.mapping.name)))?;
        let mut row: Option<(Row, Vec<String>, Vec<Value>)> = None;
        for value in self.mapping.key_values(row_key) {
            let (sql, parameters) = self.mapping.lookup_exactly(&value);
            let result = match self.query(&sql, &parameters, 2) {
                Ok(result) => result,
                // It is no value of the key's type, so no row has it.
                Err(Stopped::Store(_, StoreError::Invalid(_))) if parameters.iter().all(|value| matches!(value, Value::Text(_))) => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut here = None;
            for values in result.rows {
                let (columns, own) = self.mapping.split_digest(&result.columns, &values);
                let found = self.row(columns, own)?;
                if found.document_key == document_key && here.replace((found, result.columns.clone(), values.clone())).is_some() {
                    return Err(self.twice(document_key));
                }
            }
            // A database may take several values for the same key.
            match (&row, here) {
                (None, here) => row = here,
                (Some((first, ..)), Some((found, ..))) if first.key != found.key => return Err(self.twice(document_key)),
                (Some(_), _) => {}
            }
        }
        let document = self.index.get(document_key).map_err(|error| self.at_index(error))?;
        let (row, exact) = row.map_or((None, None), |(row, columns, values)| (Some(row), Some((columns, values))));
        let row_value = match &row {
            Some(row) => row.key.clone(),
            None => self.mapping.key_values(row_key).remove(0),
        };
        let finding = self.compare(document_key, row.as_ref(), document.as_ref())?;
        Ok(Pair { row_key: row_value, exact, expected: row.map(|row| row.document), csn: document.map(|document| document.csn), finding })
    }

    fn refuse_without_key(&self) -> Result<(), Stopped> {
        let found = self.query(&self.mapping.without_key(), &[], 1)?;
        match found.rows.is_empty() {
            true => Ok(()),
            false => Err(Stopped::Unfit(format!(
                "verify `{}`: the column `{}` is NULL in some row: a key must name its row",
                self.mapping.name,
                self.mapping.key()
            ))),
        }
    }

    /// The rows from this key on, and whether there may be more.
    fn page(&self, from: Option<&Value>) -> Result<(Vec<Row>, bool), Stopped> {
        let mut limit = PAGE + 1;
        let result = loop {
            let (sql, parameters) = self.mapping.page(from, limit);
            match self.query(&sql, &parameters, limit) {
                // Large rows: fewer of them.
                Err(Stopped::Store(_, StoreError::Invalid(why))) if why.contains("result_bytes") && limit > 2 => limit = limit / 2 + 1,
                result => break result?,
            }
        };
        let more = result.rows.len() == limit;
        let mut rows: Vec<Row> = Vec::with_capacity(result.rows.len());
        for values in &result.rows {
            let row = self.row(&result.columns, values)?;
            if rows.last().is_some_and(|last| last.document_key == row.document_key) {
                return Err(self.twice(&row.document_key));
            }
            rows.push(row);
        }
        if rows.first().is_some_and(|first| Some(&first.key) == from) {
            rows.remove(0);
        }
        Ok((rows, more))
    }

    /// The rows of these documents.
    fn rows_of(&self, document_keys: &[String]) -> Result<HashMap<String, Row>, Stopped> {
        let mut found = HashMap::new();
        for chunk in document_keys.chunks(mapping::LOOKUP) {
            let keys: Vec<_> = chunk.iter().filter_map(|key| self.mapping.row_key(key)).collect();
            match self.look_up(&keys, &mut found) {
                // One of them may be no value of the key's type.
                Err(Stopped::Store(_, StoreError::Invalid(_))) => {
                    for key in keys {
                        match self.look_up(&[key], &mut found) {
                            Err(Stopped::Store(_, StoreError::Invalid(_))) => {}
                            done => done?,
                        }
                    }
                }
                done => done?,
            }
        }
        Ok(found)
    }

    fn look_up(&self, keys: &[&str], found: &mut HashMap<String, Row>) -> Result<(), Stopped> {
        if keys.is_empty() {
            return Ok(());
        }
        let (sql, parameters) = self.mapping.lookup(keys);
        // Large rows: fewer of them.
        let result = match self.query(&sql, &parameters, 2 * keys.len() + 1) {
            Err(Stopped::Store(_, StoreError::Invalid(why))) if why.contains("result_bytes") && keys.len() > 1 => {
                let (first, second) = keys.split_at(keys.len() / 2);
                return self.look_up(first, found).and_then(|()| self.look_up(second, found));
            }
            result => result?,
        };
        for values in &result.rows {
            let row = self.row(&result.columns, values)?;
            let key = row.document_key.clone();
            if let Some(other) = found.insert(key.clone(), row)
                && other.key != found[&key].key
            {
                return Err(self.twice(&key));
            }
        }
        Ok(())
    }

    fn row(&self, columns: &[String], values: &[Value]) -> Result<Row, Stopped> {
        let name = &self.mapping.name;
        let at = columns.iter().position(|column| column == self.mapping.key()).ok_or_else(|| {
            let (key, given) = (self.mapping.key(), columns.join(", "));
            Stopped::Unfit(format!("verify `{name}`: the query gives no column `{key}`, which is to be its key; it gives {given}"))
        })?;
        let unfit = |sentence: String| Stopped::Unfit(format!("verify `{name}`: {sentence}"));
        let document_key = self.mapping.document_key(&values[at]).map_err(unfit)?;
        let document =
            self.mapping.document(columns, values).map_err(|sentence| unfit(format!("the row of `{document_key}`: {sentence}")))?;
        Ok(Row { key: values[at].clone(), document_key, document })
    }

    /// The same of both; `None` if they agree.
    fn compare(&self, key: &str, row: Option<&Row>, document: Option<&Document>) -> Result<Option<Finding>, Stopped> {
        let finding = |what, differences| {
            let csn = document.map(|document| document.csn);
            Some(Finding { key: key.to_string(), what, csn, differences, note: String::new() })
        };
        Ok(match (row, document) {
            (None, None) => None,
            (Some(_), None) => finding(What::Missing, Vec::new()),
            (None, Some(_)) => finding(What::Extra, Vec::new()),
            (Some(row), Some(document)) => {
                let found: serde_json::Value = serde_json::from_str(&document.document)
                    .map_err(|error| self.at_index(StoreError::Refused(format!("the document `{key}` is no JSON: {error}"))))?;
                let differences = differences(&row.document, &found);
                if differences.is_empty() { None } else { finding(What::Different, differences) }
            }
        })
    }

    fn query(&self, sql: &str, parameters: &[Value], rows: usize) -> Result<StatementResult, Stopped> {
        let limits = ReadLimits { rows, offset: 0, timeout: self.timeout };
        self.database.query(sql, parameters, limits).map_err(|error| Stopped::Store(self.mapping.database.clone(), error))
    }

    fn keys(&self, after: Option<&str>) -> Result<KeyPage, Stopped> {
        self.index.keys(after, PAGE).map_err(|error| self.at_index(error))
    }

    fn at_index(&self, error: StoreError) -> Stopped {
        Stopped::Store(self.mapping.index.clone(), error)
    }

    fn twice(&self, document_key: &str) -> Stopped {
        let (name, key) = (&self.mapping.name, self.mapping.key());
        Stopped::Unfit(format!("verify `{name}`: two rows belong to the document `{document_key}`: the column `{key}` is not unique"))
    }
}

/// A row and a document, for a repair.
#[derive(Debug)]
pub struct Pair {
    /// The row's key; of a row that is not there, what it would be.
    pub row_key: Value,
    /// The row's columns and values, as [`Mapping::guard`] takes them.
    pub exact: Option<(Vec<String>, Vec<Value>)>,
    /// What the document should be.
    pub expected: Option<serde_json::Value>,
    /// The document's CSN, if there is one.
    pub csn: Option<Csn>,
    /// How they differ, at first sight.
    pub finding: Option<Finding>,
}

/// One run.
struct Run<'a, 'b> {
    verification: &'a Verification<'a>,
    tell: &'b mut dyn FnMut(Told) -> Result<(), Stopped>,
    counts: Counts,
    /// Documents that are to be looked at again.
    pending: Vec<String>,
    told: Instant,
    pause: Duration,
}

impl Run<'_, '_> {
    /// Each row against its document.
    fn rows(&mut self) -> Result<(), Stopped> {
        let mut from = None;
        loop {
            let (rows, more) = self.verification.page(from.as_ref())?;
            let Some(last) = rows.last() else { return Ok(()) };
            from = Some(last.key.clone());
            self.counts.rows += rows.len() as u64;
            for chunk in rows.chunks(DOCUMENTS) {
                let keys: Vec<_> = chunk.iter().map(|row| row.document_key.clone()).collect();
                let documents = self.verification.index.get_all(&keys).map_err(|error| self.verification.at_index(error))?;
                for (row, document) in chunk.iter().zip(&documents) {
                    if self.verification.compare(&row.document_key, Some(row), document.as_ref())?.is_some() {
                        self.pending.push(row.document_key.clone());
                    }
                }
            }
            self.look_again()?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Each document against its row.
    fn documents(&mut self) -> Result<(), Stopped> {
        let mut after = None;
        loop {
            let KeyPage { keys, next } = self.verification.keys(after.as_deref())?;
            let (mut own, others): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| self.verification.mapping.row_key(key).is_some());
            let covered = |key: &&String| self.verification.others.iter().any(|other| other.row_key(key).is_some());
            self.counts.uncovered += others.iter().filter(|key| !covered(key)).count() as u64;
            self.counts.documents += own.len() as u64;
            let rows = self.verification.rows_of(&own)?;
            own.retain(|key| !rows.contains_key(key));
            self.pending.append(&mut own);
            self.look_again()?;
            match next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// What still moves, until it rests or patience is over.
    fn rest(&mut self) -> Result<(), Stopped> {
        let until = Instant::now() + self.verification.patience;
        while !self.pending.is_empty() && Instant::now() < until {
            std::thread::sleep(self.pause.min(until.saturating_duration_since(Instant::now())));
            self.pause = (self.pause * 2).min(PAUSE.1);
            self.look_again()?;
        }
        self.give_up()
    }

    /// What waits is not waited for any more.
    fn give_up(&mut self) -> Result<(), Stopped> {
        let rest = std::mem::take(&mut self.pending);
        for keys in rest.chunks(PAGE) {
            let lacking = self.verification.movements.lacking(keys)?;
            for key in keys {
                let waits = lacking.get(key).filter(|lacking| lacking.waits);
                let what = if waits.is_some() { What::Stale } else { What::Moving };
                let note = waits.map_or_else(|| "it was written again and again".to_string(), |lacking| lacking.sentence.clone());
                self.find(Finding { key: key.clone(), what, csn: None, differences: Vec::new(), note })?;
            }
        }
        Ok(())
    }

    /// Looks at what differed, once; above [`PENDING`] until there is room again, or patience is over.
    fn look_again(&mut self) -> Result<(), Stopped> {
        let until = Instant::now() + self.verification.patience;
        loop {
            self.pending.sort();
            self.pending.dedup();
            let pending = std::mem::take(&mut self.pending);
            for keys in pending.chunks(PAGE) {
                self.look(keys)?;
            }
            self.tell_progress()?;
            if self.pending.len() < PENDING {
                return Ok(());
            }
            if Instant::now() >= until {
                return self.give_up();
            }
            std::thread::sleep(PAUSE.1);
        }
    }

    /// One look at these, watched.
    fn look(&mut self, keys: &[String]) -> Result<(), Stopped> {
        let verification = self.verification;
        let (watch, mut moved) = verification.movements.watch(keys)?;
        let read = self.read(keys);
        moved.extend(verification.movements.unwatch(watch)?);
        let (moving, resting): (Vec<_>, Vec<_>) = read?.into_iter().partition(|finding| moved.contains(&finding.key));
        self.pending.extend(moving.into_iter().map(|finding| finding.key));
        if resting.is_empty() {
            return Ok(());
        }
        let lacking = verification.movements.lacking(&resting.iter().map(|finding| finding.key.clone()).collect::<Vec<_>>())?;
        for mut finding in resting {
            if let Some(lacking) = lacking.get(&finding.key).filter(|lacking| finding.csn.is_none_or(|csn| csn < lacking.csn)) {
                finding.note.clone_from(&lacking.sentence);
                if finding.what == What::Different {
                    finding.what = What::Stale;
                }
            }
            self.find(finding)?;
        }
        Ok(())
    }

    /// How rows and documents of these keys differ now.
    fn read(&self, keys: &[String]) -> Result<Vec<Finding>, Stopped> {
        let verification = self.verification;
        let rows = verification.rows_of(keys)?;
        let mut found = Vec::new();
        for chunk in keys.chunks(DOCUMENTS) {
            let documents = verification.index.get_all(chunk).map_err(|error| verification.at_index(error))?;
            for (key, document) in chunk.iter().zip(&documents) {
                found.extend(verification.compare(key, rows.get(key), document.as_ref())?);
            }
        }
        Ok(found)
    }

    fn find(&mut self, finding: Finding) -> Result<(), Stopped> {
        *match finding.what {
            What::Missing => &mut self.counts.missing,
            What::Extra => &mut self.counts.extra,
            What::Stale => &mut self.counts.stale,
            What::Different => &mut self.counts.different,
            What::Moving => &mut self.counts.moving,
        } += 1;
        (self.tell)(Told::Finding(finding))
    }

    fn tell_progress(&mut self) -> Result<(), Stopped> {
        self.counts.pending = self.pending.len() as u64;
        if self.told.elapsed() < TOLD_EVERY {
            return Ok(());
        }
        self.told = Instant::now();
        (self.tell)(Told::Progress(self.counts))
    }
}
