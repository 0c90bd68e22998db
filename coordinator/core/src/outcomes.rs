//! What became of every request that is still known (R-KEY), down to the floor.

use crate::ids::{Csn, Lsn, ParticipantId, Position, Time, Txid};
use crate::operation::Results;
use crate::request::{Aborted, RequestKey};
use std::collections::{BTreeMap, VecDeque};

/// Statement results by store.
pub type ResultsByStore = Vec<(ParticipantId, Results)>;

/// One request.
#[derive(Debug)]
pub struct Known {
    /// Its transaction.
    pub txid: Txid,
    /// Its name.
    pub key: RequestKey,
    /// Hash of what it asked for.
    pub hash: u64,
    /// When it became known.
    pub since: Time,
    /// How it stands.
    pub fate: Fate,
}

/// How a request stands.
#[derive(Debug)]
pub enum Fate {
    /// Not decided, or not yet durably so.
    Running,
    /// Committed, for ever.
    Committed(CommittedFate),
    /// Aborted, for ever.
    Aborted(Box<Aborted>),
}

/// A committed request.
#[derive(Clone, Debug)]
pub struct CommittedFate {
    /// Its place.
    pub csn: Csn,
    /// Its Commit record, if the log decided it.
    pub lsn: Option<Lsn>,
    /// Its statement results, while kept.
    pub results: Option<ResultsByStore>,
}

/// All requests that are still known.
#[derive(Debug)]
pub struct Outcomes {
    known: BTreeMap<Position, Known>,
    by_key: BTreeMap<RequestKey, Position>,
    with_results: VecDeque<Position>,
    results_max: usize,
    floor: Position,
}

impl Outcomes {
    /// None known, nothing forgotten.
    pub fn new(results_max: usize) -> Outcomes {
        let (known, by_key) = (BTreeMap::new(), BTreeMap::new());
        Outcomes { known, by_key, with_results: VecDeque::new(), results_max, floor: Position::default() }
    }

    /// The first position that is still known.
    pub fn floor(&self) -> Position {
        self.floor
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The request under this name.
    pub fn by_key(&self, key: &RequestKey) -> Option<&Known> {
        self.by_key.get(key).map(|position| &self.known[position])
    }

    /// The request of this transaction.
    pub fn by_txid(&self, txid: Txid) -> Option<&Known> {
        self.known.get(&txid.position()).filter(|known| known.txid == txid)
    }

    /// The request that began at this position.
    pub fn by_position(&self, position: Position) -> Option<&Known> {
        self.known.get(&position)
    }

    /// All, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Known> {
        self.known.values()
    }

    /// A request becomes known.
    pub fn insert(&mut self, known: Known) {
        let position = known.txid.position();
        assert!(position >= self.floor, "a transaction below the floor becomes known: {}", known.txid);
        let named = self.by_key.insert(known.key.clone(), position);
        assert!(named.is_none_or(|earlier| earlier == position), "R-KEY: two transactions under one key: {}", known.txid);
        if matches!(&known.fate, Fate::Committed(CommittedFate { results: Some(_), .. })) {
            self.with_results.push_back(position);
        }
        self.known.insert(position, known);
        self.drop_excess_results();
    }

    /// A running request gets its fate, once and for ever (I2).
    pub fn settle(&mut self, txid: Txid, fate: Fate) {
        if matches!(&fate, Fate::Committed(CommittedFate { results: Some(_), .. })) {
            self.with_results.push_back(txid.position());
        }
        let known = self.known.get_mut(&txid.position()).expect("only a known request is settled");
        assert!(matches!(known.fate, Fate::Running), "I2: the outcome of {txid} would be reversed");
        known.fate = fate;
        self.drop_excess_results();
    }

    /// The client has its results.
    pub fn drop_results(&mut self, txid: Txid) {
        if let Some(Known { fate: Fate::Committed(committed), .. }) = self.known.get_mut(&txid.position()) {
            committed.results = None;
        }
    }

    /// Where the floor may rise to so that at most `max` stay, and none from before `oldest`; never past a running one.
    pub fn next_floor(&self, max: usize, oldest: Time) -> Option<Position> {
        let excess = if self.known.len() > max { self.known.len() - max + max / 20 } else { 0 };
        let mut floor = None;
        for (i, (position, known)) in self.known.iter().enumerate() {
            let stays = i >= excess && known.since >= oldest;
            if stays || matches!(known.fate, Fate::Running) {
                break;
            }
            floor = Some(Position { epoch: position.epoch, n: position.n + 1 });
        }
        floor
    }

    /// Forgets everything below; the record that says so is durable.
    pub fn raise_floor(&mut self, floor: Position) {
        let kept = self.known.split_off(&floor);
        for known in std::mem::replace(&mut self.known, kept).into_values() {
            assert!(!matches!(known.fate, Fate::Running), "the floor passes a running transaction: {}", known.txid);
            self.by_key.remove(&known.key);
        }
        self.floor = self.floor.max(floor);
        while self.with_results.front().is_some_and(|position| *position < floor) {
            self.with_results.pop_front();
        }
    }

    fn drop_excess_results(&mut self) {
        while self.with_results.len() > self.results_max {
            let position = self.with_results.pop_front().expect("not empty");
            if let Some(Known { fate: Fate::Committed(committed), .. }) = self.known.get_mut(&position) {
                committed.results = None;
            }
        }
    }
}
