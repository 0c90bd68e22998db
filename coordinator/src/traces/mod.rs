//! OpenTelemetry traces, if `[traces]` names a collector: what the machine tells of a sampled transaction goes there by OTLP over gRPC.
//!
//! Nothing waits for a collector. The engine puts spans into a queue that has a limit; what finds it full is dropped and counted. An end waits
//! for it a moment ([`FLUSH`]), and no longer.

mod exporter;
mod otlp;
mod settings;

pub use settings::Settings;

use crate::engine_handle::Shared;
use crate::meters::Meters;
use exporter::Exporter;
use lockstep_core::{Owner, Span, TraceContext, TraceId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long an end waits for what is in the queue.
const FLUSH: Duration = Duration::from_secs(2);

/// The way to the collector. When it is dropped, what is in the queue is still sent.
pub struct Tracer {
    queue: mpsc::Sender<Span>,
    ratio: f64,
    meters: Meters,
}

/// The task behind it.
pub struct Export(JoinHandle<()>);

/// Starts the export; on a tokio runtime. Nothing if there is no collector. Errors name the key, and never what is in its file.
pub fn start(settings: &Settings, shared: Arc<Shared>, owner: Owner, meters: &Meters) -> anyhow::Result<Option<(Tracer, Export)>> {
    let Some(collector) = settings.collector()? else { return Ok(None) };
    let (queue, spans) = mpsc::channel(settings.queue_spans);
    let words = otlp::Words::new(shared, owner);
    let exporter = Exporter::new(collector, words, meters.clone());
    let export = Export(tokio::runtime::Handle::current().spawn(exporter.run(spans)));
    Ok(Some((Tracer { queue, ratio: settings.ratio, meters: meters.clone() }, export)))
}

impl Tracer {
    /// Takes a span, if there is room.
    pub fn tell(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.meters.spans(false, 1);
        }
    }

    /// A trace that begins with a transaction, for the share of them that is to have one.
    pub fn begin(&self) -> Option<TraceContext> {
        if self.ratio <= 0.0 || rand::random::<f64>() >= self.ratio {
            return None;
        }
        let trace: u128 = rand::random();
        Some(TraceContext { trace: TraceId(trace.max(1).to_be_bytes()), parent: None, flags: 1 })
    }
}

impl Export {
    /// Waits until what is left is sent, but not for long. The [`Tracer`] has to be dropped.
    pub async fn end(mut self) {
        if tokio::time::timeout(FLUSH, &mut self.0).await.is_err() {
            self.0.abort();
            tracing::warn!("the last spans were not sent: the collector does not take them (traces.endpoint)");
        }
    }
}
