//! Reads: search and get, from any thread, of what the last commit left.

use super::copy;
use super::index::broken;
use super::schema::{Body, Layout, VALUES};
use crate::{Document, KeyPage, ReadLimits, Reader, SearchResult, StoreError};
use lockstep_core::Csn;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;
use tantivy::collector::{Collector, Count, DocSetCollector, TopDocs};
use tantivy::query::{EnableScoring, Query, QueryParser, RangeQuery};
use tantivy::query_grammar::{UserInputAst, UserInputLeaf, parse_query_lenient};
use tantivy::schema::{Field, IndexRecordOption, Value};
use tantivy::{DocAddress, DocSet, Index, IndexReader, ReloadPolicy, Searcher, TERMINATED, TantivyDocument, TantivyError, Term};

/// How far into the results a search may reach: offset plus rows. Each costs memory.
pub const MAX_WINDOW: usize = 10_000;
/// How deep a query may be nested.
const NESTING_MAX: usize = 50;

/// Reads of whichever index is the current one.
pub(super) struct IndexReads(RwLock<Arc<Snapshot>>);

/// One index, as of its last commit.
pub(super) struct Snapshot {
    layout: Arc<Layout>,
    reader: IndexReader,
    parser: QueryParser,
    index: Index,
    folder: PathBuf,
}

impl IndexReads {
    pub fn new(snapshot: Arc<Snapshot>) -> IndexReads {
        IndexReads(RwLock::new(snapshot))
    }

    /// From now on reads go to this index.
    pub fn switch(&self, snapshot: Arc<Snapshot>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Reader for IndexReads {
    fn search(&self, query: &str, limits: ReadLimits) -> Result<SearchResult, StoreError> {
        self.current().search(query, limits)
    }

    fn get(&self, key: &str) -> Result<Option<Document>, StoreError> {
        self.current().get(key)
    }

    fn keys(&self, after: Option<&str>, limit: usize) -> Result<KeyPage, StoreError> {
        self.current().keys(after, limit)
    }

    fn back_up(&self, to: &Path) -> Result<bool, StoreError> {
        self.current().back_up(to).map(|()| true)
    }
}

impl Snapshot {
    pub fn open(index: &Index, folder: &Path, layout: Arc<Layout>) -> Result<Snapshot, StoreError> {
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into().map_err(broken)?;
        let parser = QueryParser::for_index(index, layout.default_fields());
        Ok(Snapshot { layout, reader, parser, index: index.clone(), folder: folder.to_path_buf() })
    }

    /// Sees the last commit from now on.
    pub fn reload(&self) -> Result<(), StoreError> {
        self.reader.reload().map_err(broken)
    }

    /// The CSN of the document under this key, if there is one.
    pub fn csn(&self, key: &str) -> Result<Option<Csn>, StoreError> {
        let searcher = self.reader.searcher();
        let Some(address) = self.find(&searcher, key)? else { return Ok(None) };
        let column = searcher.segment_reader(address.segment_ord).fast_fields().u64("_csn").map_err(broken)?;
        let csn = column.first(address.doc_id).and_then(Csn::from_u64);
        csn.map(Some).ok_or_else(|| StoreError::Refused(format!("the document `{key}` has no CSN: another program wrote it")))
    }

    /// Keys and CSNs of documents above this CSN.
    pub fn above(&self, watermark: Csn) -> Result<Vec<(String, Csn)>, StoreError> {
        let searcher = self.reader.searcher();
        let above = RangeQuery::new(Bound::Excluded(Term::from_field_u64(self.layout.csn, watermark.to_u64())), Bound::Unbounded);
        let addresses = searcher.search(&above, &DocSetCollector).map_err(broken)?;
        addresses.into_iter().map(|address| self.document(&searcher, address, 0.0).map(|d| (d.key, d.csn))).collect()
    }

    /// How many documents there are.
    pub fn len(&self) -> u64 {
        self.reader.searcher().num_docs()
    }

    /// Calls for each document, in no order.
    pub fn for_each(&self, mut each: impl FnMut(Document) -> Result<(), StoreError>) -> Result<(), StoreError> {
        for segment in self.reader.searcher().segment_readers() {
            let store = segment.get_store_reader(1).map_err(broken)?;
            for document in store.iter::<TantivyDocument>(segment.alive_bitset()) {
                each(self.read(&document.map_err(broken)?, 0.0)?)?;
            }
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Result<Option<Document>, StoreError> {
        let searcher = self.reader.searcher();
        let address = self.find(&searcher, key)?;
        address.map(|address| self.document(&searcher, address, 0.0)).transpose()
    }

    /// The last commit and the manifest, as [`crate::tantivy`] lays them out.
    fn back_up(&self, to: &Path) -> Result<(), StoreError> {
        copy::commit(&self.index, &self.folder, to)
    }

    /// In the order of the keys' bytes; the mark is the last key.
    fn keys(&self, after: Option<&str>, limit: usize) -> Result<KeyPage, StoreError> {
        let mut keys = Vec::new();
        for segment in self.reader.searcher().segment_readers() {
            let inverted = segment.inverted_index(self.layout.key).map_err(broken)?;
            let terms = match after {
                Some(after) => inverted.terms().range().gt(after.as_bytes()),
                None => inverted.terms().range(),
            };
            let (mut terms, mut own) = (terms.into_stream().map_err(broken)?, 0);
            // Of each segment as many as are wanted in all: the first of them are among these.
            while own < limit && terms.advance() {
                let mut postings = inverted.read_postings_from_terminfo(terms.value(), IndexRecordOption::Basic).map_err(broken)?;
                while postings.doc() != TERMINATED && segment.is_deleted(postings.doc()) {
                    postings.advance();
                }
                if postings.doc() != TERMINATED {
                    let key = String::from_utf8(terms.key().to_vec());
                    keys.push(key.map_err(|_| StoreError::Refused("a document's key is no text: another program wrote it".into()))?);
                    own += 1;
                }
            }
        }
        keys.sort();
        keys.dedup();
        keys.truncate(limit);
        let next = keys.last().filter(|_| keys.len() == limit).cloned();
        Ok(KeyPage { keys, next })
    }

    fn find(&self, searcher: &Searcher, key: &str) -> Result<Option<DocAddress>, StoreError> {
        let term = Term::from_field_text(self.layout.key, key);
        for (ord, segment) in searcher.segment_readers().iter().enumerate() {
            let inverted = segment.inverted_index(self.layout.key).map_err(broken)?;
            let Some(mut postings) = inverted.read_postings(&term, IndexRecordOption::Basic).map_err(broken)? else { continue };
            while postings.doc() != TERMINATED {
                if !segment.is_deleted(postings.doc()) {
                    return Ok(Some(DocAddress::new(ord as u32, postings.doc())));
                }
                postings.advance();
            }
        }
        Ok(None)
    }

    fn search(&self, query: &str, limits: ReadLimits) -> Result<SearchResult, StoreError> {
        let deadline = Instant::now().checked_add(limits.timeout);
        if limits.rows.saturating_add(limits.offset) > MAX_WINDOW {
            return Err(StoreError::Invalid(format!("limit {} plus offset {} is more than {MAX_WINDOW}", limits.rows, limits.offset)));
        }
        let query = self.parse(query)?;
        let searcher = self.reader.searcher();
        if limits.rows == 0 {
            let total = collect(&searcher, &*query, &Count, deadline)? as u64;
            return Ok(SearchResult { total, documents: Vec::new() });
        }
        let best = TopDocs::with_limit(limits.rows).and_offset(limits.offset).order_by_score();
        let (best, total) = collect(&searcher, &*query, &(best, Count), deadline)?;
        let documents = best.into_iter().map(|(score, address)| self.document(&searcher, address, score)).collect::<Result<_, _>>()?;
        Ok(SearchResult { total: total as u64, documents })
    }

    fn parse(&self, query: &str) -> Result<Box<dyn Query>, StoreError> {
        let invalid =
            |sentences: Vec<String>| StoreError::Invalid(format!("the query `{query}` cannot be searched: {}", sentences.join("; ")));
        // Tantivy ends a path with one, and panics over another.
        if query.contains('\0') {
            return Err(StoreError::Invalid(format!("the query `{}` contains a NUL character", query.replace('\0', "\\0"))));
        }
        if nesting(query) > NESTING_MAX {
            return Err(StoreError::Invalid(format!("the query is nested deeper than {NESTING_MAX} levels (parentheses, NOT)")));
        }
        let (mut ast, errors) = parse_query_lenient(query);
        if !errors.is_empty() {
            return Err(invalid(errors.into_iter().map(|e| format!("{} at position {}", e.message, e.pos)).collect()));
        }
        if let Body::Dynamic { .. } = self.layout.body {
            self.by_path(&mut ast).map_err(|sentence| invalid(vec![sentence]))?;
        }
        let (query_tree, errors) = self.parser.build_query_from_user_input_ast_lenient(ast);
        if errors.is_empty() { Ok(query_tree) } else { Err(invalid(errors.iter().map(ToString::to_string).collect())) }
    }

    /// In a dynamic index a field's name is a path into the document.
    fn by_path(&self, ast: &mut UserInputAst) -> Result<(), String> {
        let leaf = match ast {
            UserInputAst::Clause(clauses) => return clauses.iter_mut().try_for_each(|(_, clause)| self.by_path(clause)),
            UserInputAst::Boost(inner, _) => return self.by_path(inner),
            UserInputAst::Leaf(leaf) => leaf,
        };
        let unknown = |name: &&mut String| self.layout.schema.find_field(name).is_none();
        match &mut **leaf {
            UserInputLeaf::Literal(literal) => literal.field_name.as_mut().filter(unknown).into_iter().for_each(path),
            UserInputLeaf::Set { field, .. } => field.as_mut().filter(unknown).into_iter().for_each(path),
            UserInputLeaf::Range { field: Some(field), .. } | UserInputLeaf::Exists { field } => {
                if self.layout.schema.find_field(field).is_none() {
                    return Err(format!("a range or existence of `{field}` can be searched only if the field is declared (migrate)"));
                }
            }
            UserInputLeaf::Range { field: None, .. } | UserInputLeaf::Regex { .. } | UserInputLeaf::All => {}
        }
        Ok(())
    }

    fn document(&self, searcher: &Searcher, address: DocAddress, score: f32) -> Result<Document, StoreError> {
        self.read(&searcher.doc::<TantivyDocument>(address).map_err(broken)?, score)
    }

    fn read(&self, document: &TantivyDocument, score: f32) -> Result<Document, StoreError> {
        let text = |field: Field| document.get_first(field).and_then(|value| value.as_str()).map(str::to_owned);
        let csn = document.get_first(self.layout.csn).and_then(|value| value.as_u64()).and_then(Csn::from_u64);
        match (text(self.layout.key), csn, text(self.layout.source)) {
            (Some(key), Some(csn), Some(document)) => Ok(Document { key, csn, document, score }),
            _ => Err(StoreError::Refused("a document has no key, CSN or source: another program wrote it".into())),
        }
    }
}

/// How deep Tantivy would descend into a query, at most: it does so for each parenthesis, and for each NOT in a row, whatever the stack holds.
fn nesting(query: &str) -> usize {
    let (mut open, mut negated, mut deepest) = (0usize, 0usize, 0);
    for word in query.split_inclusive(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | '+' | '-')) {
        match word.trim_end_matches(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | '+' | '-')) {
            "NOT" => negated += 1,
            "" => {}
            _ => negated = 0,
        }
        open = if word.ends_with('(') { open + 1 } else { open.saturating_sub(usize::from(word.ends_with(')'))) };
        deepest = deepest.max(open + negated);
    }
    deepest
}

fn path(name: &mut String) {
    *name = format!("{VALUES}.{name}");
}

/// Searches segment by segment, so that a slow query ends at its deadline, between two of them.
fn collect<C: Collector>(searcher: &Searcher, query: &dyn Query, collector: &C, deadline: Option<Instant>) -> Result<C::Fruit, StoreError> {
    let scoring = EnableScoring::enabled_from_searcher(searcher);
    let weight = query.weight(scoring).map_err(asked)?;
    let mut fruits = Vec::with_capacity(searcher.segment_readers().len());
    for (ord, segment) in searcher.segment_readers().iter().enumerate() {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(StoreError::Timeout("the search took longer than its time limit".into()));
        }
        fruits.push(collector.collect_segment(&*weight, ord as u32, segment).map_err(asked)?);
    }
    collector.merge_fruits(fruits).map_err(asked)
}

/// An error of a search: the query's fault where Tantivy says so.
fn asked(error: TantivyError) -> StoreError {
    match error {
        TantivyError::InvalidArgument(_) | TantivyError::SchemaError(_) | TantivyError::FieldNotFound(_) => {
            StoreError::Invalid(format!("the query cannot be searched: {error}"))
        }
        error => broken(error),
    }
}
