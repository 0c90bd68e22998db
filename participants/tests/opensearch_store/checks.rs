//! Phase one against the real mapping: what the server would refuse gets no Yes, and what gets a Yes is taken.

use crate::lab::{Lab, alias, csn, delete, options, put, put_if, shared};
use crate::node::Product;
use lockstep_core::{Condition, Decided, Decider, Epoch, Operation, RefusalKind, Txid, Vote};
use lockstep_participants::ResourceManager;
use lockstep_participants::opensearch::NewFields;

const STRICT: &str = r#"{"mappings":{"dynamic":"strict","properties":{
    "title":{"type":"text"},"sku":{"type":"keyword"},"n":{"type":"integer"},"price":{"type":"double"},
    "at":{"type":"date"},"day":{"type":"date","format":"yyyy/MM/dd"},"ip":{"type":"ip"},"flag":{"type":"boolean"},
    "where":{"type":"geo_point"},"span":{"type":"integer_range"},"flat":{"type":"flat_object"},"bytes":{"type":"binary"},
    "raw":{"type":"text","fields":{"raw":{"type":"keyword"}}},"lenient":{"type":"integer","ignore_malformed":true},
    "inner":{"properties":{"a":{"type":"long"}}},"lines":{"type":"nested","properties":{"a":{"type":"long"}}}
}}}"#;

/// Everything that gets a Yes is applied, everything else is refused with a sentence that names the field.
#[test]
fn a_yes_is_kept_and_a_no_names_the_field() {
    let Some(lab) = Lab::new() else { return };
    all_kinds_of_fields(lab, Product::wanted());
}

/// The same, of this product.
pub fn all_kinds_of_fields(mut lab: Lab, product: Product) {
    let strict = match product {
        Product::OpenSearch => STRICT.to_owned(),
        // It has no such type.
        Product::Elasticsearch => {
            STRICT.replace(r#"{"type":"flat_object"}"#, r#"{"properties":{"a":{"properties":{"b":{"type":"keyword"}}}}}"#)
        }
    };
    lab.store.migrate(&strict).unwrap();
    let fits = [
        r#"{"title":"a","sku":"b","n":1,"price":9.99,"at":"2026-01-31T10:00:00Z","day":"2026/01/31","ip":"10.0.0.1","flag":true}"#,
        r#"{"n":"7","at":1700000000000,"flag":"true","where":{"lat":1,"lon":2},"span":{"gte":1,"lt":5},"flat":{"a":{"b":"c"}}}"#,
        r#"{"at":"2024-02-29","where":[2,1],"bytes":"aGVsbG8=","lenient":"no number","inner":[{"a":1},{"a":2}],"lines":[{"a":1}]}"#,
        r#"{"n":1.5,"title":null,"inner":null,"inner.a":3,"lines":[]}"#.replace(r#""inner":null,"#, "").as_str(),
        r#"{"n":""}"#,
    ]
    .map(str::to_owned);
    let mut n = 0;
    for document in &fits {
        n += 1;
        lab.write(n, vec![put(&format!("k{n}"), document)]);
    }
    assert_eq!(lab.keys().len(), fits.len());
    let immense = format!(r#"{{"raw":"{}"}}"#, "x".repeat(32_767));
    for (document, named) in [
        (r#"{"unknown":1}"#, "`unknown`"),
        (r#"{"inner":{"x":1}}"#, "`inner.x`"),
        (r#"{"n":"seven"}"#, "[n]"),
        (r#"{"n":2147483648}"#, "`n`"),
        (r#"{"price":"cheap"}"#, "[price]"),
        (r#"{"at":"2026-02-30"}"#, "[at]"),
        (r#"{"day":"2026-01-31"}"#, "[day]"),
        (r#"{"ip":"10.0.0.256"}"#, "[ip]"),
        (r#"{"flag":"yes"}"#, "[flag]"),
        (r#"{"where":{"lat":1}}"#, "[where]"),
        (r#"{"where":{"lat":91,"lon":2}}"#, "latitude"),
        (r#"{"span":{"gte":9,"lt":5}}"#, "[span]"),
        (r#"{"flat":"text"}"#, "flat"),
        (r#"{"inner":5}"#, "`inner`"),
        (r#"{"title":{"a":1}}"#, "`title`"),
        (immense.as_str(), "32767 bytes; the limit is 32766"),
        (r#"{"_id":"x"}"#, "`_id`"),
        (r#"{"n":1,"n":2}"#, "comes twice"),
        ("[]", "must be a JSON object"),
        ("", "no JSON"),
    ] {
        let refusal = lab.refusal(vec![put("bad", document)]);
        assert_eq!(refusal.kind, RefusalKind::Invalid);
        assert!(refusal.message.contains(named) && refusal.message.contains("put of `bad`"), "{document}: {}", refusal.message);
    }
    // One bad document makes its own transaction No, wherever it stands.
    let refusal = lab.refusal(vec![put("good", r#"{"n":1}"#), put("bad", r#"{"n":"seven"}"#)]);
    assert!(refusal.message.contains("`bad`"), "{refusal}");
    assert_eq!(lab.keys().len(), fits.len());
    // Which of these a server takes differs. What gets a Yes is taken.
    for at in [-561_600_000i64, -1, 0, 2_026, 99_999_999, 100_000_000, 9_999_999_999_999, 10_000_000_000_000_000] {
        n += 1;
        if let Vote::Redo(redo, _) = lab.vote(vec![put("date", &format!(r#"{{"at":{at}}}"#))]) {
            let txids = vec![Txid { epoch: Epoch(1), n, decider: Decider::Log }];
            assert_eq!(lab.commit(&[Decided { csn: csn(1, n), txids, redo, trace: None }]).stuck, [], "{at}");
        }
    }
}

#[test]
fn what_is_no_write_of_a_document_is_refused() {
    let Some(mut lab) = Lab::new() else { return };
    let sql = Operation::Statement { sql: "DELETE FROM item; COMMIT".into(), parameters: vec![], expect_rows: None };
    assert!(lab.refusal(vec![sql]).message.contains("takes no SQL"));
    assert!(lab.refusal(vec![put("", "{}")]).message.contains("the key is empty"));
    assert!(lab.refusal(vec![delete(&"é".repeat(257))]).message.contains("514 bytes"));
    assert!(lab.refusal(vec![delete("_lockstep.state")]).message.contains("taken by Lockstep"));
    assert!(lab.refusal(vec![put("k", "{}"), delete("k")]).message.contains("written twice"));
    let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(20 << 20));
    assert!(lab.refused(&large).contains("the limit is 1048576"));
    assert!(matches!(lab.vote(vec![]), Vote::ReadOnly(_)));
    lab.write(1, vec![put(&"é".repeat(256), "{}")]);
}

/// New fields are mapped before the vote, so that nobody can map them otherwise before the write.
#[test]
fn new_fields_are_mapped_before_the_vote() {
    let Some(mut lab) = Lab::new() else { return };
    let first = lab.decide(1, vec![put("a", r#"{"size":5,"at":"2026-01-31","inner":{"x":true}}"#)]);
    assert!(lab.refused(r#"{"size":"large"}"#).contains("[size]"), "the first vote has given `size` its type");
    // A date is text: what looks like a date in one document is none in the next.
    let second = lab.decide(2, vec![put("b", r#"{"at":"tomorrow"}"#)]);
    lab.commit(&[second, first]);
    lab.settle();
    assert_eq!(lab.keys(), ["a", "b"]);
}

#[test]
fn the_limit_on_fields_is_met_before_the_vote() {
    let Some(mut lab) = Lab::new() else { return };
    lab.store.migrate(r#"{"settings":{"mapping.total_fields.limit":12}}"#).unwrap();
    lab.write(1, vec![put("a", r#"{"f1":1,"f2":1}"#)]);
    let many: Vec<String> = (0..20).map(|n| format!("\"g{n}\":1")).collect();
    let refusal = lab.refused(&format!("{{{}}}", many.join(",")));
    assert!(refusal.contains("Limit of total fields [12]"), "{refusal}");
    lab.write(2, vec![put("b", r#"{"f1":2,"f2":2}"#)]);
    assert_eq!(lab.keys(), ["a", "b"]);
}

#[test]
fn new_fields_can_be_refused() {
    let Some(url) = shared() else { return };
    let mut refusing = options(&url, &alias());
    refusing.new_fields = NewFields::Refuse;
    let mut lab = Lab::with(refusing, 1);
    assert!(lab.refused(r#"{"size":5}"#).contains("`size` is not in the mapping"));
    lab.store.migrate(r#"{"mappings":{"properties":{"size":{"type":"long"}}}}"#).unwrap();
    lab.write(1, vec![put("a", r#"{"size":5}"#)]);
    let ignoring = r#"{"mappings":{"dynamic":false}}"#;
    lab.store.migrate(ignoring).unwrap();
    lab.write(2, vec![put("b", r#"{"anything":[{"at":"all"}]}"#)]);
}

/// R-COND, at the store: against what is there, seen by a search or not.
#[test]
fn conditions_are_tested_against_what_is_there() {
    let Some(mut lab) = Lab::new() else { return };
    let decided = lab.decide(1, vec![put_if("k", "{}", Condition::Absent)]);
    lab.commit(&[decided]);
    let refusal = lab.refusal(vec![put_if("k", "{}", Condition::Absent)]);
    assert_eq!((refusal.kind, refusal.message.contains("found it with CSN 1.1")), (RefusalKind::Condition, true), "{refusal}");
    let refusal = lab.refusal(vec![put_if("k", "{}", Condition::Csn(csn(1, 7)))]);
    assert!(refusal.message.contains("expected the document with CSN 1.7, found it with CSN 1.1"), "{refusal}");
    let decided = lab.decide(2, vec![put_if("k", "{}", Condition::Csn(csn(1, 1)))]);
    lab.commit(&[decided]);
    lab.write(3, vec![delete("k")]);
    let refusal = lab.refusal(vec![put_if("k", "{}", Condition::Csn(csn(1, 2)))]);
    assert!(refusal.message.contains("found no such document"), "{refusal}");
    lab.write(4, vec![put_if("k", "{}", Condition::Absent)]);
}

#[test]
fn a_migration_makes_an_empty_index_anew_and_extends_any_other() {
    let Some(mut lab) = Lab::new() else { return };
    let said = lab.store.migrate(r#"{"settings":{"number_of_shards":2},"mappings":{"properties":{"n":{"type":"long"}}}}"#).unwrap();
    assert!(said.contains("-000002` is made"), "{said}");
    assert_eq!(lab.http("GET", &format!("/{}", lab.index()), "").0, 404, "the empty one is gone");
    for n in 1..=5 {
        lab.write(n, vec![put(&format!("k{n}"), r#"{"n":1}"#)]);
    }
    let again = r#"{"settings":{"number_of_shards":2},"mappings":{"properties":{"n":{"type":"long"},"more":{"type":"keyword"}}}}"#;
    assert!(lab.store.migrate(again).unwrap().contains("are set"));
    lab.write(6, vec![put("k6", r#"{"more":"x"}"#)]);
    for (wrong, named) in [
        (r#"{"mappings":{"properties":{"n":{"type":"text"}}}}"#, "cannot be changed"),
        (r#"{"settings":{"number_of_shards":3}}"#, "cannot be changed"),
        (r#"{"aliases":{}}"#, "`aliases` is not taken"),
    ] {
        let refused = lab.store.migrate(wrong).unwrap_err().to_string();
        assert!(refused.contains(named), "{wrong}: {refused}");
    }
    assert_eq!(lab.keys().len(), 6);
    // The session and the next one go on in it.
    lab.recover().unwrap();
    lab.write(7, vec![delete("k1")]);
    assert_eq!(lab.keys().len(), 5);
}

#[test]
fn a_migration_refuses_what_breaks_the_scheme() {
    let Some(mut lab) = Lab::new() else { return };
    for (wrong, named) in [
        (r#"{"settings":{"translog.durability":"async"}}"#, "loses acknowledged writes"),
        (r#"{"settings":{"default_pipeline":"p"}}"#, "ingest pipeline"),
        (r#"{"mappings":{"_routing":{"required":true}}}"#, "routing"),
        (r#"{"mappings":{"_source":{"enabled":false}}}"#, "source"),
        (r#"{"mappings":{"_source":{"includes":["title"]}}}"#, "_source.includes"),
        (r#"{"mappings":{"properties":{"a":{"type":"no such type"}}}}"#, "no such type"),
    ] {
        let refused = lab.store.migrate(wrong).unwrap_err().to_string();
        assert!(refused.contains(named), "{wrong}: {refused}");
    }
    lab.write(1, vec![put("k", "{}")]);
    let refused = lab.store.migrate(r#"{"settings":{"translog.durability":"async"}}"#).unwrap_err().to_string();
    assert!(refused.contains("loses acknowledged writes"), "{refused}");
}
