//! The checker of histories: it takes every good history, and finds in each bad one what is bad.

use Document::{After, Based, Delete, Put};
use lockstep_tests::history::{
    Ask, Document, Event, Finding, Happened, Op, Recorder, Report, SeenDocument, SeenRow, Shown, Store, Told, Write, check,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// A history written by hand. Every operation has a process of its own.
#[derive(Default)]
struct Story(Vec<Happened>);

impl Story {
    fn event(mut self, event: Event) -> Story {
        self.0.push(Happened { at_us: self.0.len() as u64, event });
        self
    }

    fn asks(self, op: Op, keys: &[(&str, Document)]) -> Story {
        let writes = keys.iter().map(|(key, document)| Write { key: key.to_string(), document: *document }).collect();
        self.event(Event::Invoke { op, process: op as u32, ask: Ask::Append { writes } })
    }

    fn told(self, op: Op, told: Told) -> Story {
        self.event(Event::Told { op, told })
    }

    fn committed(self, op: Op, csn: u64) -> Story {
        self.told(op, Told::Committed { csn, shown: Shown::Nowhere, rows: Vec::new() })
    }

    fn shown(self, op: Op, csn: u64, shown: Shown) -> Story {
        self.told(op, Told::Committed { csn, shown, rows: Vec::new() })
    }

    fn aborted(self, op: Op) -> Story {
        self.told(op, Told::Aborted { why: "a conflict".into() })
    }

    fn unknown(self, op: Op) -> Story {
        self.told(op, Told::Unknown { why: "no answer".into() })
    }

    /// A put of one key, told committed with its number as CSN.
    fn put(self, op: Op, key: &str) -> Story {
        self.asks(op, &[(key, Put)]).committed(op, op)
    }

    fn asks_rows(self, op: Op, keys: &[&str], at_least: Option<Op>, last: bool) -> Story {
        let keys = keys.iter().map(|key| key.to_string()).collect();
        self.event(Event::Invoke { op, process: op as u32, ask: Ask::Read { store: Store::Rows, keys, at_least, snapshot: true, last } })
    }

    fn asks_documents(self, op: Op, keys: &[&str], at_least: Option<Op>, last: bool) -> Story {
        let keys = keys.iter().map(|key| key.to_string()).collect();
        let ask = Ask::Read { store: Store::Documents, keys, at_least, snapshot: true, last };
        self.event(Event::Invoke { op, process: op as u32, ask })
    }

    fn rows(self, op: Op, lists: &[(&str, &[Op])]) -> Story {
        let rows = lists.iter().map(|(key, list)| row(key, list)).collect();
        self.told(op, Told::Rows { rows })
    }

    /// Their CSNs are the numbers of their last writes.
    fn documents(self, op: Op, seen: &[(&str, Option<Op>)]) -> Story {
        let documents = seen.iter().map(|(key, last)| document(key, *last)).collect();
        self.told(op, Told::Documents { documents })
    }

    fn reads_rows(self, op: Op, lists: &[(&str, &[Op])]) -> Story {
        let keys: Vec<&str> = lists.iter().map(|(key, _)| *key).collect();
        self.asks_rows(op, &keys, None, false).rows(op, lists)
    }

    fn reads_documents(self, op: Op, seen: &[(&str, Option<Op>)]) -> Story {
        let keys: Vec<&str> = seen.iter().map(|(key, _)| *key).collect();
        self.asks_documents(op, &keys, None, false).documents(op, seen)
    }

    /// A search that a read by key may be ahead of.
    fn searches(self, op: Op, seen: &[(&str, Option<Op>)]) -> Story {
        let keys = seen.iter().map(|(key, _)| key.to_string()).collect();
        let ask = Ask::Read { store: Store::Found, keys, at_least: None, snapshot: false, last: false };
        self.event(Event::Invoke { op, process: op as u32, ask }).documents(op, seen)
    }

    /// What is there at rest.
    fn ends(self, lists: &[(&str, &[Op])], seen: &[(&str, Option<Op>)]) -> Story {
        let keys: Vec<&str> = lists.iter().map(|(key, _)| *key).collect();
        let story = self.asks_rows(900, &keys, None, true).rows(900, lists);
        let keys: Vec<&str> = seen.iter().map(|(key, _)| *key).collect();
        story.asks_documents(901, &keys, None, true).documents(901, seen)
    }

    #[track_caller]
    fn is_good(self) -> Report {
        let report = check(&self.0);
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
        report
    }

    #[track_caller]
    fn is_bad(self, found: fn(&Finding) -> bool) {
        let report = check(&self.0);
        assert!(report.findings.iter().any(found), "{:#?}", report.findings);
    }

    /// Bad, and nothing else is said of it.
    #[track_caller]
    fn is_only(self, found: fn(&Finding) -> bool) {
        let report = check(&self.0);
        assert!(!report.findings.is_empty() && report.findings.iter().all(found), "{:#?}", report.findings);
    }
}

fn row(key: &str, list: &[Op]) -> SeenRow {
    SeenRow { key: key.into(), list: list.to_vec() }
}

fn document(key: &str, last: Option<Op>) -> SeenDocument {
    SeenDocument { key: key.into(), last, csn: last.unwrap_or(0), list: None }
}

fn story() -> Story {
    Story::default()
}

#[test]
fn good_ones() {
    story().is_good();
    story().ends(&[("x", &[])], &[("x", None)]).is_good();
    story().put(1, "x").put(2, "x").ends(&[("x", &[1, 2])], &[("x", Some(2))]).is_good();
    // Beside each other, in either order.
    let both = |first, second| story().asks(1, &[("x", Put)]).asks(2, &[("x", Put)]).committed(1, first).committed(2, second);
    both(1, 2).ends(&[("x", &[1, 2])], &[("x", Some(2))]).is_good();
    let swapped = [SeenDocument { csn: 4, ..document("x", Some(1)) }];
    let story_ = both(4, 2).asks_rows(900, &["x"], None, true).rows(900, &[("x", &[2, 1])]);
    story_.asks_documents(901, &["x"], None, true).told(901, Told::Documents { documents: swapped.into() }).is_good();
    // Deleted at the end, and in between.
    story().put(1, "x").asks(2, &[("x", Delete)]).committed(2, 2).ends(&[("x", &[1, 2])], &[("x", None)]).is_good();
    let between = story().put(1, "x").asks(2, &[("x", Delete)]).committed(2, 2).reads_documents(3, &[("x", None)]).put(4, "x");
    between.ends(&[("x", &[1, 2, 4])], &[("x", Some(4))]).is_good();
}

#[test]
fn an_unknown_may_have_happened_or_not() {
    let asked = || story().put(1, "x").asks(2, &[("x", Put), ("y", Put)]).unknown(2);
    asked().ends(&[("x", &[1]), ("y", &[])], &[("x", Some(1)), ("y", None)]).is_good();
    let report = asked().ends(&[("x", &[1, 2]), ("y", &[2])], &[("x", Some(2)), ("y", Some(2))]).is_good();
    assert_eq!((report.unknown, report.unknown_happened), (1, 1));
    // Late: after others that were asked for afterwards.
    asked().put(3, "x").ends(&[("x", &[1, 3, 2]), ("y", &[2])], &[("x", Some(2)), ("y", Some(2))]).is_good();
    // Asked again, and told.
    asked().committed(2, 2).ends(&[("x", &[1, 2]), ("y", &[2])], &[("x", Some(2)), ("y", Some(2))]).is_good();
    asked().aborted(2).ends(&[("x", &[1]), ("y", &[])], &[("x", Some(1)), ("y", None)]).is_good();
    // Never answered at all.
    story().asks(1, &[("x", Put)]).ends(&[("x", &[1])], &[("x", Some(1))]).is_good();
    story().asks(1, &[("x", Put)]).ends(&[("x", &[])], &[("x", None)]).is_good();
    // But not before what was told before it was asked for.
    asked()
        .ends(&[("x", &[2, 1]), ("y", &[2])], &[("x", Some(1)), ("y", Some(2))])
        .is_bad(|f| matches!(f, Finding::OutOfTime { earlier: 1, later: 2, .. }));
}

#[test]
fn torn() {
    let two = || story().asks(1, &[("x", Put), ("y", Put)]);
    for told in [two().unknown(1), two().committed(1, 1), two()] {
        told.ends(&[("x", &[1]), ("y", &[])], &[("x", Some(1)), ("y", None)]).is_only(|f| matches!(f, Finding::Torn { op: 1, .. }));
    }
    // In the index and not in the database.
    let half = story().put(1, "x").asks(2, &[("x", Put)]).unknown(2).reads_documents(3, &[("x", Some(2))]);
    half.ends(&[("x", &[1])], &[("x", Some(1))]).is_only(|f| matches!(f, Finding::Torn { op: 2, .. }));
    // In the database and not in the index.
    let half = story().put(1, "x").asks(2, &[("x", Put)]).unknown(2).ends(&[("x", &[1, 2])], &[("x", Some(1))]);
    half.is_only(|f| matches!(f, Finding::StoresDiffer { row: 2, document: Some(1), .. }));
    story().put(1, "x").ends(&[("x", &[1])], &[("x", None)]).is_only(|f| matches!(f, Finding::StoresDiffer { document: None, .. }));
}

#[test]
fn lost() {
    story().put(1, "x").ends(&[("x", &[])], &[("x", None)]).is_only(|f| matches!(f, Finding::Lost { op: 1, .. }));
    // Seen, and gone, though nobody was told.
    let seen = story().asks(1, &[("x", Put)]).unknown(1).reads_rows(2, &[("x", &[1])]).ends(&[("x", &[])], &[("x", None)]);
    seen.is_bad(|f| matches!(f, Finding::Lost { op: 1, .. }));
    // Lost in the middle.
    let middle = story().put(1, "x").put(2, "x").put(3, "x").reads_rows(4, &[("x", &[1, 2, 3])]);
    middle.ends(&[("x", &[1, 3])], &[("x", Some(3))]).is_bad(|f| matches!(f, Finding::Lost { op: 2, .. }));
    // What the transaction itself read.
    let rows = vec![row("x", &[1])];
    let itself = story().put(1, "x").asks(2, &[("x", Put)]).told(2, Told::Committed { csn: 2, shown: Shown::Rows, rows });
    itself.ends(&[("x", &[1, 2])], &[("x", Some(2))]).is_only(|f| matches!(f, Finding::Lost { op: 2, .. }));
}

#[test]
fn resurrected() {
    let deleted = || story().put(1, "x").asks(2, &[("x", Delete)]).committed(2, 2);
    deleted().ends(&[("x", &[1, 2])], &[("x", Some(1))]).is_only(|f| matches!(f, Finding::Resurrected { op: 1, by: 2, .. }));
    // Seen to be gone, and seen again.
    let again = deleted().reads_documents(3, &[("x", None)]).asks_documents(4, &["x"], Some(2), false).documents(4, &[("x", None)]);
    again
        .reads_documents(5, &[("x", Some(1))])
        .ends(&[("x", &[1, 2])], &[("x", None)])
        .is_only(|f| matches!(f, Finding::Stale { reader: 5, .. }));
}

#[test]
fn aborted_and_seen() {
    let aborted = || story().put(1, "x").asks(2, &[("x", Put)]).aborted(2);
    aborted().ends(&[("x", &[1, 2])], &[("x", Some(2))]).is_bad(|f| matches!(f, Finding::AbortedSeen { op: 2, .. }));
    let for_a_moment = aborted().reads_rows(3, &[("x", &[1, 2])]).ends(&[("x", &[1])], &[("x", Some(1))]);
    for_a_moment.is_bad(|f| matches!(f, Finding::AbortedSeen { op: 2, reader: 3, .. }));
    let in_the_index = aborted().reads_documents(3, &[("x", Some(2))]).ends(&[("x", &[1])], &[("x", Some(1))]);
    in_the_index.is_only(|f| matches!(f, Finding::AbortedSeen { op: 2, .. }));
}

#[test]
fn out_of_nothing() {
    let nothing: fn(&Finding) -> bool = |f| matches!(f, Finding::OutOfNothing { .. });
    story().put(1, "x").ends(&[("x", &[1, 7])], &[("x", Some(7))]).is_bad(nothing);
    story().put(1, "x").put(2, "y").ends(&[("x", &[1, 2]), ("y", &[2])], &[("x", Some(1)), ("y", Some(2))]).is_bad(nothing);
    // Before it was asked for.
    story().reads_rows(1, &[("x", &[2])]).put(2, "x").ends(&[("x", &[2])], &[("x", Some(2))]).is_only(nothing);
    story().reads_documents(1, &[("x", Some(2))]).put(2, "x").ends(&[("x", &[2])], &[("x", Some(2))]).is_only(nothing);
    // A document that a delete has put.
    let deletes = story().asks(1, &[("x", Delete)]).committed(1, 1).reads_documents(2, &[("x", Some(1))]);
    deletes.ends(&[("x", &[1])], &[("x", None)]).is_only(nothing);
}

#[test]
fn twice() {
    story().put(1, "x").ends(&[("x", &[1, 1])], &[("x", Some(1))]).is_bad(|f| matches!(f, Finding::Twice { op: 1, .. }));
    let later = story().put(1, "x").put(2, "x").ends(&[("x", &[1, 2, 1])], &[("x", Some(1))]);
    later.is_bad(|f| matches!(f, Finding::Twice { op: 1, .. }));
}

#[test]
fn two_orders() {
    let beside = || story().asks(1, &[("x", Put)]).asks(2, &[("x", Put)]).unknown(1).unknown(2);
    let orders: fn(&Finding) -> bool = |f| matches!(f, Finding::TwoOrders { .. });
    beside().reads_rows(3, &[("x", &[2, 1])]).ends(&[("x", &[1, 2])], &[("x", Some(2))]).is_only(orders);
    // One that comes in between later.
    let between = beside().asks(3, &[("x", Put)]).reads_rows(4, &[("x", &[1, 3])]);
    between.ends(&[("x", &[1, 2, 3])], &[("x", Some(3))]).is_bad(orders);
    // Figure 11-4: the database ends with one, the index with the other.
    beside().ends(&[("x", &[1, 2])], &[("x", Some(1))]).is_only(|f| matches!(f, Finding::StoresDiffer { row: 2, document: Some(1), .. }));
}

#[test]
fn out_of_time() {
    let out: fn(&Finding) -> bool = |f| matches!(f, Finding::OutOfTime { .. } | Finding::Cycle { .. });
    let against = story().put(1, "x").asks(2, &[("x", Put)]).unknown(2).ends(&[("x", &[2, 1])], &[("x", Some(1))]);
    against.is_only(out);
    // No key in common: by CSN alone.
    let other = story().asks(1, &[("x", Put)]).committed(1, 5).asks(2, &[("y", Put)]).committed(2, 4);
    other.is_only(|f| matches!(f, Finding::OutOfTime { earlier: 1, later: 2, .. }));
}

#[test]
fn csns_against_the_order() {
    let beside = story().asks(1, &[("x", Put)]).asks(2, &[("x", Put)]).committed(1, 9).committed(2, 2);
    beside.ends(&[("x", &[1, 2])], &[("x", Some(2))]).is_only(|f| matches!(f, Finding::CsnOrder { first: 1, second: 2, .. }));
    let version = story().asks(1, &[("x", Put)]).committed(1, 9).ends(&[("x", &[1])], &[("x", Some(1))]);
    version.is_bad(|f| matches!(f, Finding::WrongVersion { op: 1, csn: 9, seen: 1, .. }));
}

#[test]
fn two_of_one_csn() {
    let beside = |second| story().asks(1, &[("x", Put)]).asks(2, &[("y", Put)]).committed(1, 5).committed(2, second);
    beside(6).is_good();
    beside(5).is_only(|f| matches!(f, Finding::CsnTwice { csn: 5, first: 1, second: 2 }));
}

#[test]
fn lost_update() {
    let list = |list: &[Op]| Told::Documents { documents: vec![SeenDocument { list: Some(list.to_vec()), ..document("x", Some(3)) }] };
    let based = || story().put(1, "x").put(2, "x").asks(3, &[("x", Based)]).committed(3, 3);
    let end = |told| {
        based().asks_rows(900, &["x"], None, true).rows(900, &[("x", &[1, 2, 3])]).asks_documents(901, &["x"], None, true).told(901, told)
    };
    end(list(&[1, 2, 3])).is_good();
    end(list(&[1, 3])).is_only(|f| matches!(f, Finding::LostUpdate { op: 3, knew: 1, before: 2, .. }));
}

/// The condition stood at the index alone: what the document showed is what stands before it in the row.
#[test]
fn lost_update_on_a_condition_at_the_index() {
    let lost: fn(&Finding) -> bool = |f| matches!(f, Finding::LostUpdate { op: 3, .. });
    let after = |last| story().put(1, "x").put(2, "x").asks(3, &[("x", After { last })]).committed(3, 3);
    let ends = |story: Story| story.ends(&[("x", &[1, 2, 3])], &[("x", Some(3))]);
    ends(after(Some(2))).is_good();
    ends(after(Some(1))).is_only(lost);
    ends(after(None)).is_only(lost);
    // Also of one of which nobody was told.
    ends(story().put(1, "x").put(2, "x").asks(3, &[("x", After { last: Some(1) })]).unknown(3)).is_only(lost);
    // One that did not happen breaks nothing.
    let aborted = story().put(1, "x").put(2, "x").asks(3, &[("x", After { last: Some(1) })]).aborted(3);
    aborted.ends(&[("x", &[1, 2])], &[("x", Some(2))]).is_good();
    // No document: nobody has written it, or the last one has deleted it.
    let first = story().asks(3, &[("x", After { last: None })]).committed(3, 3);
    first.ends(&[("x", &[3])], &[("x", Some(3))]).is_good();
    let deleted = |then: Document| story().asks(1, &[("x", Delete)]).committed(1, 1).asks(2, &[("x", then)]).committed(2, 2);
    ends(deleted(Delete).asks(3, &[("x", After { last: None })]).committed(3, 3)).is_good();
    ends(deleted(Put).asks(3, &[("x", After { last: None })]).committed(3, 3)).is_only(lost);
}

#[test]
fn stale() {
    let earlier: fn(&Finding) -> bool = |f| matches!(f, Finding::Stale { .. });
    // Told to be there.
    let shown = |shown| story().asks(1, &[("x", Put)]).shown(1, 1, shown);
    shown(Shown::Rows).reads_rows(2, &[("x", &[])]).ends(&[("x", &[1])], &[("x", Some(1))]).is_only(earlier);
    shown(Shown::Nowhere).reads_rows(2, &[("x", &[])]).ends(&[("x", &[1])], &[("x", Some(1))]).is_good();
    shown(Shown::Both).reads_documents(2, &[("x", None)]).ends(&[("x", &[1])], &[("x", Some(1))]).is_only(earlier);
    shown(Shown::Rows).reads_documents(2, &[("x", None)]).ends(&[("x", &[1])], &[("x", Some(1))]).is_good();
    // Asked before it was told.
    let before = story().asks(1, &[("x", Put)]).asks_rows(2, &["x"], None, false).shown(1, 1, Shown::Rows).rows(2, &[("x", &[])]);
    before.ends(&[("x", &[1])], &[("x", Some(1))]).is_good();
    // Seen before, and less later.
    let two = || story().put(1, "x").put(2, "x");
    two().reads_rows(3, &[("x", &[1, 2])]).reads_rows(4, &[("x", &[1])]).ends(&[("x", &[1, 2])], &[("x", Some(2))]).is_only(earlier);
    let back = two().reads_documents(3, &[("x", Some(2))]).reads_documents(4, &[("x", Some(1))]);
    back.ends(&[("x", &[1, 2])], &[("x", Some(2))]).is_only(earlier);
    // A search may be behind a read by key, and not behind what was told to be visible, or another search; a read by key not behind it.
    let ends = |story: Story| story.ends(&[("x", &[1, 2])], &[("x", Some(2))]);
    ends(two().reads_documents(3, &[("x", Some(2))]).searches(4, &[("x", Some(1))])).is_good();
    ends(two().searches(3, &[("x", Some(2))]).searches(4, &[("x", Some(1))])).is_only(earlier);
    ends(two().searches(3, &[("x", Some(2))]).reads_documents(4, &[("x", Some(1))])).is_only(earlier);
    let visible = story().asks(1, &[("x", Put)]).shown(1, 1, Shown::Both).searches(2, &[("x", None)]);
    visible.ends(&[("x", &[1])], &[("x", Some(1))]).is_only(earlier);
}

#[test]
fn tokens() {
    let token: fn(&Finding) -> bool = |f| matches!(f, Finding::Stale { why: lockstep_tests::history::checker::Why::Token, .. });
    let own = |seen: &[Op]| {
        story().put(1, "x").asks_rows(2, &["x"], Some(1), false).rows(2, &[("x", seen)]).ends(&[("x", &[1])], &[("x", Some(1))])
    };
    own(&[1]).is_good();
    own(&[]).is_only(token);
    let document = |seen| {
        story().put(1, "x").asks_documents(2, &["x"], Some(1), false).documents(2, &[("x", seen)]).ends(&[("x", &[1])], &[("x", Some(1))])
    };
    document(Some(1)).is_good();
    document(None).is_only(token);
    // Of another key: everything below its CSN.
    let below = |seen: &[Op]| {
        let read = story().put(1, "x").put(2, "y").asks_rows(3, &["x"], Some(2), false).rows(3, &[("x", seen)]);
        read.ends(&[("x", &[1]), ("y", &[2])], &[("x", Some(1)), ("y", Some(2))])
    };
    below(&[1]).is_good();
    below(&[]).is_only(token);
    // Deleted since: gone is right, the put before it is not.
    let deleted = |seen| {
        let read = story().put(1, "x").asks(2, &[("x", Delete)]).committed(2, 2).asks_documents(3, &["x"], Some(2), false);
        read.documents(3, &[("x", seen)]).ends(&[("x", &[1, 2])], &[("x", None)])
    };
    deleted(None).is_good();
    deleted(Some(1)).is_only(token);
    // Deleted by one of whom nobody knows, for the rows cannot be read at the end.
    let open = || {
        let asked = story().put(1, "x").reads_rows(2, &[("x", &[1])]).asks(3, &[("x", Delete)]).unknown(3);
        asked.asks_documents(4, &["x"], Some(1), false).documents(4, &[("x", None)])
    };
    open().is_good();
    open().ends(&[("x", &[1])], &[("x", Some(1))]).is_only(token);
}

#[test]
fn fractured() {
    let fractured: fn(&Finding) -> bool = |f| matches!(f, Finding::Fractured { op: 1, .. });
    let two = || story().asks(1, &[("x", Put), ("y", Put)]).committed(1, 1);
    let ends = |story: Story| story.ends(&[("x", &[1]), ("y", &[1])], &[("x", Some(1)), ("y", Some(1))]);
    ends(two().reads_rows(2, &[("x", &[1]), ("y", &[])])).is_bad(fractured);
    ends(two().reads_rows(2, &[("x", &[1]), ("y", &[1])])).is_good();
    ends(two().reads_documents(2, &[("x", None), ("y", Some(1))])).is_only(fractured);
    ends(two().reads_documents(2, &[("x", None), ("y", None)])).is_good();
}

#[test]
fn no_order_of_everything() {
    let cycle: fn(&Finding) -> bool = |f| matches!(f, Finding::Cycle { .. });
    // Two rows, two orders; nobody was told a CSN.
    let both = [("x", Put), ("y", Put)];
    let beside = || story().asks(1, &both).asks(2, &both).unknown(1).unknown(2);
    beside().ends(&[("x", &[1, 2]), ("y", &[2, 1])], &[("x", Some(2)), ("y", Some(1))]).is_only(cycle);
    // Two reads that saw two independent writes in two orders.
    let independent =
        story().asks(1, &[("x", Put)]).asks(2, &[("y", Put)]).asks_rows(3, &["x", "y"], None, false).asks_rows(4, &["x", "y"], None, false);
    let saw = independent.rows(3, &[("x", &[1]), ("y", &[])]).rows(4, &[("x", &[]), ("y", &[2])]).unknown(1).unknown(2);
    saw.ends(&[("x", &[1]), ("y", &[2])], &[("x", Some(1)), ("y", Some(2))]).is_only(cycle);
    // In time, over a third one of which nobody was told.
    let third = story().asks(3, &both).put(1, "x").asks(2, &[("y", Put)]).unknown(2);
    third.ends(&[("x", &[3, 1]), ("y", &[2, 3])], &[("x", Some(1)), ("y", Some(3))]).is_only(cycle);
}

#[test]
fn told_two_things() {
    let outcomes: fn(&Finding) -> bool = |f| matches!(f, Finding::TwoOutcomes { op: 1, .. });
    story().put(1, "x").aborted(1).is_bad(outcomes);
    story().put(1, "x").committed(1, 2).is_bad(outcomes);
    story().asks(1, &[("x", Put)]).aborted(1).committed(1, 1).is_bad(outcomes);
    story().put(1, "x").committed(1, 1).is_good();
}

#[test]
fn a_history_that_is_none() {
    let malformed: fn(&Finding) -> bool = |f| matches!(f, Finding::Malformed { .. });
    story().put(1, "x").put(1, "x").is_bad(malformed);
    story().asks_rows(1, &["x"], None, false).rows(1, &[("y", &[])]).is_bad(malformed);
    story().asks_rows(1, &["x"], None, false).documents(1, &[("x", None)]).is_bad(malformed);
    let writes = vec![Write { key: "x".into(), document: Put }];
    let ask = || Ask::Append { writes: writes.clone() };
    let two = story().event(Event::Invoke { op: 1, process: 1, ask: ask() }).event(Event::Invoke { op: 2, process: 1, ask: ask() });
    two.is_bad(malformed);
}

#[test]
fn a_history_is_kept_as_lines() -> anyhow::Result<()> {
    let history = Played::new(3, 300).0;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("history.jsonl");
    Recorder::save(&history, &path)?;
    assert_eq!(Recorder::load(&path)?, history);
    Ok(())
}

#[test]
fn a_hundred_thousand_operations() {
    let report = check(&Played::new(1, 100_000).0);
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert!(report.committed > 30_000 && report.unknown > 1_000 && report.aborted > 1_000 && report.reads > 20_000, "{report:?}");
}

/// Any one thing that is changed in a good history of many clients is found.
#[test]
fn a_needle_in_a_large_history() {
    for seed in 0..20 {
        let Played(mut history) = Played::new(seed, 2_000);
        assert!(check(&history).findings.is_empty(), "seed {seed}: {:#?}", check(&history).findings);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        loop {
            let at = random.random_range(0..history.len());
            match &mut history[at].event {
                Event::Told { told: Told::Rows { rows }, .. } if rows[0].list.len() > 1 => {
                    rows[0].list.remove(0);
                }
                Event::Told { told: told @ Told::Committed { .. }, .. } => *told = Told::Aborted { why: "a lie".into() },
                _ => continue,
            }
            break;
        }
        assert!(!check(&history).findings.is_empty(), "seed {seed}");
    }
}

/// A history of clients of a store that keeps its promises: one transaction after the other, documents some of them behind.
struct Played(Vec<Happened>);

/// Writes of a key, until another one takes its place.
const WRITES_OF_A_KEY: usize = 60;

impl Played {
    fn new(seed: u64, operations: u64) -> Played {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut story = story();
        let mut order: BTreeMap<String, Vec<(Op, Document)>> = BTreeMap::new();
        // Who waits for an answer, and what it will be.
        let mut waiting: Vec<Option<(Op, Told)>> = vec![None; 8];
        let mut written = 0;
        for op in 1..=operations {
            let process = random.random_range(0..waiting.len());
            if let Some((op, told)) = waiting[process].take() {
                story = story.told(op, told);
            }
            let generation = written / (WRITES_OF_A_KEY * 5);
            let some = |random: &mut ChaCha8Rng| -> Vec<String> {
                let must = random.random_range(0..5);
                (0..5).filter(|n| *n == must || random.random_bool(0.3)).map(|n| format!("k{generation}-{n}")).collect()
            };
            let keys = some(&mut random);
            let list = |order: &BTreeMap<String, Vec<(Op, Document)>>, key: &String| {
                row(key, &order.get(key).into_iter().flatten().map(|(op, _)| *op).collect::<Vec<_>>())
            };
            let (ask, told) = match random.random_range(0..10) {
                0..3 => {
                    let rows = keys.iter().map(|key| list(&order, key)).collect();
                    (Ask::Read { store: Store::Rows, keys, at_least: None, snapshot: true, last: false }, Told::Rows { rows })
                }
                3..5 => {
                    let last = |key: &String| order.get(key).and_then(|writes| writes.last()).copied();
                    let last = |key: &String| last(key).filter(|(_, document)| *document == Put).map(|(op, _)| op);
                    let documents = keys.iter().map(|key| document(key, last(key))).collect();
                    (
                        Ask::Read { store: Store::Documents, keys, at_least: None, snapshot: true, last: false },
                        Told::Documents { documents },
                    )
                }
                _ => {
                    let document = |random: &mut ChaCha8Rng| if random.random_bool(0.2) { Delete } else { Put };
                    let writes: Vec<Write> = keys.into_iter().map(|key| Write { key, document: document(&mut random) }).collect();
                    let fate = random.random_range(0..10);
                    if fate > 1 {
                        written += writes.len();
                        for write in &writes {
                            order.entry(write.key.clone()).or_default().push((op, write.document));
                        }
                    }
                    let told = match fate {
                        0 => Told::Aborted { why: "a conflict".into() },
                        1 | 2 => Told::Unknown { why: "no answer".into() },
                        3 | 4 => Told::Committed { csn: op, shown: Shown::Both, rows: Vec::new() },
                        _ => Told::Committed {
                            csn: op,
                            shown: Shown::Rows,
                            rows: writes.iter().map(|write| list(&order, &write.key)).collect(),
                        },
                    };
                    (Ask::Append { writes }, told)
                }
            };
            story = story.event(Event::Invoke { op, process: process as u32, ask });
            waiting[process] = Some((op, told));
        }
        for (op, told) in waiting.into_iter().flatten() {
            story = story.told(op, told);
        }
        let (rest, keys): (Op, Vec<String>) = (operations + 1, order.keys().cloned().collect());
        let rows = order.iter().map(|(key, writes)| row(key, &writes.iter().map(|(op, _)| *op).collect::<Vec<_>>())).collect();
        let ask = |store| Ask::Read { store, keys: keys.clone(), at_least: None, snapshot: false, last: true };
        story = story.event(Event::Invoke { op: rest, process: 99, ask: ask(Store::Rows) }).told(rest, Told::Rows { rows });
        let last = |writes: &Vec<(Op, Document)>| writes.last().copied().filter(|(_, document)| *document == Put).map(|(op, _)| op);
        let documents = order.iter().map(|(key, writes)| document(key, last(writes))).collect();
        story = story.event(Event::Invoke { op: rest + 1, process: 99, ask: ask(Store::Documents) });
        Played(story.told(rest + 1, Told::Documents { documents }).0)
    }
}
