//! Connections of plain HTTP, bounded: so many at once, none that moves no byte for long, and none that takes long over a request. A stream
//! of events moves a byte every few seconds, so whoever does not read what it is sent, or does not finish what it asks, is dropped.

use axum::serve::Listener;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 256;
/// No byte for so long ends a connection.
const STILL: Duration = Duration::from_secs(30);
/// From the first byte of a request until it has all come, and is answered by a byte at least.
const ASKING: Duration = Duration::from_secs(60);

/// A listener that keeps these limits for the connections of another one.
pub struct Bounded<L> {
    listener: L,
    room: Arc<Semaphore>,
    still: Duration,
    asking: Duration,
}

/// A connection that is counted and watched.
pub struct Watched<S> {
    stream: S,
    quiet: Pin<Box<Sleep>>,
    still: Duration,
    /// When the request began that is not answered.
    asked: Option<Instant>,
    asking: Duration,
    _room: OwnedSemaphorePermit,
}

impl<L> Bounded<L> {
    /// Accepts from this one.
    pub fn new(listener: L) -> Bounded<L> {
        Bounded { listener, room: Arc::new(Semaphore::new(CONNECTIONS)), still: STILL, asking: ASKING }
    }
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Watched<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Watched<L::Io>, L::Addr) {
        let room = Arc::clone(&self.room).acquire_owned().await.expect("it is never closed");
        let (stream, address) = self.listener.accept().await;
        let quiet = Box::pin(tokio::time::sleep(self.still));
        (Watched { stream, quiet, still: self.still, asked: None, asking: self.asking, _room: room }, address)
    }

    fn local_addr(&self) -> io::Result<L::Addr> {
        self.listener.local_addr()
    }
}

impl<S> Watched<S> {
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

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.stream).poll_read(context, buffer);
        if moved.is_ready() {
            let (now, asking) = (Instant::now(), self.asking);
            if now.duration_since(*self.asked.get_or_insert(now)) > asking {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "a request took too long to come")));
            }
        }
        self.judge(context, moved)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.stream).poll_write(context, bytes);
        if moved.is_ready() {
            self.asked = None;
        }
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
    use tokio::net::{TcpListener, TcpStream};

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

    #[tokio::test]
    async fn who_takes_too_long_over_a_request_is_dropped_though_bytes_move() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bounded = Bounded { asking: Duration::from_millis(200), ..Bounded::new(listener) };
        tokio::spawn(async move { axum::serve(bounded, Router::new().route("/", get(|| async { "here" }))).await });
        let (mut reads, mut writes) = TcpStream::connect(address).await.unwrap().into_split();
        let slowly = tokio::spawn(async move {
            writes.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nSlow: ").await.unwrap();
            let mut next = tokio::time::interval(Duration::from_millis(10));
            while writes.write_all(b"a").await.is_ok() {
                next.tick().await;
            }
        });
        let mut end = Vec::new();
        let _ = reads.read_to_end(&mut end).await;
        assert!(end.is_empty(), "{}", String::from_utf8_lossy(&end));
        slowly.await.unwrap();
    }
}
