//! PostgreSQL as it comes.

use super::{Rows, WRITE_FILM, WRITE_HISTORY};
use crate::demo::catalogue::Film;
use crate::demo::stores::DatabaseKind;
use anyhow::Context;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, Row, Statement};

/// The variable that holds the password, where the server wants one.
pub const PASSWORD: &str = "PGPASSWORD";

/// How long a connection may take to be made, unless the URL says it: an interrupted demo waits for it.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A connection for a thread that may block, and not inside an asynchronous task.
pub struct Blocking {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    client: tokio_postgres::Client,
}

pub struct Client {
    connection: Blocking,
    /// Compiled with the first write.
    statements: Option<[Statement; 2]>,
}

impl Blocking {
    /// Connects. `url`: as `lockstepd`'s configuration has it.
    pub fn connect(url: &str) -> anyhow::Result<Blocking> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut config: tokio_postgres::Config = url.parse().context("the PostgreSQL URL cannot be read")?;
        if let Ok(password) = std::env::var(PASSWORD) {
            config.password(password);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_LIMIT);
        }
        let client = runtime.block_on(async {
            let (client, connection) = config.connect(NoTls).await.context("cannot connect to PostgreSQL")?;
            tokio::spawn(connection);
            anyhow::Ok(client)
        })?;
        Ok(Blocking { runtime: Some(runtime), client })
    }

    /// Runs statements without parameters.
    pub fn run(&self, script: &str) -> anyhow::Result<()> {
        self.runtime().block_on(self.client.batch_execute(script)).with_context(|| format!("PostgreSQL: {script}"))
    }

    /// Compiles a statement.
    pub fn compile(&self, sql: &str) -> anyhow::Result<Statement> {
        Ok(self.runtime().block_on(self.client.prepare(sql))?)
    }

    /// Runs a compiled statement that returns nothing, as a transaction of its own.
    pub fn execute(&mut self, statement: &Statement, parameters: &[&(dyn ToSql + Sync)]) -> anyhow::Result<()> {
        self.runtime().block_on(self.client.execute(statement, parameters))?;
        Ok(())
    }

    /// Runs a query.
    pub fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> anyhow::Result<Vec<Row>> {
        self.runtime().block_on(self.client.query(sql, parameters)).with_context(|| format!("PostgreSQL: {sql}"))
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is not dropped yet")
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Client {
    pub fn connect(url: &str) -> anyhow::Result<Client> {
        Ok(Client { connection: Blocking::connect(url)?, statements: None })
    }
}

impl Rows for Client {
    fn prepare(&mut self) -> anyhow::Result<()> {
        let there = self.connection.query("SELECT to_regclass('film') IS NOT NULL", &[])?;
        if !there[0].get::<_, bool>(0) {
            self.connection.run(DatabaseKind::Postgres.tables())?;
        }
        Ok(())
    }

    fn write(&mut self, film: &Film, stamp: &str) -> anyhow::Result<()> {
        let Blocking { runtime, client } = &mut self.connection;
        runtime.as_ref().expect("it is not dropped yet").block_on(async {
            let [row, history] = match &self.statements {
                Some(compiled) => compiled,
                None => self.statements.insert([client.prepare(WRITE_FILM).await?, client.prepare(WRITE_HISTORY).await?]),
            };
            let year = i32::try_from(film.year)?;
            let transaction = client.transaction().await?;
            transaction.execute(row, &[&film.id, &film.title_text(), &film.director, &film.genre, &year, &stamp]).await?;
            transaction.execute(history, &[&film.id, &stamp]).await?;
            transaction.commit().await?;
            Ok(())
        })
    }

    fn all(&mut self) -> anyhow::Result<BTreeMap<String, String>> {
        let rows = self.connection.query("SELECT id, stamp FROM film", &[])?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    fn history(&mut self, key: &str) -> anyhow::Result<Vec<String>> {
        let rows = self.connection.query("SELECT stamp FROM history WHERE id = $1 ORDER BY n", &[&key])?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}
