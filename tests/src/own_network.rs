//! A network namespace, in which there is nothing but the loopback link; and that can be taken down.

use anyhow::{Context, ensure};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::process::Command;

/// The network of the thread that entered it, and of all threads and processes that it has started since.
#[derive(Debug)]
pub struct OwnNetwork(());

impl OwnNetwork {
    /// The calling thread leaves the machine's network for one of its own. An error, and all is as before, where that may not be: it takes root, and `ip`.
    pub fn enter() -> anyhow::Result<OwnNetwork> {
        link("show").context("there is no `ip`")?;
        // SAFETY: only an unshared table of file descriptors could break what other threads hold.
        #[allow(unsafe_code)]
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("a network namespace takes root")?;
        let network = OwnNetwork(());
        network.up()?;
        Ok(network)
    }

    /// From now on nothing reaches anybody: packets are lost, new connections are refused by the kernel, and old ones stay.
    pub fn down(&self) -> anyhow::Result<()> {
        link("down")
    }

    /// The link is there again.
    pub fn up(&self) -> anyhow::Result<()> {
        link("up")
    }
}

fn link(what: &str) -> anyhow::Result<()> {
    let words: &[&str] = if what == "show" { &["link", "show", "lo"] } else { &["link", "set", "lo", what] };
    let output = Command::new("ip").args(words).output().context("cannot run `ip`")?;
    ensure!(output.status.success(), "ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
