//! Applications whose own open transaction is to decide (R-LR): where they and their store meet.
//!
//! A led transaction commits on the connection that holds it open. Where that is an application's own, the store hands the statement that
//! decides to the application, which runs it there and says what came of it. Its word is taken for nothing: the store looks at the marker.

use lockstep_core::Txid;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;

/// The meeting place of one store.
#[derive(Clone, Default)]
pub struct Applications(Arc<Mutex<HashMap<Txid, Seat>>>);

/// The store's end.
pub struct Seat {
    /// Takes the statement.
    pub statement: oneshot::Sender<String>,
    /// What came of it; an error if the application is gone.
    pub word: oneshot::Receiver<Word>,
}

/// The application's end. Dropped, the application is gone.
pub struct Attendance {
    applications: Applications,
    txid: Txid,
    statement: oneshot::Receiver<String>,
    word: Option<oneshot::Sender<Word>>,
}

/// What an application says of the statement that it ran.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Word {
    /// It succeeded, COMMIT included.
    Committed,
    /// The server has refused it, and why: the transaction is rolled back.
    RolledBack(String),
}

impl Applications {
    /// An application attends for this transaction, whose Prepare has not come yet. `None` if one attends already.
    pub fn attend(&self, txid: Txid) -> Option<Attendance> {
        let (statement, takes) = oneshot::channel();
        let (says, word) = oneshot::channel();
        match self.seats().entry(txid) {
            std::collections::hash_map::Entry::Occupied(_) => return None,
            std::collections::hash_map::Entry::Vacant(seat) => seat.insert(Seat { statement, word }),
        };
        Some(Attendance { applications: self.clone(), txid, statement: takes, word: Some(says) })
    }

    /// Takes the seat of a transaction, if its application attends.
    pub fn take(&self, txid: Txid) -> Option<Seat> {
        self.seats().remove(&txid)
    }

    fn seats(&self) -> std::sync::MutexGuard<'_, HashMap<Txid, Seat>> {
        self.0.lock().expect("no holder panics")
    }
}

impl Attendance {
    /// The statement that decides; `None` if it will never come, because the transaction is aborted.
    pub async fn statement(&mut self) -> Option<String> {
        (&mut self.statement).await.ok()
    }

    /// Says what came of it, once.
    pub fn say(&mut self, word: Word) {
        if let Some(says) = self.word.take() {
            let _ = says.send(word);
        }
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.statement.close();
        // Only its own, and only if the store has not taken it.
        let mut seats = self.applications.seats();
        if seats.get(&self.txid).is_some_and(|seat| seat.statement.is_closed()) {
            seats.remove(&self.txid);
        }
    }
}
