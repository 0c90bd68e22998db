//! An index's mapping, as the server has it, made ready to check documents against.

use rustc_hash::FxHashMap;
use serde_json::{Map, Value};

/// Bytes of one term at most (Lucene's `MAX_TERM_LENGTH`); a longer one refuses the document.
pub(super) const TERM_MAX: usize = 32_766;

/// A mapping.
#[derive(Debug)]
pub(super) struct Mapping {
    pub root: Object,
    /// Whether new fields may be given a type at all: `dynamic_templates` would decide theirs otherwise.
    pub templates: bool,
    /// Objects of nested fields that one document may have.
    pub nested_max: usize,
}

/// An object: the document itself, or one inside it.
#[derive(Debug)]
pub(super) struct Object {
    pub dynamic: Dynamic,
    pub enabled: bool,
    pub nested: bool,
    pub fields: FxHashMap<String, Field>,
}

/// What the server does with a field that the mapping does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dynamic {
    /// Gives it a type.
    Maps,
    /// Keeps it in the source only.
    Ignores,
    /// Refuses the document.
    Refuses,
}

#[derive(Debug)]
pub(super) enum Field {
    Object(Object),
    Leaf(Leaf),
}

/// A field with a value.
#[derive(Debug)]
pub(super) struct Leaf {
    pub kind: LeafKind,
    /// Wrong values are kept in the source only.
    pub ignore_malformed: bool,
    /// Other ways in which the same value is indexed: its `fields`.
    pub also: Vec<Leaf>,
    /// Paths of other fields that get the same value.
    pub copy_to: Vec<String>,
}

/// As far as values can be known here to be taken; of any other the server is asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum LeafKind {
    /// Text in terms of which none is long: the analyzer splits them.
    Text,
    /// One term. `ignore_above`: longer values (in characters) are not indexed.
    Keyword {
        ignore_above: Option<usize>,
    },
    /// Whole numbers in this range.
    Integer {
        least: i64,
        most: i64,
    },
    /// Numbers of up to this magnitude.
    Real {
        most: f64,
    },
    Boolean,
    /// Times in the default format.
    Date,
    Ip,
    /// Takes no value.
    Alias,
    /// The server knows.
    Other(String),
}

impl Mapping {
    /// From the `mappings` of an index, and its settings (flat). The error is a sentence: such an index cannot be written safely.
    pub fn parse(mappings: &Value, settings: &Map<String, Value>) -> Result<Mapping, String> {
        if mappings["_routing"]["required"] == Value::Bool(true) {
            return Err("its mapping requires a routing (_routing.required): two routings make two documents of one key".into());
        }
        if mappings["_source"]["enabled"] == Value::Bool(false) {
            return Err("its mapping does not keep the source (_source.enabled): documents could not be read".into());
        }
        let source = &mappings["_source"];
        let parts = ["includes", "excludes"].iter().any(|key| source[key].as_array().is_some_and(|fields| !fields.is_empty()));
        if parts || source["mode"] == "synthetic" {
            return Err("its mapping does not keep all of the source as it came (_source.includes, excludes or mode)".into());
        }
        let reader = Reader {
            default_analyzer: settings.keys().any(|key| key.starts_with("index.analysis.analyzer.default.")),
            malformed: flag(settings.get("index.mapping.ignore_malformed")).unwrap_or(false),
        };
        let root = reader.object(mappings, Dynamic::Maps)?;
        Ok(Mapping {
            root,
            templates: mappings["dynamic_templates"].as_array().is_some_and(|templates| !templates.is_empty()),
            nested_max: number(settings.get("index.mapping.nested_objects.limit")).unwrap_or(10_000),
        })
    }

    /// The leaf at this dotted path.
    pub fn leaf(&self, path: &str) -> Option<&Leaf> {
        let mut object = &self.root;
        let mut parts = path.split('.').peekable();
        while let Some(part) = parts.next() {
            match (object.fields.get(part)?, parts.peek()) {
                (Field::Leaf(leaf), None) => return Some(leaf),
                (Field::Object(inner), Some(_)) => object = inner,
                _ => return None,
            }
        }
        None
    }
}

/// What the index's settings say of all its fields.
struct Reader {
    default_analyzer: bool,
    malformed: bool,
}

impl Reader {
    fn object(&self, definition: &Value, inherited: Dynamic) -> Result<Object, String> {
        if definition.get("subobjects").is_some_and(|set| flag(Some(set)) == Some(false)) {
            return Err("its mapping has `subobjects: false`, which is not supported".into());
        }
        let dynamic = match &definition["dynamic"] {
            Value::Null => inherited,
            Value::Bool(true) => Dynamic::Maps,
            Value::Bool(false) => Dynamic::Ignores,
            Value::String(text) => match text.as_str() {
                "true" => Dynamic::Maps,
                "false" => Dynamic::Ignores,
                // Also those that go by a template or make runtime fields.
                _ => Dynamic::Refuses,
            },
            _ => Dynamic::Refuses,
        };
        let mut fields = FxHashMap::default();
        for (name, field) in definition["properties"].as_object().into_iter().flatten() {
            fields.insert(name.clone(), self.field(field, dynamic)?);
        }
        Ok(Object { dynamic, enabled: flag(definition.get("enabled")).unwrap_or(true), nested: definition["type"] == "nested", fields })
    }

    fn field(&self, definition: &Value, inherited: Dynamic) -> Result<Field, String> {
        match definition["type"].as_str() {
            None | Some("object" | "nested") => Ok(Field::Object(self.object(definition, inherited)?)),
            Some(kind) => Ok(Field::Leaf(self.leaf(kind, definition))),
        }
    }

    fn leaf(&self, name: &str, definition: &Value) -> Leaf {
        let other = || LeafKind::Other(name.to_owned());
        let set = |key: &str| definition.get(key);
        let kind = match name {
            _ if flag(set("coerce")) == Some(false) || set("script").is_some() => other(),
            "text" if self.splits(definition) => LeafKind::Text,
            "keyword" if set("normalizer").is_none() && set("split_queries_on_whitespace").is_none() => {
                LeafKind::Keyword { ignore_above: number(set("ignore_above")) }
            }
            "long" => LeafKind::Integer { least: i64::MIN, most: i64::MAX },
            "integer" => LeafKind::Integer { least: i32::MIN.into(), most: i32::MAX.into() },
            "short" => LeafKind::Integer { least: i16::MIN.into(), most: i16::MAX.into() },
            "byte" => LeafKind::Integer { least: i8::MIN.into(), most: i8::MAX.into() },
            "double" => LeafKind::Real { most: f64::MAX },
            "float" => LeafKind::Real { most: f32::MAX.into() },
            "half_float" => LeafKind::Real { most: 65_504.0 },
            "boolean" => LeafKind::Boolean,
            "date" if set("format").is_none() => LeafKind::Date,
            "ip" => LeafKind::Ip,
            "alias" => LeafKind::Alias,
            _ => other(),
        };
        let also = definition["fields"].as_object().into_iter().flatten();
        let also = also.map(|(_, field)| self.leaf(field["type"].as_str().unwrap_or_default(), field)).collect();
        let copy_to = match &definition["copy_to"] {
            Value::String(path) => vec![path.clone()],
            Value::Array(paths) => paths.iter().filter_map(|path| path.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        Leaf { kind, ignore_malformed: flag(set("ignore_malformed")).unwrap_or(self.malformed), also, copy_to }
    }

    /// Whether the analyzer is one that makes short terms of any text.
    fn splits(&self, definition: &Value) -> bool {
        match definition["analyzer"].as_str() {
            None => !self.default_analyzer,
            Some(name) => matches!(name, "standard" | "simple" | "whitespace" | "stop" | "english"),
        }
    }
}

/// A boolean as servers show it: `true` or `"true"`.
pub(super) fn flag(value: Option<&Value>) -> Option<bool> {
    match value? {
        Value::Bool(set) => Some(*set),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// A number as servers show it: `7` or `"7"`.
pub(super) fn number(value: Option<&Value>) -> Option<usize> {
    match value? {
        Value::Number(n) => n.as_u64().and_then(|n| usize::try_from(n).ok()),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}
