//! What the cluster and the index are like now: who answers, where the alias points, its mapping and settings.

use super::http::{Http, segment};
use super::mapping::{Mapping, number};
use super::options::OpenSearchOptions;
use crate::StoreError;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The index behind the readers' alias.
#[derive(Clone, Debug)]
pub(super) struct Survey {
    /// Its name, and its identity: another index may get the same name.
    pub index: String,
    pub uuid: String,
    /// All its aliases.
    pub aliases: Vec<String>,
    /// Whether the readers' alias hides what is deleted.
    pub hides: bool,
    /// Whether the mapping has Lockstep's own fields.
    pub prepared: bool,
    /// Why acknowledged writes might be lost, if they might.
    pub unsafe_because: Option<String>,
    /// Why nothing can be written now, if so.
    pub shut_because: Option<String>,
    /// Whether the index changes documents as they come, whatever a request says of that.
    pub final_pipeline: bool,
    /// What documents are checked against, or why they cannot be.
    pub mapping: Result<Arc<Mapping>, String>,
}

/// What stands under the alias's name.
pub(super) enum Found {
    Index(Box<Survey>),
    Nothing,
}

/// Oldest versions with all that is used here: `require_alias` in `_bulk`.
const OLDEST_OPENSEARCH: (u64, u64) = (1, 0);
const OLDEST_ELASTICSEARCH: (u64, u64) = (7, 10);

/// The filter of the readers' alias: tombstones and the state are hidden.
pub(super) fn hiding_filter() -> Value {
    json!({"bool": {"must_not": [{"exists": {"field": "_lockstep.deleted"}}]}})
}

/// The mapping of Lockstep's own fields.
pub(super) fn own_fields() -> Value {
    json!({"_lockstep": {"dynamic": "strict", "properties": {
        "csn": {"type": "long"},
        "version": {"type": "long"},
        "deleted": {"type": "boolean"},
        "led": {"type": "boolean"},
        "state": {"type": "object", "enabled": false},
    }}})
}

/// Whether a server of a supported product and version answers; it says which. The error names what is wrong.
pub(super) fn greet(http: &Http) -> Result<String, StoreError> {
    let answer = http.get("/")?;
    if !answer.ok() {
        return Err(answer.broken("the server refuses us"));
    }
    let json = answer.json();
    let version = &json["version"];
    let number = version["number"].as_str().unwrap_or_default();
    let mut parts = number.split(['.', '-']).map(|part| part.parse::<u64>().ok());
    let (Some(Some(major)), Some(Some(minor))) = (parts.next(), parts.next()) else {
        return Err(StoreError::Broken("what answers there is neither OpenSearch nor Elasticsearch".into()));
    };
    let (product, oldest) = match version["distribution"].as_str() {
        Some("opensearch") => ("OpenSearch", OLDEST_OPENSEARCH),
        _ => ("Elasticsearch", OLDEST_ELASTICSEARCH),
    };
    if version["build_flavor"] == "serverless" {
        return Err(StoreError::Broken("Elasticsearch Serverless is not supported: it has no aliases that can be required".into()));
    }
    if (major, minor) < oldest {
        let (major, minor) = oldest;
        return Err(StoreError::Broken(format!("{product} {number} is not supported: at least {major}.{minor}")));
    }
    Ok(format!("{product} {number}"))
}

/// The largest request that every node takes, bytes, as far as it can be known.
pub(super) fn request_max(http: &Http) -> usize {
    let answer = http.get("/_nodes/http?filter_path=nodes.*.http.max_content_length_in_bytes");
    let json = answer.map(|answer| answer.json()).unwrap_or_default();
    let nodes = json["nodes"].as_object().into_iter().flatten();
    let limits = nodes.filter_map(|(_, node)| number(node["http"].get("max_content_length_in_bytes")));
    limits.min().unwrap_or(10 << 20)
}

/// Looks at what the alias points at. Errors say in a sentence what is wrong, and are for the operator.
pub(super) fn survey(http: &Http, options: &OpenSearchOptions) -> Result<Found, StoreError> {
    let alias = &options.alias;
    let answer = http.get(&format!("/{}?flat_settings=true", segment(alias)))?;
    match answer.status {
        200 => {}
        404 => return Ok(Found::Nothing),
        _ => return Err(answer.broken(&format!("cannot look at the alias `{alias}`"))),
    }
    let json = answer.json();
    let indices: Vec<(&String, &Value)> = json.as_object().into_iter().flatten().collect();
    let (index, found) = match indices.as_slice() {
        [] => return Ok(Found::Nothing),
        [one] => *one,
        several => {
            let names: Vec<&str> = several.iter().map(|(name, _)| name.as_str()).collect();
            return Err(StoreError::Broken(format!(
                "the alias `{alias}` points at several indices ({}): it must point at one, or a document would have several versions",
                names.join(", ")
            )));
        }
    };
    if index == alias {
        return Err(StoreError::Broken(format!(
            "`{alias}` is an index: readers need an alias, which hides what is deleted; name another alias, pointing at this index"
        )));
    }
    Ok(Found::Index(Box::new(Survey::parse(alias, index, found))))
}

impl Survey {
    /// Of an index by its own name.
    pub fn of_index(http: &Http, index: &str) -> Result<Survey, StoreError> {
        let answer = http.get(&format!("/{}?flat_settings=true", segment(index)))?;
        if !answer.ok() {
            return Err(answer.broken(&format!("cannot look at the index `{index}`")));
        }
        Ok(Survey::parse("", index, &answer.json()[index]))
    }

    fn parse(alias: &str, index: &str, found: &Value) -> Survey {
        let none = Map::new();
        let settings = found["settings"].as_object().unwrap_or(&none);
        let text = |key: &str| settings.get(key).and_then(Value::as_str);
        let aliases = found["aliases"].as_object().unwrap_or(&none);
        let set = |key: &str| text(key) == Some("true");
        let pipeline = |key: &str| text(key).is_some_and(|name| name != "_none");
        let shut_because = if set("index.verified_before_close") {
            Some(format!("the index `{index}` is closed: open it"))
        } else if set("index.blocks.read_only_allow_delete") {
            Some(format!("the index `{index}` is read-only (index.blocks.read_only_allow_delete): its disk is, or was, at the flood stage"))
        } else if set("index.blocks.read_only") || set("index.blocks.write") {
            Some(format!("the index `{index}` is blocked for writes (index.blocks.write or index.blocks.read_only): remove the block"))
        } else if pipeline("index.default_pipeline") || pipeline("index.final_pipeline") {
            Some(format!("the index `{index}` has an ingest pipeline, which could change or refuse a document after its vote: remove it"))
        } else {
            None
        };
        let unsafe_because = (text("index.translog.durability").is_some_and(|set| !set.eq_ignore_ascii_case("request"))).then(|| {
            format!("the index `{index}` loses acknowledged writes in a crash (index.translog.durability is `async`): set it to `request`")
        });
        Survey {
            index: index.to_owned(),
            uuid: text("index.uuid").unwrap_or_default().to_owned(),
            aliases: aliases.keys().cloned().collect(),
            hides: aliases.get(alias).is_some_and(|alias| alias["filter"] == hiding_filter()),
            prepared: found["mappings"]["properties"]["_lockstep"]["properties"]["version"]["type"] == "long",
            unsafe_because,
            shut_because,
            final_pipeline: pipeline("index.final_pipeline"),
            mapping: Mapping::parse(&found["mappings"], settings).map(Arc::new),
        }
    }
}
