//! The same writes, through Lockstep.

use super::catalogue::Film;
use super::contents::Contents;
use super::naive::{WRITE_FILM, WRITE_HISTORY};
use super::stores::Kinds;
use anyhow::{Context, bail};
use lockstep_client::{Client, CommitError, Receipt, Transaction, Value, params};
use serde::Deserialize;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The database, as the daemon names it.
pub const DATABASE: &str = "db";
/// The index, as the daemon names it.
pub const INDEX: &str = "index";

/// Rows or documents of one page of a read.
const PAGE: u32 = 2_000;
/// Attempts of one write, while it is told that it may be tried again.
const ATTEMPTS: u32 = 100;
/// How often a write that is aborted only because its time was up is made anew.
const ROUNDS: u32 = 5;
/// How long a client insists on an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client of a daemon, and the newest receipt that it was given.
pub struct Lockstep {
    client: Client,
    kinds: Kinds,
    newest: Mutex<Option<Receipt>>,
}

/// What a client was told, for certain.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    /// Committed, at this place in the one order.
    Committed {
        /// Greater is later.
        csn: u64,
    },
    /// Aborted, for this reason; nothing of it is anywhere.
    Aborted {
        /// A sentence.
        why: String,
    },
}

impl Lockstep {
    /// Connects; finds the daemon again quickly when it comes back.
    pub async fn connect(url: &str, kinds: Kinds) -> anyhow::Result<Lockstep> {
        let builder = Client::builder(url).reconnect(Duration::from_millis(5), Duration::from_millis(50)).request_timeout(PATIENCE);
        Ok(Lockstep { client: builder.connect().await?, kinds, newest: Mutex::new(None) })
    }

    /// A transaction of one's own making, to be handed to [`Lockstep::commit`].
    pub fn transaction(&self) -> Transaction {
        self.client.transaction()
    }

    /// Creates the film tables and declares the index's fields.
    pub async fn create_tables(&self) -> anyhow::Result<()> {
        self.client.migrate(DATABASE, self.kinds.database.tables()).await?;
        self.client.migrate(INDEX, self.kinds.index.fields()).await?;
        Ok(())
    }

    /// Further tables.
    pub async fn migrate(&self, script: &str) -> anyhow::Result<()> {
        self.client.migrate(DATABASE, script).await?;
        Ok(())
    }

    /// Writes the row and the document as one; an error unless it was committed.
    pub async fn write(&self, film: &Film, stamp: &str) -> anyhow::Result<u64> {
        match self.try_write(film, stamp).await? {
            Written::Committed { csn } => Ok(csn),
            Written::Aborted { why } => bail!("write {stamp} of {} was aborted: {why}", film.id),
        }
    }

    /// Writes the row and the document as one, or neither.
    pub async fn try_write(&self, film: &Film, stamp: &str) -> anyhow::Result<Written> {
        // Where a store is away for a moment, or another client is in the way, an application tries again.
        let transaction = write_film(self.transaction(), film, stamp).retry(ATTEMPTS);
        self.commit(transaction.sql(DATABASE, WRITE_HISTORY, params![&film.id, stamp])).await
    }

    /// Commits, and insists on a definite answer; an error if there is none in time.
    pub async fn commit(&self, transaction: Transaction) -> anyhow::Result<Written> {
        let mut told = self.outcome(transaction.clone()).await;
        for _ in 1..ROUNDS {
            if !told.as_ref().is_err_and(CommitError::is_retryable) {
                break;
            }
            told = self.outcome(transaction.clone()).await;
        }
        match told {
            Ok(receipt) => Ok(self.keep(receipt)),
            Err(CommitError::Aborted(aborted)) => Ok(Written::Aborted { why: aborted.to_string() }),
            Err(error) => Err(error).context("no definite answer"),
        }
    }

    /// Waits until the index has everything that this client was told is committed.
    pub async fn wait_until_visible(&self) -> anyhow::Result<()> {
        let newest = self.newest().as_ref().map(|receipt| receipt.token.clone());
        if let Some(token) = newest {
            self.client.get(INDEX, "none").at_least(&token).timeout(PATIENCE).await?;
        }
        Ok(())
    }

    /// What both stores hold of the films, read through the daemon.
    pub async fn contents(&self) -> anyhow::Result<Contents> {
        let rows = self.rows("SELECT id, stamp FROM film WHERE id > $1 ORDER BY id LIMIT $2").await?;
        let documents = self.documents().await?;
        let films = documents.into_iter().filter(|(key, _)| key.starts_with("film-")).collect();
        Ok(Contents { rows: rows.into_iter().collect(), documents: films })
    }

    /// All rows of a statement that gives two texts above `$1`, in the order of the first, at most `$2`.
    pub async fn rows(&self, sql: &str) -> anyhow::Result<Vec<(String, String)>> {
        let mut all: Vec<(String, String)> = Vec::new();
        loop {
            let above = all.last().map_or(String::new(), |(key, _)| key.clone());
            let page = self.client.query(DATABASE, sql, params![above, PAGE]).limit(PAGE).await?.rows;
            for row in page.iter() {
                all.push((row.get(0)?, row.get(1)?));
            }
            if page.len() < PAGE as usize {
                return Ok(all);
            }
        }
    }

    /// The key and stamp of every document of the index; one that is there twice comes twice. Nobody may write meanwhile.
    pub async fn documents(&self) -> anyhow::Result<Vec<(String, String)>> {
        #[derive(Deserialize)]
        struct Stamped {
            stamp: String,
        }
        let mut all = Vec::new();
        // One search reaches a limited number of documents, so the CSNs are halved until each part is within reach.
        let mut parts = vec![(0, u64::MAX >> 1)];
        while let Some((from, to)) = parts.pop() {
            let part = self.kinds.index.csn_between(from, to);
            let total = self.client.search(INDEX, &part).limit(1).await?.total;
            if total > u64::from(PAGE) && from < to {
                let middle = from + (to - from) / 2;
                parts.extend([(from, middle), (middle + 1, to)]);
            } else if total > 0 {
                let hits = self.client.search(INDEX, &part).limit(PAGE).await?;
                let shown = hits.documents.len() as u64;
                anyhow::ensure!(shown == total, "the index says it holds {total} documents with {part} and shows {shown}");
                for document in &hits.documents {
                    all.push((document.key.clone(), document.json::<Stamped>()?.stamp));
                }
            }
        }
        Ok(all)
    }

    /// What became of it, asked for once more if the commit's own answer did not come.
    async fn outcome(&self, transaction: Transaction) -> Result<Receipt, CommitError> {
        match transaction.commit().await {
            Err(CommitError::Unknown { request, .. }) => self.client.inquire(&request).await,
            told => told,
        }
    }

    fn keep(&self, receipt: Receipt) -> Written {
        let csn = receipt.csn.to_u64();
        let mut newest = self.newest();
        if newest.as_ref().is_none_or(|newest| newest.csn < receipt.csn) {
            *newest = Some(receipt);
        }
        Written::Committed { csn }
    }

    fn newest(&self) -> std::sync::MutexGuard<'_, Option<Receipt>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds the film's row and document to a transaction.
pub fn write_film(transaction: Transaction, film: &Film, stamp: &str) -> Transaction {
    transaction.sql(DATABASE, WRITE_FILM, film_row(film, stamp)).put(INDEX, &film.id, &film.document(stamp))
}

/// The parameters of [`WRITE_FILM`].
pub fn film_row(film: &Film, stamp: &str) -> Vec<Value> {
    params![&film.id, film.title_text(), film.director.as_deref(), film.genre.as_deref(), film.year, stamp]
}
