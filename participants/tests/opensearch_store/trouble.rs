//! What the server does between a Yes and its end, who else writes there, and what is wrong from the start.

use crate::lab::{ALL, Lab, alias, csn, delete, http, options, own, owner, put, put_if, shared};
use crate::node::Node;
use crate::proxy::Proxy;
use lockstep_core::{Condition, CoordId, Csn, Decider, Epoch, Owner, ParticipantId, RefusalKind, Txid, Work};
use lockstep_participants::opensearch::{Credentials, OpenSearch, OpenSearchOptions};
use lockstep_participants::{ResourceManager, StoreError};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

/// A transaction that the server refuses is stuck with its reason; others go on, and are told of one by one; it follows once mended.
#[test]
fn a_changed_mapping_makes_stuck_and_holds_up_nobody_else() {
    let Some(mut lab) = Lab::new() else { return };
    lab.store.migrate(r#"{"mappings":{"dynamic":false,"properties":{"n":{"type":"long"}}}}"#).unwrap();
    let index = format!("{}-000002", lab.alias);
    let bad = lab.decide(1, vec![put("bad", r#"{"x":"no number"}"#), put("beside", r#"{"n":1}"#)]);
    let good = lab.decide(2, vec![put("good", r#"{"n":1}"#)]);
    lab.ok("PUT", &format!("/{index}/_mapping"), r#"{"properties":{"x":{"type":"long"}}}"#);
    let committed = lab.commit(&[bad.clone(), good.clone()]);
    let (stuck, why) = &committed.stuck[0];
    assert_eq!((*stuck, committed.stuck.len()), (csn(1, 1), 1));
    assert!(why.contains("`bad`") && why.contains("[x]"), "{why}");
    assert_eq!(committed.done, good.txids, "what is found is told, though the watermark waits");
    assert_eq!(committed.progress.applied, csn(1, 1).before());
    assert_eq!(lab.keys(), ["beside", "good"]);
    let later = lab.decide(3, vec![put("later", r#"{"n":1}"#)]);
    assert_eq!(lab.store.commit(&[later.clone()], Csn::ZERO).unwrap().done, later.txids);
    lab.settle();
    assert_eq!(lab.store.tend(Csn::ZERO).unwrap().progress.applied, csn(1, 1).before());
    // Votes know the new mapping.
    assert!(lab.refused(r#"{"x":"no number"}"#).contains("[x]"));
    // Mended as an operator would: the field is kept, and wrong values of it are not indexed any more.
    lab.ok("PUT", &format!("/{index}/_mapping"), r#"{"properties":{"x":{"type":"long","ignore_malformed":true}}}"#);
    let committed = lab.store.commit(&[bad], csn(1, 3)).unwrap();
    assert_eq!(committed.stuck, []);
    assert_eq!(lab.settle().durable, csn(1, 3));
    assert_eq!(lab.keys(), ["bad", "beside", "good", "later"]);
}

#[test]
fn blocks_and_closed_and_missing_indices_make_stuck_until_mended() {
    let Some(url) = shared() else { return };
    let settings = |on: bool, key: &str| format!(r#"{{"index.blocks.{key}":{}}}"#, if on { "true" } else { "null" });
    for (break_it, mend_it, named) in [
        (("PUT", "_settings", settings(true, "write")), ("PUT", "_settings", settings(false, "write")), "index write"),
        (
            ("PUT", "_settings", settings(true, "read_only_allow_delete")),
            ("PUT", "_settings", settings(false, "read_only_allow_delete")),
            "read-only",
        ),
        (("POST", "_close", String::new()), ("POST", "_open", String::new()), "closed"),
    ] {
        let mut lab = Lab::open(&url, &alias(), 1);
        let index = lab.index();
        let decided = lab.decide(1, vec![put("k", "{}")]);
        lab.ok(break_it.0, &format!("/{index}/{}", break_it.1), &break_it.2);
        let committed = lab.commit(std::slice::from_ref(&decided));
        let why = &committed.stuck[0].1;
        assert!(why.contains(named), "{named}: {why}");
        let refusal = lab.refusal(vec![put("k2", "{}")]);
        assert_eq!(refusal.kind, RefusalKind::Unavailable, "{refusal}");
        assert!(refusal.message.contains(&index), "{refusal}");
        assert!(lab.findings().join(" ").contains(&index));
        lab.ok(mend_it.0, &format!("/{index}/{}", mend_it.1), &mend_it.2);
        lab.ok("GET", &format!("/_cluster/health/{index}?wait_for_status=yellow"), "");
        assert_eq!(lab.commit(&[decided]).stuck, []);
        assert_eq!(lab.settle().durable, csn(1, 1));
        lab.write(2, vec![put("k2", "{}")]);
        assert_eq!((lab.keys().len(), lab.findings()), (2, vec![]));
    }
}

/// A pipeline that comes between a Yes and its end could change what is decided, or drop it: one of the index's own choice is not asked, a
/// final one is waited out. (The node has no processors: these pipelines are not there, and would refuse all that comes.)
#[test]
fn a_pipeline_neither_drops_nor_changes_what_is_decided() {
    let Some(mut lab) = Lab::new() else { return };
    let set = |lab: &Lab, key: &str, name: &str| {
        lab.ok("PUT", &format!("/{}/_settings", lab.index()), &format!(r#"{{"index.{key}":"{name}"}}"#));
    };
    let decided = lab.decide(1, vec![put("k", r#"{"n":1}"#)]);
    set(&lab, "default_pipeline", "p");
    assert_eq!(lab.commit(&[decided]).stuck, []);
    assert_eq!(lab.settle().durable, csn(1, 1));
    assert_eq!(lab.raw("k")["_source"]["n"], 1);
    // Nothing new is voted for all the same.
    assert!(lab.refused("{}").contains("ingest pipeline"));
    set(&lab, "default_pipeline", "_none");

    let decided = lab.decide(2, vec![put("k", r#"{"n":2}"#)]);
    set(&lab, "final_pipeline", "p");
    assert!(lab.refused("{}").contains("ingest pipeline"));
    let committed = lab.commit(std::slice::from_ref(&decided));
    assert!(committed.stuck[0].1.contains("ingest pipeline"), "{:?}", committed.stuck);
    assert_eq!(lab.raw("k")["_source"]["n"], 1);
    set(&lab, "final_pipeline", "_none");
    assert_eq!(lab.commit(&[decided]).stuck, []);
    assert_eq!(lab.settle().durable, csn(1, 2));
    assert_eq!(lab.raw("k")["_source"]["n"], 2);
}

/// Restored over itself it keeps its name, its identity and its aliases: only what it has followed shows that (R-STORELOSS).
#[test]
fn an_index_that_was_put_back_in_its_place_ends_the_session() {
    let Some(mut lab) = Lab::new() else { return };
    lab.write(1, vec![put("k", "{}")]);
    lab.settle();
    let path = format!("/{}/_doc/_lockstep.state", lab.index());
    let before = lab.ok("GET", &path, "");
    lab.write(2, vec![put("k2", "{}")]);
    assert_eq!(lab.settle().durable, csn(1, 2));
    let version = lab.ok("GET", &path, "")["_version"].as_u64().unwrap();
    lab.ok("PUT", &format!("{path}?version={version}&version_type=external_gte"), &before["_source"].to_string());
    let error = lab.store.prepare(&[]).unwrap_err();
    assert!(matches!(&error, StoreError::Broken(why) if why.contains("an older one was put in its place")), "{error}");
    assert_eq!(lab.recover().unwrap().progress.durable, csn(1, 1));
}

/// Nothing is made by itself in place of an index that has gone; another one behind the alias is examined from the start.
#[test]
fn an_index_that_is_gone_or_rolled_over_is_noticed() {
    let Some(url) = shared() else { return };
    let mut lab = Lab::open(&url, &alias(), 1);
    lab.write(1, vec![put("k", "{}")]);
    let decided = lab.decide(2, vec![put("k2", "{}")]);
    lab.ok("DELETE", &format!("/{}", lab.index()), "");
    let committed = lab.commit(&[decided]);
    assert!(committed.stuck[0].1.contains("no such index"), "{:?}", committed.stuck);
    assert!(lab.refused("{}").contains("is not there any more"));
    assert_eq!(lab.http("GET", &format!("/{}", lab.index()), "").0, 404);
    // A new session says that it has followed nothing: R-STORELOSS is the coordinator's to see.
    assert_eq!(lab.recover().unwrap().progress.durable, Csn::ZERO);

    let mut lab = Lab::open(&url, &alias(), 1);
    lab.write(1, vec![put("k", "{}")]);
    let (index, alias) = (lab.index(), lab.alias.clone());
    lab.ok("PUT", &format!("/{alias}-000002"), "");
    let actions = format!(
        r#"{{"actions":[{{"remove":{{"index":"{index}","alias":"{alias}"}}}},{{"add":{{"index":"{alias}-000002","alias":"{alias}"}}}}]}}"#
    );
    lab.ok("POST", "/_aliases", &actions);
    let work = lab.store.prepare(&[lockstep_core::Work {
        txid: lockstep_core::Txid { epoch: lockstep_core::Epoch(1), n: 99, decider: lockstep_core::Decider::Log },
        operations: vec![put("k", "{}")].into(),
        timeout: 1_000_000,
        trace: None,
        shares: false,
    }]);
    assert!(matches!(&work, Err(StoreError::Broken(why)) if why.contains("points at")), "{work:?}");
    lab.ok("POST", "/_aliases", &format!(r#"{{"actions":[{{"add":{{"index":"{index}","alias":"{alias}"}}}}]}}"#));
    assert!(lab.recover().unwrap_err().to_string().contains("several indices"));
}

/// Another program's write adds one to the version, or takes ours away. What is decided goes over it, and it is told.
#[test]
fn another_writer_is_noticed_and_written_over() {
    let Some(mut lab) = Lab::new() else { return };
    let index = lab.index();
    lab.write(1, vec![put("k", r#"{"n":1}"#), put("changed", r#"{"n":1}"#)]);
    assert_eq!(lab.findings(), [] as [&str; 0]);
    // Twice: the document's version is beyond that of the next decision.
    for n in 0..3 {
        lab.ok("PUT", &format!("/{index}/_doc/k"), &format!(r#"{{"n":{}}}"#, 100 + n));
    }
    lab.ok("POST", &format!("/{index}/_update/changed"), r#"{"doc":{"n":100}}"#);
    let decided = lab.decide(2, vec![put("k", r#"{"n":2}"#)]);
    let older = lab.decide(3, vec![put("unrelated", "{}")]);
    lab.commit(&[decided.clone(), older]);
    lab.settle();
    assert_eq!(lab.get("k").unwrap().document, r#"{"n":2}"#, "what is decided is there");
    let findings = lab.findings().join("\n");
    assert!(findings.contains("written over it") && findings.contains("`k`") && findings.contains("`changed`"), "{findings}");
    // Repeats and older writes stay harmless under the raised version, and newer ones go on.
    lab.commit(&[decided]);
    lab.write(4, vec![put("k", r#"{"n":4}"#)]);
    lab.write(5, vec![delete("k")]);
    lab.write(6, vec![put("changed", r#"{"n":6}"#)]);
    assert_eq!(lab.keys(), ["changed", "unrelated"]);
    // A document of theirs alone.
    lab.ok("PUT", &format!("/{index}/_doc/theirs"), "{}");
    lab.store.tend(csn(1, 6)).unwrap();
    lab.write(7, vec![put("last", "{}")]);
    assert!(lab.findings().join("\n").contains("1 documents were added"), "{:?}", lab.findings());
}

#[test]
fn an_index_that_was_there_is_adopted() {
    let Some(url) = shared() else { return };
    let alias = alias();
    http("PUT", &format!("{url}/{alias}-000001/_doc/theirs?refresh=true"), r#"{"n":1}"#);
    let mut lab = Lab::open(&url, &alias, 1);
    lab.write(1, vec![put("ours", r#"{"n":2}"#)]);
    assert_eq!(lab.keys(), ["ours", "theirs"]);
    assert_eq!(lab.get("theirs").unwrap().csn, Csn::ZERO);
    assert_eq!(lab.findings(), [] as [&str; 0]);
    lab.write(2, vec![put("theirs", r#"{"n":3}"#)]);
    assert_eq!(lab.get("theirs").unwrap().csn, csn(1, 2));
}

/// R-OWNER, whenever the other one comes.
#[test]
fn an_index_follows_one_coordinator() {
    let Some(url) = shared() else { return };
    let alias = alias();
    let mut lab = Lab::open(&url, &alias, 3);
    lab.write(1, vec![put("k", "{}")]);
    let open = || OpenSearch::open(options(&url, &alias)).unwrap();
    let mut other = open();
    assert_eq!(other.owner().unwrap(), Some(owner(3)));
    let stranger = Owner { coord_id: CoordId(0xd0), ..owner(4) };
    let clone = Owner { incarnation: 1, ..owner(3) };
    for wrong in [stranger, clone, owner(2)] {
        let refused = other.recover(wrong, ParticipantId(3)).unwrap_err();
        assert!(matches!(&refused, StoreError::Refused(why) if why.contains("R-OWNER")), "{refused}");
    }
    // One that was asked before another took over.
    let mut late = open();
    late.owner().unwrap();
    other.recover(owner(4), ParticipantId(3)).unwrap();
    assert!(late.recover(owner(5), ParticipantId(3)).unwrap_err().to_string().contains("R-OWNER"));
    // The one that was taken over writes nothing any more, and says why.
    let decided = lockstep_core::Decided { csn: csn(3, 2), txids: vec![], redo: lab_redo(&mut other), trace: None };
    let refused = lab.store.commit(&[decided], csn(3, 2));
    assert!(matches!(&refused, Err(StoreError::Broken(why)) if why.contains("another coordinator")), "{refused:?}");
    assert!(lab.recover().unwrap_err().to_string().contains("R-OWNER"));
    assert_eq!(lab.keys(), ["k"]);
}

fn lab_redo(store: &mut OpenSearch) -> bytes::Bytes {
    let txid = lockstep_core::Txid { epoch: lockstep_core::Epoch(4), n: 1, decider: lockstep_core::Decider::Log };
    let work = lockstep_core::Work {
        txid,
        operations: vec![put("k", r#"{"late":true}"#)].into(),
        timeout: 30_000_000,
        trace: None,
        shares: false,
    };
    match store.prepare(&[work]).unwrap().votes.remove(0).1 {
        lockstep_core::Vote::Redo(redo, _) => redo,
        vote => panic!("{vote:?}"),
    }
}

#[test]
fn asynchronous_translogs_and_other_unsafe_indices_are_refused() {
    let Some(url) = shared() else { return };
    let refused = |body: &str| {
        let alias = alias();
        http("PUT", &format!("{url}/{alias}-000001"), body);
        let error = OpenSearch::open(options(&url, &alias)).unwrap().recover(owner(1), ParticipantId(3)).unwrap_err();
        error.to_string()
    };
    let why = refused(r#"{"settings":{"index.translog.durability":"async"}}"#);
    assert!(why.contains("loses acknowledged writes") && why.contains("set it to `request`"), "{why}");
    // It is noticed later, too.
    let mut lab = Lab::open(&url, &alias(), 1);
    lab.ok("PUT", &format!("/{}/_settings", lab.index()), r#"{"index.translog.durability":"async"}"#);
    let mut work = || lab.store.prepare(&[]);
    assert!(matches!(work(), Err(StoreError::Broken(why)) if why.contains("loses acknowledged writes")));
    // A pipeline, or a mapping that needs a routing: nothing is voted for.
    for (body, named) in [
        (r#"{"settings":{"index.default_pipeline":"p"}}"#, "ingest pipeline"),
        (r#"{"mappings":{"_routing":{"required":true}}}"#, "routing"),
    ] {
        let alias = alias();
        http("PUT", &format!("{url}/{alias}-000001"), body);
        match OpenSearch::open(options(&url, &alias)).unwrap().recover(owner(1), ParticipantId(3)) {
            Err(error) => assert!(error.to_string().contains(named), "{error}"),
            Ok(_) => assert!(Lab::open(&url, &alias, 2).refused("{}").contains(named), "{named}"),
        }
    }
    // The name of the alias is an index.
    let taken = alias();
    http("PUT", &format!("{url}/{taken}"), "");
    let error = OpenSearch::open(options(&url, &taken)).unwrap().recover(owner(1), ParticipantId(3)).unwrap_err();
    assert!(error.to_string().contains("is an index: readers need an alias"), "{error}");
    // Nothing is there, and nothing is to be made.
    let absent = OpenSearchOptions { create: false, ..options(&url, &alias()) };
    let error = OpenSearch::open(absent).unwrap().recover(owner(1), ParticipantId(3)).unwrap_err();
    assert!(error.to_string().contains("create = false"), "{error}");
}

/// A server that says what it is told to say, and what it was asked.
fn fake(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            request.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(request).unwrap()
    });
    (url, asked)
}

#[test]
fn wrong_servers_and_credentials_are_told_in_a_sentence() {
    let session =
        |options: OpenSearchOptions| OpenSearch::open(options).unwrap().recover(owner(1), ParticipantId(3)).unwrap_err().to_string();
    let (url, asked) = fake("HTTP/1.1 401 Unauthorized\r\ncontent-length: 12\r\n\r\nUnauthorized");
    let secret = Credentials::Basic { user: "me".into(), password: "sesame".into() };
    let why = session(OpenSearchOptions { credentials: Some(secret), ..options(&url, "items") });
    assert!(why.contains("the credentials are refused (HTTP 401)") && !why.contains("sesame"), "{why}");
    assert!(asked.join().unwrap().contains("authorization: Basic bWU6c2VzYW1l"));

    let (url, asked) = fake("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n");
    let why = session(OpenSearchOptions { credentials: Some(Credentials::ApiKey("a2V5".into())), ..options(&url, "items") });
    assert!(why.contains("not allowed to these credentials"), "{why}");
    assert!(asked.join().unwrap().contains("authorization: ApiKey a2V5"));

    for (body, named) in [
        (r#"{"version":{"number":"0.9.1","distribution":"opensearch"}}"#, "OpenSearch 0.9.1 is not supported: at least 1.0"),
        (r#"{"version":{"number":"6.8.23"}}"#, "Elasticsearch 6.8.23 is not supported: at least 7.10"),
        (r#"{"version":{"number":"8.11.0","build_flavor":"serverless"}}"#, "Serverless is not supported"),
        ("<html>", "neither OpenSearch nor Elasticsearch"),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let (url, asked) = fake(answer.leak());
        let why = session(options(&url, "items"));
        assert!(why.contains(named), "{why}");
        asked.join().unwrap();
    }
    // Plain HTTP behind https://, and certificates that are none.
    let (url, asked) = fake("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let wrong = OpenSearchOptions { request_timeout: Duration::from_secs(2), ..options(&url.replace("http://", "https://"), "items") };
    let why = session(wrong);
    assert!(why.contains("127.0.0.1"), "{why}");
    drop(asked);
    let certificates = OpenSearchOptions { certificates: Some(b"nonsense".to_vec()), ..options("https://127.0.0.1:1", "items") };
    assert!(OpenSearch::open(certificates).err().unwrap().to_string().contains("no certificate in PEM form"));
}

/// The store opens while the server is away, says so, and goes on when it is there; another node takes over from one that is not.
#[test]
fn a_server_that_is_away_and_comes_back() {
    let Some(mut node) = own() else { return };
    let alias = alias();
    let mut lab = Lab::open(&node.url(), &alias, 1);
    lab.write(1, vec![put("k", "{}")]);
    let decided = lab.decide(2, vec![put("k2", "{}")]);
    node.stop();
    assert!(matches!(lab.store.commit(std::slice::from_ref(&decided), csn(1, 2)), Err(StoreError::Broken(_))));
    assert!(lab.findings()[0].contains("127.0.0.1"), "{:?}", lab.findings());
    let mut away = OpenSearch::open(options(&node.url(), &alias)).unwrap();
    assert!(matches!(away.owner(), Err(StoreError::Broken(_))));
    assert!(matches!(away.recover(owner(2), ParticipantId(3)), Err(StoreError::Broken(_))));
    node.run();
    lab.recover().unwrap();
    assert_eq!(lab.findings(), [] as [&str; 0]);
    lab.commit(&[decided]);
    lab.settle();
    assert_eq!(lab.keys(), ["k", "k2"]);

    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let mut two = options(&node.url(), &alias);
    two.nodes.insert(0, format!("http://{nobody}"));
    let mut lab = Lab::with(OpenSearchOptions { ..two }, 2);
    lab.write(1, vec![put("k3", "{}")]);
    assert_eq!(lab.keys().len(), 3);
}

/// What was acknowledged is there after `kill -9`.
#[test]
fn a_killed_node_loses_nothing_that_was_acknowledged() {
    let Some(node) = Node::start(&[]) else { return };
    let mut node = node;
    let mut lab = Lab::open(&node.url(), &alias(), 1);
    for n in 1..=20 {
        let decided = lab.decide(n, vec![put(&format!("k{n}"), "{}"), delete(&format!("k{}", n - 1))]);
        lab.commit(&[decided]);
    }
    node.kill();
    node.run();
    let recovered = lab.recover().unwrap();
    assert_eq!(recovered.highest, csn(1, 20));
    assert_eq!(lab.keys(), ["k20"]);
}

const BUSY: &str = r#"{"docs":[{"_index":"i","_id":"k","error":{"type":"rejected_execution_exception","reason":"the queue is full"}}]}"#;

/// What a part of the index says that does not answer now: nothing of whether a document is there.
#[test]
fn a_document_that_cannot_be_read_now_is_not_taken_for_missing() {
    let Some(url) = shared() else { return };
    let proxy = Proxy::before(&url);
    let mut lab = Lab::open(&proxy.url(), &alias(), 1);
    let (fifth, sixth) = (lab.decide(5, vec![put("k", r#"{"n":5}"#)]), lab.decide(6, vec![put("k", r#"{"n":6}"#)]));
    lab.commit(&[sixth.clone()]);

    proxy.answer("_mget", BUSY);
    let operations = [put_if("k", "{}", Condition::Absent)].into();
    let work =
        Work { txid: Txid { epoch: Epoch(1), n: 90, decider: Decider::Log }, operations, timeout: 30_000_000, trace: None, shares: false };
    assert!(matches!(lab.store.prepare(&[work]), Err(StoreError::Timeout(why)) if why.contains("the queue is full")));
    assert_eq!(lab.refusal(vec![put_if("k", "{}", Condition::Absent)]).kind, RefusalKind::Condition);

    // Both are delivered once more, and the older one meets the newer one's version.
    proxy.answer("_mget", BUSY);
    assert!(lab.store.commit(&[fifth.clone(), sixth.clone()], csn(1, 6)).is_err());
    lab.recover().unwrap();
    lab.commit(&[fifth, sixth]);
    lab.settle();
    let document = lab.get("k").unwrap();
    assert_eq!((document.csn, document.document.as_str()), (csn(1, 6), r#"{"n":6}"#));
    assert!(!lab.findings().iter().any(|finding| finding.contains("another program")), "{:?}", lab.findings());
}

#[test]
fn a_part_of_what_is_there_is_no_answer_to_a_search() {
    let Some(url) = shared() else { return };
    let proxy = Proxy::before(&url);
    let mut lab = Lab::open(&proxy.url(), &alias(), 1);
    lab.write(1, vec![put("k", "{}")]);
    proxy.answer("_search", r#"{"timed_out":false,"_shards":{"total":2,"failed":1},"hits":{"total":{"value":0},"hits":[]}}"#);
    assert!(matches!(lab.reader().search("*", ALL), Err(StoreError::Broken(why)) if why.contains("cannot be searched now")));
    proxy.answer("_search", r#"{"_scroll_id":"s","_shards":{"total":2,"failed":1},"hits":{"hits":[]}}"#);
    assert!(lab.reader().keys(None, 10).is_err());
    assert_eq!(lab.keys(), ["k"]);
}

/// It is there, takes connections, and says nothing: what comes after the first request goes elsewhere.
#[test]
fn a_node_that_hangs_is_left_for_the_next() {
    let Some(url) = shared() else { return };
    let hangs = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut two = options(&url, &alias());
    two.nodes.insert(0, format!("http://{}", hangs.local_addr().unwrap()));
    two.request_timeout = Duration::from_secs(3);
    let mut store = OpenSearch::open(two).unwrap();
    assert!(store.recover(owner(1), ParticipantId(3)).is_err());
    store.recover(owner(1), ParticipantId(3)).unwrap();
}
