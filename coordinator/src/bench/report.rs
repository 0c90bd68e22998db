//! The table, and the picture.

use super::load::Loaded;
use crate::demo::Output;
use comfy_table::{Table, presets};
use serde_json::json;
use std::fmt::Write;
use std::path::Path;

/// Everything measured.
#[derive(Default)]
pub struct Report {
    /// Ratios.
    pub rows: Vec<Row>,
    /// Throughput and latency over concurrency.
    pub curve: Vec<Loaded>,
}

/// One figure, measured several times.
pub struct Row {
    name: String,
    values: Vec<f64>,
    last: f64,
}

impl Row {
    /// A figure without values yet.
    pub fn new(name: String) -> Row {
        Row { name, values: Vec::new(), last: 0.0 }
    }

    /// One more measurement of it.
    pub fn push(&mut self, value: f64) {
        self.last = value;
        self.values.push(value);
        self.values.sort_by(f64::total_cmp);
    }

    /// The last one measured.
    pub fn last(&self) -> f64 {
        self.last
    }

    fn median(&self) -> f64 {
        let middle = self.values.len() / 2;
        match self.values.len() % 2 {
            1 => self.values[middle],
            _ => f64::midpoint(self.values[middle - 1], self.values[middle]),
        }
    }

    fn spread(&self) -> (f64, f64) {
        (self.values[0], self.values[self.values.len() - 1])
    }
}

impl Report {
    /// On stdout. Every row has a value.
    pub fn print(&self, output: Output) -> anyhow::Result<()> {
        match output {
            Output::Json => println!("{}", serde_json::to_string_pretty(&self.json()?)?),
            Output::Table => self.print_tables(),
        }
        Ok(())
    }

    fn json(&self) -> serde_json::Result<serde_json::Value> {
        let row = |row: &Row| json!({"what": row.name, "median": row.median(), "min": row.spread().0, "max": row.spread().1, "runs": row.values.len()});
        let point = |point: &Loaded| {
            let mut measured = serde_json::to_value(point)?;
            measured["per_second"] = json!(point.per_second());
            Ok(measured)
        };
        let curve = self.curve.iter().map(point).collect::<serde_json::Result<Vec<_>>>()?;
        Ok(json!({"rows": self.rows.iter().map(row).collect::<Vec<_>>(), "curve": curve}))
    }

    fn print_tables(&self) {
        if !self.rows.is_empty() {
            let mut table = Table::new();
            table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["what", "median", "min – max", "runs"]);
            for row in &self.rows {
                let (min, max) = row.spread();
                table.add_row([
                    row.name.clone(),
                    figure(row.median()),
                    format!("{} – {}", figure(min), figure(max)),
                    row.values.len().to_string(),
                ]);
            }
            println!("{table}");
        }
        if !self.curve.is_empty() {
            let mut table = Table::new();
            table.load_style(presets::UTF8_FULL_CONDENSED);
            table.set_header(["clients", "transactions/s", "p50 ms", "p99 ms", "index lag p50 ms", "index lag p99 ms"]);
            for point in &self.curve {
                table.add_row([
                    point.clients.to_string(),
                    format!("{:.0}", point.per_second()),
                    figure(point.p50_us / 1000.0),
                    figure(point.p99_us / 1000.0),
                    format!("{:.0}", point.lag_p50_ms),
                    format!("{:.0}", point.lag_p99_ms),
                ]);
            }
            println!("{table}");
        }
    }

    /// Throughput (bars) and latency (lines) over concurrency.
    pub fn plot(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, picture(&self.curve)?)?;
        Ok(())
    }
}

fn figure(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.4}"),
    }
}

/// An SVG of two axes: transactions a second on the left, milliseconds (logarithmic) on the right.
fn picture(curve: &[Loaded]) -> Result<String, std::fmt::Error> {
    const WIDTH: f64 = 720.0;
    const HEIGHT: f64 = 360.0;
    const LEFT: f64 = 70.0;
    const BOTTOM: f64 = 300.0;
    const TOP: f64 = 40.0;
    let step = (WIDTH - 2.0 * LEFT) / curve.len().max(1) as f64;
    let most = curve.iter().map(Loaded::per_second).fold(1.0, f64::max) * 1.1;
    let slowest = curve.iter().map(|point| point.p99_us / 1000.0).fold(1.0, f64::max) * 1.5;
    let x = |i: usize| LEFT + step * (i as f64 + 0.5);
    let rate = |value: f64| BOTTOM - value / most * (BOTTOM - TOP);
    let milliseconds = |value: f64| BOTTOM - (value.max(0.1) / 0.1).log10() / (slowest / 0.1).log10() * (BOTTOM - TOP);
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="{LEFT}" y="22" font-size="14">SQLite + Tantivy atomically: throughput (bars) and latency (lines) over concurrent clients</text>
"##
    );
    for (i, point) in curve.iter().enumerate() {
        let (top, middle) = (rate(point.per_second()), x(i));
        writeln!(
            svg,
            r##"<rect x="{:.1}" y="{top:.1}" width="{:.1}" height="{:.1}" fill="#9ecae1"/>"##,
            middle - step * 0.35,
            step * 0.7,
            BOTTOM - top
        )?;
        writeln!(
            svg,
            r##"<text x="{middle:.1}" y="{:.1}" text-anchor="middle" fill="#08519c">{:.0}/s</text>"##,
            top - 4.0,
            point.per_second()
        )?;
        writeln!(svg, r##"<text x="{middle:.1}" y="{:.1}" text-anchor="middle">{}</text>"##, BOTTOM + 18.0, point.clients)?;
    }
    for (name, colour, of) in [("p50", "#e6550d", (|p: &Loaded| p.p50_us) as fn(&Loaded) -> f64), ("p99", "#a63603", |p: &Loaded| p.p99_us)]
    {
        let places: Vec<_> = curve.iter().enumerate().map(|(i, p)| format!("{:.1},{:.1}", x(i), milliseconds(of(p) / 1000.0))).collect();
        writeln!(svg, r##"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"##, places.join(" "))?;
        if let Some((i, last)) = curve.iter().enumerate().next_back() {
            let (at, value) = (milliseconds(of(last) / 1000.0), of(last) / 1000.0);
            writeln!(svg, r##"<text x="{:.1}" y="{at:.1}" fill="{colour}">{name} {} ms</text>"##, x(i) + 8.0, figure(value))?;
        }
    }
    writeln!(svg, r##"<line x1="{LEFT}" y1="{BOTTOM}" x2="{:.1}" y2="{BOTTOM}" stroke="#000000"/>"##, WIDTH - LEFT)?;
    writeln!(svg, r##"<text x="{:.1}" y="{:.1}" text-anchor="middle">clients</text></svg>"##, WIDTH / 2.0, BOTTOM + 40.0)?;
    Ok(svg)
}
