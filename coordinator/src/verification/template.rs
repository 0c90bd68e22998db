//! What a row's document looks like: JSON in which `{column}` stands for a column of the query.

use lockstep_core::Value as Field;
use serde_json::{Map, Number, Value};

/// A document's shape.
#[derive(Clone, Debug, PartialEq)]
pub enum Template {
    /// As it stands.
    Literal(Value),
    /// A column's value, with its type.
    Column(Column),
    /// Text with columns in it; null if one of them is NULL.
    Text(Vec<Piece>),
    /// Its members.
    Object(Vec<(String, Template)>),
    /// Its elements.
    Array(Vec<Template>),
}

/// A part of a text.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// As it stands.
    Literal(String),
    /// A column's value as text.
    Column(Column),
}

/// A column, and what is made of its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    name: String,
    conversion: Conversion,
}

/// What is made of a column's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conversion {
    /// Its own type.
    None,
    /// JSON in a text.
    Json,
    /// True or false, also from 1 or 0.
    Bool,
    /// A number, also from a text (PostgreSQL's `numeric`).
    Number,
    /// A text.
    Text,
}

impl Template {
    /// From the configuration. The error names the text that cannot be read.
    pub fn parse(value: &Value) -> Result<Template, String> {
        Ok(match value {
            Value::String(text) => Template::text(pieces(text)?),
            Value::Object(members) => Template::Object(
                members.iter().map(|(name, value)| Ok((name.clone(), Template::parse(value)?))).collect::<Result<_, String>>()?,
            ),
            Value::Array(elements) => Template::Array(elements.iter().map(Template::parse).collect::<Result<_, _>>()?),
            Value::Null | Value::Bool(_) | Value::Number(_) => Template::Literal(value.clone()),
        })
    }

    fn text(mut pieces: Vec<Piece>) -> Template {
        match (pieces.pop(), pieces.is_empty()) {
            (None, _) => Template::Literal("".into()),
            (Some(Piece::Literal(text)), true) => Template::Literal(text.into()),
            (Some(Piece::Column(column)), true) => Template::Column(column),
            (Some(last), false) => {
                pieces.push(last);
                Template::Text(pieces)
            }
        }
    }

    /// The document of a row. Members whose column is NULL are left out.
    pub fn fill(&self, columns: &[String], row: &[Field]) -> Result<Value, String> {
        match self {
            Template::Literal(value) => Ok(value.clone()),
            Template::Column(column) => column.json(columns, row),
            Template::Text(pieces) => {
                let mut text = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Literal(literal) => text += literal,
                        Piece::Column(column) => match text_of(column.json(columns, row)?) {
                            Some(value) => text += &value,
                            None => return Ok(Value::Null),
                        },
                    }
                }
                Ok(text.into())
            }
            Template::Object(members) => {
                let mut object = Map::new();
                for (name, template) in members {
                    let value = template.fill(columns, row)?;
                    if !value.is_null() {
                        object.insert(name.clone(), value);
                    }
                }
                Ok(object.into())
            }
            Template::Array(elements) => {
                elements.iter().map(|element| element.fill(columns, row)).collect::<Result<Vec<_>, _>>().map(Value::from)
            }
        }
    }
}

impl Column {
    /// The column's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn json(&self, columns: &[String], row: &[Field]) -> Result<Value, String> {
        let Column { name, conversion } = self;
        let at = columns.iter().position(|column| column == name);
        let unknown = || format!("document: the query gives no column `{name}`; it gives {}", columns.join(", "));
        let unfit = |what: &str| format!("document: the column `{name}` holds {what}");
        let own = match &row[at.ok_or_else(unknown)?] {
            Field::Null => return Ok(Value::Null),
            Field::Boolean(value) => Value::Bool(*value),
            Field::Integer(value) => Value::from(*value),
            Field::Real(value) => Number::from_f64(*value).map(Value::Number).ok_or_else(|| unfit("no number that JSON knows"))?,
            Field::Text(text) => Value::String(text.clone()),
            Field::Blob(_) => return Err(unfit("bytes, and a document holds none: make a text of them in the query")),
        };
        match (conversion, own) {
            (Conversion::None, own) => Ok(own),
            (Conversion::Json, Value::String(text)) => {
                serde_json::from_str(&text).map_err(|error| unfit(&format!("a text that is no JSON: {error}")))
            }
            (Conversion::Json, own) => Ok(own),
            (Conversion::Bool, own @ Value::Bool(_)) => Ok(own),
            (Conversion::Bool, own) => match own.as_i64() {
                Some(0) => Ok(false.into()),
                Some(1) => Ok(true.into()),
                _ => Err(unfit("neither true or false, nor 1 or 0")),
            },
            (Conversion::Number, own @ Value::Number(_)) => Ok(own),
            (Conversion::Number, Value::String(text)) => {
                serde_json::from_str::<Number>(text.trim()).map(Value::Number).map_err(|_| unfit("a text that is no number"))
            }
            (Conversion::Number, _) => Err(unfit("no number")),
            (Conversion::Text, own) => Ok(text_of(own).map_or(Value::Null, Value::String)),
        }
    }
}

/// The literal parts and the columns of a text; `{{` and `}}` stand for themselves.
pub fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let (mut pieces, mut literal, mut rest) = (Vec::new(), String::new(), text);
    while let Some(at) = rest.find(['{', '}']) {
        literal += &rest[..at];
        let (brace, behind) = rest[at..].split_at(1);
        if let Some(escaped) = behind.strip_prefix(brace) {
            literal += brace;
            rest = escaped;
            continue;
        }
        let end = behind.find('}').filter(|_| brace == "{");
        let end = end.ok_or_else(|| format!("`{text}` has a brace without its other half; for a brace itself write it twice"))?;
        if !literal.is_empty() {
            pieces.push(Piece::Literal(std::mem::take(&mut literal)));
        }
        pieces.push(Piece::Column(column(&behind[..end])?));
        rest = &behind[end + 1..];
    }
    literal += rest;
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    Ok(pieces)
}

fn column(text: &str) -> Result<Column, String> {
    let (name, conversion) = match text.rsplit_once(':') {
        None => (text, Conversion::None),
        Some((name, "json")) => (name, Conversion::Json),
        Some((name, "bool")) => (name, Conversion::Bool),
        Some((name, "number")) => (name, Conversion::Number),
        Some((name, "text")) => (name, Conversion::Text),
        Some((_, other)) => return Err(format!("`{{{text}}}`: `{other}` is none of json, bool, number, text")),
    };
    if name.is_empty() { Err(format!("`{{{text}}}` names no column")) } else { Ok(Column { name: name.into(), conversion }) }
}

/// `None` for null.
fn text_of(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filled(template: Value, row: &[(&str, Field)]) -> Result<Value, String> {
        let columns: Vec<_> = row.iter().map(|(name, _)| name.to_string()).collect();
        let values: Vec<_> = row.iter().map(|(_, value)| value.clone()).collect();
        Template::parse(&template)?.fill(&columns, &values)
    }

    #[test]
    fn a_row_becomes_a_document() {
        let row = [
            ("id", Field::Integer(7)),
            ("title", Field::Text("Solaris".into())),
            ("on", Field::Integer(1)),
            ("price", Field::Text("12.50".into())),
            ("tags", Field::Text("[\"a\"]".into())),
            ("gone", Field::Null),
        ];
        let template = json!({
            "title": "{title}", "path": "/film/{id}", "kind": "film", "n": 3, "on": "{on:bool}", "price": "{price:number}", "tags": "{tags:json}",
            "inner": {"id": "{id}", "gone": "{gone}"}, "none": "x{gone}", "list": ["{id:text}"], "brace": "{{id}}"
        });
        let document = json!({
            "title": "Solaris", "path": "/film/7", "kind": "film", "n": 3, "on": true, "price": 12.5, "tags": ["a"], "inner": {"id": 7},
            "list": ["7"], "brace": "{id}"
        });
        assert_eq!(filled(template, &row), Ok(document));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let row = [("id", Field::Integer(7)), ("raw", Field::Blob(vec![1].into())), ("t", Field::Text("x".into()))];
        for (template, words) in [
            ("{ident}", "no column `ident`; it gives id, raw, t"),
            ("{raw}", "the column `raw` holds bytes"),
            ("{id:bool}", "neither true or false"),
            ("{t:number}", "a text that is no number"),
            ("{t:json}", "no JSON"),
            ("{id:date}", "`date` is none of"),
            ("{id", "without its other half"),
            ("id}", "without its other half"),
            ("{}", "names no column"),
        ] {
            let error = filled(json!({ "a": template }), &row).unwrap_err();
            assert!(error.contains(words), "{template}: {error}");
        }
    }
}
