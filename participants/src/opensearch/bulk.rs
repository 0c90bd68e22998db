//! `_bulk`: many writes in a request, and what became of each of them.
//!
//! A bulk answers HTTP 200 whatever happened inside, so each item's result is read. A request that is too large, or that the server
//! refuses as a whole, is halved until the item that is at fault stands alone: one bad item holds up no other.

use super::http::{Answer, Fault, Http, Payload, Purpose, reason_of, segment};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Items of one request at most.
const ITEMS_MAX: usize = 5_000;
/// Pauses between tries while the server is busy, milliseconds. After the last one the items are reported as not applied yet.
const PAUSES: [u64; 4] = [25, 100, 250, 500];

/// One write, ready to be sent: its action line and, but for a delete, its source line.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub lines: Vec<u8>,
}

/// What became of an item.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Became {
    /// It is there, durably.
    Applied,
    /// Something with a higher version is there; which one, as far as the server says.
    Conflict(Option<u64>),
    /// The alias is not there: the index is gone, or another coordinator writes now.
    NoAlias(String),
    /// It cannot be applied now, and why; not for want of trying.
    Refused(String),
}

/// Where and how bulks are sent.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub http: &'a Http,
    /// Must be an alias.
    pub alias: &'a str,
    /// Bytes of one request, unless a single item is larger.
    pub bytes: usize,
    /// Requests under way at once.
    pub parallel: usize,
    pub timeout: Duration,
    /// The trace that all of it is a part of.
    pub traceparent: Option<&'a str>,
}

#[derive(Deserialize)]
struct BulkAnswer {
    #[serde(default)]
    items: Vec<Value>,
}

impl Way<'_> {
    /// Sends them all, and says what became of each, in their order. An error: the server does not answer, or does not know us.
    pub fn send(&self, items: &[Item]) -> Result<Vec<Became>, BulkError> {
        let (chunks, until) = (self.chunks(items), Instant::now() + self.timeout);
        if chunks.len() <= 1 || self.parallel <= 1 {
            let mut all = Vec::with_capacity(items.len());
            for chunk in chunks {
                all.extend(self.chunk(chunk, 0, until)?);
            }
            return Ok(all);
        }
        // Order between requests does not matter: every write carries its version.
        let waiting = Mutex::new(chunks.iter().enumerate());
        let done = Mutex::new(Vec::with_capacity(chunks.len()));
        std::thread::scope(|scope| {
            for _ in 0..self.parallel.min(chunks.len()) {
                scope.spawn(|| {
                    loop {
                        let next = waiting.lock().expect("no holder panics").next();
                        let Some((place, chunk)) = next else { return };
                        let became = self.chunk(chunk, 0, until);
                        let failed = became.is_err();
                        done.lock().expect("no holder panics").push((place, became));
                        if failed {
                            return;
                        }
                    }
                });
            }
        });
        let mut done = done.into_inner().expect("no holder panics");
        done.sort_by_key(|(place, _)| *place);
        let mut all = Vec::with_capacity(items.len());
        for (_, became) in done {
            all.extend(became?);
        }
        Ok(all)
    }

    fn chunks<'i>(&self, items: &'i [Item]) -> Vec<&'i [Item]> {
        let (mut chunks, mut start, mut bytes) = (Vec::new(), 0, 0);
        for (i, item) in items.iter().enumerate() {
            if i > start && (bytes + item.lines.len() > self.bytes || i - start >= ITEMS_MAX) {
                chunks.push(&items[start..i]);
                (start, bytes) = (i, 0);
            }
            bytes += item.lines.len();
        }
        if start < items.len() {
            chunks.push(&items[start..]);
        }
        chunks
    }

    /// `until`: how long a busy server is tried again. What it has not taken by then is reported so, and comes again later.
    fn chunk(&self, items: &[Item], tries: usize, until: Instant) -> Result<Vec<Became>, BulkError> {
        let mut tries = tries;
        loop {
            let answer = self.once(items)?;
            let busy = match answer.status {
                200 => return self.read(items, &answer, tries, until),
                401 | 403 => return Err(BulkError::NotAllowed(answer.reason())),
                400 | 413 if items.len() > 1 => return self.halves(items, tries, until),
                400 | 404 | 413 => return Ok(vec![Became::Refused(answer.reason()); items.len()]),
                // Too large for what the server has room for, whenever it is sent; or busy.
                429 if items.len() > 1 && Instant::now() < until => {
                    if answer.error_type() != "circuit_breaking_exception" {
                        std::thread::sleep(Duration::from_millis(PAUSES[0]));
                    }
                    return self.halves(items, tries, until);
                }
                _ => answer.reason(),
            };
            match PAUSES.get(tries) {
                Some(pause) if Instant::now() < until => std::thread::sleep(Duration::from_millis(*pause)),
                Some(_) | None => return Ok(vec![Became::Refused(format!("the server is busy: {busy}")); items.len()]),
            }
            tries += 1;
        }
    }

    fn halves(&self, items: &[Item], tries: usize, until: Instant) -> Result<Vec<Became>, BulkError> {
        let (left, right) = items.split_at(items.len() / 2);
        let mut all = self.chunk(left, tries, until)?;
        all.extend(self.chunk(right, tries, until)?);
        Ok(all)
    }

    fn once(&self, items: &[Item]) -> Result<Answer, BulkError> {
        let mut body = Vec::with_capacity(items.iter().map(|item| item.lines.len()).sum());
        items.iter().for_each(|item| body.extend_from_slice(&item.lines));
        let path = format!(
            "/{}/_bulk?require_alias=true&pipeline=_none&timeout={}ms&filter_path=items.*.status,items.*.result,items.*.error",
            segment(self.alias),
            self.timeout.as_millis()
        );
        Ok(self.http.call(Purpose::Write, "POST", &path, Payload::Lines(&body, self.traceparent), self.timeout)?)
    }

    /// What the answer says of each item; those for which the server was too busy are sent again.
    fn read(&self, items: &[Item], answer: &Answer, tries: usize, until: Instant) -> Result<Vec<Became>, BulkError> {
        let read: BulkAnswer = serde_json::from_slice(&answer.body).map_err(|e| BulkError::Nonsense(e.to_string()))?;
        if read.items.len() != items.len() {
            return Err(BulkError::Nonsense(format!("{} results for {} items", read.items.len(), items.len())));
        }
        let mut all = Vec::with_capacity(items.len());
        let mut again = Vec::new();
        for (i, item) in read.items.iter().enumerate() {
            let result = item.as_object().and_then(|item| item.values().next()).unwrap_or(&Value::Null);
            all.push(became(result).unwrap_or_else(|busy| {
                again.push(i);
                Became::Refused(format!("the server is busy: {busy}"))
            }));
        }
        if let (false, Some(pause), true) = (again.is_empty(), PAUSES.get(tries), Instant::now() < until) {
            std::thread::sleep(Duration::from_millis(*pause));
            let rest: Vec<Item> = again.iter().map(|i| items[*i].clone()).collect();
            for (i, became) in again.into_iter().zip(self.chunk(&rest, tries + 1, until)?) {
                all[i] = became;
            }
        }
        Ok(all)
    }
}

/// A bulk that got no usable answer. What it was to write may be there or not.
#[derive(Debug)]
pub(super) enum BulkError {
    Fault(Fault),
    NotAllowed(String),
    Nonsense(String),
}

impl From<Fault> for BulkError {
    fn from(fault: Fault) -> BulkError {
        BulkError::Fault(fault)
    }
}

impl BulkError {
    pub fn sentence(&self) -> String {
        match self {
            BulkError::Fault(fault) => fault.sentence().to_owned(),
            BulkError::NotAllowed(why) => format!("writing is not allowed to these credentials: {why}"),
            BulkError::Nonsense(why) => format!("the server's answer to a bulk cannot be read: {why}"),
        }
    }
}

/// What one result says. The error: busy, so that it is worth trying again at once.
fn became(result: &Value) -> Result<Became, String> {
    let error = &result["error"];
    let name = error["type"].as_str().unwrap_or_default();
    let reason = || reason_of(error).unwrap_or_else(|| format!("the server gave no reason: {result}"));
    match result["status"].as_u64() {
        Some(200 | 201) => match result["result"].as_str() {
            Some("created" | "updated" | "deleted") => Ok(Became::Applied),
            // An ingest pipeline has dropped it.
            _ => Ok(Became::Refused("the server has not written it: an ingest pipeline keeps it from that".into())),
        },
        // A document that was to be deleted is not there.
        Some(404) if error.is_null() => Ok(Became::Applied),
        Some(409) => Ok(Became::Conflict(current_version(&reason()))),
        Some(404) if name == "index_not_found_exception" => Ok(Became::NoAlias(reason())),
        // The flood stage of a disk: it lasts.
        Some(429) if name == "cluster_block_exception" => Ok(Became::Refused(reason())),
        Some(429 | 502 | 503 | 504) => Err(reason()),
        _ => Ok(Became::Refused(reason())),
    }
}

/// From `[key]: version conflict, current version [7] is higher than the one provided [5]`.
fn current_version(reason: &str) -> Option<u64> {
    let (_, rest) = reason.rsplit_once("current version [")?;
    rest.split_once(']')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn results_are_told_apart() {
        let error = |status: u16, name: &str, reason: &str| became(&json!({"status": status, "error": {"type": name, "reason": reason}}));
        assert_eq!(became(&json!({"status": 201, "result": "created"})), Ok(Became::Applied));
        assert!(matches!(became(&json!({"status": 200, "result": "noop"})), Ok(Became::Refused(why)) if why.contains("pipeline")));
        assert_eq!(became(&json!({"status": 404})), Ok(Became::Applied));
        let conflict = "[current version [1]]: version conflict, current version [7] is higher than the one provided [5]";
        assert_eq!(error(409, "version_conflict_engine_exception", conflict), Ok(Became::Conflict(Some(7))));
        assert_eq!(error(404, "index_not_found_exception", "no such index"), Ok(Became::NoAlias("no such index".into())));
        assert_eq!(error(429, "cluster_block_exception", "flood"), Ok(Became::Refused("flood".into())));
        assert_eq!(error(429, "rejected_execution_exception", "full"), Err("full".into()));
        assert_eq!(error(400, "index_closed_exception", "closed"), Ok(Became::Refused("closed".into())));
        assert!(matches!(became(&Value::Null), Ok(Became::Refused(_))));
    }
}
