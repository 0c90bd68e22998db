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
    /// Stores that lag, or are not up.
    waiting_for: Vec<String>,
}

/// Until nothing is decided and unapplied, nothing is being decided, and no prepared branch waits for an answer. What changes goes to
/// stderr. A daemon that goes away meanwhile is waited for: it may be started again.
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
        let doubt = look(endpoint, credentials, daemon).await;
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

async fn look(endpoint: &str, credentials: &Credentials, daemon: &mut Daemon) -> Doubt {
    match daemon.service.status(v1::StatusRequest {}).await {
        Ok(status) => Doubt::from(status.into_inner()),
        Err(_) => {
            if let Ok(again) = Daemon::connect(endpoint, credentials).await {
                *daemon = again;
            }
            Doubt { phase: "away".into(), committing: 0, deciding: 0, unanswered: 0, waiting_for: Vec::new() }
        }
    }
}

impl Doubt {
    fn is_over(&self) -> bool {
        self.phase == "serving" && (self.committing, self.deciding, self.unanswered) == (0, 0, 0)
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
        if !self.waiting_for.is_empty() {
            parts.push(format!("waiting for {}", output::joined(&self.waiting_for)));
        }
        parts.join("; ")
    }
}

impl From<v1::StatusReply> for Doubt {
    fn from(status: v1::StatusReply) -> Doubt {
        let waits = |store: &&v1::ParticipantStatus| !["up", "removed"].contains(&store.session.as_str()) || store.lag > 0;
        Doubt {
            phase: status.phase,
            committing: status.in_doubt,
            deciding: status.deciding,
            unanswered: status.unanswered,
            waiting_for: status.participants.iter().filter(waits).map(|store| store.name.clone()).collect(),
        }
    }
}
