//! Phase one: every document is checked, here and where that does not suffice by the server, before its Yes.

use super::document::{Checked, shown};
use super::grounds::{Seen, check_put, invalid, writes_of};
use super::http::{Payload, Purpose, reason_of, segment};
use super::options::NewFields;
use super::reader::csn_of;
use super::session::{Session, multi_get, put_mapping};
use crate::StoreError;
use crate::document_redo::{self as redo, Write, unmet};
use lockstep_core::{Ballot, Csn, Operation, Refusal, RefusalKind, Vote, Work};
use rustc_hash::FxHashMap;
use serde_json::{Value, json};
use std::sync::Arc;

/// Documents of one question to the server at most.
const ASK_MAX: usize = 200;
/// Bytes around a document in a bulk: its action line, with the longest key, and our own member.
const AROUND: usize = 8 << 10;

/// A document that the server is asked about.
struct Question<'a> {
    work: usize,
    key: &'a str,
    document: &'a str,
}

impl Session {
    pub fn prepare(&mut self, batch: &[Work]) -> Result<Ballot, StoreError> {
        if self.surveyed.elapsed() >= self.options.check_every {
            self.look()?;
        }
        let mut refusals: Vec<Option<Refusal>> = vec![None; batch.len()];
        let mut questions = Vec::new();
        let mut all_writes = Vec::with_capacity(batch.len());
        for (i, work) in batch.iter().enumerate() {
            match self.check(i, &work.operations, &mut questions)? {
                Ok(writes) => all_writes.push(writes),
                Err(refusal) => {
                    refusals[i] = Some(refusal);
                    all_writes.push(Vec::new());
                }
            }
        }
        self.test_conditions(batch, &mut refusals)?;
        self.ask(&questions, &mut refusals)?;
        let votes = batch
            .iter()
            .zip(all_writes)
            .zip(refusals)
            .map(|((work, writes), refusal)| (work.txid, refusal.map_or_else(|| vote_of(writes), Vote::No)));
        Ok(Ballot { votes: votes.collect(), ..Ballot::default() })
    }

    /// What votes may rest on beside the store's thread, as of now.
    pub fn publish(&self) {
        let open = self.survey.shut_because.is_none().then_some(self.survey.mapping.as_ref().ok()).flatten();
        let seen = open.map(|mapping| Seen::new(mapping.clone(), self.document_max(), self.surveyed, self.options.check_every));
        self.grounds.set(seen);
    }

    /// Bytes of one document at most.
    fn document_max(&self) -> usize {
        self.options.document_bytes.min(self.request_max.saturating_sub(AROUND))
    }

    /// What can be told without the server.
    fn check<'a>(
        &mut self,
        work: usize,
        operations: &'a [Operation],
        questions: &mut Vec<Question<'a>>,
    ) -> Result<Result<Vec<Write<'a>>, Refusal>, StoreError> {
        if let Some(why) = self.survey.shut_because.as_ref().or(self.survey.mapping.as_ref().err()).filter(|_| !operations.is_empty()) {
            return Ok(Err(Refusal::new(RefusalKind::Unavailable, why.clone())));
        }
        writes_of(operations, |key, document| {
            Ok(self.check_put(key, document)?.map(|checked| {
                if checked.ask.is_some() {
                    questions.push(Question { work, key, document });
                }
            }))
        })
    }

    fn check_put(&mut self, key: &str, document: &str) -> Result<Result<Checked, Refusal>, StoreError> {
        let check =
            |session: &Session| check_put(session.survey.mapping.as_ref().map_err(String::clone)?, session.document_max(), key, document);
        let checked = match check(self) {
            Ok(checked) => checked,
            Err(why) => return Ok(Err(invalid(why))),
        };
        let Some((first, _)) = checked.new_fields.iter().next() else { return Ok(Ok(checked)) };
        let templates = self.survey.mapping.as_ref().is_ok_and(|mapping| mapping.templates);
        if templates || self.options.new_fields == NewFields::Refuse {
            let why = match templates {
                true => "the mapping's dynamic_templates would give it a type that cannot be known before: map it first",
                false => "new fields are refused (new_fields): map it first",
            };
            return Ok(Err(invalid(format!("the field `{}` is not in the mapping, and {why}", shown(first)))));
        }
        let mapped = put_mapping(&self.http, &self.survey.index, &json!({"properties": checked.new_fields}))?;
        if let Err(why) = mapped {
            return Ok(Err(invalid(format!("its new fields cannot be mapped: {why}"))));
        }
        self.look()?;
        // Against what the server has made of it, and of what others have done meanwhile.
        Ok(match check(self) {
            Ok(checked) if checked.new_fields.is_empty() => Ok(checked),
            Ok(_) => Err(Refusal::new(RefusalKind::Conflict, "the mapping was changed at the same time")),
            Err(why) => Err(invalid(why)),
        })
    }

    /// The coordinator has tested conditions against decided writes that are not here yet (R-COND).
    fn test_conditions(&self, batch: &[Work], refusals: &mut [Option<Refusal>]) -> Result<(), StoreError> {
        let mut asked = Vec::new();
        for (i, work) in batch.iter().enumerate().filter(|(i, _)| refusals[*i].is_none()) {
            let conditions = work.operations.iter().filter_map(|operation| Some((i, operation.key()?, operation.condition()?)));
            asked.extend(conditions);
        }
        if asked.is_empty() {
            return Ok(());
        }
        let keys: Vec<&str> = asked.iter().map(|(_, key, _)| *key).collect();
        let mut found: FxHashMap<String, Csn> = FxHashMap::default();
        for keys in keys.chunks(ASK_MAX) {
            for document in multi_get(&self.http, &self.survey.index, keys)? {
                if document["found"] == Value::Bool(true)
                    && let Some(key) = document["_id"].as_str()
                {
                    // A document of another program has no CSN, and is there all the same.
                    let (csn, deleted) = csn_of(&document["_source"]).unwrap_or_default();
                    if !deleted {
                        found.insert(key.to_owned(), csn);
                    }
                }
            }
        }
        for (i, key, condition) in asked {
            if let (None, Some(why)) = (&refusals[i], unmet(condition, found.get(key).copied())) {
                refusals[i] = Some(Refusal::new(RefusalKind::Condition, format!("write of `{}`: {why}", shown(key))));
            }
        }
        Ok(())
    }

    /// Has the server parse documents as it would to index them, and keeps nothing of it: `_mtermvectors` with artificial documents.
    fn ask(&self, questions: &[Question], refusals: &mut [Option<Refusal>]) -> Result<(), StoreError> {
        let open: Vec<&Question> = questions.iter().filter(|question| refusals[question.work].is_none()).collect();
        let mut start = 0;
        while start < open.len() {
            let (mut end, mut bytes) = (start, 0);
            while end < open.len() && end - start < ASK_MAX && (end == start || bytes + open[end].document.len() < self.options.bulk_bytes)
            {
                bytes += open[end].document.len();
                end += 1;
            }
            self.ask_some(&open[start..end], refusals)?;
            start = end;
        }
        Ok(())
    }

    fn ask_some(&self, questions: &[&Question], refusals: &mut [Option<Refusal>]) -> Result<(), StoreError> {
        // Elasticsearch finds no analyzer for the field in which it notes that it ignored a malformed value, unless it is told one.
        let document = |question: &&Question| {
            format!(
                "{{\"positions\":false,\"offsets\":false,\"field_statistics\":false,\"per_field_analyzer\":{{\"_ignored\":\"keyword\"}},\"doc\":{}}}",
                question.document
            )
        };
        let body = format!("{{\"docs\":[{}]}}", questions.iter().map(document).collect::<Vec<_>>().join(","));
        let path = format!("/{}/_mtermvectors?filter_path=docs._index,docs.error", segment(&self.survey.index));
        let answer = self.http.call(Purpose::Read, "POST", &path, Payload::Text(&body), self.options.request_timeout)?;
        match (answer.status, questions) {
            (200, _) => {}
            // The request as a whole: find out which document it is.
            (400 | 413, [question]) => {
                refusals[question.work] = Some(invalid(format!("put of `{}`: {}", shown(question.key), answer.reason())));
                return Ok(());
            }
            (400 | 413 | 429, [_, _, ..]) => {
                let (left, right) = questions.split_at(questions.len() / 2);
                self.ask_some(left, refusals)?;
                return self.ask_some(right, refusals);
            }
            (429 | 502..=504, _) => {
                return Err(StoreError::Timeout(format!("the server is too busy to check documents: {}", answer.reason())));
            }
            _ => return Err(answer.broken("the server does not check documents")),
        }
        let json = answer.json();
        let results = json["docs"].as_array().map_or(&[][..], Vec::as_slice);
        if results.len() != questions.len() {
            return Err(StoreError::Broken(format!("the server checked {} of {} documents", results.len(), questions.len())));
        }
        for (question, result) in questions.iter().zip(results) {
            if !result["error"].is_null() && refusals[question.work].is_none() {
                if is_busy(&result["error"]) {
                    let why = reason_of(&result["error"]).unwrap_or_default();
                    return Err(StoreError::Timeout(format!("the server is too busy to check documents: {why}")));
                }
                let why = reason_of(&result["error"]).unwrap_or_else(|| "the server refuses it".into());
                let why =
                    why.trim_start_matches("failed to execute term vector request: ").replace(" in document with id '_id_for_tv_api'", "");
                refusals[question.work] = Some(invalid(format!("put of `{}`: {why}", shown(question.key))));
            }
        }
        Ok(())
    }
}

/// Whether an item's error says nothing of the document: the part of the index that was to look at it does not, now.
fn is_busy(error: &Value) -> bool {
    let name = error["type"].as_str().unwrap_or_default();
    ["rejected_execution", "circuit_breaking", "shard", "timeout", "node_", "cluster_block"].iter().any(|part| name.contains(part))
}

/// The vote on writes that are all in order.
pub(super) fn vote_of(writes: Vec<Write>) -> Vote {
    match writes.is_empty() {
        true => Vote::ReadOnly(Arc::from([])),
        false => Vote::Redo(redo::encode(writes), Arc::from([])),
    }
}
