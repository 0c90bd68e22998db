//! No secret is written anywhere: logs at their loudest, the data folder, help, errors, what the command lines say.

use crate::lab::{LIMIT, LOOK, make_certificates, program, run_cli, says};
use anyhow::{Context, ensure};
use lockstep_client::{Client, Credentials};
use lockstepd::demo::daemon::{Daemon, Launch};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// In every place that takes one.
const DATABASE: &str = "s3cr3t-of-the-database";
const SEARCH: &str = "s3cr3t-of-the-search";
const HEADER: &str = "s3cr3t-of-the-collector";
const API_KEY: &str = "czNjcjN0LW9mLXRoZS1hcGkta2V5";
const TOKEN: &str = "s3cr3t-token-of-shop-0123";
const TOKEN_IN_ENVIRONMENT: &str = "s3cr3t-token-of-ops-01234";
const WRONG_TOKEN: &str = "s3cr3t-token-of-nobody-012";
/// `me:` and the search's, as basic authentication sends it.
const SEARCH_BASIC: &str = "bWU6czNjcjN0LW9mLXRoZS1zZWFyY2g=";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_written_anywhere() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    make_certificates(at, &["--client", "shop"])?;
    let database = refusing_database().await?;
    let search = refusing_search().await?;
    let collector = refusing_collector().await?;
    for (name, secret) in [("database", DATABASE), ("search", SEARCH), ("shop", TOKEN)] {
        std::fs::write(at.join(name), secret)?;
    }
    let configuration = format!(
        r#"
[[store]]
type = "sqlite"
name = "db"
[[store]]
type = "postgres"
name = "far-db"
url = "postgresql://me@{database}/shop"
password_file = "{0}/database"
sslmode = "disable"
[[store]]
type = "opensearch"
name = "far-index"
nodes = ["http://{search}"]
user = "me"
password_file = "{0}/search"
[[store]]
type = "opensearch"
name = "farther-index"
nodes = ["http://{search}"]
api_key_env = "TEST_API_KEY"
[security]
certificate_file = "{0}/certificates/server.pem"
key_file = "{0}/certificates/server.key"
client_ca_file = "{0}/certificates/ca.pem"
[logging]
level = "trace"
[traces]
endpoint = "http://{collector}"
headers_env = "TEST_HEADERS"
[[principal]]
name = "shop"
roles = ["client"]
token_file = "{0}/shop"
[[principal]]
name = "ops"
roles = ["operator"]
token_env = "TEST_TOKEN"
"#,
        at.display()
    );
    let file = at.join("lockstepd.toml");
    std::fs::write(&file, configuration)?;
    let environment = vec![
        ("TEST_API_KEY".to_string(), API_KEY.to_string()),
        ("TEST_TOKEN".into(), TOKEN_IN_ENVIRONMENT.into()),
        ("TEST_HEADERS".into(), format!("authorization=Bearer {HEADER},x-tenant=shop")),
    ];
    let arguments = vec!["--config".to_string(), file.display().to_string()];
    let launch = Launch { program: program(), data_dir: at.join("data"), arguments, environment: environment.clone() };
    let mut daemon = Daemon::start(launch).await?;
    let url = format!("https://{}", daemon.address());
    let mut written = String::new();

    // Good and bad calls, over both ways of proving it.
    let trusted = || Credentials::default().ca_file(at.join("certificates/ca.pem"));
    let client = Client::builder(&url).credentials(trusted().token(TOKEN)).connect().await?;
    written += &format!("{client:?} {:?}\n", trusted().token(TOKEN));
    let _ = client.query("db", "SELECT nonsense", []).await;
    for store in ["far-db", "far-index", "farther-index"] {
        let read = client.query(store, "SELECT 1", []).timeout(Duration::from_secs(2)).await;
        let found = client.search(store, "x").timeout(Duration::from_secs(2)).await;
        written += &format!("{read:?} {found:?}\n");
    }
    let traced = client.transaction().sql("db", "INSERT INTO nowhere VALUES (1)", []);
    let traced = traced.traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").commit().await;
    written += &format!("{traced:?}\n");
    let refused = Client::builder(&url).credentials(trusted().token(WRONG_TOKEN)).connect().await;
    let error = refused.err().context("it is no token")?;
    written += &format!("{error} {error:?}\n");
    std::fs::write(at.join("wrong"), WRONG_TOKEN)?;
    std::fs::write(at.join("ops"), TOKEN_IN_ENVIRONMENT)?;
    let lines: [(&str, &[&str]); 7] = [
        ("ops", &["doctor"]),
        ("ops", &["status"]),
        ("ops", &["audit", "list", "--output", "json"]),
        ("ops", &["log", "dump"]),
        ("wrong", &["status"]),
        ("ops", &["--help"]),
        ("ops", &["nonsense"]),
    ];
    for (token, words) in lines {
        let ca = at.join("certificates/ca.pem").display().to_string();
        let token = at.join(token).display().to_string();
        let mut line = ["lockstep", "--endpoint", &url, "--ca-file", &ca, "--token-file", &token].map(String::from).to_vec();
        line.extend(words.iter().map(|word| word.to_string()));
        written += &tokio::task::spawn_blocking(move || run_cli(line).1).await?;
    }
    says(&written, &["far-db", "this token is not one that is known here"]);
    // Until all three stores have been asked, and the collector, and have refused us.
    let until = Instant::now() + LIMIT;
    let log = daemon.launch().log_file();
    let heard = |words: &str| std::fs::read_to_string(&log).is_ok_and(|text| text.contains(words));
    while !(heard("me is not welcome") && heard("401") && heard("the collector takes no spans")) {
        ensure!(Instant::now() < until, "the stores were not asked: {}", std::fs::read_to_string(&log)?);
        tokio::time::sleep(LOOK).await;
    }
    for words in [&["--help"][..], &["check-config"], &["--set", "listen=0.0.0.0:0", "check-config"], &["nonsense"]] {
        let mut command = tokio::process::Command::new(program());
        let output = command.args(["--config", &file.display().to_string()]).args(words).envs(environment.clone()).output().await?;
        written += &String::from_utf8_lossy(&[output.stdout, output.stderr].concat());
    }
    // What it leaves when it dies badly.
    let id = daemon.id().context("it runs")?;
    rustix::process::kill_process(rustix::process::Pid::from_raw(id as i32).context("its id")?, rustix::process::Signal::ABORT)?;
    ensure!(daemon.wait_until_dead(LIMIT).await?.is_some(), "it does not die");

    let mut places = vec![("what was answered".to_string(), written.into_bytes()), ("the log".into(), std::fs::read(&log)?)];
    collect(&at.join("data"), &mut places)?;
    ensure!(places[1].1.len() > 10_000, "the log is not at its loudest");
    let key = std::fs::read_to_string(at.join("certificates/server.key"))?;
    let key = key.lines().nth(1).context("a key")?.to_string();
    for secret in [HEADER, DATABASE, SEARCH, SEARCH_BASIC, API_KEY, TOKEN, TOKEN_IN_ENVIRONMENT, WRONG_TOKEN, &key] {
        for (place, content) in &places {
            let found = content.windows(secret.len()).position(|window| window == secret.as_bytes());
            let around =
                found.map(|at| String::from_utf8_lossy(&content[at.saturating_sub(200)..(at + 60).min(content.len())]).into_owned());
            ensure!(found.is_none(), "`{secret}` stands in {place}: …{}…", around.unwrap_or_default());
        }
    }
    Ok(())
}

fn collect(folder: &Path, into: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => collect(&path, into)?,
            false => into.push((path.display().to_string(), std::fs::read(&path)?)),
        }
    }
    Ok(())
}

/// Takes a password and refuses it, as PostgreSQL would.
async fn refusing_database() -> anyhow::Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let _ = connection.read(&mut buffer).await?;
                // Ask for the password in the clear, then refuse it.
                connection.write_all(b"R\0\0\0\x08\0\0\0\x03").await?;
                let _ = connection.read(&mut buffer).await?;
                let fields = b"SFATAL\0C28P01\0Mme is not welcome\0\0";
                let mut answer = vec![b'E'];
                answer.extend((fields.len() as u32 + 4).to_be_bytes());
                answer.extend(fields);
                connection.write_all(&answer).await
            });
        }
    });
    Ok(address)
}

/// Takes a request and refuses it, as OpenSearch would.
async fn refusing_search() -> anyhow::Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 8192];
                let _ = connection.read(&mut buffer).await?;
                let body = "{\"error\":\"me is not welcome\",\"status\":401}";
                let head = "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: ";
                connection.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes()).await
            });
        }
    });
    Ok(address)
}

/// A collector that knows no traces. The headers come to it all the same.
async fn refusing_collector() -> anyhow::Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (_, health) = tonic_health::server::health_reporter();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming));
    Ok(address)
}
