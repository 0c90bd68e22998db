//! What the demo found: one table for people, one object for programs, one verdict for both.

use super::crash::CrashReport;
use super::half_write::HalfWriteReport;
use super::naive::Histories;
use super::race::RaceReport;
use comfy_table::{Attribute, Cell as Column, CellAlignment, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use std::fmt::Write;

/// All three acts.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Makes the same choices again (not the same timing).
    pub seed: u64,
    /// Act one.
    pub race: RaceReport,
    /// Act two.
    pub half_write: HalfWriteReport,
    /// Act three.
    pub crash: CrashReport,
    /// How long all of it took, seconds.
    pub seconds: f64,
}

/// One line of the table.
pub struct Row {
    /// What is counted or measured.
    pub what: String,
    /// What dual writes made of it.
    pub naive: Cell,
    /// What Lockstep made of it.
    pub lockstep: Cell,
}

/// One field of the table.
pub enum Cell {
    /// A broken promise; anything but zero is bad.
    Faults(u64),
    /// Something to know.
    Fact(String),
    /// Does not apply.
    Nothing,
}

impl Report {
    /// Broken promises of Lockstep: all that its column counts. The demo succeeds if there is none.
    pub fn faults(&self) -> u64 {
        self.acts().iter().flat_map(|(_, rows)| rows).map(|row| row.lockstep.faults()).sum()
    }

    /// For people: one losing key's two histories, and the table.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Some(histories) = &self.race.losing_key {
            text.push_str(&losing(histories));
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["", "naive dual writes", "Lockstep"].map(|title| Column::new(title).add_attribute(Attribute::Bold)));
        for (title, rows) in self.acts() {
            table.add_row([Column::new(title).add_attribute(Attribute::Bold), Column::new(""), Column::new("")]);
            for row in rows {
                table.add_row([Column::new(format!("  {}", row.what)), row.naive.column(), row.lockstep.column()]);
            }
        }
        let _ = writeln!(text, "{table}");
        if let Some(why) = &self.half_write.lockstep_not_written_why {
            let _ = writeln!(text, "Aborted, though no store refuses it: {why}");
        }
        let _ = match self.faults() {
            0 => writeln!(text, "Lockstep broke no promise. Seed {}, {:.0} s.", self.seed, self.seconds),
            faults => writeln!(text, "Lockstep broke {faults} promises. Seed {}, {:.0} s.", self.seed, self.seconds),
        };
        text
    }

    /// For programs.
    pub fn json(&self) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Whole<'a> {
            lockstep_faults: u64,
            #[serde(flatten)]
            report: &'a Report,
        }
        serde_json::to_string_pretty(&Whole { lockstep_faults: self.faults(), report: self })
    }

    fn acts(&self) -> [(String, Vec<Row>); 3] {
        [(self.race.title(), self.race.rows()), (self.half_write.title(), self.half_write.rows()), (self.crash.title(), self.crash.rows())]
    }
}

impl Cell {
    fn faults(&self) -> u64 {
        match self {
            Cell::Faults(faults) => *faults,
            Cell::Fact(_) | Cell::Nothing => 0,
        }
    }

    fn column(&self) -> Column {
        let column = match self {
            Cell::Faults(0) => Column::new(0).fg(Color::Green),
            Cell::Faults(faults) => Column::new(faults).fg(Color::Red).add_attribute(Attribute::Bold),
            Cell::Fact(fact) => Column::new(fact),
            Cell::Nothing => Column::new("–"),
        };
        column.set_alignment(CellAlignment::Right)
    }
}

/// Figure 11-4: time goes down, each store as it applied the writes, and no error was raised.
fn losing(histories: &Histories) -> String {
    const SHOWN: usize = 5;
    let tail = |history: &[String]| history[history.len().saturating_sub(SHOWN)..].to_vec();
    let (database, index) = (tail(&histories.database), tail(&histories.index));
    let longest = database.len().max(index.len());
    let at = |history: &[String], line: usize| (line + history.len()).checked_sub(longest).map_or(String::new(), |n| history[n].clone());
    let mut text = format!(
        "One losing key of the naive side, `{}`: its last writes in the order in which each store applied them.\n\n",
        histories.key
    );
    let _ = writeln!(text, "      {:<14}{:<14}", "database", "index");
    for line in 0..longest {
        let mark = if line + 1 == longest { "  <- kept for ever" } else { "" };
        let arrow = if line + 1 == longest { 'v' } else { '|' };
        let _ = writeln!(text, "    {arrow} {:<14}{:<14}{mark}", at(&database, line), at(&index, line));
    }
    text.push_str("\n    (c3-2 is the second write of client 3; both stores said yes to every one)\n\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_losing_key_shows_both_orders_with_time_going_down() {
        let stamps = |all: &[&str]| all.iter().map(|stamp| stamp.to_string()).collect();
        let histories =
            Histories { key: "film-0007".into(), database: stamps(&["c1-1", "c2-1", "c3-4"]), index: stamps(&["c3-4", "c2-1"]) };
        let expected = "\
One losing key of the naive side, `film-0007`: its last writes in the order in which each store applied them.

      database      index
    | c1-1
    | c2-1          c3-4
    v c3-4          c2-1            <- kept for ever

    (c3-2 is the second write of client 3; both stores said yes to every one)
";
        let shown = losing(&histories).lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>();
        assert_eq!(shown.trim_end(), expected.trim_end());
    }
}
