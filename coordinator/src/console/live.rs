//! What moves: one sample a second, the past ten minutes of them, and whoever watches.
//!
//! A watcher that does not read is dropped: it falls behind what is kept for it, or its connection moves no byte for too long
//! ([`crate::connections`]).

use super::Console;
use super::api::Failure;
use crate::engine_handle::{EngineHandle, Question};
use crate::meters::{Meters, Moment};
use crate::security::Caller;
use crate::view::Pulse;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt};

/// How often, and how many of them are kept.
const EVERY: Duration = Duration::from_secs(1);
const KEPT: usize = 600;
/// Pages that watch at once, and samples that wait for one of them.
const WATCHERS: usize = 32;
const BEHIND: usize = 8;
/// How long the engine may take to say how it is, before that is told.
const PATIENCE: Duration = Duration::from_secs(3);
/// After how long a browser asks again.
const RETRY: Duration = Duration::from_secs(2);

/// The past minutes, and what comes.
pub(super) struct Live {
    kept: Arc<Mutex<Kept>>,
    room: Arc<Semaphore>,
    sampling: JoinHandle<()>,
}

struct Kept {
    samples: VecDeque<Arc<str>>,
    /// The last word was that there is none: what is kept is old.
    silent: bool,
    watchers: broadcast::Sender<Word>,
}

/// What a page is told.
#[derive(Clone)]
enum Word {
    /// A sample, as JSON.
    Sample(Arc<str>),
    /// The engine has not answered.
    Silent,
}

/// One second.
#[derive(Serialize)]
struct Sample<'a> {
    /// Wall clock, milliseconds since 1970.
    at_ms: u64,
    phase: &'a str,
    why: &'a str,
    /// New transactions are refused, for a backup or for want of space.
    paused: bool,
    log_full: bool,
    /// Since the start, and since the sample before, a second.
    committed_total: u64,
    committed: f64,
    aborted: f64,
    /// p50, p95, p99 and the longest, microseconds, of commits answered since the sample before; absent if there was none.
    latency: Option<[u64; 4]>,
    /// Records that one force of the log served on average; absent if there was none.
    group: Option<f64>,
    in_doubt: u64,
    oldest_ms: u64,
    /// By [`crate::view::AGES`].
    ages: &'a [u64],
    active: u64,
    deciding: u64,
    unanswered: u64,
    damage: u64,
    log_free: u64,
    uptime_ms: u64,
    stores: Vec<Store<'a>>,
}

#[derive(Serialize)]
struct Store<'a> {
    name: &'a str,
    session: &'a str,
    lag: u64,
    lag_ms: u64,
    stuck: u64,
    prepared: u64,
}

/// What rates are made from.
struct Before {
    at: Instant,
    committed: u64,
    aborted: u64,
}

#[derive(Deserialize)]
pub(super) struct Wanted {
    /// Whether the past minutes come first.
    #[serde(default)]
    history: bool,
}

/// Samples as server-sent events: `history` (an array, once), then `sample`, and `silent` while the engine does not answer. It ends with
/// the proof under which it was asked for.
pub(super) async fn events(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    let Query(wanted) = wanted.map_err(|error| Failure::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    let full = || format!("{WATCHERS} pages watch already: close one");
    let room = Arc::clone(&console.live.room).try_acquire_owned().map_err(|_| Failure::new(StatusCode::SERVICE_UNAVAILABLE, full()))?;
    Ok(Sse::new(console.live.watch(wanted.history, caller, room)).keep_alive(KeepAlive::new().interval(Duration::from_secs(5))))
}

impl Live {
    /// Begins to take samples, until this is dropped.
    pub(super) fn start(engine: EngineHandle, meters: Meters) -> Live {
        let kept = Kept { samples: VecDeque::with_capacity(KEPT), silent: false, watchers: broadcast::Sender::new(BEHIND) };
        let kept = Arc::new(Mutex::new(kept));
        let sampling = tokio::spawn(sample(engine, meters, Arc::clone(&kept)));
        Live { kept, room: Arc::new(Semaphore::new(WATCHERS)), sampling }
    }

    fn watch(&self, history: bool, caller: Caller, room: OwnedSemaphorePermit) -> impl Stream<Item = Result<Event, Infallible>> + use<> {
        // All under one lock: no sample is missed between them, and none comes twice.
        let (past, silent, coming) = {
            let kept = self.kept.lock().expect("no holder panics");
            let past = if history { kept.samples.iter().cloned().collect() } else { Vec::from_iter(kept.samples.back().cloned()) };
            (past, kept.silent.then_some(Word::Silent), kept.watchers.subscribe())
        };
        let first = Event::default().event("history").retry(RETRY).data(format!("[{}]", past.join(",")));
        let coming = BroadcastStream::new(coming).map_while(move |word| {
            let _held = &room;
            // It has not read for longer than is kept for it, or is not let in any more.
            word.ok().filter(|_| caller.still_holds().is_ok())
        });
        tokio_stream::once(first).chain(tokio_stream::iter(silent).chain(coming).map(Word::event)).map(Ok)
    }
}

impl Word {
    fn event(self) -> Event {
        match self {
            Word::Sample(sample) => Event::default().event("sample").data(sample),
            Word::Silent => Event::default().event("silent").data("{}"),
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.sampling.abort();
    }
}

async fn sample(engine: EngineHandle, meters: Meters, kept: Arc<Mutex<Kept>>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before: Option<Before> = None;
    loop {
        ticks.tick().await;
        let word = match tokio::time::timeout(PATIENCE, engine.ask(Question::Pulse)).await {
            Ok(Ok(pulse)) => {
                let (sample, now) = measure(&pulse, &meters, before.as_ref());
                before = Some(now);
                sample.map(Word::Sample)
            }
            // It has ended, and answers nobody any more: neither do we.
            Ok(Err(_)) => {
                let mut kept = kept.lock().expect("no holder panics");
                (kept.silent, kept.watchers) = (true, broadcast::Sender::new(BEHIND));
                return;
            }
            Err(_) => Some(Word::Silent),
        };
        if let Some(word) = word {
            kept.lock().expect("no holder panics").tell(word);
        }
    }
}

impl Kept {
    fn tell(&mut self, word: Word) {
        match &word {
            Word::Sample(sample) => {
                while self.samples.len() >= KEPT {
                    self.samples.pop_front();
                }
                self.samples.push_back(Arc::clone(sample));
                self.silent = false;
            }
            Word::Silent => self.silent = true,
        }
        let _ = self.watchers.send(word);
    }
}

/// Rates need a sample before: the first one has none.
fn measure(pulse: &Pulse, meters: &Meters, before: Option<&Before>) -> (Option<Arc<str>>, Before) {
    let status = &pulse.status;
    let Moment { commits, forces, records } = meters.recent.take();
    let now = Before { at: Instant::now(), committed: status.committed, aborted: status.aborted };
    let seconds = before.map_or(1.0, |before| (now.at - before.at).as_secs_f64().max(0.001));
    let rate = |new: u64, old: Option<u64>| rounded(old.map_or(0.0, |old| new.saturating_sub(old) as f64 / seconds));
    let store = |store: &lockstep_proto::v1::ParticipantStatus| (store.lag, store.lag_ms, store.stuck, store.prepared);
    let stores = status.participants.iter().map(|participant| {
        let (lag, lag_ms, stuck, prepared) = store(participant);
        Store { name: &participant.name, session: &participant.session, lag, lag_ms, stuck, prepared }
    });
    let sample = Sample {
        at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
        phase: &status.phase,
        why: &status.why,
        paused: status.paused,
        log_full: status.log_full,
        committed_total: status.committed,
        committed: rate(now.committed, before.map(|before| before.committed)),
        aborted: rate(now.aborted, before.map(|before| before.aborted)),
        latency: (!commits.is_empty()).then(|| {
            let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|part| commits.value_at_quantile(part));
            [p50, p95, p99, commits.max()]
        }),
        group: (forces > 0).then(|| rounded(records as f64 / forces as f64)),
        in_doubt: status.in_doubt,
        oldest_ms: status.oldest_in_doubt_ms,
        ages: &pulse.ages,
        active: status.active,
        deciding: status.deciding,
        unanswered: status.unanswered,
        damage: status.damage,
        log_free: status.log_free_bytes,
        uptime_ms: status.uptime_ms,
        stores: stores.collect(),
    };
    let text = before.map(|_| Arc::from(serde_json::to_string(&sample).expect("numbers and texts")));
    (text, now)
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::Configuration;
    use crate::security::{Principal, Role, Security};

    /// Pages watch, as many as there is room for; what they are told is up to the test.
    fn live(room: usize) -> Live {
        let kept = Kept { samples: VecDeque::new(), silent: false, watchers: broadcast::Sender::new(BEHIND) };
        Live { kept: Arc::new(Mutex::new(kept)), room: Arc::new(Semaphore::new(room)), sampling: tokio::spawn(async {}) }
    }

    impl Live {
        fn tell(&self, word: Word) {
            self.kept.lock().unwrap().tell(word);
        }

        fn opened(&self, caller: &Caller) -> impl Stream<Item = String> + Unpin + use<> {
            let room = Arc::clone(&self.room).try_acquire_owned().expect("there is room");
            Box::pin(self.watch(true, caller.clone(), room).map(|Ok(event)| format!("{event:?}")))
        }
    }

    fn anybody() -> Caller {
        Security::none().admit(None, None).unwrap()
    }

    #[tokio::test]
    async fn who_does_not_read_is_dropped_and_gives_its_place_back() {
        let live = live(1);
        let mut watch = live.opened(&anybody());
        assert!(watch.next().await.is_some(), "the history");
        assert!(Arc::clone(&live.room).try_acquire_owned().is_err());
        for _ in 0..=BEHIND {
            live.tell(Word::Silent);
        }
        assert!(watch.next().await.is_none(), "it is too far behind");
        drop(watch);
        assert!(Arc::clone(&live.room).try_acquire_owned().is_ok());
    }

    #[tokio::test]
    async fn who_comes_while_the_engine_is_silent_is_told_so_at_once() {
        let live = live(2);
        live.tell(Word::Sample(r#"{"n":1}"#.into()));
        live.tell(Word::Silent);
        let mut watch = live.opened(&anybody());
        assert!(watch.next().await.unwrap().contains("event: history"));
        assert!(watch.next().await.unwrap().contains("event: silent"));
        live.tell(Word::Sample(r#"{"n":2}"#.into()));
        assert!(watch.next().await.unwrap().contains("event: sample"));
        let mut later = live.opened(&anybody());
        live.tell(Word::Sample(r#"{"n":3}"#.into()));
        assert!(later.next().await.unwrap().contains("event: history"));
        assert!(later.next().await.unwrap().contains("event: sample"), "it speaks again");
    }

    #[tokio::test]
    async fn a_token_that_is_taken_back_ends_what_it_opened() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "viewer-token-0123456789").unwrap();
        let viewer = Principal {
            name: "viewer".into(),
            roles: vec![Role::Viewer],
            stores: None,
            certificates: Vec::new(),
            token_file: Some(file.clone()),
            token_env: None,
            requests_per_second: None,
            transaction_bytes: None,
            streams: None,
        };
        let security = Security::load(&Configuration { principals: vec![viewer], ..Configuration::default() }).unwrap();
        let (live, caller) = (live(1), security.admit(None, Some(b"Bearer viewer-token-0123456789")).unwrap());
        let mut watch = live.opened(&caller);
        live.tell(Word::Silent);
        assert!(watch.next().await.is_some() && watch.next().await.is_some(), "the history, and a word");
        std::fs::write(&file, "another-token-0123456789").unwrap();
        security.reload();
        live.tell(Word::Silent);
        assert!(watch.next().await.is_none());
    }
}
