//! Swarm testing: each seed has a world of its own size, and a mixture of faults of its own, in which about half of them do not occur at
//! all. What never happens lets something else go on for long enough to matter.

use super::dice::Dice;
use super::faults::{Climate, Twin, participants_of};
use crate::Config;
use crate::vote::Kind;

const SECOND: u64 = 1_000_000;
/// Stores of one kind, at most; and of all kinds.
const OF_A_KIND: u64 = 5;
const STORES: usize = 10;

macro_rules! switches {
    ($($name:ident: $field:ident = $off:expr;)*) => {
        /// Something that goes wrong, or that people do, and that can be switched off by itself.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Switch {
            $(#[allow(missing_docs)] $name,)*
        }

        impl Switch {
            /// All of them.
            pub const ALL: &[Switch] = &[$(Switch::$name),*];

            pub(crate) fn turn_off(self, climate: &mut Climate) {
                match self {
                    $(Switch::$name => climate.$field = $off,)*
                }
            }

            pub(crate) fn is_on(self, climate: &Climate) -> bool {
                match self {
                    $(Switch::$name => climate.$field != $off,)*
                }
            }
        }
    };
}

switches! {
    CoordinatorCrash: coordinator_crash = None;
    ParticipantCrash: participant_crash = None;
    SessionBreak: session_break = None;
    StoreBreak: store_breaks = 0.0;
    StuckRedo: redo_stuck = 0.0;
    Refusal: store_refuses = 0.0;
    ClientLoss: client_loss = 0.0;
    ClientDuplicate: client_duplicate = 0.0;
    ClientVanishes: client_vanishes = 0.0;
    SlowMessage: slow = (0.0, 1);
    LongOutage: long_outage = 0.0;
    Embedded: embedded = false;
    Begin: begins = 0.0;
    Enlist: enlists = 0.0;
    Beside: beside = false;
    Uncovered: uncovered = 0.0;
    Condition: conditions = 0.0;
    Delete: deletes = 0.0;
    Read: reads = 0.0;
    ReadBeside: reads_beside = 0.0;
    SentAgain: sent_again = 0.0;
    Nonsense: nonsense = 0.0;
    Operator: operator = None;
    Waiver: waives = 0.0;
    Removal: removes = 0.0;
    Forget: forgets = 0.0;
    Audit: audits = 0.0;
    RolledBackThere: rolled_back_there = None;
    Pooler: pooled = false;
    LeftBehind: left_behind = 0.0;
    LogFull: log_full = None;
    ForceFails: force_fails = 0.0;
    LogPutBack: log_backup = None;
    PutBackByCommand: restored_by_command = 0.0;
    StorePutBack: store_backup = None;
    Together: together = 0.0;
    Twin: twin = None;
    Succession: successions = 0;
    Migration: migrates = None;
    PoolerComes: pooler_comes = 0.0;
    ResultsAcked: results_acked = 0.0;
    Unresolved: unresolved = 0.0;
    Backup: backups = None;
    Forgetful: forgetful = 0.0;
    Gather: gather = 0;
}

impl Climate {
    /// Two seeds in three: another size, other people, other faults. The rest stays as it was drawn, so that what is seldom is met there.
    pub(crate) fn swarm(self, dice: &mut Dice) -> Climate {
        let mut climate = Climate { new_identities: true, ..self };
        if dice.below(3) == 0 {
            return climate;
        }
        climate.careful = !dice.chance(0.05);
        if dice.chance(0.6) {
            climate = climate.resized(dice);
        }
        if !climate.gentle {
            climate = climate.busier(dice);
            if dice.chance(0.5) {
                Switch::ALL.iter().filter(|_| dice.chance(0.5)).for_each(|switch| switch.turn_off(&mut climate));
            }
        }
        climate
    }

    fn resized(self, dice: &mut Dice) -> Climate {
        let kinds = draw_kinds(dice);
        let databases = kinds.iter().filter(|kind| **kind != Kind::Redo).count() as u64;
        let slowest = if self.gentle { 5_000 } else { 60_000 };
        Climate {
            clients: dice.between(1, 10) as usize,
            transactions: dice.log_between(5, 80) as usize,
            keys: dice.between(1, 2 * databases.max(2)),
            width: dice.between(2, 5),
            stores: kinds.iter().map(|_| dice.log_between(20, slowest)).collect(),
            config: Config { participants: participants_of(&kinds), ..self.config },
            kinds,
            ..self
        }
    }

    /// Operators who do more, and coordinators that take over from each other.
    fn busier(self, dice: &mut Dice) -> Climate {
        let rarely = |dice: &mut Dice, p: f64| if dice.chance(0.4) { p * dice.between(1, 100) as f64 / 100.0 } else { 0.0 };
        let operator = dice.chance(0.3).then(|| dice.log_between(50_000, SECOND)).or(self.operator);
        let succeeded = dice.chance(0.2) && !matches!(self.twin, Some((Twin::Clone, _)));
        let config = Config {
            max_open: if dice.chance(0.1) { dice.between(1, 4) as usize } else { self.config.max_open },
            max_lag: if dice.chance(0.1) { dice.between(1, 6) as usize } else { self.config.max_lag },
            ..self.config
        };
        let twin = if succeeded { Some((Twin::Successor, dice.log_between(100_000, 3 * SECOND))) } else { self.twin };
        Climate {
            operator,
            removes: rarely(dice, 0.3),
            forgets: rarely(dice, 0.6),
            audits: rarely(dice, 1.0),
            restored_by_command: if dice.chance(0.5) { 0.7 } else { 0.0 },
            log_backup: dice.chance(0.06).then(|| dice.log_between(30_000, SECOND)).or(self.log_backup),
            twin,
            successions: if succeeded { dice.below(6) } else { 0 },
            migrates: dice.chance(0.2).then(|| dice.log_between(50_000, 2 * SECOND)),
            pooler_comes: if dice.chance(0.2) { 0.3 } else { 0.0 },
            results_acked: rarely(dice, 1.0),
            config,
            ..self
        }
    }
}

/// Each kind is there or not, and then up to five times; at least one database.
fn draw_kinds(dice: &mut Dice) -> Vec<Kind> {
    let mut kinds = Vec::new();
    while kinds.iter().all(|kind| *kind == Kind::Redo) {
        kinds.clear();
        for kind in [Kind::Preparing, Kind::Serial, Kind::Leader, Kind::Redo] {
            if dice.chance(0.5) {
                let few = dice.between(1, OF_A_KIND);
                let count = dice.between(1, few);
                kinds.extend((0..count).map(|_| kind));
            }
        }
        kinds.truncate(STORES);
    }
    kinds
}
