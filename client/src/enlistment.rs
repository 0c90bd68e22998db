//! An application's own PostgreSQL connection as a branch: it runs its own statements in its own transaction, and enlists it.

use crate::begun::Begun;
use crate::error::CallError;
use crate::ids::gid;

/// What an application runs at the end of its own transaction at a PostgreSQL database in mode "two-phase", one statement after the other,
/// in this order: [`Enlistment::barrier`], [`Enlistment::marker`], [`Enlistment::prepare`]. Any driver will do; for those of
/// [`crate::OwnTransaction`] there is [`Begun::enlist`], which does it, and works in mode "database-led" too.
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

/// Why a branch was not enlisted. Its transaction is rolled back, and so is the [`Begun`].
#[derive(Debug, thiserror::Error)]
pub enum EnlistError {
    /// The call makes no sense, and why.
    #[error("{0}")]
    Invalid(String),
    /// The coordinator could not be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The application's own connection failed, or PostgreSQL refused; what its transaction did is undone.
    #[error("the branch was not enlisted: {0}")]
    Own(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// How a store takes an application's own transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Prepared at the end, under the branch's name.
    TwoPhase {
        /// The store's number.
        number: u16,
    },
    /// Open until its own commit decides.
    DatabaseLed {
        /// The store's number.
        number: u16,
    },
}

/// Bits of the number inside an epoch.
const N_BITS: u32 = 39;
/// The lock by which a coordinator that takes the database over finds transactions at work.
const LOCK_CLASS: i32 = 0x4c6f_636b;

impl Enlistment {
    /// Shows a coordinator that takes the database over that a branch is at work here. Held to the end of the transaction.
    pub fn barrier(&self) -> &str {
        &self.barrier
    }

    /// Writes the branch's marker, by which the coordinator tells later that it was committed, and returns the transaction's number as a
    /// text. It fails (23502, not-null violation) if a newer start of the coordinator has taken the database over, or
    /// the transaction has ended so long ago that its outcome is forgotten.
    pub fn marker(&self) -> &str {
        &self.marker
    }

    /// Prepares the transaction under the branch's name.
    pub fn prepare(&self) -> &str {
        &self.prepare
    }
}

/// Makes PREPARE wait for the force, and for standbys that are synchronous, whatever the application has set.
const FORCED: &str = "pg_catalog.set_config('synchronous_commit', \
    CASE pg_catalog.current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)";

impl Mode {
    /// Shows that a transaction is at work.
    pub fn barrier(self) -> String {
        let (Mode::TwoPhase { number } | Mode::DatabaseLed { number }) = self;
        format!("SELECT pg_catalog.pg_advisory_xact_lock_shared({LOCK_CLASS}, {number})")
    }
}

impl Begun {
    /// What prepares an application's own transaction at this store, a PostgreSQL database in mode "two-phase", as this transaction's
    /// branch.
    pub async fn enlistment(&self, store: &str) -> Result<Enlistment, EnlistError> {
        match self.mode_of(store).await? {
            (mode @ Mode::TwoPhase { number }, coordinator) => {
                let txid = self.txid();
                let place = (u64::from(txid.epoch) << N_BITS) | txid.n;
                let name = gid(coordinator, number, txid);
                Ok(Enlistment {
                    barrier: mode.barrier(),
                    marker: format!(
                        "INSERT INTO lockstep.branch(place, owner) VALUES ({place}, (SELECT slot FROM lockstep.owner WHERE slot = 0 AND \
                         epoch = {} AND floor <= {place})) RETURNING CASE WHEN {FORCED} IS NOT NULL THEN pg_current_xact_id()::text END",
                        txid.epoch
                    ),
                    prepare: format!("PREPARE TRANSACTION '{name}'"),
                })
            }
            (Mode::DatabaseLed { .. }, _) => Err(EnlistError::Invalid(format!(
                "store `{store}` is database-led: a transaction on an application's own connection is not prepared there, it stays open; use \
                 Begun::enlist"
            ))),
        }
    }

    pub(crate) async fn mode_of(&self, store: &str) -> Result<(Mode, crate::CoordinatorId), EnlistError> {
        let description = self.client().describe().await?;
        let found = description.stores.iter().find(|found| found.name == store);
        let found = found.ok_or_else(|| EnlistError::Invalid(format!("there is no store `{store}`")))?;
        let mode = match (found.r#type.as_str(), found.kind.as_str(), found.number) {
            ("postgres", "preparing", Some(number)) => Mode::TwoPhase { number },
            ("postgres", "leader", Some(number)) if self.txid().leader == Some(number.into()) => Mode::DatabaseLed { number },
            ("postgres", "leader", Some(_)) => {
                return Err(EnlistError::Invalid(format!(
                    "store `{store}` is database-led, so its own commit decides: begin the transaction with Begin::enlisting or Begin::led_by"
                )));
            }
            (kind, vote, _) => {
                return Err(EnlistError::Invalid(format!(
                    "store `{store}` ({kind}, {vote}) cannot take a transaction on an application's own connection: that needs a PostgreSQL \
                     database"
                )));
            }
        };
        Ok((mode, description.coordinator))
    }
}
