//! Against stores in memory, with a writer whose transactions begin and end between reads.

use super::mapping::tests::films;
use super::*;
use lockstep_core::Value;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// Both stores, and a writer that goes one step with every read.
#[derive(Default)]
struct World {
    state: Mutex<State>,
}

struct State {
    database: rusqlite::Connection,
    documents: BTreeMap<String, (u64, String)>,
    /// How many rows the writer writes, in turn; 0: it does not write.
    written: i64,
    steps: i64,
    under_way: Option<i64>,
    watched: HashSet<String>,
    touched: HashSet<String>,
    /// Nobody tells what moves.
    blind: bool,
    lacking: HashMap<String, Lacking>,
}

impl Default for State {
    fn default() -> State {
        let database = rusqlite::Connection::open_in_memory().unwrap();
        database.execute_batch("CREATE TABLE film (id INTEGER PRIMARY KEY, title TEXT)").unwrap();
        State {
            database,
            documents: BTreeMap::new(),
            written: 0,
            steps: 0,
            under_way: None,
            watched: HashSet::new(),
            touched: HashSet::new(),
            blind: false,
            lacking: HashMap::new(),
        }
    }
}

impl State {
    fn put_row(&mut self, id: i64, title: &str) {
        self.database.execute("INSERT OR REPLACE INTO film VALUES (?, ?)", rusqlite::params![id, title]).unwrap();
    }

    fn put_document(&mut self, key: &str, title: &str) {
        let csn = self.documents.get(key).map_or(1, |(csn, _)| csn + 1);
        self.documents.insert(key.into(), (csn, serde_json::json!({ "title": title }).to_string()));
    }

    fn put_both(&mut self, id: i64) {
        self.put_row(id, "one");
        self.put_document(&format!("film-{id}"), "one");
    }

    /// Every ninth read finds a row written whose document is written seven reads later.
    fn step(&mut self) {
        if self.written == 0 {
            return;
        }
        match self.steps % 9 {
            0 => {
                let id = self.steps / 9 % self.written;
                self.under_way = Some(id);
                if self.watched.contains(&format!("film-{id}")) {
                    self.touched.insert(format!("film-{id}"));
                }
                let title = format!("title {}", self.steps);
                self.put_row(id, &title);
            }
            7 => {
                let id = self.under_way.take().unwrap();
                let title: String = self.database.query_row("SELECT title FROM film WHERE id = ?", [id], |row| row.get(0)).unwrap();
                self.put_document(&format!("film-{id}"), &title);
            }
            _ => {}
        }
        self.steps += 1;
    }
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Reader for World {
    fn query(&self, sql: &str, parameters: &[Value], limits: ReadLimits) -> Result<StatementResult, StoreError> {
        let mut state = self.state();
        state.step();
        let mut statement = state.database.prepare(sql).map_err(|error| StoreError::Invalid(error.to_string()))?;
        let columns: Vec<String> = statement.column_names().map(|name| name.to_string()).collect();
        let parameters = parameters.iter().map(|value| match value {
            Value::Integer(value) => rusqlite::types::Value::Integer(*value),
            Value::Text(value) => rusqlite::types::Value::Text(value.clone()),
            other => panic!("{other:?}"),
        });
        let width = columns.len();
        let value = |value| match value {
            rusqlite::types::Value::Null => Value::Null,
            rusqlite::types::Value::Integer(value) => Value::Integer(value),
            rusqlite::types::Value::Text(value) => Value::Text(value),
            other => panic!("{other:?}"),
        };
        let rows = statement.query_map(rusqlite::params_from_iter(parameters), |row| (0..width).map(|i| Ok(value(row.get(i)?))).collect());
        let rows: Vec<Vec<Value>> = rows.unwrap().collect::<Result<_, _>>().unwrap();
        assert!(rows.len() <= limits.rows, "more rows than a page holds");
        Ok(StatementResult { rows_affected: 0, columns, rows })
    }

    fn get(&self, key: &str) -> Result<Option<Document>, StoreError> {
        let state = self.state();
        let document = |(csn, document): &(u64, String)| Document {
            key: key.into(),
            csn: Csn::from_u64(*csn).unwrap(),
            document: document.clone(),
            score: 0.0,
        };
        Ok(state.documents.get(key).map(document))
    }

    fn get_all(&self, keys: &[String]) -> Result<Vec<Option<Document>>, StoreError> {
        assert!(keys.len() <= DOCUMENTS, "more documents than may be held");
        self.state().step();
        keys.iter().map(|key| self.get(key)).collect()
    }

    fn keys(&self, after: Option<&str>, limit: usize) -> Result<KeyPage, StoreError> {
        let mut state = self.state();
        state.step();
        let keys: Vec<_> =
            state.documents.keys().filter(|key| after.is_none_or(|after| key.as_str() > after)).take(limit).cloned().collect();
        let next = keys.last().filter(|_| keys.len() == limit).cloned();
        Ok(KeyPage { keys, next })
    }
}

impl Movements for World {
    fn watch(&self, keys: &[String]) -> Result<(u64, HashSet<String>), Stopped> {
        let mut state = self.state();
        state.watched = keys.iter().cloned().collect();
        state.touched.clear();
        let live = state.under_way.map(|id| format!("film-{id}")).filter(|_| !state.blind);
        Ok((1, live.into_iter().collect()))
    }

    fn unwatch(&self, _: u64) -> Result<HashSet<String>, Stopped> {
        let mut state = self.state();
        state.watched.clear();
        let touched = std::mem::take(&mut state.touched);
        Ok(if state.blind { HashSet::new() } else { touched })
    }

    fn lacking(&self, keys: &[String]) -> Result<HashMap<String, Lacking>, Stopped> {
        let state = self.state();
        Ok(keys.iter().filter_map(|key| Some((key.clone(), state.lacking.get(key)?.clone()))).collect())
    }
}

fn verify_within(world: &Arc<World>, patience: Duration) -> Result<(Counts, Vec<Finding>), Stopped> {
    let mapping = films();
    let verification = Verification {
        mapping: &mapping,
        others: std::slice::from_ref(&mapping),
        database: world.clone(),
        index: world.clone(),
        movements: &**world,
        timeout: Duration::from_secs(5),
        patience,
    };
    let mut findings = Vec::new();
    let counts = verification.run(&mut |told| {
        if let Told::Finding(finding) = told {
            findings.push(finding);
        }
        Ok(())
    })?;
    Ok((counts, findings))
}

fn verify(world: &Arc<World>) -> (Counts, Vec<Finding>) {
    verify_within(world, Duration::from_secs(60)).unwrap()
}

#[test]
fn what_agrees_is_found_to_agree_over_many_pages() {
    let world = Arc::new(World::default());
    (0..1_203).for_each(|id| world.state().put_both(id));
    world.state().put_document("person-1", "of no mapping");
    let (counts, findings) = verify(&world);
    assert_eq!(counts, Counts { rows: 1_203, documents: 1_203, uncovered: 1, ..Counts::default() });
    assert_eq!(findings, []);
}

#[test]
fn each_difference_is_found_and_named() {
    let world = Arc::new(World::default());
    (0..1_100).for_each(|id| world.state().put_both(id));
    {
        let mut state = world.state();
        state.documents.remove("film-3");
        state.put_row(501, "two");
        state.put_row(502, "two");
        state.put_document("film-1100", "no row");
        state.put_document("film-07", "a key that only looks like one of a row");
        let sentence = "given up".to_string();
        state.lacking.insert("film-502".into(), Lacking { csn: Csn::from_u64(9).unwrap(), waits: false, sentence });
    }
    let (counts, findings) = verify(&world);
    assert_eq!((counts.missing, counts.different, counts.stale, counts.extra, counts.moving), (1, 1, 1, 2, 0));
    let found: Vec<_> = findings.iter().map(|finding| (finding.key.as_str(), finding.what)).collect();
    let expected = [
        ("film-3", What::Missing),
        ("film-501", What::Different),
        ("film-502", What::Stale),
        ("film-07", What::Extra),
        ("film-1100", What::Extra),
    ];
    assert_eq!(found, expected);
    let at = &findings[1].differences[0];
    assert_eq!((at.path.as_str(), at.row.as_deref(), at.document.as_deref()), ("title", Some("\"two\""), Some("\"one\"")));
    assert_eq!(findings[2].note, "given up");
}

#[test]
fn a_writer_that_never_rests_raises_no_alarm() {
    let world = Arc::new(World::default());
    // As many as one read takes: a write lasts from the first look at them beyond the second one.
    (0..16).for_each(|id| world.state().put_both(id));
    world.state().written = 16;
    for _ in 0..20 {
        // A run may take as many reads as a write: so each begins at another moment of one.
        world.state().step();
        let (counts, findings) = verify(&world);
        assert_eq!((counts.rows, findings), (16, Vec::new()));
    }
    // What makes it so is the watch: without it half of what is read between two writes is taken for a difference.
    world.state().blind = true;
    let run = |_| {
        world.state().step();
        verify(&world).1.len()
    };
    let alarms: usize = (0..20).map(run).sum();
    assert!(alarms > 0, "nothing ever moved between two reads: the test shows nothing");
}

#[test]
fn what_is_written_all_the_time_is_said_to_be() {
    let world = Arc::new(World::default());
    world.state().put_both(0);
    world.state().written = 1;
    // Its next write begins with the read after the last one's end.
    let (counts, findings) = verify_within(&world, Duration::ZERO).unwrap();
    assert!(findings.iter().all(|finding| finding.what == What::Moving), "{findings:?}");
    assert_eq!((counts.missing, counts.extra, counts.stale, counts.different), (0, 0, 0, 0));
}

#[test]
fn a_key_that_names_no_row_is_refused() {
    let world = Arc::new(World::default());
    world
        .state()
        .database
        .execute_batch("DROP TABLE film; CREATE TABLE film (id INTEGER, title TEXT); INSERT INTO film VALUES (NULL, 'x')")
        .unwrap();
    let error = verify_within(&world, Duration::ZERO).unwrap_err().to_string();
    assert!(error.contains("the column `id` is NULL in some row"), "{error}");
    world.state().database.execute_batch("DELETE FROM film; INSERT INTO film VALUES (1, 'x'), (1, 'y')").unwrap();
    let error = verify_within(&world, Duration::ZERO).unwrap_err().to_string();
    assert!(error.contains("the column `id` is not unique"), "{error}");
}
