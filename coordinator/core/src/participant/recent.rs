//! What was seen of late, in bounded memory.

use rustc_hash::FxHashSet;

/// The last ones seen, in two generations: bounded, and never less than one full generation.
#[derive(Debug)]
pub(super) struct Recent<T> {
    pub(super) young: FxHashSet<T>,
    pub(super) old: FxHashSet<T>,
}

impl<T: Copy + Eq + std::hash::Hash> Recent<T> {
    const GENERATION: usize = 65_536;

    /// Whether it is new.
    pub(super) fn insert(&mut self, one: T) -> bool {
        if self.old.contains(&one) || !self.young.insert(one) {
            return false;
        }
        if self.young.len() >= Self::GENERATION {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        true
    }

    pub(super) fn contains(&self, one: T) -> bool {
        self.young.contains(&one) || self.old.contains(&one)
    }
}

impl<T> Default for Recent<T> {
    fn default() -> Recent<T> {
        Recent { young: FxHashSet::default(), old: FxHashSet::default() }
    }
}
