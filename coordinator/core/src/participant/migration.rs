//! Changes of the schema: outside every transaction, when the store has come to rest.

use super::Participant;
use super::contract::{ParticipantEffect, StoreReport};
use super::limits::{MIGRATION_PATIENCE, MIGRATIONS_MAX};
use crate::ids::{Ticket, Time};
use crate::vote::{Refusal, RefusalKind};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Migration {
    pub(super) ticket: Ticket,
    pub(super) script: Arc<str>,
    pub(super) deadline: Time,
}

impl Participant {
    pub(super) fn ask_migration(&mut self, now: Time, ticket: Ticket, script: Arc<str>, effects: &mut Vec<ParticipantEffect>) {
        if self.migrations.len() >= MIGRATIONS_MAX {
            let refusal = Refusal::new(RefusalKind::Busy, format!("{MIGRATIONS_MAX} migrations wait for this store already"));
            effects.push(ParticipantEffect::Migrated(ticket, Err(refusal)));
        } else {
            self.migrations.push_back(Migration { ticket, script, deadline: now.after(MIGRATION_PATIENCE) });
        }
    }

    /// Those that have waited too long are told so.
    pub(super) fn give_up_migrations(&mut self, now: Time, effects: &mut Vec<ParticipantEffect>) {
        while self.migrations.front().is_some_and(|m| m.deadline <= now) {
            let late = self.migrations.pop_front().expect("looked at");
            let refusal = Refusal::new(RefusalKind::Timeout, "the store did not come to rest in 30 s; nothing was changed");
            effects.push(ParticipantEffect::Migrated(late.ticket, Err(refusal)));
        }
    }
}

/// What its caller is told.
pub(super) fn result(report: &StoreReport) -> Result<String, Refusal> {
    match report {
        StoreReport::Migrated(result) => result.clone(),
        StoreReport::Broken(why) => Err(Refusal::new(RefusalKind::Unavailable, why.clone())),
        other => panic!("the store answered a migration with {other:?}"),
    }
}
