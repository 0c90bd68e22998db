//! Records what clients ask and are told, as it happens.

use super::event::{Ask, Event, Happened, Op, Told};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

/// A history in the making, shared by all clients.
pub struct Recorder {
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Op,
    events: Vec<Happened>,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder { begun: Instant::now(), state: Mutex::default() }
    }
}

impl Recorder {
    /// To be called before anything is sent.
    pub fn invoke(&self, process: u32, ask: Ask) -> Op {
        let mut state = self.state.lock().expect("no holder panics");
        state.last += 1;
        let op = state.last;
        state.events.push(Happened { at_us: self.at_us(), event: Event::Invoke { op, process, ask } });
        op
    }

    /// To be called after the answer has come.
    pub fn told(&self, op: Op, told: Told) {
        let mut state = self.state.lock().expect("no holder panics");
        state.events.push(Happened { at_us: self.at_us(), event: Event::Told { op, told } });
    }

    /// All of it up to now.
    pub fn history(&self) -> Vec<Happened> {
        self.state.lock().expect("no holder panics").events.clone()
    }

    /// How many events there are up to now.
    pub fn events(&self) -> usize {
        self.state.lock().expect("no holder panics").events.len()
    }

    /// Writes a history, an event a line.
    pub fn save(history: &[Happened], path: &Path) -> anyhow::Result<()> {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        for happened in history {
            serde_json::to_writer(&mut file, happened)?;
            file.write_all(b"\n")?;
        }
        Ok(file.flush()?)
    }

    /// Reads one.
    pub fn load(path: &Path) -> anyhow::Result<Vec<Happened>> {
        std::fs::read_to_string(path)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    fn at_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
