//! Whole outputs: what a person types, and everything that comes back. Renewed with `INSTA_UPDATE=always`; read the difference.

mod fake;

use fake::Health;
use insta::assert_snapshot;
use lockstep::{Exit, Io};
use std::io::{BufRead, BufReader, Cursor, Read};
use std::sync::mpsc::Receiver;

/// Runs command lines against a daemon and gives the transcript.
fn transcript(endpoint: &str, commands: &[&str]) -> String {
    commands.iter().map(|command| talk(endpoint, command, "", false).1).collect::<Vec<_>>().join("\n")
}

fn talk(endpoint: &str, command: &str, typed: &str, interactive: bool) -> (Exit, String) {
    answer(endpoint, command, &mut typed.as_bytes(), interactive)
}

fn answer(endpoint: &str, command: &str, stdin: &mut dyn BufRead, interactive: bool) -> (Exit, String) {
    let words = ["lockstep", "--endpoint", endpoint].map(str::to_owned).into_iter();
    let words = words.chain(command.split_whitespace().map(|word| word.replace('_', " ")));
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut io = Io { stdin, stdout: &mut stdout, stderr: &mut stderr, interactive, color: false };
    let exit = lockstep::run(words, &mut io);
    let mut text = format!("$ lockstep {command}\n");
    for (name, stream) in [("stdout", stdout), ("stderr", stderr)] {
        if !stream.is_empty() {
            // Usage lines name --endpoint where LOCKSTEP_ENDPOINT is set.
            let stream = String::from_utf8(stream).unwrap().replace(endpoint, "http://DAEMON").replace("> --endpoint <ENDPOINT>", ">");
            text += &format!("[{name}]\n{}\n", stream.trim_end());
        }
    }
    (exit, text + &format!("[exit {}]\n", exit as u8))
}

#[test]
fn status() {
    let (well, ill) = (fake::start(Health::Well), fake::start(Health::Ill));
    assert_snapshot!("status_well", transcript(&well, &["status", "status --output json"]));
    assert_snapshot!("status_ill", transcript(&ill, &["status", "status --output json"]));
}

#[test]
fn transactions() {
    let daemon = fake::start(Health::Ill);
    let commands = [
        "tx list",
        "tx list --state aborted --state committing --limit 1",
        "tx list --state aborted --state committing --older-than 3s",
        "tx list --older-than 2h",
        "tx list --output json",
        "tx show 3-1251",
        "tx show 3-1251 --output json",
        "tx show 3-9",
        "tx list --participant nowhere",
        "tx list --state in-doubt",
        "tx list --key order-17",
    ];
    assert_snapshot!("transactions", transcript(&daemon, &commands));
}

#[test]
fn explanations() {
    let daemon = fake::start(Health::Ill);
    let commands = ["tx explain 3-1251", "tx explain 3-1251 --output json", "tx explain 3-9"];
    assert_snapshot!("explanations", transcript(&daemon, &commands));
}

#[test]
fn waiting() {
    let (well, ill) = (fake::start(Health::Well), fake::start(Health::Ill));
    let settled = transcript(&well, &["wait", "wait --output json"]);
    let doubtful = transcript(&ill, &["wait --timeout 0s", "wait --timeout 0s --output json"]);
    assert_snapshot!("waiting", [settled, doubtful].join("\n"));
}

#[test]
fn the_log_is_verified() {
    let (well, ill) = (fake::start(Health::Well), fake::start(Health::Ill));
    let sound = transcript(&well, &["log verify", "log verify --output json"]);
    let nothing = transcript("http://127.0.0.1:1", &["log verify --folder /nonexistent", "log dump --folder /nonexistent"]);
    assert_snapshot!("verified", [sound, transcript(&ill, &["log verify"]), nothing].join("\n"));
}

#[test]
fn manual_pages_have_their_exit_codes() {
    let folder = std::env::temp_dir().join(format!("lockstep-man-{}", std::process::id()));
    let (exit, text) = talk("http://127.0.0.1:1", &format!("man {}", folder.display()), "", false);
    assert_eq!(exit, Exit::Ok, "{text}");
    let mut pages: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|page| page.unwrap().path()).collect();
    pages.sort();
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        assert!(text.contains("something needs a person"), "{}", page.display());
    }
    let names: Vec<_> = pages.iter().map(|page| page.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert!(names.contains(&"lockstep-tx-explain.1".to_string()) && names.contains(&"lockstep.1".to_string()), "{names:?}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn participants_log_and_doctor() {
    let (well, ill) = (fake::start(Health::Well), fake::start(Health::Ill));
    assert_snapshot!("participants", transcript(&ill, &["participants", "participants --output json"]));
    let dumps = ["log dump", "log dump --from 3", "log dump --from 2 --limit 2 --output json"];
    assert_snapshot!("log", transcript(&well, &dumps));
    let (doctor, json) = ("doctor", "doctor --output json");
    assert_snapshot!("doctor", [transcript(&well, &[doctor]), transcript(&ill, &[doctor, json])].join("\n"));
}

#[test]
fn orders() {
    let (well, ill) = (fake::start(Health::Well), fake::start(Health::Ill));
    let order = "--operator ann --reason disk_lost";
    let commands = [
        format!("skip 3-1251 --participant index {order}"),
        format!("skip 3-1251 --participant index {order} --yes"),
        "skip 3-1251 --participant index --dry-run".into(),
        "skip 3-1251 --participant index --dry-run --output json".into(),
        format!("tx resolve 3-1251 --participant db --abort {order} --yes"),
        format!("tx resolve 3-1251 --participant db --rollback {order}"),
        format!("damage forget 3-900 --participant index {order} --yes --output json"),
        format!("waive index {order} --yes"),
        format!("leave-safe-mode {order} --yes"),
        "participants remove index --dry-run".into(),
        format!("participants remove index {order}"),
        format!("participants remove index {order} --yes"),
        "damage list".into(),
        "damage list --output json".into(),
        "damage show 3-900".into(),
        "damage show 3-901".into(),
    ];
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    assert_snapshot!("orders", transcript(&ill, &commands));
    assert_snapshot!("orders_refused", transcript(&well, &[commands[1], commands[2], commands[11], "damage list"]));
}

#[test]
fn an_order_is_carried_out_only_if_the_word_is_typed() {
    let daemon = fake::start(Health::Ill);
    let skip = "skip 3-1251 --participant index --operator ann --reason disk_lost";
    assert_snapshot!("typed", talk(&daemon, skip, "3-1251\n", true).1);
    for typed in ["", "\n", "yes\n", "3-125\n"] {
        assert_eq!(talk(&daemon, skip, typed, true).0, Exit::Usage, "{typed:?}");
    }
    assert_eq!(talk(&daemon, skip, "3-1251\n", false).0, Exit::Usage);
}

#[test]
fn an_order_is_not_carried_out_if_its_plan_has_changed_since_it_was_shown() {
    let daemon = fake::start(Health::Ill);
    let waive = "waive moving --operator ann --reason disk_lost";
    let (exit, text) = talk(&daemon, waive, "moving\n", true);
    assert!(exit == Exit::Refused && text.contains("has changed since it was shown; look at it again"), "{text}");
    let (exit, text) = talk(&daemon, &format!("{waive} --yes"), "", true);
    assert_eq!(exit, Exit::Ok, "{text}");
}

#[test]
fn backups() {
    let (well, ill) = (fake::start(Health::Well), fake::start(Health::Ill));
    let whole = ["backup /backups/monday", "backup /backups/monday --output json", "backup /backups/occupied", "backup backups/monday"];
    let servers = [
        "backup /backups/monday",
        "backup /backups/led",
        "backup /backups/monday --server-command true",
        "backup /backups/monday --server-command false",
    ];
    let restores = ["restore /nonexistent --data-dir /nonexistent/data", "restore /nonexistent --check", "restore /nonexistent"];
    let nobody = transcript("http://127.0.0.1:1", &restores);
    assert_snapshot!("backups", [transcript(&well, &whole), transcript(&ill, &servers), nobody].join("\n"));
    let (exit, text) = talk(&ill, "backup /backups/monday", "done\n", true);
    assert!(exit == Exit::Ok && text.contains("Type `done`"), "{text}");
}

/// Types `done` once the daemon has heard of this program's connection again and again while it was being waited for, or has ended it.
struct Leisurely {
    heard: Receiver<()>,
    typed: Cursor<&'static [u8]>,
}

impl Read for Leisurely {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.typed.position() == 0 {
            self.heard.try_iter().for_each(drop);
            self.heard.iter().take(5).for_each(drop);
        }
        self.typed.read(buffer)
    }
}

/// The daemon ends a connection whose peer answers no ping; its backup would be given up.
#[test]
fn the_connection_lives_while_servers_are_backed_up() {
    let (daemon, heard) = fake::overheard(&fake::start(Health::Ill));
    let mut person = BufReader::new(Leisurely { heard, typed: Cursor::new(b"done\n") });
    let (exit, text) = answer(&daemon, "backup /backups/monday", &mut person, true);
    assert_eq!(exit, Exit::Ok, "{text}");
}

#[test]
fn branches_of_a_server_that_is_not_there() {
    let commands = ["branches", "branches --postgres nonsense", "branches --postgres postgresql://me@127.0.0.1:1/shop"];
    assert_snapshot!("branches", transcript("http://127.0.0.1:1", &commands));
}

#[test]
fn rows_and_documents() {
    let (well, ill) = (fake::start(Health::Well), fake::start(Health::Ill));
    let agree = ["verify", "verify films --output json", "verify people", "verify --repair"];
    let differ = [
        "verify",
        "verify --limit 2",
        "verify --output json",
        "verify --repair --dry-run",
        "verify --repair",
        "verify --repair --yes",
        "verify --repair --yes --output json",
        "verify --repair --yes --limit 1",
        "verify --yes",
    ];
    assert_snapshot!("verify", [transcript(&well, &agree), transcript(&ill, &differ)].join("\n"));
    let (exit, text) = talk(&ill, "verify --repair", "repair\n", true);
    assert!(exit == Exit::Attention && text.contains("repaired: 2"), "{text}");
}

#[test]
fn who_ordered_what() {
    let well = fake::start(Health::Well);
    let commands = ["audit list", "audit list --limit 1", "audit list --output json", "audit list --limit 0"];
    assert_snapshot!("audit", [transcript(&well, &commands), transcript("http://127.0.0.1:1", &["audit list"])].join("\n"));
}

#[test]
fn usage() {
    let commands = [
        "--help",
        "tx --help",
        "tx list --help",
        "tx resolve --help",
        "tx explain --help",
        "log verify --help",
        "wait --help",
        "verify --help",
        "tx show three",
        "tx list --older-than soon",
        "tx resolve 3-1 --participant db --operator ann --reason r",
        "skip 3-1 --participant db --operator ann",
        "--output yaml status",
        "frobnicate",
    ];
    assert_snapshot!("usage", transcript("http://127.0.0.1:1", &commands));
}

#[test]
fn nobody_there() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let starting = fake::start(Health::Starting);
    let gone = transcript(&format!("http://{port}"), &["status", "tx list --output json"]);
    let wrong = transcript("ftp://localhost:1", &["status"]);
    assert_snapshot!("nobody_there", [gone, transcript(&starting, &["status"]), wrong].join("\n"));
}

#[test]
fn completions_need_no_daemon() {
    for shell in ["bash", "zsh", "fish"] {
        let (exit, text) = talk("http://127.0.0.1:1", &format!("completions {shell}"), "", false);
        assert_eq!(exit, Exit::Ok);
        assert!(text.contains("leave-safe-mode"), "{text}");
    }
}

#[test]
fn colors_come_only_where_they_are_shown() {
    let daemon = fake::start(Health::Ill);
    for color in [false, true] {
        let (mut stdout, mut stderr, mut stdin) = (Vec::new(), Vec::new(), &b""[..]);
        let mut io = Io { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr, interactive: false, color };
        assert_eq!(lockstep::run(["lockstep", "--endpoint", &daemon, "status"], &mut io), Exit::Attention);
        assert_eq!(stdout.contains(&0x1b), color);
    }
}
