//! A look for what is about to arrive, before a thread sleeps.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// How long it takes at most: about what a short statement takes, and what it takes to put two threads to sleep and wake them, where an idle
/// processor belongs to a virtual machine (some 40 µs each, by `perf sched timehist`).
pub const LOOK_OUT: Duration = Duration::from_micros(100);

/// The next message, if it arrives in so short a time; others run meanwhile.
pub fn look_out<T>(inbox: &Receiver<T>) -> Option<T> {
    let until = Instant::now() + LOOK_OUT;
    loop {
        if let Ok(message) = inbox.try_recv() {
            return Some(message);
        }
        if Instant::now() >= until {
            return None;
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_and_nothing_is_waited_for_long() {
        let (sender, inbox) = std::sync::mpsc::channel();
        assert_eq!(look_out(&inbox), None);
        sender.send(1).unwrap();
        assert_eq!(look_out(&inbox), Some(1));
        drop(sender);
        assert_eq!(look_out(&inbox), None);
    }
}
