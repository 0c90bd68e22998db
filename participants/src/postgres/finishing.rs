//! What is decided is finished beside the store's thread: it waits for one of a few connections, which finish several in a flight.

use super::session::Session;
use super::two_phase;
use crate::{Late, LateReports};
use futures_util::future::try_join_all;
use lockstep_core::Decided;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::time::timeout;

/// Decisions that no connection has taken yet.
#[derive(Default)]
pub struct Finishing {
    waiting: VecDeque<Decided>,
    /// How many connections take them.
    lanes: usize,
}

/// These are finished on at most so many connections at once; each is told when it is.
pub fn set_off(session: &Arc<Session>, late: &LateReports, decided: &[Decided], most: usize) {
    let begin = session.finishing().enter(decided, most);
    for _ in 0..begin {
        session.spawn(finish_what_waits(Arc::clone(session), Arc::clone(late), most));
    }
}

impl Finishing {
    /// How many connections more are to take them.
    fn enter(&mut self, decided: &[Decided], most: usize) -> usize {
        self.waiting.extend(decided.iter().cloned());
        let more = most.saturating_sub(self.lanes).min(decided.len());
        self.lanes += more;
        more
    }

    /// One connection's share of what waits; nothing: it is not needed any more.
    fn next(&mut self, most: usize) -> Vec<Decided> {
        let share = self.waiting.len().div_ceil(most.max(1));
        if share == 0 {
            self.lanes -= 1;
        }
        self.waiting.drain(..share).collect()
    }
}

async fn finish_what_waits(session: Arc<Session>, late: LateReports, most: usize) {
    loop {
        let finished = async {
            let connection = session.finisher().await?;
            let flight = session.finishing().next(most);
            try_join_all(flight.iter().map(|decided| two_phase::finish(&session, &connection, decided))).await
        };
        match timeout(super::PATIENCE, finished).await {
            Ok(Ok(finished)) if finished.is_empty() => return,
            Ok(Ok(finished)) => late(Ok(Late::Finished(finished))),
            // Its session ends, and the next one looks at what is there.
            Ok(Err(failure)) => return late(Err(failure.refusal().message)),
            Err(_) => return late(Err(format!("PostgreSQL did not answer within {:?}", super::PATIENCE))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::{Csn, Epoch};

    #[test]
    fn each_connection_takes_its_share() {
        let decided = |n: u64| Decided { csn: Csn::new(Epoch(1), n), txids: Vec::new(), redo: Default::default(), trace: None };
        let all: Vec<Decided> = (0..9).map(decided).collect();
        let mut finishing = Finishing::default();
        assert_eq!(finishing.enter(&all[..1], 4), 1, "no more than there are");
        assert_eq!(finishing.enter(&all[1..], 4), 3, "no more than may be");
        let shares: Vec<usize> = (0..6).map(|_| finishing.next(4).len()).collect();
        assert_eq!(shares, [3, 2, 1, 1, 1, 1], "in the order that they came");
        assert_eq!((finishing.next(4).len(), finishing.lanes), (0, 3));
    }
}
