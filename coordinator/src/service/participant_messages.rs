//! The protocol between coordinator and participant: wire (`participant.proto`) ↔ `lockstep_core::message`, one to one. An error names
//! the field; a peer that sends such a message loses its session.

use super::translate::{
    OWNED_KEY_BYTES, condition_out, csn, epoch, participant, position, position_out, reason, reason_out, request_key, request_key_out,
    result_out, txid, txid_out, value, value_out,
};
use lockstep_core::{
    Abilities, Ballot, BranchRedo, CommitEntry, Condition, CoordId, Csn, Decided, EntryPayload, FromParticipant, GroupRedo, Hello,
    KeyWrite, Kind, Marker, MarkerEvidence, Operation, Owner, ParticipantId, Position, Progress, Refusal, Results, Settle, Starts,
    StatementResult, ToParticipant, TraceContext, Txid, Vote, Work,
};
use lockstep_proto::v1;
use v1::from_participant_message::Message as From;
use v1::to_participant_message::Message as To;

/// What is wrong with a message; begins with the field's name.
pub type Malformed = String;

/// Coordinator to participant, onto the wire.
pub fn to_participant_out(message: &ToParticipant) -> v1::ToParticipantMessage {
    let message = match message {
        ToParticipant::Welcome { owner, you, starts } => To::Open(open_out(owner, *you, starts)),
        ToParticipant::Reserve(decided) => To::Reserve(decided_out(decided)),
        ToParticipant::Open => To::Ready(v1::Ready {}),
        ToParticipant::Prepare(work) => To::Prepare(work_out(work)),
        ToParticipant::Commit(decided) => To::Commit(decided_out(decided)),
        ToParticipant::Abort(txid) => To::Abort(txid_out(*txid)),
        ToParticipant::Lead(markers) => To::Lead(v1::Lead { markers: markers.iter().map(marker_out).collect() }),
        ToParticipant::Settle(settle) => To::Settle(settle_out(settle)),
        ToParticipant::Scan(above) => To::Scan(v1::Scan { above_csn: above.to_u64() }),
        ToParticipant::Closed(csn) => To::Closed(v1::Closed { csn: csn.to_u64() }),
        ToParticipant::Acked(csn) => To::Acked(v1::Acked { csn: csn.to_u64() }),
        ToParticipant::Floor(position) => To::Floor(position_out(*position)),
        ToParticipant::Resolve { txid, commit } => To::Resolve(v1::Resolve { txid: Some(txid_out(*txid)), commit: *commit }),
        ToParticipant::Skip(decided) => To::Skip(decided_out(decided)),
        ToParticipant::Close => To::Close(v1::Close {}),
    };
    v1::ToParticipantMessage { message: Some(message) }
}

/// Coordinator to participant, from the wire.
pub fn to_participant(message: v1::ToParticipantMessage) -> Result<ToParticipant, Malformed> {
    Ok(match message.message.ok_or("message: none, or one that this version does not know")? {
        To::Open(open) => welcome(open)?,
        To::Reserve(wire) => ToParticipant::Reserve(decided(wire)?),
        To::Ready(_) => ToParticipant::Open,
        To::Prepare(wire) => ToParticipant::Prepare(work(wire)?),
        To::Commit(wire) => ToParticipant::Commit(decided(wire)?),
        To::Abort(wire) => ToParticipant::Abort(id(Some(wire), "abort")?),
        To::Lead(lead) => ToParticipant::Lead(all(lead.markers, marker)?),
        To::Settle(wire) => ToParticipant::Settle(settle(wire)?),
        To::Scan(scan) => ToParticipant::Scan(place(scan.above_csn, "scan.above_csn")?),
        To::Closed(closed) => ToParticipant::Closed(place(closed.csn, "closed.csn")?),
        To::Acked(acked) => ToParticipant::Acked(place(acked.csn, "acked.csn")?),
        To::Floor(wire) => ToParticipant::Floor(begin(Some(wire), "floor")?),
        To::Resolve(wire) => ToParticipant::Resolve { txid: id(wire.txid, "resolve.txid")?, commit: wire.commit },
        To::Skip(wire) => ToParticipant::Skip(decided(wire)?),
        To::Close(_) => ToParticipant::Close,
    })
}

fn open_out(owner: &Owner, you: ParticipantId, starts: &Starts) -> v1::Open {
    let known = starts.known.iter().map(|(epoch, incarnation)| v1::Start { epoch: epoch.0, incarnation: *incarnation });
    v1::Open { owner: Some(owner_out(owner)), you: you.0.into(), starts: known.collect(), lost_below: starts.lost_below.0 }
}

fn welcome(open: v1::Open) -> Result<ToParticipant, Malformed> {
    let start = |start: v1::Start| Ok((epoch(start.epoch).map_err(|e| format!("open.starts: {e}"))?, start.incarnation));
    let known = open.starts.into_iter().map(start).collect::<Result<_, Malformed>>()?;
    let starts = Starts { known, lost_below: epoch(open.lost_below).map_err(|e| format!("open.lost_below: {e}"))? };
    Ok(ToParticipant::Welcome { owner: owner(need(open.owner, "open.owner")?)?, you: number(open.you, "open.you")?, starts })
}

/// Participant to coordinator, onto the wire.
pub fn from_participant_out(message: &FromParticipant) -> v1::FromParticipantMessage {
    let message = match message {
        FromParticipant::Hello(hello) => From::Hello(hello_out(hello)),
        FromParticipant::Refused(owner) => From::Refused(owner_out(owner)),
        FromParticipant::Ballot(ballot) => From::Ballot(ballot_out(ballot)),
        FromParticipant::Committed(txid) => From::Committed(txid_out(*txid)),
        FromParticipant::NotPrepared(txid, evidence) => {
            From::NotPrepared(v1::NotPrepared { txid: Some(txid_out(*txid)), evidence: evidence_out(*evidence).into() })
        }
        FromParticipant::Progress(progress) => From::Progress(progress_out(*progress)),
        FromParticipant::Stuck(csn, why) => From::Stuck(v1::Stuck { csn: csn.to_u64(), why: why.clone() }),
        FromParticipant::Inquiry(txids) => From::Inquiry(ids_out(txids)),
        FromParticipant::Led(txids) => From::Led(ids_out(txids)),
        FromParticipant::NotLed(txids, refusal) => {
            From::NotLed(v1::NotLed { txids: txids.iter().copied().map(txid_out).collect(), refusal: Some(refusal_out(refusal)) })
        }
        FromParticipant::Settled(what, marker) => {
            From::Settled(v1::Settled { what: Some(settle_out(what)), marker: marker.as_deref().map(marker_out) })
        }
        FromParticipant::Markers { markers, last } => {
            From::Markers(v1::Markers { markers: markers.iter().map(marker_out).collect(), last: *last })
        }
        FromParticipant::Resolved { txid, commit } => From::Resolved(v1::Resolve { txid: Some(txid_out(*txid)), commit: *commit }),
    };
    v1::FromParticipantMessage { message: Some(message) }
}

/// Participant to coordinator, from the wire.
pub fn from_participant(message: v1::FromParticipantMessage) -> Result<FromParticipant, Malformed> {
    Ok(match message.message.ok_or("message: none, or one that this version does not know")? {
        From::Attend(_) => return Err("attend: only as the stream's first message".into()),
        From::Hello(wire) => FromParticipant::Hello(hello(wire)?),
        From::Refused(wire) => FromParticipant::Refused(owner(wire)?),
        From::Ballot(wire) => FromParticipant::Ballot(ballot(wire)?),
        From::Committed(wire) => FromParticipant::Committed(id(Some(wire), "committed")?),
        From::NotPrepared(wire) => {
            let evidence = evidence(wire.evidence)?;
            FromParticipant::NotPrepared(id(wire.txid, "not_prepared.txid")?, evidence)
        }
        From::Progress(wire) => FromParticipant::Progress(progress(wire)?),
        From::Stuck(stuck) => FromParticipant::Stuck(place(stuck.csn, "stuck.csn")?, stuck.why),
        From::Inquiry(wire) => FromParticipant::Inquiry(ids(wire.txids, "inquiry.txids")?),
        From::Led(wire) => FromParticipant::Led(ids(wire.txids, "led.txids")?),
        From::NotLed(wire) => FromParticipant::NotLed(ids(wire.txids, "not_led.txids")?, refusal(need(wire.refusal, "not_led.refusal")?)?),
        From::Settled(wire) => {
            let marker = wire.marker.map(marker).transpose()?.map(Box::new);
            FromParticipant::Settled(settle(need(wire.what, "settled.what")?)?, marker)
        }
        From::Markers(wire) => FromParticipant::Markers { markers: all(wire.markers, marker)?, last: wire.last },
        From::Resolved(wire) => FromParticipant::Resolved { txid: id(wire.txid, "resolved.txid")?, commit: wire.commit },
    })
}

fn need<T>(field: Option<T>, name: &str) -> Result<T, Malformed> {
    field.ok_or_else(|| format!("{name} is missing"))
}

fn all<A, B>(wires: Vec<A>, translate: impl Fn(A) -> Result<B, Malformed>) -> Result<Vec<B>, Malformed> {
    wires.into_iter().map(translate).collect()
}

fn id(wire: Option<v1::TransactionId>, name: &str) -> Result<Txid, Malformed> {
    txid(need(wire, name)?).map_err(|what| format!("{name}{what}"))
}

fn ids(wires: Vec<v1::TransactionId>, name: &str) -> Result<Vec<Txid>, Malformed> {
    all(wires, |wire| id(Some(wire), name))
}

fn ids_out(txids: &[Txid]) -> v1::TransactionIds {
    v1::TransactionIds { txids: txids.iter().copied().map(txid_out).collect() }
}

fn place(raw: u64, name: &str) -> Result<Csn, Malformed> {
    csn(raw).map_err(|what| format!("{name}{what}"))
}

fn number(raw: u32, name: &str) -> Result<ParticipantId, Malformed> {
    participant(raw).map_err(|what| format!("{name}{what}"))
}

fn begin(wire: Option<v1::Position>, name: &str) -> Result<Position, Malformed> {
    position(need(wire, name)?).map_err(|what| format!("{name}{what}"))
}

fn owner(wire: v1::Owner) -> Result<Owner, Malformed> {
    let coord_id: [u8; 16] = wire.coord_id[..].try_into().map_err(|_| format!("owner.coord_id has {} bytes: 16", wire.coord_id.len()))?;
    let epoch = epoch(wire.epoch).map_err(|what| format!("owner.epoch{what}"))?;
    Ok(Owner { coord_id: CoordId(u128::from_be_bytes(coord_id)), epoch, incarnation: wire.incarnation })
}

fn owner_out(owner: &Owner) -> v1::Owner {
    v1::Owner { coord_id: owner.coord_id.0.to_be_bytes().to_vec().into(), epoch: owner.epoch.0, incarnation: owner.incarnation }
}

fn hello(wire: v1::Hello) -> Result<Hello, Malformed> {
    Ok(Hello {
        kind: kind(wire.kind)?,
        owner: wire.owner.map(owner).transpose()?,
        progress: progress(need(wire.progress, "hello.progress")?)?,
        highest: place(wire.highest_csn, "hello.highest_csn")?,
        prepared: ids(wire.prepared, "hello.prepared")?,
        heuristics: all(wire.heuristics, |wire| Ok((id(wire.txid, "hello.heuristics.txid")?, wire.commit)))?,
        floor: wire.floor.map_or(Ok(Position::default()), |floor| position(floor).map_err(|what| format!("hello.floor{what}")))?,
        exclusive: wire.exclusive,
        highest_epoch: epoch(wire.highest_epoch).map_err(|what| format!("hello.highest_epoch{what}"))?,
        abilities: match kind(wire.kind)? {
            Kind::Preparing => Abilities { leads: wire.leads, keeps_acked: wire.keeps_acked, shares: wire.shares },
            Kind::Redo | Kind::Serial | Kind::Leader => Abilities::default(),
        },
    })
}

fn hello_out(hello: &Hello) -> v1::Hello {
    let heuristic = |(txid, commit): &(Txid, bool)| v1::Resolve { txid: Some(txid_out(*txid)), commit: *commit };
    v1::Hello {
        kind: kind_out(hello.kind).into(),
        owner: hello.owner.as_ref().map(owner_out),
        progress: Some(progress_out(hello.progress)),
        highest_csn: hello.highest.to_u64(),
        prepared: hello.prepared.iter().copied().map(txid_out).collect(),
        heuristics: hello.heuristics.iter().map(heuristic).collect(),
        floor: Some(position_out(hello.floor)),
        exclusive: hello.exclusive,
        highest_epoch: hello.highest_epoch.0,
        leads: hello.abilities.leads,
        keeps_acked: hello.abilities.keeps_acked,
        shares: hello.abilities.shares,
    }
}

fn kind(raw: i32) -> Result<Kind, Malformed> {
    match v1::Kind::try_from(raw) {
        Ok(v1::Kind::Preparing) => Ok(Kind::Preparing),
        Ok(v1::Kind::Redo) => Ok(Kind::Redo),
        Ok(v1::Kind::Serial) => Ok(Kind::Serial),
        Ok(v1::Kind::Leader) => Ok(Kind::Leader),
        Ok(v1::Kind::Unspecified) | Err(_) => Err(format!("hello.kind is {raw}: none of preparing, redo, serial, leader")),
    }
}

fn kind_out(kind: Kind) -> v1::Kind {
    match kind {
        Kind::Preparing => v1::Kind::Preparing,
        Kind::Redo => v1::Kind::Redo,
        Kind::Serial => v1::Kind::Serial,
        Kind::Leader => v1::Kind::Leader,
    }
}

fn progress(wire: v1::Progress) -> Result<Progress, Malformed> {
    let progress =
        Progress { applied: place(wire.applied_csn, "progress.applied_csn")?, durable: place(wire.durable_csn, "progress.durable_csn")? };
    if progress.durable > progress.applied {
        return Err(format!("progress.durable_csn is {}: above applied_csn, {}", progress.durable, progress.applied));
    }
    Ok(progress)
}

fn progress_out(progress: Progress) -> v1::Progress {
    v1::Progress { applied_csn: progress.applied.to_u64(), durable_csn: progress.durable.to_u64() }
}

fn evidence(raw: i32) -> Result<MarkerEvidence, Malformed> {
    match v1::MarkerEvidence::try_from(raw) {
        Ok(v1::MarkerEvidence::Committed) => Ok(MarkerEvidence::Committed),
        Ok(v1::MarkerEvidence::RolledBack) => Ok(MarkerEvidence::RolledBack),
        Ok(v1::MarkerEvidence::Unknowable) => Ok(MarkerEvidence::Unknowable),
        Ok(v1::MarkerEvidence::Unspecified) | Err(_) => {
            Err(format!("not_prepared.evidence is {raw}: none of committed, rolled back, unknowable"))
        }
    }
}

fn evidence_out(evidence: MarkerEvidence) -> v1::MarkerEvidence {
    match evidence {
        MarkerEvidence::Committed => v1::MarkerEvidence::Committed,
        MarkerEvidence::RolledBack => v1::MarkerEvidence::RolledBack,
        MarkerEvidence::Unknowable => v1::MarkerEvidence::Unknowable,
    }
}

fn work(wire: v1::Work) -> Result<Work, Malformed> {
    Ok(Work {
        txid: id(wire.txid, "prepare.txid")?,
        operations: all(wire.operations, operation)?.into(),
        timeout: wire.timeout_us,
        trace: TraceContext::parse(&wire.traceparent),
        shares: wire.shares,
    })
}

fn work_out(work: &Work) -> v1::Work {
    v1::Work {
        txid: Some(txid_out(work.txid)),
        operations: work.operations.iter().map(operation_out).collect(),
        timeout_us: work.timeout,
        traceparent: traceparent(work.trace),
        shares: work.shares,
    }
}

/// Without a client's limits: the coordinator has checked them.
fn operation(wire: v1::Operation) -> Result<Operation, Malformed> {
    use v1::operation::Operation as Wire;
    Ok(match need(wire.operation, "prepare.operations")? {
        Wire::Statement(statement) => Operation::Statement {
            sql: statement.sql,
            parameters: all(statement.parameters, |wire| {
                value(wire).ok_or_else(|| "prepare.operations.statement.parameters has no value".to_string())
            })?,
            expect_rows: statement.expect_rows,
        },
        Wire::Put(put) => Operation::Put { key: put.key, document: put.document, condition: put.condition.map(condition).transpose()? },
        Wire::Delete(delete) => Operation::Delete { key: delete.key, condition: delete.condition.map(condition).transpose()? },
        Wire::Enlisted(enlisted) => Operation::Enlisted { xid: enlisted.xid },
        Wire::Update(_) => return Err("prepare.operations.update: never sent".into()),
    })
}

fn operation_out(operation: &Operation) -> v1::Operation {
    use v1::operation::Operation as Wire;
    let operation = match operation {
        Operation::Statement { sql, parameters, expect_rows } => Wire::Statement(v1::Statement {
            sql: sql.clone(),
            parameters: parameters.iter().map(value_out).collect(),
            expect_rows: *expect_rows,
        }),
        Operation::Put { key, document, condition } => {
            Wire::Put(v1::Put { key: key.clone(), document: document.clone(), condition: condition.map(condition_out) })
        }
        Operation::Delete { key, condition } => Wire::Delete(v1::Delete { key: key.clone(), condition: condition.map(condition_out) }),
        Operation::Enlisted { xid } => Wire::Enlisted(v1::Enlisted { xid: *xid }),
    };
    v1::Operation { operation: Some(operation) }
}

fn condition(wire: v1::Condition) -> Result<Condition, Malformed> {
    use v1::condition::Condition as Wire;
    match need(wire.condition, "condition")? {
        Wire::IfCsn(raw) => place(raw, "condition.if_csn").map(Condition::Csn),
        Wire::IfAbsent(true) => Ok(Condition::Absent),
        Wire::IfAbsent(false) => Err("condition.if_absent is false: never sent".into()),
    }
}

fn ballot(wire: v1::Ballot) -> Result<Ballot, Malformed> {
    use v1::branch_vote::Vote as Wire;
    let vote = |wire: v1::BranchVote| {
        let vote = match need(wire.vote, "ballot.votes.vote")? {
            Wire::Prepared(yes) => Vote::Prepared(results(yes.results)?),
            Wire::Redo(yes) => Vote::Redo(yes.redo, results(yes.results)?),
            Wire::InGroup(yes) => Vote::InGroup(results(yes.results)?),
            Wire::Ready(yes) => Vote::Ready(results(yes.results)?),
            Wire::ReadOnly(yes) => Vote::ReadOnly(results(yes.results)?),
            Wire::No(no) => Vote::No(refusal(no)?),
        };
        Ok((id(wire.txid, "ballot.votes.txid")?, vote))
    };
    Ok(Ballot { votes: all(wire.votes, vote)?, group_redo: wire.group_redo })
}

fn ballot_out(ballot: &Ballot) -> v1::Ballot {
    use v1::branch_vote::Vote as Wire;
    let vote = |(txid, vote): &(Txid, Vote)| {
        let vote = match vote {
            Vote::Prepared(results) => Wire::Prepared(results_out(results)),
            Vote::Redo(redo, results) => Wire::Redo(v1::VoteRedo { redo: redo.clone(), results: results_out(results).results }),
            Vote::InGroup(results) => Wire::InGroup(results_out(results)),
            Vote::Ready(results) => Wire::Ready(results_out(results)),
            Vote::ReadOnly(results) => Wire::ReadOnly(results_out(results)),
            Vote::No(refusal) => Wire::No(refusal_out(refusal)),
        };
        v1::BranchVote { txid: Some(txid_out(*txid)), vote: Some(vote) }
    };
    v1::Ballot { votes: ballot.votes.iter().map(vote).collect(), group_redo: ballot.group_redo.clone() }
}

fn results(wires: Vec<v1::StatementResult>) -> Result<Results, Malformed> {
    let row = |row: v1::Row| all(row.values, |wire| value(wire).ok_or_else(|| "results.rows.values has no value".to_string()));
    let result = |wire: v1::StatementResult| {
        Ok(StatementResult { rows_affected: wire.rows_affected, columns: wire.columns, rows: all(wire.rows, row)? })
    };
    all(wires, result).map(Results::from)
}

fn results_out(results: &Results) -> v1::VoteResults {
    v1::VoteResults { results: results.iter().map(result_out).collect() }
}

fn refusal(wire: v1::Refusal) -> Result<Refusal, Malformed> {
    let kind = reason(wire.kind).ok_or_else(|| format!("refusal.kind is {}: no reason", wire.kind))?;
    Ok(Refusal::new(kind, wire.message))
}

fn refusal_out(refusal: &Refusal) -> v1::Refusal {
    v1::Refusal { kind: reason_out(refusal.kind).into(), message: refusal.message.clone() }
}

fn decided(wire: v1::Decided) -> Result<Decided, Malformed> {
    let trace = TraceContext::parse(&wire.traceparent);
    Ok(Decided { csn: place(wire.csn, "decided.csn")?, txids: ids(wire.txids, "decided.txids")?, redo: wire.redo, trace })
}

fn decided_out(decided: &Decided) -> v1::Decided {
    v1::Decided {
        csn: decided.csn.to_u64(),
        txids: decided.txids.iter().copied().map(txid_out).collect(),
        redo: decided.redo.clone(),
        traceparent: traceparent(decided.trace),
    }
}

fn settle(wire: v1::Settle) -> Result<Settle, Malformed> {
    use v1::settle::What;
    Ok(match need(wire.what, "settle.what")? {
        What::Txid(wire) => Settle::Txid(id(Some(wire), "settle.txid")?),
        What::Key(wire) => Settle::Key(request_key(wire.key, OWNED_KEY_BYTES)?, begin(wire.position, "settle.key.position")?),
    })
}

fn settle_out(settle: &Settle) -> v1::Settle {
    use v1::settle::What;
    let what = match settle {
        Settle::Txid(txid) => What::Txid(txid_out(*txid)),
        Settle::Key(key, position) => What::Key(v1::SettleKey { key: Some(request_key_out(key)), position: Some(position_out(*position)) }),
    };
    v1::Settle { what: Some(what) }
}

fn marker(wire: v1::Marker) -> Result<Marker, Malformed> {
    let entry = CommitEntry {
        txid: id(wire.txid, "marker.txid")?,
        csn: place(wire.csn, "marker.csn")?,
        key: request_key(wire.key, OWNED_KEY_BYTES)?,
        request_hash: wire.request_hash,
        at_ms: wire.at_ms,
        branches: all(wire.branches, |raw| number(raw, "marker.branches"))?,
    };
    let payload = EntryPayload {
        results: all(wire.results, |wire| Ok((number(wire.participant, "marker.results.participant")?, results(wire.results)?)))?,
        redos: all(wire.redos, |wire| {
            let keys = wire.keys.into_iter().map(|write| KeyWrite { key: write.key.into(), delete: write.delete }).collect();
            Ok(BranchRedo { participant: number(wire.participant, "marker.redos.participant")?, redo: wire.redo, keys })
        })?,
    };
    let groups =
        all(wire.groups, |wire| Ok(GroupRedo { participant: number(wire.participant, "marker.groups.participant")?, redo: wire.redo }))?;
    Ok(Marker { entry, payload, groups, trace: TraceContext::parse(&wire.traceparent) })
}

/// Empty if there is none.
fn traceparent(context: Option<TraceContext>) -> String {
    context.and_then(|context| context.traceparent()).unwrap_or_default()
}

fn marker_out(marker: &Marker) -> v1::Marker {
    let Marker { entry, payload, groups, trace } = marker;
    // Where the trace begins with the transaction, its span is the parent of what a later start does.
    let within = |context: TraceContext| match context.parent {
        Some(_) => context,
        None => context.within(context.transaction_span(entry.txid)),
    };
    let key = |write: &KeyWrite| v1::KeyWrite { key: write.key.to_string(), delete: write.delete };
    let redo = |redo: &BranchRedo| v1::NumberedRedo {
        participant: redo.participant.0.into(),
        redo: redo.redo.clone(),
        keys: redo.keys.iter().map(key).collect(),
    };
    v1::Marker {
        txid: Some(txid_out(entry.txid)),
        csn: entry.csn.to_u64(),
        key: Some(request_key_out(&entry.key)),
        request_hash: entry.request_hash,
        at_ms: entry.at_ms,
        branches: entry.branches.iter().map(|participant| participant.0.into()).collect(),
        results: payload
            .results
            .iter()
            .map(|(participant, results)| v1::NumberedResults { participant: participant.0.into(), results: results_out(results).results })
            .collect(),
        redos: payload.redos.iter().map(redo).collect(),
        groups: groups
            .iter()
            .map(|group| v1::NumberedRedo { participant: group.participant.0.into(), redo: group.redo.clone(), keys: vec![] })
            .collect(),
        traceparent: traceparent(trace.map(within)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use lockstep_core::{Decider, Epoch, RefusalKind, RequestKey, Value};
    use prost::Message as _;

    const TXID: Txid = Txid { epoch: Epoch(3), n: 17, decider: Decider::Leader(ParticipantId(2)) };
    const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const OWNER: Owner = Owner { coord_id: CoordId(1 << 127 | 5), epoch: Epoch(3), incarnation: u64::MAX };

    fn a_marker() -> Marker {
        let result = StatementResult {
            rows_affected: 1,
            columns: vec!["a".into()],
            rows: vec![vec![
                Value::Null,
                Value::Integer(i64::MIN),
                Value::Real(0.5),
                Value::Text("t".into()),
                Value::Blob(Bytes::from_static(b"b")),
                Value::Boolean(true),
            ]],
        };
        let key = RequestKey { key: b"key"[..].into(), attempt: 2 };
        Marker {
            entry: CommitEntry {
                txid: TXID,
                csn: Csn::new(Epoch(3), 4),
                key,
                request_hash: u64::MAX,
                at_ms: 9,
                branches: vec![ParticipantId(1)],
            },
            payload: EntryPayload {
                results: vec![(ParticipantId(2), vec![result].into())],
                redos: vec![BranchRedo {
                    participant: ParticipantId(1),
                    redo: Bytes::from_static(b"redo"),
                    keys: vec![KeyWrite { key: "k".into(), delete: true }],
                }],
            },
            groups: vec![GroupRedo { participant: ParticipantId(3), redo: Bytes::from_static(b"group") }],
            trace: TraceContext::parse(TRACEPARENT),
        }
    }

    #[test]
    fn every_message_to_a_participant_comes_back() {
        let decided = Decided {
            csn: Csn::new(Epoch(3), 4),
            txids: vec![TXID],
            redo: Bytes::from_static(b"redo"),
            trace: TraceContext::parse(TRACEPARENT),
        };
        let operations = vec![
            Operation::Statement { sql: "x".into(), parameters: vec![Value::Integer(1)], expect_rows: Some(0) },
            Operation::Put { key: "k".into(), document: "{}".into(), condition: Some(Condition::Absent) },
            Operation::Delete { key: "k".into(), condition: Some(Condition::Csn(Csn::new(Epoch(1), 1))) },
            Operation::Enlisted { xid: u64::MAX },
        ];
        let key = Settle::Key(a_marker().entry.key, Position { epoch: Epoch(2), n: 8 });
        for message in [
            ToParticipant::Welcome {
                owner: OWNER,
                you: ParticipantId(7),
                starts: Starts { known: [(Epoch(2), 9)].into(), lost_below: Epoch(1) },
            },
            ToParticipant::Reserve(decided.clone()),
            ToParticipant::Open,
            ToParticipant::Prepare(Work {
                txid: TXID,
                operations: operations.into(),
                timeout: 5,
                trace: TraceContext::parse(TRACEPARENT),
                shares: true,
            }),
            ToParticipant::Commit(decided.clone()),
            ToParticipant::Abort(TXID),
            ToParticipant::Lead(vec![a_marker()]),
            ToParticipant::Settle(Settle::Txid(TXID)),
            ToParticipant::Settle(key),
            ToParticipant::Scan(Csn::ZERO),
            ToParticipant::Closed(Csn::new(Epoch(3), 4)),
            ToParticipant::Floor(Position { epoch: Epoch(2), n: 8 }),
            ToParticipant::Resolve { txid: TXID, commit: true },
            ToParticipant::Skip(decided),
            ToParticipant::Close,
        ] {
            let bytes = to_participant_out(&message).encode_to_vec();
            assert_eq!(to_participant(v1::ToParticipantMessage::decode(&bytes[..]).unwrap()), Ok(message));
        }
    }

    #[test]
    fn every_message_from_a_participant_comes_back() {
        let refusal = Refusal::new(RefusalKind::Conflict, "in the way");
        let none: Results = vec![].into();
        let ballot = Ballot {
            votes: vec![
                (TXID, Vote::Prepared(a_marker().payload.results[0].1.clone())),
                (TXID, Vote::Redo(Bytes::from_static(b"r"), none.clone())),
                (TXID, Vote::InGroup(none.clone())),
                (TXID, Vote::Ready(none.clone())),
                (TXID, Vote::ReadOnly(none)),
                (TXID, Vote::No(refusal.clone())),
            ],
            group_redo: Bytes::from_static(b"g"),
        };
        let hello = Hello {
            kind: Kind::Leader,
            owner: Some(OWNER),
            progress: Progress { applied: Csn::new(Epoch(3), 4), durable: Csn::new(Epoch(3), 3) },
            highest: Csn::new(Epoch(3), 4),
            prepared: vec![TXID],
            heuristics: vec![(TXID, true)],
            floor: TXID.position(),
            exclusive: true,
            highest_epoch: Epoch(3),
            abilities: Abilities::default(),
        };
        for message in [
            FromParticipant::Hello(hello),
            FromParticipant::Refused(OWNER),
            FromParticipant::Ballot(ballot),
            FromParticipant::Committed(TXID),
            FromParticipant::NotPrepared(TXID, MarkerEvidence::RolledBack),
            FromParticipant::Progress(Progress::default()),
            FromParticipant::Stuck(Csn::ZERO, "why".into()),
            FromParticipant::Inquiry(vec![TXID]),
            FromParticipant::Led(vec![TXID]),
            FromParticipant::NotLed(vec![TXID], refusal),
            FromParticipant::Settled(Settle::Txid(TXID), Some(Box::new(a_marker()))),
            FromParticipant::Settled(Settle::Txid(TXID), None),
            FromParticipant::Markers { markers: vec![a_marker()], last: true },
            FromParticipant::Resolved { txid: TXID, commit: false },
        ] {
            let bytes = from_participant_out(&message).encode_to_vec();
            assert_eq!(from_participant(v1::FromParticipantMessage::decode(&bytes[..]).unwrap()), Ok(message));
        }
    }

    #[test]
    fn malformed_messages_are_refused_by_field() {
        let refused = |message: From| from_participant(v1::FromParticipantMessage { message: Some(message) }).unwrap_err();
        assert!(from_participant(v1::FromParticipantMessage { message: None }).is_err());
        assert!(refused(From::Attend(v1::Attend::default())).starts_with("attend"));
        assert!(refused(From::Hello(v1::Hello::default())).starts_with("hello.kind"));
        assert!(refused(From::Refused(v1::Owner::default())).starts_with("owner.coord_id has 0 bytes"));
        assert!(refused(From::Stuck(v1::Stuck { csn: u64::MAX, why: String::new() })).starts_with("stuck.csn is"));
        assert!(refused(From::Progress(v1::Progress { applied_csn: 1, durable_csn: 2 })).starts_with("progress.durable_csn"));
        assert!(refused(From::NotPrepared(v1::NotPrepared::default())).starts_with("not_prepared.evidence"));
    }
}
