//! `lockstep`, run inside this process.

use anyhow::{Context, ensure};
use lockstep::{Exit, Io};

/// What a run said, and how it ended.
pub struct Said {
    /// How it ended.
    pub exit: Exit,
    /// Data.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
}

/// Runs it with these words behind its name; nobody is there to be asked.
pub async fn run(words: &[&str]) -> anyhow::Result<Said> {
    let line: Vec<_> = std::iter::once(&"lockstep").chain(words).map(|word| word.to_string()).collect();
    let (exit, stdout, stderr) = tokio::task::spawn_blocking(move || {
        let (mut stdout, mut stderr, mut stdin) = (Vec::new(), Vec::new(), &b""[..]);
        let mut io = Io { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr, interactive: false, color: false };
        (lockstep::run(line, &mut io), stdout, stderr)
    })
    .await?;
    Ok(Said { exit, stdout: String::from_utf8(stdout)?, stderr: String::from_utf8(stderr)? })
}

/// The data of a run that ends as expected.
pub async fn data(words: &[&str], expected: Exit) -> anyhow::Result<String> {
    let Said { exit, stdout, stderr } = run(words).await?;
    ensure!(exit == expected, "{words:?}: {exit:?}\n{stdout}{stderr}");
    Ok(stdout)
}

/// A CSN as the command line writes it, as a number.
pub fn csn(value: &serde_json::Value) -> anyhow::Result<u64> {
    let text = value.as_str().context("a CSN is a text")?;
    Ok(text.parse::<lockstep_core::Csn>().map_err(|error| anyhow::anyhow!("{text}: {error}"))?.to_u64())
}
