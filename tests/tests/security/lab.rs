//! A daemon with TLS and principals of every kind, and ways to call it as any of them.

use anyhow::{Context, ensure};
use bytes::Bytes;
use lockstep::{Exit, Io};
use lockstep_client::{AuthorizedChannel, Client, Credentials};
use lockstep_proto::v1;
use lockstep_proto::v1::admin_service_client::AdminServiceClient;
use lockstep_proto::v1::transaction_service_client::TransactionServiceClient;
use lockstep_tests::verbatim::Verbatim;
use lockstepd::demo::daemon::{Daemon, Launch};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::{Code, Status};

/// Far above what anything here takes.
pub const LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at something that changes by itself.
pub const LOOK: Duration = Duration::from_millis(10);

/// Name, roles, and what else stands in its table. Each has a token of its own.
const PRINCIPALS: [(&str, &str, &str); 8] = [
    ("shop", "client", "stores = [\"db\", \"index\"]\ncertificates = [\"dns:shop-host\"]"),
    ("rival", "client", ""),
    ("narrow", "client", "stores = [\"index\"]"),
    ("hasty", "client", "requests_per_second = 5\ntransaction_bytes = 2000\nstreams = 1"),
    ("far", "participant", "stores = [\"far\"]"),
    ("eye", "viewer", ""),
    ("gauge", "client viewer", ""),
    ("ops", "operator", ""),
];

const STORES: &str = r#"
[[store]]
type = "sqlite"
name = "db"
[[store]]
type = "tantivy"
name = "index"
[[store]]
type = "remote"
name = "far"
role = "index"
kind = "redo"
[[store]]
type = "remote"
name = "farther"
role = "index"
kind = "redo"
"#;

pub struct Lab {
    pub folder: tempfile::TempDir,
    pub daemon: Daemon,
}

impl Lab {
    /// `more`: further keys of `[security]` and tables after it.
    pub async fn start(more: &str) -> anyhow::Result<Lab> {
        let folder = tempfile::tempdir()?;
        let at = folder.path();
        make_certificates(at, &["--client", "shop-host", "--client", "stranger-host"])?;
        let mut configuration = format!(
            "{STORES}\n[security]\ncertificate_file = \"{0}/server.pem\"\nkey_file = \"{0}/server.key\"\nclient_ca_file = \"{0}/ca.pem\"\n\
             reload_every_ms = 100\n{more}\n",
            certificates(at).display()
        );
        for (name, roles, extra) in PRINCIPALS {
            std::fs::write(at.join(name), format!("{}\n", token(name)))?;
            configuration += &format!(
                "[[principal]]\nname = \"{name}\"\nroles = {:?}\ntoken_file = \"{}\"\n{extra}\n",
                roles.split(' ').collect::<Vec<_>>(),
                at.join(name).display()
            );
        }
        let file = at.join("lockstepd.toml");
        std::fs::write(&file, configuration)?;
        let arguments = vec!["--config".into(), file.display().to_string()];
        let launch = Launch { program: program(), data_dir: at.join("data"), arguments, environment: Vec::new() };
        let daemon = Daemon::start(launch.with_socket()).await?;
        let lab = Lab { folder, daemon };
        lab.wait_until_serving().await?;
        Ok(lab)
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.daemon.address())
    }

    pub fn token_file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file that `lockstep cert` made.
    pub fn certificate(&self, name: &str) -> PathBuf {
        certificates(self.folder.path()).join(name)
    }

    /// The daemon is trusted, and nothing is shown.
    pub fn nobody(&self) -> Credentials {
        Credentials::default().ca_file(self.certificate("ca.pem"))
    }

    pub fn as_(&self, name: &str) -> Credentials {
        self.nobody().token_file(self.token_file(name))
    }

    pub fn with_certificate(&self, name: &str) -> Credentials {
        self.nobody().identity(self.certificate(&format!("{name}.pem")), self.certificate(&format!("{name}.key")))
    }

    pub async fn client(&self, name: &str) -> anyhow::Result<Client> {
        let builder = Client::builder(self.url()).credentials(self.as_(name)).reconnect(LOOK, Duration::from_millis(50));
        Ok(builder.connect().await?)
    }

    pub async fn admin(&self, credentials: &Credentials) -> anyhow::Result<AdminServiceClient<AuthorizedChannel>> {
        let channel = credentials.endpoint(&self.url()).map_err(anyhow::Error::msg)?.connect().await?;
        Ok(AdminServiceClient::with_interceptor(channel, credentials.authorization().map_err(anyhow::Error::msg)?))
    }

    pub async fn wire(&self, credentials: &Credentials) -> anyhow::Result<TransactionServiceClient<AuthorizedChannel>> {
        let channel = credentials.endpoint(&self.url()).map_err(anyhow::Error::msg)?.connect().await?;
        Ok(TransactionServiceClient::with_interceptor(channel, credentials.authorization().map_err(anyhow::Error::msg)?))
    }

    pub async fn wait_until_serving(&self) -> anyhow::Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            match self.status().await {
                Ok(status) if status.phase == "serving" => return Ok(()),
                told => ensure!(Instant::now() < until, "it does not serve: {told:?}"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub async fn status(&self) -> anyhow::Result<v1::StatusReply> {
        Ok(self.admin(&self.as_("eye")).await?.status(v1::StatusRequest {}).await?.into_inner())
    }

    /// What the daemon says in its log.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.daemon.launch().log_file()).unwrap_or_default()
    }

    /// What `lockstep` says as this principal, to either stream.
    pub async fn cli(&self, name: &str, words: &[&str], expected: Exit) -> anyhow::Result<String> {
        let (endpoint, ca, token) = (self.url(), self.certificate("ca.pem"), self.token_file(name));
        let mut line = vec!["lockstep".to_string(), "--endpoint".into(), endpoint, "--ca-file".into(), ca.display().to_string()];
        line.extend(["--token-file".to_string(), token.display().to_string()]);
        line.extend(words.iter().map(|word| word.to_string()));
        let (exit, text) = tokio::task::spawn_blocking(move || run_cli(line)).await?;
        ensure!(exit == expected, "lockstep {}: {exit:?} instead of {expected:?}\n{text}", words.join(" "));
        Ok(text)
    }
}

pub fn token(name: &str) -> String {
    format!("token-of-{name}-0123456789abcdef")
}

pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_lockstepd-with-failpoints"))
}

fn certificates(folder: &Path) -> PathBuf {
    folder.join("certificates")
}

/// `lockstep cert`.
pub fn make_certificates(folder: &Path, words: &[&str]) -> anyhow::Result<String> {
    let mut line = vec!["lockstep".to_string(), "cert".into(), "--folder".into(), certificates(folder).display().to_string()];
    line.extend(words.iter().map(|word| word.to_string()));
    let (exit, text) = run_cli(line);
    ensure!(exit == Exit::Ok, "{text}");
    Ok(text)
}

/// What it writes, to both streams. It has a runtime of its own, so a thread of its own.
pub fn run_cli(line: Vec<String>) -> (Exit, String) {
    let run = move || {
        let (mut stdout, mut stderr, mut stdin) = (Vec::new(), Vec::new(), &b""[..]);
        let mut io = Io { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr, interactive: false, color: false };
        let exit = lockstep::run(line, &mut io);
        stdout.extend(stderr);
        (exit, String::from_utf8_lossy(&stdout).into_owned())
    };
    std::thread::spawn(run).join().expect("the command line does not panic")
}

/// Calls a method with one message of these bytes; what it ends with, or `Ok` as soon as it answers.
pub async fn call(channel: &AuthorizedChannel, path: &str, message: &[u8]) -> anyhow::Result<Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let requests = tokio_stream::once(Bytes::copy_from_slice(message));
    let talk = async {
        match grpc.streaming(tonic::Request::new(requests), path.parse()?, Verbatim).await {
            Err(status) => Ok(status),
            Ok(answers) => match answers.into_inner().message().await {
                Err(status) => Ok(status),
                Ok(_) => Ok(Status::new(Code::Ok, "")),
            },
        }
    };
    tokio::time::timeout(LIMIT, talk).await.with_context(|| format!("{path} does not answer"))?
}

/// All of these words are in the text, however it is wrapped.
#[track_caller]
pub fn says(text: &str, words: &[&str]) {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in words {
        assert!(flat.contains(word), "`{word}` is missing in:\n{text}");
    }
}
