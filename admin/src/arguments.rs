//! The command line.

use crate::output::Format;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use lockstep_client::{Credentials, DEFAULT_ENDPOINT, Txid};
use std::path::PathBuf;
use std::time::Duration;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line is wrong, or was not confirmed
  3  no daemon answers
  4  the daemon refuses it
  5  something needs a person: what was asked about, or, of wait, what is still in doubt, or, of
     verify, what differs

Data goes to stdout, all else to stderr. NO_COLOR is honoured.";

/// Looks at a Lockstep daemon, and mends what only a person may.
#[derive(Parser)]
#[command(name = "lockstep", version, term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// Where the daemon listens
    #[arg(long, global = true, env = "LOCKSTEP_ENDPOINT", hide_env_values = true, default_value = DEFAULT_ENDPOINT)]
    pub endpoint: String,
    #[command(flatten)]
    pub proof: Proof,
    /// How data is written
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    #[command(subcommand)]
    pub command: Command,
}

/// Who you are, and whom to take for the daemon. A token comes from a file or from LOCKSTEP_TOKEN, never from the command line.
#[derive(Args)]
pub(crate) struct Proof {
    /// The authorities (PEM) that the daemon's certificate has to be of, if not the system's
    #[arg(long, global = true, env = "LOCKSTEP_CA_FILE", hide_env_values = true, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Your certificate (PEM), if you prove by one who you are
    #[arg(long, global = true, env = "LOCKSTEP_CERT_FILE", hide_env_values = true, value_name = "FILE", requires = "key_file")]
    pub cert_file: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, global = true, env = "LOCKSTEP_KEY_FILE", hide_env_values = true, value_name = "FILE", requires = "cert_file")]
    pub key_file: Option<PathBuf>,
    /// A file with your token, if you prove by one who you are; or the token itself in LOCKSTEP_TOKEN
    #[arg(long, global = true, env = "LOCKSTEP_TOKEN_FILE", hide_env_values = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

impl Proof {
    pub(crate) fn credentials(&self) -> Credentials {
        let mut credentials = Credentials::default();
        if let Some(file) = &self.ca_file {
            credentials = credentials.ca_file(file);
        }
        if let (Some(certificate), Some(key)) = (&self.cert_file, &self.key_file) {
            credentials = credentials.identity(certificate, key);
        }
        match (&self.token_file, std::env::var("LOCKSTEP_TOKEN")) {
            (Some(file), _) => credentials.token_file(file),
            (None, Ok(token)) if !token.is_empty() => credentials.token(token),
            (None, _) => credentials,
        }
    }
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// One screen: phase, log, what is in doubt, every store
    Status,
    /// Transactions
    #[command(subcommand)]
    Tx(Tx),
    /// Every store: session, how far it has followed, what is stuck
    Participants {
        #[command(subcommand)]
        command: Option<Participants>,
    },
    /// The decision log
    #[command(subcommand)]
    Log(Log),
    /// Findings, each with its remedy
    Doctor,
    /// Wait until nothing is in doubt: all that is decided is applied, and every prepared branch has its answer
    Wait {
        /// For so long at most, for example 30s, 5m; then it exits with 5
        #[arg(long, value_name = "TIME", value_parser = duration)]
        timeout: Option<Duration>,
    },
    /// Give up a decided write at one store, for ever; recorded as damage
    Skip(Branch),
    /// Promises broken by hand, kept until they are forgotten by hand
    #[command(subcommand)]
    Damage(Damage),
    /// Do not wait for a store's evidence about a lost log
    Waive {
        /// The store's name
        participant: String,
        #[command(flatten)]
        order: Order,
    },
    /// Leave safe mode: what is in doubt and unknown to the log is given up as aborted
    LeaveSafeMode {
        #[command(flatten)]
        order: Order,
    },
    /// Whether rows and documents agree, by the [[verify]] of the daemon's configuration, while writes go on
    Verify(Verify),
    /// Copy the log and the embedded stores into a folder, all of one moment, while the daemon goes on
    Backup {
        /// A folder of the daemon's machine; not there yet, or empty
        folder: PathBuf,
        /// Where stores are servers: what backs them up, run by `sh -c` at the moment that it has to be; without it you are asked
        #[arg(long, value_name = "COMMAND")]
        server_command: Option<String>,
    },
    /// Put a backup into an empty data folder, with no daemon; every file is checked
    Restore {
        /// The backup's folder
        folder: PathBuf,
        /// The data folder; not there yet, or empty
        #[arg(long, value_name = "DIR", required_unless_present = "check")]
        data_dir: Option<PathBuf>,
        /// Only check every file of the backup
        #[arg(long, conflicts_with = "data_dir")]
        check: bool,
    },
    /// Branches that a store holds prepared, listed straight from the store, with no daemon
    Branches(Branches),
    /// Who ordered what, and what was refused
    #[command(subcommand)]
    Audit(Audit),
    /// Certificates for development: an authority, the daemon's, and clients'
    Cert(Certificates),
    /// Shell completions, to stdout
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Manual pages, one a command, into a folder
    #[command(hide = true)]
    Man {
        /// The folder; it is made if it is not there
        folder: PathBuf,
    },
}

#[derive(Args)]
pub(crate) struct Verify {
    /// Mappings by their names; all if none is named
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Write what the rows say into the documents that do not say it, after showing the plan
    #[arg(long)]
    pub repair: bool,
    /// Repair without asking
    #[arg(long, requires = "repair", conflicts_with = "dry_run")]
    pub yes: bool,
    /// Show what would be repaired, and do nothing
    #[arg(long, requires = "repair")]
    pub dry_run: bool,
    /// How long what is being written is waited for, once all is read
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub patience: Duration,
    /// So many differences of one mapping are shown, and repaired, at most; all are counted
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
}

#[derive(Args)]
pub(crate) struct Branches {
    /// The PostgreSQL server, `postgresql://user@host:port/database`; its password comes from PGPASSWORD. TLS as its `sslmode` says:
    /// disable, prefer (what is taken if it says nothing), or require; a server's certificate is always verified
    #[arg(long, value_name = "URL")]
    pub postgres: String,
    /// Certificate authorities (PEM) of the server; without it the system's
    #[arg(long, value_name = "FILE", env = "PGSSLROOTCERT")]
    pub ssl_root_cert: Option<PathBuf>,
    /// The log's folder (DATA_DIR/log) of a daemon that is down: tells what the log says of each branch; nothing in it is changed
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum Participants {
    /// The same as `participants` alone
    List,
    /// Do without a store for ever: what it is owed is given up and recorded as damage; then it may be taken out of the
    /// configuration
    Remove {
        /// The store's name; also of one that is not configured any more
        participant: String,
        #[command(flatten)]
        order: Order,
    },
}

#[derive(Subcommand)]
pub(crate) enum Tx {
    /// Transactions that are not ended, or those in the states named
    List(List),
    /// One transaction: its branches, and what happened when, in which store, by whose word
    Show {
        /// EPOCH-N, as `tx list` shows it
        txid: Txid,
    },
    /// Why it is not finished, what happens by itself and when, what you can do, and what each choice damages
    Explain {
        /// EPOCH-N, as `tx list` shows it
        txid: Txid,
    },
    /// Finish a prepared branch by hand (a heuristic decision); damage if the decision turns out otherwise
    Resolve {
        #[command(flatten)]
        branch: Branch,
        #[command(flatten)]
        way: Way,
    },
    /// The same as `damage forget`
    Forget(Branch),
}

#[derive(Args)]
pub(crate) struct List {
    /// Only transactions in this state; may be repeated
    #[arg(long, value_enum)]
    pub state: Vec<State>,
    /// Only transactions with a branch at this store
    #[arg(long, value_name = "NAME")]
    pub participant: Option<String>,
    /// Only transactions at least so old, for example 30s, 5m, 2h
    #[arg(long, value_name = "AGE", value_parser = duration)]
    pub older_than: Option<Duration>,
    /// Only the transaction under this idempotency key, or those that write the document under it
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// So many at most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Show the list again every 2 seconds, until interrupted
    #[arg(long)]
    pub watch: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Way {
    /// Commit the branch
    #[arg(long)]
    pub commit: bool,
    /// Roll the branch back
    #[arg(long, alias = "rollback")]
    pub abort: bool,
}

#[derive(Subcommand)]
pub(crate) enum Log {
    /// Its records, one a line, the oldest first
    Dump(Dump),
    /// Whether it is whole: every record there, unchanged and readable; and what in it is not ended
    Verify {
        /// The log's folder (DATA_DIR/log), when the daemon is down; nothing in it is changed
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
    },
}

#[derive(Args)]
pub(crate) struct Dump {
    /// The log's folder (DATA_DIR/log), when the daemon is down; nothing in it is changed
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// The first record
    #[arg(long, value_name = "LSN", default_value_t = 1)]
    pub from: u64,
    /// So many at most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
}

#[derive(Subcommand)]
pub(crate) enum Damage {
    /// All damage on record
    List,
    /// The damage of one transaction, and how to mend it
    Show {
        /// EPOCH-N, as `damage list` shows it
        txid: Txid,
    },
    /// Take an entry off the record, once the data is mended
    Forget(Branch),
}

#[derive(Subcommand)]
pub(crate) enum Audit {
    /// Orders and refused attempts, the newest first
    List {
        /// So many at most
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
}

#[derive(Args)]
pub(crate) struct Certificates {
    /// The folder; it is made if it is not there. An authority that is there already signs what is new
    #[arg(long, value_name = "DIR")]
    pub folder: PathBuf,
    /// A name or address that clients reach the daemon by; may be repeated. localhost, 127.0.0.1 and ::1 are always among them
    #[arg(long, value_name = "NAME")]
    pub host: Vec<String>,
    /// A client that gets a certificate; may be repeated
    #[arg(long, value_name = "NAME")]
    pub client: Vec<String>,
    /// How long they are valid
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
}

/// A transaction's part at one store, and an order about it.
#[derive(Args)]
pub(crate) struct Branch {
    /// EPOCH-N, as `tx list` shows it
    pub txid: Txid,
    /// The store
    #[arg(long, value_name = "NAME")]
    pub participant: String,
    #[command(flatten)]
    pub order: Order,
}

/// Who orders it and why: both go into the log.
#[derive(Args)]
pub(crate) struct Order {
    /// Who you are, for the log
    #[arg(long, env = "USER", hide_env_values = true, required_unless_present = "dry_run")]
    pub operator: Option<String>,
    /// Why, for the log
    #[arg(long, required_unless_present = "dry_run")]
    pub reason: Option<String>,
    /// Do it without asking
    #[arg(long, conflicts_with = "dry_run")]
    pub yes: bool,
    /// Show what it would do and damage, and do nothing; exits with 4 if it would be refused
    #[arg(long)]
    pub dry_run: bool,
}

impl Order {
    /// Who and why; a dry run needs neither.
    pub(crate) fn signed(&self) -> (String, String) {
        (self.operator.clone().unwrap_or_default(), self.reason.clone().unwrap_or_default())
    }
}

/// The whole command line. Every command's help ends with the exit codes.
pub(crate) fn command() -> clap::Command {
    with_exit_codes(Arguments::command())
}

fn with_exit_codes(command: clap::Command) -> clap::Command {
    command.after_help(EXIT_CODES).mut_subcommands(with_exit_codes)
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum State {
    Active,
    Preparing,
    Deciding,
    Committing,
    InDoubt,
    Committed,
    Aborted,
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            State::Active => "active",
            State::Preparing => "preparing",
            State::Deciding => "deciding",
            State::Committing => "committing",
            State::InDoubt => "in doubt",
            State::Committed => "committed",
            State::Aborted => "aborted",
        }
    }
}

/// `500ms`, `30s`, `5m`, `2h`, `1d`.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is no time: expected a number and ms, s, m, h or d, for example 30s");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(split);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for text in ["", "30", "s", "1.5s", "-1s", "99999999999999999999s", "3 weeks"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
