//! A real browser: Debian's chromium, without a screen, driven by its own driver (W3C WebDriver: JSON over HTTP).

use anyhow::{Context, bail};
use base64::Engine;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that is waited for.
const LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);
/// How a request names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// Keys, as WebDriver writes them.
pub const TAB: &str = "\u{E004}";
pub const ENTER: &str = "\u{E007}";
pub const ESCAPE: &str = "\u{E00C}";

/// One window of one browser, ended with this.
pub struct Browser {
    driver: Child,
    agent: ureq::Agent,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// `None`, and a sentence, if there is no browser here.
    pub fn start() -> anyhow::Result<Option<Browser>> {
        let (Some(driver), Some(chromium)) = (program("chromedriver"), program("chromium")) else {
            println!("skipped: there is no chromium with its driver: sudo apt-get install chromium chromium-driver");
            return Ok(None);
        };
        let port = lockstep_servers::free_port()?;
        let driver =
            Command::new(driver).arg(format!("--port={port}")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
        let profile = tempfile::tempdir()?;
        let mut browser = Browser { driver, agent, session: format!("http://127.0.0.1:{port}/session"), _profile: profile };
        let until = Instant::now() + LIMIT;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            anyhow::ensure!(Instant::now() < until, "chromedriver does not listen after {LIMIT:?}");
            std::thread::sleep(LOOK);
        }
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        // Its sandbox does not work for root, nor in most containers; it only ever shows our own pages here.
        let arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,1000", &profile];
        let options = json!({ "args": arguments, "binary": chromium });
        let logs = json!({ "browser": "ALL", "performance": "ALL" });
        let wanted = json!({ "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs });
        let answer = browser.post("", &json!({ "capabilities": { "alwaysMatch": wanted } }))?;
        let id = answer["sessionId"].as_str().context("a session has an id")?;
        browser.session = format!("{}/{id}", browser.session);
        Ok(Some(browser))
    }

    /// Opens a page.
    pub fn open(&self, url: &str) -> anyhow::Result<()> {
        self.post("url", &json!({ "url": url })).map(drop)
    }

    /// What this JavaScript returns.
    pub fn run(&self, script: &str) -> anyhow::Result<Value> {
        self.post("execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// What this JavaScript hands to its callback, the last of its arguments.
    pub fn run_async(&self, script: &str) -> anyhow::Result<Value> {
        self.post("execute/async", &json!({ "script": script, "args": [] }))
    }

    /// Waits until this JavaScript expression is true.
    pub fn until(&self, what: &str) -> anyhow::Result<()> {
        let until = Instant::now() + LIMIT;
        // A page that is being left has no answer for a moment.
        while !matches!(self.run(&format!("return Boolean({what})")), Ok(Value::Bool(true))) {
            if Instant::now() > until {
                bail!("`{what}` is not true after {LIMIT:?}; the page:\n{}", self.text()?);
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until the page shows this, whatever is between its words.
    pub fn until_shown(&self, words: &str) -> anyhow::Result<()> {
        self.until(&format!("document.body.innerText.replace(/\\s+/g, ' ').includes({})", json!(words)))
    }

    /// What the page shows.
    pub fn text(&self) -> anyhow::Result<String> {
        Ok(self.run("return document.body.innerText")?.as_str().unwrap_or_default().to_owned())
    }

    /// Clicks the element that this selector finds first.
    pub fn click(&self, selector: &str) -> anyhow::Result<()> {
        let element = self.find(selector)?;
        self.post(&format!("element/{element}/click"), &json!({})).map(drop)
    }

    /// Types into it, in place of what stands there.
    pub fn fill(&self, selector: &str, text: &str) -> anyhow::Result<()> {
        let element = self.find(selector)?;
        self.post(&format!("element/{element}/clear"), &json!({}))?;
        self.post(&format!("element/{element}/value"), &json!({ "text": text })).map(drop)
    }

    /// Presses keys where the focus is.
    pub fn press(&self, keys: &str) -> anyhow::Result<()> {
        let pressed = keys.chars().flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() })));
        let actions = json!({ "actions": [{ "type": "key", "id": "keys", "actions": Vec::from_iter(pressed) }] });
        self.post("actions", &actions).map(drop)
    }

    /// Messages of the console that are errors or warnings, since it was last asked.
    pub fn complaints(&self) -> anyhow::Result<Vec<String>> {
        let bad = |entry: &Value| matches!(entry["level"].as_str(), Some("SEVERE" | "WARNING"));
        Ok(self.log("browser")?.iter().filter(|entry| bad(entry)).map(|entry| entry["message"].to_string()).collect())
    }

    /// Everything that was requested since it was last asked.
    pub fn requests(&self) -> anyhow::Result<Vec<String>> {
        let mut urls = Vec::new();
        for entry in self.log("performance")? {
            let message: Value = serde_json::from_str(entry["message"].as_str().unwrap_or_default())?;
            if message["message"]["method"] == "Network.requestWillBeSent" {
                urls.push(message["message"]["params"]["request"]["url"].as_str().unwrap_or_default().to_owned());
            }
        }
        Ok(urls)
    }

    /// As a phone or a desktop shows it.
    pub fn resize(&self, width: u32, height: u32) -> anyhow::Result<()> {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700 });
        self.devtools("Emulation.setDeviceMetricsOverride", size)
    }

    /// With a dark or a light desktop around it.
    pub fn dark(&self, dark: bool) -> anyhow::Result<()> {
        let value = if dark { "dark" } else { "light" };
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] }))
    }

    /// What is seen of it, as a PNG.
    pub fn screenshot(&self) -> anyhow::Result<Vec<u8>> {
        let encoded = self.call("GET", "screenshot", None)?;
        Ok(base64::engine::general_purpose::STANDARD.decode(encoded.as_str().unwrap_or_default())?)
    }

    fn find(&self, selector: &str) -> anyhow::Result<String> {
        let found = self.post("element", &json!({ "using": "css selector", "value": selector }))?;
        Ok(found[ELEMENT].as_str().context("an element has an id")?.to_owned())
    }

    fn log(&self, kind: &str) -> anyhow::Result<Vec<Value>> {
        Ok(self.post("se/log", &json!({ "type": kind }))?.as_array().cloned().unwrap_or_default())
    }

    fn devtools(&self, command: &str, parameters: Value) -> anyhow::Result<()> {
        self.post("goog/cdp/execute", &json!({ "cmd": command, "params": parameters })).map(drop)
    }

    fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call("POST", path, Some(body))
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let url = if path.is_empty() { self.session.clone() } else { format!("{}/{path}", self.session) };
        tokio::task::block_in_place(|| {
            let mut response = match body {
                Some(body) => self.agent.post(&url).content_type("application/json").send(body.to_string())?,
                None => self.agent.get(&url).call()?,
            };
            // Screenshots and logs are long.
            let text = response.body_mut().with_config().limit(256 << 20).read_to_string()?;
            let mut answer: Value = serde_json::from_str(&text)?;
            if !response.status().is_success() {
                bail!("{method} {path}: {} {}", answer["value"]["error"], answer["value"]["message"]);
            }
            Ok(answer["value"].take())
        })
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser ends with its session; the driver then has nobody left.
        let _ = tokio::task::block_in_place(|| self.agent.delete(&self.session).call());
        let _ = kill_process(Pid::from_child(&self.driver), Signal::TERM);
        let _ = self.driver.wait();
    }
}

fn program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}
