//! An index as a remote participant, in a process of its own that can be killed and stopped: Tantivy behind a session with the daemon.
//!
//! The process answers questions for documents on its standard streams, a line each, and ends when nobody can ask any more.

use super::clients::SeenAt;
use crate::remote_participant::RemoteParticipant;
use anyhow::Context;
use lockstep_participants::tantivy::{Tantivy, TantivyOptions};
use lockstep_participants::{Reader, ResourceManager};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

/// The word that the program takes before the endpoint and the folder.
pub const WORD: &str = "participant";
/// The store's name.
const NAME: &str = "index";
/// Between two tries to reach the daemon.
const AGAIN: Duration = Duration::from_millis(20);

/// How such a process is started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Where the daemon is reached.
    pub endpoint: String,
    /// The index.
    pub folder: PathBuf,
}

/// A running process, or one that has been killed.
pub struct Participant {
    launch: Launch,
    child: Child,
    questions: Arc<Questions>,
}

/// Its documents, from any task, as long as it answers.
pub struct Questions(Mutex<Option<Streams>>);

struct Streams {
    asks: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    asked: u64,
}

#[derive(Serialize, Deserialize)]
struct Question {
    number: u64,
    key: String,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    number: u64,
    got: Result<Option<SeenAt>, String>,
}

impl Participant {
    /// Starts it.
    pub async fn start(launch: Launch) -> anyhow::Result<Participant> {
        let questions = Arc::new(Questions(Mutex::default()));
        let child = spawn(&launch, &questions, None).await?;
        Ok(Participant { launch, child, questions })
    }

    /// Whom to ask for documents, also after it was started again.
    pub fn questions(&self) -> Arc<Questions> {
        Arc::clone(&self.questions)
    }

    /// Its process, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// `kill -9`; nothing of it runs afterwards. Gives back how it had ended before, if it had.
    pub async fn kill(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        if let Some(status) = self.ended()? {
            return Ok(Some(status));
        }
        self.child.kill().await.context("cannot kill the participant")?;
        Ok(None)
    }

    /// After its end: starts it again, with a place where it is to die.
    pub async fn relaunch(&mut self, place: Option<&str>) -> anyhow::Result<()> {
        self.child = spawn(&self.launch, &self.questions, place).await?;
        Ok(())
    }

    /// How it has ended, if it has within this time.
    pub async fn ended_within(&mut self, time: Duration) -> anyhow::Result<Option<ExitStatus>> {
        match tokio::time::timeout(time, self.child.wait()).await {
            Ok(status) => Ok(Some(status?)),
            Err(_) => Ok(None),
        }
    }
}

impl Questions {
    /// A document of the index.
    pub async fn get(&self, key: &str, timeout: Duration) -> Result<Option<SeenAt>, String> {
        tokio::time::timeout(timeout, self.ask(key)).await.map_err(|_| "the participant does not answer".to_string())?
    }

    async fn ask(&self, key: &str) -> Result<Option<SeenAt>, String> {
        let mut streams = self.0.lock().await;
        let streams = streams.as_mut().ok_or("the participant does not run")?;
        streams.asked += 1;
        let number = streams.asked;
        let line = serde_json::to_string(&Question { number, key: key.into() }).map_err(|error| error.to_string())? + "\n";
        streams.asks.write_all(line.as_bytes()).await.map_err(|error| error.to_string())?;
        loop {
            let line = streams.answers.next_line().await.map_err(|error| error.to_string())?.ok_or("the participant has ended")?;
            let answer: Answer = serde_json::from_str(&line).map_err(|error| format!("{line}: {error}"))?;
            // An older one is to somebody who has given up.
            if answer.number == number {
                return answer.got;
            }
        }
    }
}

async fn spawn(launch: &Launch, questions: &Questions, place: Option<&str>) -> anyhow::Result<Child> {
    let mut command = Command::new(&launch.program);
    command.arg(WORD).arg(&launch.endpoint).arg(&launch.folder);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    if let Some(place) = place {
        command.env("LOCKSTEP_FAILPOINT", format!("{place}:kill")).stderr(Stdio::null());
    }
    let mut child = command.spawn().context("cannot start the participant")?;
    let (asks, answers) = child.stdin.take().zip(child.stdout.take()).context("its streams are pipes")?;
    *questions.0.lock().await = Some(Streams { asks, answers: BufReader::new(answers).lines(), asked: 0 });
    Ok(child)
}

/// The process itself: `ENDPOINT FOLDER`.
pub fn run(words: impl Iterator<Item = OsString>) -> ExitCode {
    match attend(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("participant: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn attend(mut words: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let (endpoint, folder) = words.next().zip(words.next()).context("an endpoint and a folder")?;
    let endpoint = endpoint.into_string().ok().context("the endpoint is no text")?;
    let store = Tantivy::open(TantivyOptions::new(PathBuf::from(folder)))?;
    let reader = store.reader();
    let remote = RemoteParticipant::start(NAME, fragile(Box::new(store)))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.spawn(async move {
        loop {
            // Its end is the daemon's, or the network's.
            let _ = remote.attend(&endpoint).await;
            tokio::time::sleep(AGAIN).await;
        }
    });
    answer(reader.as_ref())
}

fn answer(reader: &dyn Reader) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let Question { number, key } = serde_json::from_str(&line?)?;
        let got = reader.get(&key).map_err(|error| error.to_string());
        let got = got.map(|found| found.map(|document| SeenAt { csn: document.csn.to_u64(), text: document.document }));
        writeln!(out, "{}", serde_json::to_string(&Answer { number, got })?)?;
    }
    Ok(())
}

#[cfg(any(debug_assertions, feature = "failpoints"))]
fn fragile(store: Box<dyn ResourceManager>) -> Box<dyn ResourceManager> {
    Box::new(lockstepd::fragile_store::FragileStore::new(NAME, store))
}

#[cfg(not(any(debug_assertions, feature = "failpoints")))]
fn fragile(store: Box<dyn ResourceManager>) -> Box<dyn ResourceManager> {
    store
}
