//! A store whose calls are timed.

use crate::meters::{Called, Meters};
use lockstep_core::{Abilities, Ballot, Csn, Decided, Kind, Marker, MarkerEvidence, Owner, ParticipantId, Position, Settle, Txid, Work};
use lockstep_participants::{Committed, LateVotes, Led, Reader, Recovered, ResourceManager, StoreError, Tended, Validator};
use prometheus_client::metrics::histogram::Histogram;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Wraps a store. Votes beside its thread are not timed: they are no calls of the store.
pub struct MeasuredStore {
    store: Box<dyn ResourceManager>,
    prepare: Histogram,
    commit: Histogram,
    abort: Histogram,
    lead: Histogram,
    tend: Histogram,
    recover: Histogram,
    other: Histogram,
}

impl MeasuredStore {
    /// The store under this name.
    pub fn new(name: &str, store: Box<dyn ResourceManager>, meters: &Meters) -> MeasuredStore {
        let meter = |call| meters.calls.get_or_create_owned(&Called { store: name.into(), call });
        MeasuredStore {
            store,
            prepare: meter("prepare"),
            commit: meter("commit"),
            abort: meter("abort"),
            lead: meter("lead"),
            tend: meter("tend"),
            recover: meter("recover"),
            other: meter("other"),
        }
    }
}

fn timed<T>(meter: &Histogram, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    meter.observe(began.elapsed().as_secs_f64());
    done
}

impl ResourceManager for MeasuredStore {
    fn kind(&self) -> Kind {
        self.store.kind()
    }

    fn abilities(&self) -> Abilities {
        self.store.abilities()
    }

    fn recover(&mut self, owner: Owner, me: ParticipantId) -> Result<Recovered, StoreError> {
        timed(&self.recover, || self.store.recover(owner, me))
    }

    fn owner(&mut self) -> Result<Option<Owner>, StoreError> {
        timed(&self.other, || self.store.owner())
    }

    fn prepare(&mut self, batch: &[Work]) -> Result<Ballot, StoreError> {
        timed(&self.prepare, || self.store.prepare(batch))
    }

    fn validator(&self) -> Option<Arc<dyn Validator>> {
        self.store.validator()
    }

    fn vote_later(&mut self, late: LateVotes) {
        self.store.vote_later(late);
    }

    fn commit(&mut self, decided: &[Decided], closed: Csn) -> Result<Committed, StoreError> {
        timed(&self.commit, || self.store.commit(decided, closed))
    }

    fn abort(&mut self, txids: &[Txid]) -> Result<(), StoreError> {
        timed(&self.abort, || self.store.abort(txids))
    }

    fn lead(&mut self, markers: &[Marker]) -> Result<Led, StoreError> {
        timed(&self.lead, || self.store.lead(markers))
    }

    fn settle(&mut self, what: &Settle) -> Result<Option<Marker>, StoreError> {
        timed(&self.other, || self.store.settle(what))
    }

    fn scan(&mut self, above: Csn, limit: usize) -> Result<Vec<Marker>, StoreError> {
        timed(&self.other, || self.store.scan(above, limit))
    }

    fn floor(&mut self, below: Position) -> Result<(), StoreError> {
        timed(&self.other, || self.store.floor(below))
    }

    fn acked(&mut self, csn: Csn) -> Result<(), StoreError> {
        timed(&self.other, || self.store.acked(csn))
    }

    fn evidence(&mut self, txid: Txid) -> Result<MarkerEvidence, StoreError> {
        timed(&self.other, || self.store.evidence(txid))
    }

    fn prepared(&mut self) -> Result<Option<Vec<Txid>>, StoreError> {
        timed(&self.other, || self.store.prepared())
    }

    fn resolve(&mut self, txid: Txid, commit: bool) -> Result<bool, StoreError> {
        timed(&self.other, || self.store.resolve(txid, commit))
    }

    fn gather(&self) -> Duration {
        self.store.gather()
    }

    fn hurry(&mut self) {
        self.store.hurry();
    }

    fn tend(&mut self, closed: Csn) -> Result<Tended, StoreError> {
        timed(&self.tend, || self.store.tend(closed))
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.store.reader()
    }

    fn applications(&self) -> Option<lockstep_participants::applications::Applications> {
        self.store.applications()
    }

    fn migrate(&mut self, script: &str) -> Result<String, StoreError> {
        timed(&self.other, || self.store.migrate(script))
    }
}
