//! Somebody on call, who has the command line and nothing else; and what was seen and done, as a transcript that `docs/night-shift.md` holds.
//!
//! Whatever differs from run to run is left out of the comparison: numbers, names of coordinators, how a table is drawn. Words are not.

use anyhow::{Context, ensure};
use lockstep::Exit;
use lockstep_tests::command_line::{self, Said};
use lockstepd::demo::daemon::Daemon;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Guards the file: scenarios are written beside each other.
static FILE: Mutex<()> = Mutex::new(());

/// One scenario's transcript.
pub struct Shift {
    heading: &'static str,
    /// What stands for something else: temporary paths, ports.
    names: Vec<(String, &'static str)>,
    text: String,
}

impl Shift {
    /// Begins; the heading is the section's in the file.
    pub fn begins(heading: &'static str, situation: &str) -> Shift {
        Shift { heading, names: Vec::new(), text: format!("{situation}\n") }
    }

    /// Shows this as that.
    pub fn call(&mut self, what: impl Into<String>, name: &'static str) {
        self.names.push((what.into(), name));
    }

    /// What happens beside the command line.
    pub fn note(&mut self, words: &str) {
        write!(self.text, "\n{words}\n").expect("a string takes everything");
    }

    /// Runs `lockstep` with these words; what it said, to either stream.
    pub async fn runs(&mut self, daemon: &Daemon, words: &[&str], expected: Exit) -> anyhow::Result<String> {
        let endpoint = daemon.url();
        let Said { exit, stdout, stderr } = command_line::run(&[&["--endpoint", &endpoint], words].concat()).await?;
        // What changes while it waits is there by chance.
        let said = if words.first() == Some(&"wait") { stdout } else { stdout + &stderr };
        let quoted: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let shown = format!("$ lockstep {}\n{}", quoted.join(" "), said.trim_end());
        println!("{shown}\n");
        write!(self.text, "\n```console\n{shown}\n```\n").expect("a string takes everything");
        ensure!(exit == expected, "lockstep {}: {exit:?} instead of {expected:?}\n{said}", words.join(" "));
        Ok(said)
    }

    /// Holds the transcript against the file's; writes it there instead if the environment says `UPDATE`.
    pub fn ends(self) -> anyhow::Result<()> {
        let mut text = self.text;
        for (what, name) in &self.names {
            text = text.replace(what, name);
        }
        let _guard = FILE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let path = file();
        let whole = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let head = format!("\n## {}\n", self.heading);
        let at = whole.find(&head).with_context(|| format!("{} has no section `{}`", path.display(), self.heading))? + head.len();
        let end = whole[at..].find("\n## ").map_or(whole.len(), |end| at + end);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, format!("{}\n{}{}", &whole[..at], text, &whole[end..]))?;
            return Ok(());
        }
        let (written, seen) = (constant(&whole[at..end]), constant(&text));
        ensure!(
            written == seen,
            "{} says otherwise in `{}` (UPDATE=1 writes it anew). From the first difference on, it says:\n  {}\nand it is:\n  {}",
            path.display(),
            self.heading,
            from_difference(&written, &seen),
            from_difference(&seen, &written),
        );
        Ok(())
    }
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/night-shift.md")
}

fn quoted(word: &str) -> String {
    if word.contains(' ') { format!("{word:?}") } else { word.to_owned() }
}

/// The words, without what differs from run to run.
fn constant(text: &str) -> Vec<String> {
    // Whether a store that is away is just being tried again is there by chance.
    let text = text.replace("recovering", "down").replace("it has not told yet what it holds", "it has no session");
    let drawn = |c: char| matches!(c, '─' | '│' | '┌' | '┐' | '└' | '┘' | '├' | '┤' | '┬' | '┴' | '┼' | '┆' | '╞' | '═' | '╪' | '╡' | '|');
    text.split(|c: char| c.is_whitespace() || drawn(c))
        .filter(|word| !word.is_empty())
        .map(without_numbers)
        .filter(|word| !is_unit(word))
        .collect()
}

/// Every number is one `0`, and every long run of hexadecimal digits too.
fn without_numbers(word: &str) -> String {
    let mut plain = String::new();
    let mut rest = word;
    while let Some(first) = rest.chars().next() {
        let hex = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ',').unwrap_or(rest.len());
        let with_dashes = rest.find(|c: char| !c.is_ascii_hexdigit() && c != '-').unwrap_or(rest.len());
        let taken = match () {
            // A UUID.
            () if with_dashes >= 36 => with_dashes,
            () if hex >= 8 => hex,
            () if first.is_ascii_digit() => digits,
            () => {
                plain.push(first);
                rest = &rest[first.len_utf8()..];
                continue;
            }
        };
        // A sentence's end is not a number's.
        let number = rest[..taken].trim_end_matches(['.', ',']);
        plain.push('0');
        rest = &rest[number.len()..];
    }
    plain
}

/// How a duration or a size is told depends on how long or large it is.
fn is_unit(word: &str) -> bool {
    // A table's ruling is as wide as what is in it.
    if word.bytes().all(|byte| byte == b'-') {
        return true;
    }
    let word = word.trim_end_matches(['.', ',', ';', ':', ')', ']']);
    matches!(word, "0" | "µs" | "ms" | "s" | "min" | "h" | "d" | "0ms" | "0s" | "B" | "KiB" | "MiB" | "GiB" | "bytes" | "now" | "ago")
}

fn from_difference(one: &[String], other: &[String]) -> String {
    let same = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    one.iter().skip(same.saturating_sub(6)).take(40).cloned().collect::<Vec<_>>().join(" ")
}

#[test]
fn numbers_and_drawings_do_not_matter_and_words_do() {
    let same = |a: &str, b: &str| constant(a) == constant(b);
    assert!(same("│ lag │ 12 ms │ 0123456789abcdef0123 │", "| lag ┆ 3 s | fedcba98765432100000 |"));
    assert!(same("2-14 is prepared.", "3-9 is prepared."));
    assert!(same("key `d4c3ae28-93cf-4b6f-a222-8747c5ebc04d`, attempt 1", "key `0c6a3569-0cf6-4e4b-9336-f9612211b65b`, attempt 2"));
    assert!(!same("2-14 is prepared.", "2-14 is not prepared."));
}
