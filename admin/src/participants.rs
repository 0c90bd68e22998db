//! Stores: their sessions and how far they have followed.

use crate::daemon::Daemon;
use crate::output::{self, Output, Tone};
use crate::{Exit, Failure, Io};
use lockstep_client::Csn;
use lockstep_proto::v1;
use serde::Serialize;

/// A store, as JSON shows it.
#[derive(Serialize)]
pub(crate) struct Participant {
    pub name: String,
    id: u32,
    r#type: String,
    kind: String,
    pub session: String,
    pub why: String,
    /// For how long the session is so.
    session_ms: u64,
    applied_csn: Csn,
    durable_csn: Csn,
    /// How old what it last said of these two is.
    reported_ms: u64,
    lag: u64,
    lag_ms: u64,
    pub stuck: u64,
    prepared: u64,
    /// How long the oldest of these has been there, at least.
    prepared_ms: u64,
    /// Those among them that nobody can answer yet.
    unanswered: u64,
    /// Connections that are lent, as the store counts them now.
    pools: Vec<Pool>,
}

#[derive(Serialize)]
struct Pool {
    name: String,
    limit: u32,
    open: u32,
    lent: u32,
    waiting: u32,
}

#[derive(Serialize)]
struct Participants {
    participants: Vec<Participant>,
}

pub(crate) async fn list(daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let call = daemon.service.list_participants(v1::ListParticipantsRequest {});
    let reply = Daemon::answer(&daemon.endpoint, call).await?;
    let participants = reply.participants.into_iter().map(Participant::from).collect();
    let data = Participants { participants };
    output.write(io, &data, || {
        let sentences = data.participants.iter().flat_map(|participant| participant.held().into_iter().chain(participant.short()));
        let sentences: String = sentences.map(|sentence| output::wrapped(&sentence, "")).collect();
        let table = table(output, &data.participants);
        if sentences.is_empty() { table } else { format!("{table}\n\n{sentences}") }
    })?;
    Ok(Exit::Ok)
}

pub(crate) fn table(output: &Output, participants: &[Participant]) -> String {
    let header =
        ["STORE", "ID", "TYPE", "KIND", "SESSION", "FOR", "APPLIED", "DURABLE", "TOLD", "LAG", "OLDEST", "STUCK", "PREPARED", "WHY"];
    let row = |p: &Participant| {
        [
            output::text(&p.name),
            output::text(format!("p{}", p.id)),
            output::text(&p.r#type),
            output::text(&p.kind),
            output::toned(&p.session, p.tone()),
            output::number(output::duration(p.session_ms)),
            output::number(p.applied_csn),
            output::number(p.durable_csn),
            output::number(output::ago(p.reported_ms)),
            output::number(p.lag),
            output::number(output::or_dash((p.lag > 0).then(|| output::duration(p.lag_ms)))),
            output::number(p.stuck),
            output::number(p.prepared),
            output::text(output::or_dash(Some(&p.why).filter(|why| !why.is_empty()))),
        ]
    };
    output.table(header, participants.iter().map(row))
}

impl Participant {
    /// What its prepared branches hold back, if it has any.
    fn held(&self) -> Option<String> {
        let name = &self.name;
        let orphans = match self.unanswered {
            0 => String::new(),
            n => format!(" Nobody can tell the outcome of {n} of them yet: see `lockstep tx list --state in-doubt`."),
        };
        (self.prepared > 0).then(|| {
            format!(
                "`{name}` holds {} branches prepared, the oldest for {} at least. Until they are finished they keep their locks, and a PostgreSQL cannot \
                 vacuum what is younger: see `lockstep tx list --participant {name}`.{orphans}",
                self.prepared,
                output::duration(self.prepared_ms)
            )
        })
    }

    /// Which of its pools has too few connections now.
    fn short(&self) -> impl Iterator<Item = String> {
        let short = self.pools.iter().filter(|pool| pool.waiting > 0);
        short.map(|Pool { name, limit, lent, waiting, .. }| {
            format!("`{}` has lent {lent} of its {limit} connections for {name}, and {waiting} more are wanted.", self.name)
        })
    }

    fn tone(&self) -> Tone {
        match self.session.as_str() {
            "up" => Tone::Good,
            "recovering" => Tone::Warning,
            _ => Tone::Bad,
        }
    }
}

impl From<v1::ParticipantStatus> for Participant {
    fn from(status: v1::ParticipantStatus) -> Participant {
        Participant {
            name: status.name,
            id: status.id,
            r#type: status.r#type,
            kind: status.kind,
            session: status.session,
            why: status.why,
            session_ms: status.session_ms,
            applied_csn: Csn::from_u64(status.applied_csn),
            durable_csn: Csn::from_u64(status.durable_csn),
            reported_ms: status.reported_ms,
            lag: status.lag,
            lag_ms: status.lag_ms,
            stuck: status.stuck,
            prepared: status.prepared,
            prepared_ms: status.prepared_ms,
            unanswered: status.unanswered,
            pools: status.pools.into_iter().map(Pool::from).collect(),
        }
    }
}

impl From<v1::ConnectionPool> for Pool {
    fn from(pool: v1::ConnectionPool) -> Pool {
        let v1::ConnectionPool { name, limit, open, lent, waiting } = pool;
        Pool { name, limit, open, lent, waiting }
    }
}
