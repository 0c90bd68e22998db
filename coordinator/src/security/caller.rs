//! Who calls, and what of it is theirs.

use super::Security;
use super::credentials::{self, Holder};
use super::quota::Quota;
use super::settings::{Principal, Role};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// A principal, with what it uses up.
pub struct Account {
    /// As it is configured.
    pub principal: Principal,
    pub(super) quota: Option<Quota>,
    pub(super) refusals: Quota,
    streams: Option<Arc<Semaphore>>,
}

/// Where a connection comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// An address.
    Network(SocketAddr),
    /// This machine, over the socket; as the kernel knows who connected.
    Local {
        /// Its user id.
        user: u32,
        /// Its process id, where that is told.
        process: Option<i32>,
    },
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where from.
    pub origin: Origin,
    /// What its certificate says, if it showed one.
    pub(super) certificate: Option<Arc<Certificate>>,
    /// Whether a request was let in: until then the connection has little time.
    pub(super) proven: Arc<AtomicBool>,
}

/// A client certificate that an authority of ours vouches for.
#[derive(Debug)]
pub(super) struct Certificate {
    pub holder: Holder,
    /// Which authorities those were.
    pub authorities: u64,
}

/// Who calls. Where no principal is configured, anybody may do anything.
#[derive(Clone)]
pub struct Caller(Arc<Inner>);

struct Inner {
    security: Arc<Security>,
    account: Option<Arc<Account>>,
    proof: Proof,
    origin: Option<Origin>,
    /// The credentials under which the proof was looked at last.
    looked_at: AtomicU64,
}

/// By what it has proven who it is.
pub(super) enum Proof {
    /// Nothing is asked for.
    None,
    Token([u8; 32]),
    Certificate(Arc<Certificate>),
}

impl Origin {
    /// Whether nothing that it sends has been on a network.
    pub fn is_this_machine(self) -> bool {
        match self {
            Origin::Network(address) => address.ip().is_loopback(),
            Origin::Local { .. } => true,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Network(address) => write!(f, "{address}"),
            Origin::Local { user, process: Some(process) } => write!(f, "socket, user {user}, process {process}"),
            Origin::Local { user, process: None } => write!(f, "socket, user {user}"),
        }
    }
}

impl Account {
    pub(super) fn new(principal: Principal) -> Account {
        Account {
            quota: principal.requests_per_second.map(Quota::per_second),
            refusals: Quota::per_minute(10),
            streams: principal.streams.map(|limit| Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)))),
            principal,
        }
    }

    /// Whether it has the role, or one that includes it.
    pub fn has(&self, role: Role) -> bool {
        let roles = &self.principal.roles;
        roles.contains(&role) || role == Role::Viewer && roles.contains(&Role::Operator)
    }

    /// Its roles, for people.
    pub fn roles(&self) -> String {
        self.principal.roles.iter().map(Role::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl Caller {
    pub(super) fn new(security: Arc<Security>, account: Option<Arc<Account>>, proof: Proof, origin: Option<Origin>, print: u64) -> Caller {
        Caller(Arc::new(Inner { security, account, proof, origin, looked_at: AtomicU64::new(print) }))
    }

    /// Of a request that the gate has let in.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
        request.extensions().get::<Caller>().cloned().ok_or_else(|| Status::internal("a request came past the gate"))
    }

    /// Its principal's name; `None` where nobody has to prove who they are.
    pub fn name(&self) -> Option<&str> {
        self.0.account.as_ref().map(|account| account.principal.name.as_str())
    }

    /// Its principal, with what it uses up.
    pub fn account(&self) -> Option<&Account> {
        self.0.account.as_deref()
    }

    /// Where it calls from.
    pub fn origin(&self) -> Option<Origin> {
        self.0.origin
    }

    /// For the audit log: the principal, or that nobody was asked.
    pub fn who(&self) -> String {
        self.name().map_or_else(|| "anybody (no authentication)".to_string(), str::to_owned)
    }

    /// An operator's name as it is recorded: what was proven stands beside what was said.
    pub fn sign(&self, operator: &str) -> String {
        match self.name() {
            None => operator.to_owned(),
            Some(name) if name == operator || operator.trim().is_empty() => name.to_owned(),
            Some(name) => format!("{operator} (principal {name})"),
        }
    }

    /// What stands in front of its transactions' keys: another one's keys are other keys.
    pub fn scope(&self) -> Option<String> {
        self.name().map(|name| format!("{name}/"))
    }

    /// Whether this role of its reaches this store; if not, a sentence. The role itself was looked at by the gate.
    pub fn reaches(&self, role: Role, store: &str) -> Result<(), String> {
        match self.0.account.as_deref().map(|account| &account.principal) {
            Some(Principal { name, stores: Some(stores), .. }) if !stores.iter().any(|known| known == store) => {
                let theirs = stores.join(", ");
                Err(format!("principal `{name}` needs the role {role} for store `{store}`; it has it for {theirs} alone"))
            }
            _ => Ok(()),
        }
    }

    /// The same, as the end of a call.
    pub fn must_reach(&self, role: Role, store: &str) -> Result<(), Status> {
        self.reaches(role, store).map_err(Status::permission_denied)
    }

    /// One transaction of its, bytes, at most.
    pub fn transaction_bytes(&self) -> Option<usize> {
        self.0.account.as_ref()?.principal.transaction_bytes
    }

    /// Counts a request of its; an error if it has had its share.
    pub fn count(&self) -> Result<(), String> {
        let Some(account) = self.0.account.as_ref() else { return Ok(()) };
        match &account.quota {
            Some(quota) if !quota.take() => Err(format!(
                "principal `{}` may send {} requests a second (requests_per_second): wait a moment, and send it again",
                account.principal.name,
                account.principal.requests_per_second.unwrap_or_default()
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether one more refusal of it is noted.
    pub fn may_be_noted(&self) -> bool {
        self.0.account.as_ref().is_none_or(|account| account.refusals.take())
    }

    /// A place among its own open streams; `None` if they are not limited.
    pub fn stream(&self) -> Result<Option<OwnedSemaphorePermit>, Status> {
        let Some((account, streams)) = self.0.account.as_ref().and_then(|account| Some((account, account.streams.as_ref()?))) else {
            return Ok(None);
        };
        let full = |_| {
            let Principal { name, streams, .. } = &account.principal;
            Status::resource_exhausted(format!(
                "principal `{name}` has {} open streams, as many as it may have (streams)",
                streams.unwrap_or_default()
            ))
        };
        Arc::clone(streams).try_acquire_owned().map(Some).map_err(full)
    }

    /// Whether its proof still holds: the token was not taken back, the certificate has not expired. Cheap as long as nothing has changed.
    pub fn still_holds(&self) -> Result<(), Status> {
        let Inner { security, account, proof, looked_at, .. } = &*self.0;
        let (Some(account), current) = (account, security.current()) else { return Ok(()) };
        match proof {
            Proof::None => Ok(()),
            Proof::Certificate(certificate) => security.judge_certificate(certificate),
            Proof::Token(_) if looked_at.load(Ordering::Relaxed) == current.print => Ok(()),
            Proof::Token(digest) => match current.principal(digest) {
                Some(number) if security.account(number).principal.name == account.principal.name => {
                    looked_at.store(current.print, Ordering::Relaxed);
                    Ok(())
                }
                Some(_) | None => Err(Status::unauthenticated("this token is not taken any more: connect again with one that is")),
            },
        }
    }
}

impl Security {
    /// Whether a certificate that was good when the connection was made is still.
    pub(super) fn judge_certificate(&self, certificate: &Certificate) -> Result<(), Status> {
        if certificate.holder.expires < credentials::now() {
            return Err(Status::unauthenticated("the client certificate of this connection has expired: connect again with a new one"));
        }
        if certificate.authorities != self.current().authorities {
            return Err(Status::unauthenticated("the authorities of client certificates were replaced: connect again"));
        }
        Ok(())
    }
}
