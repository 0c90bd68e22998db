//! One branch on one connection: its statements, and what makes them a Yes.

use super::connection::Connection;
use super::failure::Failure;
use super::marker::LEAD;
use super::schema::{SLOTS, place};
use super::script::{self, Played};
use super::values::{Field, Parameter};
use super::{Limits, statement};
use futures_util::StreamExt;
use futures_util::future::{MaybeDone, join3, maybe_done};
use lockstep_core::gid::Gid;
use lockstep_core::{Operation, Owner, RefusalKind, Results, StatementResult, Txid, Value};
use std::cmp::Ordering;
use std::error::Error as _;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Poll, ready};
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::{Client, RowStream, Statement};

/// How long a server may take to roll back, which waits for nobody: on a connection that is dead no answer ever comes.
const ROLL_BACK: Duration = Duration::from_secs(1);

/// Takes back what the transaction may have left in the session (`set_config`, a role, session locks, a temporary table that would stand
/// before another's of its name): behind its end, before another's statements are compiled. `DISCARD ALL` cannot share a message. What
/// guards the connection outside of transactions is set anew ([`super::connection::Purpose::Branches`]).
pub const RESET: &str = "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; SELECT pg_catalog.pg_advisory_unlock_all(); \
    DISCARD TEMP; DISCARD SEQUENCES; CLOSE ALL; UNLISTEN *; SET default_transaction_read_only = on";

/// The same behind PREPARE TRANSACTION, which refuses who has touched temporary objects, made a cursor WITH HOLD, or listened.
const RESET_PREPARED: &str = "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; SELECT pg_catalog.pg_advisory_unlock_all(); \
    DISCARD SEQUENCES; SET default_transaction_read_only = on";

/// What is the session user's to finish is prepared by the session user.
const SAME_USER: &[&str] = &["RESET SESSION AUTHORIZATION", "RESET ROLE"];

/// NULL where nothing was written.
const XID: &str = "SELECT pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.xid";

/// A connection's transactions only read unless this begins them: see [`super::connection::Purpose::Branches`].
const BEGIN: &str = "BEGIN READ WRITE";

/// The same of a local transaction that several share: a lock that is not free soon is none of the others' business. Each has a
/// subtransaction, so that rows tell them apart (`xmin`).
const BEGIN_SHARED: &str = "BEGIN READ WRITE; SAVEPOINT lockstep; SET LOCAL lock_timeout = 50";

/// Between two that share a local transaction: what the first has deferred is checked, and what it may have left in the session is taken
/// back ([`RESET`]). First of all it fails where there is no transaction: then nothing of it is begun, and the connection stays guarded.
const BETWEEN: &str = "RELEASE SAVEPOINT lockstep; SET CONSTRAINTS ALL IMMEDIATE; RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; \
    DISCARD TEMP; DISCARD SEQUENCES; CLOSE ALL; SAVEPOINT lockstep; SET LOCAL lock_timeout = 50";

/// Behind the last of those that share one. The marker may wait for a lock as long as any.
const BEHIND: &[&str] =
    &["RELEASE SAVEPOINT lockstep", "RESET SESSION AUTHORIZATION", "RESET ROLE", "SET CONSTRAINTS ALL IMMEDIATE", "RESET lock_timeout"];

/// Compiled once on a connection. The markers of those that are one branch (R-MARKER): an owner that is not ours is NULL, which the table
/// forbids (R-OWNER). Nothing is locked: a prepared branch would hold the lock against the next owner. Each tells the number of the local
/// transaction.
pub const OWN_STATEMENTS: &str = "PREPARE lockstep_markers(bigint[], integer, integer, bigint) AS INSERT INTO lockstep.branch(place, owner)
        SELECT place, (SELECT slot FROM lockstep.owner WHERE slot = $2 AND epoch = $3 AND incarnation = $4)
        FROM pg_catalog.unnest($1) AS m(place)
        RETURNING pg_catalog.pg_current_xact_id()::pg_catalog.xid";

/// What stands behind a branch's statements.
pub enum End<'a> {
    /// Nothing: it stays open, its commit decides (R-LR).
    Open,
    /// It is prepared.
    Prepare(&'a Naming<'a>),
}

/// How a branch is prepared.
pub struct Naming<'a> {
    /// Whose markers it gets.
    pub owner: Owner,
    /// Its name.
    pub gid: Gid,
    /// Of which transactions; the first has given it its name.
    pub txids: &'a [Txid],
}

/// What became of a branch.
pub enum Ran {
    /// Its transaction is open; whatever may still be refused has been (R-LR).
    Open(Results),
    /// It wrote nothing; its transaction is open.
    ReadOnly(Results),
    /// Prepared, with its marker.
    Prepared(Results),
}

/// Begins a transaction, runs the statements and ends as told, in one flight if the statements write for certain and nothing is expected of
/// them, else in two. Whatever fails, the transaction is left open, for [`roll_back`], unless `connection.preparing` says that it may be
/// prepared, or become so.
pub async fn run(connection: &mut Connection, operations: &[Operation], limits: &Limits, end: End<'_>) -> Result<Ran, Failure> {
    let steps = steps(operations, limits)?;
    let mut texts: Vec<&str> = steps.iter().map(|step| step.sql).collect();
    texts.extend(matches!(end, End::Open).then_some(LEAD));
    if let End::Prepare(_) = end {
        connection.compile_own(OWN_STATEMENTS).await?;
    }
    connection.compile(&texts).await?;
    steps.iter().try_for_each(|step| takes(connection.cached(step.sql).expect("just compiled"), step.parameters))?;
    // Until its transaction has ended for certain.
    connection.spoilt = true;
    let sure = steps.iter().all(Step::expects_nothing) && steps.iter().any(|step| statement::writes(step.sql));
    let script = match end {
        // Whatever may still be refused is refused before the CSN is taken.
        End::Open => format!("{}; SET CONSTRAINTS ALL IMMEDIATE; {}", SAME_USER.join("; "), connection.strict()),
        End::Prepare(naming) if sure => ending(connection, SAME_USER, naming).text,
        End::Prepare(_) => format!("{}; {}; {XID}", SAME_USER.join("; "), connection.strict()),
    };
    connection.preparing = sure && matches!(end, End::Prepare(_));
    let (results, mut played) = fly(connection, std::slice::from_ref(&steps), limits, &script, &AtomicBool::default()).await;
    connection.preparing &= !refused_at_once(&played);
    let results = results?.remove(0);
    let End::Prepare(naming) = end else {
        return played.error.map_or(Ok(Ran::Open(results)), |error| Err(error.into()));
    };
    let mut ran = None;
    let ending = ending(connection, SAME_USER, naming);
    if !sure {
        if let Some(error) = played.error {
            return Err(error.into());
        }
        ran = played.value(ending.marker).map(str::to_owned);
        if ran.is_none() {
            return Ok(Ran::ReadOnly(results));
        }
        connection.preparing = true;
        played = script::play(&connection.client, &ending.text).await;
    }
    prepared(connection, naming, &ending, ran, played)?;
    Ok(Ran::Prepared(results))
}

/// A failed transaction refuses a script's first statement: the rest is not begun.
fn refused_at_once(played: &Played) -> bool {
    matches!(&played.error, Some(error) if played.done == 0 && error.code().is_some())
}

/// Runs several, one behind the other, in one local transaction, and ends as told, in one flight unless something is to be looked at
/// before they are prepared: what they returned. Whatever fails, of any of them, all are to be rolled back, as [`run`] says. `answered`: all
/// their statements are.
pub async fn run_together(
    connection: &mut Connection,
    members: &[&[Operation]],
    limits: &Limits,
    end: End<'_>,
    answered: &AtomicBool,
) -> Result<Vec<Results>, Failure> {
    let members = members.iter().map(|operations| steps(operations, limits)).collect::<Result<Vec<_>, Failure>>()?;
    let mut texts: Vec<&str> = members.iter().flatten().map(|step| step.sql).collect();
    match end {
        End::Open => texts.push(LEAD),
        End::Prepare(_) => connection.compile_own(OWN_STATEMENTS).await?,
    }
    connection.compile(&texts).await?;
    members.iter().flatten().try_for_each(|step| takes(connection.cached(step.sql).expect("just compiled"), step.parameters))?;
    connection.spoilt = true;
    let returns = |step: &Step<'_>| !connection.cached(step.sql).expect("just compiled").columns().is_empty();
    let sure = members.iter().flatten().all(|step| step.expects_nothing() && !returns(step));
    // One record is to hold what all of them return.
    let limits = &Limits { result_bytes: limits.result_bytes / members.len().max(1), ..*limits };
    let (script, prepares) = match end {
        End::Prepare(naming) if sure => (ending(connection, BEHIND, naming).text, true),
        End::Prepare(_) | End::Open => (format!("{}; {}", BEHIND.join("; "), connection.strict()), false),
    };
    connection.preparing = prepares;
    let (results, mut played) = fly(connection, &members, limits, &script, answered).await;
    connection.preparing &= !refused_at_once(&played);
    let results = results?;
    let End::Prepare(naming) = end else {
        return played.error.map_or(Ok(results), |error| Err(error.into()));
    };
    let mut ending = ending(connection, BEHIND, naming);
    if !prepares {
        if let Some(error) = played.error {
            return Err(error.into());
        }
        ending = self::ending(connection, SAME_USER, naming);
        connection.preparing = true;
        played = script::play(&connection.client, &ending.text).await;
    }
    prepared(connection, naming, &ending, None, played)?;
    Ok(results)
}

/// Compiles what every branch needs. Left half way, it leaves a connection that is not used again.
pub async fn compile_ahead(connection: &mut Connection) -> Result<(), Failure> {
    connection.spoilt = true;
    connection.compile_own(OWN_STATEMENTS).await?;
    connection.compile(&[LEAD]).await?;
    connection.spoilt = false;
    Ok(())
}

struct Step<'a> {
    sql: &'a str,
    parameters: &'a [Value],
    expect_rows: Option<u64>,
}

impl Step<'_> {
    fn expects_nothing(&self) -> bool {
        self.expect_rows.is_none()
    }
}

fn steps<'a>(operations: &'a [Operation], limits: &Limits) -> Result<Vec<Step<'a>>, Failure> {
    operations.iter().map(|operation| step(operation, limits)).collect()
}

fn step<'a>(operation: &'a Operation, limits: &Limits) -> Result<Step<'a>, Failure> {
    match operation {
        Operation::Statement { sql, parameters, expect_rows } => {
            statement::check(sql, limits.statement_bytes)?;
            Ok(Step { sql, parameters, expect_rows: *expect_rows })
        }
        Operation::Enlisted { .. } => Err(Failure::refused(RefusalKind::Invalid, "an enlisted branch is the only operation of its store")),
        Operation::Put { .. } | Operation::Delete { .. } => {
            Err(Failure::refused(RefusalKind::Invalid, "a database takes SQL statements; documents go to an index"))
        }
    }
}

fn takes(compiled: &Statement, parameters: &[Value]) -> Result<(), Failure> {
    let (given, taken) = (parameters.len(), compiled.params().len());
    match given == taken {
        true => Ok(()),
        false => Err(Failure::refused(RefusalKind::Invalid, format!("the statement takes {taken} parameters, and {given} were given"))),
    }
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

/// All of it is sent before any of it is answered; what stands behind a statement that failed fails too, and the first tells why. Gives
/// back what each of those that share the transaction returned.
async fn fly(
    connection: &mut Connection,
    members: &[Vec<Step<'_>>],
    limits: &Limits,
    script: &str,
    answered: &AtomicBool,
) -> (Result<Vec<Results>, Failure>, Played) {
    let client = &connection.client;
    let compiled = |sql| connection.cached(sql).expect("just compiled");
    let rooms: Vec<Room<'_>> = members.iter().map(|_| Room::new(limits)).collect();
    let mut messages: Vec<Message<'_>> = Vec::new();
    for (at, (steps, room)) in members.iter().zip(&rooms).enumerate() {
        if at > 0 {
            messages.push(Box::pin(async { Ok(client.batch_execute(BETWEEN).await.map(|()| None)?) }));
        }
        for step in steps {
            messages.push(Box::pin(async move { execute(client, compiled(step.sql), step, room).await.map(Some) }));
        }
    }
    let begin = client.batch_execute(if members.len() > 1 { BEGIN_SHARED } else { BEGIN });
    let messages = async {
        let answers = in_order(messages).await;
        answered.store(true, Relaxed);
        answers
    };
    let (begin, answers, played) = join3(begin, messages, script::play(client, script)).await;
    let results = begin.map_err(Failed::from).and_then(|()| answers.into_iter().collect::<Result<Vec<_>, Failed>>());
    match results {
        // Between two members stands an answer without a result.
        Ok(answers) => (Ok(answers.split(Option::is_none).map(|own| own.iter().flatten().cloned().collect()).collect()), played),
        Err(Failed::Own(failure)) => (Err(failure), played),
        Err(Failed::Driver(error)) => {
            connection.note(&error);
            (Err(unfit(error)), played)
        }
    }
}

/// One message, and what came of it: a statement's result, or nothing that is told on.
type Message<'a> = Pin<Box<dyn Future<Output = Result<Option<StatementResult>, Failed>> + Send + 'a>>;

/// All of them, begun in this order, and answered in it. (`join_all` begins more than 30 in an order that it does not promise.)
async fn in_order(messages: Vec<Message<'_>>) -> Vec<Result<Option<StatementResult>, Failed>> {
    let mut futures: Vec<MaybeDone<Message<'_>>> = messages.into_iter().map(maybe_done).collect();
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
    fn new(limits: &Limits) -> Room<'_> {
        Room { rows: AtomicUsize::new(limits.rows), bytes: AtomicUsize::new(limits.result_bytes), limits }
    }

    fn take(&self, bytes: usize) -> Result<(), Failure> {
        let refuse = |message| Err(Failure::refused(RefusalKind::Invalid, message));
        let less = |left: &AtomicUsize, by| left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(by));
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
    let room = Room::new(limits);
    connection.compile(&[sql]).await?;
    let compiled = connection.cached(sql).expect("just compiled").clone();
    takes(&compiled, parameters)?;
    let flown = async {
        let rows = connection.client.query_raw(&compiled, parameters.iter().map(Parameter)).await?;
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

/// What writes the markers, prepares, and leaves the session as it was: one message.
struct Ending {
    text: String,
    /// Which of its statements, from 0, writes the markers; the next one prepares. Before a branch that is not sure to write is ended, the
    /// question for its number ([`XID`]) stands there.
    marker: usize,
}

/// Behind these statements. PREPARE's own answer hides whether there was a transaction to prepare: that the markers were written right before
/// it tells.
fn ending(connection: &Connection, behind: &[&str], Naming { owner, gid, txids }: &Naming<'_>) -> Ending {
    let places: Vec<String> = txids.iter().map(|txid| place(txid.position()).to_string()).collect();
    let (slot, epoch, incarnation) = (connection.slot % SLOTS, owner.epoch.0.cast_signed(), owner.incarnation.cast_signed());
    let text = format!(
        "{}; {}; EXECUTE lockstep_markers('{{{}}}', {slot}, {epoch}, {incarnation}); PREPARE TRANSACTION '{gid}'; {RESET_PREPARED}",
        behind.join("; "),
        connection.strict(),
        places.join(",")
    );
    Ending { text, marker: behind.len() + 1 }
}

/// Whether an [`ending`] prepared the branch, and the transaction that `ran`, where that is known. `connection.preparing` stays unless it
/// is certain, either way.
fn prepared(connection: &mut Connection, naming: &Naming<'_>, ending: &Ending, ran: Option<String>, played: Played) -> Result<(), Failure> {
    let numbers = played.rows.iter().filter(|(statement, _)| *statement == ending.marker);
    let marked = played.value(ending.marker).filter(|_| numbers.count() == naming.txids.len()).map(str::to_owned);
    let reset = played.error.is_none();
    if let Some(error) = played.error {
        connection.note(&error);
        let failure = match played.done.cmp(&ending.marker) {
            Ordering::Less => Failure::from(error),
            Ordering::Equal => marker_refused(error, naming.gid.txid),
            Ordering::Greater if played.done == ending.marker + 1 => return Err(not_prepared(error)),
            Ordering::Greater => return yes(connection, ran, marked, reset),
        };
        connection.preparing = matches!(failure, Failure::Lost(_));
        return Err(failure);
    }
    yes(connection, ran, marked, reset)
}

/// What was prepared, held against the transaction that ran.
fn yes(connection: &mut Connection, ran: Option<String>, marked: Option<String>, reset: bool) -> Result<(), Failure> {
    match (ran, marked) {
        (_, None) => Err(Failure::refused(
            RefusalKind::Unavailable,
            "R-MARKER: the branch's marker was not written: a trigger or a rule on the table lockstep.branch, which must go, prevents it",
        )),
        (Some(ran), Some(marked)) if ran != marked => Err(Failure::refused(
            RefusalKind::Invalid,
            "the transaction was ended by one of its statements: it was not prepared (leave transaction control out of functions too)",
        )),
        (_, Some(_)) => {
            connection.preparing = false;
            connection.spoilt = !reset;
            Ok(())
        }
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

/// Why the marker of this transaction, or of those that share its local transaction, was not written.
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

/// Ends the open transaction without effect; whether the server has answered. A connection that cannot do that is not used again.
pub async fn roll_back(connection: &mut Connection) -> bool {
    let answer = timeout(ROLL_BACK, connection.client.batch_execute(&format!("ROLLBACK; {RESET}"))).await;
    connection.spoilt = !matches!(answer, Ok(Ok(())));
    answer.is_ok()
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
