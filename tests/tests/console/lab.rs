//! A daemon with a console, and two stores in this process that vote and apply as they are told to.

use anyhow::Context;
use lockstep_client::{Client, Transaction, Wait, params};
use lockstep_core::{Ballot, Epoch, FromParticipant, Hello, Kind, Progress, ToParticipant, Vote};
use lockstep_proto::v1;
use lockstep_proto::v1::participant_service_client::ParticipantServiceClient;
use lockstep_tests::workload;
use lockstepd::demo::daemon::{Daemon, Launch};
use lockstepd::service::participant_messages::{from_participant_out, to_participant};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

const STORES: &str = "
[[store]]\ntype = \"sqlite\"\nname = \"db\"\n
[[store]]\ntype = \"remote\"\nname = \"ledger\"\nrole = \"database\"\nkind = \"preparing\"\n
[[store]]\ntype = \"remote\"\nname = \"index\"\nrole = \"index\"\nkind = \"redo\"\n";
/// Far above what anything here takes.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Why a store that is told not to apply says that it does not.
pub const WHY: &str = "the mapping does not take <b>this</b> field";

/// What a store in this process does.
pub struct Switches {
    pub votes: AtomicBool,
    pub applies: AtomicBool,
}

pub struct Lab {
    pub daemon: Daemon,
    pub client: Client,
    /// The console's address, without a path.
    pub console: String,
    pub index: Arc<Switches>,
    attending: Vec<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Lab {
    pub async fn start() -> anyhow::Result<Lab> {
        let folder = tempfile::tempdir()?;
        let configuration = folder.path().join("lockstepd.toml");
        let watched = format!("127.0.0.1:{}", lockstep_servers::free_port()?);
        let times = "[timeouts]\nprepare_ms = 60000\ntransaction_ms = 60000\n";
        std::fs::write(&configuration, format!("{STORES}\n{times}\n[http]\nlisten = \"{watched}\"\n"))?;
        let program = PathBuf::from(env!("CARGO_BIN_EXE_lockstepd-with-failpoints"));
        let arguments = vec!["--config".into(), configuration.display().to_string()];
        let daemon = Daemon::start(Launch { program, data_dir: folder.path().join("data"), arguments, environment: Vec::new() }).await?;
        daemon.wait_until_serving().await?;
        let switches = || Arc::new(Switches { votes: true.into(), applies: true.into() });
        let (ledger, index) = (switches(), switches());
        let stores = [("ledger", Kind::Preparing, &ledger), ("index", Kind::Redo, &index)];
        let attending = stores.map(|(name, kind, switches)| {
            let (switches, url) = (Arc::clone(switches), daemon.url());
            tokio::spawn(async move {
                // It ends with the daemon.
                let _ = attend(name, kind, &switches, &url).await;
            })
        });
        daemon.wait_until_ready().await?;
        let client = workload::connect(&daemon.url()).await?;
        workload::prepare(&client).await?;
        let console = format!("http://{watched}");
        Ok(Lab { daemon, client, console, index, attending: attending.into(), _folder: folder })
    }

    /// A statement at the ledger and a document at the index, as one. What it is told as soon as it is decided.
    pub fn transaction(&self, sql: &str, document: &str) -> Transaction {
        let transaction = self.client.transaction().sql("ledger", sql, params![]).put("index", document, &serde_json::json!({ "n": 1 }));
        transaction.wait(Wait::Decided).deadline(LIMIT)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.attending.iter().for_each(JoinHandle::abort);
    }
}

/// Of this principal: as long as a daemon asks for.
pub fn token(name: &str) -> String {
    format!("{name}-0123456789abcdef0123456789abcdef")
}

/// A daemon that lets in these principals alone, each with its role; the console's address.
pub async fn guarded(principals: &[(&str, &str)]) -> anyhow::Result<((Daemon, tempfile::TempDir), String)> {
    let folder = tempfile::tempdir()?;
    let address = format!("127.0.0.1:{}", lockstep_servers::free_port()?);
    let mut text = format!("[[store]]\ntype = \"sqlite\"\nname = \"db\"\n[http]\nlisten = \"{address}\"\n");
    for (name, role) in principals {
        let file = folder.path().join(name);
        std::fs::write(&file, token(name))?;
        text += &format!("[[principal]]\nname = \"{name}\"\nroles = [\"{role}\"]\ntoken_file = \"{}\"\n", file.display());
    }
    let configuration = folder.path().join("lockstepd.toml");
    std::fs::write(&configuration, text)?;
    let program = PathBuf::from(env!("CARGO_BIN_EXE_lockstepd-with-failpoints"));
    let arguments = vec!["--config".into(), configuration.display().to_string()];
    let daemon = Daemon::start(Launch { program, data_dir: folder.path().join("data"), arguments, environment: Vec::new() }).await?;
    Ok(((daemon, folder), address))
}

/// One session, until it ends.
async fn attend(name: &str, kind: Kind, switches: &Switches, url: &str) -> anyhow::Result<()> {
    let channel = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true).connect().await.context("cannot reach the daemon")?;
    let (frames, outgoing) = mpsc::channel(64);
    let attend = v1::Attend { name: name.into(), version: env!("CARGO_PKG_VERSION").into() };
    let first = v1::FromParticipantMessage { message: Some(v1::from_participant_message::Message::Attend(attend)) };
    frames.send(v1::FromParticipant { messages: vec![first] }).await?;
    let mut incoming = ParticipantServiceClient::new(channel).attend(ReceiverStream::new(outgoing)).await?.into_inner();
    while let Some(frame) = incoming.message().await? {
        let mut said = Vec::new();
        let mut ballot = Ballot::default();
        for message in frame.messages {
            match to_participant(message).map_err(anyhow::Error::msg)? {
                ToParticipant::Prepare(work) if switches.votes.load(Ordering::SeqCst) => ballot.votes.push((work.txid, yes(kind))),
                message => said.extend(answer(kind, switches.applies.load(Ordering::SeqCst), message)),
            }
        }
        if !ballot.votes.is_empty() {
            said.push(FromParticipant::Ballot(ballot));
        }
        if !said.is_empty() {
            frames.send(v1::FromParticipant { messages: said.iter().map(from_participant_out).collect() }).await?;
        }
    }
    Ok(())
}

fn yes(kind: Kind) -> Vote {
    match kind {
        Kind::Redo => Vote::Redo(b"redo".as_slice().into(), [].into()),
        _ => Vote::Prepared([].into()),
    }
}

fn answer(kind: Kind, applies: bool, message: ToParticipant) -> Vec<FromParticipant> {
    match (message, kind) {
        (ToParticipant::Welcome { owner, .. }, _) => vec![FromParticipant::Hello(hello(kind, owner.epoch))],
        (ToParticipant::Commit(decided), Kind::Preparing) if applies => decided.txids.into_iter().map(FromParticipant::Committed).collect(),
        (ToParticipant::Commit(decided), Kind::Redo) if !applies => vec![FromParticipant::Stuck(decided.csn, WHY.into())],
        (ToParticipant::Closed(csn), Kind::Redo) if applies => vec![FromParticipant::Progress(Progress { applied: csn, durable: csn })],
        (ToParticipant::Resolve { txid, commit }, _) => vec![FromParticipant::Resolved { txid, commit }],
        _ => Vec::new(),
    }
}

fn hello(kind: Kind, highest_epoch: Epoch) -> Hello {
    Hello { highest_epoch, ..Hello::of_nothing(kind) }
}
