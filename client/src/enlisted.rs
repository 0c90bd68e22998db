//! A transaction one of whose branches is an application's own, on its own connection.

use crate::begun::{Begun, as_of_a_transaction};
use crate::enlistment::{EnlistError, Mode};
use crate::error::{CallError, CommitError};
use crate::ids::{Csn, RequestId, Txid};
use crate::own_transaction::OwnTransaction;
use crate::receipt::Receipt;
use crate::transaction::Wait;
use crate::value::Value;
use lockstep_proto::v1;
use lockstep_proto::v1::lead_request::Request;
use serde::Serialize;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// A transaction that has begun, with an application's own transaction as one of its branches. What else it is to do is added as to a
/// [`Begun`]. Dropped without a commit, all of it is rolled back.
#[must_use = "dropping it rolls it back"]
pub struct Enlisted<T> {
    begun: Begun,
    /// Of a database-led store; elsewhere it is prepared, and no longer its connection's.
    leading: Option<Leading<T>>,
}

/// An open transaction whose own commit is to decide.
struct Leading<T> {
    transaction: T,
    says: mpsc::Sender<v1::LeadRequest>,
    statements: Streaming<v1::LeadReply>,
}

impl Begun {
    /// Enlists an application's own open transaction as this transaction's branch at `store`, a PostgreSQL database. What it did is
    /// committed with the rest, or rolled back. It takes no further statement.
    ///
    /// In mode "two-phase" it is prepared here, and the connection is free when this returns. In mode "database-led" it stays open to the
    /// end of [`Enlisted::commit`], which commits it; the transaction must have been begun with [`crate::Begin::enlisting`].
    pub async fn enlist<T: OwnTransaction>(self, store: &str, mut transaction: T) -> Result<Enlisted<T>, EnlistError> {
        match self.mode_of(store).await?.0 {
            Mode::TwoPhase { .. } => {
                let enlistment = self.enlistment(store).await?;
                let messages = [enlistment.barrier(), enlistment.marker(), enlistment.prepare()];
                let answers = transaction.run(&messages).await.map_err(own)?;
                // From here on it is no longer the connection's: dropped, it rolls back nothing.
                drop(transaction);
                Ok(Enlisted { begun: self.enlisted(store, xid(answers.get(1))?), leading: None })
            }
            mode @ Mode::DatabaseLed { .. } => {
                // Whatever may still be refused is refused before the decision is asked for (R-LR).
                let message = format!("SELECT pg_catalog.pg_current_xact_id()::text; {}; SET CONSTRAINTS ALL IMMEDIATE", mode.barrier());
                let answers = transaction.run(&[&message]).await.map_err(own)?;
                let leading = Some(Leading::attend(&self, store, transaction).await?);
                Ok(Enlisted { begun: self.enlisted(store, xid(answers.first())?), leading })
            }
        }
    }
}

fn own(error: impl std::error::Error + Send + Sync + 'static) -> EnlistError {
    EnlistError::Own(Box::new(error))
}

fn xid(answer: Option<&Option<String>>) -> Result<u64, EnlistError> {
    let xid = answer.and_then(Option::as_ref).and_then(|xid| xid.parse().ok());
    xid.ok_or_else(|| EnlistError::Invalid("the server returned no transaction number".into()))
}

impl<T: OwnTransaction> Enlisted<T> {
    as_of_a_transaction! { begun, Enlisted<T> }

    /// Its id.
    pub fn txid(&self) -> Txid {
        self.begun.txid()
    }

    /// What to ask with later, also from another process.
    pub fn request(&self) -> &RequestId {
        self.begun.request()
    }

    /// How long commit may take in all, as [`Begun::deadline`].
    pub fn deadline(mut self, deadline: Duration) -> Enlisted<T> {
        self.begun = self.begun.deadline(deadline);
        self
    }

    /// As [`Begun::commit`].
    pub async fn commit(self) -> Result<Receipt, CommitError> {
        let Enlisted { begun, leading } = self;
        let Some(leading) = leading else { return begun.commit().await };
        let mut committing = std::pin::pin!(begun.commit());
        let mut leading = std::pin::pin!(leading.run());
        tokio::select! {
            // Aborted, or unknown by the deadline: what is open is rolled back by being dropped.
            outcome = &mut committing => outcome,
            () = &mut leading => committing.await,
        }
    }
}

impl<T: OwnTransaction> Leading<T> {
    /// Lets the coordinator know that it is there.
    async fn attend(begun: &Begun, store: &str, transaction: T) -> Result<Leading<T>, EnlistError> {
        let (says, requests) = mpsc::channel(2);
        let attend = v1::LeadAttend { store: store.to_owned(), txid: Some(begun.txid().into()) };
        says.try_send(v1::LeadRequest { request: Some(Request::Attend(attend)) }).expect("there is room for two");
        let within = begun.client().shared.request_timeout;
        let attending = async {
            let mut statements = begun.client().calls().lead(ReceiverStream::new(requests)).await?.into_inner();
            match statements.message().await? {
                Some(_) => Ok(statements),
                None => Err(tonic::Status::unavailable("the coordinator ended the stream")),
            }
        };
        match tokio::time::timeout(within, attending).await {
            Ok(Ok(statements)) => Ok(Leading { transaction, says, statements }),
            Ok(Err(status)) => {
                begun.client().renew_calls(&status);
                Err(EnlistError::Call(status.into()))
            }
            Err(_) => Err(EnlistError::Call(CallError::Unavailable(format!("no answer within {within:?}")))),
        }
    }

    /// Runs the statement that decides, if it comes, and says what came of it. Where that is not certain it says nothing: the end of its
    /// stream says so, and the coordinator finds out.
    async fn run(mut self) {
        let Ok(Some(v1::LeadReply { statement })) = self.statements.message().await else { return };
        let result = match self.transaction.run(&[&statement]).await {
            Ok(_) => v1::LeadResult { committed: true, message: String::new() },
            Err(error) if T::is_refusal(&error) => v1::LeadResult { committed: false, message: error.to_string() },
            Err(_) => return,
        };
        let _ = self.says.send(v1::LeadRequest { request: Some(Request::Result(result)) }).await;
        // To the end: before it the word may still be on its way.
        while let Ok(Some(_)) = self.statements.message().await {}
    }
}
