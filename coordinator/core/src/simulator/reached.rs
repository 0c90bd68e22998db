//! What was reached: how often each kind of event, message, record and command occurred in the runs of this thread.

use crate::{Alarm, Effect, Event, FromParticipant, Record, StoreCommand, StoreReport, ToParticipant};
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::fmt::Debug;
use std::mem::{Discriminant, discriminant};

thread_local! {
    static REACHED: RefCell<Reached> = RefCell::default();
}

#[derive(Default)]
struct Reached {
    events: Tally<Event>,
    said: Tally<FromParticipant>,
    effects: Tally<Effect>,
    sent: Tally<ToParticipant>,
    records: Tally<Record>,
    alarms: Tally<Alarm>,
    commands: Tally<StoreCommand>,
    reports: Tally<StoreReport>,
}

/// Kinds of one enum, with the name of each.
struct Tally<T>(FxHashMap<Discriminant<T>, (String, u64)>);

impl<T> Default for Tally<T> {
    fn default() -> Tally<T> {
        Tally(FxHashMap::default())
    }
}

impl<T: Debug> Tally<T> {
    fn note(&mut self, one: &T) {
        self.0.entry(discriminant(one)).or_insert_with(|| (name_of(one), 0)).1 += 1;
    }

    fn line(&self, what: &str) -> String {
        let mut kinds: Vec<_> = self.0.values().map(|(name, count)| format!("{name} {count}")).collect();
        kinds.sort();
        format!("{what}: {}", kinds.join(", "))
    }
}

fn name_of(one: &impl Debug) -> String {
    format!("{one:?}").chars().take_while(|c| c.is_alphanumeric()).collect()
}

pub(super) fn event(event: &Event) {
    REACHED.with_borrow_mut(|reached| {
        reached.events.note(event);
        if let Event::Message(_, _, message) = event {
            reached.said.note(message);
        }
    });
}

pub(super) fn effect(effect: &Effect) {
    REACHED.with_borrow_mut(|reached| {
        reached.effects.note(effect);
        match effect {
            Effect::Append { record, .. } => reached.records.note(record),
            Effect::Send(_, _, message) => reached.sent.note(message),
            Effect::Alarm(alarm) => reached.alarms.note(alarm),
            Effect::Reply(..) | Effect::ForgetPayload(_) | Effect::ForgetBelow(_) | Effect::Trace(_) => {}
        }
    });
}

pub(super) fn store_call(command: &StoreCommand, report: &StoreReport) {
    REACHED.with_borrow_mut(|reached| {
        reached.commands.note(command);
        reached.reports.note(report);
    });
}

/// One line for each enum: its kinds, and how often each occurred in this thread.
pub fn reached() -> Vec<String> {
    REACHED.with_borrow(|reached| {
        vec![
            reached.events.line("events"),
            reached.said.line("participants said"),
            reached.effects.line("effects"),
            reached.sent.line("participants were told"),
            reached.records.line("records"),
            reached.alarms.line("alarms"),
            reached.commands.line("store commands"),
            reached.reports.line("store reports"),
        ]
    })
}
