//! Branches that a store holds prepared, straight from the store: for when the daemon is down, and its log too is read from its folder.

use crate::arguments::Branches;
use crate::output::{self, Output, Tone};
use crate::{Exit, Failure, Io};
use lockstep_log::{BranchFate, Inspection};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// What is prepared under a name of ours, the oldest first. Times in whole milliseconds.
const LISTED: &str = "SELECT gid, database::text, owner::text,
    (extract(epoch FROM prepared) * 1000)::bigint, (extract(epoch FROM now() - prepared) * 1000)::bigint
    FROM pg_catalog.pg_prepared_xacts WHERE gid LIKE 'lockstep:%' ORDER BY prepared";

#[derive(Serialize)]
struct Listed {
    /// Where it was read.
    source: String,
    /// The log that was read beside it.
    log: Option<String>,
    branches: Vec<Branch>,
}

/// A prepared branch, as JSON shows it.
#[derive(Serialize)]
struct Branch {
    gid: String,
    database: String,
    owner: String,
    prepared_at_ms: u64,
    age_ms: u64,
    /// The store's name in the log, if that was read and knows it.
    store: Option<String>,
    /// "commit", "abort", "in doubt", "unknown"
    fate: &'static str,
    /// What the log says of it, and what becomes of it by itself.
    sentence: String,
}

/// Asks the server; with a log's folder also what the log says of each.
pub(crate) async fn list(arguments: &Branches, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let log = match &arguments.folder {
        Some(folder) => Some(Inspection::of(folder).map_err(crate::log::unread)?),
        None => None,
    };
    let mut config: Config = arguments.postgres.parse().map_err(|_| Failure {
        exit: Exit::Usage,
        message: "--postgres cannot be read".into(),
        hint: "give it as postgresql://user@host:port/database, and the password in PGPASSWORD".into(),
    })?;
    if let Ok(password) = std::env::var("PGPASSWORD") {
        config.password(password);
    }
    let source = place(&config);
    let tls = tls(arguments.ssl_root_cert.as_deref()).map_err(|message| Failure {
        exit: Exit::Usage,
        message,
        hint: "give a file of PEM certificates".into(),
    })?;
    let asked = tokio::time::timeout(PATIENCE, ask(&config, tls)).await;
    let unreachable = |why: String| Failure {
        exit: Exit::Unreachable,
        message: format!("the server at {source} does not answer: {why}"),
        hint: "look whether it runs, whether it takes this user, and who signed its certificate (--ssl-root-cert; or sslmode=disable)"
            .into(),
    };
    let rows = asked.map_err(|_| unreachable(format!("no answer within {PATIENCE:?}")))?.map_err(|error| unreachable(told(&error)))?;
    let branch = |(gid, database, owner, prepared_at_ms, age_ms): Row| {
        let (store, fate, sentence) = match log.as_ref().map(|log| log.fate(&gid)) {
            None => (None, "unknown", "the log was not read: --folder DATA_DIR/log".to_string()),
            Some((store, fate)) => {
                let (word, sentence) = words(fate);
                (store, word, sentence)
            }
        };
        Branch { gid, database, owner, prepared_at_ms, age_ms, store, fate, sentence }
    };
    let branches: Vec<_> = rows.into_iter().map(branch).collect();
    let listed = Listed { source, log: arguments.folder.as_ref().map(|folder| folder.display().to_string()), branches };
    output.write(io, &listed, || listed.text(output))?;
    Ok(if listed.branches.is_empty() { Exit::Ok } else { Exit::Attention })
}

type Row = (String, String, String, u64, u64);

/// Verifies the server by these authorities, or else by the system's. A sentence if they cannot be read.
fn tls(authorities: Option<&Path>) -> Result<MakeRustlsConnect, String> {
    let mut roots = RootCertStore::empty();
    match authorities {
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        Some(path) => {
            let cannot = |why: String| format!("--ssl-root-cert {} cannot be used: {why}", path.display());
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| cannot(error.to_string()))? {
                let certificate = certificate.map_err(|error| cannot(error.to_string()))?;
                roots.add(certificate).map_err(|error| cannot(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(cannot("it holds no certificate".into()));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| format!("TLS cannot be set up: {error}"))?;
    Ok(MakeRustlsConnect::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

async fn ask(config: &Config, tls: MakeRustlsConnect) -> Result<Vec<Row>, tokio_postgres::Error> {
    let (client, connection) = config.connect(tls).await?;
    let driver = tokio::spawn(connection);
    let rows = client.query(LISTED, &[]).await;
    driver.abort();
    let ms = |value: i64| value.max(0).cast_unsigned();
    rows?.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, ms(row.try_get(3)?), ms(row.try_get(4)?)))).collect()
}

/// What is to be expected, in the words of `tx explain`.
fn words(fate: BranchFate) -> (&'static str, String) {
    match fate {
        BranchFate::Committed { csn, lsn } => {
            ("commit", format!("decided to commit, at CSN {csn} (record {lsn}): the daemon commits it as soon as it runs"))
        }
        BranchFate::ByHand { commit, operator, lsn } => {
            let (word, does) = if commit { ("commit", "commits it") } else { ("abort", "rolls it back") };
            (word, format!("{operator} has ordered that by hand (record {lsn}): the daemon {does} as soon as it runs"))
        }
        BranchFate::Unrecorded => {
            ("abort", "orphaned: the log has no commit of it; the daemon rolls it back once it runs and no store knows better".into())
        }
        BranchFate::Forgotten { floor } => ("unknown", format!("it began before {floor}, and the log keeps no outcomes from then")),
        BranchFate::Led { leader } => ("in doubt", format!("only `{leader}` can tell how it was decided: look for its marker there")),
        BranchFate::Ahead { epoch } => {
            ("unknown", format!("it is of a later start than this log knows (epoch {epoch}): the log has lost records, or is a copy"))
        }
        BranchFate::Foreign => ("unknown", "another coordinator's: not of this log".into()),
    }
}

/// Where it is, without any secret.
fn place(config: &Config) -> String {
    let hosts: Vec<_> = config
        .get_hosts()
        .iter()
        .map(|host| match host {
            tokio_postgres::config::Host::Tcp(host) => host.clone(),
            tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
        })
        .collect();
    let port = config.get_ports().first().copied().unwrap_or(5432);
    format!("{}:{port}", hosts.join(","))
}

fn told(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl Listed {
    fn text(&self, output: &Output) -> String {
        let read = [
            ("server", self.source.clone()),
            ("log", output::or_dash(self.log.as_ref())),
            ("prepared", format!("{} branches of Lockstep", self.branches.len())),
        ];
        let text = output::list(&read);
        if self.branches.is_empty() {
            return text;
        }
        let row = |branch: &Branch| {
            let tone = match branch.fate {
                "commit" | "abort" => Tone::Plain,
                _ => Tone::Warning,
            };
            [
                output::text(&branch.gid),
                output::text(&branch.database),
                output::text(output::or_dash(branch.store.as_ref())),
                output::text(&branch.owner),
                output::number(output::duration(branch.age_ms)),
                output::toned(branch.fate, tone),
                output::text(&branch.sentence),
            ]
        };
        let table =
            output.table(["BRANCH", "DATABASE", "STORE", "OWNER", "AGE", "FATE", "WHAT THE LOG SAYS"], self.branches.iter().map(row));
        format!(
            "{text}\n{table}\n\nTo finish one by hand, against what the log says too: COMMIT PREPARED 'BRANCH' or ROLLBACK PREPARED 'BRANCH', in its database. What \
             turns out to be against the decision is damage.\n"
        )
    }
}
