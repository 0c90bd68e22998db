//! Connections, before anything is asked on them: so many at most, TLS where it is spoken, and little time until the first request is let in.

use super::caller::{Certificate, Origin, Peer};
use super::{Security, credentials};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

/// A connection that is served.
pub struct Connection {
    io: Io,
    peer: Peer,
    /// When it ends, unless a request was let in before.
    deadline: Option<Pin<Box<Sleep>>>,
    _slot: OwnedSemaphorePermit,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Local(UnixStream),
}

/// What is listened on.
pub enum Listener {
    /// A port: TLS, if it is configured.
    Port(TcpListener),
    /// A socket of this machine: never TLS, for nothing leaves the kernel.
    Socket(UnixListener),
}

/// Connections that are ready and not taken up yet.
const READY: usize = 64;
/// After an error of the system (no descriptors left): how long until the next try.
const PAUSE: Duration = Duration::from_millis(50);

/// Takes connections until nobody wants them any more; `most` at once at each listener, the rest are closed at once.
pub fn take(listeners: impl IntoIterator<Item = Listener>, security: &Arc<Security>, most: usize) -> mpsc::Receiver<Connection> {
    let (sender, connections) = mpsc::channel(READY);
    for listener in listeners {
        tokio::spawn(take_at(listener, Arc::clone(security), most, sender.clone()));
    }
    connections
}

async fn take_at(listener: Listener, security: Arc<Security>, most: usize, sender: mpsc::Sender<Connection>) {
    let slots = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let (io, origin) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if security.may_shout() {
                    warn!(%error, "a connection could not be taken");
                }
                sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            if security.may_shout() {
                warn!(%origin, "there are {most} connections, as many as there may be (limits.connections): this one is closed");
            }
            continue;
        };
        let (security, sender) = (Arc::clone(&security), sender.clone());
        tokio::spawn(async move {
            match open(io, origin, &security, slot).await {
                Ok(connection) => drop(sender.send(connection).await),
                Err(why) => debug!(%origin, %why, "a connection came to nothing"),
            }
        });
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<(Io, Origin)> {
        match self {
            Listener::Port(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Io::Plain(stream), Origin::Network(address)))
            }
            Listener::Socket(listener) => {
                let (stream, _) = listener.accept().await?;
                let peer = stream.peer_cred()?;
                // Where it cannot be seen from here, it is 0.
                let process = peer.pid().filter(|process| *process > 0);
                Ok((Io::Local(stream), Origin::Local { user: peer.uid(), process }))
            }
        }
    }
}

async fn open(io: Io, origin: Origin, security: &Security, slot: OwnedSemaphorePermit) -> io::Result<Connection> {
    if let Io::Plain(stream) = &io {
        stream.set_nodelay(true)?;
    }
    let limit = Duration::from_millis(security.settings.handshake_ms);
    let deadline = Box::pin(sleep(limit));
    let current = security.current();
    let (io, certificate) = match (io, &current.tls) {
        (Io::Plain(stream), Some(config)) => {
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long (security.handshake_ms)");
            let stream = timeout(limit, TlsAcceptor::from(Arc::clone(config)).accept(stream)).await.map_err(late)??;
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let holder = shown.map(credentials::holder).transpose().map_err(io::Error::other)?;
            let certificate = holder.map(|holder| Arc::new(Certificate { holder, authorities: current.authorities }));
            (Io::Tls(Box::new(stream)), certificate)
        }
        (io, _) => (io, None),
    };
    let peer = Peer { origin, certificate, proven: Arc::new(AtomicBool::new(false)) };
    Ok(Connection { io, peer, deadline: Some(deadline), _slot: slot })
}

/// Bytes both ways.
trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

impl Io {
    fn stream(&mut self) -> Pin<&mut dyn Stream> {
        match self {
            Io::Plain(stream) => Pin::new(stream),
            Io::Tls(stream) => Pin::new(stream),
            Io::Local(stream) => Pin::new(stream),
        }
    }
}

impl Connection {
    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// An error once its time is over and no request was let in.
    fn in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.peer.proven.load(Ordering::Relaxed) {
            self.deadline = None;
        }
        match self.deadline.as_mut().map(|deadline| deadline.as_mut().poll(context)) {
            Some(Poll::Ready(())) => Err(io::Error::new(io::ErrorKind::TimedOut, "no request was let in in time (security.handshake_ms)")),
            Some(Poll::Pending) | None => Ok(()),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.in_time(context)?;
        self.io.stream().poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io.stream().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.stream().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.stream().poll_shutdown(context)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.io.stream().poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
            Io::Local(stream) => stream.is_write_vectored(),
        }
    }
}
