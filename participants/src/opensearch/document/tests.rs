//! What is certain here, what is asked, what is refused.

use super::super::mapping::Mapping;
use super::*;

fn mapping(properties: Value, more: Value) -> Mapping {
    let mut mappings = json!({"properties": properties});
    if let (Value::Object(mappings), Value::Object(more)) = (&mut mappings, more) {
        mappings.extend(more);
    }
    Mapping::parse(&mappings, &Map::new()).unwrap()
}

fn strict() -> Mapping {
    let properties = json!({
        "text": {"type": "text"}, "k": {"type": "keyword"}, "short": {"type": "keyword", "ignore_above": 10},
        "raw": {"type": "text", "fields": {"raw": {"type": "keyword"}}}, "copied": {"type": "text", "copy_to": "k"},
        "n": {"type": "long"}, "b": {"type": "byte"}, "f": {"type": "half_float"}, "flag": {"type": "boolean"},
        "at": {"type": "date"}, "ip": {"type": "ip"}, "geo": {"type": "geo_point"}, "other": {"type": "alias", "path": "n"},
        "inner": {"properties": {"n": {"type": "integer"}}}, "list": {"type": "nested", "properties": {"n": {"type": "long"}}},
        "dark": {"type": "object", "enabled": false}, "loose": {"dynamic": false, "properties": {}},
    });
    mapping(properties, json!({"dynamic": "strict"}))
}

fn refused(document: &str) -> String {
    check(&strict(), 1 << 20, document).expect_err(document)
}

fn certain(document: &str) {
    assert_eq!(check(&strict(), 1 << 20, document), Ok(Checked::default()), "{document}");
}

fn asked(document: &str) {
    assert!(check(&strict(), 1 << 20, document).unwrap().ask.is_some(), "{document}");
}

#[test]
fn what_fits_for_certain() {
    certain("{}");
    certain(
        r#"{"text":"a","k":true,"n":-9223372036854775808,"b":127,"f":65504,"flag":false,"ip":"::1","inner":{"n":1},"list":[{"n":1},{}]}"#,
    );
    certain(r#"{"text":["a",["b",null]],"n":null,"inner":null,"inner.n":2,"inner":[{"n":3}]}"#.replace(r#""inner":null,"#, "").as_str());
    certain(r#"{"at":"2026-01-31","dark":{"any":[1,"x"]},"dark.too":1,"loose":{"x":{"y":1}}}"#);
    for at in ["2026-02-28", "2026-01-31T10:20Z", "2026-01-31T10:20:30.123+01:00", "2026-01-31T10:20:30"] {
        certain(&format!(r#"{{"at":"{at}"}}"#));
    }
    certain(&format!(r#"{{"text":"\\\"{}"}}"#, "1".repeat(600)));
    certain(&format!(r#"{{"short":"{}"}}"#, "x".repeat(40_000)));
}

#[test]
fn what_the_server_is_asked() {
    for document in [
        r#"{"n":"7"}"#,
        r#"{"n":1.5}"#,
        r#"{"n":true}"#,
        r#"{"n":""}"#,
        r#"{"f":70000}"#,
        r#"{"flag":"yes"}"#,
        r#"{"at":"2026-02-29"}"#,
        r#"{"at":"tomorrow"}"#,
        r#"{"at":"2026-01-31T25:00Z"}"#,
        r#"{"at":1.5}"#,
        r#"{"ip":"1.2.3"}"#,
        r#"{"geo":{"lat":1}}"#,
        r#"{"geo":[1,2]}"#,
    ] {
        asked(document);
    }
}

#[test]
fn what_is_refused_names_the_field_and_the_limit() {
    assert!(refused("[]").contains("must be a JSON object, not an array"));
    assert!(refused("{").contains("no JSON"));
    assert!(refused(r#"{"text":"\ud800"}"#).contains("no JSON"));
    assert!(refused(r#"{"n":1e999}"#).contains("no JSON"));
    assert!(refused(r#"{"_id":"x"}"#).contains("`_id`"));
    assert!(refused(r#"{"_lockstep":{}}"#).contains("`_lockstep`"));
    assert!(refused(r#"{"unknown":1}"#).contains("`unknown` is not in the mapping"));
    assert!(refused(r#"{"inner":{"x":1}}"#).contains("`inner.x`"));
    assert!(refused(r#"{"inner.x":1}"#).contains("`inner.x`"));
    assert!(refused(r#"{"inner":1}"#).contains("`inner` must be an object, not a number"));
    assert!(refused(r#"{"n":{"a":1}}"#).contains("`n` must be a whole number, not an object"));
    assert!(refused(r#"{"n.a":1}"#).contains("`n`"));
    assert!(refused(r#"{"b":128}"#).contains("from -128 to 127"));
    assert!(refused(r#"{"other":1}"#).contains("alias"));
    assert!(refused(&format!(r#"{{"f":0.{}}}"#, "1".repeat(600))).contains("more than 500 characters"));
    assert!(refused(r#"{"geo":{"lat":1,"lat":2}}"#).contains("comes twice"));
    assert!(refused(r#"{"n":1,"n":2}"#).contains("comes twice"));
    assert!(refused(r#"{"dark":{"a":1,"a":2}}"#).contains("comes twice"));
    assert!(refused(r#"{"inner..n":1}"#).contains("is no name"));
    assert!(refused(r#"{"":1}"#).contains("is no name"));
    for field in ["k", "raw", "copied"] {
        let long = format!(r#"{{"{field}":"{}"}}"#, "é".repeat(16_384));
        assert!(refused(&long).contains("32768 bytes; the limit is 32766"), "{field}");
    }
    assert!(refused(&format!(r#"{{"dark":{}1{}}}"#, "[".repeat(110), "]".repeat(110))).contains("100 levels deep"));
    assert!(refused(&format!(r#"{{"text":{}1{}}}"#, "[".repeat(5_000), "]".repeat(5_000))).contains("no JSON"));
    let large = format!(r#"{{"text":"{}"}}"#, "x".repeat(1 << 20));
    assert!(refused(&large).contains("the limit is 1048576"));
    assert!(refused(&format!(r#"{{"loose":{{"{}":1}}}}"#, "n".repeat(513))).contains("513 bytes; the limit is 512"));
}

#[test]
fn nested_objects_are_counted() {
    let settings = json!({"index.mapping.nested_objects.limit": "2"});
    let mapping = Mapping::parse(&json!({"properties": {"list": {"type": "nested"}}}), settings.as_object().unwrap()).unwrap();
    assert!(check(&mapping, 1 << 20, r#"{"list":[{},{}]}"#).is_ok());
    assert!(check(&mapping, 1 << 20, r#"{"list":[{},{},{}]}"#).unwrap_err().contains("more than 2 nested objects"));
}

#[test]
fn new_fields_get_a_type() {
    let mapping = mapping(json!({"inner": {"properties": {}}}), json!({}));
    let document =
        r#"{"a":"x","n":1,"big":18446744073709551615,"f":1.5,"b":[null,[true]],"e":[],"z":null,"o":{},"inner":{"d":{"c":1}},"p.q":2}"#;
    let checked = check(&mapping, 1 << 20, document).unwrap();
    let text = json!({"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}});
    let long = json!({"type": "long"});
    let expected = json!({
        "a": text, "n": long, "big": {"type": "double"}, "f": {"type": "double"}, "b": {"type": "boolean"},
        "o": {"type": "object", "properties": {}},
        "inner": {"properties": {"d": {"type": "object", "properties": {"c": long}}}},
        "p": {"properties": {"q": long}},
    });
    assert_eq!(Value::Object(checked.new_fields), expected);
    assert_eq!(checked.ask, None);
}

#[test]
fn keys() {
    assert!(check_key("", "state").unwrap_err().contains("1 to 512 bytes"));
    assert!(check_key(&"é".repeat(257), "state").unwrap_err().contains("514 bytes"));
    assert!(check_key("state", "state").unwrap_err().contains("taken by Lockstep"));
    assert!(check_key("\0\n\" /", "state").is_ok());
}
