//! OpenTelemetry traces: one from the client through the coordinator to every store, also over its death; and what a collector that is away,
//! stuck or not asked for changes: nothing.

use crate::lab::{LIMIT, STORES, TABLES, launch};
use anyhow::{Context as _, ensure};
use lockstep_client::{Receipt, Wait};
use lockstep_tests::workload;
use lockstepd::demo::daemon::{Daemon, Launch};
use opentelemetry::global;
use opentelemetry::trace::{Span as _, SpanKind, TraceContextExt, Tracer};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;

/// A trace of some other application.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Takes spans.
struct Collector {
    address: SocketAddr,
    spans: watch::Receiver<Vec<Span>>,
}

struct Service {
    spans: watch::Sender<Vec<Span>>,
    token: Option<&'static str>,
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let shown = request.metadata().get("x-token").and_then(|token| token.to_str().ok());
        if shown != self.token {
            return Err(tonic::Status::unauthenticated("who are you?"));
        }
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        self.spans.send_modify(|spans| spans.extend(scopes.flat_map(|scope| scope.spans)));
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start(token: Option<&'static str>) -> anyhow::Result<Collector> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, (spans, taken)) = (listener.local_addr()?, watch::channel(Vec::new()));
        let service = TraceServiceServer::new(Service { spans, token });
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(Collector { address, spans: taken })
    }

    /// Everything that has come, once all of these have.
    async fn wait_for(&mut self, names: &[&str]) -> anyhow::Result<Vec<Span>> {
        let there = |spans: &Vec<Span>| names.iter().all(|name| spans.iter().any(|span| span.name == *name));
        let found = tokio::time::timeout(LIMIT, self.spans.wait_for(there)).await.map(|spans| spans.map(|spans| spans.clone()));
        match found {
            Ok(spans) => Ok(spans?),
            Err(_) => {
                let names: Vec<_> = self.spans.borrow().iter().map(|span| span.name.clone()).collect();
                anyhow::bail!("not all spans came: {names:?}")
            }
        }
    }
}

/// The application's own spans, in this process.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

/// This process traces itself from here on.
fn application() -> Kept {
    static STARTED: Once = Once::new();
    static KEPT: Mutex<Option<Kept>> = Mutex::new(None);
    STARTED.call_once(|| {
        let kept = Kept::default();
        *KEPT.lock().unwrap() = Some(kept.clone());
        global::set_tracer_provider(SdkTracerProvider::builder().with_simple_exporter(kept).build());
    });
    KEPT.lock().unwrap().clone().unwrap()
}

fn daemon(folder: &Path, stores: &str, traces: &str, failpoint: Option<&str>) -> anyhow::Result<Launch> {
    let configuration = format!("{stores}\n[logging]\nformat = \"json\"\nlevel = \"info,lockstepd=debug\"\n[traces]\n{traces}\n");
    let mut launch = launch(folder, &configuration)?;
    launch.environment = failpoint.map(|failpoint| ("LOCKSTEP_FAILPOINT".into(), failpoint.into())).into_iter().collect();
    Ok(launch)
}

fn endpoint(collector: &Collector) -> String {
    format!("endpoint = \"http://{}\"", collector.address)
}

fn one<'s>(spans: &'s [Span], name: &str) -> &'s Span {
    let of_name: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(of_name.len(), 1, "{name}: {of_name:?}");
    of_name[0]
}

fn says(span: &Span, key: &str) -> String {
    let value = span.attributes.iter().find(|attribute| attribute.key == key).and_then(|attribute| attribute.value.clone()?.value);
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{}: {key} is {other:?}", span.name),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn json_lines(launch: &Launch) -> anyhow::Result<Vec<serde_json::Value>> {
    let text = std::fs::read_to_string(launch.log_file())?;
    text.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).with_context(|| line.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_from_the_client_to_every_store() -> anyhow::Result<()> {
    let kept = application();
    let (folder, mut collector) = (tempfile::tempdir()?, Collector::start(Some("s3cret")).await?);
    std::fs::write(folder.path().join("headers"), "x-token=s3cret\n")?;
    let traces = format!("{}\nheaders_file = \"{}\"", endpoint(&collector), folder.path().join("headers").display());
    let launch = daemon(folder.path(), STORES, &traces, None)?;
    let mut daemon = Daemon::start(launch.clone()).await?;
    daemon.wait_until_ready().await?;
    let client = workload::connect(&daemon.url()).await?;
    workload::prepare(&client).await?;

    let span = global::tracer("shop").start("checkout");
    let (trace, root) = (span.span_context().trace_id().to_string(), span.span_context().span_id());
    let context = opentelemetry::Context::new().with_span(span);
    let commit = workload::transaction(&client, "a", "item-0").wait(Wait::Visible).commit();
    let receipt: Receipt = opentelemetry::trace::FutureExt::with_context(commit, context).await?;
    let names = ["transaction", "prepare db", "prepare index", "decide", "commit db", "commit index"];
    let spans = collector.wait_for(&names).await?;
    assert_eq!(spans.len(), names.len(), "{spans:?}");

    let all = kept.0.lock().unwrap().clone();
    let own = |data: &&SpanData| data.name == "lockstep commit" && data.span_context.trace_id().to_string() == trace;
    let own = all.iter().find(own).context("the client's own span")?;
    assert_eq!((own.parent_span_id, own.span_kind.clone()), (root, SpanKind::Client));
    let transaction = one(&spans, "transaction");
    assert_eq!(transaction.parent_span_id, own.span_context.span_id().to_bytes());
    for span in &spans {
        assert_eq!(hex(&span.trace_id), trace, "{}", span.name);
        assert_eq!(says(span, "lockstep.txid"), receipt.txid.to_string());
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        if span.name != "transaction" {
            assert_eq!(span.parent_span_id, transaction.span_id, "{}", span.name);
        }
    }
    for name in ["transaction", "decide", "commit db", "commit index"] {
        assert_eq!(says(one(&spans, name), "lockstep.csn"), receipt.csn.to_string());
    }
    assert_eq!((says(transaction, "lockstep.outcome"), says(transaction, "lockstep.wait")), ("committed".into(), "visible".into()));
    assert_eq!(says(one(&spans, "prepare db"), "lockstep.vote"), "in_group");
    assert_eq!(says(one(&spans, "prepare index"), "lockstep.vote"), "redo");

    daemon.stop().await?;
    let lines = json_lines(&launch)?;
    let committed = lines.iter().find(|line| line["message"] == "a transaction is committed").context("its line")?;
    assert_eq!(committed["txid"], receipt.txid.to_string());
    assert_eq!(committed["csn"], receipt.csn.to_string());
    assert_eq!(committed["trace_id"], trace);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_joins_the_trace() -> anyhow::Result<()> {
    recovered(STORES, &["recover db", "recover index"]).await.context("the log decides")?;
    // Its marker carries the trace.
    let led = STORES.replace("type = \"sqlite\"", "type = \"sqlite\"\nmode = \"database-led\"");
    recovered(&led, &["recover index"]).await.context("the database decides")
}

async fn recovered(stores: &str, names: &[&str]) -> anyhow::Result<()> {
    let (folder, mut collector) = (tempfile::tempdir()?, Collector::start(None).await?);
    let traces = endpoint(&collector);
    let configured = |failpoint| daemon(folder.path(), stores, &traces, failpoint);
    let mut daemon = Daemon::start(configured(Some("engine.before_send_commit:1:kill"))?).await?;
    daemon.wait_until_ready().await?;
    let client = workload::connect(&daemon.url()).await?;
    workload::prepare(&client).await?;
    let traced = workload::transaction(&client, "a", "item-0").traceparent(format!("00-{TRACE}-{PARENT}-01"));
    let _ = traced.deadline(Duration::from_secs(2)).commit().await;
    ensure!(daemon.wait_until_dead(LIMIT).await?.is_some(), "it did not die");

    daemon.relaunch(configured(None)?).await?;
    daemon.wait_until_mended(LIMIT).await?;
    let spans = collector.wait_for(names).await?;
    for name in names {
        let span = one(&spans, name);
        assert_eq!((hex(&span.trace_id).as_str(), hex(&span.parent_span_id).as_str()), (TRACE, PARENT), "{name}");
        assert_eq!((span.links.len(), hex(&span.links[0].trace_id).as_str()), (1, TRACE));
        assert_eq!(says(span, "lockstep.recovered_in"), "2");
    }
    ensure!(daemon.stop().await?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_sampled_is_told() -> anyhow::Result<()> {
    let (folder, mut collector) = (tempfile::tempdir()?, Collector::start(None).await?);
    let mut daemon = Daemon::start(daemon(folder.path(), STORES, &endpoint(&collector), None)?).await?;
    daemon.wait_until_ready().await?;
    let client = workload::connect(&daemon.url()).await?;
    workload::prepare(&client).await?;
    let malformed = ["nonsense".to_string(), "x".repeat(10_000), format!("00-{TRACE}-{PARENT}-0"), format!("00-{TRACE}-{PARENT}-00")];
    for (n, traceparent) in malformed.into_iter().enumerate() {
        let id = format!("malformed-{n}");
        workload::transaction(&client, &id, "item-0").traceparent(traceparent).commit().await.with_context(|| id.clone())?;
    }
    let refused = client.transaction().sql("db", "INSERT INTO nowhere VALUES (1)", []).traceparent(format!("00-{TRACE}-{PARENT}-01"));
    ensure!(refused.commit().await.is_err());
    let spans = collector.wait_for(&["transaction", "prepare db"]).await?;
    assert_eq!(spans.len(), 2, "{spans:?}");
    let transaction = one(&spans, "transaction");
    assert_eq!((says(transaction, "lockstep.outcome"), says(transaction, "lockstep.store")), ("aborted".into(), "db".into()));
    assert_eq!((transaction.status.clone().unwrap().code, says(transaction, "error.type").as_str()), (2, "invalid"));
    assert_eq!(says(one(&spans, "prepare db"), "lockstep.vote"), "no");
    ensure!(daemon.stop().await?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_stuck_changes_nothing() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    // Takes connections, and never answers.
    let stuck = TcpListener::bind("127.0.0.1:0").await?;
    let http = lockstep_servers::free_port()?;
    let traces =
        format!("endpoint = \"http://{}\"\nratio = 1.0\nqueue_spans = 1\n[http]\nlisten = \"127.0.0.1:{http}\"", stuck.local_addr()?);
    let mut daemon = Daemon::start(daemon(folder.path(), STORES, &traces, None)?).await?;
    daemon.wait_until_ready().await?;
    let client = workload::connect(&daemon.url()).await?;
    workload::prepare(&client).await?;
    let size = workload::Size { clients: 4, transactions: 40, items: 3 };
    let told = workload::run(&client, "stuck", size).await?;
    ensure!(told.len() == 160 && told.iter().any(|told| told.outcome.is_ok()), "{told:?}");
    let url = format!("http://127.0.0.1:{http}/metrics");
    let metrics = tokio::task::spawn_blocking(move || anyhow::Ok(ureq::get(&url).call()?.body_mut().read_to_string()?)).await??;
    let line = metrics.lines().find(|line| line.starts_with("lockstep_trace_spans_total{outcome=\"dropped\"}")).context(metrics.clone())?;
    let dropped: u64 = line.split(' ').nth(1).context("a value")?.parse()?;
    ensure!(dropped > 0, "{line}");
    // Ends in order, and within its time.
    ensure!(daemon.stop().await?.success());
    drop(stuck);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_collector_nothing_is_told() -> anyhow::Result<()> {
    let (folder, http) = (tempfile::tempdir()?, lockstep_servers::free_port()?);
    let off = format!("[http]\nlisten = \"127.0.0.1:{http}\"");
    let mut daemon = Daemon::start(daemon(folder.path(), STORES, &off, None)?).await?;
    daemon.wait_until_ready().await?;
    let client = workload::connect(&daemon.url()).await?;
    client.migrate("db", TABLES).await?;
    let traced = client.transaction().sql("db", "INSERT INTO item VALUES ('a', 'b', 1)", []);
    traced.traceparent(format!("00-{TRACE}-{PARENT}-01")).commit().await?;
    let url = format!("http://127.0.0.1:{http}/metrics");
    let metrics = tokio::task::spawn_blocking(move || anyhow::Ok(ureq::get(&url).call()?.body_mut().read_to_string()?)).await??;
    ensure!(!metrics.contains("lockstep_trace_spans_total{"), "{metrics}");
    ensure!(daemon.stop().await?.success());
    Ok(())
}
