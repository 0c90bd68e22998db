//! An application's own PostgreSQL connection as a branch: it runs its own statements in its own transaction, and prepares it.

use crate::begun::Begun;
use crate::error::CallError;
use crate::ids::gid;

/// What an application runs at the end of its own PostgreSQL transaction, one statement after the other, in this order:
/// [`Enlistment::barrier`], [`Enlistment::marker`], [`Enlistment::prepare`]. Any driver will do; for `tokio-postgres` there is
/// `Begun::enlist` (feature `tokio-postgres`), which does it in one flight.
///
/// Then [`Begun::enlisted`] with the number that the marker's statement returned, and [`Begun::commit`]. A driver's own transaction object
/// is to be dropped or closed after that: the transaction is no longer this connection's. If anything fails, or the connection is lost at
/// any moment, drop the [`Begun`]: nothing of the branch is left, a prepared one is rolled back by the coordinator.
///
/// `PREPARE TRANSACTION` in a transaction that has failed raises no error: the coordinator looks whether the branch is there before it
/// decides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Enlistment {
    barrier: String,
    marker: String,
    prepare: String,
}

/// Why a branch was not enlisted. Its transaction is to be rolled back, and the [`Begun`] is.
#[derive(Debug, thiserror::Error)]
pub enum EnlistError {
    /// The call makes no sense, and why.
    #[error("{0}")]
    Invalid(String),
    /// The coordinator could not be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The application's own connection failed, or PostgreSQL refused; what its transaction did is undone.
    #[cfg(feature = "tokio-postgres")]
    #[error("the branch was not prepared: {0}")]
    Postgres(#[from] tokio_postgres::Error),
}

/// Bits of the number inside an epoch.
const N_BITS: u32 = 39;
/// The lock by which a coordinator that takes the database over finds branches at work.
const LOCK_CLASS: i32 = 0x4c6f_636b;

impl Enlistment {
    /// Shows a coordinator that takes the database over that a branch is at work here. Held to the end of the transaction.
    pub fn barrier(&self) -> &str {
        &self.barrier
    }

    /// Writes the branch's marker, by which the coordinator tells later that it was committed, and returns the transaction's number as a
    /// text. It fails (23502, not-null violation) if a newer start of the coordinator has taken the database over.
    pub fn marker(&self) -> &str {
        &self.marker
    }

    /// Prepares the transaction under the branch's name.
    pub fn prepare(&self) -> &str {
        &self.prepare
    }
}

impl Begun {
    /// What prepares an application's own transaction at this store, a PostgreSQL database in mode "two-phase", as this transaction's
    /// branch.
    pub async fn enlistment(&self, store: &str) -> Result<Enlistment, EnlistError> {
        let description = self.client().describe().await?;
        let found = description.stores.iter().find(|found| found.name == store);
        let found = found.ok_or_else(|| EnlistError::Invalid(format!("there is no store `{store}`")))?;
        let number = match (found.r#type.as_str(), found.kind.as_str(), found.number) {
            ("postgres", "preparing", Some(number)) => number,
            (kind, vote, _) => {
                return Err(EnlistError::Invalid(format!(
                    "store `{store}` ({kind}, {vote}) cannot take a branch that is prepared by its application: that needs a PostgreSQL \
                     database in mode \"two-phase\""
                )));
            }
        };
        let txid = self.txid();
        let place = (u64::from(txid.epoch) << N_BITS) | txid.n;
        let name = gid(description.coordinator, number, txid);
        Ok(Enlistment {
            barrier: format!("SELECT pg_advisory_xact_lock_shared({LOCK_CLASS}, {number})"),
            marker: format!(
                "INSERT INTO lockstep.branch(place, owner) VALUES ({place}, (SELECT slot FROM lockstep.owner WHERE slot = 0 AND epoch = {})) \
                 RETURNING pg_current_xact_id()::text",
                txid.epoch
            ),
            prepare: format!("PREPARE TRANSACTION '{name}'"),
        })
    }

    /// Enlists an application's own open transaction as this transaction's branch at `store`: writes the marker and prepares it, in one
    /// flight. What it did is committed with the rest, or rolled back.
    #[cfg(feature = "tokio-postgres")]
    pub async fn enlist(self, store: &str, transaction: tokio_postgres::Transaction<'_>) -> Result<Begun, EnlistError> {
        let enlistment = self.enlistment(store).await?;
        let (barrier, marker, prepared) = tokio::join!(
            transaction.batch_execute(&enlistment.barrier),
            transaction.simple_query(&enlistment.marker),
            transaction.batch_execute(&enlistment.prepare)
        );
        barrier?;
        let xid = marker?.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        });
        prepared?;
        // From here on it is no longer the connection's: dropped, it rolls back nothing.
        drop(transaction);
        match xid {
            Some(xid) => Ok(self.enlisted(store, xid)),
            None => Err(EnlistError::Invalid("the marker's statement returned no transaction number".into())),
        }
    }
}
