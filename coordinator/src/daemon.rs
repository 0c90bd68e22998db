//! The daemon's life: listen, start the engine, serve, and end in order.

use crate::configuration::Configuration;
use crate::engine_handle::{EngineHandle, RunningEngine, Stopped};
use crate::log::backup;
use crate::security::Security;
use crate::security::socket::SocketFile;
use crate::shutdown::Signals;
use crate::{engine, http, service, service_manager};
use anyhow::Context;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tracing::{error, info, warn};

/// What the process is asked to do beside its configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A file that gets the port, once it is listened on.
    pub port_file: Option<PathBuf>,
}

/// How the process ends; `main` documents the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// As asked.
    Clean,
    /// The engine cannot go on: the log failed (R-FSYNC), or another process has it.
    Fatal,
    /// A second signal came before the first was done.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        match exit {
            Exit::Clean => ExitCode::SUCCESS,
            Exit::Fatal => ExitCode::from(3),
            Exit::Interrupted => ExitCode::from(4),
        }
    }
}

/// Runs until a signal or a fatal error. While the engine starts (it replays the log and opens the stores) the port is taken already,
/// and connections wait. `began`: when the process did.
pub async fn run(configuration: Arc<Configuration>, options: Options, began: Instant) -> anyhow::Result<Exit> {
    let mut signals = Signals::take().context("cannot take over SIGTERM and SIGINT")?;
    let security = Security::load(&configuration)?;
    let listeners = 1 + usize::from(configuration.socket.is_some()) + usize::from(configuration.http.listen.is_some());
    service_manager::make_room(configuration.limits.connections.saturating_mul(listeners));
    if configuration.security.insecure && !configuration.listen.ip().is_loopback() {
        warn!(listen = %configuration.listen, "off loopback without TLS and authentication, as security.insecure insists: whoever reaches the port may do anything");
    }
    let listener =
        TcpListener::bind(configuration.listen).await.with_context(|| format!("cannot listen on {} (listen)", configuration.listen))?;
    let address = listener.local_addr()?;
    std::fs::create_dir_all(&configuration.data_dir)
        .with_context(|| format!("cannot make the data folder {} (data_dir)", configuration.data_dir.display()))?;
    // The file is there until all else has ended.
    let (socket, socket_file) = configuration.socket.as_deref().map(listen_at).transpose()?.unzip();
    let http = match configuration.http.listen {
        Some(http) => Some(TcpListener::bind(http).await.with_context(|| format!("cannot listen on {http} (http.listen)"))?),
        None => None,
    };
    backup::refuse_unfinished(&configuration.data_dir)?;
    let starting = Arc::clone(&configuration);
    let engine = tokio::task::spawn_blocking(move || engine::start(&starting, began));
    let RunningEngine { handle, mut failed, meters, export } = tokio::select! {
        engine = engine => engine.context("the engine's start panicked")??,
        signal = signals.next() => {
            info!(signal, "ends before it has started");
            return Ok(Exit::Clean);
        }
    };
    let (close, closed) = watch::channel(());
    let ended = |mut closed: watch::Receiver<()>| async move {
        let _ = closed.changed().await;
    };
    let watched_at = http.as_ref().map(TcpListener::local_addr).transpose()?;
    if let Some(listener) = http {
        tokio::spawn(http::serve(
            handle.clone(),
            meters,
            Arc::clone(&configuration),
            Arc::clone(&security),
            listener,
            ended(closed.clone()),
        ));
    }
    let server =
        tokio::spawn(service::serve(handle.clone(), Arc::clone(&configuration), Arc::clone(&security), listener, socket, ended(closed)));
    announce(address, options.port_file.as_deref())?;
    if let Some(file) = &socket_file {
        println!("listening on unix://{}", file.path().display());
    }
    if let Some(address) = watched_at {
        let scheme = if configuration.security.tls() { "https" } else { "http" };
        println!("metrics on {scheme}://{address}/metrics");
        if configuration.http.console {
            println!("console on {scheme}://{address}/console/");
        }
    }
    let watching = tokio::spawn(security.watch());
    let reporting = tokio::spawn(service_manager::report(handle.clone()));
    let exit = tokio::select! {
        signal = signals.next() => {
            info!(signal, "ends");
            service_manager::report_stopping();
            end(&handle, &configuration, &mut signals).await
        }
        reason = &mut failed => {
            error!(reason = reason.as_deref().unwrap_or("the engine's thread is gone"), "the daemon cannot go on; start it again: it replays its log");
            Exit::Fatal
        }
    };
    watching.abort();
    reporting.abort();
    drop(close);
    if let Err(error) = server.await.context("the server's task is gone")? {
        warn!(%error, "the server ended badly");
    }
    if let (Some(export), Exit::Clean) = (export, exit) {
        export.end().await;
    }
    Ok(exit)
}

/// Clients name it by an absolute path.
fn listen_at(socket: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    let bound = std::path::absolute(socket).and_then(|path| SocketFile::bind(&path));
    bound.with_context(|| format!("cannot listen on {} (socket)", socket.display()))
}

/// No new transactions; what is decided is finished, up to the deadline. A second signal ends it at once: nothing is lost by that.
async fn end(handle: &EngineHandle, configuration: &Configuration, signals: &mut Signals) -> Exit {
    let deadline = Duration::from_millis(configuration.shutdown.deadline_ms);
    tokio::select! {
        stopped = tokio::time::timeout(deadline + Duration::from_secs(1), handle.stop(deadline)) => {
            match stopped {
                Ok(Ok(Stopped::Clean)) => info!("everything decided has reached its stores"),
                Ok(Ok(Stopped::Deadline)) | Err(_) => warn!("the deadline came first (shutdown.deadline_ms): the rest is done at the next start"),
                Ok(Err(gone)) => warn!(%gone, "the engine had ended already"),
            }
            Exit::Clean
        }
        signal = signals.next() => {
            warn!(signal, "a second signal: ends at once");
            Exit::Interrupted
        }
    }
}

fn announce(address: SocketAddr, port_file: Option<&Path>) -> anyhow::Result<()> {
    if let Some(path) = port_file {
        // Renamed into place, so that whoever waits for it never reads half a number.
        let draft = path.with_extension("tmp");
        std::fs::write(&draft, format!("{}\n", address.port()))
            .and_then(|()| std::fs::rename(&draft, path))
            .with_context(|| format!("cannot write the port file {}", path.display()))?;
    }
    println!("listening on {address}");
    Ok(())
}
