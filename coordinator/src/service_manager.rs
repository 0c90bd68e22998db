//! The process as its machine sees it: what systemd is told (sd_notify(3)), and how many descriptors it may have open.

use crate::engine_handle::{EngineHandle, Phase, Question};
use rustix::process::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use std::time::Duration;
use tracing::{debug, warn};

/// Descriptors beside connections: stores, the log, connections to servers.
const OWN_DESCRIPTORS: u64 = 1_024;

/// Makes room for so many connections, as far as the hard limit allows.
pub fn make_room(connections: usize) {
    let (limit, needed) = (getrlimit(Resource::Nofile), connections as u64 + OWN_DESCRIPTORS);
    if limit.current.is_none_or(|current| current >= needed) {
        return;
    }
    let wanted = limit.maximum.map_or(needed, |maximum| needed.min(maximum));
    if let Err(error) = setrlimit(Resource::Nofile, rustix::process::Rlimit { current: Some(wanted), maximum: limit.maximum }) {
        return warn!(%error, "the limit of open files cannot be raised to {wanted}");
    }
    if wanted < needed {
        warn!(
            "this process may open {wanted} files; limits.connections may need {needed}: raise the hard limit (LimitNOFILE), or lower it"
        );
    }
}

/// Tells systemd, if it is there, that the daemon listens, then what its phase is, for ever; and, if it wants to hear that (WatchdogSec), that the
/// engine still answers.
pub async fn report(engine: EngineHandle) {
    tell(&[NotifyState::Ready]);
    let mut microseconds = 0;
    let every = match sd_notify::watchdog_enabled(false, &mut microseconds) {
        true => Duration::from_micros(microseconds / 3).max(Duration::from_millis(10)),
        false => Duration::from_secs(3600),
    };
    let mut phase = engine.phase();
    loop {
        let status = match &*phase.borrow_and_update() {
            Phase::SafeMode(why) => format!("safe mode: {why}"),
            phase => phase.to_string(),
        };
        tell(&[NotifyState::Status(&status)]);
        tokio::select! {
            changed = phase.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(every) => if engine.ask(Question::Status).await.is_ok() { tell(&[NotifyState::Watchdog]) },
        }
    }
}

/// Tells systemd, if it is there, that the daemon ends.
pub fn report_stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Without systemd (`NOTIFY_SOCKET`) nothing happens.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        debug!(%error, "systemd was not told");
    }
}
