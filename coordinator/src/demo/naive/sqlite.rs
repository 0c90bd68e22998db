//! SQLite in WAL mode with `synchronous=FULL`.

use super::{Rows, WRITE_FILM, WRITE_HISTORY};
use crate::demo::catalogue::Film;
use crate::demo::stores::DatabaseKind;
use rusqlite::{Connection, params};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

pub struct Client(Connection);

impl Client {
    pub fn connect(file: &Path) -> anyhow::Result<Client> {
        let connection = Connection::open(file)?;
        connection.busy_timeout(Duration::from_secs(30))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        Ok(Client(connection))
    }
}

impl Rows for Client {
    fn prepare(&mut self) -> anyhow::Result<()> {
        if !self.0.table_exists(None, "film")? {
            self.0.execute_batch(DatabaseKind::Sqlite.tables())?;
        }
        Ok(())
    }

    fn write(&mut self, film: &Film, stamp: &str) -> anyhow::Result<()> {
        let transaction = self.0.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        transaction.execute(WRITE_FILM, params![film.id, film.title_text(), film.director, film.genre, film.year, stamp])?;
        transaction.execute(WRITE_HISTORY, params![film.id, stamp])?;
        transaction.commit()?;
        Ok(())
    }

    fn all(&mut self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut statement = self.0.prepare("SELECT id, stamp FROM film")?;
        Ok(statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?)
    }

    fn history(&mut self, key: &str) -> anyhow::Result<Vec<String>> {
        let mut statement = self.0.prepare("SELECT stamp FROM history WHERE id = ?1 ORDER BY n")?;
        Ok(statement.query_map([key], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }
}
