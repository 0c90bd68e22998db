//! What is recorded. A history is a list of events in the order in which they happened: what was told before something was asked stands before it.

use serde::{Deserialize, Serialize};

/// The number of an operation. An append's number is what it appends, so it is unique in the whole history.
pub type Op = u64;

/// Something that happened, and when.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Happened {
    /// Microseconds since the recording began; for people, the order of events is what counts.
    pub at_us: u64,
    /// What it is.
    #[serde(flatten)]
    pub event: Event,
}

/// Something that a client did or heard.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It asks.
    Invoke {
        /// What from here on is called by this number.
        op: Op,
        /// Who asks; one thing at a time.
        process: u32,
        /// What.
        ask: Ask,
    },
    /// It is told. After [`Told::Unknown`] an operation may be told a second time, when somebody asks again.
    Told {
        /// Of what.
        op: Op,
        /// What.
        told: Told,
    },
}

/// What is asked for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// A transaction that appends its number to these keys, all or none.
    Append {
        /// Each key once.
        writes: Vec<Write>,
    },
    /// A read.
    Read {
        /// Of which store.
        store: Store,
        /// Which keys.
        keys: Vec<String>,
        /// It is to show everything up to this append, of which the client holds the token.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_least: Option<Op>,
        /// All keys are read at one instant.
        snapshot: bool,
        /// Everything has come to rest: what is not there now never will be.
        last: bool,
    },
}

/// What an append does to one key.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Write {
    /// Row and document.
    pub key: String,
    /// What becomes of the document.
    pub document: Document,
}

/// What an append does to a document. Its row always gets the number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Document {
    /// It is put, with the number alone: whatever was there before.
    Put,
    /// It is put with the whole list that the client had read, and the number behind it; under the condition that nothing came in between.
    Based,
    /// It is put, with the number alone, under the condition that nothing came since the document that was read; no condition on its row.
    After {
        /// The document's last write; nothing if there was no document.
        last: Option<Op>,
    },
    /// It is deleted.
    Delete,
}

/// A store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// The database.
    Rows,
    /// The search index.
    Documents,
    /// The same as a search finds it, where a read by key may show more.
    Found,
}

/// What a client is told.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "told", rename_all = "snake_case")]
pub enum Told {
    /// An append is committed.
    Committed {
        /// Its place in the one order.
        csn: u64,
        /// What has it by now.
        shown: Shown,
        /// What the transaction itself read after it wrote, if it was told.
        rows: Vec<SeenRow>,
    },
    /// An append is in no store, and never will be.
    Aborted {
        /// Why.
        why: String,
    },
    /// An append may or may not be committed, or be committed later. A read had no answer.
    Unknown {
        /// Why.
        why: String,
    },
    /// A read of rows.
    Rows {
        /// Every key that was asked for.
        rows: Vec<SeenRow>,
    },
    /// A read of documents.
    Documents {
        /// Every key that was asked for.
        documents: Vec<SeenDocument>,
    },
}

/// Where an append that was told committed can be seen, by everybody who asks from then on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shown {
    /// Nowhere for certain: it is decided.
    Nowhere,
    /// In the database.
    Rows,
    /// In both.
    Both,
}

/// A row as it was read.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SeenRow {
    /// Which.
    pub key: String,
    /// Its list; empty if there is no row.
    pub list: Vec<Op>,
}

/// A document as it was read.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SeenDocument {
    /// Which.
    pub key: String,
    /// Its last write; nothing if there is no document.
    pub last: Option<Op>,
    /// Its version; 0 if there is no document.
    pub csn: u64,
    /// The list in it, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<Vec<Op>>,
}

impl Event {
    /// Which operation it is about.
    pub fn op(&self) -> Op {
        match self {
            Event::Invoke { op, .. } | Event::Told { op, .. } => *op,
        }
    }
}
