//! The demo's three acts on the stores that have servers, small: naive dual writes break what they always break, Lockstep nothing. Once
//! with servers of the demo's own, which it kills too; otherwise with servers that run already, which it leaves as they were.

use lockstep_servers::opensearch::Node;
use lockstep_servers::postgres::Cluster;
use serde_json::Value;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

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
    let refused = [
        (vec!["--stores", "postgres"], "expected DB,INDEX"),
        (vec!["--postgres-url", url.as_str()], "--postgres-url without --stores postgres,"),
        (
            vec!["--stores", "postgres,tantivy", "--postgres-url", url.as_str()],
            "max_prepared_transactions = 0; two-phase mode needs at least 64",
        ),
        (vec!["--stores", "postgres,tantivy", "--postgres-url", "postgresql://me:hush@localhost/x"], "PGPASSWORD"),
        (vec!["--stores", "sqlite,opensearch", "--opensearch-url", "http://127.0.0.1:9"], "does not answer"),
        (vec!["--stores", "postgres,tantivy", "--keep", "/tmp/never-made"], "--keep with a server that the demo starts"),
    ];
    for (arguments, sentence) in refused {
        let output = demo(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(sentence), "{arguments:?}: {said}");
    }
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
