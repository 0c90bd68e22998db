//! A failing seed's world, made smaller as long as it fails: faults are switched off, stores, clients and transactions taken out.

use super::dice::Dice;
use super::faults::Climate;
use super::swarm::Switch;
use super::{Failure, Options, Reduced, simulate, world};

/// Runs that are tried, at most.
const TRIES: usize = 4_000;
/// A smaller world is another run: so many throws of other dice show whether it fails too.
const THROWS: u64 = 24;

/// A smaller world, and how it fails.
#[derive(Debug)]
pub struct Shrunken {
    /// What is in it.
    pub options: Options,
    /// With every event.
    pub failure: Failure,
    /// How many runs it took.
    pub tried: usize,
}

/// Looks for the smallest world of this seed in which the same rule is broken.
pub fn shrink(failure: &Failure, options: &Options) -> Shrunken {
    let mut search = Search { seed: failure.seed, rule: rule_of(&failure.what), options: options.clone(), tried: 0 };
    search.options.trace = false;
    let mut size = usize::MAX;
    while search.size() < size && search.tried < TRIES {
        size = search.size();
        search.round();
    }
    let options = Options { trace: true, ..search.options.clone() };
    let failure = simulate(failure.seed, &options).expect_err("the same world is the same run");
    Shrunken { options: search.options, failure: *failure, tried: search.tried }
}

struct Search {
    seed: u64,
    rule: String,
    options: Options,
    tried: usize,
}

impl Search {
    fn climate(&self) -> Climate {
        world::climate_of(&mut Dice::new(self.seed), self.seed, &self.options)
    }

    /// How much there is in the world.
    fn size(&self) -> usize {
        let climate = self.climate();
        let on = Switch::ALL.iter().filter(|switch| switch.is_on(&climate)).count();
        on + climate.transactions + climate.clients + climate.kinds.len()
    }

    fn round(&mut self) {
        for &switch in Switch::ALL {
            if switch.is_on(&self.climate()) {
                self.attempt(|reduced| reduced.without.push(switch));
            }
        }
        let stores: Vec<usize> = self.options.reduced.stores.clone().unwrap_or_else(|| (0..self.climate().kinds.len()).collect());
        for store in stores {
            self.attempt(|reduced| match &mut reduced.stores {
                Some(stores) => stores.retain(|other| *other != store),
                None => reduced.stores = None,
            });
        }
        for _ in 0..16 {
            let (transactions, clients) = (self.climate().transactions, self.climate().clients);
            let fewer = self.attempt(|reduced| reduced.transactions = Some(transactions / 2))
                || self.attempt(|reduced| reduced.transactions = Some(transactions.saturating_sub(1)));
            let less = self.attempt(|reduced| reduced.clients = Some(clients.saturating_sub(1)));
            if !fewer && !less {
                break;
            }
        }
    }

    /// Whether it fails in a world that is smaller by this; then it is so from now on.
    fn attempt(&mut self, change: impl FnOnce(&mut Reduced)) -> bool {
        let mut options = self.options.clone();
        options.reduced.stores.get_or_insert_with(|| (0..self.climate().kinds.len()).collect());
        change(&mut options.reduced);
        if options.reduced.clients == Some(0) || options.reduced.transactions == Some(0) || !has_database(self.seed, &options) {
            return false;
        }
        for dice in std::iter::once(self.options.reduced.dice).chain((1..=THROWS).map(Some)) {
            if self.tried >= TRIES {
                return false;
            }
            self.tried += 1;
            options.reduced.dice = dice;
            if simulate(self.seed, &options).is_err_and(|failure| rule_of(&failure.what) == self.rule) {
                self.options = options;
                return true;
            }
        }
        false
    }
}

fn has_database(seed: u64, options: &Options) -> bool {
    let climate = world::climate_of(&mut Dice::new(seed), seed, options);
    climate.kinds.iter().any(|kind| *kind != crate::Kind::Redo)
}

/// What a violation names first: `I7`, `R-COND`; or its first words.
fn rule_of(what: &str) -> String {
    let rule = what.split_once(": ").map_or(what, |(rule, _)| rule);
    rule.chars().filter(|c| !c.is_ascii_digit() || rule.len() < 8).take(24).collect()
}
