//! Reads: search and get, from any thread, through the alias that hides what is deleted.

use super::http::{Answer, Fault, Http, segment};
use super::options::OpenSearchOptions;
use super::state::STATE_KEY;
use crate::{Document, Finding, ReadLimits, Reader, SearchResult, StoreError};
use lockstep_core::Csn;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Reads beside the transactions, and what a person should know of the store.
pub(super) struct Reads {
    http: Arc<Http>,
    alias: String,
    findings: Mutex<BTreeMap<Topic, String>>,
}

/// What a finding is about: one sentence each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    /// The store cannot be used.
    Session,
    /// Nothing can be written now.
    Shut,
    /// Somebody else writes there.
    Foreign,
    /// What somebody else wrote was written over.
    Overwritten,
    /// Tombstones stay.
    Tombstones,
}

#[derive(Deserialize)]
struct Found<'a> {
    #[serde(borrow)]
    hits: Hits<'a>,
    #[serde(default)]
    timed_out: bool,
}

#[derive(Deserialize)]
struct Hits<'a> {
    total: Total,
    #[serde(borrow)]
    hits: Vec<Hit<'a>>,
}

#[derive(Deserialize)]
struct Total {
    value: u64,
}

#[derive(Deserialize)]
struct Hit<'a> {
    #[serde(rename = "_id")]
    key: String,
    #[serde(rename = "_score", default)]
    score: Option<f32>,
    #[serde(rename = "_source", borrow)]
    source: Option<&'a RawValue>,
}

impl Reads {
    pub fn new(http: Arc<Http>, options: &OpenSearchOptions) -> Reads {
        Reads { http, alias: options.alias.clone(), findings: Mutex::default() }
    }

    /// From now on this is to be known of the topic; `None`: nothing.
    pub fn note(&self, topic: Topic, sentence: Option<String>) {
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        match sentence {
            Some(sentence) => drop(findings.insert(topic, sentence)),
            None => drop(findings.remove(&topic)),
        }
    }
}

impl Reader for Reads {
    /// `*` finds all. A query that is a JSON object is the server's own query language; any other text is a simple query string, all of
    /// whose words must be there.
    fn search(&self, query: &str, limits: ReadLimits) -> Result<SearchResult, StoreError> {
        let body = json!({
            "query": clause(query)?,
            "from": limits.offset,
            "size": limits.rows,
            "track_total_hits": true,
            "timeout": format!("{}ms", limits.timeout.as_millis()),
        });
        let answer = self.http.ask_within(&format!("/{}/_search", segment(&self.alias)), &body, limits.timeout).map_err(late)?;
        if !answer.ok() {
            return Err(self.refused(&answer));
        }
        let found: Found = serde_json::from_slice(&answer.body).map_err(|e| unreadable(&e))?;
        if found.timed_out {
            return Err(StoreError::Timeout(format!("the search took longer than {} ms", limits.timeout.as_millis())));
        }
        let documents = found.hits.hits.into_iter().filter_map(|hit| document(hit.key, hit.score.unwrap_or(0.0), hit.source));
        Ok(SearchResult { total: found.hits.total.value, documents: documents.collect::<Result<_, _>>()? })
    }

    fn get(&self, key: &str) -> Result<Option<Document>, StoreError> {
        if key.is_empty() || key.len() > super::MAX_KEY || key == STATE_KEY {
            return Ok(None);
        }
        let answer = self.http.get(&format!("/{}/_doc/{}", segment(&self.alias), segment(key))).map_err(late)?;
        match answer.status {
            200 => {
                let hit: Hit = serde_json::from_slice(&answer.body).map_err(|e| unreadable(&e))?;
                document(hit.key, 0.0, hit.source).transpose()
            }
            404 if answer.json()["found"] == Value::Bool(false) => Ok(None),
            _ => Err(self.refused(&answer)),
        }
    }

    fn examine(&self) -> Vec<Finding> {
        let findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        findings.values().map(|sentence| Finding::warning(sentence, "mend what the sentence names; it is tried again by itself")).collect()
    }
}

impl Reads {
    fn refused(&self, answer: &Answer) -> StoreError {
        match answer.status {
            400 => StoreError::Invalid(answer.reason()),
            404 => StoreError::Broken(format!("the alias `{}` is not there", self.alias)),
            _ => answer.broken("the search was refused"),
        }
    }
}

/// The CSN of a document's source, and whether it is a tombstone.
pub(super) fn csn_of(source: &Value) -> Option<(Csn, bool)> {
    let own = &source["_lockstep"];
    let csn = own["csn"].as_u64().and_then(Csn::from_u64)?;
    Some((csn, own["deleted"] == Value::Bool(true)))
}

/// `None`: it is hidden.
fn document(key: String, score: f32, source: Option<&RawValue>) -> Option<Result<Document, StoreError>> {
    let source = source.map_or("{}", RawValue::get);
    // Only the outermost members are read: their texts stay as they were written.
    let mut members: Map<String, Value> = match serde_json::from_str(source) {
        Ok(members) => members,
        Err(error) => return Some(Err(unreadable(&error))),
    };
    let own = json!({"_lockstep": members.remove("_lockstep").unwrap_or(Value::Null)});
    let (csn, hidden) = csn_of(&own).unwrap_or((Csn::ZERO, own["_lockstep"]["deleted"] == Value::Bool(true)));
    (!hidden).then(|| Ok(Document { key, csn, document: without_own(source, members), score }))
}

/// The document as it was put. What the server keeps begins with our own member.
fn without_own(source: &str, members: Map<String, Value>) -> String {
    let put = source.strip_prefix(r#"{"_lockstep":{"#).and_then(|rest| rest.split_once('}')).map(|(_, rest)| rest);
    match put {
        Some("}") => "{}".into(),
        Some(rest) if rest.starts_with(',') => format!("{{{}", &rest[1..]),
        // Somebody else wrote it.
        _ => Value::Object(members).to_string(),
    }
}

fn clause(query: &str) -> Result<Value, StoreError> {
    let query = query.trim();
    if query.starts_with('{') {
        let mut clause: Map<String, Value> =
            serde_json::from_str(query).map_err(|e| StoreError::Invalid(format!("the query is no JSON: {e}")))?;
        return match clause.remove("query") {
            Some(inner) if clause.is_empty() => Ok(inner),
            Some(_) => {
                Err(StoreError::Invalid("a query has one member, `query`, or is a clause itself: limits are given beside it".into()))
            }
            None => Ok(Value::Object(clause)),
        };
    }
    Ok(match query {
        "*" => json!({"match_all": {}}),
        _ => json!({"simple_query_string": {"query": query, "default_operator": "and"}}),
    })
}

fn late(fault: Fault) -> StoreError {
    match fault {
        Fault::Unreachable(sentence) => StoreError::Broken(sentence),
        Fault::Unanswered(sentence) => StoreError::Timeout(sentence),
    }
}

fn unreadable(error: &serde_json::Error) -> StoreError {
    StoreError::Broken(format!("the server's answer cannot be read: {error}"))
}
