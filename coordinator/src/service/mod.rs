//! gRPC: what clients, operators and remote participants reach.

pub mod admin;
mod backup;
mod hash;
mod lead;
pub mod participant_messages;
mod participants;
mod stream;
#[cfg(test)]
mod tests;
mod transactions;
pub mod translate;
mod verify;

pub use participants::PARTICIPANT_FRAME_BYTES;

use crate::configuration::Configuration;
use crate::engine_handle::{EngineGone, EngineHandle, Phase, Registered};
use crate::security::Security;
use crate::security::connections::{self, Listener};
use crate::security::gate::Gate;
use lockstep_proto::v1::admin_service_server::AdminServiceServer;
use lockstep_proto::v1::participant_service_server::ParticipantServiceServer;
use lockstep_proto::v1::transaction_service_server::TransactionServiceServer;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{RwLock, Semaphore, oneshot, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// How long open connections may take to close after the engine has ended.
const GRACE: Duration = Duration::from_millis(500);
/// All headers of one request, bytes.
const HEADER_BYTES: u32 = 16 << 10;

/// What every service needs.
#[derive(Clone)]
struct Context {
    engine: EngineHandle,
    configuration: Arc<Configuration>,
    security: Arc<Security>,
    streams: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    /// A read of the log holds all of it in memory.
    log_reads: Arc<Semaphore>,
    /// One of each store at a time.
    examinations: Arc<HashMap<Arc<str>, Arc<Semaphore>>>,
    verifications: Arc<Semaphore>,
    backups: Arc<Semaphore>,
    /// Read by each migration, written by a backup: its copies and its log have to be of the same schemas.
    schemas: Arc<RwLock<()>>,
}

/// Serves until `ended` is over and the connections are closed, or its own grace has passed. Health says *serving* only while the
/// engine does.
pub async fn serve(
    engine: EngineHandle,
    configuration: Arc<Configuration>,
    security: Arc<Security>,
    listener: TcpListener,
    socket: Option<UnixListener>,
    ended: impl Future<Output = ()> + Send + 'static,
) -> Result<(), tonic::transport::Error> {
    let limits = &configuration.limits;
    let context = Context::new(engine.clone(), Arc::clone(&configuration), Arc::clone(&security));
    let (reporter, health) = tonic_health::server::health_reporter();
    let watcher = tokio::spawn(report_health(engine.phase(), reporter));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(lockstep_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors were compiled into this program");
    let transactions = TransactionServiceServer::new(transactions::Transactions(context.clone()))
        .max_decoding_message_size(limits.frame_bytes)
        .max_encoding_message_size(usize::MAX);
    let participants = ParticipantServiceServer::new(participants::Participants(context.clone()))
        .max_decoding_message_size(limits.participant_frame_bytes)
        .max_encoding_message_size(limits.participant_frame_bytes);
    let listeners = [Some(Listener::Port(listener)), socket.map(Listener::Socket)].into_iter().flatten();
    let incoming = connections::take(listeners, &security, limits.connections);
    let gate = Gate { security, engine };
    let (closing, closed) = oneshot::channel();
    let ended = async {
        ended.await;
        let _ = closing.send(());
    };
    let server = Server::builder()
        // Finds peers that are gone without a word; their streams end, their transactions go on.
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .initial_stream_window_size(Some(1 << 20))
        .initial_connection_window_size(Some(4 << 20))
        .max_concurrent_streams(Some(limits.streams as u32))
        .http2_max_header_list_size(Some(HEADER_BYTES))
        .layer(gate)
        .add_service(health)
        .add_service(reflection)
        .add_service(transactions)
        .add_service(participants)
        .add_service(AdminServiceServer::new(admin::Admin(context)))
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming).map(Ok::<_, std::io::Error>), ended);
    // Long-lived streams would keep a graceful server for ever.
    let grace = async {
        let _ = closed.await;
        tokio::time::sleep(GRACE).await;
    };
    let served = tokio::select! {
        served = server => served,
        () = grace => Ok(()),
    };
    watcher.abort();
    served
}

/// What operators may ask and order, for callers in this process.
pub fn admin(engine: EngineHandle, configuration: Arc<Configuration>, security: Arc<Security>) -> admin::Admin {
    admin::Admin(Context::new(engine, configuration, security))
}

impl Context {
    fn new(engine: EngineHandle, configuration: Arc<Configuration>, security: Arc<Security>) -> Context {
        let limits = &configuration.limits;
        let examination = |store: &Registered| (Arc::clone(&store.name), Arc::new(Semaphore::new(1)));
        Context {
            examinations: Arc::new(engine.names().all().iter().map(examination).collect()),
            engine,
            streams: Arc::new(Semaphore::new(limits.streams)),
            reads: Arc::new(Semaphore::new(limits.reads)),
            log_reads: Arc::new(Semaphore::new(1)),
            verifications: verify::runs(),
            backups: Arc::new(Semaphore::new(1)),
            schemas: Arc::default(),
            configuration,
            security,
        }
    }
}

async fn report_health(mut phase: watch::Receiver<Phase>, reporter: HealthReporter) {
    loop {
        let status = match *phase.borrow_and_update() {
            Phase::Serving => ServingStatus::Serving,
            Phase::Starting | Phase::SafeMode(_) | Phase::Stopping => ServingStatus::NotServing,
        };
        for service in ["", "lockstep.v1.TransactionService"] {
            reporter.set_service_status(service, status).await;
        }
        if phase.changed().await.is_err() {
            return;
        }
    }
}

impl From<EngineGone> for Status {
    fn from(gone: EngineGone) -> Status {
        Status::unavailable(gone.to_string())
    }
}
