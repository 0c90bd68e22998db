//! The daemon on one screen, and what of it needs a person.

use crate::daemon::Daemon;
use crate::output::{self, Output, Tone};
use crate::participants::{self, Participant};
use crate::{Exit, Failure, Io};
use lockstep_client::Csn;
use lockstep_proto::v1;
use serde::Serialize;

/// The daemon, as JSON shows it.
#[derive(Serialize)]
struct Status {
    endpoint: String,
    phase: String,
    why: String,
    /// Sentences, each with its next step.
    attention: Vec<String>,
    version: String,
    coord_id: String,
    log_id: String,
    epoch: u32,
    last_csn: Csn,
    last_lsn: u64,
    floor: String,
    outcomes_kept: u64,
    uptime_ms: u64,
    serving_after_ms: Option<u64>,
    mended_after_ms: Option<u64>,
    active: u64,
    in_doubt: u64,
    deciding: u64,
    /// Branches that stores hold prepared, of which nobody can say the outcome yet.
    unanswered: u64,
    oldest_in_doubt_ms: u64,
    committed: u64,
    aborted: u64,
    forces: u64,
    log_bytes: u64,
    log_free_bytes: u64,
    log_full: bool,
    damage: u64,
    participants: Vec<Participant>,
}

pub(crate) async fn show(daemon: &mut Daemon, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let reply = Daemon::answer(&daemon.endpoint, daemon.service.status(v1::StatusRequest {})).await?;
    let status = Status::new(daemon.endpoint.clone(), reply);
    output.write(io, &status, || screen(&status, output))?;
    Ok(if status.attention.is_empty() { Exit::Ok } else { Exit::Attention })
}

fn screen(status: &Status, output: &Output) -> String {
    let tone = if status.phase == "serving" { Tone::Good } else { Tone::Bad };
    let after = |ms: Option<u64>| ms.map_or("not yet".to_owned(), |ms| format!("after {}", output::duration(ms)));
    let per_force = if status.forces > 0 { status.committed as f64 / status.forces as f64 } else { 0.0 };
    let in_doubt = match status.in_doubt {
        0 => "0 in doubt".to_owned(),
        n => format!("{n} in doubt, the oldest for {}", output::duration(status.oldest_in_doubt_ms)),
    };
    let lines = [
        ("phase", output.toned(&status.phase, tone)),
        ("daemon", format!("lockstepd {} at {}", status.version, status.endpoint)),
        ("coordinator", format!("{}, epoch {}", status.coord_id, status.epoch)),
        (
            "up",
            format!(
                "{}; serving {}, mended {}",
                output::duration(status.uptime_ms),
                after(status.serving_after_ms),
                after(status.mended_after_ms)
            ),
        ),
        ("transactions", format!("{} active, {} of them being decided; {in_doubt}", status.active, status.deciding)),
        (
            "since the start",
            format!("{} committed, {} aborted, {} forces ({per_force:.1} commits each)", status.committed, status.aborted, status.forces),
        ),
        ("log", format!("{}, {}, {} free", status.log_id, output::bytes(status.log_bytes), output::bytes(status.log_free_bytes))),
        ("stands at", format!("CSN {}, record {}", status.last_csn, status.last_lsn)),
        ("outcomes", format!("{} kept, back to {}", status.outcomes_kept, status.floor)),
        ("damage", status.damage.to_string()),
    ];
    let attention: String = status.attention.iter().map(|line| format!("{} {line}\n", output.toned("!", Tone::Bad))).collect();
    let stores = participants::table(output, &status.participants);
    format!("{}\n{stores}\n{}{attention}", output::list(&lines), if attention.is_empty() { "" } else { "\n" })
}

impl Status {
    fn new(endpoint: String, reply: v1::StatusReply) -> Status {
        let attention = attention(&reply);
        let floor = reply.floor.unwrap_or_default();
        let some = |ms: u64| (ms > 0).then_some(ms);
        Status {
            endpoint,
            phase: reply.phase,
            why: reply.why,
            attention,
            version: reply.version,
            coord_id: reply.coord_id,
            log_id: reply.log_id,
            epoch: reply.epoch,
            last_csn: Csn::from_u64(reply.last_csn),
            last_lsn: reply.last_lsn,
            floor: format!("{}-{}", floor.epoch, floor.n),
            outcomes_kept: reply.outcomes_kept,
            uptime_ms: reply.uptime_ms,
            serving_after_ms: some(reply.serving_after_ms),
            mended_after_ms: some(reply.mended_after_ms),
            active: reply.active,
            in_doubt: reply.in_doubt,
            deciding: reply.deciding,
            unanswered: reply.unanswered,
            oldest_in_doubt_ms: reply.oldest_in_doubt_ms,
            committed: reply.committed,
            aborted: reply.aborted,
            forces: reply.forces,
            log_bytes: reply.log_bytes,
            log_free_bytes: reply.log_free_bytes,
            log_full: reply.log_full,
            damage: reply.damage,
            participants: reply.participants.into_iter().map(Participant::from).collect(),
        }
    }
}

/// What needs a person, each with the next step.
fn attention(reply: &v1::StatusReply) -> Vec<String> {
    // A sentence is a line, whatever a store's message contains.
    let because = |why: &str| if why.is_empty() { String::new() } else { format!(": {}", why.replace('\n', " ")) };
    let mut lines = Vec::new();
    match reply.phase.as_str() {
        "serving" => {}
        "safe mode" => lines.push(format!("it is in safe mode{}; see `lockstep doctor`", because(&reply.why))),
        phase => lines.push(format!("it is {phase}{}; look again in a moment", because(&reply.why))),
    }
    if reply.paused {
        lines.push("new transactions are refused: a backup's servers are being copied; see whoever runs `lockstep backup`".into());
    }
    if reply.log_full {
        let free = output::bytes(reply.log_free_bytes);
        lines.push(format!(
            "new transactions are refused: {free} are free on the log's disk, less than the reserve (R-FULL); make room there"
        ));
    }
    for store in &reply.participants {
        let name = &store.name;
        if store.session != "up" {
            lines.push(format!("store `{name}` is {}{}; see `lockstep doctor`", store.session, because(&store.why)));
        }
        if store.stuck > 0 {
            lines.push(format!("{} decided writes are stuck at store `{name}`; see `lockstep tx list --participant {name}`", store.stuck));
        }
    }
    if reply.unanswered > 0 {
        lines.push(format!(
            "{} prepared branches wait for an answer that nobody can give yet; see `lockstep tx list --state in-doubt`",
            reply.unanswered
        ));
    }
    if reply.damage > 0 {
        lines.push(format!("{} entries of damage; see `lockstep damage list`", reply.damage));
    }
    lines
}
