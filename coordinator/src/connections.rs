//! Connections of plain HTTP, bounded: so many at once, and none that moves no byte for long. A stream of events moves one every few
//! seconds, so whoever does not read what it is sent, or does not finish what it asks, is dropped.

use axum::serve::Listener;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 256;
/// No byte for so long ends a connection.
const STILL: Duration = Duration::from_secs(30);

/// A listener that keeps these limits.
pub struct Bounded {
    listener: TcpListener,
    room: Arc<Semaphore>,
    still: Duration,
}

/// A connection that is counted and watched.
pub struct Watched {
    stream: TcpStream,
    quiet: Pin<Box<Sleep>>,
    still: Duration,
    _room: OwnedSemaphorePermit,
}

impl Bounded {
    /// Accepts from this one.
    pub fn new(listener: TcpListener) -> Bounded {
        Bounded { listener, room: Arc::new(Semaphore::new(CONNECTIONS)), still: STILL }
    }
}

impl Listener for Bounded {
    type Io = Watched;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Watched, SocketAddr) {
        let room = Arc::clone(&self.room).acquire_owned().await.expect("it is never closed");
        // The implementation of axum waits a little where there are too many open files, and goes on.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let quiet = Box::pin(tokio::time::sleep(self.still));
        (Watched { stream, quiet, still: self.still, _room: room }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Watched {
    /// A byte has moved, or it was still for too long.
    fn judge<T>(&mut self, context: &mut Context<'_>, moved: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if moved.is_ready() {
            let until = Instant::now() + self.still;
            self.quiet.as_mut().reset(until);
            return moved;
        }
        ready!(self.quiet.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no byte has moved for too long")))
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.judge(context, moved)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, moved)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn who_is_still_for_too_long_is_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bounded = Bounded { still: Duration::from_millis(100), ..Bounded::new(listener) };
        tokio::spawn(async move { axum::serve(bounded, Router::new().route("/", get(|| async { "here" }))).await });
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        let mut end = Vec::new();
        half.read_to_end(&mut end).await.unwrap();
        assert!(end.is_empty(), "{}", String::from_utf8_lossy(&end));
    }
}
