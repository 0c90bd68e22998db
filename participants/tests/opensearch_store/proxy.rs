//! A network that holds requests back, to deliver them whenever a test likes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// Stands between a store and its node.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    node: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Requests whose first line has this are held back, and their connection is cut.
    hold: Option<String>,
    held: Vec<Vec<u8>>,
    /// The next request whose first line has this is answered so, and not passed on.
    instead: Option<(String, String)>,
}

impl Proxy {
    /// Before the node at this URL.
    pub fn before(url: &str) -> Proxy {
        let node = url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared { node, state: Mutex::default(), changed: Condvar::new() });
        let passing = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let shared = passing.clone();
                std::thread::spawn(move || shared.pass(client.unwrap()));
            }
        });
        Proxy { port, shared }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on holds back requests whose first line has this; `None`: no more.
    pub fn hold(&self, what: Option<&str>) {
        self.shared.state.lock().unwrap().hold = what.map(str::to_owned);
    }

    /// Answers the next request whose first line has this with this JSON, in the node's place.
    pub fn answer(&self, what: &str, json: &str) {
        self.shared.state.lock().unwrap().instead = Some((what.to_owned(), json.to_owned()));
    }

    /// Waits until one is held back.
    pub fn wait(&self) {
        let state = self.shared.state.lock().unwrap();
        drop(self.shared.changed.wait_while(state, |state| state.held.is_empty()).unwrap());
    }

    /// Delivers what was held back, and gives back the node's answers.
    pub fn deliver(&self) -> Vec<String> {
        let held = std::mem::take(&mut self.shared.state.lock().unwrap().held);
        let deliver = |request: &Vec<u8>| {
            let mut node = TcpStream::connect(&self.shared.node).unwrap();
            node.write_all(request).unwrap();
            String::from_utf8(message(&mut node).expect("an answer")).unwrap()
        };
        held.iter().map(deliver).collect()
    }
}

impl Shared {
    fn pass(&self, mut client: TcpStream) {
        let mut node: Option<TcpStream> = None;
        while let Some(request) = message(&mut client) {
            let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
            let mut state = self.state.lock().unwrap();
            if state.hold.as_ref().is_some_and(|what| line.contains(what.as_str())) {
                state.held.push(request);
                self.changed.notify_all();
                // The client loses its connection, and knows nothing.
                return;
            }
            if let Some((_, json)) = state.instead.take_if(|(what, _)| line.contains(what.as_str())) {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", json.len());
                if client.write_all((head + &json).as_bytes()).is_err() {
                    return;
                }
                continue;
            }
            drop(state);
            let upstream = match &mut node {
                Some(upstream) => upstream,
                None => match TcpStream::connect(&self.node) {
                    Ok(upstream) => node.insert(upstream),
                    Err(_) => return,
                },
            };
            if upstream.write_all(&request).is_err() {
                return;
            }
            let Some(answer) = message(upstream) else { return };
            if client.write_all(&answer).is_err() {
                return;
            }
        }
    }
}

/// One HTTP message with its body; `None` at the end.
fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    bytes.append(&mut body);
    Some(bytes)
}
