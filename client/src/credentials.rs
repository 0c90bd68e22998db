//! How a client proves who it is, and whom it takes for the daemon.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

/// Whom to trust, and what to show. Empty: nothing is shown, and an `https` daemon's certificate has to be of an authority of the system.
///
/// Files are read whenever a connection is made, tokens too: what is put in their place is taken up. Errors name files, never what is in them.
#[derive(Clone, Default)]
pub struct Credentials {
    ca_file: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    token: Option<Token>,
}

#[derive(Clone)]
enum Token {
    Given(String),
    File(PathBuf),
}

/// Puts the token on every request.
#[derive(Clone, Default)]
pub struct Authorization {
    credentials: Credentials,
    header: Arc<RwLock<Option<MetadataValue<Ascii>>>>,
}

/// A connection whose requests say who sends them.
pub type AuthorizedChannel = InterceptedService<Channel, Authorization>;

/// An endpoint as it is meant: without a scheme it is `http`.
pub fn with_scheme(endpoint: &str) -> String {
    if endpoint.contains("://") || endpoint.starts_with("unix:") { endpoint.to_owned() } else { format!("http://{endpoint}") }
}

impl Credentials {
    /// The authorities that the daemon's certificate has to be of, PEM.
    pub fn ca_file(self, file: impl Into<PathBuf>) -> Credentials {
        Credentials { ca_file: Some(file.into()), ..self }
    }

    /// This client's own certificate and its key, PEM.
    pub fn identity(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Credentials {
        Credentials { identity: Some((certificate.into(), key.into())), ..self }
    }

    /// This client's token.
    pub fn token(self, token: impl Into<String>) -> Credentials {
        Credentials { token: Some(Token::Given(token.into())), ..self }
    }

    /// A file with this client's token: its first line that is not empty.
    pub fn token_file(self, file: impl Into<PathBuf>) -> Credentials {
        Credentials { token: Some(Token::File(file.into())), ..self }
    }

    /// The endpoint, with TLS if it is `https`; `unix:///PATH` is a socket of this machine. Without a scheme it is `http`. Errors are sentences.
    pub fn endpoint(&self, endpoint: &str) -> Result<Endpoint, String> {
        if let Some(path) = endpoint.strip_prefix("unix:") {
            return self.socket(path.strip_prefix("//").unwrap_or(path));
        }
        let address = Endpoint::from_shared(with_scheme(endpoint)).map_err(|error| error.to_string())?;
        match address.uri().scheme_str() {
            Some("https") => address.tls_config(self.tls()?).map_err(|error| crate::link::with_causes(&error)),
            Some("http") if self.ca_file.is_some() || self.identity.is_some() => {
                Err("certificates are given, and they need TLS: the endpoint has to begin with https://".into())
            }
            Some("http") if self.token.is_some() && !is_loopback(&address) => {
                Err("a token is given, and it would travel in the clear: the endpoint has to begin with https://".into())
            }
            Some("http") => Ok(address),
            scheme => Err(format!("the scheme is {}, only http, https and unix are spoken", scheme.unwrap_or("missing"))),
        }
    }

    /// A token may travel there: nothing leaves the machine.
    fn socket(&self, path: &str) -> Result<Endpoint, String> {
        if !path.starts_with('/') {
            return Err(format!("`{path}` is no absolute path of a socket, as in unix:///run/lockstep/lockstepd.sock"));
        }
        if self.ca_file.is_some() || self.identity.is_some() {
            return Err("certificates are given, and TLS is not spoken over a socket: give a token, or an endpoint with https://".into());
        }
        Endpoint::from_shared(format!("unix://{path}")).map_err(|error| error.to_string())
    }

    /// Whether any of it is read from files, which may be replaced.
    pub fn has_files(&self) -> bool {
        self.ca_file.is_some() || self.identity.is_some() || matches!(self.token, Some(Token::File(_)))
    }

    /// What puts the token on requests.
    pub fn authorization(&self) -> Result<Authorization, String> {
        let authorization = Authorization { credentials: self.clone(), header: Arc::default() };
        authorization.refresh()?;
        Ok(authorization)
    }

    fn tls(&self) -> Result<ClientTlsConfig, String> {
        let mut tls = ClientTlsConfig::new();
        tls = match &self.ca_file {
            Some(file) => tls.ca_certificate(Certificate::from_pem(read("the authorities", file)?)),
            None => tls.with_native_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(read("the certificate", certificate)?, read("the key", key)?));
        }
        Ok(tls)
    }

    fn header(&self) -> Result<Option<MetadataValue<Ascii>>, String> {
        let (token, from) = match &self.token {
            None => return Ok(None),
            Some(Token::Given(token)) => (token.trim().to_owned(), "the token".to_owned()),
            Some(Token::File(file)) => {
                let text =
                    String::from_utf8(read("the token", file)?).map_err(|_| format!("the token in {} is no text", file.display()))?;
                let first = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned();
                (first, format!("the token in {}", file.display()))
            }
        };
        if token.is_empty() {
            return Err(format!("{from} is empty"));
        }
        let header = MetadataValue::try_from(format!("Bearer {token}"));
        let mut header = header.map_err(|_| format!("{from} has characters that no token has: printable ASCII, without spaces"))?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

impl Authorization {
    /// Reads the token again.
    pub fn refresh(&self) -> Result<(), String> {
        let header = self.credentials.header()?;
        *self.header.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = header;
        Ok(())
    }
}

impl Interceptor for Authorization {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = self.header.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone() {
            request.metadata_mut().insert("authorization", header);
        }
        Ok(request)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|token| match token {
            Token::Given(_) => "(given)".to_owned(),
            Token::File(file) => file.display().to_string(),
        });
        f.debug_struct("Credentials").field("ca_file", &self.ca_file).field("identity", &self.identity).field("token", &token).finish()
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authorization").field(&self.credentials).finish()
    }
}

fn is_loopback(endpoint: &Endpoint) -> bool {
    let host = endpoint.uri().host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn read(what: &str, file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("cannot read {what} from {}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let credentials = Credentials::default().token("hush-hush-hush-hush");
        let authorization = credentials.authorization().unwrap();
        let request = authorization.clone().call(Request::new(())).unwrap();
        for shown in [format!("{credentials:?}"), format!("{authorization:?}"), format!("{request:?}")] {
            assert!(!shown.contains("hush"), "{shown}");
        }
        assert!(request.metadata().get("authorization").is_some());
        let bad = Credentials::default().token("hush\u{7}hush").authorization().unwrap_err();
        assert!(!bad.contains("hush") && bad.contains("printable ASCII"), "{bad}");
    }

    #[test]
    fn secrets_do_not_travel_in_the_clear() {
        let credentials = Credentials::default().token("hush-hush-hush-hush");
        assert!(credentials.endpoint("http://10.0.0.1:7117").unwrap_err().contains("https://"));
        for near in ["http://127.0.0.1:7117", "127.0.0.1:7117", "http://localhost:1", "http://[::1]:1"] {
            assert!(credentials.endpoint(near).is_ok(), "{near}");
        }
        assert!(credentials.endpoint("unix:///run/lockstepd.sock").is_ok() && credentials.endpoint("unix:/run/lockstepd.sock").is_ok());
        assert!(credentials.endpoint("unix://lockstepd.sock").unwrap_err().contains("no absolute path"));
        assert!(Credentials::default().ca_file("x").endpoint("unix:///s").unwrap_err().contains("not spoken over a socket"));
        assert!(Credentials::default().ca_file("x").endpoint("http://127.0.0.1:1").unwrap_err().contains("need TLS"));
        assert!(Credentials::default().ca_file("/no/such").endpoint("https://h:1").unwrap_err().contains("/no/such"));
        assert!(Credentials::default().endpoint("ftp://h:1").unwrap_err().contains("only http, https and unix"));
    }
}
