//! What goes wrong in one run: drawn once per seed, because a uniform mixture finds few bugs (PROTOCOL §10).

use super::dice::Dice;
use crate::vote::Kind;
use crate::{Abilities, Config, ParticipantConfig, Role};

const SECOND: u64 = 1_000_000;

/// The world of one seed: who there is, and how unkind it is to them. Intervals are means in microseconds; `None`: never.
#[derive(Clone, Debug)]
pub(crate) struct Climate {
    pub kinds: Vec<Kind>,
    /// Of its preparing stores.
    pub abilities: Abilities,
    pub clients: usize,
    pub transactions: usize,
    pub keys: u64,
    /// Coordinator and participants are one process: they crash together.
    pub embedded: bool,
    pub coordinator_crash: Option<u64>,
    pub participant_crash: Option<u64>,
    pub session_break: Option<u64>,
    /// Of a store call.
    pub store_breaks: f64,
    pub redo_stuck: f64,
    /// Of a vote.
    pub store_refuses: f64,
    pub client_loss: f64,
    pub client_duplicate: f64,
    /// A message, now and then, takes this much longer.
    pub slow: (f64, u64),
    pub network: u64,
    pub store: u64,
    pub force: u64,
    /// How long a crashed process stays away.
    pub outage: u64,
    /// Of a transaction: that its client begins it first.
    pub begins: f64,
    /// Of a transaction that was begun: that its client prepares one of its branches itself.
    pub enlists: f64,
    pub conditions: f64,
    pub deletes: f64,
    pub reads: f64,
    pub operator: Option<u64>,
    /// Until when anything goes wrong at all.
    pub faults_until: u64,
    pub config: Config,
}

impl Climate {
    pub(crate) fn draw(dice: &mut Dice) -> Climate {
        let kinds = draw_kinds(dice);
        let sometimes = |dice: &mut Dice, low: u64, high: u64| dice.chance(0.6).then(|| dice.log_between(low, high));
        let rarely = |dice: &mut Dice, p: f64| if dice.chance(0.4) { p * dice.between(1, 100) as f64 / 100.0 } else { 0.0 };
        let participants = kinds.iter().enumerate().map(|(i, kind)| ParticipantConfig {
            name: format!("{}{i}", name_of(*kind)),
            kind: *kind,
            role: if *kind == Kind::Redo { Role::Index } else { Role::Database },
            standalone: false,
        });
        let resend = dice.log_between(20_000, SECOND);
        let config = Config {
            participants: participants.collect(),
            prepare_timeout: dice.log_between(20_000, 5 * SECOND),
            transaction_timeout: dice.log_between(50_000, 15 * SECOND),
            resend: (resend, resend * 8),
            begin_timeout: 2 * SECOND,
            inquiry: dice.log_between(50_000, 2 * SECOND),
            loss_wait: dice.log_between(100_000, 30 * SECOND),
            outcomes_max: if dice.chance(0.3) { dice.between(3, 30) as usize } else { 10_000 },
            ..Config::default()
        };
        Climate {
            clients: dice.between(1, 6) as usize,
            transactions: dice.between(10, 60) as usize,
            keys: dice.between(1, 5),
            embedded: dice.chance(0.3),
            coordinator_crash: sometimes(dice, 100_000, 5 * SECOND),
            participant_crash: sometimes(dice, 100_000, 5 * SECOND),
            session_break: sometimes(dice, 100_000, 3 * SECOND),
            store_breaks: rarely(dice, 0.05),
            redo_stuck: rarely(dice, 0.3),
            store_refuses: rarely(dice, 0.2),
            client_loss: rarely(dice, 0.4),
            client_duplicate: rarely(dice, 0.4),
            slow: (rarely(dice, 0.2), dice.log_between(10_000, 2 * SECOND)),
            network: dice.log_between(20, 5_000),
            store: dice.log_between(20, 20_000),
            force: dice.log_between(50, 30_000),
            outage: dice.log_between(1_000, 2 * SECOND),
            conditions: rarely(dice, 0.8),
            deletes: rarely(dice, 0.5),
            reads: rarely(dice, 0.5),
            operator: dice.chance(0.15).then(|| dice.log_between(100_000, SECOND)),
            faults_until: dice.between(2, 10) * SECOND,
            abilities: Abilities { leads: dice.chance(0.6), keeps_acked: dice.chance(0.6) },
            begins: rarely(dice, 1.0),
            enlists: rarely(dice, 1.0),
            kinds,
            config,
        }
    }
}

/// At least one database; at most one serial executor and one leader.
fn draw_kinds(dice: &mut Dice) -> Vec<Kind> {
    let mut kinds = Vec::new();
    match dice.below(6) {
        0 | 1 => kinds.push(Kind::Serial),
        2 => kinds.push(Kind::Leader),
        3 => kinds.push(Kind::Preparing),
        4 => kinds.extend([Kind::Serial, Kind::Preparing]),
        _ => kinds.extend([Kind::Leader, Kind::Serial]),
    }
    if dice.chance(0.2) {
        kinds.push(Kind::Preparing);
    }
    for _ in 0..dice.below(3) {
        kinds.push(Kind::Redo);
    }
    kinds
}

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Preparing => "preparing",
        Kind::Redo => "index",
        Kind::Serial => "serial",
        Kind::Leader => "leader",
    }
}
