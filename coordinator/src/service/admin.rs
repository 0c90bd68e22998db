//! `AdminService`: looks at the machine, and operators' commands. Names become numbers here; the engine knows the rest.

use super::{Context, backup, translate, verify};
use crate::engine_handle::Question;
use crate::log::{LogError, Report};
use crate::security::Caller;
use crate::view::{self, Cursor};
use lockstep_core::{AdminAction, Entry, ParticipantId, Reply, Txid};
use lockstep_participants::{Finding, Reader};
use lockstep_proto::v1;
use lockstep_proto::v1::admin_service_server::AdminService;
use lockstep_proto::v1::plan_request::Order;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

/// The service.
pub struct Admin(pub(super) Context);

/// Records of the log, read from the engine beforehand: at most [`DUMP_RECORDS`].
pub struct Records(VecDeque<v1::LogRecord>);

/// Transactions in one list, and records in one dump, at most; and where the request names no limit.
const LIST_TRANSACTIONS: u32 = 10_000;
const DUMP_RECORDS: u32 = 10_000;
const LIST_DEFAULT: u32 = 100;
/// How long a read of the log waits for its turn.
const LOG_TURN: Duration = Duration::from_secs(5);
/// How long a store may be examined: longer than it waits for its server by itself, and less than the CLI waits for all.
const EXAMINATION: Duration = Duration::from_secs(12);
/// Who and why are kept in the log: at most so many bytes each.
const TEXT_BYTES: usize = 1024;

const STATES: [&str; 7] = ["active", "preparing", "deciding", "committing", "in doubt", "committed", "aborted"];
/// A key of a list is at most so long, bytes.
const KEY_BYTES: usize = 1024;

impl Stream for Records {
    type Item = Result<v1::LogRecord, Status>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    type DumpLogStream = Records;

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        let mut status = self.0.engine.ask(Question::Status).await?;
        status.participants.iter_mut().for_each(|participant| self.ask_store(participant));
        Ok(Response::new(status))
    }

    async fn list_transactions(
        &self,
        request: Request<v1::ListTransactionsRequest>,
    ) -> Result<Response<v1::ListTransactionsReply>, Status> {
        let mut request = request.into_inner();
        request.limit = limit(request.limit, LIST_TRANSACTIONS)?;
        if let Some(state) = request.states.iter().find(|state| !STATES.contains(&state.as_str())) {
            return Err(Status::invalid_argument(format!("states: `{state}` is none of {}", STATES.join(", "))));
        }
        if request.key.len() > KEY_BYTES {
            return Err(Status::invalid_argument(format!("key has {} bytes: at most {KEY_BYTES}", request.key.len())));
        }
        if !request.participant.is_empty() {
            self.known(request.participant.clone()).await?;
        }
        if let Some(sentence) = view::unanswerable(&request) {
            return Err(Status::invalid_argument(sentence));
        }
        if !request.after.is_empty() {
            request.after.parse::<Cursor>().map_err(|sentence| Status::invalid_argument(format!("after: {sentence}")))?;
        }
        Ok(Response::new(self.0.engine.ask(|answer| Question::ListTransactions(request, answer)).await?))
    }

    async fn show_transaction(&self, request: Request<v1::ShowTransactionRequest>) -> Result<Response<v1::TransactionDetail>, Status> {
        let txid = txid(&request.get_ref().txid)?;
        let detail = self.0.engine.ask(|answer| Question::ShowTransaction(txid, answer)).await?;
        let unknown = || Status::not_found(format!("nothing is known of transaction {txid}: never begun, or no longer kept"));
        Ok(Response::new(detail.ok_or_else(unknown)?))
    }

    async fn explain_transaction(&self, request: Request<v1::ExplainTransactionRequest>) -> Result<Response<v1::Explanation>, Status> {
        let txid = txid(&request.get_ref().txid)?;
        Ok(Response::new(self.0.engine.ask(|answer| Question::Explain(txid, answer)).await?))
    }

    async fn list_participants(&self, _: Request<v1::ListParticipantsRequest>) -> Result<Response<v1::ListParticipantsReply>, Status> {
        let mut reply = self.0.engine.ask(Question::ListParticipants).await?;
        reply.participants.iter_mut().for_each(|participant| self.ask_store(participant));
        Ok(Response::new(reply))
    }

    async fn dump_log(&self, request: Request<v1::DumpLogRequest>) -> Result<Response<Records>, Status> {
        let mut request = request.into_inner();
        request.limit = limit(request.limit, DUMP_RECORDS)?;
        let records = self.read_log(move |entries| entries.map(|entries| view::log_records(entries, &request))).await?;
        Ok(Response::new(Records(records.map_err(|error| Status::unavailable(error.to_string()))?.into())))
    }

    async fn verify_log(&self, _: Request<v1::VerifyLogRequest>) -> Result<Response<v1::LogReport>, Status> {
        let report = |entries: Result<Vec<Entry>, LogError>| match entries {
            Ok(entries) => Ok(Report::of(&entries, None)),
            Err(error @ LogError::Corrupt(_)) => Ok(Report::unreadable(&error)),
            // A log that was not read may be sound.
            Err(error) => Err(Status::unavailable(error.to_string())),
        };
        Ok(Response::new(view::log_report(self.read_log(report).await??)))
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::Choice>, Status> {
        let order = request.into_inner().order.ok_or_else(|| Status::invalid_argument("order is missing: name one"))?;
        let action = self.action(order).await?;
        Ok(Response::new(self.0.engine.ask(|answer| Question::Plan(action, answer)).await?))
    }

    async fn doctor(&self, _: Request<v1::DoctorRequest>) -> Result<Response<v1::DoctorReply>, Status> {
        let mut reply = self.0.engine.ask(Question::Doctor).await?;
        reply.findings.extend(self.0.security.findings());
        let examined: Vec<_> = self
            .0
            .engine
            .readers()
            .into_iter()
            .map(|(name, reader)| {
                let turn = Arc::clone(&self.0.examinations[name.as_str()]);
                (name, tokio::spawn(examine(turn, reader)))
            })
            .collect();
        for (name, examination) in examined {
            let findings = examination.await.map_err(|error| Status::internal(error.to_string()))?;
            reply.findings.extend(findings.into_iter().map(|Finding { problem, sentence, remedy }| v1::Finding {
                level: if problem { "problem" } else { "warning" }.into(),
                subject: format!("store {name}"),
                sentence,
                remedy,
            }));
        }
        Ok(Response::new(reply))
    }

    async fn resolve(&self, request: Request<v1::ResolveRequest>) -> Result<Response<v1::AdminReply>, Status> {
        let (caller, request) = (Caller::of(&request)?, request.into_inner());
        let (operator, reason) = (request.operator.clone(), request.reason.clone());
        self.act(&caller, operator, reason, self.action(Order::Resolve(request)).await?).await
    }

    async fn skip(&self, request: Request<v1::SkipRequest>) -> Result<Response<v1::AdminReply>, Status> {
        let (caller, request) = (Caller::of(&request)?, request.into_inner());
        let (operator, reason) = (request.operator.clone(), request.reason.clone());
        self.act(&caller, operator, reason, self.action(Order::Skip(request)).await?).await
    }

    async fn list_damage(&self, _: Request<v1::ListDamageRequest>) -> Result<Response<v1::ListDamageReply>, Status> {
        Ok(Response::new(self.0.engine.ask(Question::ListDamage).await?))
    }

    async fn forget_damage(&self, request: Request<v1::ForgetDamageRequest>) -> Result<Response<v1::AdminReply>, Status> {
        let (caller, request) = (Caller::of(&request)?, request.into_inner());
        let (operator, reason) = (request.operator.clone(), request.reason.clone());
        self.act(&caller, operator, reason, self.action(Order::ForgetDamage(request)).await?).await
    }

    async fn waive(&self, request: Request<v1::WaiveRequest>) -> Result<Response<v1::AdminReply>, Status> {
        let (caller, request) = (Caller::of(&request)?, request.into_inner());
        let (operator, reason) = (request.operator.clone(), request.reason.clone());
        self.act(&caller, operator, reason, self.action(Order::Waive(request)).await?).await
    }

    async fn list_audit(&self, request: Request<v1::ListAuditRequest>) -> Result<Response<v1::ListAuditReply>, Status> {
        let mut request = request.into_inner();
        request.limit = limit(request.limit, LIST_TRANSACTIONS)?;
        Ok(Response::new(self.0.engine.ask(|answer| Question::ListAudit(request, answer)).await?))
    }

    async fn leave_safe_mode(&self, request: Request<v1::LeaveSafeModeRequest>) -> Result<Response<v1::AdminReply>, Status> {
        let (caller, request) = (Caller::of(&request)?, request.into_inner());
        self.act(&caller, request.operator, request.reason, AdminAction::LeaveSafeMode).await
    }

    async fn remove_participant(&self, request: Request<v1::RemoveParticipantRequest>) -> Result<Response<v1::AdminReply>, Status> {
        let (caller, request) = (Caller::of(&request)?, request.into_inner());
        let (operator, reason) = (request.operator.clone(), request.reason.clone());
        self.act(&caller, operator, reason, self.action(Order::RemoveParticipant(request)).await?).await
    }

    type BackupStream = verify::Replies<v1::BackupReply>;

    async fn backup(&self, request: Request<Streaming<v1::BackupRequest>>) -> Result<Response<Self::BackupStream>, Status> {
        let (caller, request) = (Caller::of(&request)?, request.into_inner());
        backup::back_up(&self.0, &caller, request).await.map(Response::new)
    }

    type VerifyStream = verify::Replies<v1::VerifyReply>;

    async fn verify(&self, request: Request<v1::VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        verify::verify(&self.0, request.into_inner()).await.map(Response::new)
    }

    type RepairStream = verify::Replies<v1::RepairReply>;

    async fn repair(&self, request: Request<v1::RepairRequest>) -> Result<Response<Self::RepairStream>, Status> {
        let (caller, request) = (Caller::of(&request)?, request.into_inner());
        verify::repair(&self.0, &caller, request).await.map(Response::new)
    }
}

impl Admin {
    async fn action(&self, order: Order) -> Result<AdminAction, Status> {
        Ok(match order {
            Order::Resolve(v1::ResolveRequest { txid: of, participant, commit, .. }) => {
                AdminAction::Resolve { txid: txid(&of)?, participant: self.known(participant).await?, commit }
            }
            Order::Skip(v1::SkipRequest { txid: of, participant, .. }) => {
                AdminAction::Skip { txid: txid(&of)?, participant: self.known(participant).await? }
            }
            Order::ForgetDamage(v1::ForgetDamageRequest { txid: of, participant, .. }) => {
                AdminAction::Forget { txid: txid(&of)?, participant: self.known(participant).await? }
            }
            Order::Waive(v1::WaiveRequest { participant, .. }) => AdminAction::Waive { participant: self.known(participant).await? },
            Order::RemoveParticipant(v1::RemoveParticipantRequest { participant, .. }) => {
                AdminAction::Remove { participant: self.known(participant).await? }
            }
            Order::LeaveSafeMode(_) => AdminAction::LeaveSafeMode,
        })
    }

    /// What only the store itself can tell, at once.
    fn ask_store(&self, participant: &mut v1::ParticipantStatus) {
        let named = self.0.engine.names().named(&participant.name);
        if let Some(reader) = named.and_then(|store| self.0.engine.reader(store.id)) {
            participant.forces = reader.forces();
            participant.pools = reader.pools().into_iter().map(translate::pool_out).collect();
        }
    }

    /// Reads the whole log on a thread that may block; commits go on. One at a time, each in its turn.
    async fn read_log<T: Send + 'static>(
        &self,
        make: impl FnOnce(Result<Vec<Entry>, LogError>) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let busy = |_| Status::resource_exhausted("the log is being read for others: try again when that is done");
        let turn = tokio::time::timeout(LOG_TURN, Arc::clone(&self.0.log_reads).acquire_owned()).await.map_err(busy)?;
        let taken = self.0.engine.ask(Question::ReadLog).await?;
        let read = move || {
            let _turn = turn;
            match taken {
                Ok((snapshot, _hold)) => make(snapshot.entries()),
                Err(error) => make(Err(error)),
            }
        };
        tokio::task::spawn_blocking(read).await.map_err(|error| Status::internal(format!("the log was not read: {error}")))
    }

    /// Also one that is not configured any more.
    async fn known(&self, name: String) -> Result<ParticipantId, Status> {
        let unknown = Status::not_found(format!("participant: {}", translate::unknown_store(&name, self.0.engine.names())));
        self.0.engine.ask(|answer| Question::Participant(name, answer)).await?.ok_or(unknown)
    }

    async fn act(
        &self,
        caller: &Caller,
        operator: String,
        reason: String,
        action: AdminAction,
    ) -> Result<Response<v1::AdminReply>, Status> {
        for (field, text) in [("operator", &operator), ("reason", &reason)] {
            match text.trim().len() {
                0 => return Err(Status::invalid_argument(format!("{field} is empty: it is kept with the command"))),
                size if size > TEXT_BYTES => {
                    return Err(Status::invalid_argument(format!("{field} has {size} bytes: at most {TEXT_BYTES}")));
                }
                _ => {}
            }
        }
        let (done, message) = match self.0.engine.order(caller, &operator, reason, action).await? {
            Reply::Done(message) => (true, message),
            Reply::Refused(refusal) => (false, refusal.message),
            reply => panic!("the engine answered an operator with {reply:?}"),
        };
        Ok(Response::new(v1::AdminReply { done, message }))
    }
}

/// What an operator should know of a store, which may be long in answering: one examination at a time, so that no more threads wait for it.
async fn examine(turn: Arc<Semaphore>, reader: Arc<dyn Reader>) -> Vec<Finding> {
    let examination = async {
        let turn = turn.acquire_owned().await;
        let ask = move || {
            let _turn = turn;
            reader.examine()
        };
        tokio::task::spawn_blocking(ask).await
    };
    match tokio::time::timeout(EXAMINATION, examination).await {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => vec![Finding::warning(format!("it could not be examined: {error}"), "look at the daemon's own log")],
        Err(_) => vec![Finding::warning(
            format!("it did not answer within {EXAMINATION:?}"),
            "look whether its server runs, and can be reached from here",
        )],
    }
}

fn txid(text: &str) -> Result<Txid, Status> {
    text.parse().map_err(|sentence| Status::invalid_argument(format!("txid: {sentence}")))
}

fn limit(limit: u32, most: u32) -> Result<u32, Status> {
    match limit {
        0 => Ok(LIST_DEFAULT),
        limit if limit > most => Err(Status::invalid_argument(format!("limit is {limit}: at most {most}"))),
        limit => Ok(limit),
    }
}
