//! Tantivy: one writer (it allows only one) behind a read-write lock, as its own example for many threads has it. Clients add their
//! documents at once under the read lock, and commit under the write lock. Delete and add are one atomic batch.

use super::{DocumentError, Documents};
use crate::demo::catalogue::Film;
use anyhow::Context;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{PoisonError, RwLock};
use tantivy::indexer::UserOperation;
use tantivy::schema::{Field, INDEXED, STORED, STRING, Schema, TEXT, Value};
use tantivy::{Index, IndexWriter, TantivyDocument, Term, collector::DocSetCollector, query::AllQuery};

/// Memory of the index's writer, bytes: the least Tantivy allows.
const WRITER_BYTES: usize = 15_000_000;

pub struct Opened {
    fields: Fields,
    index: Index,
    writer: RwLock<IndexWriter>,
}

struct Fields {
    schema: Schema,
    key: Field,
    stamp: Field,
}

impl Opened {
    pub fn new(folder: &Path) -> anyhow::Result<Opened> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let fields = Fields::declare();
        let directory = tantivy::directory::MmapDirectory::open(folder)?;
        let index = Index::open_or_create(directory, fields.schema.clone())?;
        let writer = RwLock::new(index.writer_with_num_threads(1, WRITER_BYTES)?);
        Ok(Opened { fields, index, writer })
    }
}

impl Documents for Opened {
    fn write(&self, film: &Film, stamp: &str) -> Result<u64, DocumentError> {
        let parsed = TantivyDocument::parse_json(&self.fields.schema, &film.document(stamp).to_string());
        let mut document = parsed.map_err(|error| DocumentError::Refused(error.to_string()))?;
        document.add_text(self.fields.key, &film.id);
        let older = Term::from_field_text(self.fields.key, &film.id);
        let replace = [UserOperation::Delete(older), UserOperation::Add(document)];
        let applied = self.writer.read().unwrap_or_else(PoisonError::into_inner).run(replace).map_err(anyhow::Error::from)?;
        self.writer.write().unwrap_or_else(PoisonError::into_inner).commit().map_err(anyhow::Error::from)?;
        Ok(applied)
    }

    fn all(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let searcher = self.index.reader()?.searcher();
        let found = searcher.search(&AllQuery, &DocSetCollector)?;
        found.into_iter().map(|address| Ok(self.fields.read(&searcher.doc(address)?))).collect()
    }
}

impl Fields {
    fn declare() -> Fields {
        let mut schema = Schema::builder();
        let key = schema.add_text_field("key", STRING | STORED);
        let stamp = schema.add_text_field("stamp", STRING | STORED);
        for name in ["title", "director", "genre"] {
            schema.add_text_field(name, TEXT | STORED);
        }
        schema.add_i64_field("year", INDEXED | STORED);
        Fields { schema: schema.build(), key, stamp }
    }

    fn read(&self, document: &TantivyDocument) -> (String, String) {
        let text = |field| document.get_first(field).and_then(|value| value.as_str()).unwrap_or_default().to_string();
        (text(self.key), text(self.stamp))
    }
}
