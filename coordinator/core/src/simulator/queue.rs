//! What is to happen, in the order of its time; at one moment in the order of asking.

use crate::Time;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The heap holds places only: what happens is large, and is not moved about.
#[derive(Debug)]
pub(super) struct Queue<T> {
    order: BinaryHeap<Reverse<(Time, u64, usize)>>,
    places: Vec<Option<T>>,
    free: Vec<usize>,
    asked: u64,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Queue<T> {
        Queue { order: BinaryHeap::new(), places: Vec::new(), free: Vec::new(), asked: 0 }
    }

    pub(super) fn push(&mut self, at: Time, one: T) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some(one);
        self.order.push(Reverse((at, self.asked, place)));
        self.asked += 1;
    }

    pub(super) fn pop(&mut self) -> Option<(Time, T)> {
        loop {
            let Reverse((at, _, place)) = self.order.pop()?;
            self.free.push(place);
            if let Some(one) = self.places[place].take() {
                return Some((at, one));
            }
        }
    }

    /// Takes out one that is like this; there is at most one.
    pub(super) fn take(&mut self, like: impl Fn(&T) -> bool) -> Option<T> {
        self.places.iter_mut().find_map(|place| place.take_if(|one| like(one)))
    }
}
