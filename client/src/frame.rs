//! A frame of requests as it goes out: on the wire a `lockstep.v1.TransactRequests`, in which commits are encoded already. The transport
//! takes what it sends; a request that is kept to be sent again is encoded where it lies, and not copied field by field before.

use crate::credentials::AuthorizedChannel;
use crate::link::REPLY_BYTES;
use bytes::Bytes;
use lockstep_proto::v1;
use prost::{Message, Oneof};
use tokio_stream::Stream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// The frame.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Frame {
    #[prost(message, repeated, tag = "1")]
    pub requests: Vec<Framed>,
}

/// A `lockstep.v1.TransactRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Framed {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(oneof = "FramedRequest", tags = "2, 3, 4, 5, 6")]
    pub request: Option<FramedRequest>,
}

/// What is asked.
#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum FramedRequest {
    /// A `lockstep.v1.CommitRequest`, encoded.
    #[prost(bytes = "bytes", tag = "2")]
    Commit(Bytes),
    #[prost(message, tag = "3")]
    Inquire(v1::InquireRequest),
    #[prost(message, tag = "4")]
    Acknowledge(v1::TransactionId),
    #[prost(message, tag = "5")]
    Begin(v1::BeginRequest),
    #[prost(message, tag = "6")]
    Rollback(v1::RollbackRequest),
}

/// `TransactionService.Transact`, of frames.
pub(crate) async fn transact(
    channel: AuthorizedChannel,
    frames: impl Stream<Item = Frame> + Send + 'static,
) -> Result<Streaming<v1::TransactReplies>, Status> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(REPLY_BYTES);
    grpc.ready().await.map_err(|error| Status::unavailable(format!("the connection is not ready: {error}")))?;
    let path = PathAndQuery::from_static("/lockstep.v1.TransactionService/Transact");
    Ok(grpc.streaming(Request::new(frames), path, ProstCodec::default()).await?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::transact_request::Request as Wire;

    #[test]
    fn a_frame_is_what_the_coordinator_takes_it_for() {
        let key = Some(v1::RequestKey { key: Bytes::from_static(b"key"), attempt: 2 });
        let position = Some(v1::Position { epoch: 3, n: 4 });
        let operation = v1::operation::Operation::Put(v1::Put { key: "k".into(), document: "{}".into(), condition: None });
        let operations = vec![v1::Operation { operation: Some(operation) }];
        let branches = vec![v1::Branch { store: "index".into(), operations }];
        let commit = v1::CommitRequest { key: key.clone(), position, branches, wait_ms: 7, ..v1::CommitRequest::default() };
        let inquire = v1::InquireRequest { key: key.clone(), position, wait: 1, wait_ms: 2 };
        let begin = v1::BeginRequest { key: key.clone(), position, led_by: "db".into(), timeout_ms: 5 };
        let rollback = v1::RollbackRequest { key, position };
        let acknowledge = v1::TransactionId { epoch: 1, n: 2, leader: 3 };
        let both = [
            (FramedRequest::Commit(commit.encode_to_vec().into()), Wire::Commit(commit)),
            (FramedRequest::Inquire(inquire.clone()), Wire::Inquire(inquire)),
            (FramedRequest::Begin(begin.clone()), Wire::Begin(begin)),
            (FramedRequest::Rollback(rollback.clone()), Wire::Rollback(rollback)),
            (FramedRequest::Acknowledge(acknowledge), Wire::Acknowledge(acknowledge)),
        ];
        let (framed, wire): (Vec<_>, Vec<_>) = both
            .into_iter()
            .zip(1..)
            .map(|((framed, wire), id)| (Framed { id, request: Some(framed) }, v1::TransactRequest { id, request: Some(wire) }))
            .unzip();
        let bytes = Frame { requests: framed }.encode_to_vec();
        assert_eq!(v1::TransactRequests::decode(&*bytes).unwrap(), v1::TransactRequests { requests: wire });
    }
}
