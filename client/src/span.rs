//! The client's span around a commit, in the trace of the application that calls (feature `opentelemetry`). It ends when it is dropped.

use crate::{CommitError, Receipt};
use opentelemetry::global::{self, BoxedSpan};
use opentelemetry::trace::{Span, SpanKind, Status, Tracer};
use opentelemetry::{InstrumentationScope, KeyValue};

pub(crate) struct CommitSpan(BoxedSpan);

impl CommitSpan {
    /// A part of the current context's span, if there is one.
    pub fn begin() -> CommitSpan {
        let scope = InstrumentationScope::builder("lockstep-client").with_version(env!("CARGO_PKG_VERSION")).build();
        let tracer = global::tracer_with_scope(scope);
        CommitSpan(tracer.span_builder("lockstep commit").with_kind(SpanKind::Client).start(&tracer))
    }

    /// What goes to the coordinator; empty where nothing is traced.
    pub fn traceparent(&self) -> String {
        let context = self.0.span_context();
        match context.is_valid() {
            true => format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8()),
            false => String::new(),
        }
    }

    /// With what came of it.
    pub fn end(mut self, result: &Result<Receipt, CommitError>) {
        match result {
            Ok(receipt) => {
                self.0.set_attribute(KeyValue::new("lockstep.txid", receipt.txid.to_string()));
                self.0.set_attribute(KeyValue::new("lockstep.csn", receipt.csn.to_string()));
            }
            Err(error) => self.0.set_status(Status::error(error.to_string())),
        }
        self.0.end();
    }
}
