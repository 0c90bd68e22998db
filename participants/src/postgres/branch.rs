//! One branch on one connection: its statements, and what makes them a Yes.

use super::connection::Connection;
use super::failure::Failure;
use super::marker::LEAD;
use super::schema::{SLOTS, place};
use super::values::{Field, Parameter};
use super::{Limits, statement};
use futures_util::StreamExt;
use futures_util::future::{MaybeDone, join3, join4, maybe_done};
use lockstep_core::gid::Gid;
use lockstep_core::{Operation, Owner, RefusalKind, Results, StatementResult, Txid, Value};
use std::error::Error as _;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, ready};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, RowStream, Statement};

/// Takes back what the transaction may have left in the session (`set_config`, a role, session locks): behind its end, before another's
/// statements are compiled.
pub const RESET: &str = "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; SELECT pg_advisory_unlock_all()";

/// What is the session user's to finish is prepared by the session user.
const SAME_USER: &str = "RESET SESSION AUTHORIZATION; RESET ROLE";
const SAME_USER_AND_CONSTRAINTS: &str = "RESET SESSION AUTHORIZATION; RESET ROLE; SET CONSTRAINTS ALL IMMEDIATE";

/// NULL where nothing was written.
const XID: &str = "SELECT pg_current_xact_id_if_assigned()::xid";

/// The marker of a branch (R-MARKER). The owner that is not ours is NULL, which the table forbids (R-OWNER). Nothing is locked: a
/// prepared branch would hold the lock against the next owner.
const MARKER: &str = "INSERT INTO lockstep.branch(place, owner)
    VALUES ($1, (SELECT slot FROM lockstep.owner WHERE slot = $2 AND epoch = $3 AND incarnation = $4))";

/// What a Yes rests on: neither a stray end of the transaction nor a failure before it shows in PREPARE's own answer.
const VERIFY: &str = "SELECT transaction FROM pg_catalog.pg_prepared_xacts WHERE gid = $1";

/// What a branch's statements did.
pub struct Ran {
    /// Their results.
    pub results: Results,
    /// The transaction's number at the server; `None` if nothing was written. Not asked for where the transaction is led.
    pub xid: Option<u32>,
}

/// Begins a transaction and runs the statements in one flight. Whatever fails, the transaction is left open, for [`roll_back`].
pub async fn run(connection: &mut Connection, operations: &[Operation], limits: &Limits, led: bool) -> Result<Ran, Failure> {
    let mut steps = Vec::with_capacity(operations.len());
    for operation in operations {
        match operation {
            Operation::Statement { sql, parameters, expect_rows } => {
                statement::check(sql, limits.statement_bytes)?;
                steps.push(Step { sql, parameters, expect_rows: *expect_rows });
            }
            Operation::Enlisted { .. } => {
                return Err(Failure::refused(RefusalKind::Invalid, "an enlisted branch is the only operation of its store"));
            }
            Operation::Put { .. } | Operation::Delete { .. } => {
                return Err(Failure::refused(RefusalKind::Invalid, "a database takes SQL statements; documents go to an index"));
            }
        }
    }
    let mut texts: Vec<&str> = steps.iter().map(|step| step.sql).collect();
    texts.extend(if led { &[LEAD][..] } else { &[XID, MARKER, VERIFY] });
    connection.compile(&texts).await?;
    // Until its transaction has ended for certain.
    connection.spoilt = true;
    let done = fly(connection, &steps, limits, led).await;
    match done {
        Ok(ran) => Ok(ran),
        Err(Failed::Driver(error)) => {
            connection.note(&error);
            Err(unfit(error))
        }
        Err(Failed::Own(failure)) => Err(failure),
    }
}

struct Step<'a> {
    sql: &'a str,
    parameters: &'a [Value],
    expect_rows: Option<u64>,
}

enum Failed {
    Driver(tokio_postgres::Error),
    Own(Failure),
}

impl From<tokio_postgres::Error> for Failed {
    fn from(error: tokio_postgres::Error) -> Failed {
        Failed::Driver(error)
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Failed {
        Failed::Own(failure)
    }
}

/// All of it is sent before any of it is answered; a statement behind one that failed fails too, and the first tells why.
async fn fly(connection: &Connection, steps: &[Step<'_>], limits: &Limits, led: bool) -> Result<Ran, Failed> {
    let client = &connection.client;
    let room = Room { rows: AtomicUsize::new(limits.rows), bytes: AtomicUsize::new(limits.result_bytes), limits };
    let compiled = |sql| connection.cached(sql).expect("just compiled");
    let begin = client.batch_execute("BEGIN");
    let statements = in_order(steps.iter().map(|step| execute(client, compiled(step.sql), step, &room)).collect());
    let end = async {
        if led {
            // Whatever may still be refused is refused before the CSN is taken (R-LR).
            client.batch_execute(&format!("{SAME_USER_AND_CONSTRAINTS}; {}", connection.strict())).await?;
            return Ok(None);
        }
        let (same_user, xid) = futures_util::future::join(client.batch_execute(SAME_USER), client.query_one(compiled(XID), &[])).await;
        same_user?;
        Ok::<Option<u32>, tokio_postgres::Error>(xid?.get::<_, Option<Xid>>(0).map(|xid| xid.0))
    };
    let (begin, statements, xid) = join3(begin, statements, end).await;
    begin?;
    let results = statements.into_iter().collect::<Result<Vec<_>, Failed>>()?;
    Ok(Ran { results: results.into(), xid: xid? })
}

/// All of them, begun in this order, and answered in it. (`join_all` begins more than 30 in an order that it does not promise.)
async fn in_order<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<MaybeDone<Pin<Box<F>>>> = futures.into_iter().map(|future| maybe_done(Box::pin(future))).collect();
    let mut done = 0;
    let mut begun = false;
    poll_fn(|context| {
        if !std::mem::replace(&mut begun, true) {
            for future in &mut futures {
                let _ = Pin::new(future).poll(context);
            }
        }
        while let Some(future) = futures.get_mut(done) {
            ready!(Pin::new(future).poll(context));
            done += 1;
        }
        Poll::Ready(())
    })
    .await;
    futures.iter_mut().map(|future| Pin::new(future).take_output().expect("all are done")).collect()
}

async fn execute(client: &Client, compiled: &Statement, step: &Step<'_>, room: &Room<'_>) -> Result<StatementResult, Failed> {
    if compiled.params().len() != step.parameters.len() {
        let (given, taken) = (step.parameters.len(), compiled.params().len());
        return Err(
            Failure::refused(RefusalKind::Invalid, format!("the statement takes {taken} parameters, and {given} were given")).into()
        );
    }
    let rows = client.query_raw(compiled, step.parameters.iter().map(Parameter)).await?;
    let result = collect(compiled, rows, step.sql, 0, room).await?;
    match step.expect_rows {
        Some(expected) if expected != result.rows_affected => Err(Failure::refused(
            RefusalKind::Condition,
            format!("{} rows were affected, and {expected} were expected (expect_rows)", result.rows_affected),
        )
        .into()),
        _ => Ok(result),
    }
}

/// Takes the rows of a statement, behind the first `offset`.
async fn collect(compiled: &Statement, rows: RowStream, sql: &str, offset: usize, room: &Room<'_>) -> Result<StatementResult, Failed> {
    let columns: Vec<String> = compiled.columns().iter().map(|column| column.name().to_owned()).collect();
    let mut result = StatementResult { columns, ..StatementResult::default() };
    let mut rows = pin!(rows);
    let mut skipped = 0;
    while let Some(row) = rows.next().await {
        let row = row?;
        if skipped < offset {
            skipped += 1;
            continue;
        }
        room.take(row.raw_size_bytes())?;
        let values = (0..result.columns.len()).map(|i| row.try_get::<_, Field>(i).map(|field| field.0));
        result.rows.push(values.collect::<Result<_, _>>()?);
    }
    // Of a reading statement the server counts what it returned.
    let reads = !result.columns.is_empty() && statement::only_returns(sql);
    result.rows_affected = if reads { 0 } else { rows.rows_affected().unwrap_or(0) };
    Ok(result)
}

/// How much a transaction's results may still take. Its statements are one task's: nothing is counted twice.
struct Room<'a> {
    rows: AtomicUsize,
    bytes: AtomicUsize,
    limits: &'a Limits,
}

impl Room<'_> {
    fn take(&self, bytes: usize) -> Result<(), Failure> {
        let refuse = |message| Err(Failure::refused(RefusalKind::Invalid, message));
        let less = |left: &AtomicUsize, by| left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(by));
        if less(&self.rows, 1).is_err() {
            return refuse(format!("the result has more than {} rows (result_rows)", self.limits.rows));
        }
        if less(&self.bytes, bytes).is_err() {
            return refuse(format!("the result has more than {} bytes (result_bytes)", self.limits.result_bytes));
        }
        Ok(())
    }
}

/// A query by itself: the transaction is open, and stays so.
pub async fn query(
    connection: &mut Connection,
    sql: &str,
    parameters: &[Value],
    offset: usize,
    limits: &Limits,
) -> Result<StatementResult, Failure> {
    let room = Room { rows: AtomicUsize::new(limits.rows), bytes: AtomicUsize::new(limits.result_bytes), limits };
    connection.compile(&[sql]).await?;
    let compiled = connection.cached(sql).expect("just compiled").clone();
    let step = Step { sql, parameters, expect_rows: None };
    if compiled.params().len() != parameters.len() {
        let (given, taken) = (parameters.len(), compiled.params().len());
        return Err(Failure::refused(RefusalKind::Invalid, format!("the statement takes {taken} parameters, and {given} were given")));
    }
    let flown = async {
        let rows = connection.client.query_raw(&compiled, step.parameters.iter().map(Parameter)).await?;
        collect(&compiled, rows, sql, offset, &room).await
    };
    match flown.await {
        Ok(result) => Ok(result),
        Err(Failed::Driver(error)) => {
            connection.note(&error);
            Err(unfit(error))
        }
        Err(Failed::Own(failure)) => Err(failure),
    }
}

/// A result that cannot be returned is the statement's fault, not the connection's.
fn unfit(error: tokio_postgres::Error) -> Failure {
    match (error.code(), error.source()) {
        (None, Some(source)) if error.to_string().starts_with("error deserializing") => {
            Failure::refused(RefusalKind::Invalid, source.to_string())
        }
        _ => Failure::from(error),
    }
}

/// Writes the marker and prepares, in one flight, and looks whether it is so.
pub async fn prepare(connection: &mut Connection, owner: Owner, gid: &Gid, xid: u32) -> Result<(), Failure> {
    let client = &connection.client;
    let compiled = |sql| connection.cached(sql).expect("compiled before the branch ran");
    let (place, slot) = (place(gid.txid.position()), i32::from(connection.slot % SLOTS));
    let (epoch, incarnation) = (owner.epoch.0.cast_signed(), owner.incarnation.cast_signed());
    let values: [&(dyn ToSql + Sync); 4] = [&place, &slot, &epoch, &incarnation];
    let name = gid.to_string();
    let transaction = format!("PREPARE TRANSACTION '{name}'");
    let marked = client.execute_raw(compiled(MARKER), values);
    let prepared = client.batch_execute(&transaction);
    let of_name: [&(dyn ToSql + Sync); 1] = [&name];
    let verified = client.query_opt(compiled(VERIFY), &of_name);
    let reset = client.batch_execute(RESET);
    let (marked, prepared, verified, reset) = join4(marked, prepared, verified, reset).await;
    marked.map_err(|error| marker_refused(error, gid.txid))?;
    prepared.map_err(not_prepared)?;
    match verified?.map(|row| row.get::<_, Xid>(0).0) {
        Some(found) if found == xid => {
            connection.spoilt = reset.is_err();
            Ok(())
        }
        Some(_) => Err(Failure::refused(RefusalKind::Conflict, "another transaction is prepared under this branch's name")),
        None => Err(Failure::refused(
            RefusalKind::Invalid,
            "the transaction was ended by one of its statements: it was not prepared (leave transaction control out of functions too)",
        )),
    }
}

/// A transaction that is prepared under a name.
pub struct PreparedAs {
    /// Its number.
    pub xid: u32,
    /// Who prepared it.
    pub owner: String,
    /// Whether this user may finish it.
    pub ours: bool,
}

/// What is prepared under this name in this database.
pub async fn prepared_as(connection: &Connection, gid: &Gid) -> Result<Option<PreparedAs>, Failure> {
    let sql = "SELECT transaction, owner::text, owner = session_user OR (SELECT rolsuper FROM pg_roles WHERE rolname = session_user)
        FROM pg_prepared_xacts WHERE gid = $1 AND database = current_database()";
    let row = connection.client.query_opt(sql, &[&gid.to_string()]).await?;
    Ok(row.map(|row| PreparedAs { xid: row.get::<_, Xid>(0).0, owner: row.get(1), ours: row.get(2) }))
}

/// Why the marker was not written.
pub fn marker_refused(error: tokio_postgres::Error, txid: Txid) -> Failure {
    match error.code().map(|state| state.code()) {
        Some("23502") => Failure::refused(
            RefusalKind::Unavailable,
            format!(
                "R-OWNER: another session of the coordinator, or another coordinator, has taken the database over: {txid} is not prepared"
            ),
        ),
        Some("23505") => Failure::refused(RefusalKind::Conflict, format!("R-ONEPREP: {txid} was prepared or settled here before")),
        _ => Failure::from(error),
    }
}

fn not_prepared(error: tokio_postgres::Error) -> Failure {
    match error.code().map(|state| state.code()) {
        Some("55000") => Failure::refused(RefusalKind::Unavailable, super::examination::prepared_transactions_off()),
        Some("53200") => Failure::refused(
            RefusalKind::Busy,
            "as many transactions are prepared at the server as max_prepared_transactions allows: raise it, or lower pool_size",
        ),
        Some("42710") => Failure::refused(RefusalKind::Conflict, "a transaction is prepared under this branch's name already"),
        _ => Failure::from(error),
    }
}

/// Ends the open transaction without effect. A connection that cannot do that is not used again.
pub async fn roll_back(connection: &mut Connection) {
    let (ended, reset) =
        futures_util::future::join(connection.client.batch_execute("ROLLBACK"), connection.client.batch_execute(RESET)).await;
    connection.spoilt = ended.is_err() || reset.is_err();
}

/// A transaction's number.
struct Xid(u32);

impl<'a> tokio_postgres::types::FromSql<'a> for Xid {
    fn from_sql(_: &tokio_postgres::types::Type, raw: &'a [u8]) -> Result<Xid, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Xid(u32::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(ty: &tokio_postgres::types::Type) -> bool {
        *ty == tokio_postgres::types::Type::XID
    }
}
