//! Takes spans from the queue and sends them, many in one request.

use super::otlp::Words;
use super::settings::Collector;
use crate::meters::Meters;
use lockstep_core::Span;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Spans of one request.
const BATCH: usize = 512;
/// How long the first span of a request waits for others.
const LINGER: Duration = Duration::from_millis(500);
/// How long a request may take.
const EXPORT: Duration = Duration::from_secs(10);
/// Pauses between tries; then the request's spans are dropped.
const PAUSES: [Duration; 4] = [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

pub struct Exporter {
    client: TraceServiceClient<Channel>,
    collector: Collector,
    words: Words,
    meters: Meters,
    failing: bool,
}

impl Exporter {
    /// Connects at the first request.
    pub fn new(collector: Collector, words: Words, meters: Meters) -> Exporter {
        let client = TraceServiceClient::new(collector.endpoint.connect_lazy());
        // Both are there from the start.
        meters.spans(true, 0);
        meters.spans(false, 0);
        Exporter { client, collector, words, meters, failing: false }
    }

    /// Until the queue is closed, and empty.
    pub async fn run(mut self, mut queue: mpsc::Receiver<Span>) {
        let mut batch = Vec::with_capacity(BATCH);
        while queue.recv_many(&mut batch, BATCH).await > 0 {
            let until = Instant::now() + LINGER;
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                match timeout_at(until, queue.recv_many(&mut batch, room)).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            self.send(&batch, &queue).await;
            batch.clear();
        }
    }

    async fn send(&mut self, spans: &[Span], queue: &mpsc::Receiver<Span>) {
        let request = self.words.request(spans);
        let mut pauses = PAUSES.iter();
        loop {
            let status = match self.once(request.clone()).await {
                Ok(answer) => return self.sent(spans.len(), answer),
                Err(status) => status,
            };
            if !std::mem::replace(&mut self.failing, true) {
                let (endpoint, code, why) = (&self.collector.place, status.code(), status.message());
                tracing::warn!(%endpoint, ?code, why, "the collector takes no spans: they are tried again for some seconds, then dropped");
            }
            match pauses.next().filter(|_| may_be_tried_again(&status) && !queue.is_closed()) {
                Some(pause) => sleep(*pause).await,
                None => return self.meters.spans(false, spans.len()),
            }
        }
    }

    async fn once(&mut self, message: ExportTraceServiceRequest) -> Result<ExportTraceServiceResponse, Status> {
        let mut request = Request::new(message);
        for (name, value) in &self.collector.headers {
            request.metadata_mut().insert(name, value.clone());
        }
        match timeout(EXPORT, self.client.export(request)).await {
            Ok(answer) => answer.map(|answer| answer.into_inner()),
            Err(_) => Err(Status::deadline_exceeded("it does not answer in time")),
        }
    }

    fn sent(&mut self, spans: usize, answer: ExportTraceServiceResponse) {
        if std::mem::take(&mut self.failing) {
            tracing::info!(endpoint = %self.collector.place, "the collector takes spans again");
        }
        let (rejected, why) = answer.partial_success.map_or((0, String::new()), |partial| (partial.rejected_spans, partial.error_message));
        let rejected = usize::try_from(rejected).unwrap_or(0).min(spans);
        if rejected > 0 {
            tracing::warn!(endpoint = %self.collector.place, rejected, %why, "the collector has rejected spans");
        }
        self.meters.spans(true, spans - rejected);
        self.meters.spans(false, rejected);
    }
}

/// As OTLP has it.
fn may_be_tried_again(status: &Status) -> bool {
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded | Code::Aborted | Code::OutOfRange | Code::Unavailable | Code::DataLoss => true,
        // Only where the server says when; it may be our size.
        Code::ResourceExhausted => false,
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Internal
        | Code::Unauthenticated => false,
    }
}
