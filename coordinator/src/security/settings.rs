//! `[security]` and `[[principal]]` of the configuration, and what must be so before anything is served.

use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;

/// How the daemon proves who it is, and whose proofs it takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The daemon's own certificate and those that lead to its authority, PEM. With it, TLS alone is spoken.
    pub certificate_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
    /// The authorities whose client certificates are taken, PEM. If absent: none is.
    pub client_ca_file: Option<PathBuf>,
    /// Listen off loopback without TLS or authentication all the same.
    pub insecure: bool,
    /// How often these files and tokens are looked at for a change, milliseconds.
    pub reload_every_ms: u64,
    /// How long a connection may take until its first request is let in, milliseconds.
    pub handshake_ms: u64,
}

/// Somebody who may do something. As soon as there is one, nobody else may do anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Principal {
    /// Its name: in the audit log, and in front of the keys of its transactions.
    pub name: String,
    /// What it may do.
    pub roles: Vec<Role>,
    /// The stores of its roles `client` and `participant`; all of them if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stores: Option<Vec<String>>,
    /// Names in client certificates that are this principal: `dns:NAME`, `uri:URI`, `email:ADDRESS` (subject alternative names), `cn:NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<String>,
    /// A file with its tokens, one a line: any of them is taken, so that one can be replaced by another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The environment variable that holds its token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_env: Option<String>,
    /// Requests of its role `client` in a second, in bursts of as many; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u32>,
    /// One transaction of its, bytes; `limits.transaction_bytes` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction_bytes: Option<usize>,
    /// Its open streams; `limits.streams` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<usize>,
}

/// What a principal may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Transactions and reads, at its stores.
    Client,
    /// Attend as one of its stores.
    Participant,
    /// What only a person may do, schema changes, and all that a viewer may.
    Operator,
    /// Look at the daemon: states, the log, metrics. No rows or documents but those that an explanation names.
    Viewer,
}

/// How something is listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exposure {
    Loopback,
    /// Reachable from other machines.
    Open,
}

/// Principals, at most.
const PRINCIPALS_MAX: usize = 1_000;
/// A principal's name is at most so long, bytes: it stands in front of the keys of its transactions.
pub const NAME_BYTES: usize = 63;

impl Settings {
    /// Whether TLS is spoken.
    pub fn tls(&self) -> bool {
        self.certificate_file.is_some()
    }

    /// Checks what types alone do not. `listeners`: key and address of everything that is listened on; `stores`: their names.
    pub fn check(&self, principals: &[Principal], listeners: &[(&str, SocketAddr)], stores: &HashSet<&str>) -> Result<(), String> {
        if self.certificate_file.is_some() != self.key_file.is_some() {
            return Err("security.certificate_file and security.key_file belong together: set both or neither".into());
        }
        if self.client_ca_file.is_some() && !self.tls() {
            return Err("security.client_ca_file has an effect only with TLS: set security.certificate_file and security.key_file".into());
        }
        if !(100..=86_400_000).contains(&self.reload_every_ms) {
            return Err(format!("security.reload_every_ms = {} is not from 100 to 86400000", self.reload_every_ms));
        }
        if !(100..=600_000).contains(&self.handshake_ms) {
            return Err(format!("security.handshake_ms = {} is not from 100 to 600000", self.handshake_ms));
        }
        self.check_principals(principals, stores)?;
        listeners.iter().try_for_each(|(key, address)| self.check_listener(key, *address, principals))
    }

    fn check_listener(&self, key: &str, address: SocketAddr, principals: &[Principal]) -> Result<(), String> {
        let exposure = if address.ip().is_loopback() { Exposure::Loopback } else { Exposure::Open };
        match (exposure, self.tls() && !principals.is_empty(), self.insecure) {
            (Exposure::Loopback, _, _) | (Exposure::Open, true, _) | (Exposure::Open, false, true) => Ok(()),
            (Exposure::Open, false, false) => Err(format!(
                "{key} = \"{address}\" is not on loopback, and off loopback nothing is served without TLS and authentication: make \
                 certificates (`lockstep cert --folder DIR --host NAME`), set security.certificate_file and security.key_file, and name who may \
                 do what in at least one [[principal]] (docs/operations.md, Security); or listen on 127.0.0.1. If the network alone is to be \
                 trusted, insist: security.insecure = true"
            )),
        }
    }

    fn check_principals(&self, principals: &[Principal], stores: &HashSet<&str>) -> Result<(), String> {
        if principals.len() > PRINCIPALS_MAX {
            return Err(format!("principal: there are {}, at most {PRINCIPALS_MAX}", principals.len()));
        }
        let (mut names, mut identities) = (HashSet::new(), HashMap::new());
        for principal in principals {
            let name = &principal.name;
            if !valid_name(name) {
                return Err(format!("principal name `{name}` is not allowed: [a-z][a-z0-9_.-]{{0,62}}"));
            }
            if !names.insert(name) {
                return Err(format!("principal name `{name}` is used twice"));
            }
            principal.check(self.client_ca_file.is_some(), stores).map_err(|what| format!("principal `{name}`: {what}"))?;
            for identity in &principal.certificates {
                if let Some(other) = identities.insert(identity, name) {
                    return Err(format!("principal `{name}`: certificates: `{identity}` is principal `{other}` already"));
                }
            }
        }
        Ok(())
    }
}

impl Principal {
    fn check(&self, certificates_taken: bool, stores: &HashSet<&str>) -> Result<(), String> {
        if self.roles.is_empty() {
            return Err("roles is empty: client, participant, operator or viewer".into());
        }
        if let Some(named) = &self.stores {
            if let Some(unknown) = named.iter().find(|store| !stores.contains(store.as_str())) {
                return Err(format!("stores: there is no store `{unknown}`"));
            }
            if named.is_empty() {
                return Err("stores is empty: leave it out for all of them".into());
            }
            if !self.roles.iter().any(|role| matches!(role, Role::Client | Role::Participant)) {
                return Err("stores narrows the roles client and participant, and it has neither".into());
            }
        }
        for identity in &self.certificates {
            let known = ["dns:", "uri:", "email:", "cn:"].iter().any(|kind| identity.len() > kind.len() && identity.starts_with(kind));
            if !known {
                return Err(format!("certificates: `{identity}` is not dns:NAME, uri:URI, email:ADDRESS or cn:NAME"));
            }
        }
        if !self.certificates.is_empty() && !certificates_taken {
            return Err("certificates has an effect only with security.client_ca_file".into());
        }
        if self.token_file.is_some() && self.token_env.is_some() {
            return Err("token_file and token_env are both set: one of them holds the token".into());
        }
        if self.certificates.is_empty() && self.token_file.is_none() && self.token_env.is_none() {
            return Err("it has no way to prove itself: certificates, token_file or token_env".into());
        }
        for (key, value) in [
            ("requests_per_second", self.requests_per_second.map(|limit| limit as usize)),
            ("transaction_bytes", self.transaction_bytes),
            ("streams", self.streams),
        ] {
            if value == Some(0) {
                return Err(format!("{key} = 0 is too small: at least 1"));
            }
        }
        Ok(())
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            certificate_file: None,
            key_file: None,
            client_ca_file: None,
            insecure: false,
            reload_every_ms: 5_000,
            handshake_ms: 10_000,
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Client => "client",
            Role::Participant => "participant",
            Role::Operator => "operator",
            Role::Viewer => "viewer",
        })
    }
}

fn valid_name(name: &str) -> bool {
    name.len() <= NAME_BYTES
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &str, listen: &str) -> Result<(), String> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            security: Settings,
            #[serde(default)]
            principal: Vec<Principal>,
        }
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        file.security.check(&file.principal, &[("listen", listen.parse().expect("an address"))], &HashSet::from(["db", "index"]))
    }

    const TLS: &str = "[security]\ncertificate_file = \"c\"\nkey_file = \"k\"\n";
    const ONE: &str = "[[principal]]\nname = \"shop\"\nroles = [\"client\"]\ntoken_file = \"t\"\n";

    #[test]
    fn off_loopback_needs_tls_and_a_principal_or_an_insistence() {
        let open = "0.0.0.0:7117";
        for (text, served) in [
            (String::new(), false),
            (TLS.to_string(), false),
            (ONE.to_string(), false),
            (format!("{TLS}{ONE}"), true),
            ("[security]\ninsecure = true".to_string(), true),
        ] {
            let judged = judge(&text, open);
            assert_eq!(judged.is_ok(), served, "{text}: {judged:?}");
            if let Err(sentence) = judged {
                for word in ["listen = \"0.0.0.0:7117\"", "lockstep cert", "security.insecure = true", "[[principal]]"] {
                    assert!(sentence.contains(word), "{sentence}");
                }
            }
            assert_eq!(judge(&text, "[::1]:7117"), Ok(()), "{text}");
        }
        assert!(judge("", "[::]:7117").is_err(), "every address is not loopback");
    }

    #[test]
    fn principals_are_checked() {
        for (more, sentence) in [
            ("name = \"Shop\"\nroles = [\"client\"]\ntoken_file = \"t\"", "`Shop` is not allowed"),
            ("name = \"a/b\"\nroles = [\"client\"]\ntoken_file = \"t\"", "`a/b` is not allowed"),
            ("name = \"a\"\nroles = []\ntoken_file = \"t\"", "roles is empty"),
            ("name = \"a\"\nroles = [\"root\"]\ntoken_file = \"t\"", "`root`"),
            ("name = \"a\"\nroles = [\"client\"]", "no way to prove itself"),
            ("name = \"a\"\nroles = [\"client\"]\ntoken_file = \"t\"\ntoken_env = \"T\"", "both set"),
            ("name = \"a\"\nroles = [\"client\"]\ntoken = \"hush\"", "`token`"),
            ("name = \"a\"\nroles = [\"client\"]\ncertificates = [\"dns:a\"]", "security.client_ca_file"),
            ("name = \"a\"\nroles = [\"client\"]\ntoken_file = \"t\"\nstores = [\"x\"]", "there is no store `x`"),
            ("name = \"a\"\nroles = [\"viewer\"]\ntoken_file = \"t\"\nstores = [\"db\"]", "has neither"),
            ("name = \"a\"\nroles = [\"client\"]\ntoken_file = \"t\"\nstreams = 0", "streams = 0 is too small"),
        ] {
            let error = judge(&format!("[[principal]]\n{more}"), "127.0.0.1:1").expect_err(more);
            assert!(error.contains(sentence), "{error}");
        }
        assert!(judge(&format!("{ONE}{ONE}"), "127.0.0.1:1").unwrap_err().contains("`shop` is used twice"));
        let ca = format!("{TLS}client_ca_file = \"a\"\n");
        let both = |name: &str| format!("[[principal]]\nname = \"{name}\"\nroles = [\"client\"]\ncertificates = [\"dns:x\"]\n");
        assert!(judge(&format!("{ca}{}{}", both("a"), both("b")), "127.0.0.1:1").unwrap_err().contains("`dns:x` is principal `a` already"));
        let wrong = format!("{ca}[[principal]]\nname = \"a\"\nroles = [\"client\"]\ncertificates = [\"x\"]\n");
        assert!(judge(&wrong, "127.0.0.1:1").unwrap_err().contains("`x` is not dns:NAME"));
    }

    #[test]
    fn files_that_belong_together_are_asked_for() {
        assert!(judge("[security]\nkey_file = \"k\"", "127.0.0.1:1").unwrap_err().contains("belong together"));
        assert!(judge("[security]\nclient_ca_file = \"k\"", "127.0.0.1:1").unwrap_err().contains("only with TLS"));
    }
}
