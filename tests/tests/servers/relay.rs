//! A network between a daemon and PostgreSQL that holds one statement back, to deliver it whenever a test likes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Stands between them; it ends with the test.
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    /// The statement whose message is to be held back.
    hold: Mutex<Option<String>>,
    held: Mutex<Option<Held>>,
    arrived: Notify,
}

/// On its way, and the connection that it is on: the server cannot know that its client has gone.
struct Held {
    server: OwnedWriteHalf,
    message: Vec<u8>,
}

impl Relay {
    /// Before a server at this port of loopback.
    pub async fn before(port: u16) -> io::Result<Relay> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let shared = Arc::new(Shared { server, hold: Mutex::default(), held: Mutex::default(), arrived: Notify::new() });
        let relay = Relay { port: listener.local_addr()?.port(), shared: shared.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = shared.clone();
                // Its end is the client's or the server's.
                tokio::spawn(async move { drop(shared.pass(client).await) });
            }
        });
        Ok(relay)
    }

    /// The same database as this connection string names, through it.
    pub fn url(&self, database: &str) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={database}", self.port)
    }

    /// Holds back the next message that begins with this statement, and whatever is sent behind it on that connection.
    pub fn hold(&self, statement: &str) {
        *self.shared.hold.lock().expect("no holder panics") = Some(statement.into());
    }

    /// Waits until it is held back.
    pub async fn wait(&self) {
        self.shared.arrived.notified().await;
    }

    /// Delivers it. An error if the server has closed its connection.
    pub async fn deliver(&self) -> io::Result<()> {
        let held = self.shared.held.lock().expect("no holder panics").take();
        let mut held = held.expect("something is held back");
        held.server.write_all(&held.message).await
    }
}

impl Shared {
    async fn pass(&self, client: TcpStream) -> io::Result<()> {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = TcpStream::connect(self.server).await?.into_split();
        tokio::spawn(async move {
            // What nobody takes any more is read on: the server is not to wait for it.
            if tokio::io::copy(&mut from_server, &mut to_client).await.is_err() {
                drop(tokio::io::copy(&mut from_server, &mut tokio::io::sink()).await);
            }
        });
        // The first one has no type.
        let mut message = Vec::new();
        body(&mut from_client, &mut message).await?;
        to_server.write_all(&message).await?;
        loop {
            message.clear();
            message.push(from_client.read_u8().await?);
            body(&mut from_client, &mut message).await?;
            let held = self.hold.lock().expect("no holder panics").take_if(|statement| begins_with(&message, statement)).is_some();
            if held {
                *self.held.lock().expect("no holder panics") = Some(Held { server: to_server, message });
                self.arrived.notify_one();
                return Ok(());
            }
            to_server.write_all(&message).await?;
        }
    }
}

/// Whether a message is a simple query, and this is its first statement.
fn begins_with(message: &[u8], statement: &str) -> bool {
    let script = message.strip_prefix(b"Q").and_then(|rest| rest.get(4..)).unwrap_or_default();
    script.strip_prefix(statement.as_bytes()).is_some_and(|rest| matches!(rest.first(), Some(b';' | b'\0')))
}

/// A length, which counts itself, and what it is the length of.
async fn body(from: &mut OwnedReadHalf, message: &mut Vec<u8>) -> io::Result<()> {
    let length = from.read_u32().await?;
    message.extend(length.to_be_bytes());
    let start = message.len();
    message.resize(start + length.saturating_sub(4) as usize, 0);
    from.read_exact(&mut message[start..]).await?;
    Ok(())
}
