//! Mappings and settings, set by an operator outside transactions.

use super::fence::{Fence, change};
use super::http::{Payload, Purpose, segment};
use super::session::{REFRESH_INTERVAL, Session, put_mapping, raw_search, refresh};
use super::state::{STATE_KEY, State};
use super::survey::{Found, Survey, hiding_filter, own_fields, survey};
use crate::StoreError;
use serde_json::{Map, Value, json};
use std::time::Instant;

/// Names tried for a new index.
const NAMES_MAX: u32 = 100;

/// What is asked for.
struct Script {
    mappings: Map<String, Value>,
    /// Flat, each key with its `index.`.
    settings: Map<String, Value>,
}

impl Session {
    pub fn migrate(&mut self, script: &str) -> Result<String, StoreError> {
        let script = Script::parse(script).map_err(StoreError::Invalid)?;
        // What came before is durable without the log afterwards: the store is at rest, so all of it is closed.
        self.see(Instant::now())?;
        self.write_watermark()?;
        self.look()?;
        if let Some(why) = &self.survey.shut_because {
            return Err(StoreError::Refused(why.clone()));
        }
        refresh(&self.http, &self.survey.index)?;
        let body = json!({"size": 0, "query": {"bool": {"must_not": [{"ids": {"values": [STATE_KEY]}}]}}, "track_total_hits": true});
        let found = raw_search(&self.http, &self.survey.index, &body)?;
        match found["hits"]["total"]["value"].as_u64() {
            Some(0) => self.replace(&script),
            _ => self.extend(&script),
        }
    }

    /// The index holds documents: what is added fits them, and the server refuses the rest.
    fn extend(&mut self, script: &Script) -> Result<String, StoreError> {
        let current = self.settings()?;
        let changed: Map<String, Value> =
            script.settings.iter().filter(|(key, value)| current.get(*key).map(text) != Some(text(value))).map(own).collect();
        if !changed.is_empty() {
            let path = format!("/{}/_settings", segment(&self.survey.index));
            let answer =
                self.http.call(Purpose::Read, "PUT", &path, Payload::Json(&Value::Object(changed)), self.options.request_timeout)?;
            if !answer.ok() {
                return Err(StoreError::Invalid(format!("the settings cannot be changed: {}", answer.reason())));
            }
        }
        if !script.mappings.is_empty() {
            put_mapping(&self.http, &self.survey.index, &Value::Object(script.mappings.clone()))?
                .map_err(|why| StoreError::Invalid(format!("the mapping cannot be changed: {why}")))?;
        }
        self.look()?;
        Ok(format!("the mapping and settings of the index `{}` are set", self.survey.index))
    }

    /// The index holds nothing: another one, made as asked for, takes its place in one step.
    fn replace(&mut self, script: &Script) -> Result<String, StoreError> {
        let mut mappings = script.mappings.clone();
        let properties = mappings.entry("properties").or_insert_with(|| json!({}));
        if let (Some(properties), Value::Object(own)) = (properties.as_object_mut(), own_fields()) {
            properties.extend(own);
        }
        let mut settings = script.settings.clone();
        settings.entry(REFRESH_INTERVAL.0).or_insert_with(|| REFRESH_INTERVAL.1.into());
        let body = json!({"mappings": mappings, "settings": settings});
        let index = self.create(&body)?;
        let old = self.survey.index.clone();
        let state = self.make_ready(&index).inspect_err(|_| {
            let path = format!("/{}", segment(&index));
            let _ = self.http.call(Purpose::Read, "DELETE", &path, Payload::Nothing, self.options.request_timeout);
        })?;
        // Not removed from here on: a change of the aliases that was not answered may come yet, and take the old one away.
        self.move_to(&index, &old, state)?;
        Ok(format!("the index `{index}` is made; it takes the place of `{old}`, which held nothing"))
    }

    /// Makes an index under the next name that is free.
    fn create(&self, body: &Value) -> Result<String, StoreError> {
        let mut name = self.survey.index.clone();
        for _ in 0..NAMES_MAX {
            name = next_name(&name);
            let path = format!("/{}", segment(&name));
            let answer = self.http.call(Purpose::Read, "PUT", &path, Payload::Json(body), self.options.request_timeout)?;
            if answer.ok() {
                return Ok(name);
            }
            if answer.error_type() != "resource_already_exists_exception" {
                return Err(StoreError::Invalid(format!("the server does not make such an index: {}", answer.reason())));
            }
        }
        Err(StoreError::Invalid(format!("{NAMES_MAX} indices after `{}` are there already", self.survey.index)))
    }

    /// Writes all that is known into the new index, and says what that is.
    fn make_ready(&self, index: &str) -> Result<State, StoreError> {
        Survey::of_index(&self.http, index)?.check()?;
        let state = self.state.next(self.owner, self.state.watermark);
        let query = format!("?version={}&version_type=external", state.version.to_u64());
        let path = format!("/{}/_doc/{}{query}", segment(index), segment(STATE_KEY));
        let answer = self.http.call(Purpose::Write, "PUT", &path, Payload::Json(&state.source()), self.options.request_timeout)?;
        match answer.ok() {
            true => Ok(state),
            false => Err(answer.broken("cannot write the state into the new index")),
        }
    }

    /// Makes it the one behind the readers' alias, and removes the old one.
    fn move_to(&mut self, index: &str, old: &str, state: State) -> Result<(), StoreError> {
        change(
            &self.http,
            &self.options,
            &[
                json!({"add": {"index": index, "alias": self.options.alias, "filter": hiding_filter()}}),
                json!({"remove_index": {"index": old}}),
            ],
        )?;
        self.state = state;
        let Found::Index(survey) = survey(&self.http, &self.options)? else {
            return Err(StoreError::Broken("the new index is not there".into()));
        };
        self.survey = *survey;
        self.fence = Fence::raise(&self.http, &self.options, &self.survey, self.owner)?;
        self.look()
    }

    fn settings(&self) -> Result<Map<String, Value>, StoreError> {
        let answer = self.http.get(&format!("/{}/_settings?flat_settings=true", segment(&self.survey.index)))?;
        if !answer.ok() {
            return Err(answer.broken("cannot read the index's settings"));
        }
        Ok(answer.json()[&self.survey.index]["settings"].as_object().cloned().unwrap_or_default())
    }
}

impl Survey {
    /// Whether documents can be written safely to such an index.
    fn check(&self) -> Result<(), StoreError> {
        let wrong = self.mapping.as_ref().err().or(self.unsafe_because.as_ref()).or(self.shut_because.as_ref());
        wrong.map_or(Ok(()), |why| Err(StoreError::Invalid(why.clone())))
    }
}

impl Script {
    fn parse(script: &str) -> Result<Script, String> {
        let parsed: Value = serde_json::from_str(script).map_err(|e| format!("the script is no JSON: {e}"))?;
        let Value::Object(mut members) = parsed else {
            return Err("the script must be a JSON object: {\"mappings\": {…}, \"settings\": {…}}".into());
        };
        let mut object = |name: &str| match members.remove(name) {
            None => Ok(Map::new()),
            Some(Value::Object(object)) => Ok(object),
            Some(_) => Err(format!("`{name}` must be an object")),
        };
        let (mappings, settings) = (object("mappings")?, object("settings")?);
        if let Some(name) = members.keys().next() {
            return Err(format!("`{name}` is not taken: a script has `mappings` and `settings` (aliases are seen to by Lockstep)"));
        }
        if mappings.get("properties").is_some_and(|properties| properties.get("_lockstep").is_some() || !properties.is_object()) {
            return Err("`mappings.properties` must be an object without `_lockstep`, which belongs to Lockstep".into());
        }
        let mut flat = Map::new();
        flatten("", settings, &mut flat);
        for (key, value) in &flat {
            let value = text(value);
            match key.as_str() {
                "index.translog.durability" if !value.eq_ignore_ascii_case("request") => {
                    return Err("`index.translog.durability` must be `request`: any other loses acknowledged writes in a crash".into());
                }
                "index.default_pipeline" | "index.final_pipeline" if value != "_none" => {
                    return Err(format!("`{key}`: an ingest pipeline could change or refuse a document after its vote"));
                }
                key if key.starts_with("index.blocks.") => return Err(format!("`{key}` is not set by a migration")),
                _ => {}
            }
        }
        Ok(Script { mappings, settings: flat })
    }
}

/// `{"index": {"a": {"b": 1}}, "c": 2}` becomes `{"index.a.b": 1, "index.c": 2}`.
fn flatten(prefix: &str, settings: Map<String, Value>, flat: &mut Map<String, Value>) {
    for (key, value) in settings {
        let key = format!("{prefix}{key}");
        match value {
            Value::Object(inner) => flatten(&format!("{key}."), inner, flat),
            value if key.starts_with("index.") => drop(flat.insert(key, value)),
            value => drop(flat.insert(format!("index.{key}"), value)),
        }
    }
}

/// A setting's value as the server shows it.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn own((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

/// `items-000001` becomes `items-000002`, any other name gets such an ending.
fn next_name(name: &str) -> String {
    match name.rsplit_once('-') {
        Some((stem, number)) if number.len() == 6 => match number.parse::<u32>() {
            Ok(number) if number < 999_999 => format!("{stem}-{:06}", number + 1),
            _ => format!("{name}-000002"),
        },
        _ => format!("{name}-000002"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_checked_by_name() {
        let refused = |script: &str| Script::parse(script).err().expect(script);
        assert!(refused("CREATE TABLE").contains("no JSON"));
        assert!(refused("[]").contains("must be a JSON object"));
        assert!(refused(r#"{"mapping": {}}"#).contains("`mapping` is not taken"));
        assert!(refused(r#"{"aliases": {}}"#).contains("`aliases` is not taken"));
        assert!(refused(r#"{"mappings": {"properties": {"_lockstep": {}}}}"#).contains("belongs to Lockstep"));
        assert!(refused(r#"{"settings": {"translog": {"durability": "async"}}}"#).contains("loses acknowledged writes"));
        assert!(refused(r#"{"settings": {"index.blocks.write": true}}"#).contains("`index.blocks.write`"));
        assert!(refused(r#"{"settings": 1}"#).contains("`settings` must be an object"));
    }

    #[test]
    fn settings_are_flat_and_names_count() {
        let script = Script::parse(r#"{"settings": {"number_of_shards": 2, "index": {"translog": {"durability": "request"}}}}"#).unwrap();
        let flat = json!({"index.number_of_shards": 2, "index.translog.durability": "request"});
        assert_eq!(Value::Object(script.settings), flat);
        assert_eq!(next_name("items-000009"), "items-000010");
        assert_eq!(next_name("items"), "items-000002");
        assert_eq!(next_name("items-v1"), "items-v1-000002");
    }
}
