//! Who runs next, and with whom, at a leader, and of those that may share a branch: the lighter transactions are, the more of them share a local transaction, and its commit.
//! As many as there are connections may run at once; those that run long, or fail, run by themselves.

use super::shared::PATIENCE;
use super::statement;
use super::work::Begun;
use lockstep_core::{Operation, Work};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// Transactions that share a local transaction, at most: the server tells no more than 64 subtransactions from afar without a look at the disk.
const SHARE_MAX: usize = 32;
/// Bytes of their operations, unless a single one has more.
const SHARE_BYTES: usize = 1 << 20;
/// For so long the statements of those that share a local transaction may run, as far as can be foreseen.
const SHARE_TIME: Duration = Duration::from_millis(4);
/// Whoever has waited for so long is run beside the others, if there is a connection.
pub const STALLED: Duration = Duration::from_millis(10);
/// What one more is taken to add before any have run together.
const COST: Duration = Duration::from_micros(100);
/// So many times those that share must have run well before one more may share.
const GOOD: u32 = 16;

/// The queue before the connections, and what was learned of those that came through it.
pub struct Turns {
    waiting: VecDeque<Begun>,
    /// Tasks that run, one behind the other, what waits.
    runners: usize,
    runners_max: usize,
    /// When one was last added because somebody had waited long.
    helped: Option<Instant>,
    /// Whether a task looks after those that wait long.
    watched: bool,
    /// What one takes by itself, the way to the server included: the least of late.
    flight: Duration,
    /// What one more adds to that.
    cost: Duration,
    /// How many may share before one of them is likely to fail.
    share: usize,
    /// How often so many have run well since one failed, or since fewer might share.
    good: u32,
}

impl Turns {
    /// At most so many connections.
    pub fn new(connections: usize) -> Turns {
        let runners_max = connections.max(1);
        Turns {
            waiting: VecDeque::new(),
            runners: 0,
            runners_max,
            helped: None,
            watched: false,
            flight: Duration::MAX / 2,
            cost: COST,
            share: SHARE_MAX,
            good: 0,
        }
    }

    /// One more waits.
    pub fn enter(&mut self, branch: Begun) {
        self.waiting.push_back(branch);
    }

    /// Whether another runner is to begin: it counts as begun.
    pub fn wants_runner(&mut self, now: Instant) -> bool {
        let helps = self.stalled(now) && self.runners < self.runners_max && self.helped.is_none_or(|at| now >= at + STALLED);
        let wanted = !self.waiting.is_empty() && (self.runners < self.runners_wanted() || helps);
        if wanted && helps {
            self.helped = Some(now);
        }
        self.runners += usize::from(wanted);
        wanted
    }

    /// Whether somebody is to begin to look after those that wait: it counts as begun.
    pub fn wants_watch(&mut self) -> bool {
        !self.waiting.is_empty() && !std::mem::replace(&mut self.watched, true)
    }

    /// Those whose time is up; `None`: nobody waits, and the watch ends.
    pub fn overdue(&mut self, now: Instant) -> Option<Vec<Begun>> {
        if self.waiting.is_empty() {
            self.watched = false;
            return None;
        }
        let (late, waiting) = self.waiting.drain(..).partition(|branch| branch.deadline <= now);
        self.waiting = waiting;
        Some(late.into())
    }

    /// Those that a runner is to run next, together; none: it ends.
    pub fn next(&mut self, now: Instant) -> Vec<Begun> {
        let mut next: Vec<Begun> = Vec::new();
        if self.runners <= self.runners_wanted() || self.stalled(now) {
            let (most, mut bytes) = (self.size(), 0);
            while let Some(first) = self.waiting.front() {
                let more = first.work.operations.iter().map(Operation::bytes).sum::<usize>();
                let shares = shares(&first.work) && first.deadline > now + PATIENCE;
                if next.len() == most || (!next.is_empty() && (bytes + more > SHARE_BYTES || !shares)) {
                    break;
                }
                bytes += more;
                next.extend(self.waiting.pop_front());
                if !shares {
                    break;
                }
            }
        }
        self.runners -= usize::from(next.is_empty());
        next
    }

    /// A runner ends, because there is no connection; those that wait have waited in vain.
    pub fn give_up(&mut self) -> Vec<Begun> {
        self.runners -= 1;
        self.waiting.drain(..).collect()
    }

    /// So many have run in so long.
    pub fn ran(&mut self, many: usize, time: Duration) {
        match u32::try_from(many).expect("a few") {
            // No more than that, and now and then two try how much it is.
            0 | 1 => {
                self.flight = time.min(self.flight + self.flight / 32);
                self.cost = time.min(self.cost - self.cost / 64);
            }
            many => {
                let each = time.saturating_sub(self.flight) / (many - 1);
                self.cost = each.min((self.cost + each) / 2);
            }
        }
        if many >= self.share {
            self.good += 1;
        }
        if self.good >= GOOD {
            (self.share, self.good) = (SHARE_MAX.min(self.share + 1), 0);
        }
    }

    /// One of so many that ran together has failed, or waited for a lock.
    pub fn failed(&mut self, many: usize) {
        (self.share, self.good) = ((many / 2).max(1).min(self.share), 0);
    }

    /// How many run together.
    fn size(&self) -> usize {
        let foreseen = SHARE_TIME.as_nanos() / self.cost.as_nanos().max(1);
        self.share.min(usize::try_from(foreseen).unwrap_or(SHARE_MAX)).max(1)
    }

    /// As many transactions run at once as there are connections, however many share one; two of which one commits while the other runs.
    fn runners_wanted(&self) -> usize {
        (self.runners_max / self.size()).max(2).min(self.runners_max)
    }

    fn stalled(&self, now: Instant) -> bool {
        self.waiting.front().is_some_and(|first| now >= first.since + STALLED)
    }
}

/// Whether it writes for certain.
pub fn writes(work: &Work) -> bool {
    work.operations.iter().any(|operation| matches!(operation, Operation::Statement { sql, .. } if statement::writes(sql)))
}

/// Whether others may run behind it in the same local transaction: it only reads and writes rows.
pub fn shares(work: &Work) -> bool {
    work.operations.iter().all(|operation| match operation {
        Operation::Statement { sql, .. } => statement::touches_rows_only(sql),
        Operation::Enlisted { .. } | Operation::Put { .. } | Operation::Delete { .. } => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::{Decider, Epoch, ParticipantId, Txid};
    use std::sync::Arc;

    fn waiting(n: u64, sql: &str, since: Instant) -> Begun {
        let txid = Txid { epoch: Epoch(1), n, decider: Decider::Leader(ParticipantId(0)) };
        let operations = [Operation::Statement { sql: sql.into(), parameters: Vec::new(), expect_rows: None }].into();
        let work = Work { txid, operations, timeout: 0, trace: None, shares: false };
        Begun { work, stop: Arc::default(), since, deadline: since + Duration::from_secs(1) }
    }

    fn numbers(waiting: &[Begun]) -> Vec<u64> {
        waiting.iter().map(|waiting| waiting.work.txid.n).collect()
    }

    #[test]
    fn light_ones_share_and_heavy_ones_do_not() {
        let now = Instant::now();
        let mut turns = Turns::new(32);
        (0..40).for_each(|n| turns.enter(waiting(n, "INSERT", now)));
        assert!(turns.wants_runner(now) && turns.wants_runner(now) && !turns.wants_runner(now), "one runs while the other commits");
        assert_eq!(numbers(&turns.next(now)), (0..32).collect::<Vec<_>>());
        assert_eq!(numbers(&turns.next(now)), (32..40).collect::<Vec<_>>());
        assert!(turns.next(now).is_empty() && turns.next(now).is_empty(), "both end");
        turns.ran(1, Duration::from_secs(10));
        assert_eq!(turns.size(), 32, "that may be the way");
        turns.ran(1, Duration::from_millis(20));
        turns.ran(10, Duration::from_millis(200));
        assert_eq!(turns.size(), 1);
        (0..40).for_each(|n| turns.enter(waiting(n, "INSERT", now)));
        assert_eq!((0..40).filter(|_| turns.wants_runner(now)).count(), 32, "each on a connection of its own");
        assert_eq!(numbers(&turns.next(now)), [0]);
        (0..120).for_each(|_| turns.ran(1, Duration::from_millis(20)));
        assert_eq!(turns.size(), 2, "it is tried again");
        turns.ran(2, Duration::from_micros(20_300));
        assert_eq!(turns.size(), 13, "of what was long only the way is");
    }

    #[test]
    fn what_does_more_than_rows_runs_alone() {
        let now = Instant::now();
        let mut turns = Turns::new(8);
        for (n, sql) in ["UPDATE", "CALL f()", "SELECT 1", "DELETE", "LOCK t"].into_iter().enumerate() {
            turns.enter(waiting(n as u64, sql, now));
        }
        assert!(turns.wants_runner(now));
        let ran: Vec<_> = (0..4).map(|_| numbers(&turns.next(now))).collect();
        assert_eq!(ran, [vec![0], vec![1], vec![2, 3], vec![4]]);
    }

    #[test]
    fn those_that_fail_share_less_until_they_do_not() {
        let now = Instant::now();
        let mut turns = Turns::new(8);
        let most = |turns: &mut Turns| {
            (0..64).for_each(|n| turns.enter(waiting(n, "INSERT", now)));
            turns.runners = 1;
            let many = turns.next(now).len();
            turns.waiting.clear();
            many
        };
        turns.failed(32);
        assert_eq!(most(&mut turns), 16);
        turns.failed(3);
        assert_eq!(most(&mut turns), 1);
        turns.failed(20);
        assert_eq!(most(&mut turns), 1, "an older group's failure is no news");
        (0..GOOD).for_each(|_| turns.ran(1, Duration::from_micros(1)));
        assert_eq!(most(&mut turns), 2);
        (0..GOOD).for_each(|_| turns.ran(1, Duration::from_micros(1)));
        assert_eq!(most(&mut turns), 2, "of two it says nothing");
        (2..33).flat_map(|many| vec![many; GOOD as usize]).for_each(|many| turns.ran(many, Duration::from_micros(1)));
        assert_eq!(most(&mut turns), 32);
    }

    #[test]
    fn nobody_waits_long_for_others_while_there_are_connections() {
        let now = Instant::now();
        let mut turns = Turns::new(4);
        turns.enter(waiting(1, "INSERT", now));
        turns.runners = 2;
        assert!(!turns.wants_runner(now));
        assert!(turns.wants_runner(now + STALLED) && !turns.wants_runner(now + STALLED), "one more");
        assert!(turns.wants_runner(now + 2 * STALLED) && !turns.wants_runner(now + 3 * STALLED), "as many as there are connections");
        assert!(turns.wants_watch() && !turns.wants_watch());
        assert_eq!(turns.overdue(now).expect("one waits").len(), 0);
        assert_eq!(numbers(&turns.overdue(now + Duration::from_secs(1)).expect("one waited")), [1]);
        assert!(turns.overdue(now).is_none() && !turns.wants_watch());
    }
}
