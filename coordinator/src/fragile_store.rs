//! A store with places where a test may stop the process dead: before and after every call.

use crate::failpoints::hit;
use lockstep_core::{
    Abilities, Ballot, Csn, Decided, Kind, Marker, MarkerEvidence, Operation, Owner, ParticipantId, Position, Settle, Txid, Vote, Work,
};
use lockstep_participants::{Committed, LateVotes, Led, Reader, Recovered, ResourceManager, StoreError, Tended, Validator};
use std::sync::Arc;
use std::time::Duration;

/// Wraps a store; its places are `store.NAME.before_CALL` and `store.NAME.after_CALL`.
pub struct FragileStore {
    name: String,
    store: Box<dyn ResourceManager>,
}

impl FragileStore {
    /// The store under this name.
    pub fn new(name: &str, store: Box<dyn ResourceManager>) -> FragileStore {
        FragileStore { name: name.into(), store }
    }

    fn around<T>(&mut self, call: &str, work: impl FnOnce(&mut dyn ResourceManager) -> T) -> T {
        hit(&format!("store.{}.before_{call}", self.name));
        let done = work(self.store.as_mut());
        hit(&format!("store.{}.after_{call}", self.name));
        done
    }
}

/// Its places are those of [`ResourceManager::prepare`].
struct FragileValidator {
    name: String,
    validator: Arc<dyn Validator>,
}

impl Validator for FragileValidator {
    fn validate(&self, operations: &[Operation]) -> Option<Vote> {
        hit(&format!("store.{}.before_prepare", self.name));
        let vote = self.validator.validate(operations);
        hit(&format!("store.{}.after_prepare", self.name));
        vote
    }
}

impl ResourceManager for FragileStore {
    fn kind(&self) -> Kind {
        self.store.kind()
    }

    fn recover(&mut self, owner: Owner, me: ParticipantId) -> Result<Recovered, StoreError> {
        self.around("recover", |store| store.recover(owner, me))
    }

    fn owner(&mut self) -> Result<Option<Owner>, StoreError> {
        self.store.owner()
    }

    fn prepare(&mut self, batch: &[Work]) -> Result<Ballot, StoreError> {
        self.around("prepare", |store| store.prepare(batch))
    }

    fn validator(&self) -> Option<Arc<dyn Validator>> {
        let validator = self.store.validator()?;
        Some(Arc::new(FragileValidator { name: self.name.clone(), validator }))
    }

    fn vote_later(&mut self, late: LateVotes) {
        let place = format!("store.{}.before_late_vote", self.name);
        self.store.vote_later(Arc::new(move |votes| {
            hit(&place);
            late(votes);
        }));
    }

    fn gather(&self) -> Duration {
        self.store.gather()
    }

    fn hurry(&mut self) {
        self.store.hurry();
    }

    fn commit(&mut self, decided: &[Decided], closed: Csn) -> Result<Committed, StoreError> {
        self.around("commit", |store| store.commit(decided, closed))
    }

    fn abort(&mut self, txids: &[Txid]) -> Result<(), StoreError> {
        self.around("abort", |store| store.abort(txids))
    }

    fn lead(&mut self, markers: &[Marker]) -> Result<Led, StoreError> {
        self.around("lead", |store| store.lead(markers))
    }

    fn settle(&mut self, what: &Settle) -> Result<Option<Marker>, StoreError> {
        self.around("settle", |store| store.settle(what))
    }

    fn scan(&mut self, above: Csn, limit: usize) -> Result<Vec<Marker>, StoreError> {
        self.around("scan", |store| store.scan(above, limit))
    }

    fn floor(&mut self, below: Position) -> Result<(), StoreError> {
        self.around("floor", |store| store.floor(below))
    }

    fn resolve(&mut self, txid: Txid, commit: bool) -> Result<bool, StoreError> {
        self.around("resolve", |store| store.resolve(txid, commit))
    }

    fn abilities(&self) -> Abilities {
        self.store.abilities()
    }

    fn acked(&mut self, csn: Csn) -> Result<(), StoreError> {
        self.around("acked", |store| store.acked(csn))
    }

    fn prepared(&mut self) -> Result<Option<Vec<Txid>>, StoreError> {
        self.around("prepared", |store| store.prepared())
    }

    fn evidence(&mut self, txid: Txid) -> Result<MarkerEvidence, StoreError> {
        self.store.evidence(txid)
    }

    fn tend(&mut self, closed: Csn) -> Result<Tended, StoreError> {
        self.around("tend", |store| store.tend(closed))
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.store.reader()
    }

    fn applications(&self) -> Option<lockstep_participants::applications::Applications> {
        self.store.applications()
    }

    fn migrate(&mut self, script: &str) -> Result<String, StoreError> {
        self.around("migrate", |store| store.migrate(script))
    }
}
