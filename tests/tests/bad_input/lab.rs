//! A daemon, and everything that anybody was told by it.

use anyhow::Context;
use lockstep_client::{Client, CommitError};
use lockstep_proto::v1;
use lockstep_proto::v1::outcome::Outcome;
use lockstep_proto::v1::transaction_service_client::TransactionServiceClient;
use lockstep_tests::workload::{self, Size, Told};
use lockstepd::demo::daemon::{Daemon, Launch};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// How long anything may take that ends by itself. Far above what it does take.
pub const LIMIT: Duration = Duration::from_secs(30);
/// A few good transactions.
pub const FEW: Size = Size { clients: 4, transactions: 5, items: 3 };

/// Takes the largest frames that this kind of test sends.
pub const MESSAGE_BYTES: usize = 64 << 20;

/// A daemon with the workload's tables, and what its clients were told.
pub struct Lab {
    pub daemon: Daemon,
    pub client: Client,
    pub told: Vec<Told>,
    /// Counts the good transactions, for their names.
    pub good: usize,
}

impl Lab {
    /// On a new folder.
    pub async fn start(launch: Launch) -> anyhow::Result<Lab> {
        let daemon = Daemon::start(launch).await?;
        daemon.wait_until_serving().await?;
        let client = workload::connect(&daemon.url()).await?;
        workload::prepare(&client).await?;
        Ok(Lab { daemon, client, told: Vec::new(), good: 0 })
    }

    /// Some good transactions at once.
    pub async fn write(&mut self) -> anyhow::Result<()> {
        self.good += 1;
        self.told.extend(workload::run(&self.client, &format!("good{}", self.good), FEW).await?);
        Ok(())
    }

    /// One good transaction, which must be committed.
    pub async fn one_works(&mut self) -> anyhow::Result<()> {
        self.good += 1;
        let id = format!("one{}", self.good);
        let receipt = workload::insist(&self.client, workload::transaction(&self.client, &id, "item-0")).await?;
        let csn = receipt.map_err(anyhow::Error::msg).context("a good transaction")?.csn.to_u64();
        self.told.push(Told { id, item: "item-0".into(), outcome: Ok(csn) });
        Ok(())
    }

    /// Good transactions work, nothing is under way or damaged, and both stores hold what was told, and nothing else.
    pub async fn is_sound(&mut self) -> anyhow::Result<()> {
        let before = self.told.len();
        self.write().await?;
        for told in &self.told[before..] {
            anyhow::ensure!(told.outcome.is_ok(), "a good transaction was aborted: {told:?}");
        }
        let status = self.daemon.wait_for(LIMIT, |status| status.in_doubt == 0 && status.active == 0).await?;
        anyhow::ensure!(status.damage == 0, "I12: {} damages", status.damage);
        workload::check(&self.client, &self.told).await
    }

    /// Stops it as an operator would, and starts it again in another way.
    pub async fn restart(&mut self, launch: Launch) -> anyhow::Result<()> {
        if self.daemon.id().is_some() {
            self.daemon.stop().await?;
        }
        self.daemon.relaunch(launch).await?;
        self.daemon.wait_until_serving().await.map(drop)
    }

    /// Asks without the client library, which would refuse much of it by itself.
    pub async fn wire(&self) -> anyhow::Result<TransactionServiceClient<Channel>> {
        let channel = Endpoint::from_shared(self.daemon.url())?.connect().await?;
        Ok(TransactionServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES))
    }

    /// Keeps what the client library told of a workload's transaction, if it is definite.
    pub fn heard(&mut self, id: &str, item: &str, told: Result<u64, CommitError>) -> anyhow::Result<()> {
        let outcome = match told {
            Ok(csn) => Ok(csn),
            Err(CommitError::Aborted(aborted)) => Err(aborted.message),
            Err(error) => return Err(error.into()),
        };
        self.told.push(Told { id: id.into(), item: item.into(), outcome });
        Ok(())
    }

    /// Keeps what the wire told of a workload's transaction, if it is definite.
    pub fn heard_raw(&mut self, id: &str, item: &str, outcome: v1::Outcome) -> anyhow::Result<()> {
        let outcome = match outcome.outcome {
            Some(Outcome::Committed(committed)) => Ok(committed.csn),
            Some(Outcome::Aborted(aborted)) => Err(aborted.message),
            other => anyhow::bail!("{id}: {other:?} is not definite"),
        };
        self.told.push(Told { id: id.into(), item: item.into(), outcome });
        Ok(())
    }
}

/// On embedded stores in `folder/data`, with these keys of the configuration set.
pub fn launch(folder: &Path, settings: &[&str]) -> Launch {
    let arguments = settings.iter().flat_map(|setting| ["--set".to_string(), setting.to_string()]).collect();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_lockstepd-with-failpoints"));
    Launch { program, data_dir: folder.join("data"), arguments, environment: Vec::new() }
}

/// Arguments for a daemon whose stores lie in `data`, wherever its log is. The configuration is written into `folder`.
pub fn stores_at(folder: &Path, data: &Path) -> anyhow::Result<Vec<String>> {
    let store = |kind: &str, name: &str, path: &str| {
        format!("[[store]]\ntype = \"{kind}\"\nname = \"{name}\"\npath = \"{}\"\n", data.join(path).display())
    };
    let configuration = folder.join("lockstepd.toml");
    std::fs::write(&configuration, store("sqlite", "db", "db.sqlite") + &store("tantivy", "index", "index"))?;
    Ok(vec!["--config".into(), configuration.display().to_string()])
}

/// Tries to start a daemon that must refuse to: what it said, and how it ended.
pub async fn refusal(launch: Launch) -> anyhow::Result<String> {
    match Daemon::start(launch).await {
        Ok(_) => anyhow::bail!("it started"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// All of these words are in the sentence.
#[track_caller]
pub fn says(sentence: &str, words: &[&str]) {
    for word in words {
        assert!(sentence.contains(word), "`{word}` is missing in: {sentence}");
    }
}
