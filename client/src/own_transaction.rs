//! What is needed of a driver to enlist a transaction on its connection.

use std::error::Error;
use std::future::Future;

/// An application's own open PostgreSQL transaction, in some driver. Dropped, it is rolled back, unless it has been prepared or committed
/// meanwhile.
pub trait OwnTransaction: Send {
    /// The driver's error.
    type Error: Error + Send + Sync + 'static;

    /// Sends each of these as a message of its own (simple query protocol), in this order, all before the first is answered if the driver
    /// can do that. Gives back, for each, the first field of the first row that it returned. The first error counts.
    fn run(&mut self, messages: &[&str]) -> impl Future<Output = Result<Vec<Option<String>>, Self::Error>> + Send;

    /// Whether the server has refused the statement and nothing else is wrong: then the transaction is rolled back for certain.
    fn is_refusal(error: &Self::Error) -> bool;
}

#[cfg(feature = "tokio-postgres")]
impl OwnTransaction for tokio_postgres::Transaction<'_> {
    type Error = tokio_postgres::Error;

    async fn run(&mut self, messages: &[&str]) -> Result<Vec<Option<String>>, tokio_postgres::Error> {
        let mut flights: Vec<_> = messages.iter().map(|message| Box::pin(self.simple_query(message))).collect();
        let mut answers: Vec<_> = messages.iter().map(|_| None).collect();
        std::future::poll_fn(|context| {
            for (flight, answer) in flights.iter_mut().zip(&mut answers).filter(|(_, answer)| answer.is_none()) {
                if let std::task::Poll::Ready(done) = flight.as_mut().poll(context) {
                    *answer = Some(done);
                }
            }
            match answers.iter().all(Option::is_some) {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
        let first = |answer: Vec<tokio_postgres::SimpleQueryMessage>| {
            answer.iter().find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
        };
        answers.into_iter().map(|answer| answer.expect("all are answered").map(first)).collect()
    }

    fn is_refusal(error: &tokio_postgres::Error) -> bool {
        let severity = error.as_db_error().and_then(tokio_postgres::error::DbError::parsed_severity);
        severity == Some(tokio_postgres::error::Severity::Error)
    }
}

/// Dropped, it is rolled back when its connection is used next, or goes back to its pool: sqlx sends nothing before.
#[cfg(feature = "sqlx")]
impl OwnTransaction for sqlx::Transaction<'_, sqlx::Postgres> {
    type Error = sqlx::Error;

    async fn run(&mut self, messages: &[&str]) -> Result<Vec<Option<String>>, sqlx::Error> {
        use sqlx::Row;
        let mut answers = Vec::with_capacity(messages.len());
        for message in messages {
            // Composed here and by the coordinator, of numbers and hexadecimal digits.
            let rows = sqlx::raw_sql(sqlx::AssertSqlSafe((*message).to_owned())).fetch_all(&mut **self).await?;
            let first = rows.iter().find(|row| !row.is_empty());
            answers.push(first.and_then(|row| row.try_get_unchecked::<Option<String>, _>(0).ok().flatten()));
        }
        Ok(answers)
    }

    fn is_refusal(error: &sqlx::Error) -> bool {
        let of_server = error.as_database_error().and_then(|error| error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>());
        of_server.is_some_and(|error| error.severity() == sqlx::postgres::PgSeverity::Error)
    }
}
