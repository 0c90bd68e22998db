//! Deadlines here, and spans of time on the wire.

use std::time::Duration;
use tokio::time::Instant;

/// What "never" comes to: an instant further off than this may not be representable.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// When this time will be over.
pub(crate) fn deadline_in(time: Duration) -> Instant {
    Instant::now() + time.min(FAR)
}

/// Whole milliseconds, at least 1: 0 on the wire means the default.
pub(crate) fn millis(duration: Duration) -> u32 {
    duration.as_millis().clamp(1, u32::MAX.into()) as u32
}
