//! Who ordered what: kept in the log, so many at most. Orders that were carried out and attempts that were refused have places of their own,
//! so that nobody pushes out what was done by trying what is not allowed.

use crate::coordinator::{Coordinator, Pending};
use crate::event::Effect;
use crate::ids::{Lsn, Ticket, Time};
use crate::record::{Audit, Record};
use std::collections::VecDeque;

/// Orders that are kept.
pub const AUDIT_ORDERS: u32 = 4_000;
/// Refused attempts that are kept.
pub const AUDIT_REFUSALS: u32 = 1_000;

/// One of them, and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Noted {
    /// Its record.
    pub lsn: Lsn,
    /// What happened.
    pub audit: Audit,
}

/// Those that are kept, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct AuditLog {
    orders: Ring,
    refusals: Ring,
}

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<Noted>,
    /// The next one's slot.
    next: u32,
}

impl AuditLog {
    /// Takes one as it stands in the log, in the log's order.
    pub(crate) fn take(&mut self, lsn: Lsn, slot: u32, audit: &Audit) {
        let noted = Noted { lsn, audit: audit.clone() };
        match slot.checked_sub(AUDIT_ORDERS) {
            None => self.orders.take(noted, slot, AUDIT_ORDERS),
            Some(slot) => self.refusals.take(noted, slot, AUDIT_REFUSALS),
        }
    }

    fn next_slot(&self, audit: &Audit) -> u32 {
        match audit.refused.is_empty() {
            true => self.orders.next,
            false => AUDIT_ORDERS + self.refusals.next,
        }
    }
}

impl Ring {
    fn take(&mut self, noted: Noted, slot: u32, most: u32) {
        if self.kept.len() >= most as usize {
            self.kept.pop_front();
        }
        self.kept.push_back(noted);
        self.next = slot.wrapping_add(1) % most;
    }
}

impl Coordinator {
    /// Notes an order. What was ordered is forced; a refusal goes with the next force that is needed anyway, and is not kept on a full disk.
    pub(crate) fn note(&mut self, now: Time, ticket: Option<Ticket>, audit: Audit, fx: &mut Vec<Effect>) {
        if self.log_full && !audit.refused.is_empty() {
            return;
        }
        let audit = Audit { at_ms: self.wall_ms(now), ..audit };
        let (slot, pending) = (self.audit.next_slot(&audit), audit.refused.is_empty().then_some(Pending::Noted(ticket)));
        let lsn = self.append(Record::Audit { slot, audit: audit.clone() }, pending, fx);
        self.audit.take(lsn, slot, &audit);
    }

    /// Orders and refusals that are kept, the newest first.
    pub fn audit(&self) -> Vec<&Noted> {
        let mut all: Vec<_> = self.audit.orders.kept.iter().chain(&self.audit.refusals.kept).collect();
        all.sort_unstable_by_key(|noted| std::cmp::Reverse(noted.lsn));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::ids::{CoordId, LogId};
    use crate::record::Entry;
    use crate::recovery::Identity;

    fn start(log: Vec<Entry>) -> (Coordinator, Vec<Entry>) {
        let identity = Identity { coord_id: CoordId(1), log_id: LogId(1), incarnation: 7 };
        let mut fx = Vec::new();
        let machine = Coordinator::start(Config::default(), identity, log, Time(0), &mut fx).expect("a log");
        (machine, entries(fx))
    }

    fn entries(fx: Vec<Effect>) -> Vec<Entry> {
        let entry = |effect| if let Effect::Append { lsn, record, .. } = effect { Some(Entry { lsn, record }) } else { None };
        fx.into_iter().filter_map(entry).collect()
    }

    fn audit(what: u32, refused: &str) -> Audit {
        Audit { what: what.to_string(), refused: refused.into(), ..Audit::default() }
    }

    #[test]
    fn so_many_are_kept_and_refusals_push_out_no_orders() {
        let (mut machine, mut log) = start(Vec::new());
        let mut fx = Vec::new();
        machine.note(Time(1), None, audit(0, ""), &mut fx);
        for n in 1..=AUDIT_REFUSALS + 5 {
            machine.note(Time(1), None, audit(n, "no"), &mut fx);
        }
        assert_eq!(machine.audit().len(), 1 + AUDIT_REFUSALS as usize);
        assert_eq!(machine.audit().last().expect("the order").audit.what, "0");
        log.extend(entries(fx));
        let told: Vec<_> = machine.audit().into_iter().cloned().collect();
        let (again, _) = start(log);
        assert_eq!(again.audit().into_iter().cloned().collect::<Vec<_>>(), told);
    }

    #[test]
    fn a_refusal_is_not_forced_and_not_kept_on_a_full_disk() {
        let (mut machine, _) = start(Vec::new());
        let mut fx = Vec::new();
        machine.note(Time(1), None, audit(1, "no"), &mut fx);
        assert!(matches!(fx.pop(), Some(Effect::Append { force: false, .. })));
        machine.log_full = true;
        machine.note(Time(1), None, audit(2, "no"), &mut fx);
        assert!(fx.is_empty());
        machine.note(Time(1), None, audit(3, ""), &mut fx);
        assert!(matches!(fx.pop(), Some(Effect::Append { force: true, .. })));
    }

    #[test]
    fn slots_go_round() {
        let mut kept = AuditLog::default();
        for n in 0..AUDIT_ORDERS + 3 {
            let slot = kept.next_slot(&audit(n, ""));
            assert_eq!(slot, n % AUDIT_ORDERS);
            kept.take(Lsn(u64::from(n) + 1), slot, &audit(n, ""));
        }
        assert_eq!(kept.orders.kept.front().expect("the oldest").audit.what, "3");
        assert_eq!(kept.next_slot(&audit(0, "no")), AUDIT_ORDERS);
    }
}
