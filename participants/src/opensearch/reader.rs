//! Reads: search and get, from any thread, through the alias that hides what is deleted.

use super::http::{Answer, Fault, Http, Payload, Purpose, segment};
use super::options::OpenSearchOptions;
use super::state::STATE_KEY;
use crate::{Document, Finding, KeyPage, ReadLimits, Reader, SearchResult, StoreError};
use lockstep_core::Csn;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// For how long the server keeps the place of a scroll.
const SCROLL: &str = "2m";
/// How long the end of one may take.
const SCROLL_END: Duration = Duration::from_secs(2);

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
    #[serde(rename = "_shards", default)]
    shards: Shards,
}

/// How many parts of the index have answered. One that is not there at all counts as not successful, and not as failed.
#[derive(Default, Deserialize)]
pub(super) struct Shards {
    #[serde(default)]
    total: u64,
    #[serde(default)]
    successful: u64,
    #[serde(default)]
    failed: u64,
}

impl Shards {
    /// What some of them have found is no answer.
    pub fn all_answered(&self) -> Result<(), StoreError> {
        match self.failed.max(self.total.saturating_sub(self.successful)) {
            0 => Ok(()),
            failed => Err(StoreError::Broken(format!("{failed} parts of the index (shards) cannot be searched now"))),
        }
    }
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

#[derive(Deserialize)]
struct Many<'a> {
    #[serde(borrow)]
    docs: Vec<One<'a>>,
}

#[derive(Deserialize)]
struct One<'a> {
    #[serde(rename = "_id")]
    key: String,
    #[serde(default)]
    found: bool,
    #[serde(rename = "_source", borrow, default)]
    source: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Scrolled {
    #[serde(rename = "_scroll_id")]
    scroll: String,
    hits: ScrolledHits,
    #[serde(rename = "_shards", default)]
    shards: Shards,
}

#[derive(Deserialize)]
struct ScrolledHits {
    hits: Vec<ScrolledHit>,
}

#[derive(Deserialize)]
struct ScrolledHit {
    #[serde(rename = "_id")]
    key: String,
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
        found.shards.all_answered()?;
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

    fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Document>>, StoreError> {
        let known = |key: &String| !key.is_empty() && key.len() <= super::MAX_KEY && key != STATE_KEY;
        if keys.is_empty() || !keys.iter().all(known) {
            return keys.iter().map(|key| self.get(key)).collect();
        }
        let answer = self.http.ask(&format!("/{}/_mget", segment(&self.alias)), &json!({"ids": keys})).map_err(late)?;
        if !answer.ok() {
            return Err(self.refused(&answer));
        }
        let Many { docs } = serde_json::from_slice(&answer.body).map_err(|e| unreadable(&e))?;
        if docs.len() != keys.len() {
            return Err(StoreError::Broken(format!("the server was asked for {} documents and answers {}", keys.len(), docs.len())));
        }
        let read = |one: One<'_>| match (one.found, one.error) {
            (true, _) => document(one.key, 0.0, one.source).transpose(),
            (false, None) => Ok(None),
            (false, Some(_)) => self.get(&one.key),
        };
        docs.into_iter().map(read).collect()
    }

    /// By a scroll: in an order of the server's own, as of the last refresh before the first page.
    fn keys(&self, after: Option<&str>, limit: usize) -> Result<KeyPage, StoreError> {
        let answer = match after {
            None => {
                let first = json!({"size": limit, "sort": ["_doc"], "_source": false, "query": {"match_all": {}}});
                self.http.ask(&format!("/{}/_search?scroll={SCROLL}", segment(&self.alias)), &first)
            }
            Some(scroll) => self.http.ask("/_search/scroll", &json!({"scroll": SCROLL, "scroll_id": scroll})),
        };
        let answer = answer.map_err(late)?;
        if !answer.ok() {
            return Err(match (after, answer.status) {
                (Some(_), 404) => StoreError::Timeout(format!("the server has given up the scroll: a page came later than {SCROLL}")),
                _ => self.refused(&answer),
            });
        }
        let page: Scrolled = serde_json::from_slice(&answer.body).map_err(|e| unreadable(&e))?;
        page.shards.all_answered()?;
        let keys: Vec<_> = page.hits.hits.into_iter().map(|hit| hit.key).collect();
        if keys.is_empty() {
            let end = json!({"scroll_id": page.scroll});
            // It ends by itself, later.
            let _ = self.http.call(Purpose::Read, "DELETE", "/_search/scroll", Payload::Json(&end), SCROLL_END);
            return Ok(KeyPage::default());
        }
        Ok(KeyPage { keys, next: Some(page.scroll) })
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

pub(super) fn unreadable(error: &serde_json::Error) -> StoreError {
    StoreError::Broken(format!("the server's answer cannot be read: {error}"))
}
