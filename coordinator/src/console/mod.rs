//! The console: pages for whoever is on call, in a browser. They show what the command line shows, in the same words, and take the same
//! orders behind the same guard rails. Everything they need is inside this binary.
//!
//! A route stands in one of three groups: pages (nothing but fixed files), what a viewer may ask, and what an operator may order.
//! [`access`] decides who is let into the last two.

mod access;
mod api;
mod json;
mod live;
mod pages;
#[cfg(test)]
mod tests;

use crate::configuration::Configuration;
use crate::engine_handle::EngineHandle;
use crate::meters::Meters;
use crate::security::Security;
use crate::service;
use crate::service::admin::Admin;
use access::{Gate, Right};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use std::sync::Arc;

/// One request of the console with its body, bytes, at most.
const BODY_BYTES: usize = 64 * 1024;

/// What the routes share.
struct Console {
    admin: Admin,
    live: live::Live,
    gate: Gate,
    security: Arc<Security>,
}

/// The console's routes. Its memory of the past minutes begins here, and is kept up until `router` and all clones are dropped.
pub fn router(engine: EngineHandle, meters: Meters, configuration: &Arc<Configuration>, security: &Arc<Security>) -> Router {
    let console = Arc::new(Console {
        live: live::Live::start(engine.clone(), meters),
        admin: service::admin(engine, Arc::clone(configuration), Arc::clone(security)),
        gate: Gate::new(configuration.http.hosts.clone()),
        security: Arc::clone(security),
    });
    let let_in = |right| from_fn_with_state((Arc::clone(&console), right), access::let_in);
    let asked = Router::new()
        .route("/console/api/session", get(api::session))
        .route("/console/api/live", get(live::events))
        .route("/console/api/doctor", get(api::doctor))
        .route("/console/api/transactions", get(api::transactions))
        .route("/console/api/transactions/{txid}", get(api::transaction))
        .route("/console/api/participants", get(api::participants))
        .route("/console/api/damage", get(api::damage))
        .route("/console/api/plan", get(api::plan))
        .route_layer(let_in(Right::View));
    let ordered = Router::new().route("/console/api/order", post(api::order)).route_layer(let_in(Right::Operate));
    let by_name = from_fn_with_state(Arc::clone(&console), access::by_our_name);
    let all = Router::new().merge(pages::router()).merge(asked).merge(ordered);
    all.layer(DefaultBodyLimit::max(BODY_BYTES)).layer(by_name).layer(from_fn(access::sealed)).with_state(console)
}
