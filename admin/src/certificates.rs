//! Certificates for development and for a network of one's own: an authority, the daemon's certificate, and clients'.

use crate::arguments::Certificates;
use crate::output::{self, Format, Output};
use crate::{Exit, Failure, Io};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What was made, as JSON shows it.
#[derive(Serialize)]
struct Made {
    files: Vec<File>,
}

#[derive(Serialize)]
struct File {
    path: PathBuf,
    purpose: String,
    #[serde(skip)]
    content: String,
}

/// The authority's life, in certificates' lives.
const AUTHORITY_LIVES: u64 = 10;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Makes what is missing, and the daemon's certificate anew if hosts are named.
pub(crate) fn make(wanted: &Certificates, output: &Output, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let Certificates { folder, host, client, days } = wanted;
    std::fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))?;
    for name in client {
        check_name(name)?;
        let path = folder.join(format!("{name}.pem"));
        if path.exists() || ["ca", "server"].contains(&name.as_str()) {
            return Err(Failure { exit: Exit::Refused, message: format!("{} is there already", path.display()), hint: OTHER.into() });
        }
    }
    let life = Life { from: SystemTime::now(), days: u64::from(*days) };
    let mut files = Vec::new();
    let issuer = authority(folder, &life, &mut files)?;
    if !host.is_empty() || !folder.join("server.pem").exists() {
        let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec();
        names.extend(host.iter().filter(|name| !["localhost", "127.0.0.1", "::1"].contains(&name.as_str())).cloned());
        let purpose = format!("the daemon's, for {}: security.certificate_file", names.join(", "));
        let (params, usage) = (named(CertificateParams::new(names).map_err(failed)?, "lockstepd"), ExtendedKeyUsagePurpose::ServerAuth);
        files.extend(signed(folder, "server", params, usage, &life, &issuer, purpose)?);
    }
    for name in client {
        let purpose = format!("the client's who is the principal with certificates = [\"dns:{name}\"]");
        let params = named(CertificateParams::new(vec![name.clone()]).map_err(failed)?, name);
        files.extend(signed(folder, name, params, ExtendedKeyUsagePurpose::ClientAuth, &life, &issuer, purpose)?);
    }
    for file in &files {
        write(file)?;
    }
    let made = Made { files };
    output.write(io, &made, || table(output, &made))?;
    if output.format == Format::Table {
        writeln!(io.stderr, "{}", output::wrapped(ADVICE, "").trim_end())?;
    }
    Ok(Exit::Ok)
}

const ADVICE: &str = "These are for development, or for a network that is yours. Whoever has ca.key can be anybody: keep it off the daemon's machine. \
                      Keys are readable by you alone; give the daemon's to the user that runs it.";
const OTHER: &str = "take another name, or remove the file first";

struct Life {
    from: SystemTime,
    days: u64,
}

impl Life {
    /// Since yesterday: clocks differ.
    fn put_into(&self, params: &mut CertificateParams, lives: u64) {
        let now = self.from.duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch = date_time_ymd(1970, 1, 1);
        params.not_before = epoch + now.saturating_sub(DAY);
        params.not_after = epoch + now + DAY * (self.days * lives).min(36_500) as u32;
    }
}

/// The one that is there, or a new one.
fn authority(folder: &Path, life: &Life, files: &mut Vec<File>) -> Result<Issuer<'static, KeyPair>, Failure> {
    let (certificate, key) = (folder.join("ca.pem"), folder.join("ca.key"));
    match (certificate.exists(), key.exists()) {
        (true, true) => {
            let key_pair = KeyPair::from_pem(&read(&key)?).map_err(|_| unusable(&key))?;
            Issuer::from_ca_cert_pem(&read(&certificate)?, key_pair).map_err(|_| unusable(&certificate))
        }
        (false, false) => {
            let mut params = named(CertificateParams::new(Vec::new()).map_err(failed)?, "Lockstep development authority");
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            life.put_into(&mut params, AUTHORITY_LIVES);
            let key_pair = KeyPair::generate().map_err(failed)?;
            let secret = key_pair.serialize_pem();
            let issuer = CertifiedIssuer::self_signed(params, key_pair).map_err(failed)?;
            let made = issuer.pem();
            let trusted = "the authority's: --ca-file of clients, and security.client_ca_file".to_string();
            files.push(File { path: certificate, purpose: trusted, content: made.clone() });
            files.push(File { path: key, purpose: "its key: signs certificates; keep it away".into(), content: secret.clone() });
            let key_pair = KeyPair::from_pem(&secret).map_err(failed)?;
            Issuer::from_ca_cert_pem(&made, key_pair).map_err(failed)
        }
        (true, false) | (false, true) => Err(Failure {
            exit: Exit::Refused,
            message: format!("{} has one of ca.pem and ca.key, not both", folder.display()),
            hint: "put the other one there, or take another folder".into(),
        }),
    }
}

fn signed(
    folder: &Path,
    name: &str,
    mut params: CertificateParams,
    usage: ExtendedKeyUsagePurpose,
    life: &Life,
    issuer: &Issuer<'static, KeyPair>,
    purpose: String,
) -> Result<[File; 2], Failure> {
    life.put_into(&mut params, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, issuer).map_err(failed)?;
    Ok([
        File { path: folder.join(format!("{name}.pem")), purpose, content: certificate.pem() },
        File { path: folder.join(format!("{name}.key")), purpose: "its key".into(), content: key.serialize_pem() },
    ])
}

fn named(mut params: CertificateParams, name: &str) -> CertificateParams {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// Whole or not at all, and a key never readable by others.
fn write(file: &File) -> Result<(), Failure> {
    let mode = if file.path.extension().is_some_and(|extension| extension == "key") { 0o600 } else { 0o644 };
    let mut draft = file.path.clone().into_os_string();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let written = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&draft).and_then(|mut open| {
        open.write_all(file.content.as_bytes())?;
        open.sync_all()
    });
    written.and_then(|()| std::fs::rename(&draft, &file.path)).map_err(|error| unwritable(&file.path, &error))
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| Failure::failed(format!("cannot read {}: {error}", path.display()), "look at its rights"))
}

/// It becomes a file's name, and a name in a certificate.
fn check_name(name: &str) -> Result<(), Failure> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=63).contains(&name.len()) && name.bytes().all(good) && !name.starts_with(['.', '-']) {
        return Ok(());
    }
    Err(Failure {
        exit: Exit::Usage,
        message: format!("--client `{}` is no name", name.escape_debug()),
        hint: "1 to 63 letters, digits, dots, dashes and underscores".into(),
    })
}

fn table(output: &Output, made: &Made) -> String {
    output.table(["FILE", "WHAT FOR"], made.files.iter().map(|file| [output::text(file.path.display()), output::text(&file.purpose)]))
}

fn failed(error: rcgen::Error) -> Failure {
    Failure::failed(format!("cannot make a certificate: {error}"), "look at the names that were given")
}

fn unusable(path: &Path) -> Failure {
    Failure::failed(format!("{} holds nothing that signs certificates", path.display()), "take another folder, or put the right file there")
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot write {}: {error}", path.display()), "look at the folder's rights, and its disk")
}
