//! Connections that are many, slow, too large or nonsense: they end, and others are served.

use crate::lab::{LIMIT, LOOK, Lab};
use anyhow::{Context, ensure};
use lockstep_proto::v1;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMITS: &str = "handshake_ms = 500\n[limits]\nconnections = 100";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_connections() -> anyhow::Result<()> {
    idle(1_000).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections() -> anyhow::Result<()> {
    lockstep_tests::torture::load::raise_limit(11_000)?;
    idle(10_000).await
}

async fn idle(count: usize) -> anyhow::Result<()> {
    let lab = Lab::start(LIMITS).await?;
    lab.client("shop").await?;
    let mut idle = Vec::with_capacity(count);
    for n in 0..count {
        idle.push(TcpStream::connect(lab.daemon.address()).await?);
        if n % 100 == 99 {
            let open = descriptors(&lab)?;
            ensure!(open < 100 + 150, "the daemon holds {open} descriptors for at most 100 connections");
        }
    }
    // Their time is over by itself; then there is room for those who say who they are.
    let until = Instant::now() + LIMIT;
    while let Err(error) = lab.client("shop").await {
        ensure!(Instant::now() < until, "no room for a client: {error}");
    }
    for mut connection in idle {
        ends(&mut connection).await?;
    }
    lab.status().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_senseless_connections_end() -> anyhow::Result<()> {
    let lab = Lab::start(LIMITS).await?;
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for nonsense in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        &[0; 70_000],
        &[0xff; 70_000],
        hello,
        b"",
    ] {
        let mut connection = TcpStream::connect(lab.daemon.address()).await?;
        // It may be closed while it is still being written to.
        let _ = connection.write_all(nonsense).await;
        ends(&mut connection).await?;
    }
    // A byte at a time, for ever: each of them is no reason to wait longer.
    let mut slow = TcpStream::connect(lab.daemon.address()).await?;
    let dribble = async {
        loop {
            if slow.write_all(&hello[..1]).await.is_err() || slow.write_all(&[0]).await.is_err() {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(LIMIT, dribble).await.context("a slow client is kept for ever")?;
    // Past TLS, and then nothing, or headers that never end.
    for half in
        [&b""[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x04\x01\0\0\0\0\x01abcd"]
    {
        let mut connection = tls(&lab).await?;
        connection.write_all(half).await?;
        connection.flush().await?;
        let mut rest = Vec::new();
        let read = tokio::time::timeout(LIMIT, connection.read_to_end(&mut rest)).await;
        ensure!(read.is_ok(), "a connection without a request is kept for ever");
    }
    lab.client("shop").await?;
    lab.status().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_are_only_so_large() -> anyhow::Result<()> {
    let lab = Lab::start("").await?;
    let mut wire = lab.wire(&lab.as_("shop")).await?;
    for size in [100, 20 << 10, 200 << 10, 2 << 20] {
        let mut request = tonic::Request::new(v1::DescribeRequest {});
        request.metadata_mut().insert("x-large", "x".repeat(size).parse()?);
        let answered = tokio::time::timeout(LIMIT, wire.describe(request)).await.context("no answer")?;
        ensure!(answered.is_ok() == (size == 100), "{size} bytes: {answered:?}");
    }
    let mut large = lab.wire(&lab.nobody().token("x".repeat(100 << 10))).await?;
    ensure!(large.describe(v1::DescribeRequest {}).await.is_err());
    lab.client("shop").await?;
    lab.status().await.map(drop)
}

/// The other side closes it, whatever it says before that.
async fn ends(connection: &mut TcpStream) -> anyhow::Result<()> {
    let mut rest = Vec::new();
    // Reset is an end, too.
    let _ = tokio::time::timeout(LIMIT, connection.read_to_end(&mut rest)).await.context("it is kept open")?;
    Ok(())
}

/// A connection past its TLS handshake.
async fn tls(lab: &Lab) -> anyhow::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(lab.certificate("ca.pem"))?)?;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(lab.daemon.address()).await?;
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    Ok(tokio::time::timeout(Duration::from_secs(10), connector.connect(ServerName::try_from("localhost")?, stream)).await??)
}

fn descriptors(lab: &Lab) -> anyhow::Result<usize> {
    let id = lab.daemon.id().context("it runs")?;
    Ok(std::fs::read_dir(format!("/proc/{id}/fd"))?.count())
}
