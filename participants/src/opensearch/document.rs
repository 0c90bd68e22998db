//! Documents: whether the server will take them, before the vote. What is not certain here is asked there.

use super::http::shortened;
use super::mapping::{Dynamic, Field, Leaf, LeafKind, Mapping, Object, TERM_MAX};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;

/// Bytes of a key at most (the server's limit on `_id`).
pub const MAX_KEY: usize = 512;
/// Bytes of a field's name at most.
pub const MAX_NAME: usize = 512;
/// Objects and arrays inside one another at most; the document itself is the first.
pub const MAX_DEPTH: usize = 100;
/// Characters of a number at most (the server's parser takes 1,000).
const NUMBER_MAX: usize = 500;

/// What is known of a document that was not refused.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Checked {
    /// The server has to be asked about a value: which field, and what type it has.
    pub ask: Option<String>,
    /// Fields that the mapping does not have and that would be mapped, as `properties`.
    pub new_fields: Map<String, Value>,
}

/// Whether this key can be written; if not, a sentence that names the limit.
pub(super) fn check_key(key: &str, state: &str) -> Result<(), String> {
    match key.len() {
        0 => Err(format!("the key is empty; it must have 1 to {MAX_KEY} bytes")),
        1..=MAX_KEY if key == state => Err(format!("the key `{state}` is taken by Lockstep itself")),
        1..=MAX_KEY => Ok(()),
        n => Err(format!("the key has {n} bytes; it must have 1 to {MAX_KEY}")),
    }
}

/// Whether the server will take this document under this mapping; if not, a sentence that names the field and the limit.
pub(super) fn check(mapping: &Mapping, bytes_max: usize, document: &str) -> Result<Checked, String> {
    if document.len() > bytes_max {
        return Err(format!("the document has {} bytes; the limit is {bytes_max}", document.len()));
    }
    if longest_number(document) > NUMBER_MAX {
        return Err(format!("the document has a number of more than {NUMBER_MAX} characters"));
    }
    let node: Node = serde_json::from_str(document).map_err(|e| format!("the document is no JSON: {e}"))?;
    let Node::Object(members) = &node else {
        return Err(format!("the document must be a JSON object, not {}", node.described()));
    };
    if let Some((name, _)) = members.iter().find(|(name, _)| name.starts_with('_')) {
        return Err(format!("the field `{}` begins with an underscore: such names belong to the server and to Lockstep", shown(name)));
    }
    let mut check = Check { mapping, checked: Checked::default(), nested: 0, path: Vec::new() };
    check.object(Some(&mapping.root), members, 1)?;
    Ok(check.checked)
}

/// Characters of the longest number of a JSON text.
fn longest_number(document: &str) -> usize {
    let (mut longest, mut run, mut in_text, mut escaped) = (0, 0, false, false);
    for byte in document.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E' => {
                run += 1;
                longest = longest.max(run);
                continue;
            }
            _ => {}
        }
        run = 0;
    }
    longest
}

/// A key or name as a sentence can show it.
pub(super) fn shown(name: &str) -> String {
    shortened(name, 60)
}

/// JSON, with the order and all the members of its objects: the server refuses a name that comes twice.
#[derive(Debug)]
enum Node {
    Null,
    Bool,
    Integer(i64),
    /// Also whole numbers beyond an `i64`.
    Real(f64),
    Text(String),
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
}

struct Check<'a> {
    mapping: &'a Mapping,
    checked: Checked,
    /// Nested objects so far.
    nested: usize,
    path: Vec<String>,
}

impl<'a> Check<'a> {
    /// `object` is `None` where nothing below is indexed, or where everything below is new.
    fn object(&mut self, object: Option<&'a Object>, members: &[(String, Node)], depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("the field `{}` lies more than {MAX_DEPTH} levels deep", self.shown_path()));
        }
        let mut names = HashSet::with_capacity(members.len());
        for (name, value) in members {
            if !names.insert(name.as_str()) {
                return Err(format!("the field `{}` comes twice in one object", self.shown_below(name)));
            }
            if name.len() > MAX_NAME {
                return Err(format!(
                    "the name of the field `{}` has {} bytes; the limit is {MAX_NAME}",
                    self.shown_below(name),
                    name.len()
                ));
            }
            match object {
                None => self.unindexed(value, depth)?,
                Some(object) => self.member(object, name, value, depth)?,
            }
        }
        Ok(())
    }

    /// One member; its name may be a path with dots.
    fn member(&mut self, object: &'a Object, name: &str, value: &Node, depth: usize) -> Result<(), String> {
        if name.split('.').any(|part| part.trim().is_empty()) {
            return Err(format!("`{}` is no name of a field: a part of it is empty", self.shown_below(name)));
        }
        let (part, rest) = name.split_once('.').map_or((name, None), |(part, rest)| (part, Some(rest)));
        self.path.push(part.to_owned());
        let done = match (object.fields.get(part), rest) {
            (Some(Field::Object(inner)), Some(rest)) if inner.enabled => {
                if inner.nested {
                    Err(self.wrong("nested objects under their own name", value))
                } else {
                    self.member(inner, rest, value, depth)
                }
            }
            (Some(Field::Object(inner)), None) if inner.enabled => self.objects(inner, value, depth),
            (Some(Field::Object(_)), _) => self.unindexed(value, depth),
            (Some(Field::Leaf(leaf)), None) => self.leaf(leaf, value, depth),
            (Some(Field::Leaf(leaf)), Some(_)) => Err(self.wrong(leaf.kind.described(), value)),
            (None, _) => self.unknown(object.dynamic, rest, value, depth),
        };
        self.path.pop();
        done
    }

    fn objects(&mut self, object: &'a Object, value: &Node, depth: usize) -> Result<(), String> {
        match value {
            Node::Null => Ok(()),
            Node::Object(members) => {
                if object.nested {
                    self.nested += 1;
                    if self.nested > self.mapping.nested_max {
                        let most = self.mapping.nested_max;
                        return Err(format!("the document has more than {most} nested objects (index.mapping.nested_objects.limit)"));
                    }
                }
                self.object(Some(object), members, depth + 1)
            }
            Node::Array(items) => items.iter().try_for_each(|item| self.objects(object, item, depth + 1)),
            found => Err(self.wrong("an object", found)),
        }
    }

    fn leaf(&mut self, leaf: &'a Leaf, value: &Node, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("the field `{}` lies more than {MAX_DEPTH} levels deep", self.shown_path()));
        }
        match (&leaf.kind, value) {
            // Arrays and objects may be values there; they must be JSON as the server reads it all the same.
            (LeafKind::Other(_), value) => self.unindexed(value, depth)?,
            (_, Node::Array(items)) => return items.iter().try_for_each(|item| self.leaf(leaf, item, depth + 1)),
            _ => {}
        }
        self.value(leaf, value)?;
        leaf.also.iter().try_for_each(|also| self.value(also, value))?;
        for path in &leaf.copy_to {
            match self.mapping.leaf(path) {
                Some(target) => self.value(target, value)?,
                None => return Err(format!("the field `{}` is copied to `{path}`, which is not mapped", self.shown_path())),
            }
        }
        Ok(())
    }

    fn value(&mut self, leaf: &Leaf, value: &Node) -> Result<(), String> {
        let most = |text: &str| text.len() <= TERM_MAX;
        let certain = match (&leaf.kind, value) {
            (LeafKind::Alias, _) => return Err(self.wrong("left out: it is an alias of another field", value)),
            (LeafKind::Other(_), _) => false,
            (_, Node::Null) => true,
            (_, Node::Object(_)) => return Err(self.wrong(leaf.kind.described(), value)),
            (LeafKind::Text, Node::Text(_) | Node::Bool | Node::Integer(_) | Node::Real(_)) => true,
            (LeafKind::Keyword { ignore_above }, Node::Text(text)) => {
                if !most(text) && ignore_above.is_none_or(|above| text.chars().count() <= above) {
                    let bytes = text.len();
                    return Err(format!("the field `{}` has a term of {bytes} bytes; the limit is {TERM_MAX}", self.shown_path()));
                }
                true
            }
            (LeafKind::Keyword { .. }, Node::Bool | Node::Integer(_) | Node::Real(_)) => true,
            (LeafKind::Integer { least, most }, Node::Integer(n)) => {
                if (n < least || n > most) && !leaf.ignore_malformed {
                    return Err(format!("the field `{}` must be from {least} to {most}, not {n}", self.shown_path()));
                }
                true
            }
            (LeafKind::Real { most }, Node::Integer(n)) => (*n as f64).abs() <= *most,
            (LeafKind::Real { most }, Node::Real(n)) => n.abs() <= *most,
            (LeafKind::Boolean, Node::Bool) => true,
            (LeafKind::Date, Node::Text(text)) => certain_date(text),
            // Some servers refuse what lies before 1970, or reads as a year: those are asked.
            (LeafKind::Date, Node::Integer(n)) => (100_000_000..10_000_000_000_000).contains(n),
            (LeafKind::Ip, Node::Text(text)) => text.parse::<IpAddr>().is_ok(),
            (_, _) => false,
        };
        if !certain && self.checked.ask.is_none() {
            self.checked.ask = Some(self.shown_path());
        }
        Ok(())
    }

    fn unknown(&mut self, dynamic: Dynamic, rest: Option<&str>, value: &Node, depth: usize) -> Result<(), String> {
        match dynamic {
            Dynamic::Ignores => self.unindexed(value, depth),
            Dynamic::Refuses => Err(format!("the field `{}` is not in the mapping, which takes no others (dynamic)", self.shown_path())),
            Dynamic::Maps => {
                self.unindexed(value, depth)?;
                let parts: Vec<String> =
                    self.path.iter().cloned().chain(rest.into_iter().flat_map(|r| r.split('.')).map(str::to_owned)).collect();
                if let Some(definition) = definition(value) {
                    put(&mut self.checked.new_fields, &parts, definition);
                }
                Ok(())
            }
        }
    }

    /// What is not indexed still has to be JSON as the server reads it.
    fn unindexed(&mut self, value: &Node, depth: usize) -> Result<(), String> {
        match value {
            Node::Object(members) => self.object(None, members, depth + 1),
            Node::Array(_) if depth >= MAX_DEPTH => {
                Err(format!("the field `{}` lies more than {MAX_DEPTH} levels deep", self.shown_path()))
            }
            Node::Array(items) => items.iter().try_for_each(|item| self.unindexed(item, depth + 1)),
            Node::Null | Node::Bool | Node::Integer(_) | Node::Real(_) | Node::Text(_) => Ok(()),
        }
    }

    fn wrong(&self, expected: &str, found: &Node) -> String {
        format!("the field `{}` must be {expected}, not {}", self.shown_path(), found.described())
    }

    fn shown_path(&self) -> String {
        shown(&self.path.join("."))
    }

    fn shown_below(&self, name: &str) -> String {
        match self.path.is_empty() {
            true => shown(name),
            false => shown(&format!("{}.{name}", self.path.join("."))),
        }
    }
}

impl LeafKind {
    fn described(&self) -> &str {
        match self {
            LeafKind::Text => "text",
            LeafKind::Keyword { .. } => "a keyword",
            LeafKind::Integer { .. } => "a whole number",
            LeafKind::Real { .. } => "a number",
            LeafKind::Boolean => "true or false",
            LeafKind::Date => "a time",
            LeafKind::Ip => "an IP address",
            LeafKind::Alias => "left out",
            LeafKind::Other(name) => name,
        }
    }
}

impl Node {
    fn described(&self) -> &'static str {
        match self {
            Node::Null => "null",
            Node::Bool => "a boolean",
            Node::Integer(_) | Node::Real(_) => "a number",
            Node::Text(_) => "text",
            Node::Array(_) => "an array",
            Node::Object(_) => "an object",
        }
    }
}

/// The type that a new field is given; `None` where the server gives none either.
fn definition(value: &Node) -> Option<Value> {
    match value {
        Node::Null => None,
        Node::Bool => Some(json!({"type": "boolean"})),
        Node::Integer(_) => Some(json!({"type": "long"})),
        Node::Real(_) => Some(json!({"type": "double"})),
        Node::Text(_) => Some(json!({"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}})),
        Node::Array(items) => items.iter().find_map(definition),
        Node::Object(members) => {
            let mut properties = Map::new();
            for (name, value) in members {
                let parts: Vec<String> = name.split('.').map(str::to_owned).collect();
                if let Some(definition) = definition(value) {
                    put(&mut properties, &parts, definition);
                }
            }
            Some(json!({"type": "object", "properties": properties}))
        }
    }
}

/// Puts a definition at a path, below what is there; the first one stays.
fn put(properties: &mut Map<String, Value>, path: &[String], definition: Value) {
    let Some((part, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        match (properties.get_mut(part), definition) {
            (None, definition) => drop(properties.insert(part.clone(), definition)),
            (Some(there), Value::Object(mut more)) => {
                if let (Some(Value::Object(there)), Some(Value::Object(more))) = (there.get_mut("properties"), more.remove("properties")) {
                    more.into_iter().for_each(|(name, definition)| put(there, &[name], definition));
                }
            }
            (Some(_), _) => {}
        }
        return;
    }
    let below = properties.entry(part.clone()).or_insert_with(|| json!({}));
    if let Value::Object(below) = below
        && !below.contains_key("fields")
        && let Value::Object(inner) = below.entry("properties").or_insert_with(|| json!({}))
    {
        put(inner, rest, definition);
    }
}

/// Whether a text surely is a time in `strict_date_optional_time`: `2026-01-31`, `2026-01-31T10:20Z`, `2026-01-31T10:20:30.5+01:00`.
fn certain_date(text: &str) -> bool {
    let digits = |text: &str, range: std::ops::Range<usize>, least: u32, most: u32| {
        let part = text.get(range).filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
        part.and_then(|part| part.parse::<u32>().ok()).is_some_and(|n| (least..=most).contains(&n))
    };
    let bytes = text.as_bytes();
    // Days beyond the 28th depend on the month: of those the server is asked, but for the 29th and 30th of most.
    let month = text.get(5..7).unwrap_or_default();
    let days = match month {
        "02" => 28,
        "04" | "06" | "09" | "11" => 30,
        _ => 31,
    };
    let date = bytes.len() >= 10
        && digits(text, 0..4, 1, 9999)
        && bytes[4] == b'-'
        && digits(text, 5..7, 1, 12)
        && bytes[7] == b'-'
        && digits(text, 8..10, 1, days);
    let Some(rest) = text.get(10..).filter(|_| date) else { return false };
    if rest.is_empty() {
        return true;
    }
    let time =
        rest.len() >= 6 && rest.starts_with('T') && digits(rest, 1..3, 0, 23) && rest.as_bytes()[3] == b':' && digits(rest, 4..6, 0, 59);
    let Some(mut rest) = rest.get(6..).filter(|_| time) else { return false };
    if rest.starts_with(':') {
        if !digits(rest, 1..3, 0, 59) {
            return false;
        }
        rest = rest.get(3..).unwrap_or_default();
        if let Some(fraction) = rest.strip_prefix('.') {
            let n = fraction.bytes().take_while(u8::is_ascii_digit).count();
            if !(1..=9).contains(&n) {
                return false;
            }
            rest = &fraction[n..];
        }
    }
    let offset = |rest: &str| rest.len() == 6 && digits(rest, 1..3, 0, 14) && rest.as_bytes()[3] == b':' && digits(rest, 4..6, 0, 59);
    rest.is_empty() || rest == "Z" || (rest.starts_with(['+', '-']) && offset(rest))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Bool)
            }

            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Integer(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(i64::try_from(value).map_or(Node::Real(value as f64), Node::Integer))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Real(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Text(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<Node, E> {
                Ok(Node::Text(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
                let mut array = Vec::new();
                while let Some(item) = items.next_element()? {
                    array.push(item);
                }
                Ok(Node::Array(array))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Node, A::Error> {
                let mut object = Vec::new();
                while let Some(member) = members.next_entry()? {
                    object.push(member);
                }
                Ok(Node::Object(object))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests;
