//! Spans in OTLP's words. Names and attributes are OpenTelemetry's where it has any; ours begin with `lockstep.`.

use crate::engine_handle::Shared;
use lockstep_core::trace::Outcome;
use lockstep_core::{Owner, ParticipantId, Span, Stretch, Time, Wait};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as Wire, SpanFlags, Status};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// What the words need to know of this daemon.
pub struct Words {
    shared: Arc<Shared>,
    owner: Owner,
    /// Wall clock at the machine's time zero, nanoseconds since 1970.
    zero: u64,
}

impl Words {
    /// As of now.
    pub fn new(shared: Arc<Shared>, owner: Owner) -> Words {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let zero = wall.saturating_sub(shared.now().0.saturating_mul(1_000));
        Words { shared, owner, zero }
    }

    /// One request with all of them.
    pub fn request(&self, spans: &[Span]) -> ExportTraceServiceRequest {
        let resource = Resource {
            attributes: vec![
                text("service.name", "lockstepd"),
                text("service.version", env!("CARGO_PKG_VERSION")),
                text("service.instance.id", format!("{:032x}", self.owner.coord_id.0)),
                number("lockstep.epoch", self.owner.epoch.0.into()),
            ],
            ..Resource::default()
        };
        let scope = InstrumentationScope { name: "lockstepd".into(), version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
        let spans = spans.iter().map(|span| self.span(span)).collect();
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }],
        }
    }

    fn span(&self, span: &Span) -> Wire {
        let mut attributes = vec![text("lockstep.txid", span.txid.to_string())];
        attributes.extend(span.csn.map(|csn| text("lockstep.csn", csn.to_string())));
        let mut links = Vec::new();
        let (mut status, mut remote) = (Status::default(), false);
        let (name, kind) = match &span.stretch {
            Stretch::Transaction { wait, outcome } => {
                remote = span.context.parent.is_some();
                attributes.push(text("lockstep.wait", wait_word(*wait)));
                match *outcome {
                    Outcome::Committed { pending } => {
                        attributes.push(text("lockstep.outcome", "committed"));
                        attributes.push(number("lockstep.pending", pending as i64));
                    }
                    Outcome::Aborted { at, refusal } => {
                        attributes.extend([text("lockstep.outcome", "aborted"), text("error.type", refusal.word())]);
                        attributes.extend(at.map(|participant| text("lockstep.store", self.shared.registry().name(participant))));
                        status.code = StatusCode::Error.into();
                    }
                }
                ("transaction".to_string(), SpanKind::Server)
            }
            Stretch::Prepare { participant, vote, refusal } => {
                attributes.push(text("lockstep.vote", vote.unwrap_or("none")));
                if let Some(refusal) = refusal {
                    attributes.push(text("error.type", refusal.word()));
                }
                if refusal.is_some() || vote.is_none() {
                    status.code = StatusCode::Error.into();
                }
                self.at("prepare", *participant, &mut attributes)
            }
            Stretch::Decision { leader: None, together } => {
                attributes.extend([text("lockstep.decider", "log"), number("lockstep.group.size", *together as i64)]);
                ("decide".to_string(), SpanKind::Internal)
            }
            Stretch::Decision { leader: Some(leader), .. } => {
                attributes.push(text("lockstep.decider", "store"));
                self.at("decide", *leader, &mut attributes)
            }
            Stretch::Commit { participant, recovered: None } => self.at("commit", *participant, &mut attributes),
            Stretch::Commit { participant, recovered: Some(epoch) } => {
                // It may have died before it was told.
                let span_id = span.context.transaction_span(span.txid).0.to_vec();
                links.push(Link { trace_id: span.context.trace.0.to_vec(), span_id, ..Link::default() });
                attributes.push(number("lockstep.recovered_in", epoch.0.into()));
                remote = true;
                self.at("recover", *participant, &mut attributes)
            }
        };
        let known = SpanFlags::ContextHasIsRemoteMask as u32;
        let is_remote = if remote { SpanFlags::ContextIsRemoteMask as u32 } else { 0 };
        Wire {
            trace_id: span.context.trace.0.to_vec(),
            span_id: span.id().0.to_vec(),
            parent_span_id: span.parent().map_or_else(Vec::new, |parent| parent.0.to_vec()),
            flags: u32::from(span.context.flags) | known | is_remote,
            name,
            kind: kind.into(),
            start_time_unix_nano: self.wall(span.began),
            end_time_unix_nano: self.wall(span.ended),
            attributes,
            links,
            status: Some(status),
            ..Wire::default()
        }
    }

    /// The name and the kind of what is done at a store.
    fn at(&self, what: &str, participant: ParticipantId, attributes: &mut Vec<KeyValue>) -> (String, SpanKind) {
        let registry = self.shared.registry();
        let store_type = registry.all().iter().find(|store| store.id == participant).map_or("retired", |store| store.store_type);
        let (system, kind) = match store_type {
            "sqlite" => (Some("sqlite"), SpanKind::Internal),
            "tantivy" => (Some("tantivy"), SpanKind::Internal),
            "postgres" => (Some("postgresql"), SpanKind::Client),
            "opensearch" => (Some("opensearch"), SpanKind::Client),
            _ => (None, SpanKind::Client),
        };
        let name = registry.name(participant);
        attributes.push(text("lockstep.store", name.as_str()));
        attributes.push(text("db.operation.name", what));
        attributes.extend(system.map(|system| text("db.system.name", system)));
        (format!("{what} {name}"), kind)
    }

    fn wall(&self, at: Time) -> u64 {
        self.zero.saturating_add(at.0.saturating_mul(1_000))
    }
}

fn wait_word(wait: Wait) -> &'static str {
    match wait {
        Wait::Decided => "decided",
        Wait::Applied => "applied",
        Wait::Visible => "visible",
    }
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
