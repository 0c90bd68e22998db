//! How the store is reached and run.

use crate::StoreError;
use std::fmt;
use std::time::Duration;

/// How an OpenSearch or Elasticsearch index is reached and run.
#[derive(Clone, Debug)]
pub struct OpenSearchOptions {
    /// The cluster's nodes, each `http://HOST:PORT` or `https://HOST:PORT`. The first that answers is used until it does not.
    pub nodes: Vec<String>,
    /// What readers search: an alias that hides what is deleted. It points at exactly one index.
    pub alias: String,
    /// The index that is made if the alias is not there.
    pub index: String,
    /// Whether an index is made if the alias is not there.
    pub create: bool,
    /// Who we are there.
    pub credentials: Option<Credentials>,
    /// Certificates (PEM) that are trusted; `None`: those of the public authorities.
    pub certificates: Option<Vec<u8>>,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long a request may take, with its answer and with another node's try.
    pub request_timeout: Duration,
    /// While something is to be seen: how long after the last refresh the next one is due. The lag of searches behind commits.
    pub refresh_every: Duration,
    /// The same while somebody waits for it, if that is shorter.
    pub refresh_awaited: Duration,
    /// How long a decision waits for others, to be written with them in one `_bulk` request, unless somebody waits to read it.
    pub gather: Duration,
    /// How old what is known of the index may be at a vote: its mapping, its settings, where the alias points.
    pub check_every: Duration,
    /// How often tombstones that nothing needs any more are removed, and foreign writers looked for.
    pub upkeep_every: Duration,
    /// Bytes of one `_bulk` request, unless a single document is larger.
    pub bulk_bytes: usize,
    /// `_bulk` requests under way at once.
    pub bulk_parallel: usize,
    /// Bytes of one document.
    pub document_bytes: usize,
    /// What becomes of a field that the mapping does not have, where the mapping is dynamic.
    pub new_fields: NewFields,
}

/// What becomes of a field that the mapping does not have, where the mapping is dynamic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewFields {
    /// It is mapped before the vote: text (with a keyword beside it), long, double, boolean or object. So a later document cannot give
    /// it another type, and the limit on fields is met before the vote. If the transaction aborts, the empty field stays.
    Map,
    /// The document is refused.
    Refuse,
}

/// Who we are at the server. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// HTTP basic authentication.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// An API key, as the server gave it (base64).
    ApiKey(String),
}

/// Longest name of an alias or index, bytes: room is left for the names made of it.
const MAX_NAME: usize = 150;

impl OpenSearchOptions {
    /// The defaults for this alias at these nodes: its index is made if it is not there, new fields are mapped, a search lags by up to
    /// 500 ms, or 100 ms where somebody waits; documents up to 1 MiB.
    pub fn new(nodes: Vec<String>, alias: impl Into<String>) -> OpenSearchOptions {
        let alias = alias.into();
        OpenSearchOptions {
            nodes,
            index: format!("{alias}-000001"),
            alias,
            create: true,
            credentials: None,
            certificates: None,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(10),
            refresh_every: Duration::from_millis(500),
            refresh_awaited: Duration::from_millis(100),
            gather: Duration::from_millis(50),
            check_every: Duration::from_secs(2),
            upkeep_every: Duration::from_secs(30),
            bulk_bytes: 4 << 20,
            bulk_parallel: 2,
            document_bytes: 1 << 20,
            new_fields: NewFields::Map,
        }
    }

    /// Whether they can be used at all; the sentence names what is wrong.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.nodes.is_empty() {
            return Err(StoreError::Refused("no node is named".into()));
        }
        for node in &self.nodes {
            check_node(node).map_err(StoreError::Refused)?;
        }
        for name in [&self.alias, &self.index] {
            check_name(name).map_err(StoreError::Refused)?;
        }
        if self.alias == self.index {
            return Err(StoreError::Refused(format!("`{}` cannot be both the alias and the index", self.alias)));
        }
        Ok(())
    }
}

/// `http://HOST:PORT` and no more.
fn check_node(node: &str) -> Result<(), String> {
    let rest = node.strip_prefix("http://").or_else(|| node.strip_prefix("https://"));
    let Some(rest) = rest else { return Err("a node must begin with http:// or https://".into()) };
    if rest.contains('@') {
        return Err("a node's address holds no credentials: give them by file or environment".into());
    }
    let path = rest.trim_end_matches('/').contains(['/', '?', '#']);
    if rest.is_empty() || path || rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("`{node}` is no node's address: expected http://HOST:PORT or https://HOST:PORT"));
    }
    Ok(())
}

/// The server's rules for names.
fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.' | '+');
    let first = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.';
    if name.is_empty()
        || name.len() > MAX_NAME
        || !name.starts_with(first)
        || !name.chars().all(allowed)
        || name.trim_matches('.').is_empty()
    {
        return Err(format!("`{name}` is no name of an alias or index: [a-z0-9.][a-z0-9._+-]{{0,{}}}", MAX_NAME - 1));
    }
    Ok(())
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Basic { .. } => f.write_str("Basic(hidden)"),
            Credentials::ApiKey(_) => f.write_str("ApiKey(hidden)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(nodes: &[&str], alias: &str) -> String {
        let nodes = nodes.iter().map(|node| node.to_string()).collect();
        OpenSearchOptions::new(nodes, alias).check().expect_err(alias).to_string()
    }

    #[test]
    fn addresses_and_names_are_checked() {
        assert!(OpenSearchOptions::new(vec!["https://a.example:9200/".into(), "http://[::1]:1".into()], "items").check().is_ok());
        assert_eq!(refused(&[], "items"), "no node is named");
        assert!(refused(&["localhost:9200"], "items").contains("must begin with"));
        let secret = refused(&["http://me:secret@localhost"], "items");
        assert!(secret.contains("holds no credentials") && !secret.contains("secret@"), "{secret}");
        assert!(refused(&["http://a/b"], "items").contains("is no node's address"));
        for name in ["", "Items", "-a", "a b", "a\"b", "a,b", "a*", "..", &"a".repeat(151)] {
            assert!(refused(&["http://a"], name).contains("is no name"), "{name}");
        }
    }

    #[test]
    fn credentials_are_never_shown() {
        let options = OpenSearchOptions {
            credentials: Some(Credentials::Basic { user: "me".into(), password: "open sesame".into() }),
            ..OpenSearchOptions::new(vec!["http://a".into()], "items")
        };
        assert!(!format!("{options:?}").contains("sesame"));
        assert!(!format!("{:?}", Credentials::ApiKey("sesame".into())).contains("sesame"));
    }
}
