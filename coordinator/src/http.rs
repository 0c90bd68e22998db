//! Plain HTTP: `/metrics`, `/livez`, `/readyz` for machines that watch, the console for people. Off unless configured (`[http] listen`).

use crate::configuration::Configuration;
use crate::console;
use crate::engine_handle::{EngineHandle, Phase, Question};
use crate::exposition;
use crate::meters::Meters;
use crate::security::{Security, pages};
use crate::service;
use crate::service::admin::Admin;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use lockstep_proto::v1::StatusRequest;
use lockstep_proto::v1::admin_service_server::AdminService;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::Request;

/// How long the engine may take to say how it is: it is busy for longer only if something is wrong.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until `ended` is over. Requests under way are answered.
pub async fn serve(
    engine: EngineHandle,
    meters: Meters,
    configuration: Arc<Configuration>,
    security: Arc<Security>,
    listener: TcpListener,
    ended: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let admin = Arc::new(service::admin(engine.clone(), Arc::clone(&configuration), Arc::clone(&security)));
    let mut router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .with_state(Watched { engine: engine.clone(), admin, meters: meters.clone() });
    if configuration.http.console {
        router = router.merge(console::router(engine.clone(), meters, &configuration, &security));
    }
    pages::serve(router, security, engine, configuration.limits.connections, listener, ended).await
}

#[derive(Clone)]
struct Watched {
    engine: EngineHandle,
    admin: Arc<Admin>,
    meters: Meters,
}

async fn metrics(State(watched): State<Watched>) -> Response {
    match tokio::time::timeout(PATIENCE, watched.admin.status(Request::new(StatusRequest {}))).await {
        Ok(Ok(status)) => {
            ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], exposition::text(status.get_ref(), &watched.meters)).into_response()
        }
        Ok(Err(gone)) => unavailable(gone.message()),
        Err(_) => unavailable(&format!("the engine has not answered for {PATIENCE:?}")),
    }
}

/// Restart the process if this is not 200.
async fn live(State(watched): State<Watched>) -> Response {
    match tokio::time::timeout(PATIENCE, watched.engine.ask(Question::Status)).await {
        Ok(_) => "alive\n".into_response(),
        Err(_) => unavailable(&format!("the engine has not answered for {PATIENCE:?}")),
    }
}

/// Send it transactions only if this is 200.
async fn ready(State(watched): State<Watched>) -> Response {
    let phase = watched.engine.phase().borrow().clone();
    match phase {
        Phase::Serving => "serving\n".into_response(),
        Phase::Starting => unavailable("starting: the log is read, or stores are waited for"),
        Phase::SafeMode(why) => unavailable(&format!("safe mode: {why}")),
        Phase::Stopping => unavailable("stopping"),
    }
}

fn unavailable(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine_handle::{Access, EngineMessage, HandleParts, Identity, Registered, Registry};
    use lockstep_core::{CoordId, Epoch, Kind, LogId, ParticipantId, Position, Role};
    use lockstep_participants::{PoolUse, Reader};
    use lockstep_proto::v1::{ParticipantStatus, StatusReply};
    use std::sync::mpsc::Receiver;
    use tokio::sync::oneshot;

    /// What the store `db` alone can tell.
    struct Counted;

    impl Reader for Counted {
        fn forces(&self) -> u64 {
            3
        }

        fn pools(&self) -> Vec<PoolUse> {
            vec![PoolUse { name: "readers", limit: 4, open: 2, lent: 1, waiting: 6 }]
        }
    }

    fn engine() -> (EngineHandle, Receiver<EngineMessage>) {
        let (id, name, store_type) = (ParticipantId(0), "db".into(), "sqlite");
        EngineHandle::new(HandleParts {
            registry: Registry::new(vec![Registered { id, name, store_type, role: Role::Database, kind: Kind::Serial }]),
            queue_events: 1,
            identity: Identity { coord_id: CoordId(1), log_id: LogId(1) },
            position: Position { epoch: Epoch(1), n: 0 },
            before: lockstep_core::Csn::ZERO,
        })
    }

    async fn get(url: &str) -> (u16, String) {
        let url = url.to_owned();
        let asked = tokio::task::spawn_blocking(move || {
            let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
            let mut answer = agent.get(&url).call().expect("an answer");
            (answer.status().as_u16(), answer.body_mut().read_to_string().expect("a text"))
        });
        asked.await.expect("the request")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn probes_and_metrics_say_what_the_engine_says() {
        let (handle, messages) = engine();
        let (participant, reader) = (ParticipantId(0), Arc::new(Counted));
        handle.install(vec![Access { participant, reader, applications: None, migrate: Box::new(|_, _| {}) }]);
        std::thread::spawn(move || {
            for message in messages {
                if let EngineMessage::Ask(Question::Status(answer)) = message {
                    let participants = vec![ParticipantStatus { name: "db".into(), ..ParticipantStatus::default() }];
                    let _ = answer.send(StatusReply { committed: 5, participants, ..StatusReply::default() });
                }
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (end, ended) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(handle.clone(), Meters::default(), Arc::default(), Security::none(), listener, async {
            let _ = ended.await;
        }));

        assert_eq!(get(&format!("{url}/readyz")).await.0, 503, "it is starting");
        assert_eq!(get(&format!("{url}/livez")).await, (200, "alive\n".into()));
        let (status, text) = get(&format!("{url}/metrics")).await;
        assert_eq!(status, 200);
        for line in [
            "lockstep_transactions_total{outcome=\"committed\"} 5",
            "lockstep_store_forces_total{store=\"db\",type=\"\",kind=\"\"} 3",
            "lockstep_store_pool_waiting{store=\"db\",pool=\"readers\"} 6",
        ] {
            assert!(text.lines().any(|found| found == line), "`{line}` is not among:\n{text}");
        }

        handle.shared().publish_phase(Phase::Serving);
        assert_eq!(get(&format!("{url}/readyz")).await, (200, "serving\n".into()));
        handle.shared().publish_phase(Phase::SafeMode("the log lost a record".into()));
        assert_eq!(get(&format!("{url}/readyz")).await, (503, "safe mode: the log lost a record\n".into()));
        assert_eq!(get(&format!("{url}/etc/passwd")).await.0, 404);
        drop(end);
        server.await.unwrap().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_engine_that_is_gone_gives_no_metrics() {
        let (handle, messages) = engine();
        drop(messages);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/metrics", listener.local_addr().unwrap());
        tokio::spawn(serve(handle, Meters::default(), Arc::default(), Security::none(), listener, std::future::pending()));
        assert_eq!(get(&url).await, (503, "the daemon is stopping\n".into()));
    }
}
