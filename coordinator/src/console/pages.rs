//! The pages and their files, all inside this binary: a fixed table, so that no path leads anywhere else.

use super::Console;
use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use std::sync::Arc;

/// A page: where it is, what it is called, which script fills it.
const PAGES: [(&str, &str, &str); 7] = [
    ("/console", "Overview", "overview"),
    ("/console/", "Overview", "overview"),
    ("/console/transactions", "Transactions", "transactions"),
    ("/console/transactions/{txid}", "Transaction", "transaction"),
    ("/console/participants", "Participants", "participants"),
    ("/console/damage", "Damage", "damage"),
    ("/console/damage/{txid}", "Damage", "damage"),
];

const SHELL: &str = include_str!("assets/shell.html");
const SCRIPT: &str = "text/javascript; charset=utf-8";

const FILES: [(&str, &str, &str); 12] = [
    ("/console/assets/style.css", "text/css; charset=utf-8", include_str!("assets/style.css")),
    ("/console/assets/mark.svg", "image/svg+xml", include_str!("assets/mark.svg")),
    ("/console/assets/dom.js", SCRIPT, include_str!("assets/dom.js")),
    ("/console/assets/words.js", SCRIPT, include_str!("assets/words.js")),
    ("/console/assets/live.js", SCRIPT, include_str!("assets/live.js")),
    ("/console/assets/plots.js", SCRIPT, include_str!("assets/plots.js")),
    ("/console/assets/order.js", SCRIPT, include_str!("assets/order.js")),
    ("/console/assets/overview.js", SCRIPT, include_str!("assets/overview.js")),
    ("/console/assets/transactions.js", SCRIPT, include_str!("assets/transactions.js")),
    ("/console/assets/transaction.js", SCRIPT, include_str!("assets/transaction.js")),
    ("/console/assets/participants.js", SCRIPT, include_str!("assets/participants.js")),
    ("/console/assets/damage.js", SCRIPT, include_str!("assets/damage.js")),
];

/// All of them, and the way to the first.
pub(super) fn router() -> Router<Arc<Console>> {
    let mut router = Router::new().route("/", get(|| async { Redirect::temporary("/console/") }));
    for (path, title, script) in PAGES {
        // Fixed words only: what is known of transactions comes later, as text.
        let page: Arc<str> = SHELL.replace("TITLE", title).replace("SCRIPT", script).into();
        router = router.route(path, get(move || async move { file("text/html; charset=utf-8", page.to_string()) }));
    }
    for (path, kind, content) in FILES {
        router = router.route(path, get(move || async move { file(kind, content) }));
    }
    router
}

fn file(kind: &'static str, content: impl IntoResponse) -> Response {
    ([(header::CONTENT_TYPE, kind)], content).into_response()
}
