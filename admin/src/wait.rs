//! Waiting until nothing is in doubt.

use crate::daemon::Daemon;
use crate::output::{self, Output};
use crate::{Exit, Failure, Io};
use lockstep_client::Credentials;
use lockstep_proto::v1;
use serde::Serialize;
use std::time::{Duration, Instant};

/// How often the daemon is asked.
const INTERVAL: Duration = Duration::from_millis(500);

/// How it stood at last, as JSON shows it.
#[derive(Serialize, PartialEq, Eq, Clone)]
struct Doubt {
    /// The daemon's phase; "away" while it does not answer.
    phase: String,
    /// Decided, and not applied everywhere.
    committing: u64,
    /// With a CSN, and not known to be decided.
    deciding: u64,
    /// Branches that stores hold prepared, of which nobody can say the outcome yet.
    unanswered: u64,
    /// Stores that may hold prepared branches, or have decided what nobody else knows, and have not told yet.
    unheard: Vec<String>,
    /// Stores that lag, or are not up.
    waiting_for: Vec<String>,
}

/// Until nothing is decided and unapplied, nothing is being decided, no prepared branch waits for an answer, and every store that may hold
/// such has told. What changes goes to stderr. A daemon that goes away meanwhile is waited for: it may be started again.
pub(crate) async fn until_settled(
    timeout: Option<Duration>,
    (endpoint, credentials): (&str, &Credentials),
    daemon: &mut Daemon,
    output: &Output,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let began = Instant::now();
    let mut last = None;
    loop {
        let left = timeout.map_or(Duration::MAX, |timeout| timeout.saturating_sub(began.elapsed()).max(INTERVAL));
        let looking = tokio::time::timeout(left, look(endpoint, credentials, daemon));
        let doubt = looking.await.unwrap_or_else(|_| Ok(Doubt::away()))?;
        if doubt.is_over() || timeout.is_some_and(|timeout| began.elapsed() >= timeout) {
            output.write(io, &doubt, || doubt.sentence())?;
            return Ok(if doubt.is_over() { Exit::Ok } else { Exit::Attention });
        }
        if last.as_ref() != Some(&doubt) {
            writeln!(io.stderr, "lockstep: {}", doubt.sentence())?;
            io.stderr.flush()?;
        }
        last = Some(doubt);
        let left = timeout.map_or(INTERVAL, |timeout| timeout.saturating_sub(began.elapsed()));
        tokio::time::sleep(INTERVAL.min(left)).await;
    }
}

/// Who is not let in waits for nothing.
async fn look(endpoint: &str, credentials: &Credentials, daemon: &mut Daemon) -> Result<Doubt, Failure> {
    match Daemon::answer(&daemon.endpoint, daemon.service.status(v1::StatusRequest {})).await {
        Ok(status) => Ok(Doubt::from(status)),
        Err(refused) if refused.exit == Exit::Refused => Err(refused),
        Err(_) => {
            if let Ok(again) = Daemon::connect(endpoint, credentials).await {
                *daemon = again;
            }
            Ok(Doubt::away())
        }
    }
}

impl Doubt {
    fn away() -> Doubt {
        Doubt { phase: "away".into(), committing: 0, deciding: 0, unanswered: 0, unheard: Vec::new(), waiting_for: Vec::new() }
    }

    fn is_over(&self) -> bool {
        self.phase == "serving" && (self.committing, self.deciding, self.unanswered) == (0, 0, 0) && self.unheard.is_empty()
    }

    fn sentence(&self) -> String {
        if self.is_over() {
            return "nothing is in doubt".into();
        }
        let mut parts = Vec::new();
        if self.phase != "serving" {
            parts.push(format!("the daemon is {}", self.phase));
        }
        for (n, what) in [
            (self.committing, "decided and not applied everywhere"),
            (self.deciding, "being decided"),
            (self.unanswered, "prepared branches without an answer"),
        ] {
            if n > 0 {
                parts.push(format!("{n} {what}"));
            }
        }
        if !self.unheard.is_empty() {
            parts.push(format!("not known yet what {} prepared or decided", output::joined(&self.unheard)));
        }
        if !self.waiting_for.is_empty() {
            parts.push(format!("waiting for {}", output::joined(&self.waiting_for)));
        }
        parts.join("; ")
    }
}

impl From<v1::StatusReply> for Doubt {
    fn from(status: v1::StatusReply) -> Doubt {
        let away = |store: &v1::ParticipantStatus| !["up", "removed"].contains(&store.session.as_str());
        // One that is not configured has no type, and is not waited for.
        let unheard = |store: &&v1::ParticipantStatus| {
            away(store) && !store.r#type.is_empty() && ["preparing", "leader"].contains(&store.kind.as_str())
        };
        let waits = |store: &&v1::ParticipantStatus| away(store) || store.lag > 0;
        Doubt {
            phase: status.phase,
            committing: status.in_doubt,
            deciding: status.deciding,
            unanswered: status.unanswered,
            unheard: status.participants.iter().filter(unheard).map(|store| store.name.clone()).collect(),
            waiting_for: status.participants.iter().filter(waits).map(|store| store.name.clone()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubt(kind: &str, session: &str, r#type: &str) -> Doubt {
        let (name, kind, session, r#type) = ("db".into(), kind.into(), session.into(), r#type.into());
        let store = v1::ParticipantStatus { name, kind, session, r#type, ..v1::ParticipantStatus::default() };
        Doubt::from(v1::StatusReply { phase: "serving".into(), participants: vec![store], ..v1::StatusReply::default() })
    }

    #[test]
    fn it_is_not_over_before_whoever_may_hold_what_is_in_doubt_has_told() {
        for kind in ["preparing", "leader"] {
            for session in ["down", "recovering", "refused"] {
                let doubt = doubt(kind, session, "postgres");
                assert!(!doubt.is_over(), "{kind}, {session}");
                assert_eq!(doubt.sentence(), "not known yet what db prepared or decided; waiting for db");
            }
            assert!(doubt(kind, "up", "postgres").is_over() && doubt(kind, "removed", "postgres").is_over());
            assert!(doubt(kind, "down", "").is_over(), "not configured any more");
        }
        for kind in ["serial", "redo"] {
            assert!(doubt(kind, "down", "remote").is_over(), "what it is owed stands in the log");
        }
    }
}
