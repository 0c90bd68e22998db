//! Whether two documents say the same. A member that is null counts as absent, a number as its value, and the order of members as nothing.

use serde_json::{Map, Number, Value};

/// Differences of one document that are told; a person looks at the document for the rest.
const TOLD: usize = 20;
/// Characters of a value that are told.
const VALUE: usize = 200;

/// A place at which two documents differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Names of members and numbers of elements, with dots between them.
    pub path: String,
    /// What the row says; `None`: nothing.
    pub row: Option<String>,
    /// What the document says; `None`: nothing.
    pub document: Option<String>,
}

/// Where they differ, at most [`TOLD`] places.
pub fn differences(row: &Value, document: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(&mut String::new(), Some(row), Some(document), &mut found);
    found
}

fn compare(path: &mut String, row: Option<&Value>, document: Option<&Value>, found: &mut Vec<Difference>) {
    let (row, document) = (row.filter(|value| !value.is_null()), document.filter(|value| !value.is_null()));
    match (row, document) {
        (None, None) => {}
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            for name in names(a, b) {
                inside(path, name, |path| compare(path, a.get(name), b.get(name), found));
            }
        }
        (Some(Value::Object(a)), None) => {
            for (name, value) in a {
                inside(path, name, |path| compare(path, Some(value), None, found));
            }
        }
        (None, Some(Value::Object(b))) => {
            for (name, value) in b {
                inside(path, name, |path| compare(path, None, Some(value), found));
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                inside(path, &i.to_string(), |path| compare(path, Some(a), Some(b), found));
            }
        }
        (Some(Value::Number(a)), Some(Value::Number(b))) if same_number(a, b) => {}
        (Some(a), Some(b)) if a == b => {}
        (row, document) if found.len() < TOLD => {
            found.push(Difference { path: path.clone(), row: row.map(shown), document: document.map(shown) });
        }
        _ => {}
    }
}

fn names<'a>(a: &'a Map<String, Value>, b: &'a Map<String, Value>) -> Vec<&'a String> {
    let mut names: Vec<_> = a.keys().chain(b.keys()).collect();
    names.sort();
    names.dedup();
    names
}

fn inside(path: &mut String, name: &str, compare: impl FnOnce(&mut String)) {
    let length = path.len();
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
    compare(path);
    path.truncate(length);
}

fn same_number(a: &Number, b: &Number) -> bool {
    let integers = (a.as_i64().map(i128::from).or(a.as_u64().map(i128::from)), b.as_i64().map(i128::from).or(b.as_u64().map(i128::from)));
    match integers {
        (Some(a), Some(b)) => a == b,
        _ => a.as_f64() == b.as_f64(),
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_means_the_same_is_the_same() {
        for (row, document) in [
            (json!({"a": 1, "b": {"c": null}}), json!({"b": {}, "a": 1.0, "d": null})),
            (json!({"a": [1, "x"], "e": {}}), json!({"a": [1, "x"], "f": {"g": {"h": null}}})),
        ] {
            assert_eq!(differences(&row, &document), []);
        }
    }

    #[test]
    fn each_difference_has_its_place() {
        let row = json!({"a": 1, "b": {"c": "x"}, "l": [1, 2], "m": [1], "big": i64::MAX});
        let document = json!({"a": "1", "b": {"c": "y", "d": true}, "l": [1, 3], "m": [1, 2], "big": 9_223_372_036_854_775_806_i64});
        let found: Vec<_> =
            differences(&row, &document).into_iter().map(|d| (d.path, d.row.unwrap_or_default(), d.document.unwrap_or_default())).collect();
        let found: Vec<_> = found.iter().map(|(path, row, document)| (path.as_str(), row.as_str(), document.as_str())).collect();
        assert_eq!(
            found,
            [
                ("a", "1", "\"1\""),
                ("b.c", "\"x\"", "\"y\""),
                ("b.d", "", "true"),
                ("big", "9223372036854775807", "9223372036854775806"),
                ("l.1", "2", "3"),
                ("m", "[1]", "[1,2]"),
            ]
        );
        let many: Value = (0..100).map(|i| (format!("f{i}"), json!(i))).collect::<Map<_, _>>().into();
        assert_eq!(differences(&many, &json!({})).len(), TOLD);
    }
}
