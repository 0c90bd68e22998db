//! Plain HTTP: the same connections and the same proofs. A browser asks for the token by itself, as a password (basic authentication).

use super::caller::Origin;
use super::connections::{self, Connection, Listener};
use super::{Caller, Peer, Role, Security};
use crate::connections::Bounded;
use crate::engine_handle::EngineHandle;
use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::Code;

/// What probes may ask on loopback without saying who they are.
const PROBES: [&str; 2] = ["/livez", "/readyz"];

/// Serves the pages until `ended` is over: to read takes a viewer, to change anything an operator. Handlers find the [`Caller`] in the
/// request's extensions.
pub async fn serve(
    router: Router,
    security: Arc<Security>,
    engine: EngineHandle,
    most: usize,
    listener: TcpListener,
    ended: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    let doors = Doors { connections: connections::take([Listener::Port(listener)], &security, most), address };
    let router = router.layer(from_fn_with_state((security, engine), guard));
    axum::serve(Bounded::new(doors), router.into_make_service_with_connect_info::<Peer>()).with_graceful_shutdown(ended).await
}

async fn guard(
    State((security, engine)): State<(Arc<Security>, EngineHandle)>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let open = PROBES.contains(&request.uri().path()) && peer.origin.is_this_machine();
    match judge(&security, &engine, &peer, &request) {
        Ok(caller) => {
            request.headers_mut().remove(header::AUTHORIZATION);
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(_) if open && security.asks() => next.run(request).await,
        Err(refused) => refused,
    }
}

/// By which name, and port, this daemon was called: over HTTP/2 `:authority` stands for `Host`.
pub fn called(request: &Request) -> Option<&str> {
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    host.or_else(|| request.uri().authority().map(Authority::as_str))
}

/// Whether a page of another site sent it: a browser would add our own proof by itself.
fn is_of_another_site(request: &Request) -> bool {
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let elsewhere = text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"));
    let origin = text("origin").map(|origin| origin.split_once("://").map_or(origin, |(_, authority)| authority));
    elsewhere || origin.is_some_and(|origin| called(request) != Some(origin))
}

fn judge(security: &Arc<Security>, engine: &EngineHandle, peer: &Peer, request: &Request) -> Result<Caller, Response> {
    let role = match *request.method() {
        Method::GET | Method::HEAD => Role::Viewer,
        _ => Role::Operator,
    };
    if role == Role::Operator && is_of_another_site(request) {
        return Err((StatusCode::FORBIDDEN, "this was sent by a page of another site\n").into_response());
    }
    let header = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let allowed = |caller: Caller| match security.allows(&caller, caller.account(), role) {
        Ok(()) => Ok(caller),
        Err(refused) => {
            if role == Role::Operator {
                engine.note_refusal(&caller, request.uri().path(), refused.message());
            }
            Err(refused)
        }
    };
    let admitted = security.admit(Some(peer), header).and_then(allowed);
    admitted.map_err(|status| {
        let text = format!("{}\n", status.message());
        match status.code() {
            Code::Unauthenticated => {
                (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"lockstep\", charset=\"UTF-8\"")], text)
                    .into_response()
            }
            _ => (StatusCode::FORBIDDEN, text).into_response(),
        }
    })
}

struct Doors {
    connections: mpsc::Receiver<Connection>,
    address: SocketAddr,
}

impl axum::serve::Listener for Doors {
    type Io = Connection;
    type Addr = Peer;

    async fn accept(&mut self) -> (Connection, Peer) {
        match self.connections.recv().await {
            Some(connection) => {
                let peer = connection.peer().clone();
                (connection, peer)
            }
            // Nobody takes connections any more: the runtime ends.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer { origin: Origin::Network(self.address), certificate: None, proven: Arc::default() })
    }
}

impl axum::extract::connect_info::Connected<IncomingStream<'_, Bounded<Doors>>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded<Doors>>) -> Peer {
        stream.remote_addr().clone()
    }
}
