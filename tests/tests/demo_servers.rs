//! The demo's three acts on the stores that have servers, small: naive dual writes break what they always break, Lockstep nothing. Once
//! with servers of the demo's own, which it kills too; otherwise with servers that run already, which it leaves as they were.

use lockstep_servers::opensearch::Node;
use lockstep_servers::postgres::Cluster;
use lockstepd::demo::stores::{PostgresMode, Stores, StoresArgs};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Documents of the act's films that an index refuses.
const REFUSED: u64 = 9;

#[test]
fn postgres_in_two_phases_and_opensearch_of_the_demos_own() {
    if node().is_none() {
        return;
    }
    let report = play(&["--stores", "postgres,opensearch"]);
    assert_eq!(report["crash"]["server_kills"], 1, "{report}");
}

#[test]
fn postgres_leading_and_opensearch() {
    let Some(node) = node() else { return };
    // No prepared transactions, as PostgreSQL comes.
    let cluster = Cluster::start(&["max_connections=200"]);
    let url = cluster.url("postgres");
    let report =
        play(&["--stores", "postgres,opensearch", "--postgres-mode", "database-led", "--postgres-url", &url, "--opensearch-url", node]);
    assert_eq!(report["crash"]["server_kills"], 0, "{report}");
    nothing_is_left(&cluster);
}

#[test]
fn sqlite_and_opensearch() {
    let Some(node) = node() else { return };
    play(&["--stores", "sqlite,opensearch", "--opensearch-url", node]);
}

#[test]
fn postgres_in_two_phases_and_tantivy() {
    let cluster = Cluster::start(&["max_connections=200", "max_prepared_transactions=64"]);
    play(&["--stores", "postgres,tantivy", "--postgres-url", &cluster.url("postgres")]);
    nothing_is_left(&cluster);
}

#[test]
fn what_cannot_be_played_is_said_in_a_sentence() {
    let cluster = Cluster::start(&[]);
    let url = cluster.url("postgres");
    let (failed, wrong_usage) = (1, 2);
    let refused = [
        (wrong_usage, vec!["--stores", "postgres"], "expected DB,INDEX"),
        (wrong_usage, vec!["--postgres-url", url.as_str()], "--postgres-url without --stores postgres,"),
        (
            failed,
            vec!["--stores", "postgres,tantivy", "--postgres-url", url.as_str()],
            "max_prepared_transactions = 0; two-phase mode needs at least 64",
        ),
        (wrong_usage, vec!["--stores", "postgres,tantivy", "--postgres-url", "postgresql://me:hush@localhost/x"], "PGPASSWORD"),
        (failed, vec!["--stores", "sqlite,opensearch", "--opensearch-url", "http://127.0.0.1:9"], "does not answer"),
        (wrong_usage, vec!["--stores", "postgres,tantivy", "--keep", "/tmp/never-made"], "--keep with a server that the demo starts"),
    ];
    for (code, arguments, sentence) in refused {
        let output = demo(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(sentence), "{arguments:?}: {}: {said}", output.status);
    }
    nothing_is_left(&cluster);
}

/// Told to end while it starts a server of its own, it ends the server first.
#[test]
fn interrupted_while_its_servers_start_it_leaves_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    // The server is another user's process where the test is root's.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let left = || std::fs::read_dir(folder.path()).unwrap().count();
    let mut demo = demo(&["--stores", "postgres,tantivy"]).env("TMPDIR", folder.path()).stderr(Stdio::piped()).spawn().unwrap();
    // The acts' folder comes first, then the server's.
    while left() < 2 {
        assert_eq!(demo.try_wait().unwrap(), None, "it ended by itself");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill_process(Pid::from_child(&demo), Signal::TERM).unwrap();
    let output = demo.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("lockstepd: interrupted"), "{}: {said}", output.status);
    assert_eq!(left(), 0, "{said}");
}

/// Told to end in the middle of an act, it says what is left where: nothing, or what was to be kept.
#[test]
fn interrupted_in_an_act_it_says_what_it_leaves() {
    let cluster = Cluster::start(&["max_connections=200", "max_prepared_transactions=64"]);
    let url = cluster.url("postgres");
    let databases = || cluster.psql("postgres", "SELECT count(*) FROM pg_database WHERE datname LIKE 'lockstep%'");
    let interrupt = |arguments: &[&str]| {
        let all = [&["--stores", "postgres,tantivy", "--postgres-url", &url], arguments].concat();
        let mut demo = demo(&all).stderr(Stdio::piped()).spawn().unwrap();
        while databases() == "0" {
            assert_eq!(demo.try_wait().unwrap(), None, "it ended by itself");
        }
        kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
        let output = demo.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains("lockstepd: interrupted"), "{}: {said}", output.status);
        said
    };
    let said = interrupt(&[]);
    assert!(said.contains("Everything that this made is gone again"), "{said}");
    nothing_is_left(&cluster);

    let kept = tempfile::tempdir().unwrap();
    let said = interrupt(&["--keep", kept.path().to_str().unwrap()]);
    assert!(said.contains("as far as it came") && said.contains("psql -l") && !said.contains("gone again"), "{said}");
    assert_ne!(databases(), "0");
}

#[test]
fn a_database_that_cannot_be_removed_keeps_no_other() {
    let cluster = Cluster::start(&["max_connections=200"]);
    let arguments = StoresArgs {
        stores: "postgres,tantivy".parse().unwrap(),
        postgres_mode: PostgresMode::DatabaseLed,
        postgres_url: Some(cluster.url("postgres")),
        opensearch_url: None,
    };
    let stores = Stores::start(&arguments, channel().0).unwrap();
    for side in ["a", "b"] {
        stores.configuration(side).unwrap();
    }
    let names = || cluster.psql("postgres", "SELECT datname FROM pg_database WHERE datname LIKE 'lockstep%' ORDER BY datname");
    let all = names();
    let (first, _) = all.split_once('\n').expect("two databases");
    // Nobody can drop a template.
    cluster.psql("postgres", &format!("ALTER DATABASE {first} IS_TEMPLATE true"));
    let said = format!("{:#}", stores.clean_up().unwrap_err());
    assert!(said.contains(first), "{said}");
    assert_eq!(names(), first);
    cluster.psql("postgres", &format!("ALTER DATABASE {first} IS_TEMPLATE false"));
    stores.clean_up().unwrap();
    nothing_is_left(&cluster);
}

/// The node that these tests share; it ends with the process.
fn node() -> Option<&'static str> {
    static NODE: OnceLock<Option<(Node, String)>> = OnceLock::new();
    let started = NODE.get_or_init(|| {
        let node = Node::start(&[])?;
        let url = node.url();
        Some((node, url))
    });
    started.as_ref().map(|(_, url)| url.as_str())
}

/// Plays the acts; what they showed.
fn play(arguments: &[&str]) -> Value {
    let output = demo(arguments).args(["--quick", "--seed", "7", "--output", "json"]).output().unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["lockstep_faults"], 0, "{report}");
    assert_eq!(report["half_write"]["naive_refused"]["row_only"], REFUSED, "{report}");
    assert_eq!(report["half_write"]["naive_killed"]["row_only"], report["half_write"]["naive_kills"], "{report}");
    assert!(report["crash"]["committed"].as_u64() > Some(0), "{report}");
    report
}

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstepd-with-failpoints"));
    command.arg("demo").args(arguments).stdin(Stdio::null());
    command
}

fn nothing_is_left(cluster: &Cluster) {
    let left = cluster.psql("postgres", "SELECT string_agg(datname, ' ') FROM pg_database WHERE datname LIKE 'lockstep%'");
    assert_eq!(left, "");
    assert_eq!(cluster.psql("postgres", "SELECT count(*) FROM pg_prepared_xacts"), "0");
}
