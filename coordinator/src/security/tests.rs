//! Proofs, and what becomes of them when files change.

use super::*;
use crate::configuration::Configuration;
use std::fs;
use tempfile::TempDir;

const TOKEN: &str = "shop-token-0123456789";

struct Lab {
    folder: TempDir,
    security: Arc<Security>,
}

impl Lab {
    fn new(principals: &[(&str, &[Role], &str)]) -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let principals = principals.iter().map(|(name, roles, token)| {
            let file = folder.path().join(name);
            fs::write(&file, format!("{token}\n")).unwrap();
            principal(name, roles, file)
        });
        let configuration = Configuration { principals: principals.collect(), ..Configuration::default() };
        Lab { security: Security::load(&configuration).unwrap(), folder }
    }

    fn bearer(&self, token: &str) -> Result<Caller, Status> {
        self.security.admit(None, Some(format!("Bearer {token}").as_bytes()))
    }
}

fn principal(name: &str, roles: &[Role], token_file: std::path::PathBuf) -> Principal {
    Principal {
        name: name.into(),
        roles: roles.to_vec(),
        stores: None,
        certificates: Vec::new(),
        token_file: Some(token_file),
        token_env: None,
        requests_per_second: None,
        transaction_bytes: None,
        streams: None,
    }
}

#[test]
fn a_token_names_its_principal_and_nothing_else_does() {
    let lab = Lab::new(&[("shop", &[Role::Client], TOKEN), ("ops", &[Role::Operator], "ops-token-0123456789")]);
    assert_eq!(lab.bearer(TOKEN).unwrap().name(), Some("shop"));
    assert_eq!(lab.bearer("ops-token-0123456789").unwrap().name(), Some("ops"));
    // "x:shop-token-0123456789", as a browser sends it.
    let basic = lab.security.admit(None, Some(b"Basic eDpzaG9wLXRva2VuLTAxMjM0NTY3ODk="));
    assert_eq!(basic.unwrap().name(), Some("shop"));
    for header in ["", "Bearer", "Bearer ", "Bearer shop-token-012345678", "Basic !", "Digest x", TOKEN, "Bearer shop-token-01234567890"] {
        let refused = lab.security.admit(None, Some(header.as_bytes())).err().expect(header);
        assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{header}");
        assert!(!refused.message().contains("shop"), "{refused}");
    }
    assert!(lab.security.admit(None, None).err().unwrap().message().contains("authorization: Bearer TOKEN"));
}

#[test]
fn roles_include_what_they_include() {
    let lab = Lab::new(&[("ops", &[Role::Operator], TOKEN)]);
    let caller = lab.bearer(TOKEN).unwrap();
    for (role, has) in [(Role::Operator, true), (Role::Viewer, true), (Role::Client, false), (Role::Participant, false)] {
        assert_eq!(lab.security.allows(&caller, caller.account(), role).is_ok(), has, "{role}");
    }
    let refused = lab.security.allows(&caller, caller.account(), Role::Client).unwrap_err();
    assert_eq!(refused.message(), "this needs the role client: principal `ops` has operator");
}

#[test]
fn tokens_are_replaced_without_a_restart_and_bad_files_change_nothing() {
    let lab = Lab::new(&[("shop", &[Role::Client], TOKEN)]);
    let (file, old) = (lab.folder.path().join("shop"), lab.bearer(TOKEN).unwrap());
    let level = |lab: &Lab| lab.security.findings()[0].level.clone();

    fs::write(&file, format!("{TOKEN}\nshop-token-new-0123456789\n")).unwrap();
    lab.security.reload();
    assert!(old.still_holds().is_ok() && lab.bearer("shop-token-new-0123456789").is_ok());

    fs::write(&file, "short\n").unwrap();
    lab.security.reload();
    assert!(old.still_holds().is_ok() && lab.bearer("shop-token-new-0123456789").is_ok());
    assert_eq!(level(&lab), "problem");
    assert!(!lab.security.findings()[0].sentence.contains("short"), "a token, even a bad one, is not shown");

    fs::write(&file, "shop-token-new-0123456789\n").unwrap();
    lab.security.reload();
    assert!(lab.bearer(TOKEN).is_err());
    assert_eq!(old.still_holds().unwrap_err().code(), tonic::Code::Unauthenticated);
    assert_ne!(level(&lab), "problem");
}

#[test]
fn a_principal_has_so_many_requests() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t");
    fs::write(&file, TOKEN).unwrap();
    let limited = Principal { requests_per_second: Some(3), ..principal("shop", &[Role::Client], file) };
    let security = Security::load(&Configuration { principals: vec![limited], ..Configuration::default() }).unwrap();
    let caller = security.admit(None, Some(format!("Bearer {TOKEN}").as_bytes())).unwrap();
    let refused = (0..100).find_map(|_| caller.count().err()).expect("a limit");
    assert!(refused.contains("principal `shop` may send 3 requests a second (requests_per_second)"), "{refused}");
}

#[test]
fn what_cannot_be_used_is_said_without_a_word_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t");
    let load = |principals| {
        let loaded = Security::load(&Configuration { principals, ..Configuration::default() });
        loaded.err().expect("it cannot be used").to_string()
    };
    fs::write(&file, "hush hush hush hush\n").unwrap();
    let error = load(vec![principal("shop", &[Role::Client], file.clone())]);
    assert!(error.contains("principal `shop`: token_file") && !error.contains("hush"), "{error}");
    fs::write(&file, "hush-hush-hush-hush\n").unwrap();
    let twice = vec![principal("a", &[Role::Client], file.clone()), principal("b", &[Role::Client], file)];
    let error = load(twice);
    assert!(error.contains("`b`: it has the same token as `a`") && !error.contains("hush"), "{error}");
    assert!(load(vec![principal("a", &[Role::Client], folder.path().join("none"))]).contains("cannot read"));
}
