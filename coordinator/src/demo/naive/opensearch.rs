//! OpenSearch or Elasticsearch by its REST API, with the durability that an index has by default: a document is answered once it is synced.

use super::{DocumentError, Documents};
use crate::demo::catalogue::Film;
use crate::demo::stores::IndexKind;
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use ureq::Agent;
use ureq::http::Request;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections that are kept: one for each client.
const CONNECTIONS: usize = 256;
/// Documents of one search at most: what a server allows by default.
const HITS: usize = 10_000;

/// A node, as its client.
pub struct Node {
    agent: Agent,
    url: String,
}

pub struct Index {
    node: Node,
    name: String,
}

impl Node {
    /// Does not connect yet.
    pub fn new(url: &str) -> Node {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .max_idle_connections(CONNECTIONS)
            .max_idle_connections_per_host(CONNECTIONS)
            .build();
        Node { agent: Agent::new_with_config(agent), url: url.trim_end_matches('/').to_owned() }
    }

    /// The status and the body of its answer.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<(u16, Value)> {
        self.send(method, path, body.map(Value::to_string))
    }

    /// The same; the body is JSON already.
    pub fn send(&self, method: &str, path: &str, body: Option<String>) -> anyhow::Result<(u16, Value)> {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.url)).header("content-type", "application/json");
        let answered = match body {
            Some(body) => self.agent.run(request.body(body)?),
            None => self.agent.run(request.body(())?),
        };
        let mut answer = answered.with_context(|| format!("{} does not answer", self.url))?;
        let body = answer.body_mut().with_config().limit(64 << 20).read_to_vec()?;
        Ok((answer.status().as_u16(), serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// The body of an answer that has to be a good one.
    pub fn ok(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let (status, answer) = self.call(method, path, body)?;
        ensure!((200..300).contains(&status), "{method} {}{path}: HTTP {status}: {answer}", self.url);
        Ok(answer)
    }
}

impl Index {
    pub fn open(url: &str, name: &str) -> anyhow::Result<Index> {
        let node = Node::new(url);
        if node.call("HEAD", &format!("/{name}"), None)?.0 == 404 {
            let fields: Value = serde_json::from_str(IndexKind::OpenSearch.fields())?;
            node.ok("PUT", &format!("/{name}"), Some(&fields))?;
        }
        Ok(Index { node, name: name.to_owned() })
    }
}

impl Documents for Index {
    fn write(&self, film: &Film, stamp: &str) -> Result<u64, DocumentError> {
        let (status, answer) = self.node.call("PUT", &format!("/{}/_doc/{}", self.name, film.id), Some(&film.document(stamp)))?;
        match status {
            200 | 201 => Ok(answer["_seq_no"].as_u64().context("the answer has no _seq_no")?),
            400 => Err(DocumentError::Refused(answer["error"]["reason"].as_str().unwrap_or_default().to_owned())),
            _ => Err(DocumentError::Failed(anyhow::anyhow!("HTTP {status}: {answer}"))),
        }
    }

    fn all(&self) -> anyhow::Result<BTreeMap<String, String>> {
        self.node.ok("POST", &format!("/{}/_refresh", self.name), None)?;
        let query = json!({"size": HITS, "_source": ["stamp"]});
        let found = self.node.ok("POST", &format!("/{}/_search", self.name), Some(&query))?;
        let hits = found["hits"]["hits"].as_array().context("the answer has no hits")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(hits.iter().map(|hit| (text(&hit["_id"]), text(&hit["_source"]["stamp"]))).collect())
    }
}
