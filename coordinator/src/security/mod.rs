//! Who may do what. Everything that is served goes through here: a connection ([`connections`]), then each request ([`gate`] for gRPC, [`pages`] for
//! plain HTTP), then, for what is about single stores and transactions, the services themselves, by the [`Caller`].
//!
//! As long as no principal is configured anybody may do anything: that is for loopback alone (`settings::Settings::check`).

pub mod access;
mod caller;
pub mod connections;
mod credentials;
pub mod gate;
pub mod pages;
mod quota;
pub mod settings;
pub mod socket;
#[cfg(test)]
mod tests;

pub use caller::{Account, Caller, Peer};
pub use settings::{Principal, Role, Settings};

use crate::configuration::Configuration;
use caller::{Certificate, Origin, Proof};
use credentials::{Credentials, Digester};
use lockstep_proto::v1;
use quota::Quota;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tonic::Status;
use tracing::{error, info};

/// Who may do what, and what proves it.
pub struct Security {
    settings: Settings,
    accounts: Vec<Arc<Account>>,
    digester: Digester,
    current: RwLock<Arc<Credentials>>,
    /// Why the newest files are not in use.
    trouble: RwLock<Option<String>>,
    /// Log lines about refused requests.
    lines: Quota,
}

/// The certificate's last days are told of.
const EXPIRES_SOON: i64 = 14 * 24 * 3600;

impl Security {
    /// Reads what the configuration names. Errors say which key, which file, and why.
    pub fn load(configuration: &Configuration) -> anyhow::Result<Arc<Security>> {
        let (settings, digester) = (configuration.security.clone(), Digester::new());
        let current = Credentials::load(&settings, &configuration.principals, &digester).map_err(|sentence| anyhow::anyhow!(sentence))?;
        Ok(Arc::new(Security {
            settings,
            accounts: configuration.principals.iter().cloned().map(|principal| Arc::new(Account::new(principal))).collect(),
            digester,
            current: RwLock::new(Arc::new(current)),
            trouble: RwLock::default(),
            lines: Quota::per_second(1),
        }))
    }

    /// Nobody is asked who they are; for tests of what is behind it.
    #[cfg(test)]
    pub fn none() -> Arc<Security> {
        Security::load(&Configuration::default()).expect("nothing is read")
    }

    /// Whether callers have to prove who they are.
    pub fn asks(&self) -> bool {
        !self.accounts.is_empty()
    }

    /// Looks at the files again and again, and whenever SIGHUP comes; for ever.
    pub async fn watch(self: Arc<Security>) {
        let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
        let every = Duration::from_millis(self.settings.reload_every_ms);
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                _ = hangup.recv() => info!("SIGHUP: certificates and tokens are read again"),
            }
            let security = Arc::clone(&self);
            if tokio::task::spawn_blocking(move || security.reload()).await.is_err() {
                error!("reading certificates and tokens panicked; those in use stay in use");
            }
        }
    }

    /// What is wrong with certificates and tokens, for `lockstep doctor`.
    pub fn findings(&self) -> Vec<v1::Finding> {
        let finding = |level: &str, sentence: String, remedy: &str| v1::Finding {
            level: level.into(),
            subject: "security".into(),
            sentence,
            remedy: remedy.into(),
        };
        let mut findings = Vec::new();
        if let Some(trouble) = self.trouble.read().expect("no holder panics").as_ref() {
            let sentence = format!("the newest certificates and tokens are not in use, the ones before are: {trouble}");
            findings.push(finding("problem", sentence, "put the file in order: it is looked at again by itself"));
        }
        if let Some(left) = self.current().expires.map(|at| at - credentials::now()).filter(|left| *left < EXPIRES_SOON) {
            let (level, sentence) = match left {
                ..=0 => ("problem", "the daemon's certificate has expired: clients refuse it".to_string()),
                left => ("warning", format!("the daemon's certificate expires in {} days", left / (24 * 3600))),
            };
            findings.push(finding(
                level,
                sentence,
                "put a new one in its place (security.certificate_file): it is taken up without a restart",
            ));
        }
        for file in self.secret_files().filter(|file| is_open(file)) {
            let sentence = format!("everybody on this machine may read {}", file.display());
            findings.push(finding("warning", sentence, "chmod 600, or 640 with a group of its own"));
        }
        if findings.is_empty() {
            let sentence = match (self.asks(), self.settings.tls()) {
                (true, true) => format!("TLS is spoken, and {} principals may call", self.accounts.len()),
                (true, false) => format!("{} principals may call, without TLS", self.accounts.len()),
                (false, true) => "TLS is spoken, and whoever reaches the daemon may do anything".to_string(),
                (false, false) => "whoever reaches the daemon may do anything, without TLS".to_string(),
            };
            findings.push(finding(if self.settings.insecure { "warning" } else { "ok" }, sentence, ""));
        }
        findings
    }

    /// Who sends this request. `authorization`: its header of that name.
    pub fn admit(self: &Arc<Security>, peer: Option<&Peer>, authorization: Option<&[u8]>) -> Result<Caller, Status> {
        let (current, origin) = (self.current(), peer.map(|peer| peer.origin));
        let caller = |account, proof| Caller::new(Arc::clone(self), account, proof, origin, current.print);
        let admitted = if !self.asks() {
            caller(None, Proof::None)
        } else if let Some(header) = authorization {
            let digest = self.digester.of(token(header)?.as_str());
            let number = current.principal(&digest).ok_or_else(|| Status::unauthenticated("this token is not one that is known here"))?;
            caller(Some(Arc::clone(self.account(number))), Proof::Token(digest))
        } else if let Some(certificate) = peer.and_then(|peer| peer.certificate.as_ref()) {
            self.judge_certificate(certificate)?;
            caller(Some(Arc::clone(self.holder(certificate)?)), Proof::Certificate(Arc::clone(certificate)))
        } else {
            let takes_certificates = self.settings.client_ca_file.is_some() && !matches!(origin, Some(Origin::Local { .. }));
            let or = if takes_certificates { ", or connect with a client certificate" } else { "" };
            return Err(Status::unauthenticated(format!(
                "say who you are: send a token (`authorization: Bearer TOKEN`; --token-file in `lockstep`){or}"
            )));
        };
        if let Some(peer) = peer {
            peer.proven.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(admitted)
    }

    /// Whether the caller has the role; if not, a sentence that names it.
    pub fn allows(&self, caller: &Caller, account: Option<&Account>, role: Role) -> Result<(), Status> {
        match account {
            Some(account) if !account.has(role) => {
                let (who, roles) = (caller.who(), account.roles());
                Err(Status::permission_denied(format!("this needs the role {role}: principal `{who}` has {roles}")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether one more line may be written about a request that was refused.
    fn may_shout(&self) -> bool {
        self.lines.take()
    }

    /// Looks at the files once more. What cannot be used is not taken.
    pub fn reload(&self) {
        let principals: Vec<_> = self.accounts.iter().map(|account| account.principal.clone()).collect();
        let mut trouble = self.trouble.write().expect("no holder panics");
        match Credentials::load(&self.settings, &principals, &self.digester) {
            Ok(loaded) => {
                if trouble.take().is_some() {
                    info!("certificates and tokens are in order again");
                }
                if loaded.print != self.current().print {
                    *self.current.write().expect("no holder panics") = Arc::new(loaded);
                    info!("new certificates and tokens are in use");
                }
            }
            Err(sentence) if trouble.as_ref() == Some(&sentence) => {}
            Err(sentence) => {
                error!("{sentence}; the certificates and tokens in use stay in use");
                *trouble = Some(sentence);
            }
        }
    }

    fn current(&self) -> Arc<Credentials> {
        Arc::clone(&self.current.read().expect("no holder panics"))
    }

    fn account(&self, number: usize) -> &Arc<Account> {
        &self.accounts[number]
    }

    fn holder(&self, certificate: &Certificate) -> Result<&Arc<Account>, Status> {
        let identities = &certificate.holder.identities;
        let is = |account: &&Arc<Account>| account.principal.certificates.iter().any(|known| identities.contains(known));
        self.accounts.iter().find(is).ok_or_else(|| {
            let named: String = identities.join(", ").chars().take(256).collect();
            Status::unauthenticated(format!("the client certificate is of {named}: none of these is a principal here (certificates)"))
        })
    }

    fn secret_files(&self) -> impl Iterator<Item = &Path> {
        let tokens = self.accounts.iter().filter_map(|account| account.principal.token_file.as_deref());
        self.settings.key_file.as_deref().into_iter().chain(tokens)
    }
}

/// The token in the header: a bearer token, or the password of basic authentication, which is what browsers send.
fn token(header: &[u8]) -> Result<String, Status> {
    let malformed = || Status::unauthenticated("the authorization header is not `Bearer TOKEN`, nor `Basic` with the token as password");
    let text = std::str::from_utf8(header).map_err(|_| malformed())?;
    let (scheme, rest) = text.split_once(' ').ok_or_else(malformed)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(malformed());
    }
    use base64::Engine;
    let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim()).map_err(|_| malformed())?;
    let decoded = String::from_utf8(decoded).map_err(|_| malformed())?;
    decoded.split_once(':').map(|(_, password)| password.to_owned()).ok_or_else(malformed)
}

fn is_open(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}
