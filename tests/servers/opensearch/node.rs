//! A real OpenSearch node for tests, included by path where it is needed. It needs a JDK (17 or newer) and Maven; the jars come from
//! Maven once, checked by their sums, into the folder named by `LOCKSTEP_OPENSEARCH_CACHE` (by default below the target folder).

#![allow(dead_code)] // each test takes what it needs

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;

/// A node; it ends with this value, and with this process.
pub struct Node {
    folder: tempfile::TempDir,
    /// 0 before the first start: the system gives it one, which it keeps.
    port: u16,
    settings: Vec<String>,
    running: Option<(Child, ChildStdin)>,
}

impl Node {
    /// A new, empty node with these settings (`name=value`). `None`, with a message, if there is no Java or Maven to run it with.
    pub fn start(settings: &[&str]) -> Option<Node> {
        class_path()?;
        let settings = settings.iter().map(|setting| setting.to_string()).collect();
        let mut node = Node { folder: tempfile::tempdir().expect("a folder"), port: 0, settings, running: None };
        node.run();
        Some(node)
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            child.kill().expect("it runs");
            child.wait().expect("it has ended");
        }
    }

    /// Ends it in order; it writes what it has.
    pub fn stop(&mut self) {
        if let Some((mut child, stdin)) = self.running.take() {
            drop(stdin);
            child.wait().expect("it has ended");
        }
    }

    /// Starts it again, on the same port, with what it had.
    pub fn run(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let log = self.folder.path().join("stderr.log");
        let mut child = Command::new("java")
            // C1 alone: a test runs for seconds.
            .args(["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dlog4j2.disable.jmx=true", "-cp"])
            .arg(class_path().expect("it was there at the start"))
            .arg("TestNode")
            .arg(self.folder.path())
            .arg(self.port.to_string())
            .args(&self.settings)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::options().create(true).append(true).open(&log).expect("its log"))
            .spawn()
            .expect("java runs");
        let stdin = child.stdin.take().expect("piped");
        let mut first = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut first).expect("its first line");
        let port = first.trim().strip_prefix("listening on ").and_then(|port| port.parse().ok());
        let Some(port) = port else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the node did not start:\n{}", std::fs::read_to_string(log).unwrap_or_default());
        };
        self.port = port;
        self.running = Some((child, stdin));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The class path of a node, after everything it needs was fetched.
fn class_path() -> Option<&'static str> {
    static CLASS_PATH: OnceLock<Option<String>> = OnceLock::new();
    let made = CLASS_PATH.get_or_init(|| {
        for (program, flag) in [("java", "-version"), ("javac", "-version"), ("mvn", "-version")] {
            if !Command::new(program).arg(flag).output().is_ok_and(|output| output.status.success()) {
                eprintln!(
                    "SKIPPED: there is no `{program}`: a real OpenSearch node needs a JDK (17 or newer) and Maven; tests/run installs them"
                );
                return None;
            }
        }
        let cache = cache();
        let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("tests/servers/opensearch/fetch");
        let fetched = Command::new(&fetch).arg(&cache).status().expect("fetch runs");
        assert!(fetched.success(), "{} {} failed", fetch.display(), cache.display());
        Some(std::fs::read_to_string(cache.join("classpath")).expect("a class path").trim().to_owned())
    });
    made.as_deref()
}

fn cache() -> PathBuf {
    match std::env::var_os("LOCKSTEP_OPENSEARCH_CACHE") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).join("opensearch-2.19.4"),
    }
}
