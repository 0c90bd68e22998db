//! Certificates and tokens that change while the daemon runs, and a daemon that may not start as it is asked to.

use crate::lab::{LIMIT, LOOK, Lab, make_certificates, program, says, token};
use anyhow::{Context, ensure};
use lockstep_client::{Client, Credentials};
use lockstep_proto::v1;
use lockstepd::demo::daemon::{Daemon, Launch};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_certificates_are_replaced_without_a_restart() -> anyhow::Result<()> {
    let lab = Lab::start("").await?;
    let shop = lab.client("shop").await?;
    // A token that is taken back ends what it has opened; the client finds the new one by itself.
    std::fs::write(lab.token_file("shop"), "a-new-token-for-the-shop")?;
    let old = lab.nobody().token(token("shop"));
    until(|| async { Ok(lab.wire(&old).await?.describe(v1::DescribeRequest {}).await.is_err()) }).await?;
    shop.transaction().sql("db", "SELECT 1", []).commit().await?;
    ensure!(shop.query("db", "SELECT 1", []).await?.rows.len() == 1);

    // A file that cannot be used: what was in use stays, and the doctor says so.
    let (key, good) = (lab.certificate("server.key"), std::fs::read(lab.certificate("server.key"))?);
    std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\nbm9uc2Vuc2U=\n-----END PRIVATE KEY-----\n")?;
    until(|| async { Ok(doctor(&lab).await?.contains("the newest certificates and tokens are not in use")) }).await?;
    ensure!(!doctor(&lab).await?.contains("bm9uc2Vuc2U") && !lab.said().contains("bm9uc2Vuc2U"), "the key is shown");
    lab.client("shop").await?;
    std::fs::write(&key, good)?;
    until(|| async { Ok(!doctor(&lab).await?.contains("not in use")) }).await?;

    // All of it is replaced, the authorities too: connections of before are not taken any more, and new ones are made with the new ones.
    let by_certificate = lab.with_certificate("shop-host");
    let mut before = lab.wire(&by_certificate).await?;
    before.describe(v1::DescribeRequest {}).await?;
    let held = [lab.certificate("ca.pem"), lab.certificate("shop-host.pem"), lab.certificate("shop-host.key")].map(std::fs::read);
    for file in std::fs::read_dir(lab.certificate(""))? {
        std::fs::remove_file(file?.path())?;
    }
    make_certificates(lab.folder.path(), &["--client", "shop-host"])?;
    until(|| async {
        let Ok(channel) = lab.with_certificate("shop-host").endpoint(&lab.url()).map_err(anyhow::Error::msg)?.connect().await else {
            return Ok(false);
        };
        let mut service = v1::transaction_service_client::TransactionServiceClient::new(channel);
        Ok(service.describe(v1::DescribeRequest {}).await.is_ok())
    })
    .await?;
    let status = before.describe(v1::DescribeRequest {}).await.err().context("other authorities vouched for it")?;
    says(status.message(), &["the authorities of client certificates were replaced"]);
    let [ca, certificate, key] = held;
    let old = tempfile::tempdir()?;
    for (name, content) in [("ca.pem", ca?), ("shop.pem", certificate?), ("shop.key", key?)] {
        std::fs::write(old.path().join(name), content)?;
    }
    // The old certificate with the new authority in mind: the daemon does not take it. The old authority: the client does not.
    let mixed = lab.nobody().identity(old.path().join("shop.pem"), old.path().join("shop.key"));
    ensure!(Client::builder(lab.url()).credentials(mixed).connect_timeout(Duration::from_secs(2)).connect().await.is_err());
    let distrusting = Credentials::default().ca_file(old.path().join("ca.pem")).token("a-new-token-for-the-shop");
    let error = Client::builder(lab.url()).credentials(distrusting).connect_timeout(Duration::from_secs(2)).connect().await.err();
    says(&error.context("it is another authority's")?.to_string(), &["certificate"]);
    Ok(())
}

#[tokio::test]
async fn what_may_not_be_served_is_not() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let start = |settings: Vec<String>| {
        let arguments = settings.into_iter().flat_map(|setting| ["--set".to_string(), setting]).collect();
        Daemon::start(Launch { program: program(), data_dir: folder.path().join("data"), arguments, environment: Vec::new() })
    };
    // The lab's daemon is told where to listen by a flag; this goes past it, to the pages.
    let error = start(vec!["http.listen=0.0.0.0:0".into()]).await.err().context("it must not start")?.to_string();
    says(
        &error,
        &["http.listen = \"0.0.0.0:0\" is not on loopback", "without TLS and authentication", "lockstep cert", "security.insecure = true"],
    );
    let output =
        tokio::process::Command::new(program()).args(["--listen", "0.0.0.0:0", "--data-dir"]).arg(folder.path().join("data")).output();
    let output = output.await?;
    ensure!(output.status.code() == Some(2));
    says(&String::from_utf8_lossy(&output.stderr), &["listen = \"0.0.0.0:0\" is not on loopback", "[[principal]]"]);
    // It is not started for this: tests listen on loopback alone.
    let insisted = ["--listen", "0.0.0.0:0", "--set", "security.insecure=true", "check-config"];
    ensure!(tokio::process::Command::new(program()).args(insisted).output().await?.status.success(), "it was insisted upon");
    Ok(())
}

#[test]
fn certificates_are_made_for_those_who_need_them() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let made = make_certificates(folder.path(), &["--host", "lockstep.internal", "--client", "shop"])?;
    says(&made, &["ca.pem", "security.client_ca_file", "server.key", "lockstep.internal", "dns:shop", "Whoever has ca.key can be anybody"]);
    let path = |name: &str| folder.path().join("certificates").join(name);
    for name in ["ca.key", "server.key", "shop.key"] {
        let mode = std::fs::metadata(path(name))?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{name} has mode {mode:o}");
    }
    let (authority, server) = (std::fs::read(path("ca.pem"))?, std::fs::read(path("server.pem"))?);
    make_certificates(folder.path(), &["--client", "other"])?;
    ensure!(std::fs::read(path("ca.pem"))? == authority && std::fs::read(path("server.pem"))? == server, "what is there stays");
    ensure!(path("other.pem").exists());
    let refused = make_certificates(folder.path(), &["--client", "shop"]).err().context("it is there")?;
    says(&refused.to_string(), &["shop.pem is there already"]);
    let refused = make_certificates(folder.path(), &["--client", "../x"]).err().context("no name")?;
    says(&refused.to_string(), &["is no name"]);
    Ok(())
}

async fn doctor(lab: &Lab) -> anyhow::Result<String> {
    let reply = lab.admin(&lab.as_("eye")).await?.doctor(v1::DoctorRequest {}).await?.into_inner();
    Ok(reply.findings.into_iter().map(|finding| format!("{}: {}\n", finding.subject, finding.sentence)).collect())
}

async fn until<F: Future<Output = anyhow::Result<bool>>>(mut so: impl FnMut() -> F) -> anyhow::Result<()> {
    let until = Instant::now() + LIMIT;
    while !so().await? {
        ensure!(Instant::now() < until, "it has not come to that");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
