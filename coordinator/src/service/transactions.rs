//! `TransactionService`: transactions, reads, schemas.

use super::Context;
use super::stream::{self, Writer};
use super::translate::{self, Translator};
use crate::engine_handle::{Phase, Registered};
use crate::security::{Caller, Role};
use lockstep_core::{Csn, Event, ParticipantId, Reply, Token};
use lockstep_participants::{ReadLimits, Reader, StoreError};
use lockstep_proto::v1;
use lockstep_proto::v1::transaction_service_server::TransactionService;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status, Streaming};

/// In a read's error: the CSN at which a store that is behind its token stands.
pub const BEHIND_METADATA: &str = "lockstep-behind-csn";
/// In a read's error: the log that this daemon has, where the token is of another one.
pub const LOG_METADATA: &str = "lockstep-log-id";

/// The service.
pub struct Transactions(pub(super) Context);

/// Who is there.
pub(super) fn welcome(context: &Context) -> v1::Welcome {
    let (identity, limits) = (context.engine.identity(), &context.configuration.limits);
    let store = |store: &Registered| v1::Store {
        name: store.name.to_string(),
        r#type: store.store_type.into(),
        role: translate::role_word(store.role).into(),
        kind: translate::kind_word(store.kind).into(),
        number: Some(store.id.0.into()),
    };
    v1::Welcome {
        coord_id: identity.coord_id.0.to_be_bytes().to_vec().into(),
        log_id: identity.log_id.0.to_be_bytes().to_vec().into(),
        position: Some(translate::position_out(context.engine.position())),
        stores: context.engine.names().all().iter().map(store).collect(),
        limits: Some(v1::Limits {
            transaction_bytes: limits.transaction_bytes as u64,
            operations: limits.operations as u64,
            document_bytes: limits.document_bytes as u64,
        }),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

#[tonic::async_trait]
impl TransactionService for Transactions {
    type TransactStream = Writer;

    async fn transact(&self, request: Request<Streaming<v1::TransactRequests>>) -> Result<Response<Writer>, Status> {
        let caller = Caller::of(&request)?;
        let slots = (self.slot()?, caller.stream()?);
        let (reader, writer) = stream::open(self.0.clone(), caller, slots);
        tokio::spawn(reader.run(request.into_inner()));
        Ok(Response::new(writer))
    }

    type LeadStream = super::lead::Statements;

    async fn lead(&self, request: Request<Streaming<v1::LeadRequest>>) -> Result<Response<Self::LeadStream>, Status> {
        let caller = Caller::of(&request)?;
        let slots = (self.slot()?, caller.stream()?);
        super::lead::attend(&self.0, &caller, request.into_inner(), slots).await.map(Response::new)
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::Outcome>, Status> {
        let (engine, caller) = (&self.0.engine, Caller::of(&request)?);
        for branch in &request.get_ref().branches {
            caller.must_reach(Role::Client, &branch.store)?;
        }
        let mut translator = Translator::new(engine.names(), &self.0.configuration.limits, &self.0.configuration.timeouts).of(caller);
        let ticket = engine.ticket();
        let reply = match translator.commit(request.into_inner(), ticket, engine.position(), engine.now()) {
            Ok(event) => engine.call_as(ticket, event).await?,
            Err(reply) => reply,
        };
        Ok(Response::new(translate::outcome_out(reply, engine.names())))
    }

    async fn inquire(&self, request: Request<v1::InquireRequest>) -> Result<Response<v1::Outcome>, Status> {
        let (engine, caller) = (&self.0.engine, Caller::of(&request)?);
        let translator = Translator::new(engine.names(), &self.0.configuration.limits, &self.0.configuration.timeouts).of(caller);
        let ticket = engine.ticket();
        let event = translator.inquire(request.into_inner(), ticket, engine.position(), engine.now()).map_err(Status::invalid_argument)?;
        Ok(Response::new(translate::outcome_out(engine.call_as(ticket, event).await?, engine.names())))
    }

    async fn describe(&self, _: Request<v1::DescribeRequest>) -> Result<Response<v1::Welcome>, Status> {
        Ok(Response::new(welcome(&self.0)))
    }

    async fn query(&self, request: Request<v1::QueryRequest>) -> Result<Response<v1::QueryReply>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let store = self.read_store(&caller, &request.store)?;
        let parameters = translate::values(request.parameters).map_err(Status::invalid_argument)?;
        if request.sql.trim().is_empty() {
            return Err(Status::invalid_argument("sql is empty"));
        }
        self.at_least(store, &request.at_least, request.wait_ms).await?;
        let limits = self.read_limits(request.limit, 0, request.timeout_ms)?;
        let result = self.read(store, limits.timeout, move |reader| reader.query(&request.sql, &parameters, limits)).await?;
        self.sized(v1::QueryReply { result: Some(translate::result_out(&result)) })
    }

    async fn search(&self, request: Request<v1::SearchRequest>) -> Result<Response<v1::SearchReply>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let store = self.read_store(&caller, &request.store)?;
        self.at_least(store, &request.at_least, request.wait_ms).await?;
        let limits = self.read_limits(request.limit, request.offset, request.timeout_ms)?;
        let found = self.read(store, limits.timeout, move |reader| reader.search(&request.query, limits)).await?;
        self.sized(v1::SearchReply { total: found.total, documents: found.documents.into_iter().map(translate::document_out).collect() })
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetReply>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let store = self.read_store(&caller, &request.store)?;
        self.at_least(store, &request.at_least, request.wait_ms).await?;
        let document = self.read(store, self.0.configuration.timeouts.statement(0), move |reader| reader.get(&request.key)).await?;
        self.sized(v1::GetReply { document: document.map(translate::document_out) })
    }

    async fn migrate(&self, request: Request<v1::MigrateRequest>) -> Result<Response<v1::MigrateReply>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let store = self.store(&request.store)?;
        let busy = |_| Status::resource_exhausted("a backup is being made, and no schema may change meanwhile: try again when it is done");
        let changing = Arc::clone(&self.0.schemas).try_read_owned().map_err(busy)?;
        self.0.engine.note_order(&caller, "migrate", &store.name).await?;
        let (engine, id, name) = (self.0.engine.clone(), store.id, Arc::clone(&store.name));
        // It goes on though its caller has gone.
        let migrating = tokio::spawn(async move {
            let _changing = changing;
            let migrated = engine.migrate(id, request.script).await;
            if let Err(error) = &migrated {
                engine.note_failure(&caller, "migrate", &name, &error.to_string());
            }
            migrated
        });
        match migrating.await.map_err(|error| Status::internal(format!("the migration failed: {error}")))? {
            Ok(message) => Ok(Response::new(v1::MigrateReply { message })),
            Err(error) => Err(store_status(error)),
        }
    }
}

impl Transactions {
    /// A place among the open streams.
    fn slot(&self) -> Result<OwnedSemaphorePermit, Status> {
        let limit = self.0.configuration.limits.streams;
        let full = |_| Status::resource_exhausted(format!("there are {limit} open streams, as many as there may be (limits.streams)"));
        Arc::clone(&self.0.streams).try_acquire_owned().map_err(full)
    }

    /// A store that the caller may read.
    fn read_store(&self, caller: &Caller, name: &str) -> Result<&Registered, Status> {
        caller.must_reach(Role::Client, name)?;
        self.store(name)
    }

    fn store(&self, name: &str) -> Result<&Registered, Status> {
        let names = self.0.engine.names();
        names.named(name).ok_or_else(|| Status::not_found(format!("store: {}", translate::unknown_store(name, names))))
    }

    /// Waits until the store has followed as far as the token says, if there is one, and shows all that it showed before this start.
    async fn at_least(&self, store: &Registered, token: &[u8], wait_ms: u32) -> Result<(), Status> {
        let asked = match token {
            [] => None,
            token => Some(translate::token(token).map_err(Status::invalid_argument)?),
        };
        // In safe mode it is for a person to find out whether it can ever show that again.
        let safe = matches!(*self.0.engine.phase().borrow(), Phase::SafeMode(_));
        let before = self.0.engine.showed_before(store).filter(|_| !safe);
        match (asked, before) {
            (None, None) => Ok(()),
            (Some(asked), None) => self.followed(store, asked, wait_ms).await,
            // Who asks for more than it showed, or by a token that is none here, is answered by that.
            (Some(asked), Some(before)) if asked.log_id != before.log_id || asked.csn > before.csn => {
                self.followed(store, asked, wait_ms).await
            }
            (_, Some(before)) => {
                self.followed(store, before, wait_ms).await?;
                self.0.engine.shows_again(store.id);
                Ok(())
            }
        }
    }

    async fn followed(&self, store: &Registered, token: Token, wait_ms: u32) -> Result<(), Status> {
        let engine = &self.0.engine;
        let deadline = engine.now().after(self.0.configuration.timeouts.wait(wait_ms).as_micros() as u64);
        let participant: ParticipantId = store.id;
        match engine.call(|ticket| Event::AtLeast { ticket, participant, token, deadline }).await? {
            Reply::Reached(_) => Ok(()),
            Reply::Behind(at) => Err(behind(store, token.csn, at)),
            Reply::ForeignToken(ours) => {
                let sentence = format!("at_least is of another log, {}: this one is {ours}", token.log_id);
                Err(with_metadata(Status::failed_precondition(sentence), LOG_METADATA, &ours.to_string()))
            }
            Reply::Refused(refusal) => Err(Status::unavailable(refusal.message)),
            Reply::Unknown(sentence) => Err(Status::unavailable(sentence)),
            reply => panic!("the engine answered at_least with {reply:?}"),
        }
    }

    fn read_limits(&self, limit: u32, offset: u32, timeout_ms: u32) -> Result<ReadLimits, Status> {
        let most = self.0.configuration.limits.result_rows;
        if limit as usize > most {
            return Err(Status::invalid_argument(format!("limit is {limit}: at most {most} (limits.result_rows)")));
        }
        let rows = if limit == 0 { most } else { limit as usize };
        Ok(ReadLimits { rows, offset: offset as usize, timeout: self.0.configuration.timeouts.statement(timeout_ms) })
    }

    /// Reads on a thread that may block; as many at once as `limits.reads`. A read waits no longer for its turn than it may take.
    async fn read<T: Send + 'static>(
        &self,
        store: &Registered,
        patience: Duration,
        read: impl FnOnce(&dyn Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Status> {
        let remote = || Status::failed_precondition(format!("store `{}` is remote: read it at its own address", store.name));
        let reader = self.0.engine.reader(store.id).ok_or_else(remote)?;
        let busy = |_| {
            let reads = self.0.configuration.limits.reads;
            let sentence = format!("{reads} reads (limits.reads) were under way for all of {} ms; ask again", patience.as_millis());
            Status::resource_exhausted(sentence)
        };
        let slot = tokio::time::timeout(patience, Arc::clone(&self.0.reads).acquire_owned()).await.map_err(busy)?;
        let slot = slot.map_err(|_| Status::unavailable("the daemon is stopping"))?;
        let run = move || {
            let _slot = slot;
            read(&*reader)
        };
        tokio::task::spawn_blocking(run).await.map_err(|error| Status::internal(format!("the read failed: {error}")))?.map_err(store_status)
    }

    fn sized<T: Message>(&self, reply: T) -> Result<Response<T>, Status> {
        let (size, limit) = (reply.encoded_len(), self.0.configuration.limits.result_bytes);
        if size > limit {
            return Err(Status::out_of_range(format!("the result has {size} bytes: at most {limit} (limits.result_bytes); ask for less")));
        }
        Ok(Response::new(reply))
    }
}

fn behind(store: &Registered, wanted: Csn, at: Csn) -> Status {
    let sentence =
        format!("store `{}` is behind: it has followed up to CSN {at}, and is to be read from {wanted} on; ask again", store.name);
    with_metadata(Status::new(Code::DeadlineExceeded, sentence), BEHIND_METADATA, &at.to_u64().to_string())
}

fn with_metadata(mut status: Status, key: &'static str, value: &str) -> Status {
    if let Ok(value) = MetadataValue::try_from(value) {
        status.metadata_mut().insert(key, value);
    }
    status
}

pub(super) fn store_status(error: StoreError) -> Status {
    match error {
        StoreError::Invalid(sentence) => Status::invalid_argument(sentence),
        StoreError::Timeout(sentence) => Status::deadline_exceeded(sentence),
        StoreError::Broken(sentence) => Status::unavailable(sentence),
        StoreError::Refused(sentence) => Status::failed_precondition(sentence),
    }
}
