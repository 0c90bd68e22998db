//! What the pages ask. Each answer is the daemon's own, the same that gRPC gives, and says when it was given.

use super::Console;
use super::json;
use crate::security;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use lockstep_proto::v1;
use lockstep_proto::v1::admin_service_server::AdminService;
use lockstep_proto::v1::plan_request::Order;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tonic::Code;

/// Transactions on one page, at most, and where none is named.
const PAGE: u32 = 500;
const PAGE_DEFAULT: u32 = 100;

/// Why there is no answer, in a sentence.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    sentence: String,
}

type Answer = Result<Response, Failure>;
type Shared = State<Arc<Console>>;
type Caller = Extension<security::Caller>;

/// Which transactions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Several with commas between them.
    #[serde(default)]
    state: String,
    #[serde(default)]
    participant: String,
    #[serde(default)]
    older_than_ms: u64,
    #[serde(default)]
    key: String,
    #[serde(default)]
    after: String,
    #[serde(default = "page_default")]
    limit: u32,
}

/// An order that is to be looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Looked {
    /// As JSON.
    order: String,
}

/// An order that is given.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    order: json::Order,
    operator: String,
    reason: String,
    /// What was typed: the id, the store's name, or the words asked for.
    typed: String,
    /// Of the plan that was shown.
    plan: String,
}

/// What a page needs before it can post.
pub(super) async fn session(State(console): Shared, Extension(caller): Caller) -> Answer {
    let status = console.admin.status(called(v1::StatusRequest {}, &caller)).await?.into_inner();
    Ok(answer(json!({
        "token": console.gate.token(),
        "operator": caller.name(),
        "version": status.version,
        "coord_id": status.coord_id,
        "epoch": status.epoch,
    })))
}

pub(super) async fn doctor(State(console): Shared, Extension(caller): Caller) -> Answer {
    let reply = console.admin.doctor(called(v1::DoctorRequest {}, &caller)).await?.into_inner();
    Ok(answer(json!({ "findings": reply.findings.into_iter().map(json::finding).collect::<Vec<_>>() })))
}

pub(super) async fn transactions(
    State(console): Shared,
    Extension(caller): Caller,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Answer {
    let Query(wanted) = wanted.map_err(|error| Failure::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    if wanted.limit == 0 || wanted.limit > PAGE {
        return Err(Failure::new(StatusCode::BAD_REQUEST, format!("limit is {}: 1 to {PAGE}", wanted.limit)));
    }
    let request = v1::ListTransactionsRequest {
        states: wanted.state.split(',').filter(|state| !state.is_empty()).map(str::to_owned).collect(),
        participant: wanted.participant,
        older_than_ms: wanted.older_than_ms,
        limit: wanted.limit,
        key: wanted.key,
        after: wanted.after,
    };
    let reply = console.admin.list_transactions(called(request, &caller)).await?.into_inner();
    let transactions: Vec<_> = reply.transactions.into_iter().map(json::summary).collect();
    Ok(answer(json!({ "transactions": transactions, "truncated": reply.truncated, "next": reply.next })))
}

/// Answers for any id: of one that nothing is known of, the explanation says what that means.
pub(super) async fn transaction(State(console): Shared, Extension(caller): Caller, txid: Result<Path<String>, PathRejection>) -> Answer {
    let Path(txid) = txid.map_err(|error| Failure::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    let asked = v1::ExplainTransactionRequest { txid: txid.clone() };
    let explanation = console.admin.explain_transaction(called(asked, &caller)).await?.into_inner();
    let detail = match console.admin.show_transaction(called(v1::ShowTransactionRequest { txid }, &caller)).await {
        Ok(detail) => Some(json::detail(detail.into_inner())),
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => return Err(status.into()),
    };
    Ok(answer(json!({ "explanation": json::explanation(explanation), "detail": detail })))
}

pub(super) async fn participants(State(console): Shared, Extension(caller): Caller) -> Answer {
    let reply = console.admin.list_participants(called(v1::ListParticipantsRequest {}, &caller)).await?.into_inner();
    Ok(answer(json!({ "participants": reply.participants.into_iter().map(json::participant).collect::<Vec<_>>() })))
}

pub(super) async fn damage(State(console): Shared, Extension(caller): Caller) -> Answer {
    let reply = console.admin.list_damage(called(v1::ListDamageRequest {}, &caller)).await?.into_inner();
    Ok(answer(json!({ "damage": reply.damage.into_iter().map(json::damage).collect::<Vec<_>>() })))
}

/// What an order would do and damage. Does nothing.
pub(super) async fn plan(State(console): Shared, Extension(caller): Caller, looked: Result<Query<Looked>, QueryRejection>) -> Answer {
    let Query(Looked { order }) = looked.map_err(|error| Failure::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    let order: json::Order = parsed(order.as_bytes())?;
    let word = order.word().to_owned();
    let plan = planned(&console, &caller, order).await?;
    let mark = mark(&plan);
    Ok(answer(json!({ "plan": json::choice(plan), "word": word, "mark": mark })))
}

/// Does it, if the word was typed and the plan is still the one that was shown. The machine looks once more.
pub(super) async fn order(State(console): Shared, Extension(caller): Caller, body: Result<Bytes, BytesRejection>) -> Answer {
    let Given { order, operator, reason, typed, plan } = posted(body)?;
    if typed.trim() != order.word() {
        return Err(Failure::new(StatusCode::BAD_REQUEST, "not confirmed, nothing was done: something else was typed".into()));
    }
    let now = planned(&console, &caller, order.clone()).await?;
    if !now.refused.is_empty() {
        return Err(refused(&now.refused));
    }
    if mark(&now) != plan {
        let changed = "nothing was done: what it does or damages has changed since it was shown; look at it again";
        return Err(Failure::new(StatusCode::CONFLICT, changed.into()));
    }
    let operator = caller.name().map_or(operator, str::to_owned);
    let admin = &console.admin;
    let reply = match order.signed(operator, reason) {
        Order::Resolve(request) => admin.resolve(called(request, &caller)).await?,
        Order::Skip(request) => admin.skip(called(request, &caller)).await?,
        Order::ForgetDamage(request) => admin.forget_damage(called(request, &caller)).await?,
        Order::Waive(request) => admin.waive(called(request, &caller)).await?,
        Order::RemoveParticipant(request) => admin.remove_participant(called(request, &caller)).await?,
        Order::LeaveSafeMode(request) => admin.leave_safe_mode(called(request, &caller)).await?,
    };
    let v1::AdminReply { done, message } = reply.into_inner();
    if done { Ok(answer(json!({ "message": message }))) } else { Err(refused(&message)) }
}

impl Failure {
    pub(super) fn new(status: StatusCode, sentence: String) -> Failure {
        Failure { status, sentence }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.sentence }).to_string();
        (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Failure {
        let code = match status.code() {
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failure::new(code, status.message().into())
    }
}

/// A call of the service, on behalf of this one.
fn called<T>(message: T, caller: &security::Caller) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.extensions_mut().insert(caller.clone());
    request
}

async fn planned(console: &Console, caller: &security::Caller, order: json::Order) -> Result<v1::Choice, Failure> {
    let request = v1::PlanRequest { order: Some(order.signed(String::new(), String::new())) };
    Ok(console.admin.plan(called(request, caller)).await?.into_inner())
}

/// Tells one plan from another.
fn mark(plan: &v1::Choice) -> String {
    let mut hasher = DefaultHasher::new();
    (&plan.command, &plan.effect, &plan.refused).hash(&mut hasher);
    for harm in &plan.harms {
        (&harm.participant, &harm.sentence, &harm.keys).hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

fn posted<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Failure> {
    let body = body.map_err(|error| Failure::new(error.status(), error.body_text()))?;
    parsed(&body)
}

fn parsed<T: DeserializeOwned>(text: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(text).map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("the request's JSON: {error}")))
}

fn refused(why: &str) -> Failure {
    Failure::new(StatusCode::CONFLICT, format!("refused, nothing was done: {why}"))
}

fn answer(mut data: Value) -> Response {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    data["as_of_ms"] = now.into();
    ([(header::CONTENT_TYPE, "application/json")], data.to_string()).into_response()
}

fn page_default() -> u32 {
    PAGE_DEFAULT
}
