//! Phase two: what is decided gets there, whole, in order, whatever else happens to it.

use crate::lab::{ALL, Lab, alias, csn, delete, options, put};
use crate::node::Node;
use lockstep_core::Progress;
use lockstep_participants::{ReadLimits, ResourceManager, StoreError};

#[test]
fn documents_come_back_as_they_were_put() {
    let Some(mut lab) = Lab::new() else { return };
    let texts = [
        r#"{"z":1.0,"a":12345678901234567890,"text":"Grüße \"and\" \\ \u0000","list":[1,2,null],"inner":{"b":[]}}"#,
        "{}",
        "{\n  \"pretty\": \"printed\",\r\n  \"n\": 2 }",
    ];
    let keys = ["plain", "sp ace/\"quote\"\\", "ünï\n\0"];
    for (n, (key, text)) in keys.iter().zip(texts).enumerate() {
        lab.write(1 + n as u64, vec![put(key, text)]);
    }
    for (n, (key, text)) in keys.iter().zip(texts).enumerate() {
        let document = lab.get(key).unwrap();
        // A document is one line there.
        assert_eq!((document.document, document.csn), (text.replace(['\n', '\r'], " "), csn(1, 1 + n as u64)));
    }
    let mut found = lab.keys();
    found.sort();
    let mut expected = keys.map(str::to_owned).to_vec();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn searches_by_words_by_clause_and_within_limits() {
    let Some(mut lab) = Lab::new() else { return };
    for n in 1..=5 {
        lab.write(n, vec![put(&format!("k{n}"), &format!(r#"{{"title":"red shoe number {n}","n":{n}}}"#))]);
    }
    let reader = lab.reader();
    assert_eq!(reader.search("red shoe", ALL).unwrap().total, 5);
    assert_eq!(reader.search("shoe 3", ALL).unwrap().documents[0].key, "k3");
    assert_eq!(reader.search(r#"{"range":{"n":{"gte":4}}}"#, ALL).unwrap().total, 2);
    assert_eq!(reader.search(r#"{"query":{"term":{"n":1}}}"#, ALL).unwrap().total, 1);
    let page = reader.search("*", ReadLimits { rows: 2, offset: 4, ..ALL }).unwrap();
    assert_eq!((page.total, page.documents.len()), (5, 1));
    for wrong in ["{", r#"{"no_such_query":{}}"#, r#"{"query":{},"size":1}"#] {
        assert!(matches!(reader.search(wrong, ALL), Err(StoreError::Invalid(_))), "{wrong}");
    }
    assert!(matches!(reader.search("*", ReadLimits { offset: 20_000, ..ALL }), Err(StoreError::Invalid(_))));
    assert_eq!(lab.get("no such key"), None);
    assert_eq!(lab.get("_lockstep.state"), None);
}

/// R-ORDER: in whichever order they come, and however often, the highest CSN stays.
#[test]
fn the_newest_stays_in_any_order() {
    let Some(mut lab) = Lab::new() else { return };
    let older = lab.decide(1, vec![put("k", r#"{"n":1}"#), put("other", r#"{"n":1}"#)]);
    let newer = lab.decide(2, vec![put("k", r#"{"n":2}"#)]);
    let gone = lab.decide(3, vec![delete("k")]);
    lab.commit(&[newer.clone()]);
    lab.commit(&[older.clone()]);
    lab.commit(&[older.clone(), newer.clone(), newer.clone()]);
    lab.settle();
    assert_eq!(lab.get("k").unwrap().document, r#"{"n":2}"#);
    assert_eq!(lab.get("other").unwrap().document, r#"{"n":1}"#);
    lab.commit(&[gone]);
    lab.commit(&[newer, older]);
    assert_eq!(lab.settle(), Progress { applied: csn(1, 3), durable: csn(1, 3) });
    assert_eq!(lab.keys(), ["other"]);
    assert_eq!(lab.get("k"), None);
}

/// Nothing is applied before a search finds it, and nothing durable before the watermark says so.
#[test]
fn applied_is_what_a_search_finds() {
    let Some(url) = crate::lab::shared() else { return };
    let mut lab = Lab::with(options(&url, &alias()), 1);
    // The server does not refresh by itself.
    lab.store.migrate(r#"{"settings":{"refresh_interval":"-1"}}"#).unwrap();
    let decided = lab.decide(5, vec![put("k", r#"{"n":1}"#)]);
    let committed = lab.commit(&[decided]);
    assert_eq!(committed.progress, Progress::default());
    assert_eq!(lab.keys(), [] as [&str; 0]);
    assert_eq!(lab.settle(), Progress { applied: csn(1, 5), durable: csn(1, 5) });
    assert_eq!(lab.keys(), ["k"]);
    let recovered = Lab::open(&url, &lab.alias, 2).recover().unwrap();
    assert_eq!((recovered.progress.durable, recovered.highest), (csn(1, 5), csn(1, 5)));
}

/// R-LOGLOSS's evidence is the highest CSN of any document, also above the watermark.
#[test]
fn the_highest_is_known_above_the_watermark() {
    let Some(url) = crate::lab::shared() else { return };
    let mut lab = Lab::open(&url, &alias(), 1);
    let decided = lab.decide(9, vec![put("k", "{}")]);
    lab.commit(&[decided]);
    let recovered = Lab::open(&url, &lab.alias, 2).recover().unwrap();
    assert_eq!((recovered.progress.durable, recovered.highest), (csn(0, 0), csn(1, 9)));
}

/// A node that takes no more than 1 MB at once, and has room for 100 KB.
#[test]
fn what_is_too_large_for_one_request_is_halved() {
    let Some(node) = Node::start(&["http.max_content_length=1mb", "indexing_pressure.memory.limit=100kb"]) else { return };
    let mut small = options(&node.url(), &alias());
    // As if the limit of the server were not known.
    small.bulk_bytes = 4 << 20;
    let mut lab = Lab::with(small, 1);
    let text = "x ".repeat(10_000);
    let operations = (0..150).map(|n| put(&format!("k{n}"), &format!(r#"{{"text":"{text}"}}"#))).collect();
    lab.write(1, operations);
    assert_eq!(lab.keys().len(), 150);
    let larger = format!(r#"{{"text":"{}"}}"#, "x ".repeat(600_000));
    assert!(lab.refused(&larger).contains("bytes; the limit is"), "a document that the server can never take is refused before the vote");
}
