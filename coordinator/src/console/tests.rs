//! What the console answers to whoever is not one of its own pages.

use crate::configuration::Configuration;
use crate::engine_handle::{EngineHandle, EngineMessage, HandleParts, Identity, Question, Registry};
use crate::http;
use crate::meters::Meters;
use crate::security::Security;
use crate::view::Pulse;
use axum::http::Request;
use lockstep_core::{CoordId, Epoch, Event, LogId, Position, Reply};
use lockstep_proto::v1;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

/// A console over an engine that says what a test wants, and counts its orders.
struct Lab {
    address: SocketAddr,
    orders: Arc<AtomicUsize>,
}

impl Lab {
    async fn start(configuration: Configuration) -> Lab {
        let (handle, messages) = EngineHandle::new(HandleParts {
            registry: Registry::default(),
            queue_events: 16,
            identity: Identity { coord_id: CoordId(1), log_id: LogId(1) },
            position: Position { epoch: Epoch(1), n: 0 },
            before: lockstep_core::Csn::ZERO,
        });
        let orders = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&orders);
        std::thread::spawn(move || {
            for message in messages {
                match message {
                    EngineMessage::Ask(Question::Status(answer)) => drop(answer.send(v1::StatusReply::default())),
                    EngineMessage::Ask(Question::Pulse(answer)) => {
                        drop(answer.send(Pulse { status: v1::StatusReply::default(), ages: Default::default() }));
                    }
                    EngineMessage::Ask(Question::Plan(_, answer)) => {
                        drop(answer.send(v1::Choice { effect: "Leaves it.".into(), ..v1::Choice::default() }));
                    }
                    EngineMessage::Order(_, submission, _) => {
                        assert!(matches!(submission.event, Event::Admin { .. }));
                        counted.fetch_add(1, Ordering::SeqCst);
                        submission.answer.give(Reply::Done("it is left".into()));
                    }
                    _ => {}
                }
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(http::serve(handle, Meters::default(), Arc::new(configuration), Security::none(), listener, std::future::pending()));
        Lab { address, orders }
    }

    /// The whole answer to these bytes. The connection is closed by whoever has nothing more to say.
    fn says(&self, request: &str) -> String {
        tokio::task::block_in_place(|| {
            let mut stream = TcpStream::connect(self.address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = Vec::new();
            // It may be closed before all of a request is read.
            let _ = stream.read_to_end(&mut answer);
            String::from_utf8_lossy(&answer).into_owned()
        })
    }

    fn get(&self, path: &str) -> String {
        self.says(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address))
    }

    fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> String {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        self.says(&format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}",
            self.address
        ))
    }

    fn token(&self) -> String {
        let session = self.get("/console/api/session");
        let json: serde_json::Value = serde_json::from_str(session.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        json["token"].as_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_comes_from_our_own_page_with_the_word_and_the_plan() {
    let lab = Lab::start(Configuration::default()).await;
    let (origin, token) = (format!("http://{}", lab.address), lab.token());
    let ours = [("Origin", origin.as_str()), ("Content-Type", "application/json"), ("X-Lockstep-Token", token.as_str())];
    let looked = lab.get("/console/api/plan?order=%7B%22kind%22%3A%22leave-safe-mode%22%7D");
    assert!(looked.starts_with("HTTP/1.1 200"), "{looked}");
    let looked: serde_json::Value = serde_json::from_str(looked.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!((&looked["word"], &looked["plan"]["effect"]), (&"leave safe mode".into(), &"Leaves it.".into()));
    let mark = looked["mark"].as_str().unwrap();
    let order = |typed: &str, mark: &str| {
        format!(r#"{{"order":{{"kind":"leave-safe-mode"}},"operator":"ann","reason":"why","typed":"{typed}","plan":"{mark}"}}"#)
    };
    let good = order("leave safe mode", mark);
    for (n, status) in [(0, "403"), (1, "415"), (2, "403")] {
        let fewer: Vec<_> = ours.iter().enumerate().filter(|(at, _)| *at != n).map(|(_, header)| *header).collect();
        let answer = lab.post("/console/api/order", &fewer, &good);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "without {}: {answer}", ours[n].0);
    }
    for (body, status, words) in [
        (order("leave", mark), "400", "something else was typed"),
        (order("leave safe mode", "0"), "409", "has changed since it was shown"),
        (good.replace("\"reason\":\"why\"", "\"reason\":\" \""), "400", "reason is empty"),
        (good.replace("leave-safe-mode", "explode"), "400", "unknown variant"),
        (good.replace("\"typed\"", "\"more\":1,\"typed\""), "400", "unknown field"),
        ("{".into(), "400", "the request's JSON"),
        (format!("{{\"order\":\"{}\"}}", "x".repeat(70_000)), "413", ""),
    ] {
        let answer = lab.post("/console/api/order", &ours, &body);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(words), "{status} {words}: {answer}");
    }
    assert_eq!(lab.orders.load(Ordering::SeqCst), 0, "nothing of that was carried out");
    assert!(lab.get("/console/api/order").starts_with("HTTP/1.1 405"));
    let done = lab.post("/console/api/order", &ours, &good);
    assert!(done.starts_with("HTTP/1.1 200") && done.contains("it is left"), "{done}");
    assert_eq!(lab.orders.load(Ordering::SeqCst), 1);
}

/// As a browser talks over TLS: by HTTP/2, with the name in `:authority` and no Host.
#[tokio::test(flavor = "multi_thread")]
async fn by_http_2_a_page_of_ours_is_ours_and_no_other() {
    let lab = Lab::start(Configuration::default()).await;
    let ours = format!("http://{}", lab.address);
    let channel = Endpoint::try_from(ours.clone()).unwrap().connect().await.unwrap();
    let misnamed = Endpoint::try_from(ours.clone()).unwrap().origin("http://evil.example".parse().unwrap()).connect().await.unwrap();
    let ask = |mut channel: Channel, method: &str, path: &str, headers: &[(&str, &str)]| {
        let request =
            headers.iter().fold(Request::builder().method(method).uri(path), |request, (name, value)| request.header(*name, *value));
        let request = request.body(Body::empty()).unwrap();
        async move {
            poll_fn(|context| channel.poll_ready(context)).await.unwrap();
            channel.call(request).await.unwrap().status().as_u16()
        }
    };
    assert_eq!(ask(channel.clone(), "GET", "/console/api/session", &[]).await, 200);
    assert_eq!(ask(misnamed, "GET", "/console/api/session", &[]).await, 421);
    let token = lab.token();
    for (origin, status) in [(ours.as_str(), 400), ("http://evil.example", 403)] {
        let headers = [("origin", origin), ("content-type", "application/json"), ("x-lockstep-token", &token)];
        assert_eq!(ask(channel.clone(), "POST", "/console/api/order", &headers).await, status, "{origin}: an order without a body");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_fixed_files_are_served_and_all_are_sealed() {
    let lab = Lab::start(Configuration::default()).await;
    for path in
        ["/console/", "/console/transactions/1-1", "/console/assets/style.css", "/console/api/session", "/console/api/transactions?limit=0"]
    {
        let answer = lab.get(path).to_ascii_lowercase();
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
        ] {
            assert!(answer.contains(header), "{path} without {header}: {answer}");
        }
        assert!(!answer.contains("access-control-allow"), "{answer}");
    }
    assert!(lab.get("/console/api/transactions?limit=501").contains("limit is 501: 1 to 500"));
    assert!(lab.get("/console/api/transactions?odd=1").starts_with("HTTP/1.1 400"));
    for path in [
        "/console/assets/../../Cargo.toml",
        "/console/assets/%2e%2e/%2e%2e/Cargo.toml",
        "/console/assets/..%2f..%2fCargo.toml",
        "/console/assets//etc/passwd",
        "/console/assets/",
        "/console/api/",
        "/console/nothing",
    ] {
        let answer = lab.get(path);
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    let elsewhere = "GET /console/api/session HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    let answer = lab.says(elsewhere);
    assert!(answer.starts_with("HTTP/1.1 421") && answer.contains("does not answer to the name `evil.example`"), "{answer}");
    assert!(lab.says("GET /console/ HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 421"), "no name at all");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_console_where_it_is_switched_off() {
    let mut configuration = Configuration::default();
    configuration.http.console = false;
    let lab = Lab::start(configuration).await;
    assert!(lab.get("/console/").starts_with("HTTP/1.1 404"));
    assert!(lab.get("/metrics").starts_with("HTTP/1.1 200"));
}
