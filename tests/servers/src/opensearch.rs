//! A real OpenSearch node, or one of Elasticsearch. It needs a JDK (17 or newer) and Maven; the jars come from Maven once, checked by their
//! sums, into a folder below the one named by `LOCKSTEP_SEARCH_CACHE` (by default the target folder).

use anyhow::{Context, bail};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;

/// What a node is made of: a part of the source tree.
const RECIPE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/search");

/// A node; it ends with this value, and with this process.
pub struct Node {
    product: Product,
    folder: tempfile::TempDir,
    port: u16,
    settings: Vec<String>,
    life: Life,
    running: Option<(Child, ChildStdin)>,
}

/// Two products that speak the same language, in dialects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Product {
    /// OpenSearch 2.19.
    OpenSearch,
    /// Elasticsearch 7.17, the last that can be run from its public artifacts alone.
    Elasticsearch,
}

/// How long a node is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// For seconds: its code is compiled quickly.
    Short,
    /// For as long as its compilers need to reach their best.
    Long,
}

impl Product {
    /// The one that `LOCKSTEP_TEST_SEARCH` names; OpenSearch if it names none.
    pub fn wanted() -> Product {
        match std::env::var("LOCKSTEP_TEST_SEARCH").as_deref() {
            Ok("elasticsearch") => Product::Elasticsearch,
            Ok("opensearch") | Err(_) => Product::OpenSearch,
            Ok(other) => panic!("LOCKSTEP_TEST_SEARCH is `opensearch` or `elasticsearch`, not `{other}`"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Product::OpenSearch => "opensearch",
            Product::Elasticsearch => "elasticsearch",
        }
    }
}

impl Node {
    /// A new, empty node of the wanted product, with these settings (`name=value`). `None`, with a message, if there is no Java or Maven to
    /// run it with.
    pub fn start(settings: &[&str]) -> Option<Node> {
        Node::start_one(Product::wanted(), settings)
    }

    /// The same, of this product.
    pub fn start_one(product: Product, settings: &[&str]) -> Option<Node> {
        if let Err(why) = programs() {
            eprintln!("SKIPPED: {why}; tests/run installs them");
            return None;
        }
        Some(Node::try_start_one(product, settings, Life::Short).expect("the node starts"))
    }

    /// A new, empty node of the wanted product, with these settings (`name=value`).
    pub fn try_start(settings: &[&str], life: Life) -> anyhow::Result<Node> {
        Node::try_start_one(Product::wanted(), settings, life)
    }

    fn try_start_one(product: Product, settings: &[&str], life: Life) -> anyhow::Result<Node> {
        class_path(product)?;
        let settings = settings.iter().map(|setting| setting.to_string()).collect();
        let mut node = Node { product, folder: tempfile::tempdir()?, port: crate::free_port()?, settings, life, running: None };
        node.try_run()?;
        Ok(node)
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its process, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.running.as_ref().map(|(child, _)| child.id())
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
        self.try_run().expect("the node starts");
    }

    /// Starts it again, on the same port, with what it had.
    pub fn try_run(&mut self) -> anyhow::Result<()> {
        assert!(self.running.is_none(), "it runs already");
        let log = self.folder.path().join("stderr.log");
        let compilers: &[&str] = match self.life {
            Life::Short => &["-XX:TieredStopAtLevel=1"],
            Life::Long => &[],
        };
        let mut child = Command::new("java")
            .args(["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-Dlog4j2.disable.jmx=true"])
            .args(compilers)
            .arg("-cp")
            .arg(class_path(self.product)?)
            .arg("TestNode")
            .arg(self.folder.path())
            .arg(self.port.to_string())
            .args(&self.settings)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::options().create(true).append(true).open(&log).context("the node's log")?)
            // What a terminal tells the process that started it is not for the node.
            .process_group(0)
            .spawn()
            .context("cannot run java")?;
        let stdin = child.stdin.take().expect("piped");
        let mut first = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut first).context("the node's first line")?;
        if first.trim() != format!("listening on {}", self.port) {
            // Fails only if it is gone already.
            let _ = child.kill();
            let _ = child.wait();
            bail!("the {} node did not start:\n{}", self.product.name(), std::fs::read_to_string(log).unwrap_or_default());
        }
        self.running = Some((child, stdin));
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What runs a node, or what of it is missing.
pub fn programs() -> anyhow::Result<()> {
    for program in ["java", "javac", "mvn"] {
        let there = Command::new(program).arg("-version").output().is_ok_and(|output| output.status.success());
        anyhow::ensure!(there, "there is no `{program}`: a real OpenSearch node needs a JDK (17 or newer) and Maven");
    }
    Ok(())
}

/// The class path of a node, after everything it needs was fetched.
fn class_path(product: Product) -> anyhow::Result<&'static str> {
    static CLASS_PATHS: [OnceLock<String>; 2] = [const { OnceLock::new() }; 2];
    let class_path = &CLASS_PATHS[product as usize];
    if let Some(made) = class_path.get() {
        return Ok(made);
    }
    let fetch = Path::new(RECIPE).join("fetch");
    anyhow::ensure!(
        fetch.exists(),
        "this program was built in a source tree that is not here any more ({RECIPE}), and a search node is made from it"
    );
    programs()?;
    let cache = cache(product);
    let fetched =
        Command::new(&fetch).arg(product.name()).arg(&cache).status().with_context(|| format!("cannot run {}", fetch.display()))?;
    anyhow::ensure!(fetched.success(), "{} {} failed", fetch.display(), cache.display());
    let made = std::fs::read_to_string(cache.join("classpath")).context("the node's class path")?;
    Ok(class_path.get_or_init(|| made.trim().to_owned()))
}

fn cache(product: Product) -> PathBuf {
    let folder = format!("{}-node", product.name());
    if let Some(caches) = std::env::var_os("LOCKSTEP_SEARCH_CACHE") {
        return Path::new(&caches).join(folder);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new(RECIPE).join("../../../target"), PathBuf::from);
    target.join("tmp").join(folder)
}
