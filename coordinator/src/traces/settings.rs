//! `[traces]`.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Uri};

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The collector, `http://HOST:PORT` or `https://HOST:PORT`; none if absent: nothing is traced.
    pub endpoint: Option<String>,
    /// The share of transactions that are traced though they came without a trace: 0 to 1. With one, its own flag decides.
    pub ratio: f64,
    /// Certificates (PEM) that are trusted, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// A file with headers for the collector, a `name=value` a line.
    pub headers_file: Option<PathBuf>,
    /// The environment variable with them, separated by commas.
    pub headers_env: Option<String>,
    /// Spans that wait to be sent.
    pub queue_spans: usize,
}

/// The collector, and what every request to it carries.
pub struct Collector {
    /// Where it is.
    pub endpoint: Endpoint,
    /// The same for people.
    pub place: String,
    /// Secrets among them.
    pub headers: Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>,
}

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// Spans that may wait, at most: some 200 bytes each.
const QUEUE_MAX: usize = 1 << 20;

impl Default for Settings {
    fn default() -> Settings {
        Settings { endpoint: None, ratio: 0.0, ca_file: None, headers_file: None, headers_env: None, queue_spans: 8_192 }
    }
}

impl Settings {
    /// Whether they make sense, without a look at any file. The error names the key.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(format!("traces.ratio = {} is no share: from 0 to 1", self.ratio));
        }
        if !(1..=QUEUE_MAX).contains(&self.queue_spans) {
            return Err(format!("traces.queue_spans = {}: from 1 to {QUEUE_MAX}", self.queue_spans));
        }
        let Some(endpoint) = &self.endpoint else {
            let set = [("ratio", self.ratio > 0.0), ("ca_file", self.ca_file.is_some()), ("headers_file", self.headers_file.is_some())];
            let set = set.into_iter().chain([("headers_env", self.headers_env.is_some())]).find(|(_, set)| *set);
            return set.map_or(Ok(()), |(key, _)| Err(format!("traces.{key} has an effect only with traces.endpoint")));
        };
        // It may hold a secret: the error names the key, never the text.
        let uri: Uri =
            endpoint.parse().map_err(|_| "traces.endpoint cannot be read as http://HOST:PORT or https://HOST:PORT".to_string())?;
        let scheme = uri.scheme_str().unwrap_or_default();
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err(
                "traces.endpoint holds credentials: put them into headers, from a file (headers_file) or the environment (headers_env)"
                    .into(),
            );
        }
        if !matches!(scheme, "http" | "https") || authority.is_empty() || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(
                "traces.endpoint must be http://HOST:PORT or https://HOST:PORT, without a path (OTLP over gRPC, by default on 4317)".into(),
            );
        }
        if self.headers_file.is_some() && self.headers_env.is_some() {
            return Err("traces.headers_file and traces.headers_env are both set: one of them holds the headers".into());
        }
        let secret = self.headers_file.is_some() || self.headers_env.is_some();
        if scheme == "http" && secret && !is_loopback(uri.host().unwrap_or_default()) {
            return Err("traces.endpoint: headers are sent over https:// only, but to this machine".into());
        }
        if scheme == "http" && self.ca_file.is_some() {
            return Err("traces.ca_file has an effect only with an endpoint https://HOST:PORT".into());
        }
        Ok(())
    }

    /// The collector, if there is one. The error names the key and the file, and never what is in it.
    pub fn collector(&self) -> anyhow::Result<Option<Collector>> {
        let Some(place) = &self.endpoint else { return Ok(None) };
        let mut endpoint = Endpoint::from_shared(place.clone())?.connect_timeout(CONNECT);
        if place.starts_with("https") {
            let tls = match &self.ca_file {
                Some(file) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(file, "traces.ca_file")?)),
                None => ClientTlsConfig::new().with_native_roots(),
            };
            endpoint = endpoint.tls_config(tls).map_err(|error| anyhow::anyhow!("traces.ca_file: {error}"))?;
        }
        Ok(Some(Collector { endpoint, place: place.clone(), headers: self.headers()? }))
    }

    fn headers(&self) -> anyhow::Result<Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>> {
        let (key, text) = match (&self.headers_file, &self.headers_env) {
            (Some(file), _) => ("traces.headers_file", read(file, "traces.headers_file")?.replace('\r', "")),
            (None, Some(variable)) => {
                let text = std::env::var(variable);
                let text = text.map_err(|_| anyhow::anyhow!("traces.headers_env: {variable} is not set, or is no text"))?;
                ("traces.headers_env", text.replace(',', "\n"))
            }
            (None, None) => return Ok(Vec::new()),
        };
        let header = |(number, line): (usize, &str)| {
            let malformed = || anyhow::anyhow!("{key}: header {} is not name=value", number + 1);
            let (name, value) = line.split_once('=').ok_or_else(malformed)?;
            let name: MetadataKey<Ascii> = name.trim().to_ascii_lowercase().parse().map_err(|_| malformed())?;
            let mut value: MetadataValue<Ascii> = value.trim().parse().map_err(|_| malformed())?;
            value.set_sensitive(true);
            Ok((name, value))
        };
        text.lines().filter(|line| !line.trim().is_empty()).enumerate().map(header).collect()
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn read(file: &Path, key: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(file).map_err(|error| anyhow::anyhow!("{key}: cannot read {}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Settings)) -> Settings {
        let mut settings = Settings { endpoint: Some("http://127.0.0.1:4317".into()), ..Settings::default() };
        change(&mut settings);
        settings
    }

    #[test]
    fn they_are_checked() {
        let refused = |change: fn(&mut Settings), words: &str| {
            let error = with(change).check().expect_err(words);
            assert!(error.contains(words) && !error.contains("s3cret"), "{error}");
        };
        assert_eq!((Settings::default().check(), with(|_| ()).check()), (Ok(()), Ok(())));
        refused(|s| s.ratio = 1.5, "traces.ratio = 1.5");
        refused(|s| s.ratio = f64::NAN, "traces.ratio");
        refused(|s| s.queue_spans = 0, "traces.queue_spans = 0");
        refused(|s| s.endpoint = Some("localhost:4317".into()), "must be http://HOST:PORT");
        refused(|s| s.endpoint = Some("http://me:s3cret@h:1".into()), "holds credentials");
        refused(|s| s.endpoint = Some("http://h:4318/v1/traces".into()), "without a path");
        refused(|s| (s.endpoint, s.ratio) = (None, 0.5), "traces.ratio has an effect only with traces.endpoint");
        refused(|s| (s.headers_file, s.headers_env) = (Some("a".into()), Some("B".into())), "both set");
        refused(|s| (s.endpoint, s.headers_env) = (Some("http://far:4317".into()), Some("B".into())), "over https:// only");
        refused(|s| s.ca_file = Some("a".into()), "traces.ca_file");
    }

    #[test]
    fn headers_are_read_and_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "Authorization=Bearer s3cret=\n\nx-tenant = shop\n").unwrap();
        let settings = with(|settings| settings.headers_file = Some(file.path().into()));
        let headers = settings.collector().unwrap().unwrap().headers;
        let read: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(read, [("authorization", "Bearer s3cret="), ("x-tenant", "shop")]);
        assert!(!format!("{headers:?}").contains("s3cret"), "{headers:?}");
        std::fs::write(file.path(), "a=b\ns3cret\n").unwrap();
        let error = settings.collector().err().unwrap().to_string();
        assert_eq!(error, "traces.headers_file: header 2 is not name=value");
    }
}
