//! Deletes are as safe as puts: no late request of an older write brings a document back, whatever the server forgets meanwhile.

use crate::lab::{Lab, alias, csn, delete, http, options, own, put, shared};
use crate::node::Node;
use crate::proxy::Proxy;
use lockstep_participants::{ResourceManager, StoreError};
use std::time::Duration;

/// The server forgets a real delete's version at a flush and restart; a tombstone is a document like any other.
#[test]
fn a_late_put_does_not_bring_a_document_back_after_a_restart() {
    let Some(mut node) = own() else { return };
    a_late_put_finds_the_tombstone(&mut node);
}

/// The same, at this node.
pub fn a_late_put_finds_the_tombstone(node: &mut Node) {
    let mut keeping = options(&node.url(), &alias());
    // Upkeep would remove the tombstone.
    keeping.upkeep_every = Duration::from_secs(3600);
    let mut lab = Lab::with(keeping, 1);
    let older = lab.decide(1, vec![put("k", r#"{"n":1}"#), put("stays", "{}")]);
    let deleted = lab.decide(2, vec![delete("k")]);
    lab.commit(&[older.clone(), deleted]);
    // A real delete beside it, to see that the server does forget.
    lab.ok("PUT", &format!("/{}/_doc/real?version=5&version_type=external", lab.index()), "{}");
    lab.ok("DELETE", &format!("/{}/_doc/real?version=7&version_type=external", lab.index()), "");
    lab.ok("POST", &format!("/{}/_flush", lab.index()), "");
    node.kill();
    node.run();
    let (status, _) = lab.http("PUT", &format!("/{}/_doc/real?version=6&version_type=external", lab.index()), "{}");
    assert_eq!(status, 201, "the server has forgotten a delete: that is what tombstones are for");
    lab.ok("DELETE", &format!("/{}/_doc/real", lab.index()), "");
    lab.recover().unwrap();
    lab.commit(&[older]);
    lab.ok("POST", &format!("/{}/_refresh", lab.index()), "");
    assert_eq!(lab.keys(), ["stays"]);
    assert_eq!(lab.raw("k")["_source"]["_lockstep"]["csn"], csn(1, 2).to_u64());
}

#[test]
fn tombstones_go_and_newer_documents_stay() {
    let Some(mut lab) = Lab::new() else { return };
    for n in 0..10 {
        lab.write(2 * n + 1, vec![put(&format!("k{n}"), "{}")]);
        let decided = lab.decide(2 * n + 2, vec![delete(&format!("k{n}"))]);
        lab.commit(&[decided]);
    }
    lab.write(30, vec![put("k3", r#"{"again":true}"#)]);
    assert_eq!(lab.keys(), ["k3"]);
    for n in 0..10 {
        assert_eq!(lab.raw(&format!("k{n}"))["found"], n == 3, "the tombstone of k{n}");
    }
    lab.write(31, vec![put("k4", "{}")]);
    assert_eq!(lab.keys(), ["k3", "k4"], "a key can be used again after its tombstone has gone");
}

/// The network holds a bulk of epoch 1 back until epoch 2 has deleted the document, removed the tombstone, and the server has forgotten.
#[test]
fn a_bulk_of_an_older_epoch_comes_too_late() {
    let Some(url) = shared() else { return };
    let alias = alias();
    let network = Proxy::before(&url);
    let mut old = Lab::open(&network.url(), &alias, 1);
    let decided = old.decide(1, vec![put("k", r#"{"n":1}"#)]);
    network.hold(Some("_bulk"));
    let lost = old.store.commit(std::slice::from_ref(&decided), csn(1, 1));
    assert!(matches!(lost, Err(StoreError::Broken(_))), "{lost:?}");
    network.wait();

    // The log hands it to the next coordinator, which also deletes the document.
    let mut new = Lab::open(&url, &alias, 2);
    new.commit(&[decided]);
    new.write(2, vec![delete("k")]);
    new.settle();
    assert_eq!(new.raw("k")["found"], false, "the tombstone has gone");
    forget(&new);

    let answers = network.deliver();
    assert!(!answers.is_empty());
    for answer in answers {
        assert!(answer.contains("\"status\":404") && answer.contains("is not an alias"), "{answer}");
    }
    new.ok("POST", &format!("/{}/_refresh", new.index()), "");
    assert_eq!(new.keys(), [] as [&str; 0]);
    // The same write without the alias of its epoch does come through: only the fence kept it out.
    let path = format!("/{}/_doc/k?version={}&version_type=external_gte", new.index(), csn(1, 1).to_u64());
    assert_eq!(new.http("PUT", &path, "{}").0, 201);
    // And the old coordinator learns that it is one.
    network.hold(None);
    assert!(matches!(old.recover(), Err(StoreError::Refused(why)) if why.contains("R-OWNER")));
}

/// A request that was never answered is kept out as well, before a tombstone of its own epoch goes.
#[test]
fn a_bulk_of_the_same_epoch_comes_too_late() {
    let Some(url) = shared() else { return };
    let network = Proxy::before(&url);
    let mut lab = Lab::open(&network.url(), &alias(), 1);
    let decided = lab.decide(1, vec![put("k", r#"{"n":1}"#)]);
    network.hold(Some("_bulk"));
    lab.store.commit(std::slice::from_ref(&decided), csn(1, 1)).unwrap_err();
    network.wait();
    network.hold(None);
    lab.recover().unwrap();
    lab.commit(&[decided]);
    lab.write(2, vec![delete("k")]);
    lab.settle();
    assert_eq!(lab.raw("k")["found"], false, "the tombstone has gone");
    forget(&lab);
    for answer in network.deliver() {
        assert!(answer.contains("\"status\":404"), "{answer}");
    }
    lab.ok("POST", &format!("/{}/_refresh", lab.index()), "");
    assert_eq!(lab.keys(), [] as [&str; 0]);
}

/// The change of the alias is not enough: a bulk that is inside the server has found it already. Tombstones wait for its end.
#[test]
fn a_bulk_inside_the_server_is_waited_for() {
    let Some(url) = shared() else { return };
    let mut lab = Lab::open(&url, &alias(), 1);
    lab.write(1, vec![put("stays", "{}")]);
    let index = lab.index();
    let aliases = lab.ok("GET", &format!("/{index}/_alias"), "");
    let write_alias = aliases[&index]["aliases"].as_object().unwrap().keys().find(|alias| alias.contains("-lockstep-")).unwrap().clone();
    // It waits in the server for a second copy of the shard, which there is not.
    let path = format!("{url}/{write_alias}/_bulk?require_alias=true&wait_for_active_shards=all&timeout=10m");
    let version = csn(1, 2).to_u64();
    let lines = format!(
        "{{\"index\":{{\"_id\":\"k\",\"version\":{version},\"version_type\":\"external_gte\"}}}}\n{{\"_lockstep\":{{\"csn\":{version}}}}}\n"
    );
    let late = std::thread::spawn(move || http("POST", &path, &lines));
    while !lab.ok("GET", "/_tasks?actions=indices:data/write/bulk*&detailed=true", "").to_string().contains(&write_alias) {
        std::thread::yield_now();
    }

    let mut new = Lab::open(&url, &lab.alias, 2);
    let decided = new.decide(3, vec![delete("k")]);
    new.commit(&[decided]);
    // Its tombstone stays, however often upkeep comes by.
    for _ in 0..5 {
        new.store.tend(csn(2, 3)).unwrap();
    }
    assert_eq!(new.raw("k")["_source"]["_lockstep"]["deleted"], true);

    new.ok("PUT", &format!("/{index}/_settings"), r#"{"number_of_replicas":0}"#);
    let (_, answer) = late.join().unwrap();
    assert_eq!(answer["items"][0]["index"]["status"], 409, "it wrote after its alias was dropped, and met the tombstone: {answer}");
    new.settle();
    assert_eq!(new.raw("k")["found"], false, "now it has gone");
    assert_eq!(new.keys(), ["stays"]);
}

/// The server forgets all versions of deleted documents now, and not in a minute.
fn forget(lab: &Lab) {
    lab.ok("PUT", &format!("/{}/_settings", lab.index()), r#"{"index.gc_deletes":"0ms"}"#);
    lab.ok("POST", &format!("/{}/_refresh", lab.index()), "");
    lab.ok("POST", &format!("/{}/_flush?force=true", lab.index()), "");
    lab.ok("POST", &format!("/{}/_close", lab.index()), "");
    lab.ok("POST", &format!("/{}/_open", lab.index()), "");
    lab.ok("GET", &format!("/_cluster/health/{}?wait_for_status=yellow", lab.index()), "");
}
