//! What is read from files and the environment: the daemon's certificate, the authorities of its clients, the principals' tokens. Tokens
//! are kept as keyed digests alone.

use super::settings::{Principal, Settings};
use ring::hmac;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// All of it, as of one look.
pub struct Credentials {
    /// How connections are taken, if TLS is spoken.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Until when the daemon's own certificate is valid, seconds since 1970.
    pub expires: Option<i64>,
    tokens: Vec<(Digest, usize)>,
    /// Tells one look from another.
    pub print: u64,
    /// Of the authorities alone: connections that others vouched for are not taken any more.
    pub authorities: u64,
}

/// What a client certificate says of its holder.
#[derive(Clone, Debug)]
pub struct Holder {
    /// `dns:NAME`, `uri:URI`, `email:ADDRESS`, `cn:NAME`.
    pub identities: Vec<String>,
    /// Until when it is valid, seconds since 1970.
    pub expires: i64,
}

/// Makes digests of tokens, by a key of this process.
pub struct Digester(hmac::Key);

type Digest = [u8; 32];

/// A file is at most so long, bytes.
const FILE_BYTES: u64 = 1 << 20;
/// A token's length, bytes: shorter ones can be guessed.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=1024;

impl Digester {
    /// With a fresh key.
    pub fn new() -> Digester {
        let random = ring::rand::SystemRandom::new();
        Digester(hmac::Key::generate(hmac::HMAC_SHA256, &random).expect("the system has random numbers"))
    }

    /// A token's digest.
    pub fn of(&self, token: &str) -> Digest {
        hmac::sign(&self.0, token.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

impl Credentials {
    /// Reads everything anew. Errors name the key and the file, and never what is in it.
    pub fn load(settings: &Settings, principals: &[Principal], digester: &Digester) -> Result<Credentials, String> {
        let mut seen = Vec::new();
        let mut tokens: Vec<(Digest, usize)> = Vec::new();
        for (number, principal) in principals.iter().enumerate() {
            for token in tokens_of(principal, &mut seen)? {
                let digest = digester.of(&token);
                if let Some((_, other)) = tokens.iter().find(|(known, _)| *known == digest) {
                    let (name, other) = (&principal.name, &principals[*other].name);
                    return Err(format!("principal `{name}`: it has the same token as `{other}`: give each one of its own"));
                }
                tokens.push((digest, number));
            }
        }
        let mut authorities = 0;
        let (mut tls, mut expires) = (None, None);
        if let (Some(certificate), Some(key)) = (&settings.certificate_file, &settings.key_file) {
            let clients = match &settings.client_ca_file {
                Some(file) => {
                    let pem = read("security.client_ca_file", file)?;
                    authorities = print(std::iter::once(pem.as_slice()));
                    Some(roots("security.client_ca_file", file, &pem)?)
                }
                None => None,
            };
            let (chain, secret) = (read("security.certificate_file", certificate)?, read("security.key_file", key)?);
            let chain_certificates = certificates("security.certificate_file", certificate, &chain)?;
            expires = Some(
                holder(&chain_certificates[0])
                    .map_err(|why| format!("security.certificate_file {}: {why}", certificate.display()))?
                    .expires,
            );
            tls = Some(Arc::new(server(chain_certificates, &secret, key, clients)?));
            seen.extend([chain, secret]);
        }
        let print = print(seen.iter().map(Vec::as_slice)) ^ authorities.rotate_left(1);
        Ok(Credentials { tls, expires, tokens, print, authorities })
    }

    /// Whose token this is. Takes as long whichever it is.
    pub fn principal(&self, digest: &Digest) -> Option<usize> {
        let same = |other: &Digest| digest.iter().zip(other).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0;
        self.tokens.iter().fold(None, |found, (token, principal)| if same(token) { Some(*principal) } else { found })
    }
}

/// What a certificate says of its holder.
pub fn holder(certificate: &CertificateDer<'_>) -> Result<Holder, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| "it holds a certificate that cannot be read".to_string())?;
    let mut identities = Vec::new();
    if let Ok(Some(names)) = parsed.subject_alternative_name() {
        identities.extend(names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(format!("dns:{name}")),
            GeneralName::URI(uri) => Some(format!("uri:{uri}")),
            GeneralName::RFC822Name(address) => Some(format!("email:{address}")),
            _ => None,
        }));
    }
    identities.extend(parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(|name| format!("cn:{name}")));
    Ok(Holder { identities, expires: parsed.validity().not_after.timestamp() })
}

/// Seconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

fn server(
    chain: Vec<CertificateDer<'static>>,
    secret: &[u8],
    key: &Path,
    clients: Option<RootCertStore>,
) -> Result<rustls::ServerConfig, String> {
    let key_of = |why: &dyn std::fmt::Display| format!("security.key_file {}: {why}", key.display());
    // What the parser says may hold parts of the key.
    let secret = PrivateKeyDer::from_pem_slice(secret).map_err(|_| key_of(&"it holds no private key in PEM form"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    // A client may show none, and have a token instead: who has neither is told so, in a sentence.
    let builder = match clients {
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated().build();
            builder.with_client_cert_verifier(verifier.map_err(|error| format!("security.client_ca_file: {error}"))?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, secret).map_err(|error| key_of(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(key: &str, file: &Path, pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(key, file, pem)? {
        roots.add(certificate).map_err(|error| format!("{key} {}: {error}", file.display()))?;
    }
    Ok(roots)
}

fn certificates(key: &str, file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(format!("{key} {}: it holds no certificates in PEM form", file.display())),
    }
}

fn tokens_of(principal: &Principal, seen: &mut Vec<Vec<u8>>) -> Result<Vec<String>, String> {
    let about = |what: String| format!("principal `{}`: {what}", principal.name);
    let (key, text) = match (&principal.token_file, &principal.token_env) {
        (Some(file), _) => {
            let bytes = read("token_file", file).map_err(about)?;
            let text = String::from_utf8(bytes).map_err(|_| about(format!("token_file {}: it is no text", file.display())))?;
            (format!("token_file {}", file.display()), text)
        }
        (None, Some(name)) => {
            let text = std::env::var(name).map_err(|_| about(format!("token_env: the variable {name} is not set, or is no text")))?;
            (format!("token_env {name}"), text)
        }
        (None, None) => return Ok(Vec::new()),
    };
    let tokens: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if let Some(bad) = tokens.iter().find(|token| !TOKEN_BYTES.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        let size = bad.len();
        return Err(about(format!(
            "{key}: it holds a token of {size} bytes: 16 to 1024 printable ASCII characters without spaces, one token a line"
        )));
    }
    if tokens.is_empty() && principal.certificates.is_empty() && principal.token_file.is_none() {
        return Err(about(format!("{key}: it is empty")));
    }
    seen.push(text.into_bytes());
    Ok(tokens)
}

fn read(key: &str, file: &Path) -> Result<Vec<u8>, String> {
    let cannot = |why: &dyn std::fmt::Display| format!("{key}: cannot read {}: {why}", file.display());
    let size = std::fs::metadata(file).map_err(|error| cannot(&error))?.len();
    if size > FILE_BYTES {
        return Err(cannot(&format!("it has {size} bytes, at most {FILE_BYTES}")));
    }
    std::fs::read(file).map_err(|error| cannot(&error))
}

fn print<'a>(parts: impl Iterator<Item = &'a [u8]>) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    parts.for_each(|part| part.hash(&mut hasher));
    hasher.finish()
}
