//! Every RPC with nobody's, unknown, wrong and right credentials; stores and transactions that are others'.

use crate::lab::{Lab, call, says, token};
use anyhow::{Context, ensure};
use lockstep_client::{AuthorizedChannel, Client, CommitError, ConnectError, Credentials, params};
use lockstep_proto::v1;
use lockstep_proto::v1::participant_service_client::ParticipantServiceClient;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Code;

/// Everything that is served, by its descriptors: path, and the roles that may call it. Written down here once more, on purpose.
fn methods() -> Vec<(String, &'static [&'static str])> {
    let mut methods = Vec::new();
    let sets = [lockstep_proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET, tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET];
    for set in sets {
        for file in FileDescriptorSet::decode(set).expect("descriptors").file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let roles: &[&str] = match (service.name(), method.name()) {
                        ("Health" | "ServerReflection", _) | (_, "Describe") => &["client", "participant", "viewer", "operator"],
                        (_, "Migrate") => &["operator"],
                        ("TransactionService", _) => &["client"],
                        ("ParticipantService", _) => &["participant"],
                        ("AdminService", "Resolve" | "Skip" | "ForgetDamage" | "Waive" | "LeaveSafeMode") => &["operator"],
                        ("AdminService", name) if is_look(name) => &["viewer", "operator"],
                        // What changes something and is not known here takes an operator.
                        _ => &["operator"],
                    };
                    methods.push((path, roles));
                }
            }
        }
    }
    methods
}

fn is_look(method: &str) -> bool {
    ["Status", "List", "Show", "Explain", "Dump", "VerifyLog", "Doctor", "Plan"].iter().any(|verb| method.starts_with(verb))
}

async fn channel(lab: &Lab, credentials: &Credentials) -> anyhow::Result<AuthorizedChannel> {
    let channel = credentials.endpoint(&lab.url()).map_err(anyhow::Error::msg)?.connect().await?;
    let authorization = credentials.authorization().map_err(anyhow::Error::msg)?;
    Ok(tonic::service::interceptor::InterceptedService::new(channel, authorization))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rpc_with_every_credential() -> anyhow::Result<()> {
    let lab = Lab::start("").await?;
    let all = methods();
    ensure!(all.len() >= 28, "{} methods are not all", all.len());
    // Taken back: it was good a moment ago.
    let revoked = Credentials::default().ca_file(lab.certificate("ca.pem")).token(token("rival"));
    ensure!(call(&channel(&lab, &revoked).await?, "/lockstep.v1.TransactionService/Describe", &[]).await?.code() == Code::Ok);
    std::fs::write(lab.token_file("rival"), "another-token-0123456789")?;
    let until = std::time::Instant::now() + crate::lab::LIMIT;
    while call(&channel(&lab, &revoked).await?, "/lockstep.v1.TransactionService/Describe", &[]).await?.code() == Code::Ok {
        ensure!(std::time::Instant::now() < until, "the token is still taken");
        tokio::time::sleep(crate::lab::LOOK).await;
    }
    for (who, credentials) in [
        ("nobody", lab.nobody()),
        ("an unknown token", lab.nobody().token("token-of-nobody-0123456789abcdef")),
        ("a token that was taken back", revoked),
        ("a certificate that is no principal", lab.with_certificate("stranger-host")),
    ] {
        let channel = channel(&lab, &credentials).await?;
        for (path, _) in &all {
            let status = call(&channel, path, &[]).await?;
            ensure!(status.code() == Code::Unauthenticated, "{path} as {who}: {status:?}");
            ensure!(!status.message().is_empty());
        }
    }
    for (who, role) in [("shop", "client"), ("far", "participant"), ("eye", "viewer"), ("ops", "operator")] {
        let channel = channel(&lab, &lab.as_(who)).await?;
        for (path, roles) in &all {
            let status = call(&channel, path, &[]).await?;
            let is_in = !matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated);
            // The empty messages of those who may are refused for what is in them, after the role: a store is named `` there.
            let by_store = status.message().contains("for store ``");
            ensure!(is_in == roles.contains(&role) || by_store && roles.contains(&role), "{path} as {who}: {status:?}");
            if !roles.contains(&role) {
                says(status.message(), &["this needs the role", roles[0], &format!("principal `{who}` has {role}")]);
            }
        }
        let status = call(&channel, "/lockstep.v1.AdminService/Nonsense", &[]).await?;
        ensure!(status.code() == Code::Unimplemented, "{status:?}");
    }
    let status = call(&channel(&lab, &lab.nobody()).await?, "/lockstep.v1.AdminService/Nonsense", &[]).await?;
    ensure!(status.code() == Code::Unauthenticated, "who is nobody learns nothing: {status:?}");
    // A certificate proves as much as a token.
    let status = call(&channel(&lab, &lab.with_certificate("shop-host")).await?, "/lockstep.v1.TransactionService/Describe", &[]).await?;
    ensure!(status.code() == Code::Ok, "{status:?}");
    lab.status().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_and_stores_of_others() -> anyhow::Result<()> {
    let lab = Lab::start("").await?;
    lab.client("ops").await.err().context("an operator is no client")?;
    let mut ops = lab.wire(&lab.as_("ops")).await?;
    let script = "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, n INTEGER NOT NULL)".to_string();
    ops.migrate(v1::MigrateRequest { store: "db".into(), script }).await?;
    let shop = lab.client("shop").await?;
    let put = |client: &Client, id: i64| {
        client.transaction().sql("db", "INSERT INTO t VALUES ($1, 1) RETURNING id", params![id]).idempotency_key("the-key")
    };
    let first = put(&shop, 1).commit().await?;

    // Another one's key is another key: it is neither told that outcome, nor in its way.
    let rival = lab.client("rival").await?;
    let request = lockstep_client::RequestId { key: "the-key".into(), attempt: 1, position: rival.position().context("it spoke")? };
    match rival.inquire(&request).await {
        Err(CommitError::Aborted(_)) => {}
        told => anyhow::bail!("it was told of another one's transaction: {told:?}"),
    }
    let mut wire = lab.wire(&lab.as_("rival")).await?;
    // Nor may it drop its results, nor lead it.
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let mut replies = wire.transact(tokio_stream::wrappers::ReceiverStream::new(receiver)).await?.into_inner();
    let txid = raw(&first.txid.to_string())?;
    let acknowledge = v1::transact_request::Request::Acknowledge(txid);
    let inquire = v1::transact_request::Request::Inquire(v1::InquireRequest {
        key: Some(v1::RequestKey { key: "the-key".into(), attempt: 1 }),
        ..Default::default()
    });
    let requests = [(1, acknowledge), (2, inquire)].map(|(id, request)| v1::TransactRequest { id, request: Some(request) });
    sender.send(v1::TransactRequests { requests: requests.to_vec() }).await?;
    while replies.message().await?.context("an answer")?.replies.iter().all(|reply| reply.id != 2) {}
    let mut own = lab.wire(&lab.as_("shop")).await?;
    let inquire = v1::InquireRequest { key: Some(v1::RequestKey { key: "the-key".into(), attempt: 1 }), ..Default::default() };
    let again = own.inquire(inquire).await?.into_inner();
    let Some(v1::outcome::Outcome::Committed(committed)) = again.outcome else { anyhow::bail!("it is committed") };
    ensure!(!committed.results_gone && !committed.results.is_empty(), "another one has dropped its results");
    let attend = v1::LeadAttend { store: "db".into(), txid: Some(txid) };
    let lead = v1::LeadRequest { request: Some(v1::lead_request::Request::Attend(attend)) };
    let status = wire.lead(tokio_stream::once(lead)).await.err().context("it may not lead it")?;
    ensure!(status.code() == Code::PermissionDenied, "{status:?}");
    says(status.message(), &["is not a transaction of principal `rival`"]);

    // Stores.
    let narrow = lab.client("narrow").await?;
    let refused = narrow.query("db", "SELECT 1", []).await.err().context("not its store")?;
    says(&refused.to_string(), &["principal `narrow` needs the role client for store `db`", "index alone"]);
    let refused = put(&narrow, 2).commit().await.err().context("not its store")?;
    says(&refused.to_string(), &["principal `narrow` needs the role client for store `db`"]);
    let statement = v1::Statement { sql: "SELECT 1".into(), ..Default::default() };
    let operation = v1::Operation { operation: Some(v1::operation::Operation::Statement(statement)) };
    let commit = v1::CommitRequest {
        key: Some(v1::RequestKey { key: "k".into(), attempt: 1 }),
        branches: vec![v1::Branch { store: "db".into(), operations: vec![operation] }],
        ..Default::default()
    };
    let status = lab.wire(&lab.as_("narrow")).await?.commit(commit).await.err().context("not its store")?;
    ensure!(status.code() == Code::PermissionDenied, "{status:?}");
    let mut participant = ParticipantServiceClient::new(channel(&lab, &lab.as_("far")).await?);
    let attend = v1::Attend { name: "farther".into(), version: String::new() };
    let message = v1::FromParticipantMessage { message: Some(v1::from_participant_message::Message::Attend(attend)) };
    let status = participant.attend(tokio_stream::once(v1::FromParticipant { messages: vec![message] })).await.err();
    let status = status.context("not its store")?;
    ensure!(status.code() == Code::PermissionDenied, "{status:?}");
    says(status.message(), &["principal `far` needs the role participant for store `farther`"]);
    let found = shop.query("db", "SELECT count(*) FROM t", []).await?;
    let rows: i64 = found.rows.iter().next().context("a row")?.get(0)?;
    ensure!(rows == 1);

    // Its share.
    let hasty = lab.client("hasty").await?;
    let busy = |error: &CommitError| error.to_string().contains("principal `hasty` may send 5 requests a second");
    let mut told = Vec::new();
    for n in 0..50 {
        told.extend(hasty.transaction().sql("db", "SELECT $1", params![n]).commit().await.err());
    }
    ensure!(told.iter().any(busy), "{told:?}");
    let mut wire = lab.wire(&lab.as_("hasty")).await?;
    let mut refused = None;
    for _ in 0..50 {
        refused = refused.or(wire.get(v1::GetRequest { store: "index".into(), key: "k".into(), ..Default::default() }).await.err());
    }
    let refused = refused.context("a limit")?;
    ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
    says(refused.message(), &["requests_per_second", "wait a moment"]);
    let (_held, receiver) = tokio::sync::mpsc::channel(1);
    let second = wire.transact(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.err().context("a second stream")?;
    ensure!(second.code() == Code::ResourceExhausted, "{second:?}");
    says(second.message(), &["principal `hasty` has 1 open streams"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_told_why_it_is_not_let_in() -> anyhow::Result<()> {
    let lab = Lab::start("").await?;
    let connect = |credentials: Credentials| Client::builder(lab.url()).credentials(credentials).connect();
    for (credentials, words) in [
        (lab.nobody(), "say who you are"),
        (lab.nobody().token("token-of-nobody-0123456789abcdef"), "this token is not one that is known here"),
        (lab.as_("eye"), "this needs the role client: principal `eye` has viewer"),
        (lab.with_certificate("stranger-host"), "the client certificate is of dns:stranger-host, cn:stranger-host"),
    ] {
        match connect(credentials).await {
            Err(error @ ConnectError::Refused { .. }) => says(&error.to_string(), &["does not let this client in", words]),
            told => anyhow::bail!("{words}: {told:?}"),
        }
    }
    let error = connect(lab.nobody().token_file("/no/such/file")).await.err().context("no token")?;
    says(&error.to_string(), &["credentials: cannot read the token from /no/such/file"]);
    says(
        &lab.cli("shop", &["status"], lockstep::Exit::Refused).await?,
        &["this needs the role viewer: principal `shop` has client", "next:"],
    );
    Ok(())
}

/// `3-17`, as it is on the wire.
fn raw(txid: &str) -> anyhow::Result<v1::TransactionId> {
    let (epoch, n) = txid.split_once('-').context("EPOCH-N")?;
    Ok(v1::TransactionId { epoch: epoch.parse()?, n: n.parse()?, leader: 0 })
}
