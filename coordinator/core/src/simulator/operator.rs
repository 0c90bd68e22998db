//! The operator: what a person does by hand, at random, and what has to be done by hand.

use super::actors::Actor;
use super::clients::Asked;
use super::world::{Happening, World};
use crate::follower::{Scan, Session};
use crate::{AdminAction, Audit, Coordinator, Decider, Event, Kind, ParticipantId, Phase, Txid};

impl World {
    pub(super) fn operator(&mut self) {
        self.plan(self.climate.operator, Happening::Operator);
        let Some(host) = self.a_host() else { return };
        let Some(machine) = &self.hosts[host].machine else { return };
        if self.calm {
            return;
        }
        let mut open: Vec<_> = machine.transactions().map(|t| t.txid).collect();
        open.sort();
        let away = |f: &&crate::follower::Follower| f.scan == Scan::Needed;
        if let Some(leader) = machine.followers().iter().find(away).map(|follower| follower.id)
            && self.dice.chance(self.climate.waives)
        {
            self.checker.waived(leader.0 as usize);
            return self.order(host, AdminAction::Waive { participant: leader });
        }
        if let Some(action) = self.seldom_ordered(host) {
            return self.order(host, action);
        }
        if open.is_empty() {
            return;
        }
        let txid = *self.dice.pick(&open);
        let participant = ParticipantId(self.dice.below(self.actors.len() as u64) as u16);
        let action = match self.dice.below(3) {
            0 => AdminAction::Cancel { txid },
            1 => AdminAction::Skip { txid, participant },
            _ => AdminAction::Resolve { txid, participant, commit: self.dice.chance(0.5) },
        };
        self.expect(host, &action);
        self.order(host, action);
    }

    /// A store is given up, or damage is forgotten: as the machine allows it, and now and then as it does not.
    fn seldom_ordered(&mut self, host: usize) -> Option<AdminAction> {
        let (removes, forgets) = (self.climate.removes, self.climate.forgets);
        if forgets > 0.0
            && self.dice.chance(forgets)
            && let Some(machine) = &self.hosts[host].machine
            && !machine.damage().is_empty()
        {
            let damage = self.dice.pick(machine.damage());
            return Some(AdminAction::Forget { txid: damage.txid, participant: damage.participant });
        }
        if removes == 0.0 || !self.dice.chance(removes) || self.removed() + 1 >= self.actors.len() {
            return None;
        }
        let participant = ParticipantId(self.dice.below(self.actors.len() as u64) as u16);
        let action = AdminAction::Remove { participant };
        let machine = self.hosts[host].machine.as_ref()?;
        let allowed = machine.allows(&action).is_ok();
        if allowed {
            self.checker.gives_up(participant.0 as usize);
        }
        (allowed || self.dice.chance(0.1)).then_some(action)
    }

    fn removed(&self) -> usize {
        (0..self.actors.len()).filter(|store| self.checker.is_removed(*store)).count()
    }

    /// As the daemon does it: who ordered what, or was refused what, stands in the log before the order.
    fn order(&mut self, host: usize, action: AdminAction) {
        let audits = self.climate.audits;
        let audited = audits > 0.0 && self.dice.chance(audits);
        let Some(machine) = &self.hosts[host].machine else { return };
        let refused = machine.allows(&action).err().unwrap_or_default();
        let audit = (audited && refused.is_empty()).then_some(machine.next_lsn);
        if audited {
            let (who, what) = ("simulator".into(), format!("{action:?}"));
            self.coordinate(host, Event::Audit(None, Audit { who, what, refused, ..Audit::default() }));
        }
        if let AdminAction::Waive { participant } = &action {
            self.checker.heard(participant.0 as usize);
        }
        let ticket = self.ticket(match action {
            AdminAction::LeaveSafeMode => Asked::Leave { host },
            _ => Asked::Operator { audit },
        });
        self.coordinate(host, Event::Admin { ticket, operator: "simulator".into(), action, reason: "to see what happens".into() });
    }

    /// What an operator does by hand is no promise of the protocol's: it agrees with the decision, or is recorded as damage.
    fn expect(&mut self, host: usize, action: &AdminAction) {
        let (AdminAction::Skip { txid, participant } | AdminAction::Resolve { txid, participant, .. }) = action else { return };
        let (store, log) = (participant.0 as usize, self.hosts[host].disk);
        let fits = match action {
            AdminAction::Skip { .. } => self.climate.kinds[store] == Kind::Redo,
            _ => self.climate.kinds[store] == Kind::Preparing,
        };
        if let Some(tag) = self.checker.tag_of(log, *txid).filter(|_| fits) {
            self.checker.by_hand(store, tag);
        }
    }

    /// Somebody looks after what cannot go on by itself: safe mode, and stores that will not be heard any more.
    pub(super) fn supervise(&mut self) {
        for host in 0..self.hosts.len() {
            self.hosts[host].supervised = false;
        }
        let live: Vec<_> = (0..self.hosts.len()).filter(|host| !self.hosts[*host].gone).collect();
        // Not before one of two has been given up.
        if let [host] = live[..]
            && let Some(machine) = &self.hosts[host].machine
        {
            let untold = |f: &crate::follower::Follower| !f.evidence || f.scan == Scan::Needed;
            let lost = |f: &&crate::follower::Follower| matches!(f.session, Session::Refused(..)) && untold(f);
            let waived: Vec<_> = machine.followers().iter().filter(lost).map(|follower| follower.id).collect();
            let in_doubt = self.in_doubt_for_good(machine);
            if matches!(machine.phase(), Phase::Safe(_)) {
                self.order(host, AdminAction::LeaveSafeMode);
            } else if self.calm && lost_leader_decides(machine) {
                // What it was told to decide stays open until the coordinator is started again without it.
                self.after(1, Happening::RestartCoordinator(host));
            } else if self.calm {
                for participant in waived {
                    if self.climate.kinds[participant.0 as usize] == Kind::Leader {
                        self.checker.waived(participant.0 as usize);
                    }
                    self.order(host, AdminAction::Waive { participant });
                }
                for (txid, participant) in in_doubt {
                    let action = AdminAction::Resolve { txid, participant, commit: false };
                    self.expect(host, &action);
                    self.order(host, action);
                }
            }
        }
        let safe = self.hosts.iter().any(|host| host.machine.as_ref().is_some_and(|machine| matches!(machine.phase(), Phase::Safe(_))));
        if safe || self.calm {
            self.after(1_000_000, Happening::Supervise);
        }
    }

    /// Branches that are prepared, of which only a leader that has lost changes could tell the outcome.
    fn in_doubt_for_good(&self, machine: &Coordinator) -> Vec<(Txid, ParticipantId)> {
        let lost = |leader: ParticipantId| {
            let refused = |f: &crate::follower::Follower| f.id == leader && matches!(f.session, Session::Refused(..));
            machine.followers().iter().any(refused) && self.checker.is_store_lost(leader.0 as usize)
        };
        let of_lost = |txid: &&Txid| matches!(txid.decider, Decider::Leader(leader) if lost(leader));
        let at = |(i, actor): (usize, &Actor)| {
            let prepared = actor.store.durable.prepared.keys().filter(of_lost).copied().collect::<Vec<_>>();
            prepared.into_iter().map(move |txid| (txid, ParticipantId(i as u16)))
        };
        self.actors.iter().enumerate().flat_map(at).collect()
    }

    /// It is to be started again.
    pub(super) fn safe_mode_left(&mut self, host: usize) {
        self.after(1, Happening::RestartCoordinator(host));
    }
}

fn lost_leader_decides(machine: &Coordinator) -> bool {
    let lost = |f: &&crate::follower::Follower| matches!(f.session, Session::Refused(..));
    machine.followers().iter().filter(lost).any(|f| !machine.deciding_at(f.id).is_empty())
}
