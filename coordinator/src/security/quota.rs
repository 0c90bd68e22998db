//! So many in a time.

use governor::{DefaultDirectRateLimiter, Quota as Rate, RateLimiter};
use std::num::NonZeroU32;

/// So many in a time, and as many at once.
pub struct Quota(DefaultDirectRateLimiter);

impl Quota {
    /// In a second.
    pub fn per_second(limit: u32) -> Quota {
        Quota(RateLimiter::direct(Rate::per_second(at_least_one(limit))))
    }

    /// In a minute.
    pub fn per_minute(limit: u32) -> Quota {
        Quota(RateLimiter::direct(Rate::per_minute(at_least_one(limit))))
    }

    /// Takes one, if there is one left.
    pub fn take(&self) -> bool {
        self.0.check().is_ok()
    }
}

fn at_least_one(limit: u32) -> NonZeroU32 {
    NonZeroU32::new(limit).unwrap_or(NonZeroU32::MIN)
}
