//! How data is written: tables for people, JSON for programs.

use crate::{Failure, Io};
use clap::ValueEnum;
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table};
use lockstep_client::Csn;
use serde::Serialize;

/// The form of data.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs; field names are stable, CSNs are strings
    Json,
}

pub(crate) struct Output {
    pub format: Format,
    pub color: bool,
}

/// What a cell's content asks of its reader.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Warning,
    Bad,
    /// A heading.
    Strong,
}

impl Output {
    /// The data as JSON, or as the text that `table` makes.
    pub(crate) fn write(&self, io: &mut Io<'_>, data: &impl Serialize, table: impl FnOnce() -> String) -> Result<(), Failure> {
        match self.format {
            Format::Table => writeln!(io.stdout, "{}", table().trim_end())?,
            Format::Json => writeln!(io.stdout, "{}", json(data)?)?,
        }
        Ok(())
    }

    /// A table that is never wrapped: a line is a row, in a terminal and in a pipe.
    pub(crate) fn table<const N: usize>(&self, header: [&str; N], rows: impl IntoIterator<Item = [Cell; N]>) -> String {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled).set_header(header).add_rows(rows);
        match self.color {
            true => table.enforce_styling(),
            false => table.force_no_tty(),
        };
        table.to_string()
    }

    pub(crate) fn toned(&self, text: impl Into<String>, tone: Tone) -> String {
        let text = text.into();
        match (self.color, tone) {
            (false, _) | (true, Tone::Plain) => text,
            (true, Tone::Good) => format!("\x1b[32m{text}\x1b[0m"),
            (true, Tone::Warning) => format!("\x1b[33m{text}\x1b[0m"),
            (true, Tone::Bad) => format!("\x1b[31m{text}\x1b[0m"),
            (true, Tone::Strong) => format!("\x1b[1m{text}\x1b[0m"),
        }
    }
}

pub(crate) fn text(text: impl ToString) -> Cell {
    // A row is a line, whatever a message contains.
    Cell::new(text.to_string().replace(['\n', '\r', '\t'], " "))
}

pub(crate) fn number(number: impl ToString) -> Cell {
    Cell::new(number).set_alignment(CellAlignment::Right)
}

pub(crate) fn toned(content: &str, tone: Tone) -> Cell {
    match tone {
        Tone::Plain | Tone::Strong => text(content),
        Tone::Good => text(content).fg(Color::Green),
        Tone::Warning => text(content).fg(Color::Yellow),
        Tone::Bad => text(content).fg(Color::Red),
    }
}

/// Labels and values, the values in one column.
pub(crate) fn list(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    lines.iter().map(|(label, value)| format!("{label:width$}  {value}\n")).collect()
}

/// Sentences in lines of a width that is read easily; the first begins with the bullet, the others below its text.
pub(crate) fn wrapped(text: &str, bullet: &str) -> String {
    const WIDTH: usize = 100;
    let indent = " ".repeat(bullet.chars().count());
    let (mut lines, mut line, mut length) = (String::new(), bullet.to_owned(), bullet.chars().count());
    let mut empty = true;
    for word in text.split_whitespace() {
        let size = word.chars().count();
        if !empty && length + 1 + size > WIDTH {
            lines += line.trim_end();
            lines.push('\n');
            (line, length, empty) = (indent.clone(), indent.len(), true);
        }
        if !empty {
            line.push(' ');
            length += 1;
        }
        line += word;
        (length, empty) = (length + size, false);
    }
    lines + line.trim_end() + "\n"
}

pub(crate) fn json(data: &impl Serialize) -> Result<String, Failure> {
    let failed = |error| Failure::failed(format!("cannot write JSON: {error}"), "use --output table");
    serde_json::to_string_pretty(data).map_err(failed)
}

/// A CSN as people and programs see it; none is no CSN.
pub(crate) fn csn(raw: u64) -> Option<Csn> {
    (raw > 0).then(|| Csn::from_u64(raw))
}

pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

pub(crate) fn joined(names: &[String]) -> String {
    if names.is_empty() { "-".into() } else { names.join(", ") }
}

/// Milliseconds in the unit that fits: `12 ms`, `4.2 s`, `7 min`, `3 h 20 min`, `2 d 4 h`.
pub(crate) fn duration(ms: u64) -> String {
    let (s, min, h, d) = (ms / 1000, ms / 60_000, ms / 3_600_000, ms / 86_400_000);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{s}.{} s", ms % 1000 / 100),
        60_000..3_600_000 => format!("{min} min"),
        3_600_000..86_400_000 => format!("{h} h {} min", min % 60),
        _ => format!("{d} d {} h", h % 24),
    }
}

/// How long ago something was, where less than a second is now.
pub(crate) fn ago(ms: u64) -> String {
    if ms < 1_000 { "now".into() } else { format!("{} ago", duration(ms)) }
}

/// Bytes in the unit that fits: `512 B`, `1.5 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog2() / 10).min(UNITS.len() as u32);
    format!("{:.1} {}", bytes as f64 / 1024f64.powi(power as i32), UNITS[power as usize - 1])
}

/// Milliseconds since 1970 as `2026-11-23 02:57:45 UTC`.
pub(crate) fn utc(ms: u64) -> String {
    let (days, second) = (ms / 86_400_000, ms / 1000 % 86_400);
    // Days to civil date, in years that begin in March so that the leap day comes last.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let (month, day) = (if shifted < 10 { shifted + 3 } else { shifted - 9 }, of_year - (153 * shifted + 2) / 5 + 1);
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", second / 3600, second / 60 % 60, second % 60)
}

/// The same, to the millisecond.
pub(crate) fn utc_ms(ms: u64) -> String {
    utc(ms).replace(" UTC", &format!(".{:03} UTC", ms % 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_wrapped_below_their_beginning() {
        assert_eq!(wrapped("one", "- "), "- one\n");
        assert_eq!(wrapped(&"word ".repeat(25), "  - "), format!("  - {}\n    {}\n", ["word"; 19].join(" "), ["word"; 6].join(" ")));
        let long = "w".repeat(200);
        assert_eq!(wrapped(&format!("a {long} b"), ""), format!("a\n{long}\nb\n"));
    }

    #[test]
    fn numbers_are_written_in_the_unit_that_fits() {
        assert_eq!(
            [0, 999, 4_250, 420_000, 12_000_000, 187_200_000].map(duration),
            ["0 ms", "999 ms", "4.2 s", "7 min", "3 h 20 min", "2 d 4 h"]
        );
        assert_eq!([0, 1023, 1024, 1_572_864, u64::MAX].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "16384.0 PiB"]);
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_399_000), "2000-02-28 23:59:59 UTC");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_795_402_665_000), "2026-11-23 02:57:45 UTC");
    }
}
