//! The command line.

use crate::output::Format;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use lockstep_client::{DEFAULT_ENDPOINT, Txid};
use std::time::Duration;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line is wrong, or was not confirmed
  3  no daemon answers
  4  the daemon refuses it
  5  status, doctor or damage list found something that needs a person

Data goes to stdout, all else to stderr. NO_COLOR is honoured.";

/// Looks at a Lockstep daemon, and mends what only a person may.
#[derive(Parser)]
#[command(name = "lockstep", version, after_help = EXIT_CODES, term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// Where the daemon listens
    #[arg(long, global = true, env = "LOCKSTEP_ENDPOINT", hide_env_values = true, default_value = DEFAULT_ENDPOINT)]
    pub endpoint: String,
    /// How data is written
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// One screen: phase, log, what is in doubt, every store
    Status,
    /// Transactions
    #[command(subcommand)]
    Tx(Tx),
    /// Every store: session, how far it has followed, what is stuck
    Participants,
    /// The decision log
    #[command(subcommand)]
    Log(Log),
    /// Findings, each with its remedy
    Doctor,
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
    /// Shell completions, to stdout
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Subcommand)]
pub(crate) enum Tx {
    /// Transactions that are not ended, or those in the states named
    List(List),
    /// One transaction: its branches, why it is where it is, and what happens next
    Show {
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
    #[arg(long)]
    pub rollback: bool,
}

#[derive(Subcommand)]
pub(crate) enum Log {
    /// Its records, one a line, the oldest first
    Dump {
        /// The first record
        #[arg(long, value_name = "LSN", default_value_t = 1)]
        from: u64,
        /// So many at most
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
}

#[derive(Subcommand)]
pub(crate) enum Damage {
    /// All damage on record
    List,
    /// Take an entry off the record, once the data is mended
    Forget(Branch),
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
    #[arg(long, env = "USER", hide_env_values = true)]
    pub operator: String,
    /// Why, for the log
    #[arg(long)]
    pub reason: String,
    /// Do it without asking
    #[arg(long)]
    pub yes: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum State {
    Active,
    Preparing,
    Deciding,
    Committing,
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
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
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
