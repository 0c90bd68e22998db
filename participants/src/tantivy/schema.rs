//! What documents look like: the declaration an operator gives, and the Tantivy schema made from it.

use crate::StoreError;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tantivy::schema::{
    DateOptions, DateTimePrecision, FAST, Field, INDEXED, IndexRecordOption, JsonObjectOptions, NumericOptions, STORED, STRING, Schema,
    SchemaBuilder, TextFieldIndexing, TextOptions,
};
use tantivy::tokenizer::{LowerCaser, SimpleTokenizer, TextAnalyzer};

/// Fields that an index can have at most.
pub const MAX_FIELDS: usize = 1_000;
/// Bytes of a declared field's name at most.
pub const MAX_FIELD_NAME: usize = 100;

/// The name of the tokenizer of all texts: words in lower case, however long. Tantivy's `default` drops words over 40 bytes silently.
const WORDS: &str = "words";

/// The fields of an index's documents. `{"fields": null}` is *dynamic*: any JSON object is accepted, every value is found by its path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// The declared fields by name; a document may have no others. `None`: dynamic.
    #[serde(deserialize_with = "Option::deserialize")]
    pub fields: Option<BTreeMap<String, FieldDeclaration>>,
}

/// One declared field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldDeclaration {
    /// What its values are.
    #[serde(rename = "type")]
    pub kind: FieldKind,
    /// Whether every document must have a value that is not null.
    #[serde(default)]
    pub required: bool,
}

/// Types of declared fields. A document may hold one value, an array of values, or null, which counts as absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FieldKind {
    /// Text, found by its words.
    Text,
    /// Text, found as a whole.
    Keyword,
    /// A 64-bit signed integer.
    Integer,
    /// A double; integers are taken too.
    Real,
    /// `true` or `false`.
    Boolean,
    /// An RFC 3339 date and time, 1677–2262, kept in microseconds.
    Date,
    /// A JSON object, found by path and value.
    Json,
}

impl FieldKind {
    /// As the declaration spells it, with its article.
    pub(super) fn described(self) -> &'static str {
        match self {
            FieldKind::Text => "text",
            FieldKind::Keyword => "a keyword (text)",
            FieldKind::Integer => "an integer of 64 bits",
            FieldKind::Real => "a real number",
            FieldKind::Boolean => "a boolean",
            FieldKind::Date => "a date (RFC 3339, years 1677 to 2262)",
            FieldKind::Json => "a JSON object",
        }
    }
}

impl Declaration {
    /// Reads and checks an operator's script. Errors: [`StoreError::Invalid`], naming the field.
    pub fn parse(script: &str) -> Result<Declaration, StoreError> {
        let declaration: Declaration = serde_json::from_str(script).map_err(|e| {
            StoreError::Invalid(format!(
                "the schema is not of the form {{\"fields\": {{\"title\": {{\"type\": \"text\", \"required\": true}}}}}}: {e}"
            ))
        })?;
        let Some(fields) = &declaration.fields else { return Ok(declaration) };
        if fields.is_empty() || fields.len() > MAX_FIELDS {
            return Err(StoreError::Invalid(format!("the schema has {} fields; it must have 1 to {MAX_FIELDS}", fields.len())));
        }
        for name in fields.keys() {
            let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !letters || !name.starts_with(|c: char| c.is_ascii_alphabetic()) || name.len() > MAX_FIELD_NAME {
                return Err(StoreError::Invalid(format!(
                    "the field name `{name}` must be 1 to {MAX_FIELD_NAME} letters, digits and underscores (ASCII), a letter first"
                )));
            }
        }
        Ok(declaration)
    }
}

/// A declaration's Tantivy schema, with the handles of its fields.
#[derive(Debug)]
pub(super) struct Layout {
    pub schema: Schema,
    /// The document's key.
    pub key: Field,
    /// The CSN of the write that made it.
    pub csn: Field,
    /// The document as it was given.
    pub source: Field,
    pub body: Body,
}

/// Where a document's content is indexed.
#[derive(Debug)]
pub(super) enum Body {
    /// Every value by its path in `values`, every text in `text` too, so that a plain word finds it.
    Dynamic { values: Field, text: Field },
    /// Each declared field in its own.
    Declared { fields: FxHashMap<String, (Field, FieldDeclaration)>, required: Vec<String> },
}

/// The dynamic body's field of values by path.
pub(super) const VALUES: &str = "_doc";

impl Layout {
    pub fn new(declaration: &Declaration) -> Layout {
        let mut schema = SchemaBuilder::new();
        let key = schema.add_text_field("_key", STRING | STORED);
        let csn = schema.add_u64_field("_csn", INDEXED | FAST | STORED);
        let source = schema.add_text_field("_source", STORED);
        let body = match &declaration.fields {
            None => Body::Dynamic {
                values: schema.add_json_field(VALUES, JsonObjectOptions::default().set_indexing_options(words())),
                text: schema.add_text_field("_text", TextOptions::default().set_indexing_options(words())),
            },
            Some(fields) => Body::Declared {
                fields: fields.iter().map(|(name, field)| (name.clone(), (add_field(&mut schema, name, field.kind), *field))).collect(),
                required: fields.iter().filter(|(_, field)| field.required).map(|(name, _)| name.clone()).collect(),
            },
        };
        Layout { schema: schema.build(), key, csn, source, body }
    }

    /// Fields that a word without a field name is looked for in.
    pub fn default_fields(&self) -> Vec<Field> {
        match &self.body {
            Body::Dynamic { text, .. } => vec![*text],
            Body::Declared { fields, .. } => {
                let of = |kind| fields.values().filter(move |(_, f)| f.kind == kind).map(|(field, _)| *field);
                let mut fields: Vec<Field> = of(FieldKind::Text).chain(of(FieldKind::Keyword)).collect();
                fields.sort();
                fields
            }
        }
    }
}

/// Makes this crate's tokenizer known to an index.
pub(super) fn register_tokenizers(index: &tantivy::Index) {
    index.tokenizers().register(WORDS, TextAnalyzer::builder(SimpleTokenizer::default()).filter(LowerCaser).build());
}

fn words() -> TextFieldIndexing {
    TextFieldIndexing::default().set_tokenizer(WORDS).set_index_option(IndexRecordOption::WithFreqsAndPositions)
}

fn add_field(schema: &mut SchemaBuilder, name: &str, kind: FieldKind) -> Field {
    let number = NumericOptions::default().set_indexed().set_fast();
    match kind {
        FieldKind::Text => schema.add_text_field(name, TextOptions::default().set_indexing_options(words())),
        FieldKind::Keyword => schema.add_text_field(name, STRING),
        FieldKind::Integer => schema.add_i64_field(name, number),
        FieldKind::Real => schema.add_f64_field(name, number),
        FieldKind::Boolean => schema.add_bool_field(name, number),
        FieldKind::Date => {
            schema.add_date_field(name, DateOptions::default().set_indexed().set_fast().set_precision(DateTimePrecision::Microseconds))
        }
        FieldKind::Json => schema.add_json_field(name, JsonObjectOptions::default().set_indexing_options(words())),
    }
}
