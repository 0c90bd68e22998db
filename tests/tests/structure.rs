//! The tree itself: arrows go one way, the machine stays pure, and nothing is left open.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Who may depend on whom inside the workspace.
const ARROWS: &[(&str, &[&str])] = &[
    ("coordinator/core", &[]),
    ("coordinator/log", &["lockstep-core"]),
    ("proto", &[]),
    ("participants", &["lockstep-core"]),
    ("client", &["lockstep-proto"]),
    // The log for when the daemon is down.
    ("admin", &["lockstep-proto", "lockstep-client", "lockstep-log"]),
    ("tests/servers", &[]),
    // The client and the servers only for `demo` and `bench`, which are clients of a daemon in another process.
    ("coordinator", &["lockstep-core", "lockstep-log", "lockstep-proto", "lockstep-participants", "lockstep-client", "lockstep-servers"]),
];

/// What the machine may depend on at run time.
const PURE: &[&str] = &["bytes", "serde", "rustc-hash", "hashbrown"];

/// What a pure machine has no use for.
const IMPURE: &[&str] =
    &["std::fs", "std::net", "std::thread", "SystemTime", "Instant::now", "println!", "async fn", "tokio", "rand::", "uuid"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

fn manifest(folder: &str) -> toml::Table {
    let path = root().join(folder).join("Cargo.toml");
    std::fs::read_to_string(path).expect("a manifest").parse().expect("a manifest parses")
}

fn dependencies(folder: &str, optional: bool) -> BTreeSet<String> {
    let manifest = manifest(folder);
    let Some(table) = manifest.get("dependencies").and_then(|value| value.as_table()) else { return BTreeSet::new() };
    let is_optional = |value: &toml::Value| value.get("optional").and_then(toml::Value::as_bool).unwrap_or(false);
    table.iter().filter(|(_, value)| optional || !is_optional(value)).map(|(name, _)| name.clone()).collect()
}

fn sources(folder: &str) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                if !path.ends_with("target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source");
                found.insert(path, text);
            }
        }
    }
    found
}

#[test]
fn arrows_go_one_way() {
    for (folder, allowed) in ARROWS {
        let ours: BTreeSet<_> = dependencies(folder, true).into_iter().filter(|name| name.starts_with("lockstep")).collect();
        let allowed: BTreeSet<_> = allowed.iter().map(|name| name.to_string()).collect();
        assert!(ours.is_subset(&allowed), "{folder} depends on {:?}, and may only on {allowed:?}", &ours - &allowed);
    }
}

#[test]
fn only_the_demo_and_the_benchmark_are_clients() {
    for (path, text) in sources("coordinator/src") {
        let client = text.contains("lockstep_client") || text.contains("lockstep_servers");
        let may = path.components().any(|part| part.as_os_str() == "demo" || part.as_os_str() == "bench");
        assert!(may || !client, "{} uses the client library, or starts servers", path.display());
    }
}

#[test]
fn the_machine_is_pure() {
    let allowed: BTreeSet<_> = PURE.iter().map(|name| name.to_string()).collect();
    let found = dependencies("coordinator/core", false);
    assert!(found.is_subset(&allowed), "lockstep-core depends on {:?}", &found - &allowed);
    for (path, text) in sources("coordinator/core/src") {
        if path.components().any(|part| part.as_os_str() == "simulator") {
            continue;
        }
        for word in IMPURE {
            assert!(!text.contains(word), "{} has `{word}`", path.display());
        }
    }
}

#[test]
fn every_version_lives_in_the_workspace() {
    for (folder, _) in ARROWS.iter().chain(&[("tests", &[] as &[&str])]) {
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let manifest = manifest(folder);
            let Some(table) = manifest.get(section).and_then(|value| value.as_table()) else { continue };
            for (name, value) in table {
                let inherited = value.get("workspace").and_then(toml::Value::as_bool).unwrap_or(false);
                assert!(inherited, "{folder}: {section}.{name} names its own version");
            }
        }
    }
}

#[test]
fn nothing_is_left_open() {
    let words = ["todo!", "unimplemented!", "FIXME", "XXX"].map(|word| word.to_string());
    for folder in ["coordinator", "proto", "participants", "client", "admin", "tests/src"] {
        for (path, text) in sources(folder) {
            for word in &words {
                assert!(!text.contains(word.as_str()), "{} has `{word}`", path.display());
            }
            for (n, line) in text.lines().enumerate() {
                let ignored = line.trim_start().starts_with("#[ignore") && !line.contains('=');
                assert!(!ignored, "{}:{}: an ignored test says why", path.display(), n + 1);
            }
        }
    }
}

/// The exposure that `systemd-analyze security` may find, in tenths: from 0, nothing, to 100.
const EXPOSURE: &str = "20";

#[test]
fn systemd_takes_the_unit_and_finds_it_hardened() {
    let analyze = |folder: &Path, arguments: &[&str]| {
        let unit = folder.join("lockstepd.service");
        std::process::Command::new("systemd-analyze").args(arguments).arg(unit).env("SYSTEMD_COLORS", "0").output()
    };
    let folder = tempfile::tempdir().expect("a folder");
    let text = std::fs::read_to_string(root().join("ops/lockstepd.service")).expect("the unit");
    // The program is not installed here, nor its man page.
    let here = text.replace("/usr/bin/lockstepd", "/bin/true").replace("Documentation=man:lockstep(1)\n", "");
    assert_ne!(here, text);
    std::fs::write(folder.path().join("lockstepd.service"), here).expect("written");
    let Ok(verified) = analyze(folder.path(), &["verify"]) else {
        return eprintln!("skipped: there is no systemd-analyze here");
    };
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let about_ours: Vec<&str> = said.lines().filter(|line| line.contains("lockstepd")).collect();
    assert!(about_ours.is_empty(), "{about_ours:?}");
    let judged = analyze(folder.path(), &["security", "--offline=true", &format!("--threshold={EXPOSURE}")]).expect("it is there");
    let last = String::from_utf8_lossy(&judged.stdout).lines().last().unwrap_or_default().to_owned();
    assert!(judged.status.success(), "{last}: {}", String::from_utf8_lossy(&judged.stderr));
}
