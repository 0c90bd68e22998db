//! A network that fails as it is told to: stands before a server, for any protocol over TCP.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes that are passed on at once.
const CHUNK: usize = 16 << 10;
/// Of a connection, so much of what its client sent is kept, to be sent again. A longer one is not repeated.
const KEPT_BYTES: usize = 1 << 20;
/// So many connections are kept.
const KEPT_CONNECTIONS: usize = 8;
/// How long a server may take to answer what is sent again.
const ANSWER: Duration = Duration::from_millis(300);

/// What the network does, from now on and to connections that are there.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Nothing: it passes on.
    None,
    /// Every chunk comes so much later.
    Delay {
        /// Milliseconds.
        ms: u64,
    },
    /// So much and no more, each way.
    Throttle {
        /// Bytes in a second.
        bytes: u64,
    },
    /// Nothing arrives on either side; nobody is told. What was sent arrives when it is over.
    Partition,
    /// The same, but only on the way to the server.
    PartitionThere,
    /// The same, but only on the way back.
    PartitionBack,
    /// Connections end, and new ones are refused.
    Cut,
    /// Connections that are there lose the server without being told; new ones work.
    HalfOpen,
    /// New connections are taken, and never answered.
    Mute,
}

/// Stands between them, until it is dropped.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

struct Shared {
    server: SocketAddr,
    now: watch::Sender<Now>,
    kept: Mutex<VecDeque<Arc<Mutex<Kept>>>>,
}

#[derive(Clone, Copy)]
struct Now {
    fault: Fault,
    /// Connections of an earlier one have lost their server.
    generation: u64,
}

/// What a client has sent; nothing if it was too much.
struct Kept(Option<Vec<u8>>);

impl Proxy {
    /// Before a server on loopback.
    pub async fn before(port: u16) -> io::Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let now = watch::Sender::new(Now { fault: Fault::None, generation: 0 });
        let shared = Arc::new(Shared { server: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), now, kept: Mutex::default() });
        let port = listener.local_addr()?.port();
        let accepting = tokio::spawn({
            let shared = shared.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    // Its end is the client's, the server's or the network's.
                    tokio::spawn(pass(shared.clone(), client));
                }
            }
        });
        Ok(Proxy { port, shared, accepting })
    }

    /// Where clients find it, on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on.
    pub fn set(&self, fault: Fault) {
        self.shared.now.send_modify(|now| {
            now.fault = fault;
            now.generation += u64::from(fault == Fault::HalfOpen);
        });
    }

    /// Sends again, on connections of their own, what clients have sent on some earlier ones; late, and a second time. How many.
    pub async fn repeat(&self) -> usize {
        let kept: Vec<Arc<Mutex<Kept>>> = self.shared.kept.lock().expect("no holder panics").iter().cloned().collect();
        let mut repeated = 0;
        for kept in kept {
            let Some(bytes) = kept.lock().expect("no holder panics").0.clone() else { continue };
            let Ok(mut server) = TcpStream::connect(self.shared.server).await else { continue };
            if server.write_all(&bytes).await.is_ok() {
                repeated += 1;
                let mut answers = Vec::new();
                // Who never closes is left alone after a while.
                let _ = tokio::time::timeout(ANSWER, server.read_to_end(&mut answers)).await;
            }
        }
        repeated
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.set(Fault::Cut);
    }
}

async fn pass(shared: Arc<Shared>, mut client: TcpStream) {
    let mut now = shared.now.subscribe();
    let Now { fault, generation } = *now.borrow_and_update();
    match fault {
        Fault::Cut => return,
        Fault::Mute => {
            // Until the network is another, or the client has enough.
            let mut nothing = [0; 512];
            let changes = async { while now.changed().await.is_ok() && now.borrow().fault == Fault::Mute {} };
            let ends = async { while client.read(&mut nothing).await.is_ok_and(|read| read > 0) {} };
            tokio::select! { () = changes => {}, () = ends => {} }
            return;
        }
        Fault::None
        | Fault::Delay { .. }
        | Fault::Throttle { .. }
        | Fault::Partition
        | Fault::PartitionThere
        | Fault::PartitionBack
        | Fault::HalfOpen => {}
    }
    let Ok(server) = TcpStream::connect(shared.server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let kept = Arc::new(Mutex::new(Kept(Some(Vec::new()))));
    {
        let mut all = shared.kept.lock().expect("no holder panics");
        all.push_back(kept.clone());
        if all.len() > KEPT_CONNECTIONS {
            all.pop_front();
        }
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let there = Way { there: true, generation, now: now.clone(), kept: Some(kept) };
    let back = Way { there: false, generation, now, kept: None };
    tokio::join!(there.run(from_client, to_server), back.run(from_server, to_client));
}

/// One direction of a connection.
struct Way {
    there: bool,
    generation: u64,
    now: watch::Receiver<Now>,
    kept: Option<Arc<Mutex<Kept>>>,
}

impl Way {
    async fn run(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = tokio::select! {
                read = from.read(&mut chunk) => read.unwrap_or(0),
                () = ended(self.now.clone()) => return,
            };
            if !self.arrives(read).await {
                return;
            }
            if read == 0 {
                let _ = to.shutdown().await;
                return;
            }
            self.keep(&chunk[..read]);
            if to.write_all(&chunk[..read]).await.is_err() {
                return;
            }
        }
    }

    /// Waits as long as the network takes; false if the connection is no more.
    async fn arrives(&mut self, bytes: usize) -> bool {
        loop {
            let Now { fault, generation } = *self.now.borrow_and_update();
            let stands = match fault {
                Fault::Cut => return false,
                // Whatever comes from either side is lost, and neither hears of the other's end.
                _ if generation > self.generation => true,
                Fault::Partition => true,
                Fault::PartitionThere => self.there,
                Fault::PartitionBack => !self.there,
                Fault::None | Fault::HalfOpen | Fault::Mute => false,
                Fault::Delay { ms } => {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    false
                }
                Fault::Throttle { bytes: limit } => {
                    tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / limit as f64)).await;
                    false
                }
            };
            if !stands {
                return true;
            }
            if self.now.changed().await.is_err() {
                return false;
            }
        }
    }

    fn keep(&self, bytes: &[u8]) {
        let Some(kept) = &self.kept else { return };
        let mut kept = kept.lock().expect("no holder panics");
        if let Some(all) = &mut kept.0 {
            all.extend_from_slice(bytes);
            if all.len() > KEPT_BYTES {
                kept.0 = None;
            }
        }
    }
}

/// Waits until connections end.
async fn ended(mut now: watch::Receiver<Now>) {
    // The sender's end is the proxy's.
    let _ = now.wait_for(|now| now.fault == Fault::Cut).await;
}
