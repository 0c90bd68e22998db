//! Whether a database can keep the promise, and what will get in its way: a sentence each, and how to set it.

use super::connection::{Connection, Pool, lend};
use super::schema::{self, broken, read_only};
use super::{PostgresMode, PostgresOptions};
use crate::{Finding, StoreError};

/// Prepared transactions that are told one by one.
const TOLD: i64 = 20;

/// The sentence for the server's default.
pub fn prepared_transactions_off() -> String {
    "prepared transactions are switched off at the server (max_prepared_transactions = 0, the default): set it to at least 2 × pool_size in \
     postgresql.conf and restart the server, or set mode = \"database-led\" for this store"
        .into()
}

/// Refuses a server that cannot take part at all. Versions are looked at when a connection is made.
pub async fn fit(connection: &Connection, options: &PostgresOptions) -> Result<(), StoreError> {
    let sql = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
        current_setting('max_prepared_transactions')::int4, current_setting('server_encoding')";
    let row = connection.client.query_typed_one(sql, &[]).await.map_err(broken)?;
    let refuse = |message: String| Err(StoreError::Refused(message));
    if row.get(0) {
        return refuse(
            "the server is a hot standby, which takes no writes: connect to the primary (target_session_attrs=read-write in url)".into(),
        );
    }
    if row.get(1) {
        return refuse(read_only());
    }
    if options.mode == PostgresMode::TwoPhase && row.get::<_, i32>(2) == 0 {
        return refuse(prepared_transactions_off());
    }
    match row.get::<_, &str>(3) {
        "UTF8" => Ok(()),
        other => refuse(format!("the database's encoding is {other}; Lockstep needs UTF8 (createdb --encoding UTF8 --template template0)")),
    }
}

/// What is wrong, or soon will be.
pub async fn examine(pool: &Pool, options: &PostgresOptions) -> Vec<Finding> {
    let connection = match lend(pool).await {
        Ok(connection) => connection,
        Err(failure) => {
            return vec![Finding::problem(failure.refusal().message, "bring the server back, or mend the store's configuration")];
        }
    };
    if let Err(error) = fit(&connection, options).await {
        return vec![Finding::problem(error.to_string(), "see the sentence")];
    }
    let mut findings = Vec::new();
    for found in [settings(&connection, options).await, privileges(&connection).await, prepared(&connection, options).await] {
        match found {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(Finding::warning(format!("it cannot be examined: {error}"), "see the sentence")),
        }
    }
    if let Err(error) = schema::read(&connection, options).await {
        findings.push(Finding::problem(error.to_string(), "see the sentence"));
    }
    findings
}

async fn settings(connection: &Connection, options: &PostgresOptions) -> Result<Vec<Finding>, StoreError> {
    let sql =
        "SELECT current_setting('max_prepared_transactions')::int4, current_setting('fsync'), current_setting('max_connections')::int4";
    let row = connection.client.query_typed_one(sql, &[]).await.map_err(broken)?;
    let (prepared, fsync, connections): (i32, &str, i32) = (row.get(0), row.get(1), row.get(2));
    let wanted = i32::try_from(options.pool_size).unwrap_or(i32::MAX);
    let mut findings = Vec::new();
    if options.mode == PostgresMode::TwoPhase && prepared < wanted {
        findings.push(Finding::warning(
            format!("max_prepared_transactions = {prepared} is less than pool_size = {wanted}: transactions will be refused as busy"),
            "set max_prepared_transactions to at least 2 × pool_size and restart the server (never below what is prepared: it would not start)",
        ));
    }
    if fsync != "on" {
        findings.push(Finding::problem("fsync is off at the server: what it says is durable is lost in a power failure", "set fsync = on"));
    }
    let needed = i32::try_from(options.pool_size + options.finishers + options.readers + 2).unwrap_or(i32::MAX);
    if connections < needed {
        findings.push(Finding::warning(
            format!("max_connections = {connections} is less than the {needed} connections that this store may open"),
            "raise max_connections, or lower pool_size",
        ));
    }
    Ok(findings)
}

async fn privileges(connection: &Connection) -> Result<Vec<Finding>, StoreError> {
    let sql = "SELECT to_regnamespace('lockstep') IS NOT NULL OR has_database_privilege(current_database(), 'CREATE'),
        to_regclass('lockstep.marker') IS NULL OR has_table_privilege('lockstep.marker', 'SELECT, INSERT, DELETE')";
    let row = connection.client.query_typed_one(sql, &[]).await.map_err(broken)?;
    let mut findings = Vec::new();
    if !row.get::<_, bool>(0) {
        findings.push(Finding::problem("the user may not make the schema `lockstep`", "GRANT CREATE ON DATABASE … TO the user"));
    }
    if !row.get::<_, bool>(1) {
        findings.push(Finding::problem("the user may not write the tables of the schema `lockstep`", "make the user their owner"));
    }
    Ok(findings)
}

/// Prepared transactions that are old, whoever's: they hold locks, and keep vacuum from everything that came after them.
async fn prepared(connection: &Connection, options: &PostgresOptions) -> Result<Vec<Finding>, StoreError> {
    let sql = "SELECT gid, owner::text, database::text, extract(epoch FROM now() - prepared)::float8, age(transaction),
            (SELECT count(*) FROM pg_locks l WHERE l.pid IS NULL AND l.virtualtransaction = '-1/' || p.transaction::text)
        FROM pg_prepared_xacts p WHERE extract(epoch FROM now() - prepared)::float8 > $1 ORDER BY prepared LIMIT $2";
    let rows = connection.client.query(sql, &[&options.old_after.as_secs_f64(), &TOLD]).await.map_err(broken)?;
    let told = |row: &tokio_postgres::Row| {
        let (gid, owner, database): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        let (seconds, age, locks): (f64, i32, i64) = (row.get(3), row.get(4), row.get(5));
        let remedy = match gid.starts_with("lockstep:") {
            true => "`lockstep tx list` says what it waits for; it ends by itself once that is there",
            false => "it is not Lockstep's: whoever prepared it must end it (COMMIT PREPARED or ROLLBACK PREPARED in that database)",
        };
        let sentence = format!(
            "transaction '{gid}' of {owner} in database {database} has been prepared for {seconds:.0} s: it holds {locks} locks and keeps \
             vacuum from the rows of the last {age} transactions"
        );
        Finding::warning(sentence, remedy)
    };
    Ok(rows.iter().map(told).collect())
}
