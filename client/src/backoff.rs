//! Waiting longer and longer, and not all at the same time.

use std::time::Duration;

/// Doubles from `min` to `max`; each wait is drawn from the upper half of its step, so that clients do not come back in one wave.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    step: Duration,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { min, max: max.max(min), step: min }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let step = self.step;
        self.step = (step * 2).min(self.max);
        step / 2 + step.mul_f64(f64::from(random()) / f64::from(u32::MAX) / 2.0)
    }

    pub(crate) fn reset(&mut self) {
        self.step = self.min;
    }
}

fn random() -> u32 {
    uuid::Uuid::new_v4().as_fields().0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_limit_and_starts_again() {
        let (min, max) = (Duration::from_millis(10), Duration::from_millis(35));
        let mut backoff = Backoff::new(min, max);
        for step in [10, 20, 35, 35].map(Duration::from_millis) {
            let wait = backoff.next();
            assert!(wait >= step / 2 && wait <= step, "{wait:?} is not in the upper half of {step:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= min);
    }
}
