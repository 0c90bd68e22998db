//! A participant that does nothing: says Yes to everything and acks everything. What is left is the coordinator.

use crate::service::participant_messages::{from_participant_out, to_participant};
use anyhow::Context;
use clap::Args;
use lockstep_core::{Ballot, FromParticipant, Hello, Kind, Owner, Progress, ToParticipant, Vote};
use lockstep_proto::v1;
use lockstep_proto::v1::participant_service_client::ParticipantServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// Which participant, and where.
#[derive(Args, Clone, Debug)]
pub struct NoOpArgs {
    /// The daemon
    #[arg(long)]
    endpoint: String,
    /// Its configured name
    #[arg(long)]
    name: String,
    /// Acknowledge nothing that is decided
    #[arg(long)]
    silent: bool,
    /// Follow as an index, with a redo of so many bytes
    #[arg(long, value_name = "BYTES")]
    redo: Option<usize>,
}

/// Frames that wait to be sent.
const FRAMES: usize = 64;

/// Attends until the session ends.
pub async fn attend(arguments: &NoOpArgs) -> anyhow::Result<()> {
    let channel =
        Endpoint::from_shared(arguments.endpoint.clone())?.tcp_nodelay(true).connect().await.context("cannot reach the daemon")?;
    let (frames, outgoing) = mpsc::channel(FRAMES);
    let attend = v1::Attend { name: arguments.name.clone(), version: env!("CARGO_PKG_VERSION").into() };
    let first = v1::FromParticipantMessage { message: Some(v1::from_participant_message::Message::Attend(attend)) };
    frames.send(v1::FromParticipant { messages: vec![first] }).await?;
    let mut incoming = ParticipantServiceClient::new(channel).attend(ReceiverStream::new(outgoing)).await?.into_inner();
    while let Some(frame) = incoming.message().await? {
        let mut messages = Vec::new();
        let mut ballot = Ballot::default();
        for message in frame.messages {
            match to_participant(message).map_err(anyhow::Error::msg)? {
                ToParticipant::Welcome { owner, .. } => messages.push(hello(owner, arguments.kind())),
                ToParticipant::Prepare(work) => ballot.votes.push((work.txid, arguments.vote())),
                ToParticipant::Commit(_) | ToParticipant::Closed(_) if arguments.silent => {}
                ToParticipant::Commit(decided) if arguments.kind() == Kind::Preparing => {
                    messages.extend(decided.txids.into_iter().map(FromParticipant::Committed));
                }
                // All of them have come before this: nothing overtakes.
                ToParticipant::Closed(csn) if arguments.kind() == Kind::Redo => {
                    messages.push(FromParticipant::Progress(Progress { applied: csn, durable: csn }));
                }
                ToParticipant::Close => return Ok(()),
                ToParticipant::Reserve(_)
                | ToParticipant::Open
                | ToParticipant::Commit(_)
                | ToParticipant::Abort(_)
                | ToParticipant::Lead(_)
                | ToParticipant::Settle(_)
                | ToParticipant::Scan(_)
                | ToParticipant::Closed(_)
                | ToParticipant::Acked(_)
                | ToParticipant::Floor(_)
                | ToParticipant::Resolve { .. }
                | ToParticipant::Skip(_) => {}
            }
        }
        if !ballot.votes.is_empty() {
            messages.push(FromParticipant::Ballot(ballot));
        }
        if !messages.is_empty() {
            frames.send(v1::FromParticipant { messages: messages.iter().map(from_participant_out).collect() }).await?;
        }
    }
    Ok(())
}

impl NoOpArgs {
    fn kind(&self) -> Kind {
        if self.redo.is_some() { Kind::Redo } else { Kind::Preparing }
    }

    fn vote(&self) -> Vote {
        match self.redo {
            Some(bytes) => Vote::Redo(vec![0; bytes].into(), [].into()),
            None => Vote::Prepared([].into()),
        }
    }
}

fn hello(owner: Owner, kind: Kind) -> FromParticipant {
    FromParticipant::Hello(Hello { highest_epoch: owner.epoch, ..Hello::of_nothing(kind) })
}
