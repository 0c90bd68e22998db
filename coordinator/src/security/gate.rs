//! Before every gRPC service: who calls, whether it may, and whether it has had its share.

use super::access::{self, Access};
use super::{Caller, Peer, Security};
use crate::engine_handle::EngineHandle;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::codegen::http::header::AUTHORIZATION;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::field::display;
use tracing::warn;

/// Puts the gate before a service.
#[derive(Clone)]
pub struct Gate {
    /// Who may do what.
    pub security: Arc<Security>,
    /// Where refused orders are noted.
    pub engine: EngineHandle,
}

/// A service behind the gate.
#[derive(Clone)]
pub struct Guarded<S> {
    gate: Gate,
    inner: S,
}

impl<S> Layer<S> for Gate {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { gate: self.clone(), inner }
    }
}

impl<S, In, Out> Service<Request<In>> for Guarded<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    Out: Default + Send + 'static,
{
    type Response = Response<Out>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Out>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<In>) -> Self::Future {
        match self.gate.pass(&request) {
            Ok(caller) => {
                // What is behind the gate has no use for it, and might write it down.
                request.headers_mut().remove(AUTHORIZATION);
                request.extensions_mut().insert(caller);
                Box::pin(self.inner.call(request))
            }
            Err(status) => Box::pin(ready(Ok(status.into_http()))),
        }
    }
}

impl Gate {
    fn pass<In>(&self, request: &Request<In>) -> Result<Caller, Status> {
        let (path, peer) = (request.uri().path(), request.extensions().get::<Peer>());
        let passed = self.judge(path, peer, request.headers().get(AUTHORIZATION).map(|value| value.as_bytes()));
        if let Err(status) = &passed
            && status.code() != Code::Unimplemented
            && self.security.may_shout()
        {
            let (peer, path): (_, String) = (peer.map(|peer| display(peer.origin)), path.chars().take(100).collect());
            warn!(peer, path, why = status.message(), "a request is refused");
        }
        passed
    }

    fn judge(&self, path: &str, peer: Option<&Peer>, authorization: Option<&[u8]>) -> Result<Caller, Status> {
        let caller = self.security.admit(peer, authorization)?;
        match access::of(path) {
            Some(Access::Anyone) => {}
            Some(Access::Needs(role)) => {
                if let Err(status) = self.security.allows(&caller, caller.account(), role) {
                    if access::is_audited(path) {
                        self.engine.note_refusal(&caller, path.rsplit('/').next().unwrap_or_default(), status.message());
                    }
                    return Err(status);
                }
            }
            None if self.security.asks() => return Err(Status::unimplemented("there is no such method")),
            None => {}
        }
        if access::is_client_request(path) {
            caller.count().map_err(Status::resource_exhausted)?;
        }
        Ok(caller)
    }
}
