//! OpenSearch and Elasticsearch, over their REST API: a search index that votes by redo (R-REDO).
//!
//! Prepare checks every document against the index's real mapping, as the server has it, and hands the documents back as the redo:
//! nothing is written before the decision. Phase two is `_bulk`, with the CSN as the document's external version: a repeat is a 200, an
//! older write than the one that is there is a 409, in whichever order they come. Every item's result is read.
//!
//! A document is kept as it was put, with one member of our own in front:
//!
//! ```text
//! {"_lockstep":{"csn":549755813889},"title":"…"}            a document
//! {"_lockstep":{"csn":549755813890,"deleted":true}}         a tombstone: a deleted document; the server itself forgets deletes
//! {"_lockstep":{"deleted":true,"state":{…}}}                 the owner and the watermark, under the key `_lockstep.state`
//! ```
//!
//! Readers use an alias whose filter hides what has `_lockstep.deleted`. Writes go through an alias of their own ([`fence`]).
//!
//! What the server says No to after the decision (a block, a closed index, a changed mapping) makes that transaction *stuck*, with the
//! server's reason; it is tried again, and holds up no other. What a search sees is what the last refresh took in: one is made for all
//! that was applied since, at most every [`OpenSearchOptions::refresh_every`]; only then is it `applied`, and, once the watermark is
//! written behind it, `durable`.

mod audit;
mod bulk;
mod document;
mod fence;
mod grounds;
mod http;
mod mapping;
mod migration;
mod options;
mod purge;
mod reader;
mod session;
mod state;
mod survey;
mod votes;

pub use document::{MAX_DEPTH, MAX_KEY, MAX_NAME};
pub use options::{Credentials, NewFields, OpenSearchOptions};

use crate::{Committed, Reader, Recovered, ResourceManager, StoreError, Tended, Validator};
use grounds::Grounds;
use http::Http;
use lockstep_core::{Ballot, Csn, Decided, Kind, Owner, ParticipantId, Txid, Work};
use reader::{Reads, Topic};
use serde_json::{Map, Value};
use session::Session;
use state::State;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What would be said of a document under this mapping, before any server is asked: whether one has to be, or why it is refused.
#[doc(hidden)]
pub fn judge(mappings: &Value, settings: &Map<String, Value>, document: &str) -> Result<bool, String> {
    let mapping = mapping::Mapping::parse(mappings, settings)?;
    document::check(&mapping, 1 << 20, document).map(|checked| checked.ask.is_some())
}

/// An index of a cluster as a participant.
pub struct OpenSearch {
    options: Arc<OpenSearchOptions>,
    http: Arc<Http>,
    reads: Arc<Reads>,
    grounds: Arc<Grounds>,
    /// The owner that the index was last seen with.
    seen: Option<Owner>,
    /// `None` until recovered, and after an error.
    session: Option<Session>,
}

impl OpenSearch {
    /// A store with these options. The server need not be there yet. Errors: [`StoreError::Refused`] if the options cannot be used.
    pub fn open(options: OpenSearchOptions) -> Result<OpenSearch, StoreError> {
        options.check()?;
        let http = Arc::new(Http::new(&options)?);
        let reads = Arc::new(Reads::new(http.clone(), &options));
        Ok(OpenSearch { options: Arc::new(options), http, reads, grounds: Arc::default(), seen: None, session: None })
    }

    /// Runs one step of the session; an error that leaves it in doubt ends it.
    fn step<T>(&mut self, step: impl FnOnce(&mut Session) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let session = self.session.as_mut().ok_or_else(|| StoreError::Broken("the store has to be recovered first".into()))?;
        let result = step(session);
        if let Err(StoreError::Broken(why) | StoreError::Refused(why)) = &result {
            self.reads.note(Topic::Session, Some(why.clone()));
            self.end_session();
        }
        result
    }

    fn end_session(&mut self) {
        self.grounds.set(None);
        self.session = None;
    }
}

impl ResourceManager for OpenSearch {
    fn kind(&self) -> Kind {
        Kind::Redo
    }

    /// Examines the server and the index, takes the index over, and lets no older coordinator's writes in any more.
    fn recover(&mut self, owner: Owner, _me: ParticipantId) -> Result<Recovered, StoreError> {
        self.end_session();
        let opened = Session::open(&self.options, &self.http, &self.reads, &self.grounds, owner, self.seen);
        self.reads.note(Topic::Session, opened.as_ref().err().map(StoreError::to_string));
        let (session, recovered) = opened?;
        self.seen = Some(owner);
        self.session = Some(session);
        Ok(recovered)
    }

    fn owner(&mut self) -> Result<Option<Owner>, StoreError> {
        let owner = State::owner(&self.http, &self.options.alias);
        self.reads.note(Topic::Session, owner.as_ref().err().map(StoreError::to_string));
        self.seen = owner?;
        Ok(self.seen)
    }

    fn prepare(&mut self, batch: &[Work]) -> Result<Ballot, StoreError> {
        self.step(|session| session.prepare(batch))
    }

    fn validator(&self) -> Option<Arc<dyn Validator>> {
        Some(self.grounds.clone())
    }

    fn commit(&mut self, decided: &[Decided], closed: Csn) -> Result<Committed, StoreError> {
        self.step(|session| session.commit(decided, closed))
    }

    /// A vote holds nothing here: there is nothing to forget.
    fn abort(&mut self, _txids: &[Txid]) -> Result<(), StoreError> {
        Ok(())
    }

    fn gather(&self) -> Duration {
        self.options.gather
    }

    fn hurry(&mut self) {
        if let Some(session) = &mut self.session {
            session.hurry(Instant::now());
        }
    }

    fn tend(&mut self, closed: Csn) -> Result<Tended, StoreError> {
        self.step(|session| session.tend(closed, Instant::now()))
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.reads.clone()
    }

    /// Sets mappings and settings: `{"mappings": {…}, "settings": {…}}`, as the server takes them at the creation of an index. An index
    /// that holds no documents is made anew; in one that does, fields are added and dynamic settings set, and what cannot be changed is
    /// refused by the server. Documents that have voted and are not decided should not be under way.
    fn migrate(&mut self, script: &str) -> Result<String, StoreError> {
        self.step(|session| session.migrate(script))
    }
}
