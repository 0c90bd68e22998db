//! The daemon's socket: who is on the same machine needs no TLS there, and has to say who they are all the same.

use crate::lab::{LIMIT, Lab, program, run_cli, says};
use anyhow::{Context, ensure};
use lockstep::Exit;
use lockstep_client::{Client, Credentials};
use lockstep_proto::v1;
use lockstepd::demo::daemon::{Daemon, Launch};
use std::path::Path;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_takes_tokens_and_no_tls_and_outlives_a_crash() -> anyhow::Result<()> {
    let mut lab = Lab::start("").await?;
    let socket = lab.daemon.local_url();
    let shown = |name: &str| Credentials::default().token_file(lab.token_file(name));
    let shop = Client::builder(&socket).credentials(shown("shop")).connect().await?;
    shop.transaction().sql("db", "SELECT 1", []).commit().await?;
    let error = Client::connect(&socket).await.err().context("nobody may come in")?;
    says(&error.to_string(), &["say who you are"]);
    let error = Client::builder(&socket).credentials(lab.as_("shop")).connect().await.err().context("TLS is not spoken")?;
    says(&error.to_string(), &["TLS is not spoken over a socket"]);

    let channel = shown("ops").endpoint(&socket).map_err(anyhow::Error::msg)?.connect().await?;
    let authorization = shown("ops").authorization().map_err(anyhow::Error::msg)?;
    let mut ops = v1::admin_service_client::AdminServiceClient::with_interceptor(channel, authorization);
    let waive = v1::WaiveRequest { participant: "far".into(), operator: "ada".into(), reason: "it is gone".into() };
    ensure!(ops.waive(waive).await?.into_inner().done);
    let ours = format!("socket, user {}, process {}", rustix::process::getuid().as_raw(), std::process::id());
    says(&lab.cli("eye", &["audit", "list", "--output", "json"], Exit::Ok).await?, &[&ours]);
    let token = lab.token_file("eye").display().to_string();
    let line = ["lockstep", "--endpoint", &socket, "--token-file", &token, "status"].map(String::from).to_vec();
    let (exit, text) = run_cli(line);
    ensure!(exit == Exit::Attention || exit == Exit::Ok, "{text}");

    let (exit, text) = run_cli(["lockstep", "--endpoint", "unix:///no/such/lockstepd.sock", "status"].map(String::from).to_vec());
    ensure!(exit == Exit::Unreachable);
    says(&text, &["no daemon answers at unix:///no/such/lockstepd.sock", "No such file or directory"]);

    // What `kill -9` leaves is replaced, and a client finds its way back.
    lab.daemon.kill();
    ensure!(Path::new(socket.trim_start_matches("unix://")).exists(), "nobody was there to remove it");
    lab.daemon.start_again().await?;
    lab.wait_until_serving().await?;
    ensure!(shop.query("db", "SELECT 1", []).await?.rows.len() == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_there_ends_and_others_have_room() -> anyhow::Result<()> {
    let lab = Lab::start("handshake_ms = 500\n[limits]\nconnections = 20").await?;
    let socket = lab.daemon.local_url();
    let mut idle = Vec::new();
    for said in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 70_000]].iter().cycle().take(60) {
        let mut connection = UnixStream::connect(socket.trim_start_matches("unix://")).await?;
        // It may be closed while it is still being written to.
        let _ = connection.write_all(said).await;
        idle.push(connection);
    }
    let until = Instant::now() + LIMIT;
    let shown = Credentials::default().token_file(lab.token_file("shop"));
    while let Err(error) = Client::builder(&socket).credentials(shown.clone()).connect().await {
        ensure!(Instant::now() < until, "no room for a client: {error}");
    }
    for mut connection in idle {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(LIMIT, connection.read_to_end(&mut rest)).await;
        ensure!(ended.is_ok(), "a connection that says nothing of use is kept for ever");
    }
    Ok(())
}

#[tokio::test]
async fn two_daemons_do_not_share_one() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let launch = |data: &str| {
        let data_dir = folder.path().join(data);
        Launch { program: program(), data_dir, arguments: Vec::new(), environment: Vec::new() }.with_socket()
    };
    let mut first = Daemon::start(launch("first")).await?;
    let error = Daemon::start(launch("second")).await.err().context("the first has it")?.to_string();
    says(&error, &["daemon.sock (socket)", "another process listens there"]);
    Client::connect(first.local_url()).await?.describe().await?;
    first.stop().await?;
    ensure!(!folder.path().join("daemon.sock").exists(), "whoever ends in order leaves none");
    Daemon::start(launch("second")).await?;
    Ok(())
}
