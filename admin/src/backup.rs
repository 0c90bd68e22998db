//! Backups: made by a daemon that goes on, put back with none.

use crate::daemon::{self, Daemon};
use crate::output::{self, Output};
use crate::{Exit, Failure, Io, orders};
use lockstep_client::Csn;
use lockstep_log::backup::{self, BackupError, Manifest, StoreCopy};
use lockstep_proto::v1;
use lockstep_proto::v1::backup_reply::Reply;
use lockstep_proto::v1::backup_request::Request;
use serde::Serialize;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;
use tokio_stream::wrappers::ReceiverStream;

/// A backup, as JSON shows it.
#[derive(Serialize)]
struct Made {
    folder: String,
    coord_id: String,
    log_id: String,
    epoch: u32,
    /// All that was decided up to here is in it.
    since_csn: Csn,
    /// The last decision in its log.
    last_csn: Csn,
    last_lsn: u64,
    stores: Vec<String>,
    /// To be restored by their own tools.
    servers: Vec<String>,
    files: u64,
    bytes: u64,
    elapsed_ms: u64,
}

/// A backup that was checked, or put back, as JSON shows it.
#[derive(Serialize)]
struct Restored {
    backup: String,
    /// Where it is now; absent if it was only checked.
    data_dir: Option<String>,
    made_at_ms: u64,
    coord_id: String,
    log_id: String,
    epoch: u32,
    since_csn: String,
    last_csn: String,
    stores: Vec<String>,
    /// Embedded stores that lay elsewhere, and where they are now.
    moved: Vec<Moved>,
    /// To be restored by their own tools.
    servers: Vec<String>,
    files: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct Moved {
    store: String,
    path: String,
}

/// Has a backup made; says when servers are to be backed up.
pub(crate) async fn make(
    folder: &Path,
    server_command: Option<&str>,
    daemon: &mut Daemon,
    output: &Output,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    if !folder.is_absolute() {
        return Err(Failure {
            exit: Exit::Usage,
            message: format!("{} is no absolute path", folder.display()),
            hint: "name a folder as the daemon sees it, for example /var/backups/lockstep/monday".into(),
        });
    }
    let (told, requests) = tokio::sync::mpsc::channel(2);
    let tell = |request| v1::BackupRequest { request: Some(request) };
    let gone = |_| Failure::failed("the daemon does not listen any more", "look at the daemon's own log");
    told.send(tell(Request::Folder(folder.display().to_string()))).await.map_err(gone)?;
    let mut replies = Daemon::answer(&daemon.endpoint, daemon.service.backup(ReceiverStream::new(requests))).await?;
    while let Some(reply) = replies.message().await.map_err(|status| daemon::failure(&daemon.endpoint, &status))? {
        match reply.reply {
            Some(Reply::Progress(sentence)) => writeln!(io.stderr, "lockstep: {sentence}")?,
            Some(Reply::Servers(servers)) => {
                back_up_servers(&servers, server_command, io)?;
                // If it does not listen any more, its answer says why.
                let _ = told.send(tell(Request::ServersDone(true))).await;
            }
            Some(Reply::Summary(summary)) => {
                let made = Made::from(summary);
                output.write(io, &made, || made.text())?;
                return Ok(Exit::Ok);
            }
            None => {}
        }
    }
    Err(Failure::failed("the daemon ended the backup without a word", "look at the daemon's own log"))
}

/// Now is the moment: what they hold when their copies end is in the log that is copied next, and what it lacks is kept until then.
fn back_up_servers(
    v1::BackupServers { servers, paused }: &v1::BackupServers,
    command: Option<&str>,
    io: &mut Io<'_>,
) -> Result<(), Failure> {
    let names: Vec<_> = servers.iter().map(|server| format!("`{}` ({}: {})", server.name, server.r#type, tool(&server.r#type))).collect();
    let leading: Vec<_> = servers.iter().filter(|server| server.leads).map(|server| format!("`{}`", server.name)).collect();
    let order = match leading.is_empty() || servers.len() == 1 {
        true => String::new(),
        false => format!(", one after the other in this order: what follows {} must hold nothing that its copy lacks", leading.join(", ")),
    };
    let meanwhile = match paused {
        true => "no new transaction is taken until then: a store that prepares can be given nothing that its copy lacks",
        false => "until then the log forgets nothing, and grows",
    };
    writeln!(io.stderr, "lockstep: back up now, from beginning to end, by their own tools: {}{order}; {meanwhile}", names.join(", "))?;
    io.stderr.flush()?;
    let Some(command) = command else {
        let hint = "type `done` when they are backed up, or give --server-command";
        return orders::confirm(io, "done", false).map_err(|failure| Failure { hint: hint.into(), ..failure });
    };
    let failed =
        |why: String| Failure::failed(format!("the servers were not backed up, so there is no backup: {why}"), "mend --server-command");
    let output = Command::new("sh").args(["-c", command]).output().map_err(|error| failed(format!("sh cannot be run: {error}")))?;
    io.stderr.write_all(&output.stdout)?;
    io.stderr.write_all(&output.stderr)?;
    if output.status.success() { Ok(()) } else { Err(failed(format!("`{command}` ended with {}", output.status))) }
}

fn tool(r#type: &str) -> &'static str {
    match r#type {
        "postgres" => "pg_basebackup or a snapshot of its disk; pg_dump leaves out what is prepared",
        "opensearch" => "its snapshots",
        _ => "its own",
    }
}

/// Puts a backup into an empty data folder.
pub(crate) fn restore(folder: &Path, data: &Path, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let at_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    writeln!(io.stderr, "lockstep: copying {} to {}, and checking every file", folder.display(), data.display())?;
    let restored = backup::restore(folder, data, at_ms).map_err(refused)?;
    let moved = restored.moved.into_iter().map(|(store, path)| Moved { store, path: path.display().to_string() }).collect();
    let shown = Restored::of(folder, restored.manifest, Some((data, restored.log_id)), moved);
    output.write(io, &shown, || shown.text())?;
    Ok(Exit::Ok)
}

/// Checks every file of a backup.
pub(crate) fn check(folder: &Path, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let manifest = backup::check(folder).map_err(refused)?;
    let shown = Restored::of(folder, manifest, None, Vec::new());
    output.write(io, &shown, || shown.text())?;
    Ok(Exit::Ok)
}

fn refused(error: BackupError) -> Failure {
    let message = error.to_string();
    let (exit, hint) = match error {
        BackupError::Unfit(_) => (Exit::Refused, "name a whole backup, and a data folder that is empty"),
        BackupError::Damaged(_) => (Exit::Attention, "use another backup: of this one nothing was put back"),
        BackupError::Newer(_) => (Exit::Refused, "use the `lockstep` of that version"),
        BackupError::Io(_) => (Exit::Failed, "look at the disk, and at who may read and write there; nothing was put back"),
        BackupError::Unfinished(_) => (Exit::Failed, "look at the disk; then empty the data folder, and restore again"),
    };
    Failure { exit, message, hint: hint.into() }
}

impl Made {
    fn text(&self) -> String {
        let lines = [
            ("backup", self.folder.clone()),
            ("log", format!("{} of coordinator {}, epoch {}, up to record {}", self.log_id, self.coord_id, self.epoch, self.last_lsn)),
            (
                "holds",
                format!("all that was decided up to CSN {}, and what was decided meanwhile, up to {}", self.since_csn, self.last_csn),
            ),
            ("stores", output::joined(&self.stores)),
            ("servers", output::joined(&self.servers)),
            ("size", format!("{} files, {}, in {}", self.files, output::bytes(self.bytes), output::duration(self.elapsed_ms))),
        ];
        format!("{}\nTo put it back: lockstep restore {} --data-dir DIR\n", output::list(&lines), self.folder)
    }
}

impl Restored {
    fn of(folder: &Path, manifest: Manifest, to: Option<(&Path, String)>, moved: Vec<Moved>) -> Restored {
        let names = |server: bool| {
            let named = manifest.stores.iter().filter(|store: &&StoreCopy| store.copy.is_none() == server);
            named.map(|store| store.name.clone()).collect()
        };
        let (data_dir, log_id) = match to {
            Some((data, log_id)) => (Some(data.display().to_string()), log_id),
            None => (None, manifest.log_id.clone()),
        };
        Restored {
            backup: folder.display().to_string(),
            data_dir,
            made_at_ms: manifest.made_at_ms,
            coord_id: manifest.coord_id.clone(),
            log_id,
            epoch: manifest.epoch,
            since_csn: manifest.since_csn.clone(),
            last_csn: manifest.last_csn.clone(),
            stores: names(false),
            moved,
            servers: names(true),
            files: manifest.files.len(),
            bytes: manifest.files.iter().map(|file| file.bytes).sum(),
        }
    }

    fn text(&self) -> String {
        let mut lines = vec![("backup", format!("{}, made at {}", self.backup, output::utc(self.made_at_ms)))];
        lines.push(match &self.data_dir {
            Some(data) => ("restored to", data.clone()),
            None => ("verdict", "whole: every file is what was written".into()),
        });
        lines.extend([
            ("log", format!("{} of coordinator {}, epoch {}", self.log_id, self.coord_id, self.epoch)),
            (
                "holds",
                format!("all that was decided up to CSN {}, and what was decided meanwhile, up to {}", self.since_csn, self.last_csn),
            ),
            ("stores", output::joined(&self.stores)),
            ("servers", output::joined(&self.servers)),
            ("size", format!("{} files, {}", self.files, output::bytes(self.bytes))),
        ]);
        let mut text = output::list(&lines);
        if self.data_dir.is_none() {
            return text;
        }
        let mut steps = Vec::new();
        for moved in &self.moved {
            steps.push(format!("Store `{}` lay outside of the data folder: set its `path`, or move {} there.", moved.store, moved.path));
        }
        if !self.servers.is_empty() {
            steps.push(format!(
                "Put back, by their own tools, what was backed up of {} with it. A server that is newer than this log is found out, and nothing is \
                 decided then (safe mode), but one that is newer than the leader that it follows is not; one that is older is refused.",
                output::joined(&self.servers)
            ));
        }
        steps.push("See to it that the daemon this was copied from does not run again: both would take the same servers over.".into());
        steps.push("Then start lockstepd on it. Tokens of its original count no more.".into());
        text.push('\n');
        text.extend(steps.iter().map(|step| output::wrapped(step, "  - ")));
        text
    }
}

impl From<v1::BackupSummary> for Made {
    fn from(summary: v1::BackupSummary) -> Made {
        Made {
            folder: summary.folder,
            coord_id: summary.coord_id,
            log_id: summary.log_id,
            epoch: summary.epoch,
            since_csn: Csn::from_u64(summary.since_csn),
            last_csn: Csn::from_u64(summary.last_csn),
            last_lsn: summary.last_lsn,
            stores: summary.stores,
            servers: summary.servers,
            files: summary.files,
            bytes: summary.bytes,
            elapsed_ms: summary.elapsed_ms,
        }
    }
}
