//! A look at a document that builds no tree of it: most need no more to be found good, and every transaction is looked at on the
//! coordinator's one thread.

use super::document::{MAX_NAME, is_indexable};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// How the names begin that serde_json itself gives a meaning: the tree of such an object is another one.
const MAGIC: &str = "$serde_json::private::";

/// Whether this is a JSON object of which every value can be found by its path, whichever of two members of one name counts. If not, it
/// takes [`super::document::check`] to say whether it can be taken after all, or why not.
pub fn is_plain(document: &str, depth: usize) -> bool {
    let mut json = serde_json::Deserializer::from_str(document);
    json.deserialize_map(Value { deeper: depth }).is_ok() && json.end().is_ok()
}

/// The document, or a value inside of it.
#[derive(Clone, Copy)]
struct Value {
    /// Objects and arrays that may lie inside one another here.
    deeper: usize,
}

/// The name of a member.
struct Name;

impl<'de> DeserializeSeed<'de> for Value {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl Value {
    fn inner<E: Error>(self) -> Result<Value, E> {
        self.deeper.checked_sub(1).map(|deeper| Value { deeper }).ok_or_else(|| E::custom("too deep"))
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if is_indexable(text) { Ok(()) } else { Err(E::custom("a word is too long")) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while values.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while members.next_key_seed(Name)?.is_some() {
            members.next_value_seed(inner)?;
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Name {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<(), E> {
        if name.len() <= MAX_NAME && !name.contains('\0') && !name.starts_with(MAGIC) {
            Ok(())
        } else {
            Err(E::custom("no name that can be indexed"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plain_is_taken_and_what_is_not_is_looked_at_again() {
        let long = format!("{{\"{}\": 1}}", "n".repeat(MAX_NAME + 1));
        let word = format!("{{\"a\": \"{}\"}}", "w".repeat(70_000));
        let words = format!("{{\"a\": \"{}\"}}", "w ".repeat(70_000));
        for (document, plain) in [
            ("{}", true),
            (" {\"a\": [1, -2, 0.5, 1e300, null, true, \"x\\ny\"], \"b\": {\"c\": {}}} ", true),
            (&words, true),
            ("{\"a\": {\"b\": {\"c\": {}}}}", false),
            ("{\"a\": [[[]]]}", false),
            ("[]", false),
            ("1", false),
            ("", false),
            ("{} {}", false),
            ("{\"a\": 1e999}", false),
            ("{\"a\\u0000b\": 1}", false),
            ("{\"a\": }", false),
            ("{\"a\": {\"$serde_json::private::RawValue\": 5}}", false),
            ("{\"$serde_json::private::RawValue\": \"[1]\"}", false),
            (&long, false),
            (&word, false),
        ] {
            assert_eq!(is_plain(document, 3), plain, "{document:.60}");
        }
    }
}
