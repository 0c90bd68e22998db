//! What goes wrong in one run: drawn once per seed, because a uniform mixture finds few bugs.
//! `swarm` makes it wider: up to five stores of a kind, coordinators that take over one after another, and any fault switched off.

use super::dice::Dice;
use crate::vote::Kind;
use crate::{Abilities, Config, ParticipantConfig, Role};

const SECOND: u64 = 1_000_000;

/// Why there are two coordinators.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Twin {
    /// The log was copied, and the copy is started too.
    Clone,
    /// The first one is paused, its successor takes over the same log, and it wakes up.
    Successor,
}

/// The world of one seed: who there is, and how unkind it is to them. Intervals are means in microseconds; `None`: never.
#[derive(Clone, Debug)]
pub(crate) struct Climate {
    pub kinds: Vec<Kind>,
    /// Of its preparing stores.
    pub abilities: Abilities,
    pub clients: usize,
    pub transactions: usize,
    pub keys: u64,
    /// Of a transaction: it writes two rows, in two databases perhaps.
    pub wide: f64,
    /// Of a transaction: it writes a document under a condition alone, whichever database its rows are in (R-COVER).
    pub uncovered: f64,
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
    /// Of a client's turn: it goes away, and nobody asks any more what became of its request.
    pub client_vanishes: f64,
    /// Of a client's turn while it waits: another process asks for it, which does not know at which position its key was first sent.
    pub forgetful: f64,
    /// A message, now and then, takes this much longer.
    pub slow: (f64, u64),
    pub network: u64,
    /// Of each store.
    pub stores: Vec<u64>,
    pub force: u64,
    /// How long a crashed process stays away; and of a participant's crash, that it stays away for long.
    pub outage: u64,
    /// Of a transaction: that its client begins it first.
    pub begins: f64,
    /// Of a transaction that was begun: that its client prepares one of its branches itself.
    pub enlists: f64,
    pub long_outage: f64,
    /// Its preparing stores and leaders run transactions beside each other, and vote on each when it is there: one that waits for a lock
    /// holds nobody up.
    pub beside: bool,
    pub conditions: f64,
    pub deletes: f64,
    pub reads: f64,
    pub operator: Option<u64>,
    /// Of an operator's turn while a leader is away: it is waived.
    pub waives: f64,
    /// How often a prepared branch is rolled back in the store itself, which keeps no note of it.
    pub rolled_back_there: Option<u64>,
    /// Nothing goes wrong at all, and there is time for everything: all that can commit does (I4).
    pub gentle: bool,
    /// A leader sits behind a pooler: backends of ended sessions cannot be ended, and commit when they do.
    pub pooled: bool,
    /// Of a crash of a store's process, while it was told to commit: its last message arrives later.
    pub left_behind: f64,
    /// Read-only branches beside those that write.
    pub reads_beside: f64,
    /// Of a client's turn: it sends again a request that it has the answer to.
    pub sent_again: f64,
    /// A request that does not make sense, or another one under a key that is used.
    pub nonsense: f64,
    pub log_full: Option<u64>,
    /// Of a force.
    pub force_fails: f64,
    /// How often the log is backed up; after a crash it may be put back.
    pub log_backup: Option<u64>,
    pub store_backup: Option<u64>,
    /// Leaders and preparing stores are put back to it, too.
    pub databases_restored: bool,
    /// Of a crash of a leader: the coordinator dies with it.
    pub together: f64,
    /// When a second coordinator appears.
    pub twin: Option<(Twin, u64)>,
    /// How many more take over after the first successor, each from the one before.
    pub successions: u64,
    /// Rows that one transaction writes, at most.
    pub width: u64,
    /// Clients know that at most one leader and one serial executor fit in a transaction, and which stores were removed; mostly.
    pub careful: bool,
    /// Of an operator's turn: a store is given up for ever.
    pub removes: f64,
    /// Of an operator's turn: damage is forgotten.
    pub forgets: f64,
    /// Of an operator's turn: the order, or an attempt that is refused, is audited.
    pub audits: f64,
    /// How often the schema of a store is to be changed.
    pub migrates: Option<u64>,
    /// Of a start of a leader's process: there is a pooler before it from then on, or none any more.
    pub pooler_comes: f64,
    /// Of a client that has its receipt: it says so.
    pub results_acked: f64,
    /// Of a log that is put back: it is done by the command, which says so in the log.
    pub restored_by_command: f64,
    /// Of a branch that a store is to finish by hand: it cannot now, and the branch stays prepared.
    pub unresolved: f64,
    /// How often a backup is made: nothing new is taken, and nothing is forgotten, until it is there.
    pub backups: Option<u64>,
    /// A log that is taken back into use after a loss gets an identity of its own.
    pub new_identities: bool,
    /// How long its redo stores let decisions wait for company; 0: not at all.
    pub gather: u64,
    /// Until when anything goes wrong at all.
    pub faults_until: u64,
    pub config: Config,
}

impl Climate {
    pub(crate) fn draw(dice: &mut Dice) -> Climate {
        let kinds = draw_kinds(dice);
        let sometimes = |dice: &mut Dice, low: u64, high: u64| dice.chance(0.6).then(|| dice.log_between(low, high));
        let seldom = |dice: &mut Dice, p: f64, low: u64, high: u64| dice.chance(p).then(|| dice.log_between(low, high));
        let rarely = |dice: &mut Dice, p: f64| if dice.chance(0.4) { p * dice.between(1, 100) as f64 / 100.0 } else { 0.0 };
        let resend = dice.log_between(20_000, SECOND);
        let config = Config {
            participants: participants_of(&kinds),
            prepare_timeout: dice.log_between(20_000, 5 * SECOND),
            transaction_timeout: dice.log_between(50_000, 15 * SECOND),
            resend: (resend, resend * 8),
            begin_timeout: 2 * SECOND,
            inquiry: dice.log_between(50_000, 2 * SECOND),
            loss_wait: dice.log_between(100_000, 30 * SECOND),
            loss_strict: dice.chance(0.2),
            outcomes_max: if dice.chance(0.3) { dice.between(3, 30) as usize } else { 10_000 },
            ..Config::default()
        };
        let climate = Climate {
            clients: dice.between(1, 6) as usize,
            transactions: dice.between(10, 60) as usize,
            keys: dice.between(1, 5),
            wide: dice.between(0, 9) as f64 / 10.0,
            uncovered: rarely(dice, 0.8),
            embedded: dice.chance(0.3),
            coordinator_crash: sometimes(dice, 100_000, 5 * SECOND),
            participant_crash: sometimes(dice, 100_000, 5 * SECOND),
            session_break: sometimes(dice, 100_000, 3 * SECOND),
            store_breaks: rarely(dice, 0.05),
            redo_stuck: if dice.chance(0.1) { 0.9 } else { rarely(dice, 0.3) },
            store_refuses: rarely(dice, 0.2),
            client_loss: rarely(dice, 0.4),
            client_duplicate: rarely(dice, 0.4),
            client_vanishes: if dice.chance(0.15) { 0.9 } else { rarely(dice, 0.5) },
            forgetful: 0.0,
            slow: (rarely(dice, 0.2), dice.log_between(10_000, 2 * SECOND)),
            network: dice.log_between(20, 5_000),
            stores: kinds.iter().map(|_| dice.log_between(20, 60_000)).collect(),
            force: dice.log_between(50, 30_000),
            outage: dice.log_between(1_000, 2 * SECOND),
            long_outage: rarely(dice, 0.3),
            beside: false,
            conditions: rarely(dice, 0.8),
            deletes: rarely(dice, 0.5),
            reads: rarely(dice, 0.5),
            operator: seldom(dice, 0.15, 100_000, SECOND),
            waives: 0.1,
            rolled_back_there: seldom(dice, 0.05, 50_000, SECOND),
            gentle: dice.chance(0.04),
            pooled: dice.chance(0.5),
            left_behind: if dice.chance(0.5) { 0.9 } else { 0.0 },
            reads_beside: rarely(dice, 0.3),
            sent_again: rarely(dice, 0.3),
            nonsense: rarely(dice, 0.1),
            log_full: seldom(dice, 0.1, 200_000, 3 * SECOND),
            force_fails: if dice.chance(0.15) { 0.05 } else { 0.0 },
            log_backup: seldom(dice, 0.12, 50_000, SECOND),
            store_backup: seldom(dice, 0.06, 50_000, 2 * SECOND),
            databases_restored: false,
            together: 0.0,
            twin: draw_twin(dice),
            successions: 0,
            width: 2,
            careful: false,
            removes: 0.0,
            forgets: 0.0,
            audits: 0.0,
            migrates: None,
            pooler_comes: 0.0,
            results_acked: 0.0,
            restored_by_command: 0.0,
            unresolved: 0.0,
            backups: None,
            new_identities: false,
            gather: 0,
            faults_until: dice.between(2, 10) * SECOND,
            abilities: Abilities { leads: dice.chance(0.6), keeps_acked: dice.chance(0.6), shares: false },
            begins: rarely(dice, 1.0),
            enlists: rarely(dice, 1.0),
            kinds,
            config,
        };
        if climate.gentle { climate.calmed() } else { climate }
    }

    /// What is drawn apart, so that the rest of a seed stays as it is: how votes come, and now and then a world made for what meets too
    /// seldom by chance.
    pub(crate) fn widened(self, dice: &mut Dice) -> Climate {
        let beside = dice.chance(0.25);
        let restored = dice.chance(0.12) && !self.gentle;
        let backup = restored.then(|| dice.log_between(50_000, SECOND));
        let climate = Climate { beside, databases_restored: restored, store_backup: backup.or(self.store_backup), ..self };
        let climate = match dice.below(16) {
            0 | 1 if !climate.gentle => climate.led(dice),
            2 if !climate.gentle => climate.lost(dice),
            _ => climate,
        };
        let shares = climate.beside && dice.chance(0.6);
        Climate { abilities: Abilities { shares, ..climate.abilities }, ..climate }
    }

    /// Drawn apart, too: what was thought of late.
    pub(crate) fn attended(self, dice: &mut Dice) -> Climate {
        let unresolved = if dice.chance(0.5) { 0.7 } else { 0.0 };
        let backups = dice.chance(0.06).then(|| dice.log_between(50_000, 2 * SECOND));
        if self.gentle { self } else { Climate { unresolved, backups, ..self } }
    }

    /// Drawn apart, too.
    pub(crate) fn forgetting(self, dice: &mut Dice) -> Climate {
        let forgetful = if dice.chance(0.15) { dice.between(1, 10) as f64 / 10.0 } else { 0.0 };
        if self.gentle { self } else { Climate { forgetful, ..self } }
    }

    /// Drawn apart, too.
    pub(crate) fn gathering(self, dice: &mut Dice) -> Climate {
        let gather = if dice.chance(0.2) { dice.log_between(1_000, 200_000) } else { 0 };
        if self.gentle { self } else { Climate { gather, ..self } }
    }

    /// Leaders that are away, are waived, and get the last messages of ended sessions late; clients that ask no more; a low floor.
    fn led(self, dice: &mut Dice) -> Climate {
        let kinds = match dice.below(3) {
            0 => vec![Kind::Leader, Kind::Redo],
            1 => vec![Kind::Leader, Kind::Serial, Kind::Redo],
            _ => vec![Kind::Leader, Kind::Preparing, Kind::Redo],
        };
        let often = |dice: &mut Dice, p: f64| dice.chance(p).then(|| dice.log_between(80_000, SECOND));
        let forgets = dice.chance(0.5);
        let config = Config {
            participants: participants_of(&kinds),
            inquiry: if dice.chance(0.5) { 2 * SECOND } else { self.config.inquiry },
            outcomes_max: if forgets { dice.between(2, 8) as usize } else { 10_000 },
            ..self.config
        };
        Climate {
            clients: dice.between(3, 6) as usize,
            transactions: 60,
            wide: dice.between(3, 9) as f64 / 10.0,
            uncovered: if dice.chance(0.5) { 0.8 } else { 0.0 },
            embedded: false,
            coordinator_crash: often(dice, 0.6),
            participant_crash: often(dice, 0.9),
            redo_stuck: 0.0,
            client_vanishes: if dice.chance(0.5) { 0.9 } else { 0.1 },
            stores: kinds.iter().map(|_| dice.log_between(1_000, 60_000)).collect(),
            long_outage: if dice.chance(0.5) { 0.3 } else { 0.0 },
            conditions: if dice.chance(0.5) { 0.8 } else { 0.0 },
            operator: often(dice, 0.6),
            waives: 0.8,
            pooled: dice.chance(0.6),
            left_behind: 0.9,
            together: if dice.chance(0.7) { 0.7 } else { 0.0 },
            force_fails: 0.0,
            log_backup: None,
            twin: None,
            kinds,
            config,
            ..self
        }
    }

    /// A log that is put back while branches are prepared, and stores that come back one after another.
    fn lost(self, dice: &mut Dice) -> Climate {
        let kinds = match dice.below(3) {
            0 => vec![Kind::Preparing, Kind::Redo],
            1 => vec![Kind::Serial, Kind::Preparing],
            _ => vec![Kind::Preparing, Kind::Preparing, Kind::Redo],
        };
        Climate {
            clients: dice.between(3, 6) as usize,
            transactions: 60,
            keys: 5,
            wide: 0.9,
            embedded: false,
            coordinator_crash: Some(dice.log_between(150_000, SECOND)),
            participant_crash: Some(dice.log_between(80_000, SECOND)),
            redo_stuck: dice.between(3, 8) as f64 / 10.0,
            store_refuses: 0.0,
            stores: kinds.iter().map(|_| dice.log_between(100, 30_000)).collect(),
            outage: dice.log_between(10_000, SECOND),
            operator: None,
            force_fails: 0.0,
            log_backup: Some(dice.log_between(30_000, 300_000)),
            store_backup: None,
            twin: None,
            abilities: Abilities::default(),
            config: Config { participants: participants_of(&kinds), ..self.config },
            kinds,
            ..self
        }
    }

    /// The same people in fine weather.
    fn calmed(self) -> Climate {
        let fine = Config::default();
        Climate {
            coordinator_crash: None,
            participant_crash: None,
            session_break: None,
            store_breaks: 0.0,
            redo_stuck: 0.0,
            store_refuses: 0.0,
            slow: (0.0, 1),
            network: self.network.min(1_000),
            stores: self.stores.iter().map(|store| *store.min(&5_000)).collect(),
            force: self.force.min(5_000),
            operator: None,
            rolled_back_there: None,
            nonsense: 0.0,
            reads_beside: 0.0,
            begins: 0.0,
            log_full: None,
            force_fails: 0.0,
            log_backup: None,
            store_backup: None,
            twin: None,
            removes: 0.0,
            config: Config { participants: self.config.participants, resend: fine.resend, inquiry: fine.inquiry, ..fine },
            ..self
        }
    }
}

pub(super) fn participants_of(kinds: &[Kind]) -> Vec<ParticipantConfig> {
    let participant = |(i, kind): (usize, &Kind)| ParticipantConfig {
        name: format!("{}{i}", name_of(*kind)),
        kind: *kind,
        role: if *kind == Kind::Redo { Role::Index } else { Role::Database },
        standalone: false,
    };
    kinds.iter().enumerate().map(participant).collect()
}

fn draw_twin(dice: &mut Dice) -> Option<(Twin, u64)> {
    let twin = match dice.below(20) {
        0 | 1 => Twin::Clone,
        2 | 3 => Twin::Successor,
        _ => return None,
    };
    Some((twin, dice.log_between(200_000, 5 * SECOND)))
}

/// At least one database; at most one serial executor.
fn draw_kinds(dice: &mut Dice) -> Vec<Kind> {
    let mut kinds = Vec::new();
    match dice.below(7) {
        0 | 1 => kinds.push(Kind::Serial),
        2 => kinds.push(Kind::Leader),
        3 => kinds.push(Kind::Preparing),
        4 => kinds.extend([Kind::Serial, Kind::Preparing]),
        5 => kinds.extend([Kind::Leader, Kind::Serial]),
        _ => kinds.extend([Kind::Leader, Kind::Preparing]),
    }
    if dice.chance(0.2) {
        kinds.push(Kind::Preparing);
    }
    if dice.chance(0.1) {
        kinds.push(Kind::Leader);
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
