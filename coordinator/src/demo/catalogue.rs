//! The real input: a catalogue of 3,201 films, flaws and all (`tests/data`).

use anyhow::Context;
use serde_json::{Map, Value as Json, json};

/// One film, as the catalogue has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Film {
    /// Its key in both stores, for example `film-0042`.
    pub id: String,
    /// Its title: text, but for nine films a number (`1776`, `300`, …), and for one film null.
    pub title: Json,
    /// Who directed it, if known.
    pub director: Option<String>,
    /// Its genre, if known.
    pub genre: Option<String>,
    /// The year of its release.
    pub year: i64,
}

/// All films, in the catalogue's order.
pub fn films() -> anyhow::Result<Vec<Film>> {
    let raw: Vec<Map<String, Json>> =
        serde_json::from_str(include_str!("../../../tests/data/movies.json")).context("tests/data/movies.json is no list of objects")?;
    raw.iter().enumerate().map(|(n, film)| Film::parse(n, film)).collect()
}

impl Film {
    /// Whether an index that declares `title` as text refuses this film's document.
    pub fn refused(&self) -> bool {
        self.title.is_number()
    }

    /// The film with its title as text, so that every store takes it.
    pub fn mended(mut self) -> Film {
        self.title = json!(self.title_text());
        self
    }

    /// Its title as the database takes it.
    pub fn title_text(&self) -> Option<String> {
        match &self.title {
            Json::Null => None,
            Json::String(title) => Some(title.clone()),
            other => Some(other.to_string()),
        }
    }

    /// Its document, a JSON object; `stamp` names the write that makes it.
    pub fn document(&self, stamp: &str) -> Json {
        let fields = [
            ("title", self.title.clone()),
            ("director", json!(self.director)),
            ("genre", json!(self.genre)),
            ("year", json!(self.year)),
            ("stamp", json!(stamp)),
        ];
        let known = fields.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.to_string(), value));
        Json::Object(known.collect())
    }

    fn parse(n: usize, raw: &Map<String, Json>) -> anyhow::Result<Film> {
        let text = |name: &str| raw.get(name).and_then(Json::as_str).map(str::to_string);
        let date = text("Release Date").with_context(|| format!("film {n} has no `Release Date`"))?;
        let year =
            date.rsplit(' ').next().and_then(|year| year.parse().ok()).with_context(|| format!("film {n}: `{date}` ends in no year"))?;
        Ok(Film {
            id: format!("film-{n:04}"),
            title: raw.get("Title").cloned().unwrap_or(Json::Null),
            director: text("Director"),
            genre: text("Major Genre"),
            year,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_real_and_has_its_flaws() {
        let films = films().unwrap();
        assert_eq!(films.len(), 3201);
        assert_eq!(films.iter().filter(|film| film.refused()).count(), 9);
        assert_eq!(films.iter().filter(|film| film.title.is_null()).count(), 1);
        assert!(films.iter().all(|film| !film.clone().mended().refused()));
        assert_eq!(films[0].id, "film-0000");
        assert_eq!(films[0].year, 1998);
        assert_eq!(films[0].document("c1-1"), json!({"title": "The Land Girls", "year": 1998, "stamp": "c1-1"}));
    }
}
