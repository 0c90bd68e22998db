//! Requests to the cluster: one after another of its nodes, with time-outs and bounded bodies.

use super::options::{Credentials, OpenSearchOptions};
use crate::StoreError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use ureq::http::{Request, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Timeout};

/// The largest answer that is read, bytes.
const ANSWER_MAX: u64 = 64 << 20;
/// Connections kept to one node.
const IDLE_CONNECTIONS: usize = 32;

/// A cluster, as its client. Calls may come from any thread.
pub(super) struct Http {
    agent: Agent,
    nodes: Vec<String>,
    /// The node that answered last, or the one behind it that did not.
    current: AtomicUsize,
    authorization: Option<String>,
    timeout: Duration,
    unanswered: AtomicU64,
    /// The next number of an alias ([`super::fence`]).
    fences: AtomicU64,
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It changes nothing.
    Read,
    /// It may change documents: one that is never answered may be carried out at any later time.
    Write,
}

/// What a request carries.
pub(super) enum Payload<'a> {
    Nothing,
    Json(&'a Value),
    /// JSON that is a text already.
    Text(&'a str),
    /// Lines of JSON, and the trace that they are a part of (a `traceparent`).
    Lines(&'a [u8], Option<&'a str>),
}

/// A server's answer, whatever its status.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// No answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// No node took the request.
    Unreachable(String),
    /// It may have been carried out, or be carried out later. It took too long, or the connection was lost.
    Unanswered(String),
}

impl Http {
    pub fn new(options: &OpenSearchOptions) -> Result<Http, StoreError> {
        let roots = match &options.certificates {
            None => RootCerts::WebPki,
            Some(pem) => RootCerts::new_with_certs(&certificates(pem)?),
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // Credentials go to the nodes that were named, and nowhere else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .max_idle_connections_per_host(IDLE_CONNECTIONS)
            .timeout_connect(Some(options.connect_timeout))
            .user_agent("lockstep")
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build();
        Ok(Http {
            agent: Agent::new_with_config(agent),
            nodes: options.nodes.iter().map(|node| node.trim_end_matches('/').to_owned()).collect(),
            current: AtomicUsize::new(0),
            authorization: options.credentials.as_ref().map(authorization),
            timeout: options.request_timeout,
            unanswered: AtomicU64::new(0),
            fences: AtomicU64::new(0),
        })
    }

    /// How many writes were never answered. Each may still be carried out.
    pub fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Acquire)
    }

    /// A number from this one on that was never given before, as long as this process lives.
    pub fn next_fence(&self, least: u64) -> u64 {
        let next = |given: u64| Some(given.max(least) + 1);
        self.fences.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).unwrap_or_else(|given| given).max(least)
    }

    pub fn get(&self, path: &str) -> Result<Answer, Fault> {
        self.call(Purpose::Read, "GET", path, Payload::Nothing, self.timeout)
    }

    /// A POST that changes nothing.
    pub fn ask(&self, path: &str, body: &Value) -> Result<Answer, Fault> {
        self.call(Purpose::Read, "POST", path, Payload::Json(body), self.timeout)
    }

    /// Within a time of its own.
    pub fn ask_within(&self, path: &str, body: &Value, timeout: Duration) -> Result<Answer, Fault> {
        self.call(Purpose::Read, "POST", path, Payload::Json(body), timeout)
    }

    /// Tries each node once, and the first once more: a kept connection may have been closed by the other side.
    pub fn call(&self, purpose: Purpose, method: &str, path: &str, payload: Payload<'_>, timeout: Duration) -> Result<Answer, Fault> {
        self.try_nodes(self.nodes.len() + 1, purpose, method, path, payload, timeout)
    }

    /// Sends it at most once.
    pub fn once(&self, purpose: Purpose, method: &str, path: &str, payload: Payload<'_>, timeout: Duration) -> Result<Answer, Fault> {
        self.try_nodes(1, purpose, method, path, payload, timeout)
    }

    fn try_nodes(
        &self,
        tries: usize,
        purpose: Purpose,
        method: &str,
        path: &str,
        payload: Payload<'_>,
        timeout: Duration,
    ) -> Result<Answer, Fault> {
        let traceparent = if let Payload::Lines(_, traceparent) = &payload { *traceparent } else { None };
        let (body, content_type) = match payload {
            // A body of no bytes, and not one in chunks.
            Payload::Nothing if method == "POST" => (Some(Cow::Borrowed(&[][..])), None),
            Payload::Nothing => (None, None),
            Payload::Json(value) => (Some(Cow::Owned(value.to_string().into_bytes())), Some("application/json")),
            Payload::Text(text) => (Some(Cow::Borrowed(text.as_bytes())), Some("application/json")),
            Payload::Lines(lines, _) => (Some(Cow::Borrowed(lines)), Some("application/x-ndjson")),
        };
        let deadline = Instant::now() + timeout;
        let first = self.current.load(Ordering::Relaxed) % self.nodes.len();
        let mut worst = None;
        for turn in 0..tries {
            let node = (first + turn) % self.nodes.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if turn > 0 && left.is_zero() {
                break;
            }
            match self.send(&self.nodes[node], method, path, body.as_deref(), content_type, traceparent, left) {
                Ok(answer) => {
                    // A gateway says so of a request that it has passed on.
                    if purpose == Purpose::Write && matches!(answer.status, 502 | 504) {
                        self.unanswered.fetch_add(1, Ordering::AcqRel);
                    }
                    let unfit = matches!(answer.status, 502..=504);
                    self.current.store(if unfit { node + 1 } else { node }, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(fault) => {
                    self.current.store(node + 1, Ordering::Relaxed);
                    if let (Purpose::Write, Fault::Unanswered(_)) = (purpose, &fault) {
                        self.unanswered.fetch_add(1, Ordering::AcqRel);
                    }
                    worst = Some(match (worst, fault) {
                        (Some(unanswered @ Fault::Unanswered(_)), _) => unanswered,
                        (_, fault) => fault,
                    });
                }
            }
        }
        Err(worst.expect("at least one node was tried"))
    }

    #[allow(clippy::too_many_arguments)]
    fn send(
        &self,
        node: &str,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        content_type: Option<&str>,
        traceparent: Option<&str>,
        timeout: Duration,
    ) -> Result<Answer, Fault> {
        let mut request = Request::builder().method(method).uri(format!("{node}{path}")).header(header::ACCEPT, "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if let Some(traceparent) = traceparent {
            request = request.header("traceparent", traceparent);
        }
        let answered = match body {
            Some(body) => request
                .body(body)
                .map_err(ureq::Error::from)
                .and_then(|request| self.agent.run(self.agent.configure_request(request).timeout_global(Some(timeout)).build())),
            None => request
                .body(())
                .map_err(ureq::Error::from)
                .and_then(|request| self.agent.run(self.agent.configure_request(request).timeout_global(Some(timeout)).build())),
        };
        let read = answered.and_then(|mut answer| {
            let body = answer.body_mut().with_config().limit(ANSWER_MAX).read_to_vec()?;
            Ok(Answer { status: answer.status().as_u16(), body })
        });
        read.map_err(|error| fault(node, &error))
    }
}

impl Answer {
    /// Whether the server did what it was asked.
    pub fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Its JSON; `Null` if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// What it says of why it refused.
    pub fn reason(&self) -> String {
        let json = self.json();
        match reason_of(&json["error"]) {
            Some(reason) => reason,
            None => match self.status {
                401 => "the credentials are refused (HTTP 401)".into(),
                403 => "it is not allowed to these credentials (HTTP 403)".into(),
                413 => "the request is larger than the server takes (HTTP 413, http.max_content_length)".into(),
                status => format!("it answered HTTP {status}"),
            },
        }
    }

    /// The name of the error, such as `index_not_found_exception`.
    pub fn error_type(&self) -> String {
        self.json()["error"]["type"].as_str().unwrap_or_default().to_owned()
    }

    /// As the error of a call that has to succeed for the session to go on.
    pub fn broken(&self, what: &str) -> StoreError {
        StoreError::Broken(match self.status {
            401 => format!("{what}: the credentials are refused (HTTP 401)"),
            403 => format!("{what}: not allowed to these credentials (HTTP 403): {}", self.reason()),
            _ => format!("{what}: {}", self.reason()),
        })
    }
}

impl Fault {
    pub fn sentence(&self) -> &str {
        match self {
            Fault::Unreachable(sentence) | Fault::Unanswered(sentence) => sentence,
        }
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> StoreError {
        StoreError::Broken(fault.sentence().to_owned())
    }
}

/// The sentences of an `error` object, from the outermost to the innermost.
pub(super) fn reason_of(error: &Value) -> Option<String> {
    let mut sentences: Vec<&str> = Vec::new();
    let mut at = error;
    while let Some(reason) = at["reason"].as_str() {
        if !sentences.contains(&reason) {
            sentences.push(reason);
        }
        at = &at["caused_by"];
    }
    let text = if sentences.is_empty() { error.as_str().map(str::to_owned) } else { Some(sentences.join(": ")) };
    // Reasons may quote documents.
    text.map(|text| shortened(&text, 500))
}

/// At most so many characters of it.
pub(super) fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// One segment of a path.
pub(super) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => encoded.push(char::from(byte)),
            // Also the dot: `.` and `..` alone are no segments to a server.
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn fault(node: &str, error: &ureq::Error) -> Fault {
    use std::io::ErrorKind;
    let sentence = match error {
        ureq::Error::Timeout(_) => format!("{node} did not answer in time"),
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => {
            format!("{node}: TLS: {error}: is it HTTPS, and is its certificate among those trusted (ca_file)?")
        }
        _ => format!("{node}: {error}"),
    };
    let unsent = match error {
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::BadUri(_)
        | ureq::Error::Http(_)
        | ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => true,
        ureq::Error::Io(error) => {
            matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable)
        }
        _ => false,
    };
    if unsent { Fault::Unreachable(sentence) } else { Fault::Unanswered(sentence) }
}

fn authorization(credentials: &Credentials) -> String {
    match credentials {
        Credentials::Basic { user, password } => format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))),
        Credentials::ApiKey(key) => format!("ApiKey {key}"),
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<Certificate<'static>>, StoreError> {
    let refused = |why: String| StoreError::Refused(format!("the file of trusted certificates cannot be used: {why}"));
    let mut found = Vec::new();
    for item in parse_pem(pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| refused(e.to_string()))? {
            found.push(certificate);
        }
    }
    if found.is_empty() { Err(refused("it holds no certificate in PEM form".into())) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings() {
        assert_eq!(segment("a/b c.é"), "a%2Fb%20c%2E%C3%A9");
        let credentials = Credentials::Basic { user: "me".into(), password: "open sesame".into() };
        assert_eq!(authorization(&credentials), "Basic bWU6b3BlbiBzZXNhbWU=");
    }

    #[test]
    fn a_number_of_an_alias_is_given_once() {
        let http = Http::new(&OpenSearchOptions::new(vec!["http://127.0.0.1:1".into()], "items")).unwrap();
        assert_eq!([0, 0, 7, 0, 3].map(|least| http.next_fence(least)), [0, 1, 7, 8, 9]);
    }

    #[test]
    fn reasons_are_told_once_and_in_order() {
        let error = serde_json::json!({"reason": "a", "caused_by": {"reason": "a", "caused_by": {"reason": "b"}}});
        assert_eq!(reason_of(&error).unwrap(), "a: b");
        assert_eq!(reason_of(&Value::Null), None);
    }
}
