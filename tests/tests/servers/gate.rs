//! A remote participant that keeps all its votes back until it is told to give them, all in one message.

use lockstep_core::{Ballot, FromParticipant, Hello, Kind, ToParticipant, Txid, Vote};
use lockstep_proto::v1;
use lockstep_proto::v1::participant_service_client::ParticipantServiceClient;
use lockstepd::service::participant_messages::{from_participant_out, to_participant};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// How often it dials a daemon that is not there.
const DIAL: Duration = Duration::from_millis(5);

/// A preparing store that is asked last; configured as [`Gate::CONFIGURATION`].
#[derive(Default)]
pub struct Gate {
    asked: Mutex<Vec<Txid>>,
    /// Those that it has said Yes to and not heard the outcome of.
    prepared: Mutex<BTreeSet<Txid>>,
    arrived: Notify,
    released: Notify,
}

impl Gate {
    pub const CONFIGURATION: &str = "[[store]]\ntype = \"remote\"\nname = \"gate\"\nrole = \"database\"\nkind = \"preparing\"\n";

    /// Attends at the daemon, again and again, until the test ends.
    pub fn attend(endpoint: String) -> Arc<Gate> {
        let gate = Arc::new(Gate::default());
        let attending = gate.clone();
        tokio::spawn(async move {
            loop {
                // Its end is what the test is about.
                let _ = attending.session(&endpoint).await;
                tokio::time::sleep(DIAL).await;
            }
        });
        gate
    }

    /// Waits until so many wait for their vote.
    pub async fn wait_for(&self, many: usize) {
        while self.asked.lock().expect("no holder panics").len() < many {
            self.arrived.notified().await;
        }
    }

    /// Says Yes to all that wait, in one message.
    pub fn release(&self) {
        self.released.notify_one();
    }

    async fn session(&self, endpoint: &str) -> anyhow::Result<()> {
        let channel = Endpoint::from_shared(endpoint.to_string())?.tcp_nodelay(true).connect().await?;
        let (frames, outgoing) = mpsc::channel(64);
        let attend = v1::Attend { name: "gate".into(), version: "test".into() };
        let first = v1::FromParticipantMessage { message: Some(v1::from_participant_message::Message::Attend(attend)) };
        frames.send(v1::FromParticipant { messages: vec![first] }).await?;
        let mut incoming = ParticipantServiceClient::new(channel).attend(ReceiverStream::new(outgoing)).await?.into_inner();
        self.asked.lock().expect("no holder panics").clear();
        loop {
            let said = tokio::select! {
                frame = incoming.message() => match frame? {
                    Some(frame) => self.hear(frame)?,
                    None => return Ok(()),
                },
                () = self.released.notified() => {
                    let votes = std::mem::take(&mut *self.asked.lock().expect("no holder panics"));
                    self.prepared.lock().expect("no holder panics").extend(votes.iter().copied());
                    let votes = votes.into_iter().map(|txid| (txid, Vote::Prepared([].into()))).collect();
                    vec![FromParticipant::Ballot(Ballot { votes, ..Ballot::default() })]
                }
            };
            if !said.is_empty() {
                frames.send(v1::FromParticipant { messages: said.iter().map(from_participant_out).collect() }).await?;
            }
        }
    }

    fn hear(&self, frame: v1::ToParticipant) -> anyhow::Result<Vec<FromParticipant>> {
        let mut said = Vec::new();
        let mut prepared = self.prepared.lock().expect("no holder panics");
        for message in frame.messages {
            match to_participant(message).map_err(anyhow::Error::msg)? {
                ToParticipant::Welcome { owner, .. } => said.push(FromParticipant::Hello(Hello {
                    prepared: prepared.iter().copied().collect(),
                    highest_epoch: owner.epoch,
                    ..Hello::of_nothing(Kind::Preparing)
                })),
                ToParticipant::Prepare(work) => self.asked.lock().expect("no holder panics").push(work.txid),
                ToParticipant::Commit(decided) => {
                    for txid in decided.txids {
                        prepared.remove(&txid);
                        said.push(FromParticipant::Committed(txid));
                    }
                }
                ToParticipant::Abort(txid) => drop(prepared.remove(&txid)),
                _ => {}
            }
        }
        self.arrived.notify_one();
        Ok(said)
    }
}
