//! `Lead`: between an application whose own transaction is to decide, and its store.

use super::Context;
use super::stream::Slots;
use super::translate;
use crate::engine_handle::Question;
use crate::security::{Caller, Role};
use lockstep_core::Decider;
use lockstep_participants::applications::{Attendance, Word};
use lockstep_proto::v1;
use lockstep_proto::v1::lead_request;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// The answers of one stream.
pub type Statements = ReceiverStream<Result<v1::LeadReply, Status>>;

/// How long the first message may take.
const FIRST: Duration = Duration::from_secs(5);

/// Notes that an application attends, until its stream ends.
pub async fn attend(
    context: &Context,
    caller: &Caller,
    mut requests: Streaming<v1::LeadRequest>,
    slots: Slots,
) -> Result<Statements, Status> {
    let invalid = |sentence: &str| Err(Status::invalid_argument(sentence));
    let Ok(first) = tokio::time::timeout(FIRST, requests.message()).await else {
        return Err(Status::deadline_exceeded("the first message, attend, did not come"));
    };
    let Some(lead_request::Request::Attend(attend)) = first?.and_then(|first| first.request) else {
        return invalid("the first message of Lead has to be attend");
    };
    let names = context.engine.names();
    caller.must_reach(Role::Client, &attend.store)?;
    let store = names
        .named(&attend.store)
        .ok_or_else(|| Status::not_found(format!("attend.store: {}", translate::unknown_store(&attend.store, names))))?;
    let Some(txid) = attend.txid else { return invalid("attend.txid is missing") };
    let txid = translate::txid(txid).map_err(|what| Status::invalid_argument(format!("attend.txid{what}")))?;
    if let Some(owner) = caller.scope()
        && !context.engine.ask(|answer| Question::Owns(owner, txid, answer)).await?
    {
        return Err(Status::permission_denied(format!(
            "attend.txid: {txid} is not a transaction of principal `{}`, or not under way: only its own may be led",
            caller.who()
        )));
    }
    let Some(applications) = context.engine.applications(store.id).filter(|_| txid.decider == Decider::Leader(store.id)) else {
        return Err(Status::failed_precondition(format!(
            "no application's own transaction can decide {txid} at store `{}`: that needs a PostgreSQL database in mode \"database-led\", \
             named at Begin (led_by)",
            store.name
        )));
    };
    let Some(attendance) = applications.attend(txid) else {
        return Err(Status::already_exists(format!("an application attends for {txid} already")));
    };
    let (replies, statements) = mpsc::channel(2);
    replies.try_send(Ok(v1::LeadReply::default())).expect("there is room for two");
    tokio::spawn(async move {
        let _slots = slots;
        between(attendance, requests, replies).await;
    });
    Ok(ReceiverStream::new(statements))
}

/// Carries the statement there and the word back. Whichever end goes first, the other is told by the end of this.
async fn between(
    mut attendance: Attendance,
    mut requests: Streaming<v1::LeadRequest>,
    replies: mpsc::Sender<Result<v1::LeadReply, Status>>,
) {
    let statement = tokio::select! {
        statement = attendance.statement() => statement,
        // It has nothing to say before it is asked.
        _ = requests.message() => None,
    };
    let Some(statement) = statement else { return };
    if replies.send(Ok(v1::LeadReply { statement })).await.is_err() {
        return;
    }
    if let Ok(Some(v1::LeadRequest { request: Some(lead_request::Request::Result(result)) })) = requests.message().await {
        attendance.say(match result.committed {
            true => Word::Committed,
            false => Word::RolledBack(result.message),
        });
    }
}
