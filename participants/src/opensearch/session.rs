//! A session with the cluster: what was found at its start, and phase two.

use super::bulk::{Became, Item, Way};
use super::fence::Fence;
use super::grounds::Grounds;
use super::http::{Http, Payload, Purpose, reason_of, segment};
use super::options::OpenSearchOptions;
use super::reader::{Reads, Shards, Topic, csn_of, unreadable};
use super::state::{Kept, STATE_KEY, State};
use super::survey::{self, Found, Survey, hiding_filter, own_fields};
use crate::document_redo::{self as redo, Write};
use crate::{Committed, Recovered, StoreError, Tended};
use lockstep_core::{Csn, Decided, Owner, Progress, TraceContext, Txid};
use rustc_hash::{FxHashMap, FxHashSet};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::field::display;

/// Keys of one multi-get at most.
const KEYS_MAX: usize = 1_000;
/// How often a document is written over another writer's, before it is given up for now.
const ROUNDS_MAX: usize = 20;
/// So many of them wait, if need be, for a copy of the index that is behind …
const ROUNDS_BEHIND: usize = 5;
/// … for so long each. (What another program has deleted looks the same.)
const BEHIND: Duration = Duration::from_millis(20);
/// How often the server itself refreshes an index that was made here: seldom, for we do. Not never: what was written when the daemon
/// ended is to be found all the same.
pub(super) const REFRESH_INTERVAL: (&str, &str) = ("index.refresh_interval", "30s");
/// When upkeep that is waiting for the server is looked at again.
const LOOK: Duration = Duration::from_millis(50);
/// When upkeep that failed is tried again at the earliest.
const TROUBLE: Duration = Duration::from_secs(1);

/// One session of the store.
pub(super) struct Session {
    pub options: Arc<OpenSearchOptions>,
    pub http: Arc<Http>,
    pub reads: Arc<Reads>,
    pub grounds: Arc<Grounds>,
    pub owner: Owner,
    pub survey: Survey,
    pub surveyed: Instant,
    /// Bytes of the largest request that the server takes.
    pub request_max: usize,
    pub fence: Fence,
    pub state: State,
    /// Everything up to here can be found.
    pub applied: Csn,
    /// How far the watermark may go.
    closed: Csn,
    /// Something is applied that no refresh has taken in.
    unseen: bool,
    refreshed: Option<Instant>,
    /// When something was last applied.
    written: Option<Instant>,
    /// When somebody last said that he waits.
    hurried: Option<Instant>,
    /// Applied, and not covered by the watermark yet.
    uncovered: BTreeMap<Csn, Vec<Txid>>,
    stuck: BTreeSet<Csn>,
    /// Tombstones may be there that can go one day.
    pub tombstones: bool,
    /// Tombstones up to here have been removed.
    pub purged: Csn,
    /// When upkeep is due.
    upkeep: Instant,
    /// How many documents of other writers were written over.
    pub overwritten: u64,
}

/// A write on its way.
struct Outgoing<'a> {
    /// Of which decision.
    decision: usize,
    csn: Csn,
    txid: Option<Txid>,
    trace: Option<TraceContext>,
    led: bool,
    write: Write<'a>,
}

/// What is known of a document on the server.
struct There {
    version: u64,
    csn: Option<Csn>,
    /// Whether its version is the one that it was given by us.
    ours: bool,
}

impl Session {
    /// Examines everything, takes the index over, and raises the fence.
    pub fn open(
        options: &Arc<OpenSearchOptions>,
        http: &Arc<Http>,
        reads: &Arc<Reads>,
        grounds: &Arc<Grounds>,
        owner: Owner,
        seen: Option<Owner>,
    ) -> Result<(Session, Recovered), StoreError> {
        survey::greet(http)?;
        let survey = prepared_index(http, options)?;
        let kept = State::read(http, &survey.index)?;
        if let Some(kept) = kept {
            check_owner(owner, kept.owner, seen, &survey.index)?;
        }
        refresh(http, &survey.index)?;
        let state = match kept {
            Some(kept) => kept.next(owner, kept.watermark),
            None => State { owner, watermark: Csn::ZERO, adopted: strangers(http, options)?, version: Csn::new(owner.epoch, 0) },
        };
        match state.take_over(http, &options.alias, options.request_timeout)? {
            Kept::Yes => {}
            Kept::Superseded => return Err(StoreError::Refused("another coordinator took the index over at this moment".into())),
            Kept::No(why) => return Err(StoreError::Broken(format!("cannot take over the index `{}`: {why}", survey.index))),
        }
        let fence = Fence::raise(http, options, &survey, owner)?;
        let highest = highest(http, &survey.index)?;
        let progress = Progress { applied: state.watermark, durable: state.watermark };
        let now = Instant::now();
        let session = Session {
            options: options.clone(),
            http: http.clone(),
            reads: reads.clone(),
            grounds: grounds.clone(),
            owner,
            request_max: survey::request_max(http),
            survey,
            surveyed: now,
            fence,
            applied: state.watermark,
            closed: state.watermark,
            state,
            unseen: false,
            refreshed: None,
            written: None,
            hurried: None,
            uncovered: BTreeMap::new(),
            stuck: BTreeSet::new(),
            tombstones: true,
            purged: Csn::ZERO,
            upkeep: now + options.upkeep_every,
            overwritten: 0,
        };
        session.note_shut();
        session.publish();
        let recovered = Recovered {
            progress,
            highest,
            prepared: Vec::new(),
            heuristics: Vec::new(),
            floor: lockstep_core::Position::default(),
            exclusive: true,
        };
        Ok((session, recovered))
    }

    /// Phase two. An error: nothing is known of it, and all of it comes again.
    pub fn commit(&mut self, decided: &[Decided], closed: Csn) -> Result<Committed, StoreError> {
        let outcomes = self.apply(decided)?;
        if outcomes.iter().any(Result::is_ok) {
            self.written = Some(Instant::now());
        }
        let mut stuck = Vec::new();
        let mut late = false;
        for (decided, outcome) in decided.iter().zip(outcomes) {
            match outcome {
                Ok(()) => {
                    late |= decided.csn <= self.applied;
                    self.stuck.remove(&decided.csn);
                    self.uncovered.insert(decided.csn, decided.txids.clone());
                    self.unseen = true;
                }
                Err(why) => {
                    self.stuck.insert(decided.csn);
                    stuck.push((decided.csn, why));
                }
            }
        }
        // R-WATERMARK: below what is stuck.
        let limit = stuck.iter().map(|(csn, _)| csn.before()).min().map_or(closed, |csn| csn.min(closed));
        self.closed = self.closed.max(limit);
        // What is closed and stuck no more was given up (R-SKIP).
        self.stuck = self.stuck.split_off(&self.closed.next());
        let mut done = Vec::new();
        if !self.stuck.is_empty() || late {
            // The watermark cannot tell of those: they are told one by one, once they are found.
            self.see(Instant::now())?;
            let (covered, seen) = (self.closed, !self.unseen);
            self.uncovered.retain(|csn, txids| {
                let told = seen && (*csn > covered || *csn <= self.state.watermark);
                if told {
                    done.append(txids);
                }
                !told
            });
        }
        Ok(Committed { progress: self.progress(), done, stuck, ..Committed::default() })
    }

    /// Refreshes, writes the watermark, and does what else is due.
    pub fn tend(&mut self, closed: Csn, now: Instant) -> Result<Tended, StoreError> {
        self.closed = self.closed.max(closed);
        // Before votes have to wait for it.
        if self.behind() && self.surveyed + self.options.check_every / 2 <= now {
            self.look()?;
        }
        let every = self.refresh_every(now);
        let due = self.refreshed.map(|at| at + every).filter(|at| *at > now);
        if self.behind() && due.is_none() {
            self.see(now)?;
            self.write_watermark()?;
        }
        let quiet = self.quiet_from().filter(|at| *at > now);
        let mut next = self.behind().then(|| due.into_iter().chain(quiet).min().unwrap_or(now + every));
        if !self.behind() {
            if self.upkeep <= now {
                self.upkeep = now + self.upkeep()?;
            }
            if self.tombstones || !self.options.upkeep_every.is_zero() {
                next = Some(self.upkeep);
            }
        }
        Ok(Tended { progress: self.progress(), next })
    }

    /// Somebody waits to see what is about to be decided.
    pub fn hurry(&mut self, now: Instant) {
        self.hurried = Some(now);
    }

    /// Who waited longer than the usual time has seen it: what he waits for was not decided yet, or is waited for by another now.
    fn refresh_every(&self, now: Instant) -> Duration {
        let OpenSearchOptions { refresh_every, refresh_awaited, .. } = *self.options;
        let hurried = self.hurried.is_some_and(|at| at + refresh_every > now);
        match hurried || self.quiet_from().is_some_and(|at| at <= now) {
            true => refresh_every.min(refresh_awaited),
            false => refresh_every,
        }
    }

    /// When a burst is over: what was gathered meanwhile would have come. Once for what no refresh was tried for.
    fn quiet_from(&self) -> Option<Instant> {
        let gather = self.options.gather;
        let written = self.written.filter(|at| !gather.is_zero() && self.unseen && self.refreshed.is_none_or(|refreshed| refreshed < *at));
        written.map(|at| at + gather * 2)
    }

    /// Looks at the index again; ends the session if it is another one.
    pub fn look(&mut self) -> Result<(), StoreError> {
        self.surveyed = Instant::now();
        match survey::survey(&self.http, &self.options)? {
            Found::Nothing => {
                let (alias, index) = (&self.options.alias, &self.survey.index);
                self.survey.shut_because =
                    Some(format!("the index `{index}`, or its alias `{alias}`, is not there any more: bring it back"));
            }
            Found::Index(found) => {
                if (&found.index, &found.uuid) != (&self.survey.index, &self.survey.uuid) {
                    return Err(StoreError::Broken(format!(
                        "the alias `{}` points at `{}` now, and not at `{}`: it is examined anew",
                        self.options.alias, found.index, self.survey.index
                    )));
                }
                if let Some(why) = &found.unsafe_because {
                    return Err(StoreError::Broken(why.clone()));
                }
                if !found.hides {
                    return Err(StoreError::Broken(format!(
                        "the alias `{}` hides deleted documents no more: it is set anew",
                        self.options.alias
                    )));
                }
                if !found.aliases.iter().any(|alias| alias == self.fence.alias()) {
                    return Err(StoreError::Broken(
                        "our alias for writes was dropped: another coordinator writes now, or an operator did it".into(),
                    ));
                }
                if found.shut_because.is_none() {
                    self.is_kept()?;
                }
                self.survey = *found;
            }
        }
        self.note_shut();
        self.publish();
        Ok(())
    }

    /// R-STORELOSS: an index that was put back in place has its name, its identity and its aliases, and an older watermark.
    fn is_kept(&self) -> Result<(), StoreError> {
        let (index, written) = (&self.survey.index, self.state.watermark);
        match State::read(&self.http, index) {
            Ok(Some(kept)) if kept.owner == self.owner && kept.watermark >= written => Ok(()),
            // A part of it that cannot be read cannot be written either.
            Err(StoreError::Broken(_) | StoreError::Timeout(_)) => Ok(()),
            Err(error @ (StoreError::Refused(_) | StoreError::Invalid(_))) => Err(error),
            Ok(Some(kept)) if kept.owner == self.owner => Err(StoreError::Broken(format!(
                "the index `{index}` has followed up to {}, and had followed up to {written}: an older one was put in its place",
                kept.watermark
            ))),
            Ok(Some(_) | None) => Err(StoreError::Broken(format!("the index `{index}` is not ours any more: it is examined anew"))),
        }
    }

    pub fn way(&self) -> Way<'_> {
        let Session { options, http, .. } = self;
        Way {
            http,
            alias: self.fence.alias(),
            bytes: options.bulk_bytes.min(self.request_max),
            parallel: options.bulk_parallel,
            timeout: options.request_timeout,
            traceparent: None,
        }
    }

    /// Writes the watermark behind all that it covers.
    pub fn write_watermark(&mut self) -> Result<(), StoreError> {
        if self.state.watermark >= self.applied {
            return Ok(());
        }
        let state = self.state.next(self.owner, self.applied);
        match state.write(&self.http, self.fence.alias(), self.options.request_timeout)? {
            Kept::Yes => self.state = state,
            Kept::Superseded => return Err(StoreError::Refused("another coordinator has taken the index over".into())),
            // It waits like any other write.
            Kept::No(why) => {
                self.look()?;
                tracing::debug!(why, "the watermark cannot be written now");
                self.state.version = state.version;
            }
        }
        self.uncovered = self.uncovered.split_off(&self.state.watermark.next());
        Ok(())
    }

    /// Makes all that is applied visible to searches.
    pub fn see(&mut self, now: Instant) -> Result<(), StoreError> {
        if self.unseen {
            self.refreshed = Some(now);
            if !refreshed(&self.http, &self.survey.index)? {
                self.look()?;
                return Ok(());
            }
            self.unseen = false;
        }
        self.applied = self.applied.max(self.closed);
        Ok(())
    }

    fn progress(&self) -> Progress {
        Progress { applied: self.applied, durable: self.state.watermark }
    }

    /// Something is not found yet, or the watermark not written behind it.
    fn behind(&self) -> bool {
        self.unseen || self.closed > self.applied || self.applied > self.state.watermark
    }

    fn note_shut(&self) {
        let unmapped = self.survey.mapping.as_ref().err();
        self.reads.note(Topic::Shut, self.survey.shut_because.as_ref().or(unmapped).cloned());
    }

    /// Tombstones that can go, and foreign writers. When it is due again.
    fn upkeep(&mut self) -> Result<Duration, StoreError> {
        let every = self.options.upkeep_every;
        let purged = self.tombstones.then(|| self.purge());
        let audited = self.audit();
        for error in [purged.as_ref().and_then(|purged| purged.as_ref().err()), audited.as_ref().err()].into_iter().flatten() {
            tracing::warn!(index = self.survey.index, %error, "upkeep failed; it is tried again");
        }
        Ok(match purged {
            Some(Ok(false)) => LOOK,
            Some(Err(_)) => TROUBLE.max(every),
            Some(Ok(true)) | None => every,
        })
    }

    /// What became of each decision. The error sentences are reasons why it is stuck.
    fn apply(&mut self, decided: &[Decided]) -> Result<Vec<Result<(), String>>, StoreError> {
        if self.survey.final_pipeline {
            self.look()?;
        }
        if self.survey.final_pipeline {
            let why = self.survey.shut_because.clone().unwrap_or_else(|| "the index has an ingest pipeline".into());
            return Ok(vec![Err(why); decided.len()]);
        }
        let mut outcomes: Vec<Result<(), String>> = vec![Ok(()); decided.len()];
        let mut outgoing = Vec::new();
        for (decision, decided) in decided.iter().enumerate() {
            match redo::decode(&decided.redo) {
                Ok(writes) => {
                    let led = !decided.is_by_log();
                    let (txid, trace) = (decided.txids.first().copied(), decided.trace);
                    outgoing.extend(writes.into_iter().map(|write| Outgoing { decision, csn: decided.csn, txid, trace, led, write }));
                }
                Err(why) => outcomes[decision] = Err(why),
            }
        }
        let items: Vec<Item> = outgoing.iter().map(|out| out.item(out.csn.to_u64())).collect();
        // A request can be a part of one trace only.
        let traceparent = if let [alone] = decided { alone.trace.and_then(|trace| trace.traceparent()) } else { None };
        let way = Way { traceparent: traceparent.as_deref(), ..self.way() };
        let became = way.send(&items).map_err(|error| StoreError::Broken(error.sentence()))?;
        let mut conflicts = Vec::new();
        let mut trouble = false;
        for (out, became) in outgoing.into_iter().zip(became) {
            self.tombstones |= matches!(out.write, Write::Delete { .. });
            match became {
                Became::Applied => {}
                Became::Conflict(version) => conflicts.push((out, version)),
                Became::NoAlias(why) | Became::Refused(why) => {
                    trouble = true;
                    outcomes[out.decision] = Err(format!("the document `{}`: {why}", super::document::shown(out.write.key())));
                }
            }
        }
        for (decision, why) in self.settle(conflicts)? {
            outcomes[decision] = Err(why);
        }
        if trouble {
            // The mapping has changed, or the index is shut, or gone, or another's: votes are to know, and a takeover ends the session.
            self.look()?;
        }
        Ok(outcomes)
    }

    fn send(&self, items: &[Item]) -> Result<Vec<Became>, StoreError> {
        self.way().send(items).map_err(|error| StoreError::Broken(error.sentence()))
    }

    /// Conflicts: something with a higher version is there. If we wrote it, it is a newer write, and all is well. If not, another
    /// program wrote there: ours is decided and goes over it. Gives back what could not be settled.
    fn settle<'a>(&mut self, mut conflicts: Vec<(Outgoing<'a>, Option<u64>)>) -> Result<Vec<(usize, String)>, StoreError> {
        let mut unsettled = Vec::new();
        for round in 0..ROUNDS_MAX {
            if conflicts.is_empty() {
                return Ok(unsettled);
            }
            let keys: Vec<&str> = conflicts.iter().map(|(out, _)| out.write.key()).collect();
            let there = self.there(&keys)?;
            let (mut over, mut later) = (Vec::new(), Vec::new());
            let mut keys = FxHashSet::default();
            for (out, version) in conflicts {
                let found = there.get(out.write.key());
                let superseded = match found {
                    Some(found) => found.csn.is_some_and(|csn| csn >= out.csn),
                    // Its tombstone has gone since.
                    None => out.csn <= self.purged,
                };
                // Read at a copy that is behind the one that has refused the write: what is there is not known yet.
                let behind = version.is_some_and(|version| found.map_or(0, |found| found.version) < version);
                if behind && !superseded && round < ROUNDS_BEHIND {
                    later.push((out, version));
                    continue;
                }
                if superseded {
                    if let Some(found) = found.filter(|found| !found.ours) {
                        self.complain(&out, found.version);
                    }
                    continue;
                }
                // One at a time for each key, the oldest first.
                if keys.insert(out.write.key()) {
                    let version = version.unwrap_or_default().max(found.map_or(0, |found| found.version));
                    // Ours may stand above its CSN since the last time.
                    if !found.is_some_and(|found| found.ours) {
                        self.complain(&out, version);
                    }
                    let next = version.saturating_add(1).max(out.csn.to_u64());
                    over.push((out.item(next), out, version));
                } else {
                    later.push((out, version));
                }
            }
            let items: Vec<Item> = over.iter().map(|(item, ..)| item.clone()).collect();
            for ((_, out, version), became) in over.into_iter().zip(self.send(&items)?) {
                match became {
                    Became::Applied => {}
                    Became::Conflict(now) => later.push((out, now.or(Some(version)))),
                    Became::NoAlias(why) | Became::Refused(why) => unsettled.push((out.decision, why)),
                }
            }
            if items.is_empty() && !later.is_empty() {
                std::thread::sleep(BEHIND);
            }
            conflicts = later;
        }
        let given_up = |(out, _): (Outgoing, _)| {
            let key = super::document::shown(out.write.key());
            (out.decision, format!("another program writes the document `{key}` again and again, without regard to its version"))
        };
        unsettled.extend(conflicts.into_iter().map(given_up));
        Ok(unsettled)
    }

    fn complain(&mut self, out: &Outgoing, version: u64) {
        self.overwritten += 1;
        let (n, key) = (self.overwritten, super::document::shown(out.write.key()));
        let (txid, csn, trace_id) = (out.txid.map(display), out.csn, out.trace.map(|context| display(context.trace)));
        tracing::warn!(txid, %csn, trace_id, key, version, "another program has written this document; what was decided goes over it");
        let sentence = format!(
            "another program writes to the index `{}`, past Lockstep: {n} documents so far, the last one `{key}`; \
             what was decided was written over it",
            self.survey.index
        );
        self.reads.note(Topic::Overwritten, Some(sentence));
    }

    /// What is there under these keys now, seen by a search or not.
    fn there(&self, keys: &[&str]) -> Result<FxHashMap<String, There>, StoreError> {
        let mut there = FxHashMap::default();
        for keys in keys.chunks(KEYS_MAX) {
            for document in multi_get(&self.http, &self.survey.index, keys)? {
                if let (Some(key), Some(version)) = (document["_id"].as_str(), document["_version"].as_u64()) {
                    let csn = csn_of(&document["_source"]).map(|(csn, _)| csn);
                    there.insert(key.to_owned(), There { version, csn, ours: ours(&document) });
                }
            }
        }
        Ok(there)
    }
}

/// Whether a document's version is the one that it was given by us.
fn ours(document: &Value) -> bool {
    let own = &document["_source"]["_lockstep"];
    let given = own["version"].as_u64().or(own["csn"].as_u64());
    given.is_some() && given == document["_version"].as_u64()
}

/// The documents of a multi-get, with their versions and our own member.
pub(super) fn multi_get(http: &Http, index: &str, keys: &[&str]) -> Result<Vec<Value>, StoreError> {
    let path = format!("/{}/_mget?_source_includes=_lockstep", segment(index));
    let answer = http.ask(&path, &json!({"ids": keys}))?;
    if !answer.ok() {
        return Err(answer.broken("cannot read documents"));
    }
    let documents = match answer.json()["docs"].take() {
        Value::Array(documents) if documents.len() == keys.len() => documents,
        _ => return Err(StoreError::Broken("the server did not answer for each of the documents that it was asked for".into())),
    };
    // A part of the index that does not answer now (busy, not assigned) says nothing of whether a document is there.
    match documents.iter().find_map(|document| document.get("error")) {
        None => Ok(documents),
        Some(error) => {
            let why = reason_of(error).unwrap_or_else(|| "the server gave no reason".into());
            Err(StoreError::Timeout(format!("a part of the index `{index}` cannot be read now: {why}")))
        }
    }
}

impl Outgoing<'_> {
    /// Under this version.
    fn item(&self, version: u64) -> Item {
        let csn = self.csn.to_u64();
        let mut own = format!("\"csn\":{csn}");
        if version != csn {
            own.push_str(&format!(",\"version\":{version}"));
        }
        if self.led {
            own.push_str(",\"led\":true");
        }
        let key = Value::from(self.write.key());
        let mut lines =
            format!("{{\"index\":{{\"_id\":{key},\"version\":{version},\"version_type\":\"external_gte\"}}}}\n{{\"_lockstep\":{{{own}");
        match self.write {
            Write::Delete { .. } => lines.push_str(",\"deleted\":true}}"),
            Write::Put { document, .. } => {
                // In valid JSON a line can end only between its tokens.
                let members = document.trim().strip_prefix('{').unwrap_or("}").replace(['\n', '\r'], " ");
                lines.push('}');
                if !members.trim_start().starts_with('}') {
                    lines.push(',');
                }
                lines.push_str(&members);
            }
        }
        lines.push('\n');
        Item { lines: lines.into_bytes() }
    }
}

/// The index, with Lockstep's own fields in its mapping; made if it may be.
fn prepared_index(http: &Http, options: &OpenSearchOptions) -> Result<Survey, StoreError> {
    let found = match survey::survey(http, options)? {
        Found::Nothing => {
            create(http, options)?;
            survey::survey(http, options)?
        }
        found => found,
    };
    let Found::Index(survey) = found else {
        return Err(StoreError::Broken(format!("the alias `{}` is not there", options.alias)));
    };
    if let Some(why) = survey.unsafe_because.as_ref().or(survey.shut_because.as_ref()) {
        return Err(StoreError::Broken(why.clone()));
    }
    if !survey.prepared {
        put_mapping(http, &survey.index, &json!({"properties": own_fields()}))?
            .map_err(|why| StoreError::Broken(format!("cannot add Lockstep's own fields to the index `{}`: {why}", survey.index)))?;
        if let Found::Index(survey) = survey::survey(http, options)? {
            return Ok(*survey);
        }
    }
    Ok(*survey)
}

/// Makes the index with its alias, or gives the alias to an index that is there.
fn create(http: &Http, options: &OpenSearchOptions) -> Result<(), StoreError> {
    let OpenSearchOptions { alias, index, .. } = options;
    if !options.create {
        return Err(StoreError::Broken(format!("the alias `{alias}` is not there, and is not to be made (create = false)")));
    }
    let settings = json!({REFRESH_INTERVAL.0: REFRESH_INTERVAL.1});
    let body = json!({"settings": settings, "mappings": {"properties": own_fields()}, "aliases": {alias: {"filter": hiding_filter()}}});
    let answer = http.call(Purpose::Read, "PUT", &format!("/{}", segment(index)), Payload::Json(&body), options.request_timeout)?;
    if answer.ok() {
        return Ok(());
    }
    if answer.error_type() != "resource_already_exists_exception" {
        return Err(answer.broken(&format!("cannot make the index `{index}`")));
    }
    put_mapping(http, index, &json!({"properties": own_fields()}))?
        .map_err(|why| StoreError::Broken(format!("cannot add Lockstep's own fields to the index `{index}`: {why}")))?;
    super::fence::change(http, options, &[json!({"add": {"index": index, "alias": alias, "filter": hiding_filter()}})])
}

/// Adds to a mapping. The inner error is the server's reason to refuse it.
pub(super) fn put_mapping(http: &Http, index: &str, mapping: &Value) -> Result<Result<(), String>, StoreError> {
    let path = format!("/{}/_mapping", segment(index));
    let answer = http.call(Purpose::Read, "PUT", &path, Payload::Json(mapping), Duration::from_secs(10))?;
    Ok(if answer.ok() { Ok(()) } else { Err(answer.reason()) })
}

/// Takes in all that is applied; whether that worked everywhere.
fn refreshed(http: &Http, index: &str) -> Result<bool, StoreError> {
    let path = format!("/{}/_refresh", segment(index));
    let answer = http.call(Purpose::Read, "POST", &path, Payload::Nothing, Duration::from_secs(30))?;
    match answer.status {
        200 => Ok(answer.json()["_shards"]["failed"] == 0),
        401 | 403 => Err(answer.broken("cannot refresh the index")),
        _ => Ok(false),
    }
}

pub(super) fn refresh(http: &Http, index: &str) -> Result<(), StoreError> {
    match refreshed(http, index)? {
        true => Ok(()),
        false => Err(StoreError::Broken(format!("the index `{index}` cannot be refreshed: a part of it is not there, or it is closed"))),
    }
}

/// A search in the index itself, of hidden documents too.
pub(super) fn raw_search(http: &Http, index: &str, body: &Value) -> Result<Value, StoreError> {
    let answer = http.ask(&format!("/{}/_search", segment(index)), body)?;
    if !answer.ok() {
        return Err(answer.broken(&format!("cannot search the index `{index}`")));
    }
    let found = answer.json();
    all_answered(&found)?;
    Ok(found)
}

fn all_answered(answer: &Value) -> Result<(), StoreError> {
    Shards::deserialize(&answer["_shards"]).map_err(|error| unreadable(&error))?.all_answered()
}

/// The highest log-decided CSN of any document (R-LOGLOSS).
fn highest(http: &Http, index: &str) -> Result<Csn, StoreError> {
    let body = json!({
        "size": 1, "_source": false, "sort": [{"_lockstep.csn": "desc"}],
        "query": {"bool": {"filter": [{"exists": {"field": "_lockstep.csn"}}], "must_not": [{"exists": {"field": "_lockstep.led"}}]}},
    });
    let found = raw_search(http, index, &body)?;
    let highest = found["hits"]["hits"][0]["sort"][0].as_u64();
    Ok(highest.and_then(Csn::from_u64).unwrap_or_default())
}

/// How many documents readers find that Lockstep did not write.
pub(super) fn strangers(http: &Http, options: &OpenSearchOptions) -> Result<u64, StoreError> {
    let hidden = [json!({"exists": {"field": "_lockstep.csn"}}), json!({"ids": {"values": [STATE_KEY]}})];
    let answer = http.ask(&format!("/{}/_count", segment(&options.alias)), &json!({"query": {"bool": {"must_not": hidden}}}))?;
    if !answer.ok() {
        return Err(answer.broken("cannot count documents"));
    }
    all_answered(&answer.json())?;
    Ok(answer.json()["count"].as_u64().unwrap_or_default())
}

/// R-OWNER, at the last moment: between the worker's question and now another one may have come.
fn check_owner(owner: Owner, kept: Owner, seen: Option<Owner>, index: &str) -> Result<(), StoreError> {
    let supersedes = owner.coord_id == kept.coord_id && owner.epoch > kept.epoch && seen == Some(kept);
    if owner == kept || supersedes {
        return Ok(());
    }
    Err(StoreError::Refused(format!(
        "the index `{index}` belongs to the coordinator {} in its epoch {} (R-OWNER), and not to {} in its epoch {}: \
         an index follows one log",
        kept.coord_id, kept.epoch, owner.coord_id, owner.epoch
    )))
}
