//! What became of every request that is still known (R-KEY), down to the floor.

use crate::ids::{Csn, Epoch, Lsn, ParticipantId, Position, Time, Txid};
use crate::mutation::{Mutation, broken};
use crate::operation::{Results, StatementResult};
use crate::request::{Aborted, RequestKey};
use hashbrown::HashTable;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, DefaultHasher, Hasher};

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
    /// When it got its fate, as far as this start has seen it.
    pub settled: Option<Time>,
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
    /// Wall clock of the decision, milliseconds since 1970; for people only.
    pub at_ms: u64,
    /// Its statement results, while kept.
    pub results: Option<ResultsByStore>,
}

impl Fate {
    fn results_mut(&mut self) -> Option<&mut Option<ResultsByStore>> {
        match self {
            Fate::Committed(committed) => Some(&mut committed.results),
            Fate::Running | Fate::Aborted(_) => None,
        }
    }

    /// Memory of the results that it keeps, bytes.
    fn results_bytes(&self) -> usize {
        match self {
            Fate::Committed(CommittedFate { results: Some(results), .. }) => {
                results.iter().flat_map(|(_, results)| results.iter()).map(StatementResult::memory).sum()
            }
            Fate::Committed(_) | Fate::Running | Fate::Aborted(_) => 0,
        }
    }
}

/// How much of statement results is kept for clients that ask again; above it the oldest go first.
#[derive(Clone, Copy, Debug)]
pub struct ResultLimits {
    /// Transactions.
    pub transactions: usize,
    /// Bytes.
    pub bytes: usize,
}

/// All requests that are still known.
#[derive(Debug)]
pub struct Outcomes {
    kept: Kept,
    /// Where the request of each key is; its key is read there.
    by_key: HashTable<Position>,
    keyed: Keyed,
    /// Those whose results are kept, or were until their client had them; oldest first.
    with_results: VecDeque<Position>,
    /// Memory that kept results take, bytes.
    results_bytes: usize,
    limits: ResultLimits,
    floor: Position,
}

impl Outcomes {
    /// None known, nothing forgotten. The secret keeps clients from choosing keys that collide.
    pub fn new(limits: ResultLimits, secret: u64) -> Outcomes {
        let (kept, by_key, with_results) = (Kept::default(), HashTable::new(), VecDeque::new());
        Outcomes { kept, by_key, keyed: Keyed(secret), with_results, results_bytes: 0, limits, floor: Position::default() }
    }

    /// A start is under way: all that begins from here on becomes known in the order of its numbers, without a gap.
    pub fn begin(&mut self, position: Position) {
        self.kept.begin(position);
    }

    /// The first position that is still known.
    pub fn floor(&self) -> Position {
        self.floor
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The request under this name.
    pub fn by_key(&self, key: &RequestKey) -> Option<&Known> {
        let at = self.by_key.find(self.keyed.hash_one(key), |at| self.kept.named(*at).known.key == *key)?;
        Some(&self.kept.named(*at).known)
    }

    /// The request of this transaction.
    pub fn by_txid(&self, txid: Txid) -> Option<&Known> {
        self.by_position(txid.position()).filter(|known| known.txid == txid)
    }

    /// The request that began at this position.
    pub fn by_position(&self, position: Position) -> Option<&Known> {
        self.kept.get(position).map(|named| &named.known)
    }

    /// All, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Known> {
        self.kept.iter().map(|named| &named.known)
    }

    /// A request becomes known.
    pub fn insert(&mut self, known: Known) {
        let (position, hash) = (known.txid.position(), self.keyed.hash_one(&known.key));
        let again = broken(Mutation::KeyRunsAgain) || broken(Mutation::AbortedKeyRuns);
        match self.by_key.find_mut(hash, |at| self.kept.named(*at).known.key == known.key) {
            Some(named) => {
                assert!(*named == position || again, "R-KEY: two transactions under one key: {}", known.txid);
                *named = position;
                self.keep(known, hash);
            }
            None => {
                self.keep(known, hash);
                self.by_key.insert_unique(hash, position, |at| self.kept.named(*at).hash);
            }
        }
    }

    /// A transaction becomes known whose key is another's already, and stays so: what clients were told is not taken back.
    pub fn insert_beside(&mut self, known: Known) {
        let hash = self.keyed.hash_one(&known.key);
        self.keep(known, hash);
    }

    /// A running request gets its fate, once and for ever (I2).
    pub fn settle(&mut self, txid: Txid, now: Time, fate: Fate) {
        self.note_results(txid.position(), &fate);
        let Named { known, .. } = self.kept.get_mut(txid.position()).expect("only a known request is settled");
        assert!(matches!(known.fate, Fate::Running), "I2: the outcome of {txid} would be reversed");
        (known.fate, known.settled) = (fate, Some(now));
        self.drop_excess_results();
    }

    /// A transaction that was begun is told what it asks for.
    pub fn identify(&mut self, txid: Txid, hash: u64) {
        let Named { known, .. } = self.kept.get_mut(txid.position()).expect("only a known request is identified");
        assert!(matches!(known.fate, Fate::Running), "R-KEY: {txid} is settled, and would become another request");
        known.hash = hash;
    }

    /// The client has its results.
    pub fn drop_results(&mut self, txid: Txid) {
        self.forget_results(txid.position());
    }

    /// Where the floor may rise to so that at most `max` stay, and none from before `oldest`; never past a running one.
    pub fn next_floor(&self, max: usize, oldest: Time) -> Option<Position> {
        let excess = if self.len() > max { self.len() - max + max / 20 } else { 0 };
        let mut floor = None;
        for (i, known) in self.iter().enumerate() {
            let stays = i >= excess && known.since >= oldest;
            if stays || matches!(known.fate, Fate::Running) {
                break;
            }
            floor = Some(Position { epoch: known.txid.epoch, n: known.txid.n + 1 });
        }
        floor
    }

    /// Forgets everything below; the record that says so is durable.
    pub fn raise_floor(&mut self, floor: Position) {
        for Named { known, hash } in self.kept.below(floor) {
            assert!(!matches!(known.fate, Fate::Running), "the floor passes a running transaction: {}", known.txid);
            // Another's key stays: only one stands under it.
            if let Ok(named) = self.by_key.find_entry(*hash, |at| *at == known.txid.position()) {
                named.remove();
            }
            self.results_bytes -= known.fate.results_bytes();
        }
        self.kept.forget_below(floor);
        self.floor = self.floor.max(floor);
        while self.with_results.front().is_some_and(|position| *position < floor) {
            self.with_results.pop_front();
        }
    }

    fn keep(&mut self, known: Known, hash: u64) {
        let position = known.txid.position();
        assert!(position >= self.floor, "a transaction below the floor becomes known: {}", known.txid);
        self.note_results(position, &known.fate);
        self.kept.insert(Named { known, hash });
        self.drop_excess_results();
    }

    fn note_results(&mut self, position: Position, fate: &Fate) {
        let bytes = fate.results_bytes();
        if bytes > 0 {
            self.with_results.push_back(position);
            self.results_bytes += bytes;
        }
    }

    fn drop_excess_results(&mut self) {
        let over = |kept: &Self| kept.with_results.len() > kept.limits.transactions || kept.results_bytes > kept.limits.bytes;
        // The newest has not even been answered.
        while self.with_results.len() > 1 && over(self) {
            let position = self.with_results.pop_front().expect("more than one");
            self.forget_results(position);
        }
    }

    fn forget_results(&mut self, position: Position) {
        let Some(Named { known, .. }) = self.kept.get_mut(position) else { return };
        let bytes = known.fate.results_bytes();
        if let Some(results) = known.fate.results_mut() {
            *results = None;
        }
        self.results_bytes -= bytes;
    }
}

/// A request, and the hash of its name.
#[derive(Debug)]
struct Named {
    known: Known,
    hash: u64,
}

/// Requests by position.
#[derive(Debug, Default)]
struct Kept {
    /// Of earlier starts.
    earlier: BTreeMap<Position, Named>,
    /// Of this start.
    own: Run,
}

impl Named {
    fn position(&self) -> Position {
        self.known.txid.position()
    }
}

impl Kept {
    fn begin(&mut self, position: Position) {
        assert!(self.own.is_empty(), "one start after the other");
        self.own = Run { epoch: position.epoch, first: position.n, forgotten: 0, chunks: VecDeque::new() };
    }

    fn len(&self) -> usize {
        self.earlier.len() + self.own.len()
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = &Named> {
        self.earlier.values().chain(self.own.iter())
    }

    fn get(&self, position: Position) -> Option<&Named> {
        if position.epoch == self.own.epoch { self.own.get(position.n) } else { self.earlier.get(&position) }
    }

    fn get_mut(&mut self, position: Position) -> Option<&mut Named> {
        if position.epoch == self.own.epoch { self.own.get_mut(position.n) } else { self.earlier.get_mut(&position) }
    }

    /// The one that a key leads to.
    fn named(&self, position: Position) -> &Named {
        self.get(position).expect("a key belongs to a known request")
    }

    fn insert(&mut self, named: Named) {
        let position = named.position();
        if position.epoch == self.own.epoch {
            self.own.push(named);
        } else {
            self.earlier.insert(position, named);
        }
    }

    fn below(&self, floor: Position) -> impl Iterator<Item = &Named> {
        let own = self.own.iter().take_while(move |named| named.position() < floor);
        self.earlier.range(..floor).map(|(_, named)| named).chain(own)
    }

    fn forget_below(&mut self, floor: Position) {
        self.earlier = self.earlier.split_off(&floor);
        self.own.forget_below(floor);
    }
}

/// Requests of one start with consecutive numbers. In chunks: found by arithmetic, and never moved.
#[derive(Debug, Default)]
struct Run {
    epoch: Epoch,
    /// Number of the first in the first chunk.
    first: u64,
    /// How many of the first chunk are forgotten.
    forgotten: usize,
    chunks: VecDeque<Vec<Named>>,
}

impl Run {
    const CHUNK: usize = 1024;

    fn len(&self) -> usize {
        self.chunks.back().map_or(0, |last| (self.chunks.len() - 1) * Run::CHUNK + last.len() - self.forgotten)
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn place(&self, n: u64) -> Option<(usize, usize)> {
        let i = usize::try_from(n.checked_sub(self.first)?).ok()?;
        (i >= self.forgotten).then_some((i / Run::CHUNK, i % Run::CHUNK))
    }

    fn get(&self, n: u64) -> Option<&Named> {
        let (chunk, i) = self.place(n)?;
        self.chunks.get(chunk)?.get(i)
    }

    fn get_mut(&mut self, n: u64) -> Option<&mut Named> {
        let (chunk, i) = self.place(n)?;
        self.chunks.get_mut(chunk)?.get_mut(i)
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = &Named> {
        self.chunks.iter().enumerate().flat_map(|(i, chunk)| chunk[if i == 0 { self.forgotten } else { 0 }..].iter())
    }

    fn push(&mut self, named: Named) {
        let next = self.first + (self.forgotten + self.len()) as u64;
        assert_eq!(named.known.txid.n, next, "transactions of a start become known in their order");
        match self.chunks.back_mut() {
            Some(last) if last.len() < Run::CHUNK => last.push(named),
            _ => {
                let mut chunk = Vec::with_capacity(Run::CHUNK);
                chunk.push(named);
                self.chunks.push_back(chunk);
            }
        }
    }

    fn forget_below(&mut self, floor: Position) {
        let below = if floor.epoch < self.epoch { 0 } else { self.iter().take_while(|named| named.position() < floor).count() };
        self.forgotten += below;
        while self.forgotten >= Run::CHUNK {
            self.chunks.pop_front();
            self.forgotten -= Run::CHUNK;
            self.first += Run::CHUNK as u64;
        }
    }
}

/// Hashes what clients choose, under a secret.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Keyed(pub u64);

impl BuildHasher for Keyed {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Value;

    fn committed(n: u64, bytes: usize) -> Known {
        let result = StatementResult { rows: vec![vec![Value::Text("x".repeat(bytes))]], ..StatementResult::default() };
        let results = Some(vec![(ParticipantId(0), Results::from([result]))]);
        let fate = Fate::Committed(CommittedFate { csn: Csn::new(Epoch(1), n), lsn: None, at_ms: 0, results });
        let key = RequestKey { key: n.to_string().as_bytes().into(), attempt: 1 };
        let txid = Txid { epoch: Epoch(1), n, decider: crate::ids::Decider::Log };
        Known { txid, key, hash: 0, since: Time(0), settled: None, fate }
    }

    /// Of which requests the results are kept.
    fn kept(outcomes: &Outcomes) -> Vec<u64> {
        let has = |known: &&Known| matches!(&known.fate, Fate::Committed(CommittedFate { results: Some(_), .. }));
        outcomes.iter().filter(has).map(|known| known.txid.n).collect()
    }

    #[test]
    fn results_are_kept_by_number_and_by_bytes() {
        let mut outcomes = Outcomes::new(ResultLimits { transactions: 3, bytes: 10_000 }, 7);
        outcomes.begin(Position { epoch: Epoch(1), n: 1 });
        for n in 1..=4 {
            outcomes.insert(committed(n, 100));
        }
        assert_eq!(kept(&outcomes), [2, 3, 4]);
        outcomes.insert(committed(5, 9_000));
        outcomes.insert(committed(6, 9_000));
        assert_eq!(kept(&outcomes), [6]);
        // What a client has, and what lies below the floor, takes nothing any more.
        let has = outcomes.by_position(Position { epoch: Epoch(1), n: 6 }).expect("known").txid;
        outcomes.drop_results(has);
        outcomes.insert(committed(7, 9_000));
        assert_eq!(kept(&outcomes), [7]);
        outcomes.raise_floor(Position { epoch: Epoch(1), n: 8 });
        outcomes.insert(committed(8, 9_000));
        assert_eq!((kept(&outcomes), outcomes.results_bytes), (vec![8], outcomes.iter().map(|known| known.fate.results_bytes()).sum()));
    }
}
