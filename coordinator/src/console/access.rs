//! Who is let in, and what a browser may do with what it gets.
//!
//! A page of somebody else's, in the same browser, can send requests here. It gets nothing: our answers carry no permission to read them
//! across origins; a name that is not ours (DNS rebinding) is refused; what is posted needs our own origin, JSON, and a token that only a
//! page of ours can have read.

use super::Console;
use super::api::Failure;
use crate::security::{Caller, Role, pages};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use std::sync::Arc;

/// What a route asks of whoever calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// To look.
    View,
    /// To give orders.
    Operate,
}

/// What has to be shown at the door.
pub(super) struct Gate {
    hosts: Vec<String>,
    /// Goes to our own pages, and back with each POST. Another one at each start.
    token: String,
}

impl Gate {
    pub(super) fn new(hosts: Vec<String>) -> Gate {
        Gate { hosts, token: uuid::Uuid::new_v4().simple().to_string() }
    }

    pub(super) fn token(&self) -> &str {
        &self.token
    }

    fn named(&self, request: &Request) -> Result<(), Failure> {
        let name = without_port(pages::called(request).unwrap_or_default());
        let loopback = name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        match loopback || self.hosts.iter().any(|host| host.eq_ignore_ascii_case(name)) {
            true => Ok(()),
            false => Err(Failure::new(
                StatusCode::MISDIRECTED_REQUEST,
                format!("this console does not answer to the name `{name}`: http.hosts is to name it, if it is a proxy's"),
            )),
        }
    }

    /// It comes from a page of ours.
    fn of_our_own(&self, request: &Request) -> Result<(), Failure> {
        let refused = |why: &str| Err(Failure::new(StatusCode::FORBIDDEN, why.into()));
        let text = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
        let authority = text(header::ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
        if authority.is_none() || authority.map(str::to_ascii_lowercase) != pages::called(request).map(str::to_ascii_lowercase) {
            return refused("Origin is not this console's own: orders from elsewhere are given with `lockstep`");
        }
        if text(HeaderName::from_static("sec-fetch-site")).is_some_and(|site| site != "same-origin") {
            return refused("Sec-Fetch-Site is not same-origin");
        }
        match text(header::CONTENT_TYPE).map(|kind| kind.split(';').next().unwrap_or_default().trim()) {
            Some("application/json") => {}
            _ => return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type is not application/json".into())),
        }
        match text(HeaderName::from_static("x-lockstep-token")).is_some_and(|token| same(token.as_bytes(), self.token.as_bytes())) {
            true => Ok(()),
            false => refused("X-Lockstep-Token is not this start's: load the page again"),
        }
    }
}

/// Who has the right for this route; POST comes from our own pages only. Who calls was found out before (`security::pages`).
pub(super) async fn let_in(State((console, right)): State<(Arc<Console>, Right)>, request: Request, next: Next) -> Response {
    match console.admit(&request, right) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}

impl Console {
    fn admit(&self, request: &Request, right: Right) -> Result<(), Failure> {
        let nobody = || Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "a request came past the gate".into());
        let caller = request.extensions().get::<Caller>().ok_or_else(nobody)?;
        let role = match right {
            Right::View => Role::Viewer,
            Right::Operate => Role::Operator,
        };
        self.security.allows(caller, caller.account(), role)?;
        if *request.method() == Method::POST { self.gate.of_our_own(request) } else { Ok(()) }
    }
}

/// Only under names that are ours.
pub(super) async fn by_our_name(State(console): State<Arc<Console>>, request: Request, next: Next) -> Response {
    match console.gate.named(&request) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}

/// Every answer tells the browser to run nothing but our files, to show us in no frame, and to send our address nowhere.
pub(super) async fn sealed(request: Request, next: Next) -> Response {
    const HEADERS: [(&str, &str); 8] = [
        (
            "content-security-policy",
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; \
             frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        ),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
        ("cache-control", "no-store"),
    ];
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// `[::1]:7118`, `localhost:7118`, `localhost`: the name in it.
fn without_port(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

/// Takes as long for what differs early as for what differs late.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&'static str, &str)]) -> Request {
        let mut request = Request::default();
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
        request.headers_mut().extend(headers);
        request
    }

    #[test]
    fn only_our_names_are_answered_to() {
        let gate = Gate::new(vec!["lockstep.example.com".into()]);
        for ours in ["localhost:7118", "LOCALHOST", "127.0.0.1:1", "127.8.9.1", "[::1]:7118", "Lockstep.Example.com:443"] {
            assert!(gate.named(&request(&[("host", ours)])).is_ok(), "{ours}");
        }
        let others =
            ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1:7118", "[::2]:7118", "evil@localhost"];
        for other in others {
            assert!(gate.named(&request(&[("host", other)])).is_err(), "{other}");
        }
        assert!(gate.named(&Request::default()).is_err());
    }

    #[test]
    fn what_is_posted_comes_from_our_own_page() {
        let gate = Gate::new(Vec::new());
        let token = gate.token().to_owned();
        let good = [
            ("host", "localhost:7118"),
            ("origin", "http://localhost:7118"),
            ("content-type", "application/json; charset=utf-8"),
            ("x-lockstep-token", &token),
            ("sec-fetch-site", "same-origin"),
        ];
        assert!(gate.of_our_own(&request(&good)).is_ok());
        let worse = [
            ("origin", "http://localhost:3000"),
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("content-type", "text/plain"),
            ("content-type", "application/x-www-form-urlencoded"),
            ("x-lockstep-token", ""),
            ("x-lockstep-token", "0123456789abcdef0123456789abcdef"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ];
        for (name, value) in worse {
            let mut bad = request(&good);
            bad.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
            assert!(gate.of_our_own(&bad).is_err(), "{name}: {value}");
        }
        for name in ["origin", "content-type", "x-lockstep-token"] {
            let mut bad = request(&good);
            bad.headers_mut().remove(name);
            assert!(gate.of_our_own(&bad).is_err(), "without {name}");
        }
    }
}
