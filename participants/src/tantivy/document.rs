//! Documents: what is refused before the vote, because Tantivy itself would take it silently and find it never.

use super::plain::is_plain;
use super::schema::{Body, FieldDeclaration, FieldKind, Layout};
use lockstep_core::Csn;
use serde_json::Value;
use tantivy::schema::Field;
use tantivy::time::OffsetDateTime;
use tantivy::time::format_description::well_known::Rfc3339;
use tantivy::tokenizer::MAX_TOKEN_LEN;
use tantivy::{DateTime, TantivyDocument};

/// Bytes of a key at most.
pub const MAX_KEY: usize = 512;
/// Bytes of a field name inside a document at most.
pub const MAX_NAME: usize = 512;

/// Limits of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DocumentLimits {
    /// Bytes of its text.
    pub bytes: usize,
    /// Objects and arrays inside one another; the document itself is the first. At most 100.
    pub depth: usize,
}

/// 1 MiB, 32 deep.
impl Default for DocumentLimits {
    fn default() -> DocumentLimits {
        DocumentLimits { bytes: 1 << 20, depth: 32 }
    }
}

/// Whether this key can be written; if not, a sentence that names the limit.
pub(super) fn check_key(key: &str) -> Result<(), String> {
    match key.len() {
        0 => Err(format!("the key is empty; it must have 1 to {MAX_KEY} bytes")),
        1..=MAX_KEY => Ok(()),
        n => Err(format!("the key has {n} bytes; it must have 1 to {MAX_KEY}")),
    }
}

/// Whether every part of this document will be found; if not, a sentence that names the field and the limit.
pub(super) fn check(layout: &Layout, limits: DocumentLimits, document: &str) -> Result<(), String> {
    if document.len() > limits.bytes {
        return Err(format!("the document has {} bytes; the limit is {}", document.len(), limits.bytes));
    }
    if matches!(layout.body, Body::Dynamic { .. }) && is_plain(document, limits.depth) {
        return Ok(());
    }
    let value: Value = serde_json::from_str(document).map_err(|e| format!("the document is no JSON: {e}"))?;
    let Value::Object(members) = &value else {
        return Err(format!("the document must be a JSON object, not {}", described(&value)));
    };
    match &layout.body {
        Body::Dynamic { .. } => members.iter().try_for_each(|(name, value)| check_any(name, value, 2, limits.depth)),
        Body::Declared { fields, required } => {
            for (name, value) in members {
                let (_, declared) = fields.get(name).ok_or_else(|| format!("the field `{}` is not declared", shown(name)))?;
                check_declared(name, *declared, value, limits.depth)?;
            }
            match required.iter().find(|name| !members.get(*name).is_some_and(has_value)) {
                Some(name) => Err(format!("the field `{name}` is required")),
                None => Ok(()),
            }
        }
    }
}

/// The Tantivy document of a checked document. Never fails: a value that does not fit the layout (one from before a migration) stays
/// in the source and is not indexed.
pub(super) fn build(layout: &Layout, key: &str, csn: Csn, source: &str) -> TantivyDocument {
    let mut document = TantivyDocument::default();
    document.add_text(layout.key, key);
    document.add_u64(layout.csn, csn.to_u64());
    document.add_text(layout.source, source);
    let Ok(value @ Value::Object(_)) = serde_json::from_str::<Value>(source) else { return document };
    match &layout.body {
        Body::Dynamic { values, text } => {
            add_texts(&mut document, *text, &value);
            document.add_field_value(*values, &value);
        }
        Body::Declared { fields, .. } => {
            for (name, value) in value.as_object().into_iter().flatten() {
                if let Some((field, declared)) = fields.get(name) {
                    add_declared(&mut document, *field, declared.kind, value);
                }
            }
        }
    }
    document
}

/// A key or name as a sentence can show it.
pub(super) fn shown(name: &str) -> String {
    match name.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

fn check_declared(name: &str, declared: FieldDeclaration, value: &Value, depth: usize) -> Result<(), String> {
    let wrong = |found: &Value| Err(format!("the field `{name}` must be {}, not {}", declared.kind.described(), described(found)));
    match (declared.kind, value) {
        (_, Value::Null) => Ok(()),
        (_, Value::Array(values)) => values.iter().try_for_each(|value| match value {
            Value::Array(_) => wrong(value),
            value => check_declared(name, declared, value, depth),
        }),
        (FieldKind::Text, Value::String(text)) => check_words(name, text),
        (FieldKind::Keyword, Value::String(text)) => check_token(name, text.len()),
        (FieldKind::Integer, Value::Number(n)) if n.is_i64() => Ok(()),
        (FieldKind::Real, Value::Number(_)) | (FieldKind::Boolean, Value::Bool(_)) => Ok(()),
        (FieldKind::Date, Value::String(text)) if date(text).is_some() => Ok(()),
        (FieldKind::Json, Value::Object(members)) => members.iter().try_for_each(|(inner, value)| check_any(inner, value, 3, depth)),
        (
            FieldKind::Text
            | FieldKind::Keyword
            | FieldKind::Integer
            | FieldKind::Real
            | FieldKind::Boolean
            | FieldKind::Date
            | FieldKind::Json,
            found,
        ) => wrong(found),
    }
}

/// `level`: how many objects and arrays deep this value would be if it were one.
fn check_any(name: &str, value: &Value, level: usize, limit: usize) -> Result<(), String> {
    if name.len() > MAX_NAME {
        return Err(format!("the field name `{}` has {} bytes; the limit is {MAX_NAME}", shown(name), name.len()));
    }
    if name.contains('\0') {
        return Err(format!("the field name `{}` contains a NUL character, which cannot be indexed", shown(&name.replace('\0', "\\0"))));
    }
    if level > limit && (value.is_object() || value.is_array()) {
        return Err(format!("the field `{}` is nested deeper than the limit of {limit}", shown(name)));
    }
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        Value::String(text) => check_words(name, text),
        Value::Array(values) => values.iter().try_for_each(|value| check_any(name, value, level + 1, limit)),
        Value::Object(members) => members.iter().try_for_each(|(name, value)| check_any(name, value, level + 1, limit)),
    }
}

/// Whether every word of a text is one that Tantivy takes.
pub(super) fn is_indexable(text: &str) -> bool {
    longest_word(text) <= MAX_TOKEN_LEN
}

fn check_words(name: &str, text: &str) -> Result<(), String> {
    check_token(name, longest_word(text))
}

/// Bytes of the longest word, as the tokenizer cuts them, at most. Lower case makes a character at most half as long again, so that most
/// texts need no look.
fn longest_word(text: &str) -> usize {
    if text.len() <= MAX_TOKEN_LEN / 2 {
        return text.len();
    }
    let words = text.split(|c: char| !c.is_alphanumeric());
    words.map(|word| word.chars().flat_map(char::to_lowercase).map(char::len_utf8).sum()).max().unwrap_or(0)
}

fn check_token(name: &str, length: usize) -> Result<(), String> {
    if length > MAX_TOKEN_LEN {
        return Err(format!("the field `{}` holds a word of {length} bytes; the limit is {MAX_TOKEN_LEN}", shown(name)));
    }
    Ok(())
}

fn has_value(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(values) => values.iter().any(has_value),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => true,
    }
}

fn add_declared(document: &mut TantivyDocument, field: Field, kind: FieldKind, value: &Value) {
    match (kind, value) {
        (_, Value::Array(values)) => values.iter().for_each(|value| add_declared(document, field, kind, value)),
        (FieldKind::Text | FieldKind::Keyword, Value::String(text)) => document.add_text(field, text),
        (FieldKind::Integer, Value::Number(n)) => n.as_i64().into_iter().for_each(|n| document.add_i64(field, n)),
        (FieldKind::Real, Value::Number(n)) => n.as_f64().into_iter().for_each(|n| document.add_f64(field, n)),
        (FieldKind::Boolean, Value::Bool(b)) => document.add_bool(field, *b),
        (FieldKind::Date, Value::String(text)) => date(text).into_iter().for_each(|date| document.add_date(field, date)),
        (FieldKind::Json, Value::Object(_)) => document.add_field_value(field, value),
        (_, Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {}
    }
}

fn add_texts(document: &mut TantivyDocument, field: Field, value: &Value) {
    match value {
        Value::String(text) => document.add_text(field, text),
        Value::Array(values) => values.iter().for_each(|value| add_texts(document, field, value)),
        Value::Object(members) => members.values().for_each(|value| add_texts(document, field, value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn date(text: &str) -> Option<DateTime> {
    DateTime::try_from_utc(OffsetDateTime::parse(text, &Rfc3339).ok()?)
}

fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(text) => format!("the text \"{}\"", shown(text)),
        Value::Array(_) => "an array".into(),
        Value::Object(_) => "an object".into(),
    }
}
