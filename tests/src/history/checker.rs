//! Judges a history. It knows what was promised, and nothing of who promised it:
//!
//! - a transaction is in both stores, on all of its keys, or nowhere; told aborted, nowhere; told committed, everywhere, for ever
//! - each key has one order of writes, the same in both stores; it is the order of CSNs, and who was told committed before another one asked
//!   comes first
//! - a read shows a beginning of that order, never less than an earlier read of the key, than what its token names, or than what was told to be
//!   there
//! - nothing is seen that nobody wrote, twice, or before it was asked for
//!
//! The order of a key is what its row says last. Takes time in proportion to the history's events and the lists in them.

use super::event::{Ask, Document, Event, Happened, Op, SeenDocument, SeenRow, Shown, Store, Told, Write};
use super::order::cycle;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// Findings that are kept; more are counted.
const KEPT: usize = 50;

/// What a history shows.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is wrong, the first so many of each kind.
    pub findings: Vec<Finding>,
    /// How much is wrong in all.
    pub found: usize,
    /// Appends told committed.
    pub committed: usize,
    /// Appends told aborted.
    pub aborted: usize,
    /// Appends of which nobody was told.
    pub unknown: usize,
    /// Appends of which nobody was told, and that happened.
    pub unknown_happened: usize,
    /// Reads that were answered.
    pub reads: usize,
}

/// Something that must not be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Finding {
    /// No history at all.
    #[error("the history itself is wrong at operation {op}: {why}")]
    Malformed {
        /// Where.
        op: Op,
        /// What.
        why: String,
    },
    /// In one place and not in another.
    #[error("torn: {op} is in {there} and not in {missing}")]
    Torn {
        /// The append.
        op: Op,
        /// Where it is.
        there: Place,
        /// Where it is not.
        missing: Place,
    },
    /// It was there, or told committed, and is not there any more.
    #[error("lost: {op} is missing in {missing}: {why}")]
    Lost {
        /// The append.
        op: Op,
        /// Where it is not.
        missing: Place,
        /// How it is known.
        why: String,
    },
    /// A document shows a write that a later one had taken away.
    #[error("resurrected: {missing} shows {op} again, after {by} came behind it")]
    Resurrected {
        /// The append that is seen.
        op: Op,
        /// The one that should be.
        by: Op,
        /// Where.
        missing: Place,
    },
    /// It was told aborted.
    #[error("aborted, and seen: {op}, in {place} by {reader}")]
    AbortedSeen {
        /// The append.
        op: Op,
        /// Where.
        place: Place,
        /// Who saw it.
        reader: Op,
    },
    /// Nobody wrote this there before it was seen.
    #[error("out of nothing: {op}, in {place} by {reader}: {why}")]
    OutOfNothing {
        /// What was seen.
        op: Op,
        /// Where.
        place: Place,
        /// Who saw it.
        reader: Op,
        /// Why nobody can have.
        why: &'static str,
    },
    /// Applied twice.
    #[error("twice: {op}, in {place} by {reader}")]
    Twice {
        /// The append.
        op: Op,
        /// Where.
        place: Place,
        /// Who saw it.
        reader: Op,
    },
    /// Two reads of one row that are not beginnings of one order.
    #[error("two orders of {place}: {reader} saw {seen} where {order} stands at the end")]
    TwoOrders {
        /// Where.
        place: Place,
        /// Who saw it.
        reader: Op,
        /// What it saw.
        seen: Op,
        /// What stands there at the end.
        order: Op,
    },
    /// At the end the stores do not agree.
    #[error("the stores differ at `{key}`: the row ends with {row}, the document shows {document}", document = Shows(.document))]
    StoresDiffer {
        /// The key.
        key: String,
        /// The row's last write.
        row: Op,
        /// The document's.
        document: Option<Op>,
    },
    /// The order is not that of time.
    #[error("out of time: {earlier} was told committed before {later} was asked for, and comes behind it ({at})")]
    OutOfTime {
        /// Told first.
        earlier: Op,
        /// Asked afterwards.
        later: Op,
        /// In which order.
        at: String,
    },
    /// The order is not that of CSNs.
    #[error("CSNs against the order of `{key}`: {first} has {first_csn}, and {second} behind it has {second_csn}")]
    CsnOrder {
        /// The key.
        key: String,
        /// The first of the two.
        first: Op,
        /// Its CSN.
        first_csn: u64,
        /// The second.
        second: Op,
        /// Its CSN.
        second_csn: u64,
    },
    /// One CSN was told for two.
    #[error("two of one CSN: {first} and {second} were told committed at {csn}")]
    CsnTwice {
        /// Their CSN.
        csn: u64,
        /// The one.
        first: Op,
        /// The other.
        second: Op,
    },
    /// A document has not the version of its last write.
    #[error("{reader} saw {op} with version {seen}, and its CSN is {csn}")]
    WrongVersion {
        /// The append.
        op: Op,
        /// Its CSN.
        csn: u64,
        /// The version seen.
        seen: u64,
        /// Who saw it.
        reader: Op,
    },
    /// A write under a condition came behind one that it did not know.
    #[error(
        "lost update of `{key}`: {op} was written on the condition that nothing came between, and knows {knew} of {before} writes before it"
    )]
    LostUpdate {
        /// The key.
        key: String,
        /// The append.
        op: Op,
        /// How many it knew, up to the first difference.
        knew: usize,
        /// How many there were.
        before: usize,
    },
    /// A read shows less than it must.
    #[error("stale: {reader} saw {seen} writes of {place}, and must have seen {least}: {why}")]
    Stale {
        /// The read.
        reader: Op,
        /// Where.
        place: Place,
        /// What it saw.
        seen: usize,
        /// What it must have seen.
        least: usize,
        /// Why.
        why: Why,
    },
    /// A read of one instant shows a part of a transaction.
    #[error("fractured: {reader} saw {op} in {there} and not in {missing}")]
    Fractured {
        /// The read.
        reader: Op,
        /// The append.
        op: Op,
        /// Where it was.
        there: Place,
        /// Where it was not.
        missing: Place,
    },
    /// No order of everything explains what was seen.
    #[error("no order: each of {ops:?} comes before the next, and the last before the first ({what})")]
    Cycle {
        /// Appends and reads.
        ops: Vec<Op>,
        /// Of which orders.
        what: &'static str,
    },
    /// Told two things.
    #[error("{op} was told {first}, and then {second}")]
    TwoOutcomes {
        /// The append.
        op: Op,
        /// At first.
        first: String,
        /// Later.
        second: String,
    },
}

/// A key in a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Which store.
    pub store: Store,
    /// Which key.
    pub key: String,
}

/// Why a read must have seen so much.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// It was told to be there, or an earlier read had seen it.
    Earlier,
    /// It came with a token.
    Token,
}

/// Judges it.
pub fn check(history: &[Happened]) -> Report {
    let mut checker = Checker::default();
    checker.collect(history);
    checker.choose_orders(history);
    checker.observations(history);
    checker.outcomes();
    checker.conditions();
    checker.csns();
    checker.time();
    checker.reads_in_time(history);
    checker.graphs(history);
    checker.report
}

#[derive(Default)]
struct Checker<'a> {
    report: Report,
    appends: HashMap<Op, Append<'a>>,
    reads: HashMap<Op, Read<'a>>,
    keys: BTreeMap<&'a str, Key>,
    last_documents: HashMap<&'a str, (Op, &'a SeenDocument)>,
}

struct Append<'a> {
    writes: &'a [Write],
    invoked: usize,
    outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Open,
    Committed { at: usize, csn: u64, shown: Shown },
    Aborted,
}

struct Read<'a> {
    store: Store,
    keys: &'a [String],
    at_least: Option<Op>,
    snapshot: bool,
    last: bool,
}

/// The order of a key.
#[derive(Default)]
struct Key {
    order: Vec<Op>,
    positions: HashMap<Op, usize>,
    /// Nothing more will come: it was read at rest.
    complete: bool,
    /// At each position the newest CSN known up to there.
    csns: Vec<u64>,
}

impl<'a> Checker<'a> {
    fn collect(&mut self, history: &'a [Happened]) {
        let mut asking: HashMap<u32, Op> = HashMap::new();
        let mut processes: HashMap<Op, u32> = HashMap::new();
        for (at, happened) in history.iter().enumerate() {
            match &happened.event {
                Event::Invoke { op, process, ask } => {
                    if self.appends.contains_key(op) || self.reads.contains_key(op) {
                        self.malformed(*op, "its number is taken");
                    }
                    if asking.insert(*process, *op).is_some() {
                        self.malformed(*op, "its process still waits for another answer");
                    }
                    processes.insert(*op, *process);
                    match ask {
                        Ask::Append { writes } => {
                            self.appends.insert(*op, Append { writes, invoked: at, outcome: Outcome::Open });
                        }
                        Ask::Read { store, keys, at_least, snapshot, last } => {
                            let (store, at_least, snapshot, last) = (*store, *at_least, *snapshot, *last);
                            self.reads.insert(*op, Read { store, keys, at_least, snapshot, last });
                        }
                    }
                }
                Event::Told { op, told } => {
                    if let Some(process) = processes.get(op)
                        && asking.get(process) == Some(op)
                    {
                        asking.remove(process);
                    }
                    self.told(*op, told, at);
                }
            }
        }
        for append in self.appends.values() {
            match append.outcome {
                Outcome::Committed { .. } => self.report.committed += 1,
                Outcome::Aborted => self.report.aborted += 1,
                Outcome::Open => self.report.unknown += 1,
            }
        }
    }

    fn told(&mut self, op: Op, told: &'a Told, at: usize) {
        match told {
            Told::Committed { csn, shown, .. } => self.outcome(op, Outcome::Committed { at, csn: *csn, shown: *shown }),
            Told::Aborted { .. } => self.outcome(op, Outcome::Aborted),
            Told::Unknown { .. } => {}
            Told::Rows { rows } => match self.reads.get(&op) {
                Some(read) if read.store == Store::Rows && same(read.keys, rows.iter().map(|row| &row.key)) => self.report.reads += 1,
                _ => self.malformed(op, "it is told rows that it did not ask for"),
            },
            Told::Documents { documents } => match self.reads.get(&op) {
                Some(read) if read.store != Store::Rows && same(read.keys, documents.iter().map(|document| &document.key)) => {
                    self.report.reads += 1;
                }
                _ => self.malformed(op, "it is told documents that it did not ask for"),
            },
        }
    }

    fn outcome(&mut self, op: Op, outcome: Outcome) {
        let Some(append) = self.appends.get_mut(&op) else { return self.malformed(op, "an outcome of what is no append") };
        let differs = match (append.outcome, outcome) {
            (Outcome::Open, _) => {
                append.outcome = outcome;
                false
            }
            (Outcome::Committed { csn: first, .. }, Outcome::Committed { csn: second, .. }) => first != second,
            (first, second) => first != second,
        };
        if differs {
            let (first, second) = (append.outcome.to_string(), outcome.to_string());
            self.found(Finding::TwoOutcomes { op, first, second });
        }
    }

    /// The last read at rest; where there is none, the longest list that anybody saw.
    fn choose_orders(&mut self, history: &'a [Happened]) {
        let mut longest: HashMap<&str, &[Op]> = HashMap::new();
        let mut at_rest: HashMap<&str, &[Op]> = HashMap::new();
        for happened in history {
            let Event::Told { op, told } = &happened.event else { continue };
            let last = self.reads.get(op).is_some_and(|read| read.last);
            match told {
                Told::Committed { rows, .. } | Told::Rows { rows } => {
                    for row in rows {
                        let known = longest.entry(&row.key).or_default();
                        if row.list.len() > known.len() {
                            *known = &row.list;
                        }
                        if last {
                            at_rest.insert(&row.key, &row.list);
                        }
                    }
                }
                Told::Documents { documents } if last => {
                    for document in documents {
                        self.last_documents.insert(&document.key, (*op, document));
                    }
                }
                Told::Documents { .. } | Told::Aborted { .. } | Told::Unknown { .. } => {}
            }
        }
        for (key, longest) in longest {
            let (list, complete) = at_rest.get(key).map_or((longest, false), |list| (*list, true));
            let positions = list.iter().enumerate().map(|(position, op)| (*op, position)).collect();
            self.keys.insert(key, Key { order: list.to_vec(), positions, complete, csns: Vec::new() });
        }
    }

    /// Each of them alone: is it a beginning of the order, and can it be?
    fn observations(&mut self, history: &'a [Happened]) {
        for (at, happened) in history.iter().enumerate() {
            let Event::Told { op, told } = &happened.event else { continue };
            let snapshot = self.reads.get(op).is_some_and(|read| read.snapshot);
            match told {
                Told::Committed { rows, .. } => {
                    for row in rows {
                        self.list(*op, row, at);
                        if row.list.last() != Some(op) {
                            let missing = Place::row(&row.key);
                            self.found(Finding::Lost { op: *op, missing, why: "the transaction itself did not see it as the last".into() });
                        }
                    }
                    self.fractured_rows(*op, rows);
                }
                Told::Rows { rows } => {
                    rows.iter().for_each(|row| self.list(*op, row, at));
                    if snapshot {
                        self.fractured_rows(*op, rows);
                    }
                }
                Told::Documents { documents } => {
                    documents.iter().for_each(|document| self.document(*op, document, at));
                    if snapshot {
                        self.fractured_documents(*op, documents);
                    }
                }
                Told::Aborted { .. } | Told::Unknown { .. } => {}
            }
        }
    }

    fn list(&mut self, reader: Op, row: &SeenRow, at: usize) {
        let place = Place::row(&row.key);
        let mut seen = HashSet::with_capacity(row.list.len());
        for &op in &row.list {
            if !seen.insert(op) {
                self.found(Finding::Twice { op, place: place.clone(), reader });
            }
            self.can_be_seen(op, &place, reader, at);
        }
        let key = &self.keys[row.key.as_str()];
        let differs = row.list.iter().zip(&key.order).find(|(seen, order)| seen != order).map(|(seen, order)| (*seen, *order));
        match differs {
            Some((seen, order)) if key.positions.contains_key(&seen) => self.found(Finding::TwoOrders { place, reader, seen, order }),
            Some((op, _)) => self.lost_since(op, place, reader),
            None if row.list.len() > key.order.len() => {
                let op = row.list[key.order.len()];
                self.lost_since(op, place, reader);
            }
            None => {}
        }
    }

    fn lost_since(&mut self, op: Op, missing: Place, reader: Op) {
        self.found(Finding::Lost { op, missing, why: format!("{reader} saw it there") });
    }

    fn document(&mut self, reader: Op, document: &SeenDocument, at: usize) {
        let place = Place::document(&document.key);
        let Some(op) = document.last else { return };
        if !self.can_be_seen(op, &place, reader, at) {
            return;
        }
        let append = &self.appends[&op];
        let does = append.writes.iter().find(|write| write.key == document.key).map(|write| write.document);
        if does == Some(Document::Delete) {
            return self.found(Finding::OutOfNothing { op, place, reader, why: "it deletes the document" });
        }
        if let Outcome::Committed { csn, .. } = append.outcome
            && csn != document.csn
        {
            self.found(Finding::WrongVersion { op, csn, seen: document.csn, reader });
        }
        let Some(key) = self.keys.get(document.key.as_str()) else { return };
        let Some(&position) = key.positions.get(&op) else {
            if key.complete {
                self.found(Finding::Torn { op, there: place, missing: Place::row(&document.key) });
            }
            return;
        };
        if let Some(list) = &document.list
            && does == Some(Document::Based)
        {
            let before = &key.order[..=position];
            let knew = list.iter().zip(before).take_while(|(knew, was)| knew == was).count();
            if knew != before.len() || list.len() != before.len() {
                let key = document.key.clone();
                self.found(Finding::LostUpdate { key, op, knew: knew.min(position), before: position });
            }
        }
    }

    /// Somebody wrote it there, had asked before it was seen, and was not told that it is aborted.
    fn can_be_seen(&mut self, op: Op, place: &Place, reader: Op, at: usize) -> bool {
        let nothing = |why| Finding::OutOfNothing { op, place: place.clone(), reader, why };
        let finding = match self.appends.get(&op) {
            None => nothing("there is no such append"),
            Some(append) if !append.writes.iter().any(|write| write.key == place.key) => nothing("it does not write this key"),
            Some(append) if append.invoked > at => nothing("it was asked for later"),
            Some(Append { outcome: Outcome::Aborted, .. }) => Finding::AbortedSeen { op, place: place.clone(), reader },
            Some(_) => return true,
        };
        self.found(finding);
        false
    }

    fn fractured_rows(&mut self, reader: Op, rows: &[SeenRow]) {
        if rows.len() < 2 {
            return;
        }
        let lengths: HashMap<&str, usize> = rows.iter().map(|row| (row.key.as_str(), row.list.len())).collect();
        for row in rows {
            for op in &row.list {
                let Some(append) = self.appends.get(op) else { continue };
                let missing = append.writes.iter().find(|write| {
                    let position = self.keys.get(write.key.as_str()).and_then(|key| key.positions.get(op));
                    lengths.get(write.key.as_str()).zip(position).is_some_and(|(length, position)| position >= length)
                });
                if let Some(write) = missing {
                    let (there, missing) = (Place::row(&row.key), Place::row(&write.key));
                    return self.found(Finding::Fractured { reader, op: *op, there, missing });
                }
            }
        }
    }

    fn fractured_documents(&mut self, reader: Op, documents: &[SeenDocument]) {
        for document in documents {
            let Some(append) = document.last.and_then(|op| self.appends.get(&op)) else { continue };
            let op = document.last.expect("just seen");
            for write in append.writes.iter().filter(|write| write.key != document.key) {
                let Some(other) = documents.iter().find(|other| other.key == write.key) else { continue };
                let Some(key) = self.keys.get(write.key.as_str()) else { continue };
                let Some(position) = key.positions.get(&op) else { continue };
                if self.shows(other).is_some() && self.least(other, position + 1).is_none() {
                    let (there, missing) = (Place::document(&document.key), Place::document(&write.key));
                    return self.found(Finding::Fractured { reader, op, there, missing });
                }
            }
        }
    }

    /// How many writes of its key it shows at least, if it shows not less than `floor`; nothing if it does.
    fn least(&self, document: &SeenDocument, floor: usize) -> Option<usize> {
        let key = self.keys.get(document.key.as_str())?;
        match document.last {
            Some(op) => key.positions.get(&op).map(|position| position + 1).filter(|length| *length >= floor),
            None if floor == 0 => Some(0),
            None => {
                let known = (floor..=key.order.len()).find(|length| self.deletes(key.order[length - 1], &document.key));
                known.or_else(|| self.may_be_deleted(&document.key).then_some(floor))
            }
        }
    }

    /// Whether somebody wanted to delete it, and nobody could find out at the rows whether it happened.
    fn may_be_deleted(&self, name: &str) -> bool {
        let Some(key) = self.keys.get(name).filter(|key| !key.complete) else { return false };
        let open = |op: &Op, append: &Append| append.outcome == Outcome::Open && !key.positions.contains_key(op);
        self.appends.iter().any(|(op, append)| open(op, append) && self.deletes(*op, name))
    }

    /// How many writes of its key it shows at least; nothing if that is not known.
    fn shows(&self, document: &SeenDocument) -> Option<usize> {
        let key = self.keys.get(document.key.as_str())?;
        document.last.map_or(Some(0), |op| key.positions.get(&op).map(|position| position + 1))
    }

    fn deletes(&self, op: Op, key: &str) -> bool {
        let Some(append) = self.appends.get(&op) else { return false };
        append.writes.iter().any(|write| write.key == key && write.document == Document::Delete)
    }

    /// Everywhere or nowhere, as it was told.
    fn outcomes(&mut self) {
        let mut findings = Vec::new();
        let mut happened = 0;
        let mut ops: Vec<&Op> = self.appends.keys().collect();
        ops.sort_unstable();
        for &op in ops {
            let append = &self.appends[&op];
            let is_there = |write: &&Write| self.keys.get(write.key.as_str()).is_some_and(|key| key.positions.contains_key(&op));
            let there = append.writes.iter().find(is_there);
            let is_missing = |write: &&Write| self.keys.get(write.key.as_str()).is_some_and(|key| key.complete) && !is_there(write);
            let missing = append.writes.iter().find(is_missing);
            if append.outcome == Outcome::Open && there.is_some() {
                happened += 1;
            }
            match (there, missing, append.outcome) {
                (Some(there), Some(missing), _) => {
                    findings.push(Finding::Torn { op, there: Place::row(&there.key), missing: Place::row(&missing.key) });
                }
                (None, Some(missing), Outcome::Committed { csn, .. }) => {
                    let why = format!("it was told committed (CSN {csn})");
                    findings.push(Finding::Lost { op, missing: Place::row(&missing.key), why });
                }
                (_, _, Outcome::Open | Outcome::Aborted | Outcome::Committed { .. }) => {}
            }
        }
        for (&name, key) in self.keys.iter().filter(|(_, key)| key.complete) {
            let (Some(&(_, document)), Some(&row)) = (self.last_documents.get(name), key.order.last()) else { continue };
            let expected = Some(row).filter(|row| !self.deletes(*row, name));
            let position = document.last.and_then(|op| key.positions.get(&op));
            match (document.last, expected) {
                (last, expected) if last == expected => {}
                (Some(op), None) if position.is_some() => {
                    findings.push(Finding::Resurrected { op, by: row, missing: Place::document(name) });
                }
                (document, _) => findings.push(Finding::StoresDiffer { key: name.into(), row, document }),
            }
        }
        self.report.unknown_happened = happened;
        findings.into_iter().for_each(|finding| self.found(finding));
    }

    /// What a write under a condition at the index alone had read is what stands before it in its row.
    fn conditions(&mut self) {
        let mut findings = Vec::new();
        for (&name, key) in &self.keys {
            for (before, &op) in key.order.iter().enumerate() {
                let write = self.appends.get(&op).and_then(|append| append.writes.iter().find(|write| write.key == name));
                let Some(Write { document: Document::After { last }, .. }) = write else { continue };
                let direct = before.checked_sub(1).map(|at| key.order[at]);
                let holds = match (last, direct) {
                    (Some(last), direct) => Some(*last) == direct,
                    (None, Some(direct)) => self.deletes(direct, name),
                    (None, None) => true,
                };
                if !holds {
                    let knew = last.and_then(|last| key.positions.get(&last)).map_or(0, |position| position + 1);
                    findings.push(Finding::LostUpdate { key: name.into(), op, knew, before });
                }
            }
        }
        findings.into_iter().for_each(|finding| self.found(finding));
    }

    /// They go up along every key's order.
    fn csns(&mut self) {
        let mut findings = Vec::new();
        for (&name, key) in &mut self.keys {
            let mut before: Option<(Op, u64)> = None;
            for &op in &key.order {
                if let Some(Append { outcome: Outcome::Committed { csn, .. }, .. }) = self.appends.get(&op) {
                    if let Some((first, first_csn)) = before
                        && first_csn >= *csn
                    {
                        findings.push(Finding::CsnOrder { key: name.into(), first, first_csn, second: op, second_csn: *csn });
                    }
                    before = Some((op, *csn));
                }
                key.csns.push(before.map_or(0, |(_, csn)| csn));
            }
        }
        let told = |(op, append): (&Op, &Append<'_>)| match append.outcome {
            Outcome::Committed { csn, .. } => Some((csn, *op)),
            Outcome::Open | Outcome::Aborted => None,
        };
        let mut told: Vec<(u64, Op)> = self.appends.iter().filter_map(told).collect();
        told.sort_unstable();
        for pair in told.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            findings.push(Finding::CsnTwice { csn: pair[0].0, first: pair[0].1, second: pair[1].1 });
        }
        findings.into_iter().for_each(|finding| self.found(finding));
    }

    /// Who was told before another one asked comes first: on every key, and in the order of CSNs.
    fn time(&mut self) {
        let mut findings = Vec::new();
        for (name, key) in &self.keys {
            let mut earliest: Option<(usize, Op)> = None;
            for &op in key.order.iter().rev() {
                let Some(append) = self.appends.get(&op) else { continue };
                if let Some((at, earlier)) = earliest
                    && at < append.invoked
                {
                    findings.push(Finding::OutOfTime { earlier, later: op, at: format!("in `{name}`") });
                }
                if let Outcome::Committed { at, .. } = append.outcome
                    && earliest.is_none_or(|(earliest, _)| at < earliest)
                {
                    earliest = Some((at, op));
                }
            }
        }
        let mut moments: Vec<(usize, Op, u64, bool)> = Vec::with_capacity(2 * self.appends.len());
        for (&op, append) in &self.appends {
            if let Outcome::Committed { at, csn, .. } = append.outcome {
                moments.push((append.invoked, op, csn, true));
                moments.push((at, op, csn, false));
            }
        }
        moments.sort_unstable();
        let mut highest: Option<(u64, Op)> = None;
        for (_, op, csn, asks) in moments {
            if let Some((above, earlier)) = highest
                && asks
                && above > csn
            {
                findings.push(Finding::OutOfTime { earlier, later: op, at: "by CSN".into() });
            }
            if !asks && highest.is_none_or(|(highest, _)| csn > highest) {
                highest = Some((csn, op));
            }
        }
        findings.into_iter().for_each(|finding| self.found(finding));
    }

    /// What is known to be in a store when a read is asked for, it shows.
    fn reads_in_time(&mut self, history: &'a [Happened]) {
        let mut floors: HashMap<(Store, &str), usize> = HashMap::new();
        let mut asked: HashMap<Op, Vec<usize>> = HashMap::new();
        let mut findings = Vec::new();
        for happened in history {
            match &happened.event {
                Event::Invoke { op, ask: Ask::Read { store, keys, .. }, .. } => {
                    let known = keys.iter().map(|key| floors.get(&(*store, key.as_str())).copied().unwrap_or(0)).collect();
                    asked.insert(*op, known);
                }
                Event::Invoke { .. } | Event::Told { told: Told::Aborted { .. } | Told::Unknown { .. }, .. } => {}
                Event::Told { op, told: Told::Committed { shown, .. } } => {
                    let Some(append) = self.appends.get(op) else { continue };
                    for write in append.writes {
                        let position = self.keys.get(write.key.as_str()).and_then(|key| key.positions.get(op));
                        let Some(position) = position else { continue };
                        for (store, least) in [(Store::Rows, Shown::Rows), (Store::Documents, Shown::Both), (Store::Found, Shown::Both)] {
                            if *shown >= least {
                                raise(&mut floors, store, &write.key, position + 1);
                            }
                        }
                    }
                }
                Event::Told { op, told: Told::Rows { rows } } => {
                    let Some(read) = self.reads.get(op) else { continue };
                    let known = asked.remove(op).unwrap_or_default();
                    for row in rows {
                        let floor = read.keys.iter().zip(&known).find(|(key, _)| **key == row.key).map_or(0, |(_, floor)| *floor);
                        let token = self.token(read, &row.key);
                        let seen = row.list.len();
                        for (least, why) in [(floor, Why::Earlier), (token, Why::Token)] {
                            if seen < least {
                                findings.push(Finding::Stale { reader: *op, place: Place::row(&row.key), seen, least, why });
                            }
                        }
                        raise(&mut floors, Store::Rows, &row.key, seen.min(self.length(&row.key)));
                    }
                }
                Event::Told { op, told: Told::Documents { documents } } => {
                    let Some(read) = self.reads.get(op) else { continue };
                    let known = asked.remove(op).unwrap_or_default();
                    for document in documents {
                        let Some(shows) = self.shows(document) else { continue };
                        let floor = read.keys.iter().zip(&known).find(|(key, _)| **key == document.key).map_or(0, |(_, floor)| *floor);
                        let token = self.token(read, &document.key);
                        for (least, why) in [(floor, Why::Earlier), (token, Why::Token)] {
                            if self.least(document, least).is_none() {
                                let place = Place::document(&document.key);
                                findings.push(Finding::Stale { reader: *op, place, seen: shows, least, why });
                            }
                        }
                        let now = self.least(document, floor.max(token)).unwrap_or(shows);
                        raise(&mut floors, Store::Documents, &document.key, now);
                        if read.store == Store::Found {
                            raise(&mut floors, Store::Found, &document.key, now);
                        }
                    }
                }
            }
        }
        findings.into_iter().for_each(|finding| self.found(finding));
    }

    /// How many writes of the key a read with this token shows at least: everything up to the token's CSN.
    fn token(&self, read: &Read<'_>, key: &str) -> usize {
        let append = read.at_least.and_then(|op| Some((op, self.appends.get(&op)?)));
        let (Some((op, append)), Some(key)) = (append, self.keys.get(key)) else { return 0 };
        let own = key.positions.get(&op).map_or(0, |position| position + 1);
        let Outcome::Committed { csn, .. } = append.outcome else { return own };
        // Behind the last one that is known to be below, there may be some of which nobody was told: those need not be.
        let below = key.csns.partition_point(|known| *known <= csn);
        let told = |op: &Op| matches!(self.appends.get(op), Some(Append { outcome: Outcome::Committed { .. }, .. }));
        let below = key.order[..below].iter().rposition(told).map_or(0, |position| position + 1);
        own.max(below)
    }

    fn length(&self, key: &str) -> usize {
        self.keys.get(key).map_or(0, |key| key.order.len())
    }

    /// All orders together: of every key with that of time, and of every key with what reads of one instant saw.
    fn graphs(&mut self, history: &'a [Happened]) {
        let mut nodes: Vec<Op> = self.appends.keys().copied().collect();
        nodes.sort_unstable();
        let mut numbers: HashMap<Op, u32> = nodes.iter().enumerate().map(|(number, op)| (*op, number as u32)).collect();
        let mut orders = Vec::new();
        for key in self.keys.values() {
            let known: Vec<u32> = key.order.iter().filter_map(|op| numbers.get(op).copied()).collect();
            orders.extend(known.windows(2).map(|pair| (pair[0], pair[1])));
        }
        // A node for each moment at which somebody was told: all that was told before it comes before all that is asked for after it.
        let (mut edges, mut count, mut moment) = (orders.clone(), nodes.len() as u32, None);
        for (at, happened) in history.iter().enumerate() {
            let op = happened.event.op();
            let Some(append) = self.appends.get(&op) else { continue };
            match append.outcome {
                Outcome::Committed { at: told, .. } if told == at => {
                    edges.extend(moment.map(|moment| (moment, count)));
                    edges.push((numbers[&op], count));
                    moment = Some(count);
                    count += 1;
                }
                Outcome::Committed { .. } | Outcome::Open if append.invoked == at => {
                    edges.extend(moment.map(|moment| (moment, numbers[&op])));
                }
                Outcome::Committed { .. } | Outcome::Open | Outcome::Aborted => {}
            }
        }
        let name = |cycle: Vec<u32>, nodes: &[Op]| cycle.iter().filter_map(|node| nodes.get(*node as usize).copied()).collect();
        if let Some(cycle) = cycle(count as usize, &edges) {
            self.found(Finding::Cycle { ops: name(cycle, &nodes), what: "of keys and of time" });
        }
        let mut edges = orders;
        for happened in history {
            let Event::Told { op: reader, told: Told::Rows { rows } } = &happened.event else { continue };
            if !self.reads.get(reader).is_some_and(|read| read.snapshot) || numbers.contains_key(reader) {
                continue;
            }
            let number = nodes.len() as u32;
            nodes.push(*reader);
            numbers.insert(*reader, number);
            for row in rows {
                let order = &self.keys[row.key.as_str()].order;
                let seen = row.list.len().min(order.len());
                edges.extend(order[..seen].last().and_then(|op| numbers.get(op)).map(|op| (*op, number)));
                edges.extend(order.get(seen).and_then(|op| numbers.get(op)).map(|op| (number, *op)));
            }
        }
        if let Some(cycle) = cycle(nodes.len(), &edges) {
            self.found(Finding::Cycle { ops: name(cycle, &nodes), what: "of keys and of what was read" });
        }
    }

    fn malformed(&mut self, op: Op, why: &str) {
        self.found(Finding::Malformed { op, why: why.into() });
    }

    fn found(&mut self, finding: Finding) {
        self.report.found += 1;
        if self.report.findings.len() < KEPT && !self.report.findings.contains(&finding) {
            self.report.findings.push(finding);
        }
    }
}

fn raise<'a>(floors: &mut HashMap<(Store, &'a str), usize>, store: Store, key: &'a str, to: usize) {
    let floor = floors.entry((store, key)).or_default();
    *floor = (*floor).max(to);
}

fn same<'a>(asked: &[String], told: impl ExactSizeIterator<Item = &'a String>) -> bool {
    asked.len() == told.len() && told.zip(asked).all(|(told, asked)| told == asked)
}

impl Place {
    /// In the database.
    pub fn row(key: &str) -> Place {
        Place { store: Store::Rows, key: key.into() }
    }

    /// In the index.
    pub fn document(key: &str) -> Place {
        Place { store: Store::Documents, key: key.into() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.store {
            Store::Rows => write!(f, "row `{}`", self.key),
            Store::Documents => write!(f, "document `{}`", self.key),
            Store::Found => write!(f, "search for document `{}`", self.key),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Earlier => "it was told, or seen, to be there before",
            Why::Token => "its token says so",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Open => f.write_str("nothing"),
            Outcome::Committed { csn, .. } => write!(f, "committed (CSN {csn})"),
            Outcome::Aborted => f.write_str("aborted"),
        }
    }
}

/// A document's last write, or that there is none.
struct Shows<'a>(&'a Option<Op>);

impl fmt::Display for Shows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(op) => write!(f, "{op}"),
            None => f.write_str("nothing"),
        }
    }
}
