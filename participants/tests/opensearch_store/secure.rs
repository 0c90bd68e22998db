//! TLS and credentials, and several nodes of which some are not there: a front before a real node, as a proxy or the node's own security
//! plugin would stand there.

use crate::authority::Authority;
use crate::lab::{Lab, alias, csn, options, owner, put, shared};
use lockstep_core::ParticipantId;
use lockstep_participants::ResourceManager;
use lockstep_participants::opensearch::{Credentials, OpenSearch, OpenSearchOptions};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Terminates TLS, and lets only requests with this authorization through.
struct Front {
    port: u16,
    down: Arc<AtomicBool>,
}

impl Front {
    fn before(url: &str, authority: &Authority, name: &str, authorization: &'static str) -> Front {
        let (certificate, key) = authority.certificate(name);
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (port, down) = (listener.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
        let (node, is_down) = (url.trim_start_matches("http://").to_owned(), down.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (config, node, down) = (config.clone(), node.clone(), is_down.clone());
                std::thread::spawn(move || {
                    let session = StreamOwned::new(ServerConnection::new(config).unwrap(), client);
                    // Its end is the client's or the node's.
                    let _ = pass(session, &node, authorization, &down);
                });
            }
        });
        Front { port, down }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// From now on it answers nobody, in the middle of whatever it does.
    fn die(&self) {
        self.down.store(true, Ordering::Relaxed);
    }
}

fn pass(mut client: StreamOwned<ServerConnection, TcpStream>, node: &str, authorization: &str, down: &AtomicBool) -> std::io::Result<()> {
    let mut node = TcpStream::connect(node)?;
    loop {
        let Some(request) = message(&mut client)? else { return Ok(()) };
        if down.load(Ordering::Relaxed) {
            return Ok(());
        }
        let head = String::from_utf8_lossy(&request).to_ascii_lowercase();
        if !head.contains(&format!("authorization: {}\r\n", authorization.to_ascii_lowercase())) {
            client.write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")?;
            client.flush()?;
            continue;
        }
        node.write_all(&request)?;
        let Some(answer) = message(&mut node)? else { return Ok(()) };
        if down.load(Ordering::Relaxed) {
            // It was carried out, and nobody is told.
            return Ok(());
        }
        client.write_all(&answer)?;
        client.flush()?;
    }
}

/// One HTTP message with its body; `None` at the end.
fn message(stream: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(None);
        }
        bytes.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    bytes.append(&mut body);
    Ok(Some(bytes))
}

fn basic() -> Credentials {
    Credentials::Basic { user: "me".into(), password: "sesame".into() }
}

#[test]
fn tls_and_credentials_are_looked_at_from_both_ends() {
    let Some(node) = shared() else { return };
    let (authority, other) = (Authority::new(), Authority::new());
    let by_password = Front::before(&node, &authority, "127.0.0.1", "Basic bWU6c2VzYW1l");
    let by_key = Front::before(&node, &authority, "127.0.0.1", "ApiKey a2V5");
    let with = |front: &Front, ca: &Authority, credentials| OpenSearchOptions {
        certificates: Some(ca.pem.clone().into_bytes()),
        credentials,
        ..options(&front.url(), &alias())
    };
    for (front, credentials) in [(&by_password, basic()), (&by_key, Credentials::ApiKey("a2V5".into()))] {
        let mut lab = Lab::with(with(front, &authority, Some(credentials)), 1);
        lab.write(1, vec![put("k", "{}")]);
        assert_eq!((lab.keys(), lab.findings()), (vec!["k".to_owned()], vec![]));
    }
    let wrong_name = Front::before(&node, &authority, "search.example", "Basic bWU6c2VzYW1l");
    for (options, words) in [
        (with(&by_password, &other, Some(basic())), "certificate"),
        (with(&wrong_name, &authority, Some(basic())), "certificate"),
        (with(&by_password, &authority, None), "the credentials are refused (HTTP 401)"),
        (with(&by_key, &authority, Some(basic())), "the credentials are refused (HTTP 401)"),
        // The public authorities do not know it.
        (OpenSearchOptions { certificates: None, ..with(&by_password, &authority, Some(basic())) }, "certificate"),
    ] {
        let error = OpenSearch::open(options).unwrap().recover(owner(1), ParticipantId(3)).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("sesame"), "{words}: {error}");
    }
}

/// One node is not there from the start, and another goes in the middle of its work: the rest take over, and nothing is lost or done twice.
#[test]
fn other_nodes_take_over() {
    let Some(node) = shared() else { return };
    let authority = Authority::new();
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let [first, second] = [(); 2].map(|()| Front::before(&node, &authority, "127.0.0.1", "Basic bWU6c2VzYW1l"));
    let options = OpenSearchOptions {
        nodes: vec![format!("https://{nobody}"), first.url(), second.url()],
        certificates: Some(authority.pem.clone().into_bytes()),
        credentials: Some(basic()),
        ..options("", &alias())
    };
    let mut lab = Lab::with(OpenSearchOptions { ..options }, 1);
    lab.write(1, vec![put("k1", r#"{"n":1}"#)]);
    let decided = lab.decide(2, vec![put("k1", r#"{"n":2}"#), put("k2", r#"{"n":2}"#)]);
    first.die();
    // What was sent and not answered may have been done: it is done again, and changes nothing.
    let mut committed = lab.store.commit(std::slice::from_ref(&decided), csn(1, 2));
    if committed.is_err() {
        lab.recover().unwrap();
        committed = lab.store.commit(std::slice::from_ref(&decided), csn(1, 2));
    }
    assert_eq!(committed.unwrap().stuck, []);
    lab.write(3, vec![put("k3", r#"{"n":3}"#)]);
    assert_eq!(lab.keys(), ["k1", "k2", "k3"]);
    assert_eq!(lab.get("k1").unwrap().csn, csn(1, 2));
}
